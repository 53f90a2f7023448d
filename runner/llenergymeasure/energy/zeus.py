"""Zeus (ML.ENERGY): its windows over the same NVML counter; our own tick series runs beside it as cross-check.

Synchronising CUDA is left to the engine (`sync_execution=False`): the process that measures may not be the one that
computes. Host energy (RAPL) comes back in a field of its own and is never added to the GPUs'.
"""

import importlib.util
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel

from llenergymeasure import sensor_cache
from llenergymeasure.core.contracts import Availability, Device, DeviceEnergy, Edges, EnergyRecord
from llenergymeasure.core.energy_series import EnergySeries
from llenergymeasure.core.errors import MeasurementError
from llenergymeasure.nvml_sampling import CounterStandsStillError, NvmlSampler, counter_availability, visible_devices

NAME = "zeus"
AUTO_RANK = 1
USUAL_TICK_S = 0.1  # of current data-centre GPUs, should our series not know it (measurement.md §1)
MAIN_WINDOW = "window"
FAULTS = ("counter_reset", "counter_constant", "sample_gap")  # of the counter or the machine, so of Zeus' joules, too
VISIBLE = "CUDA_VISIBLE_DEVICES"
RAPL = ("/sys/class/powercap/intel-rapl", "/zeus_sys/class/powercap/intel-rapl")  # where Zeus looks; in a container


@contextmanager
def by_nvml_index(devices: Sequence[Device]) -> Iterator[None]:
    """Zeus 0.16 numbers GPUs by position in CUDA_VISIBLE_DEVICES and reads integers only: name this run's for it."""
    before = os.environ.get(VISIBLE)
    if devices:
        os.environ[VISIBLE] = ",".join(str(d.index) for d in devices)
    try:
        yield
    finally:
        os.environ.pop(VISIBLE, None)
        os.environ |= {VISIBLE: before} if before is not None else {}


@dataclass(frozen=True)
class _Measured:
    """One window as Zeus saw it: joules by GPU UUID, its length and our own marks around it, s."""

    joules: Mapping[str, float | None]
    time_s: float
    start_s: float
    end_s: float
    edges: Edges


