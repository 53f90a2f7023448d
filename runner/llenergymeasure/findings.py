"""What studies found, in order and in words: ranking, headline, warnings by their code; for terminal and page alike.

Pure: records in, records and sentences out. A ranking over several studies compares means only; intervals of ratios
and "cannot be told apart" come from the comparison within one study, where the runs took turns on one machine.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from llenergymeasure.core.comparison import ENERGY, SPEED, PairComparison, QuantityComparison
from llenergymeasure.core.result import ExperimentResult, ExperimentStatistics, StudyResult
from llenergymeasure.core.study_statistics import believable, different_calibrations
from llenergymeasure.ranking import Ranked, peers, ranked
from llenergymeasure.wording import counted, merged, number, percent, plus_minus, signed_percent

POWER = "mean_power_w"
NAMED_AT_MOST = 3  # configurations in one sentence
ALIKE_C = 5.0  # °C; an H100 drew 1.2 W more per °C (benchmarks/scatter.py), which is 1.5 % of 400 W


@dataclass(frozen=True)
class Interval:
    """A mean and the half-width around it in the quantity's unit; `meaning` says where the width comes from."""

    mean: float
    half_width: float | None
    meaning: str
    estimate: bool = False

    @property
    def text(self) -> str:
        """Mean ± half-width with their digits; an estimate says so."""
        return plus_minus(self.mean, self.half_width) + (" (estimate)" if self.estimate else "")


@dataclass(frozen=True)
class Headline:
    """The answer of one or several studies; `unit` and `interval` are those of the ranking quantity."""

    title: str
    best: Ranked | None
    quantity: str
    unit: str
    interval: Interval | None
    sureness: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """All in one sentence."""
        if self.best is None or self.interval is None:
            return self.title
        figure = f"{self.interval.text} {self.unit}"
        return f"{self.title}: {self.best.experiment.summary}, {figure}"


@dataclass(frozen=True)
class Finding:
    """A warning or the reason of a verdict: what, what to do, in how many of how many runs.

    Figures that differ from run to run stand as ranges; `alike` is False where the words differ, too: they are those
    of the first run then.
    """

    code: str
    what: str
    fix: str
    runs: int
    total: int
    alike: bool

    @property
    def text(self) -> str:
        """Code, what and fix as the result has them."""
        return f"{self.code}: {self.what}" + (f"; {self.fix}" if self.fix else "")

    @property
    def extent(self) -> str:
        """How many runs it concerns; nothing for a single one of one."""
        if self.total == 1:
            return ""
        return f"{self.runs} of {self.total} runs" + ("" if self.alike else ", in the words of the first")


@dataclass(frozen=True)
class Told:
    """A study's result and the results of its runs."""

    study: StudyResult
    results: Sequence[ExperimentResult]


def rank_all(told: Iterable[Told]) -> list[Ranked]:
    """The configurations of all studies in one order."""
    return ranked((t.study.experiments, t.results) for t in told)


def latency_of(results: Iterable[ExperimentResult]) -> str:
    """What the latencies of these results are of: batches, requests, or just "latency" if both or nobody knows."""
    modes = {r.latency.mode for r in results if r.latency is not None}
    if modes == {"per_request_batch"}:
        return "batch"
    return "request" if modes and "per_request_batch" not in modes else "latency"


def study_labels(studies: Sequence[StudyResult]) -> list[str]:
    """A name per study that tells it apart: its name, else its folder's, else with its number."""
    names = [s.name for s in studies]
    if len(set(names)) < len(names):
        names = [PurePosixPath(s.directory or s.name).name for s in studies]
    if len(set(names)) < len(names):
        names = [f"{name} ({i})" for i, name in enumerate(names, start=1)]
    return names


