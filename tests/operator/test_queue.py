"""The work queue: one worker per key, dirty again while it works, lanes in turn, growing pauses. In virtual time."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from fakes import virtual_time
from llem_operator.queue import BACKOFF_MAX_S, KeyedQueue

Key = tuple[str, str]


def play(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    virtual_time.run(scenario())


def a_queue() -> KeyedQueue[Key]:
    """Keys are lane and name."""
    return KeyedQueue(lambda key: key[0])


async def taken(queue: KeyedQueue[Key]) -> Key | None:
    """A key that is ready now."""
    try:
        return await asyncio.wait_for(queue.get(), timeout=0.001)
    except TimeoutError:
        return None


def test_lanes_take_turns() -> None:
    """A study of a thousand runs does not hold up one of two."""

    async def scenario() -> None:
        queue = a_queue()
        for i in range(1000):
            queue.add(("giant", str(i)))
        queue.add(("small", "a"))
        queue.add(("small", "b"))
        order = [await queue.get() for _ in range(4)]
        assert order == [("giant", "0"), ("small", "a"), ("giant", "1"), ("small", "b")]
        assert len(queue) == 998

    play(scenario)


def test_a_key_is_with_one_worker_and_queued_once() -> None:
    """Added again while it waits: one look. Added again while it is looked at: one more look, afterwards."""

    async def scenario() -> None:
        queue = a_queue()
        for _ in range(3):
            queue.add(("s", "a"))
        assert await taken(queue) == ("s", "a")
        assert await taken(queue) is None
        for _ in range(3):
            queue.add(("s", "a"))
        assert await taken(queue) is None
        queue.done(("s", "a"))
        assert await taken(queue) == ("s", "a")
        queue.done(("s", "a"))
        assert await taken(queue) is None

    play(scenario)


@pytest.mark.parametrize(("first", "second"), [(5, 50), (50, 5)])
def test_of_two_times_the_earlier_counts(first: float, second: float) -> None:
    """Asked for twice, looked at once, at the earlier time."""

    async def scenario() -> None:
        queue = a_queue()
        queue.add_after(("s", "a"), first)
        queue.add_after(("s", "a"), second)
        assert await queue.get() == ("s", "a")
        assert virtual_time.seconds() == pytest.approx(5)
        queue.done(("s", "a"))
        await asyncio.sleep(100)
        assert len(queue) == 0

    play(scenario)


def test_no_pause_is_now() -> None:
    """A time that has passed is no reason to wait."""

    async def scenario() -> None:
        queue = a_queue()
        queue.add_after(("s", "a"), -3)
        assert await taken(queue) == ("s", "a")

    play(scenario)


def test_pauses_after_failures_double_up_to_a_minute_and_differ_by_key() -> None:
    """Half a second, one, two …; with jitter, so that a thousand keys do not come back at once."""

    async def scenario() -> None:
        queue = a_queue()
        pauses = [queue.failed(("s", "a")) for _ in range(12)]
        for n, pause in enumerate(pauses):
            plain = min(BACKOFF_MAX_S, 0.5 * 2**n)
            assert 0.75 * plain <= pause <= 1.25 * plain
        assert len({queue.failed(("s", str(i))) for i in range(50)}) > 25
        queue.succeeded(("s", "a"))
        assert queue.failed(("s", "a")) < 1

    play(scenario)


def test_the_servers_own_word_on_when_to_try_again_is_kept() -> None:
    """Retry-After is a least."""

    async def scenario() -> None:
        queue = a_queue()
        assert queue.failed(("s", "a"), 17.0) == 17.0
        assert await queue.get() == ("s", "a")
        assert virtual_time.seconds() == pytest.approx(17)

    play(scenario)
