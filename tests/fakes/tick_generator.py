"""Makes up the ticks that a reader would record of an energy counter, for a load whose true energy is known.

It shares no code with the product: power is a sum of straight pieces and sines, its energy an integral in closed form,
and the ticks are plain rows (last reading of the old value in s, first reading of the new one in s, joules).
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

Row = tuple[float, float, float]
RIPPLE = 0.08  # of the mean power, up and down, as whole batches come and go


@dataclass(frozen=True)
class Piece:
    """Power that goes in a straight line from `first_w` to `last_w` between two instants."""

    start_s: float
    end_s: float
    first_w: float
    last_w: float

    def joules(self, until_s: float) -> float:
        """Energy of the piece up to an instant."""
        t = min(max(until_s, self.start_s), self.end_s) - self.start_s
        slope = (self.last_w - self.first_w) / (self.end_s - self.start_s)
        return self.first_w * t + slope * t * t / 2


@dataclass(frozen=True)
class Ripple:
    """A sine of power, added between two instants."""

    start_s: float
    end_s: float
    amplitude_w: float
    period_s: float
    turn: float = 0.0  # of its period, at the start

    def joules(self, until_s: float) -> float:
        """Energy of the ripple up to an instant."""
        t = min(max(until_s, self.start_s), self.end_s) - self.start_s
        k, begin = 2 * math.pi / self.period_s, 2 * math.pi * self.turn
        return self.amplitude_w * (math.cos(begin) - math.cos(begin + k * t)) / k


Load = Sequence[Piece | Ripple]


def true_joules(load: Load, start_s: float, end_s: float) -> float:
    """Energy of an interval."""
    return sum(part.joules(end_s) - part.joules(start_s) for part in load)


def waiting_and_work(
    start_s: float, end_s: float, *, before_w: float = 120, work_w: float = 600, turn: float = 0.0
) -> Load:
    """An engine that waits, works with a ripple, and waits again, a little warmer and cooling down."""
    return (
        Piece(start_s - 1000, start_s, before_w, before_w),
        Piece(start_s, end_s, work_w, work_w * 1.01),
        Ripple(start_s, end_s, RIPPLE * work_w, 0.73, turn),
        Piece(end_s, end_s + 20, before_w * 1.08, before_w),
        Piece(end_s + 20, end_s + 1000, before_w, before_w),
    )


def work_all_along(start_s: float, end_s: float, *, work_w: float = 600, turn: float = 0.0) -> Load:
    """A load that runs on across both edges of a window, with a ripple and a slow rise."""
    return (
        Piece(start_s - 100, end_s + 100, work_w, work_w * 1.02),
        Ripple(start_s - 100, end_s + 100, RIPPLE * work_w, 0.73, turn),
    )


@dataclass(frozen=True)
class Counter:
    """How a counter ticks and how it is read; times in s."""

    period_s: float = 0.1
    phase: float = 0.0  # of the period
    lag_s: float = 0.0
    jitter_s: float = 0.0  # standard deviation of the lag
    poll_s: float = 0.0  # between readings
    seed: int = 1


def record(load: Load, counter: Counter, start_s: float, end_s: float) -> list[Row]:
    """The ticks between two instants: each shows the energy of `lag_s` ago, give or take the jitter."""
    draw = random.Random(counter.seed)
    rows: list[Row] = []
    count = int((end_s - start_s) / counter.period_s)
    zero_s = start_s + counter.phase * counter.period_s
    for i in range(count):
        tick_s = zero_s + i * counter.period_s
        shown_j = true_joules(load, start_s - 1, tick_s - counter.lag_s - draw.gauss(0, counter.jitter_s))
        first_new_s = tick_s + draw.uniform(0, counter.poll_s)
        rows.append((first_new_s - counter.poll_s, first_new_s, shown_j))
    return rows
