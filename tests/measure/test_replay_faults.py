"""Every fault that a recording can show, planted into runs recorded on an H100: its code, its warning, and no other.

The scripted GPUs of test_faults_of_gpus.py play the same faults to the real recorder, in short and even windows; here
is the noise of a real board, in windows of full length.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest

from fakes.nvml_script import HW_SLOWDOWN, HW_THERMAL, POWER_BRAKE, SW_POWER_CAP, SW_THERMAL
from fakes.recorded_run import (
    NAMES,
    Fault,
    RecordedRun,
    more_power,
    occupants,
    readings,
    recorded,
    scaled,
    throttle,
    ticks,
)
from llenergymeasure import record, recording, replay
from llenergymeasure.core.contracts import DeviceEnergy, EnergyRecord, Occupants, Reading, Window, Work
from llenergymeasure.core.result import ExperimentResult

Plant = Callable[[RecordedRun], Fault]
STRANGER = 90777
KNOWN = {"random_weights"}


@pytest.fixture(params=NAMES)
def run(request: pytest.FixtureRequest) -> RecordedRun:
    """Each of the recorded runs; clean ones."""
    return recorded(request.param)


def codes(result: ExperimentResult) -> tuple[set[str], set[str]]:
    """Codes of the verdict's reasons, and of warnings."""
    told = {w.partition(":")[0] for w in result.measurement_warnings} - KNOWN
    return {r.code for r in result.verdict.reasons}, told


def test_the_recorded_runs_are_clean(run: RecordedRun) -> None:
    """Without a fault there is no reason and no warning."""
    assert codes(run.judged()) == (set(), set())


# Slow-downs.


def slowed(cause: str, share: float) -> Plant:
    """The driver's counter of a cause grows by a share of the window, evenly inside it."""

    def plant(run: RecordedRun) -> Fault:
        def grown_ns(t_s: float) -> int:
            return int(1e9 * share * min(max(t_s, 0.0), run.window_s))

        return throttle(lambda look: replace(look, **{cause: (getattr(look, cause) or 0) + grown_ns(look.t_s)}))

    return plant


@pytest.mark.parametrize("cause", ["sw_thermal_ns", "hw_thermal_ns", "power_brake_ns"])
@pytest.mark.parametrize(
    ("share", "reasons", "warned"),
    [pytest.param(0.02, set(), {"throttled"}, id="2 %"), pytest.param(0.08, {"throttled"}, set(), id="8 %")],
)
def test_counters_of_slow_downs_that_grow(
    cause: str, share: float, reasons: set[str], warned: set[str], run: RecordedRun
) -> None:
    """Heat and the power brake: a warning with its share up to 5 % of the window, invalid above."""
    result = run.judged(slowed(cause, share)(run))
    assert codes(result) == (reasons, warned)
    assert result.conditions.throttled_share == pytest.approx(share, rel=0.15)  # read once a second
    assert result.conditions.throttled_from == "counters"
    assert getattr(result.thermal, cause.removesuffix("_ns")) is True, "though no reading shows it"
    if warned:
        assert (
            f"{100 * (result.conditions.throttled_share or 0):.1f} % of the window" in result.measurement_warnings[-1]
        )


def events(bit: int, share: float) -> Plant:
    """The driver counts no time; a bit shows in a share of the window's readings."""

    def plant(run: RecordedRun) -> Fault:
        shown = readings(
            lambda r: (
                replace(r, throttle_reasons=(r.throttle_reasons or 0) | bit)
                if 1.0 <= r.t_s <= 1.0 + share * run.window_s
                else r
            )
        )
        return lambda found: replace(shown(found), throttle=())

    return plant


@pytest.mark.parametrize("bit", [SW_THERMAL, HW_THERMAL, HW_SLOWDOWN, POWER_BRAKE], ids=lambda b: f"{b:#x}")
@pytest.mark.parametrize(
    ("share", "reasons", "warned"),
    [pytest.param(0.03, set(), {"throttled"}, id="3 %"), pytest.param(0.10, {"throttled"}, set(), id="10 %")],
)
def test_event_reasons_stand_in_for_counters(
    bit: int, share: float, reasons: set[str], warned: set[str], run: RecordedRun
) -> None:
    """Where the driver counts no time, the share of readings that show the bit is taken."""
    result = run.judged(events(bit, share)(run))
    assert codes(result) == (reasons, warned)
    assert result.conditions.throttled_from == "event reasons"
    assert result.conditions.throttled_share == pytest.approx(share, abs=0.012)


