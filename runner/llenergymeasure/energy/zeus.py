"""Zeus (ML.ENERGY): its windows over the same NVML counter; our own tick series runs beside it as cross-check.

Synchronising CUDA is left to the engine (`sync_execution=False`): the process that measures may not be the one that
computes. Host energy (RAPL) comes back in a field of its own and is never added to the GPUs'.
"""

import importlib.util
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from pydantic import BaseModel

from llenergymeasure.core.contracts import (
    QUIET_LEAST_S,
    QUIET_TICKS,
    Availability,
    Device,
    DeviceEnergy,
    Edges,
    EnergyRecord,
)
from llenergymeasure.core.errors import MeasurementError
from llenergymeasure.nvml_sampling import NvmlSampler, counter_availability, visible_devices

NAME = "zeus"
AUTO_RANK = 1
TICK_S = 0.1  # counter period of current data-centre GPUs; Zeus does not interpolate (measurement.md §1, §2)


VISIBLE = "CUDA_VISIBLE_DEVICES"


@contextmanager
def _by_nvml_index(devices: Sequence[Device]) -> Iterator[None]:
    """Zeus 0.16 numbers GPUs by position in CUDA_VISIBLE_DEVICES and reads integers only: name this run's for it."""
    before = os.environ.get(VISIBLE)
    if devices:
        os.environ[VISIBLE] = ",".join(str(d.index) for d in devices)
    try:
        yield
    finally:
        os.environ.pop(VISIBLE, None)
        os.environ |= {VISIBLE: before} if before is not None else {}


class Source:
    """Zeus' windows over this run's GPUs."""

    NAME: ClassVar[str] = NAME
    KIND: ClassVar[str] = "counter"

    def __init__(self, settings: BaseModel | None = None) -> None:
        del settings
        self._monitor: Any = None
        self._sampler: NvmlSampler | None = None
        self._devices: tuple[Device, ...] = ()
        self._windows: dict[str, tuple[DeviceEnergy, ...]] = {}
        self._host_j: float | None = None

    def availability(self) -> Availability:
        """Needs the library; without a GPU it still reads the host's RAPL counters where there are some."""
        if importlib.util.find_spec("zeus") is None:
            return Availability(False, "zeus is not installed", 'pip install "llenergymeasure[zeus]"')
        return counter_availability() if visible_devices() else Availability(True)

    def devices(self) -> tuple[Device, ...]:
        """Visible GPUs."""
        return visible_devices()

    def start(self, devices: Sequence[Device], *, interval_s: float) -> None:
        """Make the monitor and, if there are GPUs, start our own sampler beside it."""
        from zeus.monitor import ZeusMonitor

        self._devices = tuple(devices)
        try:
            with _by_nvml_index(self._devices):
                self._monitor = ZeusMonitor(gpu_indices=list(range(len(devices))))
        except Exception as err:
            raise MeasurementError(f"zeus cannot start: {type(err).__name__}: {err}") from err
        if self._devices:
            self._sampler = NvmlSampler()
            self._sampler.start(self._devices, interval_s=interval_s)

    def open_window(self, name: str) -> float:
        """Begin a Zeus window."""
        self._monitor.begin_window(name, sync_execution=False)
        return self._sampler.mark() if self._sampler else time.monotonic()

    def close_window(self, name: str, edges: Edges = "loaded") -> float:
        """End it and keep its joules per device."""
        del edges
        end_s = self._sampler.mark() if self._sampler else time.monotonic()  # before Zeus reads: that is not work
        try:
            measured = self._monitor.end_window(name, sync_execution=False)
        except ValueError as err:
            raise MeasurementError(f"zeus window {name!r}: {err}") from err
        spread = TICK_S / (measured.time * math.sqrt(6))
        found = [self._device(d, measured.gpu_energy.get(i), spread) for i, d in enumerate(self._devices)]
        self._windows[name] = tuple(found)
        if name == "window":
            parts = [*(measured.cpu_energy or {}).values(), *(measured.dram_energy or {}).values()]
            self._host_j = sum(parts) if parts else None
        return end_s

    def _device(self, device: Device, joules: float | None, spread: float) -> DeviceEnergy:
        if joules is None:
            return DeviceEnergy(device.uuid, None, reason=f"zeus gave no energy for GPU {device.index}")
        return DeviceEnergy(device.uuid, float(joules), spread * float(joules))

    def guard_s(self) -> float:
        """A second, or eight ticks of the slowest counter, as our own series needs them; 0 without a GPU."""
        if self._sampler is None:
            return 0.0
        periods = [self._sampler.series(d.uuid).period_s or 0.0 for d in self._devices]
        return max(QUIET_LEAST_S, QUIET_TICKS * max(periods, default=0.0))

    def mean_power_w(self, start_s: float, end_s: float) -> float | None:
        """From our own series; None without a GPU."""
        if self._sampler is None:
            return None
        return self._sampler.mean_power_w([d.uuid for d in self._devices], start_s, end_s)

    def stop(self) -> EnergyRecord:
        """Give Zeus' windows and our series."""
        if self._sampler is None:
            return EnergyRecord(windows=self._windows, host_energy_j=self._host_j)
        uuids = [d.uuid for d in self._devices]
        series, readings = self._sampler.finish(uuids)
        return EnergyRecord(
            windows=self._windows, readings=readings, series=series, host_energy_j=self._host_j, independent=True
        )