def interval(ranking: Ranked, quantity: str, results: Iterable[ExperimentResult]) -> Interval | None:
    """A configuration's mean with what is known of its uncertainty; None if the quantity was not measured.

    Two cycles or more have their t-interval. The energy of a single run has the uncertainty of its own result, in
    which the part between runs is assumed unless a study has measured it; a single run's speed has none.
    """
    found = ranking.experiment.statistics.get(quantity)
    if found is None:
        return None
    if ranking.estimates(quantity):
        return Interval(found.mean, None, "a model's estimate", estimate=True)
    if found.half_width_95 is not None:
        return Interval(found.mean, found.half_width_95, f"95 % interval over {found.n} cycles")
    own = [r for r in results if r.measurement_config_hash == ranking.experiment.config_hash and _has(r, quantity)]
    u = own[0].uncertainty if own and quantity == ENERGY else None
    if u is None or u.comparison is None:
        return Interval(found.mean, None, "one run: its spread is not known")
    source = f", its part between runs {u.between_runs_source}" if u.between_runs_source else ""
    return Interval(found.mean, found.mean * u.comparison, f"one run: its own uncertainty, 95 %{source}")


def _has(result: ExperimentResult, quantity: str) -> bool:
    return believable(result, quantity) and getattr(result, quantity, None) is not None


def headline(told: Sequence[Told]) -> Headline:
    """What one wants to know first: the best configuration, its figure, and how sure that is."""
    order = rank_all(told)
    if not order or not order[0].experiment.statistics:
        return Headline(_nothing(told), None, SPEED, "", None)
    best = order[0]
    quantity = ENERGY if best.mean(ENERGY) is not None else SPEED
    shown = interval(best, quantity, told[best.study].results)
    title, unit = ("Best", "J per output token") if quantity == ENERGY else ("Fastest", "output tokens/s")
    sureness = (*_sureness(peers(order), quantity, told), *_pretended(order), *_estimates(order))
    return Headline(title, best, quantity, unit, shown, sureness)


def _nothing(told: Sequence[Told]) -> str:
    runs = sum(t.study.summary.get("runs", 0) for t in told)
    failed = sum(len(t.study.failed) for t in told)
    if not failed:
        return f"Nothing was measured yet: none of {counted(runs, 'run')} has a result"
    return f"Nothing was measured: {failed} of {counted(runs, 'run')} failed"


def _sureness(order: Sequence[Ranked], quantity: str, told: Sequence[Told]) -> tuple[str, ...]:
    best, rivals = order[0], [r for r in order[1:] if r.mean(quantity) is not None]
    if not rivals:
        return ("It is the only configuration with this figure: there is nothing to compare it with.",)
    sentences = []
    if rivals[0].study != best.study:
        sentences.append(f"The next, {_ratio(best, rivals[0], quantity)}, in another study.")
    sentences += _within(best, rivals, quantity, _comparison(told[best.study].study, quantity))
    if len({r.study for r in [best, *rivals]}) > 1:
        sentences.append("Studies are ranked by their means: how sure a difference is can only be told within a study.")
        scales = different_calibrations(r for t in told for r in t.results if r.verdict.state == "valid")
        sentences += [f"Not even that holds: {scales.partition(': ')[2]}."] if scales and quantity == ENERGY else []
    return tuple(sentences)


def _pretended(order: Sequence[Ranked]) -> Iterable[str]:
    """That pretended figures stand beside measured ones, and whose they are."""
    found = [r for r in order if r.synthetic and not order[0].synthetic]
    if found:
        yield f"Not compared with what was measured, because it is pretended: {_names(found)}."


def _estimates(order: Sequence[Ranked]) -> Iterable[str]:
    """That estimated joules are in no ranking, and whose they are."""
    found = [r for r in order if r.estimates(ENERGY)]
    if found:
        whose = "every configuration" if len(found) == len(order) else _names(found)
        yield f"Nothing is claimed about energy that is a model's estimate: that of {whose}."


