"""Each sensor of a GPU arrives in its unit, by its type and return code, or is None where the driver does not tell."""

import os
import time
from collections.abc import Callable
from typing import Any

import pytest

from fakes.nvml_script import HW_THERMAL, POWER_BRAKE, SW_POWER_CAP, SW_THERMAL, Gpu, Machine
from llenergymeasure.core.contracts import Device
from llenergymeasure.nvml_sampling import nvml
from llenergymeasure.nvml_sensors import Sensors

A = "GPU-aaaaaaaa-1111"
ALWAYS = (0.0, 1e12)
Made = Callable[..., Sensors]


@pytest.fixture
def sensors(machine: Machine) -> Made:
    """The sensors of one scripted GPU."""

    def make(*, driver: str = "580.159.04", **fields: Any) -> Sensors:
        machine.play(Gpu(uuid=A, **fields), driver=driver)
        with nvml() as lib:
            return Sensors(lib, Device(0, A))

    return make


def test_powers_are_average_and_instant(sensors: Made) -> None:
    """Fields 185 and 186 apart: a step half a second ago is half in the one, wholly in the other; W."""
    found = sensors(power=[(0.0, 100.0), (time.monotonic() - 0.5, 500.0)]).reading()
    assert found.power_average_w == pytest.approx(300, rel=0.1)
    assert found.power_instant_w == pytest.approx(500, rel=0.01)
    assert found.power_w == found.power_average_w


def test_without_the_average_field_power_is_the_usage_call(sensors: Made) -> None:
    """Cards without field 185 have nvmlDeviceGetPowerUsage."""
    found = sensors(power=[(0.0, 123.0)], missing_fields=[185]).reading()
    assert (found.power_w, found.power_average_w, found.power_instant_w) == (123.0, None, 123.0)


DRIVERS = [
    pytest.param("580.159.04", id="ids 269 to 271"),
    pytest.param("575.57.08", id="the first with the new ids"),
    pytest.param("570.86.10", id="ids 251 to 253"),
]


@pytest.mark.parametrize("driver", DRIVERS)
def test_throttle_counters_follow_the_driver(driver: str, sensors: Made) -> None:
    """Each cause's nanoseconds come from the ids of this driver, none from another field under the old ids."""
    now_s = time.monotonic()
    reasons = [(now_s - 4, 1e12, SW_POWER_CAP), (now_s - 3, 1e12, SW_THERMAL), (now_s - 2, 1e12, HW_THERMAL)]
    found = sensors(driver=driver, reasons=[*reasons, (now_s - 1, 1e12, POWER_BRAKE)]).throttle()
    seconds = [found.sw_power_cap_ns, found.sw_thermal_ns, found.hw_thermal_ns, found.power_brake_ns]
    assert [n / 1e9 for n in seconds if n is not None] == pytest.approx([4, 3, 2, 1], abs=0.3)


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"missing_fields": [74, 269, 270, 271]}, id="no such fields"),
        pytest.param({"missing": ["nvmlDeviceGetFieldValues"]}, id="no field values at all"),
        pytest.param({"driver": "575.1", "missing_fields": [269, 270, 271, 74]}, id="other fields under the old ids"),
    ],
)
def test_a_counter_that_is_not_there_is_none_not_zero(fields: dict[str, Any], sensors: Made) -> None:
    """A return code other than success gives no number, whatever stands beside it."""
    found = sensors(**fields).throttle()
    assert {found.sw_power_cap_ns, found.sw_thermal_ns, found.hw_thermal_ns, found.power_brake_ns} == {None}


def test_memory_leaves_out_the_drivers_reserve(sensors: Made) -> None:
    """Version 2 tells used from reserved; an older driver's only number has both."""
    with_reserve = {"used_mb": 776, "reserved_mb": 480}
    assert sensors(**with_reserve).occupants().memory_used_mb == 776
    old = sensors(**with_reserve, missing=["nvmlDeviceGetMemoryInfo_v2"])
    assert old.occupants().memory_used_mb == 776 + 480
    assert old.reading().memory_used_mb == 776 + 480


