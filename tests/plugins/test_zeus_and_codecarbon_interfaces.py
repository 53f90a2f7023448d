"""The adapters for Zeus and CodeCarbon rest on fields and parameters that the real libraries have."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import pytest

from fakes.nvml_script import Gpu, Machine

Life = Callable[..., dict[str, Any]]
A, B = "GPU-aaaaaaaa-1111", "GPU-bbbbbbbb-2222"

zeus_energy = pytest.importorskip("zeus.monitor.energy")
codecarbon = pytest.importorskip("codecarbon")


def test_zeus_measurement_has_what_the_adapter_reads() -> None:
    """`time`, `gpu_energy`, `cpu_energy`, `dram_energy` exist, and there is no field `energy`."""
    names = {f.name for f in dataclasses.fields(zeus_energy.Measurement)}
    assert {"time", "gpu_energy", "cpu_energy", "dram_energy"} <= names
    assert "energy" not in names
    measured = zeus_energy.Measurement(time=1.0, gpu_energy={0: 2.0})
    assert (measured.cpu_energy, measured.dram_energy) == (None, None)


def test_zeus_monitor_takes_what_the_adapter_passes() -> None:
    """The constructor and the windows accept the arguments by the names that the adapter uses."""
    monitor = zeus_energy.ZeusMonitor
    assert "gpu_indices" in inspect.signature(monitor.__init__).parameters
    for method in (monitor.begin_window, monitor.end_window):
        assert {"key", "sync_execution"} <= set(inspect.signature(method).parameters)


def test_codecarbon_gives_what_the_adapter_reads() -> None:
    """A stopped task's data has the three energies, and the offline tracker takes the adapter's options."""
    from codecarbon.output_methods.emissions_data import EmissionsData

    assert {"gpu_energy", "cpu_energy", "ram_energy"} <= {f.name for f in dataclasses.fields(EmissionsData)}
    tracker = codecarbon.OfflineEmissionsTracker
    accepted = {p for c in tracker.__mro__ if "__init__" in vars(c) for p in inspect.signature(c.__init__).parameters}
    options = {"country_iso_code", "measure_power_secs", "save_to_file", "allow_multiple_runs", "log_level", "gpu_ids"}
    assert options <= accepted
    assert {"start_task", "stop_task", "stop"} <= set(dir(tracker))


def test_zeus_counts_the_same_joules_as_the_script(machine: Machine, life: Life) -> None:
    """Real Zeus over the scripted counter agrees with the true energy within its stated uncertainty."""
    machine.play(Gpu(uuid=A, power=[(0.0, 400.0)], period_s=0.1))
    story = life("zeus", 1.5)
    (start_s, end_s), (device,) = story["spans"]["window"], story["windows"]["window"]
    assert device["joules"] == pytest.approx(400.0 * (end_s - start_s), abs=4 * device["std_uncertainty_j"])
    assert story["independent"]
    assert story["series"][A] >= 12


@pytest.mark.parametrize(
    ("visible", "uuids"),
    [
        pytest.param("1", [B], id="the second"),
        pytest.param("1,0", [B, A], id="reversed"),
        pytest.param(B, [B], id="by UUID"),
    ],
)
def test_zeus_reads_this_runs_gpus_only(visible: str, uuids: list[str], machine: Machine, life: Life) -> None:
    """Whatever CUDA_VISIBLE_DEVICES says, each device gets the joules of its own board."""
    watts = {A: 100.0, B: 500.0}
    machine.play(Gpu(uuid=A, power=[(0.0, watts[A])]), Gpu(uuid=B, power=[(0.0, watts[B])]))
    story = life("zeus", 0.6, CUDA_VISIBLE_DEVICES=visible)
    start_s, end_s = story["spans"]["window"]
    powers = {d["gpu_uuid"]: d["joules"] / (end_s - start_s) for d in story["windows"]["window"]}
    assert list(powers) == uuids
    assert powers == pytest.approx({u: watts[u] for u in uuids}, rel=0.15)


@pytest.mark.parametrize("period_s", [0.05, 0.2])
def test_zeus_edges_are_as_uncertain_as_the_counters_beat(period_s: float, machine: Machine, life: Life) -> None:
    """u = tau / (T sqrt 6) with the period that our own series found, and the waiting power beside the window."""
    machine.play(Gpu(uuid=A, power=[(0.0, 400.0)], period_s=period_s))
    story = life("zeus", 1.5)
    (start_s, end_s), (device,) = story["spans"]["window"], story["windows"]["window"]
    by_hand = period_s / ((end_s - start_s) * 6**0.5) * device["joules"]
    assert device["std_uncertainty_j"] == pytest.approx(by_hand, rel=0.05)
    assert device["power_before_w"] == pytest.approx(400.0, rel=0.1)