def test_a_hardware_slow_down_that_no_counter_tells_is_added(run: RecordedRun) -> None:
    """The driver counts no time for it, so its bit counts beside the counters."""
    shown = readings(lambda r: replace(r, throttle_reasons=HW_SLOWDOWN) if 1 <= r.t_s <= 3 else r)
    assert codes(run.judged(shown)) == ({"throttled"}, set())


def test_a_power_cap_all_of_the_time_is_a_condition(run: RecordedRun) -> None:
    """Share and limit are on record; the verdict stays valid, and nobody is warned."""
    capped = throttle(lambda look: replace(look, sw_power_cap_ns=int(1e9 * (look.t_s + 1000))))
    result = run.judged(capped, readings(lambda r: replace(r, throttle_reasons=SW_POWER_CAP)))
    assert result.verdict.state == "valid"
    assert codes(result) == (set(), set())
    assert result.conditions.power_cap_share == pytest.approx(1.0, abs=1e-6)
    assert result.conditions.power_limit_w == 700.0
    assert result.thermal.sw_power_cap is True
    assert result.thermal.detected is False


# The counter.


def without(first_s: float, last_s: float) -> Fault:
    """The ticks of an interval were not seen."""
    return ticks(lambda t: None if first_s <= t.t_s <= last_s else t)


def after(t_s: float, joules: float) -> Fault:
    """The counter shows so much more from an instant on."""
    return ticks(lambda t: replace(t, joules=t.joules + joules) if t.t_s > t_s else t)


def test_a_counter_that_goes_back(run: RecordedRun) -> None:
    """Invalid and no joules, which have their reason."""
    result = run.judged(after(6.0, -3000.0))
    assert codes(result) == ({"counter_reset"}, set())
    assert result.energy_total_j is None
    assert result.energy_per_output_token_j is None
    assert "counter_reset" in result.null_reasons["energy_total_j"]
    assert result.tokens_per_second == pytest.approx(run.result.tokens_per_second)


def test_a_counter_that_jumps(run: RecordedRun) -> None:
    """100 J more from one tick to the next are 1000 W: above 1.3 times the limit of 700 W."""
    result = run.judged(after(run.window_s - 1.0, 100.0))
    assert "counter_jump" in codes(result)[0]
    assert codes(result)[0] <= {"counter_jump", "power_drift"}  # 100 J in the last third are 5 % of it, too


@pytest.mark.parametrize(
    ("where", "from_end"),
    [(-0.05, False), (5.5, False), (0.05, True)],
    ids=["before the start", "where ticks are a second apart", "after the end"],
)
def test_a_counter_that_jumps_where_ticks_are_rare_or_the_engine_waits(
    where: float, from_end: bool, run: RecordedRun
) -> None:
    """150 J are 3 % of such a window; the buffer of samples and the edges' own ticks show them."""
    result = run.judged(after(where + (run.window_s if from_end else 0.0), 150.0))
    assert "counter_jump" in codes(result)[0]


def test_a_window_of_two_batches_says_that_its_drift_is_unknown(run: RecordedRun) -> None:
    """Beside that nothing: what the batches of the recording are put together to draws no alarm of its own."""
    seen = replay.observed(run.result, run.raw)
    half = len(seen.generations) // 2
    two = [replace(seen.generations[0], start_s=0.0003), seen.generations[half]]
    result = record.build(replace(seen, generations=two))
    assert codes(result)[1] == {"drift_unknown"}
    assert codes(result)[0] == set()
    assert result.conditions.power_drift is None
    assert result.conditions.clock_drift == pytest.approx(0.0, abs=0.03)
    assert result.conditions.temperature_change_c is not None


def test_a_counter_that_stands_still(run: RecordedRun) -> None:
    """From before the window on: no joules, never 0 J."""
    (series,) = recording.from_json(run.raw).series.values()
    last_j = max(t.joules for t in series.ticks if t.t_s < -2)
    result = run.judged(ticks(lambda t: replace(t, joules=min(t.joules, last_j))))
    assert result.verdict.state == "unmeasured"
    assert result.energy_total_j is None
    assert "counter_constant" in result.null_reasons["energy_total_j"]


