"""Measures one experiment in this process: load, warm up, settle, one window, result. The only stopwatch.

Every phase has a start and an end in the result; nothing but the work itself lies inside the window.
"""

import contextlib
import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import cycle
from typing import Any, cast

from llenergymeasure import (
    datasets,
    environment,
    host_load,
    models,
    phase_split,
    preflight,
    record,
    replay,
    run_baseline,
    run_energy,
    saturated,
    timeseries,
    warmup,
    window,
)
from llenergymeasure.between_runs import known_spread
from llenergymeasure.calibration_file import named_calibration
from llenergymeasure.core import registry
from llenergymeasure.core.calibration import Calibration, corrected
from llenergymeasure.core.config import ExperimentConfig
from llenergymeasure.core.contracts import (
    ContinuousEngine,
    Generation,
    InferenceEngine,
    ModelFacts,
    Request,
    Weights,
    Window,
)
from llenergymeasure.core.errors import ConfigError
from llenergymeasure.core.phase_split import PhaseSplit
from llenergymeasure.core.result import ExperimentResult, WarmupResult
from llenergymeasure.core.uncertainty import Spread
from llenergymeasure.gpu_settings import thermometer
from llenergymeasure.observation import Observation
from llenergymeasure.own_processes import own_pids
from llenergymeasure.phases import PROBES, Emit, Phases, planned, silent
from llenergymeasure.user_config import UserConfig, cache_dir

MAX_FOREIGN_CPU = 0.10  # above this share of all processors, a speed measured on the CPU is not this model's


@dataclass(frozen=True)
class Measured:
    """A result and the files that belong to it."""

    result: ExperimentResult
    series: list[dict[str, Any]]
    raw: dict[str, Any] | None = None


def measure(config: ExperimentConfig, user: UserConfig, *, emit: Emit = silent) -> Measured:
    """Measure one experiment.

    Args:
        config: What to measure.
        user: This machine's defaults (caches, carbon intensity).
        emit: Receives progress events {event, phase, t_s, done, total}.

    Raises:
        LLEMError: Pre-flight, engine, sensor; `core.errors.run_exit_code` sorts them.

    """
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # so that CUDA and NVML number the GPUs alike
    started = datetime.now(UTC)
    phases = Phases(emit, len(planned(probes=config.measurement.phase_split)))
    engine = None
    energy = None
    try:
        with phases("preflight"):
            calibration = named_calibration(os.environ)
            preflight.refuse([*preflight.quick_problems(config, user), *preflight.hardware_problems(config)])
            engine = registry.engine(config.backend)
            chosen = preflight.choose_source(config, user)
            energy = run_energy.RunEnergy(chosen.source, chosen.reason, run_energy.own_devices(config, chosen.source))
            warnings = _warnings_before(config, user, energy)
            for text in warnings:
                emit({"event": "warning", "message": text})
        return _measure(config, user, engine, energy, phases, _Start(started, warnings, calibration))
    finally:
        if energy is not None and energy.source is not None and energy.record is None:
            _quietly(energy.source.stop)
        if engine is not None:
            engine.close()


def _warnings_before(config: ExperimentConfig, user: UserConfig, energy: run_energy.RunEnergy) -> list[str]:
    """What a user should know before minutes are spent on it."""
    memory = preflight.memory_warning(config, user)
    strangers = preflight.occupied(energy.devices, own_pids()) if energy.on_gpu else []
    return [*strangers, *([memory] if memory else [])]


@dataclass(frozen=True)
class _Start:
    time: datetime
    warnings: list[str]
    calibration: Calibration


def _quietly(action: Callable[[], object]) -> None:
    """Clean up after an error that is already on its way; the clean-up's own failure must not hide it."""
    with contextlib.suppress(Exception):
        action()


