"""Writes a study, or several, as one HTML page with pictures: no network, no script, for screen, phone and paper."""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

from llenergymeasure import __version__, export, findings, report_content
from llenergymeasure.core.comparison import ENERGY, LATENCY, SPEED
from llenergymeasure.core.errors import BackendMissingError
from llenergymeasure.core.tables import csv_text
from llenergymeasure.findings import Headline, Told
from llenergymeasure.html_pictures import (
    MISSING_EXTRA,
    draw_dots,
    draw_drift,
    draw_frontier,
    draw_trace,
    svg,
)
from llenergymeasure.picture_data import Dot, Trace, brief_names, dot, drift, frontier, limits, trace
from llenergymeasure.ranking import Ranked, peers
from llenergymeasure.store import write_atomically
from llenergymeasure.stored_study import Rebuilt, read_series
from llenergymeasure.wording import DASH, counted, number, printable

DOTS_PER_PICTURE = 24
FEW = 12  # configurations at most whose three pictures are of one height, and stand side by side
TRACES_SHOWN, TRACES_AT_MOST = 12, 60
_ENERGY_AXIS = "J per output token"
_SPEED_AXIS = "output tokens/s"


@dataclass(frozen=True)
class Picture:
    """An SVG and the sentence below it."""

    svg: str
    caption: str


@dataclass(frozen=True)
class Section:
    """What is told of each study by itself."""

    label: str
    counts: str
    directory: str
    drift: Picture | None
    drift_text: str | None
    traces: Sequence[Picture]
    more_traces: Sequence[Picture]
    traces_note: str
    warnings: Sequence[findings.Finding]
    method: report_content.Facts
    environment: report_content.Facts
    failures: Sequence[report_content.NotRun]
    missing: Sequence[report_content.NotRun]
    skipped: Sequence[report_content.NotRun]


def write_report(path: Path, studies: Sequence[Rebuilt]) -> None:
    """Write the page; raises BackendMissingError without the extra `report`, ResultStoreError if the disk refuses."""
    write_atomically(path, html_text(studies, now=datetime.now(UTC)).encode())


def html_text(studies: Sequence[Rebuilt], *, now: datetime) -> str:
    """The page as text; `now` is the time written at its foot.

    Raises:
        BackendMissingError: matplotlib or jinja2 is not installed.

    """
    told = [Told(r.study, r.results) for r in studies]
    labels = findings.study_labels([r.study for r in studies])
    order = findings.rank_all(told)
    beside = peers(order)
    head = findings.headline(told)
    alike = findings.alike(told, head)
    rows = export.run_rows(studies)
    latency_of = findings.latency_of(r for t in told for r in t.results)
    table = report_content.table(order, told, labels, head, alike)
    return _render(
        title=", ".join(labels),
        several=len(studies) > 1,
        facts=_facts(studies),
        headline=head,
        table=table,
        latency_of=latency_of,
        relative_of="rel. J/token" if head.quantity == ENERGY else "rel. speed",
        has={name: any(getattr(row, name) != DASH for row in table) for name in ("energy", "power")}
        | {"cycles": len({row.cycles for row in table}) > 1},
        banners=report_content.banners(told),
        reasons=report_content.reasons(told),
        dots=_dots(beside, told, head, alike),
        few=len(beside) <= FEW,
        frontiers=_frontiers(beside, latency_of),
        sections=[_section(r, label, order, i, head) for i, (r, label) in enumerate(zip(studies, labels, strict=True))],
        csv=base64.b64encode(csv_text(rows).encode()).decode(),
        csv_rows=len(rows),
        csv_name=f"{studies[0].study.study_design_hash}.csv" if len(studies) == 1 else "studies.csv",
        now=f"{now:%Y-%m-%d %H:%M} UTC",
        version=__version__,
    )


