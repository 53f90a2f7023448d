"""The record of an experiment and of a study: exact round trip, older files, statistics over cycles."""

import json
import math
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from llenergymeasure.core.comparison import ENERGY, LATENCY, SPEED, QuantityComparison
from llenergymeasure.core.result import (
    ExperimentResult,
    StudyResult,
    latency_statistics,
    scalars,
)
from llenergymeasure.core.study_statistics import comparisons_of, gain_limits, over_cycles

START = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
REQUIRED: dict[str, Any] = {
    "experiment_id": "e", "measurement_config_hash": "0123456789abcdef", "model": "m", "backend": "synthetic",
    "measurement_methodology": "steady_state", "input_tokens": 10, "output_tokens": 20, "total_tokens": 30,
    "requests": 2, "verdict": {"state": "valid"}, "duration_s": 1.5, "tokens_per_second": 13.3,
    "total_tokens_per_second": 20.0, "requests_per_second": 1.3, "start_time": START, "end_time": START,
}  # fmt: skip
FULL: dict[str, Any] = {
    **REQUIRED, "energy_total_j": 450.25, "energy_per_output_token_j": 22.5125, "mean_power_w": 300.1,
    "energy_per_device_j": {"GPU-a": 200.25, "GPU-b": 250.0}, "steady_state_window": (0.25, 1.75),
    "phases": {"window": {"start_s": 0.25, "end_s": 1.75}}, "request_output_tokens": [10, 10],
    "effective_config": {"n": 2, "decoder": {"top_p": 0.9}, "list": [1, None, "x"]},
    "uncertainty": {"edge": 0.001, "comparison": 0.02, "absolute": 0.097, "between_runs_source": "assumed"},
    "cross_check": {"source": "average power", "ratio": 1.0001}, "null_reasons": {"co2_estimate_g": "no intensity"},
    "verdict": {"state": "invalid", "reasons": [{"code": "throttled", "sentence": "Hot.", "fix": "Cool."}]},
    "warmup": {"converged": True, "final_cv": 0.01, "iterations_completed": 5, "target_cv": 0.05, "max_prompts": 20,
               "latencies_ms": [1.1, 2.2]},
    "flops": {"value": 1.23e15, "method": "2NP", "confidence": "high", "precision": "bf16"},
    "texts": [{"request": 0, "prompt": "héllo\n", "output": "\u2028wörld \U0001f600"}],
}  # fmt: skip


def result(**fields: Any) -> ExperimentResult:
    return ExperimentResult.model_validate({**REQUIRED, **fields})


def test_full_result_survives_its_json_exactly(tmp_path: Path) -> None:
    """Text, file and object are the same result, times to the microsecond."""
    full = ExperimentResult.model_validate(FULL)
    path = tmp_path / "result.json"
    path.write_text(full.to_json(), encoding="utf-8")
    assert ExperimentResult.from_json(full.to_json()) == full
    assert ExperimentResult.from_json(path) == full
    assert full.start_time == START


numbers = st.floats(allow_nan=False, allow_infinity=False)


@given(
    numbers, st.lists(numbers, max_size=4), st.dictionaries(st.text(max_size=4), numbers, max_size=3), st.integers(0)
)
@settings(max_examples=200, deadline=None)
def test_any_number_survives_its_json_to_the_last_bit(
    one: float, many: list[float], mapping: dict[str, float], tokens: int
) -> None:
    """No digit of a measured number is lost on disk, whatever its size."""
    before = result(
        mean_power_w=one, energy_per_device_j=mapping, output_tokens=tokens,
        warmup={**FULL["warmup"], "latencies_ms": many}, environment_snapshot={"value": one, "list": many},
    )  # fmt: skip
    after = ExperimentResult.from_json(before.to_json())
    assert after == before
    assert after.mean_power_w is not None
    assert after.warmup is not None
    assert math.copysign(1, after.mean_power_w) == math.copysign(1, one)
    assert [x.hex() for x in after.warmup.latencies_ms] == [x.hex() for x in many]


