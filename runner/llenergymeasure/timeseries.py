"""Turns sensor readings and counter series into one row per second and GPU, from window start."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from llenergymeasure.core.contracts import Generation, Reading, Window
from llenergymeasure.core.energy_series import EnergySeries

COLUMNS: dict[str, str] = {
    "timestamp_s": "float64",
    "gpu_index": "int32",
    "gpu_uuid": "string",
    "power_w": "float64",
    "power_min_w": "float64",
    "power_max_w": "float64",
    "temperature_c": "float64",
    "memory_used_mb": "float64",
    "memory_total_mb": "float64",
    "sm_utilisation_pct": "float64",
    "sm_clock_mhz": "float64",
    "mem_clock_mhz": "float64",
    "throttle_reasons": "int64",
    "energy_j": "float64",
    "output_tokens": "int64",
}
_MEANS = (
    "temperature_c",
    "memory_used_mb",
    "memory_total_mb",
    "sm_utilisation_pct",
    "sm_clock_mhz",
    "mem_clock_mhz",
)


def rows(
    window: Window,
    readings: Sequence[Reading],
    series: Mapping[str, EnergySeries],
    generations: Sequence[Generation],
) -> list[dict[str, Any]]:
    """One row per started second of the window and GPU; `energy_j` and `output_tokens` are cumulative at its end.

    `output_tokens` counts batches that have ended: a static batch's tokens are not known before. The last second may be
    cut short: a sensor that is read twice a second, and not in what is left of it, has its mean of the second before.
    """
    found: list[dict[str, Any]] = []
    seconds = int(-(-window.duration_s // 1))
    devices = sorted({(r.gpu_index, r.gpu_uuid) for r in readings})
    by_second = _by_second(window, readings)
    ended = deque(sorted((g.end_s, g.output_tokens) for g in generations))
    tokens = 0
    for second in range(seconds):
        end_s = min(window.start_s + second + 1.0, window.end_s)
        while ended and ended[0][0] <= end_s:
            tokens += ended.popleft()[1]
        cut_short = end_s < window.start_s + second + 1.0
        for index, uuid in devices:
            before = by_second.get((uuid, second - 1), []) if cut_short else []
            found.append(
                _row(second, index, uuid, by_second.get((uuid, second), []), before)
                | {"energy_j": _joules(series.get(uuid), window.start_s, end_s), "output_tokens": tokens}
            )
    return found


def _by_second(window: Window, readings: Sequence[Reading]) -> dict[tuple[str, int], list[Reading]]:
    """The readings inside the window by GPU and started second; looked at once each, for windows of a day."""
    found: dict[tuple[str, int], list[Reading]] = {}
    for reading in readings:
        if window.start_s <= reading.t_s < window.end_s:
            found.setdefault((reading.gpu_uuid, int(reading.t_s - window.start_s)), []).append(reading)
    return found


def _row(second: int, index: int, uuid: str, inside: Sequence[Reading], before: Sequence[Reading]) -> dict[str, Any]:
    powers = [r.power_w for r in inside if r.power_w is not None]
    reasons = [r.throttle_reasons for r in inside if r.throttle_reasons is not None]
    bits = 0
    for value in reasons:
        bits |= value
    return {
        "timestamp_s": float(second),
        "gpu_index": index,
        "gpu_uuid": uuid,
        "power_w": sum(powers) / len(powers) if powers else None,
        "power_min_w": min(powers, default=None),
        "power_max_w": max(powers, default=None),
        **{name: _sensor(name, inside, before) for name in _MEANS},
        "throttle_reasons": bits if reasons else None,
    }


def _sensor(name: str, inside: Sequence[Reading], before: Sequence[Reading]) -> float | None:
    found = _mean([getattr(r, name) for r in inside])
    return _mean([getattr(r, name) for r in before]) if found is None else found


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def _joules(series: EnergySeries | None, start_s: float, end_s: float) -> float | None:
    """Cumulative energy without the limit on edge uncertainty, which is meant for a whole window's result."""
    if series is None or end_s <= start_s:
        return None
    return series.interpolated_j(start_s, end_s)


def table(found: Sequence[Mapping[str, Any]]) -> Any:
    """The rows as a pyarrow table with the documented columns and types, also when there is none."""
    import pyarrow as pa

    schema = pa.schema([(name, getattr(pa, kind)()) for name, kind in COLUMNS.items()])
    return pa.Table.from_pylist([dict(r) for r in found], schema=schema)
