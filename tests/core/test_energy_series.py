"""Joules from the ticks of a counter, against pretended counters whose true energy is known in closed form."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.ticks import Energy, constant, ramp, recorded, sine, step, without
from llenergymeasure.core.contracts import DeviceEnergy, Edges
from llenergymeasure.core.energy_series import EnergySeries, Tick, device_energy, total
from llenergymeasure.core.errors import MeasurementError


def joules(series: EnergySeries, start_s: float, end_s: float) -> tuple[float, float]:
    found = series.between(start_s, end_s)
    assert found.value is not None, found.reason
    assert found.std_uncertainty is not None
    assert found.reason is None
    return found.value, found.std_uncertainty


@given(
    power_w=st.floats(1, 1000),
    start_s=st.floats(0, 5),
    length_s=st.floats(5, 60),
    period_s=st.floats(0.02, 0.5),
    phase=st.floats(0, 0.99),
)
@settings(max_examples=60, deadline=None)
def test_constant_load_is_exact(power_w: float, start_s: float, length_s: float, period_s: float, phase: float) -> None:
    """Under constant power the interpolation is exact, wherever the edges fall between the ticks."""
    series = recorded(constant(power_w), period_s=period_s, phase=phase)
    value, _ = joules(series, start_s, start_s + length_s)
    assert value == pytest.approx(power_w * length_s, rel=1e-9)


# Loads and the largest mean error over all tick phases: 0.005 % (measurement.md §7); a load that swings by half its
# power within a few ticks of the edge bends what is interpolated there, which the uncertainty has to cover.
LOADS = [
    ("constant", constant(300), 5e-5),
    ("step-in-the-window", step(20.0, 120, 600), 5e-5),
    ("slow-sine", sine(400, 100, 13.7), 5e-5),
    ("ramp", ramp(300, 2), 5e-5),
    ("fast-sine", sine(400, 200, 0.73), 1e-4),
]


@pytest.mark.parametrize(("energy", "bias"), [load[1:] for load in LOADS], ids=[load[0] for load in LOADS])
def test_known_truth_lies_within_the_stated_uncertainty(energy: Energy, bias: float) -> None:
    """Over 64 tick phases with noisy readings the mean is right and three standard uncertainties are enough."""
    start_s, end_s = 3.0, 63.037  # no multiple of the tick period
    truth = energy(end_s) - energy(start_s)
    ratios, errors = [], []
    for i in range(64):
        series = recorded(energy, phase=i / 64, poll_s=0.005, jitter_s=0.002, seed=i)
        value, u = joules(series, start_s, end_s)
        ratios.append((value - truth) / u)
        errors.append((value - truth) / truth)
    assert max(map(abs, ratios)) <= 3
    assert sum(abs(r) <= 2 for r in ratios) >= 58  # at least 90 %
    assert abs(sum(errors)) / 64 <= bias
    assert max(map(abs, errors)) <= 2e-4  # measurement.md §7: never more than 0.02 %
    assert max(map(abs, ratios)) >= 0.3  # the statement is not merely huge


def test_counter_that_lags_the_load_costs_less_than_two_hundredths_of_a_percent() -> None:
    """Every tick shows the energy of up to 30 ms ago: over a minute at constant load nothing is lost."""
    for lag_s in (0.0, 0.012, 0.030):
        series = recorded(lambda t, lag_s=lag_s: 300 * (t - lag_s), phase=0.37)
        value, _ = joules(series, 3.0, 63.037)
        assert value == pytest.approx(300 * 60.037, rel=2e-4)


def test_adjacent_windows_add_up() -> None:
    """Energy is conserved: two windows that touch have the energy of the one they make."""
    series = recorded(sine(400, 200, 0.73), poll_s=0.005, jitter_s=0.002)
    first, second, whole = (joules(series, *w)[0] for w in ((2.0, 17.777), (17.777, 50.0), (2.0, 50.0)))
    assert first + second == pytest.approx(whole, rel=1e-12)


# The formula, by hand (measurement.md §2, loaded edges).


def by_hand(period_s: float, step0_w: float, step1_w: float, mean_w: float, width_s: float, jitter_s: float) -> float:
    """u = sqrt(tau^2 (dP0^2 + dP1^2) / 48 + 2 (P sigma_t)^2), sigma_t^2 = w^2 / 12 + jitter^2; in J."""
    sigma_t2 = width_s**2 / 12 + jitter_s**2
    return math.sqrt(period_s**2 * (step0_w**2 + step1_w**2) / 48 + 2 * mean_w**2 * sigma_t2)


def test_uncertainty_of_a_steady_load_is_that_of_the_instants() -> None:
    """Constant 300 W, readings 6 ms apart, jitter 4 ms: u = sqrt(2) * 300 W * sqrt(6^2/12 + 4^2) ms = 1.849 J."""
    ticks = [Tick(0.1 * i - 0.003, 0.1 * i + 0.003, 30.0 * i) for i in range(200)]
    _, u = joules(EnergySeries(tuple(ticks), jitter_s=0.004), 5.0, 15.0)
    assert u == pytest.approx(1.849, abs=0.001)
    assert u == pytest.approx(by_hand(0.1, 0, 0, 300, 0.006, 0.004), rel=1e-9)


def test_uncertainty_grows_with_a_change_of_power_at_the_edges() -> None:
    """100 W before and 400 W inside: each edge adds tau^2 dP^2 / 48 with dP = 300 W."""
    cumulative, ticks = 0.0, []
    for i in range(200):
        ticks.append(Tick(0.1 * i, 0.1 * i, cumulative))
        cumulative += (400 if 50 <= i < 150 else 100) * 0.1
    series = EnergySeries(tuple(ticks), jitter_s=0.0)
    value, u = joules(series, 5.05, 14.95)
    assert value == pytest.approx(400 * 9.9, rel=1e-9)
    assert u == pytest.approx(by_hand(0.1, 300, 300, 400, 0, 0), rel=1e-6)
    assert u == pytest.approx(math.sqrt(0.01 * (300**2 + 300**2) / 48), rel=1e-6)


def test_default_jitter_is_the_measured_one() -> None:
    """Where no self-test ran, the 4 ms of the H100 are assumed."""
    ticks = tuple(Tick(0.1 * i, 0.1 * i, 30.0 * i) for i in range(200))
    assert joules(EnergySeries(ticks), 5.0, 15.0)[1] == pytest.approx(math.sqrt(2) * 300 * 0.004, rel=1e-9)


# No number rather than a wrong one.


GOOD = recorded(constant(300))


def gone_back(series: EnergySeries, at_s: float) -> EnergySeries:
    ticks = (Tick(t.before_s, t.after_s, t.joules if t.t_s < at_s else t.joules - 1e4) for t in series.ticks)
    return EnergySeries(tuple(ticks), series.jitter_s)


REFUSED: list[tuple[str, EnergySeries, tuple[float, float], str]] = [
    ("no-ticks", EnergySeries(()), (0, 10), "0 ticks recorded"),
    ("two-ticks", EnergySeries(GOOD.ticks[:2]), (0, 10), "2 ticks recorded"),
    ("back", gone_back(GOOD, 30), (3, 60), "counter_reset"),
    ("back-outside", gone_back(GOOD, 65), (3, 60), "counter_reset"),
    ("constant", EnergySeries(tuple(Tick(0.1 * i, 0.1 * i, 500.0) for i in range(700))), (3, 60), "counter_constant"),
    ("gap-at-start", without(GOOD, 2.8, 3.3), (3, 60), "sample_gap"),
    ("gap-at-end", without(GOOD, 59.8, 60.3), (3, 60), "sample_gap"),
    ("starts-too-late", without(GOOD, -9, 4), (3, 60), "sample_gap"),
    ("ends-too-early", without(GOOD, 50, 99), (3, 60), "sample_gap"),
    ("too-short", GOOD.__class__(GOOD.ticks, jitter_s=0.01), (3, 3.2), "uncertainty"),
    ("stuck-clock", EnergySeries(tuple(Tick(1.0, 1.0, 1.0 * i) for i in range(9))), (0, 10), "ticks"),
]


@pytest.mark.parametrize(("series", "window", "reason"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_unusable_ticks_give_none_with_a_reason(series: EnergySeries, window: tuple[float, float], reason: str) -> None:
    """A missing, stuck or reset counter gives no joules, above all not zero joules, and says why."""
    found = series.between(*window)
    assert found.value is None
    assert found.std_uncertainty is None
    assert found.reason is not None
    assert reason in found.reason


def test_gap_inside_the_window_loses_nothing() -> None:
    """The counter is cumulative: ticks that were not read between the edges do not matter."""
    holed = without(GOOD, 20, 40)
    assert joules(holed, 3.0, 60.0)[0] == pytest.approx(300 * 57, rel=1e-9)


# One tick that is missing near an edge: (hole that holds one tick, whether joules are still given).
HOLES = [
    ("at-the-edge", (2.95, 3.05), False),
    ("five-before", (2.55, 2.65), False),
    ("five-after", (3.45, 3.55), False),
    ("six-before", (2.45, 2.55), True),
    ("six-after", (3.55, 3.65), True),
    ("before-the-end", (59.55, 59.65), False),
    ("after-the-end", (60.45, 60.55), False),
    ("far-inside", (30.05, 30.15), True),
]


@pytest.mark.parametrize(("hole", "given"), [h[1:] for h in HOLES], ids=[h[0] for h in HOLES])
def test_a_tick_missing_within_five_of_an_edge_takes_the_joules(hole: tuple[float, float], given: bool) -> None:
    """Near an edge a single tick that was not seen gives sample_gap, further away it costs nothing."""
    found = without(recorded(constant(300), phase=0.03), *hole).between(3.02, 60.02)
    assert (found.value is not None) == given
    assert given or (found.reason or "").startswith("sample_gap")


def test_a_tick_that_was_read_late_is_not_missing() -> None:
    """A reading that took 110 ms makes a tick's moment uncertain; it does not make a hole."""
    ticks = [Tick(0.1 * i - 0.003, 0.1 * i + 0.003, 30.0 * i) for i in range(200)]
    ticks[51] = Tick(5.097, 5.207, ticks[51].joules)  # truly at 5.1 s, seen at 5.2
    ticks[52] = Tick(5.207, 5.213, ticks[52].joules)
    found = EnergySeries(tuple(ticks)).between(5.03, 15.03)
    assert found.value == pytest.approx(3000, rel=5e-3)
    assert EnergySeries(tuple(ticks)).interior_gap_ticks(4, 16) == 0


