"""NVIDIA's own energy counter: differences of the recorded tick series."""

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from pydantic import BaseModel

from llenergymeasure import sensor_cache
from llenergymeasure.core.contracts import (
    Availability,
    Device,
    Edges,
    EnergyRecord,
)
from llenergymeasure.core.energy_series import device_energy
from llenergymeasure.core.errors import MeasurementError
from llenergymeasure.nvml_sampling import CounterStandsStillError, NvmlSampler, counter_availability, visible_devices

NAME = "nvml"
AUTO_RANK = 2
MAIN_WINDOW = "window"


class Source:
    """The counters of this run's GPUs."""

    NAME: ClassVar[str] = NAME
    KIND: ClassVar[str] = "counter"

    def __init__(self, settings: BaseModel | None = None) -> None:
        del settings
        self._sampler = NvmlSampler()
        self._devices: tuple[Device, ...] = ()
        self._open: dict[str, float] = {}
        self._spans: dict[str, tuple[float, float, Edges]] = {}

    def availability(self) -> Availability:
        """Needs a driver and a counter (Volta or later) that no MIG slice shares."""
        return counter_availability()

    def devices(self) -> tuple[Device, ...]:
        """Visible GPUs."""
        return visible_devices()

    def start(self, devices: Sequence[Device], *, interval_s: float) -> None:
        """Start the sampler process; a counter that stands still costs the joules, not the run."""
        self._devices = tuple(devices)
        with contextlib.suppress(CounterStandsStillError):
            self._sampler.start(self._devices, interval_s=interval_s)

    def open_window(self, name: str) -> float:
        """Mark the start of a window; inside the main one not every tick is needed."""
        self._open[name] = self._sampler.mark()
        if name == MAIN_WINDOW:
            self._sampler.record_some_ticks()
        return self._open[name]

    def close_window(self, name: str, edges: Edges = "loaded") -> float:
        """Mark its end."""
        if name not in self._open:
            raise MeasurementError(f"energy window {name!r} was never opened")
        self._spans[name] = (self._open.pop(name), self._sampler.mark(), edges)
        self._sampler.record_every_tick()
        return self._spans[name][1]

    def attend(self) -> None:
        """Record every tick from now on."""
        self._sampler.record_every_tick()

    def guard_s(self) -> float:
        """A second, or as many ticks of the slowest counter as quiet edges need."""
        return self._sampler.guard_s()

    def mean_power_w(self, start_s: float, end_s: float) -> float | None:
        """Sum over devices of counter differences in the interval; None while ticks are missing."""
        return self._sampler.mean_power_w([d.uuid for d in self._devices], start_s, end_s)

    def stop(self) -> EnergyRecord:
        """Wait for the ticks behind the last edge, stop the sampler, cut the windows out of the series."""
        found = self._sampler.finish(
            sensor_cache.known(d.uuid for d in self._devices),
            window=self._spans[MAIN_WINDOW][:2] if MAIN_WINDOW in self._spans else None,
        )
        windows = {
            name: tuple(device_energy(d.uuid, found.series[d.uuid], *span) for d in self._devices)
            for name, span in self._spans.items()
        }
        return replace(found, windows=windows)
