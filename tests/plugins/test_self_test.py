"""The self-test finds what the script hides, says it in words, and later runs count on it."""

import json
import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fakes import tick_generator as made
from fakes.nvml_script import Gpu, Machine
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


@pytest.mark.parametrize("period_s", [0.02, 0.1, 0.2, 0.5, 1.0])
def test_bursts_and_pauses_last_as_long_as_the_ticks_need(period_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every end of load tells the lag, and plateaus have quiet edges, at any period; in at most five minutes."""
    now_s = 10.0

    def pass_by(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds

    def load(seconds: float) -> Burst:
        start_s = now_s
        pass_by(seconds)
        return Burst(start_s, now_s)

    monkeypatch.setattr(time, "sleep", pass_by)
    pace = self_test._Pace.of(period_s)
    bursts = self_test._bursts(load, self_test.BURSTS, pace.burst_s, pace)
    plateaus = self_test._bursts(load, self_test.PLATEAUS, pace.plateau_s, pace)
    power = [made.Piece(0, now_s, 120, 120), *(made.Piece(b.start_s, b.end_s, 380, 380) for b in (*bursts, *plateaus))]
    ticks = made.record(power, made.Counter(period_s, 0.3, 0.012), 1, now_s)
    series = EnergySeries(tuple(Tick(*row) for row in ticks))

    found = lag(series, (*bursts, *plateaus))
    assert found.lag_s == pytest.approx(0.012, abs=1e-6)
    assert (found.ends, found.reason) == (14, None)
    assert plateau_ratio(series, plateaus) == pytest.approx(1.0, abs=1e-3)
    under_load = self_test._under_load(self_test._Heard(series, series, bursts, plateaus, None))
    assert under_load.measured_jitter is not None
    assert now_s < 300


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
