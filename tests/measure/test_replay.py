"""Recordings of runs on an H100, judged by today's pipeline from raw samples to a whole result."""

import json
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from datetime import UTC, datetime
from typing import Any

import pytest

from fakes.recorded_run import NAMES, jitter, recorded, scaled
from llenergymeasure import record, replay, run_energy
from llenergymeasure.baseline import Baseline, Spread
from llenergymeasure.core import uncertainty
from llenergymeasure.core.calibration import BoardCalibration
from llenergymeasure.core.contracts import Work
from llenergymeasure.core.energy_series import DEFAULT_JITTER_S
from llenergymeasure.measure import Measured
from llenergymeasure.observation import Observation

FROM_SENSORS = (
    "energy_total_j", "energy_adjusted_j", "energy_per_device_j", "energy_per_output_token_j",
    "energy_per_total_token_j", "energy_per_request_j", "tokens_per_joule", "tokens_per_second_per_watt",
    "mean_power_w", "loaded_idle_power_w", "verdict", "measurement_warnings", "occupancy", "thermal",
    "null_reasons", "duration_s", "tokens_per_second", "measurement_config_hash", "memory_total_mb",
)  # fmt: skip
CUT_BY_BATCHES = {"power_drift": 0.001, "clock_drift": 0.001, "temperature_change_c": 0.6}
"""Figures of a window's thirds, and how far they may be off: when batches began is not known exactly, see below."""


def close(value: Any, wanted: Any, where: str, *, rel: float = 1e-6, abs_: float = 1e-9) -> None:
    """Equal but for the recording's rounding to a microsecond and a microjoule."""
    if isinstance(wanted, Mapping):
        for name, part in wanted.items():
            close(value[name], part, f"{where}.{name}", rel=rel, abs_=abs_)
    elif isinstance(wanted, float):
        assert value == pytest.approx(wanted, rel=rel, abs=abs_), where
    else:
        assert value == wanted, where


@pytest.mark.parametrize("name", NAMES)
def test_a_recorded_run_is_judged_as_before(name: str) -> None:
    """Every figure that hangs on the sensors comes out of the raw samples again, the stored result is the oracle.

    Its uncertainty is that of the jitter that was believed that day; one of these runs had 0 from its self-test. What a
    trend in the guards adds to that of the edges did not count then.
    The recorder of that day did not write when batches began; benchmarks/recorded.py read it off the power or made them
    equally long, so the window's thirds are cut some hundredths of a second beside the places where they were cut then.
    """
    run = recorded(name)
    stored = run.result.model_dump()
    (before,) = stored["sensors"].values()
    again = run.judged(jitter(before["jitter_used_s"])).model_dump()
    (sensor,) = again["sensors"].values()
    now, then = again.pop("uncertainty"), stored.pop("uncertainty")
    assert then["edge"] <= now.pop("edge") <= 2 * then.pop("edge")
    close(now, then, "uncertainty", rel=1e-4)
    for field in FROM_SENSORS:
        close(again[field], stored[field], field)
    close(again["cross_check"], stored["cross_check"], "cross_check")
    for field in ("power_before_w", "power_after_w", "edges", "period_s", "reading_width_s", "ticks"):
        close(sensor[field], before[field], field)
    for field, value in stored["conditions"].items():
        if value is not None:  # what later versions tell beside it was not stored then
            assert again["conditions"][field] == pytest.approx(value, abs=CUT_BY_BATCHES.get(field, 1e-9)), field


@pytest.mark.parametrize("name", NAMES)
def test_period_and_jitter_come_from_the_ticks(name: str) -> None:
    """What was said of the counter then is not copied: this version's rules find the period and the jitter."""
    run = recorded(name)
    (uuid,) = run.raw["sensors"]
    forged = {"period_s": 0.5, "jitter_s": 0.0, "jitter_hidden": False, "jitter_used_s": 0.0, "reading_width_s": 0.5}
    raw = {**run.raw, "sensors": {uuid: {**run.raw["sensors"][uuid], **forged, "ticks": 3}}}
    assert replay.judged_again(run.result, raw) == run.judged()


