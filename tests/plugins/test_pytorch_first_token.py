"""When a batch's first token is there: between the model's first and second step, at no cost to ordinary batches."""

import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from llenergymeasure.core.contracts import PhaseTiming, Request

pytestmark = pytest.mark.model

BATCH = (Request(0, (5, 6, 7, 8), 5), Request(1, (9, 10), 5))


@pytest.fixture
def steps(tiny_model: Path, loaded: Callable[..., Any]) -> tuple[Any, list[tuple[float, float]]]:
    """An engine whose model's forward passes are timed from outside."""
    engine = loaded(tiny_model)
    passes: list[tuple[float, float]] = []
    started: list[float] = []
    engine._model.register_forward_pre_hook(lambda *_: started.append(time.monotonic()))
    engine._model.register_forward_hook(lambda *_: passes.append((started.pop(), time.monotonic())))
    return engine, passes


def test_the_first_token_lies_between_the_first_two_steps(steps: tuple[Any, list[tuple[float, float]]]) -> None:
    """The stamp comes after the prefill's forward pass and before the next one begins."""
    engine, passes = steps
    assert isinstance(engine, PhaseTiming)
    seen = engine.generate_timed(BATCH)
    assert len(passes) == 5
    (_, prefill_end_s), (second_start_s, _) = passes[:2]
    assert seen.first_token_s is not None
    assert seen.start_s < prefill_end_s <= seen.first_token_s <= second_start_s < seen.end_s
    assert all(a < b for (_, a), (b, _) in pairwise(passes))


def test_one_output_token_is_all_prefill(steps: tuple[Any, list[tuple[float, float]]]) -> None:
    """With a single output token the only forward pass ends before the stamp."""
    engine, passes = steps
    seen = engine.generate_timed([Request(0, (5, 6, 7), 1)])
    assert len(passes) == 1
    assert seen.first_token_s is not None
    assert passes[0][1] <= seen.first_token_s <= seen.end_s


def test_watching_changes_no_token(tiny_model: Path, loaded: Callable[..., Any]) -> None:
    """The same tokens with and without the stamp; an ordinary batch has no stamp and no streamer."""
    engine = loaded(tiny_model)
    handed: list[dict[str, Any]] = []
    plain = engine._model.generate
    engine._model.generate = lambda **kwargs: (handed.append(kwargs), plain(**kwargs))[1]
    ordinary, timed = engine.generate(BATCH), engine.generate_timed(BATCH)
    assert ordinary.output_token_ids == timed.output_token_ids
    assert ordinary.first_token_s is None
    assert ["streamer" in kwargs for kwargs in handed] == [False, True]
