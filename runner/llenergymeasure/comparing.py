"""Answers whether B is better than A, by how much and how surely: two studies, two runs, or two of one study.

Inside one study the runs of a cycle are compared with each other (core.comparison). Otherwise the same configurations
are compared, or the best of each side if there are none; what differs between the two sessions is then in no interval,
except for the gain of different boards.
"""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any, Literal

from pydantic import Field

from llenergymeasure.core.comparison import (
    ENERGY,
    LOWER_IS_BETTER,
    SPEED,
    Finding,
    Interval,
    LogMean,
    apart,
    fit_logs,
    gain_allowance,
    in_blocks,
    log_mean,
)
from llenergymeasure.core.errors import StudyError
from llenergymeasure.core.plan import describe_all
from llenergymeasure.core.records import Record
from llenergymeasure.core.result import ExperimentResult
from llenergymeasure.core.study_statistics import (
    believed,
    board_shares,
    different_things,
    estimates,
    figures,
    gain_limits,
)
from llenergymeasure.evidence import calibrated_gpus
from llenergymeasure.sides import Configuration, Side, listed
from llenergymeasure.wording import percent

Method = Literal["within_cycles", "different_sessions", "one_run_assumed", "one_run_measured"]
SAME_WORK = ("model", "model_revision", "dataset", "dataset_sha256", "n", "max_input_tokens", "max_output_tokens")
"""What must be alike, or the two sides did different work; a name that is no field of the result is a setting."""

EARLIER_T = 1.96  # half-widths of a single run in results of version 2.0 as first released


class Difference(Record):
    """One quantity of B against A: `ratio` is B ÷ A with its 95 % interval; `reason` says why nothing is claimed.

    A mean with `a_estimated` or `b_estimated` is that of a model's estimates: it is shown and never compared.
    """

    quantity: str
    a_mean: float | None = None
    b_mean: float | None = None
    a_runs: int = 0
    b_runs: int = 0
    a_estimated: bool = False
    b_estimated: bool = False
    method: Method | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    finding: Finding | None = None
    better: Literal["a", "b"] | None = None
    largest_difference: float | None = None
    gain_allowance: float = 0.0
    reason: str | None = None


class Pair(Record):
    """A configuration of A, one of B, and how they differ, in joules per output token first."""

    a_hash: str
    b_hash: str
    a_summary: str
    b_summary: str
    differences: list[Difference]


class Comparison(Record):
    """What is known of B against A; intervals hold for `claims` claims made together."""

    a: str
    b: str
    same_study: bool
    chosen: str
    claims: int
    pairs: list[Pair]
    caveats: list[str] = Field(default_factory=list)


def compare(a: Side, b: Side) -> Comparison:
    """Compare B with A.

    Raises:
        StudyError: It is not clear what to compare, both sides are the same runs, or a side has no believed run.

    """
    same_study = a.uri == b.uri
    chosen, claims, pairs = _within(a, b) if same_study else _across(a, b)
    for i, j in pairs:
        _refuse_itself(a, b, a.configurations[i], b.configurations[j])
    found = [_pair(a, i, b, j, claims, same_study=same_study) for i, j in pairs]
    compared = [(a.configurations[i], b.configurations[j]) for i, j in pairs]
    return Comparison(
        a=a.name,
        b=b.name,
        same_study=same_study,
        chosen=chosen,
        claims=claims,
        pairs=found,
        caveats=[*_of_sessions(a, b), *caveats(compared, found)],
    )


def _pair(a: Side, i: int, b: Side, j: int, claims: int, *, same_study: bool) -> Pair:
    one, other = a.configurations[i], b.configurations[j]
    unclear = one.summary == other.summary or 1 in (len(a.configurations), len(b.configurations))
    names = (_names(one, other) if unclear else None) or (one.summary, other.summary)
    return Pair(
        a_hash=one.config_hash,
        b_hash=other.config_hash,
        a_summary=names[0],
        b_summary=names[1],
        differences=[_difference(a, i, b, j, name, claims, same_study=same_study) for name in LOWER_IS_BETTER],
    )


def _names(one: Configuration, other: Configuration) -> list[str] | None:
    """What tells two apart: the summary of either says only how it differs from the others of its own side."""
    if one.config is None or other.config is None or one.config_hash == other.config_hash:
        return None
    return describe_all([one.config, other.config])


