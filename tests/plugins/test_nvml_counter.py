"""NVIDIA's energy counter, read from a scripted NVML with known truth: right joules, or none with a reason."""

import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from fakes.nvml_script import HW_THERMAL, SW_POWER_CAP, Gpu, Machine, square_wave
from fakes.patience import until_sure
from llenergymeasure.core import registry
from llenergymeasure.core.config import ExperimentConfig
from llenergymeasure.core.contracts import EnergyRecord
from llenergymeasure.core.energy_series import total
from llenergymeasure.nvml_sampling import NvmlSampler, counter_that_stands_still, visible_devices
from llenergymeasure.preflight import choose_source
from llenergymeasure.user_config import UserConfig

A, B, C = "GPU-aaaaaaaa-1111", "GPU-bbbbbbbb-2222", "GPU-cccccccc-3333"


@pytest.fixture
def source() -> Iterator[Any]:
    """The nvml source; its sampler is stopped whatever happens."""
    made = registry.energy_source("nvml")
    yield made
    made._sampler.stop()
    made._sampler.discard()


def _windows(
    source: Any, *lengths_s: float, interval_s: float = 0.05
) -> tuple[EnergyRecord, list[tuple[float, float]]]:
    source.start(source.devices(), interval_s=interval_s)
    spans = []
    for number, length_s in enumerate(lengths_s):
        opened_s = source.open_window(str(number))
        time.sleep(length_s)
        spans.append((opened_s, source.close_window(str(number))))
    return source.stop(), spans


def _sure(*lengths_s: float) -> Iterator[tuple[EnergyRecord, list[tuple[float, float]]]]:
    """Recordings by sources of their own, until all windows of one have joules."""

    def recorded() -> tuple[EnergyRecord, list[tuple[float, float]]]:
        source: Any = registry.energy_source("nvml")
        try:
            return _windows(source, *lengths_s)
        finally:
            source._sampler.stop()
            source._sampler.discard()

    return until_sure(recorded, lambda found: [d.reason for parts in found[0].windows.values() for d in parts])


@pytest.mark.parametrize(
    ("power", "lag_s"),
    [
        pytest.param([(0.0, 300.0)], 0.0, id="constant"),
        pytest.param([(0.0, 75.0)], 0.004, id="idle, with a small lag"),
        pytest.param("square", 0.0, id="square wave"),
    ],
)
def test_a_windows_energy_is_the_scripts_truth(power: Any, lag_s: float, machine: Machine) -> None:
    """Joules agree with the integral of the scripted power within four stated standard uncertainties."""
    steps = square_wave(120.0, 620.0, half_period_s=0.13, seconds=60) if power == "square" else power
    gpu = Gpu(uuid=A, power=steps, lag_s=lag_s)
    machine.play(gpu)
    for record, spans in _sure(1.7, 1.6):
        for number, (start_s, end_s) in enumerate(spans):
            (device,) = record.windows[str(number)]
            assert device.gpu_uuid == A
            if device.joules is not None:
                assert device.joules == pytest.approx(gpu.joules(start_s, end_s), abs=4 * device.std_uncertainty_j)
                assert 0 < device.std_uncertainty_j <= 0.02 * device.joules


def test_the_counters_gain_is_one(machine: Machine, source: Any) -> None:
    """Over the whole recording, where edges hardly matter, joules per second are the script's watts within 1 %."""
    machine.play(Gpu(uuid=A, power=[(0.0, 400.0)]))
    record, _ = _windows(source, 2.5)
    first, *_, last = record.series[A].ticks
    assert (last.joules - first.joules) / (last.t_s - first.t_s) == pytest.approx(400.0, rel=0.01)


def test_each_gpu_has_its_own_joules(machine: Machine) -> None:
    """Two boards with different power, tick period and phase are told apart by UUID, and their sum is the total."""
    gpus = [
        Gpu(uuid=A, power=[(0.0, 100.0)], period_s=0.02, phase_s=0.0),
        Gpu(uuid=B, power=[(0.0, 500.0)], period_s=0.03, phase_s=0.011),
    ]
    machine.play(*gpus)
    for record, ((start_s, end_s),) in _sure(0.9):
        assert {r.gpu_uuid: r.gpu_index for r in record.readings} == {A: 0, B: 1}
        truth = {g.uuid: g.joules(start_s, end_s) for g in gpus}
        joules = {d.gpu_uuid: d.joules for d in record.windows["0"]}
        known = {u: j for u, j in joules.items() if j is not None}
        assert known == pytest.approx({u: truth[u] for u in known}, rel=0.03)
        assert total(record.windows["0"]).value == (
            pytest.approx(sum(known.values())) if known.keys() == {A, B} else None
        )


