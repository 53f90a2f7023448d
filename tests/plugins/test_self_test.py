"""The self-test finds what the script hides, says it in words, and later runs count on it."""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fakes.nvml_script import Gpu, Machine
from llenergymeasure import self_test, sensor_cache
from llenergymeasure.core import registry
from llenergymeasure.core.energy_series import DEFAULT_JITTER_S
from llenergymeasure.core.step_response import Burst
from llenergymeasure.nvml_sampling import visible_devices
from llenergymeasure.sensor_cache import SelfTest

A = "GPU-aaaaaaaa-1111"


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A self-test of seconds."""
    for name, value in {"IDLE_S": 1.0, "BURSTS": 2, "BURST_S": 0.5, "PAUSE_S": 0.5, "PLATEAUS": 1, "CALLS": 5}.items():
        monkeypatch.setattr(self_test, name, value)
    monkeypatch.setattr(self_test, "PLATEAU_S", 1.5)


def findings(**fields: Any) -> SelfTest:
    return SelfTest(**{
        "gpu_uuid": A, "gpu_name": "H100", "driver": "580.65.06", "tested_at": datetime.now(UTC), "ticks": 100,
        "period_s": 0.1, "jitter_idle_s": 0.0006, "jitter_load_s": 0.002, "reading_width_s": 0.007,
        "call_wall_s": 0.003, "call_wall_p99_s": 0.016, "call_processor_s": 0.004, "lag_s": 0.012,
    } | fields)  # fmt: skip


def test_it_finds_the_scripts_beat_lag_and_cost(machine: Machine, short: None) -> None:
    """Under a load whose power follows it, period, lag and the length of a call are those of the script."""
    gpu = Gpu(uuid=A, power=[(0.0, 120.0)], period_s=0.05, lag_s=0.015,
              slow={"nvmlDeviceGetTotalEnergyConsumption": 0.002})  # fmt: skip
    machine.play(gpu)

    def draw(watts: float) -> float:
        gpu.power.append((time.monotonic(), watts))
        machine.play(gpu)
        return gpu.power[-1][0]

    def load(seconds: float) -> Burst:
        start_s = draw(600.0)
        time.sleep(seconds)
        return Burst(start_s, draw(120.0))

    found = self_test.examine(visible_devices()[0], 0, load=load, idle_s=1.0)
    assert found.period_s == pytest.approx(0.05, rel=0.02)
    assert found.lag_s == pytest.approx(0.015, abs=0.01)
    assert found.lag_steps >= 4
    assert found.call_wall_s == pytest.approx(0.002, abs=0.003)
    assert found.plateau_ratio == pytest.approx(1.0, abs=0.02)
    assert found.jitter_load_s is not None
    assert found.no_load_reason is None


def test_without_a_load_the_rest_is_found_and_said(
    machine: Machine, short: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No CUDA: beat and cost stand, lag and jitter under load are unknown with the reason, and no jitter is kept."""
    machine.play(Gpu(uuid=A))
    monkeypatch.setattr(self_test, "_torch_load", lambda _position: (None, "no load here"))
    text = self_test.run()
    assert "every 50" in text
    assert "unknown: no load here" in text
    assert str(sensor_cache.path()) in text
    kept = sensor_cache.known([A])[A]
    assert (kept.lag_s, kept.jitter_s) == (None, None)


@pytest.mark.parametrize("gpus", [[], [Gpu(mig=True)]], ids=["no GPU", "MIG"])
def test_what_cannot_be_tested_is_a_sentence(gpus: list[Gpu], machine: Machine) -> None:
    """`llem config` never fails."""
    machine.play(*gpus)
    assert self_test.run().startswith("sensor self-test: not possible: ")


def test_a_counter_that_stands_still_is_a_sentence(machine: Machine, short: None) -> None:
    """A constant counter is named instead of a traceback."""
    machine.play(Gpu(constant=True))
    assert "did not move" in self_test.run()


def test_findings_hold_for_their_gpu_and_driver(machine: Machine) -> None:
    """Another driver or another card knows nothing; several are kept side by side."""
    machine.play(Gpu(uuid=A), driver="580.65.06")
    sensor_cache.keep([findings()])
    sensor_cache.keep([findings(gpu_uuid="GPU-other")])
    assert set(sensor_cache.known([A, "GPU-other", "GPU-none"])) == {A, "GPU-other"}
    machine.play(Gpu(uuid=A), driver="590.1")
    assert sensor_cache.known([A]) == {}


def test_a_broken_file_is_as_none(machine: Machine) -> None:
    """The defaults hold; the next self-test writes it anew."""
    machine.play(Gpu(uuid=A))
    target = Path(sensor_cache.path())
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("{", encoding="utf-8")
    assert sensor_cache.known([A]) == {}
    sensor_cache.keep([findings()])
    assert sensor_cache.known([A])[A] == findings(tested_at=sensor_cache.known([A])[A].tested_at)


@pytest.mark.parametrize(
    ("kept", "jitter_s", "source", "lag_s"),
    [
        pytest.param(None, DEFAULT_JITTER_S, "default", None, id="never tested"),
        pytest.param({}, 0.002, "self-test", 0.012, id="tested under load"),
        pytest.param({"jitter_load_s": None, "lag_s": None}, DEFAULT_JITTER_S, "default", None, id="tested idle only"),
    ],
)
def test_a_run_counts_on_the_self_test(
    kept: dict[str, Any] | None, jitter_s: float, source: str, lag_s: float | None, machine: Machine
) -> None:
    """The series of a run has the jitter that was found under load, and says where it comes from."""
    machine.play(Gpu(uuid=A, power=[(0.0, 300.0)]))
    if kept is not None:
        sensor_cache.keep([findings(**kept)])
    energy = registry.energy_source("nvml")
    energy.start(energy.devices(), interval_s=0.1)
    energy.open_window("w")
    time.sleep(0.6)
    energy.close_window("w")
    record = energy.stop()
    facts = record.sensors[A]
    assert record.series[A].jitter_s == jitter_s
    assert (facts.jitter_used_s, facts.jitter_source, facts.lag_s) == (jitter_s, source, lag_s)
    assert facts.period_s == pytest.approx(0.05, rel=0.05)
    assert facts.ticks == len(record.series[A].ticks)
    assert facts.call_s is not None
