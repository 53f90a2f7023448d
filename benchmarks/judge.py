"""Judges recorded runs again: spread, drift, cross-checks, equal work that must look equal, 3 % that must be found.

Reads the files that gpu_repeat.py wrote; needs no GPU. Energies come from the recorded ticks through the product's
own series, so that scaling the ticks replays a run that took more energy.

    python benchmarks/judge.py [OUT.json [FILE.json.gz ...]]     # without files: those of this repository
"""

import gzip
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from math import sqrt
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

from gpu_model import ROOT
from recorded import asked, give

sys.path.insert(0, str(ROOT / "runner"))

from llenergymeasure.core.comparison import Interval, fit_logs, in_blocks
from llenergymeasure.core.contracts import EnergyRecord
from llenergymeasure.core.energy_series import EnergySeries, device_energy
from llenergymeasure.recording import from_json

PLANTED, PLANTED_SEED = 1.03, 44


@dataclass(frozen=True)
class Run:
    """One recorded run; `source` names its file, `key` its configuration within it."""

    source: str
    key: str
    cycle: int
    gpu: str
    result: Mapping[str, Any]
    recording: EnergyRecord
    window_s: float
    wait_s: float
    cuts_s: tuple[float, ...]  # when batches began and the last one ended; empty where that was not recorded

    @property
    def series(self) -> EnergySeries:
        """The counter of the run's only GPU."""
        return self.recording.series[self.gpu]

    @property
    def temperature_c(self) -> float:
        """Mean temperature of the board inside the window; StatisticsError if it has no thermometer."""
        inside = [r.temperature_c for r in self.recording.readings if 0 <= r.t_s <= self.window_s]
        return fmean(c for c in inside if c is not None)

    def joules_per_token(self, scale: float = 1.0) -> float:
        """From the recorded ticks, each multiplied by `scale`."""
        ticks = tuple(replace(t, joules=t.joules * scale) for t in self.series.ticks)
        energy = device_energy(self.gpu, replace(self.series, ticks=ticks), 0.0, self.window_s, "quiet")
        assert energy.joules is not None, energy.reason
        return energy.joules / self.result["output_tokens"]


def read(path: Path) -> list[Run]:
    """The runs of one file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        record = json.load(file)
    return [_run(path.name, row, record.get("wait_s") or 0.0) for row in record["runs"]]


def _run(source: str, row: Mapping[str, Any], wait_s: float) -> Run:
    result, recording = row["result"], from_json(row["recording"])
    (gpu,) = recording.series
    cycle = int(row["run"].split("_c")[1].split("_")[0])
    batch, seed = result["engine_effective"]["batch_size"], result["effective_config"].get("random_seed", 42)
    key = f"batch {batch} seed {seed}"
    waited_s = wait_s if seed == PLANTED_SEED else 0.0
    batches = row["recording"].get("run", {}).get("batches") or []
    cuts_s = (*(b["start_s"] for b in batches), *(b["end_s"] for b in batches[-1:]))
    return Run(source, key, cycle, gpu, result, recording, row["recording"]["window_s"], waited_s, cuts_s)


def groups(runs: Iterable[Run]) -> dict[tuple[str, str], list[Run]]:
    """Runs of one configuration in one file, by cycle."""
    found: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda r: r.cycle):
        found[run.source, run.key].append(run)
    return dict(found)


def spread(by: Mapping[tuple[str, str], Sequence[Run]]) -> dict[str, Any]:
    """Coefficient of variation per configuration over fresh processes, and pooled over all."""
    rows, squares, freedom = [], 0.0, 0
    for (source, key), runs in by.items():
        values = [r.joules_per_token() for r in runs]
        if len(values) < 2:
            continue
        cv = stdev(values) / fmean(values)
        squares, freedom = squares + cv**2 * (len(values) - 1), freedom + len(values) - 1
        rows.append({"file": source, "configuration": key, "runs": len(values), "mean_j": fmean(values), "cv": cv,
                     "tokens_per_second": fmean(r.result["tokens_per_second"] for r in runs)})  # fmt: skip
    return {"configurations": rows, "pooled_cv": sqrt(squares / freedom), "degrees_of_freedom": freedom}


def inside(runs: Iterable[Run]) -> dict[str, Any]:
    """Drift of power inside the windows, last third against the first, and the cross-checks of the results."""
    drifts, checks = [], defaultdict(list)
    for run in runs:
        drifts.append(run.result["conditions"]["power_drift"])
        for name, value in ((run.result.get("cross_check") or {}).get("ratios") or {}).items():
            checks[name].append(value)
    known = [abs(d) for d in drifts if d is not None]
    settled = [r.result["settle"] for r in runs if r.result.get("settle")]
    return {
        "power_drift": {"median": median(known), "largest": max(known), "all": drifts} if known else None,
        "cross_checks": {n: off(v) for n, v in checks.items()},
        "not_settled": sum(not s["settled"] for s in settled),
        "runs": len(drifts),
    }


def off(ratios: Sequence[float | None]) -> dict[str, float]:
    """How far ratios are from one."""
    known = [abs(r - 1) for r in ratios if r is not None]
    return {"median": median(known), "largest": max(known), "runs": len(known)}


def ratio(columns: Sequence[Sequence[float]], a: int, b: int) -> Interval:
    """Column b over column a as the product's study of these columns (figures by cycle) says it, one claim."""
    fit = fit_logs({i: dict(enumerate(column, start=1)) for i, column in enumerate(columns)})
    found = in_blocks(fit, a, b)
    assert found is not None
    return found


