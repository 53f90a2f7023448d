"""From an observation to a result: every derived number by hand, every null with a reason, every verdict's code."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest

from fakes.nvml_script import HW_SLOWDOWN, HW_THERMAL, POWER_BRAKE, SW_POWER_CAP, SW_THERMAL
from llenergymeasure import baseline, record
from llenergymeasure.baseline import Baseline
from llenergymeasure.core.calibration import read
from llenergymeasure.core.contracts import (
    DeviceEnergy,
    EnergyRecord,
    Generation,
    ModelFacts,
    Reading,
    Request,
    Weights,
    Window,
    Work,
)
from llenergymeasure.core.energy_series import EnergySeries, Tick
from llenergymeasure.core.result import ExperimentResult, IdleAsRead
from llenergymeasure.core.uncertainty import Spread
from llenergymeasure.observation import Observation

A, B = "GPU-a", "GPU-b"
START_S, LENGTH_S = 100.0, 20.0
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
See = Callable[..., Observation]


def _energy(*joules: float | None, readings: tuple[Reading, ...] = (), **fields: Any) -> EnergyRecord:
    uuids = (A, B)[: len(joules)]
    parts = tuple(
        DeviceEnergy(u, j, 0.001 * j if j else None, None if j else "why not")
        for u, j in zip(uuids, joules, strict=True)
    )
    return EnergyRecord(windows={"window": parts}, readings=readings, **fields)


def _guards(*powers_w: float | None) -> EnergyRecord:
    """A quiet window of as many GPUs, with the powers before it."""
    parts = tuple(
        DeviceEnergy(u, 4000.0, 4.0, edges="interpolated" if w is None else "quiet", power_before_w=w)
        for u, w in zip((A, B), powers_w, strict=False)
    )
    return EnergyRecord({"window": parts})


def _reading(t_s: float, bits: int | None = 0, **fields: Any) -> Reading:
    return Reading(t_s=t_s, gpu_uuid=A, gpu_index=0, throttle_reasons=bits, **fields)


@pytest.fixture
def see(config: Callable[..., Any]) -> See:
    """An observation of two batches of two requests: 10 + 5 and 20 + 5 tokens each, 20 s, 4000 J on one GPU."""
    requests = (Request(0, tuple(range(10)), 5), Request(1, tuple(range(20)), 5))
    generations = [
        Generation(requests, ((1,) * 5, (2,) * 5), START_S + 10 * i, START_S + 10 * (i + 1)) for i in range(2)
    ]

    def make(**changes: Any) -> Observation:
        base = Observation(
            config=config(**changes.pop("fields", {})),
            experiment_id="id",
            provenance={},
            weights=Weights("m", Path("m"), "local", "rev"),
            facts=ModelFacts(parameters=1000, embedding_parameters=300, memory_model_mb=12.0),
            backend_version="1",
            engine_effective={},
            real_engine=True,
            dataset_sha256="0" * 64,
            constant_prompts=False,
            prompts=["a", "b"],
            window=Window("window", START_S, START_S + LENGTH_S),
            origin_s=90.0,
            generations=generations,
            texts=None,
            phases={},
            warmup=None,
            memory_peak_mb=99.0,
            environment={},
            start_time=NOW,
            end_time=NOW + timedelta(seconds=60),
            energy=_energy(4000.0),
            source_name="nvml",
            source_kind="counter",
        )
        return replace(base, **changes)

    return make


def test_energy_per_everything_by_hand(see: See) -> None:
    """4000 J over 20 output tokens, 80 tokens in all, 4 requests, 20 s."""
    result = record.build(see())
    assert (result.input_tokens, result.output_tokens, result.total_tokens, result.requests) == (60, 20, 80, 4)
    assert result.energy_total_j == 4000.0
    assert result.energy_per_device_j == {A: 4000.0}
    assert result.energy_per_output_token_j == 200.0
    assert result.energy_per_total_token_j == 50.0
    assert result.energy_per_request_j == 1000.0
    assert result.tokens_per_joule == 20 / 4000
    assert result.mean_power_w == 200.0
    assert result.tokens_per_second == 1.0
    assert result.tokens_per_second_per_watt == pytest.approx(result.tokens_per_second / result.mean_power_w)


def test_the_two_denominators_are_consistent(see: See) -> None:
    """Energy per token times tokens is the total again, whichever tokens are meant."""
    result = record.build(see())
    assert result.energy_per_output_token_j is not None
    assert result.energy_per_total_token_j is not None
    assert result.energy_per_output_token_j * result.output_tokens == pytest.approx(result.energy_total_j)
    assert result.energy_per_total_token_j * result.total_tokens == pytest.approx(result.energy_total_j)


def test_the_baseline_is_subtracted_for_the_window(see: See) -> None:
    """80 W idle over 20 s leave 2400 of 4000 J, and the breakdown tells how the idle power was had."""
    result = record.build(see(baseline=Baseline(80.0, "context", "fresh", NOW)))
    assert result.energy_adjusted_j == 4000 - 80 * 20
    assert result.energy_adjusted_per_output_token_j == 2400 / 20
    assert result.baseline_power_w == 80.0
    parts = result.energy_breakdown
    assert (parts.raw_j, parts.adjusted_j, parts.baseline_power_w) == (4000.0, 2400.0, 80.0)
    assert (parts.baseline_kind, parts.baseline_method, parts.from_cache) == ("context", "fresh", False)
    assert (parts.baseline_timestamp, parts.baseline_cache_age_s) == (NOW, None)


def test_a_cached_baseline_says_so(see: See) -> None:
    """From the cache: with its age at the end of the run, a minute, whenever that is asked."""
    parts = record.build(see(baseline=Baseline(80.0, "bare", "cached", NOW))).energy_breakdown
    assert (parts.baseline_method, parts.from_cache, parts.baseline_kind) == ("cached", True, "bare")
    assert parts.baseline_cache_age_s == 60.0


@pytest.mark.parametrize(
    ("kind", "method", "drift_w", "stable", "reason"),
    [
        pytest.param("bare", "fresh", 0.3, True, None, id="stable"),
        pytest.param("bare", "cached", -3.0, False, None, id="it drifted"),
        pytest.param("loaded", "fresh", None, None, "the guard before the window is too short", id="loaded"),
        pytest.param("bare", "validated", None, None, "handed to this run without its drift", id="handed down"),
        pytest.param("bare", "fresh", None, None, "the energy source does not show", id="of a source that cannot tell"),
    ],
)
def test_whether_the_idle_power_was_stable(
    kind: str, method: Any, drift_w: float | None, stable: bool | None, reason: str | None, see: See
) -> None:
    """Yes, no, or null with the reason; an unknown drift is not called stable."""
    idle = Baseline(80.0, kind, method, NOW, {A: 80.0}, {A: baseline.Spread(0.5, 30, drift_w)})
    parts = record.build(see(baseline=idle)).energy_breakdown
    assert (parts.baseline_drift_w, parts.baseline_stable) == (drift_w, stable)
    assert (reason or "") in (parts.baseline_drift_reason or "")
    assert (parts.baseline_drift_reason is None) is (reason is None)


def test_a_calibration_scales_what_is_known_of_the_idle_power(see: See) -> None:
    """Gain 1.5: power, scatter, drift and what the spot check found beyond it; only the watt of doubt stays a watt."""
    known = read(f'{{"{A}": {{"gain": 1.5, "offset_w": -2.0, "a": 0.01}}}}', source="cal.json")
    idle = Baseline(80.0, "bare", "validated", NOW, {A: 80.0}, {A: baseline.Spread(2.0, 25, 0.6)}, spot_w=81.5)
    parts = record.build(see(baseline=idle, calibration=known)).energy_breakdown
    assert (parts.baseline_power_w, parts.baseline_spot_w) == (118.0, 1.5 * 81.5 - 2.0)
    assert parts.baseline_drift_w == pytest.approx(0.9)
    assert parts.baseline_std_uncertainty_w == pytest.approx((0.6**2 + 0.9**2 / 12 + 2.25**2 / 3) ** 0.5)
    assert parts.baseline_as_read == {A: IdleAsRead(power_w=80.0, spread_w=2.0, samples=25, drift_w=0.6)}


def test_a_spot_check_of_two_gpus_is_scaled_as_they_draw(see: See) -> None:
    """One of two GPUs calibrated: of 4 W found beyond 60 + 20 W three quarters have its gain."""
    known = read(f'{{"{A}": {{"gain": 1.2, "a": 0.01}}}}', source="cal.json")
    idle = Baseline(80.0, "bare", "validated", NOW, {A: 60.0, B: 20.0}, spot_w=84.0)
    parts = record.build(see(energy=_energy(3000.0, 1000.0), baseline=idle, calibration=known)).energy_breakdown
    assert parts.baseline_power_w == pytest.approx(92.0)
    assert parts.baseline_spot_w == pytest.approx(92.0 + 3 * 1.2 + 1)


def test_a_negative_remainder_is_kept_and_warned_about(see: See) -> None:
    """Adjusted energy is not clamped at zero."""
    result = record.build(see(baseline=Baseline(300.0, "context", "fresh", NOW)))
    assert result.energy_adjusted_j == 4000 - 300 * 20
    assert any(w.startswith("negative_adjusted:") for w in result.measurement_warnings)


def test_several_gpus_add_up(see: See) -> None:
    """The total is the sum over devices, uncertainties in quadrature."""
    result = record.build(see(energy=_energy(3000.0, 1000.0)))
    assert result.energy_per_device_j == {A: 3000.0, B: 1000.0}
    assert result.energy_total_j == 4000.0
    assert result.uncertainty.edge == pytest.approx((3.0**2 + 1.0**2) ** 0.5 / 4000)


def test_one_unknown_gpu_makes_the_total_unknown(see: See) -> None:
    """Half of the boards is not a smaller total: null, with the board's reason."""
    result = record.build(see(energy=_energy(3000.0, None)))
    assert result.energy_total_j is None
    assert result.null_reasons["energy_total_j"] == f"{B}: why not"


