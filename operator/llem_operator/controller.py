"""One look at one object: observe, decide, write one status, act. The only place where decisions meet the cluster."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from llem_operator.acceptance import Accepted, Configuration, Refused
from llem_operator.api import ApiError
from llem_operator.attempts import NO_POD_S, Ended, is_starting
from llem_operator.cache import Cache, lean_job, lean_pod
from llem_operator.children import last_ends
from llem_operator.cluster import Cluster, TakenError
from llem_operator.conditions import find
from llem_operator.decision import (
    Action,
    CreateExperiment,
    CreateJob,
    Decision,
    DeleteJob,
    ExpireJob,
    StatusChange,
    WriteExperimentStatus,
)
from llem_operator.experiment import ExperimentFacts, Orphan, end_attempt, open_attempt, reconcile_experiment
from llem_operator.judgements import Judgements
from llem_operator.names import owner_uid
from llem_operator.objects import Attempt, job_object
from llem_operator.settings import Settings
from llem_operator.study import StudyFacts, reconcile_study
from llem_operator.study_status import Trouble
from llem_operator.timestamps import parse, whole_seconds
from llem_operator.transitions import changed
from llenergymeasure.core.errors import ConfigError

log = logging.getLogger(__name__)

STATUS_PACE_S = 1.0
REST_S, RESTS = 0.2, 3.0  # between two looks, s, and as a multiple of what the last one took: all studies share a loop
EVENTS_EVERY_S = 10.0  # below the time between two looks, so that each look at a silent start reads them
TROUBLE_PAUSE_S = 15.0
DISPENSABLE = ("manifest", "nodes", "baselines", "active", "recentFailures", "skipped", "best", "logTail", "warnings")
"""What a status can do without when the API server finds it too large or refuses a part of it."""


@dataclass(frozen=True, slots=True)
class Key:
    """What is to be looked at. `verify`: an experiment that left the watch, finished or deleted."""

    kind: Literal["study", "experiment", "verify"]
    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class Look:
    """What came of a look: when to look again, which other keys it made dirty, and the pause that it needs after it."""

    requeue_at: datetime | None = None
    dirty: tuple[Key, ...] = ()
    rest_s: float = 0.0


class Controller:
    """Looks at keys. Keeps no truth of its own: a new controller on the same cluster decides the same."""

    def __init__(
        self,
        cluster: Cluster,
        cache: Cache,
        settings: Settings,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float],
        on_end: Callable[[Mapping[str, Any]], None] = lambda _obj: None,
    ) -> None:
        self._cluster, self._cache, self._settings = cluster, cache, settings
        self._now, self._monotonic, self._on_end = now, monotonic, on_end
        self._judge = Judgements(settings)
        self._written_at: dict[str, float] = {}
        self._troubles: dict[str, Trouble] = {}  # by study UID, so that a status says it once, not at every try
        self._events_read: dict[str, tuple[float, list[dict[str, Any]]]] = {}

    async def look(self, key: Key) -> Look:
        """Observe, decide, apply; raises ApiError for the queue to try again later."""
        if key.kind == "study":
            return await self._look_at_study(key)
        if key.kind == "verify":
            return await self._verify(key)
        try:
            return await self._look_at_experiment(key)
        except ApiError:
            self._cache.open.pop((key.namespace, key.name), None)  # it may have moved: read it live the next time
            raise

    async def _verify(self, key: Key) -> Look:
        experiment = await self._cluster.experiment(key.namespace, key.name)
        if experiment is None:
            return self._gone(key)
        self._cache.put_experiment(experiment)
        return Look(dirty=(Key("experiment", key.namespace, key.name), *self._study_key(key)))

    def _gone(self, key: Key) -> Look:
        dirty = self._study_key(key)
        self._cache.drop_experiment((key.namespace, key.name))
        return Look(dirty=dirty)

    def _study_key(self, key: Key) -> tuple[Key, ...]:
        child = self._cache.children.get((key.namespace, key.name))
        return (Key("study", child.namespace, child.study),) if child is not None and child.study else ()

    async def _look_at_study(self, key: Key) -> Look:
        study = await self._cluster.study(key.namespace, key.name)
        if study is None:
            gone = self._cache.studies.pop((key.namespace, key.name), None)
            if gone is not None:
                self._judge.forget(gone["metadata"]["uid"])
                self._written_at.pop(gone["metadata"]["uid"], None)
                self._troubles.pop(gone["metadata"]["uid"], None)
            return Look()
        self._cache.put_study(study)
        uid = study["metadata"]["uid"]
        judged = await self._judge.study(study)
        facts = StudyFacts(study, judged, self._cache.children_of(uid), self._troubles.get(uid))
        now, begun = self._now(), self._monotonic()
        decision = reconcile_study(facts, now)
        rest_s = max(REST_S, RESTS * (self._monotonic() - begun))
        late = self._too_soon(study, decision)
        if not late:
            await self._write(study, decision)
        trouble, dirty = await self._act_for_study(decision)
        if trouble:
            self._troubles[uid] = trouble
        else:
            self._troubles.pop(uid, None)
        if trouble != facts.trouble:
            dirty.append(key)  # to say so
        times = [now + timedelta(seconds=TROUBLE_PAUSE_S) if trouble else decision.requeue_at]
        times.append(now + timedelta(seconds=STATUS_PACE_S) if late else None)
        dirty += self._to_be_stopped(study)
        return Look(min((t for t in times if t is not None), default=None), tuple(dirty), rest_s)

    def _to_be_stopped(self, study: Mapping[str, Any]) -> Iterator[Key]:
        """Running experiments of a study that is suspended at once."""
        if study["spec"].get("suspend") and study["spec"].get("suspendPolicy") == "Immediate":
            for child in self._cache.children_of(study["metadata"]["uid"]).values():
                if child.state == "running":
                    yield Key("experiment", child.namespace, child.name)

    def _too_soon(self, study: Mapping[str, Any], decision: Decision) -> bool:
        """Whether a status write must wait: numbers at most once a second, conditions at once."""
        if decision.status is None:
            return False
        if self._monotonic() - self._written_at.get(study["metadata"]["uid"], -1e9) >= STATUS_PACE_S:
            return False
        before = {c["type"]: c["status"] for c in (study.get("status") or {}).get("conditions") or ()}
        return before == {c["type"]: c["status"] for c in decision.status["conditions"]}

    async def _write(self, obj: dict[str, Any], decision: Decision) -> dict[str, Any]:
        """The one status write of a look; gives the object as it is then."""
        if decision.status is None:
            return obj
        written = await self._write_or_shrink(obj, decision.status)
        if written is None:
            return obj
        written.setdefault("kind", obj["kind"])
        if obj["kind"] == "EnergyStudy":
            self._written_at[obj["metadata"]["uid"]] = self._monotonic()
            self._cache.put_study(written)
        else:
            self._cache.put_experiment(written)
        await self._tell(obj, written)
        return written

    async def _write_or_shrink(self, obj: dict[str, Any], status: dict[str, Any]) -> dict[str, Any] | None:
        """A status that does not fit (413, 422, 500 "request is too large") is written without what may be missing."""
        try:
            return await self._cluster.write_status(obj, status)
        except ApiError as err:
            if err.status not in (413, 422) and not (err.status == 500 and "too large" in err.message):
                raise
            log.warning("status of %s is refused, writing less of it: %s", obj["metadata"]["name"], err)
        less = {k: v for k, v in status.items() if k not in DISPENSABLE}
        return await self._cluster.write_status(obj, {**less, "manifestMode": "Ranges"} if "counts" in less else less)

    async def _tell(self, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
        """Post an Event when something ended or was refused; an Event that fails is not worth a second try.

        A run of a study that ended well is no event of its own: thousands of them would hide the others.
        """
        old = find((before.get("status") or {}).get("conditions") or (), "Finished") or {}
        new = find(after["status"].get("conditions") or (), "Finished") or {}
        if new.get("status") != "True" or old.get("status") == "True":
            return
        self._on_end(after)
        good = new["reason"] in ("Completed", "ResultStored")
        if good and after["spec"].get("studyRef"):
            return
        try:
            text = str(new["message"])
            await self._cluster.event(after, str(new["reason"]), text, warning=not good, now=whole_seconds(self._now()))
        except ApiError as err:
            log.warning("no event about %s: %s", after["metadata"]["name"], err)

    async def _act_for_study(self, decision: Decision) -> tuple[Trouble | None, list[Key]]:
        """Carry out a study's actions; gives what stands in their way, and the keys that they made dirty."""
        trouble: Trouble | None = None
        dirty: list[Key] = []
        try:
            for action in decision.actions:
                try:
                    dirty += await self._act_on_experiment(action)
                except TakenError as err:
                    trouble = trouble or ("NameTaken", str(err))
        except ApiError as err:
            if err.status != 403:
                raise
            log.warning("%s", err)
            trouble = ("Forbidden", err.message)
        return trouble, dirty

    async def _act_on_experiment(self, action: Action) -> list[Key]:
        match action:
            case CreateExperiment(manifest, memory):
                await self._change(await self._cluster.create_experiment(manifest), memory)
                return []
            case WriteExperimentStatus(namespace, name, change):
                live = await self._cluster.experiment(namespace, name)
                key = Key("experiment", namespace, name)
                if live is None:
                    return [Key("verify", namespace, name)]
                await self._change(live, change)
                return [key, *self._study_key(key)]
            case _:
                raise AssertionError(f"a study does not decide {action}")

    async def _change(self, live: dict[str, Any], change: StatusChange | None) -> None:
        """Carry out what a study decides about an experiment as just read, if it still applies."""
        self._cache.put_experiment(live)
        status = changed(live, change, self._now()) if change is not None else None
        if status is not None:
            await self._write({**live, "kind": "EnergyExperiment"}, Decision(status))

    async def _look_at_experiment(self, key: Key) -> Look:
        if self._cache.is_settled((key.namespace, key.name)):
            return Look()
        known = self._cache.open.get((key.namespace, key.name))  # a write fails if it has moved since
        experiment = known or await self._cluster.experiment(key.namespace, key.name)
        if experiment is None:
            return self._gone(key)
        experiment["kind"] = "EnergyExperiment"
        self._cache.put_experiment(experiment)
        study = await self._study_for(experiment)
        if study is None and owner_uid(experiment) and experiment["spec"].get("studyRef"):
            return Look()  # its study is gone or another one: the garbage collector's business
        facts = replace(await self._facts(experiment, study), orphan_of=await self._orphan_of(experiment))
        now = self._now()
        decision = reconcile_experiment(facts, now)
        if _irreversible(facts, decision):
            if known is not None:
                self._cache.open.pop((key.namespace, key.name), None)
                return await self._look_at_experiment(key)
            facts = await self._live(facts, with_study=not _only_creates(decision))
            decision = reconcile_experiment(facts, now)
        written = await self._write(experiment, decision)
        for action in decision.actions:
            written = await self._act_for_experiment(action, facts, written)
        moved = written is not experiment
        again = (key,) if moved and not written["status"].get("finished") else ()
        return Look(decision.requeue_at, (*again, *(self._study_key(key) if moved else ())))

    async def _study_for(self, experiment: Mapping[str, Any]) -> dict[str, Any] | None:
        """The study that owns an experiment; read live where the cache does not have it."""
        child = self._cache.children[experiment["metadata"]["namespace"], experiment["metadata"]["name"]]
        if not child.study or not child.owner:
            return None
        known = self._cache.study_of(child)
        if known is None:
            live = await self._cluster.study(child.namespace, child.study)
            if live is not None:
                self._cache.put_study(live)
            known = self._cache.study_of(child)
        return known

    async def _orphan_of(self, experiment: Mapping[str, Any]) -> Orphan | None:
        """Of what study an experiment that names one and has no owner is the orphan."""
        name = (experiment["spec"].get("studyRef") or {}).get("name")
        if not name or owner_uid(experiment):
            return None
        study = await self._cluster.study(experiment["metadata"]["namespace"], name)
        lives = study is not None and "deletionTimestamp" not in study["metadata"]
        return "a study that lives" if lives else "a study that is gone"

    async def _facts(self, experiment: dict[str, Any], study: dict[str, Any] | None) -> ExperimentFacts:
        name = (experiment["metadata"]["namespace"], experiment["metadata"]["name"])
        jobs, pods = self._cache.jobs.of(name), self._cache.pods.of(name)
        plan = await self._judge.study(study) if study is not None else None
        judged: Configuration | Refused = self._judge.experiment(experiment, study)
        events = await self._silent_refusals(open_attempt(experiment.get("status") or {}), jobs, pods)
        common = {"judged": judged, "jobs": jobs, "pods": pods, "events": events}
        if study is None or not isinstance(plan, Accepted):
            results = (study or experiment)["spec"].get("results") or self._settings.results
            return ExperimentFacts(experiment, study, results=results, **common)  # type: ignore[arg-type]  # one record
        ends = last_ends(self._cache.children_of(study["metadata"]["uid"]).values())
        gap_s = plan.pause_s(int(experiment["spec"].get("index") or 0), again=bool(ends))
        until = {n: t + timedelta(seconds=gap_s) for n, t in ends.items()} if gap_s > 0 else {}
        return ExperimentFacts(
            experiment,
            study,
            results=plan.results,
            record=plan.record,
            timeout_s=plan.timeout_s,
            not_before={n: t for n, t in until.items() if t > self._now()},
            gap_s=gap_s,
            baselines=(study.get("status") or {}).get("baselines") or (),
            **common,  # type: ignore[arg-type]  # one record
        )

    async def _silent_refusals(
        self,
        row: Mapping[str, Any] | None,
        jobs: Sequence[Mapping[str, Any]],
        pods: Sequence[Mapping[str, Any]],
    ) -> list[dict[str, Any]]:
        """Events of a Job that has no pod after a while, or of a pod that does not start: only there is the reason."""
        job = next((j["metadata"] for j in jobs if row and j["metadata"]["name"] == row["jobName"]), None)
        if job is None:
            return []
        pod = next((p for p in pods if owner_uid(p) == job["uid"]), None)
        if pod is not None and not is_starting(pod):
            return []
        about = job if pod is None else pod["metadata"]
        created = parse(job.get("creationTimestamp"))
        if created is None or self._now() - created < timedelta(seconds=NO_POD_S):
            return []
        at, events = self._events_read.get(about["uid"], (-1e9, []))
        if self._monotonic() - at >= EVENTS_EVERY_S:
            events = await self._cluster.events_of(about["namespace"], about["uid"])
            self._events_read[about["uid"]] = (self._monotonic(), events)
            while len(self._events_read) > 256:
                self._events_read.pop(next(iter(self._events_read)))
        return events

    async def _live(self, facts: ExperimentFacts, *, with_study: bool) -> ExperimentFacts:
        """The same facts with Jobs and pods as they are now; the study, too, where something ends by its word."""
        metadata = facts.experiment["metadata"]
        row = facts.open_attempt or {}
        wanted = row.get("jobName") if row.get("jobUID") else None  # one not seen yet is found by creating it
        jobs, pods = await self._cluster.attempts(metadata["namespace"], metadata["name"], wanted)
        self._remember(metadata["namespace"], metadata["name"], jobs, pods)
        study = facts.study
        if study is not None and with_study:  # its suspend and retry decide, too
            study = await self._cluster.study(study["metadata"]["namespace"], study["metadata"]["name"]) or study
        return replace(facts, study=study, jobs=[lean_job(j) for j in jobs], pods=[lean_pod(p) for p in pods])

    def _remember(self, namespace: str, name: str, jobs: list[dict[str, Any]], pods: list[dict[str, Any]]) -> None:
        for shelf, lean, found in ((self._cache.jobs, lean_job, jobs), (self._cache.pods, lean_pod, pods)):
            there = {(namespace, o["metadata"]["name"]) for o in found}
            for known in [n for n in shelf.of_experiment.get((namespace, name), ()) if n not in there]:
                shelf.drop(known)
            for obj in found:
                shelf.put(lean(obj))

    async def _act_for_experiment(
        self, action: Action, facts: ExperimentFacts, written: dict[str, Any]
    ) -> dict[str, Any]:
        """Carry out an action; gives the experiment as it is then."""
        match action:
            case CreateJob(attempt):
                return await self._create_job(attempt, facts, written)
            case DeleteJob(namespace, name, uid):
                await self._cluster.delete_job(namespace, name, uid)
            case ExpireJob(namespace, name, ttl_s):
                expiring = await self._cluster.expire_job(namespace, name, ttl_s)
                if expiring is not None:
                    self._cache.jobs.put(lean_job(expiring))
                self._cache.keep_open(facts.experiment)
            case _:
                raise AssertionError(f"an experiment does not decide {action}")
        return written

    async def _create_job(self, attempt: Attempt, facts: ExperimentFacts, written: dict[str, Any]) -> dict[str, Any]:
        """Create an attempt's Job; a refusal is said in the status, and where it may pass the next look tries again."""
        live = replace(facts, experiment=written)
        try:
            manifest = job_object(attempt, self._settings)
        except (ConfigError, TypeError, AttributeError, KeyError, ValueError) as err:  # a template we misjudged
            return await self._template_refused(live, f"no Job can be made of it: {type(err).__name__}: {err}", written)
        try:
            self._cache.jobs.put(lean_job(await self._cluster.create_job(manifest)))
        except TakenError as err:
            log.info("%s", err)  # the next look says so in the experiment's conditions
        except ApiError as err:
            if err.status in (400, 422):
                return await self._template_refused(live, err.message, written)
            if err.status in (409, 429):
                raise
            log.warning("Job %s: %s", manifest["metadata"]["name"], err)
            reason = "Forbidden" if err.status == 403 else "NotCreated"
            said = await self._write(written, Decision(live.going_on(live.status, self._now(), reason, err.message)))
            if err.status != 403:
                raise
            return said
        return written

    async def _template_refused(self, live: ExperimentFacts, message: str, written: dict[str, Any]) -> dict[str, Any]:
        ended = Ended("Failed", "InvalidTemplate", message, end=self._now())
        return await self._write(written, end_attempt(live, dict(live.status), ended, self._now()))


def _irreversible(facts: ExperimentFacts, decision: Decision) -> bool:
    """Whether a decision must rest on what is there now: it makes or deletes a Job, or gives an attempt up.

    A container that has ended well stays so, whatever the watch has not told yet.
    """
    if any(isinstance(a, CreateJob | DeleteJob) for a in decision.actions):
        return True
    if decision.status is None or facts.open_attempt is None:
        return False
    rows = decision.status.get("attempts") or ()
    return bool(rows and rows[-1].get("outcome") not in (None, "Completed"))


def _only_creates(decision: Decision) -> bool:
    """Whether a decision does nothing but make a Job."""
    return bool(decision.actions) and all(isinstance(a, CreateJob) for a in decision.actions)
