"""The README's table of what other tools would have said is what the record holds."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECORD = json.loads((ROOT / "benchmarks" / "results" / "gpu_tools_h100.json").read_text(encoding="utf-8"))
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("tool", "field"),
    [
        ("Zeus 0.16", "zeus_j"),
        ("CodeCarbon 3.3, GPU part", "codecarbon_j"),
        ("driver's sample buffer", "sample_buffer_j"),
        ("average power field, every 100 ms", "average_field_j"),
        ("instant power field, every 100 ms", "instant_field_j"),
        ("`nvidia-smi`, average power, every second", "nvidia_smi_1s_j"),
        ("`nvidia-smi`, instant power, every second", "nvidia_smi_instant_1s_j"),
    ],
)
def test_a_row_is_the_tool_s_joules_over_those_of_the_counter(tool: str, field: str) -> None:
    """In per cent, window by window, as llem cut the same windows."""
    windows = RECORD["tools"]["windows"]
    assert [w["load"] for w in windows] == ["steady", "pauses", "steady", "short"]
    off = [f"{100 * (w[field] / w['counter_j'] - 1):+.2f} %".replace("-", "\N{MINUS SIGN}") for w in windows]
    assert f"| {tool} | {' | '.join(off)} |" in README


def test_its_conditions_stand_above_the_table() -> None:
    """Board, driver, date."""
    section = README.partition("## What other tools would have said")[2].partition("\n|")[0]
    for condition in (RECORD["gpu"].removeprefix("NVIDIA "), RECORD["driver"], RECORD["date"]):
        assert condition in section