def _refuse_itself(a: Side, b: Side, one: Configuration, other: Configuration) -> None:
    if {r.experiment_id for r in one.runs.values()} & {r.experiment_id for r in other.runs.values()}:
        there = listed(max(a, b, key=lambda side: len(side.configurations)))
        raise StudyError(f"{a.name} and {b.name} hold the same runs; name two configurations with #HASH: {there}")


_Chosen = tuple[str, int, list[tuple[int, int]]]  # in words; claims made together; positions in A and in B


def _within(a: Side, b: Side) -> _Chosen:
    """Which two configurations of one study are meant."""
    count = len(a.configurations)
    if a.picked is not None and b.picked is not None:
        return "the two configurations that were named", 1, [(a.picked, b.picked)]
    if a.picked is None and b.picked is None:
        raise StudyError(f"{a.name} and {b.name} are one study; name two of its configurations with #HASH: {listed(a)}")
    every = count * (count - 1) // 2  # the best was found by looking at all of them
    if b.picked is None:
        return "the named configuration and the best of the others", every, [(a.positions[0], _best(b, a.positions))]
    return "the named configuration and the best of the others", every, [(_best(a, b.positions), b.picked)]


def _across(a: Side, b: Side) -> _Chosen:
    """Which configurations of two sides are meant: equal ones, else the best."""
    if a.picked is not None and b.picked is not None:
        return "the two configurations that were named", 1, [(a.picked, b.picked)]
    by_hash = {b.configurations[j].config_hash: j for j in b.positions}
    equal = [(i, j) for i in a.positions if (j := by_hash.get(a.configurations[i].config_hash)) is not None]
    if equal:
        return "the configurations that both sides have", len(equal), equal
    words = "the only configuration of each" if len(a.positions) == len(b.positions) == 1 else "the best of each side"
    return words, len(a.positions) * len(b.positions), [(_best(a), _best(b))]


def _best(side: Side, apart_from: Sequence[int] = ()) -> int:
    """Fewest joules per output token; without energy the fastest."""
    candidates = [i for i in side.positions if i not in apart_from]
    for name in (ENERGY, SPEED):
        sign = 1 if LOWER_IS_BETTER[name] else -1
        means = {i: fmean(f.values()) for i in candidates if (f := figures(side.configurations[i].runs, name))}
        if means:
            return min(means, key=lambda i: sign * means[i])
    raise StudyError(f"{side.name}: no run may be believed, so there is nothing to compare; llem report says why")


def _difference(a: Side, i: int, b: Side, j: int, name: str, claims: int, *, same_study: bool) -> Difference:
    """One quantity of the j-th configuration of B against the i-th of A."""
    one, other = a.configurations[i], b.configurations[j]
    unlike = different_things(name, (one.runs, other.runs))
    if one.pretended != other.pretended:
        which = "A is pretended, B was measured" if one.pretended else "A was measured, B is pretended"
        unlike = f"pretended: {which}; neither says anything on the other"
    if unlike is not None:
        runs = [len(figures(c.runs, name)) for c in (one, other)]
        return Difference(quantity=name, a_runs=runs[0], b_runs=runs[1], reason=unlike)
    return _in_study(a, i, j, name, claims) if same_study else _between(one, other, name, claims)


def _in_study(side: Side, a: int, b: int, name: str, claims: int) -> Difference:
    """Two configurations of one study: within cycles, or run against run where there is only one cycle."""
    table = {i: figures(c.runs, name) for i, c in enumerate(side.configurations)}
    common = sorted(table[a].keys() & table[b].keys())
    if len(common) < 2 or any(v <= 0 for i in (a, b) for v in table[i].values()):
        return _between(side.configurations[a], side.configurations[b], name, claims)
    if side.order == "sequential":
        reason = (
            "order_confounded: all cycles of a configuration ran one after the other, so that a drift of the machine "
            "looks like a difference of configurations; run with cycle_order shuffled"
        )
        return Difference(quantity=name, a_runs=len(table[a]), b_runs=len(table[b]), reason=reason)
    fit = fit_logs({i: row for i, row in table.items() if all(v > 0 for v in row.values())})
    allowance = _allowance(side.configurations[a], side.configurations[b], name, claims)
    interval = in_blocks(fit, a, b, claims=claims, gain_allowance=allowance)
    known = Difference(
        quantity=name,
        a_mean=fmean(table[a][c] for c in common),
        b_mean=fmean(table[b][c] for c in common),
        a_runs=len(common),
        b_runs=len(common),
        method="within_cycles",
        gain_allowance=allowance,
    )
    assert interval is not None, "two cycles in common leave a degree of freedom"
    return _with(known, interval)