def stalled(from_s: float, seconds: float) -> EnergySeries:
    """Ticks each 0.1 s, read within 6 ms but for a stall: the first reading after it shows the last tick of them."""
    ticks = [Tick(0.1 * i + 0.002, 0.1 * i + 0.008, 30.0 * i) for i in range(700)]
    inside = [t for t in ticks if from_s < t.after_s <= from_s + seconds]
    before = [t for t in ticks if t.after_s <= from_s]
    after = [t for t in ticks if t.after_s > from_s + seconds]
    swallowed = [Tick(from_s, from_s + seconds, inside[-1].joules)] if inside else []
    return EnergySeries((*before, *swallowed, *after))


STALLS = [
    ("in-the-guard", 2.75, 0.3, False),
    ("across-the-start", 2.95, 0.3, False),
    ("after-the-start", 3.25, 1.0, False),
    ("across-the-end", 59.5, 2.0, False),
    ("behind-the-end", 60.25, 0.3, False),
    ("one-tick-late", 2.95, 0.12, True),
    ("just-before-the-next", 2.95, 0.14, True),
    ("far-inside", 30.05, 2.0, True),
]


@pytest.mark.parametrize("edges", ["quiet", "loaded"])
@pytest.mark.parametrize(("from_s", "seconds", "given"), [s[1:] for s in STALLS], ids=[s[0] for s in STALLS])
def test_ticks_that_a_stall_swallowed_are_missing(from_s: float, seconds: float, given: bool, edges: Edges) -> None:
    """One wide tick stands for all of them: sample_gap near an edge; being late by less than a period is no fault."""
    found = stalled(from_s, seconds).between(3.02, 60.02, edges)
    assert (found.value is not None) == given
    assert given or (found.reason or "").startswith("sample_gap")


