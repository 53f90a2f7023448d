"""Draws the pictures of a report as SVG that takes its colours from the page, so that they follow light and dark.

matplotlib knows no CSS: every drawing uses a few placeholder colours, and the finished SVG gets `var(--…)` in their
place. Text stays text, in the page's own font; ids carry the picture's name, so that many fit into one page.
"""

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

from llenergymeasure.core.errors import BackendMissingError
from llenergymeasure.picture_data import Dot, Drift, Frontier, Trace
from llenergymeasure.wording import number, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MISSING_EXTRA = (
    "report.html needs matplotlib and jinja2, which are not installed (no module {name}); "
    'install them with: pip install "llenergymeasure[report]"'
)
# Placeholders that no colour map yields; each stands for the CSS custom property of that name.
INK, MUTED, LINE, ACCENT, BAND = "#010203", "#020304", "#030405", "#040506", "#050607"
_VARIABLES = {INK: "--ink", MUTED: "--muted", LINE: "--line", ACCENT: "--accent", BAND: "--band"}
_INCH = 72.0  # SVG units of matplotlib: points
WIDE, SMALL = 400.0, 270.0  # widths as drawn; shown at 0.9 to 1.3 of that
_XLINK = "{http://www.w3.org/1999/xlink}href"
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names may hold dollar signs
    "axes.formatter.use_mathtext": False,
    "font.size": 11.5,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 11.5,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "axes.unicode_minus": True,
}

_LEAST_DRIFT_PERCENT = 0.1  # half-height of the picture of drift at least: less is no drift to look at


@contextmanager
def _drawing() -> Iterator[None]:
    """The report's style; without the warnings on glyphs that matplotlib's font lacks: the browser draws the text."""
    try:
        import matplotlib as mpl
    except ImportError as err:
        raise BackendMissingError(MISSING_EXTRA.format(name=err.name)) from err
    with mpl.rc_context({**mpl.rcParamsDefault, **_STYLE}), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def _new(width: float, height: float) -> tuple["Figure", "Axes"]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / _INCH, height / _INCH), layout="constrained")
    figure.patch.set_visible(False)
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    return figure, axes


def draw_dots(dots: Sequence[Dot], unit: str, *, limits: tuple[float, float]) -> "Figure":
    """A line per configuration, best on top: its name, and below it the mean with its interval.

    Args:
        dots: In order of rank.
        unit: Of the values.
        limits: Ends of the axis, the same for all parts of a long list.

    """
    step, room = 31.0, 44.0
    with _drawing():
        figure, axes = _new(WIDE, step * len(dots) + room)
        for row, dot in enumerate(dots):
            colour = ACCENT if dot.stands_out else INK
            if dot.half_width is not None:
                ends = [dot.mean - dot.half_width, dot.mean + dot.half_width]
                axes.plot(ends, [row, row], color=colour, linewidth=1.6, gid=f"bar-{dot.rank}", zorder=3)
            axes.plot([dot.mean], [row], "o", color=colour, markersize=5.5, gid=f"dot-{dot.rank}", zorder=4)
            axes.annotate(
                printable(f"{dot.rank}  {dot.label}"), (0, row), xycoords=("axes fraction", "data"), xytext=(0, 7.5),
                textcoords="offset points", color=colour, annotation_clip=False,
            )  # fmt: skip
            axes.annotate(
                number(dot.mean), (1, row), xycoords=("axes fraction", "data"), xytext=(0, 7.5), ha="right",
                textcoords="offset points", color=colour, annotation_clip=False,
            )  # fmt: skip
        axes.hlines(range(len(dots)), *limits, color=LINE, linewidth=0.6, zorder=1)
        axes.set(xlim=limits, ylim=(len(dots) - 0.75, -0.8), yticks=[], xlabel=unit)
        axes.spines["left"].set_visible(False)
        return figure


def draw_frontier(frontier: Frontier) -> "Figure":
    """Every configuration as a point with its rank, and the line through those that no other one beats in both."""
    with _drawing():
        figure, axes = _new(WIDE, 300)
        edge = frontier.edge
        axes.plot([p.x for p in edge], [p.y for p in edge], color=ACCENT, linewidth=1.1, gid="frontier", zorder=2)
        for point in frontier.points:
            on_edge = point in edge
            axes.plot(
                [point.x], [point.y], "o", color=ACCENT if on_edge else MUTED, markersize=6 if on_edge else 4.5,
                gid=f"point-{point.rank}", zorder=4,
            )  # fmt: skip
        axes.set(xlabel=frontier.x_label, ylabel=frontier.y_label)
        _logarithmic_if_wide(axes, frontier)
        axes.margins(0.1)
        _from_zero(axes)
        figure.draw_without_rendering()
        _number_points(axes, frontier)
        return figure


def _from_zero(axes: "Axes") -> None:
    """Nothing below zero is shown where no figure is: speeds, times and joules have none."""
    for limits, change, values in (
        (axes.get_xlim(), axes.set_xlim, axes.dataLim.intervalx),
        (axes.get_ylim(), axes.set_ylim, axes.dataLim.intervaly),
    ):
        if limits[0] < 0 <= values[0]:
            change(0, limits[1])