def test_a_mig_slice_stays_unmeasured(run: RecordedRun) -> None:
    """It has no ticks, and its window the reason."""

    def sliced(found: EnergyRecord) -> EnergyRecord:
        parts = tuple(DeviceEnergy(d.gpu_uuid, None, reason="the GPU is in MIG mode") for d in found.windows["window"])
        return replace(found, windows={"window": parts}, series={}, samples={}, readings=(), throttle=())

    result = run.judged(sliced)
    assert result.verdict.state == "unmeasured"
    assert "MIG" in result.null_reasons["energy_total_j"]
    assert result.conditions.power_drift is None


@pytest.mark.parametrize(
    ("where", "from_end"),
    [(-0.35, False), (-0.1, False), (0.3, False), (-0.3, True), (0.1, True), (0.35, True)],
    ids=["before the start", "at the start", "after the start", "before the end", "at the end", "after the end"],
)
def test_a_tick_that_is_missing_near_an_edge(where: float, from_end: bool, run: RecordedRun) -> None:
    """Within five ticks of an edge, on either side: invalid, no joules."""
    t_s = where + (run.window_s if from_end else 0.0)
    result = run.judged(without(t_s - 0.06, t_s + 0.06))
    assert codes(result) == ({"sample_gap"}, set())
    assert result.energy_total_j is None


def test_ticks_that_are_missing_far_inside(run: RecordedRun) -> None:
    """Five in a row more than five ticks from the edge: a warning, and the very same joules."""
    result = run.judged(without(run.window_s - 1.35, run.window_s - 0.88))
    assert codes(result) == (set(), {"interior_gap"})
    assert result.energy_total_j == run.judged().energy_total_j


@pytest.mark.parametrize(
    ("sensors", "reasons", "warned"),
    [
        pytest.param({"buffer": 1.01}, set(), set(), id="sample buffer 1 %"),
        pytest.param({"buffer": 1.045}, set(), {"cross_check"}, id="sample buffer 4.5 %"),
        pytest.param({"buffer": 1.08}, {"cross_check"}, set(), id="sample buffer 8 %"),
        pytest.param({"average": 1.06}, set(), {"cross_check"}, id="average power 6 %"),
        pytest.param({"average": 1.10}, {"cross_check"}, set(), id="average power 10 %"),
        pytest.param({"counter": 1.03}, set(), {"cross_check"}, id="counter 3 %"),
        pytest.param({"counter": 0.90}, {"cross_check"}, set(), id="counter -10 %"),
    ],
)
def test_sensors_that_contradict_each_other(
    sensors: dict[str, float], reasons: set[str], warned: set[str], run: RecordedRun
) -> None:
    """2 % beyond what the steps at the window's ends allow (1.6 % here) is a warning, 5 % invalid."""
    result = run.judged(scaled(**sensors))
    assert codes(result) == (reasons, warned)
    assert result.cross_check is not None
    assert result.cross_check.allowance == pytest.approx(0.0165, abs=0.002)


# Who else was there.


def with_pid(list_name: str, pid: int, of_gpu: Callable[[Occupants], bool] = lambda _look: True) -> Fault:
    """A process in one of the driver's lists."""
    return occupants(
        lambda look: replace(look, **{list_name: (*(getattr(look, list_name) or ()), pid)}) if of_gpu(look) else look
    )


@pytest.mark.parametrize("list_name", ["busy_pids", "compute_pids"])
@pytest.mark.parametrize("since_s", [-1000.0, 4.0], ids=["always", "from the fourth second on"])
def test_a_foreign_process(list_name: str, since_s: float, run: RecordedRun) -> None:
    """Busy or listed as computing: invalid, with its id."""
    result = run.judged(with_pid(list_name, STRANGER, lambda look: look.t_s >= since_s))
    assert codes(result) == ({"gpu_shared"}, set())
    assert result.occupancy.foreign_pids == [STRANGER]
    assert str(STRANGER) in result.verdict.reasons[0].sentence


def test_a_process_that_only_draws(run: RecordedRun) -> None:
    """A warning that names it."""
    result = run.judged(with_pid("graphics_pids", STRANGER))
    assert codes(result) == (set(), {"display_attached"})
    assert result.occupancy.display_pids == [STRANGER]


def test_a_display_that_is_busy(run: RecordedRun) -> None:
    """One that keeps the idle GPU at 8 % is no mere display."""
    load_s = run.raw["run"]["origin_s"] + run.result.phases["load"].start_s
    busy = readings(lambda r: replace(r, sm_utilisation_pct=8.0) if r.t_s < load_s else r)
    assert codes(run.judged(with_pid("graphics_pids", STRANGER), busy)) == ({"gpu_shared"}, set())


