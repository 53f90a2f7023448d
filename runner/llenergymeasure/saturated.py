"""Runs the measured window of a continuously batching engine: its queue never empties, its batch is always full.

One queue over the prompts in a circle. The first C requests, as many as run at once, get output lengths of
⌈L·i/C⌉, so that afterwards a request ends every L/C steps instead of all at once: the ages of the running requests are
spread as they are in long operation. The window opens at a completion when C requests have ended and closes k·n
completions later, k whole passes over the n prompts; ramp and tail lie outside (measurement.md §3).
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from llenergymeasure.core.contracts import Clock, ContinuousEngine, Finished, Generation, Request, Window, Work
from llenergymeasure.phases import Phases
from llenergymeasure.run_energy import RunEnergy
from llenergymeasure.window import ATTEND_S, PROGRESS_EVERY_S, Fed, asleep_s

MARGIN = 1.02  # the rate is known from C completions only, and the window must not be shorter than asked for
PIECE_S = 1.0  # of work between looks at the sensors while settling


@dataclass
class Feed:
    """An engine that is kept busy with the prompts in a circle; everything that it finished, and how full it ran."""

    engine: ContinuousEngine
    requests: Sequence[Request]
    done: list[Finished] = field(default_factory=list)
    submitted: int = 0
    clock: Clock = time

    @property
    def capacity(self) -> int:
        """Requests that run at once, C."""
        return self.engine.capacity()

    @property
    def outstanding(self) -> int:
        """Requests that were submitted and have not ended."""
        return self.submitted - len(self.done)

    def submit(self, count: int) -> None:
        """Queue the next requests of the circle."""
        for _ in range(count):
            self.engine.submit(self._next())
            self.submitted += 1

    def top_up(self) -> None:
        """Have C requests waiting behind the C that run."""
        self.submit(max(0, 2 * self.capacity - self.outstanding))

    def step(self) -> int:
        """Let the engine go on; gives how many requests ran meanwhile."""
        ended = self.engine.step()
        self.done += ended
        return self.engine.running() + len(ended)

    def some_work(self) -> None:
        """Work for about a second with a queue that does not empty."""
        until_s = self.clock.monotonic() + PIECE_S
        while self.clock.monotonic() < until_s:
            self.top_up()
            self.step()

    def per_second(self) -> float:
        """Completions per second, of the last C."""
        last = self.done[-self.capacity :]
        begin_s = self.done[-len(last) - 1].last_token_s if len(self.done) > len(last) else last[0].started_s
        seconds = last[-1].last_token_s - begin_s
        return len(last) / seconds if seconds > 0 else math.inf

    def _next(self) -> Request:
        number, count = self.submitted, len(self.requests)
        request = self.requests[number % count]
        if number >= self.capacity:
            return request
        return replace(request, max_new_tokens=math.ceil(request.max_new_tokens * (number + 1) / self.capacity))


def measure(feed: Feed, energy: RunEnergy, phases: Phases, *, least_s: float) -> Fed:
    """Fill the engine, measure whole passes over the prompts while its queue is full, let it run empty.

    Args:
        feed: New, or as the settling left it: at work.
        energy: The run's source.
        phases: Hears how far it is.
        least_s: Least length of the window.

    """
    energy.note_processes()
    energy.attend()
    slept_s = asleep_s()
    while len(feed.done) < feed.capacity:
        feed.top_up()
        feed.step()
    rate, count = feed.per_second(), len(feed.requests)
    passes = max(1, math.ceil(MARGIN * least_s * rate / count))
    phases.emit({"event": "expected", "phase": "window", "seconds": round(passes * count / rate, 1)})
    before = feed.engine.decoded()
    behind = feed.capacity if before is not None else 2 * feed.capacity  # tokens by times: the load must not change
    feed.submit(max(0, passes * count + behind - feed.outstanding))
    first, preempted = len(feed.done), feed.engine.preemptions()
    opened = _Opened(energy.open("window"), first, passes)
    full_s = _run(feed, energy, phases, opened, least_s)
    span = Window("window", opened.start_s, energy.close("window", "loaded"))
    after, inside, preempted = feed.engine.decoded(), feed.done[first:], feed.engine.preemptions() - preempted
    while feed.outstanding:  # when their last tokens come, those at the edges are known
        feed.step()
    energy.note_processes()
    decoded = after - before if after is not None and before is not None else _by_times(feed.done, span)
    work = _work(feed, span, opened.passes, decoded)
    work = replace(work, mean_running=full_s / span.duration_s, preemptions=preempted)
    return Fed(span, [_generation(f) for f in inside], work, asleep_s() - slept_s)


@dataclass
class _Opened:
    """The window that is open: its start, s, how many requests had ended by then, and its passes."""

    start_s: float
    first: int
    passes: int

    def left(self, feed: Feed) -> int:
        """Requests that have to end before it closes."""
        return self.first + self.passes * len(feed.requests) - len(feed.done)


def _run(feed: Feed, energy: RunEnergy, phases: Phases, opened: _Opened, least_s: float) -> float:
    """Go on until the window's last completion; gives the integral of running requests over time."""
    before_s = told_s = opened.start_s
    full_s, attended = 0.0, False
    while (left := opened.left(feed)) > 0:
        ran = feed.step()
        now_s = feed.clock.monotonic()
        step_s, before_s = now_s - before_s, now_s
        full_s += ran * step_s
        ended = len(feed.done) - opened.first
        left_s = (now_s - opened.start_s) * left / ended if ended else math.inf
        if (
            left <= feed.capacity // 2 + 1 and now_s - opened.start_s + left_s < least_s
        ):  # slower at first than it is now
            opened.passes += 1
            feed.submit(len(feed.requests))
        elif not attended and left_s <= ATTEND_S + 2 * step_s:
            energy.attend()
            attended = True
        if now_s - told_s >= PROGRESS_EVERY_S:
            told_s = now_s
            phases.progress("window", ended, opened.passes * len(feed.requests))
    return full_s


def _by_times(done: Sequence[Finished], span: Window) -> float:
    """Tokens decoded inside, where only a request's times are known (measurement.md §4)."""
    return sum(f.tokens_until(span.end_s) - f.tokens_until(span.start_s) for f in done)


def _work(feed: Feed, span: Window, passes: int, decoded: float) -> Work:
    """What was prefilled and decoded inside, against what the passes hold."""
    prefilled = sum(len(f.request.token_ids) for f in feed.done if span.start_s < f.first_token_s <= span.end_s)
    planned_in = passes * sum(len(r.token_ids) for r in feed.requests)
    planned_out = passes * sum(r.max_new_tokens for r in feed.requests)
    return Work(
        "saturated",
        concurrency=feed.capacity,
        imbalance=prefilled / planned_in - decoded / planned_out,
        edges="loaded",
        input_tokens=prefilled,
        output_tokens=round(decoded),
    )


def _generation(ended: Finished) -> Generation:
    """One request as the record of a batch of one."""
    return Generation(
        (ended.request,), (ended.output_token_ids,), ended.started_s, ended.last_token_s, ended.first_token_s
    )