def _logarithmic_if_wide(axes: "Axes", frontier: Frontier) -> None:
    """A logarithmic axis where the values span more than a factor of 20, with plain numbers on it."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axis, name, values in (
        (axes.xaxis, "x", [p.x for p in frontier.points]),
        (axes.yaxis, "y", [p.y for p in frontier.points]),
    ):
        if min(values) > 0 and max(values) / min(values) > 20:
            (axes.set_xscale if name == "x" else axes.set_yscale)("log")
            axis.set_major_locator(LogLocator(10, subs=(1, 2, 5), numticks=8))
            axis.set_minor_formatter(NullFormatter())
        axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))


def _number_points(axes: "Axes", frontier: Frontier) -> None:
    """Write ranks beside the points, the frontier's first; a number that finds no free place is left out."""
    pixels = [tuple(map(float, axes.transData.transform((p.x, p.y)))) for p in frontier.points]
    scale = axes.figure.dpi / _INCH
    taken = [(x - 4 * scale, y - 4 * scale, x + 4 * scale, y + 4 * scale) for x, y in pixels]
    order = sorted(range(len(pixels)), key=lambda i: (frontier.points[i] not in frontier.edge, frontier.points[i].rank))
    for i in order:
        text = str(frontier.points[i].rank)
        width, height = 7.0 * len(text), 9.4
        for dx, dy in _PLACES:
            left, bottom = (dx if dx >= 0 else dx - width), dy - height / 2
            x, y = pixels[i]
            box = (x + left * scale, y + bottom * scale, x + (left + width) * scale, y + (bottom + height) * scale)
            others = [t for k, t in enumerate(taken) if k != i]
            if not any(_overlap(box, other) for other in others):
                taken.append(box)
                axes.annotate(
                    text, (frontier.points[i].x, frontier.points[i].y), xytext=(left, bottom + 0.6),
                    textcoords="offset points", fontsize=11, color=INK, gid=f"number-{text}", zorder=5,
                )  # fmt: skip
                break


_PLACES = (
    (5.5, 5.5),
    (-5.5, 5.5),
    (5.5, -5.5),
    (-5.5, -5.5),
    (6.5, 0),
    (-6.5, 0),
    (-3, 10),
    (-3, -10),
    (12, 9),
    (-12, -9),
)


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def draw_trace(trace: Trace, *, top_w: float) -> "Figure":
    """The power of one run, its window shaded, idle power dashed; all traces of a study share the scale `top_w`."""
    with _drawing():
        figure, axes = _new(SMALL, 112)
        margin = 0.06 * trace.duration_s
        axes.axvspan(0, trace.duration_s, color=BAND, linewidth=0, gid="window", zorder=0)
        for line in trace.lines:
            axes.fill_between(line.seconds, line.low_w, line.high_w, color=ACCENT, alpha=0.25, linewidth=0, zorder=2)
            axes.plot(line.seconds, line.power_w, color=ACCENT, linewidth=1.2, gid=f"power-{line.gpu}", zorder=3)
        if trace.baseline_w is not None:
            axes.axhline(trace.baseline_w, color=MUTED, linewidth=0.9, linestyle=(0, (3, 2)), gid="idle", zorder=1)
        axes.set(xlim=(-margin, trace.duration_s + margin), ylim=(0, top_w * 1.08), xlabel="s", ylabel="W")
        axes.set_xticks([0, trace.duration_s], ["0", number(trace.duration_s, 3)])
        axes.locator_params(axis="y", nbins=3)
        axes.xaxis.labelpad = -9
        return figure


def draw_drift(drift: Drift) -> "Figure":
    """Each run against its configuration's mean, by the time it started; a line through the means of the cycles."""
    with _drawing():
        figure, axes = _new(WIDE, 210)
        axes.axhline(0, color=LINE, linewidth=0.8, zorder=1)
        axes.plot(
            [p.time for p in drift.points], [p.percent for p in drift.points], "o", color=MUTED, markersize=4,
            gid="runs", zorder=2,
        )  # fmt: skip
        means = drift.cycles
        axes.plot(
            [p.time for p in means], [p.percent for p in means], "o-", color=ACCENT, markersize=6, linewidth=1.3,
            gid="cycles", zorder=3,
        )  # fmt: skip
        largest = max(_LEAST_DRIFT_PERCENT, *(abs(p.percent) for p in drift.points))
        axes.set(
            xlabel=f"start of the run, {drift.time_unit}",
            ylabel="% from the mean",
            ylim=(-1.25 * largest, 1.25 * largest),
        )
        return figure


def svg(figure: "Figure", name: str, title: str, description: str) -> str:
    """The picture for use inside a page: an accessible name, colours of the page, ids that begin with `name`."""
    buffer = io.StringIO()
    with _drawing():
        import matplotlib as mpl

        mpl.rcParams["svg.hashsalt"] = name
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    root = ET.fromstring(printable(buffer.getvalue()))  # noqa: S314  (matplotlib's)
    for child in [c for c in root if c.tag.endswith("metadata")]:
        root.remove(child)
    for element in root.iter():
        _for_a_page(element, name)
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-labelledby": f"{name}-title {name}-desc"}
    for tag, text in (("desc", description), ("title", title)):
        element = ET.Element(tag, {"id": f"{name}-{tag}"})
        element.text = printable(text)
        root.insert(0, element)
    return ET.tostring(root, encoding="unicode")


_COLOUR = re.compile("|".join(_VARIABLES))
_REFERENCE = re.compile(r"url\(#([^)]+)\)")


def _for_a_page(element: ET.Element, name: str) -> None:
    element.tag = element.tag.rpartition("}")[2]
    changed: dict[str, str] = {}
    for key, value in element.attrib.items():
        if key == "id":
            changed[key] = f"{name}-{value}"
        elif key == _XLINK:
            changed["href"] = f"#{name}-{value.removeprefix('#')}"
        else:
            text = _COLOUR.sub(lambda match: f"var({_VARIABLES[match[0]]})", value)
            changed[key] = _REFERENCE.sub(rf"url(#{name}-\1)", text)
    element.attrib = changed
