"""Every fault that a scripted NVML can play, planted in a whole run with the real sampler: its code, and no other.

The windows are short, so each run is also told that they are; only what comes beside that is looked at.
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fakes.nvml_script import HW_THERMAL, POWER_BRAKE, SW_POWER_CAP, Gpu, Machine, drift
from llenergymeasure.core.result import ExperimentResult
from llenergymeasure.measure import Measured
from llenergymeasure.run_energy import RunEnergy

A = "GPU-aaaaaaaa-1111"
OnGpu = Callable[..., Measured]
WINDOW_S = 3.0
CLEAN = Gpu(uuid=A, power=[(0.0, 300.0)], period_s=0.1, pids=[os.getpid()], utilisation_pct=0)
SHORT = {"window_too_short"}
EVER = 1e12
EXPECTED = {"imprecise", "no_settling"}  # the windows are short, and these runs do not settle


@pytest.fixture
def planted(on_gpu: OnGpu, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ExperimentResult]:
    """Measure a window whose GPU changes at its start to what `gpu_at` makes of that instant."""

    def start(gpu_at: Callable[[float], Gpu], first: Gpu = CLEAN, **fields: Any) -> ExperimentResult:
        machine.play(first)
        opened = RunEnergy.open

        def open_and_plant(self: RunEnergy, name: str) -> float:
            if name == "window":
                machine.play(gpu_at(time.monotonic()))
            return opened(self, name)

        monkeypatch.setattr(RunEnergy, "open", open_and_plant)
        wanted = {"measurement": {"min_duration_seconds": WINDOW_S}, "synthetic": {"batch_overhead_ms": 40}}
        return on_gpu(**{**wanted, **fields}).result

    return start


def reasons(result: ExperimentResult) -> set[str]:
    return {r.code for r in result.verdict.reasons} - SHORT


def told(result: ExperimentResult) -> set[str]:
    return {w.partition(":")[0] for w in result.measurement_warnings} - EXPECTED


def but(**fields: Any) -> Callable[[float], Gpu]:
    """The clean GPU with something else, whenever."""
    return lambda _now: replace(CLEAN, **fields)


INVALID = [
    pytest.param(lambda t: replace(CLEAN, jumps=[(t + 1.55, 300.0)]), {"counter_jump", "cross_check", "power_drift"}, id="jump"),
    pytest.param(but(foreign_compute=[(4242, 0.0, EVER)]), {"gpu_shared"}, id="foreign process"),
    pytest.param(lambda t: replace(CLEAN, reasons=[(t + 1, t + 2, HW_THERMAL)]), {"throttled"}, id="heat"),
    pytest.param(lambda t: replace(CLEAN, reasons=[(t + 1, t + 2, POWER_BRAKE)]), {"throttled"}, id="power brake"),
    pytest.param(
        lambda t: replace(CLEAN, power=drift(300.0, 360.0, start_s=t, seconds=WINDOW_S)), {"power_drift"}, id="power drift"
    ),
]  # fmt: skip


@pytest.mark.parametrize(("gpu_at", "codes"), INVALID)
def test_a_fault_that_spoils_a_window_is_a_reason(
    gpu_at: Callable[[float], Gpu], codes: set[str], planted: Callable[..., ExperimentResult]
) -> None:
    """The verdict is invalid with the fault's own code, and what else follows of it."""
    result = planted(gpu_at)
    first = next(iter(codes))
    assert result.verdict.state == "invalid"
    assert reasons(result) & codes
    assert reasons(result) <= codes, first


WARNED = [
    pytest.param(but(), set(), id="nothing"),
    pytest.param(but(reasons=[(0.0, EVER, SW_POWER_CAP)]), set(), id="power cap"),
    pytest.param(but(foreign_graphics=[(900, 0.0, EVER)]), {"display_attached"}, id="display"),
    pytest.param(
        lambda t: replace(CLEAN, sm_clock_steps=drift(1900, 1700, start_s=t, seconds=WINDOW_S)), {"clock_drift"}, id="clock"
    ),
    pytest.param(lambda t: replace(CLEAN, holes=[(t + 0.62, t + 1.17)]), {"interior_gap"}, id="gap inside"),
]  # fmt: skip


