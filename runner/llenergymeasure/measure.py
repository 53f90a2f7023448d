"""Measures one experiment in this process: load, warm up, settle, one window, result. The only stopwatch.

Every phase has a start and an end in the result; nothing but the work itself lies inside the window.
"""

import contextlib
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import cycle
from statistics import fmean, stdev
from typing import Any

from llenergymeasure import baseline, datasets, environment, models, preflight, record, timeseries
from llenergymeasure.core import registry
from llenergymeasure.core.config import ExperimentConfig
from llenergymeasure.core.contracts import (
    Device,
    EnergyBackend,
    EnergyRecord,
    Generation,
    InferenceEngine,
    ModelFacts,
    Request,
    Weights,
    Window,
)
from llenergymeasure.core.errors import ConfigError, MeasurementError
from llenergymeasure.core.result import ExperimentResult, Phase, WarmupResult
from llenergymeasure.user_config import UserConfig, cache_dir

Emit = Callable[[dict[str, Any]], None]

PHASES = (
    "preflight",
    "download",
    "environment",
    "baseline",
    "load",
    "tokenise",
    "warmup",
    "settle",
    "window",
    "drain",
    "result",
)
DEFAULT_WINDOW_S = 60.0  # least window with an energy source (measurement.md §3)
SETTLE_LEAST_S, SETTLE_LOOK_S = 20.0, 10.0
SETTLE_POWER, SETTLE_TEMPERATURE_C = 0.005, 2.0
PROGRESS_EVERY_S = 1.0


@dataclass(frozen=True)
class Measured:
    """A result and the files that belong to it."""

    result: ExperimentResult
    series: list[dict[str, Any]]
    raw: dict[str, Any] | None = None


@dataclass
class _Phases:
    """Times phases and tells the listener when each begins."""

    emit: Emit
    origin_s: float = field(default_factory=time.monotonic)
    done: dict[str, Phase] = field(default_factory=dict)

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start_s = time.monotonic() - self.origin_s
        self.emit(
            {
                "event": "phase",
                "phase": name,
                "t_s": round(start_s, 3),
                "done": len(self.done),
                "total": len(PHASES),
            }
        )
        yield
        self.done[name] = Phase(start_s=start_s, end_s=time.monotonic() - self.origin_s)


@dataclass
class _Energy:
    """The energy source of this run, or none with the reason."""

    source: EnergyBackend | None
    reason: str
    devices: tuple[Device, ...] = ()
    record: EnergyRecord | None = None

    @property
    def on_gpu(self) -> bool:
        return bool(self.devices) and self.source is not None and self.source.KIND != "simulated"

    def open(self, name: str) -> float:
        return self.source.open_window(name) if self.source else time.monotonic()

    def close(self, name: str) -> float:
        return self.source.close_window(name) if self.source else time.monotonic()


def _silent(event: dict[str, Any]) -> None:
    """Take an event and do nothing with it."""


def measure(config: ExperimentConfig, user: UserConfig, *, emit: Emit = _silent) -> Measured:
    """Measure one experiment.

    Args:
        config: What to measure.
        user: This machine's defaults (caches, carbon intensity).
        emit: Receives progress events {event, phase, t_s, done, total}.

    Raises:
        LLEMError: Pre-flight, engine, sensor; `core.errors.run_exit_code` sorts them.

    """
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # so that CUDA and NVML number the GPUs alike
    started, phases = datetime.now(UTC), _Phases(emit)
    engine = None
    energy = None
    try:
        with phases("preflight"):
            preflight.refuse([*preflight.quick_problems(config, user), *preflight.hardware_problems(config)])
            engine = registry.engine(config.backend)
            preflight.refuse(engine.check(config))
            chosen = preflight.choose_source(config, user)
            energy = _Energy(chosen.source, chosen.reason, chosen.source.devices() if chosen.source else ())
            warnings = [w for w in (preflight.memory_warning(config, user),) if w]
        return _measure(config, user, engine, energy, phases, _Start(started, warnings))
    finally:
        if energy is not None and energy.source is not None and energy.record is None:
            _quietly(energy.source.stop)
        if engine is not None:
            engine.close()


