"""When the ticks of a counter came: their beat, how they scatter about it, and which of them were not seen."""

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from statistics import fmean, median, variance

SLOW_READING = 1.5
"""A reading wider than so many times the median says little of its tick's moment."""

LATE_READING = 0.5
"""A tick whose reading is wider than this share of the period may have come anywhere in it, or several may have."""


@dataclass(frozen=True, slots=True)
class Tick:
    """One counter update: old value last seen at `before_s`, new value `joules` first seen at `after_s`.

    `skipped` ticks before it were left out on purpose, to spare the processor inside a long window.
    """

    before_s: float
    after_s: float
    joules: float
    skipped: int = 0

    @property
    def t_s(self) -> float:
        """Best estimate of the moment of the update."""
        return (self.before_s + self.after_s) / 2


@dataclass(frozen=True)
class Jitter:
    """Standard deviation of a tick's moment about its beat, s; an upper limit of it where the readings hide it."""

    jitter_s: float
    hidden: bool = False


@dataclass(frozen=True)
class Hole:
    """So many ticks were not seen between two ticks, by their indices, that were read in time."""

    first: int
    last: int
    missing: int


@dataclass(frozen=True)
class TickTimes:
    """The moments of one device's ticks, in order of time."""

    ticks: tuple[Tick, ...]

    @cached_property
    def times_s(self) -> list[float]:
        """Moments of the ticks, s.

        Where the sampler stalled, several ticks lie between two readings; the value is that of the last, which came
        within a period of the second.
        """
        period = self.period_s or math.inf
        return [t.t_s if t.after_s - t.before_s <= period else t.after_s - period / 2 for t in self.ticks]

    @cached_property
    def period_s(self) -> float | None:
        """Median distance of ticks, s; None with fewer than three ticks."""
        if len(self.ticks) < 3:
            return None
        distances = [(b.t_s - a.t_s, b.skipped) for a, b in pairwise(self.ticks)]
        near = [distance for distance, skipped in distances if not skipped]
        return median(near) if len(near) > 1 else median(distance / (skipped + 1) for distance, skipped in distances)

    @cached_property
    def measured_jitter(self) -> Jitter | None:
        """How much these ticks' moments scatter; None with fewer than twenty. Holes and slow readings are left out.

        Distances of neighbours scatter by twice the variance s² of one tick. A reading of width w explains w²/12 of s²
        at most, less where the driver looks at the counter in the middle of a call. What is left is the jitter if it is
        more than twice its standard uncertainty s²·√(3/n) (3, as neighbouring distances share a tick); else all of the
        scatter, with twice that uncertainty, is the jitter's upper limit.
        """
        period = self.period_s or 0.0
        pairs = enumerate(pairwise(self.times_s))
        near = [(b - a, i) for i, (a, b) in pairs if b - a < 1.5 * period and not self.ticks[i + 1].skipped]
        if len(near) < 20:
            return None
        widest = SLOW_READING * median(self.width_s(i) for _, i in near)
        kept = [(d, i) for d, i in near if max(self.width_s(i), self.width_s(i + 1)) <= widest]
        if len(kept) < 10:
            return None
        scatter2 = variance(d for d, _ in kept) / 2
        left2 = scatter2 - fmean(self.width_s(i) ** 2 + self.width_s(i + 1) ** 2 for _, i in kept) / 24
        twice_u2 = 2 * scatter2 * math.sqrt(3 / len(kept))
        hidden = left2 <= twice_u2
        return Jitter(math.sqrt(scatter2 + twice_u2 if hidden else left2), hidden)

    def width_s(self, i: int) -> float:
        """How long a tick's moment was open, s; at most a period, as the last of several came within one."""
        return min(self.ticks[i].after_s - self.ticks[i].before_s, self.period_s or math.inf)

    @cached_property
    def holes(self) -> list[Hole]:
        """Where ticks were surely not seen: fewer were recorded between two that were read in time than beats passed.

        So a tick that was read late is not missing, and those that a stall of the sampler swallowed are.
        """
        period = self.period_s
        if not period:
            return []
        last = len(self.ticks) - 1
        in_time = [i for i in range(last + 1) if i in (0, last) or self.width_s(i) <= LATE_READING * period]
        holes = (Hole(a, b, self._missing(a, b, period)) for a, b in pairwise(in_time))
        return [h for h in holes if h.missing > 0]

    def _missing(self, a: int, b: int, period: float) -> int:
        """How many ticks were surely not seen between ticks `a` and `b`; either may have been late at the very ends."""
        late = sum(max(0.0, self.width_s(k) / 2 - period / 4) for k in (a, b))
        passed = round((self.times_s[b] - self.times_s[a] - late) / period)
        return passed - (b - a) - sum(t.skipped for t in self.ticks[a + 1 : b + 1])