@pytest.mark.parametrize(("seconds", "missing"), [(0.12, 0), (0.21, 1), (0.4, 3), (2.0, 19)])
def test_swallowed_ticks_are_counted_as_a_gap_inside(seconds: float, missing: int) -> None:
    """A stall of two seconds hides 19 of its 20 ticks, wherever its one wide tick is taken to lie."""
    series = stalled(30.05, seconds)
    assert series.interior_gap_ticks(3, 60) == missing
    assert series.interior_gap_ticks(3, 29.9) == 0


def test_the_value_after_a_stall_is_that_of_its_last_tick() -> None:
    """It came within the last period; in the middle of the stall it would look as if more had been drawn before."""
    series = stalled(30.05, 2.0)
    assert series.times_s[301] == pytest.approx(32.0)
    assert max(p for _, p in series.powers(29, 33)) < 350


@pytest.mark.parametrize("window", [(5.0, 5.0), (6.0, 5.0)], ids=["empty", "reversed"])
def test_window_that_does_not_exist_is_an_error(window: tuple[float, float]) -> None:
    """A window of no length is a mistake of the program, not a measurement of zero."""
    with pytest.raises(MeasurementError, match="its end must lie after its start"):
        GOOD.between(*window)


def test_two_percent_is_the_limit_of_what_is_given() -> None:
    """Joules whose edges are uncertain by more than 2 % are withheld; just below they are given."""
    ticks = tuple(Tick(0.1 * i, 0.1 * i, 30.0 * i) for i in range(200))
    series = EnergySeries(ticks, jitter_s=0.01)  # u/E = sqrt(2) * 0.01 s / T, 2 % at T = 0.707 s
    assert series.between(5.0, 5.70).value is None
    assert series.between(5.0, 5.72).value is not None


