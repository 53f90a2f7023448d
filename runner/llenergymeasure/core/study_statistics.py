"""What a study's repeated results say: statistics of each configuration, and what sets configurations apart."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from llenergymeasure.core.comparison import (
    ADJUSTED,
    ENERGY,
    LATENCY,
    LOWER_IS_BETTER,
    Boards,
    QuantityComparison,
    Shares,
    compare_all,
)
from llenergymeasure.core.result import JUDGED, ExperimentResult, ExperimentStatistics, quantity
from llenergymeasure.core.statistics import Statistic, statistic
from llenergymeasure.core.uncertainty import GAIN_LIMIT, IdleShare, mean_half_width

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
    columns = {
        name: [v for r in found if has_say(name, r.verdict.state, verdicts) and (v := quantity(r, name)) is not None]
        for name in STATISTICS_OVER
    }
    counted = [r for r in found if r.verdict.state == "valid"]
    return ExperimentStatistics(
        config_hash=config_hash,
        summary=summary,
        cycles_completed=len(found),
        verdicts=verdicts,
        statistics=described(
            {k: s for k, v in columns.items() if (s := _statistic(k, v, counted)) is not None}, verdicts
        ),
    )


def estimated(verdicts: Mapping[str, int]) -> bool:
    """Whether the joules of runs with these verdicts are a model's estimates: some are, and no run is valid."""
    return bool(verdicts.get("estimated")) and not verdicts.get("valid")


def has_say(name: str, state: str | None, verdicts: Mapping[str, int]) -> bool:
    """Whether a run enters the mean of a quantity over runs with these verdicts.

    Joules are those of the valid runs; where there is none, those of the estimates.
    """
    return name not in JUDGED or state == ("estimated" if estimated(verdicts) else "valid")


def described(statistics: Mapping[str, Statistic], verdicts: Mapping[str, int]) -> dict[str, Statistic]:
    """The same statistics; those of estimated joules without an interval, since repetition does not test a model."""
    if not estimated(verdicts):
        return dict(statistics)
    return {k: s.model_copy(update={"half_width_95": None}) if k in JUDGED else s for k, s in statistics.items()}


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
    counted = {i: believed(cycles, ENERGY).values() for i, cycles in groups.items()}
    limits = gain_limits(r for runs in counted.values() for r in runs)
    boards = Boards({i: board_shares(runs) for i, runs in counted.items()}, limits)
    idles = {i: share for i, runs in counted.items() if (share := idle_share(runs)) is not None}
    unlike = {name: why for name in values if (why := _not_comparable(name, groups.values())) is not None}
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


def believed(cycles: Cycles, name: str) -> dict[int, ExperimentResult]:
    """The cycles that a quantity is compared in."""
    return {c: r for c, r in cycles.items() if believable(r, name)}


def believable(result: ExperimentResult, name: str) -> bool:
    """Whether a run's figure may be compared: joules of a valid one, other quantities unless it is `invalid`."""
    return result.verdict.state == "valid" if name in JUDGED else result.verdict.state != "invalid"


def figures(cycles: Cycles, name: str) -> dict[int, float]:
    """A quantity of the believed cycles that have it."""
    return {c: v for c, r in sorted(believed(cycles, name).items()) if (v := quantity(r, name)) is not None}


def estimates(cycles: Cycles, name: str) -> dict[int, float]:
    """Estimated joules of a configuration without a valid cycle: something to show, nothing to compare."""
    if name not in JUDGED or any(r.verdict.state == "valid" for r in cycles.values()):
        return {}
    found = {c: r for c, r in sorted(cycles.items()) if r.verdict.state == "estimated"}
    return {c: v for c, r in found.items() if (v := quantity(r, name)) is not None}


def _not_comparable(name: str, groups: Iterable[Cycles]) -> str | None:
    """Why a study compares no figures of this quantity, as `code: sentence`; None if it does."""
    found = list(groups)
    if not any(figures(cycles, name) for cycles in found) and any(estimates(cycles, name) for cycles in found):
        return "no_valid_cycle: the energy is a model's estimate, not a count of joules"
    return different_things(name, found)


def different_things(name: str, groups: Iterable[Cycles]) -> str | None:
    """Why figures of these runs cannot be compared though they have one name, as `code: sentence`; None if they can."""
    runs = [r for cycles in groups for r in believed(cycles, name).values()]
    if name in (ENERGY, ADJUSTED):
        return different_calibrations(runs)
    if name != LATENCY:
        return None
    modes = {r.latency.mode: None for r in runs if r.latency is not None}
    if len(modes) < 2:
        return None
    things = ", of ".join(TIMED[mode] for mode in modes)
    return f"latency_of_different_things: it is not everywhere the time of the same thing, but of {things}"


def different_calibrations(results: Iterable[ExperimentResult]) -> str | None:
    """Why joules of these runs are not of one scale, as `code: sentence`: a GPU's calibration changed between them."""
    found: dict[str, dict[tuple[float, float], None]] = {}
    for result in results:
        for uuid in result.energy_per_device_j or {}:
            found.setdefault(uuid, {})[_correction(result, uuid)] = None
    several = [f"{uuid} ({', then '.join(map(_in_words, how))})" for uuid, how in found.items() if len(how) > 1]
    if not several:
        return None
    return (
        f"different_calibrations: the joules of {', '.join(several)} were not corrected alike in all runs, so they are "
        "not on one scale; measure all of them with the same --calibration file, or all without"
    )


def _correction(result: ExperimentResult, uuid: str) -> tuple[float, float]:
    """Gain and offset in W that a GPU's joules were corrected with; (1, 0) changes nothing."""
    sensor = (result.sensors or {}).get(uuid)
    return (1.0, 0.0) if sensor is None or sensor.gain is None else (sensor.gain, sensor.offset_w or 0.0)


def _in_words(correction: tuple[float, float]) -> str:
    gain, offset_w = correction
    return "as read" if correction == (1.0, 0.0) else f"gain {gain:g}, offset {offset_w:g} W"


def gain_limits(results: Iterable[ExperimentResult]) -> dict[str, float]:
    """Half-width of what each GPU's gain may be off by, the largest that a run tells; ±10 % if not calibrated.

    A result has one limit for its joules as a whole. What uncalibrated GPUs do not explain of it is that of the
    calibrated ones: of several with unlike limits, their mean by joules.
    """
    limits: dict[str, float] = {}
    for result in results:
        shares, whole = board_shares([result]), result.uncertainty.gain_limit
        calibrated = {u for u in shares if (s := (result.sensors or {}).get(u)) is not None and s.gain is not None}
        part = sum(shares[u] for u in calibrated)
        own = GAIN_LIMIT if whole is None or part <= 0 else max(0.0, (whole - GAIN_LIMIT * (1 - part)) / part)
        for uuid in shares:
            limits[uuid] = max(limits.get(uuid, 0.0), own if uuid in calibrated else GAIN_LIMIT)
    return limits


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
