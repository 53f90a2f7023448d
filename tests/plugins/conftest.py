"""Fixtures for plug-in tests: engines that are closed again, a machine with scripted GPUs, processes of their own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes.light_torch import lighten_torch
from fakes.nvml_script import Machine, install
from llenergymeasure import models
from llenergymeasure.core import registry
from llenergymeasure.core.config import ExperimentConfig
from llenergymeasure.core.contracts import Weights

TESTS = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="package", autouse=True)
def _light_torch() -> None:
    """Keep engine tests quick."""
    lighten_torch()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine whose NVML is the fake one; without a script it has no driver."""
    return install(tmp_path, monkeypatch)


@pytest.fixture
def loaded() -> Iterator[Callable[..., Any]]:
    """Load a backend's engine on a folder with the given fields; every engine is closed at the end."""
    engines: list[Any] = []

    def load(model: Path | str, *, backend: str = "pytorch", **fields: Any) -> Any:
        fields = {"precision": "fp32", "dataset": "builtin"} | fields
        config = ExperimentConfig(model=str(model), backend=backend, **fields)
        weights = (
            models.resolve(str(model), None, cache=Path("unused"))
            if registry.needs_weights(backend)
            else Weights(str(model), Path("unused"), "none")
        )
        engine = registry.engine(backend)
        engines.append(engine)
        engine.load(config, weights)
        return engine

    yield load
    for engine in engines:
        engine.close()


@pytest.fixture
def python() -> Callable[..., Any]:
    """Run code in a fresh interpreter and give what it printed last, read as JSON."""
    return _run


@pytest.fixture
def life() -> Callable[..., dict[str, Any]]:
    """Live an energy source's life in a fresh interpreter (fakes/energy_life.py)."""

    def run(name: str, *lengths_s: float, **variables: str) -> dict[str, Any]:
        call = "import runpy; runpy.run_module('fakes.energy_life', run_name='__main__')"
        found: dict[str, Any] = _run(call, name, *map(str, lengths_s), **variables)
        return found

    return run


def _run(code: str, *arguments: str, **variables: str) -> Any:
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(TESTS)]))
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": path, **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])
