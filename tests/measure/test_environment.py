"""The record of the machine: GPUs and their settings, software, where CUDA's version came from, node and image."""

import os
import platform
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest

from fakes.nvml_script import Gpu, Machine
from llenergymeasure import __version__, environment
from llenergymeasure.measure import Measured

WANTED = {
    "tool_version", "python_version", "kernel", "cpu_model", "cpu_governor", "container", "cuda_version",
    "cuda_version_source", "driver_version", "gpus", "packages", "image_digest", "node", "pod",
}  # fmt: skip
GPU_WANTED = {
    "name", "uuid", "memory_total_mb", "compute_capability", "power_limit_w", "power_limit_default_w",
    "sm_clock_max_mhz", "mem_clock_max_mhz", "persistence_mode", "ecc_enabled", "mig_enabled",
}  # fmt: skip


def test_the_snapshot_has_every_documented_part(machine: Machine) -> None:
    """Nothing that the specification names is missing, also without a GPU."""
    machine.play()
    found = environment.snapshot({})
    assert set(found) >= WANTED
    assert (found["tool_version"], found["python_version"]) == (__version__, platform.python_version())
    assert found["gpus"] == []


def test_every_gpu_is_recorded_with_its_settings(machine: Machine) -> None:
    """All boards, not only the first, each with name, UUID, memory, capability, limits, clocks, modes."""
    machine.play(
        Gpu(uuid="GPU-a", name="Card A", memory_mb=81559, capability=(9, 0)),
        Gpu(uuid="GPU-b", name="Card B", memory_mb=24576, capability=(8, 6), mig=True),
        driver="999.1",
    )
    found = environment.snapshot({})
    assert found["driver_version"] == "999.1"
    assert [(g["index"], g["uuid"], g["name"]) for g in found["gpus"]] == [
        (0, "GPU-a", "Card A"),
        (1, "GPU-b", "Card B"),
    ]
    assert [(g["memory_total_mb"], g["compute_capability"], g["mig_enabled"]) for g in found["gpus"]] == [
        (81559, "9.0", False),
        (24576, "8.6", True),
    ]
    first = found["gpus"][0]
    assert set(first) >= GPU_WANTED
    assert (first["power_limit_w"], first["power_limit_default_w"]) == (700.0, 700.0)
    assert (first["sm_clock_max_mhz"], first["mem_clock_max_mhz"]) == (1980, 2619)
    assert (first["persistence_mode"], first["ecc_enabled"]) == (True, True)


def test_what_a_card_does_not_tell_is_none(machine: Machine) -> None:
    """A missing value is None and does not hide the others."""
    machine.play(Gpu(missing=["nvmlDeviceGetEccMode", "nvmlDeviceGetEnforcedPowerLimit", "nvmlDeviceGetMigMode"]))
    (gpu,) = environment.snapshot({})["gpus"]
    assert (gpu["ecc_enabled"], gpu["power_limit_w"], gpu["mig_enabled"]) == (None, None, None)
    assert gpu["persistence_mode"] is True


def test_without_a_driver_the_reason_is_recorded(machine: Machine) -> None:
    """No GPU is a fact with its reason, not an error."""
    found = environment.snapshot({})
    assert (found["driver_version"], found["gpus"]) == (None, [])
    assert "NVMLError" in found["gpus_reason"]


def test_installed_packages_are_those_of_this_interpreter(machine: Machine) -> None:
    """The libraries that decide a measurement are listed with their versions, others are not."""
    packages = environment.snapshot({})["packages"]
    assert packages["pydantic"] == version("pydantic")
    assert packages["llenergymeasure"] == version("llenergymeasure")
    assert "pytest" not in packages


