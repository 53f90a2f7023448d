"""Fixtures of the study tests: studies run in this process, their runs in processes of their own."""

from pathlib import Path

import pytest

from cli.process import FAST, over
from llenergymeasure import ExperimentConfig
from study.stand_in import Child


@pytest.fixture(autouse=True)
def _children_keep_compiled_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """As users have it; else each run compiles all of its libraries again."""
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)


@pytest.fixture
def fast() -> ExperimentConfig:
    """An experiment of the pretended engine that takes milliseconds once its process is up."""
    return ExperimentConfig(**over(FAST))


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Child:
    """A stand-in child; tell it what it does."""
    return Child(tmp_path, monkeypatch)
