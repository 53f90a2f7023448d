"""Gathers what one experiment's verdict rests on, and what a reader must be told of its sensors and its window."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from llenergymeasure.core import verdict
from llenergymeasure.core.calibration import gain_limit
from llenergymeasure.core.conditions import Conditions, conditions
from llenergymeasure.core.contracts import DeviceEnergy
from llenergymeasure.core.cross_check import cross_check
from llenergymeasure.core.occupancy import Span, occupancy
from llenergymeasure.core.phase_split import PhaseSplit
from llenergymeasure.core.result import Sensor, ThermalResult, WorkResult
from llenergymeasure.core.slowdowns import causes
from llenergymeasure.core.uncertainty import GAIN_LIMIT, OneRun, Uncertainty, of_one_run
from llenergymeasure.core.verdict import Evidence
from llenergymeasure.observation import Observation


def evidence(seen: Observation, energy_j: float | None, known: Uncertainty) -> Evidence:
    """What the verdict rests on; the sensors are checked against each other as they were read."""
    uuids = [d.gpu_uuid for d in seen.devices]
    load = seen.phases.get("load")
    span = Span(
        load_s=seen.origin_s + load.start_s if load else seen.window.start_s,
        start_s=seen.window.start_s,
        end_s=seen.window.end_s,
    )
    found = seen.energy
    batches = seen.generations if seen.work.mode == "passes" else ()  # else requests run side by side, evenly
    return Evidence(
        source_kind=seen.source_kind,
        energy_j=energy_j,
        energy_reason=seen.joules.reason,
        window_s=seen.window.duration_s,
        relative_comparison=known.comparison,
        conditions=conditions(found, seen.window, batches, seen.environment, uuids),
        occupancy=occupancy(found.occupants if found else (), found.readings if found else (), seen.own_pids, span),
        cross_check=cross_check(found, seen.window, seen.joules.value, seen.work.edges),
        work=seen.work,
        batches=len(batches) or None,
        suspended_s=seen.suspended_s,
        dummy_values=seen.constant_prompts or _dummy_weights(seen),
        allow_dummy=seen.config.measurement.allow_dummy,
    )


def _dummy_weights(seen: Observation) -> bool:
    """Whether the engine made its weights up itself, which gives activations near zero."""
    section: Any = seen.config.section
    asked = section.get("load_format") if isinstance(section, Mapping) else getattr(section, "load_format", None)
    return "dummy" in (seen.engine_effective.get("load_format"), asked)


def uncertainty(seen: Observation, adjusted_j: float | None) -> Uncertainty:
    """The budget of one run."""
    parts = {d.gpu_uuid: d.joules for d in seen.devices if d.joules is not None}
    return of_one_run(
        OneRun(
            energy_j=seen.joules.value,
            edge_std_j=seen.joules.std_uncertainty,
            window_s=seen.window.duration_s,
            itl_s=seen.work.itl_s,
            imbalance=seen.work.imbalance,
            spread=seen.spread,
            adjusted_j=adjusted_j,
            baseline_std_w=seen.baseline.std_uncertainty_w if seen.baseline else None,
            gain_limit=gain_limit(parts, seen.calibration, GAIN_LIMIT),
        )
    )


def thermal(seen: Observation, found: Conditions) -> ThermalResult:
    """Which slow-downs the window showed by its readings or the driver's counters, and how long they were."""
    inside = seen.readings
    temperatures = [r.temperature_c for r in inside if r.temperature_c is not None]
    hottest, share = max(temperatures, default=None), found.throttled_share
    counters, own = seen.energy.throttle if seen.energy else (), {d.gpu_uuid for d in seen.devices}
    slowed_s = None if share is None else share * seen.window.duration_s
    return ThermalResult(
        **causes([row for row in counters if row.gpu_uuid in own], inside, seen.window),
        detected=None if share is None else share > 0,
        throttle_duration_s=slowed_s,
        max_temperature_c=hottest,
    )


def work(seen: Observation) -> WorkResult:
    """How the window was fed."""
    return WorkResult(**{name: getattr(seen.work, name) for name in WorkResult.model_fields})


def sensors(seen: Observation) -> dict[str, Sensor] | None:
    """What is known of the counter of each GPU of this run."""
    return {d.gpu_uuid: _sensor(seen, d) for d in seen.devices} or None


def _sensor(seen: Observation, device: DeviceEnergy) -> Sensor:
    facts = seen.energy.sensors.get(device.gpu_uuid) if seen.energy else None
    board = seen.calibration.get(device.gpu_uuid)
    return Sensor(
        **(asdict(facts) if facts else {}),
        edges=device.edges,
        power_before_w=device.power_before_w,
        power_after_w=device.power_after_w,
        gain=board.gain if board else None,
        offset_w=board.offset_w if board else None,
    )


def warnings(seen: Observation, evidence: Evidence, energy: Mapping[str, Any]) -> list[str]:
    """Everything a reader must know, each code once; the run's own words come before the table's."""
    found = [
        *seen.warnings,
        *(seen.energy.warnings if seen.energy else ()),
        *_unsplit(seen.phase_split),
        *uncalibrated(seen),
    ]
    said = {text.partition(":")[0] for text in found}
    table = [text for text in verdict.warnings(evidence) if text.partition(":")[0] not in said]
    return [*found, *table, *_energy_warnings(energy)]


def uncalibrated(seen: Observation) -> list[str]:
    """GPUs that a calibration was given for others, but not for."""
    missing = [d.gpu_uuid for d in seen.devices if d.gpu_uuid not in seen.calibration]
    if not seen.calibration or not missing:
        return []
    names = ", ".join(missing)
    return [f"not_calibrated: the calibration file does not name {names}; add an entry, or leave out --calibration"]


def _unsplit(split: PhaseSplit | None) -> list[str]:
    return [split.reason] if split is not None and split.reason is not None else []


def _energy_warnings(energy: Mapping[str, Any]) -> list[str]:
    adjusted = energy["energy_adjusted_j"]
    if adjusted is not None and adjusted < 0:
        return ["negative_adjusted: the window drew less than the baseline; use baseline.cache_ttl_seconds: 0"]
    return []
