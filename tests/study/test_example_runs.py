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
    study = json.loads(done.stdout)
    results = [json.loads((Path(study["directory"]) / f).read_text()) for f in study["result_files"]]
    assert [r["mean_power_w"] for r in results] == pytest.approx([300, 300], rel=1e-2)
