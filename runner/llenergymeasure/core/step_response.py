"""What a known load tells of an energy counter: how far it lags behind, and whether its joules are power times time.

Only the ends of load tell the lag. At a start an H100 draws up to 1.7 times the later power for one to three ticks, as
if the counter had seen the start tens of milliseconds early. Before an end the power is level.
"""

import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev

from llenergymeasure.core.energy_series import DEFAULT_JITTER_S, EnergySeries
from llenergymeasure.core.tick_times import SLOW_READING

LEVEL_TICKS = 5  # tell the power on each side of an end
LEVEL_SPREAD = 0.10  # powers that differ by more of their mean, beyond what reading explains, are not level
SETTLED_S = 0.4  # from a start until the power is level
FADING_S = 0.3  # from an end until the power is level: it falls by another tenth in that time (H100)
LEAST_STEP = 0.3  # of the larger power: a smaller step tells no moment
LEAST_ENDS = 6
OUTLIER = 6.0  # robust standard deviations
FINE_S = 0.008  # a reading that is no wider than an H100's usual ones always does
SAME_S = 0.001  # ends nearer to their median than this are never outliers

MAX_UNCERTAINTY_S = DEFAULT_JITTER_S
"""A lag that is less certain than this is not given: single ticks scatter by as much about the documented lag."""


BURST_TICKS = LEVEL_TICKS + 2
"""Periods of level power that an end of load needs before it: five between ticks, one cut by the end, one to spare."""

PAUSE_TICKS = LEVEL_TICKS + 3
"""Likewise after it; quiet edges of plateaus leave out one more."""

FEW_TICKS = "with too few ticks around them"
SLOW = "read too slowly"
NOT_LEVEL = "after power that was not level"
SMALL_STEP = "with too small a step of power"
FAR_OFF = "far from the others"
"""Why ends of load are left out."""


@dataclass(frozen=True)
class Burst:
    """Load from `start_s` to `end_s`, the device synchronised at both; idle around it."""

    start_s: float
    end_s: float


@dataclass(frozen=True)
class Lag:
    """By how much a counter shows the end of a load late, s, with its standard uncertainty, from so many ends.

    `lag_s` is None with a `reason`; the uncertainty may be known even then. `tried` counts the loads by their length,
    `left_out` those of their ends that told nothing by why not.
    """

    lag_s: float | None
    uncertainty_s: float | None
    ends: int
    reason: str | None = None
    tried: str | None = None
    left_out: str | None = None


def lag(series: EnergySeries, bursts: Sequence[Burst]) -> Lag:
    """The counter's lag: the mean over the ends of load without outliers, or the reason why it cannot be told.

    It is the delay by which the work's energy appears, as a shift of ticks needs it: what the GPU still draws while its
    power falls is part of it. Bursts are in order of time.
    """
    starts = [*(b.start_s for b in bursts[1:]), math.inf]
    seen = [(_seen_s(series, b, next_s), b.end_s) for b, next_s in zip(bursts, starts, strict=False)]
    late = [s - end_s for s, end_s in seen if not isinstance(s, str)]
    middle = median(late) if late else 0.0
    far_s = max(OUTLIER * 1.4826 * median(abs(x - middle) for x in late), SAME_S) if late else 0.0
    kept = [x for x in late if abs(x - middle) <= far_s]
    tried = _counted(f"of {b.end_s - b.start_s:.1f} s" for b in bursts)
    left_out = _counted([*(s for s, _ in seen if isinstance(s, str)), *[FAR_OFF] * (len(late) - len(kept))])
    if len(kept) < LEAST_ENDS:
        few = f"ends of load that agree: {len(kept)} of {len(seen)}, at least {LEAST_ENDS} are needed"
        return Lag(None, None, len(kept), _because(few, left_out), tried, left_out)
    # Student's t has the variance (n-1)/(n-3): the spread of few ends is uncertain itself
    u_s = stdev(kept) * math.sqrt((len(kept) - 1) / (len(kept) - 3) / len(kept))
    doubt = _doubt(fmean(kept), u_s)
    reason = _because(doubt, left_out) if doubt else None
    return Lag(None if reason else fmean(kept), u_s, len(kept), reason, tried, left_out)


def _counted(words: Iterable[str]) -> str | None:
    """How often each word comes, in order of its first time; None without any."""
    return ", ".join(f"{count} {word}" for word, count in Counter(words).items()) or None


def _because(reason: str, left_out: str | None) -> str:
    return f"{reason}; left out: {left_out}" if left_out else reason


def _doubt(lag_s: float, uncertainty_s: float) -> str | None:
    """Why a lag is not to be trusted."""
    if uncertainty_s > MAX_UNCERTAINTY_S:
        return f"its standard uncertainty is {1e3 * uncertainty_s:.1f} ms, above {1e3 * MAX_UNCERTAINTY_S:.0f} ms"
    if lag_s < -MAX_UNCERTAINTY_S:
        return f"the ends of load were seen {-1e3 * lag_s:.1f} ms before they came"
    return None


def _seen_s(series: EnergySeries, burst: Burst, next_s: float) -> float | str:
    """When the counter saw the end of a load, s; if ticks or powers around it do not tell, why it is left out.

    From the last tick t₁ before it to one t₂ after it the energy is P₁·(s - t₁) + P₂·(t₂ - s), which gives s.
    """
    times, ticks = series.times_s, series.ticks
    before, after = bisect_right(times, burst.end_s) - 1, bisect_left(times, burst.end_s + FADING_S)
    first, last = before - LEVEL_TICKS, after + LEVEL_TICKS
    if first < 0 or last >= len(ticks) or times[first] < burst.start_s + SETTLED_S or times[last] > next_s:
        return FEW_TICKS
    widths_s = [t.after_s - t.before_s for t in ticks]
    usual_s = median(widths_s)
    widest_s = max(SLOW_READING * usual_s, FINE_S)
    if max(widths_s[before], widths_s[after]) > widest_s:
        return SLOW

    def power_w(a: int, b: int) -> float:
        return (ticks[b].joules - ticks[a].joules) / (times[b] - times[a])

    load_w, idle_w = power_w(first, before), power_w(after, last)
    powers_w = [power_w(k, k + 1) for k in range(first, before) if max(widths_s[k : k + 2]) <= widest_s]
    allowed_w = load_w * (LEVEL_SPREAD + 2 * usual_s / (series.period_s or math.inf))
    if not powers_w:
        return SLOW
    if max(powers_w) - min(powers_w) > allowed_w:
        return NOT_LEVEL
    if load_w - idle_w < LEAST_STEP * load_w:
        return SMALL_STEP
    energy = ticks[after].joules - ticks[before].joules
    return (energy + load_w * times[before] - idle_w * times[after]) / (load_w - idle_w)


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