@pytest.mark.parametrize(
    ("visible", "uuids"),
    [
        pytest.param(None, [A, B, C], id="unset: all"),
        pytest.param("1", [B], id="one index"),
        pytest.param("2,0", [C, A], id="order kept"),
        pytest.param(B, [B], id="UUID"),
        pytest.param("GPU-cccc", [C], id="UUID prefix"),
        pytest.param("", [], id="empty: none"),
        pytest.param("-1", [], id="minus one: none"),
        pytest.param("1,9,0", [B], id="ends at the first unknown"),
    ],
)
def test_only_visible_gpus_are_this_runs(
    visible: str | None, uuids: list[str], machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA_VISIBLE_DEVICES is read as CUDA reads it."""
    machine.play(Gpu(uuid=A), Gpu(uuid=B), Gpu(uuid=C))
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [d.uuid for d in visible_devices()] == uuids
    assert [d.index for d in visible_devices()] == [[A, B, C].index(u) for u in uuids]


def test_a_hidden_gpu_is_not_recorded(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the visible board's counter enters the energy."""
    machine.play(Gpu(uuid=A, power=[(0.0, 700.0)]), Gpu(uuid=B, power=[(0.0, 100.0)]))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    for record, ((start_s, end_s),) in _sure(0.6):
        (device,) = record.windows["0"]
        assert device.gpu_uuid == B
        assert device.joules is None or device.joules == pytest.approx(100.0 * (end_s - start_s), rel=0.05)


def test_a_counter_that_never_moves_costs_the_joules_not_the_run(machine: Machine, source: Any) -> None:
    """A constant counter gives no joules and the reason, never 0 J; other sensors are recorded all the same."""
    machine.play(Gpu(constant=True))
    record, _ = _windows(source, 0.2)
    (device,) = record.windows["0"]
    assert (device.joules, device.std_uncertainty_j) == (None, None)
    assert (device.reason or "").startswith("counter_constant")
    assert record.readings


def test_which_counter_stands_still_is_told(machine: Machine) -> None:
    """By UUID and before anything is recorded; counters that move are seen to within a tick."""
    machine.play(Gpu(uuid=A), Gpu(uuid=B, constant=True))
    assert B in counter_that_stands_still()
    machine.play(Gpu(uuid=A), Gpu(uuid=B, power=[(0.0, 70.0)]))
    assert counter_that_stands_still() == ""


def test_auto_takes_no_counter_that_stands_still(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """It falls back to what it would take without one, and says why where that is nothing."""
    machine.play(Gpu(uuid=A, constant=True))
    monkeypatch.setattr(registry, "energy_auto_order", lambda: ("nvml",))
    config = ExperimentConfig(
        model="pretended", backend="synthetic", n=3, dataset={"synthetic": {"input_len": 8, "output_len": 4}}
    )
    chosen = choose_source(config, UserConfig())
    assert chosen.source is None
    assert f"nvml: counter_constant: the energy counter of {A} did not move" in chosen.reason
    machine.play(Gpu(uuid=A))
    assert choose_source(config, UserConfig()).source is not None


def test_a_driver_that_starts_slowly_is_waited_for(machine: Machine, source: Any) -> None:
    """Without persistence mode the first calls take seconds: that is no counter that stands still."""
    machine.play(Gpu(slow={"nvmlDeviceGetTemperature": 4.0}, missing=["nvmlDeviceGetTemperature"]))
    source.start(source.devices(), interval_s=60.0)
    assert source.guard_s() == 1.0


def test_a_counter_that_stops_gives_none_with_a_reason(machine: Machine, source: Any) -> None:
    """A board whose power vanishes yields no joules for that window, with the reason in words."""
    gpu = Gpu(power=[(0.0, 300.0)])
    machine.play(gpu)
    source.start(source.devices(), interval_s=0.1)
    time.sleep(0.3)  # some ticks of a counter that moves
    machine.draw(gpu, 0.0)
    time.sleep(0.1)
    source.open_window("dead")
    time.sleep(0.2)
    source.close_window("dead")
    (device,) = source.stop().windows["dead"]
    assert device.joules is None
    assert device.reason


def test_a_counter_that_goes_back_gives_counter_reset(machine: Machine, source: Any) -> None:
    """A reset in the window makes its energy unknown, and the code says why."""
    gpu = Gpu()
    machine.play(gpu)
    source.start(source.devices(), interval_s=0.05)
    source.open_window("broken")
    time.sleep(0.2)
    gpu.reset_at_s = time.monotonic() + 0.2
    machine.play(gpu)
    time.sleep(0.6)
    source.close_window("broken")
    (device,) = source.stop().windows["broken"]
    assert device.joules is None
    assert device.reason.startswith("counter_reset")


def test_a_window_too_short_for_the_counter_gives_none(machine: Machine, source: Any) -> None:
    """Where the edges alone exceed 2 % there is no number, rather than a bad one."""
    machine.play(Gpu(period_s=0.1))
    record, _ = _windows(source, 0.12)
    (device,) = record.windows["0"]
    assert device.joules is None
    assert "window_too_short: " in device.reason


@pytest.mark.parametrize(
    ("gpus", "text"),
    [
        pytest.param([], "no NVIDIA GPU", id="no GPU"),
        pytest.param([Gpu(mig=True)], "MIG", id="MIG"),
        pytest.param([Gpu(), Gpu(uuid=B, mig=True)], B, id="one of two in MIG"),
        pytest.param([Gpu(missing=["nvmlDeviceGetTotalEnergyConsumption"])], "cannot be read", id="no counter"),
    ],
)
def test_without_a_counter_of_its_own_the_source_is_unavailable(
    gpus: list[Gpu], text: str, machine: Machine, source: Any
) -> None:
    """Each board that cannot be measured is a reason with a fix."""
    machine.play(*gpus)
    found = source.availability()
    assert not found.ok
    assert text in found.reason
    assert found.fix


def test_without_a_driver_there_is_no_device(machine: Machine, source: Any) -> None:
    """A machine without NVML has no devices and no exception."""
    assert source.devices() == ()
    assert not source.availability().ok


@pytest.mark.parametrize(
    ("call", "column"),
    [
        ("nvmlDeviceGetPowerUsage", "power_w"),
        ("nvmlDeviceGetTemperature", "temperature_c"),
        ("nvmlDeviceGetMemoryInfo", "memory_used_mb"),
        ("nvmlDeviceGetUtilizationRates", "sm_utilisation_pct"),
        ("nvmlDeviceGetClockInfo", "sm_clock_mhz"),
        ("nvmlDeviceGetCurrentClocksEventReasons", "throttle_reasons"),
    ],
    ids=lambda v: v,
)
def test_a_missing_sensor_is_none_and_costs_nothing_else(call: str, column: str, machine: Machine, source: Any) -> None:
    """A card without one sensor keeps the others and its energy; the missing value is None, not 0."""
    machine.play(Gpu(missing=[call], missing_fields=[185] if column == "power_w" else []))
    record, _ = _windows(source, 1.2)
    values = {name: {getattr(r, name) for r in record.readings} for name in vars(record.readings[0])}
    assert values[column] == {None}
    others = {"power_w", "temperature_c", "memory_total_mb", "sm_utilisation_pct", "sm_clock_mhz", "throttle_reasons"}
    assert all(values[o] - {None} for o in others - {column, "memory_total_mb"})
    assert record.windows["0"][0].joules is not None


def test_readings_carry_what_the_sensors_say(machine: Machine, source: Any) -> None:
    """Watts, degrees, mebibytes, per cent, megahertz and event bits arrive in their units."""
    gpu = Gpu(uuid=A, power=[(0.0, 431.0)], temperature_c=63, used_mb=2048, utilisation_pct=88)
    gpu.reasons = [(0.0, 1e12, SW_POWER_CAP | HW_THERMAL)]
    machine.play(gpu)
    record, _ = _windows(source, 0.7)
    reading = [r for r in record.readings if r.temperature_c is not None][-1]
    assert (reading.power_w, reading.temperature_c, reading.sm_utilisation_pct) == (431.0, 63, 88)
    assert (reading.memory_used_mb, reading.memory_total_mb) == (2048.0, 81559.0)
    assert (reading.sm_clock_mhz, reading.mem_clock_mhz) == (1755, 2619)
    assert reading.throttle_reasons == SW_POWER_CAP | HW_THERMAL


def test_mean_power_is_known_while_recording(machine: Machine, source: Any) -> None:
    """Settling looks at the power of the seconds before now; without ticks there it is None."""
    machine.play(Gpu(power=[(0.0, 250.0)]))
    source.start(source.devices(), interval_s=0.1)
    start_s = time.monotonic()
    time.sleep(0.7)
    now_s = time.monotonic()
    assert source.mean_power_w(start_s, now_s - 0.1) == pytest.approx(250.0, rel=0.02)
    assert source.mean_power_w(now_s + 100, now_s + 200) is None


def test_a_long_windows_inside_is_recorded_sparsely_and_its_edges_wholly(machine: Machine, source: Any) -> None:
    """Inside the main window one tick a second is enough; joules, guards and what comes after lose nothing."""
    machine.play(Gpu(uuid=A, power=[(0.0, 300.0)]))
    source.start(source.devices(), interval_s=0.1)
    guard_s = source.guard_s()
    time.sleep(guard_s)
    start_s = source.open_window("window")
    time.sleep(3.3)
    end_s = source.close_window("window", "quiet")
    time.sleep(guard_s)
    record = source.stop()
    series, (device,) = record.series[A], record.windows["window"]
    assert device.edges == "quiet"
    assert device.joules == pytest.approx(300.0 * (end_s - start_s), abs=4 * device.std_uncertainty_j)
    assert (device.power_before_w, device.power_after_w) == pytest.approx((300, 300), rel=0.1)
    inside = [t for t in series.ticks if start_s + 1 < t.t_s < end_s]
    assert 1 <= len(inside) <= 8  # of 46
    assert max(t.skipped for t in inside) >= 15
    assert series.interior_gap_ticks(start_s, end_s) <= 1
    assert guard_s == 1.0
    assert record.sensors[A].sampler_processor_share is not None
    assert 0 < record.sensors[A].sampler_processor_share < 1


def test_attending_to_an_edge_records_every_tick_again(machine: Machine, source: Any) -> None:
    """A loaded end of a long window has all its ticks if someone said in time that it comes."""
    machine.play(Gpu(uuid=A, power=[(0.0, 300.0)], period_s=0.1))
    source.start(source.devices(), interval_s=0.1)
    start_s = source.open_window("window")
    time.sleep(2.5)
    source.attend()
    time.sleep(0.9)
    end_s = source.close_window("window", "loaded")
    (device,) = source.stop().windows["window"]
    assert device.reason is None
    assert device.joules == pytest.approx(300.0 * (end_s - start_s), abs=4 * device.std_uncertainty_j)


def test_the_record_has_all_that_the_driver_tells(machine: Machine, source: Any) -> None:
    """Power buffer, occupants, throttle counters and facts of the sensor come with the joules, by device."""
    machine.play(Gpu(uuid=A, pids=[77]), Gpu(uuid=B))
    record, _ = _windows(source, 1.5)
    assert {o.gpu_uuid for o in record.occupants} == {t.gpu_uuid for t in record.throttle} == {A, B}
    assert {o.compute_pids for o in record.occupants if o.gpu_uuid == A} == {(77,)}
    samples = record.samples[A]
    assert len(samples) >= 50
    assert all(a.t_s < b.t_s for a, b in pairwise(samples))
    assert set(record.sensors) == {A, B}
    assert record.sensors[A].sampler_processor_share is None  # there was no main window


def test_a_recorded_counter_plays_back(machine: Machine) -> None:
    """A trace of (seconds, mJ) is a counter like any other: its joules come out, whatever its beat."""
    now_s = time.monotonic()
    trace = [(0.1 * i, 25_000.0 * i) for i in range(300)]  # 250 W
    machine.play(Gpu(uuid=A, origin_s=now_s, trace=trace))
    for record, ((start_s, end_s),) in _sure(1.0):
        (device,) = record.windows["0"]
        if device.joules is not None:
            assert device.joules == pytest.approx(250.0 * (end_s - start_s), abs=4 * device.std_uncertainty_j)


def test_ticks_are_found_near_their_moment(machine: Machine) -> None:
    """Between the last old and the first new value the sampler looks away for less than half a period."""
    machine.play(Gpu(period_s=0.1, phase_s=0.0))
    sampler = NvmlSampler()
    sampler.start(visible_devices(), interval_s=0.1)
    time.sleep(1.6)
    series = sampler.series(visible_devices()[0].uuid)
    sampler.stop()
    sampler.discard()
    assert series.period_s == pytest.approx(0.1, rel=0.1)
    widths = sorted(t.after_s - t.before_s for t in series.ticks[8:])
    assert widths[len(widths) // 2] < 0.05
