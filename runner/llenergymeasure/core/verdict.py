"""Whether a measured energy may be believed: valid, invalid, estimated or unmeasured, each reason with its fix."""

import math
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

State = Literal["valid", "invalid", "estimated", "unmeasured"]

MIN_WINDOW_S = 5.0
SHORT_WINDOW_S = 10.0
MAX_THROTTLED_SHARE = 0.05
IMPRECISE, TOO_IMPRECISE = 0.02, 0.05
RUN_TO_RUN_ASSUMED = 0.01  # standard deviation between fresh processes until a study has measured it
GAIN_LIMIT = 0.10  # uncalibrated boards read -9.5 ... +11 % (measurement.md §1)
T_975 = 1.96  # both terms have many degrees of freedom


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
    throttled_share: float = 0.0
    dummy_values: bool = False
    allow_dummy: bool = False


def relative_uncertainty(edge_std_j: float | None, energy_j: float | None) -> tuple[float, float, float] | None:
    """(edge, comparison, absolute) of one run as fractions, the last two 95 % half-widths (measurement.md §5)."""
    if edge_std_j is None or not energy_j:
        return None
    edge = edge_std_j / energy_j
    comparison = T_975 * math.hypot(edge, RUN_TO_RUN_ASSUMED)
    return edge, comparison, math.hypot(0.95 * GAIN_LIMIT, comparison)


INVALID_CODES = {
    "counter_reset": "the driver was reloaded or the GPU was reset; run again",
    "sample_gap": "the machine was too busy to read the sensor; free a core and run again",
}


def judge(evidence: Evidence) -> Verdict:
    """Give the verdict; the first reasons are the weightiest."""
    if evidence.energy_j is None:
        return _without_energy(evidence)
    reasons = [*_window(evidence), *_precision(evidence), *_conditions(evidence)]
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
    for code, fix in INVALID_CODES.items():
        if code in text:
            return Verdict(state="invalid", reasons=[Reason(code=code, sentence=text, fix=fix)])
    fix = "run on an NVIDIA GPU, or choose another energy.backend"
    return Verdict(state="unmeasured", reasons=[Reason(code="no_energy", sentence=text, fix=fix)])


def _window(evidence: Evidence) -> list[Reason]:
    if evidence.window_s >= MIN_WINDOW_S:
        return []
    sentence = f"The window lasted {evidence.window_s:.2f} s; below {MIN_WINDOW_S:g} s the edges dominate."
    return [Reason(code="window_too_short", sentence=sentence, fix="raise measurement.min_duration_seconds or n")]


def _precision(evidence: Evidence) -> list[Reason]:
    u = evidence.relative_comparison
    if u is None or u <= TOO_IMPRECISE:
        return []
    sentence = f"The uncertainty of a comparison is {100 * u:.1f} %, above {100 * TOO_IMPRECISE:g} %."
    return [Reason(code="imprecise", sentence=sentence, fix="measure a longer window")]


def _conditions(evidence: Evidence) -> list[Reason]:
    reasons = []
    if evidence.throttled_share > MAX_THROTTLED_SHARE:
        share = f"{100 * evidence.throttled_share:.0f} %"
        reasons.append(
            Reason(
                code="throttled",
                sentence=f"The GPU was slowed by heat or power brake during {share} of the window.",
                fix="improve cooling or lower the load, then run again",
            )
        )
    if evidence.dummy_values and not evidence.allow_dummy:
        reasons.append(
            Reason(
                code="unrealistic_values",
                sentence="Weights or prompts are constant; power depends on operand values by about 40 %.",
                fix="use real weights and varied prompts, or set measurement.allow_dummy: true",
            )
        )
    return reasons


def warnings(evidence: Evidence) -> list[str]:
    """Conditions that leave the verdict alone, as `code: what and fix`."""
    found = []
    if evidence.energy_j is not None and MIN_WINDOW_S <= evidence.window_s < SHORT_WINDOW_S:
        found.append(f"short_window: the window lasted {evidence.window_s:.1f} s; use at least {SHORT_WINDOW_S:g} s")
    u = evidence.relative_comparison
    if u is not None and IMPRECISE < u <= TOO_IMPRECISE:
        found.append(f"imprecise: the uncertainty of a comparison is {100 * u:.1f} %; measure a longer window")
    if 0 < evidence.throttled_share <= MAX_THROTTLED_SHARE:
        found.append(
            f"throttled: heat or power brake slowed the GPU in {100 * evidence.throttled_share:.1f} % of the window; "
            "improve cooling"
        )
    return found
