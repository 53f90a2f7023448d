"""One visit to a machine with four GPUs, about 25 minutes: everything of docs/benchmarks.md that is taken there.

Each GPU works through its own lane, all lanes at once, so that a GPU does one thing at a time and a visit costs little
more than its longest lane. Each lane has processor cores of its own: the host's pace shows in the joules. What a part
has written when its time is up is kept. With fewer GPUs the lanes follow each other on those there are, as far as
--minutes goes.

    python benchmarks/gpu_visit.py OUTDIR [--minutes 25] [--cycles 5] [--window-s 20]

Judge the files with benchmarks/judge.py and benchmarks/scatter.py; neither needs a GPU.
"""

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import gpu_model as bench

HERE = Path(__file__).resolve().parent
GRACE_S = 30.0  # from SIGTERM to SIGKILL: a study writes what it has


@dataclass
class Part:
    """One command of a lane, and how long it took."""

    script: str
    arguments: list[str]
    seconds: float | None = field(default=None, init=False)


def lanes(cycles: int, window_s: float) -> list[list[Part]]:
    """What each GPU does, in order; the first two lanes matter most."""

    def study(name: str, *batch_sizes: int) -> Part:
        sizes = [str(n) for n in batch_sizes]
        often = ["--cycles", str(cycles), "--window-s", str(window_s)]
        return Part("gpu_repeat.py", [name, *often, "--batch-size", *sizes])

    return [
        [study("planted", 8)],
        [Part("gpu_instrument.py", ["harness"]), study("spread", 1, 32), Part("gpu_runs.py", ["phase_split"])],
        [
            Part("gpu_instrument.py", ["tools"]),
            Part("gpu_instrument.py", ["sampler"]),
            Part("gpu_runs.py", ["self_test", "default", "short", "foreign"]),
            study("equal", 32),
        ],
        [study("equal", 1)],
    ]


def gpus() -> list[str]:
    """UUIDs of the GPUs of this machine."""
    done = subprocess.run(
        ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"], capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def cores(lanes_at_once: int) -> list[str]:
    """This process's cores, divided among the lanes, as taskset takes them."""
    mine = sorted(os.sched_getaffinity(0))
    each = max(1, len(mine) // lanes_at_once)
    return [",".join(str(c) for c in mine[i * each : (i + 1) * each] or mine) for i in range(lanes_at_once)]


def limited(command: list[str], env: dict[str, str], log: IO[str], limit_s: float) -> int:
    """Run a script, end it in order at its limit, and leave nothing of it at the GPU; gives its exit code."""
    process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        try:
            return process.wait(limit_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            return process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        return -signal.SIGKILL
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def work(lane: list[Part], gpu: str, own_cores: str, out: Path, end_s: float) -> None:
    """Do one lane on one GPU and its cores."""
    env = bench.environment(CUDA_VISIBLE_DEVICES=gpu)
    for part in lane:
        limit_s = end_s - time.monotonic() - GRACE_S
        if limit_s < GRACE_S:
            continue
        command = ["taskset", "-c", own_cores, sys.executable, str(HERE / part.script), str(out), *part.arguments]
        log = out / f"{part.script.removesuffix('.py')}_{part.arguments[0]}_{gpu[-4:]}.log"
        began_s = time.monotonic()
        with log.open("w") as file:
            code = limited(command, env, file, limit_s)
        part.seconds = time.monotonic() - began_s
        print(
            f"{gpu[-4:]} {part.script} {' '.join(part.arguments)}: exit {code}, {part.seconds:.0f} s",
            flush=True,
        )


def main() -> None:
    """Build the model once, then let every GPU work through its lanes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--cycles", type=int, default=5)
    parser.add_argument("--window-s", type=float, default=20.0)
    a = parser.parse_args()
    end_s = time.monotonic() + 60 * a.minutes
    a.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    bench.model()
    bench.model(bench.SMALL)
    found, plan = gpus(), lanes(a.cycles, a.window_s)
    each = [[part for lane in plan[i :: len(found)] for part in lane] for i in range(min(len(found), len(plan)))]
    threads = [
        threading.Thread(target=work, args=(lane, gpu, own, a.out, end_s))
        for lane, gpu, own in zip(each, found, cores(len(each)), strict=False)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
