"""Fixtures of the study tests: studies run in this process, their runs in processes of their own."""

import pytest

from cli.process import FAST, over
from llenergymeasure import ExperimentConfig


@pytest.fixture(autouse=True)
def _children_keep_compiled_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """As users have it; else each run compiles all of its libraries again."""
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)


@pytest.fixture
def fast() -> ExperimentConfig:
    """An experiment of the pretended engine that takes milliseconds once its process is up."""
    return ExperimentConfig(**over(FAST))
