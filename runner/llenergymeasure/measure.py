"""Measures one experiment in this process: load, warm up, settle, one window, result. The only stopwatch.

Every phase has a start and an end in the result; nothing but the work itself lies inside the window.
"""

import contextlib
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import cycle
from typing import Any

from llenergymeasure import baseline, datasets, environment, host_load, models, preflight, record, timeseries, warmup
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
from llenergymeasure.core.errors import ConfigError
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
MAX_FOREIGN_CPU = 0.10  # above this share of all processors, a speed measured on the CPU is not this model's
DEFAULT_WINDOW_S = 60.0  # least window with an energy source (measurement.md §3)
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

    def progress(self, phase: str, done: int, total: int) -> None:
        """Tell the listener how far a phase is."""
        t_s = round(time.monotonic() - self.origin_s, 3)
        self.emit({"event": "progress", "phase": phase, "t_s": t_s, "done": done, "total": total})


@dataclass
class _Energy:
    """The energy source of this run, or none with the reason."""

    source: EnergyBackend | None
    reason: str
    devices: tuple[Device, ...] = ()
    record: EnergyRecord | None = None
    idle_s: float = 0.0  # length of the recorded baseline

    @property
    def on_gpu(self) -> bool:
        return bool(self.devices) and self.source is not None and self.source.KIND != "simulated"

    @property
    def counts(self) -> bool:
        """Whether it counts joules; only such a baseline may be kept for, or taken from, other runs."""
        return self.on_gpu and self.source is not None and self.source.KIND == "counter"

    def keep_only(self, devices: tuple[Device, ...]) -> bool:
        """Narrow the run to these GPUs, say whether that left any out; without any, no joule is this run's."""
        if self.devices and not devices:
            self.reason = "the model runs on the CPU, so the GPU's energy is not this run's"
        narrowed = devices != self.devices
        self.devices = devices
        return narrowed

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
            chosen = preflight.choose_source(config, user)
            energy = _Energy(chosen.source, chosen.reason, _own_devices(config, chosen.source))
            warnings = [w for w in (preflight.memory_warning(config, user),) if w]
        return _measure(config, user, engine, energy, phases, _Start(started, warnings))
    finally:
        if energy is not None and energy.source is not None and energy.record is None:
            _quietly(energy.source.stop)
        if engine is not None:
            engine.close()


def _own_devices(config: ExperimentConfig, source: EnergyBackend | None) -> tuple[Device, ...]:
    """The GPUs of this run among the visible ones: the first ones, as many as its engine uses."""
    visible = source.devices() if source else ()
    count = registry.gpus_used(config.backend, config.section)
    return visible if count is None else visible[:count]


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
    narrowed = energy.keep_only(_used(energy, facts, config))
    if idle is not None and narrowed:  # it was summed over GPUs that are not this run's, too
        idle = _known_baseline(config, user, energy, machine.get("driver_version"))
    machine |= environment.cuda_version()  # known for sure once the engine's library is loaded
    with phases("tokenise"):
        requests = _requests(config, engine, prompts, facts)
        batches = engine.batches(requests)
    with phases("warmup"):
        warm = warmup.warm_up(config, engine, batches, phases.progress)
    with phases("settle"):
        warnings += warmup.settle(config, engine, energy.source if energy.on_gpu else None, batches)
    engine.seed(config.random_seed)
    engine.reset_memory_peak()
    cpu_before = host_load.cpu_times()
    with phases("window"):
        window, generations = _window(config, engine, energy, batches, phases)
    others = host_load.foreign_share(cpu_before, host_load.cpu_times())
    with phases("drain"):
        energy.record = _only(energy.source.stop(), energy.devices) if energy.source else None
    if idle is None and not no_idle:
        idle, no_idle = _remembered(config, user, energy, machine.get("driver_version"))
    warnings += _conditions(config, energy, facts, weights, warm, others)
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
            warmup=warm,
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


def _conditions(
    config: ExperimentConfig,
    energy: _Energy,
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
    if config.measurement.phase_split:
        found.append("phase_split_unidentified: this version does not split energy by phase; the fields stay null")
    return found


def _used(energy: _Energy, facts: ModelFacts, config: ExperimentConfig) -> tuple[Device, ...]:
    """The GPUs that hold the loaded model; none if a real engine runs on the CPU beside an idle GPU."""
    if not energy.on_gpu or not registry.is_real(config.backend):
        return energy.devices
    if facts.device == "cpu":
        return ()
    if facts.gpu_positions is None or max(facts.gpu_positions) >= len(energy.devices):
        return energy.devices
    return tuple(energy.devices[i] for i in facts.gpu_positions)


def _only(found: EnergyRecord, devices: Sequence[Device]) -> EnergyRecord:
    """A record without the GPUs that turned out not to belong to this run."""
    own = {d.uuid for d in devices}
    return replace(
        found,
        windows={n: tuple(d for d in parts if d.gpu_uuid in own) for n, parts in found.windows.items()},
        readings=tuple(r for r in found.readings if r.gpu_uuid in own),
        series={u: s for u, s in found.series.items() if u in own},
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
    known = _known_baseline(config, user, energy, driver)
    if known is not None:
        return known, ""
    energy.idle_s = baseline.record(config, energy.source, energy.devices)
    return None, ""


def _known_baseline(
    config: ExperimentConfig, user: UserConfig, energy: _Energy, driver: str | None
) -> baseline.Baseline | None:
    """A baseline of exactly this run's GPUs that was measured before, by a counter."""
    return baseline.cached(config, energy.devices, driver, cache_dir(user)) if energy.counts else None


def _remembered(
    config: ExperimentConfig, user: UserConfig, energy: _Energy, driver: str | None
) -> tuple[baseline.Baseline | None, str]:
    """The baseline that was recorded in this run, now that its joules are known, or None with the reason."""
    parts = energy.record.windows.get("baseline", ()) if energy.record else ()
    joules = {d.gpu_uuid: d.joules for d in parts if d.joules is not None}
    if not parts:
        return None, "no baseline was recorded for this run's GPUs"
    if len(joules) < len(parts):
        return None, "baseline: " + "; ".join(d.reason or "" for d in parts if d.joules is None)
    return baseline.remember(config, joules, energy.idle_s, driver, cache_dir(user) if energy.counts else None), ""


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
        if len(generations) == 1:
            _tell_expected(phases, now_s - start_s, len(batches), config.n, least_s)
        if len(generations) >= len(batches) and now_s - start_s >= least_s:
            break
        if now_s - told_s >= PROGRESS_EVERY_S:
            told_s = now_s
            phases.progress(
                "window",
                len(generations),
                _expected(len(generations), len(batches), now_s - start_s, least_s),
            )
    end_s = energy.close("window")
    return Window("window", start_s, end_s), generations


def _tell_expected(phases: _Phases, batch_s: float, batches: int, n: int, least_s: float) -> None:
    """Say how long the window will take, and what 20 prompts would."""
    seconds, per_prompt = max(least_s, batch_s * batches), batch_s * batches / n
    short = max(least_s, 20 * per_prompt) if n > 20 else None
    phases.emit({"event": "expected", "phase": "window", "seconds": round(seconds, 1), "n20_seconds": short})


def _expected(done: int, batches: int, spent_s: float, least_s: float) -> int:
    return max(batches, round(done * least_s / spent_s))


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
