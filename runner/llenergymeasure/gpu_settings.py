"""Reads a GPU's settings that change its idle power, and its temperature, straight from NVML."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from llenergymeasure.core.contracts import Device
from llenergymeasure.nvml_sampling import nvml

Thermometer = Callable[[], Mapping[str, float]]
"""Gives the temperature of each GPU by UUID, °C; one that cannot be read is missing."""


@dataclass(frozen=True)
class GpuSettings:
    """What of a GPU's state an idle power holds for; None where the card does not tell."""

    driver: str | None = None
    power_limit_w: float | None = None
    graphics_clock_mhz: int | None = None  # the application clock that is set
    memory_clock_mhz: int | None = None
    persistence: bool | None = None
    ecc: bool | None = None
    mig: bool | None = None

    @property
    def digest(self) -> str:
        """Twelve hex digits that differ as soon as one of these settings does."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]


def read_settings(devices: Sequence[Device]) -> dict[str, GpuSettings]:
    """Settings of these GPUs by UUID."""
    if not devices:
        return {}
    with nvml() as lib:
        driver = lib.nvmlSystemGetDriverVersion()
        driver = driver.decode() if isinstance(driver, bytes) else driver
        return {d.uuid: _settings(lib, lib.nvmlDeviceGetHandleByUUID(d.uuid), driver) for d in devices}


def _settings(lib: Any, handle: Any, driver: str) -> GpuSettings:
    return GpuSettings(
        driver=driver,
        power_limit_w=ask(lib, handle, "nvmlDeviceGetEnforcedPowerLimit", convert=lambda mw: mw / 1e3),
        graphics_clock_mhz=ask(lib, handle, "nvmlDeviceGetApplicationsClock", "NVML_CLOCK_GRAPHICS"),
        memory_clock_mhz=ask(lib, handle, "nvmlDeviceGetApplicationsClock", "NVML_CLOCK_MEM"),
        persistence=ask(lib, handle, "nvmlDeviceGetPersistenceMode", convert=bool),
        ecc=ask(lib, handle, "nvmlDeviceGetEccMode", convert=lambda m: bool(m[0])),
        mig=ask(lib, handle, "nvmlDeviceGetMigMode", convert=lambda m: bool(m[0])),
    )


def ask(lib: Any, handle: Any, name: str, *constants: str, convert: Callable[[Any], Any] = lambda v: v) -> Any:
    """An answer of NVML's about one GPU, converted; None where the card, its driver or this NVML does not have it."""
    try:
        answer = getattr(lib, name)(handle, *(getattr(lib, c) for c in constants))
    except (lib.NVMLError, AttributeError):
        return None
    return convert(answer)


@contextmanager
def thermometer(devices: Sequence[Device]) -> Iterator[Thermometer]:
    """Something that reads these GPUs' temperatures as often as it is asked, NVML being opened once."""
    if not devices:
        yield dict
        return
    with nvml() as lib:
        handles = {d.uuid: lib.nvmlDeviceGetHandleByUUID(d.uuid) for d in devices}

        def read() -> dict[str, float]:
            name, kind = "nvmlDeviceGetTemperature", "NVML_TEMPERATURE_GPU"
            found = {u: ask(lib, h, name, kind, convert=float) for u, h in handles.items()}
            return {u: t for u, t in found.items() if t is not None}

        yield read
