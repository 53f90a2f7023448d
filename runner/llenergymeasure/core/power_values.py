"""A power that was read again and again: its integral between two instants, and how long nothing was read."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import pairwise
from math import inf

Values = Sequence[tuple[float, float]]
"""(time in s, power in W), in order of time."""


def around(values: Values, start_s: float, end_s: float) -> Values:
    """The values inside an interval and the next one on each side; none where it was not read on both sides of it."""
    first, last = bisect_right(values, (start_s, inf)) - 1, bisect_left(values, (end_s, -inf))
    return values[first : last + 1] if first >= 0 and last < len(values) else ()


def longest_hole_s(values: Values, start_s: float, end_s: float) -> float:
    """Longest time between two values that lies, in part, inside the interval."""
    return max((b - a for (a, _), (b, _) in pairwise(values) if b > start_s and a < end_s), default=0.0)


def integral_j(values: Values, start_s: float, end_s: float) -> float:
    """Integral of straight lines between values, J; the interval must lie between the first and the last one."""
    total = 0.0
    for (t0, p0), (t1, p1) in pairwise(values):
        low, high = max(t0, start_s), min(t1, end_s)
        if high > low:
            slope = (p1 - p0) / (t1 - t0)
            total += (high - low) * (p0 + slope * ((low + high) / 2 - t0))
    return total
