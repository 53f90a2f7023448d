"""Waits between two runs: counted down on a monotonic clock, ended early by Enter on a terminal."""

import contextlib
import os
import select
import sys
import time
from collections.abc import Callable
from typing import Protocol

TICK_S = 1.0


class Clock(Protocol):
    """A monotonic clock that can wait; `wait` gives True if somebody wants to go on now."""

    def now_s(self) -> float:
        """Time in s; never goes back."""

    def wait(self, seconds: float) -> bool:
        """Pass that time, or less if somebody wants to go on."""


def pause(until_s: float, clock: Clock, tell: Callable[[float], None]) -> bool:
    """Wait until the clock shows `until_s`, telling the seconds left each second; give True if it was cut short."""
    while (left_s := until_s - clock.now_s()) > 0:
        tell(left_s)
        if clock.wait(min(TICK_S, left_s)):
            return True
    return False


class Terminal:
    """The clock of a person's machine: Enter on standard input ends a wait if that is a terminal and ours."""

    def __init__(self) -> None:
        self._listens = True

    def now_s(self) -> float:
        """CLOCK_MONOTONIC: steps of the wall clock do not move it."""
        return time.monotonic()

    def wait(self, seconds: float) -> bool:
        """Sleep, or until Enter was pressed."""
        descriptor = _own_terminal() if self._listens else None
        if descriptor is None:
            time.sleep(seconds)
            return False
        ready, _, _ = select.select([descriptor], [], [], seconds)
        if not ready:
            return False
        line = os.read(descriptor, 1024)
        self._listens = bool(line)  # nothing to read although ready: the terminal is gone
        return line.endswith(b"\n")


def _own_terminal() -> int | None:
    """Standard input if it is a terminal that this process may read: a job in the background would be stopped."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, replaced or not there at all
        descriptor = sys.stdin.fileno()
        if os.isatty(descriptor) and os.tcgetpgrp(descriptor) == os.getpgrp():
            return descriptor
    return None
