"""How often windows without a fault raise an alarm: all windows without overlap that recorded runs hold.

Each recording has its own window, with quiet edges, and before it the settling, in which the same work runs and every
tick is recorded: from its end backwards it is cut into windows of whole batches with loaded edges. `level` are those of
the last seconds of a settling that ended settled, which the product itself would measure; the others began while power
could still move. Each goes through the whole pipeline. An alarm is any reason of a verdict and any warning, but for
what was known before the settling and, of windows below 10 s, that they are short. That it did not end settled is an
alarm of the run's own window, which is what a user gets; windows of the settling lie before that was known.

    python benchmarks/alarms.py [OUT.json [FILE.json.gz ...]]     # without files: those of this repository
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import correlation, linear_regression, median
from typing import Any

import recorded

from llenergymeasure import record, replay
from llenergymeasure.core.contracts import Generation, Request, Window
from llenergymeasure.core.result import ExperimentResult
from llenergymeasure.observation import Observation

LEVEL_S = 20.0  # the settling ends when power and temperature of its last 20 s are level
LENGTHS_S = (10.0, 5.0)
RUNS_ON_S = 0.3  # the load must run on across a loaded edge
BY_DESIGN = {*recorded.KNOWN_BEFORE, "short_window"}
OF_THE_SETTLING = "not_settled"


@dataclass(frozen=True)
class Judged:
    """One window: where it lies, whether it must be clean, what was said of it."""

    run: str
    kind: str  # own | level | earlier
    start_s: float
    end_s: float
    alarms: tuple[str, ...]
    power_drift: float | None
    pace_drift: float | None  # None where batches were neither recorded nor seen well


def codes(result: ExperimentResult, kind: str) -> tuple[str, ...]:
    """Reasons with an exclamation mark, warnings without."""
    told = [w.partition(":")[0] for w in result.measurement_warnings]
    expected = BY_DESIGN - {OF_THE_SETTLING} if kind == "own" else BY_DESIGN
    return (*(f"{r.code}!" for r in result.verdict.reasons), *(c for c in told if c not in expected))


def windows(run: recorded.Recorded, least_s: float) -> Iterator[Judged]:
    """The run's own window, and those of its settling from the last one backwards."""
    seen = replay.observed(run.result, run.raw)
    yield judged(run, "own", seen)
    starts = settling_starts(run)
    settled = run.result.settle is not None and bool(run.result.settle.settled)
    for cuts in whole_batches(starts, least_s):
        level = settled and cuts[0] >= starts[-1] - LEVEL_S - (cuts[1] - cuts[0])
        yield judged(run, "level" if level else "earlier", cut(seen, cuts))


def settling_starts(run: recorded.Recorded) -> list[float]:
    """When batches began in the settling: where a prefill is seen, else one mean batch apart."""
    phase, origin_s = run.result.phases["settle"], run.raw["run"]["origin_s"]
    begin_s, end_s = origin_s + phase.start_s, origin_s + phase.end_s
    found = recorded.prefills(run.raw, begin_s, end_s - RUNS_ON_S)
    if found:
        return found
    assert run.result.latency is not None
    batch_s = run.result.latency.mean_ms / 1e3
    return [end_s - k * batch_s for k in range(int((end_s - begin_s) / batch_s), 0, -1)]


def whole_batches(starts: Sequence[float], least_s: float) -> Iterator[list[float]]:
    """Starts of neighbouring batches that together last as long as asked for, without overlap, the last ones first."""
    end = len(starts) - 1
    for i in range(len(starts) - 1, -1, -1):
        if starts[end] - starts[i] >= least_s:
            yield list(starts[i : end + 1])
            end = i


def cut(seen: Observation, cuts: Sequence[float]) -> Observation:
    """The same run with another window, which holds the batches between these instants and has loaded edges."""
    window = Window("window", cuts[0], cuts[-1])
    assert seen.energy is not None
    prompt = (seen.generations[0].requests[0].token_ids, seen.generations[0].output_token_ids[0])
    batch = (Request(0, prompt[0], len(prompt[1])),)
    return replace(
        seen,
        window=window,
        generations=[Generation(batch, (prompt[1],), a, b) for a, b in pairwise(cuts)],
        energy=replay.cut(seen.energy, window, "loaded"),
        work=replace(seen.work, edges="loaded"),
    )


def judged(run: recorded.Recorded, kind: str, seen: Observation) -> Judged:
    """What is said of a window."""
    result, told = record.build(seen), run.has_batches and kind == "own"
    return Judged(
        run=f"{run.source.split('_')[1]} {run.name}",
        kind=kind,
        start_s=round(seen.window.start_s, 3),
        end_s=round(seen.window.end_s, 3),
        alarms=codes(result, kind),
        power_drift=result.conditions.power_drift,
        pace_drift=result.conditions.pace_drift if told or well_cut(seen) else None,
    )


def well_cut(seen: Observation) -> bool:
    """Whether batches were told apart by their prefills: more than single prompts, and no peak missed or invented."""
    lengths_s = [g.end_s - g.start_s for g in seen.generations]
    usual_s = median(lengths_s)
    return seen.work.concurrency != 1 and all(abs(x - usual_s) < recorded.ODD * usual_s for x in lengths_s)


def pace(found: Sequence[Judged]) -> dict[str, float]:
    """How drifts of power follow those of pace: correlation, and power per pace."""
    known = [(w.pace_drift, w.power_drift) for w in found if w.pace_drift is not None and w.power_drift is not None]
    paces, powers = zip(*known, strict=True)
    slope = linear_regression(paces, powers).slope
    return {"windows": len(known), "correlation": correlation(paces, powers), "power_per_pace": slope}


def summary(found: Sequence[Judged]) -> dict[str, Any]:
    """Windows and alarms by kind; a window with two alarms counts once among `windows_with_alarms`."""
    told: dict[str, Any] = {"recordings": len({w.run for w in found})}
    for kind in ("own", "level", "earlier"):
        mine = [w for w in found if w.kind == kind]
        told[kind] = {
            "windows": len(mine),
            "windows_with_alarms": sum(bool(w.alarms) for w in mine),
            "invalid": sum(any(c.endswith("!") for c in w.alarms) for w in mine),
            "alarms": dict(Counter(c for w in mine for c in w.alarms)),
            "largest_power_drift": max((abs(w.power_drift) for w in mine if w.power_drift is not None), default=None),
        }
    return told


def rows(found: Sequence[Judged]) -> list[str]:
    """A line for each window with an alarm: run, kind, place, alarms."""
    return [" ".join([w.run, w.kind, f"{w.start_s:g} to {w.end_s:g} s:", *w.alarms]) for w in found if w.alarms]


def main() -> None:
    """Judge every window of every recording and write the record."""
    wanted = recorded.asked(__doc__)
    runs = [run for file in wanted.files for run in recorded.runs(file)]
    text: dict[str, Any] = {}
    for least_s in LENGTHS_S:
        found = [w for run in runs for w in windows(run, least_s)]
        text[f"windows_of_{least_s:g}_s"] = summary(found) | {"with_alarms": rows(found)}
        if least_s == max(LENGTHS_S):  # shorter ones hold too few batches to tell their pace
            text["pace"] = pace(found)
            text["pace_of_own_windows"] = pace([w for w in found if w.kind == "own"])
    recorded.give(text, wanted)


if __name__ == "__main__":
    main()