@pytest.mark.parametrize(("gpu_at", "codes"), WARNED)
def test_a_condition_is_told_and_spoils_nothing(
    gpu_at: Callable[[float], Gpu], codes: set[str], planted: Callable[..., ExperimentResult]
) -> None:
    """A warning with its code, no reason; a clean window has neither."""
    result = planted(gpu_at)
    assert reasons(result) == set()
    assert told(result) == codes


def test_a_neighbour_of_another_pod_is_found_by_its_host_id(planted: Callable[..., ExperimentResult]) -> None:
    """Nobody foreign is listed, but a process that was busy before our engine stays busy beside a new one."""
    busy = [(90777, 40, 0.0, EVER)]
    result = planted(but(busy=[*busy, (90001, 50, 0.0, EVER)]), first=replace(CLEAN, busy=busy))
    assert reasons(result) == {"gpu_shared"}
    assert result.occupancy.foreign_pids == [90777]


def test_a_temperature_that_moves_is_told(planted: Callable[..., ExperimentResult]) -> None:
    """It is read twice a second, so this window is a little longer."""
    steps = lambda t: replace(CLEAN, temperature_steps=drift(50, 80, start_s=t, seconds=6.0))  # noqa: E731
    result = planted(steps, measurement={"min_duration_seconds": 6.0})
    assert told(result) == {"temperature_drift", "short_window"}
    assert (result.conditions.temperature_change_c or 0.0) > 15


def test_settings_of_the_board_are_told(planted: Callable[..., ExperimentResult]) -> None:
    """Persistence mode is off."""
    gpu = replace(CLEAN, persistence=False)
    assert "persistence_off" in told(planted(lambda _t: gpu, first=gpu))


def test_a_clean_window_is_checked_by_both_power_sensors(planted: Callable[..., ExperimentResult]) -> None:
    """The average field and the sample buffer agree with the counter, and the record says what they cannot see."""
    check = planted(but()).cross_check
    assert check is not None
    assert set(check.ratios) == {"average power", "sample buffer"}
    assert all(r == pytest.approx(1.0, abs=0.01) for r in check.ratios.values())
    assert "gain" in check.cannot_see


def test_calibration_corrects_load_and_idle_alike(
    on_gpu: OnGpu, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """300 W of which 300 W are idle: corrected they are 310 W each, second by second, too; nothing is left, the raw joules stay."""
    machine.play(CLEAN)
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps({A: {"gain": 1.05, "offset_w": -5.0, "a": 0.01}}), encoding="utf-8")
    monkeypatch.setenv("LLEM_CALIBRATION", str(path))
    idle = {"enabled": True, "kind": "bare", "duration_seconds": 5}
    measured = on_gpu(measurement={"min_duration_seconds": 1.0}, baseline=idle)
    result, last = measured.result, measured.series[-1]
    assert last["energy_j"] == pytest.approx(310 * result.duration_s, rel=0.02)
    assert measured.series[0]["power_w"] == pytest.approx(310.0, rel=0.01)
    assert result.energy_uncalibrated_j == pytest.approx(300 * result.duration_s, rel=0.02)
    assert result.energy_total_j == pytest.approx(1.05 * result.energy_uncalibrated_j - 5 * result.duration_s, rel=1e-9)
    assert result.baseline_power_w == pytest.approx(310.0, rel=0.01)
    assert result.energy_adjusted_j == pytest.approx(0.0, abs=0.02 * 310 * result.duration_s)
    assert result.uncertainty.gain_limit == 0.01
    assert result.sensors is not None
    assert (result.sensors[A].gain, result.sensors[A].offset_w) == (1.05, -5.0)
    assert not any("±10 %" in note for note in result.reproducibility_notes)
