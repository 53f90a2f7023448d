"""The energy source of one run: which GPUs are its own, what it recorded, which processes belong to it."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from llenergymeasure.baseline import Baseline
from llenergymeasure.core import registry
from llenergymeasure.core.config import ExperimentConfig
from llenergymeasure.core.contracts import Device, Edges, EnergyBackend, EnergyRecord, ModelFacts
from llenergymeasure.gpu_settings import GpuSettings
from llenergymeasure.idle_power import Recorded
from llenergymeasure.own_processes import own_pids


@dataclass
class RunEnergy:
    """The energy source of this run, or none with the reason."""

    source: EnergyBackend | None
    reason: str
    devices: tuple[Device, ...] = ()
    record: EnergyRecord | None = None
    settings: Mapping[str, GpuSettings] = field(default_factory=dict)  # by GPU UUID, before the baseline
    idle: Baseline | None = None
    no_idle: str = ""  # why there is no idle power; empty while one may still come of the recording
    recorded: Recorded | None = None  # the idle window of this run
    idle_temperature_c: float | None = None  # of the warmest GPU at its end
    own_pids: frozenset[int] = frozenset()  # of this run, as seen at the moments of `note_processes`

    @property
    def on_gpu(self) -> bool:
        """Whether a sensor of real GPUs is there."""
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

    @property
    def guard_s(self) -> float:
        """How long the engine must wait on each side of a quiet window, s."""
        return self.source.guard_s() if self.source is not None and self.devices else 0.0

    def note_processes(self) -> None:
        """Remember which processes are this run's now: a verdict must not take them for strangers on the GPU."""
        self.own_pids |= own_pids() if self.on_gpu else frozenset()

    def attend(self) -> None:
        """Have every tick recorded: an edge is near."""
        if self.source is not None:
            self.source.attend()

    def open(self, name: str) -> float:
        """Mark the start of a window, s."""
        return self.source.open_window(name) if self.source else time.monotonic()

    def close(self, name: str, edges: Edges = "loaded") -> float:
        """Mark its end, s."""
        return self.source.close_window(name, edges) if self.source else time.monotonic()


def own_devices(config: ExperimentConfig, source: EnergyBackend | None) -> tuple[Device, ...]:
    """The GPUs of this run among the visible ones: the first ones, as many as its engine uses."""
    visible = source.devices() if source else ()
    count = registry.gpus_used(config.backend, config.section)
    return visible if count is None else visible[:count]


def used(energy: RunEnergy, facts: ModelFacts, config: ExperimentConfig) -> tuple[Device, ...]:
    """The GPUs that hold the loaded model; none if a real engine runs on the CPU beside an idle GPU."""
    if not energy.on_gpu or not registry.is_real(config.backend):
        return energy.devices
    if facts.device == "cpu":
        return ()
    if facts.gpu_positions is None or max(facts.gpu_positions) >= len(energy.devices):
        return energy.devices
    return tuple(energy.devices[i] for i in facts.gpu_positions)


def only(found: EnergyRecord, devices: Sequence[Device]) -> EnergyRecord:
    """A record without the GPUs that turned out not to belong to this run."""
    own = {d.uuid for d in devices}
    return replace(
        found,
        windows={n: tuple(d for d in parts if d.gpu_uuid in own) for n, parts in found.windows.items()},
        readings=tuple(r for r in found.readings if r.gpu_uuid in own),
        series={u: s for u, s in found.series.items() if u in own},
        samples={u: s for u, s in found.samples.items() if u in own},
        occupants=tuple(o for o in found.occupants if o.gpu_uuid in own),
        throttle=tuple(t for t in found.throttle if t.gpu_uuid in own),
        sensors={u: s for u, s in found.sensors.items() if u in own},
    )
