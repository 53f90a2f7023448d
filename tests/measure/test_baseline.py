"""Idle power: measured once, kept by GPU, driver and kind, handed down by the parent, never guessed."""

import ctypes
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fakes.nvml_script import Gpu, Machine
from fakes.recorded_run import recorded
from llenergymeasure import baseline, idle_power, replay, run_baseline
from llenergymeasure.backends import synthetic
from llenergymeasure.core.config import ExperimentConfig
from llenergymeasure.core.contracts import Generation, Request
from llenergymeasure.core.errors import MeasurementError
from llenergymeasure.core.result import ExperimentResult
from llenergymeasure.gpu_settings import GpuSettings
from llenergymeasure.measure import Measured
from llenergymeasure.observation import Observation
from llenergymeasure.run_energy import RunEnergy
from llenergymeasure.user_config import UserConfig, cache_dir

A, B = "GPU-aaaaaaaa-1111", "GPU-bbbbbbbb-2222"
DRIVER = "580.65.06"
BARE: dict[str, Any] = {"enabled": True, "kind": "bare", "duration_seconds": 5}
SET = GpuSettings(driver=DRIVER, power_limit_w=700.0, persistence=True)
SETTINGS = {A: SET, B: SET}
Config = Callable[..., ExperimentConfig]


@pytest.fixture
def trace() -> Observation:
    """A run recorded on an H100, with a quiet guard before its window."""
    run = recorded("h100_batch8")
    return replay.observed(run.result, run.raw)


def _has_libcuda() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def _stamp(age_s: float) -> str:
    return (datetime.now(UTC) - timedelta(seconds=age_s)).isoformat()


def _row(uuid: str, watts: float, age_s: float = 10, **changes: Any) -> dict[str, Any]:
    row = {"gpu_uuid": uuid, "driver": DRIVER, "kind": "bare", "power_w": watts, "measured_at": _stamp(age_s)}
    return row | changes


def _measured(watts: dict[str, float], kind: str = "bare", age_s: float = 0) -> baseline.Baseline:
    at = datetime.now(UTC) - timedelta(seconds=age_s)
    spreads = {u: baseline.Spread(0.5, 30, 0.2) for u in watts}
    return baseline.Baseline(sum(watts.values()), kind, "fresh", at, watts, spreads, 41.0)


def _keep(folder: Path, watts: dict[str, float], kind: str = "bare", age_s: float = 0) -> None:
    baseline.keep(baseline.rows_of(_measured(watts, kind, age_s), SETTINGS), folder)


def test_it_is_measured_once_and_read_by_the_next_process(
    on_gpu: Callable[..., Measured], child: Callable[..., ExperimentResult], machine: Machine
) -> None:
    """The first run records the idle power and keeps it; a second process uses that one instead of measuring."""
    machine.play(Gpu(uuid=A, power=[(0.0, 123.0)]))
    first = on_gpu(baseline=BARE, measurement={"min_duration_seconds": 0.5}).result
    assert first.baseline_power_w == pytest.approx(123.0, rel=0.01)
    assert (first.energy_breakdown.baseline_method, first.energy_breakdown.baseline_kind) == ("fresh", "bare")
    kept = json.loads((cache_dir() / "baselines.json").read_text(encoding="utf-8"))
    (row,) = kept.values()
    assert next(iter(kept)).startswith(f"{A}/{DRIVER}/bare/")
    assert row["settings"]["driver"] == DRIVER
    machine.play(Gpu(uuid=A, power=[(0.0, 124.0)]))
    second = child(
        baseline=BARE,
        energy={"backend": "nvml"},
        warmup={"thermal_floor_seconds": 0},
        measurement={"min_duration_seconds": 0.5},
    )
    assert second.baseline_power_w == first.baseline_power_w
    assert second.energy_breakdown.baseline_method == "validated"
    assert second.energy_breakdown.baseline_spot_w == pytest.approx(124.0, rel=0.01)
    assert second.energy_breakdown.from_cache
    assert second.energy_breakdown.baseline_timestamp == first.energy_breakdown.baseline_timestamp
    assert second.energy_breakdown.baseline_cache_age_s is not None


