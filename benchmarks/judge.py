"""Judges recorded runs again: spread, drift, cross-checks, equal work that must look equal, 3 % that must be found.

Reads the files that gpu_repeat.py wrote; needs no GPU. Energies come from the recorded ticks through the product's
own series, so that scaling the ticks replays a run that took more energy.

    python benchmarks/judge.py OUT.json spread.json.gz planted.json.gz [more.json.gz ...]
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

from gpu_model import ROOT, stamp

sys.path.insert(0, str(ROOT / "runner"))

from llenergymeasure.core.comparison import Interval, fit_logs, in_blocks
from llenergymeasure.core.energy_series import EnergySeries, device_energy
from llenergymeasure.recording import from_json

PLANTED = 1.03


@dataclass(frozen=True)
class Run:
    """One recorded run; `source` names its file, `key` its configuration within it."""

    source: str
    key: str
    cycle: int
    gpu: str
    result: Mapping[str, Any]
    series: EnergySeries
    window_s: float

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
    runs = []
    for row in record["runs"]:
        result, recording = row["result"], from_json(row["recording"])
        ((gpu, series),) = recording.series.items()
        cycle = int(row["run"].split("_c")[1].split("_")[0])
        key = (
            f"batch {result['engine_effective']['batch_size']} seed {result['effective_config'].get('random_seed', 42)}"
        )
        runs.append(Run(path.name, key, cycle, gpu, result, series, row["recording"]["window_s"]))
    return runs


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
        third = run.window_s / 3
        first, last = run.series.mean_power_w(0.0, third), run.series.mean_power_w(2 * third, run.window_s)
        assert first is not None
        assert last is not None
        drifts.append(last / first - 1)
        for check in (run.result.get("cross_check") or {}).get("checks", ()):
            checks[check["name"]].append(check["ratio"])
    settled = [r.result["settle"] for r in runs if r.result.get("settle")]
    return {
        "power_drift": {"median": median(map(abs, drifts)), "largest": max(map(abs, drifts)), "all": drifts},
        "cross_checks": {n: off(v) for n, v in checks.items()},
        "not_settled": sum(not s["settled"] for s in settled),
        "runs": len(drifts),
    }


def off(ratios: Sequence[float | None]) -> dict[str, float]:
    """How far ratios are from one."""
    known = [abs(r - 1) for r in ratios if r is not None]
    return {"median": median(known), "largest": max(known), "runs": len(known)}


def relabelled(runs: Sequence[Run]) -> Iterable[tuple[list[Run], list[Run]]]:
    """All ways to cut runs of equal work into two configurations of the same number of cycles, each way once."""
    size = len(runs) // 2
    for chosen in combinations(range(1, len(runs)), size - 1):
        first = {0, *chosen}
        rest = [i for i in range(len(runs)) if i not in first][:size]
        yield [runs[i] for i in sorted(first)], [runs[i] for i in rest]


def ratio(a: Sequence[float], b: Sequence[float]) -> Interval:
    """b over a as the product's study of two configurations says it, one claim."""
    fit = fit_logs({0: dict(enumerate(a, start=1)), 1: dict(enumerate(b, start=1))})
    found = in_blocks(fit, 0, 1)
    assert found is not None
    return found


def equal_and_planted(by: Mapping[tuple[str, str], Sequence[Run]]) -> dict[str, Any]:
    """Equal work under two names: does the interval of the ratio hold 1, and is 3 % more on one side found?

    Seeds 42 and 43 of a `planted` file are equal work on one GPU: every way to share them out is one study. The
    studies share runs, so their number says less than as many measured afresh. Seed 44 waited in every batch.
    """
    sources = sorted({s for s, _ in by if s.startswith("planted")})
    return {source: _planted_file({k: r for (s, k), r in by.items() if s == source}) for source in sources}


def _planted_file(by: Mapping[str, Sequence[Run]]) -> dict[str, Any]:
    def of(seed: int) -> list[Run]:
        return next((list(r) for k, r in by.items() if k.endswith(f"seed {seed}")), [])

    def joules(runs: Iterable[Run], scale: float = 1.0) -> list[float]:
        return [r.joules_per_token(scale) for r in runs]

    pairs = list(relabelled([*of(42), *of(43)]))
    plain = [ratio(joules(a), joules(b)) for a, b in pairs]
    more = [ratio(joules(a), joules(b, PLANTED)) for a, b in pairs]
    as_run = {"equal, 43 / 42": (42, 43), "waited for, 44 / 42": (42, 44), "waited for, 44 / 43": (43, 44)}
    return {
        "cycles": len(of(42)),
        "studies": len(pairs),
        "interval_holds_1": sum(x.low <= 1 <= x.high for x in plain),
        "median_half_width": median((x.high - x.low) / 2 for x in plain),
        "found_3_percent_replayed": sum(x.low > 1 for x in more),
        "as_run": {
            name: asdict(ratio(joules(of(a)), joules(of(b))))
            for name, (a, b) in as_run.items()
            if len(of(a)) == len(of(b)) > 1
        },
    }


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
    out, files = Path(sys.argv[1]), [Path(p) for p in sys.argv[2:]]
    runs = [r for f in files for r in read(f)]
    by, clean = groups(runs), [r for r in runs if not r.key.endswith("seed 44")]
    pooled = spread(groups(clean))
    record = stamp("python benchmarks/judge.py OUT.json " + " ".join(f.name for f in files)) | {
        "gpus": sorted({f"{r.result['environment_snapshot']['gpus'][0]['name']} {r.gpu}" for r in runs}),
        "driver": sorted({str(r.result["environment_snapshot"]["driver_version"]) for r in runs}),
        "spread": pooled,
        "inside": inside(clean),
        "equal_and_planted": equal_and_planted(by),
        "overhead": overhead(runs),
        "alarms": alarms(runs),
    }
    out.write_text(json.dumps(record, indent=1))
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
