"""Fixtures for measurements: a quick pretended experiment, a machine with scripted GPUs."""

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from fakes.light_torch import lighten_torch
from fakes.nvml_script import Machine, install
from llenergymeasure.core.config import ExperimentConfig
from llenergymeasure.core.result import ExperimentResult
from llenergymeasure.measure import Measured, measure
from llenergymeasure.user_config import UserConfig

QUICK: dict[str, Any] = {
    "model": "pretended",
    "backend": "synthetic",
    "dataset": {"synthetic": {"input_len": 8, "output_len": 4}},
    "n": 3,
    "warmup": {"n_warmup": 1},
    "baseline": {"enabled": False},
    "energy": {"backend": "simulated"},
    "measurement": {"min_duration_seconds": 0},
}


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **base,
        **{
            k: _merged(base[k], v) if isinstance(v, dict) and isinstance(base.get(k), dict) else v
            for k, v in over.items()
        },
    }


@pytest.fixture(scope="package", autouse=True)
def _light_torch() -> None:
    """Keep engine tests quick."""
    lighten_torch()


@pytest.fixture
def config() -> Callable[..., ExperimentConfig]:
    """An experiment of milliseconds with a pretended engine and a pretended counter, changed by the given fields."""
    return lambda **fields: ExperimentConfig(**_merged(QUICK, fields))


@pytest.fixture
def run(config: Callable[..., ExperimentConfig]) -> Callable[..., Measured]:
    """Measure that experiment."""

    def start(*, user: dict[str, Any] | None = None, emit: Any = lambda _event: None, **fields: Any) -> Measured:
        return measure(config(**fields), UserConfig.model_validate(user or {}), emit=emit)

    return start


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine whose NVML is the fake one; without a script it has no driver."""
    return install(tmp_path, monkeypatch)


@pytest.fixture
def on_gpu(run: Callable[..., Measured], machine: Machine) -> Callable[..., Measured]:
    """Measure the quick experiment with the scripted GPUs' counters, without settling."""

    def start(**fields: Any) -> Measured:
        base = {"energy": {"backend": "nvml"}, "warmup": {"thermal_floor_seconds": 0}}
        return run(**_merged(base, fields))

    return start


@pytest.fixture
def child(config: Callable[..., ExperimentConfig], tmp_path: Path) -> Callable[..., ExperimentResult]:
    """Measure that experiment in a process of its own, as every runner does."""

    def start(**fields: Any) -> ExperimentResult:
        path = tmp_path / "experiment.json"
        path.write_text(config(**fields).model_dump_json(exclude_none=True), encoding="utf-8")
        command = [sys.executable, "-m", "llenergymeasure.cli", "experiment", "--config", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return ExperimentResult.from_json(done.stdout[done.stdout.index("{\n") :])

    return start
