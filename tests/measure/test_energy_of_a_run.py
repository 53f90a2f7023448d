"""Energy of a whole run with a pretended counter, and of runs that have none: numbers, reasons, verdicts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llenergymeasure.core import registry
from llenergymeasure.core.errors import PreFlightError, run_exit_code
from llenergymeasure.core.result import ExperimentResult
from llenergymeasure.energy import zeus
from llenergymeasure.measure import Measured
from llenergymeasure.user_config import cache_dir

Run = Callable[..., Measured]


def test_known_power_gives_known_energy(run: Run) -> None:
    """With a counter that plays a constant 250 W the total is 250 x window, and all shares follow."""
    result = run(energy={"simulated": {"load_power_w": 250.0}}, measurement={"min_duration_seconds": 0.5}).result
    expected = 250.0 * result.duration_s
    assert result.energy_total_j == pytest.approx(expected, abs=2e-3)
    assert result.mean_power_w == pytest.approx(250.0, rel=1e-4)
    assert result.energy_per_device_j == {"GPU-simulated-0": result.energy_total_j}
    assert result.energy_per_output_token_j == pytest.approx(expected / result.output_tokens, rel=1e-4)
    assert (result.energy_source, result.energy_kind, result.synthetic) == ("simulated", "simulated", True)


def test_a_believable_run_with_its_baseline(run: Run) -> None:
    """5 s idle at 80 W, then more than 5 s of work at 300 W: baseline, adjusted energy, verdict, nothing cached."""
    result = run(baseline={"enabled": True, "duration_seconds": 5}, measurement={"min_duration_seconds": 5.2}).result
    assert result.baseline_power_w == pytest.approx(80.0, rel=1e-3)
    assert result.energy_breakdown.baseline_method == "fresh"
    assert result.energy_adjusted_j == pytest.approx((300.0 - 80.0) * result.duration_s, rel=2e-3)
    assert result.energy_adjusted_j == pytest.approx(
        result.energy_total_j - result.baseline_power_w * result.duration_s
    )
    assert result.phases["baseline"].end_s - result.phases["baseline"].start_s >= 5
    assert result.phases["baseline"].end_s <= result.phases["load"].start_s
    assert result.verdict.state == "valid"
    codes = {w.partition(":")[0] for w in result.measurement_warnings}
    assert {"short_window"} <= codes <= {"short_window", "imprecise"}  # the step from idle to load is near the edge
    assert ExperimentResult.from_json(result.to_json()) == result
    assert not (cache_dir() / "baselines.json").exists()  # a pretended idle is of no use to real runs


@pytest.mark.parametrize(
    ("backend", "said"),
    [pytest.param("none", "energy.backend is none", id="none"), pytest.param("auto", "no energy source", id="auto")],
)
def test_without_a_source_energy_is_null_and_speed_is_not(backend: str, said: str, run: Run, machine: Any) -> None:
    """No joules, the reason in words, verdict unmeasured; tokens and speed are reported all the same."""
    machine.play()
    result = run(energy={"backend": backend}).result
    assert result.energy_total_j is None
    assert result.energy_per_output_token_j is None
    assert result.energy_source is None
    assert said in result.null_reasons["energy_total_j"]
    assert result.verdict.state == "unmeasured"
    assert said in result.verdict.reasons[0].sentence
    assert result.tokens_per_second > 0
    assert result.output_tokens == 12
    assert result.baseline_power_w is None


def test_auto_names_every_source_that_it_tried(run: Run, machine: Any) -> None:
    """The reason lists Zeus, NVML and CodeCarbon, in the order in which they are tried."""
    machine.play()
    reason = run(energy={"backend": "auto"}).result.null_reasons["energy_total_j"]
    positions = [reason.index(name) for name in ("zeus", "nvml", "codecarbon")]
    assert positions == sorted(positions)


def test_the_users_own_default_source_is_used(run: Run) -> None:
    """`measurement.energy_backend` of the user's file stands for auto; the experiment's own choice beats it."""
    user = {"measurement": {"energy_backend": "simulated"}}
    assert run(user=user, energy={"backend": "auto"}).result.energy_source == "simulated"
    assert run(user=user, energy={"backend": "none"}).result.energy_source is None


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        pytest.param("zeus", 'pip install "llenergymeasure[zeus]"', id="zeus"),
        pytest.param("codecarbon", 'pip install "llenergymeasure[codecarbon]"', id="codecarbon"),
        pytest.param("nvml", "run on an NVIDIA GPU", id="nvml"),
    ],
)
def test_a_source_that_was_named_must_work(
    name: str, fix: str, run: Run, machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An explicit choice that is missing here is an error with the way to get it, before anything is loaded."""
    import sys

    machine.play()
    if name != "nvml":
        monkeypatch.setitem(sys.modules, name, None)
    events: list[dict[str, Any]] = []
    with pytest.raises(PreFlightError) as caught:
        run(energy={"backend": name}, emit=events.append)
    assert f"energy.backend: {name}" in str(caught.value)
    assert fix in str(caught.value)
    assert run_exit_code(caught.value) == 11
    assert [e["phase"] for e in events] == ["preflight"]


