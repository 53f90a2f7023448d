"""Decides what happens next to a study: create its experiments, start runs in the plan's order, end it. Pure.

Runs start lazily: at most `parallelism`, in order, when the pause on a node has passed. The order is a function of
the design alone and an experiment is started by a write that fails if it has moved, so of two operators that start
the same run one loses (docs/adr/0009).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from llem_operator.acceptance import EXPANDER_VERSION, Accepted, Refused
from llem_operator.children import Child, last_ends
from llem_operator.decision import (
    Action,
    Cancel,
    CreateExperiment,
    Decision,
    Release,
    Reopen,
    Restore,
    WriteExperimentStatus,
)
from llem_operator.memory import Row, remembered, restored, row_of
from llem_operator.names import study_uri
from llem_operator.objects import experiment_object
from llem_operator.study_status import Situation, Trouble, compose, refused, stalled
from llenergymeasure.core.plan import Run

BATCH = 50
"""Most objects created or changed in one look, so that a large study does not hold up small ones."""

PROBE_AFTER_S = 60.0


@dataclass(frozen=True)
class StudyFacts:
    """A study as read live, what acceptance said of it, its experiments by index, what stopped the last step."""

    study: Mapping[str, Any]
    judged: Accepted | Refused
    children: Mapping[int, Child] = field(default_factory=dict)
    trouble: Trouble | None = None

    @property
    def spec(self) -> Mapping[str, Any]:
        """The specification."""
        found: Mapping[str, Any] = self.study["spec"]
        return found

    @property
    def status(self) -> Mapping[str, Any]:
        """The status as read."""
        return self.study.get("status") or {}

    @property
    def epoch(self) -> int:
        """The retryEpoch asked for."""
        return int(self.spec.get("retryEpoch") or 0)


def reconcile_study(facts: StudyFacts, now: datetime) -> Decision:
    """The next step of one study."""
    if facts.study["metadata"].get("deletionTimestamp"):
        return Decision()
    if isinstance(facts.judged, Refused):
        return _refused(facts, facts.judged, now)
    problem = _changed(facts, facts.judged)
    if problem is not None:
        return Decision(stalled(facts.study, *problem, now))
    known = remembered(facts.status)
    rows = [row_of(r, facts.children.get(r.index), known) for r in facts.judged.runs]
    plan = _Step(facts, facts.judged, now, known)
    creations = tuple(plan.creations())
    repairs = tuple(plan.repairs())
    starts, next_time, why = plan.starts(blocked=bool(repairs))
    breaker = plan.cancellations()
    situation = Situation(
        study=facts.study,
        accepted=facts.judged,
        rows=rows,
        children=facts.children,
        missing=sum(1 for r in facts.judged.runs if r.index not in facts.children),
        next_eligible=next_time,
        waits_for=why,
        tripped=plan.tripped,
        unsettled=bool(repairs) or len(breaker) > 0 or bool(starts),
        starting=bool(starts),
        trouble=facts.trouble,
    )
    soon = now + timedelta(seconds=1) if creations or repairs or breaker else None
    times = [t for t in (next_time, soon) if t is not None]
    actions: tuple[Action, ...] = (*creations, *repairs, *breaker[:BATCH], *starts)
    return Decision(compose(situation, now), actions, min(times, default=None))


def _refused(facts: StudyFacts, judged: Refused, now: datetime) -> Decision:
    if facts.status.get("designHash"):  # it was accepted once: what runs goes on, nothing new starts
        return Decision(stalled(facts.study, judged.reason, judged.message, now))
    return Decision(refused(facts.study, judged, now))


def _changed(facts: StudyFacts, accepted: Accepted) -> tuple[str, str] | None:
    """Why the plan that was accepted is not the one that this operator would carry out."""
    before = facts.status
    if before.get("designHash") and before["designHash"] != accepted.design_hash:
        text = f"the design was accepted with hash {before['designHash']} and now has {accepted.design_hash}"
        return "DesignChanged", f"{text}; apply the accepted design again, or make a study of another name"
    if before.get("planHash") and before["planHash"] != accepted.plan_hash:
        text = f"plan {before['planHash']} (expander {before.get('expanderVersion')}) would become {accepted.plan_hash}"
        advice = "finish the study with the operator that began it, or make a new study"
        return "ExpanderChanged", f"{text} (expander {EXPANDER_VERSION}); {advice}"
    place = study_uri(accepted.results, facts.study)
    if before.get("resultsURI") and before["resultsURI"] != place:
        text = f"results went to {before['resultsURI']} and would now go to {place}"
        return "DestinationChanged", f"{text}; set the chart's results back, or name them in the study"
    return None


class _Step:
    """One look at an accepted study: what to create, mend, start, cancel."""

    def __init__(self, facts: StudyFacts, accepted: Accepted, now: datetime, known: Mapping[int, Row]) -> None:
        self._facts, self._accepted, self._now, self._known = facts, accepted, now, known
        self._children = facts.children
        self._namespace: str = facts.study["metadata"]["namespace"]
        self._failures = self._failures_in_a_row()

    @property
    def tripped(self) -> bool:
        """Whether the breaker is open: the limit of failures, then one that began after them, the probe."""
        limit = self._accepted.max_consecutive_failures
        if limit == 0 or len(self._failures) <= limit:
            return False
        reached = self._failures[limit - 1].ended
        return any(c.began is not None and reached is not None and c.began >= reached for c in self._failures[limit:])

    def creations(self) -> Iterator[CreateExperiment]:
        """Missing experiments in order of index, a batch at a time; one deleted by hand gets its end back at once."""
        missing = sorted((r for r in self._accepted.runs if r.index not in self._children), key=lambda r: r.index)
        for run in missing[:BATCH]:
            manifest = experiment_object(self._facts.study, run, self._accepted.configuration(run))
            yield CreateExperiment(manifest, self._memory_of(run.index, manifest["metadata"]["name"]))

    def _memory_of(self, index: int, name: str) -> Restore | None:
        row = self._known.get(index)
        if row is None:
            return None
        epoch = int(self._facts.status.get("observedRetryEpoch") or 0)
        retry = self._facts.spec.get("retry") or {}
        return Restore(restored(row, name, retry=retry, epoch=epoch, now=self._now), row.state)

    def repairs(self) -> Iterator[WriteExperimentStatus]:
        """Experiments deleted by hand get their end back; failed ones go again when retryEpoch was raised."""
        done = 0
        for index, child in self._children.items():
            if done >= BATCH:
                return
            memory = self._memory_of(index, child.name) if child.untouched and not child.deleting else None
            if memory is not None:
                yield WriteExperimentStatus(self._namespace, child.name, memory)
                done += 1
            elif child.goes_again and child.epoch < self._facts.epoch and not child.deleting:
                yield WriteExperimentStatus(self._namespace, child.name, Reopen(self._facts.epoch))
                done += 1

    def cancellations(self) -> tuple[WriteExperimentStatus, ...]:
        """What will not be started any more because the breaker is open."""
        if not self.tripped:
            return ()
        text = f"{len(self._failures)} runs failed in a row, the last after a pause; raise retryEpoch to go on"
        cancel = Cancel("CircuitBreaker", text)
        pending = [c for c in self._children.values() if c.state == "pending" and not c.deleting]
        return tuple(WriteExperimentStatus(self._namespace, c.name, cancel) for c in pending)

    def _failures_in_a_row(self) -> list[Child]:
        """Failures since the last completed run, in the order in which they became known.

        Which came last is told by the ends of their attempts, not by when an operator looked. Ends restored from
        memory have no time and no say.
        """
        ended = [c for c in self._children.values() if c.ended and c.state in ("completed", "failed")]
        streak: list[Child] = []
        for child in sorted(ended, key=lambda c: (c.stopped or c.ended or self._now, c.index), reverse=True):
            if child.state != "failed" or child.epoch < self._facts.epoch:
                break
            streak.append(child)
        return sorted(streak, key=lambda c: (c.ended or self._now, c.index))

    def starts(self, *, blocked: bool) -> tuple[tuple[WriteExperimentStatus, ...], datetime | None, str]:
        """Runs to start now; else when to look again and the reason in a word."""
        running = [c for c in self._children.values() if c.state == "running"]
        free = int(self._facts.spec.get("parallelism") or 1) - len(running)
        if self._facts.spec.get("suspend"):
            return (), None, "Suspended"
        if blocked or self.tripped or free <= 0:
            return (), None, "Running" if running else "Pending"
        probe_at = self._probe_at()
        if probe_at is not None:
            if running or self._now < probe_at:
                return (), None if running else probe_at, "Pending"
            free = 1
        return self._started(free, running)

    def _probe_at(self) -> datetime | None:
        """When the one probe may start after as many failures in a row as the study allows."""
        limit = self._accepted.max_consecutive_failures
        last = self._failures[-1].ended if self._failures else None
        if limit == 0 or len(self._failures) < limit or last is None:
            return None
        return last + timedelta(seconds=PROBE_AFTER_S)

    def _started(
        self, free: int, running: Sequence[Child]
    ) -> tuple[tuple[WriteExperimentStatus, ...], datetime | None, str]:
        found: list[WriteExperimentStatus] = []
        waits: list[datetime] = []
        ends = last_ends(self._children.values())
        busy = {c.node for c in running if c.node}
        for run in self._accepted.runs:
            if len(found) >= min(free, BATCH):
                break
            child = self._children.get(run.index)
            if child is None:
                break  # not created yet; runs start in the plan's order
            if child.state != "pending" or child.deleting:
                continue
            if child.next_after is not None and self._now < child.next_after:
                waits.append(child.next_after)
                continue
            eligible = self._eligible_at(run, ends, busy)
            if eligible is not None and self._now < eligible:
                return tuple(found), eligible, "WaitingForGap"
            found.append(WriteExperimentStatus(self._namespace, child.name, Release(child.attempt)))
        if found or running:
            return tuple(found), min(waits, default=None), "Running"
        return (), min(waits, default=None), "WaitingForRetry" if waits else "Pending"

    def _eligible_at(self, run: Run, ends: Mapping[str, datetime], busy: set[str]) -> datetime | None:
        """When some node has had its pause; None: now, since a node that this study has not used may be free."""
        gap = self._accepted.pause_s(run.index, again=bool(ends))
        idle = [end for node, end in ends.items() if node not in busy]
        if gap <= 0 or not idle or int(self._facts.spec.get("parallelism") or 1) > len(ends):
            return None
        return min(idle) + timedelta(seconds=gap)