def _measure(
    config: ExperimentConfig,
    user: UserConfig,
    engine: InferenceEngine,
    energy: run_energy.RunEnergy,
    phases: Phases,
    begun: _Start,
) -> Measured:
    warnings = list(begun.warnings)
    with phases("download"):
        weights = _weights(config, user)
        prompts = datasets.load_prompts(config)
    with phases("environment"):
        machine = environment.snapshot()
    with phases("baseline"):
        run_baseline.prepare(config, user, energy)
    with phases("load"):
        facts = engine.load(config, weights)
    run_baseline.narrow(config, user, energy, run_energy.used(energy, facts, config))
    machine |= environment.cuda_version()  # known for sure once the engine's library is loaded
    with phases("tokenise"):
        requests = _requests(config, engine, prompts, facts)
        batches = engine.batches(requests)
    with phases("warmup"):
        warm = warmup.warm_up(config, engine, batches, phases.progress)
    with phases("settle"):
        feed = _feed(config, engine, requests)
        settled = _settled(config, _piece(engine, batches, feed), energy)
        warnings += settled.warnings
    engine.seed(config.random_seed)
    engine.reset_memory_peak()
    cpu_before = host_load.cpu_times()
    with phases("window"):
        if feed is None:
            fed = window.passes(config, engine, energy, batches, phases)
        else:
            fed = saturated.measure(feed, energy, phases, least_s=window.least_seconds(config, energy))
    others = host_load.foreign_share(cpu_before, host_load.cpu_times())
    probes = None
    if config.measurement.phase_split:
        with phases(PROBES):
            probes = (
                phase_split.probe(config, engine, energy, batches, facts, phases)
                if feed is None
                else phase_split.Probes(reason="probes are made of static batches; this engine batches continuously")
            )
    with phases("drain"):
        energy.record = run_energy.only(energy.source.stop(), energy.devices) if energy.source else None
    run_baseline.complete(config, user, energy)
    warnings += run_baseline.warnings(energy)
    warnings += _conditions(config, energy, facts, weights, warm, others)
    with phases("result"):
        seen = Observation(
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
            window=fed.window,
            origin_s=phases.origin_s,
            generations=fed.generations,
            texts=_texts(config, engine, fed.generations),
            phases=phases.done,
            warmup=warm,
            settle=settled.record,
            memory_peak_mb=engine.memory_peak_mb(),
            environment=machine,
            start_time=begun.time,
            end_time=datetime.now(UTC),
            energy=energy.record,
            source_name=energy.source.NAME if energy.source else None,
            source_kind=energy.source.KIND if energy.source else None,
            no_energy_reason=energy.reason,
            baseline=energy.idle,
            no_baseline_reason=energy.no_idle,
            warnings=warnings,
            work=fed.work,
            suspended_s=fed.suspended_s,
            own_pids=energy.own_pids,
            calibration=begun.calibration,
            spread=_spread(user, energy),
            phase_split=_split(begun.calibration, probes, fed, energy),
            carbon_intensity_gco2_kwh=user.measurement.carbon_intensity_gco2_kwh,
            pue=user.measurement.datacenter_pue,
        )
        result = record.build(seen)
    return Measured(
        result.model_copy(update={"phases": dict(phases.done)}),
        _series(energy, fed.window, fed.generations),
        replay.to_json(seen) if config.output.raw_samples else None,
    )


def _spread(user: UserConfig, energy: run_energy.RunEnergy) -> Spread | None:
    """How far runs on these GPUs scatter, where studies have measured it."""
    return known_spread(cache_dir(user), [d.uuid for d in energy.devices]) if energy.counts else None


def _split(
    calibration: Calibration, probes: phase_split.Probes | None, fed: window.Fed, energy: run_energy.RunEnergy
) -> PhaseSplit | None:
    """The window's energy by phase, of corrected ticks."""
    if probes is None:
        return None
    found = corrected(energy.record, calibration, fed.window) if energy.record else None
    return phase_split.judge(probes, fed.window, fed.generations, found)


def _feed(config: ExperimentConfig, engine: InferenceEngine, requests: Sequence[Request]) -> saturated.Feed | None:
    """What keeps a continuously batching engine busy; None where static batches are measured."""
    if config.measurement.window == "passes" or not registry.is_continuous(config.backend, config.section):
        return None
    return saturated.Feed(cast("ContinuousEngine", engine), requests)


def _piece(
    engine: InferenceEngine, batches: Sequence[tuple[Request, ...]], feed: saturated.Feed | None
) -> Callable[[], object]:
    """What runs a piece of the measured work, read in a circle."""
    if feed is not None:
        return feed.some_work
    following = cycle(batches)
    return lambda: engine.generate(next(following))


def _settled(config: ExperimentConfig, piece: Callable[[], object], energy: run_energy.RunEnergy) -> warmup.Settling:
    """Settle under the measured work itself."""
    with thermometer(energy.devices if energy.on_gpu else ()) as read:
        source = energy.source if energy.on_gpu else None
        return warmup.settle(config, piece, source, read)


def _conditions(
    config: ExperimentConfig,
    energy: run_energy.RunEnergy,
    facts: ModelFacts,
    weights: Weights,
    warm: WarmupResult | None,
    others: float | None,
) -> list[str]:
    """What a reader of the numbers must know, as `code: what and fix`."""
    found = []
    if warm is not None and not warm.converged:
        found.append("warmup_not_converged: latencies still varied; raise warmup.max_prompts")
    if not energy.on_gpu and facts.device == "cpu" and registry.is_real(config.backend):
        found.append("cpu_run: measured on the CPU, where no GPU energy exists; compare speeds only")
        if others is not None and others > MAX_FOREIGN_CPU:
            found.append(f"cpu_shared: other processes used {100 * others:.0f} % of the CPU; end them and run again")
    if weights.random_weights:
        found.append(
            "random_weights: the model's weights are seeded random numbers; speed and energy hold, its text does not"
        )
    return found


def _weights(config: ExperimentConfig, user: UserConfig) -> Weights:
    if registry.needs_weights(config.backend):
        return models.resolve(config.model, config.revision, cache=cache_dir(user))
    return Weights(config.model, cache_dir(user), "none")


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


def _texts(config: ExperimentConfig, engine: InferenceEngine, generations: Sequence[Generation]) -> list[str] | None:
    """Text of the first pass, in the order of the generations; None unless asked for."""
    if not config.output.save_text:
        return None
    outputs = [ids for g in generations for ids in g.output_token_ids]
    return [engine.detokenise(ids) for ids in outputs[: config.n]]


def _series(energy: run_energy.RunEnergy, window: Window, generations: Sequence[Generation]) -> list[dict[str, Any]]:
    if energy.record is None:
        return []
    return timeseries.rows(window, energy.record.readings, energy.record.series, generations)
