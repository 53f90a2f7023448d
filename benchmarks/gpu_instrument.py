"""What the instrument costs, and what other tools would have said of the same windows; on one real GPU.

    python benchmarks/gpu_instrument.py OUTDIR sampler|tools|harness ...

`sampler`: CPU time of the sampler's process and the GPU's idle power with and without it, in pairs that take turns.
`tools`: the same windows by our counter path, Zeus, CodeCarbon, nvidia-smi once a second, both power fields and the
driver's sample buffer. `harness`: tokens per second in our window against the bare loop, interleaved pairs. Each part
writes what it has after every pair or window, so that a part cut short by a time limit keeps them.
"""

import json
import os
import subprocess
import sys
import threading
import time
import timeit
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import gpu_model as bench

sys.path.insert(0, str(bench.ROOT / "runner"))
os.environ.update(bench.environment())

from llenergymeasure import models, window
from llenergymeasure.core import registry
from llenergymeasure.core.config import ExperimentConfig
from llenergymeasure.core.contracts import Prompt, Request
from llenergymeasure.energy.zeus import by_nvml_index
from llenergymeasure.nvml_sampling import nvml, visible_devices
from llenergymeasure.phases import Phases, silent
from llenergymeasure.run_energy import RunEnergy

BATCH = 8
TICK_HZ = os.sysconf("SC_CLK_TCK")


# ---------------------------------------------------------------------------------------------------------- sampler


def counter_at_tick(lib: Any, handle: Any) -> tuple[float, float]:
    """Wait for the counter's next tick: its instant, s, and value, J."""
    before = lib.nvmlDeviceGetTotalEnergyConsumption(handle)
    while (value := lib.nvmlDeviceGetTotalEnergyConsumption(handle)) == before:
        pass
    return time.monotonic(), value / 1e3


def mean_power_w(seconds: float) -> float:
    """Mean power between two ticks about `seconds` apart, W; nothing asks the driver in between."""
    with nvml() as lib:
        handle = lib.nvmlDeviceGetHandleByUUID(visible_devices()[0].uuid)
        t0_s, e0_j = counter_at_tick(lib, handle)
        time.sleep(seconds)
        t1_s, e1_j = counter_at_tick(lib, handle)
    return (e1_j - e0_j) / (t1_s - t0_s)


def cpu_s(pid: int) -> float:
    """CPU time of a process so far, s."""
    columns = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(columns[11]) + int(columns[12])) / TICK_HZ


def recorder_pid() -> int:
    """The process that records the counter for this one."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == os.getpid() and "nvml_recorder" in (folder / "cmdline").read_text():
                return int(folder.name)
    raise RuntimeError("the counter is not being recorded")


TURNS, TURN_S = 6, 15.0  # an idle board drifts by more than 0.5 W in a minute: short turns, in pairs


def sampler() -> Iterator[dict[str, Any]]:
    """Idle power with the sampler inside a window less without it, in pairs that take turns, and its CPU time."""
    devices, pairs, cpu = visible_devices()[:1], [], []
    told = {"call_ms": call_ms(), "share_of_a_core": {"edges": at_edges(devices), "window": cpu}, "idle_power_w": pairs}
    turns = {"without": lambda: mean_power_w(TURN_S), "with": lambda: recorded(devices, cpu)}
    for i in range(TURNS):
        order = ["without", "with"] if i % 2 == 0 else ["with", "without"]
        pairs.append({name: turns[name]() for name in order})
        differences = [p["with"] - p["without"] for p in pairs]
        error_w = stdev(differences) / len(pairs) ** 0.5 if len(pairs) > 1 else None
        yield told | {"difference_w": fmean(differences), "std_error_w": error_w}


def call_ms() -> dict[str, float]:
    """What the calls take that the recorder makes with every power reading, mean of 200."""
    with nvml() as lib:
        handle = lib.nvmlDeviceGetHandleByUUID(visible_devices()[0].uuid)
        calls = {
            "temperature": lambda: lib.nvmlDeviceGetTemperature(handle, lib.NVML_TEMPERATURE_GPU),
            "memory": lambda: lib.nvmlDeviceGetMemoryInfo(handle),
            "utilisation": lambda: lib.nvmlDeviceGetUtilizationRates(handle),
            "memory clock": lambda: lib.nvmlDeviceGetClockInfo(handle, lib.NVML_CLOCK_MEM),
            "counter": lambda: lib.nvmlDeviceGetTotalEnergyConsumption(handle),
        }
        return {name: 5 * timeit.timeit(call, number=200) for name, call in calls.items()}


def recorded(devices: list[Any], cpu: list[float]) -> float:
    """Mean power with the recorder inside a window, W; adds its share of a core."""
    with recording(devices) as source:
        source.open_window("window")
        time.sleep(2.5)  # after an edge every tick is still recorded for a while
        power_w = shared(cpu, lambda: mean_power_w(TURN_S))
        source.close_window("window")
    return power_w


def at_edges(devices: list[Any]) -> list[float]:
    """The recorder's share of a core where it reads every tick."""
    cpu: list[float] = []
    with recording(devices) as source:
        source.attend()
        shared(cpu, lambda: mean_power_w(4.0))
    return cpu


