"""Exit codes that only a window of some seconds can give."""

import json
from pathlib import Path

from cli.process import FAST, llem, over, write


def test_strict_of_a_valid_verdict_is_0(tmp_path: Path) -> None:
    """A window above five seconds with a counter is valid, and --strict agrees."""
    ended = llem("run", write(tmp_path, {"measurement": {"min_duration_seconds": 5.1}}), "--strict", cwd=tmp_path)

    assert "valid (synthetic" in ended.out
    assert "invalid" not in ended.out
    assert ended.code == 0


def test_failed_sensor_is_15(tmp_path: Path) -> None:
    """A baseline too short for the counter's pace is a failed measurement: no number, exit 15, phase and reason."""
    body = over(
        FAST,
        {"baseline": {"enabled": True, "duration_seconds": 5}, "energy": {"simulated": {"tick_ms": 1000}}},
    )

    ended = llem("experiment", cwd=tmp_path, env={"LLEM_EXPERIMENT": json.dumps(body)})

    said = json.loads(ended.err.splitlines()[-1])
    assert ended.code == said["exit_code"] == 15
    assert (said["event"], said["type"], said["phase"]) == ("error", "MeasurementError", "drain")
    assert "edge uncertainty" in said["message"]
    assert ended.out == ""
