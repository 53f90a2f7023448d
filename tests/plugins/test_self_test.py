"""The self-test finds what the script hides, says it in words, and later runs count on it."""

import json
import re
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fakes import tick_generator as made
from fakes.nvml_script import AHEAD_S, Gpu, Machine
from fakes.patience import until_sure
from llenergymeasure import self_test, sensor_cache
from llenergymeasure.core import registry
from llenergymeasure.core.contracts import EnergyRecord
from llenergymeasure.core.energy_series import DEFAULT_JITTER_S, EnergySeries, Tick
from llenergymeasure.core.step_response import Burst, Lag, lag, plateau_ratio
from llenergymeasure.core.tick_times import Jitter
from llenergymeasure.nvml_sampling import visible_devices
from llenergymeasure.sensor_cache import SelfTest

A = "GPU-aaaaaaaa-1111"
OLDER = "the self-test is of an older format; run `llem config --self-test` again"


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A self-test of seconds: bursts and pauses are no longer than the counter's ticks need."""
    seconds = {"IDLE_S": 1.0, "BURST_S": 0.1, "PAUSE_S": 0.1, "PLATEAU_S": 1.5}
    for name, value in {**seconds, "BURSTS": 10, "PLATEAUS": 1, "CALLS": 5}.items():
        monkeypatch.setattr(self_test, name, value)


def findings(**fields: Any) -> SelfTest:
    return SelfTest(**{
        "format": 2, "gpu_uuid": A, "gpu_name": "H100", "driver": "580.65.06", "tested_at": datetime.now(UTC), "ticks": 100,
        "period_s": 0.1, "jitter_idle": Jitter(0.0006, True), "jitter_load": Jitter(0.002), "reading_width_s": 0.007,
        "call_wall_s": 0.003, "call_wall_p99_s": 0.016, "call_processor_s": 0.004, "lag": Lag(0.013, 0.001, 14),
    } | fields)  # fmt: skip


def known(uuid: str) -> SelfTest:
    """What is known of a GPU that was tested."""
    found = sensor_cache.known([uuid])[uuid]
    assert isinstance(found, SelfTest)
    return found


def recorded() -> EnergyRecord:
    """A short run on the scripted GPU."""
    energy = registry.energy_source("nvml")
    energy.start(energy.devices(), interval_s=0.1)
    energy.open_window("w")
    time.sleep(0.6)
    energy.close_window("w")
    return energy.stop()


def test_it_finds_the_scripts_beat_lag_and_cost(machine: Machine, short: None) -> None:
    """Under a load whose power follows it, period, lag and the length of a call are those of the script."""
    gpu = Gpu(uuid=A, power=[(0.0, 120.0)], period_s=0.05, lag_s=0.015,
              slow={"nvmlDeviceGetTotalEnergyConsumption": 0.002})  # fmt: skip
    machine.play(gpu)

    def load(seconds: float) -> Burst:
        start_s = machine.draw(gpu, 600.0)
        time.sleep(seconds)
        return Burst(start_s, machine.draw(gpu, 120.0))

    def examined() -> SelfTest:
        return self_test.examine(visible_devices()[0], 0, load=load, idle_s=1.0)

    # a starved sampler reads too slowly to tell the ends of load
    for found in until_sure(examined, lambda f: [f.lag.reason], starved=("ends of load", "standard uncertainty")):
        assert found.period_s == pytest.approx(0.05, rel=0.02)
        assert found.call_wall_s == pytest.approx(0.002, abs=0.003)
        if found.plateau_ratio is not None:
            assert found.plateau_ratio == pytest.approx(1.0, abs=0.02)
        if found.lag.reason is None:
            assert found.lag.lag_s == pytest.approx(0.015, abs=0.005)
            assert found.lag.ends >= 6
    assert found.plateau_ratio is not None
    assert found.jitter_load is not None
    assert found.jitter_s is not None
    assert found.jitter_s > 0


