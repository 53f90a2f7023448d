"""Turns the recorded ticks of a cumulative energy counter into joules between two instants, with an uncertainty.

A tick is the moment at which the counter showed a new value; it lies between the last reading of the old value and
the first reading of the new one. What the counter would have shown at an edge of a window is found in one of two ways
(docs/measurement.md, "From ticks to joules"). *Loaded*: the load runs on across the edge, so the energy is
interpolated between the ticks around it. *Quiet*: the engine waits on the outer side of the edge, so the counter is
read a tick further out, where all of the work is surely counted, and the waiting power, known from five more ticks,
is taken off. A quiet edge that turns out not to be quiet is interpolated, with what that may cost in its uncertainty.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from statistics import linear_regression, median, variance
from typing import Any, Literal

from llenergymeasure.core.contracts import DeviceEnergy, Edges
from llenergymeasure.core.errors import MeasurementError
from llenergymeasure.core.tick_times import Jitter, TickTimes
from llenergymeasure.core.tick_times import Tick as Tick  # noqa: PLC0414  (of which a series is made)

MAX_RELATIVE_UNCERTAINTY = 0.02
"""Joules with a larger standard uncertainty of the edges are not given."""

EDGE_GAP_TICKS = 5
"""A tick that is missing this near to an edge makes the energy there unknown."""

GUARD_TICKS = 5
"""So many ticks tell the waiting power beside a quiet edge."""

QUIET_SPREAD = 0.05
"""A guard is not quiet if it leaves a straight line by more than one tick of so much more power would make it."""

TIMING_SPREAD = 3.0
"""By so many standard deviations of its moment may a guard's tick lie beside the straight line."""

DEFAULT_JITTER_S = 0.004
"""Standard deviation of the tick's lag, 4 ms, measured on an H100 80GB HBM3, driver 580."""

EdgesUsed = Literal["quiet", "loaded", "interpolated"]


@dataclass(frozen=True)
class Joules:
    """Energy with its standard uncertainty, both in J; `value` is None with a `reason` if it cannot be given.

    `edges` says how the ends were cut, `power_before_w` and `power_after_w` are the waiting powers beside quiet ones.
    `power_before_std_w` is the standard uncertainty of the first.
    """

    value: float | None
    std_uncertainty: float | None = None
    reason: str | None = None
    edges: EdgesUsed | None = None
    power_before_w: float | None = None
    power_after_w: float | None = None
    power_before_std_w: float | None = None


@dataclass(frozen=True)
class _Guard:
    """The waiting power beside an edge (W), its variance (W²), how it changes (W/s), and the guard's length (s)."""

    power_w: float
    variance: float
    trend_w_per_s: float
    length_s: float


@dataclass(frozen=True)
class _Edge:
    """What the counter would show at an edge (J), its variance (J²), and if quiet the waiting power and its u (W)."""

    joules: float
    variance: float
    quiet_power_w: float | None = None
    quiet_std_w: float | None = None


