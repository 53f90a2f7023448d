"""Runs the measured window: whole full batches between two edges, nothing else inside.

Before the first edge and after the last the loaded engine waits, so that the counter's ticks around them show the
power of an idle engine and the edges can be cut exactly (docs/measurement.md, "From ticks to joules").
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

from llenergymeasure.core.config import ExperimentConfig
from llenergymeasure.core.contracts import Generation, InferenceEngine, Request, Window, Work
from llenergymeasure.phases import Phases
from llenergymeasure.run_energy import RunEnergy

DEFAULT_WINDOW_S = 60.0  # least window with an energy source (docs/measurement.md, "One experiment, phase by phase")
PROGRESS_EVERY_S = 1.0
ATTEND_S = 2.0  # before an edge every tick is recorded


@dataclass(frozen=True)
class Fed:
    """A window, what was generated in it, how it was fed, and how long the host slept meanwhile, s."""

    window: Window
    generations: list[Generation]
    work: Work
    suspended_s: float


def asleep_s() -> float:
    """Time that this host has spent suspended since it started, s, from an arbitrary zero: differences count."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)


def least_seconds(config: ExperimentConfig, energy: RunEnergy) -> float:
    """Least length of the window: the configuration's, else a minute where there are joules to measure."""
    wanted_s = config.measurement.min_duration_seconds
    return wanted_s if wanted_s is not None else (DEFAULT_WINDOW_S if energy.source else 0.0)


def passes(
    config: ExperimentConfig,
    engine: InferenceEngine,
    energy: RunEnergy,
    batches: Sequence[tuple[Request, ...]],
    phases: Phases,
) -> Fed:
    """Whole batches, at least one pass over the prompts, until the least duration is reached; quiet edges."""
    least_s = least_seconds(config, energy)
    generations: list[Generation] = []
    attended = False
    energy.note_processes()
    guard_s, slept_s = energy.guard_s, asleep_s()
    energy.attend()
    time.sleep(guard_s)
    told_s = time.monotonic()
    start_s = energy.open("window")
    for batch in cycle(batches):
        generations.append(engine.generate(batch))
        now_s = time.monotonic()
        if len(generations) == 1:
            _tell_expected(phases, now_s - start_s, len(batches), config.n, least_s)
        if len(generations) >= len(batches) and now_s - start_s >= least_s:
            break
        if not attended and _ends_soon(generations, len(batches), now_s - start_s, least_s):
            energy.attend()
            attended = True
        if now_s - told_s >= PROGRESS_EVERY_S:
            told_s = now_s
            phases.progress(
                "window",
                len(generations),
                _expected(len(generations), len(batches), now_s - start_s, least_s),
            )
    end_s = energy.close("window", "quiet")
    time.sleep(guard_s)
    energy.note_processes()
    work = Work("passes", concurrency=len(batches[0]))
    return Fed(Window("window", start_s, end_s), generations, work, asleep_s() - slept_s)


def _ends_soon(generations: Sequence[Generation], batches: int, spent_s: float, least_s: float) -> bool:
    """Whether the next batch may be the last, or the window's end is less than two seconds away."""
    batch_s = spent_s / len(generations)
    left_s = max(least_s - spent_s, (batches - len(generations)) * batch_s)
    return left_s <= max(ATTEND_S, 1.5 * batch_s)


def _tell_expected(phases: Phases, batch_s: float, batches: int, n: int, least_s: float) -> None:
    """Say how long the window will take, and what 20 prompts would."""
    seconds, per_prompt = max(least_s, batch_s * batches), batch_s * batches / n
    short = max(least_s, 20 * per_prompt) if n > 20 else None
    phases.emit({"event": "expected", "phase": "window", "seconds": round(seconds, 1), "n20_seconds": short})


def _expected(done: int, batches: int, spent_s: float, least_s: float) -> int:
    return max(batches, round(done * least_s / spent_s))
