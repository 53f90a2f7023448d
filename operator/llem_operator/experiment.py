"""Decides what happens next to one experiment: its attempts, its retries, its end. Pure: time and facts come in.

An attempt begins as a row in `status.attempts`; then its Job is made under the name that the row implies. Whoever
comes after a crash at any point derives the same names and finds what was done.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal

from llem_operator import names, objects
from llem_operator.acceptance import Configuration, Refused
from llem_operator.attempts import (
    LOST_MARGIN_S,
    NO_POD_S,
    TAKEN_BACK,
    Budget,
    Ended,
    Running,
    Waiting,
    all_said_at,
    container_ended,
    job_is_live,
    lost_at,
    progress,
)
from llem_operator.conditions import find
from llem_operator.decision import CreateJob, Decision, DeleteJob, ExpireJob
from llem_operator.experiment_status import Said, closed, finished, going_on, reopened, seen, with_result
from llem_operator.timestamps import parse, text, whole_seconds

MAX_ATTEMPTS_KEPT = 10
RETRY_BASE_S, RETRY_MAX_S = 10.0, 300.0
SKEW_S = 600.0  # the pod's clock may be that far behind ours while its node answers
DEFAULT_TIMEOUT_S = 3600.0
DEFAULT_RETRY = {"measurement": 0, "infrastructure": 3, "invalid": 0}


Orphan = Literal["a study that lives", "a study that is gone"]
"""Of what an experiment is an orphan that names a study and has no owner."""


@dataclass(frozen=True)
class ExperimentFacts:
    """Everything that was seen: the experiment and its study as read live, its Jobs and pods, the Job's Events.

    `judged` is what acceptance said of the configuration. `not_before` and `gap_s` are the pause that the plan puts
    before this run, `baselines` what earlier runs of the study measured.
    """

    experiment: Mapping[str, Any]
    study: Mapping[str, Any] | None
    judged: Configuration | Refused
    jobs: Sequence[Mapping[str, Any]] = ()
    pods: Sequence[Mapping[str, Any]] = ()
    events: Sequence[Mapping[str, Any]] = ()
    results: Mapping[str, Any] = field(default_factory=dict)
    record: str | None = None
    timeout_s: float = DEFAULT_TIMEOUT_S
    not_before: Mapping[str, datetime] = field(default_factory=dict)
    gap_s: float = 0.0
    baselines: Sequence[Mapping[str, Any]] = ()
    orphan_of: Orphan | None = None

    @property
    def status(self) -> Mapping[str, Any]:
        """Status as read."""
        return self.experiment.get("status") or {}

    @property
    def source(self) -> Mapping[str, Any]:
        """The spec whose suspend, retry and retryEpoch are in force: the study's, or a standalone experiment's own."""
        spec: Mapping[str, Any] = (self.study or self.experiment)["spec"]
        return spec

    def going_on(
        self, status: Mapping[str, Any], now: datetime, reason: str, message: str, *, scheduled: bool = False
    ) -> dict[str, Any]:
        """The status of this experiment while it is not over."""
        return going_on(self.experiment, status, now, reason, message, scheduled=scheduled)

    def finished(
        self, status: Mapping[str, Any], now: datetime, reason: str, message: str, *, more: Sequence[Said] = ()
    ) -> dict[str, Any]:
        """The status of this experiment at its end."""
        accepted = isinstance(self.judged, Configuration)
        epoch = int(self.source.get("retryEpoch") or 0)
        return finished(self.experiment, status, now, reason, message, epoch=epoch, accepted=accepted, more=more)

    @property
    def open_attempt(self) -> Mapping[str, Any] | None:
        """The attempt that has begun and not ended."""
        return open_attempt(self.status)


def open_attempt(status: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The row of an attempt that has begun and not ended."""
    rows = status.get("attempts") or ()
    return rows[-1] if rows and not rows[-1].get("outcome") else None


def released(status: Mapping[str, Any], name: str, now: datetime) -> dict[str, Any]:
    """A status in which the next attempt has begun."""
    number = int(status.get("attempt") or 0) + 1
    row = {"attempt": number, "jobName": names.job_name(name, number), "created": text(now)}
    rows = [*(status.get("attempts") or ()), row][-MAX_ATTEMPTS_KEPT:]
    return {
        **status,
        "attempt": number,
        "attempts": rows,
        "finished": False,
        "startTime": status.get("startTime") or text(now),
    }