def _render(**content: Any) -> str:
    try:
        import jinja2
        import markupsafe
    except ImportError as err:
        raise BackendMissingError(MISSING_EXTRA.format(name=err.name)) from err
    source = resources.files("llenergymeasure").joinpath("data/report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, finalize=_printable, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["breakable"] = lambda name: markupsafe.Markup(_breakable(markupsafe.escape(printable(name))))  # noqa: S704  (escaped just before)
    environment.filters |= {"counted": counted, "sentence": _sentence}
    return environment.from_string(source).render(**content)


def _breakable(escaped: str) -> str:
    """Lines may break inside a long name where its parts meet."""
    return re.sub(r"(?<=[./])(?=\w)", "<wbr>", escaped)


def _sentence(text: str) -> str:
    """Its first letter as a sentence begins; a key of the configuration is written as it is."""
    return text if re.match(r"[a-z_]+[._]\w", text) else text[:1].upper() + text[1:]


def _printable(value: object) -> object:
    return printable(value) if type(value) is str else value


def _facts(studies: Sequence[Rebuilt]) -> list[str]:
    """The line below the title: when, which models, on what, how many runs."""
    results = [r for rebuilt in studies for r in rebuilt.results]
    periods = [report_content.period(r.manifest, r.results) for r in studies]
    start = min((s for s, _ in periods if s), default=None)
    end = max((e for _, e in periods if e), default=None)
    models = [r.model for r in results] or [e.model for rebuilt in studies for e in rebuilt.config.experiments]
    facts = [] if start is None else [f"{start:%Y-%m-%d %H:%M} UTC, {report_content.lasted(start, end)}"]
    facts.append(report_content.various(models))
    facts += [report_content.gpu_names(results)] if results else []
    return [
        *facts,
        *(
            [report_content.counts(studies[0].study, studies[0].manifest)]
            if len(studies) == 1
            else [counted_studies(studies)]
        ),
    ]


def counted_studies(studies: Sequence[Rebuilt]) -> str:
    """How many studies with how many completed runs."""
    runs = sum(len(r.results) for r in studies)
    return f"{len(studies)} studies, {counted(runs, 'completed run')}"


def _dots(order: Sequence[Ranked], told: Sequence[Told], head: Headline, alike: frozenset[str]) -> list[Picture]:
    """The means with their intervals, in parts that fit a sheet, all on one axis."""
    shown, names = [], brief_names([r.experiment.summary for r in order]) if order else {}
    for ranking in order:
        found = findings.interval(ranking, head.quantity, told[ranking.study].results)
        if found is not None and not found.estimate:
            stands_out = report_content.stands_out(ranking, head, alike)
            shown.append((dot(ranking, found, names[ranking.experiment.summary], stands_out=stands_out), found))
    if not shown:
        return []
    axis = limits([d for d, _ in shown])
    meanings = report_content.various(found.meaning for _, found in shown)
    pictures = []
    for start in range(0, len(shown), DOTS_PER_PICTURE):
        part = [d for d, _ in shown[start : start + DOTS_PER_PICTURE]]
        what = f"Ranks {part[0].rank} to {part[-1].rank}: {head.unit}"
        described = "; ".join(f"{d.rank}: {d.label}, {number(d.mean)} ± {number(d.half_width, 2)}" for d in part)
        drawn = svg(draw_dots(part, head.unit, limits=axis), f"dots-{start}", what, described)
        pictures.append(Picture(drawn, _dots_caption([d for d, _ in shown], meanings)))
    return pictures


def _dots_caption(dots: Sequence[Dot], meanings: str) -> str:
    bars = f"Bars: {meanings}." if any(d.half_width is not None for d in dots) else "No bars: the spread is not known."
    return f"{bars} Coloured: the best" + (", and what cannot be told apart from it." if len(dots) > 1 else ".")


def _frontiers(order: Sequence[Ranked], latency_of: str) -> list[Picture]:
    """Energy against throughput and latency; without energy, latency against throughput."""
    latency_axis = f"{'' if latency_of == 'latency' else f'{latency_of} '}latency, median, ms"
    speed, latency, energy = (SPEED, _SPEED_AXIS), (LATENCY, latency_axis), (ENERGY, _ENERGY_AXIS)
    wanted = [("throughput", speed, energy, True), ("latency", latency, energy, False)]
    if not any(r.mean(ENERGY) is not None for r in order):
        wanted = [("throughput-latency", speed, latency, True)]
    pictures = []
    for name, x, y, more in wanted:
        found = frontier(order, x, y, more_x_is_better=more)
        if found is None:
            continue
        ranks = ", ".join(str(p.rank) for p in sorted(found.edge, key=lambda p: p.rank))
        title = f"{y[1]} against {x[1]}"
        line = "On the line, beaten" if len(found.edge) > 1 else "Beaten"
        caption = f"Numbers are ranks. {line} by no other in both: {ranks}."
        drawn = svg(draw_frontier(found), f"frontier-{name}", title[0].upper() + title[1:], caption)
        pictures.append(Picture(drawn, caption))
    return pictures


def _section(rebuilt: Rebuilt, label: str, order: Sequence[Ranked], place: int, head: Headline) -> Section:
    study, results = rebuilt.study, rebuilt.results
    first, more, note = _traces(rebuilt, [r for r in order if r.study == place], place)
    return Section(
        label=label,
        counts=report_content.counts(study, rebuilt.manifest),
        directory=Path(study.directory or "").name,
        drift=_drift(rebuilt, place, head.quantity),
        drift_text=findings.drift_text(study, head.quantity),
        traces=first,
        more_traces=more,
        traces_note=note,
        warnings=findings.warnings(results),
        method=report_content.method(study, results),
        environment=report_content.environment(study, results, rebuilt.manifest.tool_version),
        failures=report_content.failures(study),
        missing=report_content.missing(rebuilt.manifest),
        skipped=report_content.skipped(study),
    )


def _drift(rebuilt: Rebuilt, place: int, quantity: str) -> Picture | None:
    rows = {r.index: r for r in rebuilt.manifest.rows}
    runs = [
        (r.measurement_config_hash, rows[index].cycle, r.start_time, value)
        for index, r in rebuilt.by_index().items()
        if (value := getattr(r, quantity)) is not None and (quantity == SPEED or r.verdict.state == "valid")
    ]
    found = drift(runs)
    if found is None:
        return None
    unit = _ENERGY_AXIS if quantity == ENERGY else _SPEED_AXIS
    caption = f"Each run's {unit} against the mean of its configuration; the line joins the means of the cycles."
    return Picture(svg(draw_drift(found), f"drift-{place}", f"Drift of {unit} over the study", caption), caption)


def _traces(rebuilt: Rebuilt, order: Sequence[Ranked], place: int) -> tuple[list[Picture], list[Picture], str]:
    """Traces of each configuration's first cycle, those of the other runs, and a sentence on what was left out."""
    rows, results = {r.index: r for r in rebuilt.manifest.rows}, rebuilt.by_index()
    ranks = {r.experiment.config_hash: r.rank for r in order}
    wanted = sorted(results, key=lambda i: (rows[i].cycle, ranks.get(rows[i].config_hash, 0), i))
    first = _first_cycles(rebuilt)
    wanted = sorted(wanted, key=lambda i: rows[i].cycle != first[rows[i].config_hash])
    found, broken = _readable_traces(rebuilt, wanted[:TRACES_AT_MOST])
    top_w = max((w for t in found.values() for line in t.lines for w in line.high_w), default=0.0)
    names = brief_names([r.summary for r in rebuilt.manifest.rows])
    pictures = []
    for index, drawn in found.items():
        rank = ranks.get(rows[index].config_hash, "")
        caption = f"{rank} {names[rows[index].summary]}, cycle {rows[index].cycle}"
        mean = results[index].mean_power_w
        power = "" if mean is None else f"mean {number(mean, 3)} W"
        described = f"Window of {number(drawn.duration_s, 3)} s. {power}"
        picture = svg(draw_trace(drawn, top_w=top_w), f"trace-{place}-{index}", f"Power of {caption}", described)
        pictures.append(Picture(picture, f"{caption}: {power}" if power else caption))
    firsts = sum(rows[i].cycle == first[rows[i].config_hash] for i in found)
    shown = min(TRACES_SHOWN, firsts)
    return pictures[:shown], pictures[shown:], _left_out(len(wanted) - TRACES_AT_MOST, broken)


def _readable_traces(rebuilt: Rebuilt, indices: Sequence[int]) -> tuple[dict[int, Trace], int]:
    """Traces by index of the run, and how many series are damaged: they are no reason to go without a report."""
    found: dict[int, Trace] = {}
    results, broken = rebuilt.by_index(), 0
    for index in indices:
        try:
            rows = read_series(rebuilt, index)
        except (ValueError, OSError):  # pyarrow's errors are one or the other
            broken += 1
            continue
        if (drawn := trace(rows, results[index])) is not None:
            found[index] = drawn
    return found, broken


def _left_out(further: int, broken: int) -> str:
    parts = [f"{counted(further, 'further run')} not drawn; see each run's timeseries.parquet."] if further > 0 else []
    parts += [f"{broken} timeseries.parquet cannot be read."] if broken else []
    return " ".join(parts)


def _first_cycles(rebuilt: Rebuilt) -> dict[str, int]:
    """The first completed cycle of each configuration, by its hash."""
    first: dict[str, int] = {}
    for row in rebuilt.manifest.rows:
        if row.status == "completed":
            first[row.config_hash] = min(row.cycle, first.get(row.config_hash, row.cycle))
    return first