class Source:
    """Zeus' windows over this run's GPUs."""

    NAME: ClassVar[str] = NAME
    KIND: ClassVar[str] = "counter"

    def __init__(self, settings: BaseModel | None = None) -> None:
        del settings
        self._monitor: Any = None
        self._sampler: NvmlSampler | None = None
        self._devices: tuple[Device, ...] = ()
        self._open: dict[str, float] = {}
        self._measured: dict[str, _Measured] = {}
        self._host_j: float | None = None

    def availability(self) -> Availability:
        """Needs the library, and GPUs or, for the host's energy alone, the host's RAPL counters."""
        if importlib.util.find_spec("zeus") is None:
            return Availability(False, "zeus is not installed", 'pip install "llenergymeasure[zeus]"')
        if visible_devices():
            return counter_availability()
        if any(Path(folder).exists() for folder in RAPL):
            return Availability(True)
        return Availability(
            False, "no GPU is visible, and this host has no RAPL counter", "run on an NVIDIA GPU with its driver"
        )

    def devices(self) -> tuple[Device, ...]:
        """Visible GPUs."""
        return visible_devices()

    def start(self, devices: Sequence[Device], *, interval_s: float) -> None:
        """Make the monitor and, if there are GPUs, start our own sampler beside it."""
        from zeus.monitor import ZeusMonitor

        self._devices = tuple(devices)
        try:
            with by_nvml_index(self._devices):
                self._monitor = ZeusMonitor(gpu_indices=list(range(len(devices))))
        except Exception as err:
            raise MeasurementError(f"zeus cannot start: {type(err).__name__}: {err}") from err
        if self._devices:
            self._sampler = NvmlSampler()
            with suppress(CounterStandsStillError):  # it costs the joules, not the run
                self._sampler.start(self._devices, interval_s=interval_s)

    def open_window(self, name: str) -> float:
        """Begin a Zeus window; our own series beside it need not see every tick of the main one."""
        self._monitor.begin_window(name, sync_execution=False)
        self._open[name] = self._sampler.mark() if self._sampler else time.monotonic()
        if self._sampler and name == MAIN_WINDOW:
            self._sampler.record_some_ticks()
        return self._open[name]

    def close_window(self, name: str, edges: Edges = "loaded") -> float:
        """End it and keep its joules per device."""
        end_s = self._sampler.mark() if self._sampler else time.monotonic()  # before Zeus reads: that is not work
        try:
            measured = self._monitor.end_window(name, sync_execution=False)
        except ValueError as err:
            raise MeasurementError(f"zeus window {name!r}: {err}") from err
        self.attend()
        by_uuid = {d.uuid: measured.gpu_energy.get(i) for i, d in enumerate(self._devices)}
        self._measured[name] = _Measured(by_uuid, measured.time, self._open.pop(name), end_s, edges)
        if name == MAIN_WINDOW:
            parts = [*(measured.cpu_energy or {}).values(), *(measured.dram_energy or {}).values()]
            self._host_j = sum(parts) if parts else None
        return end_s

    def attend(self) -> None:
        """Record every tick from now on."""
        if self._sampler:
            self._sampler.record_every_tick()

    def guard_s(self) -> float:
        """A second, or eight ticks of the slowest counter, as our own series needs them; 0 without a GPU."""
        return self._sampler.guard_s() if self._sampler else 0.0

    def mean_power_w(self, start_s: float, end_s: float) -> float | None:
        """From our own series; None without a GPU."""
        if self._sampler is None:
            return None
        return self._sampler.mean_power_w([d.uuid for d in self._devices], start_s, end_s)

    def stop(self) -> EnergyRecord:
        """Give Zeus' windows, with what our series knows of the waiting around them, and our series."""
        if self._sampler is None:
            return EnergyRecord(windows=dict.fromkeys(self._measured, ()), host_energy_j=self._host_j)
        found = self._sampler.finish(
            sensor_cache.known(d.uuid for d in self._devices),
            window=(main.start_s, main.end_s) if (main := self._measured.get(MAIN_WINDOW)) else None,
        )
        windows = {
            name: tuple(_device(d, measured, found.series[d.uuid]) for d in self._devices)
            for name, measured in self._measured.items()
        }
        return replace(found, windows=windows, host_energy_j=self._host_j, independent=True)


def _device(device: Device, measured: _Measured, series: EnergySeries) -> DeviceEnergy:
    """Zeus' joules; it does not interpolate, so u_edge = tau / (T sqrt 6) with the period that our series found.

    It cannot tell whether the counter stood still or went back, nor whether the machine stalled: that our series does.
    """
    joules = measured.joules[device.uuid]
    if joules is None:
        return DeviceEnergy(device.uuid, None, reason=f"zeus gave no energy for GPU {device.index}")
    ours = series.between(measured.start_s, measured.end_s, measured.edges)
    told = ours.reason or "" if series.ticks else ""  # without a tick it is Zeus who knows more
    if reason := _fault(joules, told):
        return DeviceEnergy(device.uuid, None, reason=reason)
    share = (series.period_s or USUAL_TICK_S) / (measured.time_s * math.sqrt(6))
    return DeviceEnergy(
        device.uuid,
        joules,
        share * joules,
        power_before_w=ours.power_before_w,
        power_after_w=ours.power_after_w,
        power_before_std_w=ours.power_before_std_w,
    )


def _fault(joules: float, ours: str) -> str:
    """Why Zeus' joules cannot be the window's; empty if they can. `ours` is what our series lacks, if anything."""
    if ours.startswith(FAULTS):
        return ours
    if joules < 0:
        return f"counter_reset: zeus gave {joules:g} J, so the energy counter went back"
    return "" if joules > 0 else "counter_constant: zeus gave 0 J, so the energy counter did not move in the window"
