"""How surely the joules of one run are known: the parts of measurement.md §5, put together.

Every part is a standard uncertainty as a fraction of joules per output token, with its degrees of freedom. Two 95 %
half-widths come of them: `comparison` between configurations on the same GPU, in which the gain of its sensor cancels,
and `absolute`, which has it. Idle power is subtracted as joules, so what is uncertain by a fraction of all joules is
uncertain by a larger fraction of the adjusted ones.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import fmean
from typing import Literal

from llenergymeasure.core.records import Record
from llenergymeasure.core.statistics import CONFIDENCE_TAIL, student_t

GAIN_LIMIT = 0.10
"""Half-width of the rectangle in which an uncalibrated board's gain lies: -9.5 ... +11 % (measurement.md §1)."""

ASSUMED_SPREAD = 0.01
"""Standard deviation between fresh processes until it has been measured on this GPU."""

MIN_DEGREES_OF_FREEDOM = 10
"""A spread that rests on fewer is not taken for known."""

ENERGY_PER_WORK_SHARE = 0.3
"""Share of the joules that follows a shift of work between prefill and decode (measurement.md §5)."""


@dataclass(frozen=True)
class Part:
    """One contribution: standard uncertainty as a fraction, and its degrees of freedom (infinite: not estimated)."""

    value: float
    degrees_of_freedom: float = math.inf


@dataclass(frozen=True)
class Spread:
    """Standard deviation of ln(J/token) between runs in fresh processes, pooled over studies on one GPU."""

    value: float
    degrees_of_freedom: float


class Uncertainty(Record):
    """Relative uncertainties of joules per output token, as fractions.

    `edge`, `tokens`, `work`, `between_runs`, `baseline` are standard uncertainties: of the window's edges, of the
    tokens at them, of an unequal mix of work, of a run against its repetition, of the idle power (in the adjusted
    joules alone). `standard` is the first four together, with `degrees_of_freedom` (null: infinite). The others are
    95 % half-widths: `comparison` holds between configurations on this GPU, `absolute` includes the sensor's gain,
    whose limits are ±`gain_limit`.
    """

    edge: float | None = None
    tokens: float | None = None
    work: float | None = None
    between_runs: float | None = None
    between_runs_source: str | None = None
    between_runs_degrees_of_freedom: float | None = None
    baseline: float | None = None
    gain_limit: float | None = None
    standard: float | None = None
    degrees_of_freedom: float | None = None
    comparison: float | None = None
    absolute: float | None = None
    adjusted_comparison: float | None = None
    adjusted_absolute: float | None = None


@dataclass(frozen=True)
class OneRun:
    """What the uncertainty of a run follows from; joules in J, times in s, `imbalance` is W of measurement.md §3."""

    energy_j: float | None
    edge_std_j: float | None
    window_s: float
    itl_s: float | None = None
    imbalance: float = 0.0
    spread: Spread | None = None
    adjusted_j: float | None = None
    baseline_std_w: float | None = None
    gain_limit: float = GAIN_LIMIT


def of_one_run(run: OneRun) -> Uncertainty:
    """The budget of one run; empty where the joules, or the error of their edges, are unknown or impossible."""
    if run.energy_j is None or run.energy_j <= 0 or run.edge_std_j is None:
        return Uncertainty()
    between, source = between_runs(run.spread)
    edge, work = Part(run.edge_std_j / run.energy_j), Part(work_part(run.imbalance))
    tokens = Part(token_part(run.itl_s, run.window_s))
    parts = [edge, tokens, work, between]
    freedom, comparison = effective_freedom(parts), half_width(parts)
    known = Uncertainty(
        edge=edge.value,
        tokens=tokens.value,
        work=work.value,
        between_runs=between.value,
        between_runs_source=source,
        between_runs_degrees_of_freedom=_finite(between.degrees_of_freedom),
        gain_limit=run.gain_limit,
        standard=combined(parts),
        degrees_of_freedom=_finite(freedom),
        comparison=comparison,
        absolute=with_gain(comparison, run.gain_limit),
    )
    return known.model_copy(update=_adjusted(run, [edge, work, between], tokens))


