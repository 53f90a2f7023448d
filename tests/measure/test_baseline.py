"""Idle power: measured once, kept by GPU, driver and kind, handed down by the parent, never guessed."""

import ctypes
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fakes.nvml_script import Gpu, Machine
from llenergymeasure import baseline
from llenergymeasure.core.config import ExperimentConfig
from llenergymeasure.core.contracts import Device
from llenergymeasure.core.errors import MeasurementError
from llenergymeasure.core.result import ExperimentResult
from llenergymeasure.measure import Measured
from llenergymeasure.user_config import cache_dir

A, B = "GPU-aaaaaaaa-1111", "GPU-bbbbbbbb-2222"
DRIVER = "580.65.06"
BARE: dict[str, Any] = {"enabled": True, "kind": "bare", "duration_seconds": 5}
DEVICES = (Device(0, A), Device(1, B))
Config = Callable[..., ExperimentConfig]


def _has_libcuda() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def _stamp(age_s: float) -> str:
    return (datetime.now(UTC) - timedelta(seconds=age_s)).isoformat()


def _row(uuid: str, watts: float, age_s: float = 10, driver: str | None = DRIVER, kind: str = "bare") -> dict[str, Any]:
    return {"gpu_uuid": uuid, "driver": driver, "kind": kind, "power_w": watts, "measured_at": _stamp(age_s)}


def test_it_is_measured_once_and_read_by_the_next_process(
    on_gpu: Callable[..., Measured], child: Callable[..., ExperimentResult], machine: Machine
) -> None:
    """The first run records the idle power and keeps it; a second process uses that one instead of measuring."""
    machine.play(Gpu(uuid=A, power=[(0.0, 123.0)]))
    first = on_gpu(baseline=BARE, measurement={"min_duration_seconds": 0.5}).result
    assert first.baseline_power_w == pytest.approx(123.0, rel=0.01)
    assert (first.energy_breakdown.baseline_method, first.energy_breakdown.baseline_kind) == ("fresh", "bare")
    kept = json.loads((cache_dir() / "baselines.json").read_text(encoding="utf-8"))
    assert list(kept) == [f"{A}/{DRIVER}/bare"]
    machine.play(Gpu(uuid=A, power=[(0.0, 999.0)]))
    second = child(
        baseline=BARE,
        energy={"backend": "nvml"},
        warmup={"thermal_floor_seconds": 0},
        measurement={"min_duration_seconds": 0.5},
    )
    assert second.baseline_power_w == first.baseline_power_w
    assert second.energy_breakdown.baseline_method == "cached"
    assert second.energy_breakdown.from_cache
    assert second.energy_breakdown.baseline_timestamp == first.energy_breakdown.baseline_timestamp
    assert second.energy_breakdown.baseline_cache_age_s is not None
    idle = second.phases["baseline"]
    assert idle.end_s - idle.start_s < BARE["duration_seconds"]