def test_curve_reads_the_same_energy_without_judging() -> None:
    """For pictures: the interpolated joules, also where a window is too short to be judged; None outside."""
    assert GOOD.interpolated_j(3.0, 3.01) == pytest.approx(3.0, rel=1e-9)
    assert GOOD.interpolated_j(3.0, 999.0) is None


def test_period_is_the_median_distance_of_ticks() -> None:
    """A few missed ticks do not change the period; with fewer than three there is none."""
    assert GOOD.period_s == pytest.approx(0.1, rel=1e-9)
    assert without(GOOD, 10, 12).period_s == pytest.approx(0.1, rel=1e-9)
    assert EnergySeries(GOOD.ticks[:2]).period_s is None


def test_tick_lies_between_its_two_readings() -> None:
    """The moment of an update is estimated in the middle of what is known."""
    assert Tick(1.0, 1.5, 7.0).t_s == 1.25


# Sums over devices.


def test_total_adds_joules_and_adds_uncertainties_in_quadrature() -> None:
    """Two boards of 100 +- 3 J and 200 +- 4 J are 300 +- 5 J."""
    found = total([DeviceEnergy("a", 100.0, 3.0), DeviceEnergy("b", 200.0, 4.0)])
    assert (found.value, found.std_uncertainty) == (300.0, 5.0)


def test_total_with_an_unknown_device_is_unknown_and_names_it() -> None:
    """A board that was not measured does not make a smaller sum; no board makes no zero."""
    found = total([DeviceEnergy("a", 100.0, 3.0), DeviceEnergy("b", None, reason="sample_gap: x")])
    assert found.value is None
    assert found.reason == "b: sample_gap: x"
    assert total([]).value is None
    assert total([]).reason == "no device was measured"


def test_device_record_carries_value_uncertainty_and_reason() -> None:
    """What the series says is what the record of the device says."""
    good = device_energy("GPU-a", GOOD, 3.0, 60.0)
    assert (good.gpu_uuid, good.reason) == ("GPU-a", None)
    assert good.joules == pytest.approx(300 * 57, rel=1e-9)
    bad = device_energy("GPU-a", EnergySeries(()), 3.0, 60.0)
    assert (bad.joules, bad.std_uncertainty_j) == (None, None)
    assert bad.reason is not None


# What others ask of a series.


def test_largest_hole_inside_is_counted_in_ticks() -> None:
    """Of several holes the largest one counts, and only inside the window."""
    holed = without(without(recorded(constant(300), phase=0.5), 20.0, 20.35), 40.0, 41.0)
    assert holed.interior_gap_ticks(10, 30) == 3
    assert holed.interior_gap_ticks(10, 50) == 10
    assert holed.interior_gap_ticks(21, 39) == 0
    assert EnergySeries(()).interior_gap_ticks(0, 1) == 0


