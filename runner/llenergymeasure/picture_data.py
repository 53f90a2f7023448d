"""What the pictures of a report show, as plain numbers: intervals, frontiers, traces and drift. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import fmean
from typing import Any

from llenergymeasure.core.result import ExperimentResult
from llenergymeasure.findings import Interval
from llenergymeasure.ranking import Ranked

LONGEST_LABEL = 40  # characters that fit beside a rank
TRACE_POINTS = 240  # of a long run's trace; each is the mean of its share, the band keeps its extremes


@dataclass(frozen=True)
class Dot:
    """A configuration's mean with the half-width of its interval; `stands_out`: the best, or not told apart from it."""

    rank: int
    label: str
    mean: float
    half_width: float | None
    stands_out: bool = False


@dataclass(frozen=True)
class Point:
    """A configuration in a plane of two quantities."""

    rank: int
    x: float
    y: float


@dataclass(frozen=True)
class Frontier:
    """Points and their axes; `edge`: those that no other one beats in both quantities, in order of x."""

    points: tuple[Point, ...]
    edge: tuple[Point, ...]
    x_label: str
    y_label: str


@dataclass(frozen=True)
class TraceLine:
    """Power of one GPU by seconds since the window's start, with its extremes."""

    gpu: int
    seconds: tuple[float, ...]
    power_w: tuple[float, ...]
    low_w: tuple[float, ...]
    high_w: tuple[float, ...]


@dataclass(frozen=True)
class Trace:
    """The power of one run; its window lasts from 0 to `duration_s`."""

    lines: tuple[TraceLine, ...]
    duration_s: float
    baseline_w: float | None


@dataclass(frozen=True)
class Moment:
    """A deviation in per cent at a time since the study's start."""

    time: float
    percent: float


@dataclass(frozen=True)
class Drift:
    """Runs as per cent from the mean of their configuration, and the means of the cycles."""

    points: tuple[Moment, ...]
    cycles: tuple[Moment, ...]
    time_unit: str


def shortened(text: str, limit: int = LONGEST_LABEL) -> str:
    """A label that fits: its middle gives way, because names differ at both ends."""
    if len(text) <= limit:
        return text
    head = (limit - 1) // 2
    return f"{text[:head]}…{text[-(limit - 1 - head) :]}"


def brief_names(summaries: Sequence[str]) -> dict[str, str]:
    """Summaries without what all have in common, and with dotted keys cut to their last part where that is clear."""
    parts = [summary.split(" ") for summary in summaries]
    common = set(parts[0]).intersection(*parts) if len(set(summaries)) > 1 else set()
    keys = {part.partition("=")[0] for found in parts for part in found if "=" in part}
    ends: dict[str, set[str]] = {}
    for key in keys:
        ends.setdefault(key.rpartition(".")[2], set()).add(key)
    briefs = {}
    for summary, found in zip(summaries, parts, strict=True):
        kept = [_brief(part, ends) for part in found if part not in common]
        briefs[summary] = shortened(" ".join(kept)) if kept else shortened(summary)
    return briefs if len(set(briefs.values())) == len(briefs) else {s: shortened(s) for s in summaries}


def _brief(part: str, ends: Mapping[str, set[str]]) -> str:
    key, equals, value = part.partition("=")
    end = key.rpartition(".")[2]
    return f"{end}={value}" if equals and len(ends[end]) == 1 else part


def dot(ranking: Ranked, found: Interval, name: str, *, stands_out: bool) -> Dot:
    """A configuration as a line of the picture."""
    return Dot(ranking.rank, name, found.mean, found.half_width, stands_out)


def limits(dots: Sequence[Dot]) -> tuple[float, float]:
    """The axis under all dots: from zero, unless all lie far above it, to a little beyond the last interval."""
    low = min(d.mean - (d.half_width or 0.0) for d in dots)
    high = max(d.mean + (d.half_width or 0.0) for d in dots)
    start = 0.0 if low > 0 and low < 0.5 * high else low - 0.25 * ((high - low) or abs(high) or 1.0)
    if min(d.mean for d in dots) > 0:  # an interval may reach below zero, a figure does not
        start = max(0.0, start)
    return start, high + 0.04 * (high - start or 1.0)


