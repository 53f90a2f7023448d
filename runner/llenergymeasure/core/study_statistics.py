"""What a study's repeated results say: statistics of each configuration, and what sets configurations apart."""

from collections.abc import Iterable, Mapping, Sequence

from llenergymeasure.core.comparison import (
    ENERGY,
    LOWER_IS_BETTER,
    QuantityComparison,
    Shares,
    compare_all,
)
from llenergymeasure.core.result import JUDGED, ExperimentResult, ExperimentStatistics, quantity
from llenergymeasure.core.statistics import statistic

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
        statistics={k: s for k, v in columns.items() if (s := statistic(v)) is not None},
    )


def comparisons_of(
    groups: Mapping[int, Cycles], hashes: Sequence[str], summaries: Sequence[str], order: str
) -> list[QuantityComparison]:
    """Compare a study's configurations in joules per output token, speed and latency.

    Args:
        groups: Results by position of the configuration and cycle.
        hashes: Hash of each configuration by position.
        summaries: Likewise in words.
        order: The study's cycle_order.

    """
    values = {name: {i: figures(cycles, name) for i, cycles in groups.items()} for name in LOWER_IS_BETTER}
    boards = {ENERGY: {i: board_shares(believed(cycles).values()) for i, cycles in groups.items()}}
    return compare_all(
        values, hashes=hashes, summaries=summaries, order=order, lower_is_better=LOWER_IS_BETTER, boards=boards
    )


def believed(cycles: Cycles) -> dict[int, ExperimentResult]:
    """The cycles whose verdict is not `invalid`: nothing is compared with a run that went wrong."""
    return {c: r for c, r in cycles.items() if r.verdict.state != "invalid"}


def figures(cycles: Cycles, name: str) -> dict[int, float]:
    """A quantity of the believed cycles that have it."""
    return {c: v for c, r in sorted(believed(cycles).items()) if (v := quantity(r, name)) is not None}


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
