"""Exit codes that only a window of some seconds can give."""

import json
import os
from pathlib import Path

import pytest

from cli.process import FAST, Ended, llem, over, write
from fakes.nvml_script import FAKES, Gpu, Machine
from fakes.patience import STARVED, until_sure

STALLED = (*STARVED, "imprecise", "power_drift")


def test_strict_of_a_valid_verdict_is_0(tmp_path: Path) -> None:
    """A window above five seconds with a counter is valid, and --strict agrees; also where it is not for a stall."""
    config = write(tmp_path, {"measurement": {"min_duration_seconds": 5.1}})

    def strict() -> Ended:
        return llem("run", config, "--strict", cwd=tmp_path)

    for ended in until_sure(strict, lambda e: [] if "invalid" not in e.out else [e.out], starved=STALLED):
        assert "valid (synthetic" in ended.out
        assert (ended.code == 0) is ("invalid" not in ended.out)


def test_a_counter_that_stands_still_is_unmeasured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source that was named: the run is not lost, its joules are null with the reason."""
    Machine(tmp_path, monkeypatch).play(Gpu(constant=True))
    variables = {"PYTHONPATH": str(FAKES), "FAKE_NVML": os.environ["FAKE_NVML"]}
    body = over(FAST, {"energy": {"backend": "nvml", "simulated": None}, "warmup": {"thermal_floor_seconds": 0}})

    ended = llem("experiment", cwd=tmp_path, env={"LLEM_EXPERIMENT": json.dumps(body), **variables})

    result = json.loads(ended.out)
    assert ended.code == 0
    assert result["energy_total_j"] is None
    assert "counter_constant" in result["null_reasons"]["energy_total_j"]
    assert result["verdict"]["state"] == "unmeasured"
    assert result["tokens_per_second"] > 0


def test_idle_that_could_not_be_counted_is_null_with_the_reason(tmp_path: Path) -> None:
    """A counter that stands still while idle costs the adjusted energy, not the whole measurement."""
    idle = {"enabled": True, "duration_seconds": 5}
    body = over(FAST, {"baseline": idle, "energy": {"simulated": {"idle_power_w": 0.0, "tick_ms": 10}}})

    ended = llem("experiment", cwd=tmp_path, env={"LLEM_EXPERIMENT": json.dumps(body)})

    result = json.loads(ended.out)
    assert ended.code == 0
    assert result["energy_adjusted_j"] is None
    assert result["null_reasons"]["energy_adjusted_j"]
