"""The self-test finds what the script hides, says it in words, and later runs count on it."""

import json
import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fakes.nvml_script import Gpu, Machine
from llenergymeasure import self_test, sensor_cache
from llenergymeasure.core import registry
from llenergymeasure.core.energy_series import DEFAULT_JITTER_S, Jitter
from llenergymeasure.core.step_response import Burst, Lag
from llenergymeasure.nvml_sampling import visible_devices
from llenergymeasure.sensor_cache import SelfTest

A = "GPU-aaaaaaaa-1111"


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A self-test of seconds."""
    seconds = {"IDLE_S": 1.0, "BURST_S": 0.8, "PAUSE_S": 0.65, "PLATEAU_S": 1.5}
    for name, value in {**seconds, "BURSTS": 10, "PLATEAUS": 1, "CALLS": 5}.items():
        monkeypatch.setattr(self_test, name, value)


def findings(**fields: Any) -> SelfTest:
    return SelfTest(**{
        "format": 2, "gpu_uuid": A, "gpu_name": "H100", "driver": "580.65.06", "tested_at": datetime.now(UTC), "ticks": 100,
        "period_s": 0.1, "jitter_idle": Jitter(0.0006, True), "jitter_load": Jitter(0.002), "reading_width_s": 0.007,
        "call_wall_s": 0.003, "call_wall_p99_s": 0.016, "call_processor_s": 0.004, "lag": Lag(0.013, 0.001, 14),
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
    assert found.lag.reason is None
    assert found.lag.lag_s == pytest.approx(0.015, abs=0.005)
    assert found.lag.ends >= 6
    assert found.call_wall_s == pytest.approx(0.002, abs=0.003)
    assert found.plateau_ratio == pytest.approx(1.0, abs=0.02)
    assert found.jitter_load is not None
    assert found.jitter_s is not None
    assert found.jitter_s > 0


def test_without_a_load_the_rest_is_found_and_said(
    machine: Machine, short: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No CUDA: beat and cost stand, lag and jitter under load are unknown with the reason, and no jitter is kept."""
    machine.play(Gpu(uuid=A))
    monkeypatch.setattr(self_test, "_torch_load", lambda _position: (None, "no load here"))
    text = self_test.run()
    assert re.search(r"every (49\.[5-9]|50\.[0-4]) ms", text)
    assert "unknown: no load here;\n    runs count on 12.0 ms" in text
    assert "an unknown time under load" in text
    assert str(sensor_cache.path()) in text
    kept = sensor_cache.known([A])[A]
    assert (kept.lag, kept.jitter_s) == (Lag(None, None, 0, "no load here"), None)


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


def test_what_is_said_of_jitter_and_lag() -> None:
    """A jitter that the readings hide is less than its limit; a lag comes with its uncertainty, or with a reason."""
    text = "\n".join(self_test._lines(findings()))
    assert "scatters by less than 0.6 ms idle, 2.0 ms under load" in text
    assert "shows the end of a load 13.0 ms late (standard uncertainty 1.0 ms, from 14 ends)" in text
    assert "unknown" not in text
    vague = findings(lag=Lag(None, 0.007, 14, "its standard uncertainty is 7.0 ms, above 4 ms"))
    assert "unknown: its standard uncertainty is 7.0 ms, above 4 ms;\n    runs count on 12.0 ms" in "\n".join(
        self_test._lines(vague)
    )


def test_a_row_of_the_first_format_is_not_believed(machine: Machine) -> None:
    """A jitter of 0 and a lag of 2 ms, as they were found on an H100 and kept, are none; a new self-test replaces them."""
    machine.play(Gpu(uuid=A))
    target = sensor_cache.keep([findings()])
    rows = json.loads(target.read_text(encoding="utf-8"))
    for row in rows.values():
        del row["format"]
        row |= {"jitter_idle_s": 0.0, "jitter_load_s": 0.0, "lag_s": 0.002, "lag_spread_s": 0.0267, "lag_steps": 16}
    target.write_text(json.dumps(rows), encoding="utf-8")
    assert sensor_cache.known([A]) == {}
    sensor_cache.keep([findings()])
    assert sensor_cache.known([A])[A].jitter_s == 0.002


NO_LOAD = {"jitter_load": None, "lag": Lag(None, None, 0, "no load here")}


@pytest.mark.parametrize(
    ("kept", "jitter_s", "source", "lag"),
    [
        pytest.param(None, DEFAULT_JITTER_S, "default", (None, "no self-test"), id="never tested"),
        pytest.param({}, 0.002, "self-test", (0.013, None), id="tested under load"),
        pytest.param(NO_LOAD, DEFAULT_JITTER_S, "default", (None, "no load here"), id="tested idle only"),
    ],
)
def test_a_run_counts_on_the_self_test(
    kept: dict[str, Any] | None, jitter_s: float, source: str, lag: tuple[float | None, str | None], machine: Machine
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
    assert (facts.jitter_used_s, facts.jitter_source, facts.lag_s) == (jitter_s, source, lag[0])
    assert (facts.lag_reason or "").startswith(lag[1] or "")
    assert (facts.lag_reason is None) == (lag[1] is None)
    assert facts.period_s == pytest.approx(0.05, rel=0.05)
    assert facts.ticks == len(record.series[A].ticks)
    assert facts.call_s is not None
