"""Splits the energy of static batches into idle, prefill and decode, from probes that do one of them at a time.

Each tick of the counter covers known seconds of each phase; its energy less the loaded idle power is regressed on these
seconds (measurement.md §4). The idle power is measured and never fitted: on steady traffic a fitted one absorbs
whatever the phases have in common. A tick tells of the load a lag earlier, so all ticks are shifted by it first. The
powers become joules per token through the seconds per token that the probes took, and the main window, which has
another mix of phases and took no part in the fit, must come out of them (closure).
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from llenergymeasure.core.energy_series import EnergySeries
from llenergymeasure.core.least_squares import Matrix, least_squares
from llenergymeasure.core.records import Record

LAG_S = 0.012
"""How far the counter lags the load where no self-test has told: 12 ms, H100 80GB HBM3, driver 580 (§1)."""

MAX_CONDITION = 30.0
MAX_RELATIVE_ERROR = 0.10
MAX_CLOSURE = 0.10
MAX_GAP_TICKS = 3
CONTEXT_RATIO = 2.0
"""From this ratio of contexts on, what a decode step costs is taken to depend on the context."""

Phase = Literal["prefill", "decode", "decode_long"]


@dataclass(frozen=True)
class Span:
    """One phase of one batch.

    `tokens` are the useful ones that came of it, prompt tokens in a prefill, output tokens in a decode; 0 where only
    the phase's power counts. `context` is the mean number of tokens that one of these tokens attended to.
    """

    phase: Phase
    start_s: float
    end_s: float
    tokens: int
    context: float = 0.0


@dataclass(frozen=True)
class Segment:
    """A stretch of work of one kind without a pause: its batches' phases in order of time, gaps between them."""

    name: str
    start_s: float
    end_s: float
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class Board:
    """One GPU: what its counter showed and the power that it draws with the engine loaded and waiting, W."""

    gpu_uuid: str
    series: EnergySeries
    idle_power_w: float | None


@dataclass(frozen=True)
class Mix:
    """What the main window did and what it cost; `decode_context` is the mean context of its decoded tokens."""

    start_s: float
    end_s: float
    prefill_tokens: int
    decode_tokens: int
    decode_context: float
    energy_j: float | None
    concurrency: int


class PhaseSplit(Record):
    """Joules by phase, all above the loaded idle power; null together with a `reason`.

    `energy_per_decode_token_j` holds at this `concurrency` and `decode_context` only; the context raises it by
    `energy_per_decode_and_context_token_j` per token. Errors are relative standard errors of the fit. `closure` is the
    model's energy of the main window over what was measured there, less 1; the three shares are of the model's energy
    and add up to 1. A request's first output token belongs to its prefill. `lag_s` is the shift of the ticks, with
    `lag_reason` where it is the documented one instead of what a self-test found.
    """

    energy_per_prefill_token_j: float | None = None
    energy_per_decode_token_j: float | None = None
    energy_per_decode_and_context_token_j: float | None = None
    idle_power_w: float | None = None
    prefill_share: float | None = None
    decode_share: float | None = None
    idle_share: float | None = None
    closure: float | None = None
    prefill_relative_error: float | None = None
    decode_relative_error: float | None = None
    condition_number: float | None = None
    concurrency: int | None = None
    decode_context: float | None = None
    probe_ticks: int | None = None
    lag_s: float | None = None
    lag_reason: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Power:
    """Power of a phase above loaded idle and its standard error, W."""

    watts: float
    error: float


@dataclass(frozen=True)
class Fit:
    """What a regression gave; `powers` is empty where a phase cannot be told from the others."""

    powers: dict[Phase, Power]
    condition_number: float
    rows: int


def unidentified(why: str) -> PhaseSplit:
    """A split without numbers."""
    return PhaseSplit(reason=f"phase_split_unidentified: {why}")


