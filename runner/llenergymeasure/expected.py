"""How long a run will take beside loading and warm-up, and by which source, as far as that is known beforehand."""

from collections.abc import Sequence
from dataclasses import dataclass

from llenergymeasure import preflight, run_baseline
from llenergymeasure.core.config import ExperimentConfig
from llenergymeasure.core.contracts import QUIET_LEAST_S
from llenergymeasure.core.errors import PreFlightError
from llenergymeasure.gpu_settings import read_settings
from llenergymeasure.idle_context import CREATION_S
from llenergymeasure.idle_power import SPOT_S
from llenergymeasure.run_energy import RunEnergy, own_devices
from llenergymeasure.user_config import UserConfig
from llenergymeasure.warmup import SETTLE_LEAST_S
from llenergymeasure.window import DEFAULT_WINDOW_S
from llenergymeasure.wording import counted, duration_text


@dataclass(frozen=True)
class Expected:
    """Lengths of a run's phases, s, as far as they do not depend on the engine; `source` None: no joules."""

    source: str | None
    gpus: int = 0
    reason: str = ""
    baseline_s: float = 0.0
    baseline_known: bool = False
    settle_least_s: float = 0.0
    settle_most_s: float = 0.0
    window_s: float = 0.0
    guards_s: float = 0.0
    check_s: float = 0.0  # what a later run of the same study spends on the idle power, which is known by then

    @property
    def repeated_s(self) -> float:
        """What a later run of the same study takes at least."""
        return self.least_s - self.baseline_s + self.check_s

    @property
    def least_s(self) -> float:
        """All of them, the settling at its shortest."""
        return self.baseline_s + self.settle_least_s + self.guards_s + self.window_s


def expected(config: ExperimentConfig, user: UserConfig) -> Expected:
    """What one run of this configuration takes here; a source that cannot work counts as none: pre-flight says so."""
    try:
        chosen = preflight.choose_source(config, user)
    except PreFlightError as err:
        return Expected(None, reason=str(err), window_s=config.measurement.min_duration_seconds or 0.0)
    wanted_s = config.measurement.min_duration_seconds
    if chosen.source is None:
        return Expected(None, reason=chosen.reason, window_s=wanted_s or 0.0)
    energy = RunEnergy(chosen.source, chosen.reason, own_devices(config, chosen.source))
    known = _known(config, user, energy)
    full_s, check_s = _baseline(config, energy)
    least_s, most_s = _settling(config, energy)
    return Expected(
        chosen.source.NAME,
        len(energy.devices),
        chosen.reason,
        check_s if known else full_s,
        known,
        least_s,
        most_s,
        DEFAULT_WINDOW_S if wanted_s is None else wanted_s,
        2 * QUIET_LEAST_S if energy.counts else 0.0,
        check_s,
    )


def _known(config: ExperimentConfig, user: UserConfig, energy: RunEnergy) -> bool:
    """Whether the idle power is known, so that it is only checked."""
    if not config.baseline.enabled or not energy.counts:
        return False
    energy.settings = read_settings(energy.devices)
    return run_baseline.known(config, user, energy) is not None


def _baseline(config: ExperimentConfig, energy: RunEnergy) -> tuple[float, float]:
    """Seconds for measuring the idle power, and for what a run does that may take a known one."""
    b = config.baseline
    if not b.enabled or b.kind == "loaded" or not energy.devices:
        return 0.0, 0.0
    context_s = CREATION_S if b.kind == "context" and energy.on_gpu else 0.0
    full_s = context_s + b.duration_seconds
    return full_s, context_s + SPOT_S if energy.counts and b.cache_ttl_seconds > 0 else full_s


def _settling(config: ExperimentConfig, energy: RunEnergy) -> tuple[float, float]:
    w = config.warmup
    if not w.enabled or not energy.on_gpu:
        return 0.0, 0.0
    fixed = w.thermal_wait == "fixed" or w.thermal_floor_seconds == 0
    return (w.thermal_floor_seconds if fixed else SETTLE_LEAST_S), w.thermal_floor_seconds


def all_runs_s(found: Sequence[Expected]) -> float:
    """What runs take at least, one after the other: each kind of idle power is measured by the first that wants it."""
    total_s, seen = 0.0, set()
    for each in found:
        total_s += each.repeated_s if each.source in seen else each.least_s
        seen.add(each.source)
    return total_s


def sentence(found: Expected) -> str:
    """What a user is told before a run, in one line."""
    if found.source is None:
        window = f"a window of {duration_text(found.window_s)}" if found.window_s else "one pass over the prompts"
        return f"no energy is measured: {found.reason}; {window}"
    idle = "checking the known idle power" if found.baseline_known else "idle power"
    most = f" to {duration_text(found.settle_most_s)}" if found.settle_most_s > found.settle_least_s else ""
    parts = [
        f"{idle} {duration_text(found.baseline_s)}" if found.baseline_s else "",
        f"settling under load {duration_text(found.settle_least_s)}{most}" if found.settle_least_s else "",
        f"window {duration_text(found.window_s)}" if found.window_s else "a window of one pass",
    ]
    where = f"energy by {found.source} on {counted(found.gpus, 'GPU')}" if found.gpus else f"energy by {found.source}"
    what = ", ".join(p for p in parts if p)
    return (
        f"{where}; at least {duration_text(found.least_s)} plus loading: {what}"
        if found.least_s
        else f"{where}; {what}"
    )
