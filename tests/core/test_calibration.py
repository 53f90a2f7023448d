"""A calibration file: what it may say, and that load and idle power are corrected alike."""

import json
from typing import Any

import pytest

from llenergymeasure.core import calibration
from llenergymeasure.core.contracts import DeviceEnergy, EnergyRecord, Window
from llenergymeasure.core.energy_series import EnergySeries, Tick
from llenergymeasure.core.errors import ConfigError

A, B = "GPU-a", "GPU-b"
GOOD = {A: {"gain": 1.05, "offset_w": -2.0, "a": 0.01}, B: {"gain": 0.97, "a": 0.02}}
WINDOW = Window("window", 10.0, 30.0)


def read(data: Any) -> calibration.Calibration:
    return calibration.read(json.dumps(data), source="cal.json")


def test_a_file_is_read_by_gpu() -> None:
    """Gain, offset and what the gain may still be off by; the offset may be left out."""
    found = read(GOOD)
    assert (found[A].gain, found[A].offset_w, found[A].a) == (1.05, -2.0, 0.01)
    assert found[B].offset_w == 0.0


BAD = [
    pytest.param("{", "Invalid JSON", id="no JSON"),
    pytest.param("[]", "file", id="a list"),
    pytest.param("{}", "names no GPU", id="empty"),
    pytest.param(json.dumps({"0": GOOD[A]}), "0", id="an index for a UUID"),
    pytest.param(json.dumps({A: {**GOOD[A], "gian": 1.0}}), "gian", id="unknown key"),
    pytest.param(json.dumps({A: {"gain": 1.0}}), f"{A}.a", id="a missing"),
    pytest.param(json.dumps({A: {"gain": 3.0, "a": 0.1}}), f"{A}.gain", id="gain of 3"),
    pytest.param(json.dumps({A: {"gain": 1.0, "a": -0.1}}), f"{A}.a", id="a below 0"),
    pytest.param(json.dumps({A: {"gain": "1", "a": 0.1}}), f"{A}.gain", id="text for a number"),
    pytest.param(f'{{"{A}": {{"gain": 1.0, "a": 0.1, "offset_w": NaN}}}}', f"{A}.offset_w", id="not a number"),
]


@pytest.mark.parametrize(("text", "named"), BAD)
def test_a_file_that_is_none_is_refused_by_name(text: str, named: str) -> None:
    """The message has the file, the key and how it should look."""
    with pytest.raises(ConfigError) as caught:
        calibration.read(text, source="cal.json")
    assert "cal.json" in str(caught.value)
    assert named in str(caught.value)


def test_every_problem_is_told_at_once() -> None:
    """Two bad boards, two problems."""
    with pytest.raises(ConfigError, match=rf"{A}.*{B}"):
        read({A: {"gain": 9, "a": 0.1}, B: {"gain": 9, "a": 0.1}})


def test_joules_and_guards_are_corrected_for_their_time() -> None:
    """1.05 x 4000 J - 2 W x 20 s; uncertainty by the gain alone; powers by both; other boards stay."""
    known = DeviceEnergy(A, 4000.0, 10.0, power_before_w=100.0, power_after_w=110.0, power_before_std_w=0.8)
    parts = (known, DeviceEnergy("GPU-x", 1.0, 0.1))
    idle = (DeviceEnergy(A, 2000.0, 1.0),)
    found = calibration.corrected(EnergyRecord({"window": parts, "baseline": idle}), read(GOOD), WINDOW)
    first, other = found.windows["window"]
    assert (first.joules, first.std_uncertainty_j) == (pytest.approx(4160.0), pytest.approx(10.5))
    assert (first.power_before_w, first.power_after_w) == (pytest.approx(103.0), pytest.approx(113.5))
    assert first.power_before_std_w == pytest.approx(0.84)
    assert other == parts[1]
    assert found.windows["baseline"] == idle  # its power is corrected where it becomes one


def test_what_was_not_measured_stays_so() -> None:
    """Null is not gain times nothing plus an offset."""
    parts = (DeviceEnergy(A, None, None, "gap"),)
    found = calibration.corrected(EnergyRecord({"window": parts}), read(GOOD), WINDOW)
    assert found.windows["window"] == parts


def test_windows_cut_from_corrected_ticks_are_corrected() -> None:
    """300 W read are 313 W: joules of any interval follow."""
    ticks = tuple(Tick(0.1 * i, 0.1 * i + 0.001, 30.0 * i) for i in range(400))
    raw = EnergyRecord({"window": ()}, series={A: EnergySeries(ticks), "GPU-x": EnergySeries(ticks)})
    found = calibration.corrected(raw, read(GOOD), WINDOW).series
    assert found[A].mean_power_w(5.0, 25.0) == pytest.approx(1.05 * 300 - 2)
    assert found["GPU-x"].ticks == ticks


def test_idle_power_is_corrected_alike_so_the_offset_leaves() -> None:
    """Adjusted joules are the gain times the raw ones, whatever the offset."""
    known = read(GOOD)
    idle_w = calibration.corrected_idle_w({A: 80.0, "GPU-x": 70.0}, known)
    assert idle_w == {A: pytest.approx(82.0), "GPU-x": 70.0}
    (load,) = calibration.corrected(EnergyRecord({"window": (DeviceEnergy(A, 4000.0, 1.0),)}), known, WINDOW).windows[
        "window"
    ]
    assert load.joules is not None
    assert load.joules - idle_w[A] * 20 == pytest.approx(1.05 * (4000 - 80 * 20))


def test_the_gain_limit_of_several_boards_is_weighted_by_their_joules() -> None:
    """3000 J at 1 %, 1000 J at 10 % uncalibrated: 3.25 %."""
    known = read({A: GOOD[A]})
    assert calibration.gain_limit({A: 3000.0, B: 1000.0}, known, 0.1) == pytest.approx(0.0325)
    assert calibration.gain_limit({A: 3000.0}, known, 0.1) == pytest.approx(0.01)
    assert calibration.gain_limit({}, known, 0.1) == 0.1
