"""The worked example of docs/measurement.md is what its record says, computed without llem."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from llenergymeasure import recording
from llenergymeasure.core.energy_series import device_energy

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def example() -> ModuleType:
    """benchmarks/worked_example.py, which is no package."""
    spec = importlib.util.spec_from_file_location("worked_example", ROOT / "benchmarks" / "worked_example.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_figure_of_the_page_follows_from_the_recorded_ticks(example: ModuleType) -> None:
    """Each figure stands in the section as the script prints it."""
    page = (ROOT / "docs" / "measurement.md").read_text(encoding="utf-8")
    section = re.sub(r"\s+", " ", page.partition("\n## A worked example\n")[2].partition("\n## ")[0])
    missing = {name: text for name, text in example.figures().items() if text not in section}
    assert missing == {}


def test_the_example_gives_what_the_run_stored(example: ModuleType) -> None:
    """By hand and by the product on the day of the run: the same joules, uncertainties and ratios.

    A trend in the guards did not count then.
    """
    result, _ = example.load()
    known = example.computed()
    assert known["energy_j"] == pytest.approx(result["energy_total_j"], rel=1e-9)
    assert known["j_per_token"] == pytest.approx(result["energy_per_output_token_j"], rel=1e-9)
    assert known["loaded_idle_w"] == pytest.approx(result["loaded_idle_power_w"], rel=1e-6)
    assert known["edge_without_trend"] == pytest.approx(result["uncertainty"]["edge"], rel=1e-6)
    for part in ("comparison", "absolute"):
        assert known[part] == pytest.approx(result["uncertainty"][part], rel=1e-4)
    assert known["allowance"] == pytest.approx(result["cross_check"]["allowance"], rel=1e-6)
    for sensor, ratio in result["cross_check"]["ratios"].items():
        assert known[sensor] == pytest.approx(ratio, rel=1e-6)


def test_the_example_gives_what_the_product_says_today(example: ModuleType) -> None:
    """The same ticks through the code of this version."""
    _, raw = example.load()
    ((uuid, series),) = recording.from_json(raw).series.items()
    today, known = device_energy(uuid, series, 0.0, raw["window_s"], "quiet"), example.computed()
    assert today.joules == pytest.approx(known["energy_j"], rel=1e-9)
    assert today.std_uncertainty_j == pytest.approx(known["edge"] * known["energy_j"], rel=1e-6)