def test_zeus_without_a_gpu_and_without_rapl_is_refused(
    run: Run, machine: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It could give nothing: refused before anything is loaded, not after a window of a minute."""
    machine.play()
    monkeypatch.setattr(zeus, "RAPL", (str(tmp_path / "none"),))
    with pytest.raises(PreFlightError, match="no GPU is visible, and this host has no RAPL counter; run on an NVIDIA"):
        run(energy={"backend": "zeus"})
    monkeypatch.setattr(zeus, "RAPL", (str(tmp_path),))
    assert zeus.Source().availability().ok


@pytest.mark.parametrize("name", ["zeus", "codecarbon"])
def test_a_named_source_without_a_gpu_measures_the_host_only(
    name: str, child: Callable[..., ExperimentResult], machine: Any
) -> None:
    """The real library on a machine without a GPU: GPU energy null with a reason, host energy apart or null."""
    machine.play()
    if not registry.energy_source(name).availability().ok:
        pytest.skip(
            "this host has no RAPL counter, so Zeus refuses: test_zeus_without_a_gpu_and_without_rapl_is_refused"
        )
    result = child(energy={"backend": name}, measurement={"min_duration_seconds": 0.3})
    assert result.energy_total_j is None
    assert "no GPU is visible" in result.null_reasons["energy_total_j"]
    assert result.verdict.state == "unmeasured"
    assert result.energy_source == name
    assert (result.host_energy_j is None) is ("host_energy_j" in result.null_reasons)
    assert result.host_energy_j != 0.0


def test_carbon_follows_the_users_intensity(run: Run) -> None:
    """Grams appear only where an intensity is known, from the measured joules."""
    user = {"measurement": {"carbon_intensity_gco2_kwh": 350.0, "datacenter_pue": 1.2}}
    assert run().result.co2_estimate_g is None
    result = run(user=user).result
    assert result.co2_estimate_g == pytest.approx(result.energy_total_j / 3.6e6 * 350.0 * 1.2)


@pytest.mark.parametrize(
    ("prompts", "allow", "refused"),
    [
        pytest.param(["same", "same", "same"], False, True, id="constant"),
        pytest.param(["same", "same", "same"], True, False, id="constant, allowed"),
        pytest.param(["one", "two", "three"], False, False, id="varied"),
    ],
)
def test_constant_prompts_make_energy_unbelievable(
    prompts: list[str], allow: bool, refused: bool, run: Run, tmp_path: Any
) -> None:
    """Power depends on operand values: equal prompts are unrealistic_values unless allow_dummy says otherwise."""
    path = tmp_path / "p.jsonl"
    path.write_text("".join(f'{{"prompt": "{p}"}}\n' for p in prompts))
    result = run(dataset=str(path), measurement={"allow_dummy": allow}).result
    assert ("unrealistic_values" in [r.code for r in result.verdict.reasons]) is refused
    if refused:
        (reason,) = [r for r in result.verdict.reasons if r.code == "unrealistic_values"]
        assert "measurement.allow_dummy" in reason.fix


def test_an_engine_that_fails_leaves_no_sampler_running(on_gpu: Run, machine: Any) -> None:
    """After a crash in the window the source is stopped, too."""
    import os

    from fakes.nvml_script import Gpu, children
    from llenergymeasure.core.errors import BackendError

    machine.play(Gpu())
    with pytest.raises(BackendError):
        on_gpu(synthetic={"fail_after_batches": 2})
    assert children(os.getpid()) == []
