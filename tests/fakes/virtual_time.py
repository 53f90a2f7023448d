"""An event loop whose clock jumps to the next timer when nothing is left to do: hours pass in milliseconds."""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

T = TypeVar("T")

BEGINNING = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


class StuckError(Exception):
    """Nothing is scheduled any more and the test still waits."""


class _Jump(selectors.SelectSelector):
    """Instead of sleeping until the next timer, moves the clock there."""

    jump: Callable[[float], None]

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise StuckError("nothing will ever happen")
        if timeout > 0:
            self.jump(timeout)
        return super().select(0)


class _Inline(ThreadPoolExecutor):
    """Runs at once what is sent to a thread, so that the order of events is the same every time."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as err:
            future.set_exception(err)
        return future


class VirtualLoop(asyncio.SelectorEventLoop):
    """Its `time()` starts at 0 and moves only when everything waits."""

    def __init__(self) -> None:
        self._at = 0.0
        selector = _Jump()
        selector.jump = self._jump
        super().__init__(selector)
        self.set_default_executor(_Inline(max_workers=1))

    def _jump(self, seconds: float) -> None:
        self._at += seconds

    def time(self) -> float:
        return self._at


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in virtual time; whatever still runs at its end is cancelled."""
    loop = VirtualLoop()
    asyncio.set_event_loop(loop)
    broken: list[BaseException] = []
    loop.set_exception_handler(lambda _loop, about: broken.append(about.get("exception") or RuntimeError(str(about))))
    try:
        result = loop.run_until_complete(main)
        if broken:
            raise broken[0]
        return result
    except AssertionError as err:
        raise (broken or [err])[0] from None
    finally:
        for _ in range(100):  # wait_for of Python 3.11 may swallow a cancellation
            rest = asyncio.all_tasks(loop)
            for task in rest:
                task.cancel()
            if not rest:
                break
            loop.run_until_complete(asyncio.wait(rest, timeout=0.001))
        asyncio.set_event_loop(None)
        loop.close()


def now() -> datetime:
    """The instant that the running loop's clock stands for."""
    return BEGINNING + timedelta(seconds=asyncio.get_running_loop().time())


def seconds() -> float:
    """The running loop's clock."""
    return asyncio.get_running_loop().time()


def later(delay_s: float, call: Callable[..., object], *args: Any) -> asyncio.TimerHandle:
    """Call something in `delay_s` s of virtual time."""
    return asyncio.get_running_loop().call_later(delay_s, call, *args)
