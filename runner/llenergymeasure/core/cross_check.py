"""Reads the same energy a second time: power sensors integrated over the very ticks that the counter was read at.

The board's one-second average and the driver's sample buffer come from the same sensor as the counter. They show a
counter that is stuck, skips or counts twice; an error of the sensor's gain they share, and cannot show.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import Field

from llenergymeasure.core.contracts import Edges, EnergyRecord, Window
from llenergymeasure.core.energy_series import EnergySeries
from llenergymeasure.core.power_values import Values, integral_j, longest_hole_s
from llenergymeasure.core.records import Record

AVERAGE_LAG_S = 0.5
"""The average field is the mean of the last second: it belongs half a second earlier (measurement.md §1, field 185)."""

EDGE_ALLOWANCE_S = 0.3
"""What a step of power at a window's ends may add: a mean over a second misses 2 x 1/8 s of it, rounded up (§6)."""

LEAST_COVER = 0.6
"""Share of the window between two ticks that a sensor must have seen; in short windows ticks are a second apart."""

MAX_HOLE_S = 2.0
"""Longest time between two values of a sensor that a straight line may bridge."""

STEP_SPAN_S = 0.8
"""Length of the stretches before and after the window from which the step of power at its ends is taken."""

BLIND = "the same sensor as the counter, so blind to an error of its gain"


class CrossCheck(Record):
    """Second readings of the same energy as ratios to the first, by their names; `source` is the one furthest off.

    `ratio` is that one's; `reason` says why a sensor, or all of them, gave none. `excess` is how far it lies from 1
    beyond `allowance`, which is what steps of power at the ends of a short window explain. `cannot_see` says what no
    such check finds.
    """

    source: str
    ratio: float | None = None
    reason: str | None = None
    ratios: dict[str, float] = Field(default_factory=dict)
    allowance: float | None = None
    excess: float | None = None
    cannot_see: str = BLIND


@dataclass(frozen=True)
class Check:
    """One sensor of one GPU against the counter; `ratio` None has a `reason`."""

    name: str
    ratio: float | None = None
    allowance: float = 0.0
    reason: str = ""

    @property
    def excess(self) -> float:
        """How far from 1 beyond what is allowed."""
        return max(0.0, abs(self.ratio - 1) - self.allowance) if self.ratio is not None else 0.0


def cross_check(
    energy: EnergyRecord | None, window: Window, total_j: float | None, edges: Edges = "loaded"
) -> CrossCheck | None:
    """Check a window's energy by everything else that was recorded; None where nothing could be.

    Args:
        energy: What was recorded.
        window: The measured interval.
        total_j: Energy as the source gave it, before any calibration; checked against our own ticks where the source
            reads the counter by itself.
        edges: How the window begins and ends; our ticks are cut likewise.

    """
    if energy is None:
        return None
    checks = [c for uuid, series in energy.series.items() for c in _of_gpu(energy, uuid, series, window)]
    if energy.independent and total_j:
        checks.append(_of_ticks(energy.series, window, total_j, edges))
    return summary(checks)


def summary(checks: Iterable[Check]) -> CrossCheck | None:
    """All checks in one record: of each sensor the GPU that is furthest off."""
    worst: dict[str, Check] = {}
    reasons: dict[str, str] = {}
    for check in checks:
        if check.ratio is None:
            reasons.setdefault(check.name, check.reason)
        elif check.name not in worst or _rank(check) > _rank(worst[check.name]):
            worst[check.name] = check
    if not worst:
        return CrossCheck(source=", ".join(reasons), reason="; ".join(reasons.values())) if reasons else None
    first = max(worst.values(), key=_rank)
    return CrossCheck(
        source=first.name,
        ratio=first.ratio,
        reason="; ".join(reasons.values()) or None,
        ratios={name: c.ratio for name, c in worst.items() if c.ratio is not None},
        allowance=first.allowance,
        excess=first.excess,
    )


def _rank(check: Check) -> tuple[float, float]:
    return check.excess, abs((check.ratio or 1.0) - 1)


def _of_ticks(series: Mapping[str, EnergySeries], window: Window, total_j: float, edges: Edges) -> Check:
    """Our own tick series against a source that reads the counter by itself."""
    parts = [s.between(window.start_s, window.end_s, edges) for s in series.values()]
    if not parts or any(p.value is None for p in parts):
        return Check("tick series", reason="; ".join(p.reason or "" for p in parts) or "no series")
    return Check("tick series", sum(p.value for p in parts if p.value is not None) / total_j)


def _of_gpu(energy: EnergyRecord, uuid: str, series: EnergySeries, window: Window) -> list[Check]:
    averages = [
        (r.t_s - AVERAGE_LAG_S, r.power_average_w)
        for r in energy.readings
        if r.gpu_uuid == uuid and r.power_average_w is not None
    ]
    samples = [(s.t_s, s.power_w) for s in energy.samples.get(uuid, ())]
    sensors = {"average power": averages, "sample buffer": samples}
    return [against_counter(name, values, series, window) for name, values in sensors.items() if values]


def against_counter(name: str, values: Values, series: EnergySeries, window: Window) -> Check:
    """Integral of a power over the counter's difference, from the first tick in the window to the one nearest its end.

    Ticks are rare inside a window, and every one is recorded again from its end on (nvml_sampling).

    Args:
        name: Of the sensor.
        values: Its readings, shifted by its lag.
        series: The counter.
        window: Where to compare.

    """
    ticks, times = series.ticks, series.times_s
    first = bisect_left(times, max(window.start_s, values[0][0]))
    last = _nearest(times, min(window.end_s, values[-1][0]), at_most_s=values[-1][0])
    if last <= first or times[last] - times[first] < LEAST_COVER * window.duration_s:
        return Check(name, reason=f"{name}: it does not cover the window")
    start_s, end_s = times[first], times[last]
    hole_s = longest_hole_s(values, start_s, end_s)
    if hole_s > MAX_HOLE_S:
        return Check(name, reason=f"{name}: nothing was read for {hole_s:.1f} s")
    counted_j = ticks[last].joules - ticks[first].joules
    if counted_j <= 0:
        return Check(name, reason=f"{name}: the counter did not move")
    step_w = edge_step_w(series, window)
    return Check(name, integral_j(values, start_s, end_s) / counted_j, EDGE_ALLOWANCE_S * step_w / counted_j)


def _nearest(times_s: Sequence[float], t_s: float, *, at_most_s: float) -> int:
    """Index of the time nearest to an instant that is not beyond a bound; -1 without any."""
    after = bisect_right(times_s, t_s)
    near = [i for i in (after - 1, after) if 0 <= i < len(times_s) and times_s[i] <= at_most_s]
    return min(near, key=lambda i: abs(times_s[i] - t_s), default=-1)


def edge_step_w(series: EnergySeries, window: Window) -> float:
    """Mean step of power at the two ends of a window, W; the whole power where nothing is known outside."""
    inside = series.mean_power_w(window.start_s, window.end_s)
    if inside is None:
        return 0.0
    before = series.mean_power_w(window.start_s - STEP_SPAN_S, window.start_s)
    after = series.mean_power_w(window.end_s, window.end_s + STEP_SPAN_S)
    return sum(abs(inside - (outside or 0.0)) for outside in (before, after)) / 2