def _between(a: Configuration, b: Configuration, name: str, claims: int) -> Difference:
    """Two configurations whose runs share nothing."""
    sides = [list(figures(c.runs, name).values()) for c in (a, b)]
    known = Difference(quantity=name, a_runs=len(sides[0]), b_runs=len(sides[1]))
    lacking = [letter for letter, values in zip("AB", sides, strict=True) if not values]
    if lacking:
        shown = {**_shown("a", a, name), **_shown("b", b, name)}
        return known.model_copy(update={**shown, "reason": f"no_figure: {_why_none(lacking, a, b, name)}"})
    means = {"a_mean": fmean(sides[0]), "b_mean": fmean(sides[1])}
    if any(v <= 0 for values in sides for v in values):
        reason = "not_positive: a figure is zero or negative, so there is no ratio"
        return known.model_copy(update={**means, "reason": reason})
    logs = [_log_mean(values, c, name) for values, c in zip(sides, (a, b), strict=True)]
    if logs[0] is None or logs[1] is None:
        ratio = means["b_mean"] / means["a_mean"]
        reason = "one_run: a single run does not say how well it would repeat; add cycles"
        return known.model_copy(update={**means, "ratio": ratio, "reason": reason})
    allowance = _allowance(a, b, name, claims)
    known = known.model_copy(update={**means, "method": _method(a, b, logs), "gain_allowance": allowance})
    return _with(known, apart(logs[0], logs[1], claims=claims, gain_allowance=allowance))


def _method(a: Configuration, b: Configuration, means: Sequence[LogMean | None]) -> Method:
    """Where the spread comes from; `one_run_measured`: that of every single run from earlier studies on its GPU."""
    alone = [side for side, mean in zip((a, b), means, strict=True) if mean is not None and mean.n == 1]
    if not alone:
        return "different_sessions"
    sources = {r.uncertainty.between_runs_source for c in alone for r in believed(c.runs, ENERGY).values()}
    return "one_run_measured" if sources == {"measured"} else "one_run_assumed"


def _shown(letter: str, side: Configuration, name: str) -> dict[str, object]:
    """A side's mean where there is nothing to compare it with, and whether it is of estimates."""
    counted, guessed = figures(side.runs, name), estimates(side.runs, name)
    mean = fmean((counted or guessed).values()) if counted or guessed else None
    return {f"{letter}_mean": mean, f"{letter}_estimated": bool(guessed)}


def _why_none(lacking: Sequence[str], a: Configuration, b: Configuration, name: str) -> str:
    """Why a side has no figure, in the words of its first result."""
    told = []
    for letter in lacking:
        runs = (a if letter == "A" else b).runs
        first = next(iter(believed(runs, SPEED).values()), None)
        if not runs:
            told.append(f"{letter} has no result")
        elif first is None:
            told.append(f"no run of {letter} may be believed")
        elif estimates(runs, name):
            told.append(f"the energy of {letter} is a model's estimate, not a count of joules")
        else:
            why = first.null_reasons.get(name) or first.null_reasons.get("energy_total_j")
            told.append(f"{letter} has none" + (f" ({why})" if why else ""))
    return "; ".join(told)


def _log_mean(values: Sequence[float], configuration: Configuration, name: str) -> LogMean | None:
    """Mean of a side's figures; a single run's joules have the uncertainty that the run claims for itself."""
    runs = [r for r in believed(configuration.runs, ENERGY).values() if r.energy_per_output_token_j is not None]
    if name != ENERGY or len(runs) != 1:
        return log_mean(values)
    own = runs[0].uncertainty
    if own.standard is None and own.comparison is not None:  # written before the parts were
        return log_mean(values, own.comparison / EARLIER_T)
    return log_mean(values, own.standard, degrees_of_freedom=own.degrees_of_freedom)


