"""The termination record of a run: the numbers of its result in other units, never a secret, never too long."""

import dataclasses
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from llenergymeasure import ending
from llenergymeasure.core.result import EnergyBreakdown
from llenergymeasure.core.termination import MAX_BYTES, parse_termination
from llenergymeasure.core.verdict import Verdict
from llenergymeasure.measure import Measured
from llenergymeasure.object_store import Stored
from store.pods import changed

STORED = Stored("s3://b/run/a1/result.json", "0" * 64, 123)
UUID, OTHER = "GPU-1", "GPU-2"
GPUS = {"driver_version": "580.1", "gpus": [{"uuid": OTHER, "name": "NVIDIA A"}, {"uuid": UUID, "name": "NVIDIA H"}]}


def breakdown(**fields: Any) -> EnergyBreakdown:
    """A baseline of two GPUs that this run measured itself."""
    return EnergyBreakdown(
        baseline_kind="bare",
        baseline_method="fresh",
        baseline_timestamp=datetime(2026, 3, 1, tzinfo=UTC),
        baseline_per_device_w={UUID: 61.2345, OTHER: 70.0},
    ).model_copy(update=fields)


def test_numbers_are_those_of_the_result(measured: Measured) -> None:
    """Ten numbers, each in the unit that its name says, and where the result is."""
    result = changed(
        measured.result,
        energy_per_output_token_j=0.5,
        energy_adjusted_j=7.0,
        baseline_power_w=60.0,
        memory_peak_mb=12.5,
    )

    record = ending.stored_record(result, STORED)

    assert record.numbers.model_dump() == {
        "energy_per_output_token_millijoules": 500.0,
        "energy_total_joules": result.energy_total_j,
        "energy_adjusted_joules": 7.0,
        "baseline_watts": 60.0,
        "tokens_per_second": result.tokens_per_second,
        "output_tokens": 8,
        "requests": 2,
        "duration_seconds": result.duration_s,
        "latency_p50_milliseconds": result.latency.p50_ms if result.latency else None,
        "memory_peak_mebibytes": 12.5,
    }
    assert (record.outcome, record.uri, record.sha256, record.size_bytes) == ("stored", STORED.uri, "0" * 64, 123)
    assert (record.verdict, record.energy_null_reason, record.adopted) == ("invalid", None, False)


def test_window_is_utc(measured: Measured) -> None:
    """Begin and end of the window by the wall clock: the next run's pause counts from there."""
    record = ending.stored_record(measured.result, STORED)

    start, window = measured.result.start_time, measured.result.phases["window"]
    assert record.window_start == start + timedelta(seconds=window.start_s)
    assert record.window_end == start + timedelta(seconds=window.end_s)
    assert record.window_start.utcoffset() == timedelta(0)
    assert record.window_end - record.window_start >= timedelta(seconds=measured.result.duration_s)
    assert start < record.window_start < record.window_end < measured.result.end_time


def test_missing_energy_has_its_reason(measured: Measured) -> None:
    """No number without a word on why, and no secret in it."""
    why = "no energy source (token=abcdefghijklmnop) " + "x" * 1000
    result = changed(measured.result, energy_per_output_token_j=None, null_reasons={"energy_total_j": why})

    record = ending.stored_record(result, STORED)

    assert record.numbers.energy_per_output_token_millijoules is None
    assert record.energy_null_reason is not None
    assert record.energy_null_reason.startswith("no energy source (token=***")
    assert len(record.energy_null_reason) <= 300


def test_gpus_are_the_measured_ones(measured: Measured) -> None:
    """A visible GPU that was not used is not this run's; without energy all visible ones are named."""
    result = changed(measured.result, environment_snapshot=GPUS, energy_per_device_j={UUID: 1.0})

    own = ending.stored_record(result, STORED)
    all_of_them = ending.stored_record(changed(result, energy_per_device_j=None), STORED)

    assert (own.gpu_product, own.gpu_uuids, own.driver) == ("NVIDIA H", (UUID,), "580.1")
    assert all_of_them.gpu_uuids == (OTHER, UUID)


