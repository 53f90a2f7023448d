"""Whether a measured energy may be believed: valid, invalid, estimated or unmeasured, each reason with its fix.

`RULES` is the table of faults: each is a pure function from the evidence of one run to a finding, or to none. A finding
that is invalid becomes a reason of the verdict, a lesser one a warning.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, ConfigDict

from llenergymeasure.core.conditions import Conditions
from llenergymeasure.core.contracts import Work
from llenergymeasure.core.cross_check import CrossCheck
from llenergymeasure.core.drifts import LEAST_BATCHES
from llenergymeasure.core.occupancy import Occupancy

State = Literal["valid", "invalid", "estimated", "unmeasured"]

MIN_WINDOW_S, SHORT_WINDOW_S = 5.0, 10.0
LONGER = f"raise measurement.min_duration_seconds or n, to at least {SHORT_WINDOW_S:g} s"
IMPRECISE, TOO_IMPRECISE = 0.02, 0.05  # U_cmp
MAX_THROTTLED_SHARE = 0.05
MAX_ABOVE_LIMIT = 1.3  # power between two ticks over the enforced limit
MAX_GAP_TICKS = 3
SLOWED = 0.001  # share of throttled time from which the GPU, not its host, may have changed the pace
MAX_CLOCK_DRIFT = 0.03
POWER_DRIFT, TOO_MUCH_POWER_DRIFT = 0.02, 0.05
MAX_TEMPERATURE_CHANGE_C = 10.0
DISAGREES, CONTRADICTS = 0.02, 0.05  # of the cross-check, beyond its allowance
MAX_SUSPENDED_S = 0.5
LEAST_RUNNING = 0.95  # of the requests that the engine could run at once
MAX_IMBALANCE = 0.02  # W of measurement.md §3
SUM_TOLERANCE = 1e-6  # rounding between the joules of the devices and their total


class Reason(BaseModel):
    """Why a verdict is not `valid`: a constant code, a sentence, and what to do."""

    model_config = ConfigDict(frozen=True)

    code: str
    sentence: str
    fix: str


class Verdict(BaseModel):
    """The judgement on one result."""

    model_config = ConfigDict(frozen=True)

    state: State
    reasons: list[Reason] = []


@dataclass(frozen=True)
class Evidence:
    """What the judgement rests on; powers in W, times in s, shares as fractions."""

    source_kind: str | None  # counter | estimate | simulated | None
    energy_j: float | None
    energy_reason: str | None
    window_s: float
    relative_comparison: float | None
    conditions: Conditions = field(default_factory=Conditions)
    occupancy: Occupancy = field(default_factory=Occupancy)
    cross_check: CrossCheck | None = None
    work: Work = field(default_factory=Work)
    batches: int | None = None  # of the window; None where requests run side by side
    suspended_s: float = 0.0
    dummy_values: bool = False
    allow_dummy: bool = False


@dataclass(frozen=True)
class Finding:
    """A fault that was found; `code` is constant, `sentence` ends without a full stop."""

    invalid: bool
    code: str
    sentence: str
    fix: str


Rule = Callable[[Evidence], Finding | None]


def _percent(fraction: float, digits: int = 1) -> str:
    return f"{100 * fraction:.{digits}f} %"


# The window and its precision.


def _window(e: Evidence) -> Finding | None:
    if e.window_s >= SHORT_WINDOW_S or e.energy_j is None:
        return None
    if e.window_s < MIN_WINDOW_S:
        sentence = f"The window lasted {e.window_s:.2f} s; below {MIN_WINDOW_S:g} s the edges dominate"
        return Finding(True, "window_too_short", sentence, LONGER)
    return Finding(False, "short_window", f"the window lasted {e.window_s:.1f} s", LONGER)


def _precision(e: Evidence) -> Finding | None:
    u = e.relative_comparison
    if u is None or u <= IMPRECISE:
        return None
    sentence = f"The uncertainty of a comparison is {_percent(u)}, above {_percent(IMPRECISE, 0)}"
    if u > TOO_IMPRECISE:
        sentence = f"The uncertainty of a comparison is {_percent(u)}, above {_percent(TOO_IMPRECISE, 0)}"
    return Finding(u > TOO_IMPRECISE, "imprecise", sentence, "measure a longer window")


def _suspended(e: Evidence) -> Finding | None:
    if e.suspended_s <= MAX_SUSPENDED_S:
        return None
    sentence = f"The machine slept for {e.suspended_s:.1f} s inside the window"
    return Finding(True, "suspended", sentence, "keep the machine awake (systemd-inhibit llem run …) and run again")


# The sensor.


def _counter_jump(e: Evidence) -> Finding | None:
    c = e.conditions
    if c.peak_above_limit is None or c.peak_above_limit <= MAX_ABOVE_LIMIT:
        return None
    sentence = (
        f"The energy counter jumped: {c.peak_power_w or 0:.0f} W between two ticks, {c.peak_above_limit:.1f} times the "
        "power limit"
    )
    return Finding(True, "counter_jump", sentence, "run again; if it comes back, update the driver")


def _interior_gap(e: Evidence) -> Finding | None:
    ticks = e.conditions.interior_gap_ticks
    if ticks is None or ticks <= MAX_GAP_TICKS:
        return None
    sentence = f"{ticks} ticks of the counter in a row were missed inside the window (its total loses nothing)"
    return Finding(False, "interior_gap", sentence, "free a core for the sampler")


def _cross_check(e: Evidence) -> Finding | None:
    check = e.cross_check
    if check is None or check.ratio is None or (check.excess or 0.0) <= DISAGREES:
        return None
    sentence = f"By another reading ({check.source}) the energy is {check.ratio:.3f} times that of the counter"
    fix = "run again with a longer window, and if it stays, distrust this sensor and file the raw samples"
    return Finding((check.excess or 0.0) > CONTRADICTS, "cross_check", sentence, fix)


# Who else was there.


def _shared(e: Evidence) -> Finding | None:
    if not e.occupancy.shared:
        return None
    sentence = f"Somebody else used {e.occupancy.gpu_uuid}: {e.occupancy.sentence}"
    return Finding(True, "gpu_shared", sentence, "end the other processes, or take a GPU of your own, and run again")


def _display(e: Evidence) -> Finding | None:
    if e.occupancy.shared or not e.occupancy.display_pids:
        return None
    pids = ", ".join(map(str, e.occupancy.display_pids))
    sentence = f"a display is drawn on {e.occupancy.gpu_uuid} (process {pids})"
    return Finding(False, "display_attached", sentence, "stop the display, or measure on another GPU")


# What the GPU went through.


def _throttled(e: Evidence) -> Finding | None:
    share = e.conditions.throttled_share
    if not share:
        return None
    sentence = f"Heat or a power brake slowed the GPU during {_percent(share)} of the window"
    fix = "improve cooling or lower the load, then run again"
    return Finding(share > MAX_THROTTLED_SHARE, "throttled", sentence, fix)


def _clock_drift(e: Evidence) -> Finding | None:
    drift = e.conditions.clock_drift
    if drift is None or abs(drift) <= MAX_CLOCK_DRIFT:
        return None
    sentence = f"clocks of the window's last third were {100 * drift:+.1f} % off those of the first"
    return Finding(False, "clock_drift", sentence, "let the GPU settle longer (warmup.thermal_floor_seconds)")


def _pace_of_the_host(c: Conditions, power_drift: float) -> float | None:
    """The change of pace, if it took the power along while the GPU's clocks held: then the host is what changed."""
    pace, clocks = c.pace_drift, c.clock_drift
    if pace is None or clocks is None or (c.throttled_share or 0.0) > SLOWED:
        return None
    follows = pace * power_drift > 0 and abs(pace) > abs(power_drift) / 2
    return pace if follows and abs(clocks) < abs(pace) / 4 else None