@dataclass(frozen=True)
class EnergySeries:
    """The ticks of one device in order of time; joules are cumulative from an arbitrary zero."""

    ticks: tuple[Tick, ...]
    jitter_s: float = DEFAULT_JITTER_S

    @cached_property
    def _when(self) -> TickTimes:
        return TickTimes(self.ticks)

    @property
    def times_s(self) -> list[float]:
        """Moments of the ticks, s."""
        return self._when.times_s

    @property
    def period_s(self) -> float | None:
        """Median distance of ticks, s; None with fewer than three ticks."""
        return self._when.period_s

    @property
    def measured_jitter(self) -> Jitter | None:
        """How much these ticks' moments scatter; None with fewer than twenty."""
        return self._when.measured_jitter

    @cached_property
    def went_back(self) -> bool:
        """Whether the counter ever showed less than before: a driver reload or a reset of the GPU."""
        return any(b.joules < a.joules for a, b in pairwise(self.ticks))

    def between(self, start_s: float, end_s: float, edges: Edges = "loaded") -> Joules:
        """Energy from `start_s` to `end_s` with its standard uncertainty; None with a reason where ticks forbid it.

        Args:
            start_s: Start of the window, CLOCK_MONOTONIC.
            end_s: Its end.
            edges: `quiet` if the engine waited for a second on both sides, `loaded` if the load ran on across them.

        Raises:
            MeasurementError: The interval is empty or reversed.

        """
        if end_s <= start_s:
            raise MeasurementError(f"energy window of {end_s - start_s:g} s: its end must lie after its start")
        period = self.period_s
        if not self.ticks:
            return Joules(None, reason="counter_constant: the energy counter did not move: 0 ticks recorded")
        if period is None or period <= 0:
            return Joules(None, reason=f"energy counter: {len(self.ticks)} ticks recorded, at least 3 are needed")
        if self.went_back:
            return Joules(None, reason="counter_reset: the energy counter went back")
        left, right = self._interval_at(start_s), self._interval_at(end_s)
        if left is None or right is None:
            return Joules(None, reason="sample_gap: the counter was not recorded around the window's edges")
        if self._hole_near(start_s, left, edges, "before") or self._hole_near(end_s, right, edges, "after"):
            return Joules(None, reason=f"sample_gap: a tick is missing within {EDGE_GAP_TICKS} ticks of an edge")
        mean_power_w = (self._value(end_s, right) - self._value(start_s, left)) / (end_s - start_s)
        if edges == "quiet":
            begin = self._quiet_start(start_s, left) or self._interpolated(start_s, left, mean_power_w)
            finish = self._quiet_end(end_s, right) or self._interpolated(end_s, right, mean_power_w)
        else:
            begin, finish = (self._loaded(t, i, mean_power_w) for t, i in ((start_s, left), (end_s, right)))
        return _difference(begin, finish, edges)

    def interpolated_j(self, start_s: float, end_s: float) -> float | None:
        """Joules without any judgement, for curves; None outside the recording."""
        left, right = self._interval_at(start_s), self._interval_at(end_s)
        return None if left is None or right is None else self._value(end_s, right) - self._value(start_s, left)

    def mean_power_w(self, start_s: float, end_s: float) -> float | None:
        """Mean power of an interval, W, ends interpolated; None outside the recording or if the counter went back."""
        joules = self.interpolated_j(start_s, end_s) if end_s > start_s else None
        return joules / (end_s - start_s) if joules is not None and joules > 0 else None

    def powers(self, start_s: float, end_s: float) -> list[tuple[float, float]]:
        """(middle in s, mean power in W) of every interval between ticks that lies wholly inside."""
        first, last = bisect_left(self.times_s, start_s), bisect_right(self.times_s, end_s) - 1
        times = self.times_s
        return [
            ((times[i] + times[i + 1]) / 2, self._power_w(i)) for i in range(first, last) if times[i + 1] > times[i]
        ]

    def interior_gap_ticks(self, start_s: float, end_s: float) -> int:
        """Largest number of ticks in a row that were not seen between two instants; the counter lost nothing."""
        first, last = bisect_right(self.times_s, start_s) - 1, bisect_left(self.times_s, end_s)
        return max((h.missing for h in self._when.holes if h.last > first and h.first < last), default=0)

    def _interval_at(self, t_s: float) -> int | None:
        """Index of the tick before an instant that has a tick after it, too."""
        i = bisect_right(self.times_s, t_s)
        return i - 1 if 0 < i < len(self.times_s) else None

    def _value(self, t_s: float, i: int) -> float:
        """The counter at an instant between tick `i` and the next, interpolated, J."""
        return self.ticks[i].joules + self._power_w(i) * (t_s - self.times_s[i])

    def _power_w(self, i: int) -> float:
        """Mean power from tick `i` to the next, W."""
        return (self.ticks[i + 1].joules - self.ticks[i].joules) / (self.times_s[i + 1] - self.times_s[i])

    def _powers_w(self, first: int, last: int) -> list[float]:
        """Powers of the intervals first…last, as far as they were recorded."""
        return [self._power_w(i) for i in range(max(0, first), min(last, len(self.ticks) - 2) + 1)]

    def _sigma2(self, i: int) -> float:
        """Variance of a tick's moment, s²: w²/12 + jitter²."""
        return self._when.width_s(i) ** 2 / 12 + self.jitter_s**2

    def _hole_near(self, t_s: float, i: int, edges: Edges, outer: Literal["before", "after"]) -> bool:
        """Whether a tick is missing within five ticks of an edge in interval `i`.

        Ticks left out on purpose count as missing, too, but not on the inner side of a quiet edge, which needs none.
        """
        if any(self._is_near(t_s, h.first, h.last) for h in self._when.holes):
            return True
        last = len(self.ticks) - 2
        outside = range(i) if outer == "before" else range(i + 1, last + 1)
        near = range(max(0, i - EDGE_GAP_TICKS), min(i + EDGE_GAP_TICKS, last) + 1)
        return any(
            self.ticks[k + 1].skipped and (edges == "loaded" or k in outside) and self._is_near(t_s, k, k + 1)
            for k in near
        )

    def _is_near(self, t_s: float, first: int, last: int) -> bool:
        """Whether a tick that was not seen between two others may have come within five ticks of an instant."""
        period = self.period_s or 0.0
        nearest_s = min(max(t_s, self.times_s[first] + period), self.times_s[last] - period)
        return abs(t_s - nearest_s) <= EDGE_GAP_TICKS * period

    def _loaded(self, t_s: float, i: int, mean_power_w: float) -> _Edge:
        """An edge under load: variance tau²·dP²/48 + (P·sigma_t)²."""
        powers = self._powers_w(i - 1, i + 1)
        step_w = max(abs(p - self._power_w(i)) for p in powers)
        return _Edge(self._value(t_s, i), self._reading_variance(i, mean_power_w) + self._length2(i) * step_w**2 / 48)

    def _interpolated(self, t_s: float, i: int, mean_power_w: float) -> _Edge:
        """An edge that was meant to be quiet and is not: tau·|dP|/2 for the step of power somewhere near it."""
        powers = self._powers_w(i - 1, i + 2)
        step_w = max(powers) - min(powers)
        return _Edge(self._value(t_s, i), self._reading_variance(i, mean_power_w) + self._length2(i) * step_w**2 / 4)

    def _length2(self, i: int) -> float:
        """Square of the tick period, or of an interval that is longer because ticks were left out, s²."""
        return max(self.period_s or 0.0, self.times_s[i + 1] - self.times_s[i]) ** 2

    def _reading_variance(self, i: int, mean_power_w: float) -> float:
        return mean_power_w**2 * max(self._sigma2(i), self._sigma2(i + 1))

    def _quiet_start(self, t_s: float, i: int) -> _Edge | None:
        """The edge before which the engine waited: read at the last tick but one before it; None if it is not quiet."""
        tick = i - 1
        guard = self._waiting(range(tick - GUARD_TICKS, tick))
        if guard is None:
            return None
        gap_s = t_s - self.times_s[tick]
        return self._quiet(tick, gap_s, guard, sign=1)

    def _quiet_end(self, t_s: float, i: int) -> _Edge | None:
        """The edge after which the engine waited: read at the second tick after it; None if it is not quiet."""
        tick = i + 2
        guard = self._waiting(range(tick, tick + GUARD_TICKS))
        if guard is None:
            return None
        gap_s = self.times_s[tick] - t_s
        return self._quiet(tick, gap_s, guard, sign=-1)

    def _quiet(self, tick: int, gap_s: float, guard: _Guard, *, sign: int) -> _Edge:
        """The counter at a quiet edge: variance (P·sigma_t)² + g²·u²(P).

        In u(P) is how far the power may have been from the guard's beyond it, by the guard's own trend: from the
        middle of the guard to that of the gap it is half of both.
        """
        moved_w = guard.trend_w_per_s * (guard.length_s + gap_s) / 2
        value = self.ticks[tick].joules + sign * guard.power_w * gap_s
        variance_j2 = guard.power_w**2 * self._sigma2(tick) + gap_s**2 * (guard.variance + moved_w**2)
        return _Edge(value, variance_j2, guard.power_w, math.sqrt(guard.variance))

    def _waiting(self, intervals: range) -> _Guard | None:
        """What the guard's intervals tell of the waiting power; None if they are too few, or not quiet."""
        if intervals.start < 0 or intervals.stop > len(self.ticks) - 1:
            return None
        first, last = intervals.start, intervals.stop
        length_s = self.times_s[last] - self.times_s[first]
        mean_w = (self.ticks[last].joules - self.ticks[first].joules) / length_s
        one_tick_s = (1 - 1 / GUARD_TICKS) * length_s / GUARD_TICKS
        if mean_w <= 0 or self._off_line_s(range(first, last + 1), mean_w) > QUIET_SPREAD * one_tick_s:
            return None
        powers = [self._power_w(i) for i in intervals]
        middles_s = [(self.times_s[i] + self.times_s[i + 1]) / 2 for i in intervals]
        trend = linear_regression(middles_s, powers).slope
        return _Guard(mean_w, variance(powers) / len(powers), trend, length_s)

    def _off_line_s(self, ticks: range, mean_w: float) -> float:
        """How far these ticks lie off a straight line through the outer ones, beyond what their moments explain, s.

        One tick of another power shifts those behind it against those before. Moments scatter as assumed, or less if
        this recording shows less.
        """
        told = self.measured_jitter
        jitter_s = min(self.jitter_s, told.jitter_s) if told else self.jitter_s
        first, zero_s = self.ticks[ticks.start], self.times_s[ticks.start]
        off = [(self.ticks[i].joules - first.joules) / mean_w - (self.times_s[i] - zero_s) for i in ticks]
        scatter = [TIMING_SPREAD * math.sqrt(self._when.width_s(i) ** 2 / 12 + jitter_s**2) for i in ticks]
        pairs = list(zip(off, scatter, strict=True))
        return max(o - s for o, s in pairs) - min(o + s for o, s in pairs)


