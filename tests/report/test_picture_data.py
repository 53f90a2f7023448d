"""The numbers behind the pictures: frontiers against a slow oracle, traces that keep extremes, drift in per cent."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llenergymeasure.picture_data import (
    LONGEST_LABEL,
    TRACE_POINTS,
    Dot,
    Point,
    brief_names,
    drift,
    limits,
    pareto,
    shortened,
    trace,
)
from report.studies import START
from report.test_findings import result

few = st.integers(0, 6).map(float)  # equal values are common


@given(st.lists(st.tuples(few, few), max_size=25), st.booleans())
def test_frontier_is_what_no_other_point_beats(pairs: list[tuple[float, float]], more: bool) -> None:
    """The same as comparing every point with every other one."""
    points = [Point(i, x, y) for i, (x, y) in enumerate(pairs)]

    def beats(a: Point, b: Point) -> bool:
        at_least_as_good = (a.x >= b.x if more else a.x <= b.x) and a.y <= b.y
        return at_least_as_good and (a.x, a.y) != (b.x, b.y)

    unbeaten = {p for p in points if not any(beats(other, p) for other in points)}
    edge = pareto(points, more_x_is_better=more)
    assert set(edge) == unbeaten
    assert [p.x for p in edge] == sorted(p.x for p in edge)


@pytest.mark.parametrize(
    ("dots", "starts_at_zero"),
    [([(1, 0.1), (4, None)], True), ([(3.9, 0.1), (4, None)], False), ([(2, None)], False), ([(0, None)], False)],
    ids=["wide", "narrow", "one", "zero"],
)
def test_axis_holds_every_interval(dots: list[tuple[float, float | None]], starts_at_zero: bool) -> None:
    """No bar is cut, and the axis starts at zero unless the values lie close together far above it."""
    shown = [Dot(i, "x", mean, half) for i, (mean, half) in enumerate(dots)]
    low, high = limits(shown)
    assert low < high
    assert (low == 0.0) is starts_at_zero
    assert all(low <= d.mean - (d.half_width or 0) and d.mean + (d.half_width or 0) <= high for d in shown)


def test_no_axis_goes_below_zero_where_no_figure_does() -> None:
    """An interval of two cycles may be wider than its mean; there are no tokens/s below zero."""
    assert limits([Dot(1, "x", 7000.0, 40_000.0), Dot(2, "x", 9000.0, None)])[0] == 0
    assert limits([Dot(1, "x", -1.0, 0.5)])[0] < -1.5


def _row(second: int, power: float | None, gpu: int = 0) -> dict[str, float | int | None]:
    return {
        "timestamp_s": float(second),
        "gpu_index": gpu,
        "power_w": power,
        "power_min_w": power,
        "power_max_w": power,
    }


def test_long_trace_keeps_its_extremes() -> None:
    """A single second's peak in an hour is still in the band, and the mean is kept."""
    rows = [_row(s, 900.0 if s == 1234 else 100.0) for s in range(3600)]
    found = trace(rows, result(duration_s=3599.5))
    assert found is not None
    (line,) = found.lines
    assert len(line.seconds) <= TRACE_POINTS
    assert max(line.high_w) == 900
    assert sum(line.power_w) / len(line.power_w) == pytest.approx(100 + 800 / 3600)
    assert all(0 < s < 3599.5 for s in line.seconds)


def test_trace_has_a_line_per_gpu_and_skips_seconds_without_power() -> None:
    """Several GPUs are not added up; a second without a reading is no zero."""
    rows = [_row(0, 100, 0), _row(0, 200, 1), _row(1, None, 0), _row(1, 210, 1)]
    found = trace(rows, result(duration_s=2))
    assert found is not None
    assert [(line.gpu, line.power_w) for line in found.lines] == [(0, (100,)), (1, (200, 210))]
    assert trace([_row(0, None)], result()) is None


def test_drift_is_per_cent_from_the_mean_of_the_same_configuration() -> None:
    """Configurations of different size share one axis; cycles have their mean; a single run says nothing."""

    def at(minute: int) -> object:
        return START + timedelta(minutes=minute)

    found = drift([("a", 1, at(0), 1.0), ("b", 1, at(1), 100.0), ("a", 2, at(8), 1.1), ("b", 2, at(9), 110.0), ("c", 1, at(99), 5.0)])  # type: ignore[arg-type]  # fmt: skip
    assert found is not None
    assert found.time_unit == "min"
    assert [(m.time, round(m.percent, 3)) for m in found.points] == [(0, -4.762), (1, -4.762), (8, 4.762), (9, 4.762)]
    assert [(m.time, round(m.percent, 3)) for m in found.cycles] == [(0.5, -4.762), (8.5, 4.762)]


def test_one_cycle_has_no_drift() -> None:
    """Without a repetition drift and configuration cannot be told apart."""
    assert drift([("a", 1, START, 1.0), ("b", 1, START, 2.0)]) is None


@pytest.mark.parametrize(
    ("names", "brief"),
    [
        (["x a.b=1 c=2", "x a.b=3 c=2"], ["b=1", "b=3"]),
        (["x a.n=1 b.n=2", "x a.n=2 b.n=1"], ["a.n=1 b.n=2", "a.n=2 b.n=1"]),
        (["x only"], ["x only"]),
        (["y", "x y"], ["y", "x"]),
    ],
    ids=["common parts", "same last part", "single", "nothing left"],
)
def test_names_in_pictures_leave_out_what_all_share(names: list[str], brief: list[str]) -> None:
    """What differs is what a label must show; a key keeps as much as tells it apart."""
    assert list(brief_names(names).values()) == brief


def test_long_names_lose_their_middle() -> None:
    """Both ends of a long label stay."""
    text = shortened("start" + "x" * 200 + "end")
    assert len(text) == LONGEST_LABEL
    assert text.startswith("start")
    assert text.endswith("end")