def test_json_is_indented_by_two_and_has_no_nan() -> None:
    """The file can be read by people and by every JSON parser."""
    text = result().to_json()
    assert text.startswith('{\n  "schema_version": "2.0",\n')
    assert json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))["energy_total_j"] is None


NOT_FINITE = [
    ("energy", {"energy_total_j": math.nan}),
    ("power", {"mean_power_w": math.inf}),
    ("duration", {"duration_s": -math.inf}),
    ("device", {"energy_per_device_j": {"GPU-a": math.nan}}),
    ("window", {"steady_state_window": (0.0, math.nan)}),
    ("uncertainty", {"uncertainty": {"edge": math.nan}}),
    ("warmup", {"warmup": {**FULL["warmup"], "latencies_ms": [math.nan]}}),
]


@pytest.mark.parametrize("fields", [r[1] for r in NOT_FINITE], ids=[r[0] for r in NOT_FINITE])
def test_nan_and_infinity_are_refused(fields: dict[str, Any]) -> None:
    """A number that is none cannot enter a record: it would come back as `not measured`."""
    with pytest.raises(ValidationError, match="finite"):
        result(**fields)


def test_older_result_without_optional_fields_loads_with_none() -> None:
    """A file of an earlier version lacks fields; they are `not measured`, never 0."""
    old = json.loads(result().to_json())
    kept = {k: v for k, v in old.items() if k in REQUIRED}
    loaded = ExperimentResult.from_json(json.dumps({**kept, "schema_version": "1.9"}))
    assert loaded.schema_version == "1.9"
    for name in ("energy_total_j", "energy_adjusted_j", "energy_per_output_token_j", "mean_power_w", "co2_estimate_g",
                 "latency", "flops", "warmup", "cross_check", "memory_peak_mb"):  # fmt: skip
        assert getattr(loaded, name) is None
    assert loaded.energy_breakdown.raw_j is None
    assert loaded.uncertainty.comparison is None
    assert loaded.thermal.detected is None


def test_newer_result_with_unknown_fields_loads() -> None:
    """A file of a later version is read as far as it is understood."""
    newer = {**json.loads(result().to_json()), "schema_version": "2.7", "brand_new": {"a": 1}}
    assert ExperimentResult.from_json(json.dumps(newer)).schema_version == "2.7"


@pytest.mark.parametrize("missing", ["measurement_config_hash", "verdict", "output_tokens", "duration_s", "backend"])
def test_result_without_its_core_is_refused_by_name(missing: str) -> None:
    """A truncated file is not a result."""
    data = json.loads(result().to_json())
    del data[missing]
    with pytest.raises(ValidationError, match=missing):
        ExperimentResult.from_json(json.dumps(data))


def test_record_cannot_be_changed() -> None:
    """A result is what was measured."""
    with pytest.raises(ValidationError):
        result().energy_total_j = 1.0


def test_times_keep_their_instant_in_any_zone() -> None:
    """A time written with an offset is the same instant."""
    zone = timezone(timedelta(hours=5, minutes=30))
    moved = result(start_time=START.astimezone(zone))
    assert ExperimentResult.from_json(moved.to_json()).start_time == START


def test_study_result_survives_its_json_and_holds_paths_only() -> None:
    """A study's record names its result files instead of holding them."""
    study = StudyResult.model_validate(
        {
            "name": "s", "study_design_hash": "h", "result_files": ["runs/00000_c1_m-x_0/result.json"],
            "summary": {"generated": 4, "ran": 3, "failed": 1, "skipped": 2},
            "experiments": [over_cycles("h", "pytorch bf16", [result(energy_total_j=1.0)])],
            "skipped": [{"config": {"n": 0}, "reason": "n"}],
            "failed": [{"index": 3, "cycle": 2, "config_hash": "h", "summary": "s", "error_type": "OutOfMemoryError"}],
        }
    )  # fmt: skip
    assert StudyResult.from_json(study.to_json()) == study
    assert all(isinstance(p, str) for p in study.result_files)


