"""What the GPUs went through while the window ran: slow-downs, power cap, drifts, gaps of the counter.

Facts only; which of them spoil a measurement is for core.verdict to say. With several GPUs each figure is that of the
worst one: a single board that throttles slows all of them.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from llenergymeasure.core.contracts import EnergyRecord, Generation, Reading, Window
from llenergymeasure.core.drifts import drifts
from llenergymeasure.core.energy_series import EnergySeries, Tick
from llenergymeasure.core.power_values import Values, around, integral_j, longest_hole_s
from llenergymeasure.core.records import Record
from llenergymeasure.core.slowdowns import slowdowns


class Conditions(Record):
    """What the worst GPU of a window went through; shares are of the window's time, drifts of the first third's mean.

    Drifts compare the last third of the window with the first one, both cut where the work begins anew; below three
    batches there is no drift of power, clocks and temperature are then compared by thirds of time. `pace_drift` is
    that of batches per second, of equal work only: it takes power along when the host sets the pace. `temperature_c`
    and `sm_clock_mhz` are means over the window, of the hottest and of the slowest GPU: a warmer board draws more for
    the same work (benchmarks/scatter.py). Null: no sensor told, or the window held too little work for thirds that can
    be compared.
    """

    throttled_share: float | None = None
    throttled_from: str | None = None
    power_cap_share: float | None = None
    power_limit_w: float | None = None
    clock_drift: float | None = None
    power_drift: float | None = None
    pace_drift: float | None = None
    sm_clock_mhz: float | None = None
    temperature_c: float | None = None
    temperature_change_c: float | None = None
    interior_gap_ticks: int | None = None
    peak_power_w: float | None = None
    peak_above_limit: float | None = None
    persistence_mode: bool | None = None
    ecc_pending: bool | None = None
    on_battery: bool | None = None


def conditions(
    energy: EnergyRecord | None,
    window: Window,
    generations: Sequence[Generation],
    environment: Mapping[str, Any],
    gpu_uuids: Iterable[str],
) -> Conditions:
    """Everything that is known of a window.

    Args:
        energy: What was recorded, or None.
        window: The measured interval.
        generations: The work inside it, which says where thirds may be cut.
        environment: The snapshot of the machine, with its `gpus`.
        gpu_uuids: The GPUs of this run.

    """
    own = list(gpu_uuids)
    boards = {g.get("uuid"): g for g in environment.get("gpus") or ()}
    settings = [boards[u] for u in own if u in boards]
    known = Conditions(
        power_limit_w=min((g["power_limit_w"] for g in settings if g.get("power_limit_w")), default=None),
        persistence_mode=_all(g.get("persistence_mode") for g in settings),
        ecc_pending=_any(_differ(g.get("ecc_enabled"), g.get("ecc_pending")) for g in settings),
        on_battery=environment.get("on_battery"),
    )
    if energy is None:
        return known
    inside = {u: [r for r in energy.readings if r.gpu_uuid == u and _within(r.t_s, window)] for u in own}
    series = {u: energy.series[u] for u in own if u in energy.series}
    found = slowdowns(energy, window, inside) | _means(inside) | drifts(inside, series, window, generations)
    return known.model_copy(update=found | _counter(energy, series, window, boards))


def _within(t_s: float, window: Window) -> bool:
    return window.start_s <= t_s <= window.end_s


def _all(values: Iterable[bool | None]) -> bool | None:
    known = [v for v in values if v is not None]
    return all(known) if known else None


def _any(values: Iterable[bool | None]) -> bool | None:
    known = [v for v in values if v is not None]
    return any(known) if known else None


def _differ(a: bool | None, b: bool | None) -> bool | None:
    return None if a is None or b is None else a != b


def _means(inside: Mapping[str, Sequence[Reading]]) -> dict[str, Any]:
    clocks = [_mean(r.sm_clock_mhz for r in readings) for readings in inside.values()]
    temperatures = [_mean(r.temperature_c for r in readings) for readings in inside.values()]
    return {
        "sm_clock_mhz": min((c for c in clocks if c is not None), default=None),
        "temperature_c": max((t for t in temperatures if t is not None), default=None),
    }


def _mean(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return fmean(known) if known else None


# The counter itself.


def _counter(
    energy: EnergyRecord, series: Mapping[str, EnergySeries], window: Window, boards: Mapping[Any, Mapping[str, Any]]
) -> dict[str, Any]:
    gaps = [s.interior_gap_ticks(window.start_s, window.end_s) for s in series.values()]
    samples = {u: [(s.t_s, s.power_w) for s in energy.samples.get(u, ())] for u in series}
    peaks = {u: peak_power_w(s, window, samples[u]) for u, s in series.items()}
    ratios = [
        (p / limit, p)
        for u, p in peaks.items()
        if p is not None and (limit := (boards.get(u) or {}).get("power_limit_w"))
    ]
    highest = max((p for p in peaks.values() if p is not None), default=None)
    return {
        "interior_gap_ticks": max(gaps, default=None),
        "peak_power_w": max(ratios)[1] if ratios else highest,
        "peak_above_limit": max(ratios)[0] if ratios else None,
    }


def peak_power_w(series: EnergySeries, window: Window, samples: Values = ()) -> float | None:
    """The highest power of one tick that is certain, W, in every tick that the window's energy comes out of.

    These reach from the last tick but one before the window to the second one after it, which quiet edges are read at.

    Args:
        series: The counter.
        window: The measured interval.
        samples: The driver's buffer of powers, which tells a jump from work where ticks are far apart.

    """
    times = series.times_s
    first = max(0, bisect_right(times, window.start_s) - 2)
    last = min(bisect_right(times, window.end_s) + 1, len(times) - 1)
    return max((_certain_w(series, i, samples) for i in range(first, last)), default=None)


def _certain_w(series: EnergySeries, i: int, samples: Values) -> float:
    """The certain power of one tick of those from tick `i` to the next one that was recorded, W.

    A tick lies somewhere between two polls and comes sooner or later than its load by the jitter. At short periods
    that is a large part of the time between two ticks, and a power from their best estimates would often be too high.
    So the energy is held against the longest time that may lie between them. Over ticks that were not read, a jump is
    diluted: what the samples of that time do not explain came in a single tick.
    """
    a, b, slack_s = series.ticks[i], series.ticks[i + 1], 6 * series.jitter_s
    counted_j, longest_s = b.joules - a.joules, b.after_s - a.before_s + slack_s
    return max(counted_j / longest_s, _unexplained_w(a, b, slack_s, series.period_s, samples))


def _unexplained_w(a: Tick, b: Tick, slack_s: float, period_s: float | None, samples: Values) -> float:
    """What the counter has more than the samples, as the power of one tick, W; 0 where these have holes."""
    start_s, end_s = a.before_s - slack_s / 2, b.after_s + slack_s / 2
    near = around(samples, start_s, end_s)
    if not period_s or not near or longest_hole_s(near, start_s, end_s) > period_s:
        return 0.0
    return max(0.0, b.joules - a.joules - integral_j(near, start_s, end_s)) / period_s
