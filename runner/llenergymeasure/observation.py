"""Everything that one experiment produced before it is judged, and the same after its sensors were calibrated."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from llenergymeasure.baseline import Baseline
from llenergymeasure.core.calibration import Calibration, corrected, corrected_idle_w
from llenergymeasure.core.config import ExperimentConfig
from llenergymeasure.core.contracts import (
    DeviceEnergy,
    EnergyRecord,
    Generation,
    ModelFacts,
    Reading,
    Weights,
    Window,
    Work,
)
from llenergymeasure.core.energy_series import Joules, total
from llenergymeasure.core.phase_split import PhaseSplit
from llenergymeasure.core.result import Phase, SettleResult, WarmupResult
from llenergymeasure.core.uncertainty import Spread


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
    calibration: Calibration = field(default_factory=dict)
    spread: Spread | None = None  # between runs on these GPUs, where studies have measured it
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

    @property
    def input_tokens(self) -> int:
        """Prompt tokens inside the window."""
        return sum(i for i, _ in self.lengths) if self.work.input_tokens is None else self.work.input_tokens

    @property
    def output_tokens(self) -> int:
        """Generated tokens inside the window."""
        return sum(o for _, o in self.lengths) if self.work.output_tokens is None else self.work.output_tokens

    @property
    def devices(self) -> tuple[DeviceEnergy, ...]:
        """The window's energy by GPU."""
        return tuple(self.energy.windows.get("window", ())) if self.energy else ()

    @property
    def joules(self) -> Joules:
        """The window's energy over all GPUs, or why there is none."""
        if self.energy is None:
            return Joules(None, reason=self.no_energy_reason)
        if not self.devices:
            return Joules(None, reason=self.no_energy_reason or f"{self.source_name}: no GPU is visible")
        return total(self.devices)

    @property
    def readings(self) -> list[Reading]:
        """What the sensors told inside the window."""
        found = self.energy.readings if self.energy else ()
        return [r for r in found if self.window.start_s <= r.t_s <= self.window.end_s]


def calibrated(seen: Observation) -> Observation:
    """The observation with its joules and idle power corrected; the same object where no GPU of it is calibrated."""
    if seen.energy is None or seen.source_kind != "counter":
        return seen
    if not any(d.gpu_uuid in seen.calibration for d in seen.devices):
        return seen
    energy = corrected(seen.energy, seen.calibration, seen.window)
    return replace(seen, energy=energy, baseline=_calibrated_idle(seen.baseline, seen.calibration))


def _calibrated_idle(idle: Baseline | None, known: Calibration) -> Baseline | None:
    """Idle power with what is known of it; what a spot check found beyond it is shared as the idle power is."""
    if idle is None or not idle.per_device_w:
        return idle
    gains = {u: known[u].gain if u in known else 1.0 for u in idle.per_device_w}
    per_device_w = corrected_idle_w(idle.per_device_w, known)
    power_w = sum(per_device_w.values())
    mean_gain = sum(gains[u] * w for u, w in idle.per_device_w.items()) / (idle.power_w or 1.0)
    return replace(
        idle,
        power_w=power_w,
        per_device_w=per_device_w,
        recorded={u: s.times(gains[u]) for u, s in idle.recorded.items() if u in gains},
        spot_w=None if idle.spot_w is None else power_w + mean_gain * (idle.spot_w - idle.power_w),
    )