@contextmanager
def recording(devices: list[Any]) -> Iterator[Any]:
    """The product's counter source at work."""
    source = registry.energy_source("nvml")
    source.start(devices, interval_s=0.1)
    try:
        yield source
    finally:
        source.stop()


def shared(cpu: list[float], act: Callable[[], float]) -> float:
    """Do something and add the share of a core that the recorder's process took meanwhile."""
    child = recorder_pid()
    c0_s, t0_s = cpu_s(child), time.monotonic()
    done = act()
    cpu.append((cpu_s(child) - c0_s) / (time.monotonic() - t0_s))
    return done


# ------------------------------------------------------------------------------------------------------- the engine


class Loaded:
    """The engine with the large model, and one full batch of its work."""

    def __init__(self) -> None:
        path = bench.model()
        body = {"model": str(path), **bench.WORK, "measurement": {"min_duration_seconds": 3.0}}
        body["pytorch"] = {**bench.WORK["pytorch"], "batch_size": BATCH}
        self.config = ExperimentConfig.model_validate(body)
        self.engine: Any = registry.engine("pytorch")
        weights = models.resolve(str(path), None, cache=bench.TMP / "llem-cache")
        self.engine.load(self.config, weights)
        drawn = [
            Prompt(token_ids=tuple((37 * i + 11 * j) % 250 for j in range(bench.INPUT_TOKENS))) for i in range(BATCH)
        ]
        ids = self.engine.tokenise(drawn, max_input_tokens=0)
        self.batch = tuple(Request(i, t, bench.OUTPUT_TOKENS) for i, t in enumerate(ids))
        for _ in range(4):
            self.engine.generate(self.batch)

    def work(self, seconds: float, pause_s: float = 0.0) -> int:
        """Run batches for `seconds` or a little longer, with a pause after each; gives their number."""
        count, end_s = 0, time.monotonic() + seconds
        while time.monotonic() < end_s:
            self.engine.generate(self.batch)
            time.sleep(pause_s)
            count += 1
        return count


@cache
def the_engine() -> Loaded:
    """One loaded engine for all parts."""
    return Loaded()


# ------------------------------------------------------------------------------------------------------------ tools


@contextmanager
def smi_polling(field: str) -> Iterator[list[tuple[float, float]]]:
    """nvidia-smi once a second, as many scripts do it; the list holds instants and watts as they come."""
    readings: list[tuple[float, float]] = []
    uuid = visible_devices()[0].uuid
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits", "-l", "1", "-i", uuid]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        assert process.stdout is not None
        lines = process.stdout

        def read() -> None:
            readings.extend((time.monotonic(), float(x)) for x in lines if x.strip().replace(".", "").isdigit())

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        try:
            yield readings
        finally:
            process.terminate()
            reader.join()


def tools() -> Iterator[dict[str, Any]]:
    """Steady load, load with pauses of half a second, and a short window; every tool over the same instants."""
    loaded = the_engine()
    loaded.work(25.0)
    found = []
    for name, seconds, pause_s in (
        ("steady", 60.0, 0.0),
        ("pauses", 60.0, 0.53),
        ("steady", 60.0, 0.0),
        ("short", 10.0, 0.0),
    ):
        found.append({"load": name, **one_window(lambda s=seconds, p=pause_s: loaded.work(s, p))})
        print(json.dumps(found[-1]), flush=True)
        yield {"batch_size": BATCH, "windows": found}


def one_window(work: Callable[[], int]) -> dict[str, Any]:
    """Joules of one piece of work by every tool that is installed."""
    source = registry.energy_source("nvml")
    devices = visible_devices()[:1]
    source.start(devices, interval_s=0.1)
    zeus, carbon = zeus_monitor(), codecarbon_tracker()
    source.attend()
    time.sleep(1.5)  # the guard of a quiet edge
    with smi_polling("power.draw") as average_w, smi_polling("power.draw.instant") as instant_w:
        time.sleep(1.2)
        if carbon:
            carbon.start_task("w")
        if zeus:
            zeus.begin_window("w", sync_execution=False)
        start_s = source.open_window("window")
        batches = work()
        source.attend()
        end_s = source.close_window("window", "quiet")
        zeus_j = sum(zeus.end_window("w", sync_execution=False).gpu_energy.values()) if zeus else None
        carbon_j = float(carbon.stop_task("w").gpu_energy) * 3.6e6 if carbon else None
    time.sleep(1.5)
    if carbon:
        carbon.stop()
    record = source.stop()
    energy, span_s = record.windows["window"][0], end_s - start_s
    return {
        "seconds": span_s,
        "batches": batches,
        "counter_j": energy.joules,
        "std_uncertainty_j": energy.std_uncertainty_j,
        "edges": energy.edges,
        "zeus_j": zeus_j,
        "codecarbon_j": carbon_j,
        "nvidia_smi_1s_j": mean(average_w, start_s, end_s) * span_s,
        "nvidia_smi_instant_1s_j": mean(instant_w, start_s, end_s) * span_s,
        "average_field_j": integral([(r.t_s, r.power_average_w) for r in record.readings], start_s, end_s),
        "instant_field_j": integral([(r.t_s, r.power_instant_w) for r in record.readings], start_s, end_s),
        "sample_buffer_j": integral([(s.t_s, s.power_w) for s in record.samples[devices[0].uuid]], start_s, end_s),
    }