def equal_halves(by: Mapping[tuple[str, str], Sequence[Run]]) -> dict[str, Any]:
    """Runs of equal work under two names: does the interval of the ratio hold 1, and is 3 % more on one side found?

    Every way to cut a study's cycles into two halves is one study of twice as many configurations. These studies
    share runs, so their number says less than as many measured afresh.
    """
    plain: list[Interval] = []
    more: list[Interval] = []
    for source in sorted({s for s, _ in by}):
        runs = [r for (s, _), r in by.items() if s == source and len(r) > 3]
        for left, right in halves(min(map(len, runs), default=0)):
            first = [[r[c].joules_per_token() for c in left] for r in runs]
            second = [[r[c].joules_per_token() for c in right] for r in runs]
            scaled = [[r[c].joules_per_token(PLANTED) for c in right] for r in runs]
            count = len(runs)
            plain += [ratio([*first, *second], i, count + i) for i in range(count)]
            more += [ratio([*first, *second[:i], scaled[i], *second[i + 1 :]], i, count + i) for i in range(count)]
    return {
        "pairs": len(plain),
        "interval_holds_1": sum(x.low <= 1 <= x.high for x in plain),
        "median_half_width": median((x.high - x.low) / 2 for x in plain) if plain else None,
        "found_3_percent_replayed": sum(x.low > 1 for x in more),
    }


def halves(cycles: int) -> Iterable[tuple[list[int], list[int]]]:
    """All ways to cut so many cycles into two halves of the same number, each way once."""
    size = cycles // 2
    for left in combinations(range(cycles), size):
        others = [c for c in range(cycles) if c not in left]
        yield from ((list(left), list(right)) for right in combinations(others, size) if left < right)


def replayed(by: Mapping[tuple[str, str], Sequence[Run]]) -> dict[str, Any]:
    """Whole studies with 3 % more energy replayed on each configuration in turn, against the runs as they were.

    The other side of the pair is the same runs in another order of cycles: this tests the width of the interval.
    """
    found = []
    for (source, key), runs in by.items():
        others = [[r.joules_per_token() for r in o] for k, o in by.items() if k[0] == source and k[1] != key]
        plain = [r.joules_per_token() for r in runs]
        for shift in range(1, len(runs)):
            turned = [runs[(i + shift) % len(runs)].joules_per_token(PLANTED) for i in range(len(runs))]
            found.append(ratio([plain, turned, *(o for o in others if len(o) == len(plain))], 0, 1))
    return {"studies": len(found), "found": sum(x.low > 1 for x in found), "intervals": [asdict(x) for x in found]}


def against_seed_42(by: Mapping[tuple[str, str], Sequence[Run]], other: str) -> dict[str, Any]:
    """The studies of one work under two seeds: the other seed over seed 42, and what the planted wait must give."""
    told = {}
    for source in sorted({s for s, k in by if k.endswith(f"seed {other}")}):
        seeds = {k.rpartition(" ")[2]: r for (s, k), r in by.items() if s == source}
        count = min(len(seeds["42"]), len(seeds[other]))
        if count < 2:
            continue
        columns = [[r.joules_per_token() for r in seeds[s][:count]] for s in ("42", other)]
        told[source] = {"cycles": count, **asdict(ratio(columns, 0, 1)), "planted_ratio": planted_ratio(seeds[other])}
    return told


def planted_ratio(runs: Sequence[Run]) -> float:
    """What the wait must have added by itself: its length times the loaded idle power, over the rest."""
    ratios = []
    for run in runs:
        idle_w, batches = run.result["loaded_idle_power_w"], run.result["latency"]["samples"]
        waited_j = run.wait_s * batches * idle_w
        ratios.append(1 / (1 - waited_j / run.result["energy_total_j"]))
    return fmean(ratios)


def names(run: Run) -> list[str]:
    """What the run's GPU calls itself; a pretended one has no name."""
    return [g["name"] for g in run.result["environment_snapshot"]["gpus"] if g["uuid"] == run.gpu] or ["pretended"]


def overhead(runs: Iterable[Run]) -> dict[str, float]:
    """Seconds of a run's phases beside load, warm-up, settling and window."""
    spent = []
    for run in runs:
        phases = run.result["phases"]
        spent.append(
            sum(p["end_s"] - p["start_s"] for n, p in phases.items() if n not in ("load", "warmup", "settle", "window"))
        )
    return {"median_s": median(spent), "largest_s": max(spent)}


def alarms(runs: Iterable[Run]) -> dict[str, int]:
    """Verdicts that are not valid, and warnings by code."""
    found: dict[str, int] = defaultdict(int)
    for run in runs:
        found[f"verdict {run.result['verdict']['state']}"] += 1
        for text in run.result["measurement_warnings"]:
            found[text.partition(":")[0]] += 1
    return dict(found)


def main() -> None:
    """Judge the files and print the record."""
    wanted = asked(__doc__)
    runs = [r for f in wanted.files for r in read(f)]
    by, clean = groups(runs), [r for r in runs if not r.key.endswith(f"seed {PLANTED_SEED}")]
    pooled = spread(groups(clean))
    record = {
        "gpus": sorted({f"{name} {r.gpu}" for r in runs for name in names(r)}),
        "driver": sorted({str(r.result["environment_snapshot"]["driver_version"]) for r in runs}),
        "spread": pooled,
        "inside": inside(clean),
        "equal_work": equal_halves(groups(clean)),
        "replayed": replayed(groups(clean)),
        "equal_seeds": against_seed_42(by, "43"),
        "waited_for": against_seed_42(by, str(PLANTED_SEED)),
        "overhead": overhead(runs),
        "alarms": alarms(runs),
    }
    give(record, wanted)


if __name__ == "__main__":
    main()
