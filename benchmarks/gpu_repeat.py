"""Repeats experiments in fresh processes on one GPU: how far joules per token scatter, and whether 3 % are found.

`spread`: the model of gpu_model.py at several batch sizes. `equal`: the same work twice, under two seeds. `planted`:
the same and a third time, which waits in every batch, for LOADED_IDLE_W x wait = 3 % of a batch's energy.
Recordings of all runs are kept, so that they can be judged again (benchmarks/judge.py, benchmarks/scatter.py); of a
study that is ended by SIGTERM, those that are there.

    python benchmarks/gpu_repeat.py OUTDIR spread|equal|planted [--cycles 5] [--window-s 30] [--batch-size 8 ...]
        [--batch-energy-j 450] [--loaded-idle-w 128]
"""

import argparse
import gzip
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gpu_model as bench

SWEEPS: dict[str, dict[str, Any]] = {
    "spread": {},
    "equal": {"random_seed": [42, 43]},
    "planted": {"random_seed": [42, 43, 44]},
}
PLANTED_SHARE = 0.03


def study_file(folder: Path, name: str, cycles: int, window_s: float, batch_sizes: list[int]) -> Path:
    """The study's file."""
    body = {
        "name": name,
        "model": str(bench.model()),
        **bench.WORK,
        "baseline": {"enabled": False},  # total energy is judged here; idle power has its own benchmark
        "measurement": {"min_duration_seconds": window_s},
        "sweep": SWEEPS[name] | {"pytorch.batch_size": batch_sizes},
        "execution": {"n_cycles": cycles, "config_gap_seconds": 0, "cycle_gap_seconds": 0},
    }
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.yaml"
    file.write_text(json.dumps(body, indent=1))
    return file


def kept(run: Path) -> dict[str, Any]:
    """Result and recording of a run, the result without what only fills space."""
    result = json.loads((run / "result.json").read_text())
    for name in ("parameter_provenance", "request_input_tokens", "request_output_tokens"):
        result.pop(name, None)
    result["environment_snapshot"].pop("packages", None)
    return {"run": run.name, "result": result, "recording": json.loads((run / "raw_samples.json").read_text())}


def main() -> None:
    """Run the study and write one compressed file with all its runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("study", choices=SWEEPS)
    parser.add_argument("--cycles", type=int, default=5)
    parser.add_argument("--window-s", type=float, default=30.0)
    parser.add_argument("--batch-size", type=int, nargs="+", default=[8])
    parser.add_argument("--batch-energy-j", type=float, default=450.0)
    parser.add_argument("--loaded-idle-w", type=float, default=128.0)
    a = parser.parse_args()
    wait_s = PLANTED_SHARE * a.batch_energy_j / a.loaded_idle_w
    planted = {"LLEM_PLANT_S": f"{wait_s:.4f}"} if a.study == "planted" else {}
    env = bench.environment(paths=str(bench.ROOT / "benchmarks/planted"), **planted)
    name = "_".join([a.study, *(f"batch{n}" for n in a.batch_size)])
    place = bench.TMP / f"llem-{name}-{os.getpid()}"
    file = study_file(place, a.study, a.cycles, a.window_s, a.batch_size)
    with ended_softly():
        bench.llem("run", str(file), "-o", str(place / "results"), env=env)
    collect(a.out, name, place / "results", {"cycles": a.cycles, "wait_s": wait_s if planted else None})


@contextmanager
def ended_softly() -> Iterator[None]:
    """SIGTERM goes to `llem run`, which ends its study in order; what it has measured is still collected."""

    def hand_on(*_: object) -> None:
        subprocess.run(["pkill", "-TERM", "-P", str(os.getpid())], check=False)

    before = signal.signal(signal.SIGTERM, hand_on)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def collect(out: Path, name: str, results: Path, facts: dict[str, Any]) -> None:
    """Write what is there, also of a study that was stopped."""
    folder = next(results.iterdir())
    runs = [kept(p.parent) for p in sorted(folder.glob("runs/*/result.json"))]
    record = bench.stamp(f"python benchmarks/gpu_repeat.py OUTDIR {name}") | facts | {"runs": runs}
    out.mkdir(parents=True, exist_ok=True)
    with gzip.open(out / f"{name}.json.gz", "wt", encoding="utf-8") as file:
        json.dump(record, file)
    for extra in ("study_result.json", "report.html"):
        if (folder / extra).exists():
            shutil.copy(folder / extra, out / f"{name}_{extra}")


if __name__ == "__main__":
    main()