def test_fresh_baselines_travel_per_gpu(measured: Measured) -> None:
    """What this run measured by a counter helps later runs on the same cards."""
    result = changed(measured.result, environment_snapshot=GPUS, energy_kind="counter", energy_breakdown=breakdown())

    found = ending.stored_record(result, STORED).baselines

    assert [(b.gpu_uuid, b.driver, b.kind, b.power_milliwatts) for b in found] == [
        (UUID, "580.1", "bare", 61234),
        (OTHER, "580.1", "bare", 70000),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        pytest.param("counter", {"baseline_method": "cached"}, id="known before"),
        pytest.param("simulated", {}, id="pretended"),
        pytest.param("counter", {"baseline_per_device_w": None}, id="of an older version"),
    ],
)
def test_other_baselines_do_not_travel(measured: Measured, kind: str, fields: dict[str, Any]) -> None:
    """A baseline that came from elsewhere would grow old unseen; a pretended one is none."""
    result = changed(measured.result, energy_kind=kind, energy_breakdown=breakdown(**fields))

    assert ending.stored_record(result, STORED).baselines == ()


def test_first_three_warnings_travel_as_codes(measured: Measured) -> None:
    """Codes are enough to look up; the sentences are in the result."""
    result = changed(measured.result, measurement_warnings=[f"code_{i}: a long sentence" for i in range(5)])

    assert ending.stored_record(result, STORED).warnings == ("code_0", "code_1", "code_2")


def test_largest_record_fits(measured: Measured) -> None:
    """Sixteen GPUs with their baselines, long reasons, a long address: still below the kubelet's limit."""
    uuids = [f"GPU-{i:08d}-0000-0000-0000-000000000000" for i in range(20)]
    result = changed(
        measured.result,
        energy_kind="counter",
        energy_breakdown=breakdown(baseline_per_device_w=dict.fromkeys(uuids, 61.25)),
        environment_snapshot={"driver_version": "580.1", "gpus": [{"uuid": u, "name": "NVIDIA H100"} for u in uuids]},
        energy_per_output_token_j=None,
        null_reasons={"energy_per_output_token_j": "é" * 1000},
        measurement_warnings=["x" * 500] * 3,
    )

    message = ending.stored_record(result, dataclasses.replace(STORED, uri="s3://b/" + "p" * 500)).to_message()

    read = parse_termination(message)
    assert len(message.encode()) <= MAX_BYTES
    assert read is not None
    assert read.sha256 == STORED.sha256


def test_failure_keeps_both_ends_of_a_long_message() -> None:
    """What went wrong stands at the end of a traceback, where it began at the start."""
    error = {"type": "BackendError", "message": "START " + "x" * 9000 + " END", "phase": "load", "exit_code": 16}

    record = ending.failed_record(error)

    assert record.failure is not None
    assert record.failure.message.startswith("START")
    assert record.failure.message.endswith("END")
    assert len(record.failure.message) <= 1024
    assert (record.failure.exit_code, record.outcome) == (16, "failed")
    assert parse_termination(record.to_message()) is not None


def test_secrets_are_cleaned_by_value_and_by_look() -> None:
    """A key from the environment leaves no trace, whatever text it hides in; paths and switches are no secrets."""
    environ = {
        "AWS_SECRET_ACCESS_KEY": "wJalrXUt/nFEMI",
        "HF_TOKEN": "hf_short",
        "HF_TOKEN_PATH": "/run/token",
        "LLEM_STORE_CREDENTIALS": "/var/run/llem/store",
        "TOKENIZERS_PARALLELISM": "false",
        "HOME": "/tmp",
    }

    text = ending.cleaned(
        "used wJalrXUt/nFEMI and hf_short at /var/run/llem/store, password=hunter22222", ending.secrets_in(environ)
    )

    assert text == "used *** and *** at /var/run/llem/store, password=***"


def test_the_record_names_the_verdicts_reasons(measured: Measured) -> None:
    """Their codes, five at most: the condition on the cluster tells them."""
    reasons = [{"code": f"code_{i}", "sentence": "x", "fix": "y"} for i in range(7)]
    result = changed(measured.result, verdict=Verdict.model_validate({"state": "invalid", "reasons": reasons}))
    record = ending.stored_record(result, STORED)
    assert record.reasons == ("code_0", "code_1", "code_2", "code_3", "code_4")
    assert parse_termination(record.to_message()) == record