class MadeUpTime:
    """A GPU in a time of its own: its power swings for so long after each start, then it is level."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, period_s: float, level_after_s: float = 0.0) -> None:
        self.now_s, self.period_s, self.level_after_s = 10.0, period_s, level_after_s
        self.work: list[made.Piece | made.Ripple] = []
        monkeypatch.setattr(time, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now_s += seconds

    def load(self, seconds: float) -> Burst:
        """Draw 500 W instead of 120 W."""
        start_s = self.now_s
        self.sleep(seconds)
        swings_s = min(self.level_after_s, seconds)
        self.work += [
            made.Piece(start_s, self.now_s, 380, 380),
            made.Ripple(start_s, start_s + swings_s, 250 if swings_s else 0, 3.3 * self.period_s),
        ]
        return Burst(start_s, self.now_s)

    def series(self) -> EnergySeries:
        """The ticks until now, 12 ms late."""
        power = [made.Piece(0, self.now_s, 120, 120), *self.work]
        ticks = made.record(power, made.Counter(self.period_s, 0.3, 0.012), 1, self.now_s)
        return EnergySeries(tuple(Tick(*row) for row in ticks))

    def loads(self) -> tuple[tuple[Burst, ...], tuple[Burst, ...]]:
        """What the self-test makes of it."""
        return self_test._loads(self.load, self_test._Pace.of(self.period_s), self.series)


@pytest.mark.parametrize("period_s", [0.02, 0.1, 0.2, 0.5, 1.0])
def test_bursts_and_pauses_last_as_long_as_the_ticks_need(period_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every end of load tells the lag, and plateaus have quiet edges, at any period; in at most five minutes."""
    gpu = MadeUpTime(monkeypatch, period_s)
    loads, plateaus = gpu.loads()
    series = gpu.series()

    found = lag(series, loads)
    assert found.lag_s == pytest.approx(0.012, abs=1e-6)
    assert (found.ends, found.reason) == (14, None)
    assert plateau_ratio(series, plateaus) == pytest.approx(1.0, abs=1e-3)
    under_load = self_test._under_load(self_test._Heard(series, series, loads, plateaus, None))
    assert under_load.measured_jitter is not None
    assert gpu.now_s < 300


def test_longer_bursts_follow_where_power_is_not_level_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that needs a second to be level tells its lag in the second round: no third one is made."""
    gpu = MadeUpTime(monkeypatch, 0.1, level_after_s=1.0)
    loads, _ = gpu.loads()
    found = lag(gpu.series(), loads)
    assert found.lag_s == pytest.approx(0.012, abs=1e-6)
    assert found.ends == 14
    assert found.tried == "12 of 1.2 s, 2 of 6.0 s, 12 of 2.4 s"
    assert found.left_out == "12 after power that was not level"
    assert loads == tuple(sorted(loads, key=lambda b: b.start_s))


@pytest.mark.parametrize(("period_s", "minutes"), [(0.1, 3), (0.5, 7), (1.0, 12.5)])
def test_after_the_last_round_the_lag_stays_unknown(
    period_s: float, minutes: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU that is never level: three rounds, every end counted with its reason, in the time that is documented."""
    gpu = MadeUpTime(monkeypatch, period_s, level_after_s=1000)
    loads, _ = gpu.loads()
    found = lag(gpu.series(), loads)
    assert found.reason == (
        "ends of load that agree: 0 of 38, at least 6 are needed; left out: 38 after power that was not level"
    )
    assert gpu.now_s + 2 < 60 * minutes  # it began at 10 s, as long as the GPU idles; 2 s start the recording


def restless(machine: Machine, gpu: Gpu, seconds: float, level_after_s: float) -> Burst:
    """A load whose power jumps between 200 and 800 W at first, then is 600 W."""
    start_s = time.monotonic() + AHEAD_S
    jumps_s = min(level_after_s, seconds)
    gpu.power += [(start_s + 0.05 * i, (800.0, 200.0)[i % 2]) for i in range(round(jumps_s / 0.05))]
    if level_after_s < seconds:
        gpu.power.append((start_s + level_after_s, 600.0))
    machine.play(gpu)
    time.sleep(start_s + seconds - time.monotonic())
    return Burst(start_s, machine.draw(gpu, 120.0))


