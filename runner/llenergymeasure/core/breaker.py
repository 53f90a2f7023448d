"""When a study gives up: after so many failures in a row it pauses, tries one run more, and stops if that fails."""

from dataclasses import dataclass, replace
from typing import Literal

PROBE_AFTER_S = 60.0
"""Pause before the probe: a driver that resets or a store that restarts needs about as long."""


@dataclass(frozen=True)
class Breaker:
    """Failures in a row so far, and the limit; 0 is none."""

    limit: int
    failures: int = 0

    def after(self, *, failed: bool) -> "Breaker":
        """The state after one more run."""
        return replace(self, failures=self.failures + 1 if failed else 0)

    @property
    def state(self) -> Literal["closed", "probe", "open"]:
        """closed: go on; probe: pause, then one run decides; open: the probe has failed, stop."""
        if self.limit == 0 or self.failures < self.limit:
            return "closed"
        return "probe" if self.failures == self.limit else "open"
