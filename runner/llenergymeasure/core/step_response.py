"""What a known load tells of an energy counter: how far it lags behind, and whether its joules are power times time."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev

from llenergymeasure.core.energy_series import EnergySeries

OUT_TICKS = 2  # from a step to the ticks around it, so that a step that is seen late lies between them, too
LEVEL_TICKS = 3  # ticks that tell the power on each side of a step
LEAST_STEP = 0.3  # of the larger power: a smaller step tells no moment


@dataclass(frozen=True)
class Burst:
    """Load from `start_s` to `end_s`, the device synchronised at both; idle around it."""

    start_s: float
    end_s: float


@dataclass(frozen=True)
class Lag:
    """By how much a counter shows a change of load late, s, with its spread over the steps."""

    lag_s: float
    spread_s: float
    steps: int


def lag(series: EnergySeries, bursts: Sequence[Burst]) -> Lag | None:
    """The counter's lag, the median over all starts and ends of load; None where fewer than four can be told.

    Between a tick before a step and one after it the energy is P₁·(s − t₁) + P₂·(t₂ − s), which gives the moment s at
    which the counter saw the step.
    """
    moments = [t for b in bursts for t in (b.start_s, b.end_s)]
    late = [seen - t for t in moments if (seen := _seen_s(series, t)) is not None]
    return Lag(median(late), stdev(late), len(late)) if len(late) >= 4 else None


def _seen_s(series: EnergySeries, step_s: float) -> float | None:
    """When the counter saw a step of power."""
    times, ticks = series.times_s, series.ticks
    before = bisect_right(times, step_s) - OUT_TICKS
    after = before + 2 * OUT_TICKS
    if before < LEVEL_TICKS or after + LEVEL_TICKS >= len(ticks):
        return None

    def power_w(a: int, b: int) -> float:
        return (ticks[b].joules - ticks[a].joules) / (times[b] - times[a])

    first_w, last_w = power_w(before - LEVEL_TICKS, before), power_w(after, after + LEVEL_TICKS)
    if abs(last_w - first_w) < LEAST_STEP * max(first_w, last_w):
        return None
    energy = ticks[after].joules - ticks[before].joules
    return (energy + first_w * times[before] - last_w * times[after]) / (first_w - last_w)


def plateau_ratio(series: EnergySeries, bursts: Sequence[Burst]) -> float | None:
    """Energy of bursts, cut with quiet edges, over the power of their middle halves times their length.

    None where no burst has quiet edges and ticks in its middle.
    """
    ratios = []
    for burst in bursts:
        length_s = burst.end_s - burst.start_s
        found = series.between(burst.start_s, burst.end_s, "quiet")
        middle_w = series.mean_power_w(burst.start_s + length_s / 4, burst.end_s - length_s / 4)
        if found.value is not None and found.edges == "quiet" and middle_w:
            ratios.append(found.value / (middle_w * length_s))
    return fmean(ratios) if ratios else None
