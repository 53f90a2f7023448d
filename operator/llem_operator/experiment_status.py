"""Composes an experiment's status: its conditions in plain sentences, its result and headline numbers. Pure."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from llem_operator import names
from llem_operator.attempts import Ended, container_start, image_id
from llem_operator.conditions import Status, condition, merged
from llem_operator.timestamps import text
from llenergymeasure.core.termination import TerminationRecord

WHOLE_NUMBERS = ("outputTokens", "requests")
VERDICTS: dict[str, tuple[Status, str]] = {
    "valid": ("True", "VerdictValid"),
    "invalid": ("False", "VerdictInvalid"),
    "estimated": ("Unknown", "VerdictEstimated"),
    "unmeasured": ("Unknown", "VerdictUnmeasured"),
}
OF_A_RESULT = ("result", "summary", "warnings", "completionTime", "retriesUsed")
"""Fields that an experiment loses when it goes again."""

Said = tuple[str, Status, str, str]
"""Type, status, reason and message of a condition."""


def with_conditions(
    experiment: Mapping[str, Any], status: Mapping[str, Any], now: datetime, said: Sequence[Said]
) -> dict[str, Any]:
    """`status` with these conditions in it; a verdict from an earlier result is dropped while there is none."""
    generation = int(experiment["metadata"].get("generation") or 0)
    old = (experiment.get("status") or {}).get("conditions") or ()
    kept = [c for c in old if c["type"] != "MeasurementValid" or status.get("finished")]
    made = [condition(old, *c, generation=generation, now=now) for c in said]
    return {**status, "observedGeneration": generation, "conditions": merged(kept, made)}


def going_on(
    experiment: Mapping[str, Any],
    status: Mapping[str, Any],
    now: datetime,
    reason: str,
    message: str,
    *,
    scheduled: bool = False,
) -> dict[str, Any]:
    """The status of an experiment that is not over, saying what it waits for or does."""
    said: list[Said] = [
        ("Accepted", "True", "Valid", "the configuration is valid"),
        ("Scheduled", "True" if scheduled else "False", reason, message),
        ("Succeeded", "Unknown", reason, message),
        ("Finished", "False", "Running" if reason == "Measuring" else reason, message),
    ]
    return with_conditions(experiment, {**status, "finished": False}, now, said)


def finished(  # noqa: PLR0913  (the last three say what the end was)
    experiment: Mapping[str, Any],
    status: Mapping[str, Any],
    now: datetime,
    reason: str,
    message: str,
    *,
    epoch: int,
    accepted: bool = True,
    more: Sequence[Said] = (),
) -> dict[str, Any]:
    """The end of an experiment: Finished in any case, Succeeded only with a stored result."""
    completion = status.get("completionTime") or text(now)
    status = {**status, "finished": True, "observedRetryEpoch": epoch, "completionTime": completion}
    refused: Said = ("Accepted", "False", reason, message)
    said: list[Said] = [("Accepted", "True", "Valid", "the configuration is valid") if accepted else refused]
    if status.get("node"):
        said.append(("Scheduled", "True", "Measuring", f"ran on {status['node']}"))
    said += more
    said.append(("Succeeded", "True" if reason == "ResultStored" else "False", reason, message))
    said.append(("Finished", "True", reason, message))
    return with_conditions(experiment, status, now, said)


def reopened(experiment: Mapping[str, Any], epoch: int, now: datetime) -> dict[str, Any]:
    """Status of an experiment that goes again: fresh budgets, its attempts kept."""
    status = {k: v for k, v in experiment["status"].items() if k not in OF_A_RESULT}
    status["observedRetryEpoch"] = epoch
    return going_on(experiment, status, now, "Pending", f"goes again: retryEpoch {epoch}")


def seen(status: Mapping[str, Any], job: Mapping[str, Any], pod: Mapping[str, Any] | None) -> dict[str, Any]:
    """The status with the identities of Job, pod and node in the open attempt's row."""
    row = {**status["attempts"][-1], "jobUID": job["metadata"]["uid"]}
    found = dict(status)
    if pod is not None:
        row |= {"podName": pod["metadata"]["name"], "podUID": pod["metadata"]["uid"]}
        node, start, image = (pod.get("spec") or {}).get("nodeName"), container_start(pod), image_id(pod)
        row |= {"node": node} if node else {}
        row |= {"start": text(start)} if start else {}
        found |= {"node": node} if node else {}
        found |= {"environment": {**(status.get("environment") or {}), "imageID": image}} if image else {}
    return {**found, "attempts": [*status["attempts"][:-1], row]}


def closed(status: Mapping[str, Any], end: Ended, reason: str, now: datetime) -> dict[str, Any]:
    """The status with its open attempt's row closed."""
    row = {**status["attempts"][-1], "outcome": end.outcome, "reason": reason, "message": end.message[:1024]}
    row["end"] = text(end.end or now)
    if end.exit_code is not None:
        row["exitCode"] = end.exit_code
    if end.record is not None:
        times = {"measurementStart": end.record.window_start, "measurementEnd": end.record.window_end}
        row |= {k: text(t) for k, t in times.items() if t is not None}
    found = {**status, "attempts": [*status["attempts"][:-1], row]}
    return {**found, "logTail": end.log_tail} if end.log_tail else found


def with_result(status: Mapping[str, Any], end: Ended, results: Mapping[str, Any]) -> tuple[dict[str, Any], Said]:
    """The status with a stored result's place, digest and headline numbers, and the condition that judges it."""
    record = end.record
    assert record is not None
    numbers = record.numbers.model_dump(by_alias=True, exclude_none=True)
    summary = {k: v if k in WHOLE_NUMBERS else four_digits(v) for k, v in numbers.items()}
    summary |= _present({"verdict": record.verdict, "energyNullReason": record.energy_null_reason})
    summary |= {"synthetic": True} if record.synthetic else {}
    result = {
        "uri": names.public_uri(str(record.uri), results),
        "sha256": record.sha256,
        "sizeBytes": record.size_bytes,
        "schemaVersion": record.schema_version,
        "adopted": record.adopted,
    }
    environment = {**(status.get("environment") or {}), "gpuProduct": record.gpu_product, "driver": record.driver}
    environment |= {"gpuUUIDs": list(record.gpu_uuids)} if record.gpu_uuids else {}
    baselines = [b.model_dump(mode="json", by_alias=True, exclude_none=True) for b in record.baselines]
    found = {
        **status,
        "result": _present(result),
        "summary": summary,
        "environment": _present(environment),
        "warnings": list(record.warnings) or None,
        "baselines": [_present({**b, "node": status.get("node")}) for b in baselines] or None,
    }
    validity, why = VERDICTS.get(str(record.verdict), ("Unknown", "VerdictUnmeasured"))
    return _present(found), ("MeasurementValid", validity, why, _judgement(record))


def _judgement(record: TerminationRecord) -> str:
    """The condition's message: the verdict with the codes of its reasons, why there is no energy, codes of warnings."""
    verdict = f"verdict {record.verdict}" + (f": {', '.join(record.reasons)}" if record.reasons else "")
    told = f"warnings: {', '.join(record.warnings)}" if record.warnings else None
    return "; ".join(part for part in (verdict, record.energy_null_reason, told) if part)


def _present(data: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in data.items() if v is not None}


def four_digits(value: float) -> str:
    """A quantity as custom resources carry it: a decimal string of four significant digits, never an exponent."""
    rounded = float(f"{value:.4g}")
    return f"{rounded:.12f}".rstrip("0").rstrip(".") or "0"
