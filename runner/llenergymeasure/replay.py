"""Judges a recorded run again: from its raw samples and its result to a whole new result.

Joules and their uncertainty, period and jitter of the counter, second readings, conditions, neighbours, warnings and
verdict come out of the recording, by the code that judged the run when it was measured. What no sensor tells is the
stored result's: configuration, machine, phases. Lengths of prompts and outputs stand for their tokens.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from pydantic import Field

from llenergymeasure import record, recording
from llenergymeasure.baseline import Baseline
from llenergymeasure.core import registry
from llenergymeasure.core.calibration import BoardCalibration
from llenergymeasure.core.config import ExperimentConfig
from llenergymeasure.core.contracts import (
    Edges,
    EnergyRecord,
    Generation,
    ModelFacts,
    Request,
    Weights,
    Window,
    Work,
)
from llenergymeasure.core.energy_series import counter_facts, device_energy
from llenergymeasure.core.records import Record
from llenergymeasure.core.result import ExperimentResult
from llenergymeasure.core.uncertainty import Spread
from llenergymeasure.observation import Observation

KEPT = ("flops", "texts", "timeseries")
"""Parts of a result that need the model, its words or other files; a run that is judged again keeps them."""


class Batch(Record):
    """What the engine was given at once: its time in s from the window's start, and per request index and tokens."""

    start_s: float
    end_s: float
    requests: list[int]
    input_tokens: list[int]
    output_tokens: list[int]


class Run(Record):
    """What a judgement needs of a run beside its sensors and its result; instants are s from the window's start.

    `experiment_id` is that of the result it belongs to; older recordings lack it. `input_tokens` and `output_tokens`
    are those of the window where they are not the sum over its requests, `warnings` what the run said of itself.
    """

    experiment_id: str | None = None
    origin_s: float
    batches: list[Batch]
    edges: Edges = "quiet"
    input_tokens: int | None = None
    output_tokens: int | None = None
    own_pids: list[int] = Field(default_factory=list)
    suspended_s: float = 0.0
    warnings: list[str] = Field(default_factory=list)
    constant_prompts: bool = False
    baseline: Baseline | None = None
    no_baseline_reason: str = ""
    no_energy_reason: str = ""
    calibration: dict[str, BoardCalibration] = Field(default_factory=dict)
    spread: Spread | None = None
    carbon_intensity_gco2_kwh: float | None = None
    pue: float = 1.0


def to_json(seen: Observation) -> dict[str, Any] | None:
    """Everything that the sensors recorded and what is needed to judge it again; None where nothing was recorded."""
    if seen.energy is None:
        return None
    return recording.to_json(seen.energy, seen.window.start_s) | {
        "window_s": seen.window.duration_s,
        "run": _run(seen).model_dump(mode="json"),
    }


def _run(seen: Observation) -> Run:
    zero_s = seen.window.start_s
    return Run(
        experiment_id=seen.experiment_id,
        origin_s=seen.origin_s - zero_s,
        batches=[_batch(g, zero_s) for g in seen.generations],
        edges=seen.work.edges,
        input_tokens=seen.work.input_tokens,
        output_tokens=seen.work.output_tokens,
        own_pids=sorted(seen.own_pids),
        suspended_s=seen.suspended_s,
        warnings=list(seen.warnings),
        constant_prompts=seen.constant_prompts,
        baseline=seen.baseline,
        no_baseline_reason=seen.no_baseline_reason,
        no_energy_reason=seen.no_energy_reason,
        calibration=dict(seen.calibration),
        spread=seen.spread,
        carbon_intensity_gco2_kwh=seen.carbon_intensity_gco2_kwh,
        pue=seen.pue,
    )


def _batch(done: Generation, zero_s: float) -> Batch:
    return Batch(
        start_s=round(done.start_s - zero_s, recording.DECIMALS),
        end_s=round(done.end_s - zero_s, recording.DECIMALS),
        requests=[r.index for r in done.requests],
        input_tokens=[len(r.token_ids) for r in done.requests],
        output_tokens=[len(ids) for ids in done.output_token_ids],
    )