def _difference(begin: _Edge, finish: _Edge, wanted: Edges) -> Joules:
    energy, u = finish.joules - begin.joules, math.sqrt(begin.variance + finish.variance)
    if energy <= 0:
        return Joules(None, reason="counter_constant: the energy counter did not move in the window")
    if u > MAX_RELATIVE_UNCERTAINTY * energy:
        return Joules(None, reason=f"window_too_short: the edges' uncertainty is {100 * u / energy:.1f} %, above 2 %")
    powers = (begin.quiet_power_w, finish.quiet_power_w)
    used: EdgesUsed = "interpolated" if wanted == "quiet" and None in powers else wanted
    return Joules(energy, u, None, used, *powers, begin.quiet_std_w)


def device_energy(
    uuid: str, series: EnergySeries, start_s: float, end_s: float, edges: Edges = "loaded"
) -> DeviceEnergy:
    """Joules of one device in a window as a record."""
    found = series.between(start_s, end_s, edges)
    return DeviceEnergy(
        uuid,
        found.value,
        found.std_uncertainty,
        found.reason,
        found.edges,
        found.power_before_w,
        found.power_after_w,
        found.power_before_std_w,
    )


def counter_facts(series: EnergySeries) -> dict[str, Any]:
    """What the ticks alone tell of a counter: the fields of `SensorFacts` that every recording gives anew."""
    jitter = series.measured_jitter
    return {
        "period_s": series.period_s,
        "jitter_s": jitter.jitter_s if jitter else None,
        "jitter_hidden": jitter.hidden if jitter else False,
        "jitter_used_s": series.jitter_s,
        "reading_width_s": median(t.after_s - t.before_s for t in series.ticks) if series.ticks else None,
        "ticks": len(series.ticks),
    }


def total(devices: Iterable[DeviceEnergy]) -> Joules:
    """Sum over devices; uncertainties add in quadrature; what one device lacks, the total lacks."""
    energy, variance = 0.0, 0.0
    known = False
    for device in devices:
        if device.joules is None:
            return Joules(None, reason=f"{device.gpu_uuid}: {device.reason}")
        energy += device.joules
        variance += device.std_uncertainty_j**2 if device.std_uncertainty_j is not None else math.nan
        known = True
    if not known:
        return Joules(None, reason="no device was measured")
    return Joules(energy, None if math.isnan(variance) else math.sqrt(variance))
