"""Says in words what the joules of one or several runs rest on: uncertainty, idle power, sensor, second readings. Pure.

For terminal and page alike. Figures of several runs are ranges, or the worst where only that matters.
"""

from collections.abc import Callable, Iterable, Sequence

from llenergymeasure.core.result import ExperimentResult, Sensor, SettleResult
from llenergymeasure.core.uncertainty import GAIN_LIMIT, Uncertainty
from llenergymeasure.wording import DASH, number, percent, signed_percent

Results = Sequence[ExperimentResult]

LEAST_TOLD = 1e-6  # a smaller part of an uncertainty is not worth a word


def span(values: Sequence[float], unit: str) -> str:
    """One figure with its unit, or the least and the largest."""
    low, high = min(values), max(values)
    text = number(low, 3) if number(low, 3) == number(high, 3) else f"{number(low, 3)} to {number(high, 3)}"
    return f"{text} {unit}".rstrip()


def listed(values: Iterable[object]) -> str:
    """Different values, each once."""
    return ", ".join(dict.fromkeys(str(v) for v in values if v is not None))


def uncertainty(results: Results) -> str:
    """Both 95 % half-widths of the joules per output token; of several runs the widest."""
    results = [r for r in results if r.uncertainty.comparison is not None]
    known = [r.uncertainty for r in results]
    if not known:
        return DASH
    up_to = "up to " if len(known) > 1 else ""
    text = f"{up_to}±{percent(_most(known, lambda u: u.comparison))} (95 %) compared with other runs on this GPU"
    if any(u.absolute is not None for u in known):
        text += f"; {up_to}±{percent(_most(known, lambda u: u.absolute))} absolute, because {_gain(results)}"
    return text


def _most(known: Sequence[Uncertainty], get: Callable[[Uncertainty], float | None]) -> float:
    return max((v for u in known if (v := get(u)) is not None), default=0.0)


def _gain(results: Results) -> str:
    limits = [r.uncertainty.gain_limit for r in results]
    limit = f"±{percent(max(GAIN_LIMIT if a is None else a for a in limits))}"
    calibrated, gpus = calibrated_gpus(results)
    if 0 < calibrated < gpus:
        return f"the gain of {calibrated} of {gpus} sensors is calibrated ({limit})"
    return f"the sensor's gain is {'calibrated' if calibrated else 'not calibrated'} ({limit})"


def calibrated_gpus(results: Results) -> tuple[int, int]:
    """How many GPUs of these runs were calibrated in all of them, and how many there are."""
    used = [(u, (r.sensors or {}).get(u)) for r in results for u in r.energy_per_device_j or r.sensors or {}]
    without = {u for u, s in used if s is None or s.gain is None}
    gpus = {u for u, _ in used}
    return len(gpus - without), len(gpus)


def budget(results: Results) -> str:
    """The parts of that uncertainty as standard uncertainties; what is nothing is left out."""
    known = [r.uncertainty for r in results if r.uncertainty.comparison is not None]
    names: dict[str, Callable[[Uncertainty], float | None]] = {
        "edges": lambda u: u.edge,
        "tokens at the edges": lambda u: u.tokens,
        "mix of work": lambda u: u.work,
        "run to run": lambda u: u.between_runs,
    }
    parts = [f"{name} {percent(most)}" for name, get in names.items() if (most := _most(known, get)) > LEAST_TOLD]
    sources = listed(u.between_runs_source for u in known)
    return ", ".join(parts) + (f" ({sources})" if sources else "") if parts else DASH


def idle(results: Results) -> str:
    """Every idle power that is known: the one that is subtracted, and that of the loaded engine while it waits."""
    known = [(r, r.baseline_power_w) for r in results if r.baseline_power_w is not None]
    parts = []
    if known:
        kinds = listed(f"{r.energy_breakdown.baseline_kind}, {r.energy_breakdown.baseline_method}" for r, _ in known)
        doubts = [w for r, _ in known if (w := r.energy_breakdown.baseline_std_uncertainty_w) is not None]
        doubt = f" with a standard uncertainty of {span(doubts, 'W')}" if doubts else ""
        parts.append(f"{span([w for _, w in known], 'W')} ({kinds}){doubt}")
    loaded = [r.loaded_idle_power_w for r in results if r.loaded_idle_power_w is not None]
    if loaded:
        parts.append(f"{span(loaded, 'W')} with the engine loaded and waiting")
    return "; ".join(parts) or DASH


def second_reading(results: Results) -> str:
    """By other sensors, as ratios to the counter, and what that cannot show."""
    checks = [r.cross_check for r in results if r.cross_check and r.cross_check.ratio is not None]
    if not checks:
        return DASH
    by_name: dict[str, list[float]] = {}
    for check in checks:
        for name, ratio in (check.ratios or {check.source: check.ratio or 1.0}).items():
            by_name.setdefault(name, []).append(ratio)
    ratios = ", ".join(f"{name} {_ratios(values)}" for name, values in by_name.items())
    return f"{ratios} times the counter; {listed(c.cannot_see for c in checks)}"


