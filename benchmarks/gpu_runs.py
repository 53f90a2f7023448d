"""Single runs of `llem run` on one real GPU: with no options, with planted faults, with the split by phases.

    python benchmarks/gpu_runs.py OUTDIR default|short|foreign|phase_split|self_test ...

`default`: nothing but model and prompts is named. `short`: a window of 3 s, which must be invalid. `foreign`: another
process computes on the GPU during the window, which must be found. `phase_split`: joules per prefill and per decode
token, held against the main window. `self_test`: `llem config --self-test`.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gpu_model as bench

DROPPED = ("parameter_provenance", "request_input_tokens", "request_output_tokens", "effective_config")
FOREIGN = """
import time, torch
a = torch.randn(2048, 2048, device="cuda", dtype=torch.bfloat16)
end = time.monotonic() + float(__import__("sys").argv[1])
while time.monotonic() < end:
    a @ a
    torch.cuda.synchronize()
    time.sleep(0.02)
"""
QUICK = ("--set", "warmup.thermal_floor_seconds=30", "--set", "baseline.duration_seconds=5")


def run(model: Path, *arguments: str) -> dict[str, Any]:
    """One `llem run --json`, without what only fills space."""
    started_s = time.monotonic()
    done = bench.llem("run", "-m", str(model), "--json", "-o", str(bench.TMP / "llem-runs"), *arguments)
    if done.returncode:
        return {"exit_code": done.returncode, "said": done.stdout[-2000:]}
    result = json.loads(done.stdout)
    result["environment_snapshot"].pop("packages", None)
    return {"seconds": time.monotonic() - started_s, **{k: v for k, v in result.items() if k not in DROPPED}}


def default() -> dict[str, Any]:
    """As a new user would, on prompts that need no network; the terminal's words are kept."""
    command = [
        "run",
        "-m",
        str(bench.model(bench.SMALL)),
        "-d",
        "builtin",
        "-n",
        "16",
        "-o",
        str(bench.TMP / "llem-default"),
    ]
    arguments = [sys.executable, "-m", "llenergymeasure.cli", *command]
    done = subprocess.run(arguments, env=bench.environment(), capture_output=True, text=True, check=False)
    print(done.stderr, done.stdout, flush=True)
    result = next((bench.TMP / "llem-default").glob("*/result.json"), None)
    return {
        "stdout": done.stdout.splitlines(),
        "stderr": done.stderr.splitlines(),
        "result": {k: v for k, v in json.loads(result.read_text()).items() if k not in DROPPED} if result else None,
    }


def short() -> dict[str, Any]:
    """A window of 3 s."""
    model = bench.model(bench.SMALL)
    return run(model, "-d", "builtin", "-n", "4", "--batch-size", "4", "--set", "max_output_tokens=16", "--set",
               "measurement.min_duration_seconds=3", "--set", "warmup.thermal_floor_seconds=0", "--set",
               "baseline.enabled=false")  # fmt: skip


def foreign() -> dict[str, Any]:
    """Another process computes a little, from before the load to the end."""
    with subprocess.Popen([sys.executable, "-c", FOREIGN, "100"], env=bench.environment()) as other:
        try:
            model = bench.model(bench.SMALL)
            found = run(model, "-d", "builtin", "-n", "4", "--batch-size", "4", "--set",
                        "measurement.min_duration_seconds=10", "--set", "warmup.thermal_floor_seconds=0",
                        "--set", "baseline.enabled=false")  # fmt: skip
        finally:
            other.kill()
    return {"foreign_pid": other.pid, **found}


def phase_split() -> dict[str, Any]:
    """The large model's work at batch 8, with the probes after the window."""
    body = {**bench.WORK["pytorch"], "batch_size": 8}
    file = bench.experiment(bench.TMP / "llem-split", bench.model(), pytorch=body,
                            measurement={"min_duration_seconds": 20, "phase_split": True})  # fmt: skip
    done = bench.llem("run", str(file), "--json", "-o", str(bench.TMP / "llem-split-results"), *QUICK)
    return json.loads(done.stdout) if done.returncode == 0 else {"exit_code": done.returncode}


def self_test() -> list[str]:
    """The sensor's own figures."""
    return bench.llem("config", "--self-test").stdout.splitlines()


PARTS = {f.__name__: f for f in (default, short, foreign, phase_split, self_test)}


def main() -> None:
    """Run the named parts, write one file after each."""
    out, wanted = Path(sys.argv[1]), sys.argv[2:] or list(PARTS)
    out.mkdir(parents=True, exist_ok=True)
    record = bench.stamp(" ".join(["python benchmarks/gpu_runs.py OUTDIR", *wanted]))
    for name in wanted:
        started_s = time.monotonic()
        record[name] = PARTS[name]()
        record[f"{name}_seconds"] = round(time.monotonic() - started_s, 1)
        (out / f"runs_{'_'.join(wanted)}.json").write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