def test_powers_are_those_of_whole_intervals_inside() -> None:
    """Middle and mean power of each interval between ticks that lies wholly in the window."""
    series = recorded(ramp(0, 10), phase=0.0)
    found = series.powers(9.95, 10.35)
    assert [m for m, _ in found] == pytest.approx([10.05, 10.15, 10.25])
    assert [p for _, p in found] == pytest.approx([100.5, 101.5, 102.5])
    assert series.powers(999, 1000) == []


def test_mean_power_interpolates_and_is_none_outside() -> None:
    """Joules per second of an interval; None where nothing was recorded or the counter went back."""
    assert GOOD.mean_power_w(3.01, 4.02) == pytest.approx(300)
    assert GOOD.mean_power_w(3.0, 999.0) is None
    assert GOOD.mean_power_w(4.0, 3.0) is None
    assert gone_back(GOOD, 30).mean_power_w(20, 40) is None


def scattered(jitter_s: float, count: int, *, of_width: float = 1.0, width_s: float = 0.006) -> EnergySeries:
    """Ticks that scatter about a beat of 100 ms and lie anywhere in this share of their readings' width."""
    draw = random.Random(3)
    half_s = width_s / 2
    moments = [0.1 * i + draw.gauss(0, jitter_s) + of_width * draw.uniform(-half_s, half_s) for i in range(count)]
    return EnergySeries(tuple(Tick(t - half_s, t + half_s, 30.0 * i) for i, t in enumerate(moments)))


def test_jitter_is_found_from_the_ticks() -> None:
    """Ticks that scatter by 4 ms, read each 6 ms, show 4 ms; few ticks show nothing."""
    found = scattered(0.004, 4000).measured_jitter
    assert found is not None
    assert found.jitter_s == pytest.approx(0.004, rel=0.1)
    assert not found.hidden
    assert scattered(0.004, 12).measured_jitter is None


@pytest.mark.parametrize("jitter_s", [0.0, 0.0005, 0.001])
@pytest.mark.parametrize("of_width", [1.0, 0.5])
@pytest.mark.parametrize("count", [30, 120, 800])
def test_a_jitter_that_the_readings_hide_is_an_upper_limit_and_never_0(
    jitter_s: float, of_width: float, count: int
) -> None:
    """Read each 8 ms, anywhere in it or in the middle half (a driver that looks in the middle of its calls)."""
    found = scattered(jitter_s, count, of_width=of_width, width_s=0.008).measured_jitter
    assert found is not None
    if found.hidden:
        assert max(jitter_s, 0.001) <= found.jitter_s < 0.004
    else:
        assert found.jitter_s == pytest.approx(jitter_s, rel=0.5)


def test_slow_readings_say_nothing_of_the_jitter() -> None:
    """One reading in ten takes 40 ms: the rest tells what all of them would."""
    calm = scattered(0.003, 1000).ticks
    slow = [Tick(t.before_s - 0.034, t.after_s, t.joules) if i % 10 == 0 else t for i, t in enumerate(calm)]
    found = EnergySeries(tuple(slow)).measured_jitter
    assert found is not None
    assert found.jitter_s == pytest.approx(0.003, rel=0.1)
    assert not found.hidden


def test_a_day_of_ticks_is_cut_quickly() -> None:
    """Of 24 hours only what lies at the edges is looked at: the number of ticks looked up stays small."""

    class Counted(tuple[Tick, ...]):
        looked = 0

        def __getitem__(self, key: object) -> object:  # type: ignore[override]
            Counted.looked += 1
            return super().__getitem__(key)  # type: ignore[index]

    series = EnergySeries(Counted(Tick(0.1 * i, 0.1 * i, 30.0 * i) for i in range(864_000)), 0.004)
    assert series.between(1000.0, 80_000.0, "quiet").value == pytest.approx(300 * 79_000)
    Counted.looked = 0
    assert series.between(2000.0, 80_000.0, "quiet").value == pytest.approx(300 * 78_000)
    assert Counted.looked < 500
