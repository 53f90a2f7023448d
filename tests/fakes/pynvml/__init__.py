"""A scripted `pynvml`: NVIDIA's own module with the calls that llem, Zeus and CodeCarbon make answered from a script.

The script is the JSON file that the variable FAKE_NVML names (tests/fakes/nvml_script.py writes it), so that child
processes with this folder's parent on PYTHONPATH see the same GPUs. Constants, structures and error classes are those
of the real nvidia-ml-py; a call that is not scripted fails as it does without a driver.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pynvml import playing

_HERE = Path(__file__).resolve().parent


def _load_real() -> None:
    """Execute the installed pynvml.py in this namespace, so that everything not scripted is the vendor's own."""
    for folder in sys.path:
        file = Path(folder or ".") / "pynvml.py"
        if file.is_file() and file.resolve().parent != _HERE:
            exec(compile(file.read_text(encoding="utf-8"), str(file), "exec"), globals())
            return
    raise ImportError("the scripted pynvml needs nvidia-ml-py beside it")


_load_real()


_read_last: dict[Any, dict[str, Any]] = {}


def _script() -> dict[str, Any]:
    name = os.environ.get("FAKE_NVML")
    if not name:
        raise NVMLError(NVML_ERROR_DRIVER_NOT_LOADED)  # type: ignore[name-defined]  # noqa: F821
    found = Path(name).stat()
    version = (name, found.st_ino, found.st_mtime_ns)
    if version not in _read_last:  # parsing a long script at each call would slow every sensor
        data: dict[str, Any] = json.loads(Path(name).read_text(encoding="utf-8"))
        _read_last.clear()
        _read_last[version] = data
    return _read_last[version]


def _refuse(code: str) -> Exception:
    return NVMLError(globals()[code])  # type: ignore[name-defined,no-any-return]  # noqa: F821


class Handle:
    """What the fake gives as a device handle."""

    def __init__(self, index: int) -> None:
        self.index = index

    @property
    def gpu(self) -> dict[str, Any]:
        """The script of this GPU, looked up at each call: a test may change it while a child runs."""
        return _script()["gpus"][self.index]  # type: ignore[no-any-return]


def _sensor(name: str, read: Callable[..., Any]) -> Callable[..., Any]:
    def ask(handle: Handle, *more: Any) -> Any:
        gpu = handle.gpu
        _take_time(gpu, name)
        if name in gpu["missing"]:
            raise _refuse("NVML_ERROR_NOT_SUPPORTED")
        if any(row[0] == name for row in playing.active(gpu["failing"], time.monotonic())):
            raise _refuse("NVML_ERROR_UNKNOWN")
        return read(gpu, *more)

    ask.__name__ = name
    return ask


def _take_time(gpu: dict[str, Any], name: str) -> None:
    """Every call takes as long as the script says, this one perhaps longer."""
    seconds = gpu["slow"].get(name, gpu["call_s"])
    if seconds:
        time.sleep(seconds)


def _memory(gpu: dict[str, Any], version: int | None = None) -> Any:
    used_mb, reserved_mb = playing.used_mb(gpu, time.monotonic()), gpu["reserved_mb"]
    memory = (c_nvmlMemory_v2_t if version else c_nvmlMemory_t)()  # type: ignore[name-defined]  # noqa: F821
    if version:
        if "nvmlDeviceGetMemoryInfo_v2" in gpu["missing"]:
            raise _refuse("NVML_ERROR_FUNCTION_NOT_FOUND")
        memory.reserved = reserved_mb * 2**20
    else:
        used_mb += reserved_mb  # version 1 counts the driver's reserve as used
    memory.total, memory.used = gpu["memory_mb"] * 2**20, used_mb * 2**20
    memory.free = memory.total - memory.used - (reserved_mb * 2**20 if version else 0)
    return memory


def _utilisation(gpu: dict[str, Any]) -> Any:
    rates = c_nvmlUtilization_t()  # type: ignore[name-defined]  # noqa: F821
    rates.gpu, rates.memory = gpu["utilisation_pct"], 10
    return rates


def _clock(gpu: dict[str, Any], kind: int) -> int:
    if kind != NVML_CLOCK_MEM and gpu["sm_clock_steps"]:  # type: ignore[name-defined]  # noqa: F821
        return int(playing.step(gpu["sm_clock_steps"], time.monotonic()))
    return int(gpu["clocks_mhz"]["mem" if kind == NVML_CLOCK_MEM else "sm"])  # type: ignore[name-defined]  # noqa: F821


