"""How long a GPU was slowed down in a window, and why: by the driver's counters of time, and by the readings' bits."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llenergymeasure.core.contracts import EnergyRecord, Reading, ThrottleCounters, Window

SW_POWER_CAP, HW_SLOWDOWN, SW_THERMAL, HW_THERMAL, POWER_BRAKE = 0x4, 0x8, 0x20, 0x40, 0x80
"""Bits of nvmlDeviceGetCurrentClocksEventReasons (nvml.h, nvmlClocksEventReason*)."""

THROTTLING = HW_SLOWDOWN | SW_THERMAL | HW_THERMAL | POWER_BRAKE  # a power cap is normal operation (measurement.md §1)

Counter = Callable[[ThrottleCounters], int | None]

BITS = {
    "sw_power_cap": SW_POWER_CAP,
    "hw_slowdown": HW_SLOWDOWN,
    "sw_thermal": SW_THERMAL,
    "hw_thermal": HW_THERMAL,
    "power_brake": POWER_BRAKE,
}
"""Causes of slow-downs by name: the bit that shows each."""

COUNTED: dict[str, Counter] = {
    "sw_power_cap": lambda c: c.sw_power_cap_ns,
    "sw_thermal": lambda c: c.sw_thermal_ns,
    "hw_thermal": lambda c: c.hw_thermal_ns,
    "power_brake": lambda c: c.power_brake_ns,
}
"""Those of which the driver may count the time."""


@dataclass(frozen=True)
class Slowdown:
    """Shares of the window during which one GPU was slowed, by cause; None where neither counter nor bits told."""

    throttled: float | None
    power_cap: float | None
    source: str | None  # counters | event reasons


def slowdowns(energy: EnergyRecord, window: Window, inside: Mapping[str, Sequence[Reading]]) -> dict[str, Any]:
    """The shares of `Conditions`, each of the GPU that was slowed down longest."""
    counters = _by_gpu(energy.throttle)
    found = [slowdown(counters.get(u, []), readings, window) for u, readings in inside.items()]
    worst = max((s for s in found if s.throttled is not None), key=lambda s: s.throttled or 0.0, default=None)
    return {
        "throttled_share": worst.throttled if worst else None,
        "throttled_from": worst.source if worst else None,
        "power_cap_share": max((s.power_cap for s in found if s.power_cap is not None), default=None),
    }


def _by_gpu(rows: Iterable[ThrottleCounters]) -> dict[str, list[ThrottleCounters]]:
    counters: dict[str, list[ThrottleCounters]] = {}
    for row in rows:
        counters.setdefault(row.gpu_uuid, []).append(row)
    return counters


def causes(throttle: Iterable[ThrottleCounters], readings: Sequence[Reading], window: Window) -> dict[str, bool | None]:
    """Which causes slowed a GPU down in a window, by name: a reading shows them, or the driver counted time of them.

    False where one of the two tells and neither shows it, None where neither tells. The driver counts no time of a
    hardware slow-down by itself.
    """
    boards = _by_gpu(throttle).values()
    return {name: _acted(bit, COUNTED.get(name), boards, readings, window) for name, bit in BITS.items()}


def _acted(
    bit: int,
    counter: Counter | None,
    boards: Iterable[Sequence[ThrottleCounters]],
    readings: Sequence[Reading],
    window: Window,
) -> bool | None:
    told = [r.throttle_reasons & bit != 0 for r in readings if r.throttle_reasons is not None]
    shares = [counted_share(rows, window, counter) for rows in boards] if counter else []
    told += [share > 0 for share in shares if share is not None]
    return any(told) if told else None


def slowdown(counters: Sequence[ThrottleCounters], readings: Sequence[Reading], window: Window) -> Slowdown:
    """How long one GPU was slowed down: by the driver's counters of time where it has them, else by the readings' bits.

    The driver counts no HW slow-down by itself; its bit, where it stands alone, is added. Causes that act together are
    added, too: the sum is never less than the time in which any of them acted. Where a cause is not counted, its share
    of the readings' bits counts if it is more than what is.
    """
    bits = [r.throttle_reasons for r in readings if r.throttle_reasons is not None]
    shares = {name: counted_share(counters, window, get) for name, get in COUNTED.items()}
    counted_cap, *heat_and_brake = shares.values()
    cap = counted_cap if counted_cap is not None else share_of(bits, SW_POWER_CAP)
    alone = sum(b & HW_SLOWDOWN != 0 and not b & (HW_THERMAL | POWER_BRAKE) for b in bits) / max(1, len(bits))
    counted = min(1.0, sum(s for s in heat_and_brake if s is not None) + alone)
    shown = share_of(bits, THROTTLING)
    if None not in heat_and_brake or counted > (shown or 0.0):
        return Slowdown(counted, cap, "counters")
    return Slowdown(shown, cap, "event reasons" if bits else None)


def share_of(bits: Sequence[int], mask: int) -> float | None:
    """Share of readings that show any of these bits; None without readings."""
    return sum(bool(b & mask) for b in bits) / len(bits) if bits else None


def counted_share(counters: Sequence[ThrottleCounters], window: Window, get: Counter) -> float | None:
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
