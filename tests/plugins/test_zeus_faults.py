"""Zeus reads the counter at two instants only: a counter that stands still or goes back must not become joules."""

from dataclasses import replace

import pytest

from fakes.ticks import constant, recorded, without
from llenergymeasure.core.contracts import Device, DeviceEnergy
from llenergymeasure.core.energy_series import EnergySeries
from llenergymeasure.energy.zeus import _device, _Measured

GPU = Device(0, "GPU-a")
GOOD = recorded(constant(300))
START_S, END_S = 3.02, 60.02


def back(series: EnergySeries, by_j: float) -> EnergySeries:
    ticks = (replace(t, joules=t.joules - (by_j if t.t_s > 30 else 0)) for t in series.ticks)
    return replace(series, ticks=tuple(ticks))


def still(series: EnergySeries) -> EnergySeries:
    return replace(series, ticks=tuple(replace(t, joules=0.0) for t in series.ticks))


def zeus(joules: float | None, series: EnergySeries) -> DeviceEnergy:
    return _device(GPU, _Measured({GPU.uuid: joules}, END_S - START_S, START_S, END_S, "loaded"), series)


FAULTS = [
    pytest.param(0.0, still(GOOD), "counter_constant", id="stands still"),
    pytest.param(0.0, EnergySeries(()), "counter_constant", id="stands still, and so we recorded nothing"),
    pytest.param(17100.0 - 500, back(GOOD, 500), "counter_reset", id="goes back a little"),
    pytest.param(17100.0 - 99999, back(GOOD, 99999), "counter_reset", id="goes back to 0"),
    pytest.param(-3.0, EnergySeries(()), "counter_reset", id="goes back, and we recorded nothing"),
    pytest.param(17100.0, without(GOOD, 59.8, 60.3), "sample_gap", id="the machine stalled at the end"),
    pytest.param(None, GOOD, "gave no energy", id="nothing"),
]


@pytest.mark.parametrize(("joules", "series", "reason"), FAULTS)
def test_a_fault_of_the_counter_takes_zeus_joules(joules: float | None, series: EnergySeries, reason: str) -> None:
    """As with `nvml`: no joules, with the reason's code; never 0 J, never less."""
    found = zeus(joules, series)
    assert (found.joules, found.std_uncertainty_j) == (None, None)
    assert reason in (found.reason or "")


@pytest.mark.parametrize("series", [GOOD, EnergySeries(())], ids=["all is well", "our ticks are too few to tell"])
def test_joules_without_a_fault_stand(series: EnergySeries) -> None:
    """What our series merely does not know takes nothing away: u is then that of the usual ticks."""
    found = zeus(17100.0, series)
    assert (found.joules, found.reason) == (17100.0, None)
    assert found.std_uncertainty_j == pytest.approx(17100.0 * 0.1 / (57 * 6**0.5))
