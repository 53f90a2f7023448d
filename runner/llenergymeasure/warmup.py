"""Brings engine and GPU into the state of the work before the window: warm-up passes, then settling under load."""

import time
from collections.abc import Callable, Sequence
from itertools import cycle
from statistics import fmean, stdev

from llenergymeasure.core.config import ExperimentConfig
from llenergymeasure.core.contracts import EnergyBackend, InferenceEngine, Request
from llenergymeasure.core.result import WarmupResult

Progress = Callable[[str, int, int], None]

SETTLE_LEAST_S, SETTLE_LOOK_S = 20.0, 10.0
SETTLE_CHECK_S = 1.0  # between looks at the recording, which the GPU waits for
SETTLE_POWER = 0.005  # largest change of mean power that counts as settled, a fraction


def warm_up(
    config: ExperimentConfig, engine: InferenceEngine, batches: Sequence[tuple[Request, ...]], progress: Progress
) -> WarmupResult | None:
    """Run the batch with the longest prompts again and again."""
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
        converged=not w.convergence_detection or cv < w.cv_threshold,
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


def settle(
    config: ExperimentConfig,
    engine: InferenceEngine,
    source: EnergyBackend | None,
    batches: Sequence[tuple[Request, ...]],
) -> list[str]:
    """Bring the GPU to the temperature and power of the work itself; skipped without a GPU or without warm-up."""
    floor_s = config.warmup.thermal_floor_seconds
    if source is None or not config.warmup.enabled:
        return []
    if floor_s == 0:
        return ["no_settling: thermal_floor_seconds is 0; the first seconds of load draw less power than later ones"]
    start_s = time.monotonic()
    if config.warmup.thermal_wait == "fixed":
        time.sleep(floor_s)
        return []
    drift: float | None = None
    looked_s = 0.0
    for batch in cycle(batches):
        engine.generate(batch)
        spent_s = time.monotonic() - start_s
        if spent_s >= max(SETTLE_LEAST_S, 2 * SETTLE_LOOK_S) and spent_s - looked_s >= SETTLE_CHECK_S:
            looked_s = spent_s
            drift = _power_drift(source)
            if drift is not None and abs(drift) <= SETTLE_POWER:
                return []
        if spent_s >= floor_s:
            break
    moved = "its power could not be read" if drift is None else f"power moved by {100 * drift:+.1f} % in 10 s"
    return [f"not_settled: {moved} after {floor_s:g} s under load; raise warmup.thermal_floor_seconds"]


def _power_drift(source: EnergyBackend) -> float | None:
    """Mean power of the last 10 s against the 10 s before, as a fraction; None while ticks are missing."""
    now_s = time.monotonic() - 0.5  # the newest ticks are not written yet
    late = source.mean_power_w(now_s - SETTLE_LOOK_S, now_s)
    early = source.mean_power_w(now_s - 2 * SETTLE_LOOK_S, now_s - SETTLE_LOOK_S)
    return late / early - 1 if late and early else None
