"""Says which configuration is better, by how much and how surely, from the same runs repeated over cycles.

Every figure is compared as its logarithm, y = ln(figure), so that differences are ratios; the unit of repetition is
the run in a fresh process (measurement.md §5, "Study"). Inside a study configurations are compared within cycles;
between two sittings nothing is shared and each side stands for itself (Welch).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, variance
from typing import Literal

from pydantic import Field

from llenergymeasure.core.records import Record
from llenergymeasure.core.statistics import CONFIDENCE_TAIL, student_t
from llenergymeasure.core.two_way import TwoWayFit, fit_two_way
from llenergymeasure.core.uncertainty import GAIN_LIMIT, IdleShare, idle_part

ENERGY, SPEED, LATENCY = "energy_per_output_token_j", "tokens_per_second", "latency.p50_ms"
ADJUSTED = "energy_adjusted_per_output_token_j"
LOWER_IS_BETTER: Mapping[str, bool] = {ENERGY: True, SPEED: False, LATENCY: True}
"""The quantities that are compared, and in which direction."""

POWER = 0.80
"""Chance of seeing a difference as large as the smallest detectable one."""

ROUNDING = 1e-12
"""Ratios closer to 1 differ by the computer's arithmetic only."""

Finding = Literal["lower", "higher", "no_difference"]
Shares = Mapping[str, float]
"""Share of each GPU, by UUID, in a configuration's joules."""


@dataclass(frozen=True)
class Boards:
    """Whose joules they are: share of each GPU by position of the configuration, and the half-width of its gain.

    A GPU without a limit is uncalibrated.
    """

    shares: Mapping[int, Shares] = field(default_factory=dict)
    gain_limits: Mapping[str, float] = field(default_factory=dict)


class Drift(Record):
    """What changed over the study: cycle `to_cycle` ÷ cycle `from_cycle`, over all configurations, 95 % interval."""

    from_cycle: int
    to_cycle: int
    ratio: float
    low: float | None = None
    high: float | None = None


class PairComparison(Record):
    """Configuration b against a: `ratio` is b ÷ a, with its 95 % interval over all claims made together.

    `largest_difference` is the fraction that the interval still allows; `gain_allowance` the half-width of ln(ratio)
    that comes from gain errors of different boards' sensors, 0 on one board. `idle_power_part` is the standard
    uncertainty of ln(ratio) from the idle powers that were subtracted, 0 for joules as they were counted.
    """

    a_hash: str
    b_hash: str
    a_summary: str
    b_summary: str
    cycles: int
    ratio: float
    ratio_low: float
    ratio_high: float
    finding: Finding
    largest_difference: float
    gain_allowance: float = 0.0
    idle_power_part: float = 0.0


class QuantityComparison(Record):
    """One quantity over a study's configurations; fractions are of the quantity.

    `reason` says why nothing is claimed, `unclaimed` why nothing is claimed of one configuration, by its hash.
    """

    quantity: str
    pooled_cv: float | None = None
    degrees_of_freedom: int | None = None
    smallest_detectable_difference: float | None = None
    drift: Drift | None = None
    best_hash: str | None = None
    against_best: list[PairComparison] = Field(default_factory=list)
    against_first: list[PairComparison] = Field(default_factory=list)
    unclaimed: dict[str, str] = Field(default_factory=dict)
    reason: str | None = None


@dataclass(frozen=True)
class Interval:
    """A ratio and its 95 % interval."""

    ratio: float
    low: float
    high: float

    @classmethod
    def around(cls, log_ratio: float, half_width: float) -> "Interval":
        """From a difference of logarithms and its half-width."""
        return cls(math.exp(log_ratio), math.exp(log_ratio - half_width), math.exp(log_ratio + half_width))

    @property
    def finding(self) -> Finding:
        """What the interval says of b against a."""
        if self.high < 1 - ROUNDING:
            return "lower"
        return "higher" if self.low > 1 + ROUNDING else "no_difference"

    @property
    def largest_difference(self) -> float:
        """The largest difference that it allows, as a fraction."""
        return max(self.high - 1, 1 - self.low)


