"""Runs the operator on a real API server with pretended GPU nodes: how fast, how large, how quiet.

Nothing is measured on a GPU: kwok starts each pod and ends it a second later with the message of a stored result.
Everything else is real: API server, scheduler, Job controller, the chart's rights and settings.

    python benchmarks/operator_kwok.py --runs 1000
"""

import argparse
import json
import os
import platform
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from pretended_cluster import CUSTOM, JOBS, PODS, ApiServer, Place, bring_up

RESULTS = Path(__file__).resolve().parent / "results"
WRITES = ("POST", "PATCH", "PUT", "DELETE")
RUN_S = 1.0
SERIAL_RUNS = 30


@dataclass(frozen=True)
class Figure:
    """One line of the table."""

    what: str
    value: float
    unit: str
    target: str = ""


@dataclass
class Heard:
    """What watches of Jobs and pods have told: when each Job was made, when each container ended."""

    jobs: dict[str, float] = field(default_factory=dict)
    ends: dict[str, float] = field(default_factory=dict)
    by_study: Counter[str] = field(default_factory=Counter)

    def listen(self, api: ApiServer) -> None:
        """Watch in the background until the process ends."""
        for path, heard in ((JOBS, self._job), (PODS, self._pod)):
            threading.Thread(target=_follow, args=(api, path, heard), daemon=True).start()
        time.sleep(1)

    def _job(self, at: float, change: str, job: dict[str, Any]) -> None:
        if change == "ADDED":
            self.jobs[job["metadata"]["name"]] = at
            self.by_study[job["metadata"]["labels"]["llem.dev/study"]] += 1

    def _pod(self, at: float, _: str, pod: dict[str, Any]) -> None:
        states = [s.get("state") or {} for s in pod.get("status", {}).get("containerStatuses") or ()]
        if any("terminated" in s for s in states):
            self.ends.setdefault(pod["metadata"]["labels"]["batch.kubernetes.io/job-name"], at)


def _follow(api: ApiServer, path: str, heard: Callable[[float, str, dict[str, Any]], None]) -> None:
    with suppress(OSError):  # the API server ends before this process does
        for at, change, obj in api.watch(path):
            heard(at, change, obj)


