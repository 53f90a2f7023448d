"""Runs a study of the pretended engine as users do and tells what llem itself costs: per run, in memory, at the end.

`llem run` is a process of its own that is only looked at from outside: its memory in /proc (Linux), its times in the
manifest and the results that it leaves. A run here takes milliseconds, so that what remains is overhead.

    python benchmarks/study.py --runs 1000
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from llenergymeasure.core.manifest import StudyManifest
from llenergymeasure.study_folder import StudyFolder

LLEM = str(Path(sys.executable).parent / "llem")
RESULTS = Path(__file__).resolve().parent / "results"
CONFIGURATIONS = 10
FIRST_LOOK = 100  # runs; by then all that is loaded once has been loaded
LOOK_EVERY_S = 0.02
PAGE_MIB = os.sysconf("SC_PAGE_SIZE") / 2**20
EXPERIMENT: dict[str, Any] = {
    "model": "m",
    "backend": "synthetic",
    "dataset": "builtin",
    "n": 2,
    "max_output_tokens": 4,
    "warmup": {"n_warmup": 1},
    "baseline": {"enabled": False},
    "energy": {"backend": "simulated"},
    "measurement": {"min_duration_seconds": 0},
}


@dataclass(frozen=True)
class Figure:
    """One line of the table."""

    what: str
    value: float
    unit: str
    target: str = ""


@dataclass(frozen=True)
class Seen:
    """A study that has ended: its folder, its parent's memory when each run was done, and when the process ended."""

    folder: Path
    memory_mib: list[float]
    peak_mib: float
    seconds: float
    ended: datetime