@dataclass(frozen=True)
class LogMean:
    """Mean of y = ln(figure) over n runs, variance of that mean, degrees of freedom (infinite: assumed)."""

    value: float
    variance: float
    degrees_of_freedom: float
    n: int


def log_mean(
    figures: Sequence[float], one_run: float | None = None, *, degrees_of_freedom: float | None = None
) -> LogMean | None:
    """Mean of positive figures as logarithms.

    Args:
        figures: Of repeated runs.
        one_run: Standard uncertainty, as a fraction, of a single run; with one figure it stands for what repetition
            would have told.
        degrees_of_freedom: Of that; None is infinite.

    Returns:
        None if one figure has no such uncertainty, or there is none.

    """
    logs = [math.log(f) for f in figures]
    if len(logs) > 1:
        return LogMean(fmean(logs), variance(logs) / len(logs), len(logs) - 1, len(logs))
    if not logs or one_run is None:
        return None
    return LogMean(logs[0], one_run**2, math.inf if degrees_of_freedom is None else degrees_of_freedom, 1)


def apart(a: LogMean, b: LogMean, *, claims: int = 1, gain_allowance: float = 0.0) -> Interval:
    """b ÷ a of runs that share nothing, by Welch's interval on logarithms (Welch 1947, Biometrika 34, 28)."""
    both = a.variance + b.variance
    parts = a.variance**2 / a.degrees_of_freedom + b.variance**2 / b.degrees_of_freedom
    freedom = both**2 / parts if parts > 0 else math.inf
    spread = student_t(1 - CONFIDENCE_TAIL / claims, freedom) * math.sqrt(both)
    return Interval.around(b.value - a.value, math.hypot(spread, gain_allowance))


def in_blocks(
    fit: TwoWayFit, a: int, b: int, *, claims: int = 1, gain_allowance: float = 0.0, shared: float = 0.0
) -> Interval | None:
    """b ÷ a over the cycles that have both; None with fewer than two, or with nothing to estimate a spread from.

    Args:
        fit: Logarithms by configuration and cycle.
        a: Position of the reference.
        b: Position of the other.
        claims: Claims that are made together.
        gain_allowance: Half-width of ln(b ÷ a) from different boards.
        shared: Standard uncertainty of ln(b ÷ a) that is the same in every cycle, such as that of a shared baseline.

    """
    common = shared_cycles(fit, a, b)
    if len(common) < 2 or not fit.spreads:
        return None
    log_ratio = fmean(fit.values[b][c] - fit.values[a][c] for c in common)
    chance = math.sqrt((fit.spreads[a] + fit.spreads[b]) / len(common))
    spread = student_t(1 - CONFIDENCE_TAIL / claims, fit.degrees_of_freedom) * chance
    # half-widths, not variances: effective degrees of freedom would take too much off the t of two or three
    known = student_t(1 - CONFIDENCE_TAIL / claims, math.inf) * shared
    return Interval.around(log_ratio, math.hypot(spread, known, gain_allowance))


def shared_cycles(fit: TwoWayFit, a: int, b: int) -> list[int]:
    """Cycles with a figure on both sides."""
    return sorted(fit.values[a].keys() & fit.values[b].keys())


def gain_allowance(a: Shares, b: Shares, *, limits: Mapping[str, float] | None = None, claims: int = 1) -> float:
    """Half-width of ln(b ÷ a) from gain errors of the boards, 0 if both sides use the same ones in the same shares.

    Each board reads wrong by up to its limit, all values alike: ±10 % where it is not calibrated (measurement.md §1).
    What a board has on both sides cancels. The sum of what is left is taken for normal, which is wider than it is, and
    never beyond its bound.

    Args:
        a: Share of each board in the reference's joules.
        b: Likewise of the other.
        limits: Half-width of each board's gain, a fraction; ±10 % for a board that is not in it.
        claims: Claims that are made together.

    """
    known = limits or {}
    left = [(b.get(u, 0.0) - a.get(u, 0.0)) * known.get(u, GAIN_LIMIT) for u in a.keys() | b.keys()]
    normal = student_t(1 - CONFIDENCE_TAIL / claims, math.inf) * math.sqrt(math.fsum(w * w for w in left) / 3)
    allowance = min(normal, math.fsum(map(abs, left)))
    return allowance if allowance > ROUNDING else 0.0


