"""What a study's repeated results say: statistics of each configuration, and what sets configurations apart."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from llenergymeasure.core.comparison import (
    ADJUSTED,
    ENERGY,
    LATENCY,
    LOWER_IS_BETTER,
    QuantityComparison,
    Shares,
    compare_all,
)
from llenergymeasure.core.result import JUDGED, ExperimentResult, ExperimentStatistics, quantity
from llenergymeasure.core.statistics import Statistic, statistic
from llenergymeasure.core.uncertainty import IdleShare, mean_half_width

STATISTICS_OVER = (
    "energy_per_output_token_j",
    "energy_adjusted_per_output_token_j",
    "tokens_per_second",
    "mean_power_w",
    "duration_s",
    "latency.mean_ms",
    "latency.p50_ms",
    "latency.p95_ms",
)

COMPARED = {**LOWER_IS_BETTER, ADJUSTED: True}
"""The quantities that a study compares, and in which direction."""

TIMED = {
    "true_streaming": "a streamed request",
    "per_request_batch": "a batch of requests",
    "per_request": "a request among others",
    "proportional_estimate": "a request's estimated share of a batch",
}
"""What one latency is the time of, by its mode."""

Cycles = Mapping[int, ExperimentResult]
"""Results of one configuration by cycle."""


def over_cycles(config_hash: str, summary: str, results: Iterable[ExperimentResult]) -> ExperimentStatistics:
    """Statistics of one experiment's results, one per cycle."""
    found = list(results)
    verdicts: dict[str, int] = {}
    for result in found:
        verdicts[result.verdict.state] = verdicts.get(result.verdict.state, 0) + 1
    believed = [r for r in found if r.verdict.state != "invalid"]
    columns = {
        name: [v for r in (believed if name in JUDGED else found) if (v := quantity(r, name)) is not None]
        for name in STATISTICS_OVER
    }
    return ExperimentStatistics(
        config_hash=config_hash,
        summary=summary,
        cycles_completed=len(found),
        verdicts=verdicts,
        statistics={k: s for k, v in columns.items() if (s := _statistic(k, v, believed)) is not None},
    )


def _statistic(name: str, values: Sequence[float], results: Sequence[ExperimentResult]) -> Statistic | None:
    """Statistic of a quantity; adjusted joules have the error of a baseline that their runs share beside their spread.

    That error is the same in every cycle: u² = s²/n + u_sys² (measurement.md §5).
    """
    found, idle = statistic(values), idle_share(results) if name == ADJUSTED else None
    if found is None or found.n < 2 or idle is None:
        return found
    return found.model_copy(update={"half_width_95": mean_half_width(values, abs(found.mean) * idle.systematic)})


def idle_share(results: Iterable[ExperimentResult]) -> IdleShare | None:
    """How much the adjusted joules of these runs hang on their idle powers; None where one of them does not tell."""
    adjusted = [r for r in results if r.energy_adjusted_j is not None]
    known = [
        (r.duration_s / r.energy_adjusted_j, b.baseline_std_uncertainty_w, b.baseline_timestamp)
        for r in adjusted
        if (b := r.energy_breakdown).baseline_std_uncertainty_w is not None
        and b.baseline_timestamp is not None
        and r.energy_adjusted_j is not None
        and r.energy_adjusted_j > 0
    ]
    if not known or len(known) < len(adjusted):
        return None
    return IdleShare(
        fmean(share for share, _, _ in known),
        max(std_w for _, std_w, _ in known if std_w is not None),
        frozenset(when for _, _, when in known if when is not None),
        len(known),
    )


def comparisons_of(
    groups: Mapping[int, Cycles], hashes: Sequence[str], summaries: Sequence[str], order: str
) -> list[QuantityComparison]:
    """Compare a study's configurations in joules per output token, speed, latency, and adjusted joules where known.

    Args:
        groups: Results by position of the configuration and cycle.
        hashes: Hash of each configuration by position.
        summaries: Likewise in words.
        order: The study's cycle_order.

    """
    values = {name: {i: figures(cycles, name) for i, cycles in groups.items()} for name in COMPARED}
    if not any(values[ADJUSTED].values()):
        del values[ADJUSTED]
    boards = {i: board_shares(believed(cycles).values()) for i, cycles in groups.items()}
    idles = {i: share for i, cycles in groups.items() if (share := idle_share(believed(cycles).values())) is not None}
    unlike = {name: why for name in values if (why := different_things(name, groups.values())) is not None}
    compared = compare_all(
        {name: rows for name, rows in values.items() if name not in unlike},
        hashes=hashes,
        summaries=summaries,
        order=order,
        lower_is_better=COMPARED,
        boards={ENERGY: boards, ADJUSTED: boards},
        idles={ADJUSTED: idles},
    )
    return compared + [QuantityComparison(quantity=name, reason=why) for name, why in unlike.items()]


def believed(cycles: Cycles) -> dict[int, ExperimentResult]:
    """The cycles whose verdict is not `invalid`: nothing is compared with a run that went wrong."""
    return {c: r for c, r in cycles.items() if r.verdict.state != "invalid"}


def figures(cycles: Cycles, name: str) -> dict[int, float]:
    """A quantity of the believed cycles that have it."""
    return {c: v for c, r in sorted(believed(cycles).items()) if (v := quantity(r, name)) is not None}


def different_things(name: str, groups: Iterable[Cycles]) -> str | None:
    """Why figures of these runs cannot be compared though they have one name, as `code: sentence`; None if they can."""
    if name != LATENCY:
        return None
    modes = {r.latency.mode: None for cycles in groups for r in believed(cycles).values() if r.latency is not None}
    if len(modes) < 2:
        return None
    things = ", of ".join(TIMED[mode] for mode in modes)
    return f"latency_of_different_things: it is not everywhere the time of the same thing, but of {things}"


def board_shares(results: Iterable[ExperimentResult]) -> Shares:
    """Share of each GPU in the joules of these runs, each run counting alike; empty if none names its GPUs."""
    shares: dict[str, float] = {}
    runs = 0
    for result in results:
        devices = result.energy_per_device_j or {}
        total = sum(devices.values())
        if total > 0:
            runs += 1
            for uuid, joules in devices.items():
                shares[uuid] = shares.get(uuid, 0.0) + joules / total
    return {uuid: share / runs for uuid, share in shares.items()}
