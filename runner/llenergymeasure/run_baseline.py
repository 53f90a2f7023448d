"""The idle power of one run: known and confirmed, recorded before the load, or that of the loaded engine."""

import math
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

from llenergymeasure import baseline, idle_power, preflight
from llenergymeasure.core.config import ExperimentConfig
from llenergymeasure.core.contracts import Device
from llenergymeasure.core.energy_series import GUARD_TICKS
from llenergymeasure.core.errors import MeasurementError
from llenergymeasure.gpu_settings import read_settings, thermometer
from llenergymeasure.run_energy import RunEnergy, only, own_devices
from llenergymeasure.user_config import UserConfig, cache_dir

LOADED_COMES_LATER = "baseline.kind: loaded comes from the guard before the window, which was not reached"


def prepare(config: ExperimentConfig, user: UserConfig, energy: RunEnergy) -> None:
    """Start the source; take a known baseline that a spot check confirms, or record one."""
    energy.no_idle = energy.reason
    if energy.source is None:
        return
    energy.source.start(energy.devices, interval_s=config.measurement.sample_interval_ms / 1e3)
    energy.no_idle = _without(config, energy)
    if energy.no_idle:
        return
    if energy.counts:
        energy.settings = read_settings(energy.devices)
    earlier = known(config, user, energy)
    energy.idle = _checked(earlier, config, energy) if earlier is not None else None
    if energy.idle is not None:
        return
    with thermometer(energy.devices if energy.on_gpu else ()) as read:
        energy.recorded = idle_power.record(
            energy.source,
            energy.devices,
            kind=config.baseline.kind,
            seconds=config.baseline.duration_seconds,
            note=energy.note_processes,
        )
        energy.idle_temperature_c = max(read().values(), default=None)


def _without(config: ExperimentConfig, energy: RunEnergy) -> str:
    """Why no baseline is recorded before the engine is loaded; empty if one is."""
    if not config.baseline.enabled:
        return "baseline.enabled is false"
    if not energy.devices:
        return "no GPU is visible"
    return LOADED_COMES_LATER if config.baseline.kind == "loaded" else ""


def _checked(earlier: baseline.Baseline, config: ExperimentConfig, energy: RunEnergy) -> baseline.Baseline | None:
    """A known baseline with what five idle seconds said to it; None if these say that it no longer holds."""
    assert energy.source is not None
    spot_w = idle_power.spot(energy.source, energy.devices, kind=config.baseline.kind, note=energy.note_processes)
    if spot_w is None:
        return earlier
    if baseline.belies(spot_w, earlier.power_w):
        return None
    return replace(earlier, method="validated", spot_w=spot_w)


def known(config: ExperimentConfig, user: UserConfig, energy: RunEnergy) -> baseline.Baseline | None:
    """A baseline of exactly this run's GPUs, as they are set now, that was measured before, by a counter."""
    if not energy.counts:
        return None
    own = {d.uuid: energy.settings[d.uuid] for d in energy.devices if d.uuid in energy.settings}
    return baseline.known(config, own, cache_dir(user)) if len(own) == len(energy.devices) else None


def narrow(config: ExperimentConfig, user: UserConfig, energy: RunEnergy, devices: tuple[Device, ...]) -> None:
    """Keep only these GPUs, and of a known baseline only their part."""
    if energy.keep_only(devices) and energy.idle is not None:
        own = known(config, user, energy)
        energy.idle = replace(own, method=energy.idle.method) if own is not None else None


def complete(config: ExperimentConfig, user: UserConfig, energy: RunEnergy) -> None:
    """Once the recording is complete: the baseline that was recorded in this run, or the reason why there is none."""
    if energy.idle is not None or energy.no_idle not in ("", LOADED_COMES_LATER):
        return
    if energy.no_idle == LOADED_COMES_LATER:
        _take_loaded(energy)
        return
    parts = energy.record.windows.get(idle_power.WINDOW, ()) if energy.record else ()
    joules = {d.gpu_uuid: d.joules for d in parts if d.joules is not None}
    if not parts or energy.recorded is None:
        energy.no_idle = "no baseline was recorded for this run's GPUs"
    elif len(joules) < len(parts):
        energy.no_idle = "baseline: " + "; ".join(d.reason or "" for d in parts if d.joules is None)
    else:
        energy.idle = _fresh(config, energy, energy.recorded, joules)
        if energy.counts:
            baseline.keep(baseline.rows_of(energy.idle, energy.settings), cache_dir(user))


def _fresh(
    config: ExperimentConfig, energy: RunEnergy, seen: idle_power.Recorded, joules: Mapping[str, float]
) -> baseline.Baseline:
    seconds = seen.end_s - seen.start_s
    series = energy.record.series if energy.record else {}
    spreads = {u: idle_power.of_series(series[u], seen.start_s, seen.end_s) for u in joules if u in series}
    return baseline.Baseline(
        sum(joules.values()) / seconds,
        config.baseline.kind,
        "fresh",
        datetime.now(UTC),
        {u: j / seconds for u, j in joules.items()},
        {u: s for u, s in spreads.items() if s is not None},
        energy.idle_temperature_c,
        settings={u: energy.settings[u].digest for u in joules if u in energy.settings},
    )


def _take_loaded(energy: RunEnergy) -> None:
    """The power of the loaded, waiting engine, from the guard before the window."""
    parts = energy.record.windows.get("window", ()) if energy.record else ()
    powers = {d.gpu_uuid: d.power_before_w for d in parts if d.power_before_w is not None}
    if not parts or len(powers) < len(parts):
        energy.no_idle = "baseline.kind loaded: the engine's idle power before the window could not be read"
        return
    spreads = {
        d.gpu_uuid: baseline.Spread(d.power_before_std_w * math.sqrt(GUARD_TICKS), GUARD_TICKS)
        for d in parts
        if d.power_before_std_w is not None
    }
    energy.idle = baseline.Baseline(sum(powers.values()), "loaded", "fresh", datetime.now(UTC), powers, spreads)


def warnings(energy: RunEnergy) -> list[str]:
    """What a reader must know of the idle power, measured in this run or before it, as `code: what and fix`."""
    idle, seen = energy.idle, energy.recorded
    if idle is None or idle.drift_w is None or idle.stable is not False:
        return []
    when = f"in the last of {seen.attempts} recordings" if seen else f"while it was recorded, {idle.age_s:.0f} s ago"
    moved = f"idle power still moved by {100 * idle.drift_w / idle.power_w:+.1f} % {when}"
    return [f"baseline_unstable: {moved}; let the GPU cool down, then set baseline.cache_ttl_seconds: 0"]


def rows_alone(config: ExperimentConfig, user: UserConfig) -> dict[str, baseline.Row]:
    """Measure the idle power that a run of this configuration would, without the run; it is kept on disk, too.

    Raises:
        LLEMError: There is no counter, or the idle power cannot be read from it.

    """
    chosen = preflight.choose_source(config, user)
    energy = RunEnergy(chosen.source, chosen.reason, own_devices(config, chosen.source))
    if energy.source is None or not energy.counts:
        raise MeasurementError(chosen.reason or "no energy counter of a GPU is at hand")
    try:
        prepare(config, user, energy)
    finally:
        energy.record = only(energy.source.stop(), energy.devices)
    complete(config, user, energy)
    if energy.idle is None:
        raise MeasurementError(energy.no_idle)
    return baseline.rows_of(energy.idle, energy.settings)
