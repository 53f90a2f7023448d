"""Turns results into what people read: comparison tables, plans, summaries, CSV. Gives text; printing is the CLI's."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from llenergymeasure.core.errors import LLEMError, PreFlightError
from llenergymeasure.core.manifest import StudyManifest
from llenergymeasure.core.result import (
    ExperimentResult,
    ExperimentStatistics,
    StudyResult,
    scalars,
)
from llenergymeasure.core.statistics import Statistic
from llenergymeasure.core.sweep import reasons
from llenergymeasure.store import write_atomically

DASH = "-"
PRETENDED = "Results marked synthetic are pretended, not measured."
MAX_MISSING = 20
ENERGY, SPEED, LATENCY = "energy_per_output_token_j", "tokens_per_second", "latency.p50_ms"


def grid(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Columns padded to their widest cell, the first `left` flush left, the others right."""
    widths = [max(len(r[i]) for r in [head, *rows]) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return "  ".join(padded).rstrip()

    rule = "  ".join("-" * w for w in widths)
    return "\n".join([line(head), rule, *(line(r) for r in rows)])


def number(value: float | None, digits: int = 4) -> str:
    """A number with that many significant digits, no exponent in the usual range; a dash for None."""
    if value is None:
        return DASH
    if value == 0 or 1e-4 <= abs(value) < 1e7:
        text = f"{value:.{digits}g}"
        return f"{value:.0f}" if "e" in text else text
    return f"{value:.{digits - 1}e}"


def _with_interval(found: Statistic | None) -> str:
    if found is None:
        return DASH
    if found.half_width_95 is None:
        return number(found.mean)
    return f"{number(found.mean)} ± {number(found.half_width_95, 2)}"


def ranked(experiments: Sequence[ExperimentStatistics]) -> list[ExperimentStatistics]:
    """Fewest joules per output token first; without energy, fastest first."""

    def key(e: ExperimentStatistics) -> tuple[int, float]:
        energy, speed = e.statistics.get(ENERGY), e.statistics.get(SPEED)
        if energy is not None:
            return (0, energy.mean)
        return (1, -speed.mean if speed else 0.0)

    return sorted(experiments, key=key)


def comparison(experiments: Sequence[ExperimentStatistics], results: Sequence[ExperimentResult]) -> str:
    """The table that compares configurations, best first, and why an energy is missing."""
    order = ranked(experiments)
    fastest = max((e.statistics[SPEED].mean for e in order if SPEED in e.statistics), default=0.0)
    rows = [
        [
            e.summary,
            _with_interval(e.statistics.get(SPEED)),
            f"{e.statistics[SPEED].mean / fastest:.2f}x" if fastest and SPEED in e.statistics else DASH,
            number(e.statistics[LATENCY].mean if LATENCY in e.statistics else None),
            _with_interval(e.statistics.get(ENERGY)),
            ", ".join(f"{n} {v}" if len(e.verdicts) > 1 else v for v, n in sorted(e.verdicts.items())),
        ]
        for e in order
    ]
    head = ["configuration", "tokens/s", "relative", "batch p50 (ms)", "J/token", "verdict"]
    return "\n".join([grid(head, rows), *_why_not(results)])


def _why_not(results: Sequence[ExperimentResult]) -> list[str]:
    found: dict[str, str] = {}
    for result in results:
        for why in result.verdict.reasons:
            found.setdefault(f"{result.verdict.state}: {why.sentence}", why.fix)
    lines = [""] if found else []
    for sentence, fix in found.items():
        lines += [sentence, f"  -> {fix}"]
    return lines


def notes(results: Sequence[ExperimentResult]) -> list[str]:
    """Each warning once by its code, in the words of the first result that carries it, with the number of results."""
    found: dict[str, list[str]] = {}
    for result in results:
        for text in result.measurement_warnings:
            found.setdefault(text.partition(":")[0], []).append(text)
    return [f"warning {texts[0]}{_how_many(texts, len(results))}" for texts in found.values()]


def _how_many(texts: Sequence[str], total: int) -> str:
    if total == 1:
        return ""
    return f" ({len(texts)} of {total} runs" + (", figures of the first)" if len(set(texts)) > 1 else ")")


def single(result: ExperimentResult) -> str:
    """The summary of one experiment."""
    u = result.uncertainty
    energy = number(result.energy_per_output_token_j)
    if result.energy_per_output_token_j is not None and u.comparison is not None and u.absolute is not None:
        energy += f"  (±{100 * u.comparison:.1f} % between configurations on this GPU, of which the run-to-run part is "
        energy += f"{u.between_runs_source}; ±{100 * u.absolute:.0f} % absolute)"
    setup = f"{result.backend} {result.effective_config.get('precision')}"
    setup += f", batch {result.engine_effective['batch_size']}" if "batch_size" in result.engine_effective else ""
    lines = [
        ("model", f"{result.model}" + (f" @ {_short(result.model_revision)}" if result.model_revision else "")),
        ("configuration", setup),
        ("output tokens/s", number(result.tokens_per_second)),
        ("J/output token", energy),
        ("total energy (J)", number(result.energy_total_j)),
        ("baseline (W)", number(result.baseline_power_w)),
        ("adjusted energy (J)", number(result.energy_adjusted_j)),
        (
            "window (s)",
            f"{result.duration_s:.2f}, {result.requests} requests, {result.output_tokens} output tokens",
        ),
        ("batch latency p50 (ms)", number(result.latency.p50_ms if result.latency else None)),
        ("verdict", result.verdict.state + (" (synthetic: not a measurement)" if result.synthetic else "")),
    ]
    width = max(len(k) for k, _ in lines)
    text = [f"{k.ljust(width)}  {v}" for k, v in lines]
    return "\n".join([*text, *_why_not([result]), *notes([result])])


def _short(revision: str) -> str:
    """A commit as people write it: its first 12 digits, whatever stands before it kept."""
    kind, colon, digits = revision.rpartition(":")
    return f"{kind}{colon}{digits[:12]}"


def study_summary(study: StudyResult, results: Sequence[ExperimentResult]) -> str:
    """What a study prints at its end."""
    s = study.summary
    counts = f"{s['ran']} of {s['runs']} runs completed, {s['failed']} failed, {s['skipped']} combinations skipped"
    parts = [comparison(study.experiments, results)] if study.experiments else []
    warnings = notes(results)
    parts += ["\n".join(warnings)] if warnings else []
    if any(r.synthetic for r in results):
        parts.append(PRETENDED)
    parts += [
        f"failed run {f.index} (cycle {f.cycle}, {f.summary}): {f.error_type}: {f.error_message}" for f in study.failed
    ]
    return "\n\n".join([*parts, counts])


def missing_runs(manifest: StudyManifest) -> list[str]:
    """A line per run that has neither a result nor a failure; the first ones of many."""
    missing = [r for r in manifest.rows if r.status not in ("completed", "failed")]
    lines = [
        f"missing run {r.index} (cycle {r.cycle}, {r.summary}): no result and no failure" for r in missing[:MAX_MISSING]
    ]
    more = len(missing) - MAX_MISSING
    return [*lines, f"and {counted(more, 'missing run')} more"] if more > 0 else lines


def csv_text(results: Sequence[ExperimentResult]) -> str:
    """One row per result, units in the headers."""
    rows = [scalars(r) for r in results]
    columns = list(dict.fromkeys(k for row in rows for k in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def export_csv(path: Path, results: Sequence[ExperimentResult]) -> None:
    """Write the CSV; raises ResultStoreError."""
    write_atomically(path, csv_text(results).encode())


def error_text(err: BaseException) -> str:
    """An error for people: every problem of a pre-flight, every field of a validation, without decoration."""
    if isinstance(err, PreFlightError) and len(err.problems) > 1:
        return "\n  - ".join(["not ready to run", *(str(p) for p in err.problems)])
    if isinstance(err, ValidationError):
        return "\n  - ".join(["the configuration is not valid", *reasons(err)])
    return str(err) if isinstance(err, LLEMError) else f"{type(err).__name__}: {err}"


def counted(count: int, noun: str) -> str:
    """A count with its noun: 1 run, 2 runs."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


def duration_text(seconds: float) -> str:
    """A duration for people."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def provenance_lines(values: Mapping[str, object]) -> list[str]:
    """`key: value` lines, aligned."""
    width = max((len(k) for k in values), default=0)
    return [f"  {k.ljust(width)}  {v}" for k, v in values.items()]