def fit_logs(figures: Mapping[int, Mapping[int, float]]) -> TwoWayFit:
    """Fit positive figures by configuration and cycle as logarithms."""
    return fit_two_way({i: {c: math.log(v) for c, v in row.items()} for i, row in figures.items() if row})


def no_claim(figures: Mapping[int, Mapping[int, float]], order: str) -> str | None:
    """Why no configurations can be compared, as `code: sentence`; None if they can."""
    rows = [row for row in figures.values() if row]
    if not rows:
        return "no_valid_cycle: no run was judged valid"
    if any(v <= 0 for row in rows for v in row.values()):
        return "not_positive: a figure is zero or negative, so there are no ratios"
    if len(rows) == 1:
        return "one_configuration: only one configuration has valid figures, there is nothing to compare it with"
    if sum(len(row) > 1 for row in rows) < 2:
        return "one_cycle: fewer than two configurations have two valid cycles; add cycles"
    if order == "sequential":
        return (
            "order_confounded: all cycles of a configuration ran one after the other, so that a drift of the machine "
            "looks like a difference of configurations; use cycle_order shuffled"
        )
    return None


def compare_all(
    values: Mapping[str, Mapping[int, Mapping[int, float]]],
    *,
    hashes: Sequence[str],
    summaries: Sequence[str],
    order: str,
    lower_is_better: Mapping[str, bool],
    boards: Mapping[str, Boards] | None = None,
    idles: Mapping[str, Mapping[int, IdleShare]] | None = None,
) -> list[QuantityComparison]:
    """Compare the configurations of a study in each quantity.

    Args:
        values: Figures of believed runs by quantity, position of the configuration and cycle.
        hashes: Hash of each configuration by position.
        summaries: Likewise in words.
        order: The study's cycle_order.
        lower_is_better: By quantity.
        boards: By quantity, for those that depend on the gain of a GPU's sensor.
        idles: Likewise, and by position, for quantities from which an idle power was subtracted.

    """
    gains, shared = boards or {}, idles or {}
    return [
        _Quantity(name, figures, hashes, summaries, gains.get(name, Boards()), shared.get(name, {})).compared(
            order, lower_is_better=lower_is_better[name]
        )
        for name, figures in values.items()
    ]


