"""Studies and experiments as an API server gives them, with what an operator has written into their status."""

from datetime import UTC, datetime
from typing import Any

from llenergymeasure.core.identity import measurement_config_hash
from llenergymeasure.core.resources import study_of

NOW = datetime(2026, 11, 25, 12, 0, 0, tzinfo=UTC)
CREATED, STARTED = "2026-11-25T11:00:00Z", "2026-11-25T11:01:00Z"
DESIGN = {
    "model": "pretended",
    "backend": "synthetic",
    "sweep": {"precision": ["fp16", "bf16"], "n": [10, 20]},
}


def condition(kind: str, status: str, reason: str, message: str = "") -> dict[str, Any]:
    """One condition."""
    return {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": STARTED}


def study(*conditions: dict[str, Any], name: str = "sweep", **status: Any) -> dict[str, Any]:
    """A study of four configurations and two cycles; `status` lies beside the conditions."""
    return {
        "apiVersion": "llem.dev/v1alpha1",
        "kind": "EnergyStudy",
        "metadata": {
            "name": name, "namespace": "bench", "uid": "11112222-3333", "generation": 1, "creationTimestamp": CREATED,
        },
        "spec": {"design": DESIGN, "execution": {"nCycles": 2}},
        "status": {"observedGeneration": 1, "conditions": list(conditions), **status} if conditions or status else {},
    }  # fmt: skip


def experiment(
    *conditions: dict[str, Any], index: int = 0, cycle: int = 1, config_hash: str = "0" * 16, **status: Any
) -> dict[str, Any]:
    """A child of the study above."""
    owner = {"uid": "11112222-3333", "kind": "EnergyStudy", "name": "sweep", "controller": True}
    return {
        "apiVersion": "llem.dev/v1alpha1",
        "kind": "EnergyExperiment",
        "metadata": {
            "name": f"sweep-{index:05d}-{config_hash[:6]}", "namespace": "bench", "uid": f"child-{index}",
            "generation": 1, "creationTimestamp": STARTED, "ownerReferences": [owner],
        },
        "spec": {
            "studyRef": {"name": "sweep"}, "index": index, "cycle": cycle, "configHash": config_hash,
            "config": {"model": "pretended", "backend": "synthetic"},
        },
        "status": {"observedGeneration": 1, "conditions": list(conditions), **status},
    }  # fmt: skip


def hashes() -> list[str]:
    """The hashes of the study's four configurations."""
    return [measurement_config_hash(e) for e in study_of(study(), source="test").experiments]


def measured(
    index: int,
    *,
    cycle: int,
    config_hash: str,
    millijoules: str | None,
    verdict: str = "valid",
    reason: str | None = None,
) -> dict[str, Any]:
    """A child whose result is stored."""
    summary: dict[str, Any] = {"verdict": verdict, "tokensPerSecond": "250.0", "outputTokens": 1000, "requests": 10}
    summary |= {"durationSeconds": "60.00", "latencyP50Milliseconds": "12.50", "energyTotalJoules": "300.0"}
    summary |= {"energyPerOutputTokenMillijoules": millijoules} if millijoules else {"energyNullReason": reason}
    uri = f"s3://bench/llem/sweep-11112222/{index:05d}-{config_hash[:8]}-c{cycle}/a1/result.json"
    return experiment(
        condition("Finished", "True", "ResultStored", "the result is stored"),
        condition("Succeeded", "True", "ResultStored"),
        index=index, cycle=cycle, config_hash=config_hash, attempt=1, node="gpu-1", summary=summary,
        result={"uri": uri, "sha256": "a" * 64},
    )  # fmt: skip
