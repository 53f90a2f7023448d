"""Says what machine this was: software, CPU, GPUs and their settings, container, node."""

import contextlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from llenergymeasure import __version__
from llenergymeasure.gpu_settings import ask
from llenergymeasure.nvml_sampling import nvml

_PACKAGES = re.compile(
    r"^(torch|transformers|tokenizers|accelerate|peft|bitsandbytes|torchao|flash.attn|vllm|tensorrt.llm|triton|numpy|"
    r"safetensors|huggingface.hub|nvidia-.*|zeus|codecarbon|pydantic|pyarrow|llenergymeasure)$",
    re.IGNORECASE,
)


def snapshot(environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Give the record of this machine; what cannot be found out is None."""
    environ = os.environ if environ is None else environ
    return {
        "tool_version": __version__,
        "python_version": platform.python_version(),
        "platform": platform.platform(),
        "kernel": platform.release(),
        "cpu_model": _cpu_model(),
        "cpu_count": os.cpu_count(),
        "cpu_affinity_count": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "cpu_governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "memory_total_mb": _memory_total_mb(),
        "on_battery": on_battery(),
        "container": _container(environ),
        **cuda_version(),
        **_gpus(),
        "packages": _packages(),
        "image": environ.get("LLEM_IMAGE") or None,
        "image_digest": environ.get("LLEM_IMAGE_DIGEST") or None,
        "node": environ.get("LLEM_NODE_NAME") or None,
        "pod": environ.get("LLEM_POD_NAME") or None,
        "pod_uid": environ.get("LLEM_POD_UID") or None,
    }


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None


def _cpu_model() -> str | None:
    match = re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo") or "", re.MULTILINE)
    return match.group(1).strip() if match else platform.processor() or None


def _memory_total_mb() -> int | None:
    match = re.search(r"^MemTotal:\s*(\d+) kB", _read("/proc/meminfo") or "", re.MULTILINE)
    return int(match.group(1)) // 1024 if match else None


def on_battery(folder: Path = Path("/sys/class/power_supply")) -> bool | None:
    """Whether this machine draws on its battery: one discharges and no mains supply is on; None without a battery.

    Batteries of mice and keyboards (scope Device) are none of the machine's.
    """
    supplies = [_supply(place) for place in sorted(folder.glob("*"))]
    batteries = [s for s in supplies if s.get("type") == "Battery" and s.get("scope") != "Device"]
    if not batteries:
        return None
    mains = any(s.get("online") == "1" for s in supplies if s.get("type") != "Battery")
    return not mains and any(s.get("status") == "Discharging" for s in batteries)


def _supply(place: Path) -> dict[str, str | None]:
    return {name: _read(str(place / name)) for name in ("type", "scope", "online", "status")}


def _container(environ: Mapping[str, str]) -> str | None:
    if environ.get("KUBERNETES_SERVICE_HOST"):
        return "kubernetes"
    if Path("/.dockerenv").exists():
        return "docker"
    return "podman" if Path("/run/.containerenv").exists() else None


def _packages() -> dict[str, str]:
    names = ((d.metadata["Name"] or "", d.version) for d in importlib.metadata.distributions())
    return dict(sorted((n, v) for n, v in names if _PACKAGES.match(n)))


def cuda_version() -> dict[str, str | None]:
    """CUDA's version and where it was read: an imported torch, the version file, nvcc, or nowhere."""
    torch = sys.modules.get("torch")
    if torch is not None and getattr(torch.version, "cuda", None):
        return {"cuda_version": str(torch.version.cuda), "cuda_version_source": "torch"}
    text = _read("/usr/local/cuda/version.json") or ""
    if match := re.search(r'"cuda"\s*:\s*\{[^}]*"version"\s*:\s*"([\d.]+)"', text):
        return {"cuda_version": match.group(1), "cuda_version_source": "version_file"}
    if nvcc := shutil.which("nvcc"):
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            out = subprocess.run([nvcc, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
            if match := re.search(r"release ([\d.]+)", out):
                return {"cuda_version": match.group(1), "cuda_version_source": "nvcc"}
    return {"cuda_version": None, "cuda_version_source": None}


def _gpus() -> dict[str, Any]:
    try:
        with nvml() as lib:
            driver = lib.nvmlSystemGetDriverVersion()
            handles = [lib.nvmlDeviceGetHandleByIndex(i) for i in range(lib.nvmlDeviceGetCount())]
            return {"driver_version": driver, "gpus": [_gpu(lib, i, h) for i, h in enumerate(handles)]}
    except Exception as err:  # noqa: BLE001  (no library, no driver, no permission: the reason is the record)
        return {"driver_version": None, "gpus": [], "gpus_reason": f"{type(err).__name__}: {err}"}


def _gpu(lib: Any, index: int, handle: Any) -> dict[str, Any]:
    told = partial(ask, lib, handle)
    return {
        "index": index,
        "name": told("nvmlDeviceGetName"),
        "uuid": told("nvmlDeviceGetUUID"),
        "memory_total_mb": told("nvmlDeviceGetMemoryInfo", convert=lambda m: m.total // 2**20),
        "compute_capability": told("nvmlDeviceGetCudaComputeCapability", convert=lambda c: f"{c[0]}.{c[1]}"),
        "power_limit_w": told("nvmlDeviceGetEnforcedPowerLimit", convert=lambda p: p / 1e3),
        "power_limit_default_w": told("nvmlDeviceGetPowerManagementDefaultLimit", convert=lambda p: p / 1e3),
        "sm_clock_max_mhz": told("nvmlDeviceGetMaxClockInfo", "NVML_CLOCK_SM"),
        "mem_clock_max_mhz": told("nvmlDeviceGetMaxClockInfo", "NVML_CLOCK_MEM"),
        "persistence_mode": told("nvmlDeviceGetPersistenceMode", convert=bool),
        "ecc_enabled": told("nvmlDeviceGetEccMode", convert=lambda m: bool(m[0])),
        "ecc_pending": told("nvmlDeviceGetEccMode", convert=lambda m: bool(m[1])),
        "mig_enabled": told("nvmlDeviceGetMigMode", convert=lambda m: bool(m[0])),
    }
