"""What asking for the power once a second would have said of recorded windows, against the counter's joules.

Reads the files that gpu_repeat.py wrote; needs no GPU. llem's recorder notes both power fields ten times a second, and
`nvidia-smi -l 1` reads the same fields (`power.draw` is the average over the last second on these boards). Each window
is asked at ten phases within the second: mean of what stood there at those moments, times the window's length. Only
moments inside the window count.

    python benchmarks/polling.py [OUT.json [FILE.json.gz ...]]     # without files: those of this repository
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from statistics import fmean, pstdev
from typing import Any

from judge import Run, read
from recorded import asked, give

EVERY_S, PHASES = 1.0, 10
FIELDS = {"average": "power_average_w", "instant": "power_instant_w"}


def errors(run: Run, field: str) -> Iterator[float]:
    """Polled over counted joules less one, for each phase at which a field could be asked."""
    known = [(r.t_s, w) for r in run.recording.readings if (w := getattr(r, field)) is not None]
    times, counted_j = [t for t, _ in known], run.joules_per_token() * run.result["output_tokens"]
    for k in range(PHASES):
        moments = [k * EVERY_S / PHASES + i * EVERY_S for i in range(int(run.window_s / EVERY_S) + 1)]
        asked_w = [known[i - 1][1] for t in moments if t <= run.window_s and (i := bisect_right(times, t))]
        yield fmean(asked_w) * run.window_s / counted_j - 1


def summary(found: list[float]) -> dict[str, Any]:
    """Mean, scatter and the largest of errors."""
    return {"polls": len(found), "mean": fmean(found), "sd": pstdev(found), "largest": max(found, key=abs)}


def main() -> None:
    """Judge the files and print the record."""
    wanted = asked(__doc__)
    runs = [r for f in wanted.files for r in read(f)]
    told: dict[str, Any] = {"windows": len(runs), "window_s": fmean(r.window_s for r in runs)}
    for name, field in FIELDS.items():
        by: dict[str, list[float]] = defaultdict(list)
        for run in runs:
            by[run.key].extend(errors(run, field))
        told[name] = summary([e for found in by.values() for e in found])
        told[name]["configurations"] = {key: summary(found) for key, found in by.items()}
    give(told, wanted)


if __name__ == "__main__":
    main()
