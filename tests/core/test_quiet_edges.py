"""Joules of windows with quiet edges, and of windows inside which most ticks were left out on purpose."""

import math
import random
from dataclasses import replace

import pytest

from fakes import tick_generator as made
from fakes.ticks import constant, disturbed, recorded, thinned, waiting, without
from llenergymeasure.core.energy_series import EnergySeries, Tick, device_energy

GOOD = recorded(constant(300))


GRID = [("60-s", 60.037, 5e-5, 2e-4), ("5-s", 5.037, 2e-4, 2e-3)]


@pytest.mark.parametrize(("length_s", "bias", "largest"), [g[1:] for g in GRID], ids=[g[0] for g in GRID])
def test_quiet_edges_have_no_bias(length_s: float, bias: float, largest: float) -> None:
    """Lags 0 to 30 ms, 8 phases: within the targets of measurement.md §7, where interpolation is always low."""
    start_s, end_s = 10.0, 10.0 + length_s
    load = made.waiting_and_work(start_s, end_s)
    truth = made.true_joules(load, start_s, end_s)
    errors, ratios, cut = [], [], []
    for lag_s in (0.0, 0.012, 0.030):
        for i in range(8):
            counter = made.Counter(0.1, i / 8, lag_s, jitter_s=0.002, poll_s=0.005, seed=i)
            rows = made.record(load, counter, start_s - 3, end_s + 3)
            series = EnergySeries(tuple(Tick(*r) for r in rows), jitter_s=0.002)
            found = series.between(start_s, end_s, "quiet")
            assert found.value is not None
            assert found.std_uncertainty is not None
            assert found.edges == "quiet"
            errors.append(found.value / truth - 1)
            ratios.append(abs(found.value - truth) / found.std_uncertainty)
            cut.append((series.between(start_s, end_s).value or 0) / truth - 1)
    assert abs(sum(errors)) / len(errors) <= bias
    assert max(map(abs, errors)) <= largest
    assert max(ratios) <= 3
    assert sum(cut) / len(cut) < -4 * bias  # the same ticks, interpolated: low (measurement.md §1)


def test_quiet_joules_and_their_uncertainty_are_the_formulas() -> None:
    """E and u by hand: t_a = 4.9 s, t_b = 15.2 s, the five ticks further out alike, so u(P) is 0."""
    found = waiting().between(5.03, 15.03, "quiet")
    assert found.value == pytest.approx(5000, rel=1e-9)
    sigma_t = math.sqrt(0.006**2 / 12 + 0.004**2)
    assert found.std_uncertainty == pytest.approx(math.sqrt(100**2 + 110**2) * sigma_t, rel=1e-9)
    assert (found.edges, found.power_before_w, found.power_after_w) == (
        "quiet", pytest.approx(100), pytest.approx(110),
    )  # fmt: skip


def test_spread_of_the_guards_power_enters_with_the_guards_time() -> None:
    """Guard ticks of 98 and 102 W in turn: u(P)^2 = s^2/5, weighed by the 0.13 s from the tick to the edge."""
    series, shown, ticks = waiting(), 0.0, []
    for i, tick in enumerate(series.ticks):
        if 0 < i <= 49:
            shown += 0.1 * (98 if i % 2 else 102)
        elif i > 49:
            shown += tick.joules - series.ticks[i - 1].joules
        ticks.append(Tick(tick.before_s, tick.after_s, shown))
    found = EnergySeries(tuple(ticks), 0.0).between(5.03, 15.03, "quiet")
    powers = [98, 102, 98, 102, 98]
    mean = sum(powers) / 5
    u2_power = sum((p - mean) ** 2 for p in powers) / 4 / 5
    # the slope is 0: the first and the last tick are equal, and so are the second and the last but one
    sigma2 = 0.006**2 / 12
    by_hand_u = math.sqrt((mean**2 + 110**2) * sigma2 + 0.13**2 * u2_power)
    assert found.power_before_w == pytest.approx(mean)
    assert found.power_before_std_w == pytest.approx(u2_power**0.5)
    assert found.std_uncertainty == pytest.approx(by_hand_u, rel=1e-6)


NOT_QUIET = [
    ("load-in-the-guard-before", disturbed(300, 4.5, 4.7), (None, 110)),
    ("load-in-the-guard-after", disturbed(300, 15.4, 15.6), (100, None)),
    ("six-per-cent", disturbed(6.6, 4.5, 4.6), (None, 110)),
    ("four-per-cent", disturbed(4, 4.5, 4.6), (100.8, 110)),
    ("starts-with-the-recording", EnergySeries(waiting(width_s=0).ticks[45:], 0.0), (None, 110)),
    ("ends-with-the-recording", EnergySeries(waiting(width_s=0).ticks[:155], 0.0), (100, None)),
]


@pytest.mark.parametrize(("series", "powers"), [n[1:] for n in NOT_QUIET], ids=[n[0] for n in NOT_QUIET])
def test_an_edge_that_is_not_quiet_is_interpolated(
    series: EnergySeries, powers: tuple[float | None, float | None]
) -> None:
    """Too few or unequal guard ticks: that edge is interpolated, says so, and pays tau |dP| / 2."""
    found = series.between(5.03, 15.03, "quiet")
    assert (found.power_before_w, found.power_after_w) == pytest.approx(powers)
    assert found.edges == ("interpolated" if None in powers else "quiet")
    if None in powers:
        step_w = 400 if powers[0] is None else 390  # from waiting to work
        assert found.std_uncertainty == pytest.approx(0.1 * step_w / 2, rel=0.02)
    assert found.value == pytest.approx(5000, abs=3 * (found.std_uncertainty or 0) + 1)


