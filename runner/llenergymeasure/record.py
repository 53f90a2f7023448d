"""Turns what was observed in one experiment into its result: divisions, uncertainties, verdict, warnings, reasons."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from llenergymeasure import __version__, flops
from llenergymeasure.baseline import Baseline
from llenergymeasure.core.config import ExperimentConfig
from llenergymeasure.core.contracts import EnergyRecord, Generation, ModelFacts, Reading, Weights, Window, Work
from llenergymeasure.core.energy_series import Joules, total
from llenergymeasure.core.identity import canonical, measurement_config_hash
from llenergymeasure.core.phase_split import PhaseSplit
from llenergymeasure.core.plan import flatten
from llenergymeasure.core.result import (
    CrossCheck,
    EnergyBreakdown,
    ExperimentResult,
    GeneratedText,
    Phase,
    SettleResult,
    ThermalResult,
    Uncertainty,
    WarmupResult,
    latency_statistics,
)
from llenergymeasure.core.verdict import RUN_TO_RUN_ASSUMED, Evidence, judge, relative_uncertainty, warnings

SW_POWER_CAP, HW_SLOWDOWN, SW_THERMAL, HW_THERMAL, POWER_BRAKE = 0x4, 0x8, 0x20, 0x40, 0x80
"""Bits of nvmlDeviceGetCurrentClocksEventReasons (nvml.h, nvmlClocksEventReason*)."""
THROTTLING = HW_SLOWDOWN | SW_THERMAL | HW_THERMAL | POWER_BRAKE  # a power cap is normal operation (measurement.md §1)

NVML_NOTES = (
    "NVML power is accurate to about ±5 W per NVIDIA.",
    "Without calibration the absolute bound of GPU energy is ±10 %; comparisons on one GPU are better.",
)
J_PER_KWH = 3.6e6
OVER_ENERGY = (
    "energy_total_j",
    "energy_per_device_j",
    "energy_per_output_token_j",
    "energy_per_total_token_j",
    "energy_per_request_j",
    "tokens_per_joule",
    "tokens_per_second_per_watt",
    "mean_power_w",
)
"""Quantities that are unknown together with the window's energy."""


@dataclass(frozen=True)
class Observation:
    """Everything one experiment produced before it is judged."""

    config: ExperimentConfig
    experiment_id: str
    provenance: Mapping[str, str]
    weights: Weights
    facts: ModelFacts
    backend_version: str
    engine_effective: Mapping[str, Any]
    real_engine: bool
    dataset_sha256: str
    constant_prompts: bool
    prompts: Sequence[str | None]
    window: Window
    origin_s: float
    generations: Sequence[Generation]
    texts: Sequence[str] | None
    phases: Mapping[str, Phase]
    warmup: WarmupResult | None
    memory_peak_mb: float | None
    environment: Mapping[str, Any]
    start_time: datetime
    end_time: datetime
    energy: EnergyRecord | None = None
    source_name: str | None = None
    source_kind: str | None = None
    no_energy_reason: str = ""
    baseline: Baseline | None = None
    no_baseline_reason: str = ""
    warnings: Sequence[str] = ()
    settle: SettleResult | None = None
    work: Work = field(default_factory=Work)
    suspended_s: float = 0.0
    own_pids: frozenset[int] = frozenset()
    phase_split: PhaseSplit | None = None
    carbon_intensity_gco2_kwh: float | None = None
    pue: float = 1.0
    lengths: list[tuple[int, int]] = field(init=False)

    def __post_init__(self) -> None:
        pairs = [
            (len(r.token_ids), len(o))
            for g in self.generations
            for r, o in zip(g.requests, g.output_token_ids, strict=True)
        ]
        object.__setattr__(self, "lengths", pairs)


