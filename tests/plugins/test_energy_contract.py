"""What every energy source must keep, with the real libraries, on a machine without a GPU and on scripted ones."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fakes.nvml_script import Gpu, Machine
from fakes.patience import until_sure
from llenergymeasure.core import registry
from llenergymeasure.core.contracts import Availability, EnergyBackend

NAMES = registry.energy_names()
AUTOMATIC = registry.energy_auto_order()
Life = Callable[..., dict[str, Any]]


@pytest.fixture
def with_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An nvidia-smi on the PATH: CodeCarbon believes in NVIDIA GPUs only if it is there."""
    import os

    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\nexit 0\n", encoding="utf-8")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.parametrize("name", NAMES)
def test_a_source_has_the_methods_of_the_contract(name: str) -> None:
    """Every method of EnergyBackend is there with the same parameters, and the kind is one of three."""
    source = registry.energy_source(name)
    wanted = {n: m for n, m in vars(EnergyBackend).items() if not n.startswith("_") and inspect.isfunction(m)}
    assert {n: list(inspect.signature(getattr(type(source), n)).parameters) for n in wanted} == {
        n: list(inspect.signature(m).parameters) for n, m in wanted.items()
    }
    assert name == source.NAME
    assert source.KIND in {"counter", "estimate", "simulated"}


@pytest.mark.parametrize("name", NAMES)
def test_availability_is_an_answer_with_a_fix(name: str, machine: Machine) -> None:
    """Asking whether a source works never raises, and a no comes with its reason and what to do."""
    machine.play()
    found = registry.energy_source(name).availability()
    assert isinstance(found, Availability)
    assert found.ok or (found.reason and found.fix)


@pytest.mark.parametrize("name", [n for n in AUTOMATIC if n != "nvml"])
def test_a_source_without_its_library_names_the_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not installed is unavailable, with the command that installs it."""
    import sys

    monkeypatch.setitem(sys.modules, name, None)
    found = registry.energy_source(name).availability()
    assert not found.ok
    assert f"llenergymeasure[{name}]" in found.fix


def test_only_real_sources_are_automatic() -> None:
    """`auto` never chooses a pretended source: Zeus, then NVML, then CodeCarbon."""
    assert AUTOMATIC == ("zeus", "nvml", "codecarbon")


@pytest.mark.parametrize("name", NAMES)
def test_a_life_on_a_scripted_gpu(name: str, machine: Machine, with_smi: None, life: Life) -> None:
    """Start, two windows, stop: positive joules per device and window, instants that enclose the work."""
    machine.play(Gpu())
    for story in until_sure(lambda: life(name, 1.2, 0.8), reasons):
        uuids = [d["uuid"] for d in story["devices"]]
        assert story["availability"]["ok"]
        assert list(story["windows"]) == ["window", "window1"]
        for window, (start_s, end_s) in story["spans"].items():
            assert end_s - start_s >= 0.8
            assert [d["gpu_uuid"] for d in story["windows"][window]] == uuids
            assert all((d["joules"] or 0) > 0 or d["reason"] for d in story["windows"][window])
        (first_s, first_end_s), (second_s, _) = story["spans"].values()
        assert first_s < first_end_s <= second_s


def reasons(story: dict[str, Any]) -> list[str | None]:
    """Why windows have no joules."""
    return [d["reason"] for devices in story["windows"].values() for d in devices]


@pytest.mark.parametrize("name", ["zeus", "codecarbon"])
def test_without_a_gpu_there_is_no_device_energy_rather_than_zero(name: str, machine: Machine, life: Life) -> None:
    """The real library on a machine without a GPU gives windows without devices, and no exception."""
    machine.play()
    story = life(name, 0.1)
    assert story["devices"] == []
    assert story["windows"] == {"window": []}


@pytest.mark.parametrize("name", ["nvml", "zeus", "codecarbon"])
def test_a_mig_slice_cannot_be_measured(name: str, machine: Machine) -> None:
    """A GPU in MIG mode counts for all its slices together, so no source that reads it is available."""
    machine.play(Gpu(mig=True))
    found = registry.energy_source(name).availability()
    assert not found.ok
    assert "MIG" in found.reason


@pytest.mark.parametrize("name", ["nvml", "zeus"])
def test_a_window_that_was_never_opened_cannot_be_closed(
    name: str, machine: Machine, python: Callable[..., Any]
) -> None:
    """Closing a window twice, or one that was never opened, is a measurement error."""
    machine.play(Gpu())
    code = """
import json, sys
from llenergymeasure.core import registry
from llenergymeasure.core.errors import MeasurementError
source = registry.energy_source(sys.argv[1])
source.start(source.devices(), interval_s=0.1)
said = []
for closed in ("never", "twice"):
    if closed == "twice":
        source.open_window(closed)
        source.close_window(closed)
    try:
        source.close_window(closed)
    except MeasurementError as err:
        said.append(closed in str(err))
source.stop()
print(json.dumps(said))
"""
    assert python(code, name) == [True, True]


def test_host_energy_stays_apart(machine: Machine, with_smi: None, life: Life) -> None:
    """CodeCarbon's modelled CPU and RAM joules have a field of their own and never enter the GPU's."""
    machine.play(Gpu(power=[(0.0, 300.0)]))
    story = life("codecarbon", 2.0)
    (start_s, end_s), (device,) = story["spans"]["window"], story["windows"]["window"]
    assert story["host_energy_j"] > 0
    assert device["joules"] == pytest.approx(300.0 * (end_s - start_s), rel=0.25)
    assert story["kind"] == "estimate"
    assert any(w.startswith("codecarbon_estimate:") for w in story["warnings"])


def test_codecarbon_blind_to_the_gpu_gives_null_with_a_reason(machine: Machine, tmp_path: Path, life: Life) -> None:
    """Where CodeCarbon finds no nvidia-smi it reports 0 J; llem reports that nothing was measured."""
    machine.play(Gpu())
    story = life("codecarbon", 0.3, PATH=str(tmp_path))
    (device,) = story["windows"]["window"]
    assert device["joules"] is None
    assert "nvidia-smi" in device["reason"]


def test_codecarbons_one_figure_is_not_split_over_gpus(machine: Machine, with_smi: None, life: Life) -> None:
    """With two GPUs there is no joule per device to give, and the reason says so."""
    machine.play(Gpu(), Gpu(uuid="GPU-bbbbbbbb"))
    parts = life("codecarbon", 0.3)["windows"]["window"]
    assert [d["joules"] for d in parts] == [None, None]
    assert all("cannot be split" in d["reason"] for d in parts)
