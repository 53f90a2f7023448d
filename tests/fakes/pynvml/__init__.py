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


def _script() -> dict[str, Any]:
    name = os.environ.get("FAKE_NVML")
    if not name:
        raise NVMLError(NVML_ERROR_DRIVER_NOT_LOADED)  # type: ignore[name-defined]  # noqa: F821
    data: dict[str, Any] = json.loads(Path(name).read_text(encoding="utf-8"))
    return data


def _refuse(code: str) -> Exception:
    return NVMLError(globals()[code])  # type: ignore[name-defined,no-any-return]  # noqa: F821


class Handle:
    """What the fake gives as a device handle."""

    def __init__(self, index: int) -> None:
        self.index = index

    @property
    def gpu(self) -> dict[str, Any]:
        """The script of this GPU, read afresh: a test may change it while a child runs."""
        return _script()["gpus"][self.index]  # type: ignore[no-any-return]


def _sensor(name: str, read: Callable[..., Any]) -> Callable[..., Any]:
    def ask(handle: Handle, *more: Any) -> Any:
        gpu = handle.gpu
        if name in gpu["missing"]:
            raise _refuse("NVML_ERROR_NOT_SUPPORTED")
        return read(gpu, *more)

    ask.__name__ = name
    return ask


def power_w(gpu: dict[str, Any], t_s: float) -> float:
    """Power of the script at an instant: the last step that has begun."""
    watts: float = gpu["power"][0][1]
    for begin_s, value in gpu["power"]:
        if t_s >= begin_s:
            watts = value
    return watts


def _joules(gpu: dict[str, Any], t_s: float) -> float:
    """Integral of the script's power from the counter's origin to an instant."""
    steps = [[gpu["origin_s"], gpu["power"][0][1]], *gpu["power"]]
    total = 0.0
    for (begin_s, watts), end_s in zip(steps, [*(s[0] for s in steps[1:]), float("inf")], strict=True):
        total += watts * max(0.0, min(t_s, end_s) - max(begin_s, gpu["origin_s"]))
    return total


def _counter_mj(gpu: dict[str, Any]) -> int:
    now_s = time.monotonic() - gpu["lag_s"]
    if gpu["constant"]:
        return 123_456
    ticks = (now_s - gpu["origin_s"] - gpu["phase_s"]) // gpu["period_s"]
    tick_s = gpu["origin_s"] + gpu["phase_s"] + ticks * gpu["period_s"]
    value = 1e3 * _joules(gpu, tick_s)
    if gpu["reset_at_s"] is not None and tick_s >= gpu["reset_at_s"]:
        value -= 1e3 * _joules(gpu, gpu["reset_at_s"])
    return int(value)


def _memory(gpu: dict[str, Any], *_version: Any) -> Any:
    memory = c_nvmlMemory_t()  # type: ignore[name-defined]  # noqa: F821
    memory.total, memory.used = gpu["memory_mb"] * 2**20, gpu["used_mb"] * 2**20
    memory.free = memory.total - memory.used
    return memory


def _utilisation(gpu: dict[str, Any]) -> Any:
    rates = c_nvmlUtilization_t()  # type: ignore[name-defined]  # noqa: F821
    rates.gpu, rates.memory = gpu["utilisation_pct"], 10
    return rates


def _reasons(gpu: dict[str, Any]) -> int:
    now_s, bits = time.monotonic(), 0
    for begin_s, end_s, value in gpu["reasons"]:
        bits |= value if begin_s <= now_s < end_s else 0
    return bits


_SENSORS: dict[str, Callable[..., Any]] = {
    "nvmlDeviceGetName": lambda g: g["name"],
    "nvmlDeviceGetUUID": lambda g: g["uuid"],
    "nvmlDeviceGetIndex": lambda g: g["index"],
    "nvmlDeviceGetTotalEnergyConsumption": _counter_mj,
    "nvmlDeviceGetPowerUsage": lambda g: int(1e3 * power_w(g, time.monotonic())),
    "nvmlDeviceGetMemoryInfo": _memory,
    "nvmlDeviceGetUtilizationRates": _utilisation,
    "nvmlDeviceGetTemperature": lambda g, _sensor: g["temperature_c"],
    "nvmlDeviceGetTemperatureV": lambda g, _sensor: g["temperature_c"],
    "nvmlDeviceGetClockInfo": lambda g, kind: g["clocks_mhz"]["mem" if kind == NVML_CLOCK_MEM else "sm"],  # type: ignore[name-defined]  # noqa: F821
    "nvmlDeviceGetMaxClockInfo": lambda g, kind: 2619 if kind == NVML_CLOCK_MEM else 1980,  # type: ignore[name-defined]  # noqa: F821
    "nvmlDeviceGetCurrentClocksEventReasons": _reasons,
    "nvmlDeviceGetMigMode": lambda g: [int(g["mig"]), int(g["mig"])],
    "nvmlDeviceGetEnforcedPowerLimit": lambda _g: 700_000,
    "nvmlDeviceGetPowerManagementLimit": lambda _g: 700_000,
    "nvmlDeviceGetPowerManagementDefaultLimit": lambda _g: 700_000,
    "nvmlDeviceGetPowerManagementLimitConstraints": lambda _g: [200_000, 700_000],
    "nvmlDeviceGetPersistenceMode": lambda _g: 1,
    "nvmlDeviceGetEccMode": lambda _g: [1, 1],
    "nvmlDeviceGetCudaComputeCapability": lambda g: tuple(g["capability"]),
    "nvmlDeviceGetArchitecture": lambda _g: NVML_DEVICE_ARCH_HOPPER,  # type: ignore[name-defined]  # noqa: F821
    "nvmlDeviceGetComputeMode": lambda _g: 0,
    "nvmlDeviceGetComputeRunningProcesses": lambda g: [SimpleNamespace(pid=p) for p in g["pids"]],
    "nvmlDeviceGetGraphicsRunningProcesses": lambda _g: [],
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