def build(seen: Observation) -> ExperimentResult:
    """Give the result of an observation."""
    joules = _joules(seen)
    thermal, throttled_share = _thermal(seen)
    relative = relative_uncertainty(joules.std_uncertainty, joules.value)
    evidence = Evidence(
        source_kind=seen.source_kind,
        energy_j=joules.value,
        energy_reason=joules.reason,
        window_s=seen.window.duration_s,
        relative_comparison=relative[1] if relative else None,
        throttled_share=throttled_share,
        dummy_values=seen.constant_prompts,
        allow_dummy=seen.config.measurement.allow_dummy,
    )
    energy = _energy_fields(seen, joules)
    size = flops.count(seen.config, seen.facts, seen.weights.config, seen.lengths)
    return ExperimentResult(
        tool_version=__version__,
        experiment_id=seen.experiment_id,
        measurement_config_hash=measurement_config_hash(seen.config),
        **_identity(seen),
        **_tokens_and_speed(seen),
        **energy,
        uncertainty=_uncertainty(relative),
        cross_check=_cross_check(seen, joules),
        phase_split=seen.phase_split,
        verdict=judge(evidence),
        flops=size,
        warmup=seen.warmup,
        settle=seen.settle,
        warmup_excluded_samples=seen.warmup.iterations_completed if seen.warmup else 0,
        thermal=thermal,
        environment_snapshot=dict(seen.environment),
        measurement_warnings=[
            *seen.warnings,
            *(seen.energy.warnings if seen.energy else ()),
            *_unsplit(seen.phase_split),
            *warnings(evidence),
            *_energy_warnings(energy),
        ],
        reproducibility_notes=list(NVML_NOTES) if seen.source_kind == "counter" else [],
        null_reasons=_null_reasons(seen, joules, energy),
        start_time=seen.start_time,
        end_time=seen.end_time,
        synthetic=not seen.real_engine or seen.source_kind == "simulated",
        random_weights=seen.weights.random_weights,
    )


def _unsplit(split: PhaseSplit | None) -> list[str]:
    return [split.reason] if split is not None and split.reason is not None else []


def _identity(seen: Observation) -> dict[str, Any]:
    lora = seen.config.lora
    warm = seen.warmup is not None and seen.warmup.converged
    method: Literal["steady_state", "total"] = "steady_state" if warm else "total"
    offsets = (seen.window.start_s - seen.origin_s, seen.window.end_s - seen.origin_s)
    return {
        "model": seen.config.model,
        "backend": seen.config.backend,
        "backend_version": seen.backend_version,
        "model_revision": seen.weights.revision,
        "lora_adapter_id": (lora.adapter_id or lora.adapter_path) if lora else None,
        "lora_merged": lora.merge_weights if lora else None,
        "dataset_sha256": seen.dataset_sha256,
        "effective_config": canonical(seen.config),
        "engine_effective": dict(seen.engine_effective),
        "parameter_provenance": dict(seen.provenance),
        "measurement_methodology": method,
        "steady_state_window": offsets if method == "steady_state" else None,
        "window_mode": seen.work.mode,
        "phases": dict(seen.phases),
        "ignore_eos": seen.config.decoder.ignore_eos,
    }


def _tokens_and_speed(seen: Observation) -> dict[str, Any]:
    inputs, outputs = [i for i, _ in seen.lengths], [o for _, o in seen.lengths]
    duration_s = seen.window.duration_s
    return {
        "input_tokens": sum(inputs),
        "output_tokens": sum(outputs),
        "total_tokens": sum(inputs) + sum(outputs),
        "requests": len(inputs),
        "request_input_tokens": inputs,
        "request_output_tokens": outputs,
        "duration_s": duration_s,
        "tokens_per_second": sum(outputs) / duration_s,
        "total_tokens_per_second": (sum(inputs) + sum(outputs)) / duration_s,
        "requests_per_second": len(inputs) / duration_s,
        "latency": latency_statistics([1e3 * (g.end_s - g.start_s) for g in seen.generations]),
        "memory_model_mb": seen.facts.memory_model_mb,
        "memory_peak_mb": seen.memory_peak_mb,
        "memory_total_mb": _memory_total_mb(seen),
        "texts": _texts(seen),
    }


