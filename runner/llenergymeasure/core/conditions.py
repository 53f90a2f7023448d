"""What the GPUs went through while the window ran: slow-downs, power cap, drifts, gaps of the counter.

Facts only; which of them spoil a measurement is for core.verdict to say. With several GPUs each figure is that of the
worst one: a single board that throttles slows all of them.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from llenergymeasure.core.contracts import EnergyRecord, Generation, Reading, ThrottleCounters, Window
from llenergymeasure.core.energy_series import EnergySeries, Tick
from llenergymeasure.core.records import Record

SW_POWER_CAP, HW_SLOWDOWN, SW_THERMAL, HW_THERMAL, POWER_BRAKE = 0x4, 0x8, 0x20, 0x40, 0x80
"""Bits of nvmlDeviceGetCurrentClocksEventReasons (nvml.h, nvmlClocksEventReason*)."""

THROTTLING = HW_SLOWDOWN | SW_THERMAL | HW_THERMAL | POWER_BRAKE  # a power cap is normal operation (measurement.md §1)

LEAST_READINGS = 3
"""Readings in a third of the window below which its mean says nothing."""

EQUAL_WORK = 0.005
"""How far tokens per batch of two thirds may be apart for their pace to be compared; a drift of power warns at 2 %."""

Span = tuple[float, float]


class Conditions(Record):
    """What the worst GPU of a window went through; shares are of the window's time, drifts of the first third's mean.

    Drifts compare the last third of the window with the first one, both cut where the work begins anew; `pace_drift` is
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


@dataclass(frozen=True)
class Slowdown:
    """Shares of the window during which one GPU was slowed, by cause; None where neither counter nor bits told."""

    throttled: float | None
    power_cap: float | None
    source: str | None  # counters | event reasons


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
    thirds = comparable_thirds(window, generations)
    found = _slowdowns(energy, window, inside) | _means(inside) | _drifts(inside, series, thirds)
    found |= {"pace_drift": pace_drift(generations, thirds)}
    return known.model_copy(update=found | _counter(series, window, boards))


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


# Slow-downs.


def _slowdowns(energy: EnergyRecord, window: Window, inside: Mapping[str, Sequence[Reading]]) -> dict[str, Any]:
    counters: dict[str, list[ThrottleCounters]] = {}
    for row in energy.throttle:
        counters.setdefault(row.gpu_uuid, []).append(row)
    found = [slowdown(counters.get(u, []), readings, window) for u, readings in inside.items()]
    worst = max((s for s in found if s.throttled is not None), key=lambda s: s.throttled or 0.0, default=None)
    return {
        "throttled_share": worst.throttled if worst else None,
        "throttled_from": worst.source if worst else None,
        "power_cap_share": max((s.power_cap for s in found if s.power_cap is not None), default=None),
    }


def slowdown(counters: Sequence[ThrottleCounters], readings: Sequence[Reading], window: Window) -> Slowdown:
    """How long one GPU was slowed down: by the driver's counters of time where it has them, else by the readings' bits.

    The driver counts no HW slow-down by itself; its bit, where it stands alone, is added. Causes that act together are
    added, too: the sum is never less than the time in which any of them acted.
    """
    bits = [r.throttle_reasons for r in readings if r.throttle_reasons is not None]
    counted_cap = counted_share(counters, window, lambda c: c.sw_power_cap_ns)
    cap = counted_cap if counted_cap is not None else share_of(bits, SW_POWER_CAP)
    causes = [
        counted_share(counters, window, get)
        for get in (lambda c: c.sw_thermal_ns, lambda c: c.hw_thermal_ns, lambda c: c.power_brake_ns)
    ]
    if None in causes:
        return Slowdown(share_of(bits, THROTTLING), cap, "event reasons" if bits else None)
    alone = sum(b & HW_SLOWDOWN != 0 and not b & (HW_THERMAL | POWER_BRAKE) for b in bits) / max(1, len(bits))
    return Slowdown(min(1.0, sum(c for c in causes if c is not None) + alone), cap, "counters")


def share_of(bits: Sequence[int], mask: int) -> float | None:
    """Share of readings that show any of these bits; None without readings."""
    return sum(bool(b & mask) for b in bits) / len(bits) if bits else None


