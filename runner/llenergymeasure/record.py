"""Turns what was observed in one experiment into its result: divisions, uncertainties, verdict, warnings, reasons."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

from llenergymeasure import __version__, flops, judging
from llenergymeasure.baseline import Baseline
from llenergymeasure.core.config import ExperimentConfig
from llenergymeasure.core.contracts import DeviceEnergy
from llenergymeasure.core.energy_series import Joules
from llenergymeasure.core.identity import canonical, measurement_config_hash
from llenergymeasure.core.plan import flatten
from llenergymeasure.core.result import (
    EnergyBreakdown,
    ExperimentResult,
    GeneratedText,
    IdleAsRead,
    latency_statistics,
)
from llenergymeasure.core.verdict import judge
from llenergymeasure.observation import Observation, calibrated

NVML_NOTES = (
    "NVML power is accurate to about ±5 W per NVIDIA.",
    "Without calibration the absolute bound of GPU energy is ±10 %; comparisons on one GPU are better.",
)
NOT_TESTED = "warmup.convergence_detection is false: n_warmup passes were made and their latencies not judged"
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


def build(observed: Observation) -> ExperimentResult:
    """Give the result of an observation."""
    seen = calibrated(observed)
    joules = seen.joules
    energy = _energy_fields(seen, joules, observed.baseline)
    energy["energy_uncalibrated_j"] = observed.joules.value if seen is not observed else None
    uncertainty = judging.uncertainty(seen, energy["energy_adjusted_j"])
    evidence = judging.evidence(observed, joules.value, uncertainty)
    return ExperimentResult(
        tool_version=__version__,
        experiment_id=seen.experiment_id,
        measurement_config_hash=measurement_config_hash(seen.config),
        **_identity(seen),
        **_tokens_and_speed(seen),
        **energy,
        uncertainty=uncertainty,
        cross_check=evidence.cross_check,
        phase_split=seen.phase_split,
        verdict=judge(evidence),
        conditions=evidence.conditions,
        occupancy=evidence.occupancy,
        sensors=judging.sensors(seen),
        work=judging.work(seen),
        flops=flops.count(seen.config, seen.facts, seen.weights.config, seen.lengths),
        warmup=seen.warmup,
        settle=seen.settle,
        warmup_excluded_samples=seen.warmup.iterations_completed if seen.warmup else 0,
        thermal=judging.thermal(seen, evidence.conditions),
        environment_snapshot=dict(seen.environment),
        measurement_warnings=judging.warnings(seen, evidence, energy),
        reproducibility_notes=_notes(seen),
        null_reasons=_null_reasons(seen, joules, energy),
        start_time=seen.start_time,
        end_time=seen.end_time,
        synthetic=not seen.real_engine or seen.source_kind == "simulated",
        random_weights=seen.weights.random_weights,
    )


def _notes(seen: Observation) -> list[str]:
    if seen.source_kind != "counter":
        return []
    return list(NVML_NOTES[:1] if seen.calibration and not judging.uncalibrated(seen) else NVML_NOTES)


def _identity(seen: Observation) -> dict[str, Any]:
    lora = seen.config.lora
    warm = seen.warmup is not None and seen.warmup.converged is not False
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
    inputs, outputs, duration_s = seen.input_tokens, seen.output_tokens, seen.window.duration_s
    return {
        "input_tokens": inputs,
        "output_tokens": outputs,
        "total_tokens": inputs + outputs,
        "requests": len(seen.lengths),
        "request_input_tokens": [i for i, _ in seen.lengths],
        "request_output_tokens": [o for _, o in seen.lengths],
        "duration_s": duration_s,
        "tokens_per_second": outputs / duration_s,
        "total_tokens_per_second": (inputs + outputs) / duration_s,
        "requests_per_second": len(seen.lengths) / duration_s,
        "latency": latency_statistics(
            [1e3 * (g.end_s - g.start_s) for g in seen.generations], of_batches=seen.work.mode != "saturated"
        ),
        "memory_model_mb": seen.facts.memory_model_mb,
        "memory_peak_mb": seen.memory_peak_mb,
        "memory_total_mb": _memory_total_mb(seen),
        "texts": _texts(seen),
    }


def _memory_total_mb(seen: Observation) -> float | None:
    return next((r.memory_total_mb for r in seen.readings if r.memory_total_mb), None)


def _texts(seen: Observation) -> list[GeneratedText] | None:
    if seen.texts is None:
        return None
    requests = [r for g in seen.generations for r in g.requests]
    return [
        GeneratedText(request=r.index, prompt=seen.prompts[r.index], output=t)
        for r, t in zip(requests, seen.texts, strict=False)
    ]


def _loaded_idle_w(devices: Sequence[DeviceEnergy]) -> float | None:
    """Power of all GPUs with the engine loaded and waiting, W, from the guards before the window; None if one lacks."""
    powers = [d.power_before_w for d in devices if d.power_before_w is not None]
    return sum(powers) if powers and len(powers) == len(devices) else None


def _no_loaded_idle(devices: Sequence[DeviceEnergy]) -> str:
    """Why there is none, with the GPUs that lack it where others have it."""
    lacking = [d.gpu_uuid for d in devices if d.power_before_w is None]
    of_which = f" on {', '.join(lacking)}" if len(lacking) < len(devices) else ""
    return f"no quiet guard before the window{of_which}"


def _breakdown(seen: Observation, adjusted: float | None, as_read: Baseline | None) -> EnergyBreakdown:
    """What was taken off; `as_read` is the idle power before its calibration."""
    baseline, raw = seen.baseline, seen.joules.value
    if baseline is None or as_read is None:
        return EnergyBreakdown(raw_j=raw, adjusted_j=adjusted)
    return EnergyBreakdown(
        raw_j=raw,
        adjusted_j=adjusted,
        baseline_power_w=baseline.power_w,
        baseline_per_device_w=dict(baseline.per_device_w),
        baseline_kind=baseline.kind,
        baseline_method=baseline.method,
        from_cache=baseline.method != "fresh",
        baseline_timestamp=baseline.measured_at,
        baseline_cache_age_s=_age_s(seen) if baseline.method != "fresh" else None,
        baseline_std_uncertainty_w=baseline.std_uncertainty_w,
        baseline_drift_w=baseline.drift_w,
        baseline_drift_reason=_no_drift(baseline) if baseline.drift_w is None else None,
        baseline_stable=baseline.stable,
        baseline_temperature_c=baseline.temperature_c,
        baseline_spot_w=baseline.spot_w,
        baseline_settings=dict(baseline.settings) or None,
        baseline_as_read=_as_read(as_read),
    )


def _no_drift(baseline: Baseline) -> str:
    """Why nobody can tell how the idle power moved while it was recorded."""
    if baseline.kind == "loaded":
        return "the guard before the window is too short to show a drift"
    if baseline.method != "fresh":
        return "the idle power was handed to this run without its drift"
    return "the energy source does not show how the idle power moved"


def _as_read(idle: Baseline) -> dict[str, IdleAsRead] | None:
    seen = {u: asdict(idle.recorded[u]) if u in idle.recorded else {} for u in idle.per_device_w}
    return {u: IdleAsRead(power_w=w, **seen[u]) for u, w in idle.per_device_w.items()} or None


def _energy_fields(seen: Observation, joules: Joules, as_read: Baseline | None) -> dict[str, Any]:
    duration_s, baseline = seen.window.duration_s, seen.baseline
    outputs, inputs = seen.output_tokens, seen.input_tokens
    raw = joules.value
    adjusted = raw - baseline.power_w * duration_s if raw is not None and baseline else None
    devices = seen.devices
    breakdown = _breakdown(seen, adjusted, as_read)
    fields: dict[str, Any] = {
        "energy_source": seen.source_name,
        "energy_kind": seen.source_kind,
        "energy_total_j": raw,
        "energy_adjusted_j": adjusted,
        "baseline_power_w": breakdown.baseline_power_w,
        "energy_breakdown": breakdown,
        "loaded_idle_power_w": _loaded_idle_w(devices),
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


def _age_s(seen: Observation) -> float | None:
    """How old the idle power was at the end of the run, which is not when the run is judged again."""
    return (seen.end_time - seen.baseline.measured_at).total_seconds() if seen.baseline else None


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
        "loaded_idle_power_w": (energy["loaded_idle_power_w"], joules.reason or _no_loaded_idle(seen.devices)),
        "energy_uncalibrated_j": (energy["energy_uncalibrated_j"], joules.reason or "nothing was calibrated"),
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
    if (warm := seen.warmup) is not None:
        quantities["warmup.converged"] = (warm.converged, NOT_TESTED)
    return {name: reason for name, (value, reason) in quantities.items() if value is None}


def provenance(config: ExperimentConfig) -> dict[str, str]:
    """`set` for every value the user wrote, `default` for the others; dotted names."""
    written = flatten(config.model_dump(exclude_unset=True))
    return {k: "set" if k in written else "default" for k in flatten(config.model_dump(exclude_none=True))}
