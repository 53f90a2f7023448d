"""What a slower batch costs inside one window: each batch's energy against the time it took, within each run.

Reads the files that gpu_repeat.py wrote; needs no GPU. Recordings hold when each batch began. In those of the first
format prefill, which draws more than decoding, shows in the driver's sample buffer (one power every 20 ms), so that
batches can be told apart where they are large enough for a peak; peaks are found to 6 ms, and what one batch gains by
that the next one loses, at the mean power, so that the slope is some tens of W too high. Over the batches of all runs,
each run less its own means, the slope of energy over time is the power of the time that makes a batch slower: near the
power of a GPU that waits, if the host sets the pace; near the mean power of the work, if the GPU does. At constant
temperature, and independent of the scatter between processes (scatter.py).

    python benchmarks/pace.py [OUT.json [FILE.json.gz ...]]     # without files: those of this repository
"""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, pairwise
from math import sqrt
from statistics import fmean, median
from typing import Any

from judge import Run, read
from recorded import ODD, PREFILL, asked, give, rises

LEAST_BATCHES = 6


def batches(run: Run) -> list[tuple[float, float]]:
    """Seconds and joules of batches, from recorded beginnings or from prefills; empty where neither is there."""
    rows = [(s.t_s, s.power_w) for s in run.recording.samples[run.gpu] if -0.1 <= s.t_s <= run.window_s + 0.1]
    if len(rows) < 2:
        return []
    level_w = PREFILL * median(p for _, p in rows)
    cuts = run.cuts_s or [_crossing(rows[i - 1], rows[i], level_w) for i in rises(rows, level_w)]
    times = [t for t, _ in rows]
    joules = [0.0, *accumulate((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(rows))]
    found = [(b - a, _at(times, joules, b) - _at(times, joules, a)) for a, b in pairwise(cuts)]
    usual = median(t for t, _ in found) if found else 0.0
    kept = [x for x in found if abs(x[0] - usual) < ODD * usual]
    return kept if len(kept) >= LEAST_BATCHES else []


def _crossing(a: tuple[float, float], b: tuple[float, float], level: float) -> float:
    return a[0] + (level - a[1]) / (b[1] - a[1]) * (b[0] - a[0])


def _at(times: Sequence[float], values: Sequence[float], t: float) -> float:
    i = max(1, min(bisect_left(times, t), len(times) - 1))
    share = (t - times[i - 1]) / (times[i] - times[i - 1])
    return values[i - 1] + share * (values[i] - values[i - 1])


def slope(found: Sequence[Sequence[tuple[float, float]]]) -> dict[str, float]:
    """Joules per second over all batches, each run less its own means, with its standard error."""
    pairs = []
    for run in found:
        time_s, energy_j = fmean(t for t, _ in run), fmean(e for _, e in run)
        pairs += [(t - time_s, e - energy_j) for t, e in run]
    square = sum(t * t for t, _ in pairs)
    watts = sum(t * e for t, e in pairs) / square
    freedom = len(pairs) - len(found) - 1
    error = sqrt(sum((e - watts * t) ** 2 for t, e in pairs) / freedom / square)
    return {"value": watts, "std_error": error, "batches": len(pairs), "degrees_of_freedom": freedom}


def row(run: Run, found: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """One run: how its pace changed inside the window, beside how its power did."""
    third = len(found) // 3
    first, last = found[:third], found[-third:]
    return {
        "file": run.source,
        "configuration": run.key,
        "cycle": run.cycle,
        "batches": len(found),
        "batch_s": {"least": min(t for t, _ in found), "most": max(t for t, _ in found)},
        "pace_change": fmean(t for t, _ in first) / fmean(t for t, _ in last) - 1,
        "power_change": _watts(last) / _watts(first) - 1,
        "energy_change": fmean(e for _, e in last) / fmean(e for _, e in first) - 1,
        "power_drift_of_result": run.result["conditions"]["power_drift"],
    }


def _watts(found: Sequence[tuple[float, float]]) -> float:
    return sum(e for _, e in found) / sum(t for t, _ in found)


def main() -> None:
    """Judge the files and print the record."""
    wanted = asked(__doc__)
    runs = [(r, found) for f in wanted.files for r in read(f) if (found := batches(r))]
    record = {
        "power_of_slower_batches_w": slope([found for _, found in runs]),
        "mean_power_w": fmean(_watts(found) for _, found in runs),
        "runs": [row(*each) for each in runs],
    }
    give(record, wanted)


if __name__ == "__main__":
    main()