def _power_drift(e: Evidence) -> Finding | None:
    drift = e.conditions.power_drift
    if drift is None or abs(drift) <= POWER_DRIFT:
        return None
    sentence = f"Power in the window's last third was {100 * drift:+.1f} % off that in the first"
    fix = "let the GPU settle longer (warmup.thermal_floor_seconds), or measure a longer window"
    pace = _pace_of_the_host(e.conditions, drift)
    if pace is not None:
        sentence += f", its batches per second {100 * pace:+.1f} % while the clocks held"
        fix = "keep the host's processor free for this run, or measure a longer window"
    return Finding(abs(drift) > TOO_MUCH_POWER_DRIFT, "power_drift", sentence, fix)


def _drift_unknown(e: Evidence) -> Finding | None:
    ticks_known = e.energy_j is not None and e.conditions.peak_power_w is not None
    if not ticks_known or e.source_kind != "counter" or e.batches is None or e.batches >= LEAST_BATCHES:
        return None
    held = "a single batch" if e.batches == 1 else f"only {e.batches} batches"
    sentence = f"the window held {held}, whose own course cannot be told from a drift of power"
    fix = f"raise measurement.min_duration_seconds or n, so that it holds at least {LEAST_BATCHES}"
    return Finding(False, "drift_unknown", sentence, fix)


