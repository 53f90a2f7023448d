"""The example that needs no model runs, cut short."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cli.process import environment

ROOT = Path(__file__).resolve().parents[2]


def test_simulated_example_runs(tmp_path: Path) -> None:
    """The example without a model runs here (cut short) and measures the power that it pretends."""
    path = ROOT / "examples" / "simulated.yaml"
    quick = ["--set", "baseline.enabled=false", "--set", "measurement.min_duration_seconds=0.3", "--cycles", "1"]

    done = subprocess.run(
        [sys.executable, "-m", "llenergymeasure.cli", "run", str(path), *quick, "-o", str(tmp_path), "--json"],
        cwd=ROOT, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    powers = [e["statistics"]["mean_power_w"]["mean"] for e in json.loads(done.stdout)["experiments"]]
    assert powers == pytest.approx([300, 300], rel=1e-2)
