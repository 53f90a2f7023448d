"""Chooses what a report says, from the records of its studies: rows, banners, method, environment, failures. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from llenergymeasure import evidence
from llenergymeasure.core.comparison import ENERGY, LATENCY, SPEED
from llenergymeasure.core.manifest import StudyManifest
from llenergymeasure.core.result import ExperimentResult, StudyResult
from llenergymeasure.findings import (
    POWER,
    Finding,
    Headline,
    Told,
    interval,
    left_out,
    verdict_reasons,
)
from llenergymeasure.ranking import Ranked, peers
from llenergymeasure.wording import DASH, counted, duration_text, number

MOST_FAILURES = 100  # of one study; the CSV has them all
VARIOUS_AT_MOST = 4  # different values of one fact in one line
OWN_LINE = ("nvidia-", "llenergymeasure")  # beginnings of packages that are not listed: parts of CUDA, and this tool


@dataclass(frozen=True)
class TableRow:
    """A configuration in the ranked table, every cell as shown; `relative` is to the best, in the figure that ranks."""

    rank: int
    study: str
    name: str
    energy: str
    relative: str
    speed: str
    latency: str
    power: str
    verdict: str
    cycles: int
    stands_out: bool
    doubtful: bool


@dataclass(frozen=True)
class Banner:
    """Something that a reader must know before any number."""

    title: str
    text: str


@dataclass(frozen=True)
class NotRun:
    """A run or a combination without a result, and why."""

    what: str
    why: str


def table(
    order: Sequence[Ranked], told: Sequence[Told], labels: Sequence[str], found: Headline, alike: frozenset[str]
) -> list[TableRow]:
    """The rows of the ranked table."""
    best = found.best.mean(found.quantity) if found.best else None
    beside = peers(order)
    return [_row(r, told[r.study].results, labels[r.study], found, best if r in beside else None, alike) for r in order]


def _row(
    ranking: Ranked,
    results: Sequence[ExperimentResult],
    label: str,
    found: Headline,
    best: float | None,
    alike: frozenset[str],
) -> TableRow:
    def shown(quantity: str) -> str:
        known = interval(ranking, quantity, results)
        return DASH if known is None else known.text

    own = ranking.mean(found.quantity)
    experiment = ranking.experiment
    return TableRow(
        rank=ranking.rank,
        study=label,
        name=experiment.summary,
        energy=shown(ENERGY),
        relative=f"{number(own / best, 3)}×" if own is not None and best else DASH,
        speed=shown(SPEED),
        latency=shown(LATENCY),
        power=_power(ranking),
        verdict=ranking.verdict,
        cycles=experiment.cycles_completed,
        stands_out=stands_out(ranking, found, alike),
        doubtful=ranking.verdict != "valid",
    )


def _power(ranking: Ranked) -> str:
    found = ranking.experiment.statistics.get(POWER)
    return number(found.mean) + " (estimate)" * ranking.estimates(POWER) if found else DASH


def stands_out(ranking: Ranked, found: Headline, alike: frozenset[str]) -> bool:
    """Whether it is the best, or one of its study that cannot be told apart from it."""
    if found.best is None:
        return False
    same_study = ranking.study == found.best.study
    return ranking.rank == found.best.rank or (same_study and ranking.experiment.config_hash in alike)


def banners(told: Sequence[Told]) -> list[Banner]:
    """What disqualifies or limits the numbers, the gravest first."""
    results = [r for t in told for r in t.results]
    pretended = sum(r.synthetic for r in results)
    random = sum(r.random_weights for r in results)
    found = []
    if pretended:
        come = "comes" if pretended == 1 else "come"
        text = f"{_share(pretended, results)} {come} from a pretended engine or a pretended sensor."
        found.append(Banner("Synthetic: not a measurement.", text))
    for state, title in (("invalid", "Invalid energy."), ("estimated", "Estimated energy.")):
        some = sum(r.verdict.state == state for r in results)
        if some:
            why = [_reason(f, some) for f in verdict_reasons(results)[state]]
            if state == "estimated" and (without := left_out(e for t in told for e in t.study.experiments)):
                why.append(without)
            found.append(Banner(title, f"{_share(some, results)}: {' '.join(why)}"))
    if random:
        text = f"{_share(random, results)}: speed and energy hold, the text that came out means nothing."
        found.append(Banner("Random weights.", text))
    return found


def _reason(found: Finding, of_runs: int) -> str:
    """Its sentence, and in how many runs if that is not all of those that the banner speaks of."""
    return found.what if found.runs == of_runs else f"{found.what} ({found.extent})"


def _share(count: int, results: Sequence[ExperimentResult]) -> str:
    return (
        f"All {counted(len(results), 'run')}" if count == len(results) else f"{count} of {counted(len(results), 'run')}"
    )


def reasons(told: Sequence[Told]) -> list[tuple[str, Finding]]:
    """Why results are not valid, each with its verdict and its fix."""
    found = verdict_reasons([r for t in told for r in t.results])
    return [(state, f) for state, findings in found.items() for f in findings]


def various(values: Iterable[object]) -> str:
    """The different values of one fact in one line; a dash for none."""
    known = list(dict.fromkeys(str(v) for v in values if v not in (None, "")))
    more = len(known) - VARIOUS_AT_MOST
    return ", ".join(known[:VARIOUS_AT_MOST]) + (f" and {more} more" if more > 0 else "") or DASH


def gpu_names(results: Sequence[ExperimentResult]) -> str:
    """The boards that were used, with their number if there were several in one run."""
    return various(_gpus(r) for r in results) if any(_gpus(r) for r in results) else "no GPU"


def _gpus(result: ExperimentResult) -> str:
    used = set(result.energy_per_device_j or {})
    boards = [g for g in result.environment_snapshot.get("gpus") or () if not used or g.get("uuid") in used]
    names = [str(g.get("name")) for g in boards]
    return ", ".join(f"{names.count(n)} × {n}" if names.count(n) > 1 else n for n in dict.fromkeys(names))


def period(manifest: StudyManifest, results: Sequence[ExperimentResult]) -> tuple[datetime | None, datetime | None]:
    """When the first run began and the last one ended; None where no run did."""
    starts = [r.start_time for r in results] or [r.started_at for r in manifest.rows if r.started_at]
    ends = [r.end_time for r in results] or [r.completed_at for r in manifest.rows if r.completed_at]
    return min(starts, default=None), max(ends, default=None)


Facts = list[tuple[str, str]]


def method(study: StudyResult, results: Sequence[ExperimentResult]) -> Facts:
    """How it was measured: order, cycles, gaps, window, baseline, sensor, and where the uncertainty comes from."""
    protocol = study.measurement_protocol
    facts = [
        ("cycles", str(protocol.get("n_cycles", DASH))),
        ("order of runs", str(protocol.get("cycle_order", DASH)).replace("_", " ")),
        ("pauses", _gaps(protocol)),
        ("window", _window(results)),
        ("warm-up", _warm_up(results)),
        ("settling", evidence.settling(results)),
        ("energy from", various(f"{r.energy_source} ({r.energy_kind})" for r in results if r.energy_source)),
        ("sensor", evidence.sensor(results)),
        ("calibration", evidence.calibration(results)),
        ("idle power", _baseline(results)),
        ("GPU in the window", evidence.state(results)),
        ("power cap", evidence.power_cap(results)),
        ("drift inside the window", evidence.drifts(results)),
        ("uncertainty", _uncertainty(results)),
        ("its parts", evidence.budget(results)),
        ("second reading", evidence.second_reading(results)),
    ]
    return [(name, text) for name, text in facts if text != DASH]


def _gaps(protocol: Mapping[str, Any]) -> str:
    config, cycle = protocol.get("config_gap_seconds"), protocol.get("cycle_gap_seconds")
    if config is None and cycle is None:
        return DASH
    return f"{number(config)} s between runs, {number(cycle)} s between cycles"


def _window(results: Sequence[ExperimentResult]) -> str:
    if not results:
        return DASH
    modes = various(f"{r.measurement_methodology.replace('_', ' ')}, {r.window_mode or 'whole run'}" for r in results)
    return f"{evidence.span([r.duration_s for r in results], 's')} ({modes}); tokens by attention mask, never padding"


def _warm_up(results: Sequence[ExperimentResult]) -> str:
    passes = [r.warmup.iterations_completed for r in results if r.warmup]
    if not passes:
        return DASH
    return (
        f"{counted(passes[0], 'pass')} before the window" if len(set(passes)) == 1 else evidence.span(passes, "passes")
    )


def _baseline(results: Sequence[ExperimentResult]) -> str:
    text = evidence.idle(results)
    return text if text == DASH else f"{text}; not subtracted from the ranking figure"


def _uncertainty(results: Sequence[ExperimentResult]) -> str:
    text = evidence.uncertainty(results)
    return (
        text if text == DASH else f"of one run {text}; intervals over cycles are Student's t on runs in fresh processes"
    )


def environment(study: StudyResult, results: Sequence[ExperimentResult], tool_version: str) -> Facts:
    """On what it was measured: machine, driver, libraries, model, data, and the hashes that identify the study."""
    snapshots = [r.environment_snapshot for r in results]

    def of(*names: str) -> str:
        return various(" ".join(str(s[n]) for n in names if s.get(n)) for s in snapshots)

    libraries = _libraries([s.get("packages") or {} for s in snapshots])
    limits = various(
        f"{number(g['power_limit_w'])} W" for s in snapshots for g in s.get("gpus") or () if g.get("power_limit_w")
    )
    facts = [
        ("GPU", gpu_names(results) if results else DASH),
        ("power limit", limits),
        ("driver", of("driver_version")),
        ("CUDA", of("cuda_version")),
        ("engine", various(f"{r.backend} {r.backend_version or ''}".strip() for r in results)),
        ("libraries", libraries),
        ("CPU", various(_cpu(s) for s in snapshots)),
        ("kernel", of("kernel")),
        ("Python", of("python_version")),
        ("container", of("container", "image_digest")),
        ("node", of("node")),
        ("model", various(f"{r.model} @ {r.model_revision}" if r.model_revision else r.model for r in results)),
        ("data set", various(_data_set(r) for r in results)),
        ("llem", tool_version),
        ("design hash", study.study_design_hash),
    ]
    return [(name, text) for name, text in facts if text != DASH]


def _libraries(installed: Sequence[Mapping[str, str]]) -> str:
    names = sorted({n for packages in installed for n in packages if not n.startswith(OWN_LINE)})
    return ", ".join(f"{n} {various(p.get(n) for p in installed)}" for n in names) or DASH


def _cpu(snapshot: Mapping[str, Any]) -> str:
    cores = snapshot.get("cpu_count")
    return f"{snapshot.get('cpu_model') or 'unknown'}, {cores} cores" if cores else str(snapshot.get("cpu_model") or "")


def _data_set(result: ExperimentResult) -> str:
    digest = f", sha256 {result.dataset_sha256[:16]}" if result.dataset_sha256 else ""
    data = result.effective_config.get("dataset")
    return f"{data if isinstance(data, str) else 'random tokens'}{digest}" if data else ""


def failures(study: StudyResult) -> list[NotRun]:
    """Runs that ended without a result; equal reasons of one configuration once."""
    grouped: dict[tuple[str, str], list[int]] = {}
    for run in study.failed[:MOST_FAILURES]:
        grouped.setdefault((run.summary, f"{run.error_type}: {run.error_message}"), []).append(run.cycle)
    found = _by_cycles(grouped)
    more = len(study.failed) - MOST_FAILURES
    return [*found, NotRun(f"{counted(more, 'failed run')} more", "see the CSV")] if more > 0 else found


def missing(manifest: StudyManifest) -> list[NotRun]:
    """Runs with neither a result nor a failure, by configuration."""
    grouped: dict[tuple[str, str], list[int]] = {}
    for row in manifest.rows:
        if row.status not in ("completed", "failed"):
            grouped.setdefault((row.summary, row.status), []).append(row.cycle)
    return _by_cycles(grouped)


def _by_cycles(grouped: Mapping[tuple[str, str], Sequence[int]]) -> list[NotRun]:
    """One entry per configuration and reason, with its cycles."""
    return [
        NotRun(f"{name} ({'cycle' if len(cycles) == 1 else 'cycles'} {', '.join(map(str, cycles))})", why)
        for (name, why), cycles in grouped.items()
    ]


def skipped(study: StudyResult) -> list[NotRun]:
    """Combinations that were refused when the sweep was expanded."""
    return [NotRun(_point(s.get("config") or {}), str(s.get("reason") or DASH)) for s in study.skipped]


def _point(config: Mapping[str, Any]) -> str:
    return ", ".join(f"{k}={v}" for k, v in config.items())


ENDS = {
    "running": "the study has not ended",
    "interrupted": "the study was interrupted",
    "circuit_breaker": "the study stopped after too many failures in a row",
}


def counts(study: StudyResult, manifest: StudyManifest) -> str:
    """How many runs there were and what became of them."""
    s = study.summary
    parts = [f"{s.get('ran', 0)} of {counted(s.get('runs', 0), 'run')} completed"]
    parts += [f"{s[k]} {k}" for k in ("failed", "invalid") if s.get(k)]
    parts += [f"{counted(s['skipped'], 'combination')} skipped"] if s.get("skipped") else []
    parts += [ENDS[manifest.status]] if manifest.status in ENDS else []
    return ", ".join(parts)


def lasted(start: datetime | None, end: datetime | None) -> str:
    """The time from the first run's start to the last one's end."""
    return DASH if start is None or end is None else duration_text((end - start).total_seconds())