# Statistics.


def test_statistics_leave_out_what_was_not_measured() -> None:
    """A missing energy is not averaged in as 0, one that is not believed not at all; speeds and verdicts all count."""
    results = [
        result(energy_per_output_token_j=2.0, tokens_per_second=10.0),
        result(energy_per_output_token_j=4.0, tokens_per_second=20.0, verdict={"state": "invalid"}),
        result(energy_per_output_token_j=None, tokens_per_second=30.0, verdict={"state": "unmeasured"}),
    ]
    found = over_cycles("h", "s", results)
    assert found.cycles_completed == 3
    assert found.verdicts == {"valid": 1, "invalid": 1, "unmeasured": 1}
    assert (found.statistics["energy_per_output_token_j"].mean, found.statistics["energy_per_output_token_j"].n) == (
        2,
        1,
    )
    assert (found.statistics["tokens_per_second"].mean, found.statistics["tokens_per_second"].n) == (20, 3)
    assert "mean_power_w" not in found.statistics


ESTIMATED = {"verdict": {"state": "estimated"}}


def test_estimates_beside_valid_runs_have_no_say_in_joules() -> None:
    """Mean and interval are those of the valid runs; speeds are of all."""
    counted = [result(energy_per_output_token_j=j, tokens_per_second=10.0) for j in (2.0, 2.2)]
    guessed = result(energy_per_output_token_j=1.0, mean_power_w=90.0, tokens_per_second=13.0, **ESTIMATED)

    mixed, alone = over_cycles("h", "s", [*counted, guessed]), over_cycles("h", "s", counted)

    assert mixed.statistics[ENERGY] == alone.statistics[ENERGY]
    assert "mean_power_w" not in mixed.statistics
    assert mixed.statistics[SPEED].n == 3


def test_estimates_alone_have_a_mean_without_an_interval() -> None:
    """How a model repeats says nothing of how right it is."""
    found = over_cycles("h", "s", [result(energy_per_output_token_j=j, **ESTIMATED) for j in (1.0, 1.2)]).statistics

    assert (found[ENERGY].mean, found[ENERGY].n, found[ENERGY].half_width_95) == (1.1, 2, None)
    assert found[SPEED].half_width_95 is not None


def _of_study(*groups: tuple[float, str]) -> dict[str, QuantityComparison]:
    """A study's comparisons: three cycles of each configuration, by its joules and verdict."""
    runs = {
        i: {c: result(energy_per_output_token_j=j * 1.002**c, verdict={"state": state}) for c in (1, 2, 3)}
        for i, (j, state) in enumerate(groups)
    }
    names = [f"c{i}" for i in runs]
    return {c.quantity: c for c in comparisons_of(runs, names, names, "shuffled")}


@pytest.mark.parametrize(
    ("groups", "reason"),
    [
        ([(2.0, "estimated"), (1.5, "estimated")], "no_valid_cycle: the energy is a model's estimate, not a count"),
        ([(2.0, "valid"), (1.5, "estimated")], "one_configuration: only one configuration has valid figures"),
    ],
    ids=["all estimated", "one counted"],
)
def test_a_study_claims_nothing_of_estimates(groups: list[tuple[float, str]], reason: str) -> None:
    """No ratio of joules that a model gave; speeds are compared all the same."""
    found = _of_study(*groups)

    assert (found[ENERGY].reason or "").startswith(reason)
    assert (found[ENERGY].best_hash, found[ENERGY].against_first, found[ENERGY].against_best) == (None, [], [])
    assert found[SPEED].reason is None


