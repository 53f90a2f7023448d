"""Writes scripts for the fake `pynvml` and knows their truth: the integral of power, computed independently."""

import importlib.util
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest

from llenergymeasure import nvml_sampling

FAKES = Path(__file__).resolve().parent
AHEAD_S = 0.02  # readers take a new script within milliseconds
SW_POWER_CAP, HW_SLOWDOWN, SW_THERMAL, HW_THERMAL, POWER_BRAKE = 0x4, 0x8, 0x20, 0x40, 0x80


Span = tuple[float, float]  # from, to


@dataclass
class Gpu:
    """One scripted GPU with its faults; instants are seconds of CLOCK_MONOTONIC, steps are (from, value).

    Lists of faults hold rows that end with (from, to): what is there only between two instants.
    """

    uuid: str = "GPU-aaaaaaaa-0000-0000-0000-000000000000"
    name: str = "NVIDIA H100 80GB HBM3"
    # the energy counter and its faults
    power: list[tuple[float, float]] = field(default_factory=lambda: [(0.0, 300.0)])  # W
    period_s: float = 0.05
    phase_s: float = 0.007
    lag_s: float = 0.0
    jitter_s: float = 0.0  # standard deviation of the lag
    origin_s: float = field(default_factory=lambda: time.monotonic() - 1000.0)
    reset_at_s: float | None = None
    jumps: list[tuple[float, float]] = field(default_factory=list)  # (at, joules that were never used)
    holes: list[Span] = field(default_factory=list)  # no tick appears inside; the next one has it all
    constant: bool = False
    trace: list[tuple[float, float]] = field(default_factory=list)  # a recorded counter: (s from origin_s, mJ)
    # the other sensors
    reasons: list[tuple[float, float, int]] = field(default_factory=list)  # (from, to, bits); counters follow them
    temperature_c: int = 55
    temperature_steps: list[tuple[float, float]] = field(default_factory=list)
    memory_mb: int = 81559
    used_mb: int = 1024
    reserved_mb: int = 0  # the driver's own, which only version 2 of the memory information tells apart
    utilisation_pct: int = 97
    clocks_mhz: dict[str, int] = field(default_factory=lambda: {"sm": 1755, "mem": 2619})
    sm_clock_steps: list[tuple[float, float]] = field(default_factory=list)
    # who else is there
    pids: list[int] = field(default_factory=list)  # of processes that compute on it, all the time
    foreign_compute: list[tuple[int, float, float]] = field(default_factory=list)  # (pid, from, to)
    foreign_graphics: list[tuple[int, float, float]] = field(default_factory=list)  # (pid, from, to)
    busy: list[tuple[int, int, float, float]] = field(default_factory=list)  # (host pid, SM %, from, to)
    foreign_memory: list[tuple[int, float, float]] = field(default_factory=list)  # (MiB, from, to)
    # how it is set
    mig: bool = False
    persistence: bool = True
    ecc: bool = True
    power_limit_w: float = 700.0
    capability: tuple[int, int] = (9, 0)
    # how NVML itself behaves
    missing: list[str] = field(default_factory=list)  # calls that answer "not supported"
    missing_fields: list[int] = field(default_factory=list)  # field ids without a value
    failing: list[tuple[str, float, float]] = field(default_factory=list)  # (call, from, to): "unknown error"
    call_s: float = 0.0  # what every call takes
    slow: dict[str, float] = field(default_factory=dict)  # what single calls take instead
    index: int = 0

    def joules(self, start_s: float, end_s: float) -> float:
        """True energy of an interval: the integral of the steps, by summing thin slices exactly at their edges."""
        edges = sorted({start_s, end_s, *(t for t, _ in self.power if start_s < t < end_s)})
        return sum((b - a) * self._watts(a) for a, b in pairwise(edges))

    def _watts(self, t_s: float) -> float:
        begun = [w for t, w in self.power if t <= t_s]
        return begun[-1] if begun else self.power[0][1]


def drift(first: float, last: float, *, start_s: float, seconds: float, steps: int = 50) -> list[tuple[float, float]]:
    """Steps of a value that creeps from `first` to `last`: power, clocks or temperature that drift."""
    return [
        (0.0, first),
        *((start_s + seconds * i / steps, first + (last - first) * i / steps) for i in range(1, steps + 1)),
    ]


def square_wave(low_w: float, high_w: float, *, half_period_s: float, seconds: float) -> list[tuple[float, float]]:
    """Steps that alternate between two powers from now on."""
    now_s, count = time.monotonic(), int(seconds / half_period_s)
    return [(now_s + i * half_period_s, (low_w, high_w)[i % 2]) for i in range(count)]


class Machine:
    """The scripted machine of one test: its GPUs, and the file that holds their script."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._file, self._monkeypatch = folder / "fake-nvml.json", monkeypatch
        self.gpus: list[Gpu] = []

    def play(self, *gpus: Gpu, driver: str = "580.65.06") -> None:
        """Make these the machine's GPUs, for this process and its children; may be called again."""
        self.gpus = list(gpus)
        rows = [asdict(g) | {"index": i} for i, g in enumerate(gpus)]
        partial = self._file.with_suffix(".partial")
        partial.write_text(json.dumps({"driver": driver, "gpus": rows}), encoding="utf-8")
        partial.replace(self._file)
        nvml_sampling._still.cache_clear()  # another machine than the one that was looked at
        self._monkeypatch.setenv("FAKE_NVML", str(self._file))

    def draw(self, gpu: Gpu, watts: float) -> float:
        """Let the one GPU draw so much from a moment on; wait for it and give it.

        The script has the moment before it comes: a counter that was read meanwhile would have to go back.
        """
        at_s = time.monotonic() + AHEAD_S
        gpu.power.append((at_s, watts))
        self.play(gpu)
        time.sleep(max(0.0, at_s - time.monotonic()))
        return at_s


def install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Put the fake in place of pynvml in this process and in its children."""
    spec = importlib.util.spec_from_file_location("pynvml", FAKES / "pynvml" / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "pynvml", module)
    spec.loader.exec_module(module)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(FAKES), os.environ.get("PYTHONPATH")])))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return Machine(folder, monkeypatch)


def children(pid: int, *, running: Sequence[str] = ("llenergymeasure.nvml_recorder",)) -> list[int]:
    """Process ids of a process' children whose command line names one of the modules."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            command = (folder / "cmdline").read_text()
        except (OSError, IndexError, ValueError):
            continue  # it ended meanwhile
        if parent == pid and any(name in command for name in running):
            found.append(int(folder.name))
    return found