@pytest.mark.parametrize(
    ("torch", "nvcc", "expected"),
    [
        pytest.param("13.0", "12.4", ("13.0", "torch"), id="torch first"),
        pytest.param(None, "12.4", ("12.4", "nvcc"), id="then nvcc"),
        pytest.param(None, None, (None, None), id="nowhere"),
    ],
)
def test_cudas_version_names_its_source(
    torch: str | None,
    nvcc: str | None,
    expected: tuple[str | None, str | None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An imported torch, else the toolkit on the PATH, else None; torch is not imported to find out."""
    if Path("/usr/local/cuda/version.json").exists():
        pytest.skip("this machine has a CUDA toolkit of its own")
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(version=SimpleNamespace(cuda=torch)))
    if nvcc:
        tool = tmp_path / "nvcc"
        tool.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {nvcc}, V{nvcc}.1'\n")
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin" if nvcc else str(tmp_path))
    found = environment.cuda_version()
    assert (found["cuda_version"], found["cuda_version_source"]) == expected


def test_torch_is_not_imported_for_the_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Describing the machine loads no engine."""
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    environment.snapshot({})
    assert "torch" not in sys.modules


def test_a_cluster_names_node_pod_and_image(machine: Machine) -> None:
    """What the Job tells by variables is in the record, and so is the container's kind."""
    found = environment.snapshot(
        {
            "LLEM_NODE_NAME": "node-1",
            "LLEM_POD_NAME": "pod-1",
            "LLEM_IMAGE_DIGEST": "sha256:abc",
            "KUBERNETES_SERVICE_HOST": "10.0.0.1",
        }
    )
    assert (found["node"], found["pod"], found["image_digest"]) == ("node-1", "pod-1", "sha256:abc")
    assert found["container"] == "kubernetes"


def _supplies(folder: Path, **supplies: dict[str, str]) -> Path:
    for name, values in supplies.items():
        (folder / name).mkdir()
        for key, value in values.items():
            (folder / name / key).write_text(f"{value}\n", encoding="utf-8")
    return folder


BATTERY, MAINS = {"type": "Battery"}, {"type": "Mains"}
POWER_SUPPLIES = [
    pytest.param({}, None, id="no supply is told"),
    pytest.param({"AC": {**MAINS, "online": "1"}}, None, id="no battery"),
    pytest.param({"mouse": {**BATTERY, "scope": "Device", "status": "Discharging"}}, None, id="a mouse's battery"),
    pytest.param({"BAT0": {**BATTERY, "status": "Full"}, "AC": {**MAINS, "online": "1"}}, False, id="plugged in"),
    pytest.param({"BAT0": {**BATTERY, "status": "Discharging"}, "AC": {**MAINS, "online": "0"}}, True, id="unplugged"),
    pytest.param(
        {"BAT0": {**BATTERY, "status": "Discharging"}, "usb": {"type": "USB", "online": "1"}},
        False,
        id="charger too weak",
    ),
    pytest.param({"BAT0": {**BATTERY, "status": "Discharging"}}, True, id="battery alone"),
]


@pytest.mark.parametrize(("supplies", "wanted"), POWER_SUPPLIES)
def test_whether_the_machine_runs_on_its_battery(
    supplies: dict[str, dict[str, str]], wanted: bool | None, tmp_path: Path
) -> None:
    """By the kernel's power supplies; without a battery there is no answer."""
    assert environment.on_battery(_supplies(tmp_path, **supplies)) is wanted


@pytest.mark.parametrize("wanted", [None, "PCI_BUS_ID", "FASTEST_FIRST"])
def test_gpus_are_numbered_by_the_bus_whatever_the_user_set(
    wanted: str | None, run: Callable[..., Measured], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counters are; another order is not followed, which a warning says."""
    monkeypatch.setenv("CUDA_DEVICE_ORDER", wanted or "")
    if wanted is None:
        monkeypatch.delenv("CUDA_DEVICE_ORDER")
    told = [w for w in run().result.measurement_warnings if w.startswith("device_order:")]
    assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert len(told) == (wanted == "FASTEST_FIRST")
    assert all("was FASTEST_FIRST" in w for w in told)