@dataclass(frozen=True)
class _Start:
    time: datetime
    warnings: list[str]


def _quietly(action: Callable[[], object]) -> None:
    """Clean up after an error that is already on its way; the clean-up's own failure must not hide it."""
    with contextlib.suppress(Exception):
        action()


def _measure(
    config: ExperimentConfig,
    user: UserConfig,
    engine: InferenceEngine,
    energy: _Energy,
    phases: _Phases,
    begun: _Start,
) -> Measured:
    warnings = list(begun.warnings)
    with phases("download"):
        weights = _weights(config, user)
        prompts = datasets.load_prompts(config)
    with phases("environment"):
        machine = environment.snapshot()
    with phases("baseline"):
        idle, no_idle = _baseline(config, user, energy, machine.get("driver_version"))
    with phases("load"):
        facts = engine.load(config, weights)
    machine |= environment.cuda_version()  # known for sure once the engine's library is loaded
    with phases("tokenise"):
        requests = _requests(config, engine, prompts, facts)
        batches = engine.batches(requests)
    with phases("warmup"):
        warmup = _warm_up(config, engine, batches, phases)
    with phases("settle"):
        warnings += _settle(config, engine, energy, batches)
    engine.seed(config.random_seed)
    engine.reset_memory_peak()
    with phases("window"):
        window, generations = _window(config, engine, energy, batches, phases)
    with phases("drain"):
        energy.record = energy.source.stop() if energy.source else None
    idle = idle or _remembered(config, user, energy, no_idle, machine.get("driver_version"))
    if warmup is not None and not warmup.converged:
        warnings.append("warmup_not_converged: latencies still varied; raise warmup.max_prompts")
    if not energy.on_gpu and facts.device == "cpu" and registry.is_real(config.backend):
        warnings.append("cpu_run: measured on the CPU, where no GPU energy exists; compare speeds only")
    if weights.random_weights:
        warnings.append(
            "random_weights: the model's weights are seeded random numbers; speed and energy hold, its text does not"
        )
    if config.measurement.phase_split:
        warnings.append("phase_split_unidentified: this version does not split energy by phase; the fields stay null")
    with phases("result"):
        seen = record.Observation(
            config=config,
            experiment_id=str(uuid.uuid4()),
            provenance=record.provenance(config),
            weights=weights,
            facts=facts,
            backend_version=engine.version(),
            engine_effective=engine.effective(),
            real_engine=registry.is_real(config.backend),
            dataset_sha256=prompts.sha256,
            constant_prompts=prompts.constant,
            prompts=[p.text for p in prompts.prompts],
            window=window,
            origin_s=phases.origin_s,
            generations=generations,
            texts=_texts(config, engine, generations),
            phases=phases.done,
            warmup=warmup,
            memory_peak_mb=engine.memory_peak_mb(),
            environment=machine,
            start_time=begun.time,
            end_time=datetime.now(UTC),
            energy=energy.record,
            source_name=energy.source.NAME if energy.source else None,
            source_kind=energy.source.KIND if energy.source else None,
            no_energy_reason=energy.reason,
            baseline=idle,
            no_baseline_reason=no_idle,
            warnings=warnings,
            carbon_intensity_gco2_kwh=user.measurement.carbon_intensity_gco2_kwh,
            pue=user.measurement.datacenter_pue,
        )
        result = record.build(seen)
    return Measured(
        result.model_copy(update={"phases": dict(phases.done)}),
        _series(energy, window, generations),
        _raw(config, energy, window),
    )


def _weights(config: ExperimentConfig, user: UserConfig) -> Weights:
    if registry.needs_weights(config.backend):
        return models.resolve(config.model, config.revision, cache=cache_dir(user))
    return Weights(config.model, cache_dir(user), "none")


