"""Carries out what a study decides about one of its experiments, on the experiment as read live. Pure.

Each change says for itself whether it still applies; one that does not is dropped, and the study looks again.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, assert_never

from llem_operator.decision import Cancel, Release, Reopen, Restore, StatusChange
from llem_operator.experiment import may_reopen, open_attempt, released
from llem_operator.experiment_status import Said, finished, going_on, reopened, with_conditions


def changed(experiment: Mapping[str, Any], change: StatusChange, now: datetime) -> dict[str, Any] | None:
    """The experiment's new status, or None if the change no longer applies."""
    status: Mapping[str, Any] = experiment.get("status") or {}
    between = not status.get("finished") and open_attempt(status) is None
    if experiment["metadata"].get("deletionTimestamp"):
        return None
    match change:
        case Release(attempt):
            if not between or int(status.get("attempt") or 0) != attempt:
                return None
            begun = released(status, experiment["metadata"]["name"], now)
            return going_on(experiment, begun, now, "Creating", "the Job is being created")
        case Reopen(epoch):
            return reopened(experiment, epoch, now) if status.get("finished") and may_reopen(status, epoch) else None
        case Cancel(reason, message):
            epoch = int(status.get("observedRetryEpoch") or 0)
            return finished(experiment, status, now, reason, message, epoch=epoch) if between else None
        case Restore(memory, state):
            if "observedGeneration" in status:
                return None
            return {k: v for k, v in _restored(experiment, memory, state, now).items() if k != "completionTime"}
        case _:
            assert_never(change)


def _restored(experiment: Mapping[str, Any], memory: Mapping[str, Any], state: str, now: datetime) -> dict[str, Any]:
    """The end that the study remembers, said as such; what ran when it was deleted is tried again."""
    epoch = int(memory["observedRetryEpoch"])
    if state == "running" and not memory["finished"]:
        return going_on(experiment, memory, now, "WaitingForRetry", "the experiment was deleted by hand while it ran")
    if state == "cancelled":
        return finished(experiment, memory, now, "Cancelled", "was not started, as the study records", epoch=epoch)
    if state == "running":
        return finished(experiment, memory, now, "ExperimentDeleted", "deleted by hand while it ran", epoch=epoch)
    text = "deleted by hand after its end; this is the study's record of it"
    status = finished(experiment, memory, now, "RestoredFromStudy", text, epoch=epoch)
    if state != "completed":
        return status
    stored: Said = ("Succeeded", "True", "RestoredFromStudy", f"{text}; the result is in the store")
    return with_conditions(experiment, status, now, [*_others(status), stored])


def _others(status: Mapping[str, Any]) -> list[Said]:
    return [
        (c["type"], c["status"], c["reason"], c["message"]) for c in status["conditions"] if c["type"] != "Succeeded"
    ]
