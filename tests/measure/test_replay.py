"""Recordings of runs on an H100, judged by today's pipeline from raw samples to a whole result."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from fakes.recorded_run import NAMES, recorded, scaled
from llenergymeasure import record, replay
from llenergymeasure.baseline import Baseline, Spread
from llenergymeasure.core import uncertainty
from llenergymeasure.core.calibration import BoardCalibration
from llenergymeasure.core.contracts import Work
from llenergymeasure.measure import Measured

FROM_SENSORS = (
    "energy_total_j", "energy_adjusted_j", "energy_per_device_j", "energy_per_output_token_j",
    "energy_per_total_token_j", "energy_per_request_j", "tokens_per_joule", "tokens_per_second_per_watt",
    "mean_power_w", "loaded_idle_power_w", "uncertainty", "verdict", "measurement_warnings", "occupancy", "thermal",
    "null_reasons", "duration_s", "tokens_per_second", "measurement_config_hash", "memory_total_mb",
)  # fmt: skip
CUT_BY_BATCHES = {"power_drift": 0.001, "clock_drift": 0.001, "temperature_change_c": 0.6}
"""Figures of a window's thirds, and how far they may be off: when batches began is not known exactly, see below."""


def close(value: Any, wanted: Any, where: str) -> None:
    """Equal but for the recording's rounding to a microsecond and a microjoule."""
    if isinstance(wanted, Mapping):
        for name, part in wanted.items():
            close(value[name], part, f"{where}.{name}")
    elif isinstance(wanted, float):
        assert value == pytest.approx(wanted, rel=1e-6, abs=1e-9), where
    else:
        assert value == wanted, where


@pytest.mark.parametrize("name", NAMES)
def test_a_recorded_run_is_judged_as_before(name: str) -> None:
    """Every figure that hangs on the sensors comes out of the raw samples again, the stored result is the oracle.

    The recorder of that day did not write when batches began; benchmarks/recorded.py read it off the power or made them
    equally long, so the window's thirds are cut some hundredths of a second beside the places where they were cut then.
    """
    run = recorded(name)
    again, stored = run.judged().model_dump(), run.result.model_dump()
    for field in FROM_SENSORS:
        close(again[field], stored[field], field)
    close(again["cross_check"], stored["cross_check"], "cross_check")
    for field in ("power_before_w", "power_after_w", "edges", "period_s"):
        (sensor,), (before,) = again["sensors"].values(), stored["sensors"].values()
        close(sensor[field], before[field], field)
    for field, value in stored["conditions"].items():
        if value is not None:  # what later versions tell beside it was not stored then
            assert again["conditions"][field] == pytest.approx(value, abs=CUT_BY_BATCHES.get(field, 1e-9)), field


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_the_energy_is_taken_from_the_stored_result(name: str) -> None:
    """A stored result whose judgement is forged is judged as the recording says."""
    run = recorded(name)
    forged = dict.fromkeys(("energy_total_j", "energy_per_device_j", "mean_power_w", "loaded_idle_power_w"))
    blank = run.result.model_copy(update={**forged, "uncertainty": uncertainty.Uncertainty(), "cross_check": None})
    assert replay.judged_again(blank, run.raw) == run.judged()


@pytest.mark.parametrize("name", NAMES)
def test_three_per_cent_more_energy_is_three_per_cent_more(name: str) -> None:
    """Where all sensors say 3 % more it is a difference between runs and no fault: valid, and no new warning."""
    run = recorded(name)
    plain, more = run.judged(), run.judged(scaled(counter=1.03, average=1.03, buffer=1.03))
    assert more.energy_per_output_token_j == pytest.approx(1.03 * (plain.energy_per_output_token_j or 0), rel=1e-6)
    assert more.verdict == plain.verdict
    assert more.measurement_warnings == plain.measurement_warnings


def test_everything_that_a_verdict_rests_on_is_in_the_recording() -> None:
    """A run with idle power, calibration, spread and a saturated window is judged alike from memory and from JSON."""
    run = recorded("h100_batch8")
    (uuid,) = run.raw["ticks"]
    moment = datetime(2026, 1, 2, tzinfo=UTC)
    seen = replace(
        replay.observed(run.result, run.raw),
        baseline=Baseline(120.0, "context", "cached", moment, {uuid: 120.0}, {uuid: Spread(0.3, 30, 0.2)}, 40.0, 121.0),
        calibration={uuid: BoardCalibration(gain=1.05, offset_w=-2.0, a=0.01)},
        spread=uncertainty.Spread(0.004, 12.0),
        work=Work("saturated", 8, 7.9, 1, 0.03, 0.02, "quiet", 24_500, 12_250),
        suspended_s=0.7,
        warnings=["some_code: words"],
        constant_prompts=True,
        carbon_intensity_gco2_kwh=300.0,
        pue=1.2,
    )
    result, raw = record.build(seen), replay.to_json(seen)
    again = replay.judged_again(result, json.loads(json.dumps(raw)))
    assert {r.code for r in again.verdict.reasons} == {"suspended", "unrealistic_values"}
    close(again.model_dump(), result.model_dump(), "result")


def test_a_run_of_today_is_judged_alike_from_its_files(run: Callable[..., Measured]) -> None:
    """What `output.raw_samples` keeps and the result are enough: tokens, batches, speed, energy, verdict."""
    fields = {"raw_samples": True, "save_text": True}
    measured = run(output=fields, measurement={"min_duration_seconds": 0.5}, warmup={"thermal_floor_seconds": 0})
    assert measured.raw is not None
    again = replay.judged_again(measured.result, json.loads(json.dumps(measured.raw)))
    now, then = again.model_dump(), measured.result.model_dump()
    for name in now:
        assert_alike(now[name], then[name], name)


def assert_alike(value: Any, wanted: Any, where: str) -> None:
    """Equal but for what rounding to a microsecond does to half a second."""
    if isinstance(wanted, Mapping):
        for name, part in wanted.items():
            assert_alike(value[name], part, f"{where}.{name}")
    elif isinstance(wanted, float):
        assert value == pytest.approx(wanted, rel=1e-3, abs=1e-5), where
    else:
        assert value == wanted, where


def test_a_recording_without_batches_is_refused() -> None:
    """The first format cannot be judged again, and says why."""
    run = recorded("h100_batch1")
    raw = {k: v for k, v in run.raw.items() if k != "run"} | {"format": "llem-recording-1"}
    with pytest.raises(ValueError, match="llem-recording-1 cannot be judged again: it lacks the batches"):
        replay.judged_again(run.result, raw)