@pytest.fixture
def restless_gpu(machine: Machine, short: None, monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """A GPU of quick ticks, and rounds of 8 bursts that become 0.5 s longer, without plateaus."""
    for name, value in {"BURSTS": 8, "PLATEAUS": 0, "LONGER_S": 0.5}.items():
        monkeypatch.setattr(self_test, name, value)
    gpu = Gpu(uuid=A, power=[(0.0, 120.0)], period_s=0.02, lag_s=0.015)
    machine.play(gpu)
    return gpu


def test_a_second_round_finds_the_lag_of_a_restless_gpu(machine: Machine, restless_gpu: Gpu) -> None:
    """Bursts of 0.5 s end before the power is level, those of 1 s after it."""

    def examined() -> SelfTest:
        load = partial(restless, machine, restless_gpu, level_after_s=0.75)
        return self_test.examine(visible_devices()[0], 0, load=load, idle_s=1.0)

    starved = ("read too slowly", "far from the others", "standard uncertainty")
    for found in until_sure(examined, lambda f: [f.lag.reason], starved=starved):
        assert "after power that was not level" in str(found.lag.left_out)
        if found.lag.reason is None:
            assert found.lag.lag_s == pytest.approx(0.015, abs=0.005)
            assert found.lag.ends >= 6


def test_a_gpu_that_is_never_level_is_tried_three_times_and_the_reason_said(
    machine: Machine, restless_gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The self-test ends after the third round, with how many ends there were and why they were left out."""
    monkeypatch.setattr(self_test, "BURSTS", 2)
    load = partial(restless, machine, restless_gpu, level_after_s=1000)
    monkeypatch.setattr(self_test, "_torch_load", lambda _position: (load, None))
    text = self_test.run()
    assert re.search(r"unknown: ends of load that agree: \d of 6, at least 6 are needed; left out: \d", text)
    assert "after power that was not level" in text
    assert re.search(r"loads that were tried: \d of 0\.\d s, .*\d of 1\.[01] s, .*\d of 1\.[5-9] s", text)
    assert known(A).lag.lag_s is None


def test_without_a_load_the_rest_is_found_and_said(
    machine: Machine, short: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No CUDA: beat and cost stand, lag and jitter under load are unknown with the reason, and no jitter is kept."""
    machine.play(Gpu(uuid=A))
    monkeypatch.setattr(self_test, "_torch_load", lambda _position: (None, "no load here"))
    text = self_test.run()
    assert re.search(r"every (49\.[5-9]|50\.[0-4]) ms", text)
    assert "unknown: no load here;\n    runs count on 12.0 ms" in text
    assert "an unknown time under load" in text
    assert str(sensor_cache.path()) in text
    kept = known(A)
    assert (kept.lag, kept.jitter_s) == (Lag(None, None, 0, "no load here"), None)


@pytest.mark.parametrize("gpus", [[], [Gpu(mig=True)]], ids=["no GPU", "MIG"])
def test_what_cannot_be_tested_is_a_sentence(gpus: list[Gpu], machine: Machine) -> None:
    """`llem config` never fails."""
    machine.play(*gpus)
    assert self_test.run().startswith("sensor self-test: not possible: ")


def test_a_counter_that_stands_still_is_a_sentence(machine: Machine, short: None) -> None:
    """A constant counter is named instead of a traceback."""
    machine.play(Gpu(constant=True))
    assert "did not move" in self_test.run()


def test_findings_hold_for_their_gpu_and_driver(machine: Machine) -> None:
    """Another driver or another card knows nothing; several are kept side by side."""
    machine.play(Gpu(uuid=A), driver="580.65.06")
    sensor_cache.keep([findings()])
    sensor_cache.keep([findings(gpu_uuid="GPU-other")])
    assert set(sensor_cache.known([A, "GPU-other", "GPU-none"])) == {A, "GPU-other"}
    machine.play(Gpu(uuid=A), driver="590.1")
    assert sensor_cache.known([A]) == {}


def test_a_broken_file_is_as_none(machine: Machine) -> None:
    """The defaults hold; the next self-test writes it anew."""
    machine.play(Gpu(uuid=A))
    target = Path(sensor_cache.path())
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("{", encoding="utf-8")
    assert sensor_cache.known([A]) == {}
    sensor_cache.keep([findings()])
    assert known(A) == findings(tested_at=known(A).tested_at)


def test_what_is_said_of_jitter_and_lag() -> None:
    """A jitter that the readings hide is less than its limit; a lag comes with its uncertainty, or with a reason."""
    text = "\n".join(self_test._lines(findings()))
    assert "scatters by less than 0.6 ms idle, 2.0 ms under load" in text
    assert "shows the end of a load 13.0 ms late (standard uncertainty 1.0 ms, from 14 ends)" in text
    assert "unknown" not in text
    vague = findings(lag=Lag(None, 0.007, 14, "its standard uncertainty is 7.0 ms, above 4 ms"))
    assert "unknown: its standard uncertainty is 7.0 ms, above 4 ms;\n    runs count on 12.0 ms" in "\n".join(
        self_test._lines(vague)
    )
    some = findings(lag=Lag(0.013, 0.001, 14, tried="12 of 1.2 s, 12 of 2.4 s", left_out="10 read too slowly"))
    assert "ends left out: 10 read too slowly\n    loads that were tried: 12 of 1.2 s, 12 of 2.4 s" in "\n".join(
        self_test._lines(some)
    )


def test_a_row_of_the_first_format_is_not_believed(machine: Machine) -> None:
    """A jitter of 0 and a lag of 2 ms, as they were found on an H100 and kept, are none; a new self-test replaces them."""
    machine.play(Gpu(uuid=A))
    target = sensor_cache.keep([findings()])
    rows = json.loads(target.read_text(encoding="utf-8"))
    for row in rows.values():
        del row["format"]
        row |= {"jitter_idle_s": 0.0, "jitter_load_s": 0.0, "lag_s": 0.002, "lag_spread_s": 0.0267, "lag_steps": 16}
    target.write_text(json.dumps(rows), encoding="utf-8")
    assert sensor_cache.known([A]) == {A: OLDER}
    facts = recorded().sensors[A]
    assert (facts.jitter_used_s, facts.jitter_source, facts.lag_s) == (DEFAULT_JITTER_S, "default", None)
    assert facts.lag_reason == OLDER
    sensor_cache.keep([findings()])
    assert known(A).jitter_s == 0.002


def test_an_older_row_spoils_no_other(machine: Machine) -> None:
    """Good rows beside one of the first format and a broken one are known; keeping another GPU's loses none of them."""
    machine.play(Gpu(uuid=A))
    target = sensor_cache.keep([findings(gpu_uuid=uuid) for uuid in (A, "GPU-good", "GPU-broken")])
    rows = json.loads(target.read_text(encoding="utf-8"))
    del rows[f"{A}/580.65.06"]["format"]
    rows["GPU-broken/580.65.06"] = "half a"
    rows["GPU-later/580.65.06"] = {"format": 3}
    target.write_text(json.dumps(rows), encoding="utf-8")

    sensor_cache.keep([findings(gpu_uuid="GPU-new")])
    assert set(sensor_cache.known([A, "GPU-good", "GPU-broken", "GPU-later", "GPU-new"])) == {A, "GPU-good", "GPU-new"}
    assert sensor_cache.known([A]) == {A: OLDER}
    assert known("GPU-good").lag == known("GPU-new").lag == findings().lag
    assert json.loads(target.read_text(encoding="utf-8"))["GPU-later/580.65.06"] == {"format": 3}


NO_LOAD = {"jitter_load": None, "lag": Lag(None, None, 0, "no load here")}


@pytest.mark.parametrize(
    ("kept", "jitter_s", "source", "lag"),
    [
        pytest.param(None, DEFAULT_JITTER_S, "default", (None, "no self-test"), id="never tested"),
        pytest.param({}, 0.002, "self-test", (0.013, None), id="tested under load"),
        pytest.param(NO_LOAD, DEFAULT_JITTER_S, "default", (None, "no load here"), id="tested idle only"),
    ],
)
def test_a_run_counts_on_the_self_test(
    kept: dict[str, Any] | None, jitter_s: float, source: str, lag: tuple[float | None, str | None], machine: Machine
) -> None:
    """The series of a run has the jitter that was found under load, and says where it comes from."""
    machine.play(Gpu(uuid=A, power=[(0.0, 300.0)]))
    if kept is not None:
        sensor_cache.keep([findings(**kept)])
    record = recorded()
    facts = record.sensors[A]
    assert record.series[A].jitter_s == jitter_s
    assert (facts.jitter_used_s, facts.jitter_source, facts.lag_s) == (jitter_s, source, lag[0])
    assert (facts.lag_reason or "").startswith(lag[1] or "")
    assert (facts.lag_reason is None) == (lag[1] is None)
    assert facts.period_s == pytest.approx(0.05, rel=0.05)
    assert facts.ticks == len(record.series[A].ticks)
    assert facts.call_s is not None
