"""Recordings of runs on an H100 give today what they gave when they were made."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from llenergymeasure.core.contracts import Window
from llenergymeasure.core.cross_check import cross_check
from llenergymeasure.core.energy_series import device_energy
from llenergymeasure.recording import from_json

TRACES = Path(__file__).resolve().parents[1] / "golden" / "traces"


@pytest.mark.parametrize("name", ["h100_batch1", "h100_batch8"])
def test_a_recorded_run_is_judged_as_before(name: str) -> None:
    """Joules, their uncertainty, the waiting power and the second readings come out of the recorded ticks again."""
    trace: dict[str, Any] = json.loads(gzip.decompress((TRACES / f"{name}.json.gz").read_bytes()))
    found, result = from_json(trace["recording"]), trace["result"]
    end_s = trace["recording"]["window_s"]
    ((uuid, series),) = found.series.items()
    energy = device_energy(uuid, series, 0.0, end_s, "quiet")
    assert energy.edges == "quiet"
    assert energy.joules == pytest.approx(result["energy_total_j"], rel=1e-5)
    assert energy.std_uncertainty_j == pytest.approx(result["uncertainty"]["edge"] * result["energy_total_j"], rel=0.01)
    assert energy.power_before_w == pytest.approx(result["loaded_idle_power_w"], rel=1e-3)
    checked = cross_check(found, Window("window", 0.0, end_s), energy.joules, "quiet")
    assert checked is not None
    assert checked.ratios == pytest.approx(result["cross_check"]["ratios"], abs=2e-4)