def test_uncertainty_by_hand(see: See) -> None:
    """Edge 0.1 %, 1 % assumed between runs: comparison 1.96 x their hypotenuse, absolute with 0.95 x 10 %."""
    u = record.build(see()).uncertainty
    comparison = NormalDist().inv_cdf(0.975) * (0.001**2 + 0.01**2) ** 0.5
    assert u.edge == pytest.approx(0.001)
    assert (u.between_runs, u.between_runs_source) == (0.01, "assumed")
    assert u.comparison == pytest.approx(comparison)
    assert u.absolute == pytest.approx((0.095**2 + comparison**2) ** 0.5)


def test_carbon_needs_an_intensity(see: See) -> None:
    """Grams are kWh x intensity x PUE, by hand; without an intensity null with the variable to set."""
    assert record.build(see()).co2_estimate_g is None
    assert "LLEM_CARBON_INTENSITY" in record.build(see()).null_reasons["co2_estimate_g"]
    result = record.build(see(carbon_intensity_gco2_kwh=400.0, pue=1.5))
    assert result.co2_estimate_g == pytest.approx(4000 / 3.6e6 * 400 * 1.5)
    assert "co2_estimate_g" not in result.null_reasons


def _quantities() -> list[str]:
    kinds = {float | None, dict[str, float] | None}
    return [n for n, f in ExperimentResult.model_fields.items() if f.annotation in kinds]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="measured"),
        pytest.param({"baseline": Baseline(80.0, "bare", "fresh", NOW)}, id="with a baseline"),
        pytest.param({"energy": None, "source_name": None, "no_energy_reason": "none is"}, id="no source"),
        pytest.param({"energy": EnergyRecord(windows={"window": ()})}, id="no GPU"),
        pytest.param({"energy": _energy(None)}, id="counter gave nothing"),
        pytest.param({"memory_peak_mb": None, "facts": ModelFacts(None, None)}, id="nothing known of the model"),
        pytest.param({"carbon_intensity_gco2_kwh": 1.0}, id="everything"),
    ],
)
def test_every_null_quantity_has_a_reason_and_no_other(changes: dict[str, Any], see: See) -> None:
    """For every plain quantity of the result: null exactly if null_reasons says why."""
    result = record.build(see(**changes))
    nulls = {n for n in _quantities() if getattr(result, n) is None}
    assert set(result.null_reasons) == nulls
    assert all(result.null_reasons.values())
    assert len(_quantities()) > 12