def study(runs: int) -> dict[str, Any]:
    """A study of so many runs in whole cycles."""
    sweep = {"random_seed": list(range(CONFIGURATIONS))}
    return {**EXPERIMENT, "name": "bench", "sweep": sweep, "execution": {"n_cycles": max(1, runs // CONFIGURATIONS)}}


def seconds_of(command: Sequence[str], cwd: Path, times: int = 5) -> float:
    """Median wall time of a command, after one run that does not count."""
    found = []
    for _ in range(times + 1):
        began_s = time.perf_counter()
        subprocess.run(command, cwd=cwd, check=True, capture_output=True)
        found.append(time.perf_counter() - began_s)
    return median(found[1:])


def watch(cwd: Path) -> Seen:
    """Run the study in `cwd` and look at its process whenever another run is done."""
    began_s = time.perf_counter()
    command = [LLEM, "run", "study.yaml", "--quiet", "--no-gaps"]
    with (cwd / "said").open("wb") as said, subprocess.Popen(command, cwd=cwd, stdout=said, stderr=said) as process:
        memory: list[float] = []
        peak = 0.0
        while process.poll() is None:
            resident = _resident_mib(process.pid)
            peak = max(peak, resident)
            done = sum(1 for _ in cwd.glob("results/*/runs/*/result.json"))
            memory += [resident] * (done - len(memory)) if resident else []
            time.sleep(LOOK_EVERY_S)
    if process.returncode:
        raise SystemExit((cwd / "said").read_text())
    (folder,) = (cwd / "results").iterdir()
    return Seen(folder, memory, peak, time.perf_counter() - began_s, datetime.now(UTC))


def _resident_mib(pid: int) -> float:
    """Resident memory of a process; 0 when it has just ended."""
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * PAGE_MIB


def run_figures(seen: Seen) -> list[Figure]:
    """What a run costs from its start to the next one's, and how much of that is not the engine's."""
    manifest = StudyManifest.model_validate_json((seen.folder / "study_manifest.json").read_bytes())
    rows = sorted((r for r in manifest.rows if r.started_at), key=lambda r: r.started_at or seen.ended)
    starts = [r.started_at for r in rows if r.started_at]
    periods = [(b - a).total_seconds() for a, b in pairwise(starts)]
    phases = [_phases_s(seen.folder / str(r.result_uri)) for r in rows[:-1]]
    overheads = [period - own for period, own in zip(periods, phases, strict=True)]
    third = max(1, len(periods) // 3)
    last = max(r.completed_at for r in rows if r.completed_at)
    return [
        Figure("runs", len(rows), ""),
        Figure("start of a run to the start of the next, median", median(periods), "s"),
        Figure("the same, 95th percentile", quantiles(periods, n=20)[-1], "s"),
        Figure("of which the engine's phases, from preflight to result", median(phases), "s"),
        Figure("overhead of a run beside them, median", median(overheads), "s", "≤ 1.0"),
        Figure("overhead of a run beside them, 95th percentile", quantiles(overheads, n=20)[-1], "s", "≤ 1.0"),
        Figure("median overhead, last third of the runs to the first", _growth(overheads, third), "×", "about 1"),
        Figure("start of llem run to its first run", (starts[0] - _began(seen)).total_seconds(), "s"),
        Figure("last run's end to the end, with report.html", (seen.ended - last).total_seconds(), "s"),
        Figure("writing the manifest", _write_s(seen.folder, manifest), "s"),
    ]


def _began(seen: Seen) -> datetime:
    return datetime.fromtimestamp(seen.ended.timestamp() - seen.seconds, UTC)


def _growth(values: Sequence[float], third: int) -> float:
    return median(values[-third:]) / median(values[:third])


def _phases_s(result: Path) -> float:
    """Time from the first to the last phase of a run, as the run's own process measured it."""
    phases = json.loads(result.read_bytes())["phases"].values()
    return float(max(p["end_s"] for p in phases) - min(p["start_s"] for p in phases))


def _write_s(folder: Path, manifest: StudyManifest, times: int = 20) -> float:
    found = []
    for _ in range(times):
        began_s = time.perf_counter()
        StudyFolder(folder).write_manifest(manifest)
        found.append(time.perf_counter() - began_s)
    return median(found)


def memory_figures(seen: Seen) -> list[Figure]:
    """Whether the study's process grows while runs come and go."""
    first = min(FIRST_LOOK, max(1, len(seen.memory_mib) // 3))
    early, late = seen.memory_mib[first - 1], seen.memory_mib[-1]
    return [
        Figure(f"memory after run {first}", early, "MiB"),
        Figure("memory after the last run", late, "MiB"),
        Figure("growth between the two", 100 * (late / early - 1), "%", "±10"),
        Figure("largest memory, the report at the end included", seen.peak_mib, "MiB"),
    ]


def start_figures(cwd: Path) -> list[Figure]:
    """What a process costs before any study comes into it."""
    child = [sys.executable, "-m", "llenergymeasure.cli", "experiment", "--config", "one.json"]
    return [
        Figure("python -c pass", seconds_of([sys.executable, "-c", "pass"], cwd), "s"),
        Figure("llem experiment alone, start to end", seconds_of(child, cwd), "s"),
    ]


def main() -> None:
    """Run the study, print the table, write it as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--output", type=Path, help="folder for the JSON; default: benchmarks/results")
    asked = parser.parse_args()
    load = list(os.getloadavg())
    with tempfile.TemporaryDirectory(prefix="llem-bench-") as name:
        cwd = Path(name)
        (cwd / "one.json").write_text(json.dumps(EXPERIMENT))
        (cwd / "study.yaml").write_text(json.dumps(study(asked.runs)))
        figures = start_figures(cwd)
        seen = watch(cwd)
        figures += [*run_figures(seen), *memory_figures(seen), Figure("all of llem run", seen.seconds, "s")]
    for f in figures:
        print(f"{f.what:60} {f.value:10.3f} {f.unit:4} {f.target}")
    _write(asked.output or RESULTS, f"study_{asked.runs}.json", figures, load)


def _write(folder: Path, name: str, figures: Sequence[Figure], load: list[float]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    body = {
        "command": f"python benchmarks/{Path(sys.argv[0]).name} {' '.join(sys.argv[1:])}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "platform": platform.platform(),
            "cores": os.cpu_count(),
            "load_average_before": load,
            "python": platform.python_version(),
        },
        "figures": [{**asdict(f), "value": round(f.value, 4)} for f in figures],
    }
    (folder / name).write_text(json.dumps(body, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