@pytest.mark.parametrize("name", NAMES)
def test_a_jitter_that_was_wrongly_found_is_no_longer_believed(name: str) -> None:
    """The default holds in both runs; the jitter of their own ticks hides behind the readings, its limit is no zero."""
    run = recorded(name)
    ((sensor,), (then,)) = ((r.sensors or {}).values() for r in (run.judged(), run.result))
    assert (sensor.jitter_used_s, sensor.jitter_source, sensor.lag_s) == (DEFAULT_JITTER_S, "default", None)
    assert "self-test" in (sensor.lag_reason or "")
    assert (then.jitter_s, sensor.jitter_hidden) == (0.0, True)
    assert sensor.jitter_s == pytest.approx(0.00125, abs=0.0001)


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
        no_baseline_reason="no idle power",
        no_energy_reason="no energy",
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
    read = replay.observed(result, json.loads(json.dumps(raw)))
    for f in fields(Observation):
        if f.name != "energy":  # rounded
            assert getattr(read, f.name) == getattr(seen, f.name), f.name


def test_a_model_on_the_cpu_beside_an_idle_gpu_stays_unmeasured_for_that_reason() -> None:
    """The GPU was recorded until the model was loaded; none of it is this run's."""
    run, reason = recorded("h100_batch8"), "the model runs on the CPU, so the GPU's energy is not this run's"
    seen = replay.observed(run.result, run.raw)
    assert seen.energy is not None
    seen = replace(seen, energy=run_energy.only(seen.energy, ()), no_energy_reason=reason)
    result, raw = record.build(seen), replay.to_json(seen)
    again = replay.judged_again(result, json.loads(json.dumps(raw)))
    assert again.null_reasons["energy_total_j"] == reason
    close(again.model_dump(), result.model_dump(), "result")


def test_a_run_of_today_is_judged_alike_from_its_files(run: Callable[..., Measured]) -> None:
    """What `output.raw_samples` keeps and the result are enough: tokens, batches, speed, energy, verdict."""
    fields = {"raw_samples": True, "save_text": True}
    measured = run(output=fields, measurement={"min_duration_seconds": 0.5}, warmup={"thermal_floor_seconds": 0})
    assert measured.raw is not None
    again = replay.judged_again(measured.result, json.loads(json.dumps(measured.raw)))
    now, then = again.model_dump(), measured.result.model_dump()
    for name in now:
        close(now[name], then[name], name, rel=1e-3, abs_=1e-5)  # what a microsecond does to half a second


def test_a_recording_without_batches_is_refused() -> None:
    """The first format cannot be judged again, and says why."""
    run = recorded("h100_batch1")
    raw = {k: v for k, v in run.raw.items() if k != "run"} | {"format": "llem-recording-1"}
    with pytest.raises(ValueError, match="llem-recording-1 cannot be judged again: it lacks the batches"):
        replay.judged_again(run.result, raw)


def test_a_recording_of_another_run_is_refused() -> None:
    """Result and recording say which run they are of; older recordings do not, and are believed."""
    run, other = recorded("h100_batch8"), recorded("h100_batch1")
    with pytest.raises(
        ValueError, match=f"of run {other.result.experiment_id}, the result of run {run.result.experiment_id}"
    ):
        replay.judged_again(run.result, other.raw)
    silent = {k: v for k, v in run.raw["run"].items() if k != "experiment_id"}
    assert replay.judged_again(run.result, {**run.raw, "run": silent}) == run.judged()


@pytest.mark.parametrize("length_s", [None, "12", 0.0, -1.0, float("nan")])
def test_a_recording_without_the_length_of_its_window_is_refused(length_s: Any) -> None:
    """Absent or no length above 0 s: it cannot be read, and says what is wrong with it."""
    run = recorded("h100_batch1")
    with pytest.raises(ValueError, match="cannot be read: its window_s is"):
        replay.judged_again(run.result, {**run.raw, "window_s": length_s})
    with pytest.raises(ValueError, match="cannot be read: its window_s is None"):
        replay.judged_again(run.result, {k: v for k, v in run.raw.items() if k != "window_s"})