@pytest.mark.parametrize("watts", [127.0, 119.0], ids=["more", "less"])
def test_a_spot_check_that_disagrees_means_measuring_again(
    watts: float, on_gpu: Callable[..., Measured], machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A known 123 W and a GPU that now idles 4 W away: more than max(2 W, 2 %), so it is recorded anew."""
    machine.play(Gpu(uuid=A, power=[(0.0, watts)]))
    monkeypatch.setenv("LLEM_BASELINES", json.dumps([_row(A, 123.0)]))
    monkeypatch.setattr(idle_power, "SPOT_S", 2.0)
    found = on_gpu(baseline=BARE, measurement={"min_duration_seconds": 0.5}).result.energy_breakdown
    assert found.baseline_method == "fresh"
    assert found.baseline_power_w == pytest.approx(watts, rel=0.01)
    assert not found.from_cache


@pytest.mark.parametrize(
    ("spot_w", "known_w", "belied"),
    [
        pytest.param(77.9, 76.0, False, id="within 2 W"),
        pytest.param(78.1, 76.0, True, id="beyond 2 W"),
        pytest.param(253.9, 250.0, False, id="within 2 %"),
        pytest.param(244.9, 250.0, True, id="beyond 2 %"),
    ],
)
def test_what_a_spot_check_says(spot_w: float, known_w: float, belied: bool) -> None:
    """The larger of 2 W and 2 % decides."""
    assert baseline.belies(spot_w, known_w) is belied


def test_the_parents_baselines_are_used(
    on_gpu: Callable[..., Measured], machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LLEM_BASELINES hands known idle powers down: nothing is measured, two GPUs add up."""
    machine.play(Gpu(uuid=A, power=[(0.0, 71.0)]), Gpu(uuid=B, power=[(0.0, 82.0)]))
    monkeypatch.setenv("LLEM_BASELINES", json.dumps([_row(A, 71.0), _row(B, 82.0)]))
    monkeypatch.setattr(idle_power, "SPOT_S", 2.0)
    result = on_gpu(baseline=BARE, measurement={"min_duration_seconds": 0.9}).result
    assert result.baseline_power_w == 153.0
    assert result.energy_breakdown.baseline_method == "validated"
    assert result.energy_adjusted_j == pytest.approx((result.energy_total_j or 0) - 153.0 * result.duration_s)
    assert not (cache_dir() / "baselines.json").exists()


@pytest.mark.parametrize(
    ("first", "second", "found"),
    [
        pytest.param({}, {}, 150.0, id="both known"),
        pytest.param({}, None, None, id="one missing"),
        pytest.param({}, {"driver": "570.1"}, None, id="another driver"),
        pytest.param({}, {"kind": "context"}, None, id="another kind"),
        pytest.param({}, {"conditions": SET.digest}, 150.0, id="the same settings"),
        pytest.param({}, {"conditions": "0123456789ab"}, None, id="other settings"),
        pytest.param({}, {"age_s": 3601}, None, id="one too old"),
        pytest.param({}, {"age_s": 3500}, 150.0, id="old, but within an hour"),
        pytest.param({"age_s": -60}, {"age_s": -60}, None, id="from the future"),
        pytest.param(None, None, None, id="none"),
    ],
)
def test_a_known_baseline_must_fit(
    first: dict[str, Any] | None,
    second: dict[str, Any] | None,
    found: float | None,
    config: Config,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Every GPU, the same driver, the same kind, younger than an hour: else it is measured again."""
    rows = [_row(u, w, **changes) for u, w, changes in ((A, 70.0, first), (B, 80.0, second)) if changes is not None]
    monkeypatch.setenv("LLEM_BASELINES", json.dumps(rows))
    known = baseline.known(config(baseline=BARE), SETTINGS, tmp_path)
    assert (known.power_w if known else None) == found


@pytest.mark.parametrize(("ttl", "known"), [(0, False), (5, False), (60, True)])
def test_the_time_to_live_is_the_configurations(ttl: float, known: bool, config: Config, tmp_path: Path) -> None:
    """A kept value of 10 s age serves as long as cache_ttl_seconds allows; 0 always measures."""
    spec = config(baseline=BARE | {"cache_ttl_seconds": ttl})
    _keep(tmp_path, {A: 70.0, B: 80.0}, age_s=10)
    found = baseline.known(spec, SETTINGS, tmp_path)
    assert (found is not None) is known
    if found is not None:
        assert (found.power_w, found.method, found.kind) == (150.0, "cached", "bare")
        assert found.age_s == pytest.approx(10, abs=5)


def test_the_parents_values_beat_those_on_disk(config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What was handed down for this study wins over what an earlier one left behind."""
    _keep(tmp_path, {A: 50.0, B: 50.0})
    monkeypatch.setenv("LLEM_BASELINES", json.dumps([_row(A, 1.0), _row(B, 2.0)]))
    found = baseline.known(config(baseline=BARE), SETTINGS, tmp_path)
    assert found is not None
    assert found.power_w == 3.0


def test_other_gpus_values_are_kept_when_one_is_written(tmp_path: Path) -> None:
    """Writing one GPU's baseline loses neither the other GPU's nor the other kind's."""
    _keep(tmp_path, {A: 100.0})
    _keep(tmp_path, {B: 200.0})
    _keep(tmp_path, {A: 300.0}, kind="context")
    kept = json.loads((tmp_path / "baselines.json").read_text(encoding="utf-8"))
    assert {k: v["power_w"] for k, v in kept.items()} == {
        f"{A}/{DRIVER}/bare/{SET.digest}": 100.0,
        f"{B}/{DRIVER}/bare/{SET.digest}": 200.0,
        f"{A}/{DRIVER}/context/{SET.digest}": 300.0,
    }
    assert list(tmp_path.iterdir()) == [tmp_path / "baselines.json"]


@pytest.mark.parametrize("content", ["", "{", "[]", "null"], ids=["empty", "cut", "list", "null"])
def test_a_broken_cache_is_no_cache(content: str, config: Config, tmp_path: Path) -> None:
    """A damaged file means measuring again, not failing."""
    (tmp_path / "baselines.json").write_text(content, encoding="utf-8")
    assert baseline.known(config(baseline=BARE), SETTINGS, tmp_path) is None


@pytest.mark.parametrize(
    "text", ["not json", '{"a": 1}', "[1]", '[{"gpu_uuid": "x"}]'], ids=["text", "object", "number", "fields missing"]
)
def test_malformed_baselines_from_the_parent_are_an_error(
    text: str, config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The variable is named; nothing is silently measured instead."""
    monkeypatch.setenv("LLEM_BASELINES", text)
    with pytest.raises(MeasurementError, match="LLEM_BASELINES"):
        baseline.known(config(baseline=BARE), SETTINGS, tmp_path)


@pytest.mark.skipif(_has_libcuda(), reason="this machine has libcuda, so the context can be made")
def test_a_context_without_cuda_is_a_measurement_error(on_gpu: Callable[..., Measured], machine: Machine) -> None:
    """The default kind needs a CUDA context; without libcuda the run says so instead of measuring something else."""
    machine.play(Gpu())
    with pytest.raises(MeasurementError, match="no CUDA context for the baseline: OSError: libcuda"):
        on_gpu(baseline={"enabled": True, "kind": "context", "duration_seconds": 5})


def test_an_idle_that_could_not_be_counted_is_null_with_its_reason(run: Callable[..., Measured]) -> None:
    """A counter that stood still while idle gives no baseline and says so; it is never 0 W, and the window stands."""
    result = run(
        baseline={"enabled": True, "duration_seconds": 5},
        energy={"simulated": {"idle_power_w": 0.0, "tick_ms": 10}},
        measurement={"min_duration_seconds": 0.5},
    ).result
    assert result.energy_total_j == pytest.approx(300.0 * result.duration_s, rel=0.01)
    assert (result.baseline_power_w, result.energy_adjusted_j) == (None, None)
    assert result.energy_breakdown.baseline_method == "unavailable"
    assert result.null_reasons["energy_adjusted_j"].startswith("baseline: ")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        pytest.param({"enabled": False}, "baseline.enabled is false", id="off"),
    ],
)
def test_no_baseline_has_its_reason(fields: dict[str, Any], said: str, run: Callable[..., Measured]) -> None:
    """Adjusted energy is null and says which setting made it so."""
    result = run(baseline=fields).result
    assert result.energy_adjusted_j is None
    assert result.energy_breakdown.baseline_method == "unavailable"
    assert said in result.null_reasons["energy_adjusted_j"]
    assert said in result.null_reasons["baseline_power_w"]


@pytest.mark.parametrize(
    "change",
    [
        {"driver": "570.1"},
        {"power_limit_w": 500.0},
        {"graphics_clock_mhz": 1200},
        {"memory_clock_mhz": 1593},
        {"persistence": False},
        {"ecc": True},
        {"mig": True},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_changed_setting_means_measuring_again(change: dict[str, Any], config: Config, tmp_path: Path) -> None:
    """Idle power is kept for a GPU as it was set; any setting that changes it makes the kept value another GPU's."""
    _keep(tmp_path, {A: 70.0})
    spec = config(baseline=BARE)
    assert baseline.known(spec, {A: SET}, tmp_path) is not None
    assert baseline.known(spec, {A: replace(SET, **change)}, tmp_path) is None


def test_rows_survive_the_variable(monkeypatch: pytest.MonkeyPatch, config: Config, tmp_path: Path) -> None:
    """What the parent hands down is what the child knows: power, spread, temperature and for which settings."""
    rows = baseline.rows_of(_measured({A: 70.0, B: 80.0}), SETTINGS)
    monkeypatch.setenv("LLEM_BASELINES", baseline.to_variable(rows))
    found = baseline.known(config(baseline=BARE), SETTINGS, tmp_path)
    assert found is not None
    assert (found.power_w, found.temperature_c, found.drift_w) == (150.0, 41.0, 0.4)
    assert found.recorded == {A: baseline.Spread(0.5, 30, 0.2), B: baseline.Spread(0.5, 30, 0.2)}
    assert baseline.known(config(baseline=BARE), {A: SET, B: replace(SET, ecc=True)}, tmp_path) is None


@pytest.mark.parametrize(
    ("spreads", "spot_w", "watts"),
    [
        pytest.param({A: (1.5, 25, 0.0)}, None, (0.3**2 + 1 / 3) ** 0.5, id="spread of 25 parts, and 1 W of doubt"),
        pytest.param({A: (0.0, 25, 1.2)}, None, (1.44 / 12 + 1 / 3) ** 0.5, id="drift is a rectangle's width"),
        pytest.param({A: (0.0, 25, 0.0)}, 103.0, 3**0.5, id="a spot check 3 W away"),
        pytest.param({A: (0.0, 25, 0.0)}, 99.5, (1 / 3) ** 0.5, id="one within a watt adds nothing"),
        pytest.param({A: (0.0, 5, None)}, None, (0.25 / 12 + 1 / 3) ** 0.5, id="unknown drift: the largest stable one"),
        pytest.param({}, None, (0.25 + 0.25 / 12 + 1 / 3) ** 0.5, id="unknown parts: half a per cent, too"),
    ],
)
def test_how_sure_an_idle_power_is(spreads: dict[str, Any], spot_w: float | None, watts: float) -> None:
    """u² = s²/n + drift²/12 + max(1 W, |spot - known|)²/3, by hand."""
    found = baseline.Baseline(
        100.0,
        "bare",
        "cached",
        datetime.now(UTC),
        {A: 100.0},
        {u: baseline.Spread(*s) for u, s in spreads.items()},
        spot_w=spot_w,
    )
    assert found.std_uncertainty_w == pytest.approx(watts)


def test_spread_and_drift_of_a_ramp() -> None:
    """Power that rises by 3 W from end to end in thirty parts: drift 2.9 W between the outer parts' middles."""
    powers = [100 + 0.1 * i for i in range(30)]
    found = baseline.spread(powers)
    assert found is not None
    assert found.drift_w == pytest.approx(3.0)
    assert found.spread_w == pytest.approx(float(np.std(powers, ddof=1)))
    assert baseline.spread([1.0, 2.0, 3.0]) is None


def test_what_was_handed_down_without_its_parts_is_not_surer_than_what_has_them(
    config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two GPUs of 100 W, the parts of one unknown: 0.5 W of it beside the other's 0.1 W, drift 1 W, doubt 2 W."""
    known = _row(A, 100.0, spread_w=0.5, samples=25, drift_w=0.0)
    monkeypatch.setenv("LLEM_BASELINES", json.dumps([known, _row(B, 100.0)]))
    found = baseline.known(config(baseline=BARE), SETTINGS, tmp_path)
    assert found is not None
    assert found.drift_w is None
    assert found.std_uncertainty_w == pytest.approx((0.1**2 + 0.5**2 + 1 / 12 + 4 / 3) ** 0.5)


@dataclass
class Drifting:
    """A source whose idle power moves as scripted, on a clock that sleeping moves."""

    watts: Callable[[float], float]
    now_s: float = 0.0
    opened: list[str] = field(default_factory=list)
    KIND = "counter"

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def open_window(self, name: str) -> float:
        self.opened.append(name)
        return self.now_s

    def close_window(self, name: str) -> float:
        assert name == self.opened[-1]
        return self.now_s

    def mean_power_w(self, start_s: float, end_s: float) -> float:
        return self.watts((start_s + end_s) / 2)


@pytest.mark.parametrize(
    ("watts", "attempts", "ended_s"),
    [
        pytest.param(lambda _t: 76.0, 1, 30.0, id="level"),
        pytest.param(lambda t: 80 - 0.05 * min(t, 40), 2, 90.0, id="cooling for 40 s"),
        pytest.param(lambda t: 80 - 0.05 * t, 3, 150.0, id="cooling on and on"),
    ],
)
def test_a_drifting_idle_is_recorded_again_at_most_twice(
    watts: Callable[[float], float], attempts: int, ended_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than 0.5 % from end to end: wait 30 s and record again, twice at most."""
    source = Drifting(watts)
    monkeypatch.setattr(idle_power, "time", source)
    noted: list[float] = []
    found = idle_power.record(source, (), kind="bare", seconds=30.0, note=lambda: noted.append(source.now_s))
    assert (found.attempts, found.end_s) == (attempts, ended_s)
    assert found.end_s - found.start_s == 30.0
    assert source.opened == ["baseline"] * attempts
    assert noted == [0.0]


@pytest.mark.parametrize(("parts", "share"), [(5, 0.016), (8, 0.01), (10, 0.008), (16, 0.005), (120, 0.005)])
def test_the_drift_that_is_allowed(parts: int, share: float) -> None:
    """0.5 %, and in short recordings what ticks of 4 ms jitter alone look like: 8 %·s over their length."""
    assert baseline.allowed_drift(parts) == pytest.approx(share)


@pytest.mark.parametrize(
    ("drift_w", "stable", "said"),
    [
        pytest.param(2.1, False, ["+3.0 % while it was recorded, 60 s ago"], id="it drifted"),
        pytest.param(-0.35, False, ["-0.5 % while it was recorded, 60 s ago"], id="just too far"),
        pytest.param(0.3, True, [], id="stable"),
        pytest.param(None, None, [], id="unknown, which is neither"),
    ],
)
def test_a_known_idle_power_is_as_stable_as_its_recording(
    drift_w: float | None, stable: bool | None, said: list[str], config: Config, tmp_path: Path
) -> None:
    """70 W over 30 s, kept by an earlier run or the study's parent: that it drifted is said by every run that uses it."""
    found = _measured({A: 69.9}, age_s=60)
    baseline.keep(baseline.rows_of(replace(found, recorded={A: baseline.Spread(0.5, 30, drift_w)}), SETTINGS), tmp_path)
    known = baseline.known(config(baseline=BARE), {A: SET}, tmp_path)
    assert known is not None
    assert known.stable is stable
    texts = run_baseline.warnings(RunEnergy(None, "", idle=known))
    assert [t.startswith("baseline_unstable:") and said[i] in t for i, t in enumerate(texts)] == [True] * len(said)


def test_an_unstable_baseline_is_a_warning_of_the_result(
    on_gpu: Callable[..., Measured], machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU that keeps cooling down gives its baseline all the same, with baseline_unstable and the fix."""
    now_s = time.monotonic()
    machine.play(Gpu(uuid=A, power=[(now_s + i, 140.0 - i) for i in range(60)]))
    monkeypatch.setattr(idle_power, "WAIT_S", 0.1)
    monkeypatch.setattr(idle_power, "WAITS", 1)
    result = on_gpu(baseline=BARE, measurement={"min_duration_seconds": 0.5}).result
    (warning,) = [w for w in result.measurement_warnings if w.startswith("baseline_unstable:")]
    assert "cache_ttl_seconds" in warning
    assert result.energy_breakdown.baseline_drift_w == pytest.approx(-5.0, abs=1.0)
    assert result.energy_breakdown.baseline_temperature_c == 55
    assert result.energy_breakdown.baseline_std_uncertainty_w > 5.0 / 12**0.5 * 0.8


def test_the_loaded_idle_comes_from_the_guard_before_the_window(
    on_gpu: Callable[..., Measured], machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kind: loaded costs no time of its own: it is the power of the waiting engine, 130 W here, work at 500 W."""
    idle_w, work_w = 130.0, 500.0

    class Drawing(synthetic.Engine):
        """The pretended engine, whose work the scripted GPU draws power for."""

        def generate(self, batch: Sequence[Request]) -> Generation:
            """Work for 2.5 s at 500 W."""
            begin_s = time.monotonic()
            steps = [(0.0, idle_w), (begin_s, work_w), (begin_s + 2.5, idle_w)]
            machine.play(Gpu(uuid=A, power=steps, period_s=0.05, origin_s=origin_s))
            time.sleep(2.5)
            return Generation(tuple(batch), tuple((1,) for _ in batch), begin_s, time.monotonic())

    origin_s = time.monotonic() - 1000.0
    machine.play(Gpu(uuid=A, power=[(0.0, idle_w)], period_s=0.05, origin_s=origin_s))
    monkeypatch.setattr(synthetic, "Engine", Drawing)
    result = on_gpu(n=1, warmup={"enabled": False}, baseline={"enabled": True, "kind": "loaded"}).result
    assert (result.energy_breakdown.baseline_kind, result.energy_breakdown.baseline_method) == ("loaded", "fresh")
    assert result.baseline_power_w == pytest.approx(idle_w, rel=0.02)
    assert result.energy_adjusted_j == pytest.approx((work_w - idle_w) * result.duration_s, rel=0.03)
    assert not (cache_dir() / "baselines.json").exists()


def test_the_loaded_idle_is_as_sure_as_its_guard(trace: Observation) -> None:
    """124.0 W with s/√5 = 0.70 W of its five ticks, an unknown drift of up to 0.5 % and 1 W of doubt."""
    energy = RunEnergy(None, "", record=trace.energy, no_idle=run_baseline.LOADED_COMES_LATER)
    run_baseline.complete(trace.config, UserConfig(), energy)
    assert energy.idle is not None
    power_w, drift_w = energy.idle.power_w, 0.005 * energy.idle.power_w
    assert power_w == pytest.approx(123.96, abs=0.01)
    assert energy.idle.drift_w is None
    assert energy.idle.std_uncertainty_w == pytest.approx((0.70033**2 + drift_w**2 / 12 + 1 / 3) ** 0.5, abs=1e-4)
