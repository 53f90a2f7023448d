"""Measures one experiment in this process: load, warm up, settle, one window, result. The only stopwatch.

Every phase has a start and an end in the result; nothing but the work itself lies inside the window.
"""

import contextlib
import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
from llenergymeasure.core.calibration import Calibration, corrected, corrected_w
from llenergymeasure.core.config import ExperimentConfig
from llenergymeasure.core.contracts import (
    ContinuousEngine,
    Generation,
    InferenceEngine,
    ModelFacts,
    Request,
    Weights,
)
from llenergymeasure.core.errors import ConfigError
from llenergymeasure.core.phase_split import PhaseSplit
from llenergymeasure.core.result import ExperimentResult, WarmupResult
from llenergymeasure.core.uncertainty import Spread
from llenergymeasure.gpu_settings import thermometer
from llenergymeasure.observation import Observation, calibrated
from llenergymeasure.own_processes import own_pids
from llenergymeasure.phases import PROBES, Emit, Phases, planned, silent
from llenergymeasure.user_config import UserConfig, cache_dir

PCI_ORDER = "PCI_BUS_ID"
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
    reordered = _numbered_by_bus()
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
            warnings = [*reordered, *_warnings_before(config, user, energy)]
            for text in warnings:
                emit({"event": "warning", "message": text})
        return _measure(_Run(config, user, engine, energy, phases, started, calibration, warnings))
    finally:
        if energy is not None and energy.source is not None and energy.record is None:
            _quietly(energy.source.stop)
        if engine is not None:
            engine.close()


def _numbered_by_bus() -> list[str]:
    """Make CUDA number the GPUs as NVML does, whose counters are read; a warning if the user wanted another order."""
    wanted = os.environ.get("CUDA_DEVICE_ORDER", PCI_ORDER)
    os.environ["CUDA_DEVICE_ORDER"] = PCI_ORDER
    text = (
        f"device_order: CUDA_DEVICE_ORDER was {wanted} and is taken as {PCI_ORDER}, so numbers in CUDA_VISIBLE_DEVICES "
        "may mean other GPUs; unset it, and name GPUs by UUID or as nvidia-smi numbers them"
    )
    return [text] if wanted != PCI_ORDER else []


def _warnings_before(config: ExperimentConfig, user: UserConfig, energy: run_energy.RunEnergy) -> list[str]:
    """What a user should know before minutes are spent on it."""
    memory = preflight.memory_warning(config, user)
    strangers = preflight.occupied(energy.devices, own_pids()) if energy.on_gpu else []
    return [*strangers, *([memory] if memory else [])]


def _quietly(action: Callable[[], object]) -> None:
    """Clean up after an error that is already on its way; the clean-up's own failure must not hide it."""
    with contextlib.suppress(Exception):
        action()


@dataclass(frozen=True)
class _Run:
    """What is measured, on what, and what was known when it began."""

    config: ExperimentConfig
    user: UserConfig
    engine: InferenceEngine
    energy: run_energy.RunEnergy
    phases: Phases
    started: datetime
    calibration: Calibration
    warnings: list[str]


@dataclass(frozen=True)
class _Loaded:
    """The model in its engine, and the work that waits for it."""

    weights: Weights
    prompts: datasets.PromptSet
    machine: dict[str, Any]
    facts: ModelFacts
    requests: list[Request]
    batches: list[tuple[Request, ...]]


@dataclass(frozen=True)
class _Settled:
    """How the GPU came to the state of the work; `feed` is what keeps a continuously batching engine busy."""

    warm: WarmupResult | None
    settling: warmup.Settling
    feed: saturated.Feed | None


@dataclass(frozen=True)
class _Done:
    """The window, the share of the CPU that others took meanwhile, and the probes that followed if asked for."""

    fed: window.Fed
    others: float | None
    probes: phase_split.Probes | None


def _measure(run: _Run) -> Measured:
    config, energy, phases = run.config, run.energy, run.phases
    loaded = _load(run)
    settled = _settle(run, loaded)
    done = _work(run, loaded, settled.feed)
    with phases("drain"):
        energy.record = run_energy.only(energy.source.stop(), energy.devices) if energy.source else None
    run_baseline.complete(config, run.user, energy)
    warnings = [
        *run.warnings,
        *settled.settling.warnings,
        *run_baseline.warnings(energy),
        *_conditions(config, energy, loaded.facts, loaded.weights, settled.warm, done.others),
    ]
    with phases("result"):
        seen = _with_energy(_observation(run, loaded, settled, done, warnings), run, done)
        result = record.build(seen)
    return Measured(
        result.model_copy(update={"phases": dict(phases.done)}),
        _series(seen),
        replay.to_json(seen) if config.output.raw_samples else None,
    )


