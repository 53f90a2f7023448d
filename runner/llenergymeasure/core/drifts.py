"""How power, pace, clocks and temperature moved inside a window: its last third against its first one."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean

from llenergymeasure.core.contracts import Generation, Reading, Window
from llenergymeasure.core.energy_series import EnergySeries

LEAST_BATCHES = 3
"""Batches in a window below which its thirds cannot hold the same kind of work."""

LEAST_READINGS = 3
"""Readings in a third of the window below which its mean says nothing."""

EQUAL_WORK = 0.005
"""How far tokens per batch of two thirds may be apart for their pace to be compared; a drift of power warns at 2 %."""

Span = tuple[float, float]


def drifts(
    inside: Mapping[str, Sequence[Reading]],
    series: Mapping[str, EnergySeries],
    window: Window,
    generations: Sequence[Generation],
) -> dict[str, float | None]:
    """The drifts of `Conditions`, each that of the GPU which drifted most.

    Power and pace are compared between thirds of whole batches, or not at all. So are clocks, which fall while a
    prefill meets the power limit, but where there are too few batches thirds of time must do: a GPU that slows down
    must not go unseen. Temperature follows the work too slowly to show where its batches begin.
    """
    by_time, by_work = thirds_of_time(window), comparable_thirds(window, generations)
    clocks = [_change(r, by_work or by_time, lambda x: x.sm_clock_mhz) for r in inside.values()]
    temperatures = [_change(r, by_time, lambda x: x.temperature_c) for r in inside.values()]
    return {
        "clock_drift": _worst(b / a - 1 for a, b in filter(None, clocks) if a > 0),
        "temperature_change_c": _worst(b - a for a, b in filter(None, temperatures)),
        "power_drift": power_drift(series, by_work),
        "pace_drift": pace_drift(generations, by_work),
    }


def thirds_of_time(window: Window) -> tuple[Span, Span]:
    """First and last third of a window."""
    third = window.duration_s / 3
    return (window.start_s, window.start_s + third), (window.end_s - third, window.end_s)


def comparable_thirds(window: Window, generations: Sequence[Generation]) -> tuple[Span, Span] | None:
    """First and last third of a window, cut where the work begins anew so that both hold the same kind of work.

    A batch draws more as its context grows, so a third that ends in the middle of one would show a drift that is none.
    Cuts lie at the starts of passes over the prompts, of batches where there are fewer than three passes; with fewer
    than three batches there is nothing to compare (None). Work without batches is cut at the thirds themselves. The
    first batch begins a moment after its window: that is no cut.
    """
    early, late = thirds_of_time(window)
    if not generations:
        return early, late
    first = [r.index for r in generations[0].requests]
    passes = [g.start_s for g in generations if [r.index for r in g.requests] == first]
    starts = passes if len(passes) >= LEAST_BATCHES else [g.start_s for g in generations]
    cuts = sorted(s for s in starts if generations[0].start_s < s < window.end_s)
    if len(cuts) < 2:
        return None
    low = min(cuts[:-1], key=lambda s: abs(s - early[1]))
    high = min((s for s in cuts if s > low), key=lambda s: abs(s - late[0]))
    return (window.start_s, low), (high, window.end_s)


def power_drift(series: Mapping[str, EnergySeries], thirds: tuple[Span, Span] | None) -> float | None:
    """Change of the mean power between thirds, of the GPU that changed most; None without thirds, or ticks in them."""
    if thirds is None:
        return None
    powers = [(s.mean_power_w(*thirds[0]), s.mean_power_w(*thirds[1])) for s in series.values()]
    return _worst(b / a - 1 for a, b in powers if a is not None and b is not None and a > 0)


def pace_drift(generations: Sequence[Generation], thirds: tuple[Span, Span] | None) -> float | None:
    """Change of the batches per second between thirds.

    None for work whose batches are not known, and where the thirds hold batches of other lengths: then their time says
    what was asked for, not how fast it was done.
    """
    if thirds is None:
        return None
    first, last = ([g for g in generations if a <= g.start_s < b] for a, b in thirds)
    if not first or not last:
        return None
    for tokens in (lambda g: g.input_tokens, lambda g: g.output_tokens):
        ours, theirs = fmean(map(tokens, first)), fmean(map(tokens, last))
        if abs(theirs - ours) > EQUAL_WORK * ours:
            return None
    spent_s = [(b - a) / len(batches) for (a, b), batches in zip(thirds, (first, last), strict=True)]
    return spent_s[0] / spent_s[1] - 1


def _change(
    readings: Sequence[Reading], thirds: tuple[Span, Span], get: Callable[[Reading], float | None]
) -> tuple[float, float] | None:
    """Means of a sensor in both thirds; None with too few readings of it."""
    values = [[v for r in readings if a <= r.t_s <= b and (v := get(r)) is not None] for a, b in thirds]
    return None if min(map(len, values)) < LEAST_READINGS else (fmean(values[0]), fmean(values[1]))


def _worst(values: Iterable[float]) -> float | None:
    return max(values, key=abs, default=None)