def _allowance(a: Configuration, b: Configuration, name: str, claims: int) -> float:
    if name != ENERGY:
        return 0.0
    one, other = (list(believed(c.runs, ENERGY).values()) for c in (a, b))
    limits = gain_limits([*one, *other])
    return gain_allowance(board_shares(one), board_shares(other), limits=limits, claims=claims)


def _with(known: Difference, interval: Interval) -> Difference:
    better: dict[Finding, str | None] = {"no_difference": None, "lower": "b", "higher": "a"}
    if not LOWER_IS_BETTER[known.quantity]:
        better |= {"lower": "a", "higher": "b"}
    return known.model_copy(
        update={
            "ratio": interval.ratio,
            "low": interval.low,
            "high": interval.high,
            "finding": interval.finding,
            "better": better[interval.finding],
            "largest_difference": interval.largest_difference,
        }
    )


def _of_sessions(a: Side, b: Side) -> list[str]:
    """What was between the two sides that is in no interval."""
    if a.uri == b.uri:
        return []
    if a.study_uri == b.study_uri:
        return ["of one study, but not compared within its cycles: for that name its folder twice, each with #HASH"]
    return ["measured in different sessions: what changed in between is in no interval"]


def caveats(compared: Sequence[tuple[Configuration, Configuration]], pairs: Sequence[Pair]) -> list[str]:
    """What a reader must know before believing the answer."""
    found = []
    methods = {d.method for p in pairs for d in p.differences}
    if "one_run_assumed" in methods:
        found.append("a side with one run: its run-to-run part is assumed, not measured; add cycles")
    if "one_run_measured" in methods:
        found.append("a side with one run: its run-to-run part is that of earlier studies on its GPU")
    widths = [d.gain_allowance for p in pairs for d in p.differences if d.gain_allowance]
    if widths:
        found.append(_of_gains([r for pair in compared for c in pair for r in c.runs.values()], max(widths)))
    for k, letter in enumerate("AB"):
        found += _of_side(letter, [pair[k] for pair in compared])
    different = {name: values for pair in compared for name, values in _different_work(*pair).items()}
    found += [f"not the same work: {n} is {x} in A, {y} in B" for n, (x, y) in different.items()]
    return found


def _of_gains(results: Sequence[ExperimentResult], width: float) -> str:
    share = f"±{percent(math.expm1(width))}"
    calibrated, gpus = calibrated_gpus(results)
    state = {0: "their sensors are not calibrated", gpus: "their calibrations leave that much open"}
    why = state.get(calibrated, f"not all of their sensors are calibrated ({calibrated} of {gpus})")
    return f"joules from different GPUs: {why}, so the interval includes {share}"


def _of_side(letter: str, configurations: Sequence[Configuration]) -> list[str]:
    results = [r for c in configurations for r in c.runs.values()]
    bad = [r for r in results if r.verdict.state == "invalid"]
    found = []
    if any(r.synthetic for r in results):
        found.append(f"{letter} is pretended, not measured")
    if bad:
        why = next((reason.sentence for r in bad for reason in r.verdict.reasons), "no reason noted")
        found.append(f"{len(bad)} of {len(results)} runs of {letter} are invalid and left out: {why}")
    found += _of_estimates(letter, configurations)
    if any(r.random_weights for r in results):
        found.append(f"the weights of {letter} are random")
    return found


def _of_estimates(letter: str, configurations: Sequence[Configuration]) -> list[str]:
    if any(estimates(c.runs, ENERGY) for c in configurations):
        return [f"the energy of {letter} is a model's estimate, not a count of joules"]
    results = [r for c in configurations for r in c.runs.values()]
    left_out = sum(r.verdict.state == "estimated" for r in results)
    return (
        [f"{left_out} of {len(results)} runs of {letter} are estimates and left out of its joules"] if left_out else []
    )


def _different_work(a: Configuration, b: Configuration) -> dict[str, tuple[Any, Any]]:
    """Settings that make the work another one, with their two values."""
    one, other = (next(iter(c.runs.values()), None) for c in (a, b))
    if one is None or other is None:
        return {}
    pairs = {name: (_setting(one, name), _setting(other, name)) for name in SAME_WORK}
    return {name: values for name, values in pairs.items() if values[0] != values[1]}


def _setting(result: ExperimentResult, name: str) -> Any:
    return getattr(result, name) if name in ExperimentResult.model_fields else result.effective_config.get(name)