def study(name: str, runs: int, *, parallelism: int, suspend: bool = False) -> dict[str, Any]:
    """A study of so many runs without pauses: one cycle of a sweep, or two of a larger one."""
    cycles = 2 if runs > 50 else 1
    configurations = runs // cycles
    sweep: dict[str, list[int]] = {"n": list(range(1, min(configurations, 50) + 1))}
    rest = configurations // len(sweep["n"])
    tokens = 1 if rest <= 50 else 2
    sweep["vllm.max_num_seqs"] = list(range(1, rest // tokens + 1))
    sweep["max_output_tokens"] = [64, 128][:tokens]
    if len(sweep["n"]) * (rest // tokens) * tokens * cycles != runs:
        raise SystemExit(f"--runs {runs}: use a multiple of 100, from 5,000 on of 200, up to 10,000")
    return {
        "apiVersion": "llem.dev/v1alpha1",
        "kind": "EnergyStudy",
        "metadata": {"name": name},
        "spec": {
            "design": {"model": "Qwen/Qwen3-8B", "backend": "vllm", "precision": "bf16", "sweep": sweep},
            "execution": {"nCycles": cycles, "configGapSeconds": 0, "cycleGapSeconds": 0},
            "parallelism": parallelism,
            "suspend": suspend,
            "template": {"gpu": {"products": ["NVIDIA-H100-80GB-HBM3"]}},
        },
    }


def wait(what: str, condition: Callable[[], bool], *, seconds: float, every: float = 0.1) -> float:
    """Wait for something; gives how long it took in s."""
    begun = time.monotonic()
    while not condition():
        if time.monotonic() - begun > seconds:
            raise SystemExit(f"{what}: not within {seconds:g} s")
        time.sleep(every)
    return time.monotonic() - begun


class Measuring:
    """The steps of the benchmark, each of which adds figures."""

    def __init__(self, place: Place, runs: int, parallelism: int) -> None:
        self.api, self.operator, self.heard = place.api, place.operator, Heard()
        self.runs, self.parallelism = runs, parallelism
        self.figures: list[Figure] = []

    def add(self, what: str, value: float, unit: str, target: str = "") -> None:
        """Keep a figure and show it."""
        self.figures.append(Figure(what, round(value, 3), unit, target))
        print(f"  {what}: {value:.2f} {unit}", flush=True)

    def status(self, name: str) -> dict[str, Any]:
        """Status of a study."""
        found: dict[str, Any] = self.api.ask("GET", f"{CUSTOM}/energystudies/{name}").get("status") or {}
        return found

    def completed(self, name: str) -> int:
        """Runs of a study that are done."""
        return int((self.status(name).get("counts") or {}).get("completed") or 0)

    def create(self, manifest: dict[str, Any]) -> float:
        """Create a study; gives the moment."""
        self.api.ask("POST", f"{CUSTOM}/energystudies", manifest)
        return time.monotonic()

    def first_start(self) -> None:
        """Start on an empty namespace."""
        self.operator.start()
        wait("ready", self.operator.is_ready, seconds=60)
        self.add("start of the operator to ready, empty namespace", time.monotonic() - self.operator.started_at, "s")
        self.add("memory after the start", self.operator.memory_mib()[0], "MiB")
        self.heard.listen(self.api)

    def one_after_the_other(self) -> None:
        """A study of parallelism 1: from the end of a container to the next Job."""
        self.create(study("serial", SERIAL_RUNS, parallelism=1))
        wait(
            "the serial study", lambda: bool(self.status("serial").get("finished")), seconds=30 * SERIAL_RUNS, every=0.5
        )
        jobs = sorted((at, name) for name, at in self.heard.jobs.items() if name.startswith("serial-"))
        ends = sorted(at for name, at in self.heard.ends.items() if name.startswith("serial-"))
        latencies = [job - end for (job, _), end in zip(jobs[1:], ends[:-1], strict=True)]
        self.add("container ended → next Job, median", median(latencies), "s")
        self.add("container ended → next Job, 95th percentile", quantiles(latencies, n=20)[-1], "s", "≤ 2")

    def expansion(self) -> None:
        """Create the experiments of a suspended study."""
        before = self.api.count(f"{CUSTOM}/energyexperiments")
        cpu = self.operator.cpu_s()
        begun = self.create(study("large", self.runs, parallelism=self.parallelism, suspend=True))
        there = lambda: self.api.count(f"{CUSTOM}/energyexperiments") - before >= self.runs  # noqa: E731
        wait("expansion", there, seconds=60 + self.runs, every=0.25)
        taken = time.monotonic() - begun
        self.add("experiments created", self.runs / taken, "1/s", "≤ 50 by design")
        self.add("processor time of expansion", self.operator.cpu_s() - cpu, "s")
        said = lambda: any(c["reason"] == "AllCreated" for c in self.status("large").get("conditions") or ())  # noqa: E731
        wait("Expanded", said, seconds=60)

    def restart(self, when: str) -> None:
        """Kill and start again; count what it asks and writes until nothing moves."""
        time.sleep(5)
        self.operator.kill()
        self.operator.start()
        wait("ready", self.operator.is_ready, seconds=120)
        ready = time.monotonic() - self.operator.started_at
        counted, last = self.operator.requests(), time.monotonic()
        while time.monotonic() - last < 8:
            time.sleep(0.25)
            now = self.operator.requests()
            if sum(now.values()) != sum(counted.values()):
                counted, last = now, time.monotonic()
        self.add(f"restart to ready, {when}", ready, "s", "≤ 60")
        self.add(f"restart to quiet, {when}", last - self.operator.started_at, "s", "≤ 60")
        writes = sum(counted.get(m, 0) for m in WRITES) - counted.get("PUT", 0)  # PUT: the Lease alone
        self.add(f"writes after a restart, {when}", writes, "", "0")
        self.add(f"memory after a restart, {when}", self.operator.memory_mib()[0], "MiB")

    def busy(self) -> None:
        """Let the large study run; a small one comes when a third is done."""
        cpu, asked = self.operator.cpu_s(), self.operator.requests()
        self.api.ask("PATCH", f"{CUSTOM}/energystudies/large", {"spec": {"suspend": False}})
        begun = time.monotonic()
        seen: list[tuple[float, int]] = []
        small_at: float | None = None
        while not seen or seen[-1][1] < self.runs:
            time.sleep(0.5)
            seen.append((time.monotonic(), self.completed("large")))
            if small_at is None and seen[-1][1] >= self.runs // 3:
                small_at = self.create(study("small", 2, parallelism=1))
            if time.monotonic() - begun > 120 + self.runs * 2:
                raise SystemExit(f"the large study is not done: {self.status('large').get('counts')}")
        seconds = time.monotonic() - begun
        taken = {m: n - asked.get(m, 0) for m, n in self.operator.requests().items()}
        self.add("transitions (pending → running → done), whole study", 2 * self.runs / seconds, "1/s", "≥ 8")
        self.add("transitions, between a tenth and nine tenths", 2 * _middle_rate(seen, self.runs), "1/s", "≥ 8")
        self.add("large study, first Job to end", seconds, "s")
        first = min((at for n, at in self.heard.jobs.items() if n.startswith("small-")), default=None)
        if small_at is not None and first is not None:
            self.add("a study of 2 runs beside it: created → first Job", first - small_at, "s", "≤ 5")
        self.add("requests, busy", sum(taken.values()) / seconds, "1/s", "≤ 50")
        for method in sorted(taken):
            self.add(f"requests per run, {method}", taken[method] / self.runs, "")
        self.add("processor time per run", (self.operator.cpu_s() - cpu) / self.runs * 1000, "ms")
        self.add("memory, busy, highest", self.operator.memory_mib()[1], "MiB", "≤ 256")

    def idle(self, seconds: float) -> None:
        """Nothing to do for a while."""
        wait("the end", lambda: bool(self.status("large").get("finished")), seconds=120)
        time.sleep(10)
        asked, cpu = self.operator.requests(), self.operator.cpu_s()
        time.sleep(seconds)
        taken = self.operator.requests()
        self.add("requests, idle", (sum(taken.values()) - sum(asked.values())) / seconds, "1/s", "≤ 0.5")
        self.add("processor, idle", (self.operator.cpu_s() - cpu) / seconds * 100, "% of a core")
        self.add("memory, idle", self.operator.memory_mib()[0], "MiB", "≤ 256")

    def correctness(self) -> None:
        """No run lost, none measured twice."""
        expected = {"large": self.runs, "serial": SERIAL_RUNS, "small": 2}
        for name, runs in expected.items():
            done, jobs = self.completed(name), self.heard.by_study[name]
            if (done, jobs) != (runs, runs):
                raise SystemExit(f"{name}: {runs} runs, {done} completed, {jobs} Jobs made")
        size = len(json.dumps(self.api.ask("GET", f"{CUSTOM}/energystudies/large")))
        self.add("the study as JSON", size / 1024, "KiB", "≤ 64")
        page = self.api.ask("GET", f"{CUSTOM}/energyexperiments?limit=50&labelSelector=llem.dev/study=large")
        self.add("a finished experiment as JSON", len(json.dumps(page["items"])) / 50 / 1024, "KiB", "about 5")


def _middle_rate(seen: list[tuple[float, int]], runs: int) -> float:
    middle = [(at, done) for at, done in seen if 0.1 * runs <= done <= 0.9 * runs]
    if len(middle) < 2 or middle[-1][0] == middle[0][0]:
        return float("nan")
    return (middle[-1][1] - middle[0][1]) / (middle[-1][0] - middle[0][0])


@contextmanager
def opened(options: argparse.Namespace) -> Iterator[Place]:
    """The cluster, taken down whatever happens."""
    place = bring_up(options.name, nodes=options.nodes, run_s=RUN_S, profile=options.profile)
    try:
        yield place
    finally:
        if options.log is not None and place.operator.log.exists():
            options.log.write_bytes(place.operator.log.read_bytes())
        place.close()


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        "shared": "API server, etcd, scheduler, controllers, kwok and operator share these cores with other work",
    }


def table(figures: list[Figure]) -> str:
    """Target beside figure."""
    lines = ["| what | figure | target |", "| --- | --- | --- |"]
    lines += [f"| {f.what} | {f.value:.4g} {f.unit} | {f.target or '-'} |" for f in figures]
    return "\n".join(lines)


def main() -> None:
    """Measure, print a table, write benchmarks/results/operator_kwok_<runs>.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--parallelism", type=int, default=50)
    parser.add_argument("--nodes", type=int, default=50)
    parser.add_argument("--idle-seconds", type=float, default=60)
    parser.add_argument("--name", default="bench", help="of the control plane")
    parser.add_argument("--profile", type=Path, help="write a cProfile of the operator's last start; slows it down")
    parser.add_argument("--log", type=Path, help="keep the operator's log")
    parser.add_argument("--no-restarts", action="store_true", help="leave the two restarts out")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the cluster is taken down
    begun = machine()
    with opened(options) as place:
        m = Measuring(place, options.runs, options.parallelism)
        m.first_start()
        m.one_after_the_other()
        m.expansion()
        if not options.no_restarts:
            m.restart("all runs pending")
        m.busy()
        m.idle(options.idle_seconds)
        m.correctness()
        if not options.no_restarts:
            m.restart("all runs done")
    print(table(m.figures))
    asked = ("runs", "parallelism", "nodes", "idle_seconds")
    flags = (f"--{name.replace('_', '-')} {getattr(options, name):g}" for name in asked)
    command = f"python benchmarks/operator_kwok.py {' '.join(flags)}"
    record = {
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": begun,
        "figures": [vars(f) for f in m.figures],
    }
    if options.profile is None:
        file = RESULTS / f"operator_kwok_{options.runs}.json"
        file.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