def _baseline(
    config: ExperimentConfig, user: UserConfig, energy: _Energy, driver: str | None
) -> tuple[baseline.Baseline | None, str]:
    """Start the source; give a known baseline, or record one and say so by an empty reason."""
    if energy.source is None:
        return None, energy.reason
    energy.source.start(energy.devices, interval_s=config.measurement.sample_interval_ms / 1e3)
    if not config.baseline.enabled:
        return None, "baseline.enabled is false"
    if not energy.devices:
        return None, "no GPU is visible"
    if config.baseline.kind == "loaded":
        return None, "baseline.kind: loaded is not measured by this version; use context or bare"
    known = baseline.cached(config, energy.devices, driver, cache_dir(user)) if energy.on_gpu else None
    if known is not None:
        return known, ""
    baseline.record(config, energy.source, energy.devices)
    return None, ""


def _remembered(
    config: ExperimentConfig, user: UserConfig, energy: _Energy, no_idle: str, driver: str | None
) -> baseline.Baseline | None:
    """The baseline that was recorded in this run, now that its joules are known; None if there was none."""
    parts = energy.record.windows.get("baseline", ()) if energy.record else ()
    joules = {d.gpu_uuid: d.joules for d in parts if d.joules is not None}
    if no_idle or not parts:
        return None
    if len(joules) < len(parts):
        raise MeasurementError(f"baseline: {'; '.join(d.reason or '' for d in parts if d.joules is None)}")
    return baseline.remember(
        config, joules, config.baseline.duration_seconds, driver, cache_dir(user) if energy.on_gpu else None
    )


def _requests(
    config: ExperimentConfig, engine: InferenceEngine, prompts: datasets.PromptSet, facts: ModelFacts
) -> list[Request]:
    ids = engine.tokenise(prompts.prompts, max_input_tokens=config.max_input_tokens)
    limits = [p.max_new_tokens or config.max_output_tokens for p in prompts.prompts]
    requests = [Request(i, t, limit) for i, (t, limit) in enumerate(zip(ids, limits, strict=True))]
    longest = max(requests, key=lambda r: len(r.token_ids) + r.max_new_tokens)
    needed = len(longest.token_ids) + longest.max_new_tokens
    if facts.context_length is not None and needed > facts.context_length:
        raise ConfigError(
            f"prompt {longest.index} with its output needs {needed} tokens, the model's context holds "
            f"{facts.context_length}; lower max_input_tokens or max_output_tokens"
        )
    return requests


def _warm_up(
    config: ExperimentConfig, engine: InferenceEngine, batches: Sequence[tuple[Request, ...]], phases: _Phases
) -> WarmupResult | None:
    """Run the batch with the longest prompts again and again; it also reaches the memory peak of the window."""
    w = config.warmup
    if not w.enabled:
        return None
    longest = max(batches, key=lambda b: max(len(r.token_ids) for r in b))
    short = tuple(Request(r.index, r.token_ids, min(w.max_output_tokens, r.max_new_tokens)) for r in longest)
    latencies: list[float] = []
    limit = max(w.n_warmup, w.max_prompts) if w.convergence_detection else w.n_warmup
    while len(latencies) < limit and not (
        len(latencies) >= w.n_warmup and _cv(latencies, w.window_size) < w.cv_threshold
    ):
        generation = engine.generate(short)
        latencies.append(1e3 * (generation.end_s - generation.start_s))
        _progress(phases, "warmup", len(latencies), limit)
    cv = _cv(latencies, w.window_size)
    return WarmupResult(
        converged=not w.convergence_detection or cv < w.cv_threshold,
        final_cv=cv if cv != float("inf") else None,
        iterations_completed=len(latencies),
        target_cv=w.cv_threshold,
        max_prompts=w.max_prompts,
        latencies_ms=latencies,
    )


def _cv(latencies: Sequence[float], size: int) -> float:
    """Coefficient of variation of the last `size` values; infinite while there are fewer."""
    last = latencies[-size:]
    return stdev(last) / fmean(last) if len(last) == size else float("inf")