def _on(gains: dict[str, float | None], limit: float, joules: float) -> dict[int, ExperimentResult]:
    """Three cycles on these GPUs in equal shares; gains of a calibration file, or None."""
    fields = {
        "energy_per_device_j": dict.fromkeys(gains, 1.0),
        "sensors": {u: {"gain": g, "offset_w": None if g is None else 0.0} for u, g in gains.items()},
        "uncertainty": {"gain_limit": limit},
    }
    return {c: result(energy_per_output_token_j=joules * 1.002**c, **fields) for c in (1, 2, 3)}


def test_a_study_with_two_calibrations_of_a_gpu_claims_nothing_about_joules() -> None:
    """As when it went on without its file before that was refused; neither does it where one cycle alone differs."""
    with_file, without = _on({"GPU-a": 1.05}, 0.01, 2.0), _on({"GPU-a": None}, 0.1, 1.5)
    mixed = {**with_file, 3: _on({"GPU-a": None}, 0.1, 2.0)[3]}
    for groups in ({0: with_file, 1: without}, {0: with_file, 1: mixed}):
        found = {c.quantity: c for c in comparisons_of(groups, ["a", "b"], ["a", "b"], "shuffled")}
        assert (found[ENERGY].reason or "").startswith("different_calibrations: the joules of GPU-a (gain 1.05, ")
        assert (found[ENERGY].best_hash, found[ENERGY].against_first) == (None, [])
        assert found[SPEED].reason is None


def test_a_gain_of_one_is_as_read() -> None:
    """A file that corrects nothing gives the same joules as none."""
    groups = {0: _on({"GPU-a": 1.0}, 0.01, 2.0), 1: _on({"GPU-a": None}, 0.1, 1.5)}
    assert comparisons_of(groups, ["a", "b"], ["a", "b"], "shuffled")[0].reason is None


@pytest.mark.parametrize(
    ("gains", "limit", "wanted"),
    [
        ({"GPU-a": 1.02}, 0.01, {"GPU-a": 0.01}),
        ({"GPU-a": None}, 0.1, {"GPU-a": 0.1}),
        ({"GPU-a": 1.02, "GPU-b": None}, 0.055, {"GPU-a": 0.01, "GPU-b": 0.1}),
        ({"GPU-a": 1.02, "GPU-b": 0.99}, 0.015, {"GPU-a": 0.015, "GPU-b": 0.015}),
        ({"GPU-a": 1.02}, 0.12, {"GPU-a": 0.12}),
    ],
    ids=["calibrated", "not", "one of two", "both", "worse than none"],
)
def test_each_gpu_has_the_limit_of_its_own_gain(
    gains: dict[str, float | None], limit: float, wanted: dict[str, float]
) -> None:
    """From the limit of the joules as a whole; what is not calibrated has 10 %."""
    assert gain_limits(_on(gains, limit, 2.0).values()) == pytest.approx(wanted)


def test_a_study_across_calibrated_gpus_has_their_limits_in_its_intervals() -> None:
    """1 % each, not 10 %."""
    groups = {0: _on({"GPU-a": 1.05}, 0.01, 2.0), 1: _on({"GPU-b": 0.97}, 0.01, 1.5)}
    (pair,) = comparisons_of(groups, ["a", "b"], ["a", "b"], "shuffled")[0].against_first
    assert pair.gain_allowance == pytest.approx(1.959964 * 0.01 * math.sqrt(2 / 3), rel=1e-5)


def test_counted_configurations_are_compared_beside_an_estimated_one() -> None:
    """The estimate is in no claim; what is counted is, as if the estimate were not there."""
    found = _of_study((2.0, "valid"), (1.0, "estimated"), (1.5, "valid"))[ENERGY]

    assert [(p.a_hash, p.b_hash) for p in found.against_first] == [("c0", "c2")]
    assert found.best_hash == "c2"
    assert found.unclaimed == {"c1": "no_valid_cycle: no run was judged valid"}