def left_out(experiments: Iterable[ExperimentStatistics]) -> str | None:
    """How many estimated runs have no say in joules because others of their configuration are valid; None for none."""
    mixed = [e for e in experiments if e.verdicts.get("valid") and e.verdicts.get("estimated")]
    if not mixed:
        return None
    told = [f"{e.verdicts['estimated']} of {counted(e.cycles_completed, 'run')} of {e.summary}" for e in mixed]
    return f"Left out of the joules, as estimates beside valid runs: {_listed(told)}."


def _comparison(study: StudyResult, quantity: str) -> QuantityComparison | None:
    return next((c for c in study.comparisons if c.quantity == quantity), None)


def _ratio(best: Ranked, rival: Ranked, quantity: str, pair: PairComparison | None = None) -> str:
    """A configuration beside the best: how many times as much it has, with the interval if it was computed."""
    ours, theirs = best.mean(quantity) or 0.0, rival.mean(quantity) or 0.0
    times, low, high = (theirs / ours if ours else None), None, None
    if pair is not None:
        times, low, high = _other_to_best(pair, best)
    span = f" (95 %: {number(low, 4)} to {number(high, 4)})" if low is not None and high is not None else ""
    what = "the energy per output token" if quantity == ENERGY else "the output tokens/s"
    how = "" if pair is None else ", compared cycle by cycle,"
    return f"{rival.experiment.summary}, has{how} {number(times, 4)} times {what}{span}"


def _other_to_best(pair: PairComparison, best: Ranked) -> tuple[float, float, float]:
    if pair.a_hash == best.experiment.config_hash:
        return pair.ratio, pair.ratio_low, pair.ratio_high
    return 1 / pair.ratio, 1 / pair.ratio_high, 1 / pair.ratio_low


def _within(
    best: Ranked, rivals: Sequence[Ranked], quantity: str, comparison: QuantityComparison | None
) -> Iterable[str]:
    """How sure it is that the best one is better than the others of its own study."""
    own = [r for r in rivals if r.study == best.study]
    if not own:
        return
    place = "The next" if own[0] is rivals[0] else "The second of its own study"
    if comparison is None or not comparison.against_best:
        yield f"{place}, {_ratio(best, own[0], quantity)}."
        yield _no_claim(comparison)
        return
    pairs = _pairs_with(best, comparison)
    yield f"{place}, {_ratio(best, own[0], quantity, pairs.get(own[0].experiment.config_hash))}."
    first = next((r for r in own if r.experiment.config_hash == comparison.best_hash), None)
    if first is not None:  # means over all cycles, and ratios within the cycles that both have, need not agree
        yield f"Compared cycle by cycle, {first.experiment.summary} comes first: which one is better is not certain."
        return
    yield _apart(own, pairs, "" if len(own) == len(rivals) else " of its study")
    if comparison.smallest_detectable_difference is not None:
        yield (
            f"With these cycles a difference of {percent(comparison.smallest_detectable_difference)} or more is found "
            "in four cases of five."
        )


def _apart(rivals: Sequence[Ranked], pairs: Mapping[str, PairComparison], scope: str) -> str:
    """What differs from the best for sure; what was not compared is not said to differ."""
    alike = [r for r in rivals if (p := pairs.get(r.experiment.config_hash)) and p.finding == "no_difference"]
    without = [r for r in rivals if r.experiment.config_hash not in pairs]
    compared = f"{scope} that could be compared" if without else scope
    text = f"The best differs from every other configuration{compared} by more than chance explains."
    if alike:
        text = f"Cannot be told apart from the best: {_names(alike)}."
    return f"{text} Too few cycles to compare with: {_names(without)}." if without else text


def _no_claim(comparison: QuantityComparison | None) -> str:
    if comparison is None or comparison.reason is None:
        return "How sure that is was not computed."
    reason = comparison.reason.partition(":")[2].strip() or comparison.reason
    return f"How sure that is cannot be told: {reason.rstrip('.')}."


def _names(rankings: Sequence[Ranked]) -> str:
    return _listed([r.experiment.summary for r in rankings])