def retry_at(status: Mapping[str, Any]) -> datetime | None:
    """When a failed experiment may be tried again: a pause that doubles with each retry of infrastructure."""
    rows: Sequence[Mapping[str, Any]] = status.get("attempts") or []
    used = sum((status.get("retriesUsed") or {}).values())
    ended = parse(rows[-1].get("end")) if rows else None
    if ended is None or not used or rows[-1].get("outcome") in (None, "Completed"):
        return None
    return ended + timedelta(seconds=min(RETRY_MAX_S, RETRY_BASE_S * 2 ** (used - 1)))


def reconcile_experiment(facts: ExperimentFacts, now: datetime) -> Decision:
    """The next step of one experiment."""
    if facts.experiment["metadata"].get("deletionTimestamp"):
        return Decision()
    if facts.status.get("finished"):
        return _after_the_end(facts, now)
    row = facts.open_attempt
    if row is not None:
        return _attempting(facts, row, now)
    if facts.orphan_of is not None:
        return _orphaned(facts, now)
    if isinstance(facts.judged, Refused):
        return Decision(facts.finished(facts.status, now, facts.judged.reason, facts.judged.message))
    if facts.study is not None and "observedGeneration" not in facts.status:
        return Decision()  # only its study may speak first: it may remember the end of one deleted by hand
    return _pending(facts, now)


def _orphaned(facts: ExperimentFacts, now: datetime) -> Decision:
    """It names a study and has no owner: what runs ends, nothing new starts without the study's template and turn."""
    name = (facts.experiment["spec"].get("studyRef") or {}).get("name")
    if facts.orphan_of == "a study that lives":
        text_ = f"its ownerReference to study {name} was removed; delete this experiment, the study makes it again"
        return Decision(facts.going_on(facts.status, now, "NameTaken", text_))
    return Decision(
        facts.finished(facts.status, now, "Cancelled", f"its study {name} is gone"), _live_jobs(facts, None)
    )


def _after_the_end(facts: ExperimentFacts, now: datetime) -> Decision:
    """Reopen by retryEpoch; else only let the Job of a stored result expire."""
    if may_reopen(facts.status, int(facts.source.get("retryEpoch") or 0)):
        return Decision(reopened(facts.experiment, int(facts.source["retryEpoch"]), now))
    ttl = ((facts.study or {}).get("spec", {}).get("retention") or {}).get(
        "jobTTLSecondsAfterResult", objects.JOB_TTL_S
    )
    expiring = tuple(
        ExpireJob(j["metadata"]["namespace"], j["metadata"]["name"], ttl)
        for j in facts.jobs
        if not job_is_live(j) and "ttlSecondsAfterFinished" not in j["spec"]
    )
    return Decision(actions=(*expiring, *_live_jobs(facts, None)))


def may_reopen(status: Mapping[str, Any], epoch: int) -> bool:
    """Whether a finished experiment goes again in this epoch: it failed, was cancelled, or its verdict is invalid."""
    if epoch <= int(status.get("observedRetryEpoch") or 0):
        return False
    succeeded = find(status.get("conditions") or (), "Succeeded") or {}
    verdict = (status.get("summary") or {}).get("verdict")
    return succeeded.get("status") != "True" or verdict == "invalid"


def _pending(facts: ExperimentFacts, now: datetime) -> Decision:
    """Between attempts. A study's experiment is released by its study; one that stands alone releases itself."""
    stray = _live_jobs(facts, None)
    due = retry_at(facts.status)
    if facts.source.get("suspend"):
        why = ("Suspended", "spec.suspend is true")
    elif due is not None and now < due:
        text_ = f"attempt {facts.status.get('attempt')} failed; the next one starts at {whole_seconds(due)}"
        why = ("WaitingForRetry", text_)
    elif facts.study is None and not stray:
        begun = released(facts.status, facts.experiment["metadata"]["name"], now)
        return Decision(facts.going_on(begun, now, "Creating", "the Job is being created"))
    else:
        why = ("Pending", "waits for its turn in the study" if facts.study else "waits for an earlier Job to end")
    return Decision(facts.going_on(facts.status, now, *why), stray, requeue_at=due)