def _adjusted(run: OneRun, of_joules: Sequence[Part], tokens: Part) -> dict[str, float | None]:
    """The same for the adjusted joules: fractions of all joules grow as those shrink, the baseline's part comes in."""
    if run.adjusted_j is None or run.adjusted_j <= 0 or run.baseline_std_w is None or not run.energy_j:
        return {}
    growth = run.energy_j / run.adjusted_j
    idle = baseline_part(run.window_s, run.baseline_std_w, run.adjusted_j)
    grown = [Part(growth * p.value, p.degrees_of_freedom) for p in of_joules]
    comparison = half_width([*grown, tokens, Part(idle)])
    return {
        "baseline": idle,
        "adjusted_comparison": comparison,
        "adjusted_absolute": with_gain(comparison, run.gain_limit),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def between_runs(spread: Spread | None) -> tuple[Part, Literal["measured", "assumed"]]:
    """The part of a run against its repetition: as measured on this GPU if often enough, else 1 %, assumed."""
    if spread is None or spread.degrees_of_freedom < MIN_DEGREES_OF_FREEDOM:
        return Part(ASSUMED_SPREAD), "assumed"
    return Part(spread.value, spread.degrees_of_freedom), "measured"


def pooled(sums: Iterable[tuple[float, float]]) -> Spread | None:
    """One spread of several studies, from their (sum of squared residuals, degrees of freedom); None of nothing."""
    known = list(sums)
    freedom = math.fsum(nu for _, nu in known)
    return Spread(math.sqrt(math.fsum(squares for squares, _ in known) / freedom), freedom) if freedom > 0 else None


def token_part(itl_s: float | None, window_s: float) -> float:
    """u_tok = ITL / (T sqrt 6); 0 where the window holds whole requests (`itl_s` None)."""
    return 0.0 if itl_s is None else itl_s / (window_s * math.sqrt(6))


def work_part(imbalance: float) -> float:
    """u_work = 0.3 |W| / sqrt 3."""
    return ENERGY_PER_WORK_SHARE * abs(imbalance) / math.sqrt(3)


def baseline_part(window_s: float, baseline_std_w: float, adjusted_j: float) -> float:
    """u_base = T u(P_b) / E_adj."""
    return window_s * baseline_std_w / abs(adjusted_j)


@dataclass(frozen=True)
class IdleShare:
    """How much adjusted joules hang on the idle power that was subtracted.

    Args:
        seconds_per_joule: T/E_adj, mean over the runs.
        std_w: u(P_b), W.
        measured: When the idle powers were measured that these runs subtracted.
        runs: How many runs there are.

    """

    seconds_per_joule: float
    std_w: float
    measured: frozenset[datetime]
    runs: int

    @property
    def systematic(self) -> float:
        """Relative standard uncertainty that repetition does not show; 0 where every run measured its own idle."""
        return self.seconds_per_joule * self.std_w if len(self.measured) < self.runs else 0.0


def idle_part(a: IdleShare | None, b: IdleShare | None) -> float:
    """Standard uncertainty of ln(A/B) of adjusted joules from their idle powers, beyond what repetition shows.

    |T_A/E_A - T_B/E_B| u(P_b) where they share a baseline: its error then meets both alike.
    """
    if a is None or b is None:
        return 0.0
    if a.measured & b.measured:
        return abs(a.seconds_per_joule - b.seconds_per_joule) * max(a.std_w, b.std_w)
    return math.hypot(a.systematic, b.systematic)


def combined(parts: Sequence[Part]) -> float:
    """Standard uncertainty of independent parts: their square sum's root."""
    return math.sqrt(math.fsum(p.value**2 for p in parts))


def effective_freedom(parts: Sequence[Part]) -> float:
    """Degrees of freedom of parts taken together, u^4 / sum(u_i^4 / nu_i) (Welch and Satterthwaite); at least 1."""
    below = math.fsum(p.value**4 / p.degrees_of_freedom for p in parts)
    return max(1.0, combined(parts) ** 4 / below) if below > 0 else math.inf


def half_width(parts: Sequence[Part]) -> float:
    """U = t.975(nu_eff) u: the 95 % half-width of parts taken together."""
    return student_t(1 - CONFIDENCE_TAIL, effective_freedom(parts)) * combined(parts)


def with_gain(comparison: float, gain_limit: float) -> float:
    """U_abs = sqrt((0.95 a)^2 + U_cmp^2): 95 % of the gain's rectangle beside everything else."""
    return math.hypot(0.95 * gain_limit, comparison)


def mean_half_width(values: Sequence[float], systematic: float) -> float | None:
    """95 % half-width of a mean over cycles, u^2 = s^2/n + u_sys^2, in the values' unit; None below two values.

    Args:
        values: One figure per cycle.
        systematic: Standard uncertainty of what is the same in every cycle, and so not in their spread.

    """
    n = len(values)
    if n < 2:
        return None
    mean = fmean(values)
    spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    return half_width([Part(spread / math.sqrt(n), n - 1), Part(systematic)])
