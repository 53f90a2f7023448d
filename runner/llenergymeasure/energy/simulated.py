"""A pretended counter with known truth: one power inside windows of work, another in baselines and outside windows.

Its ticks go through the same EnergySeries as those of a real counter, and since they are made up in the end, the
waiting around a window need not really be waited for; results carry `synthetic: true`.
"""

import math
import time
from collections.abc import Sequence
from typing import ClassVar

from pydantic import BaseModel, Field

from llenergymeasure.core.contracts import QUIET_TICKS, Availability, Device, Edges, EnergyRecord, Reading
from llenergymeasure.core.energy_series import EnergySeries, Tick, device_energy
from llenergymeasure.core.errors import MeasurementError
from llenergymeasure.core.sections import Float, Int, Part

NAME = "simulated"
SIMULATED_UUID = "GPU-simulated-0"


class Settings(Part):
    """The script that the pretended sensor plays."""

    load_power_w: Float = Field(300.0, ge=0, description="Power while the model works, W.")
    idle_power_w: Float = Field(80.0, ge=0, description="Power in a baseline and outside windows, W.")
    tick_ms: Int = Field(100, ge=1, le=1000, description="Period of the pretended counter, ms.")


class Source:
    """The pretended counter of one device."""

    NAME: ClassVar[str] = NAME
    KIND: ClassVar[str] = "simulated"

    def __init__(self, settings: BaseModel | None = None) -> None:
        self._settings = settings if isinstance(settings, Settings) else Settings()
        self._start_s = 0.0
        self._open: dict[str, float] = {}
        self._windows: dict[str, tuple[float, float, Edges]] = {}
        self._devices: tuple[Device, ...] = ()
        self._interval_s = 0.1

    def availability(self) -> Availability:
        """Always there, but only by name."""
        return Availability(ok=True)

    def devices(self) -> tuple[Device, ...]:
        """One pretended device."""
        return (Device(index=0, uuid=SIMULATED_UUID, name="simulated"),)

    def start(self, devices: Sequence[Device], *, interval_s: float) -> None:
        """Begin the script now."""
        self._devices, self._interval_s = tuple(devices), interval_s
        self._start_s = time.monotonic()

    def open_window(self, name: str) -> float:
        """Mark the start of a window; two ticks apart from the one before, so that no tick mixes both powers."""
        ended_s = max((span[1] for span in self._windows.values()), default=-math.inf)
        time.sleep(max(0.0, ended_s + 2 * self._settings.tick_ms / 1e3 - time.monotonic()))
        self._open[name] = time.monotonic()
        return self._open[name]

    def close_window(self, name: str, edges: Edges = "loaded") -> float:
        """Mark its end; a window named baseline... played idle power."""
        if name not in self._open:
            raise MeasurementError(f"energy window {name!r} was never opened")
        self._windows[name] = (self._open.pop(name), time.monotonic(), edges)
        return self._windows[name][1]

    def attend(self) -> None:
        """Nothing: its ticks are all known."""

    def guard_s(self) -> float:
        """None: the script's ticks around a window are known without waiting for them."""
        return 0.0

    def mean_power_w(self, start_s: float, end_s: float) -> float | None:
        """Known without looking."""
        return (self._joules(end_s) - self._joules(start_s)) / (end_s - start_s)

    def stop(self) -> EnergyRecord:
        """Play the whole script and cut the windows out of it."""
        tick_s, now_s = self._settings.tick_ms / 1e3, time.monotonic()
        margin_s = (QUIET_TICKS + 1) * tick_s  # ticks of waiting before the first window and after the last
        times = _steps(self._start_s - margin_s, now_s + margin_s, tick_s)
        ticks = tuple(Tick(before_s=t, after_s=t, joules=round(self._joules(t) * 1e3) / 1e3) for t in times)
        series = {d.uuid: EnergySeries(ticks, jitter_s=0.0) for d in self._devices}
        windows = {
            name: tuple(device_energy(uuid, s, *span) for uuid, s in series.items())
            for name, span in self._windows.items()
        }
        readings = tuple(
            Reading(t_s=t, gpu_uuid=d.uuid, gpu_index=d.index, power_w=self._power_w(t))
            for d in self._devices
            for t in _steps(self._start_s, now_s, self._interval_s)
        )
        return EnergyRecord(windows=windows, readings=readings, series=series)

    def _work(self) -> list[tuple[float, float]]:
        """When load power is drawn: in every window that is not a baseline, those still open included."""
        spans = {n: span[:2] for n, span in self._windows.items()} | {n: (t, math.inf) for n, t in self._open.items()}
        merged: list[tuple[float, float]] = []
        for start_s, end_s in sorted(span for n, span in spans.items() if not n.startswith("baseline")):
            if merged and start_s <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(merged[-1][1], end_s))
            else:
                merged.append((start_s, end_s))
        return merged

    def _power_w(self, t_s: float) -> float:
        working = any(a <= t_s < b for a, b in self._work())
        return self._settings.load_power_w if working else self._settings.idle_power_w

    def _joules(self, t_s: float) -> float:
        """Energy since the start; negative before it, which a difference does not mind."""
        worked_s = sum(max(0.0, min(t_s, b) - a) for a, b in self._work())
        load_w, idle_w = self._settings.load_power_w, self._settings.idle_power_w
        return (t_s - self._start_s) * idle_w + worked_s * (load_w - idle_w)


def _steps(start_s: float, end_s: float, step_s: float) -> list[float]:
    return [start_s + i * step_s for i in range(int((end_s - start_s) / step_s) + 1)]
