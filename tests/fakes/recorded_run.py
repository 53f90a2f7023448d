"""Runs recorded on an H100 (tests/golden/traces), and faults planted into what their sensors said.

A fault is a function from one record of sensors to another. A planted run goes through JSON and the whole pipeline, as
a user's raw_samples.json would.
"""

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from llenergymeasure import recording, replay
from llenergymeasure.core.contracts import EnergyRecord, Occupants, Reading, ThrottleCounters
from llenergymeasure.core.energy_series import Tick
from llenergymeasure.core.result import ExperimentResult

TRACES = Path(__file__).resolve().parents[1] / "golden" / "traces"
NAMES = ("h100_batch1", "h100_batch8")
Fault = Callable[[EnergyRecord], EnergyRecord]


@dataclass(frozen=True)
class RecordedRun:
    """What was stored of a run, and its recording; its window begins at 0."""

    result: ExperimentResult
    raw: dict[str, Any]

    @property
    def window_s(self) -> float:
        """Length of its window."""
        return float(self.raw["window_s"])

    def judged(self, *faults: Fault, **run: Any) -> ExperimentResult:
        """The result of the run with these faults, and with other facts of the run itself."""
        found = recording.from_json(self.raw)
        for fault in faults:
            found = fault(found)
        raw = {**self.raw, **recording.to_json(found, 0.0), "run": {**self.raw["run"], **run}}
        return replay.judged_again(self.result, json.loads(json.dumps(raw)))


@cache
def recorded(name: str) -> RecordedRun:
    """A trace by its name."""
    trace = json.loads(gzip.decompress((TRACES / f"{name}.json.gz").read_bytes()))
    return RecordedRun(ExperimentResult.model_validate(trace["result"]), trace["raw"])


def jitter(jitter_s: float) -> Fault:
    """Another jitter of the ticks is believed."""
    return lambda found: replace(found, series={u: replace(s, jitter_s=jitter_s) for u, s in found.series.items()})


def ticks(change: Callable[[Tick], Tick | None]) -> Fault:
    """Every tick of the counter changed, or taken away (None)."""

    def plant(found: EnergyRecord) -> EnergyRecord:
        changed = {
            u: replace(s, ticks=tuple(new for t in s.ticks if (new := change(t)))) for u, s in found.series.items()
        }
        return replace(found, series=changed)

    return plant


def readings(change: Callable[[Reading], Reading]) -> Fault:
    """Every reading of the slower sensors changed."""
    return lambda found: replace(found, readings=tuple(map(change, found.readings)))


def throttle(change: Callable[[ThrottleCounters], ThrottleCounters]) -> Fault:
    """Every look at the counters of slow-downs changed."""
    return lambda found: replace(found, throttle=tuple(map(change, found.throttle)))


def occupants(change: Callable[[Occupants], Occupants]) -> Fault:
    """Every look at the processes changed."""
    return lambda found: replace(found, occupants=tuple(map(change, found.occupants)))


def more_power(extra_w: Callable[[float], float], extra_j: Callable[[float], float]) -> Fault:
    """The GPU drew more: every sensor says so; `extra_w` at an instant, `extra_j` up to it, from any zero."""

    def plant(found: EnergyRecord) -> EnergyRecord:
        more = ticks(lambda t: replace(t, joules=t.joules + extra_j(t.t_s)))(found)
        return replace(
            more,
            samples={
                u: tuple(replace(s, power_w=s.power_w + extra_w(s.t_s)) for s in rows)
                for u, rows in found.samples.items()
            },
            readings=tuple(
                replace(r, power_average_w=r.power_average_w + extra_j(r.t_s) - extra_j(r.t_s - 1))
                if r.power_average_w is not None
                else r
                for r in found.readings
            ),
        )

    return plant


def scaled(*, counter: float = 1.0, average: float = 1.0, buffer: float = 1.0) -> Fault:
    """The sensors say so many times as much."""

    def plant(found: EnergyRecord) -> EnergyRecord:
        more = ticks(lambda t: replace(t, joules=t.joules * counter))(found)
        return replace(
            more,
            samples={u: tuple(replace(s, power_w=s.power_w * buffer) for s in v) for u, v in found.samples.items()},
            readings=tuple(
                replace(r, power_average_w=r.power_average_w * average) if r.power_average_w is not None else r
                for r in found.readings
            ),
        )

    return plant