@pytest.mark.parametrize(
    ("bits", "flag"),
    [
        (SW_POWER_CAP, "sw_power_cap"),
        (HW_SLOWDOWN, "hw_slowdown"),
        (SW_THERMAL, "sw_thermal"),
        (HW_THERMAL, "hw_thermal"),
        (POWER_BRAKE, "power_brake"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_each_event_bit_sets_its_own_flag(bits: int, flag: str, see: See) -> None:
    """One bit, one flag; only a power cap is normal operation and not throttling."""
    readings = tuple(_reading(START_S + i, bits) for i in range(20))
    thermal = record.build(see(energy=_energy(4000.0, readings=readings))).thermal
    flags = ("sw_power_cap", "hw_slowdown", "sw_thermal", "hw_thermal", "power_brake")
    assert {f for f in flags if getattr(thermal, f)} == {flag}
    throttled = flag != "sw_power_cap"
    assert thermal.detected is throttled
    assert thermal.throttle_duration_s == (LENGTH_S if throttled else 0.0)


@pytest.mark.parametrize("bits", [0x1, 0x2, 0x10, 0x100], ids=["idle", "app clocks", "sync boost", "display"])
def test_other_event_bits_are_no_throttling(bits: int, see: See) -> None:
    """Idle, application clocks, sync boost and display settings set no flag."""
    readings = tuple(_reading(START_S + i, bits) for i in range(20))
    thermal = record.build(see(energy=_energy(4000.0, readings=readings))).thermal
    assert not any(
        (thermal.detected, thermal.sw_power_cap, thermal.hw_slowdown, thermal.sw_thermal, thermal.hw_thermal)
    )


@pytest.mark.parametrize(
    ("throttled", "state", "warned"),
    [
        pytest.param(0, "valid", False, id="never"),
        pytest.param(1, "valid", True, id="5 % of the readings"),
        pytest.param(2, "invalid", False, id="10 %"),
        pytest.param(20, "invalid", False, id="always"),
    ],
)
def test_throttling_above_five_per_cent_is_invalid(throttled: int, state: str, warned: bool, see: See) -> None:
    """Up to 5 % of the window a warning with the share, above it the verdict."""
    readings = tuple(_reading(START_S + i, HW_THERMAL if i < throttled else 0) for i in range(20))
    result = record.build(see(energy=_energy(4000.0, readings=readings)))
    assert result.verdict.state == state
    assert ("throttled" in [r.code for r in result.verdict.reasons]) is (state == "invalid")
    assert any(w.startswith("throttled:") for w in result.measurement_warnings) is warned
    assert result.thermal.throttle_duration_s == pytest.approx(throttled / 20 * LENGTH_S)


def test_throttling_outside_the_window_does_not_count(see: See) -> None:
    """Heat before and after the window is not the window's, and neither are its temperatures."""
    readings = (
        _reading(START_S - 1, HW_THERMAL, temperature_c=95.0),
        _reading(START_S + 1, 0, temperature_c=60.0),
        _reading(START_S + 2, 0, temperature_c=64.0),
        _reading(START_S + LENGTH_S + 1, HW_THERMAL, temperature_c=96.0),
    )
    thermal = record.build(see(energy=_energy(4000.0, readings=readings))).thermal
    assert (thermal.detected, thermal.max_temperature_c) == (False, 64.0)


def test_without_a_sensor_throttling_is_unknown_not_absent(see: See) -> None:
    """No reading of event reasons: every flag is None."""
    thermal = record.build(see(energy=_energy(4000.0, readings=(_reading(START_S + 1, None),)))).thermal
    assert set(thermal.model_dump().values()) == {None}


def _series(watts: float) -> EnergySeries:
    times = [START_S - 5 + 0.1 * i for i in range(300)]
    return EnergySeries(tuple(Tick(t - 0.005, t, watts * (t - START_S)) for t in times))


def test_an_independent_source_is_cross_checked(see: See) -> None:
    """Zeus's windows against our own ticks: the ratio of the two, by hand 210 W x 20 s over 4000 J."""
    checked = record.build(see(energy=_energy(4000.0, series={A: _series(210.0)}, independent=True)))
    assert checked.cross_check is not None
    assert checked.cross_check.ratio == pytest.approx(1.05, rel=1e-3)
    assert record.build(see(energy=_energy(4000.0, series={A: _series(210.0)}))).cross_check is None


def test_an_estimate_is_labelled(see: See) -> None:
    """A source that models instead of counting gives the verdict estimated, and its warnings are kept."""
    result = record.build(see(source_kind="estimate", energy=_energy(4000.0, warnings=("codecarbon_estimate: x",))))
    assert result.verdict.state == "estimated"
    assert "codecarbon_estimate: x" in result.measurement_warnings
    assert result.reproducibility_notes == []


def test_host_energy_is_never_added(see: See) -> None:
    """The host's joules stand beside the GPU's."""
    result = record.build(see(energy=_energy(4000.0, host_energy_j=777.0)))
    assert (result.energy_total_j, result.host_energy_j) == (4000.0, 777.0)


@pytest.mark.parametrize(
    ("reason", "state", "code"),
    [
        pytest.param("counter_reset: the energy counter went back", "invalid", "counter_reset", id="reset"),
        pytest.param("sample_gap: ticks are missing", "invalid", "sample_gap", id="gap"),
        pytest.param("counter_constant: did not move", "unmeasured", "no_energy", id="constant"),
        pytest.param("in MIG mode", "unmeasured", "no_energy", id="MIG"),
    ],
)
def test_missing_joules_are_judged_by_their_reason(reason: str, state: str, code: str, see: See) -> None:
    """A disturbed sensor is invalid, an absent one unmeasured; never 0 J either way."""
    energy = EnergyRecord(windows={"window": (DeviceEnergy(A, None, reason=reason),)})
    result = record.build(see(energy=energy))
    assert (result.verdict.state, result.verdict.reasons[0].code) == (state, code)
    assert result.verdict.reasons[0].fix
    assert result.energy_total_j is None
    assert reason in result.null_reasons["energy_per_output_token_j"]


@pytest.mark.parametrize(
    ("length_s", "state", "code"),
    [(4.9, "invalid", "window_too_short"), (5.1, "valid", "short_window"), (10.1, "valid", None)],
)
def test_short_windows_are_refused_or_warned_about(length_s: float, state: str, code: str | None, see: See) -> None:
    """Below 5 s invalid, below 10 s a warning."""
    result = record.build(see(window=Window("window", START_S, START_S + length_s)))
    assert result.verdict.state == state
    codes = [r.code for r in result.verdict.reasons] + [w.partition(":")[0] for w in result.measurement_warnings]
    assert codes == ([code] if code else [])


@pytest.mark.parametrize(
    ("relative", "state", "code"),
    [(0.001, "valid", None), (0.012, "valid", "imprecise"), (0.03, "invalid", "imprecise")],
    ids=["precise", "above 2 %", "above 5 %"],
)
def test_imprecision_is_warned_about_or_refused(relative: float, state: str, code: str | None, see: See) -> None:
    """U_cmp above 2 % is a warning, above 5 % invalid."""
    energy = EnergyRecord(windows={"window": (DeviceEnergy(A, 4000.0, relative * 4000.0),)})
    result = record.build(see(energy=energy))
    assert result.verdict.state == state
    codes = [r.code for r in result.verdict.reasons] + [w.partition(":")[0] for w in result.measurement_warnings]
    assert codes == ([code] if code else [])


@pytest.mark.parametrize(
    ("real", "kind", "flag"), [(True, "counter", False), (False, "counter", True), (True, "simulated", True)]
)
def test_pretended_numbers_are_flagged(real: bool, kind: str, flag: bool, see: See) -> None:
    """A pretended engine or a pretended counter makes the result synthetic."""
    assert record.build(see(real_engine=real, source_kind=kind)).synthetic is flag


def test_a_counter_comes_with_its_notes_on_accuracy(see: See) -> None:
    """±5 W and ±10 % are said where a real counter was read."""
    notes = " ".join(record.build(see()).reproducibility_notes)
    assert "±5 W" in notes
    assert "±10 %" in notes


def test_work_of_the_window_is_counted(see: See) -> None:
    """FLOPs by hand: 2 x (1000 - 300) weights x 80 tokens."""
    flops = record.build(see()).flops
    assert flops is not None
    assert flops.value == 2 * 700 * 80


def test_a_result_survives_a_round_trip(see: See, tmp_path: Path) -> None:
    """JSON text and file give back an equal object; the Parquet row has the same scalars."""
    import pyarrow.parquet as pq

    result = record.build(see(baseline=Baseline(80.0, "context", "fresh", NOW), carbon_intensity_gco2_kwh=10.0))
    path = tmp_path / "result.json"
    path.write_text(result.to_json(), encoding="utf-8")
    assert ExperimentResult.from_json(result.to_json()) == ExperimentResult.from_json(path) == result
    result.to_parquet(tmp_path / "result.parquet")
    (row,) = pq.read_table(tmp_path / "result.parquet").to_pylist()
    assert row["energy_per_output_token_j"] == 200.0
    assert row["verdict.state"] == "valid"


def test_how_the_window_was_fed_is_told(see: See) -> None:
    """Running requests, preemptions and imbalance as observed; too few running and too unequal work are warnings."""
    fed = Work(concurrency=8, mean_running=7.0, preemptions=2, imbalance=0.05, itl_s=0.03)
    result = record.build(see(work=fed))
    assert result.work.model_dump() == {
        "concurrency": 8, "mean_running": 7.0, "preemptions": 2, "imbalance": 0.05, "itl_s": 0.03,
    }  # fmt: skip
    codes = {w.partition(":")[0] for w in result.measurement_warnings}
    assert codes >= {"below_concurrency", "work_imbalance"}
    assert result.uncertainty.work == pytest.approx(0.3 * 0.05 / 3**0.5)
    assert result.uncertainty.tokens == pytest.approx(0.03 / (LENGTH_S * 6**0.5))


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        pytest.param({"suspended_s": 1.0}, "suspended", id="the machine slept"),
        pytest.param({"constant_prompts": True}, "unrealistic_values", id="constant prompts"),
        pytest.param({"engine_effective": {"load_format": "dummy"}}, "unrealistic_values", id="dummy weights"),
    ],
)
def test_what_spoils_a_window_besides_its_sensor(changes: dict[str, Any], code: str, see: See) -> None:
    """Invalid, with one reason."""
    result = record.build(see(**changes))
    assert [r.code for r in result.verdict.reasons] == [code]


def test_dummy_weights_may_be_allowed(see: See) -> None:
    """Whoever asks for them has them, and the result says what the configuration was."""
    seen = see(engine_effective={"load_format": "dummy"}, fields={"measurement": {"allow_dummy": True}})
    assert record.build(seen).verdict.state == "valid"


def test_a_warning_of_the_run_is_not_said_twice(see: See) -> None:
    """Pre-flight has told of persistence mode already: its words stay, the table's are left out."""
    gpus = {"gpus": [{"uuid": A, "persistence_mode": False}]}
    told = [w for w in record.build(see(environment=gpus)).measurement_warnings if w.startswith("persistence_off")]
    assert len(told) == 1
    earlier = "persistence_off: said before; do something"
    result = record.build(see(environment=gpus, warnings=[earlier]))
    assert [w for w in result.measurement_warnings if w.startswith("persistence_off")] == [earlier]


def test_idle_of_the_loaded_engine_comes_from_a_quiet_guard(see: See) -> None:
    """From the guard before a quiet window, whoever cut it; a loaded edge has no idle, which is null with a reason."""
    result = record.build(see(energy=_guards(130.0)))
    assert result.loaded_idle_power_w == 130.0
    assert "loaded_idle_power_w" not in result.null_reasons
    result = record.build(see(energy=_guards(None)))
    assert result.loaded_idle_power_w is None
    assert result.null_reasons["loaded_idle_power_w"] == "no quiet guard before the window"


def test_a_guard_after_the_window_that_is_not_quiet_takes_nothing_from_the_one_before(see: See) -> None:
    """Only the end was interpolated: the power before the window is known all the same."""
    (part,) = _guards(130.0).windows["window"]
    energy = EnergyRecord({"window": (replace(part, edges="interpolated", power_after_w=None),)})
    assert record.build(see(energy=energy)).loaded_idle_power_w == 130.0


def test_idle_of_some_gpus_is_not_that_of_all(see: See) -> None:
    """Two GPUs add up; where one has no quiet guard there is no sum, and the reason names it."""
    assert record.build(see(energy=_guards(130.0, 120.0))).loaded_idle_power_w == 250.0
    result = record.build(see(energy=_guards(130.0, None)))
    assert result.loaded_idle_power_w is None
    assert result.null_reasons["loaded_idle_power_w"] == "no quiet guard before the window on GPU-b"


def test_a_known_spread_between_runs_takes_the_place_of_the_assumed_one(see: See) -> None:
    """0.3 % with 12 degrees of freedom, as studies on this GPU have found."""
    u = record.build(see(spread=Spread(0.003, 12.0))).uncertainty
    assert (u.between_runs, u.between_runs_source, u.between_runs_degrees_of_freedom) == (0.003, "measured", 12.0)


def test_a_calibration_that_names_another_gpu_is_said(see: See) -> None:
    """Nothing is corrected, and nobody believes that it was."""
    known = read(f'{{"{B}": {{"gain": 1.05, "a": 0.01}}}}', source="cal.json")
    result = record.build(see(calibration=known))
    assert result.energy_total_j == 4000.0
    assert result.energy_uncalibrated_j is None
    assert any(w.startswith("not_calibrated:") for w in result.measurement_warnings)
    assert result.uncertainty.gain_limit == 0.1