def test_a_guard_that_cools_down_is_unsure_of_the_gap() -> None:
    """110 W and 40 W that fall off within a second: u(P) has what the slope adds up to over half of guard and gap."""

    def extra(t: float) -> float:
        x = min(max(t - 15.03, 0.0), 1.0)
        return 40 * (x - x * x / 2)

    ticks = (replace(t, joules=t.joules + extra(t.t_s)) for t in waiting().ticks)
    found = EnergySeries(tuple(ticks), 0.004).between(5.03, 15.03, "quiet")
    assert found.edges == "quiet"
    powers = [10 * (extra(15.3 + 0.1 * i) - extra(15.2 + 0.1 * i)) for i in range(5)]
    gap_s, s2 = 0.17, sum((p - sum(powers) / 5) ** 2 for p in powers) / 4
    steady = sum((p * math.sqrt(0.006**2 / 12 + 0.004**2)) ** 2 for p in (100, found.power_after_w or 0))
    assert powers[0] - powers[4] == pytest.approx(4 * 4.0)  # 4 W from one tick to the next
    by_hand_u = math.sqrt(steady + gap_s**2 * (s2 / 5 + (40 * (0.5 + gap_s) / 2) ** 2))
    assert found.std_uncertainty == pytest.approx(by_hand_u, rel=1e-6)
    assert abs((found.value or 0) - 5000) < 2 * by_hand_u


def test_work_of_others_in_half_of_the_guard_is_seen() -> None:
    """60 W for half a second that begins in the guard: a bend in the counter that no uncertain moment explains."""
    draw, quiet = random.Random(6), 0
    for _ in range(50):
        ticks = []
        for tick in waiting(130, 600, 130).ticks:
            late = draw.gauss(0, 0.0012)
            other = 60 * min(max(tick.t_s - 15.3, 0.0), 0.5)
            ticks.append(Tick(tick.before_s + late, tick.after_s + late, tick.joules + other))
        quiet += EnergySeries(tuple(ticks)).between(5.03, 15.03, "quiet").power_after_w is not None
    assert quiet <= 2


def test_uncertain_moments_do_not_make_a_guard_unquiet() -> None:
    """Readings 10 ms apart let equal ticks seem to differ by several per cent; that is no load in the guard."""
    draw = random.Random(5)
    for _ in range(50):
        ticks = []
        for tick in waiting().ticks:
            late = draw.gauss(0, 0.004)
            ticks.append(Tick(tick.before_s + late, tick.after_s + late, tick.joules))
        assert EnergySeries(tuple(ticks), 0.004).between(5.03, 15.03, "quiet").edges == "quiet"


def test_loaded_windows_say_so_and_know_no_waiting_power() -> None:
    """The default is a loaded edge; its record has no waiting power."""
    found = device_energy("GPU-a", GOOD, 3.0, 60.0)
    assert (found.edges, found.power_before_w, found.power_after_w) == ("loaded", None, None)
    quiet = device_energy("GPU-a", waiting(), 5.03, 15.03, "quiet")
    assert (quiet.edges, quiet.power_before_w) == ("quiet", pytest.approx(100))


# Ticks left out on purpose inside a long window.


def test_ticks_left_out_inside_change_nothing() -> None:
    """Period, joules and uncertainty of a quiet window are those of the full recording; nothing counts as a hole."""
    full, thin = waiting(), thinned(waiting(), 6.2, 15.05)
    assert thin.between(5.03, 15.03, "quiet") == full.between(5.03, 15.03, "quiet")
    assert thin.period_s == pytest.approx(0.1)
    assert thin.interior_gap_ticks(5, 16) == 0
    only_thin = EnergySeries(thinned(waiting(), 0, 99).ticks[1:])
    assert only_thin.period_s == pytest.approx(0.1)


def test_a_loaded_edge_needs_every_tick_around_it() -> None:
    """Under load an edge cannot be told from ticks a second apart: sample_gap."""
    steady = recorded(constant(300), phase=0.03)
    assert thinned(steady, 20, 40).between(10.02, 50.02).value is not None
    assert "sample_gap" in (thinned(steady, 20, 40).between(10.02, 39.5).reason or "")
    assert "sample_gap" in (thinned(steady, 20, 40).between(30.02, 50.02).reason or "")


def test_a_hole_among_ticks_left_out_is_a_hole() -> None:
    """What is missing beside what was left out on purpose is counted."""
    thin = thinned(recorded(constant(300), phase=0.03), 20, 40)
    assert without(thin, 29.5, 31.5).interior_gap_ticks(10, 50) in {10, 20}


def test_an_unquiet_end_in_a_thinned_window_pays_for_the_long_interval() -> None:
    """Interpolated between ticks 0.4 s apart, the edge costs these, not one tick."""
    found = thinned(disturbed(300, 15.4, 15.6), 6.2, 15.05, every=7).between(5.03, 15.03, "quiet")
    assert found.edges == "interpolated"
    assert found.value is None or (found.std_uncertainty or 0) > 70