def split(segments: Sequence[Segment], mix: Mix, boards: Sequence[Board], *, lag_s: float) -> PhaseSplit:
    """Give joules per prefilled and per decoded token, or the reason why they cannot be told.

    Args:
        segments: The probes, outside the main window.
        mix: The main window.
        boards: Every GPU of the run; what they draw is added up.
        lag_s: Time by which a tick lags the load, s.

    """
    if mix.energy_j is None:
        return unidentified("the window's energy is unknown")
    if not boards:
        return unidentified("no GPU's counter was recorded")
    probed = {span.phase for s in segments for span in s.spans if span.tokens}
    for phase in ("prefill", "decode"):
        if phase not in probed:
            return unidentified(f"there was no probe of {phase}")
    for board in boards:
        if (problem := _problem(board, segments, mix)) is not None:
            return unidentified(problem)
    fits = [fit(b, segments, lag_s=lag_s) for b in boards]
    found = PhaseSplit(
        idle_power_w=sum(b.idle_power_w or 0.0 for b in boards),
        condition_number=_finite(max(f.condition_number for f in fits)),
        concurrency=mix.concurrency,
        decode_context=mix.decode_context if mix.decode_tokens else None,
        probe_ticks=min(f.rows for f in fits),
        lag_s=lag_s,
    )
    phases = _phases(segments)
    if any(f.condition_number > MAX_CONDITION for f in fits) or any(not f.powers for f in fits):
        return _with_reason(found, f"the probes do not tell the phases apart (condition number > {MAX_CONDITION:g})")
    powers = {p: _added([f.powers[p] for f in fits]) for p in phases}
    return _judged(found, segments, mix, powers)


def fit(board: Board, segments: Sequence[Segment], *, lag_s: float) -> Fit:
    """Regress the energies of the ticks that lie wholly inside the segments on the seconds of each phase."""
    phases = _phases(segments)
    seconds, energies, breaks = _equations(board, segments, phases, lag_s)
    solved = least_squares(seconds, energies)
    if solved is None:
        return Fit({}, math.inf, len(energies))
    wider = math.sqrt(_inflation(solved.residuals, breaks))
    powers = {p: Power(solved.values[i], solved.errors[i] * wider) for i, p in enumerate(phases)}
    return Fit(powers, solved.condition_number, len(energies))


def _problem(board: Board, segments: Sequence[Segment], mix: Mix) -> str | None:
    """Why this GPU's recording cannot be used."""
    if board.series.went_back:
        return f"{board.gpu_uuid}: the counter went back"
    if board.idle_power_w is None:
        return f"{board.gpu_uuid}: the power with the engine loaded and waiting is unknown"
    for name, start_s, end_s in [("window", mix.start_s, mix.end_s), *((s.name, s.start_s, s.end_s) for s in segments)]:
        missing = board.series.interior_gap_ticks(start_s, end_s)
        if missing > MAX_GAP_TICKS:
            return f"{board.gpu_uuid}: {missing} ticks in a row are missing in {name}"
    return None


def _phases(segments: Sequence[Segment]) -> list[Phase]:
    return sorted({span.phase for s in segments for span in s.spans}, reverse=True)


def _equations(
    board: Board, segments: Sequence[Segment], phases: Sequence[Phase], lag_s: float
) -> tuple[Matrix, list[float], set[int]]:
    """Seconds of each phase and joules above idle, one line per tick; `breaks` are lines that begin a segment."""
    columns: Matrix = []
    energies: list[float] = []
    breaks: set[int] = set()
    ticks = board.series.ticks
    times = [t_s - lag_s for t_s in board.series.times_s]
    for segment in segments:
        breaks.add(len(columns))
        ends = [s.end_s for s in segment.spans]
        first = bisect_right(times, segment.start_s)
        for k in range(first, bisect_right(times, segment.end_s) - 1):
            seconds = dict.fromkeys(phases, 0.0)
            for span in segment.spans[bisect_right(ends, times[k]) :]:
                if span.start_s >= times[k + 1]:
                    break
                seconds[span.phase] += min(span.end_s, times[k + 1]) - max(span.start_s, times[k])
            columns.append([seconds[p] for p in phases])
            joules = ticks[k + 1].joules - ticks[k].joules
            energies.append(joules - (board.idle_power_w or 0.0) * (times[k + 1] - times[k]))
    return columns, energies, breaks