def _attempting(facts: ExperimentFacts, row: Mapping[str, Any], now: datetime) -> Decision:
    job = next((j for j in facts.jobs if j["metadata"]["name"] == row["jobName"]), None)
    if job is None:
        return _without_job(facts, row, now)
    if names.owner_uid(job) != facts.experiment["metadata"]["uid"]:
        taken = f"Job {row['jobName']} belongs to something else; waiting until it is gone"
        if now >= _job_deadline(facts, row, now):
            return end_attempt(facts, dict(facts.status), Ended("Failed", "NameTaken", taken, end=now), now)
        return Decision(facts.going_on(facts.status, now, "NameTaken", taken), requeue_at=now + timedelta(seconds=5))
    pod = _newest_pod(facts, job)
    state = progress(job, pod, facts.events)
    status = seen(facts.status, job, pod)
    more = all_said_at(job, pod)
    if more is not None and now < more:
        return Decision(requeue_at=more)
    if isinstance(state, Ended):
        return end_attempt(facts, status, state, now)
    if _stop_at_once(facts):
        return end_attempt(facts, status, Ended("Preempted", "Suspended", "stopped by spec.suspend", end=now), now)
    if isinstance(state, Waiting) and state.reason == "WaitingForQueue" and row.get("start"):
        return end_attempt(facts, status, Ended("Preempted", "WaitingForQueue", TAKEN_BACK, end=now), now)
    if isinstance(state, Waiting) and row.get("start") and pod is None:
        return _pod_gone(facts, status, job, row, now)
    if isinstance(state, Waiting):
        return _waiting(facts, status, job, pod, state, now)
    return _running(facts, status, job, state, now)


def _pending_seconds(facts: ExperimentFacts) -> float:
    """How long an attempt may wait for its start."""
    return float(objects.deadlines_of(facts.experiment, facts.study)["pendingSeconds"])


def _job_deadline(facts: ExperimentFacts, row: Mapping[str, Any], now: datetime) -> datetime:
    """When an attempt whose Job cannot be made is given up."""
    return (parse(row["created"]) or now) + timedelta(seconds=_pending_seconds(facts))


def _stop_at_once(facts: ExperimentFacts) -> bool:
    return bool(facts.source.get("suspend")) and facts.source.get("suspendPolicy") == "Immediate"


def _without_job(facts: ExperimentFacts, row: Mapping[str, Any], now: datetime) -> Decision:
    """The attempt has begun, its Job is not there: never made, or deleted by hand."""
    if row.get("jobUID"):
        deleted = Ended("Lost", "JobDeleted", f"Job {row['jobName']} was deleted by hand", "infrastructure", end=now)
        return end_attempt(facts, dict(facts.status), deleted, now)
    if _stop_at_once(facts):
        return end_attempt(facts, dict(facts.status), Ended("Preempted", "Suspended", "not started", end=now), now)
    if facts.orphan_of is not None:
        return end_attempt(facts, dict(facts.status), Ended("Failed", "Cancelled", "its study is gone", end=now), now)
    stray = _live_jobs(facts, row["jobName"])
    lost = {a.get("podUID") for a in facts.status["attempts"] if a.get("reason") == "NodeLost"}  # listed for ever
    blocked = [p["metadata"]["name"] for p in facts.pods if _alive(p) and p["metadata"]["uid"] not in lost]
    why = find(facts.status.get("conditions") or (), "Finished") or {}
    refused_by_api = why.get("reason") in ("Forbidden", "NotCreated")  # not for an operator's own absence
    if now >= _job_deadline(facts, row, now) and (stray or blocked or refused_by_api):
        late = Ended("Failed", "TimedOut", f"its Job could not be made in time: {why.get('message', '')}", end=now)
        return end_attempt(facts, dict(facts.status), late, now)
    if stray or blocked:
        message = f"waits until an earlier attempt is gone: {', '.join(blocked) or 'its Job'}"
        status = facts.going_on(facts.status, now, "Creating", message)
        return Decision(status, stray, now + timedelta(seconds=2))
    if isinstance(facts.judged, Refused):
        refused = Ended("Failed", facts.judged.reason, facts.judged.message, end=now)
        return end_attempt(facts, dict(facts.status), refused, now)
    moved = _moved(facts)
    if moved:
        return Decision(facts.going_on(facts.status, now, "DestinationChanged", moved))
    job = CreateJob(attempt_of(facts, facts.judged, int(row["attempt"])))
    return Decision(None, (job,), now + timedelta(seconds=NO_POD_S))  # the row says enough; a refusal stays to be read


