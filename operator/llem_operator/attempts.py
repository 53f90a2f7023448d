"""Reads off a Job and its pod what has become of an attempt: still waiting and why, running, or ended and how. Pure.

A Job's own reasons lie (a pending pod deleted by hand ends as BackoffLimitExceeded), so the pod is asked first.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, Literal

from llem_operator.pod_template import RUNNER
from llem_operator.timestamps import parse
from llenergymeasure.core.redaction import redacted
from llenergymeasure.core.termination import TerminationRecord, parse_termination, termination_problem

Budget = Literal["none", "measurement", "infrastructure"]

EXITS: dict[int, tuple[str, Budget]] = {
    10: ("ConfigurationError", "none"),
    11: ("HardwareError", "none"),
    12: ("BackendMissing", "none"),
    13: ("ModelNotFound", "none"),
    14: ("OutOfGPUMemory", "none"),
    15: ("MeasurementFailed", "measurement"),
    16: ("EngineCrashed", "measurement"),
    17: ("ResultNotStored", "infrastructure"),
    18: ("PhaseTimeout", "measurement"),
    19: ("Terminated", "infrastructure"),
    20: ("Unreachable", "infrastructure"),
    143: ("Terminated", "infrastructure"),
}
"""Exit code of `llem experiment` → reason and the retry budget that it draws on (docs/reference/exit-codes.md)."""

PULL_REASONS = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable")
VOLUME_EVENTS = ("FailedMount", "FailedAttachVolume")  # the pod's status does not tell of a missing Secret
CONFIG_REASONS = ("CreateContainerConfigError", "CreateContainerError")
KILLED = 128 + 9  # by SIGKILL
NOT_FOUND = "ContainerStatusUnknown"  # the kubelet makes up a code of 137 for a container that is not there
NO_POD_S = 15  # a rejected pod is silent in the Job, so after this its Events are read
LOST_MARGIN_S = 120
LAST_PHASE_S = 30  # a kubelet that lives says a pod's last phase within this after its container has ended
TAKEN_BACK = "the queueing system took the Job back"
LOG_TAIL_CHARS = 2048
MESSAGE_CHARS = 1024


@dataclass(frozen=True)
class Waiting:
    """The attempt has not begun: why, in the cluster's own words."""

    reason: str
    message: str


@dataclass(frozen=True)
class Running:
    """The container runs since `start`; `unreachable` when its node does not answer."""

    start: datetime | None
    unreachable: bool = False


@dataclass(frozen=True)
class Ended:
    """The attempt is over. With a `record` of a stored result it is Completed; `budget` is what a retry draws on."""

    outcome: Literal["Completed", "Failed", "Lost", "Preempted"]
    reason: str
    message: str
    budget: Budget = "none"
    exit_code: int | None = None
    end: datetime | None = None
    record: TerminationRecord | None = None
    log_tail: str | None = None


Progress = Waiting | Running | Ended


def progress(job: Mapping[str, Any], pod: Mapping[str, Any] | None, events: Sequence[Mapping[str, Any]]) -> Progress:
    """What an attempt is doing, from its Job, its newest pod, and the Job's Events (where they were read)."""
    job_end = _job_end(job)
    if pod is None:
        return _without_pod(job, job_end, events)
    status = pod.get("status") or {}
    terminated = _terminated(pod)
    if status.get("phase") in ("Succeeded", "Failed") or terminated or job_end:
        return _ended(job, pod, terminated)
    start = _started(pod)
    if start is not None:
        return Running(start, unreachable=_unreachable(pod))
    return _waiting(pod, events)


