"""Second readings of the same energy: sensors made from a known load, each fault seen, no clean window blamed."""

import math
import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from fakes.tick_generator import Counter, Load, record, true_joules, waiting_and_work
from llenergymeasure.core.contracts import EnergyRecord, PowerSample, Reading, Window
from llenergymeasure.core.cross_check import (
    BLIND,
    MAX_HOLE_S,
    against_counter,
    cross_check,
    integral_j,
    longest_hole_s,
)
from llenergymeasure.core.energy_series import EnergySeries, Tick

A, B = "GPU-a", "GPU-b"
ZERO_S = 1000.0


def series(load: Load, end_s: float, factor: float = 1.0) -> EnergySeries:
    rows = record(load, Counter(lag_s=0.013, poll_s=0.005, jitter_s=0.002), ZERO_S - 10, end_s + 10)
    return EnergySeries(tuple(Tick(a, b, factor * j) for a, b, j in rows))


def averages(load: Load, end_s: float, factor: float = 1.0, uuid: str = A) -> tuple[Reading, ...]:
    """The mean of the last second, every 0.1 s and a little irregular, as the board tells it."""
    draw = random.Random(2)
    times = [ZERO_S - 9 + 0.1 * i + draw.uniform(0, 0.02) for i in range(int((end_s - ZERO_S + 18) / 0.1))]
    return tuple(Reading(t, uuid, 0, power_average_w=factor * true_joules(load, t - 1, t)) for t in times)


def samples(load: Load, end_s: float, factor: float = 1.0) -> tuple[PowerSample, ...]:
    """The driver's buffer: one sample per 20 ms."""
    times = [ZERO_S - 9 + 0.02 * i for i in range(int((end_s - ZERO_S + 18) / 0.02))]
    return tuple(PowerSample(t, factor * true_joules(load, t - 0.02, t) / 0.02) for t in times)


@pytest.mark.parametrize("seconds", [5.3, 12.7, 61.3])
def test_all_readings_of_a_clean_window_agree(seconds: float) -> None:
    """From 5 s to a minute, with idle on both sides: nothing is in excess of what the edges explain."""
    end_s = ZERO_S + seconds
    load = waiting_and_work(ZERO_S, end_s)
    energy = EnergyRecord(
        {}, readings=averages(load, end_s), series={A: series(load, end_s)}, samples={A: samples(load, end_s)}
    )
    found = cross_check(energy, Window("window", ZERO_S, end_s), true_joules(load, ZERO_S, end_s))
    assert found is not None
    assert set(found.ratios) == {"average power", "sample buffer"}
    assert found.excess == pytest.approx(0.0, abs=0.004)
    assert found.cannot_see == BLIND
    assert found.allowance == pytest.approx(0.3 * 480 / (600 * seconds), rel=0.1)


WRONG: list[tuple[float, float]] = [(1.03, 0.03), (0.9, 0.1), (1.08, 0.08)]


@pytest.mark.parametrize(("factor", "excess"), WRONG)
@pytest.mark.parametrize("sensor", [averages, samples])
def test_a_counter_that_counts_wrong_is_seen(
    factor: float, excess: float, sensor: Callable[..., tuple[object, ...]]
) -> None:
    """The ratio of the sensor to the counter, over the allowance of a minute's edges (0.4 %)."""
    end_s = ZERO_S + 60.0
    load = waiting_and_work(ZERO_S, end_s)
    readings = sensor(load, end_s, factor)
    energy = EnergyRecord(
        {},
        readings=readings if sensor is averages else (),  # type: ignore[arg-type]  # one of two kinds
        samples={A: readings} if sensor is samples else {},  # type: ignore[dict-item]  # likewise
        series={A: series(load, end_s)},
    )
    found = cross_check(energy, Window("window", ZERO_S, end_s), None)
    assert found is not None
    assert found.ratio == pytest.approx(factor, abs=0.004)
    assert found.excess == pytest.approx(excess, abs=0.009)


def test_the_gpu_and_the_sensor_furthest_off_are_told() -> None:
    """Of two GPUs the second one's average is 6 % off: that is the ratio of the average."""
    end_s = ZERO_S + 30.0
    load = waiting_and_work(ZERO_S, end_s)
    energy = EnergyRecord(
        {},
        readings=(*averages(load, end_s), *averages(load, end_s, 0.94, uuid=B)),
        series={A: series(load, end_s), B: series(load, end_s)},
        samples={A: samples(load, end_s)},
    )
    found = cross_check(energy, Window("window", ZERO_S, end_s), None)
    assert found is not None
    assert found.source == "average power"
    assert found.ratio == found.ratios["average power"] == pytest.approx(0.94, abs=0.01)
    assert found.ratios["sample buffer"] == pytest.approx(1.0, abs=0.01)


