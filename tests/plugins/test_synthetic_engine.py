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


def test_continuous_batching_fills_a_place_as_soon_as_it_is_free(loaded: Callable[..., Any]) -> None:
    """Two at once, a step of 3 s, 1 s per prompt token: who comes, who goes, and when, by hand."""
    engine = _load(loaded, batching="continuous", max_num_seqs=2, decode_ms_per_step=3000, prefill_ms_per_token=1000)
    engine._given_clock = clock = Clock()
    for request in REQUESTS:  # prompts of 3, 1, 2 tokens; outputs of 4, 9, 1
        engine.submit(request)
    assert (engine.capacity(), engine.running(), engine.waiting()) == (2, 0, 3)
    story = []
    while engine.waiting() or engine.running():
        ended = engine.step()
        story.append((clock.now_s - 1000, [f.request.index for f in ended], engine.running(), engine.decoded()))
    # 3 + 3 + 1 s for the first step of both, three of 3 s, then 3 + 2 s with the third request, five alone or last
    assert [s[0] for s in story] == [7, 10, 13, 16, 21, 24, 27, 30, 33]
    assert [s[1] for s in story] == [[], [], [], [0], [2], [], [], [], [1]]
    assert [s[2] for s in story] == [2, 2, 2, 1, 1, 1, 1, 1, 0]
    assert [s[3] for s in story] == [2, 4, 6, 8, 10, 11, 12, 13, 14]
    assert engine.step() == []
    assert clock.now_s == 1033


def test_an_ended_request_knows_its_times(loaded: Callable[..., Any]) -> None:
    """Start, first and last token; tokens between them are evenly spaced, none before the first."""
    engine = _load(loaded, batching="continuous", max_num_seqs=1, decode_ms_per_step=2000, prefill_ms_per_token=0)
    engine._given_clock = Clock()
    engine.submit(REQUESTS[0])
    (ended,) = [f for _ in range(4) for f in engine.step()]
    assert (ended.started_s, ended.first_token_s, ended.last_token_s) == (1000, 1002, 1008)
    assert len(ended.output_token_ids) == 4
    assert [ended.tokens_until(t) for t in (1001.9, 1002, 1005, 1006, 1008, 2000)] == [0, 1, 2.5, 3, 4, 4]


@pytest.mark.parametrize(
    ("section", "continuous"), [({}, False), ({"batching": "static"}, False), ({"batching": "continuous"}, True)]
)
def test_the_settings_say_how_it_batches(section: dict[str, Any], continuous: bool) -> None:
    """Static unless asked for."""
    assert registry.is_continuous("synthetic", registry.backend_settings("synthetic")(**section)) is continuous


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