def _load(run: _Run) -> _Loaded:
    """Everything up to the first token: weights, idle power, engine, requests."""
    config, phases = run.config, run.phases
    with phases("download"):
        weights = _weights(config, run.user)
        prompts = datasets.load_prompts(config)
    with phases("environment"):
        machine = environment.snapshot()
    with phases("baseline"):
        run_baseline.prepare(config, run.user, run.energy)
    with phases("load"):
        facts = run.engine.load(config, weights)
    run_baseline.narrow(config, run.user, run.energy, run_energy.used(run.energy, facts, config))
    machine |= environment.cuda_version()  # known for sure once the engine's library is loaded
    with phases("tokenise"):
        requests = _requests(config, run.engine, prompts, facts)
        batches = run.engine.batches(requests)
    return _Loaded(weights, prompts, machine, facts, requests, batches)


def _settle(run: _Run, loaded: _Loaded) -> _Settled:
    """Warm up, and settle under the measured work itself."""
    config, energy = run.config, run.energy
    with run.phases("warmup"):
        warm = warmup.warm_up(config, run.engine, loaded.batches, run.phases.progress)
    with run.phases("settle"):
        feed = _feed(config, run.engine, loaded.requests)
        with thermometer(energy.devices if energy.on_gpu else ()) as read:
            source = energy.source if energy.on_gpu else None
            settling = warmup.settle(config, _piece(run.engine, loaded.batches, feed), source, read)
    return _Settled(warm, settling, feed)


def _work(run: _Run, loaded: _Loaded, feed: saturated.Feed | None) -> _Done:
    """The window and nothing else, then the probes."""
    config, engine, energy, phases = run.config, run.engine, run.energy, run.phases
    engine.seed(config.random_seed)
    engine.reset_memory_peak()
    cpu_before = host_load.cpu_times()
    with phases("window"):
        if feed is None:
            fed = window.passes(config, engine, energy, loaded.batches, phases)
        else:
            fed = saturated.measure(feed, energy, phases, least_s=window.least_seconds(config, energy))
    others = host_load.foreign_share(cpu_before, host_load.cpu_times())
    probes = None
    if config.measurement.phase_split:
        with phases(PROBES):
            probes = (
                phase_split.probe(config, engine, energy, loaded.batches, loaded.facts, phases)
                if feed is None
                else phase_split.Probes(reason="probes are made of static batches; this engine batches continuously")
            )
    return _Done(fed, others, probes)


def _observation(run: _Run, loaded: _Loaded, settled: _Settled, done: _Done, warnings: Sequence[str]) -> Observation:
    """What was run and how it went, without its energy."""
    config, engine, fed = run.config, run.engine, done.fed
    return Observation(
        config=config,
        experiment_id=str(uuid.uuid4()),
        provenance=record.provenance(config),
        weights=loaded.weights,
        facts=loaded.facts,
        backend_version=engine.version(),
        engine_effective=engine.effective(),
        real_engine=registry.is_real(config.backend),
        dataset_sha256=loaded.prompts.sha256,
        constant_prompts=loaded.prompts.constant,
        prompts=[p.text for p in loaded.prompts.prompts],
        window=fed.window,
        origin_s=run.phases.origin_s,
        generations=fed.generations,
        texts=_texts(config, engine, fed.generations),
        phases=run.phases.done,
        warmup=settled.warm,
        settle=settled.settling.record,
        memory_peak_mb=engine.memory_peak_mb(),
        environment=loaded.machine,
        start_time=run.started,
        end_time=datetime.now(UTC),
        warnings=warnings,
        work=fed.work,
        suspended_s=fed.suspended_s,
    )


def _with_energy(seen: Observation, run: _Run, done: _Done) -> Observation:
    """The same with what its sensors recorded, and what is known of them."""
    energy, measurement = run.energy, run.user.measurement
    return replace(
        seen,
        energy=energy.record,
        source_name=energy.source.NAME if energy.source else None,
        source_kind=energy.source.KIND if energy.source else None,
        no_energy_reason=energy.reason,
        baseline=energy.idle,
        no_baseline_reason=energy.no_idle,
        own_pids=energy.own_pids,
        calibration=run.calibration,
        spread=_spread(run.user, energy),
        phase_split=_split(run.calibration, done.probes, done.fed, energy),
        carbon_intensity_gco2_kwh=measurement.carbon_intensity_gco2_kwh,
        pue=measurement.datacenter_pue,
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
    if warm is not None and warm.converged is False:
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


def _series(observed: Observation) -> list[dict[str, Any]]:
    """One row per second and GPU, powers and joules corrected as those of the result are."""
    seen = calibrated(observed)
    if seen.energy is None:
        return []
    readings, boards = seen.energy.readings, {} if seen is observed else seen.calibration
    powers = (corrected_w(r.power_w, boards.get(r.gpu_uuid)) for r in readings)
    corrected_readings = [replace(r, power_w=w) for r, w in zip(readings, powers, strict=True)]
    return timeseries.rows(seen.window, corrected_readings, seen.energy.series, seen.generations)
