"""Ticks of pretended counters whose true energy is known in closed form."""

import math
import random
from collections.abc import Callable

from llenergymeasure.core.energy_series import EnergySeries, Tick

Energy = Callable[[float], float]  # true joules used up to an instant


def constant(power_w: float) -> Energy:
    return lambda t: power_w * t


def step(at_s: float, low_w: float, high_w: float) -> Energy:
    return lambda t: low_w * t if t < at_s else low_w * at_s + high_w * (t - at_s)


def sine(mean_w: float, amplitude_w: float, period_s: float) -> Energy:
    k = 2 * math.pi / period_s
    return lambda t: mean_w * t + amplitude_w / k * (1 - math.cos(k * t))


def ramp(start_w: float, per_s: float) -> Energy:
    return lambda t: start_w * t + per_s * t * t / 2


def recorded(
    energy: Energy, *, period_s: float = 0.1, phase: float = 0.0, until_s: float = 70.0, poll_s: float = 0.0,
    jitter_s: float = 0.0, seed: int = 1, first_s: float = -5.0,
) -> EnergySeries:  # fmt: skip
    """What a sampler would record of a counter that shows, at each tick, the energy used up to that tick.

    The reader sees a new value up to `poll_s` after it appeared and had seen the old one `poll_s` before that.
    """
    draw = random.Random(seed)
    ticks = []
    for i in range(round((until_s - first_s) / period_s)):
        t = first_s + (i + phase) * period_s + draw.gauss(0, jitter_s)
        seen = t + draw.uniform(0, poll_s)
        ticks.append(Tick(seen - poll_s, seen, energy(t)))
    return EnergySeries(tuple(ticks), jitter_s=jitter_s)


def without(series: EnergySeries, start_s: float, end_s: float) -> EnergySeries:
    return EnergySeries(tuple(t for t in series.ticks if not start_s < t.t_s < end_s), series.jitter_s)


def waiting(
    before_w: float = 100.0, work_w: float = 500.0, after_w: float = 110.0, width_s: float = 0.006
) -> EnergySeries:
    """Ticks each 0.1 s; work from 5.03 s to 15.03 s, waiting around it."""

    def energy(t: float) -> float:
        return before_w * min(t, 5.03) + work_w * max(0, min(t, 15.03) - 5.03) + after_w * max(0, t - 15.03)

    half = width_s / 2
    return EnergySeries(tuple(Tick(0.1 * i - half, 0.1 * i + half, energy(0.1 * i)) for i in range(250)), 0.004)


def disturbed(watts: float, from_s: float, to_s: float) -> EnergySeries:
    """`waiting()` with additional power in an interval."""

    def extra(t: float) -> float:
        return watts * max(0.0, min(t, to_s) - from_s)

    ticks = (Tick(t.before_s, t.after_s, t.joules + extra(t.t_s)) for t in waiting(width_s=0.0).ticks)
    return EnergySeries(tuple(ticks), jitter_s=0.0)


def thinned(series: EnergySeries, dense_until_s: float, dense_from_s: float, every: int = 10) -> EnergySeries:
    """Only every tenth tick between two instants, each saying how many were left out before it."""
    kept: list[Tick] = []
    left_out = 0
    for number, tick in enumerate(series.ticks):
        if dense_until_s < tick.t_s < dense_from_s and number % every:
            left_out += 1
            continue
        kept.append(Tick(tick.before_s, tick.after_s, tick.joules, left_out))
        left_out = 0
    return EnergySeries(tuple(kept), series.jitter_s)