def _moved(facts: ExperimentFacts) -> str:
    """Where the study's results went and would now go, if that is elsewhere; its own status says what to do."""
    before = ((facts.study or {}).get("status") or {}).get("resultsURI")
    place = names.study_uri(facts.results, facts.study) if facts.study is not None and before else before
    return "" if place == before else f"results went to {before} and would now go to {place}"


def attempt_of(facts: ExperimentFacts, configuration: Configuration, number: int) -> objects.Attempt:
    """All that an attempt's Job is made of."""
    return objects.Attempt(
        experiment=facts.experiment,
        study=facts.study,
        number=number,
        configuration=configuration,
        timeout_s=facts.timeout_s,
        record=facts.record,
        results=facts.results,
        not_before=facts.not_before,
        gap_s=facts.gap_s,
        baselines=facts.baselines,
        adopt_from=int(facts.status.get("adoptFrom") or 1),
    )


def _live_jobs(facts: ExperimentFacts, wanted: str | None) -> tuple[DeleteJob, ...]:
    """Jobs of this experiment other than the wanted one that may still measure: what a crash or a lost node left."""
    uid = facts.experiment["metadata"]["uid"]
    return tuple(
        DeleteJob(j["metadata"]["namespace"], j["metadata"]["name"], j["metadata"]["uid"])
        for j in facts.jobs
        if j["metadata"]["name"] != wanted
        and names.owner_uid(j) == uid
        and _may_measure(facts, j)
        and not j["metadata"].get("deletionTimestamp")
    )


def _may_measure(facts: ExperimentFacts, job: Mapping[str, Any]) -> bool:
    """False for a Job that is over, also in the moment between its pod's end and its own."""
    pod = _newest_pod(facts, job)
    return job_is_live(job) and (pod is None or _alive(pod))


