"""Measures a Llama-shaped model of 1.1 B seeded random weights on a real GPU by `llem run`, end to end.

Shows that the instrument works there: counter source, context baseline, settling, 60 s window, verdict; a small study
over the batch size; the same work by Zeus. Needs one NVIDIA GPU, torch and transformers; all parts take 12 minutes.

    python benchmarks/gpu_first_light.py OUTDIR [default_run] [sources] [study] [bare_baseline]
"""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SIZES = ["--layers", "16", "--hidden", "2048", "--heads", "32", "--kv-heads", "8", "--intermediate", "8192"]
KEPT = (
    "energy_source", "energy_total_j", "energy_adjusted_j", "baseline_power_w", "energy_per_output_token_j",
    "tokens_per_second", "mean_power_w", "duration_s", "output_tokens", "memory_peak_mb", "measurement_methodology",
    "uncertainty", "verdict", "cross_check", "thermal", "energy_breakdown", "phases", "measurement_warnings",
    "random_weights", "backend_version", "flops", "warmup",
)  # fmt: skip


SHORT = ["--set", "measurement.min_duration_seconds=30", "--set", "warmup.thermal_floor_seconds=30"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT / 'runner'}:{os.environ.get('PYTHONPATH', '')}"}


def llem(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line with this checkout's code; its stderr is shown."""
    command = [sys.executable, "-m", "llenergymeasure.cli", *arguments]
    print("$ llem", *arguments, flush=True)
    done = subprocess.run(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, check=False)
    print("" if "--json" in arguments else done.stdout, flush=True)
    return done


def kept(result: dict[str, Any]) -> dict[str, Any]:
    """The part of a result that the record keeps."""
    gpus = result["environment_snapshot"].get("gpus", [])
    return {k: result[k] for k in KEPT} | {
        "gpu": gpus[0] if gpus else None,
        "driver_version": result["environment_snapshot"].get("driver_version"),
        "batch_size": result["engine_effective"]["batch_size"],
    }


def single(model: Path, *arguments: str) -> dict[str, Any]:
    """One `llem run --json`."""
    done = llem(
        "run", "-m", str(model), "-b", "pytorch", "-d", "builtin", "--json", "-o", "/tmp/llem-results", *arguments
    )
    return kept(json.loads(done.stdout)) if done.returncode == 0 else {"exit_code": done.returncode}


def default_run(model: Path, out: Path) -> dict[str, Any]:
    """`llem run` with nothing set but the size of the batch: baseline, settling, 60 s window."""
    del out
    return single(model, "-n", "64", "--batch-size", "32")


def sources(model: Path, out: Path) -> list[dict[str, Any]]:
    """The same work measured by our own counter path and by Zeus, 30 s windows."""
    del out
    names = ["nvml", *(["zeus"] if importlib.util.find_spec("zeus") else [])]
    return [single(model, "-n", "64", "--batch-size", "32", *SHORT, "--set", f"energy.backend={n}") for n in names]


def bare_baseline(model: Path, out: Path) -> dict[str, Any]:
    """Idle power without a CUDA context."""
    del out
    idle = ["--set", "baseline.kind=bare", "--set", "baseline.duration_seconds=10"]
    return single(model, "-n", "8", "--batch-size", "8", *SHORT, *idle)


def study(model: Path, out: Path) -> dict[str, Any]:
    """A study over the batch size; keeps its table and the series of its first run."""
    file = out / "study.yaml"
    file.write_text(
        f'model: {model}\nbackend: pytorch\ndataset: builtin\n"n": 32\nmax_output_tokens: 64\n'
        "measurement: {min_duration_seconds: 15}\nwarmup: {thermal_floor_seconds: 30}\n"
        "sweep: {pytorch.batch_size: [1, 8, 32]}\nexecution: {n_cycles: 1}\n"
    )
    done = llem("run", str(file), "--no-gaps", "-o", "/tmp/llem-study")
    folder = next(Path("/tmp/llem-study").iterdir())
    results = [kept(json.loads(p.read_text())) for p in sorted(folder.glob("runs/*/result.json"))]
    series = next(folder.glob("runs/*/timeseries.parquet"), None)
    if series is not None:
        (out / "timeseries.parquet").write_bytes(series.read_bytes())
    return {"table": done.stdout.splitlines(), "results": results}


PARTS = {f.__name__: f for f in (default_run, sources, study, bare_baseline)}


def main() -> None:
    """Run the parts that are named, all if none is, and write one file after each."""
    out, wanted = Path(sys.argv[1]), sys.argv[2:] or list(PARTS)
    model = Path("/tmp/llama-1b")
    build = [sys.executable, str(ROOT / "tools/random_model.py"), str(model), *SIZES, "--device", "cuda"]
    subprocess.run(build, env=ENVIRONMENT, check=True)
    llem("config")
    record: dict[str, Any] = {
        "command": " ".join(["python benchmarks/gpu_first_light.py OUTDIR", *wanted]),
        "date": time.strftime("%Y-%m-%d"),
    }
    for name in wanted:
        started = time.time()
        record[name] = PARTS[name](model, out)
        record[f"{name}_seconds"] = round(time.time() - started, 1)
        (out / "gpu_first_light.json").write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