def frontier(
    rankings: Sequence[Ranked], x: tuple[str, str], y: tuple[str, str], *, more_x_is_better: bool
) -> Frontier | None:
    """Configurations in the plane of two quantities, each given as name and label; less y is better.

    None if fewer than two have both.
    """
    points = tuple(
        Point(r.rank, px, py) for r in rankings if (px := r.mean(x[0])) is not None and (py := r.mean(y[0])) is not None
    )
    if len(points) < 2:
        return None
    return Frontier(points, pareto(points, more_x_is_better=more_x_is_better), x[1], y[1])


def pareto(points: Sequence[Point], *, more_x_is_better: bool) -> tuple[Point, ...]:
    """The points that no other one beats in one quantity and equals in the other, in order of x."""
    sign = -1 if more_x_is_better else 1
    edge: list[Point] = []
    for point in sorted(points, key=lambda p: (sign * p.x, p.y)):
        if not edge or point.y < edge[-1].y or (point.x, point.y) == (edge[-1].x, edge[-1].y):
            edge.append(point)
    return tuple(sorted(edge, key=lambda p: (p.x, p.y)))


def trace(rows: Sequence[Mapping[str, Any]], result: ExperimentResult) -> Trace | None:
    """The power of a run from the rows of its timeseries; None if no row has a power."""
    by_gpu: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row.get("power_w") is not None:
            by_gpu.setdefault(row["gpu_index"], []).append(row)
    lines = tuple(_line(gpu, found, result.duration_s) for gpu, found in sorted(by_gpu.items()))
    return Trace(lines, result.duration_s, result.baseline_power_w) if lines else None


def _line(gpu: int, rows: Sequence[Mapping[str, Any]], duration_s: float) -> TraceLine:
    """A row covers the second after its timestamp: its power stands in the middle, the last one's in what is left."""
    size = -(-len(rows) // TRACE_POINTS)
    parts = [rows[i : i + size] for i in range(0, len(rows), size)]
    seconds = (fmean((r["timestamp_s"] + min(r["timestamp_s"] + 1, duration_s)) / 2 for r in part) for part in parts)
    return TraceLine(
        gpu,
        tuple(seconds),
        tuple(fmean(r["power_w"] for r in part) for part in parts),
        tuple(min(_or(r.get("power_min_w"), r["power_w"]) for r in part) for part in parts),
        tuple(max(_or(r.get("power_max_w"), r["power_w"]) for r in part) for part in parts),
    )


def _or(value: float | None, other: float) -> float:
    return other if value is None else value


def drift(runs: Sequence[tuple[str, int, datetime, float]]) -> Drift | None:
    """Runs as configuration, cycle, start and figure; None unless two cycles have a configuration in common."""
    by_config: dict[str, list[float]] = {}
    for digest, _, _, value in runs:
        by_config.setdefault(digest, []).append(value)
    repeated = [r for r in runs if len(by_config[r[0]]) > 1]
    if len({cycle for _, cycle, _, _ in repeated}) < 2:
        return None
    first = min(start for _, _, start, _ in repeated)
    span_s = (max(start for _, _, start, _ in repeated) - first).total_seconds()
    unit, seconds = ("h", 3600.0) if span_s > 7200 else ("min", 60.0) if span_s > 180 else ("s", 1.0)
    moments: dict[int, list[Moment]] = {}
    for digest, cycle, start, value in repeated:
        percent = 100 * (value / fmean(by_config[digest]) - 1) if fmean(by_config[digest]) else 0.0
        moments.setdefault(cycle, []).append(Moment((start - first).total_seconds() / seconds, percent))
    means = [Moment(fmean(m.time for m in ms), fmean(m.percent for m in ms)) for _, ms in sorted(moments.items())]
    points = sorted((m for ms in moments.values() for m in ms), key=lambda m: m.time)
    return Drift(tuple(points), tuple(sorted(means, key=lambda m: m.time)), unit)
