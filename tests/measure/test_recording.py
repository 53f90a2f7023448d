"""A recording as JSON says what the sensors said, from the window's start on."""

import json
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest

from llenergymeasure.core.contracts import (
    DeviceEnergy,
    EnergyRecord,
    Occupants,
    PowerSample,
    Reading,
    SensorFacts,
    ThrottleCounters,
)
from llenergymeasure.core.energy_series import EnergySeries, Tick
from llenergymeasure.recording import from_json, to_json

ZERO_S = 1000.0
TICKS = tuple(Tick(ZERO_S + i / 8 - 1.003, ZERO_S + i / 8 - 1, 37.5 * i) for i in range(40))
FULL = EnergyRecord(
    windows={"window": (DeviceEnergy("GPU-a", 300.0, 0.5, None, "quiet", 120.0, 130.0),), "baseline": ()},
    readings=(Reading(ZERO_S, "GPU-a", 0, power_w=300.0), Reading(ZERO_S + 0.5, "GPU-a", 0, temperature_c=50)),
    series={"GPU-a": EnergySeries(TICKS, jitter_s=0.002)},
    samples={"GPU-a": (PowerSample(ZERO_S + 0.25, 299.5),)},
    occupants=(Occupants(ZERO_S, "GPU-a", (1, 2), None, (), 776.0),),
    sensors={"GPU-a": SensorFacts(0.1, 0.002, 0.002, "self-test", 0.012, 0.008, 0.004, 40, 0.02)},
    throttle=(ThrottleCounters(ZERO_S + 1, "GPU-a", sw_power_cap_ns=5),),
    host_energy_j=12.5,
    independent=True,
    warnings=("code: words",),
)


def test_a_recording_comes_back_whole() -> None:
    """Every field of the record survives JSON; instants lose the machine's clock and nothing else."""
    back = from_json(json.loads(json.dumps(to_json(FULL, ZERO_S))))
    again = json.loads(json.dumps(to_json(back, 0.0)))
    assert again == json.loads(json.dumps(to_json(FULL, ZERO_S)))
    assert back.series["GPU-a"].ticks[8].after_s == pytest.approx(0.0)
    assert back.sensors == FULL.sensors
    assert back.occupants == (replace(FULL.occupants[0], t_s=0.0),)
    for f in fields(EnergyRecord):
        assert bool(getattr(back, f.name)) == bool(getattr(FULL, f.name)), f.name


def test_joules_of_a_window_survive() -> None:
    """The energy between two instants is the same before and after, each on its own clock."""
    back = from_json(json.loads(json.dumps(to_json(FULL, ZERO_S))))
    before = FULL.series["GPU-a"].between(ZERO_S + 0.3, ZERO_S + 2.6)
    after = back.series["GPU-a"].between(0.3, 2.6)
    assert after.value == pytest.approx(before.value, rel=1e-6)
    assert after.std_uncertainty == pytest.approx(before.std_uncertainty, rel=1e-3)


def test_a_recording_of_the_first_format_can_be_read() -> None:
    """It lacks the facts of the sensors; everything else is where it was."""
    older = {k: v for k, v in to_json(FULL, ZERO_S).items() if k != "sensors"} | {"format": "llem-recording-1"}
    back = from_json(json.loads(json.dumps(older)))
    assert back.sensors == {}
    assert back.series["GPU-a"].ticks == from_json(to_json(FULL, ZERO_S)).series["GPU-a"].ticks


def test_another_file_is_refused() -> None:
    """What is no recording is named, not guessed at."""
    with pytest.raises(ValueError, match="its format is None, expected llem-recording-1 or llem-recording-2"):
        from_json({"ticks": []})


def test_what_is_no_object_is_refused() -> None:
    """JSON may hold a list, too."""
    with pytest.raises(ValueError, match="its format is None"):
        from_json([])  # type: ignore[arg-type]


def test_facts_of_a_sensor_that_a_newer_version_added_are_left_out() -> None:
    """No joule hangs on them."""
    raw = to_json(FULL, ZERO_S)
    raw["sensors"]["GPU-a"]["colour"] = "green"
    assert from_json(raw).sensors == FULL.sensors


def without(part: str) -> Callable[[dict[str, Any]], object]:
    """A recording that lacks a part."""
    return lambda raw: raw.pop(part)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        pytest.param(without("ticks"), "it lacks 'ticks'", id="no ticks"),
        pytest.param(without("host_energy_j"), "it lacks 'host_energy_j'", id="no host"),
        pytest.param(lambda r: r["ticks"].pop("GPU-a"), "it lacks 'GPU-a'", id="a series without ticks"),
        pytest.param(lambda r: r["ticks"]["GPU-a"].update(scale=[2] * 40), "knows no scale of Tick", id="a column"),
        pytest.param(lambda r: r["series"]["GPU-a"].update(zero_j=1.0), "no zero_j of EnergySeries", id="a fact"),
        pytest.param(lambda r: r["ticks"]["GPU-a"].pop("joules"), "'joules'", id="no joules"),
        pytest.param(lambda r: r["ticks"]["GPU-a"]["joules"].pop(), "columns of Tick differ in length", id="a value"),
        pytest.param(lambda r: r["sensors"]["GPU-a"].pop("call_s"), "'call_s'", id="no cost of a call"),
        pytest.param(lambda r: r.update(samples=[]), "no attribute 'items'", id="a list"),
        pytest.param(lambda r: r.update(warnings=None), "NoneType", id="a null"),
    ],
)
def test_a_recording_that_cannot_be_read_says_why(spoil: Callable[[dict[str, Any]], object], words: str) -> None:
    """Whatever is missing, unknown or of another kind: ValueError, with the part's name."""
    raw = json.loads(json.dumps(to_json(FULL, ZERO_S)))
    spoil(raw)
    with pytest.raises(ValueError, match=f"the recording cannot be read: .*{words}"):
        from_json(raw)