def _memory_total_mb(seen: Observation) -> float | None:
    return next((r.memory_total_mb for r in _readings(seen) if r.memory_total_mb), None)


def _texts(seen: Observation) -> list[GeneratedText] | None:
    if seen.texts is None:
        return None
    requests = [r for g in seen.generations for r in g.requests]
    return [
        GeneratedText(request=r.index, prompt=seen.prompts[r.index], output=t)
        for r, t in zip(requests, seen.texts, strict=False)
    ]


def _joules(seen: Observation) -> Joules:
    if seen.energy is None:
        return Joules(None, reason=seen.no_energy_reason)
    devices = seen.energy.windows.get("window", ())
    if not devices:
        return Joules(None, reason=seen.no_energy_reason or f"{seen.source_name}: no GPU is visible")
    return total(devices)


def _readings(seen: Observation) -> list[Reading]:
    found = seen.energy.readings if seen.energy else ()
    return [r for r in found if seen.window.start_s <= r.t_s <= seen.window.end_s]


def _energy_fields(seen: Observation, joules: Joules) -> dict[str, Any]:
    duration_s, baseline = seen.window.duration_s, seen.baseline
    outputs, inputs = sum(o for _, o in seen.lengths), sum(i for i, _ in seen.lengths)
    raw = joules.value
    adjusted = raw - baseline.power_w * duration_s if raw is not None and baseline else None
    devices = seen.energy.windows.get("window", ()) if seen.energy else ()
    breakdown = EnergyBreakdown(
        raw_j=raw,
        adjusted_j=adjusted,
        baseline_power_w=baseline.power_w if baseline else None,
        baseline_per_device_w=dict(baseline.per_device_w) if baseline else None,
        baseline_kind=baseline.kind if baseline else None,
        baseline_method=baseline.method if baseline else "unavailable",
        from_cache=bool(baseline and baseline.method != "fresh"),
        baseline_timestamp=baseline.measured_at if baseline else None,
        baseline_cache_age_s=baseline.age_s if baseline and baseline.method != "fresh" else None,
        baseline_std_uncertainty_w=baseline.std_uncertainty_w if baseline else None,
        baseline_drift_w=baseline.drift_w if baseline else None,
        baseline_temperature_c=baseline.temperature_c if baseline else None,
        baseline_spot_w=baseline.spot_w if baseline else None,
        baseline_settings=dict(baseline.settings) if baseline and baseline.settings else None,
    )
    fields: dict[str, Any] = {
        "energy_source": seen.source_name,
        "energy_kind": seen.source_kind,
        "energy_total_j": raw,
        "energy_adjusted_j": adjusted,
        "baseline_power_w": breakdown.baseline_power_w,
        "energy_breakdown": breakdown,
        "host_energy_j": seen.energy.host_energy_j if seen.energy else None,
    }
    if raw is None:
        return fields
    intensity = seen.carbon_intensity_gco2_kwh
    return fields | {
        "energy_per_device_j": {d.gpu_uuid: d.joules for d in devices if d.joules is not None},
        "energy_per_output_token_j": raw / outputs if outputs else None,
        "energy_adjusted_per_output_token_j": adjusted / outputs if outputs and adjusted is not None else None,
        "energy_per_total_token_j": raw / (inputs + outputs),
        "energy_per_request_j": raw / len(seen.lengths),
        "tokens_per_joule": outputs / raw if raw > 0 else None,
        "tokens_per_second_per_watt": outputs / raw if raw > 0 else None,
        "mean_power_w": raw / duration_s,
        "co2_estimate_g": raw / J_PER_KWH * intensity * seen.pue if intensity is not None else None,
    }


def _energy_warnings(energy: Mapping[str, Any]) -> list[str]:
    adjusted = energy["energy_adjusted_j"]
    if adjusted is not None and adjusted < 0:
        return ["negative_adjusted: the window drew less than the baseline; use baseline.cache_ttl_seconds: 0"]
    return []


