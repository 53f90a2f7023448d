"""What a run says when it ends: the pod's termination record, and the file that a failure leaves in the store. Pure."""

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from llenergymeasure import __version__
from llenergymeasure.assignment import Assignment
from llenergymeasure.core.config import ExperimentConfig
from llenergymeasure.core.plan import describe
from llenergymeasure.core.redaction import redacted
from llenergymeasure.core.result import ExperimentResult
from llenergymeasure.core.termination import Failure, KnownBaseline, Numbers, TerminationRecord
from llenergymeasure.object_store import Stored

FAILURE_SCHEMA = "1.0"
MAX_MESSAGE = 1024
MAX_REASON = 300
MAX_GPUS = 16
_NAMED_SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|ACCESS_KEY|API_KEY", re.IGNORECASE)
MIN_SECRET = 6  # shorter values, such as a 1 in a switch, would blank out ordinary text


def stored_record(result: ExperimentResult, stored: Stored, *, adopted: bool = False) -> TerminationRecord:
    """The record of a run whose result lies in the store."""
    latency = result.latency
    gpus = _own_gpus(result)
    window = result.phases.get("window")
    return TerminationRecord(
        outcome="stored",
        uri=stored.uri,
        sha256=stored.sha256,
        size_bytes=stored.size_bytes,
        schema_version=result.schema_version,
        adopted=adopted,
        verdict=result.verdict.state,
        synthetic=result.synthetic,
        energy_null_reason=_energy_null_reason(result),
        window_start=window and result.start_time + timedelta(seconds=window.start_s),
        window_end=window and result.start_time + timedelta(seconds=window.end_s),
        numbers=Numbers(
            energy_per_output_token_millijoules=_thousandfold(result.energy_per_output_token_j),
            energy_total_joules=result.energy_total_j,
            energy_adjusted_joules=result.energy_adjusted_j,
            baseline_watts=result.baseline_power_w,
            tokens_per_second=result.tokens_per_second,
            output_tokens=result.output_tokens,
            requests=result.requests,
            duration_seconds=result.duration_s,
            latency_p50_milliseconds=latency.p50_ms if latency else None,
            memory_peak_mebibytes=result.memory_peak_mb,
        ),
        gpu_product=next((g["name"][:128] for g in gpus if g.get("name")), None),
        gpu_uuids=tuple(g["uuid"][:64] for g in gpus if g.get("uuid")),
        driver=str(result.environment_snapshot.get("driver_version") or "")[:63] or None,
        baselines=_fresh_baselines(result),
        reasons=tuple(r.code[:63] for r in result.verdict.reasons[:5]),
        warnings=tuple(text.partition(":")[0][:63] for text in result.measurement_warnings[:3]),
    )


def _thousandfold(value: float | None) -> float | None:
    return None if value is None else 1e3 * value


def _energy_null_reason(result: ExperimentResult) -> str | None:
    if result.energy_per_output_token_j is not None:
        return None
    known = result.null_reasons.get("energy_per_output_token_j") or result.null_reasons.get("energy_total_j")
    return shortened(redacted(known or "not recorded"), MAX_REASON)


def _own_gpus(result: ExperimentResult) -> Sequence[Mapping[str, Any]]:
    """The GPUs that were measured, or else all that were visible."""
    visible = result.environment_snapshot.get("gpus") or []
    measured = [g for g in visible if g.get("uuid") in (result.energy_per_device_j or {})]
    return (measured or visible)[:MAX_GPUS]


def _fresh_baselines(result: ExperimentResult) -> tuple[KnownBaseline, ...]:
    """Idle powers that this run measured by a counter; later runs on the same cards may take them."""
    found = result.energy_breakdown
    if found.baseline_method != "fresh" or result.energy_kind != "counter":
        return ()
    if found.baseline_kind is None or found.baseline_timestamp is None:
        return ()
    return tuple(
        KnownBaseline(
            gpu_uuid=uuid,
            driver=str(result.environment_snapshot.get("driver_version") or "")[:63] or None,
            kind=found.baseline_kind,
            power_milliwatts=round(1e3 * power_w),
            measured_at=found.baseline_timestamp,
            conditions=(found.baseline_settings or {}).get(uuid),
        )
        for uuid, power_w in list((found.baseline_per_device_w or {}).items())[:MAX_GPUS]
    )


def failed_record(error: Mapping[str, Any]) -> TerminationRecord:
    """The record of a run without a result; `error` is what its last event says."""
    return TerminationRecord(
        outcome="failed",
        failure=Failure(
            type=shortened(str(error["type"]), 100),
            message=shortened(str(error["message"]), MAX_MESSAGE),
            phase=error["phase"],
            exit_code=error["exit_code"],
        ),
    )


def failure_document(
    error: Mapping[str, Any], duty: Assignment, config: ExperimentConfig | None, now: datetime
) -> dict[str, Any]:
    """What `failure.json` holds: enough to tell, from the store alone, which run failed and why."""
    return {
        "schema_version": FAILURE_SCHEMA,
        "tool_version": __version__,
        "failed_at": now.isoformat(),
        "index": duty.index,
        "cycle": duty.cycle,
        "attempt": duty.attempt,
        "config_hash": duty.config_hash,
        "summary": describe(config) if config is not None else None,
        "node": duty.node,
        "pod": duty.pod,
        "error": dict(error),
    }


def shortened(text: str, limit: int) -> str:
    """A text of at most `limit` characters, the end kept: errors say at their end what happened."""
    if len(text) <= limit:
        return text
    head = limit // 3
    return f"{text[:head]} … {text[-(limit - head - 3) :]}"


def cleaned(text: str, secrets: Iterable[str]) -> str:
    """`text` without the given secrets and without anything else that looks like a credential."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    return redacted(text)


def secrets_in(environ: Mapping[str, str]) -> list[str]:
    """Values of variables whose names say that they are secret."""
    return [v for k, v in environ.items() if _NAMED_SECRET.search(k) and len(v) >= MIN_SECRET and "/" not in v[:1]]
