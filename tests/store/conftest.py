"""Fixtures of the store's tests: one measured result, and signal handlers put back."""

import signal
from collections.abc import Iterator

import pytest

from cli.conftest import _forking, quick_llem  # noqa: F401  (fixtures)
from llenergymeasure.measure import Measured, measure
from llenergymeasure.user_config import UserConfig
from store.pods import config


@pytest.fixture(autouse=True)
def _signals_put_back() -> Iterator[None]:
    """A run of a cluster listens to SIGTERM until its process ends; here the process goes on."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def measured() -> Measured:
    """A result of the pretended engine."""
    return measure(config(), UserConfig())