def test_an_independent_source_is_checked_by_our_ticks() -> None:
    """A source that reads the counter itself and says 3 % less."""
    end_s = ZERO_S + 30.0
    load = waiting_and_work(ZERO_S, end_s)
    energy = EnergyRecord({}, series={A: series(load, end_s)}, independent=True)
    true_j = true_joules(load, ZERO_S, end_s)
    found = cross_check(energy, Window("window", ZERO_S, end_s), true_j / 1.03)
    assert found is not None
    assert (found.source, found.ratio) == ("tick series", pytest.approx(1.03, abs=1e-2))
    assert cross_check(EnergyRecord({}, series={A: series(load, end_s)}), Window("w", ZERO_S, end_s), true_j) is None


def test_our_ticks_are_cut_as_the_window_was() -> None:
    """Ticks a second apart inside, every tick outside: quiet edges agree to 0.1 %, loaded ones have no ticks to cut at."""
    end_s = ZERO_S + 20.0
    load, window = waiting_and_work(ZERO_S, end_s), Window("window", ZERO_S, end_s)
    rare: list[Tick] = []
    skipped = 0
    for tick in series(load, end_s).ticks:
        if ZERO_S + 1.2 < tick.t_s < end_s and skipped < 9:
            skipped += 1
            continue
        rare.append(replace(tick, skipped=skipped))
        skipped = 0
    energy = EnergyRecord({}, series={A: EnergySeries(tuple(rare))}, independent=True)
    true_j = true_joules(load, ZERO_S, end_s)
    quiet = cross_check(energy, window, true_j, "quiet")
    loaded = cross_check(energy, window, true_j, "loaded")
    assert quiet is not None
    assert loaded is not None
    assert quiet.ratio == pytest.approx(1.0, abs=1e-3)
    assert loaded.ratio is None
    assert "sample_gap" in (loaded.reason or "")


UNUSABLE = [
    pytest.param(lambda t: t < ZERO_S + 15, "does not cover", id="ended early"),
    pytest.param(lambda t: t > ZERO_S + 15, "does not cover", id="began late"),
    pytest.param(lambda t: not ZERO_S + 10 < t < ZERO_S + 13, "nothing was read for 3.", id="a hole"),
]


@pytest.mark.parametrize(("kept", "why"), UNUSABLE)
def test_a_sensor_that_did_not_see_the_window_gives_no_ratio(kept: Callable[[float], bool], why: str) -> None:
    """Null with the reason, which is no fault of the counter."""
    end_s = ZERO_S + 30.0
    load = waiting_and_work(ZERO_S, end_s)
    some = tuple(r for r in averages(load, end_s) if kept(r.t_s))
    found = cross_check(
        EnergyRecord({}, readings=some, series={A: series(load, end_s)}), Window("w", ZERO_S, end_s), None
    )
    assert found is not None
    assert (found.ratio, found.excess) == (None, None)
    assert why in (found.reason or "")


def test_a_counter_that_stands_still_gives_no_ratio() -> None:
    """No division by nothing."""
    flat = EnergySeries(tuple(Tick(ZERO_S + 0.1 * i, ZERO_S + 0.1 * i + 0.01, 5.0) for i in range(200)))
    values = [(ZERO_S + i, 300.0) for i in range(20)]
    check = against_counter("x", values, flat, Window("w", ZERO_S + 1, ZERO_S + 18))
    assert (check.ratio, check.excess) == (None, 0.0)


def test_integral_of_straight_lines_by_hand() -> None:
    """A triangle, cut inside its sides; a cosine against its closed form."""
    triangle = [(0.0, 0.0), (1.0, 100.0), (2.0, 0.0)]
    assert integral_j(triangle, 0.0, 2.0) == pytest.approx(100.0)
    assert integral_j(triangle, 0.5, 1.5) == pytest.approx(75.0)
    wave = [(0.01 * i, math.cos(0.01 * i)) for i in range(400)]
    assert integral_j(wave, 0.3, 2.2) == pytest.approx(math.sin(2.2) - math.sin(0.3), abs=1e-4)
    assert longest_hole_s([(0.0, 1.0), (5.0, 1.0), (6.0, 1.0)], 5.5, 6.0) == 1.0
    assert MAX_HOLE_S < 3
