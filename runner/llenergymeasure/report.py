"""Turns results into what people read: comparison tables, plans, summaries. Gives text; printing is the CLI's."""

from collections.abc import Iterable, Mapping, Sequence

from pydantic import ValidationError

from llenergymeasure import evidence
from llenergymeasure.core.comparison import ENERGY, LATENCY, SPEED
from llenergymeasure.core.errors import LLEMError, PreFlightError
from llenergymeasure.core.manifest import StudyManifest
from llenergymeasure.core.result import (
    ExperimentResult,
    ExperimentStatistics,
    FailedRun,
    StudyResult,
)
from llenergymeasure.core.sweep import reasons
from llenergymeasure.findings import (
    Finding,
    Told,
    headline,
    latency_of,
    left_out,
    rank_all,
    study_labels,
    verdict_reasons,
    warnings,
)
from llenergymeasure.ranking import Ranked, peers, ranked
from llenergymeasure.wording import DASH, counted, number, plus_minus

PRETENDED = "Results marked synthetic are pretended, not measured."
MAX_MISSING = 20


def grid(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Columns padded to their widest cell, the first `left` flush left, the others right."""
    widths = [max(len(r[i]) for r in [head, *rows]) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return "  ".join(padded).rstrip()

    rule = "  ".join("-" * w for w in widths)
    return "\n".join([line(head), rule, *(line(r) for r in rows)])


def _with_interval(ranking: Ranked, quantity: str) -> str:
    found = ranking.experiment.statistics.get(quantity)
    label = " (estimate)" if ranking.estimates(quantity) else ""
    return DASH if found is None else plus_minus(found.mean, found.half_width_95) + label


def comparison(
    experiments: Sequence[ExperimentStatistics], results: Sequence[ExperimentResult], pretending: Iterable[str] = ()
) -> str:
    """The table that compares configurations, best first, and why an energy is missing; `pretending` as in `ranked`."""
    return _comparison(ranked([(experiments, results)], pretending), results, None)


def _comparison(order: Sequence[Ranked], results: Sequence[ExperimentResult], labels: Sequence[str] | None) -> str:
    beside = peers(order)
    fastest = max((s for r in beside if (s := r.mean(SPEED)) is not None), default=0.0)
    rows = [_cells(r, fastest if r in beside else None, [] if labels is None else [labels[r.study]]) for r in order]
    head = ["configuration", *([] if labels is None else ["study"])]
    columns = ["tokens/s", "rel. speed", f"{latency_of(results)} p50 (ms)", "J/token", "verdict"]
    lines = [grid([*head, *columns], rows, left=len(head)), *_why_not(results)]
    without = left_out(r.experiment for r in order)
    return "\n".join([*lines, "", without] if without else lines)


def _cells(ranking: Ranked, fastest: float | None, study: Sequence[str]) -> list[str]:
    speed = ranking.mean(SPEED)
    return [
        ranking.experiment.summary,
        *study,
        _with_interval(ranking, SPEED),
        _times(speed / fastest) if fastest and speed is not None else DASH,
        number(ranking.mean(LATENCY)),
        _with_interval(ranking, ENERGY),
        ranking.verdict,
    ]


def _times(ratio: float) -> str:
    """A share of the fastest one's speed: two decimals, of a very slow one two digits."""
    return f"{ratio:.2f}x" if ratio >= 0.1 else f"{number(ratio, 2)}x"


def _why_not(results: Sequence[ExperimentResult]) -> list[str]:
    """Why verdicts are not `valid`: each code once, with the number of runs and its fix."""
    found = [(state, f) for state, findings in verdict_reasons(results).items() for f in findings]
    lines = [""] if found else []
    for state, why in found:
        lines += [f"{state}{_extent(why)}: {why.what}", f"  -> {why.fix}"]
    return lines


def notes(results: Sequence[ExperimentResult]) -> list[str]:
    """Each warning once by its code, with the number of results."""
    return [f"warning {f.text}{_extent(f)}" for f in warnings(results)]


def _extent(found: Finding) -> str:
    return f" ({found.extent})" if found.extent else ""


def single(result: ExperimentResult) -> str:
    """The summary of one experiment."""
    lines = [
        ("model", f"{result.model}" + (f" @ {_short(result.model_revision)}" if result.model_revision else "")),
        ("configuration", _setup(result)),
        ("output tokens/s", number(result.tokens_per_second)),
        ("J/output token", _with_width(result.energy_per_output_token_j, result.uncertainty.comparison)),
        ("total energy (J)", number(result.energy_total_j)),
        ("baseline (W)", number(result.baseline_power_w)),
        ("adjusted energy (J)", _with_width(result.energy_adjusted_j, result.uncertainty.adjusted_comparison)),
        *_by_phase(result),
        (
            "window (s)",
            ", ".join([f"{result.duration_s:.2f}", *_work(result)]),
        ),
        (f"{latency_of([result])} p50 (ms)", number(result.latency.p50_ms if result.latency else None)),
        *_rests_on(result),
        ("verdict", result.verdict.state + (" (synthetic: not a measurement)" if result.synthetic else "")),
    ]
    width = max(len(k) for k, _ in lines)
    text = [f"{k.ljust(width)}  {v}" for k, v in lines]
    return "\n".join([*text, *_why_not([result]), *notes([result])])


def _setup(result: ExperimentResult) -> str:
    """Backend, precision, and how many requests ran at once."""
    named = f"{result.backend} {result.effective_config.get('precision')}"
    if result.window_mode == "saturated":
        return f"{named}, concurrency {result.work.concurrency}"
    size = result.engine_effective.get("batch_size")
    return named if size is None else f"{named}, batch {size}"


def _work(result: ExperimentResult) -> list[str]:
    return [counted(result.requests, "request"), counted(result.output_tokens, "output token")]


def _with_width(value: float | None, relative: float | None) -> str:
    """A figure with its 95 % half-width in a comparison on this GPU."""
    return plus_minus(value, None if value is None or relative is None else abs(value) * relative)


def _rests_on(result: ExperimentResult) -> list[tuple[str, str]]:
    """What the joules rest on, as far as it is known."""
    if result.energy_total_j is None:
        return []
    lines = [
        ("uncertainty", evidence.uncertainty([result])),
        ("its parts", evidence.budget([result])),
        ("idle power", evidence.idle([result])),
        ("second reading", evidence.second_reading([result])),
        ("sensor", evidence.sensor([result])),
        ("calibration", evidence.calibration([result])),
        ("settling", evidence.settling([result])),
        ("GPU in the window", evidence.state([result])),
        ("power cap", evidence.power_cap([result])),
    ]
    return [(name, text) for name, text in lines if text != DASH]


def _by_phase(result: ExperimentResult) -> list[tuple[str, str]]:
    """The split by phases, where it was asked for and could be told; a warning says why not."""
    split = result.phase_split
    if split is None or split.energy_per_prefill_token_j is None:
        return []
    shares = (("waiting", split.idle_share), ("prefill", split.prefill_share), ("decode", split.decode_share))
    where = f"at {split.concurrency} in a batch and a context of {split.decode_context or 0:.0f} tokens"
    parts = ", ".join(f"{name} {100 * (share or 0):.0f} %" for name, share in shares)
    return [
        ("J/prefilled token", f"{number(split.energy_per_prefill_token_j)}  (above loaded idle)"),
        ("J/decoded token", f"{number(split.energy_per_decode_token_j)}  (likewise, {where})"),
        ("energy by phase", f"{parts}; predicts the window within {100 * abs(split.closure or 0):.1f} %"),
    ]


def _short(revision: str) -> str:
    """A commit as people write it: its first 12 digits, whatever stands before it kept."""
    kind, colon, digits = revision.rpartition(":")
    return f"{kind}{colon}{digits[:12]}"


def study_summary(study: StudyResult, results: Sequence[ExperimentResult]) -> str:
    """What a study prints at its end."""
    return studies_summary([Told(study, results)])


def studies_summary(told: Sequence[Told]) -> str:
    """One table over all studies, the best one in a sentence, warnings, failures, and how many runs there were."""
    labels = study_labels([t.study for t in told]) if len(told) > 1 else None
    results = [r for t in told for r in t.results]
    order = rank_all(told)
    parts = [_comparison(order, results, labels)] if order else []
    parts += [_best(told)] if len(order) > 1 else []
    found = notes(results)
    parts += ["\n".join(found)] if found else []
    if any(r.synthetic for r in results):
        parts.append(PRETENDED)
    for i, t in enumerate(told):
        parts += _failed(t.study, labels[i] if labels else None)
    return "\n\n".join([*parts, "\n".join(_counts(t.study, labels[i] if labels else None) for i, t in enumerate(told))])


def _best(told: Sequence[Told]) -> str:
    found = headline(told)
    title = found.sentence
    return "\n".join([title[0].lower() + title[1:], *(f"  {sentence}" for sentence in found.sureness)])


def _failed(study: StudyResult, label: str | None) -> list[str]:
    """Each error once, with the runs that it ended."""
    of = f" of {label}" if label else ""
    alike: dict[str, list[FailedRun]] = {}
    for run in study.failed:
        alike.setdefault(f"{run.error_type}: {run.error_message}", []).append(run)
    return ["\n".join(f"failed {_those(runs, of)}: {error}" for error, runs in alike.items())] if alike else []


def _those(runs: Sequence[FailedRun], of: str) -> str:
    if len(runs) == 1:
        return f"run {runs[0].index}{of} (cycle {runs[0].cycle}, {runs[0].summary})"
    more = [f"and {len(runs) - MAX_MISSING} more"] if len(runs) > MAX_MISSING else []
    return f"runs{of} " + ", ".join([*(str(r.index) for r in runs[:MAX_MISSING]), *more])


def _counts(study: StudyResult, label: str | None) -> str:
    s = study.summary
    text = f"{s['ran']} of {counted(s['runs'], 'run')} completed, {s['failed']} failed"
    not_run = s["runs"] - s["ran"] - s["failed"]
    text += f", {not_run} not run" if not_run > 0 else ""
    text += f", {counted(s['skipped'], 'combination')} skipped"
    return f"{label}: {text}" if label else text


def stopped(study: StudyResult, manifest: StudyManifest) -> list[str]:
    """Why a study ended before its last run and how it goes on, as one line; none if it did not stop by itself."""
    if manifest.status != "circuit_breaker":
        return []
    limit = study.measurement_protocol.get("max_consecutive_failures")
    many = f"{limit + 1} failures" if isinstance(limit, int) else "failures"
    text = f"stopped after {many} in a row; {manifest.counts()['cancelled']} never started"
    local = study.directory is not None and "://" not in study.directory
    return [f"{text}; mend the cause, then go on with: llem run --resume {study.directory}" if local else text]


def missing_runs(manifest: StudyManifest) -> list[str]:
    """A line per run that has neither a result nor a failure; the first ones of many."""
    missing = [r for r in manifest.rows if r.status not in ("completed", "failed")]
    lines = [
        f"missing run {r.index} (cycle {r.cycle}, {r.summary}): "
        + ("never started" if r.status == "cancelled" else "no result and no failure")
        for r in missing[:MAX_MISSING]
    ]
    more = len(missing) - MAX_MISSING
    return [*lines, f"and {counted(more, 'missing run')} more"] if more > 0 else lines


def error_text(err: BaseException) -> str:
    """An error for people: every problem of a pre-flight, every field of a validation, without decoration."""
    if isinstance(err, PreFlightError) and len(err.problems) > 1:
        return "\n  - ".join(["not ready to run", *(str(p) for p in err.problems)])
    if isinstance(err, ValidationError):
        return "\n  - ".join(["the configuration is not valid", *reasons(err)])
    return str(err) if isinstance(err, LLEMError) else f"{type(err).__name__}: {err}"


def provenance_lines(values: Mapping[str, object]) -> list[str]:
    """`key: value` lines, aligned."""
    width = max((len(k) for k in values), default=0)
    return [f"  {k.ljust(width)}  {v}" for k, v in values.items()]