def _uncertainty(relative: tuple[float, float, float] | None) -> Uncertainty:
    if relative is None:
        return Uncertainty()
    edge, comparison, absolute = relative
    return Uncertainty(
        edge=edge,
        between_runs=RUN_TO_RUN_ASSUMED,
        between_runs_source="assumed",
        comparison=comparison,
        absolute=absolute,
    )


def _cross_check(seen: Observation, joules: Joules) -> CrossCheck | None:
    """Our own tick series against a source that reads the counter by itself."""
    if joules.value is None or seen.energy is None or not seen.energy.independent:
        return None
    parts = [s.between(seen.window.start_s, seen.window.end_s) for s in seen.energy.series.values()]
    if not parts or any(p.value is None for p in parts):
        return CrossCheck(source="tick series", reason="; ".join(p.reason or "" for p in parts) or "no series")
    return CrossCheck(source="tick series", ratio=sum(p.value for p in parts if p.value is not None) / joules.value)


def _thermal(seen: Observation) -> tuple[ThermalResult, float]:
    """Throttling seen by the readings inside the window, and the share of readings that show it."""
    inside = _readings(seen)
    bits = [r.throttle_reasons for r in inside if r.throttle_reasons is not None]
    temperatures = [r.temperature_c for r in inside if r.temperature_c is not None]
    hottest = max(temperatures, default=None)
    if not bits:
        return ThermalResult(max_temperature_c=hottest), 0.0
    share = sum(bool(b & THROTTLING) for b in bits) / len(bits)
    result = ThermalResult(
        detected=share > 0,
        sw_power_cap=any(b & SW_POWER_CAP for b in bits),
        hw_slowdown=any(b & HW_SLOWDOWN for b in bits),
        sw_thermal=any(b & SW_THERMAL for b in bits),
        hw_thermal=any(b & HW_THERMAL for b in bits),
        power_brake=any(b & POWER_BRAKE for b in bits),
        throttle_duration_s=share * seen.window.duration_s,
        max_temperature_c=hottest,
    )
    return result, share


def _null_reasons(seen: Observation, joules: Joules, energy: Mapping[str, Any]) -> dict[str, str]:
    """Why a quantity is null; one that was measured is not in it."""
    no_energy = joules.reason or "no tokens came out of the window"
    no_idle = seen.no_baseline_reason or "no baseline"
    quantities: dict[str, tuple[Any, str]] = {
        **{name: (energy.get(name), no_energy) for name in OVER_ENERGY},
        "energy_adjusted_j": (energy["energy_adjusted_j"], joules.reason or no_idle),
        "energy_adjusted_per_output_token_j": (
            energy.get("energy_adjusted_per_output_token_j"),
            joules.reason or no_idle,
        ),
        "baseline_power_w": (energy["baseline_power_w"], no_idle),
        "host_energy_j": (
            energy["host_energy_j"],
            "the energy source does not read the host" if seen.energy else no_energy,
        ),
        "memory_model_mb": (seen.facts.memory_model_mb, "the engine has no model in memory"),
        "memory_peak_mb": (seen.memory_peak_mb, "no GPU"),
        "memory_total_mb": (_memory_total_mb(seen), "no sensor told a GPU's memory"),
        "co2_estimate_g": (
            energy.get("co2_estimate_g"),
            joules.reason or "no carbon intensity is known; set LLEM_CARBON_INTENSITY",
        ),
    }
    return {name: reason for name, (value, reason) in quantities.items() if value is None}


def provenance(config: ExperimentConfig) -> dict[str, str]:
    """`set` for every value the user wrote, `default` for the others; dotted names."""
    written = flatten(config.model_dump(exclude_unset=True))
    return {k: "set" if k in written else "default" for k in flatten(config.model_dump(exclude_none=True))}
