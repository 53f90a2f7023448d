"""How long a process waits for what may still come: a store that is down, the end of a pause between measurements."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

from llenergymeasure.core.errors import BackendMissingError

if TYPE_CHECKING:
    import tenacity

STORE_EXTRA = "pip install 'llenergymeasure[store]'"
REFUSED_S = 30.0  # a refusal may be a credential that is not known everywhere yet; longer than this it is meant
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
SLICE_S = 0.5  # a sleeping process looks this often whether it was told to hurry, or whether the clock was set

T = TypeVar("T")


@dataclass(frozen=True)
class Clock:
    """Where time comes from; tests give their own."""

    monotonic: Callable[[], float] = time.monotonic
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    sleep: Callable[[float], None] = time.sleep


SYSTEM = Clock()


class MayPassError(Exception):
    """What was asked for failed now and may work later: no connection, an overloaded server, a full disk."""


class RefusedError(Exception):
    """What was asked for was refused: wrong credentials, no such bucket, no permission."""


def _silent(seconds: float, reason: str) -> None:
    """Say nothing."""


@dataclass
class Patience:
    """A budget of seconds for failures that may pass, shared by everything that draws on it.

    `on_retry` hears how long the next pause is and why.
    """

    budget_s: float
    clock: Clock = SYSTEM
    on_retry: Callable[[float, str], None] = _silent
    _end_s: float | None = field(default=None, init=False)
    _refused_s: float | None = field(default=None, init=False)
    _hurried: bool = field(default=False, init=False)

    @property
    def hurried(self) -> bool:
        """Someone does not want to wait any more."""
        return self._hurried

    def hurry(self, seconds: float) -> None:
        """Wait at most that long from now on; safe in a signal handler."""
        self._hurried = True
        self.budget_s = min(self.budget_s, seconds)
        if self._end_s is not None:
            self._end_s = min(self._end_s, self.clock.monotonic() + seconds)

    def call(self, action: Callable[[], T]) -> T:
        """Give what `action` gives, trying again after growing, jittered pauses while the budget lasts.

        Raises:
            MayPassError: The last one, when the budget is used up.
            RefusedError: The last one, after REFUSED_S or when the budget is used up.
            BackendMissingError: The library that retries is not installed; without a budget it is not needed.

        """
        if self.budget_s <= 0:
            return action()
        try:
            import tenacity
        except ModuleNotFoundError as err:
            raise BackendMissingError(f"waiting for a store needs tenacity; run: {STORE_EXTRA}") from err

        grown = tenacity.wait_random_exponential(multiplier=FIRST_PAUSE_S, max=LONGEST_PAUSE_S)
        self._end_s, self._refused_s = self.clock.monotonic() + self.budget_s, None
        try:
            return tenacity.Retrying(
                retry=tenacity.retry_if_exception_type((MayPassError, RefusedError)),
                wait=lambda state: min(grown(state), max(0.0, self._left_s(state))),
                stop=lambda state: self._left_s(state) <= 0,
                before_sleep=self._tell,
                sleep=self._pause,
                reraise=True,
            )(action)
        finally:
            self.budget_s, self._end_s = max(0.0, self._end_s - self.clock.monotonic()), None

    def _left_s(self, state: "tenacity.RetryCallState") -> float:
        now_s, end_s = self.clock.monotonic(), self._end_s or 0.0
        if state.outcome is None or not isinstance(state.outcome.exception(), RefusedError):
            self._refused_s = None
            return end_s - now_s
        self._refused_s = now_s if self._refused_s is None else self._refused_s
        return min(end_s, self._refused_s + REFUSED_S) - now_s

    def _tell(self, state: "tenacity.RetryCallState") -> None:
        reason = state.outcome.exception() if state.outcome else None
        self.on_retry(state.upcoming_sleep, str(reason))

    def _pause(self, seconds: float) -> None:
        hurried, until_s = self._hurried, self.clock.monotonic() + seconds
        while (left_s := until_s - self.clock.monotonic()) > 0 and self._hurried == hurried:
            self.clock.sleep(min(left_s, SLICE_S))


def wait_until(until: datetime, clock: Clock = SYSTEM) -> None:
    """Return when the wall clock shows `until`, also if it is set meanwhile."""
    while (left_s := (until - clock.now()).total_seconds()) > 0:
        clock.sleep(min(left_s, LONGEST_PAUSE_S))