def _temperature(e: Evidence) -> Finding | None:
    change = e.conditions.temperature_change_c
    if change is None or abs(change) <= MAX_TEMPERATURE_CHANGE_C:
        return None
    sentence = f"the GPU's temperature moved by {change:+.0f} °C from the window's first third to its last"
    return Finding(False, "temperature_drift", sentence, "let the GPU settle longer (warmup.thermal_floor_seconds)")


def _persistence(e: Evidence) -> Finding | None:
    if e.conditions.persistence_mode is not False:
        return None
    sentence = "persistence mode is off, so that the driver may put the idle GPU into another state"
    return Finding(False, "persistence_off", sentence, "sudo nvidia-smi -pm 1")


def _ecc(e: Evidence) -> Finding | None:
    if not e.conditions.ecc_pending:
        return None
    sentence = "ECC was switched and waits for a restart of the GPU: later runs will not be comparable with this one"
    return Finding(False, "ecc_changed", sentence, "restart the GPU, or switch ECC back")


def _battery(e: Evidence) -> Finding | None:
    if not e.conditions.on_battery:
        return None
    return Finding(False, "on_battery", "the machine runs on its battery, which lowers clocks", "plug it in")


# The work.


def _unrealistic(e: Evidence) -> Finding | None:
    if not e.dummy_values or e.allow_dummy:
        return None
    sentence = "Weights or prompts are constant; power depends on operand values by about 40 %"
    fix = "use real weights and varied prompts, or set measurement.allow_dummy: true"
    return Finding(True, "unrealistic_values", sentence, fix)


def _concurrency(e: Evidence) -> Finding | None:
    running, possible = e.work.mean_running, e.work.concurrency
    if running is None or not possible or running >= LEAST_RUNNING * possible:
        return None
    sentence = f"{running:.1f} requests ran on average, of {possible} that the engine can run at once"
    return Finding(False, "below_concurrency", sentence, "raise n, or lower the engine's concurrency")


def _imbalance(e: Evidence) -> Finding | None:
    if abs(e.work.imbalance) <= MAX_IMBALANCE:
        return None
    sentence = f"the window prefilled {100 * e.work.imbalance:+.1f} % more of its work than it decoded"
    return Finding(False, "work_imbalance", sentence, "measure a longer window")


