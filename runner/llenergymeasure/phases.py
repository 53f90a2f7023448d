"""Times the phases of an experiment and tells whoever listens when each begins and how far it is."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from llenergymeasure.core.result import Phase

Emit = Callable[[dict[str, Any]], None]

PHASES = (
    "preflight",
    "download",
    "environment",
    "baseline",
    "load",
    "tokenise",
    "warmup",
    "settle",
    "window",
    "drain",
    "result",
)
PROBES = "probes"


def planned(*, probes: bool) -> tuple[str, ...]:
    """The phases that a run will have, in order; the probes of a phase split follow the window."""
    after = PHASES.index("window") + 1
    return (*PHASES[:after], *([PROBES] if probes else []), *PHASES[after:])


@dataclass
class Phases:
    """Times phases and tells the listener when each begins, and of how many."""

    emit: Emit
    total: int = len(PHASES)
    origin_s: float = field(default_factory=time.monotonic)
    done: dict[str, Phase] = field(default_factory=dict)

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start_s = time.monotonic() - self.origin_s
        self.emit(
            {
                "event": "phase",
                "phase": name,
                "t_s": round(start_s, 3),
                "done": len(self.done),
                "total": self.total,
            }
        )
        yield
        self.done[name] = Phase(start_s=start_s, end_s=time.monotonic() - self.origin_s)

    def progress(self, phase: str, done: int, total: int) -> None:
        """Tell the listener how far a phase is."""
        t_s = round(time.monotonic() - self.origin_s, 3)
        self.emit({"event": "progress", "phase": phase, "t_s": t_s, "done": done, "total": total})


def silent(event: dict[str, Any]) -> None:
    """Take an event and do nothing with it."""
