"""Conditions of the custom resources: their types, the closed list of reasons, and how they change.

Every reason that a user can meet is in REASONS; docs/reference/conditions.md is made from it.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from llem_operator.timestamps import whole_seconds

Status = Literal["True", "False", "Unknown"]
MAX_MESSAGE = 1024

REASONS: dict[str, str] = {
    "Valid": "The specification was validated and can run.",
    "InvalidDesign": "The design cannot be used as written; the message is what `llem run` would say.",
    "InvalidConfig": "The experiment's configuration cannot be used as written.",
    "InvalidTemplate": "The pod template, image or destination cannot be used; the message names the field.",
    "DesignChanged": "The design no longer has the hash that was accepted.",
    "ExpanderChanged": "This operator would expand the design differently from the one that accepted it.",
    "DestinationChanged": "Results would go elsewhere than those that are already stored.",
    "InternalError": "The operator could not judge the object; the message is for its developers.",
    "NameTaken": "An object of a name that the study needs exists and belongs to something else.",
    "Forbidden": "The API server refuses a request; the message names verb and resource.",
    "Expanding": "Experiments are being created.",
    "AllCreated": "Every run has its experiment.",
    "Pending": "Waits for its turn.",
    "Running": "Runs are under way.",
    "WaitingForGap": "The pause between two measurements on a node has not passed.",
    "WaitingForRetry": "A failed attempt is tried again after a pause.",
    "Suspended": "spec.suspend is true.",
    "NotSuspended": "spec.suspend is false.",
    "Creating": "The Job is being created.",
    "NotCreated": "The API server does not take the Job for now; the message is its own.",
    "WaitingForPod": "The Job exists; its pod does not yet.",
    "PodRejected": "The pod was refused: quota, pod security, or an admission plug-in.",
    "Unschedulable": "No node fits; the message is the scheduler's.",
    "ImagePull": "The image cannot be pulled.",
    "ContainerConfig": "A Secret, ConfigMap or volume that the pod names is missing.",
    "PodStarting": "The pod has a node and is starting.",
    "NodeUnreachable": "The node of the running pod does not answer.",
    "Measuring": "The container runs.",
    "WaitingForQueue": "A queueing system holds the Job back.",
    "ResultStored": "The result is in the store; its digest is in status.result.",
    "Completed": "Every run is measured and stored.",
    "RunsFailed": "At least one run has no result.",
    "CircuitBreaker": "Too many runs failed in a row; the rest was cancelled.",
    "Cancelled": "The run was never started.",
    "VerdictInvalid": "The result is stored, but must not be believed; see its verdict.",
    "VerdictValid": "The measurement may be believed.",
    "VerdictEstimated": "There was no energy counter: the joules are an estimate.",
    "VerdictUnmeasured": "There was no source of energy.",
    "ConfigurationError": "The runner refused the configuration (exit 10).",
    "HardwareError": "The wrong or a shared GPU, or too few (exit 11).",
    "BackendMissing": "The image lacks the backend, or it does not know an option (exit 12).",
    "ModelNotFound": "Model or dataset do not exist or may not be read (exit 13).",
    "OutOfGPUMemory": "The model, cache or batch do not fit into the GPU (exit 14).",
    "MeasurementFailed": "A sensor failed inside a measurement (exit 15).",
    "EngineCrashed": "The engine or the runner crashed (exit 16, or an unknown code).",
    "ResultNotStored": "The result could not be written to the store (exit 17).",
    "PhaseTimeout": "A phase took longer than its limit (exit 18).",
    "Terminated": "The runner was told to stop (exit 19, 143).",
    "Unreachable": "The hub does not answer for now (exit 20).",
    "ResultMissing": "The runner ended well but left no digest of a stored result.",
    "OutOfMemory": "The container used more memory than its limit.",
    "TimedOut": "The pod ran longer than its deadline.",
    "ContainerStartFailed": "The container could not start (exit 126 to 128).",
    "PodFailed": "The pod ended before its container ran.",
    "Disrupted": "The pod was preempted, evicted or its node drained.",
    "NodeLost": "The node did not come back in time.",
    "JobDeleted": "The Job was deleted by hand.",
    "PodDeleted": "The pod was deleted by hand.",
    "ExperimentDeleted": "The experiment was deleted by hand while it ran.",
    "RestoredFromStudy": "The experiment was deleted by hand after it had ended; its end is the study's record.",
}


def message_of(text: str) -> str:
    """A condition's message: one paragraph of at most MAX_MESSAGE characters."""
    return text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 1] + "…"


def condition(
    old: Sequence[Mapping[str, Any]],
    kind: str,
    status: Status,
    reason: str,
    message: str,
    *,
    generation: int,
    now: datetime,
) -> dict[str, Any]:
    """A condition whose lastTransitionTime moves only when its status does."""
    assert reason in REASONS, reason
    before = find(old, kind)
    kept = before["lastTransitionTime"] if before and before["status"] == status else whole_seconds(now)
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message_of(message),
        "observedGeneration": generation,
        "lastTransitionTime": kept,
    }


def find(conditions: Sequence[Mapping[str, Any]], kind: str) -> Mapping[str, Any] | None:
    """The condition of that type, if it is there."""
    return next((c for c in conditions if c["type"] == kind), None)


def merged(old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """`old` with those of `new` in their place, in the order in which types first appeared."""
    by_type = {c["type"]: dict(c) for c in old}
    by_type |= {c["type"]: dict(c) for c in new}
    return list(by_type.values())
