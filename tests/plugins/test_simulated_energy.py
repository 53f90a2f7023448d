"""The pretended counter: energy is power times time, to the milliwatt-second that a real counter resolves."""

import time
from typing import Any

import pytest

from llenergymeasure.core import registry
from llenergymeasure.core.errors import MeasurementError

QUANTUM_J = 1e-3  # the counter shows whole millijoules, so each edge is off by less than this


def _record(*windows: tuple[str, float], **settings: Any) -> tuple[Any, dict[str, tuple[float, float]]]:
    source = registry.energy_source("simulated", registry.energy_settings("simulated")(**settings))
    source.start(source.devices(), interval_s=0.02)
    spans = {}
    for name, length_s in windows:
        opened_s = source.open_window(name)
        time.sleep(length_s)
        spans[name] = (opened_s, source.close_window(name, "loaded" if name == "baseline" else "quiet"))
    return source.stop(), spans


@pytest.mark.parametrize(("watts", "tick_ms"), [(300.0, 100), (0.5, 10), (700.0, 7)], ids=["default", "tiny", "odd"])
def test_a_windows_energy_is_power_times_its_length(watts: float, tick_ms: int) -> None:
    """Constant load gives P x T exactly, whatever the phase of the ticks; the waiting around it is idle power."""
    record, spans = _record(("window", 0.31), load_power_w=watts, tick_ms=tick_ms)
    (device,) = record.windows["window"]
    start_s, end_s = spans["window"]
    assert device.joules == pytest.approx(watts * (end_s - start_s), abs=5 * QUANTUM_J)
    assert device.edges == "quiet"
    assert (device.power_before_w, device.power_after_w) == pytest.approx((80.0, 80.0), abs=0.2)


def test_an_idle_window_plays_idle_power() -> None:
    """A window named baseline draws the idle power, the work after it the load power, and neither leaks."""
    record, spans = _record(("baseline", 0.5), ("window", 0.5), load_power_w=300.0, idle_power_w=80.0, tick_ms=10)
    for name, watts in {"baseline": 80.0, "window": 300.0}.items():
        (device,) = record.windows[name]
        start_s, end_s = spans[name]
        assert device.joules == pytest.approx(watts * (end_s - start_s), abs=5 * QUANTUM_J)


def test_readings_show_the_power_of_their_instant() -> None:
    """The sensor's samples carry idle power inside the idle window and load power outside."""
    record, spans = _record(("baseline", 0.2), ("window", 0.2), load_power_w=300.0, idle_power_w=80.0)
    idle = [r.power_w for r in record.readings if spans["baseline"][0] <= r.t_s < spans["baseline"][1]]
    busy = [r.power_w for r in record.readings if spans["window"][0] <= r.t_s < spans["window"][1]]
    assert (set(idle), set(busy)) == ({80.0}, {300.0})


def test_mean_power_is_known_at_once() -> None:
    """Before stopping, the mean power of an interval is the script's."""
    source = registry.energy_source("simulated")
    source.start(source.devices(), interval_s=0.1)
    opened_s = source.open_window("baseline")
    time.sleep(0.1)
    closed_s = source.close_window("baseline")
    assert source.mean_power_w(opened_s, closed_s) == pytest.approx(80.0)
    assert source.mean_power_w(closed_s, closed_s + 1.0) == pytest.approx(80.0)
    working_s = source.open_window("window")
    assert source.mean_power_w(working_s, working_s + 1.0) == pytest.approx(300.0)


def test_no_power_at_all_is_no_energy_rather_than_zero() -> None:
    """A counter that never moves yields None with a reason."""
    record, _ = _record(("window", 0.3), load_power_w=0.0, idle_power_w=0.0)
    (device,) = record.windows["window"]
    assert device.joules is None
    assert "counter_constant" in device.reason


def test_an_unknown_window_cannot_be_closed() -> None:
    """Closing what was never opened is a measurement error."""
    source = registry.energy_source("simulated")
    source.start(source.devices(), interval_s=0.1)
    with pytest.raises(MeasurementError, match="never opened"):
        source.close_window("window")
