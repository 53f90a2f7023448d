"""The pictures show the numbers they were given, take their colours from the page, and can be read aloud."""

import re
from itertools import combinations
from xml.etree import ElementTree as ET

import pytest

from llenergymeasure.html_pictures import draw_dots, draw_drift, draw_frontier, draw_trace, svg
from llenergymeasure.picture_data import Dot, Drift, Frontier, Moment, Point, Trace, TraceLine, pareto
from report.studies import HOSTILE, UNICODE

DOTS = [Dot(1, "a", 1.0, 0.25, stands_out=True), Dot(2, "b", 2.0, None), Dot(3, "c", 3.0, 0.5)]


def lines(figure: object) -> dict[str, tuple[list[float], list[float]]]:
    """The data of each line by its id."""
    (axes,) = figure.axes  # type: ignore[attr-defined]
    return {line.get_gid(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines if line.get_gid()}


def test_bars_end_where_the_intervals_end() -> None:
    """A bar from mean minus to mean plus half-width; none where no interval is known; best on top."""
    figure = draw_dots(DOTS, "J", limits=(0, 4))
    found = lines(figure)
    assert {k: v[0] for k, v in found.items()} == {
        "bar-1": [0.75, 1.25], "dot-1": [1.0], "dot-2": [2.0], "bar-3": [2.5, 3.5], "dot-3": [3.0],
    }  # fmt: skip
    bottom, top = figure.axes[0].get_ylim()
    assert bottom > found["dot-3"][1][0] > found["dot-1"][1][0] > top
    assert figure.axes[0].get_xlim() == (0, 4)


def a_frontier(count: int) -> Frontier:
    points = tuple(Point(i + 1, 1 + (i * 37 % count) ** 1.5, 1 + (i * 11 % count) * 3.0) for i in range(count))
    return Frontier(points, pareto(points, more_x_is_better=True), "x", "y")


@pytest.mark.parametrize("count", [2, 12, 100])
def test_frontier_shows_every_point_and_the_line_through_the_unbeaten(count: int) -> None:
    """As many points as configurations, and the line is the frontier."""
    given = a_frontier(count)
    found = lines(draw_frontier(given))
    assert {k for k in found if k.startswith("point-")} == {f"point-{p.rank}" for p in given.points}
    assert found["frontier"] == ([p.x for p in given.edge], [p.y for p in given.edge])


def test_frontier_has_no_axis_below_zero() -> None:
    """Room beside the points ends at zero: there are no negative speeds, times or joules."""
    points = (Point(1, 1.0, 10.0), Point(2, 19.0, 0.6), Point(3, 10.0, 5.0))
    (axes,) = draw_frontier(Frontier(points, points[:2], "x", "y")).axes
    assert (axes.get_xlim()[0], axes.get_ylim()[0]) == (0, 0)


@pytest.mark.parametrize("count", [2, 12, 100])
def test_numbers_beside_points_do_not_overlap(count: int) -> None:
    """Every number can be read; each frontier point has one while there is room."""
    given = a_frontier(count)
    figure = draw_frontier(given)
    figure.draw_without_rendering()
    texts = [t for t in figure.axes[0].texts if t.get_text()]
    boxes = [t.get_window_extent() for t in texts]
    # matplotlib's font is wider and its boxes are taller than the digits that browsers draw
    shrunk = [b.shrunk(0.85, 0.6).translated(b.width * 0.075, b.height * 0.2) for b in boxes]
    assert not [(a, b) for a, b in combinations(shrunk, 2) if a.overlaps(b)]
    if count <= 12:
        assert {t.get_text() for t in texts} == {str(p.rank) for p in given.points}


def test_wide_ranges_are_logarithmic_with_plain_numbers() -> None:
    """Two decades do not squeeze the small ones, and no power of ten has to be read."""
    points = (Point(1, 1.0, 5.0), Point(2, 900.0, 6.0))
    figure = draw_frontier(Frontier(points, points, "x", "y"))
    assert (figure.axes[0].get_xscale(), figure.axes[0].get_yscale()) == ("log", "linear")
    shown = [t.get_text() for t in figure.axes[0].get_xticklabels()]
    assert {"10", "100"} <= set(shown)


def test_trace_marks_the_window_and_idle_power_and_shares_its_scale() -> None:
    """The shaded window lasts from zero to its end; power below it as given; the axis ends where the study's does."""
    line = TraceLine(0, (0.5, 1.5), (100, 110), (90, 95), (120, 130))
    figure = draw_trace(Trace((line,), 2.0, 77.0), top_w=400)
    (axes,) = figure.axes
    (window,) = [p for p in axes.patches if p.get_gid() == "window"]
    assert (window.get_x(), window.get_x() + window.get_width()) == (0, 2.0)
    found = lines(figure)
    assert found["power-0"] == ([0.5, 1.5], [100, 110])
    assert found["idle"][1] == [77.0, 77.0]
    assert axes.get_xlim()[0] < 0
    assert axes.get_xlim()[1] > 2.0
    assert axes.get_ylim()[0] == 0
    assert axes.get_ylim()[1] > 400


def test_drift_shows_runs_and_cycles_within_its_axis() -> None:
    """All points are inside, also where nothing moved."""
    still = Drift((Moment(0, 0.0), Moment(1, 1e-14)), (Moment(0, 0.0), Moment(1, 0.0)), "s")
    moved = Drift((Moment(0, -4.0), Moment(1, 4.0)), (Moment(0, -4.0), Moment(1, 4.0)), "h")
    for given in (still, moved):
        figure = draw_drift(given)
        assert lines(figure)["runs"] == ([0, 1], [m.percent for m in given.points])
        low, high = figure.axes[0].get_ylim()
        assert low < min(m.percent for m in given.points) <= max(m.percent for m in given.points) < high
        assert high >= 0.1


def drawn(label: str = "a", title: str = "Title", name: str = "p") -> ET.Element:
    figure = draw_dots([Dot(1, label, 1.0, 0.1), Dot(2, "b", 2.0, 0.1)], "J", limits=(0, 3))
    return ET.fromstring(svg(figure, name, title, "What it shows"))


def test_pictures_have_accessible_names() -> None:
    """A screen reader says title and description."""
    root = drawn()
    texts = {e.attrib["id"]: e.text for e in root.iter() if e.tag in ("title", "desc")}
    assert root.attrib["role"] == "img"
    assert [texts[i] for i in root.attrib["aria-labelledby"].split()] == ["Title", "What it shows"]
    assert "width" not in root.attrib  # the page decides


def test_colours_are_the_page_s() -> None:
    """No colour is fixed: all come from custom properties, which change with the scheme."""
    trace = Trace((TraceLine(0, (0.5,), (100,), (90,), (120,)),), 1.0, 77.0)
    points = (Point(1, 1, 2), Point(2, 2, 3))
    drift = Drift((Moment(0, 0), Moment(1, 1)), (Moment(0, 0),), "s")
    for figure in (
        draw_dots(DOTS, "J", limits=(0, 4)), draw_trace(trace, top_w=120), draw_drift(drift),
        draw_frontier(Frontier(points, points[:1], "x", "y")),
    ):  # fmt: skip
        text = svg(figure, "p", "t", "d")
        assert re.findall(r"#[0-9a-fA-F]{6}\b", text) == []
        assert "var(--ink)" in text or "var(--muted)" in text
        for element in ET.fromstring(text).iter("text"):
            assert "fill: var(" in element.attrib["style"]


def test_ids_of_two_pictures_differ() -> None:
    """Many pictures live in one page: a reference must not find another one's part."""
    texts = [svg(draw_dots(DOTS, "J", limits=(0, 4)), name, "t", "d") for name in ("one", "two")]
    ids = [set(re.findall(r' id="([^"]+)"', text)) for text in texts]
    assert ids[0].isdisjoint(ids[1])
    for text, own in zip(texts, ids, strict=True):
        used = re.findall(r'(?:url\(#|href="#)([^")]+)', text)
        assert used
        assert set(used) <= own


@pytest.mark.parametrize("label", [HOSTILE, UNICODE, "$x^2$ \\frac", "nul\x00bell\x07", "\ud800"], ids=ascii)
def test_any_name_can_be_drawn(label: str) -> None:
    """Markup, formulas, control characters and all scripts end as plain text; what turns text around is replaced."""
    root = drawn(label, title=label)
    assert {e.tag for e in root.iter()} <= {"svg", "title", "desc", "defs", "style", "g", "path", "text", "use", "clipPath", "rect"}  # fmt: skip
    shown = " ".join(e.text or "" for e in root.iter("text"))
    visible = re.sub(r"[\x00-\x1f\u202e\ud800]", "\N{REPLACEMENT CHARACTER}", label)
    assert visible in shown


def test_the_same_data_draw_the_same_picture() -> None:
    """Two reports of one study do not differ."""
    assert ET.tostring(drawn()) == ET.tostring(drawn())
