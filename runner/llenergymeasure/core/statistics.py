"""Means, percentiles and Student's t: what a few repeated figures say about their expectation.

Own numerics, since the core may not import a library for them: the tail of Student's t is half a regularised
incomplete beta function, here by its continued fraction (DLMF 8.17.22, https://dlmf.nist.gov/8.17#v), evaluated from
the front by Lentz's method as modified by Thompson and Barnett (1986, J. Comput. Phys. 64, 490).
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist, fmean, stdev

from llenergymeasure.core.records import Record

MANY = 1000.0
"""Degrees of freedom from which the series in 1/nu is exact to the last digits, and cheaper."""

CONFIDENCE_TAIL = 0.025
"""Probability beyond either end of a two-sided 95 % interval."""


class Statistic(Record):
    """A quantity over cycles: mean, standard deviation s, n, and the half-width of the 95 % t-interval."""

    mean: float
    s: float | None = None
    n: int
    half_width_95: float | None = None


def statistic(values: Sequence[float]) -> Statistic | None:
    """Mean, s and 95 % t-interval of repeated runs; None without values, no interval below two."""
    if not values:
        return None
    n, mean = len(values), fmean(values)
    if n < 2:
        return Statistic(mean=mean, n=n)
    s = stdev(values)
    return Statistic(mean=mean, s=s, n=n, half_width_95=student_t(1 - CONFIDENCE_TAIL, n - 1) * s / math.sqrt(n))


def percentile(ordered: Sequence[float], share: float) -> float:
    """Percentile of sorted values by linear interpolation between ranks (numpy's default)."""
    position = share * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


@lru_cache(maxsize=1024)
def student_t(p: float, nu: float) -> float:
    """The value that Student's t stays below with probability p.

    Args:
        p: Probability, 0 < p < 1.
        nu: Degrees of freedom, a real number of at least 1; infinity gives the normal distribution.

    Raises:
        ValueError: p or nu out of range.

    """
    if not 0 < p < 1 or not nu >= 1:
        raise ValueError(f"student_t: p = {p:g} must lie between 0 and 1, nu = {nu:g} be at least 1")
    if p < 0.5:
        return -student_t(1 - p, nu)
    z = NormalDist().inv_cdf(p)
    return _near_normal(z, nu) if nu >= MANY else _beyond(1 - p, nu, start=z)


def _near_normal(z: float, nu: float) -> float:
    """Expansion about the normal quantile z (Abramowitz & Stegun 26.7.5)."""
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / nu ** (k + 1) for k, term in enumerate(terms))


def _beyond(tail: float, nu: float, *, start: float) -> float:
    """The t that is exceeded with probability `tail`, from a `start` between 0 and it.

    To the right of 0 the tail is convex, so Newton's steps come nearer from the left only: the first one that does not
    go forward has arrived.
    """
    log_scale = math.lgamma((nu + 1) / 2) - math.lgamma(nu / 2) - math.log(nu * math.pi) / 2
    t = start
    for _ in range(200):  # heavy tails at most double t in a step
        density = math.exp(log_scale - (nu + 1) / 2 * math.log1p(t * t / nu))
        ahead = t + (_upper_tail(t, nu) - tail) / density
        if ahead - t <= 1e-14 * t:
            return max(t, ahead)
        t = ahead
    return t


def _upper_tail(t: float, nu: float) -> float:
    """Probability that Student's t exceeds t >= 0."""
    x, rest = nu / (nu + t * t), t * t / (nu + t * t)
    a, b = nu / 2, 0.5
    if rest == 0:
        return 0.5
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) - a * math.log1p(t * t / nu) + b * math.log(rest)
    front = math.exp(log_front)
    if x < (a + 1) / (a + b + 2):  # where the fraction converges fast
        return front * _fraction(a, b, x) / (2 * a)
    return 0.5 - front * _fraction(b, a, rest) / (2 * b)


def _fraction(a: float, b: float, x: float) -> float:
    """The continued fraction of DLMF 8.17.22, which the incomplete beta function is a multiple of."""
    tiny = 1e-300
    c, d = 1.0, _not_zero(1 - (a + b) * x / (a + 1), tiny)
    d = 1 / d
    value = d
    for m in range(1, 1000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for step in (even, odd):
            d = 1 / _not_zero(1 + step * d, tiny)
            c = _not_zero(1 + step / c, tiny)
            value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return value


def _not_zero(value: float, tiny: float) -> float:
    return value if abs(value) > tiny else tiny
