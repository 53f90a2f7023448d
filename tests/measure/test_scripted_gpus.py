"""Whole runs on scripted GPUs with the real sampler: truth, several boards, throttling, faults of the sensor."""

import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fakes.nvml_script import (
    HW_THERMAL,
    POWER_BRAKE,
    SW_POWER_CAP,
    SW_THERMAL,
    Gpu,
    Machine,
    children,
)
from fakes.patience import until_sure
from llenergymeasure import store, timeseries
from llenergymeasure.backends import synthetic
from llenergymeasure.core.contracts import Generation, Request
from llenergymeasure.core.errors import MeasurementError, run_exit_code
from llenergymeasure.core.result import ExperimentResult
from llenergymeasure.measure import Measured

A, B = "GPU-aaaaaaaa-1111", "GPU-bbbbbbbb-2222"
OnGpu = Callable[..., Measured]
SECOND = {"measurement": {"min_duration_seconds": 1.0}}
ALWAYS = (0.0, 1e12)


class Noting(synthetic.Engine):
    """The pretended engine, which notes when its work began and ended."""

    spans: list[tuple[float, float]]

    def generate(self, batch: Sequence[Request]) -> Generation:
        """Work, and note the instants."""
        found = super().generate(batch)
        self.spans.append((found.start_s, found.end_s))
        return found


class Drawing(Noting):
    """An engine whose work draws 650 W on the scripted GPU, and whose waiting draws 120 W."""

    gpu: Gpu
    machine: Machine

    def generate(self, batch: Sequence[Request]) -> Generation:
        """Work under power."""
        began_s = time.monotonic()
        self.machine.draw(self.gpu, 650.0)
        found = super().generate(batch)
        self.machine.draw(self.gpu, 120.0)
        self.spans[-1] = (began_s, time.monotonic())
        return found