def all_said_at(job: Mapping[str, Any], pod: Mapping[str, Any] | None) -> datetime | None:
    """Until when a container's code may not be all: why it was stopped the kubelet says with the pod's last phase.

    None if nothing more can come: its container ended well, or its phase or its Job are final.
    """
    terminated = _terminated(pod) if pod is not None else None
    if pod is None or not terminated or not ended_badly(pod) or _job_end(job):
        return None
    end = parse(terminated.get("finishedAt"))
    if end is None or (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
        return None
    return end + timedelta(seconds=LAST_PHASE_S)


def _job_end(job: Mapping[str, Any]) -> Mapping[str, Any] | None:
    conditions = (job.get("status") or {}).get("conditions") or ()
    return next((c for c in conditions if c["type"] in ("Complete", "Failed") and c["status"] == "True"), None)


def job_is_live(job: Mapping[str, Any]) -> bool:
    """Whether a Job may still have a pod that measures."""
    return _job_end(job) is None


def _suspended(job: Mapping[str, Any]) -> bool:
    """Whether a queueing system holds a Job back; for a moment after its word the Job's own condition still says so."""
    conditions = (job.get("status") or {}).get("conditions") or ()
    held = any(c["type"] == "Suspended" and c["status"] == "True" for c in conditions)
    return held or bool((job.get("spec") or {}).get("suspend"))


def _without_pod(
    job: Mapping[str, Any], end: Mapping[str, Any] | None, events: Sequence[Mapping[str, Any]]
) -> Progress:
    if end is None:
        if _suspended(job):
            return Waiting("WaitingForQueue", "the Job is suspended by a queueing system")
        rejected = [e for e in events if e.get("reason") == "FailedCreate"]
        if rejected:
            return Waiting("PodRejected", str(rejected[-1].get("message", "")))
        return Waiting("WaitingForPod", "the Job has no pod yet")
    if end["type"] == "Complete":
        text = "the pod was deleted before its result was read; the next attempt looks for it in the store"
        return Ended("Lost", "PodDeleted", text, "infrastructure", 0, parse(end.get("lastTransitionTime")))
    return _job_failed_without_pod(end)


def _job_failed_without_pod(end: Mapping[str, Any]) -> Ended:
    """The pod is gone, the Job's message may still hold the exit code (podFailurePolicy writes it there)."""
    message, at = str(end.get("message", "")), parse(end.get("lastTransitionTime"))
    code = _code_in(message)
    if "DisruptionTarget" in message:
        return Ended("Failed", "Disrupted", message, "infrastructure", None, at)
    if code is None or code == KILLED:  # a pod that is told to go is killed when its grace is over
        return Ended("Lost", "PodDeleted", message or "the pod was deleted by hand", "infrastructure", code, at)
    reason, budget = EXITS.get(code, ("EngineCrashed", "measurement"))
    return Ended("Failed", reason, message, budget, code, at)


def _code_in(message: str) -> int | None:
    """Exit code in `Container runner for pod ns/name failed with exit code 16 matching FailJob rule at index 1`."""
    words = message.split()
    for before, word in pairwise(words):
        if before == "code" and word.isdigit():
            return int(word)
    return None


def _statuses(pod: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for status in (pod.get("status") or {}).get("containerStatuses") or ():
        if status["name"] == RUNNER:
            yield status


def _terminated(pod: Mapping[str, Any]) -> Mapping[str, Any] | None:
    return next((t for s in _statuses(pod) if (t := (s.get("state") or {}).get("terminated"))), None)


def _started(pod: Mapping[str, Any]) -> datetime | None:
    running = next((t for s in _statuses(pod) if (t := (s.get("state") or {}).get("running"))), None)
    return parse(running.get("startedAt")) if running else None


def container_start(pod: Mapping[str, Any]) -> datetime | None:
    """When the runner's container began, also after it has ended."""
    ended = _terminated(pod)
    return parse(ended.get("startedAt")) if ended else _started(pod)


def container_ended(pod: Mapping[str, Any]) -> bool:
    """Whether the runner's container is over."""
    return _terminated(pod) is not None


def ended_badly(pod: Mapping[str, Any]) -> bool:
    """Whether the runner's container is over with another exit code than 0."""
    return bool((_terminated(pod) or {}).get("exitCode"))


def is_starting(pod: Mapping[str, Any]) -> bool:
    """Whether a pod has a node and its runner's container has not begun."""
    return bool((pod.get("spec") or {}).get("nodeName")) and container_start(pod) is None


def image_id(pod: Mapping[str, Any]) -> str | None:
    """Digest of the image that ran."""
    return next((s.get("imageID") for s in _statuses(pod)), None)


def _condition(pod: Mapping[str, Any], kind: str) -> Mapping[str, Any] | None:
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return next((c for c in conditions if c["type"] == kind), None)


def _unreachable(pod: Mapping[str, Any]) -> bool:
    ready = _condition(pod, "Ready") or {}
    return (
        (pod.get("status") or {}).get("reason") == "NodeLost"
        or ready.get("reason") == "NodeStatusUnknown"
        or (bool(pod["metadata"].get("deletionTimestamp")) and ready.get("status") == "Unknown")
    )


def _waiting(pod: Mapping[str, Any], events: Sequence[Mapping[str, Any]]) -> Waiting:
    scheduled = _condition(pod, "PodScheduled") or {}
    if scheduled.get("status") == "False":
        return Waiting("Unschedulable", str(scheduled.get("message") or "the scheduler has found no node yet"))
    for status in _statuses(pod):
        waiting = (status.get("state") or {}).get("waiting") or {}
        text = f"{waiting.get('reason')}: {waiting.get('message', '')}".rstrip(": ")
        if waiting.get("reason") in PULL_REASONS:
            return Waiting("ImagePull", text)
        if waiting.get("reason") in CONFIG_REASONS:
            return Waiting("ContainerConfig", text)
    if not (pod.get("spec") or {}).get("nodeName"):
        return Waiting("Unschedulable", "the scheduler has not looked at the pod yet")
    failed = [e for e in events if e.get("reason") in VOLUME_EVENTS]
    if failed:
        return Waiting("ContainerConfig", str(failed[-1].get("message", "")))
    return Waiting("PodStarting", f"the pod is starting on {pod['spec']['nodeName']}")


def _ended(job: Mapping[str, Any], pod: Mapping[str, Any], terminated: Mapping[str, Any] | None) -> Ended:
    """First match decides (kubernetes.md, decision 19)."""
    status = pod.get("status") or {}
    code = terminated.get("exitCode") if terminated else None
    end = parse(terminated.get("finishedAt")) if terminated else parse((_job_end(job) or {}).get("lastTransitionTime"))
    message = str((terminated or {}).get("message") or "")
    record = parse_termination(message) if message else None
    if code == 0:
        return _exit_zero(message, record, end)
    failure = record.failure if record else None
    said = redacted(
        failure.message if failure else str(status.get("message") or (terminated or {}).get("reason") or "")
    )
    tail = redacted(message)[-LOG_TAIL_CHARS:] if message and record is None else None
    if _suspended(job):
        return Ended("Preempted", "WaitingForQueue", TAKEN_BACK, "none", code, end, record, tail)
    disrupted = _condition(pod, "DisruptionTarget")
    if disrupted and disrupted.get("status") == "True":
        text = f"{disrupted.get('reason', 'disrupted')}: {disrupted.get('message', '')}".rstrip(": ")
        return Ended("Failed", "Disrupted", text, "infrastructure", code, end, record, tail)
    if status.get("reason") == "DeadlineExceeded":
        return Ended(
            "Failed", "TimedOut", said or "the pod's deadline has passed", "measurement", code, end, record, tail
        )
    if terminated is None and _started(pod) is not None:
        text = "the Job is over while its pod's container still seems to run: the node is lost"
        return Ended("Lost", "NodeLost", text, "infrastructure", None, end)
    if terminated is None:
        text = said or "the pod ended before its container ran"
        return Ended("Failed", "PodFailed", text, "infrastructure", None, end)
    if terminated.get("reason") == NOT_FOUND:
        text = "the kubelet no longer found the container, as after a reboot of its node"
        return Ended("Lost", "NodeLost", text, "infrastructure", code, end, record, tail)
    if terminated.get("reason") == "OOMKilled":
        text = "the container used more memory than its limit; raise template.resources.limits.memory"
        return Ended("Failed", "OutOfMemory", text, "none", code, end, record, tail)
    assert code is not None
    if code == KILLED and pod["metadata"].get("deletionTimestamp"):
        text = "the pod was deleted by hand and its container killed"
        return Ended("Lost", "PodDeleted", text, "infrastructure", code, end, record, tail)
    if terminated.get("reason") in ("StartError", "ContainerCannotRun") or 126 <= code <= 128:
        return Ended("Failed", "ContainerStartFailed", redacted(message) or said, "none", code, end, record, tail)
    reason, budget = EXITS.get(code, ("EngineCrashed", "measurement"))
    text = redacted(f"{failure.type}: {failure.message}" if failure else f"the runner ended with exit code {code}")
    return Ended("Failed", reason, text[:MESSAGE_CHARS], budget, code, end, record, tail)


def _exit_zero(message: str, record: TerminationRecord | None, end: datetime | None) -> Ended:
    if record is not None and record.outcome == "stored" and record.sha256 and record.uri:
        return Ended("Completed", "ResultStored", record.uri, "none", 0, end, record)
    text = termination_problem(message) or "its record names no stored result"
    return Ended("Failed", "ResultMissing", f"the runner ended with exit code 0, but {text}", "infrastructure", 0, end)


def lost_at(pod_start: datetime, deadline_s: float, grace_s: float) -> datetime:
    """When a pod that still seems to run must be given up: its node cannot have kept the deadline."""
    return pod_start + timedelta(seconds=deadline_s + grace_s + LOST_MARGIN_S)