def counted_share(
    counters: Sequence[ThrottleCounters], window: Window, get: Callable[[ThrottleCounters], int | None]
) -> float | None:
    """Share of the window by a counter of nanoseconds, between the last look before it and the first one after it.

    None where it was not read on both sides, or went back.
    """
    rows = [(c.t_s, v) for c in counters if (v := get(c)) is not None]
    before = [r for r in rows if r[0] <= window.start_s] or [r for r in rows if r[0] < window.end_s][:1]
    after = [r for r in rows if r[0] >= window.end_s] or [r for r in rows if r[0] > window.start_s][-1:]
    if not before or not after or after[0][0] <= before[-1][0]:
        return None
    spent_s, slowed_s = after[0][0] - before[-1][0], (after[0][1] - before[-1][1]) / 1e9
    return None if slowed_s < 0 else min(1.0, slowed_s / min(spent_s, window.duration_s))


# Means and drifts.


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


def comparable_thirds(window: Window, generations: Sequence[Generation]) -> tuple[Span, Span] | None:
    """First and last third of a window, cut where the work begins anew so that both hold the same kind of work.

    A batch draws more as its context grows, so a third that ends in the middle of one would show a drift that is none.
    Cuts lie at the starts of passes over the prompts, of batches where there are fewer than three passes; with fewer
    than three batches there is nothing to compare (None). Work without batches is cut at the thirds themselves.
    """
    third = window.duration_s / 3
    if not generations:
        return (window.start_s, window.start_s + third), (window.end_s - third, window.end_s)
    first = [r.index for r in generations[0].requests]
    passes = [g.start_s for g in generations if [r.index for r in g.requests] == first]
    starts = passes if len(passes) >= 3 else [g.start_s for g in generations]
    cuts = sorted(s for s in starts if window.start_s < s < window.end_s)
    if len(cuts) < 2:
        return None
    low = min(cuts[:-1], key=lambda s: abs(s - window.start_s - third))
    high = min((s for s in cuts if s > low), key=lambda s: abs(s - window.end_s + third))
    return (window.start_s, low), (high, window.end_s)


def _drifts(
    inside: Mapping[str, Sequence[Reading]], series: Mapping[str, EnergySeries], thirds: tuple[Span, Span] | None
) -> dict[str, Any]:
    if thirds is None:
        return {}
    clocks = [_change(r, thirds, lambda x: x.sm_clock_mhz) for r in inside.values()]
    temperatures = [_change(r, thirds, lambda x: x.temperature_c) for r in inside.values()]
    powers = [(s.mean_power_w(*thirds[0]), s.mean_power_w(*thirds[1])) for s in series.values()]
    return {
        "clock_drift": _worst(b / a - 1 for a, b in filter(None, clocks) if a > 0),
        "power_drift": _worst(b / a - 1 for a, b in powers if a is not None and b is not None and a > 0),
        "temperature_change_c": _worst(b - a for a, b in filter(None, temperatures)),
    }


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


# The counter itself.


def _counter(
    series: Mapping[str, EnergySeries], window: Window, boards: Mapping[Any, Mapping[str, Any]]
) -> dict[str, Any]:
    gaps = [s.interior_gap_ticks(window.start_s, window.end_s) for s in series.values()]
    peaks = {u: peak_power_w(s, window) for u, s in series.items()}
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


def peak_power_w(series: EnergySeries, window: Window) -> float | None:
    """The highest power between two ticks that is certain, W: over the longest time that may lie between them.

    A tick lies somewhere between two polls and comes sooner or later than its load by the jitter. At short periods
    that is a large part of the time between two ticks, and a power from their best estimates would often be too high.
    """
    first = bisect_left(series.times_s, window.start_s)
    last = bisect_left(series.times_s, window.end_s)
    ticks, slack_s = series.ticks, 6 * series.jitter_s
    return max((_least_w(ticks[i], ticks[i + 1], slack_s) for i in range(first, last - 1)), default=None)


def _least_w(a: Tick, b: Tick, slack_s: float) -> float:
    return (b.joules - a.joules) / (b.after_s - a.before_s + slack_s)