def test_a_runs_energy_is_the_scripts_truth(on_gpu: OnGpu, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """With power that follows the work the result's joules are the script's, within four standard uncertainties."""
    gpu = Gpu(uuid=A, power=[(0.0, 120.0)], lag_s=0.004)
    for name, value in {"spans": [], "gpu": gpu, "machine": machine}.items():
        monkeypatch.setattr(Drawing, name, value, raising=False)
    monkeypatch.setattr(synthetic, "Engine", Drawing)
    machine.play(gpu)

    def measured() -> ExperimentResult:
        Drawing.spans.clear()
        return on_gpu(**SECOND, synthetic={"batch_overhead_ms": 100}).result

    for result in until_sure(measured, lambda r: [r.null_reasons.get("energy_total_j")]):
        assert (result.energy_source, result.energy_kind) == ("nvml", "counter")
        assert "synthetic" in result.backend
        if result.energy_total_j is None:
            continue
        work = Drawing.spans[result.warmup_excluded_samples :]
        truth = gpu.joules(work[0][0] - 0.002, work[-1][1] + 0.002)
        assert result.uncertainty.edge is not None
        assert result.energy_total_j == pytest.approx(truth, abs=4 * result.uncertainty.edge * truth + 1.5)
        assert result.uncertainty.edge < 0.005  # quiet edges: 120 W for 4 ms, not 650 W


def test_two_boards_are_told_apart_and_summed(on_gpu: OnGpu, machine: Machine) -> None:
    """Each GPU by UUID, the total their sum, neither index 0 only nor one board twice."""
    machine.play(Gpu(uuid=A, power=[(0.0, 100.0)]), Gpu(uuid=B, power=[(0.0, 400.0)], phase_s=0.013))
    result = on_gpu(**SECOND).result
    watts = {u: j / result.duration_s for u, j in (result.energy_per_device_j or {}).items()}
    assert watts == pytest.approx({A: 100.0, B: 400.0}, rel=0.03)
    assert result.energy_total_j == pytest.approx(sum((result.energy_per_device_j or {}).values()))


def test_hidden_boards_stay_out(on_gpu: OnGpu, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA_VISIBLE_DEVICES decides whose joules these are."""
    machine.play(Gpu(uuid=A, power=[(0.0, 100.0)]), Gpu(uuid=B, power=[(0.0, 400.0)]))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", B)
    result = on_gpu(**SECOND).result
    assert set(result.energy_per_device_j or {}) == {B}
    assert result.mean_power_w == pytest.approx(400.0, rel=0.03)


def _pytorch(tiny_model: Path, **section: Any) -> dict[str, Any]:
    return {
        "backend": "pytorch",
        "model": str(tiny_model),
        "precision": "fp32",
        "dataset": "builtin",
        "max_input_tokens": 32,
        "pytorch": section,
        **SECOND,
    }


def _place(positions: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the engine compute on the CPU and say that it sits on these GPUs."""
    from llenergymeasure.backends import pytorch

    class Placed(pytorch.Engine):
        """Claims places."""

        def load(self, *args: Any) -> Any:
            """Load, and claim places."""
            return replace(super().load(*args), device="cuda", gpu_positions=positions)

    monkeypatch.setattr(pytorch, "Engine", Placed)


@pytest.mark.model
@pytest.mark.parametrize(
    ("section", "positions", "uuids"),
    [
        pytest.param({}, (0,), [A], id="one GPU of two"),
        pytest.param({"device_map": "auto"}, (0, 1), [A, B], id="spread over both"),
        pytest.param({"device_map": "auto"}, (1,), [B], id="placed on the second"),
    ],
)
def test_a_run_pays_for_the_gpus_that_hold_its_model(
    section: dict[str, Any],
    positions: tuple[int, ...],
    uuids: list[str],
    on_gpu: OnGpu,
    machine: Machine,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a machine with two visible GPUs the energy is that of the boards where the engine says its weights lie."""
    _place(positions, monkeypatch)
    machine.play(Gpu(uuid=A, power=[(0.0, 100.0)]), Gpu(uuid=B, power=[(0.0, 400.0)]))
    measured = on_gpu(**_pytorch(tiny_model, **section))
    watts = {A: 100.0, B: 400.0}
    assert list(measured.result.energy_per_device_j or {}) == uuids
    assert measured.result.mean_power_w == pytest.approx(sum(watts[u] for u in uuids), rel=0.03)
    assert {row["gpu_uuid"] for row in measured.series} == set(uuids)


KNOWN_IDLE = {A: 50.0, B: 60.0}


@pytest.fixture
def known_idle(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Baselines of both boards that the parent hands in, and the configuration that takes them."""
    now = datetime.now(UTC).isoformat()
    rows = [
        {"gpu_uuid": u, "driver": "580.65.06", "kind": "bare", "power_w": w, "measured_at": now}
        for u, w in KNOWN_IDLE.items()
    ]
    monkeypatch.setenv("LLEM_BASELINES", json.dumps(rows))
    return {"baseline": {"enabled": True, "kind": "bare", "duration_seconds": 5}}


@pytest.mark.model
def test_a_known_baseline_is_that_of_the_gpus_that_hold_the_model(
    on_gpu: OnGpu, machine: Machine, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, known_idle: dict[str, Any]
) -> None:
    """The idle power that is subtracted covers the boards whose joules count, and no other."""
    _place((1,), monkeypatch)
    machine.play(*(Gpu(uuid=u, power=[(0.0, w)]) for u, w in KNOWN_IDLE.items()))  # as the spot check finds them
    result = on_gpu(**_pytorch(tiny_model, device_map="auto"), **known_idle).result
    assert list(result.energy_per_device_j or {}) == [B]
    assert result.energy_breakdown.baseline_method == "validated"
    assert result.baseline_power_w == KNOWN_IDLE[B]


@pytest.mark.model
def test_a_model_on_the_cpu_has_no_idle_power_of_a_gpu(
    on_gpu: OnGpu, machine: Machine, tiny_model: Path, known_idle: dict[str, Any]
) -> None:
    """A known baseline of the idle GPU beside it is not this run's either."""
    machine.play(Gpu(uuid=A), Gpu(uuid=B))
    result = on_gpu(**_pytorch(tiny_model), **known_idle).result
    assert result.baseline_power_w is None
    assert result.null_reasons["baseline_power_w"]


@pytest.mark.model
def test_a_model_on_the_cpu_pays_for_no_gpu(on_gpu: OnGpu, machine: Machine, tiny_model: Path) -> None:
    """Beside an idle GPU the joules of that GPU are not this run's: null, with the reason."""
    machine.play(Gpu(uuid=A))
    result = on_gpu(**_pytorch(tiny_model)).result
    assert result.energy_total_j is None
    assert "CPU" in result.null_reasons["energy_total_j"]
    assert result.verdict.state == "unmeasured"


def test_a_reset_of_the_counter_makes_the_run_invalid(
    on_gpu: OnGpu, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The counter goes back in the window: energy null, verdict invalid with the code, speed still there."""
    gpu = Gpu()
    machine.play(gpu)

    class Resetting(synthetic.Engine):
        """Sees the counter reset just after the window's first batch has begun."""

        def generate(self, batch: Sequence[Request]) -> Generation:
            """Work; the second batch is the window's first."""
            if self._done == 1:
                gpu.reset_at_s = time.monotonic() + 0.2
                machine.play(gpu)
            return super().generate(batch)

    monkeypatch.setattr(synthetic, "Engine", Resetting)
    result = on_gpu(**SECOND).result
    assert result.energy_total_j is None
    assert result.verdict.state == "invalid"
    assert [r.code for r in result.verdict.reasons] == ["counter_reset"]
    assert result.tokens_per_second > 0


def test_a_counter_that_stands_still_is_never_zero_joules(on_gpu: OnGpu, machine: Machine) -> None:
    """A constant counter costs the joules, with the reason, and not the run."""
    machine.play(Gpu(constant=True))
    result = on_gpu().result
    assert result.energy_total_j is None
    assert "counter_constant" in result.null_reasons["energy_total_j"]
    assert result.verdict.state == "unmeasured"


def test_a_mig_slice_is_unmeasured(on_gpu: OnGpu, machine: Machine) -> None:
    """With automatic choice nothing reads a shared board: energy null, reason MIG, verdict unmeasured."""
    machine.play(Gpu(mig=True))
    result = on_gpu(energy={"backend": "auto"}).result
    assert result.energy_total_j is None
    assert "MIG" in result.null_reasons["energy_total_j"]
    assert result.verdict.state == "unmeasured"


class Assassin(synthetic.Engine):
    """The pretended engine, which kills the sampler in its second batch."""

    def generate(self, batch: Sequence[Request]) -> Generation:
        """Work, and kill."""
        found = super().generate(batch)
        if self._done == 2:
            (pid,) = children(os.getpid())
            os.kill(pid, signal.SIGKILL)
        return found


def test_a_sampler_that_dies_fails_the_run(on_gpu: OnGpu, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recording with a hole gives no result, but exit code 15."""
    monkeypatch.setattr(synthetic, "Engine", Assassin)
    machine.play(Gpu())
    with pytest.raises(MeasurementError, match="sampler ended by itself") as caught:
        on_gpu(synthetic={"batch_overhead_ms": 100})
    assert run_exit_code(caught.value) == 15


@pytest.mark.parametrize(
    ("bits", "flags", "detected"),
    [
        pytest.param(0, set(), False, id="none"),
        pytest.param(SW_POWER_CAP, {"sw_power_cap"}, False, id="power cap: a condition"),
        pytest.param(SW_THERMAL, {"sw_thermal"}, True, id="software thermal"),
        pytest.param(HW_THERMAL | POWER_BRAKE, {"hw_thermal", "power_brake"}, True, id="two at once"),
    ],
)
def test_event_bits_of_the_window_become_the_right_flags(
    bits: int, flags: set[str], detected: bool, on_gpu: OnGpu, machine: Machine
) -> None:
    """What NVML says during the window, and only that, is in the thermal record and in the verdict."""
    machine.play(Gpu(reasons=[(*ALWAYS, bits)], temperature_c=71))
    result = on_gpu(**SECOND).result
    names = ("sw_power_cap", "hw_slowdown", "sw_thermal", "hw_thermal", "power_brake")
    assert {n for n in names if getattr(result.thermal, n)} == flags
    assert result.thermal.detected is detected
    assert result.thermal.max_temperature_c == 71
    assert ("throttled" in [r.code for r in result.verdict.reasons]) is detected


def test_throttling_before_the_window_is_not_the_windows(
    on_gpu: OnGpu, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU that was hot during warm-up only has a clean record."""
    gpu = Gpu(reasons=[(*ALWAYS, HW_THERMAL)])
    machine.play(gpu)

    class Cooling(synthetic.Engine):
        """Cools down when the second batch begins, long before the third."""

        def generate(self, batch: Sequence[Request]) -> Generation:
            """Work; from the second batch on without events."""
            if self._done == 1:
                gpu.reasons = []
                machine.play(gpu)
                time.sleep(0.2)
            return super().generate(batch)

    monkeypatch.setattr(synthetic, "Engine", Cooling)
    result = on_gpu(warmup={"n_warmup": 3}, measurement={"min_duration_seconds": 0.5}).result
    assert result.thermal.detected is False


def test_the_series_has_a_row_per_second_and_gpu(on_gpu: OnGpu, machine: Machine, tmp_path: Path) -> None:
    """Two GPUs, a window of a bit more than two seconds: six rows, documented columns, loadable by pandas."""
    import pandas as pd

    machine.play(
        Gpu(uuid=A, power=[(0.0, 100.0)], temperature_c=50),
        Gpu(uuid=B, power=[(0.0, 400.0)], reasons=[(*ALWAYS, SW_POWER_CAP)]),
    )
    measured = on_gpu(measurement={"min_duration_seconds": 2.1})
    store.save_run(tmp_path, store.files_of(measured.result, measured.series, measured.raw))
    table = pd.read_parquet(tmp_path / "timeseries.parquet")
    result = measured.result
    assert list(table.columns) == list(timeseries.COLUMNS)
    assert len(table) == 2 * -(-result.duration_s // 1)
    assert table.groupby("gpu_uuid").timestamp_s.apply(list).to_dict() == {A: [0.0, 1.0, 2.0], B: [0.0, 1.0, 2.0]}
    for uuid, watts in {A: 100.0, B: 400.0}.items():
        rows = table[table.gpu_uuid == uuid].sort_values("timestamp_s")
        assert rows.energy_j.is_monotonic_increasing
        assert rows.energy_j.iloc[-1] == pytest.approx((result.energy_per_device_j or {})[uuid], rel=1e-3)
        assert rows.power_w.tolist() == pytest.approx([watts] * 3)
        assert rows.output_tokens.is_monotonic_increasing
        assert rows.output_tokens.iloc[-1] == result.output_tokens
    assert set(table[table.gpu_uuid == A].throttle_reasons) == {0}
    assert set(table[table.gpu_uuid == B].throttle_reasons) == {SW_POWER_CAP}
    assert set(table[table.gpu_uuid == A].temperature_c) == {50.0}


def test_raw_ticks_of_every_board_are_kept_on_request(on_gpu: OnGpu, machine: Machine) -> None:
    """raw_samples holds each counter's ticks and each sensor's readings."""
    machine.play(Gpu(uuid=A), Gpu(uuid=B))
    raw = on_gpu(output={"raw_samples": True}, measurement={"min_duration_seconds": 0.5}).raw
    assert raw is not None
    assert set(raw["ticks"]) == set(raw["readings"]["gpu_uuid"]) == {A, B}


def test_the_gpus_memory_is_in_the_result(on_gpu: OnGpu, machine: Machine) -> None:
    """The board's size comes from its sensor."""
    machine.play(Gpu(memory_mb=40960))
    assert on_gpu(measurement={"min_duration_seconds": 0.3}).result.memory_total_mb == 40960.0


def test_skipping_to_settle_on_a_gpu_is_on_record(on_gpu: OnGpu, machine: Machine) -> None:
    """thermal_floor_seconds 0 on a GPU leaves its warning in the result."""
    machine.play(Gpu())
    warnings = on_gpu().result.measurement_warnings
    assert any(w.startswith("no_settling:") for w in warnings)