def _alive(pod: Mapping[str, Any]) -> bool:
    """Whether a pod may still measure: its container has not ended, whatever its phase says yet."""
    return (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed") and not container_ended(pod)


def _newest_pod(facts: ExperimentFacts, job: Mapping[str, Any]) -> Mapping[str, Any] | None:
    own = [p for p in facts.pods if names.owner_uid(p) == job["metadata"]["uid"]]
    return max(own, key=lambda p: str(p["metadata"].get("creationTimestamp", "")), default=None)


def _waiting(
    facts: ExperimentFacts,
    status: dict[str, Any],
    job: Mapping[str, Any],
    pod: Mapping[str, Any] | None,
    state: Waiting,
    now: datetime,
) -> Decision:
    """Wait until the deadline; it counts from when the Job was made or, later, left its queue (its startTime)."""
    said = facts.going_on(status, now, state.reason, state.message)
    if state.reason == "WaitingForQueue":
        return Decision(said)
    created = parse(job["metadata"].get("creationTimestamp")) or now
    begun = max(created, parse((job.get("status") or {}).get("startTime")) or created)
    deadline = begun + timedelta(seconds=_pending_seconds(facts))
    leaving = parse((pod or {"metadata": {}})["metadata"].get("deletionTimestamp"))
    if leaving is not None and now >= leaving + timedelta(seconds=LOST_MARGIN_S):
        text_ = f"the pod was deleted and does not go: node {status.get('node')} is lost"
        return end_attempt(facts, status, Ended("Lost", "NodeLost", text_, "infrastructure", end=now), now)
    if now >= deadline:
        message = f"no start within {_pending_seconds(facts):g} s: {state.message}"
        budget: Budget = "infrastructure" if state.reason == "PodStarting" else "none"
        return end_attempt(facts, status, Ended("Failed", state.reason, message, budget, end=now), now)
    silent = state.reason in ("WaitingForPod", "PodStarting")
    check = begun + timedelta(seconds=NO_POD_S) if silent else deadline
    requeue = check if check > now else now + timedelta(seconds=NO_POD_S)
    return Decision(said, requeue_at=min(requeue, deadline))


def _pod_gone(
    facts: ExperimentFacts, status: dict[str, Any], job: Mapping[str, Any], row: Mapping[str, Any], now: datetime
) -> Decision:
    """It has run and its pod is gone: the Job says a moment later how that ended, and until then nobody else knows."""
    deadline_s = int(job["spec"]["template"]["spec"]["activeDeadlineSeconds"])
    give_up = lost_at(parse(row["start"]) or now, deadline_s, objects.GRACE_S) + timedelta(seconds=SKEW_S)
    message = "the pod is gone; its Job has not yet said how it ended"
    if now >= give_up:
        return end_attempt(facts, status, Ended("Lost", "PodDeleted", message, "infrastructure", end=now), now)
    return Decision(facts.going_on(status, now, "WaitingForPod", message), requeue_at=give_up)


def _running(
    facts: ExperimentFacts, status: dict[str, Any], job: Mapping[str, Any], state: Running, now: datetime
) -> Decision:
    start = state.start or now
    deadline_s = int(job["spec"]["template"]["spec"]["activeDeadlineSeconds"])
    give_up = lost_at(start, deadline_s, objects.GRACE_S)
    if now >= (give_up if state.unreachable else give_up + timedelta(seconds=SKEW_S)):
        message = (
            f"the pod on {status.get('node')} should have ended by its deadline of {deadline_s} s; its node is lost"
        )
        return end_attempt(facts, status, Ended("Lost", "NodeLost", message, "infrastructure", end=now), now)
    pause = facts.not_before.get(str(status.get("node")))
    if state.unreachable:
        why = ("NodeUnreachable", f"node {status.get('node')} does not answer; waiting until {whole_seconds(give_up)}")
    elif pause is not None and now < pause:
        why = ("WaitingForGap", f"the pause on {status.get('node')} lasts until {whole_seconds(pause)}")
    else:
        why = ("Measuring", f"on {status.get('node')} since {whole_seconds(start)}")
    said = facts.going_on(status, now, *why, scheduled=True)
    later = give_up if now < give_up else now + timedelta(seconds=60)
    return Decision(said, requeue_at=min(later, pause) if pause and pause > now else later)


def _stored_unread(facts: ExperimentFacts, end: Ended) -> bool:
    """Whether the result is stored and only its record went with the pod: the next attempt adopts it, free of charge.

    Once: where pods go too soon each time, the budget of infrastructure bounds it.
    """
    rows = facts.status.get("attempts") or ()
    again = any(a.get("outcome") == "Lost" and a.get("exitCode") == 0 for a in rows)
    return end.outcome == "Lost" and end.exit_code == 0 and not again


def end_attempt(facts: ExperimentFacts, status: dict[str, Any], end: Ended, now: datetime) -> Decision:
    """Close the open row; then finish, or go back to pending if a budget allows another attempt."""
    stray = _live_jobs(facts, None)
    if _stored_unread(facts, end):
        said = facts.going_on(closed(status, end, end.reason, now), now, "WaitingForRetry", end.message)
        return Decision(said, stray)
    if end.outcome == "Preempted":
        return Decision(facts.going_on(closed(status, end, end.reason, now), now, end.reason, end.message), stray)
    invalid = end.record is not None and end.outcome == "Completed" and end.record.verdict == "invalid"
    budget = "invalid" if invalid else end.budget
    status = closed(status, end, "VerdictInvalid" if invalid else end.reason, now)
    if invalid:
        status["adoptFrom"] = int(status["attempt"]) + 1  # the store still holds this result
    used = {k: int(v) for k, v in (status.get("retriesUsed") or {}).items()}
    allowed = {**DEFAULT_RETRY, **(facts.source.get("retry") or {})}
    if budget in allowed and used.get(budget, 0) < int(allowed[budget]):
        status["retriesUsed"] = {**used, budget: used.get(budget, 0) + 1}
        said = facts.going_on(status, now, "WaitingForRetry", f"{end.reason}: {end.message}")
        return Decision(said, stray, requeue_at=retry_at(status))
    if end.outcome == "Completed":
        status, judged = with_result(status, end, facts.results)
        return Decision(facts.finished(status, now, "ResultStored", status["result"]["uri"], more=(judged,)), stray)
    return Decision(facts.finished(status, now, end.reason, end.message), stray)
