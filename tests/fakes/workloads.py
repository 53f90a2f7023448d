"""Jobs, pods and Events as an API server shows them, for tables."""

from datetime import UTC, datetime, timedelta
from typing import Any

from llem_operator.timestamps import whole_seconds
from llenergymeasure.core.termination import Failure, Numbers, TerminationRecord

NOW = datetime(2026, 3, 4, 12, 0, 0, tzinfo=UTC)
SHA = "a" * 64
URI = "s3://bench/llem/sweep-11112222/00000-aaaabbbb-c1/a1/result.json"


def at(seconds: float) -> str:
    """An instant relative to NOW."""
    return whole_seconds(NOW + timedelta(seconds=seconds))


def job(
    name: str = "one-a1",
    *,
    end: tuple[str, str] | None = None,
    suspend: bool = False,
    owner: str = "experiment-uid",
    created: float = -100,
    **metadata: Any,
) -> dict[str, Any]:
    """A Job; `end` is Complete or Failed with a message."""
    conditions = [{"type": end[0], "status": "True", "message": end[1], "lastTransitionTime": at(-1)}] if end else []
    return {
        "metadata": {
            "name": name,
            "namespace": "bench",
            "uid": f"uid-of-{name}",
            "resourceVersion": "7",
            "creationTimestamp": at(created),
            "labels": {"llem.dev/experiment": name.rpartition("-a")[0]},
            "ownerReferences": [{"uid": owner, "controller": True}],
            **metadata,
        },
        "spec": {"suspend": suspend, "template": {"spec": {"activeDeadlineSeconds": 4560}}},
        "status": {"conditions": conditions},
    }


def pod(
    name: str = "one-a1-x",
    *,
    phase: str = "Running",
    state: dict[str, Any] | None = None,
    node: str | None = "node-a",
    conditions: list[dict[str, Any]] | None = None,
    job_name: str = "one-a1",
    status: dict[str, Any] | None = None,
    **metadata: Any,
) -> dict[str, Any]:
    """A pod of a Job; `state` is that of the runner's container."""
    containers = [{"name": "runner", "state": state, "imageID": "sha256:feed"}] if state else []
    return {
        "metadata": {
            "name": name,
            "namespace": "bench",
            "uid": f"uid-of-{name}",
            "resourceVersion": "8",
            "creationTimestamp": at(-90),
            "labels": {"llem.dev/experiment": job_name.rpartition("-a")[0]},
            "ownerReferences": [{"uid": f"uid-of-{job_name}", "controller": True}],
            **metadata,
        },
        "spec": {"nodeName": node},
        "status": {"phase": phase, "conditions": conditions or [], "containerStatuses": containers, **(status or {})},
    }


def condition(kind: str, status: str, reason: str = "", message: str = "") -> dict[str, Any]:
    """A pod's condition."""
    return {"type": kind, "status": status, "reason": reason, "message": message}


def running(start: float = -60) -> dict[str, Any]:
    """State of a container that runs."""
    return {"running": {"startedAt": at(start)}}


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    """State of a container that does not."""
    return {"waiting": {"reason": reason, "message": message}}


def ended(code: int, message: str = "", reason: str = "") -> dict[str, Any]:
    """State of a container that has ended."""
    reason = reason or ("Completed" if code == 0 else "Error")
    times = {"startedAt": at(-60), "finishedAt": at(-2)}
    return {"terminated": {"exitCode": code, "reason": reason, "message": message, **times}}


def stored(**more: Any) -> str:
    """Termination message of a run whose result is in the store."""
    fields = {
        "outcome": "stored", "uri": URI, "sha256": SHA, "verdict": "valid",
        "window_start": NOW - timedelta(seconds=40), "window_end": NOW - timedelta(seconds=10),
        "numbers": Numbers(energy_per_output_token_millijoules=123.456, output_tokens=500),
    }  # fmt: skip
    return TerminationRecord(**{**fields, **more}).to_message()


def failed(code: int, text: str = "planned") -> str:
    """Termination message of a run that failed."""
    failure = Failure(type="BackendError", message=text, phase="measure", exit_code=code)
    return TerminationRecord(outcome="failed", failure=failure).to_message()


def gone(state: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A pod whose container has ended."""
    code = state["terminated"]["exitCode"]
    return pod(phase="Failed" if code else "Succeeded", state=state, **more)
