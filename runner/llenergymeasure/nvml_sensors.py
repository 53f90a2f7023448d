"""Reads what one GPU's sensors say through NVML; a sensor that the card or its driver lacks gives None.

Field values come with a return code and a type each: a value without its code being right is no value, and a throttle
counter that is not a long number is another field under the same id (the ids moved with driver 575).
"""

import time
from collections.abc import Sequence
from typing import Any

from llenergymeasure.core.contracts import Device, Occupants, PowerSample, Reading, ThrottleCounters

POWER_AVERAGE, POWER_INSTANT, SW_POWER_CAP = 185, 186, 74
SLOWDOWNS, SLOWDOWNS_BEFORE_575 = (269, 270, 271), (251, 252, 253)  # SW thermal, HW thermal, power brake; ns
MIB = 2**20


class Sensors:
    """The sensors of one GPU; only the energy counter may raise."""

    def __init__(self, lib: Any, device: Device) -> None:
        self._lib, self._device = lib, device
        self._handle = lib.nvmlDeviceGetHandleByUUID(device.uuid)
        self._lacking: set[str] = set()
        self._counters = (SW_POWER_CAP, *(SLOWDOWNS if _driver(lib) >= 575 else SLOWDOWNS_BEFORE_575))
        now_us = int(1e6 * time.time())  # both buffers hold seconds from before; those were not recorded by us
        self._busy_until_us = self._samples_until_us = now_us

    def counter_mj(self) -> int:
        """The energy counter, mJ since the driver was loaded; raises NVMLError."""
        return int(self._lib.nvmlDeviceGetTotalEnergyConsumption(self._handle))

    def reading(self) -> Reading:
        """Powers, clocks, temperature, memory, utilisation, event reasons: a call each, 0.13 ms for four on an H100."""
        lib = self._lib
        average_w, instant_w = (None if v is None else v / 1e3 for v in self._fields((POWER_AVERAGE, POWER_INSTANT)))
        power_mw = None if average_w is not None else self._ask("nvmlDeviceGetPowerUsage")
        memory, utilisation = self._memory(), self._ask("nvmlDeviceGetUtilizationRates")
        return Reading(
            t_s=time.monotonic(),
            gpu_uuid=self._device.uuid,
            gpu_index=self._device.index,
            power_w=average_w if power_mw is None else power_mw / 1e3,
            power_average_w=average_w,
            power_instant_w=instant_w,
            temperature_c=self._ask("nvmlDeviceGetTemperature", lib.NVML_TEMPERATURE_GPU),
            memory_used_mb=None if memory is None else memory.used / MIB,
            memory_total_mb=None if memory is None else memory.total / MIB,
            sm_utilisation_pct=None if utilisation is None else utilisation.gpu,
            sm_clock_mhz=self._ask("nvmlDeviceGetClockInfo", lib.NVML_CLOCK_SM),
            mem_clock_mhz=self._ask("nvmlDeviceGetClockInfo", lib.NVML_CLOCK_MEM),
            throttle_reasons=self._ask("nvmlDeviceGetCurrentClocksEventReasons"),
        )

    def throttle(self) -> ThrottleCounters:
        """Time spent slowed down since the driver was loaded, by cause."""
        values = self._fields(self._counters, long_numbers=True)
        return ThrottleCounters(time.monotonic(), self._device.uuid, *values)

    def occupants(self) -> Occupants:
        """Who uses the GPU now, and who used it since the last call."""
        computing = self._ask("nvmlDeviceGetComputeRunningProcesses")
        drawing = self._ask("nvmlDeviceGetGraphicsRunningProcesses")
        memory = self._memory()
        return Occupants(
            t_s=time.monotonic(),
            gpu_uuid=self._device.uuid,
            compute_pids=None if computing is None else tuple(p.pid for p in computing),
            graphics_pids=None if drawing is None else tuple(p.pid for p in drawing),
            busy_pids=self._busy_pids(),
            memory_used_mb=None if memory is None else memory.used / MIB,
            listed_memory_mb=_listed_mb(computing),
        )

    def power_samples(self) -> list[PowerSample]:
        """What the driver's own power buffer gained since the last call; its wall-clock times become monotonic."""
        found = self._since("nvmlDeviceGetSamples", self._lib.NVML_TOTAL_POWER_SAMPLES, self._samples_until_us)
        kind, samples = found or (0, [])
        if not samples:
            return []
        to_monotonic_s = time.monotonic() - time.time()
        self._samples_until_us = max(s.timeStamp for s in samples)
        read = ((s.timeStamp / 1e6 + to_monotonic_s, self._number(kind, s.sampleValue)) for s in samples)
        return [PowerSample(t_s, milliwatts / 1e3) for t_s, milliwatts in read if milliwatts is not None]

    def _busy_pids(self) -> tuple[int, ...] | None:
        found = self._since("nvmlDeviceGetProcessUtilization", self._busy_until_us)
        if not found:
            return None if found is None else ()  # the driver does not tell; nobody computed
        self._busy_until_us = max(s.timeStamp for s in found)
        return tuple(sorted({int(s.pid) for s in found if s.smUtil}))

    def _memory(self) -> Any:
        """Version 2 tells the driver's own reserve apart from what is used; older drivers have version 1 only."""
        version = getattr(self._lib, "nvmlMemory_v2", None)
        found = self._ask("nvmlDeviceGetMemoryInfo", version, known_as="memory v2") if version else None
        return self._ask("nvmlDeviceGetMemoryInfo") if found is None else found

    def _ask(self, name: str, *more: Any, known_as: str = "") -> Any:
        """An answer, or None; what is not supported is not asked again."""
        return self._try(name, *more, known_as=known_as or f"{name}{more}", nothing=None)

    def _since(self, name: str, *more: Any) -> Any:
        """What a buffer gained: empty if nothing, None if there is no such buffer."""
        return self._try(name, *more, known_as=name, nothing=())

    def _try(self, name: str, *more: Any, known_as: str, nothing: Any) -> Any:
        lib = self._lib
        if known_as in self._lacking:
            return None
        try:
            return getattr(lib, name)(self._handle, *more)
        except lib.NVMLError as err:
            code = getattr(err, "value", None)
            if code in (lib.NVML_ERROR_NOT_SUPPORTED, lib.NVML_ERROR_FUNCTION_NOT_FOUND, lib.NVML_ERROR_NO_PERMISSION):
                self._lacking.add(known_as)
            # nvidia-ml-py raises "success", too, where a list of processes turns out to be empty
            return nothing if code in (lib.NVML_ERROR_NOT_FOUND, lib.NVML_SUCCESS) else None
        except (AttributeError, lib.NVMLLibraryMismatchError):  # the library or the driver is older than the call
            self._lacking.add(known_as)
            return None

    def _fields(self, ids: Sequence[int], *, long_numbers: bool = False) -> list[int | None]:
        """Values of several fields by one call, each by its type; None where its return code is not success."""
        values = self._ask("nvmlDeviceGetFieldValues", list(ids), known_as=f"fields {ids}")
        if values is None:
            return [None] * len(ids)
        lib = self._lib
        accepted = (lib.NVML_VALUE_TYPE_UNSIGNED_LONG, lib.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG) if long_numbers else None
        return [
            self._number(v.valueType, v.value)
            if v.nvmlReturn == lib.NVML_SUCCESS and (accepted is None or v.valueType in accepted)
            else None
            for v in values
        ]

    def _number(self, kind: int, value: Any) -> int | None:
        """The member of NVML's union that its type names."""
        lib = self._lib
        members = {
            lib.NVML_VALUE_TYPE_DOUBLE: "dVal",
            lib.NVML_VALUE_TYPE_UNSIGNED_INT: "uiVal",
            lib.NVML_VALUE_TYPE_UNSIGNED_LONG: "ulVal",
            lib.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG: "ullVal",
            lib.NVML_VALUE_TYPE_SIGNED_LONG_LONG: "sllVal",
            lib.NVML_VALUE_TYPE_SIGNED_INT: "siVal",
        }
        name = members.get(kind)
        return None if name is None else int(getattr(value, name))


def _driver(lib: Any) -> int:
    """Major version of the driver; 0 if it cannot be read."""
    try:
        text = lib.nvmlSystemGetDriverVersion()
    except lib.NVMLError:
        return 0
    major = (text.decode() if isinstance(text, bytes) else text).split(".", maxsplit=1)[0]
    return int(major) if major.isdigit() else 0


def _listed_mb(processes: Sequence[Any] | None) -> float | None:
    """Memory of all listed processes, MiB; None if there is none or the driver does not tell it for each."""
    used = [p.usedGpuMemory for p in processes or ()]
    return sum(used) / MIB if used and None not in used else None
