"""The comparison of A and B as people and programs read it: the answer in a sentence, a table, what to know."""

import json
import math

from llenergymeasure.comparing import Comparison, Difference, Pair
from llenergymeasure.core.comparison import ENERGY, LATENCY, SPEED
from llenergymeasure.report import grid
from llenergymeasure.wording import DASH, counted, number

WORDS = {ENERGY: "joules per output token", SPEED: "output tokens per second", LATENCY: "latency (p50)"}
HEADS = {ENERGY: "J/output token", SPEED: "tokens/s", LATENCY: "latency p50 (ms)"}
SAYS = {ENERGY: ("needs", "fewer", "more"), SPEED: ("makes", "fewer", "more"), LATENCY: ("has", "less", "more")}


def comparison_text(found: Comparison) -> str:
    """The answer, the table of all quantities, and the caveats."""
    parts = [answer(found), "\n".join(_named(found)), _table(found)]
    notes = [*_reasons(found), *(f"note: {c}" for c in found.caveats)]
    if found.claims > 1:
        notes.append(f"The 95 % holds for {found.claims} claims together.")
    return "\n\n".join([*parts, *(["\n".join(notes)] if notes else [])])


def comparison_json(found: Comparison) -> str:
    """The same as JSON; a null has its reason beside it."""
    return json.dumps({"answer": answer(found), **found.model_dump()}, indent=2, ensure_ascii=False)


def answer(found: Comparison) -> str:
    """One sentence: is B better, by how much, how sure."""
    if len(found.pairs) > 1:
        return _of_many(found.pairs)
    differences = found.pairs[0].differences
    sentences = [_sentence(differences[0])]
    if differences[0].finding is None:  # no energy: what else can be said
        sentences += [_sentence(d) for d in differences[1:] if d.finding is not None][:1]
    return " ".join(sentences)


def _of_many(pairs: list[Pair]) -> str:
    findings = [p.differences[0].finding for p in pairs]
    counts = {
        "fewer": findings.count("lower"),
        "more": findings.count("higher"),
        "no difference seen": findings.count("no_difference"),
        "no claim": findings.count(None),
    }
    told = ", ".join(f"{word} in {n}" for word, n in counts.items() if n)
    return f"{WORDS[ENERGY].capitalize()} of B against A in {counted(len(pairs), 'common configuration')}: {told}."


def _sentence(d: Difference) -> str:
    words = WORDS[d.quantity]
    if d.ratio is None or d.low is None or d.high is None or d.largest_difference is None:
        return f"No claim about {words}: {(d.reason or 'no_figure').partition(': ')[2]}."
    if d.finding == "no_difference":
        bounds = f"B ÷ A {number(d.low)} to {number(d.high)}"
        allowed = f"{number(100 * d.largest_difference, 2)} %"
        return (
            f"No difference in {words} is seen between A and B; the 95 % interval still allows one of {allowed} "
            f"({bounds}, {_runs(d)})."
        )
    verb, fewer, more = SAYS[d.quantity]
    less, size, most = _percents(d.ratio, d.low, d.high)
    word = fewer if d.finding == "lower" else more
    return f"B {verb} {size} % {word} {words} than A (95 % interval {less} to {most} %, {_runs(d)})."


def _percents(ratio: float, low: float, high: float) -> tuple[str, str, str]:
    """Least, best and largest difference in per cent, digits as far as the interval gives them a meaning."""
    values = sorted(100 * abs(r - 1) for r in (low, ratio, high))
    width = values[2] - values[0]
    digits = min(3, max(0, 1 - math.floor(math.log10(width / 2)))) if width > 0 else 3
    least, middle, most = (f"{v:.{digits}f}" for v in values)
    return least, middle, most


def _runs(d: Difference) -> str:
    if d.method == "within_cycles":
        return f"{counted(d.a_runs, 'cycle')} each"
    if d.a_runs == d.b_runs == 1:
        return f"one run each, run-to-run part {'measured' if d.method == 'one_run_measured' else 'assumed'}"
    sources = {
        "one_run_assumed": "run-to-run part of the one assumed",
        "one_run_measured": "run-to-run part of the one measured",
    }
    return f"{counted(d.a_runs, 'run')} of A, {d.b_runs} of B, {sources.get(d.method or '', 'different sessions')}"


def _named(found: Comparison) -> list[str]:
    lines = [f"A  {found.a}", f"B  {found.b}"]
    if len(found.pairs) == 1:
        (pair,) = found.pairs
        lines[0] += f": {pair.a_summary} ({pair.a_hash[:8]})"
        lines[1] += f": {pair.b_summary} ({pair.b_hash[:8]})"
    return [*lines, f"Compared: {found.chosen}."]


def _table(found: Comparison) -> str:
    several = len(found.pairs) > 1
    head = [*(["configuration"] if several else []), "quantity", "A", "B", "B ÷ A", "95 % interval", "better"]
    rows = [
        [*([p.a_summary] if several else []), HEADS[d.quantity], *_cells(d)] for p in found.pairs for d in p.differences
    ]
    return grid(head, rows, left=2 if several else 1)


def _cells(d: Difference) -> list[str]:
    interval = DASH if d.low is None or d.high is None else f"{number(d.low)} to {number(d.high)}"
    says = {"no_difference": "no difference seen", None: "no claim"}.get(d.finding, (d.better or "").upper())
    means = [number(mean) + " (estimate)" * guessed for mean, guessed in _means(d)]
    return [*means, number(d.ratio), interval, says]


def _means(d: Difference) -> list[tuple[float | None, bool]]:
    return [(d.a_mean, d.a_estimated), (d.b_mean, d.b_estimated)]


def _reasons(found: Comparison) -> list[str]:
    """Why there is no claim, each reason once with the quantities it is about."""
    about: dict[str, list[str]] = {}
    for pair in found.pairs:
        for d in pair.differences:
            if d.reason is not None:
                words = about.setdefault(d.reason.partition(": ")[2], [])
                words += [] if WORDS[d.quantity] in words else [WORDS[d.quantity]]
    return [f"no claim about {', '.join(words)}: {reason}" for reason, words in about.items()]