def _temperature(gpu: dict[str, Any], *_sensor: int) -> int:
    steps = gpu["temperature_steps"]
    return int(playing.step(steps, time.monotonic())) if steps else int(gpu["temperature_c"])


def _slowed(bit: int) -> Callable[[dict[str, Any]], tuple[int, int]]:
    return lambda gpu: (NVML_VALUE_TYPE_UNSIGNED_LONG_LONG, playing.slowed_ns(gpu, bit, time.monotonic()))  # type: ignore[name-defined]  # noqa: F821


def _average_mw(gpu: dict[str, Any]) -> tuple[int, int]:
    now_s = time.monotonic()
    return NVML_VALUE_TYPE_UNSIGNED_INT, round(1e3 * playing.mean_power_w(gpu, now_s - playing.AVERAGE_S, now_s))  # type: ignore[name-defined]  # noqa: F821


def _instant_mw(gpu: dict[str, Any]) -> tuple[int, int]:
    now_s = time.monotonic()
    return NVML_VALUE_TYPE_UNSIGNED_INT, round(1e3 * playing.mean_power_w(gpu, now_s - playing.INSTANT_S, now_s))  # type: ignore[name-defined]  # noqa: F821


_NO_SMOOTHING: Callable[[dict[str, Any]], tuple[int, int]] = lambda _g: (NVML_VALUE_TYPE_UNSIGNED_INT, 0)  # type: ignore[name-defined]  # noqa: F821, E731
_THROTTLE = (_slowed(0x20), _slowed(0x40), _slowed(0x80))  # SW thermal, HW thermal, power brake


def _fields_of(driver: str) -> dict[int, Callable[[dict[str, Any]], tuple[int, int]]]:
    """Field id → (value type, value); the ids of the throttle counters moved with driver 575."""
    new = int(driver.split(".", maxsplit=1)[0]) >= 575
    counters = dict(zip((269, 270, 271) if new else (251, 252, 253), _THROTTLE, strict=True))
    smoothing = dict.fromkeys((251, 252, 253), _NO_SMOOTHING) if new else {}
    return {185: _average_mw, 186: _instant_mw, 74: _slowed(0x4)} | smoothing | counters


def _field_values(gpu: dict[str, Any], ids: list[int]) -> Any:
    known = _fields_of(_script()["driver"])
    values = (c_nvmlFieldValue_t * len(ids))()  # type: ignore[name-defined]  # noqa: F821
    for value, number in zip(values, ids, strict=True):
        value.fieldId = number
        if number not in known or number in gpu["missing_fields"]:
            value.nvmlReturn, value.value.ullVal = NVML_ERROR_NOT_SUPPORTED, 0xDEAD  # type: ignore[name-defined]  # noqa: F821
            continue
        value.valueType, number_read = known[number](gpu)
        if value.valueType == NVML_VALUE_TYPE_UNSIGNED_INT:  # type: ignore[name-defined]  # noqa: F821
            value.value.ullVal = 0xDEAD << 32  # what lies beside a short value is not part of it
            value.value.uiVal = number_read
        else:
            value.value.ullVal = number_read
    return values


def _samples(gpu: dict[str, Any], kind: int, after_us: int) -> Any:
    if kind != NVML_TOTAL_POWER_SAMPLES:  # type: ignore[name-defined]  # noqa: F821
        raise _refuse("NVML_ERROR_NOT_SUPPORTED")
    to_wall_s = time.time() - time.monotonic()
    found = []
    for end_s, milliwatts in playing.samples(gpu, time.monotonic()):
        sample = c_nvmlSample_t()  # type: ignore[name-defined]  # noqa: F821
        sample.timeStamp, sample.sampleValue.uiVal = round(1e6 * (end_s + to_wall_s)), milliwatts
        if sample.timeStamp > after_us:
            found.append(sample)
    if not found:
        raise _refuse("NVML_ERROR_NOT_FOUND")
    return NVML_VALUE_TYPE_UNSIGNED_INT, found  # type: ignore[name-defined]  # noqa: F821


def _busy(gpu: dict[str, Any], after_us: int) -> Any:
    found = []
    for pid, percent in playing.busy(gpu, time.monotonic()):
        sample = c_nvmlProcessUtilizationSample_t()  # type: ignore[name-defined]  # noqa: F821
        sample.pid, sample.smUtil, sample.timeStamp = pid, percent, int(time.time() * 1e6)
        found.append(sample)
    if not found or found[0].timeStamp <= after_us:
        raise _refuse("NVML_ERROR_NOT_FOUND")
    return found