def _settle(
    config: ExperimentConfig, engine: InferenceEngine, energy: _Energy, batches: Sequence[tuple[Request, ...]]
) -> list[str]:
    """Bring the GPU to the temperature and power of the work itself; skipped without a GPU or without warm-up."""
    floor_s = config.warmup.thermal_floor_seconds
    if not energy.on_gpu or not config.warmup.enabled:
        return []
    if floor_s == 0:
        return ["no_settling: thermal_floor_seconds is 0; the first seconds of load draw less power than later ones"]
    start_s = time.monotonic()
    if config.warmup.thermal_wait == "fixed":
        time.sleep(floor_s)
        return []
    assert energy.source is not None
    for batch in cycle(batches):
        engine.generate(batch)
        spent_s = time.monotonic() - start_s
        if spent_s >= max(SETTLE_LEAST_S, 2 * SETTLE_LOOK_S) and _is_steady(energy.source):
            return []
        if spent_s >= floor_s:
            break
    return [f"not_settled: power still moved after {floor_s:g} s under load; raise warmup.thermal_floor_seconds"]


def _is_steady(source: EnergyBackend) -> bool:
    now_s = time.monotonic() - 0.5  # the newest ticks are not written yet
    late = source.mean_power_w(now_s - SETTLE_LOOK_S, now_s)
    early = source.mean_power_w(now_s - 2 * SETTLE_LOOK_S, now_s - SETTLE_LOOK_S)
    return bool(late and early and abs(late / early - 1) <= SETTLE_POWER)


def _window(
    config: ExperimentConfig,
    engine: InferenceEngine,
    energy: _Energy,
    batches: Sequence[tuple[Request, ...]],
    phases: _Phases,
) -> tuple[Window, list[Generation]]:
    """Whole batches, at least one pass over the prompts, until the least duration is reached."""
    wanted_s = config.measurement.min_duration_seconds
    least_s = wanted_s if wanted_s is not None else (DEFAULT_WINDOW_S if energy.source else 0.0)
    generations: list[Generation] = []
    told_s = time.monotonic()
    start_s = energy.open("window")
    for batch in cycle(batches):
        generations.append(engine.generate(batch))
        now_s = time.monotonic()
        if len(generations) >= len(batches) and now_s - start_s >= least_s:
            break
        if now_s - told_s >= PROGRESS_EVERY_S:
            told_s = now_s
            _progress(
                phases,
                "window",
                len(generations),
                _expected(len(generations), len(batches), now_s - start_s, least_s),
            )
    end_s = energy.close("window")
    return Window("window", start_s, end_s), generations


def _expected(done: int, batches: int, spent_s: float, least_s: float) -> int:
    return max(batches, round(done * least_s / spent_s))


def _progress(phases: _Phases, phase: str, done: int, total: int) -> None:
    t_s = round(time.monotonic() - phases.origin_s, 3)
    phases.emit({"event": "progress", "phase": phase, "t_s": t_s, "done": done, "total": total})


def _texts(config: ExperimentConfig, engine: InferenceEngine, generations: Sequence[Generation]) -> list[str] | None:
    """Text of the first pass, in the order of the generations; None unless asked for."""
    if not config.output.save_text:
        return None
    outputs = [ids for g in generations for ids in g.output_token_ids]
    return [engine.detokenise(ids) for ids in outputs[: config.n]]


def _series(energy: _Energy, window: Window, generations: Sequence[Generation]) -> list[dict[str, Any]]:
    if energy.record is None:
        return []
    return timeseries.rows(window, energy.record.readings, energy.record.series, generations)


def _raw(config: ExperimentConfig, energy: _Energy, window: Window) -> dict[str, Any] | None:
    """Ticks and readings as recorded, seconds from window start."""
    if not config.output.raw_samples or energy.record is None:
        return None
    zero_s = window.start_s
    ticks = [
        {"gpu_uuid": u, "before_s": t.before_s - zero_s, "after_s": t.after_s - zero_s, "energy_j": t.joules}
        for u, s in energy.record.series.items()
        for t in s.ticks
    ]
    return {"ticks": ticks, "readings": [{**vars(r), "t_s": r.t_s - zero_s} for r in energy.record.readings]}