def test_latency_statistics_by_hand() -> None:
    """1 ... 101 ms: mean and median 51, p90 91, p95 96, p99 100."""
    found = latency_statistics([float(v) for v in range(101, 0, -1)])
    assert found is not None
    assert (found.samples, found.mean_ms, found.min_ms, found.max_ms) == (101, 51, 1, 101)
    assert (found.p50_ms, found.p90_ms, found.p95_ms, found.p99_ms) == pytest.approx((51, 91, 96, 100))
    assert latency_statistics([]) is None


# One flat row for CSV and Parquet.


def test_flat_row_has_the_scalars_with_dotted_groups_and_no_lists() -> None:
    """Every plain quantity is a column, nested groups dotted; None stays None, never 0."""
    row = scalars(ExperimentResult.model_validate(FULL))
    assert row["energy_total_j"] == 450.25
    assert row["uncertainty.comparison"] == 0.02
    assert row["verdict.state"] == "invalid"
    assert row["energy_adjusted_j"] is None
    assert not any(isinstance(v, dict | list) for v in row.values())
    assert not {"effective_config", "environment_snapshot", "texts"} & set(row)


def test_parquet_row_reads_back(tmp_path: Path) -> None:
    """The one-row table holds the same numbers."""
    import pyarrow.parquet as pq

    full = ExperimentResult.model_validate(FULL)
    full.to_parquet(tmp_path / "r.parquet")
    (row,) = pq.read_table(tmp_path / "r.parquet").to_pylist()
    assert row == scalars(full)


def _latency(mode: str, p50_ms: float = 100.0) -> dict[str, Any]:
    names = ("mean_ms", "p50_ms", "p90_ms", "p95_ms", "p99_ms", "min_ms", "max_ms")
    return {"mode": mode, "samples": 9, **dict.fromkeys(names, p50_ms)}


@pytest.mark.parametrize(
    ("window_mode", "stored", "read"),
    [
        ("saturated", "per_request_batch", "per_request"),
        ("saturated", "per_request", "per_request"),
        ("passes", "per_request_batch", "per_request_batch"),
        (None, "per_request_batch", "per_request_batch"),
    ],
)
def test_stored_latencies_of_saturated_windows_are_of_requests(window_mode: str | None, stored: str, read: str) -> None:
    """They were stored as those of batches before there was a word for them; nothing else changes."""
    fields = {**REQUIRED, "window_mode": window_mode, "latency": _latency(stored)}
    text = json.dumps(fields, default=str)
    found = ExperimentResult.from_json(text)
    assert found.latency is not None
    assert (found.latency.mode, found.latency.p50_ms) == (read, 100.0)
    assert json.loads(found.to_json())["latency"]["mode"] == read


def test_a_study_compares_latencies_of_the_same_thing_only() -> None:
    """Batches against requests: a reason and no ratio, while speeds are compared; requests against requests have one."""

    def cycles(mode: str, p50_ms: float) -> dict[int, ExperimentResult]:
        more = {"window_mode": "passes", "tokens_per_second": p50_ms}
        return {c: result(latency=_latency(mode, p50_ms * 1.01**c), **more) for c in (1, 2, 3)}

    def compared(*groups: dict[int, ExperimentResult]) -> dict[str, QuantityComparison]:
        names = [f"c{i}" for i in range(len(groups))]
        return {c.quantity: c for c in comparisons_of(dict(enumerate(groups)), names, names, "shuffled")}

    batches, requests = cycles("per_request_batch", 100.0), cycles("per_request", 300.0)
    found = compared(batches, requests)[LATENCY]
    assert found.reason == (
        "latency_of_different_things: it is not everywhere the time of the same thing, but of a batch of requests, "
        "of a request among others"
    )
    assert (found.against_best, found.against_first, found.best_hash) == ([], [], None)
    assert compared(batches, requests)[SPEED].reason is None
    (pair,) = compared(cycles("per_request", 100.0), requests)[LATENCY].against_first
    assert pair.ratio == pytest.approx(3.0)