def _processes(pids: Callable[..., list[int]]) -> Callable[[dict[str, Any]], list[Any]]:
    return lambda gpu: [SimpleNamespace(pid=p, usedGpuMemory=None) for p in pids(gpu, time.monotonic())]


_SENSORS: dict[str, Callable[..., Any]] = {
    "nvmlDeviceGetName": lambda g: g["name"],
    "nvmlDeviceGetUUID": lambda g: g["uuid"],
    "nvmlDeviceGetIndex": lambda g: g["index"],
    "nvmlDeviceGetTotalEnergyConsumption": lambda g: playing.counter_mj(g, time.monotonic()),
    "nvmlDeviceGetPowerUsage": lambda g: int(1e3 * playing.step(g["power"], time.monotonic())),
    "nvmlDeviceGetFieldValues": _field_values,
    "nvmlDeviceGetSamples": _samples,
    "nvmlDeviceGetProcessUtilization": _busy,
    "nvmlDeviceGetMemoryInfo": _memory,
    "nvmlDeviceGetUtilizationRates": _utilisation,
    "nvmlDeviceGetTemperature": _temperature,
    "nvmlDeviceGetTemperatureV": _temperature,
    "nvmlDeviceGetClockInfo": _clock,
    "nvmlDeviceGetMaxClockInfo": lambda g, kind: 2619 if kind == NVML_CLOCK_MEM else 1980,  # type: ignore[name-defined]  # noqa: F821
    "nvmlDeviceGetApplicationsClock": lambda g, kind: 2619 if kind == NVML_CLOCK_MEM else 1980,  # type: ignore[name-defined]  # noqa: F821
    "nvmlDeviceGetCurrentClocksEventReasons": lambda g: playing.reasons(g, time.monotonic()),
    "nvmlDeviceGetMigMode": lambda g: [int(g["mig"]), int(g["mig"])],
    "nvmlDeviceGetEnforcedPowerLimit": lambda g: int(1e3 * g["power_limit_w"]),
    "nvmlDeviceGetPowerManagementLimit": lambda g: int(1e3 * g["power_limit_w"]),
    "nvmlDeviceGetPowerManagementDefaultLimit": lambda _g: 700_000,
    "nvmlDeviceGetPowerManagementLimitConstraints": lambda _g: [200_000, 700_000],
    "nvmlDeviceGetPersistenceMode": lambda g: int(g["persistence"]),
    "nvmlDeviceGetEccMode": lambda g: [int(g["ecc"]), int(g["ecc"])],
    "nvmlDeviceGetCudaComputeCapability": lambda g: tuple(g["capability"]),
    "nvmlDeviceGetArchitecture": lambda _g: NVML_DEVICE_ARCH_HOPPER,  # type: ignore[name-defined]  # noqa: F821
    "nvmlDeviceGetComputeMode": lambda _g: 0,
    "nvmlDeviceGetComputeRunningProcesses": _processes(playing.compute_pids),
    "nvmlDeviceGetGraphicsRunningProcesses": _processes(playing.graphics_pids),
}
globals().update({name: _sensor(name, read) for name, read in _SENSORS.items()})


def _unsupported(*_arguments: Any) -> Any:
    raise _refuse("NVML_ERROR_NOT_SUPPORTED")


nvmlDeviceGetC2cModeInfoV = _unsupported  # noqa: N816  (NVIDIA's name)


def nvmlInit() -> None:
    """Fail like a machine without a driver unless there is a script."""
    _script()


def nvmlInitWithFlags(_flags: int) -> None:
    """Same."""
    _script()


def nvmlShutdown() -> None:
    """Nothing to do."""


def nvmlDeviceGetCount() -> int:
    """Number of scripted GPUs."""
    return len(_script()["gpus"])


def nvmlSystemGetDriverVersion() -> str:
    """The script's driver."""
    return str(_script()["driver"])


def nvmlDeviceGetHandleByIndex(index: int) -> Handle:
    """A handle, or NVML's own error."""
    if not 0 <= index < nvmlDeviceGetCount():
        raise _refuse("NVML_ERROR_INVALID_ARGUMENT")
    return Handle(index)


def nvmlDeviceGetHandleByUUID(uuid: str | bytes) -> Handle:
    """A handle, or NVML's own error."""
    text = uuid.decode() if isinstance(uuid, bytes) else uuid
    for index, gpu in enumerate(_script()["gpus"]):
        if gpu["uuid"] == text:
            return Handle(index)
    raise _refuse("NVML_ERROR_NOT_FOUND")
