"""NVIDIA's own energy counter: differences of the recorded tick series."""

from collections.abc import Sequence
from typing import ClassVar

from pydantic import BaseModel

from llenergymeasure.core.contracts import (
    QUIET_LEAST_S,
    QUIET_TICKS,
    Availability,
    Device,
    Edges,
    EnergyRecord,
)
from llenergymeasure.core.energy_series import device_energy
from llenergymeasure.core.errors import MeasurementError
from llenergymeasure.nvml_sampling import NvmlSampler, counter_availability, visible_devices

NAME = "nvml"
AUTO_RANK = 2


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
        """Start the sampler process."""
        self._devices = tuple(devices)
        self._sampler.start(self._devices, interval_s=interval_s)

    def open_window(self, name: str) -> float:
        """Mark the start of a window."""
        self._open[name] = self._sampler.mark()
        return self._open[name]

    def close_window(self, name: str, edges: Edges = "loaded") -> float:
        """Mark its end."""
        if name not in self._open:
            raise MeasurementError(f"energy window {name!r} was never opened")
        self._spans[name] = (self._open.pop(name), self._sampler.mark(), edges)
        return self._spans[name][1]

    def guard_s(self) -> float:
        """A second, or eight ticks of the slowest counter."""
        periods = [self._sampler.series(d.uuid).period_s or 0.0 for d in self._devices]
        return max(QUIET_LEAST_S, QUIET_TICKS * max(periods, default=0.0))

    def mean_power_w(self, start_s: float, end_s: float) -> float | None:
        """Sum over devices of counter differences in the interval; None while ticks are missing."""
        return self._sampler.mean_power_w([d.uuid for d in self._devices], start_s, end_s)

    def stop(self) -> EnergyRecord:
        """Wait for the ticks behind the last edge, stop the sampler, cut the windows out of the series."""
        uuids = [d.uuid for d in self._devices]
        series, readings = self._sampler.finish(uuids)
        windows = {n: tuple(device_energy(u, series[u], *span) for u in uuids) for n, span in self._spans.items()}
        return EnergyRecord(windows=windows, readings=readings, series=series)
