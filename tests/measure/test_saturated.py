"""The window of a continuously batching engine: where it opens and closes, what is in it, and that the queue is full."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from llenergymeasure import preflight, saturated
from llenergymeasure.backends import synthetic
from llenergymeasure.core.config import ExperimentConfig
from llenergymeasure.core.contracts import Finished, Request, Weights
from llenergymeasure.measure import Measured
from llenergymeasure.phases import Phases, silent
from llenergymeasure.window import Fed


@dataclass
class Clock:
    """A clock that moves only when somebody sleeps."""

    now_s: float = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float, /) -> None:
        self.now_s += seconds


@dataclass
class Marks:
    """In place of an energy source: notes what is asked of it, and when."""

    clock: Clock
    heard: list[tuple[str, float]] = field(default_factory=list)

    def note_processes(self) -> None:
        """Nothing computes here."""

    def attend(self) -> None:
        self.heard.append(("attend", self.clock.now_s))

    def open(self, name: str) -> float:
        self.heard.append((f"open {name}", self.clock.now_s))
        return self.clock.now_s

    def close(self, name: str, edges: str) -> float:
        self.heard.append((f"close {name} {edges}", self.clock.now_s))
        return self.clock.now_s


class Watched(synthetic.Engine):
    """The pretended engine, which notes what it was given and how long its queue was."""

    def __init__(self, clock: Clock, *, counts: bool = True) -> None:
        super().__init__(clock)
        self.given: list[Request] = []
        self.queues: list[tuple[float, int, int]] = []
        self.counts, self.time = counts, clock

    def submit(self, request: Request) -> None:
        """Note it."""
        self.given.append(request)
        super().submit(request)

    def step(self) -> list[Finished]:
        """Note the queue before the step."""
        self.queues.append((self.time.now_s, self.waiting(), self.running()))
        return super().step()

    def decoded(self) -> int | None:
        """Tell, or not."""
        return super().decoded() if self.counts else None


LENGTHS = [10] * 6


def _prompts(lengths: Sequence[int] = LENGTHS) -> list[Request]:
    return [Request(i, (0,) * (i + 1), n) for i, n in enumerate(lengths)]


def _feed(clock: Clock, prompts: Sequence[Request], *, counts: bool = True, capacity: int = 4) -> saturated.Feed:
    """An engine of four places and steps of a second, whose prefill takes no time."""
    section = {
        "batching": "continuous",
        "max_num_seqs": capacity,
        "prefill_ms_per_token": 0,
        "decode_ms_per_step": 1000,
    }
    engine = Watched(clock, counts=counts)
    engine.load(ExperimentConfig(model="m", backend="synthetic", synthetic=section), Weights("m", Path(), "none"))
    return saturated.Feed(engine, prompts, clock=clock)


def _measure(feed: saturated.Feed, clock: Clock, least_s: float = 0.0) -> tuple[Fed, Marks]:
    marks = Marks(clock)
    found: Any = marks
    return saturated.measure(feed, found, Phases(silent), least_s=least_s), marks


def test_it_opens_when_as_many_have_ended_as_can_run_and_closes_a_pass_later() -> None:
    """Four places, outputs of 10: the first four get 3, 5, 8, 10; they end at 3, 5, 8, 10 s, the others 10 s after."""
    clock = Clock()
    feed = _feed(clock, _prompts())
    fed, marks = _measure(feed, clock)
    engine: Any = feed.engine
    assert [r.max_new_tokens for r in engine.given[:6]] == [3, 5, 8, 10, 10, 10]
    assert [r.index for r in engine.given[:9]] == [0, 1, 2, 3, 4, 5, 0, 1, 2]
    assert (fed.window.start_s, fed.window.end_s) == (10.0, 25.0)
    assert [g.end_s for g in fed.generations] == [13.0, 15.0, 18.0, 20.0, 23.0, 25.0]
    assert [m for m, _ in marks.heard] == ["attend", "open window", "attend", "close window loaded"]
    assert feed.outstanding == 0


def test_its_work_is_that_of_whole_passes() -> None:
    """Four places for 15 s decode the 60 tokens of six requests, and six are prefilled meanwhile: nothing is uneven."""
    clock = Clock()
    fed, _ = _measure(_feed(clock, _prompts()), clock)
    work = fed.work
    assert (work.mode, work.edges, work.concurrency, work.mean_running) == ("saturated", "loaded", 4, 4.0)
    assert (work.output_tokens, work.input_tokens) == (60, 1 + 2 + 3 + 4 + 5 + 6)
    assert work.imbalance == pytest.approx(0.0, abs=1e-12)
    assert (work.preemptions, work.itl_s) == (0, None)


def test_the_queue_never_empties_inside() -> None:
    """At every step of the window somebody waits and every place is taken."""
    clock = Clock()
    feed = _feed(clock, _prompts())
    fed, _ = _measure(feed, clock, 60.0)
    engine: Any = feed.engine
    inside = [q for q in engine.queues if fed.window.start_s <= q[0] < fed.window.end_s]
    assert min(waiting for _, waiting, _ in inside) >= 1
    assert min(waiting + running for _, waiting, running in inside) >= 4


@pytest.mark.parametrize(
    ("least_s", "passes"),
    [
        pytest.param(0.0, 1, id="one pass"),
        pytest.param(15.0, 2, id="a margin over the rate"),
        pytest.param(40.0, 3, id="three passes of 15 s"),
        pytest.param(100.0, 7, id="seven"),
    ],
)
def test_it_lasts_as_long_as_asked_for_in_whole_passes(least_s: float, passes: int) -> None:
    """As many passes over the prompts as the least length needs, known from how fast requests ended before."""
    clock = Clock()
    fed, _ = _measure(_feed(clock, _prompts()), clock, least_s)
    assert len(fed.generations) == 6 * passes
    assert fed.window.duration_s == 15.0 * passes >= least_s


def test_a_window_that_would_be_too_short_goes_on_for_another_pass() -> None:
    """The ramp has short outputs, so it promises too little: requests of mixed lengths end faster than it said."""
    clock = Clock()
    feed = _feed(clock, _prompts([30, 30, 30, 30, 4, 4, 4, 4]))
    fed, _ = _measure(feed, clock, 100.0)
    assert fed.window.duration_s >= 100.0
    assert len(fed.generations) % 8 == 0


def test_after_settling_it_opens_at_once() -> None:
    """An engine that is at work already is neither emptied nor filled anew."""
    clock = Clock()
    feed = _feed(clock, _prompts())
    while clock.now_s < 40:
        feed.some_work()
    settled_s = clock.now_s
    fed, _ = _measure(feed, clock)
    assert fed.window.start_s == settled_s
    assert len(fed.generations) == 6
    assert fed.work.mean_running == 4.0


def test_tokens_by_times_are_those_that_were_counted() -> None:
    """An engine that tells only when requests began and ended gives the same tokens, within half a token per place."""
    found = []
    for counts in (True, False):
        clock = Clock()
        fed, _ = _measure(_feed(clock, _prompts([10, 7, 13, 9, 4, 17]), counts=counts), clock, 50.0)
        found.append(fed)
    assert found[0].window == found[1].window
    assert found[1].work.output_tokens == pytest.approx(found[0].work.output_tokens, abs=2)


def test_auto_takes_the_window_that_suits_the_engine(run: Callable[..., Measured]) -> None:
    """Continuous batching is measured saturated, static batches in passes; who says passes gets passes."""
    quick = {"decode_ms_per_step": 1.0, "max_num_seqs": 3}
    continuous = run(n=5, synthetic={"batching": "continuous", **quick}).result
    assert (continuous.window_mode, continuous.requests) == ("saturated", 5)
    assert continuous.latency is not None
    assert (continuous.latency.mode, continuous.latency.samples) == ("per_request", 5)
    assert continuous.output_tokens == pytest.approx(20, abs=3)
    assert continuous.energy_per_output_token_j == pytest.approx(
        continuous.energy_total_j / continuous.output_tokens if continuous.energy_total_j else None
    )
    assert run(n=5, synthetic=quick).result.window_mode == "passes"
    fields = {"measurement": {"window": "passes"}, "synthetic": {"batching": "continuous", **quick}}
    assert run(n=5, **fields).result.window_mode == "passes"


def test_saturated_needs_continuous_batching(config: Callable[..., ExperimentConfig]) -> None:
    """Static batches cannot be measured so; pre-flight says it."""
    (problem,) = preflight.engine_problems(config(measurement={"window": "saturated"}))
    assert "continuous batching" in str(problem)
    assert "synthetic.batching=continuous" in str(problem)
    static = config(backend="pytorch", model="x", measurement={"window": "saturated"})
    (problem,) = [p for p in preflight.engine_problems(static) if "saturated" in str(p)]
    assert "backend pytorch has not; use passes" in str(problem)
    fields = {"measurement": {"window": "saturated"}, "synthetic": {"batching": "continuous"}}
    assert preflight.engine_problems(config(**fields)) == []