@dataclass(frozen=True)
class _Quantity:
    name: str
    figures: Mapping[int, Mapping[int, float]]
    hashes: Sequence[str]
    summaries: Sequence[str]
    boards: Boards
    idles: Mapping[int, IdleShare]

    def compared(self, order: str, *, lower_is_better: bool) -> QuantityComparison:
        reason = no_claim(self.figures, order)
        if reason is not None and reason.startswith(("no_valid_cycle", "not_positive")):
            return QuantityComparison(quantity=self.name, reason=reason)
        fit = fit_logs(self.figures)
        pooled = fit.pooled_variance
        known = QuantityComparison(
            quantity=self.name,
            pooled_cv=None if pooled is None else math.sqrt(pooled),
            degrees_of_freedom=fit.degrees_of_freedom or None,
            drift=drift(fit),
            reason=reason,
        )
        if reason is not None:
            return known
        if pooled is None:  # cycles that no two configurations share
            return known.model_copy(update={"reason": "one_cycle: no two configurations have two cycles in common"})
        return known.model_copy(update=self._claims(fit, pooled, lower_is_better=lower_is_better))

    def _claims(self, fit: TwoWayFit, pooled: float, *, lower_is_better: bool) -> dict[str, object]:
        able = [i for i in sorted(fit.values) if len(fit.values[i]) > 1]
        first, best, k = able[0], best_of(fit, lower_is_better=lower_is_better), len(fit.values)
        found = {
            "against_best": self._against(fit, best, k * (k - 1) // 2),
            "against_first": self._against(fit, first, k - 1),
        }
        claimed = {c.b_hash for pairs in found.values() for c in pairs} | {self.hashes[first], self.hashes[best]}
        return {
            **found,
            "best_hash": self.hashes[best],
            "smallest_detectable_difference": _detectable(fit, pooled, able),
            "unclaimed": {d: self._why(i, fit) for i, d in enumerate(self.hashes) if d not in claimed},
        }

    def _against(self, fit: TwoWayFit, a: int, claims: int) -> list[PairComparison]:
        pairs = [self._pair(fit, a, b, claims) for b in sorted(fit.values) if b != a]
        return [p for p in pairs if p is not None]

    def _pair(self, fit: TwoWayFit, a: int, b: int, claims: int) -> PairComparison | None:
        shares = [self.boards.shares.get(i, {}) for i in (a, b)]
        allowance = gain_allowance(*shares, limits=self.boards.gain_limits, claims=claims)
        shared = idle_part(self.idles.get(a), self.idles.get(b))
        found = in_blocks(fit, a, b, claims=claims, gain_allowance=allowance, shared=shared)
        if found is None:
            return None
        return PairComparison(
            a_hash=self.hashes[a],
            b_hash=self.hashes[b],
            a_summary=self.summaries[a],
            b_summary=self.summaries[b],
            cycles=len(shared_cycles(fit, a, b)),
            ratio=found.ratio,
            ratio_low=found.low,
            ratio_high=found.high,
            finding=found.finding,
            largest_difference=found.largest_difference,
            gain_allowance=allowance,
            idle_power_part=shared,
        )

    def _why(self, position: int, fit: TwoWayFit) -> str:
        n = len(fit.values.get(position, {}))
        if n == 0:
            return "no_valid_cycle: no run was judged valid"
        if n == 1:
            return "one_cycle: one valid cycle says nothing about repeatability"
        return "one_cycle: fewer than two valid cycles in common with what it would be compared with"


def best_of(fit: TwoWayFit, *, lower_is_better: bool) -> int:
    """The configuration with the best mean, freed of its cycles' effects; one with two cycles, if there is any."""
    able = [i for i, row in fit.values.items() if len(row) > 1] or list(fit.values)
    sign = 1 if lower_is_better else -1
    return min(able, key=lambda i: (sign * fit.effects[i], i))


def _detectable(fit: TwoWayFit, pooled: float, able: Sequence[int]) -> float:
    """(t.975 + t.80) s_p sqrt(2/n), n the harmonic mean of the configurations' cycles."""
    t = student_t(1 - CONFIDENCE_TAIL, fit.degrees_of_freedom) + student_t(POWER, fit.degrees_of_freedom)
    return t * math.sqrt(2 * pooled * fmean(1 / len(fit.values[i]) for i in able))


def drift(fit: TwoWayFit) -> Drift | None:
    """The last cycle against the first; without interval where nothing is left to estimate one, as with one row."""
    first, last = min(fit.cycle_effects), max(fit.cycle_effects)
    found = None if first == last else fit.change(first, last)
    if found is None:
        return None
    change, spread = found
    if spread is None:
        return Drift(from_cycle=first, to_cycle=last, ratio=math.exp(change))
    half_width = student_t(1 - CONFIDENCE_TAIL, fit.degrees_of_freedom) * math.sqrt(max(spread, 0.0))
    interval = Interval.around(change, half_width)
    return Drift(from_cycle=first, to_cycle=last, ratio=interval.ratio, low=interval.low, high=interval.high)