def _ratios(values: Sequence[float]) -> str:
    low, high = f"{min(values):.4f}", f"{max(values):.4f}"
    return low if low == high else f"{low} to {high}"


def sensor(results: Results) -> str:
    """The counter's pace and jitter, and how windows were cut from its ticks."""
    found = _sensors(results)
    parts = []
    if periods := [1e3 * s.period_s for s in found if s.period_s is not None]:
        parts.append(f"the counter ticks every {span(periods, 'ms')}")
    if scatter := _scatter(found):
        parts.append(f"give or take {scatter}")
    text = ", ".join(parts)
    edges = listed(s.edges for s in found)
    return "; ".join(p for p in (text, f"{edges} edges" if edges else "") if p) or DASH


def _scatter(found: Sequence[Sensor]) -> str:
    """Jitters that were measured, and the limit of those that the readings hide; nothing where none is known."""
    measured = [1e3 * s.jitter_s for s in found if s.jitter_s is not None and not s.jitter_hidden]
    hidden = [1e3 * s.jitter_s for s in found if s.jitter_s is not None and s.jitter_hidden]
    limit = f"less than {number(max(hidden), 3)} ms" if hidden else ""
    if not measured:
        return limit
    return span(measured, "ms") + (f", {limit} where the readings hide it" if limit else "")


def _sensors(results: Results) -> list[Sensor]:
    return [s for r in results for s in (r.sensors or {}).values()]


def calibration(results: Results) -> str:
    """The corrections that were applied, and the joules before them where it is one run."""
    found = [s for s in _sensors(results) if s.gain is not None]
    if not found:
        return DASH
    text = f"gain {span([s.gain for s in found if s.gain is not None], '')}"
    text += f", offset {span([s.offset_w or 0.0 for s in found], 'W')}"
    raw = [r.energy_uncalibrated_j for r in results if r.energy_uncalibrated_j is not None]
    return f"{text}; {number(raw[0])} J as read" if len(results) == 1 and raw else text


def power_cap(results: Results) -> str:
    """How much of the window the power limit held the clocks down, which is a condition and no fault."""
    capped = [r.conditions for r in results if r.conditions.power_cap_share]
    if not capped:
        return DASH
    limits = [c.power_limit_w for c in capped if c.power_limit_w is not None]
    where = f" at a limit of {span(limits, 'W')}" if limits else ""
    shares = [100 * c.power_cap_share for c in capped if c.power_cap_share is not None]
    return f"{span(shares, '%')} of the window{where}"


def state(results: Results) -> str:
    """How warm and how fast the GPU was on average inside the window: the hottest and the slowest of several GPUs."""
    warmth = [r.conditions.temperature_c for r in results if r.conditions.temperature_c is not None]
    clocks = [r.conditions.sm_clock_mhz for r in results if r.conditions.sm_clock_mhz is not None]
    parts = [span([round(t) for t in warmth], "°C")] if warmth else []
    parts += [f"SM clock {span([round(c) for c in clocks], 'MHz')}"] if clocks else []
    return ", ".join(parts) or DASH


def drifts(results: Results) -> str:
    """Last third of the window against the first, the worst of several runs."""
    names = {"power": "power_drift", "batches per second": "pace_drift", "clocks": "clock_drift"}
    parts = []
    for word, field in names.items():
        values = [v for r in results if (v := getattr(r.conditions, field)) is not None]
        if values:
            parts.append(f"{word} {signed_percent(max(values, key=abs), 1)}")
    return ", ".join(parts) or DASH


def settling(results: Results) -> str:
    """Whether the GPU had reached the state of the work before the window, how long that took, and what still moved."""
    found = [r.settle for r in results if r.settle is not None]
    kinds = {
        "settled after {} under load": [s for s in found if s.settled],
        "not settled after {} under load": [s for s in found if s.settled is False],
        "idle for {}": [s for s in found if s.settled is None and s.seconds > 0],
    }
    parts = [
        _of(some, found) + text.format(span([s.seconds for s in some], "s")) for text, some in kinds.items() if some
    ]
    without = [s for s in found if s.settled is None and s.seconds == 0]
    parts += [f"{_of(without, found)}none ({listed(s.reason for s in without)})"] if without else []
    return "; ".join([*parts, *_still_moved(found)]) or DASH


def _of(some: Sequence[SettleResult], found: Sequence[SettleResult]) -> str:
    return "" if len(some) == len(found) else f"{len(some)} of {len(found)} runs "


def _still_moved(found: Sequence[SettleResult]) -> list[str]:
    """Power and temperature at the end of the settling, the worst of several runs."""
    power = [s.power_drift for s in found if s.power_drift is not None]
    warmth = [s.temperature_change_c for s in found if s.temperature_change_c is not None]
    parts = [f"power {signed_percent(max(power, key=abs), 1)} in 10 s"] if power else []
    parts += [f"temperature {max(warmth):g} °C in 20 s"] if warmth else []
    return [f"at its end {', '.join(parts)}"] if parts else []
