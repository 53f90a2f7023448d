"""Brings engine and GPU into the state of the work before the window: warm-up passes, then settling under load."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from llenergymeasure.core.config import ExperimentConfig
from llenergymeasure.core.contracts import EnergyBackend, InferenceEngine, Request
from llenergymeasure.core.result import SettleResult, WarmupResult
from llenergymeasure.gpu_settings import Thermometer

Progress = Callable[[str, int, int], None]

SETTLE_LEAST_S, SETTLE_LOOK_S = 20.0, 10.0
SETTLE_CHECK_S = 1.0  # between looks at the recording, which the GPU waits for
SETTLE_POWER = 0.005  # largest change of mean power that counts as settled, a fraction
SETTLE_TEMPERATURE_C = 2.0  # likewise of the temperature within 20 s
NOT_WRITTEN_S = 0.5  # the newest ticks are not recorded yet


def warm_up(
    config: ExperimentConfig, engine: InferenceEngine, batches: Sequence[tuple[Request, ...]], progress: Progress
) -> WarmupResult | None:
    """Run the batch with the longest prompts again and again.

    `converged` is None where that was not tested, as without `warmup.convergence_detection`.
    """
    w = config.warmup
    if not w.enabled:
        return None
    longest = max(batches, key=lambda b: max(len(r.token_ids) for r in b))
    short = tuple(Request(r.index, r.token_ids, min(w.max_output_tokens, r.max_new_tokens)) for r in longest)
    latencies: list[float] = []
    limit = max(w.n_warmup, w.max_prompts) if w.convergence_detection else w.n_warmup
    while len(latencies) < limit and not (
        len(latencies) >= w.n_warmup and _cv(latencies, w.window_size) < w.cv_threshold
    ):
        generation = engine.generate(short)
        latencies.append(1e3 * (generation.end_s - generation.start_s))
        progress("warmup", len(latencies), limit)
    cv = _cv(latencies, w.window_size)
    return WarmupResult(
        converged=cv < w.cv_threshold if w.convergence_detection else None,
        final_cv=cv if cv != float("inf") else None,
        iterations_completed=len(latencies),
        target_cv=w.cv_threshold,
        max_prompts=w.max_prompts,
        latencies_ms=latencies,
    )


def _cv(latencies: Sequence[float], size: int) -> float:
    """Coefficient of variation of the last `size` values; infinite while there are fewer."""
    last = latencies[-size:]
    return stdev(last) / fmean(last) if len(last) == size else float("inf")


@dataclass(frozen=True)
class Settling:
    """How the settling went, what the result must say of it, and how fast the work was, pieces per second."""

    record: SettleResult
    warnings: tuple[str, ...] = ()


def settle(
    config: ExperimentConfig, work: Callable[[], object], source: EnergyBackend | None, read: Thermometer
) -> Settling:
    """Bring the GPU to the temperature and power of the work itself; skipped without a GPU or without warm-up.

    Args:
        config: How long and in which way.
        work: Runs a piece of the measured work, at most a few seconds of it.
        source: Running; None without a GPU.
        read: Gives the GPUs' temperatures.

    """
    floor_s = config.warmup.thermal_floor_seconds
    if source is None or not config.warmup.enabled:
        return Settling(SettleResult(reason="no GPU" if source is None else "warmup.enabled is false"))
    if floor_s == 0:
        text = "thermal_floor_seconds is 0; the first seconds of load draw less power than later ones"
        return Settling(SettleResult(reason="warmup.thermal_floor_seconds is 0"), (f"no_settling: {text}",))
    if config.warmup.thermal_wait == "fixed":
        time.sleep(floor_s)
        return Settling(SettleResult(seconds=floor_s, reason="fixed: idle for exactly warmup.thermal_floor_seconds"))
    return _settle_under_load(work, source, read, floor_s)


def _settle_under_load(
    work: Callable[[], object], source: EnergyBackend, read: Thermometer, floor_s: float
) -> Settling:
    start_s = looked_s = time.monotonic()
    warmth = [(start_s, read())]
    drift: float | None = None
    while True:
        work()
        now_s = time.monotonic()
        spent_s = now_s - start_s
        if now_s - looked_s >= SETTLE_CHECK_S or spent_s >= floor_s:
            looked_s = now_s
            warmth.append((now_s, read()))
            moved_c = _temperature_range_c([t for at_s, t in warmth if at_s >= now_s - 2 * SETTLE_LOOK_S])
            drift = _power_drift(source) if spent_s >= SETTLE_LEAST_S else None
            level = drift is not None and abs(drift) <= SETTLE_POWER
            if level and (moved_c is None or moved_c <= SETTLE_TEMPERATURE_C):
                return Settling(_seen(spent_s, drift, moved_c, settled=True))
            if spent_s >= floor_s:
                return Settling(_seen(spent_s, drift, moved_c, settled=False), (_unsettled(drift, moved_c, floor_s),))


def _seen(spent_s: float, drift: float | None, moved_c: float | None, *, settled: bool) -> SettleResult:
    reason = "power and temperature were level" if settled else "warmup.thermal_floor_seconds was reached"
    return SettleResult(
        settled=settled, seconds=spent_s, power_drift=drift, temperature_change_c=moved_c, reason=reason
    )


def _unsettled(drift: float | None, moved_c: float | None, floor_s: float) -> str:
    power = "its power could not be read" if drift is None else f"power moved by {100 * drift:+.1f} % in 10 s"
    warmth = "" if moved_c is None else f", temperature by {moved_c:g} °C in 20 s"
    return f"not_settled: {power}{warmth} after {floor_s:g} s under load; raise warmup.thermal_floor_seconds"


def _temperature_range_c(seen: Sequence[Mapping[str, float]]) -> float | None:
    """Largest movement of any GPU's temperature; None where none could be read."""
    by_gpu: dict[str, list[float]] = {}
    for reading in seen:
        for uuid, celsius in reading.items():
            by_gpu.setdefault(uuid, []).append(celsius)
    return max((max(t) - min(t) for t in by_gpu.values()), default=None)


def _power_drift(source: EnergyBackend) -> float | None:
    """Mean power of the last 10 s against the 10 s before, as a fraction; None while ticks are missing."""
    now_s = time.monotonic() - NOT_WRITTEN_S
    late = source.mean_power_w(now_s - SETTLE_LOOK_S, now_s)
    early = source.mean_power_w(now_s - 2 * SETTLE_LOOK_S, now_s - SETTLE_LOOK_S)
    return late / early - 1 if late and early else None