# What drifts.


def ramp(share: float) -> Plant:
    """Power that rises through the window by a share of its mean, which it leaves as it was."""

    def plant(run: RecordedRun) -> Fault:
        length_s, mean_w = run.window_s, run.result.mean_power_w or 0.0

        def extra_w(t_s: float) -> float:
            return share * mean_w * (t_s / length_s - 0.5) if 0 <= t_s <= length_s else 0.0

        def extra_j(t_s: float) -> float:
            t_s = min(max(t_s, 0.0), length_s)
            return share * mean_w * t_s * (t_s / length_s - 1) / 2

        return more_power(extra_w, extra_j)

    return plant


@pytest.mark.parametrize(
    ("share", "reasons", "warned"),
    [pytest.param(0.045, set(), {"power_drift"}, id="3 %"), pytest.param(0.15, {"power_drift"}, set(), id="10 %")],
)
def test_power_that_drifts(share: float, reasons: set[str], warned: set[str], run: RecordedRun) -> None:
    """Last third against the first: above 2 % a warning, above 5 % invalid; the joules are what they were."""
    result = run.judged(ramp(share)(run))
    assert codes(result) == (reasons, warned)
    drift = run.judged().conditions.power_drift or 0.0
    assert (result.conditions.power_drift or 0.0) - drift == pytest.approx(2 / 3 * share, rel=0.1)
    assert result.energy_total_j == pytest.approx(run.judged().energy_total_j, rel=2e-3)


def test_clocks_that_drift(run: RecordedRun) -> None:
    """4 % lower in the last third: a warning."""

    def fallen(reading: Reading) -> Reading:
        late = reading.t_s > run.window_s / 2 and reading.sm_clock_mhz is not None
        return replace(reading, sm_clock_mhz=0.96 * (reading.sm_clock_mhz or 0)) if late else reading

    result = run.judged(readings(fallen))
    assert codes(result) == (set(), {"clock_drift"})
    assert result.conditions.clock_drift == pytest.approx(-0.04, abs=0.005)


def test_a_temperature_that_drifts(run: RecordedRun) -> None:
    """18 °C more in the second half: a warning."""

    def warmer(reading: Reading) -> Reading:
        late = reading.t_s > run.window_s / 2 and reading.temperature_c is not None
        return replace(reading, temperature_c=(reading.temperature_c or 0) + 18) if late else reading

    assert codes(run.judged(readings(warmer))) == (set(), {"temperature_drift"})


def test_a_machine_that_slept(run: RecordedRun) -> None:
    """Half a second and more inside the window: invalid."""
    assert codes(run.judged(suspended_s=0.6)) == ({"suspended"}, set())


# The window.


def shorter(run: RecordedRun, start_s: float, end_s: float) -> ExperimentResult:
    """Another window of the same recording, in which the load runs on across both edges."""
    seen, window = replay.observed(run.result, run.raw), Window("window", start_s, end_s)
    assert seen.energy is not None
    return record.build(
        replace(
            seen,
            window=window,
            energy=replay.cut(seen.energy, window, "loaded"),
            work=Work("saturated", edges="loaded"),
        )
    )


@pytest.mark.parametrize(
    ("length_s", "reasons", "warned"),
    [
        pytest.param(11.0, set(), set(), id="11 s"),
        pytest.param(9.0, set(), {"short_window"}, id="9 s"),
        pytest.param(4.5, {"window_too_short"}, set(), id="4.5 s"),
    ],
)
def test_windows_that_are_too_short(length_s: float, reasons: set[str], warned: set[str], run: RecordedRun) -> None:
    """Cut out of the settling before the window, which is the same work: below 10 s a warning, below 5 s invalid.

    Such a cut goes through batches, so its thirds differ, and its edges are less sure: beside 1 % that is assumed between
    runs, 0.2 % make a comparison imprecise.
    """
    result = shorter(run, -2.0 - length_s, -2.0)
    assert codes(result)[0] == reasons
    assert warned <= codes(result)[1] <= warned | {"power_drift", "imprecise"}
    assert {s.edges for s in (result.sensors or {}).values()} == {"loaded"}
    assert result.mean_power_w == pytest.approx(run.result.mean_power_w, rel=0.05)