def test_occupants_are_all_who_use_the_gpu(sensors: Made) -> None:
    """Computing, drawing, and by host pid those with utilisation since the last look."""
    found = sensors(
        pids=[os.getpid()],
        foreign_compute=[(77, *ALWAYS)],
        foreign_graphics=[(88, *ALWAYS)],
        busy=[(4711, 30, *ALWAYS), (4712, 0, *ALWAYS)],
        foreign_memory=[(500, *ALWAYS)],
    )
    time.sleep(0.002)
    seen = found.occupants()
    assert (seen.compute_pids, seen.graphics_pids, seen.busy_pids) == ((os.getpid(), 77), (88,), (4711,))
    assert seen.memory_used_mb == 1024 + 500
    assert seen.listed_memory_mb is None  # the script's processes do not tell theirs


def test_nobody_is_an_empty_list_and_an_unknown_list_is_none(sensors: Made) -> None:
    """A driver that finds no sample says not found: nobody. One that cannot tell gives None."""
    assert sensors().occupants().busy_pids == ()
    assert sensors().occupants().compute_pids == ()
    blind = sensors(missing=["nvmlDeviceGetProcessUtilization", "nvmlDeviceGetComputeRunningProcesses"]).occupants()
    assert (blind.busy_pids, blind.compute_pids, blind.graphics_pids) == (None, None, ())


def test_power_samples_are_monotonic_and_come_once(sensors: Made) -> None:
    """The buffer's wall-clock microseconds become CLOCK_MONOTONIC; only what is new since the last look comes."""
    found = sensors(power=[(0.0, 250.0)])
    time.sleep(0.1)
    before = found.power_samples()
    time.sleep(0.1)
    after = found.power_samples()
    now_s = time.monotonic()
    assert 3 <= len(before) <= 8
    assert 3 <= len(after) <= 8
    assert all(now_s - 0.5 < s.t_s <= now_s for s in (*before, *after))
    assert max(s.t_s for s in before) < min(s.t_s for s in after)
    assert {s.power_w for s in (*before, *after)} == {250.0}
    assert sensors(missing=["nvmlDeviceGetSamples"]).power_samples() == []


def test_an_empty_buffer_is_nothing_new(sensors: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """nvidia-ml-py gives an empty list of samples, and raises "success" for an empty list of processes."""
    found = sensors()
    lib = found._lib

    def success(*_arguments: Any) -> Any:
        raise lib.NVMLError(lib.NVML_SUCCESS)

    monkeypatch.setattr(lib, "nvmlDeviceGetSamples", lambda *_arguments: (1, []))
    monkeypatch.setattr(lib, "nvmlDeviceGetProcessUtilization", success)
    assert found.power_samples() == []
    assert found.occupants().busy_pids == ()


def test_a_sensor_that_fails_once_is_none_once(sensors: Made) -> None:
    """An unknown error gives None for that reading and does not end the sensor."""
    begin_s = time.monotonic()
    found = sensors(failing=[("nvmlDeviceGetTemperature", begin_s, begin_s + 0.05)])
    assert found.reading().temperature_c is None
    time.sleep(max(0.0, begin_s + 0.06 - time.monotonic()))
    assert found.reading().temperature_c == 55


def test_what_is_not_supported_is_asked_once(machine: Machine, sensors: Made) -> None:
    """Calls cost time: a sensor that the card lacks is not asked again."""
    found = sensors(missing=["nvmlDeviceGetTemperature"])
    assert found.reading().temperature_c is None
    machine.play(Gpu(uuid=A))
    assert found.reading().temperature_c is None


def test_a_library_without_a_call_has_no_such_sensor(sensors: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older nvidia-ml-py that lacks a function gives None, and no exception."""
    found = sensors()
    monkeypatch.delattr(found._lib, "nvmlDeviceGetProcessUtilization")
    assert found.occupants().busy_pids is None


def test_the_counter_alone_may_raise(sensors: Made) -> None:
    """Joules that cannot be read are an error with NVML's words, never a number."""
    found = sensors(missing=["nvmlDeviceGetTotalEnergyConsumption"])
    with pytest.raises(Exception, match="Not Supported"):
        found.counter_mj()
