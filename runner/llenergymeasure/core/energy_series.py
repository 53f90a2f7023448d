"""Turns the recorded ticks of a cumulative energy counter into joules between two instants, with an uncertainty.

A tick is the moment at which the counter showed a new value; it lies between the last reading of the old value and
the first reading of the new one. At an edge inside the load the energy is interpolated linearly between the ticks
around it (measurement.md §2, "loaded" edges). Quiet edges with guard intervals build on the same series.
"""

import math
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from statistics import median

from llenergymeasure.core.contracts import DeviceEnergy
from llenergymeasure.core.errors import MeasurementError

MAX_RELATIVE_UNCERTAINTY = 0.02
"""Joules with a larger standard uncertainty of the edges are not given (measurement.md §2)."""

EDGE_GAP_TICKS = 3
"""A hole of more than this many periods around an edge makes the energy there unknown."""

DEFAULT_JITTER_S = 0.004
"""Standard deviation of the tick's lag, 4 ms, measured on an H100 80GB HBM3, driver 580 (measurement.md §1)."""


@dataclass(frozen=True)
class Tick:
    """One counter update: old value last seen at `before_s`, new value `joules` first seen at `after_s`."""

    before_s: float
    after_s: float
    joules: float

    @property
    def t_s(self) -> float:
        """Best estimate of the moment of the update."""
        return (self.before_s + self.after_s) / 2


@dataclass(frozen=True)
class Joules:
    """Energy with its standard uncertainty, both in J; `value` is None with a `reason` if it cannot be given."""

    value: float | None
    std_uncertainty: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class EnergySeries:
    """The ticks of one device in order of time; joules are cumulative from an arbitrary zero."""

    ticks: tuple[Tick, ...]
    jitter_s: float = DEFAULT_JITTER_S

    @cached_property
    def times_s(self) -> list[float]:
        """Moments of the ticks, s."""
        return [t.t_s for t in self.ticks]

    @cached_property
    def period_s(self) -> float | None:
        """Median distance of ticks, s; None with fewer than three ticks."""
        if len(self.ticks) < 3:
            return None
        return median(b - a for a, b in zip(self.times_s, self.times_s[1:], strict=False))

    def between(self, start_s: float, end_s: float) -> Joules:
        """Energy from `start_s` to `end_s`, edges interpolated; None with a reason where ticks do not allow it.

        Raises:
            MeasurementError: The interval is empty or reversed.

        """
        if end_s <= start_s:
            raise MeasurementError(f"energy window of {end_s - start_s:g} s: its end must lie after its start")
        period = self.period_s
        if period is None or period <= 0:
            return Joules(None, reason=f"energy counter: {len(self.ticks)} ticks recorded, at least 3 are needed")
        if any(b.joules < a.joules for a, b in zip(self.ticks, self.ticks[1:], strict=False)):
            return Joules(None, reason="counter_reset: the energy counter went back")
        left, right = self._around(start_s), self._around(end_s)
        if left is None or right is None:
            return Joules(None, reason="sample_gap: the counter was not recorded around the window's edges")
        for a, b in (left, right):
            if self.times_s[b] - self.times_s[a] > EDGE_GAP_TICKS * period:
                return Joules(None, reason="sample_gap: ticks are missing at the window's edge")
        energy = self._value(end_s, right) - self._value(start_s, left)
        if energy <= 0:
            return Joules(None, reason="counter_constant: the energy counter did not move in the window")
        uncertainty = self._edge_uncertainty(left, right, energy / (end_s - start_s), period)
        if uncertainty > MAX_RELATIVE_UNCERTAINTY * energy:
            share = 100 * uncertainty / energy
            return Joules(None, reason=f"window too short for the counter: edge uncertainty {share:.1f} % > 2 %")
        return Joules(energy, uncertainty)

    def interpolated_j(self, start_s: float, end_s: float) -> float | None:
        """Joules without any judgement, for curves; None outside the recording."""
        left, right = self._around(start_s), self._around(end_s)
        return None if left is None or right is None else self._value(end_s, right) - self._value(start_s, left)

    def _around(self, t_s: float) -> tuple[int, int] | None:
        i = bisect_right(self.times_s, t_s)
        return (i - 1, i) if 0 < i < len(self.times_s) else None

    def _value(self, t_s: float, pair: tuple[int, int]) -> float:
        a, b = self.ticks[pair[0]], self.ticks[pair[1]]
        return a.joules + (b.joules - a.joules) * (t_s - a.t_s) / (b.t_s - a.t_s)

    def _power_w(self, i: int) -> float | None:
        if not 0 <= i < len(self.ticks) - 1:
            return None
        a, b = self.ticks[i], self.ticks[i + 1]
        return (b.joules - a.joules) / (b.t_s - a.t_s)

    def _power_step_w(self, i: int) -> float:
        """Largest change of power from the interval at `i` to its neighbours, W."""
        here = self._power_w(i)
        near = [p for p in (self._power_w(i - 1), self._power_w(i + 1)) if p is not None]
        return max((abs(p - here) for p in near), default=0.0) if here is not None else 0.0

    def _edge_uncertainty(
        self, left: tuple[int, int], right: tuple[int, int], mean_power_w: float, period_s: float
    ) -> float:
        """Standard uncertainty in J of two loaded edges: sqrt(tau^2 (dP0^2 + dP1^2)/48 + 2 (P sigma_t)^2)."""
        widths = [self.ticks[i].after_s - self.ticks[i].before_s for i in (*left, *right)]
        sigma_t2 = max(widths) ** 2 / 12 + self.jitter_s**2
        steps = self._power_step_w(left[0]) ** 2 + self._power_step_w(right[0]) ** 2
        return math.sqrt(period_s**2 * steps / 48 + 2 * mean_power_w**2 * sigma_t2)


def device_energy(uuid: str, series: EnergySeries, start_s: float, end_s: float) -> DeviceEnergy:
    """Joules of one device in a window as a record."""
    joules = series.between(start_s, end_s)
    return DeviceEnergy(uuid, joules.value, joules.std_uncertainty, joules.reason)


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