def judged_again(result: ExperimentResult, raw: Mapping[str, Any]) -> ExperimentResult:
    """The result that this version gives a recorded run.

    Args:
        result: What was stored of the run.
        raw: Its raw_samples.json.

    Raises:
        ValueError: It is no recording that can be read, one of another run, or one of the first format, which lacks the
            batches.

    """
    found = record.build(observed(result, raw))
    return found.model_copy(update={name: getattr(result, name) for name in KEPT})


def observed(result: ExperimentResult, raw: Mapping[str, Any]) -> Observation:
    """What the run had produced when it was judged; instants count from the window's start.

    Raises:
        ValueError: As `judged_again`.

    """
    found = recording.from_json(raw)
    if "run" not in raw:
        raise ValueError(f"a recording of format {raw['format']} cannot be judged again: it lacks the batches' times")
    run, window = Run.model_validate(raw["run"]), _window(raw)
    if run.experiment_id not in (None, result.experiment_id):
        raise ValueError(f"the recording is of run {run.experiment_id}, the result of run {result.experiment_id}")
    return Observation(
        config=ExperimentConfig.model_validate(result.effective_config),
        experiment_id=result.experiment_id,
        provenance=result.parameter_provenance,
        weights=Weights(
            result.model, Path(result.model), "local", result.model_revision, random_weights=result.random_weights
        ),
        facts=ModelFacts(None, None, memory_model_mb=result.memory_model_mb),
        backend_version=result.backend_version or "",
        engine_effective=result.engine_effective,
        real_engine=registry.is_real(result.backend),
        dataset_sha256=result.dataset_sha256 or "",
        constant_prompts=run.constant_prompts,
        prompts=(),
        window=window,
        origin_s=run.origin_s,
        generations=[_generation(b) for b in run.batches],
        texts=None,
        phases=result.phases,
        warmup=result.warmup,
        memory_peak_mb=result.memory_peak_mb,
        environment=result.environment_snapshot,
        start_time=result.start_time,
        end_time=result.end_time,
        energy=cut(_with_facts(found), window, run.edges),
        source_name=result.energy_source,
        source_kind=result.energy_kind,
        baseline=run.baseline,
        no_baseline_reason=run.no_baseline_reason,
        no_energy_reason=run.no_energy_reason,
        warnings=run.warnings,
        settle=result.settle,
        work=_work(result, run),
        suspended_s=run.suspended_s,
        own_pids=frozenset(run.own_pids),
        calibration=run.calibration,
        spread=run.spread,
        phase_split=result.phase_split,
        carbon_intensity_gco2_kwh=run.carbon_intensity_gco2_kwh,
        pue=run.pue,
    )


def _window(raw: Mapping[str, Any]) -> Window:
    length_s = raw.get("window_s")
    if not isinstance(length_s, int | float) or not length_s > 0:
        raise ValueError(f"the recording cannot be read: its window_s is {length_s!r}, expected more than 0 s")
    return Window("window", 0.0, length_s)


def _with_facts(found: EnergyRecord) -> EnergyRecord:
    """The record with what its ticks tell of the counters, by this version's rules, in place of what was said then."""
    told = {u: replace(f, **counter_facts(found.series[u])) for u, f in found.sensors.items() if u in found.series}
    return replace(found, sensors={**found.sensors, **told})


def cut(found: EnergyRecord, window: Window, edges: Edges) -> EnergyRecord:
    """The record with the window's joules cut anew from its ticks; those of a source with windows of its own stay."""
    uuids = [d.gpu_uuid for d in found.windows.get("window", ())]
    if found.independent or not all(u in found.series for u in uuids):
        return found
    parts = tuple(device_energy(u, found.series[u], window.start_s, window.end_s, edges) for u in uuids)
    return replace(found, windows={**found.windows, "window": parts})


def _generation(batch: Batch) -> Generation:
    rows = zip(batch.requests, batch.input_tokens, batch.output_tokens, strict=True)
    requests = tuple(Request(index, (0,) * tokens, limit) for index, tokens, limit in rows)
    return Generation(requests, tuple((0,) * n for n in batch.output_tokens), batch.start_s, batch.end_s)


def _work(result: ExperimentResult, run: Run) -> Work:
    told: dict[str, Any] = result.work.model_dump()
    mode = cast("Any", result.window_mode or "passes")
    return Work(mode, edges=run.edges, input_tokens=run.input_tokens, output_tokens=run.output_tokens, **told)
