"""Writes folders of studies with known figures, as a finished `llem run` leaves them, and reads them back."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from llenergymeasure.core.config import ExperimentConfig, StudyConfig
from llenergymeasure.core.plan import make_plan
from llenergymeasure.core.result import ExperimentResult
from llenergymeasure.object_store import Access, open_place
from llenergymeasure.stored_study import Rebuilt, rebuild

START = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
NOW = datetime(2026, 3, 5, tzinfo=UTC)
HOSTILE = "<script>alert('x')</script>\"&$\\frac{1}$'\u202e]]>"
UNICODE = "模型-ß-😀-עברית"

Change = Callable[[int, int], Mapping[str, Any] | None]
"""Fields of a result by position and cycle that differ from the usual; None: the run has no result."""


def joules(position: int, cycle: int) -> float:
    """Energy per output token of the pretended truth: rises with the position, with a little spread between cycles."""
    return 0.4 * (1 + 0.1 * position) * (1 + 0.002 * ((7 * position + 3 * cycle) % 5 - 2))


def study_config(count: int, cycles: int, *, name: str = "known", models: Sequence[str] = ("m",)) -> StudyConfig:
    """`count` configurations that differ in batch size, and in the model if there are several."""
    experiments = [
        ExperimentConfig.model_validate(
            {"model": models[i % len(models)], "backend": "synthetic", "synthetic": {"batch_size": i + 1}}
        )
        for i in range(count)
    ]
    return StudyConfig.model_validate(
        {"name": name, "experiments": experiments, "execution": {"n_cycles": cycles, "cycle_order": "shuffled"}}
    )


def no_energy(_position: int, _cycle: int) -> Mapping[str, Any]:
    """What a run without a sensor lacks."""
    why = {"code": "no_energy", "sentence": "no energy source (nvml: no driver)", "fix": "run on an NVIDIA GPU"}
    empty = ("energy_total_j", "energy_per_output_token_j", "mean_power_w", "energy_source", "energy_per_device_j")
    return dict.fromkeys(empty) | {
        "verdict": {"state": "unmeasured", "reasons": [why]},
        "uncertainty": {},
        "baseline_power_w": None,
    }


def written(folder: Path, study: StudyConfig, *, change: Change = lambda _p, _c: {}, series: bool = True) -> Path:
    """Write the study and a result of each run; gives the folder."""
    folder.mkdir(parents=True)
    (folder / "study.json").write_text(study.model_dump_json(), encoding="utf-8")
    for place, run in enumerate(make_plan(study).runs):
        changed = change(run.position, run.cycle)
        if changed is None:
            continue
        start = START + timedelta(minutes=place)
        fields = {
            **_fields(run.position, run.cycle, study.experiments[run.position], start),
            "measurement_config_hash": run.config_hash,
            **changed,
        }
        below = folder / "runs" / f"{run.index:05d}_c{run.cycle}_m-synthetic_{run.config_hash[:8]}"
        below.mkdir(parents=True)
        result = ExperimentResult.model_validate(fields)
        (below / "result.json").write_text(result.to_json(), encoding="utf-8")
        if series and result.mean_power_w is not None:
            _write_series(below / "timeseries.parquet", result)
    return folder


def _fields(position: int, cycle: int, config: ExperimentConfig, start: datetime) -> dict[str, Any]:
    energy, speed = joules(position, cycle), 1000.0 - 50 * (position % 7)
    return {
        "experiment_id": f"{position}-{cycle}", "model": config.model, "backend": "synthetic", "backend_version": "1",
        "tool_version": "2.0.0", "effective_config": config.model_dump(mode="json", exclude_none=True),
        "measurement_methodology": "steady_state", "window_mode": "passes", "input_tokens": 1000,
        "output_tokens": 20_000, "total_tokens": 21_000, "requests": 100, "verdict": {"state": "valid"},
        "duration_s": 20.5, "tokens_per_second": speed, "total_tokens_per_second": speed, "requests_per_second": 5.0,
        "latency": {"mode": "per_request_batch", "samples": 9} | dict.fromkeys(
            ("mean_ms", "p50_ms", "p90_ms", "p95_ms", "p99_ms", "min_ms", "max_ms"), 10.0 + 3 * (position % 11)),
        "energy_source": "nvml", "energy_kind": "counter", "energy_total_j": energy * 20_000,
        "settle": {"settled": True, "seconds": 21.0, "power_drift": 0.002, "temperature_change_c": 1.0},
        "energy_per_output_token_j": energy, "mean_power_w": energy * speed, "baseline_power_w": 77.0,
        "energy_per_device_j": {"GPU-known": energy * 20_000},
        "uncertainty": {"edge": 0.001, "comparison": 0.02, "absolute": 0.097, "between_runs_source": "assumed"},
        "environment_snapshot": {
            "driver_version": "580.1", "kernel": "6.1", "python_version": "3.12",
            "gpus": [{"name": "H100 80GB HBM3", "uuid": "GPU-known", "power_limit_w": 700.0}],
            "packages": {"torch": "2.9.1"},
        },
        "measurement_warnings": ["short_window: the window was short; use at least 10 s"],
        "start_time": start, "end_time": start + timedelta(seconds=40),
    }  # fmt: skip


def _write_series(path: Path, result: ExperimentResult) -> None:
    import pyarrow.parquet as pq

    from llenergymeasure.timeseries import COLUMNS, table

    mean = result.mean_power_w or 0.0
    rows = [
        dict.fromkeys(COLUMNS)
        | {"timestamp_s": float(s), "gpu_index": 0, "gpu_uuid": "GPU-known", "power_w": mean + s % 3}
        | {"power_min_w": mean - 5, "power_max_w": mean + 9}
        for s in range(21)
    ]
    pq.write_table(table(rows), path)


def read(folder: Path) -> Rebuilt:
    """The study as `llem report` reads it."""
    return rebuild(open_place(str(folder), Access()))