def test_the_parents_baselines_are_used(
    on_gpu: Callable[..., Measured], machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LLEM_BASELINES hands known idle powers down: nothing is measured, two GPUs add up."""
    machine.play(Gpu(uuid=A), Gpu(uuid=B))
    monkeypatch.setenv("LLEM_BASELINES", json.dumps([_row(A, 71.0), _row(B, 82.0)]))
    result = on_gpu(baseline=BARE, measurement={"min_duration_seconds": 0.9}).result
    assert result.baseline_power_w == 153.0
    assert result.energy_breakdown.baseline_method == "cached"
    assert result.energy_adjusted_j == pytest.approx((result.energy_total_j or 0) - 153.0 * result.duration_s)
    assert not (cache_dir() / "baselines.json").exists()


@pytest.mark.parametrize(
    ("first", "second", "found"),
    [
        pytest.param({}, {}, 150.0, id="both known"),
        pytest.param({}, None, None, id="one missing"),
        pytest.param({}, {"driver": "570.1"}, None, id="another driver"),
        pytest.param({}, {"kind": "context"}, None, id="another kind"),
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
    known = baseline.cached(config(baseline=BARE), DEVICES, DRIVER, tmp_path)
    assert (known.power_w if known else None) == found


@pytest.mark.parametrize(("ttl", "known"), [(0, False), (5, False), (60, True)])
def test_the_time_to_live_is_the_configurations(ttl: float, known: bool, config: Config, tmp_path: Path) -> None:
    """A kept value of 10 s age serves as long as cache_ttl_seconds allows; 0 always measures."""
    spec = config(baseline=BARE | {"cache_ttl_seconds": ttl})
    baseline.remember(spec, {A: 700.0, B: 800.0}, 10.0, DRIVER, tmp_path)
    path = tmp_path / "baselines.json"
    rows = json.loads(path.read_text(encoding="utf-8"))
    aged = {k: {**v, "measured_at": _stamp(10)} for k, v in rows.items()}
    path.write_text(json.dumps(aged), encoding="utf-8")
    found = baseline.cached(spec, DEVICES, DRIVER, tmp_path)
    assert (found is not None) is known
    if found is not None:
        assert (found.power_w, found.method, found.kind) == (150.0, "cached", "bare")
        assert found.age_s == pytest.approx(10, abs=5)


def test_the_parents_values_beat_those_on_disk(config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What was handed down for this study wins over what an earlier one left behind."""
    baseline.remember(config(baseline=BARE), {A: 500.0, B: 500.0}, 10.0, DRIVER, tmp_path)
    monkeypatch.setenv("LLEM_BASELINES", json.dumps([_row(A, 1.0), _row(B, 2.0)]))
    found = baseline.cached(config(baseline=BARE), DEVICES, DRIVER, tmp_path)
    assert found is not None
    assert found.power_w == 3.0


def test_other_gpus_values_are_kept_when_one_is_written(config: Config, tmp_path: Path) -> None:
    """Writing one GPU's baseline loses neither the other GPU's nor the other kind's."""
    baseline.remember(config(baseline=BARE), {A: 100.0}, 1.0, DRIVER, tmp_path)
    baseline.remember(config(baseline=BARE), {B: 200.0}, 1.0, DRIVER, tmp_path)
    baseline.remember(config(baseline=BARE | {"kind": "context"}), {A: 300.0}, 1.0, DRIVER, tmp_path)
    kept = json.loads((tmp_path / "baselines.json").read_text(encoding="utf-8"))
    assert {k: v["power_w"] for k, v in kept.items()} == {
        f"{A}/{DRIVER}/bare": 100.0,
        f"{B}/{DRIVER}/bare": 200.0,
        f"{A}/{DRIVER}/context": 300.0,
    }
    assert list(tmp_path.iterdir()) == [tmp_path / "baselines.json"]


@pytest.mark.parametrize("content", ["", "{", "[]", "null"], ids=["empty", "cut", "list", "null"])
def test_a_broken_cache_is_no_cache(content: str, config: Config, tmp_path: Path) -> None:
    """A damaged file means measuring again, not failing."""
    (tmp_path / "baselines.json").write_text(content, encoding="utf-8")
    assert baseline.cached(config(baseline=BARE), DEVICES, DRIVER, tmp_path) is None


@pytest.mark.parametrize(
    "text", ["not json", '{"a": 1}', "[1]", '[{"gpu_uuid": "x"}]'], ids=["text", "object", "number", "fields missing"]
)
def test_malformed_baselines_from_the_parent_are_an_error(
    text: str, config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The variable is named; nothing is silently measured instead."""
    monkeypatch.setenv("LLEM_BASELINES", text)
    with pytest.raises(MeasurementError, match="LLEM_BASELINES"):
        baseline.cached(config(baseline=BARE), DEVICES, DRIVER, tmp_path)


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
        pytest.param({"enabled": True, "kind": "loaded"}, "loaded is not measured", id="loaded"),
    ],
)
def test_no_baseline_has_its_reason(fields: dict[str, Any], said: str, run: Callable[..., Measured]) -> None:
    """Adjusted energy is null and says which setting made it so."""
    result = run(baseline=fields).result
    assert result.energy_adjusted_j is None
    assert result.energy_breakdown.baseline_method == "unavailable"
    assert said in result.null_reasons["energy_adjusted_j"]
    assert said in result.null_reasons["baseline_power_w"]
