"""Runs recorded in the first format, completed so that today's pipeline judges them again; writes the golden traces.

What that format lacks is made up for, openly. Batches begin where the sample buffer shows a prefill, which it does from
eight prompts on; single prompts are taken as equally long. The engine's own processes are those that were listed inside
the window. Jitter is the default and the lag unknown: where a self-test had told them, it was one that is no longer
believed. From the results come warnings that were known before the window, and what the recorder itself cost. Joules,
conditions, second readings and the verdict are not among these.

    python benchmarks/recorded.py     # tests/golden/traces from the records of gpu_repeat.py
"""

import argparse
import gzip
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from gpu_model import ROOT, stamp

sys.path.insert(0, str(ROOT / "runner"))

from llenergymeasure import recording
from llenergymeasure.core.contracts import SensorFacts
from llenergymeasure.core.energy_series import DEFAULT_JITTER_S, EnergySeries, counter_facts
from llenergymeasure.core.result import ExperimentResult
from llenergymeasure.nvml_sampling import NO_SELF_TEST

RESULTS = ROOT / "benchmarks/results"
FILES = ("gpu_spread_h100.json.gz", "gpu_planted_h100.json.gz")
TRACES = {
    "h100_batch1": (FILES[0], "00003_c2_llem-7b-pytorch_0f23102f"),
    "h100_batch8": (FILES[1], "00000_c1_llem-7b-pytorch_e778fbef"),
}
PREFILL = 1.35  # times the median power: batches of 8 and 32 reach 1.6 times and more, decoding does not
LEAST_BATCH_S = 0.5
ODD = 0.3  # a batch that differs by more of the median length has a peak missed or invented
KNOWN_BEFORE = ("not_settled", "no_settling", "random_weights", "warmup_not_converged")
FIRST_SELF_TEST = "the self-test of that day had its lag from starts of load, whose surge falsifies it"


@dataclass(frozen=True)
class Recorded:
    """One run: its file, its name, what was stored of it, its recording; whether that has the window's batches."""

    source: str
    name: str
    result: ExperimentResult
    raw: dict[str, Any]
    has_batches: bool


def asked(about: str | None) -> argparse.Namespace:
    """`out` and `files` of a benchmark that judges records: without them it prints, and takes ours."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, metavar="OUT.json", help="also write the record there")
    ours = [RESULTS / name for name in FILES]
    told = f"files of gpu_repeat.py (default: {' and '.join(FILES)} of benchmarks/results)"
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE.json.gz", default=ours, help=told)
    return parser.parse_args()


def give(found: Mapping[str, Any], wanted: argparse.Namespace) -> None:
    """Print a record with the command that gives it, and write it if a file was named."""
    names = [f.name for f in wanted.files]
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", "OUT.json", *names])
    text = json.dumps(stamp(command) | found, indent=1)
    if wanted.out:
        wanted.out.write_text(text + "\n", encoding="utf-8")
    print(text)


def runs(file: Path) -> Iterator[Recorded]:
    """All runs of one record of gpu_repeat.py."""
    for row in json.loads(gzip.decompress(file.read_bytes()))["runs"]:
        result = ExperimentResult.model_validate(row["result"])
        raw = row["recording"]
        whole = "run" in raw
        yield Recorded(file.name, row["run"], result, raw if whole else completed(result, raw), whole)


def completed(result: ExperimentResult, raw: Mapping[str, Any]) -> dict[str, Any]:
    """A recording of the first format with what it lacks."""
    assert result.steady_state_window is not None
    seen = raw["occupants"]
    inside = [p for t, p in zip(seen["t_s"], seen["compute_pids"], strict=True) if 0 <= t <= raw["window_s"]]
    run = {
        "experiment_id": result.experiment_id,
        "origin_s": -result.steady_state_window[0],
        "batches": batches(result, raw),
        "own_pids": sorted({pid for pids in inside for pid in pids}),
        "warnings": [w for w in result.measurement_warnings if w.partition(":")[0] in KNOWN_BEFORE],
        "no_baseline_reason": result.null_reasons.get("baseline_power_w", ""),
    }
    found = {**raw, "series": {uuid: {"jitter_s": DEFAULT_JITTER_S} for uuid in raw["series"]}}
    sensors = {u: asdict(facts(result, u, s)) for u, s in recording.from_json(found).series.items()}
    return {**found, "format": recording.FORMAT, "sensors": sensors, "run": run}


def facts(result: ExperimentResult, uuid: str, series: EnergySeries) -> SensorFacts:
    """What the ticks tell of a counter, and what the recorder cost that day."""
    assert result.sensors is not None
    stored = result.sensors[uuid]
    return SensorFacts(
        **counter_facts(series),
        jitter_source="default",
        lag_s=None,
        lag_reason=FIRST_SELF_TEST if stored.jitter_source == "self-test" else NO_SELF_TEST,
        call_s=stored.call_s,
        sampler_processor_share=stored.sampler_processor_share,
    )


def batches(result: ExperimentResult, raw: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The window's batches, cut where they were seen to begin, else equally long; prompts are read in a circle."""
    assert result.latency is not None
    count, prompts, window_s = result.latency.samples, result.effective_config["n"], raw["window_s"]
    size, seen = result.requests // count, prefills(raw, 0.0, window_s)
    if len(seen) == count:
        cuts = [t - seen[0] for t in seen] + [window_s]
    else:
        cuts = [i * window_s / count for i in range(count + 1)]
    each = (result.input_tokens // result.requests, result.output_tokens // result.requests)
    return [
        {
            "start_s": round(cuts[i], 6),
            "end_s": round(cuts[i + 1], 6),
            "requests": [(size * i + k) % prompts for k in range(size)],
            "input_tokens": [each[0]] * size,
            "output_tokens": [each[1]] * size,
        }
        for i in range(count)
    ]


def prefills(raw: Mapping[str, Any], start_s: float, end_s: float) -> list[float]:
    """When the power of the sample buffer rose as at the prefill of eight prompts or more, s: a batch begins."""
    (samples,) = raw["samples"].values()
    rows = [(t, p) for t, p in zip(samples["t_s"], samples["power_w"], strict=True) if start_s <= t <= end_s]
    return [rows[i][0] for i in rises(rows, PREFILL * median(p for _, p in rows))]


def rises(rows: Sequence[tuple[float, float]], level_w: float) -> list[int]:
    """Positions of samples (s, W) at which the power has risen above a level, at most one within a batch."""
    found: list[int] = []
    for i, ((_, before_w), (t, power_w)) in enumerate(pairwise(rows), start=1):
        if power_w > level_w >= before_w and (not found or t - rows[found[-1]][0] > LEAST_BATCH_S):
            found.append(i)
    return found


def trace(source: str, name: str) -> str:
    """A run as the tests replay it: where it comes from, its stored result, its recording."""
    (run,) = (r for r in runs(RESULTS / source) if r.name == name)
    return json.dumps({"from": f"{source}: {name}", "result": json.loads(run.result.to_json()), "raw": run.raw})


def main() -> None:
    """Write the traces that the tests replay."""
    folder = ROOT / "tests/golden/traces"
    for told, (source, name) in TRACES.items():
        (folder / f"{told}.json.gz").write_bytes(gzip.compress(trace(source, name).encode(), mtime=0))


if __name__ == "__main__":
    main()
