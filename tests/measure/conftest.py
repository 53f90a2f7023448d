"""Fixtures for measurements: a quick pretended experiment, a machine with scripted GPUs."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from fakes.nvml_script import Machine, install

from llenergymeasure.core.config import ExperimentConfig
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
