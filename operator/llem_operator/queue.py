"""A keyed, rate-limited work queue: one worker per key, dirty again while it works, backoff with jitter, fairness.

Keys of one study form a lane; lanes take turns, so that a study of thousands does not hold up a small one.
"""

import asyncio
import hashlib
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

BACKOFF_BASE_S, BACKOFF_MAX_S = 0.5, 60.0


class KeyedQueue(Generic[K]):
    """Keys to be looked at; `lane` groups them for fairness, `clock` gives seconds (the event loop's by default)."""

    def __init__(self, lane: Callable[[K], Hashable], clock: Callable[[], float] | None = None) -> None:
        self._lane = lane
        self._clock = clock or asyncio.get_running_loop().time
        self._ready: OrderedDict[Hashable, deque[K]] = OrderedDict()
        self._queued: set[K] = set()
        self._working: set[K] = set()
        self._dirty: set[K] = set()
        self._later: dict[K, asyncio.TimerHandle] = {}
        self._due: dict[K, float] = {}
        self._failures: dict[K, int] = {}
        self._rests_until: dict[K, float] = {}
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        """Keys that are ready now."""
        return len(self._queued)

    def add(self, key: K) -> None:
        """Look at a key as soon as a worker is free; at once after the present look if one is under way.

        A key that has failed keeps its pause: what failed may well have made the event that adds it.
        """
        if key in self._failures and key in self._due:
            return
        rest_s = self._rests_until.get(key, 0.0) - self._clock()
        if key in self._working:
            self._dirty.add(key)
        elif rest_s > 0:
            self.add_after(key, rest_s)
        elif key not in self._queued:
            self._rests_until.pop(key, None)
            self._queued.add(key)
            self._ready.setdefault(self._lane(key), deque()).append(key)
            self._wake.set()

    def rest(self, key: K, seconds: float) -> None:
        """Look at a key not before so many s from now, however often it is added."""
        self._rests_until[key] = self._clock() + seconds

    def add_after(self, key: K, delay_s: float) -> None:
        """Look at a key in `delay_s` s, or earlier if it was asked for earlier."""
        if delay_s <= 0:
            self.add(key)
            return
        due = self._clock() + delay_s
        if key in self._due and self._due[key] <= due:
            return
        if key in self._later:
            self._later[key].cancel()
        self._due[key] = due
        self._later[key] = asyncio.get_running_loop().call_later(delay_s, self._now_due, key)

    def _now_due(self, key: K) -> None:
        self._later.pop(key, None)
        self._due.pop(key, None)
        self.add(key)

    async def get(self) -> K:
        """Wait for a key and take it; no other worker gets it until `done`."""
        while not self._queued:
            self._wake.clear()
            await self._wake.wait()
        lane, keys = next(iter(self._ready.items()))
        key = keys.popleft()
        if keys:
            self._ready.move_to_end(lane)
        else:
            del self._ready[lane]
        self._queued.discard(key)
        self._working.add(key)
        return key

    def done(self, key: K) -> None:
        """The look ended; a key that became dirty meanwhile is queued again."""
        self._working.discard(key)
        if key in self._dirty:
            self._dirty.discard(key)
            self.add(key)

    def succeeded(self, key: K) -> None:
        """Forget earlier failures of a key."""
        self._failures.pop(key, None)

    def failed(self, key: K, at_least_s: float = 0.0) -> float:
        """Try a key again after a pause that doubles with each failure in a row; gives the pause in s."""
        count = self._failures[key] = self._failures.get(key, 0) + 1
        pause: float = min(BACKOFF_MAX_S, BACKOFF_BASE_S * 2.0 ** min(count - 1, 10))
        pause = max(at_least_s, pause * (0.75 + 0.5 * _draw(key, count)))
        self.add_after(key, pause)
        return pause


def _draw(key: Hashable, count: int) -> float:
    """Jitter in [0, 1) that differs by key and try."""
    return hashlib.sha256(f"{key}/{count}".encode()).digest()[0] / 256