def mean(readings: Sequence[tuple[float, float]], start_s: float, end_s: float) -> float:
    """Mean of the readings that came inside the work; NaN without any."""
    inside = [watts for t, watts in readings if start_s <= t <= end_s]
    return fmean(inside) if inside else float("nan")


def integral(points: list[tuple[float, float | None]], start_s: float, end_s: float) -> float | None:
    """Trapezoids over the known points inside the window, held at its ends; None without any."""
    known = sorted({t: p for t, p in points if p is not None and start_s <= t <= end_s}.items())
    if len(known) < 2:
        return None
    inside = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(known))
    return inside + (known[0][0] - start_s) * known[0][1] + (end_s - known[-1][0]) * known[-1][1]


def zeus_monitor() -> Any:
    """Zeus' monitor of the first visible GPU, None where it is not installed."""
    try:
        from zeus.monitor import ZeusMonitor
    except ImportError:
        return None
    with by_nvml_index(visible_devices()[:1]):
        return ZeusMonitor(gpu_indices=[0])


def codecarbon_tracker() -> Any:
    """CodeCarbon's offline tracker as its documentation shows it, None where it is not installed."""
    try:
        from codecarbon import OfflineEmissionsTracker
    except ImportError:
        return None
    index = visible_devices()[0].index
    return OfflineEmissionsTracker(
        country_iso_code="FRA", measure_power_secs=1, save_to_file=False, allow_multiple_runs=True,
        log_level="critical", gpu_ids=[index],
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- harness


def harness() -> Iterator[dict[str, Any]]:
    """Tokens per second in our window with the sampler beside it, against transformers' generate in a bare loop."""
    loaded = the_engine()
    pairs = []
    for i in range(10):
        order = [bare, ours] if i % 2 else [ours, bare]
        pairs.append({f.__name__: f(loaded) for f in order})
        losses = [1 - p["ours"] / p["bare"] for p in pairs]
        yield {"batch_size": BATCH, "tokens_per_second": pairs, "loss": losses}


def bare(loaded: Loaded) -> float:
    """Three batches by transformers itself, tokens per second."""
    import torch

    model = loaded.engine._model
    ids = torch.tensor([r.token_ids for r in loaded.batch], device=model.device)
    mask, generate = torch.ones_like(ids), model.generate
    synchronise = torch.cuda.synchronize if model.device.type == "cuda" else time.monotonic
    synchronise()
    start_s = time.monotonic()
    with torch.inference_mode():
        for _ in range(3):
            out = generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=bench.OUTPUT_TOKENS, do_sample=False,
                cache_implementation="static",
            )  # fmt: skip
            out.tolist()  # the tokens are wanted by whoever runs the loop
    synchronise()
    return 3 * BATCH * bench.OUTPUT_TOKENS / (time.monotonic() - start_s)


def ours(loaded: Loaded) -> float:
    """The measured window as `llem run` runs it, tokens per second."""
    source = registry.energy_source("nvml")
    energy = RunEnergy(source, "", visible_devices()[:1])
    source.start(energy.devices, interval_s=0.1)
    measured = window.passes(loaded.config, loaded.engine, energy, [loaded.batch], Phases(silent))
    source.stop()
    return sum(g.output_tokens for g in measured.generations) / measured.window.duration_s


PARTS = {f.__name__: f for f in (sampler, tools, harness)}


def main() -> None:
    """Run the named parts, write one file, anew with every figure."""
    out, wanted = Path(sys.argv[1]), sys.argv[2:] or list(PARTS)
    out.mkdir(parents=True, exist_ok=True)
    with nvml() as lib:
        driver = lib.nvmlSystemGetDriverVersion()
    record = bench.stamp(" ".join(["python benchmarks/gpu_instrument.py OUTDIR", *wanted]))
    record |= {"gpu": visible_devices()[0].name, "uuid": visible_devices()[0].uuid, "driver": driver}
    for name in wanted:
        for found in PARTS[name]():
            record[name] = found
            (out / f"instrument_{'_'.join(wanted)}.json").write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
