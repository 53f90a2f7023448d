"""The pretended engine: exact durations, tokens that depend on seed and request only, failures on demand."""

from collections.abc import Callable
from typing import Any

import pytest

from llenergymeasure.core import registry
from llenergymeasure.core.contracts import Prompt, Request
from llenergymeasure.core.errors import BackendError

REQUESTS = [Request(0, (1, 2, 3), 4), Request(1, (4,), 9), Request(2, (5, 6), 1)]


def _load(loaded: Callable[..., Any], **section: Any) -> Any:
    return loaded("pretended", backend="synthetic", synthetic=section)


class Clock:
    """A clock that moves only when somebody sleeps."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


NOTHING = {"batch_overhead_ms": 0.0, "prefill_ms_per_token": 0.0, "decode_ms_per_step": 0.0}


@pytest.mark.parametrize(
    ("section", "milliseconds"),
    [
        pytest.param(NOTHING, 0, id="nothing"),
        pytest.param({**NOTHING, "batch_overhead_ms": 40.0}, 40, id="overhead once per batch"),
        pytest.param({**NOTHING, "prefill_ms_per_token": 2.0}, 6 * 2, id="prefill per prompt token"),
        pytest.param({**NOTHING, "decode_ms_per_step": 3.0}, 9 * 3, id="decode per step of the longest"),
        pytest.param(
            {"batch_overhead_ms": 20.0, "prefill_ms_per_token": 2.0, "decode_ms_per_step": 3.0}, 59, id="all together"
        ),
        pytest.param({}, 1.0 + 6 * 0.01 + 9 * 0.5, id="defaults"),
    ],
)
def test_a_batch_takes_exactly_what_its_settings_say(
    section: dict[str, float], milliseconds: float, loaded: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Overhead per batch, prefill per prompt token, decode per step of the longest request."""
    engine = _load(loaded, batch_size=3, **section)
    monkeypatch.setattr("llenergymeasure.backends.synthetic.time", Clock())
    generation = engine.generate(REQUESTS)
    assert 1e3 * (generation.end_s - generation.start_s) == pytest.approx(milliseconds, abs=1e-6)


def test_tokens_depend_on_seed_and_request_only(loaded: Callable[..., Any]) -> None:
    """Neither batch size nor order changes what a request yields; the seed does."""
    alone, together = _load(loaded, batch_size=1), _load(loaded, batch_size=3)
    one_by_one = [alone.generate([r]).output_token_ids[0] for r in reversed(REQUESTS)][::-1]
    assert list(together.generate(REQUESTS).output_token_ids) == one_by_one
    together.seed(1)
    assert list(together.generate(REQUESTS).output_token_ids) != one_by_one


def test_every_request_gets_its_own_length(loaded: Callable[..., Any]) -> None:
    """A request yields exactly as many tokens as it asks for."""
    generation = _load(loaded, batch_size=3).generate(REQUESTS)
    assert list(map(len, generation.output_token_ids)) == [4, 9, 1]


def test_a_word_is_a_token(loaded: Callable[..., Any]) -> None:
    """Prompt lengths are known without a tokeniser: one per word; ready ids pass through."""
    ids = _load(loaded).tokenise([Prompt(text="three little words"), Prompt(token_ids=(7, 8))], max_input_tokens=0)
    assert list(map(len, ids)) == [3, 2]
    assert ids[1] == (7, 8)


@pytest.mark.parametrize("after", [0, 2])
def test_it_fails_on_demand(after: int, loaded: Callable[..., Any]) -> None:
    """After the named number of batches the engine breaks as a real one does."""
    engine = _load(loaded, fail_after_batches=after)
    for _ in range(after):
        engine.generate([REQUESTS[0]])
    with pytest.raises(BackendError, match=f"after {after} batches"):
        engine.generate([REQUESTS[0]])


def test_it_pretends_and_needs_no_gpu() -> None:
    """Its results are flagged, it wants no weights and no GPU, and it is always installed."""
    assert not registry.is_real("synthetic")
    assert not registry.needs_weights("synthetic")
    assert registry.installed("synthetic")
    assert registry.gpu_count("synthetic", None) == 0