RULES: tuple[Rule, ...] = (
    # rule            invalid                                 warning
    _window,  #       shorter than 5 s                        than 10 s
    _suspended,  #    more than 0.5 s
    _precision,  #    U_cmp above 5 %                         above 2 %
    _counter_jump,  # above 1.3 x the power limit
    _cross_check,  #  off by more than 5 %                    by 2 %
    _shared,  #       a process that computes and is not ours
    _throttled,  #    during more than 5 %                    at all
    _power_drift,  #  above 5 %                               above 2 %
    _unrealistic,  #  constant weights or prompts
    _display,  #                                              a process that draws
    _drift_unknown,  #                                        fewer than 3 batches
    _clock_drift,  #                                          above 3 %
    _temperature,  #                                          above 10 °C
    _interior_gap,  #                                         more than 3 ticks
    _concurrency,  #                                          below 95 % of what is possible
    _imbalance,  #                                            above 2 %
    _persistence,  #                                          off
    _ecc,  #                                                  pending
    _battery,  #                                              in use
)
"""Every fault that is looked for, the weightiest first. What takes the joules away is in `NO_JOULES`."""

NO_JOULES = {
    "counter_reset": "the driver was reloaded or the GPU was reset; run again",
    "window_too_short": LONGER,
    "sample_gap": "the machine was too busy to read the sensor; free a core and run again",
}
"""Codes of reasons for missing joules that make a measurement invalid; without any of them there was none."""


def judge(evidence: Evidence) -> Verdict:
    """Give the verdict; the first reasons are the weightiest."""
    if evidence.energy_j is None:
        return _without_energy(evidence)
    if evidence.energy_j <= 0:
        return _impossible(evidence.energy_j)
    reasons = [
        Reason(code=f.code, sentence=f"{f.sentence}.", fix=f.fix)
        for rule in RULES
        if (f := rule(evidence)) is not None and f.invalid
    ]
    if reasons:
        return Verdict(state="invalid", reasons=reasons)
    if evidence.source_kind == "estimate":
        reason = Reason(
            code="no_counter",
            sentence="The energy is a model's estimate, not a count of joules.",
            fix="use a GPU with an energy counter (Volta or later) and energy.backend: nvml",
        )
        return Verdict(state="estimated", reasons=[reason])
    return Verdict(state="valid")


def _without_energy(evidence: Evidence) -> Verdict:
    text = evidence.energy_reason or "no energy source"
    for code, fix in NO_JOULES.items():
        if code in text:
            return Verdict(state="invalid", reasons=[Reason(code=code, sentence=text, fix=fix)])
    fix = "run on an NVIDIA GPU, or choose another energy.backend"
    return Verdict(state="unmeasured", reasons=[Reason(code="no_energy", sentence=text, fix=fix)])


def _impossible(energy_j: float) -> Verdict:
    """No board draws nothing, so such joules measure nothing, whatever their source."""
    sentence = f"The source gave {energy_j:g} J for the window, and every board draws some."
    fix = "choose another energy.backend; with --calibration, check its offset_w"
    return Verdict(state="unmeasured", reasons=[Reason(code="no_energy", sentence=sentence, fix=fix)])


def warnings(evidence: Evidence) -> list[str]:
    """Conditions that leave the verdict alone, as `code: what; fix`."""
    found = [f for rule in RULES if (f := rule(evidence)) is not None and not f.invalid]
    return [f"{f.code}: {f.sentence[0].lower()}{f.sentence[1:]}; {f.fix}" for f in found]


def sum_problem(parts_j: dict[str, float] | None, total_j: float | None) -> str | None:
    """Why joules per device and their total cannot both be true; None if they can."""
    if parts_j is None or total_j is None:
        return None
    added = sum(parts_j.values())
    if abs(added - total_j) <= SUM_TOLERANCE * max(abs(total_j), 1.0):
        return None
    return (
        f"energy_per_device_j adds up to {added:g} J, energy_total_j is {total_j:g} J: "
        "a device is missing or not this run's"
    )
