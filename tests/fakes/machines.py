"""The rest of a cluster beside the fake API server: Job controller, scheduler, kubelets, and a runner with its store.

What becomes of a pod is told by a `Life`; the runner keeps the promises of the real one: it looks for an earlier
result of its run first, waits for the pause on its node, stores once, and says what it stored.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from fakes import virtual_time
from fakes.api_server import ApiServer, Name, Object
from llem_operator.timestamps import whole_seconds
from llenergymeasure.core.termination import Failure, KnownBaseline, Numbers, TerminationRecord

POD_AFTER_S, NODE_AFTER_S, START_AFTER_S, JOB_END_AFTER_S, POD_GONE_AFTER_S = 0.2, 0.3, 1.0, 0.4, 1.5


@dataclass(frozen=True)
class Life:
    """What becomes of one attempt."""

    exit_code: int = 0
    seconds: float = 20.0
    verdict: str = "valid"
    reasons: tuple[str, ...] = ()  # codes of the verdict
    says: str | None = None  # instead of a termination record
    reason: str = "Completed"  # the container's, e.g. OOMKilled
    rejected: str = ""  # why no pod is admitted
    unschedulable: str = ""
    waiting: tuple[str, str] | None = None  # the container never starts: reason and message


@dataclass(frozen=True)
class Measurement:
    """A measurement that was really made, to its end."""

    run: str
    attempt: int
    node: str
    start: datetime
    end: datetime
    stored: bool


Script = Callable[[str, int], Life]


def always_well(_experiment: str, _attempt: int) -> Life:
    """Every attempt measures and stores."""
    return Life()


@dataclass
class Machines:
    """Nodes and what runs on them."""

    server: ApiServer
    nodes: tuple[str, ...] = ("node-a",)
    script: Script = always_well
    silent: set[str] = field(default_factory=set)
    store: dict[str, dict[int, Object]] = field(default_factory=dict)
    measured: list[Measurement] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    measuring: dict[str, str] = field(default_factory=dict)  # experiment → pod UID
    pod_gone_after_s: float = POD_GONE_AFTER_S

    def __post_init__(self) -> None:
        """Listen to the API server."""
        self.server.watch(self._heard)

    def _heard(self, plural: str, change: str, obj: Object) -> None:
        name = (obj["metadata"]["namespace"], obj["metadata"]["name"])
        uid = obj["metadata"]["uid"]
        if plural == "jobs" and change == "ADDED":
            self._one_live_job(obj)
            virtual_time.later(POD_AFTER_S, self._begin_job, name, uid)
        elif plural == "jobs" and change == "MODIFIED":
            self._suspend_or_resume(obj)
        elif plural == "pods" and change == "ADDED":
            virtual_time.later(NODE_AFTER_S, self._schedule, name, uid)
        elif plural == "pods" and change == "MODIFIED" and obj["metadata"].get("deletionTimestamp"):
            virtual_time.later(self.pod_gone_after_s, self._take_away, name, uid)
        elif plural == "pods" and change == "DELETED":
            virtual_time.later(JOB_END_AFTER_S, self._end_job_without_pod, obj)

    def _one_live_job(self, new: Object) -> None:
        """O1: at most one Job of an experiment may have a pod that measures."""
        label = new["metadata"]["labels"]["llem.dev/experiment"]
        live = [
            j["metadata"]["name"]
            for j in self.server.all("jobs")
            if j["metadata"]["labels"]["llem.dev/experiment"] == label and not _job_over(j) and not self._has_ended(j)
        ]
        if len(live) > 1:
            self.violations.append(f"O1: {label} has live Jobs {live}")

    def _has_ended(self, job: Object) -> bool:
        pods = [p for p in self.server.all("pods") if _owned(p, job)]
        return bool(pods) and all(_terminated(p) for p in pods)

    # Job controller

    def _job(self, name: Name, uid: str) -> Object | None:
        job = self.server.get("jobs", *name)
        return job if job is not None and job["metadata"]["uid"] == uid and not _job_over(job) else None

    def _begin_job(self, name: Name, uid: str) -> None:
        job = self._job(name, uid)
        if job is None or job["spec"].get("suspend"):
            return
        if "startTime" not in (job.get("status") or {}):
            start = {"status": {"startTime": whole_seconds(virtual_time.now()), "active": 0, "conditions": None}}
            self.server.edit("jobs", *name, start, status=True)
        life = self._life(job)
        if life.rejected:
            self.tell(job, "FailedCreate", life.rejected)
            virtual_time.later(10, self._begin_job, name, uid)
            return
        template = job["spec"]["template"]
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name[1], "uid": uid, "controller": True}
        metadata = {"namespace": name[0], "name": f"{name[1]}-{uid[:5]}", "ownerReferences": [owner]}
        pod = {"metadata": {**template["metadata"], **metadata}, "spec": template["spec"]}
        self.server.create("pods", {**pod, "status": {"phase": "Pending"}})

    def _suspend_or_resume(self, job: Object) -> None:
        """As Kueue asks for by spec.suspend: pods go, startTime starts anew."""
        name = (job["metadata"]["namespace"], job["metadata"]["name"])
        status = job.get("status") or {}
        marked = any(c["type"] == "Suspended" for c in status.get("conditions") or ())
        if job["spec"].get("suspend") and not marked and not _job_over(job):
            held = {"type": "Suspended", "status": "True", "reason": "JobSuspended"}
            self.server.edit("jobs", *name, {"status": {"startTime": None, "conditions": [held]}}, status=True)
            for pod in self.server.all("pods"):
                if _owned(pod, job):
                    self.server.delete("pods", name[0], pod["metadata"]["name"])
        elif marked and not job["spec"].get("suspend"):
            virtual_time.later(POD_AFTER_S, self._begin_job, name, job["metadata"]["uid"])

    def tell(self, obj: Object, reason: str, message: str) -> None:
        """Say something of an object in an Event."""
        about = {"uid": obj["metadata"]["uid"], "name": obj["metadata"]["name"]}
        event = {"metadata": {"generateName": "e"}, "involvedObject": about, "reason": reason, "message": message}
        self.server.create("events", {**event, "lastTimestamp": whole_seconds(virtual_time.now())})

    def _life(self, job: Object) -> Life:
        labels = job["metadata"]["labels"]
        return self.script(labels["llem.dev/experiment"], int(labels["llem.dev/attempt"]))

    def _end_job(self, name: Name, uid: str, code: int, pod: str) -> None:
        job = self._job(name, uid)
        if job is None:
            return
        if code == 0:
            self._say_end(name, "Complete", "CompletionsReached", "Reached expected number of succeeded pods")
            return
        text_ = (
            f"Container runner for pod {name[0]}/{pod} failed with exit code {code} matching FailJob rule at index 1"
        )
        self._say_end(name, "Failed", "PodFailurePolicy", text_)

    def _say_end(self, name: Name, kind: str, reason: str, message: str) -> None:
        said = {"type": kind, "status": "True", "reason": reason, "message": message}
        said["lastTransitionTime"] = whole_seconds(virtual_time.now())
        self.server.edit("jobs", *name, {"status": {"conditions": [said], "active": None}}, status=True)

    def _end_job_without_pod(self, pod: Object) -> None:
        """A pod deleted by hand ends its Job with a reason that lies."""
        owner = pod["metadata"]["ownerReferences"][0]
        name = (pod["metadata"]["namespace"], owner["name"])
        job = self._job(name, owner["uid"])
        if job is not None and not job["spec"].get("suspend"):
            self._say_end(name, "Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit")

    # scheduler and kubelet

    def _pod(self, name: Name, uid: str) -> Object | None:
        pod = self.server.get("pods", *name)
        if pod is None or pod["metadata"]["uid"] != uid or pod["spec"].get("nodeName") in self.silent:
            return None
        return pod

    def _schedule(self, name: Name, uid: str) -> None:
        pod = self._pod(name, uid)
        if pod is None or pod["metadata"].get("deletionTimestamp"):
            return
        life = self._life_of(pod)
        taken = {p["spec"].get("nodeName") for p in self.server.all("pods") if not _terminated(p)}
        free = [n for n in self.nodes if n not in taken and n not in self.silent]
        if life.unschedulable or not free:
            message = life.unschedulable or f"0/{len(self.nodes)} nodes are available: anti-affinity"
            said = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
            self.server.edit("pods", *name, {"status": {"conditions": [said]}}, status=True)
            virtual_time.later(1.0, self._schedule, name, uid)
            return
        placed = {"spec": {"nodeName": free[0]}, "status": {"conditions": [{"type": "PodScheduled", "status": "True"}]}}
        self.server.edit("pods", *name, placed)
        virtual_time.later(START_AFTER_S, self._start, name, uid)

    def _life_of(self, pod: Object) -> Life:
        labels = pod["metadata"]["labels"]
        return self.script(labels["llem.dev/experiment"], int(labels["llem.dev/attempt"]))

    def _start(self, name: Name, uid: str) -> None:
        pod = self._pod(name, uid)
        if pod is None or pod["metadata"].get("deletionTimestamp"):
            return
        life = self._life_of(pod)
        if life.waiting:
            state: Object = {"waiting": {"reason": life.waiting[0], "message": life.waiting[1]}}
        else:
            state = {"running": {"startedAt": whole_seconds(virtual_time.now())}}
        container = {"name": "runner", "state": state, "imageID": "sha256:feed"}
        phase = "Pending" if life.waiting else "Running"
        self.server.edit("pods", *name, {"status": {"phase": phase, "containerStatuses": [container]}}, status=True)
        if life.waiting is None:
            virtual_time.later(0, self._run, name, uid, virtual_time.now())

    def _take_away(self, name: Name, uid: str) -> None:
        pod = self._pod(name, uid)
        if pod is not None:
            self._stop_measuring(pod)
            self.server.remove("pods", name)

    def _stop_measuring(self, pod: Object) -> None:
        experiment = pod["metadata"]["labels"]["llem.dev/experiment"]
        if self.measuring.get(experiment) == pod["metadata"]["uid"]:
            del self.measuring[experiment]

    def lose(self, node: str) -> None:
        """A node loses its power: nothing on it goes on, the API server hears no more of it."""
        for pod in self.server.all("pods"):
            if pod["spec"].get("nodeName") == node:
                self._stop_measuring(pod)
                said = {"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown"}
                metadata = pod["metadata"]
                if not _terminated(pod):
                    self.server.edit(
                        "pods", metadata["namespace"], metadata["name"], {"status": {"conditions": [said]}}, status=True
                    )
        self.silent.add(node)

    # the runner

    def _run(self, name: Name, uid: str, started: datetime) -> None:
        pod = self._pod(name, uid)
        if pod is None:
            return
        env = {v["name"]: v.get("value", "") for v in pod["spec"]["containers"][0]["env"]}
        attempt, run = int(env["LLEM_ATTEMPT"]), env["LLEM_RUN_URI"]
        for earlier in range(attempt, int(env["LLEM_ADOPT_FROM"]) - 1, -1):
            found = self.store.get(run, {}).get(earlier)
            if found is not None:
                record = {**found, "adopted": True}
                virtual_time.later(0.5, self._end, name, uid, started, 0, json.dumps(record), "Completed")
                return
        until = json.loads(env.get("LLEM_GAP_UNTIL") or "{}").get(pod["spec"]["nodeName"])
        pause = datetime.fromisoformat(until) - virtual_time.now() if until else timedelta(0)
        virtual_time.later(max(0.0, pause.total_seconds()), self._measure, name, uid, started, env)

    def _measure(self, name: Name, uid: str, started: datetime, env: dict[str, str]) -> None:
        pod = self._pod(name, uid)
        if pod is None:
            return
        experiment = pod["metadata"]["labels"]["llem.dev/experiment"]
        if experiment in self.measuring:
            self.violations.append(f"O1: two pods measure {experiment} at once")
        self.measuring[experiment] = uid
        life = self._life_of(pod)
        virtual_time.later(life.seconds, self._measured, name, uid, started, env, virtual_time.now())

    def _measured(self, name: Name, uid: str, started: datetime, env: dict[str, str], begin: datetime) -> None:
        pod = self._pod(name, uid)
        if pod is None or self.measuring.get(pod["metadata"]["labels"]["llem.dev/experiment"]) != uid:
            return
        del self.measuring[pod["metadata"]["labels"]["llem.dev/experiment"]]
        life, run, attempt, node = (
            self._life_of(pod),
            env["LLEM_RUN_URI"],
            int(env["LLEM_ATTEMPT"]),
            pod["spec"]["nodeName"],
        )
        stored = life.exit_code == 0 and life.says is None
        self.measured.append(Measurement(run, attempt, node, begin, virtual_time.now(), stored))
        if stored:
            if attempt in self.store.setdefault(run, {}):
                self.violations.append(f"{'/'.join(name)}: stored twice as attempt {attempt}")
            record = _record(run, attempt, node, begin, life)
            self.store[run][attempt] = json.loads(record)
            message = record
        else:
            message = life.says if life.says is not None else _failure(life.exit_code)
        self._end(name, uid, started, life.exit_code, message, life.reason)

    def _end(self, name: Name, uid: str, started: datetime, code: int, message: str, reason: str) -> None:
        pod = self._pod(name, uid)
        if pod is None:
            return
        ended = {
            "exitCode": code,
            "reason": reason if code == 0 or reason != "Completed" else "Error",
            "message": message,
            "startedAt": whole_seconds(started),
            "finishedAt": whole_seconds(virtual_time.now()),
        }
        container = {"name": "runner", "state": {"terminated": ended}, "imageID": "sha256:feed"}
        phase = "Failed" if code else "Succeeded"
        self.server.edit("pods", *name, {"status": {"phase": phase, "containerStatuses": [container]}}, status=True)
        owner = pod["metadata"]["ownerReferences"][0]
        virtual_time.later(JOB_END_AFTER_S, self._end_job, (name[0], owner["name"]), owner["uid"], code, name[1])


def _job_over(job: Object) -> bool:
    conditions = (job.get("status") or {}).get("conditions") or ()
    return any(c["status"] == "True" and c["type"] in ("Complete", "Failed") for c in conditions)


def _owned(pod: Object, job: Object) -> bool:
    return any(o["uid"] == job["metadata"]["uid"] for o in pod["metadata"].get("ownerReferences") or ())


def _terminated(pod: Object) -> bool:
    status = pod.get("status") or {}
    return status.get("phase") in ("Succeeded", "Failed")


def millijoules(run: str) -> float:
    """The energy that a run always has: the same whenever and wherever it is measured."""
    configuration = run.rsplit("/", 1)[-1].split("-")[1]
    return 100 + int(hashlib.sha256(configuration.encode()).hexdigest()[:6], 16) / 1e4


def _record(run: str, attempt: int, node: str, begin: datetime, life: Life) -> str:
    uri = f"{run}/a{attempt}/result.json"
    baseline = KnownBaseline(
        gpu_uuid=f"GPU-{node}", driver="570.1", kind="context", power_milliwatts=70_000, measured_at=begin
    )
    return TerminationRecord(
        outcome="stored",
        uri=uri,
        sha256=hashlib.sha256(uri.encode()).hexdigest(),
        size_bytes=9000,
        schema_version="3.0",
        verdict=life.verdict,
        reasons=life.reasons,
        window_start=begin,
        window_end=virtual_time.now(),
        numbers=Numbers(
            energy_per_output_token_millijoules=millijoules(run), tokens_per_second=251.25, output_tokens=500
        ),
        gpu_product="NVIDIA-H100",
        gpu_uuids=(f"GPU-{node}",),
        driver="570.1",
        baselines=(baseline,),
    ).to_message()


def _failure(code: int) -> str:
    failure = Failure(type="BackendError", message=f"planned: {code}", phase="measure", exit_code=code)
    return TerminationRecord(outcome="failed", failure=failure).to_message()