def _listed(texts: Sequence[str]) -> str:
    shown = "; ".join(texts[:NAMED_AT_MOST])
    more = len(texts) - NAMED_AT_MOST
    return f"{shown}; and {more} more" if more > 0 else shown


def alike(told: Sequence[Told], found: Headline) -> frozenset[str]:
    """Hashes of the configurations of the best one's study that cannot be told apart from it."""
    if found.best is None:
        return frozenset()
    comparison = _comparison(told[found.best.study].study, found.quantity)
    pairs = _pairs_with(found.best, comparison) if comparison else {}
    return frozenset(digest for digest, pair in pairs.items() if pair.finding == "no_difference")


def _pairs_with(best: Ranked, comparison: QuantityComparison) -> dict[str, PairComparison]:
    """The comparisons in which the best one takes part, by the hash of the other."""
    own = best.experiment.config_hash
    pairs = [p for p in comparison.against_best if own in (p.a_hash, p.b_hash)]
    return {p.b_hash if p.a_hash == own else p.a_hash: p for p in pairs}


def warnings(results: Sequence[ExperimentResult]) -> list[Finding]:
    """Each warning once by its code, its figures as ranges; last, what only several runs together can tell."""
    found: dict[str, list[tuple[str, str]]] = {}
    for result in results:
        for text in result.measurement_warnings:
            code, _, rest = text.partition(":")
            what, _, fix = rest.strip().partition("; ")
            found.setdefault(code, []).append((what, fix))
    return [_finding(code, said, len(results)) for code, said in found.items()] + _between_cycles(results)


def _between_cycles(results: Sequence[ExperimentResult]) -> list[Finding]:
    """Runs of one configuration on the same GPUs, so differently warm that its energy scatters for that alone."""
    measured: dict[tuple[str, ...], list[float]] = {}
    for r in results:
        if r.verdict.state == "valid" and r.conditions.temperature_c is not None:
            measured.setdefault((r.measurement_config_hash, *sorted(r.energy_per_device_j or ())), []).append(
                r.conditions.temperature_c
            )
    apart = [t for t in measured.values() if max(t) - min(t) > ALIKE_C]
    if not apart:
        return []
    widest = max(apart, key=lambda t: max(t) - min(t))
    what = (
        f"runs of one configuration were measured at {min(widest):.0f} to {max(widest):.0f} °C; "
        "a warmer board draws more for the same work"
    )
    fix = "let the GPU settle longer (warmup.thermal_floor_seconds), or measure longer windows"
    return [Finding("temperature_between_cycles", what, fix, sum(map(len, apart)), len(results), alike=True)]


def verdict_reasons(results: Sequence[ExperimentResult]) -> dict[str, list[Finding]]:
    """Why results are not valid, by verdict: each code once with its fix, its figures as ranges."""
    found: dict[str, dict[str, list[tuple[str, str]]]] = {}
    for result in results:
        for why in result.verdict.reasons:
            said = found.setdefault(result.verdict.state, {}).setdefault(why.code, [])
            said.append((why.sentence, why.fix))
    return {
        state: [_finding(code, said, len(results)) for code, said in by_code.items()]
        for state, by_code in found.items()
    }


def _finding(code: str, said: Sequence[tuple[str, str]], total: int) -> Finding:
    what, alike = merged([w for w, _ in said])
    fix, same_fix = merged([f for _, f in said])
    return Finding(code, what, fix, len(said), total, alike and same_fix)


def drift_text(study: StudyResult, quantity: str) -> str | None:
    """The last cycle against the first, over all configurations; None if it was not computed."""
    comparison = _comparison(study, quantity)
    drift = comparison.drift if comparison else None
    if drift is None:
        return None
    change = signed_percent(drift.ratio - 1, 2)
    text = f"Cycle {drift.to_cycle} against cycle {drift.from_cycle}, all configurations: {change}"
    if drift.low is not None and drift.high is not None:
        text += f" (95 %: {signed_percent(drift.low - 1, 2)} to {signed_percent(drift.high - 1, 2)})"
    return f"{text}."