def _inflation(rest: Sequence[float], breaks: set[int]) -> float:
    """By how much slow changes of power make the variance of a mean larger: (1 + r)/(1 - r), never below 1.

    r is the residuals' correlation from one tick to the next; neighbouring seconds of a GPU are no repetitions (§1).
    """
    total = math.fsum(r * r for r in rest)
    if total == 0:
        return 1.0
    shared = math.fsum(rest[k - 1] * rest[k] for k in range(1, len(rest)) if k not in breaks)
    r = min(max(shared / total, 0.0), 0.99)
    return (1 + r) / (1 - r)


def _judged(found: PhaseSplit, segments: Sequence[Segment], mix: Mix, powers: dict[Phase, Power]) -> PhaseSplit:
    """Turn powers into joules per token and hold them against the main window."""
    spans = [span for s in segments for span in s.spans if span.tokens]
    prefill = _per_token(spans, "prefill", powers)
    decode, slope = _decode_per_token(spans, powers, mix)
    errors = {p: power.error / power.watts if power.watts > 0 else math.inf for p, power in powers.items()}
    decode_error = max(e for p, e in errors.items() if p != "prefill")
    found = found.model_copy(
        update={"prefill_relative_error": _finite(errors["prefill"]), "decode_relative_error": _finite(decode_error)}
    )
    worst = max(errors.values())
    if worst > MAX_RELATIVE_ERROR:
        said = f"{100 * worst:.0f} %" if math.isfinite(worst) else "unbounded: a phase draws no more than idle"
        return _with_reason(found, f"standard error {said} > {100 * MAX_RELATIVE_ERROR:.0f} %")
    assert mix.energy_j is not None
    assert found.idle_power_w is not None
    parts = (found.idle_power_w * (mix.end_s - mix.start_s), prefill * mix.prefill_tokens, decode * mix.decode_tokens)
    closure = sum(parts) / mix.energy_j - 1
    found = found.model_copy(update={"closure": closure})
    if abs(closure) > MAX_CLOSURE:
        return _with_reason(
            found, f"it predicts {100 * closure:+.0f} % of the window's energy beside what was measured"
        )
    idle, first, rest = (part / sum(parts) for part in parts)
    return found.model_copy(
        update={
            "energy_per_prefill_token_j": prefill,
            "energy_per_decode_token_j": decode,
            "energy_per_decode_and_context_token_j": slope,
            "idle_share": idle,
            "prefill_share": first,
            "decode_share": rest,
        }
    )


def _per_token(spans: Sequence[Span], phase: Phase, powers: dict[Phase, Power]) -> float:
    own = [s for s in spans if s.phase == phase]
    return powers[phase].watts * math.fsum(s.end_s - s.start_s for s in own) / sum(s.tokens for s in own)


def _decode_per_token(spans: Sequence[Span], powers: dict[Phase, Power], mix: Mix) -> tuple[float, float | None]:
    """Joules of a decoded token at the main window's context, and by how much one token of context raises them."""
    short = _per_token(spans, "decode", powers)
    if "decode_long" not in powers:
        return short, None
    near, far = (_mean_context(spans, p) for p in ("decode", "decode_long"))
    slope = (_per_token(spans, "decode_long", powers) - short) / (far - near)
    return short + slope * (mix.decode_context - near), slope


def _mean_context(spans: Sequence[Span], phase: str) -> float:
    own = [s for s in spans if s.phase == phase]
    return math.fsum(s.context * s.tokens for s in own) / sum(s.tokens for s in own)


def _added(powers: Sequence[Power]) -> Power:
    return Power(math.fsum(p.watts for p in powers), math.hypot(*(p.error for p in powers)))


def _with_reason(found: PhaseSplit, why: str) -> PhaseSplit:
    return found.model_copy(update={"reason": unidentified(why).reason})


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
