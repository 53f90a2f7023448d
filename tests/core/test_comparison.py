"""Configurations compared over cycles: numpy's least squares and scipy's Welch as oracles, and what must not matter."""

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from llenergymeasure.core.comparison import (
    ENERGY,
    LOWER_IS_BETTER,
    Boards,
    PairComparison,
    QuantityComparison,
    apart,
    compare_all,
    drift,
    fit_logs,
    gain_allowance,
    in_blocks,
    log_mean,
)
from llenergymeasure.core.statistics import statistic, student_t
from llenergymeasure.core.two_way import fit_two_way

Figures = dict[int, dict[int, float]]
HASHES = [f"{i:016x}" for i in range(1000)]


def compared(figures: Figures, order: str = "shuffled", **more: Any) -> QuantityComparison:
    """The comparison of one quantity of a study with as many configurations as there are rows."""
    count = 1 + max(figures, default=0)
    (found,) = compare_all(
        {ENERGY: figures}, hashes=HASHES[:count], summaries=[f"c{i}" for i in range(count)], order=order,
        lower_is_better=LOWER_IS_BETTER, **more,
    )  # fmt: skip
    return found


def study(k: int, n: int, seed: int = 1) -> Figures:
    """A full study: configurations 10 % apart, 0.5 % from run to run, 3 % drift."""
    rng = np.random.default_rng(seed)
    return {
        i: {c: float(2 * 1.1**i * 1.01**c * math.exp(rng.normal(0, 0.005))) for c in range(1, n + 1)} for i in range(k)
    }


def with_holes(figures: Figures, seed: int, share: float = 0.3) -> Figures:
    """The same with some runs failed; each configuration keeps one."""
    rng = np.random.default_rng(seed)
    kept = {i: {c: v for c, v in row.items() if rng.random() > share} for i, row in figures.items()}
    return {i: row or {1: figures[i][1]} for i, row in kept.items()}


def least_squares(values: Figures) -> tuple[Any, Any, int, dict[int, float]]:
    """By numpy: cells, residuals, degrees of freedom, and expected squares of each row at unit variance."""
    cells = [(i, c) for i, row in values.items() for c in row]
    cycles = sorted({c for _, c in cells})
    rows = list(values)
    design = np.zeros((len(cells), len(rows) + len(cycles)))
    for r, (i, c) in enumerate(cells):
        design[r, rows.index(i)] = design[r, len(rows) + cycles.index(c)] = 1
    y = np.array([values[i][c] for i, c in cells])
    left = np.eye(len(cells)) - design @ np.linalg.pinv(design)
    freedom = len(cells) - np.linalg.matrix_rank(design)
    expected = {i: sum(left[r, r] for r, (j, _) in enumerate(cells) if i == j) for i in rows}
    return cells, left @ y, int(freedom), expected


@pytest.mark.parametrize("holes", [0.0, 0.2, 0.4, 0.7], ids=["full", "few", "many", "hardly anything"])
@pytest.mark.parametrize("seed", range(8))
def test_fit_is_numpys_least_squares(seed: int, holes: float) -> None:
    """Residual variance, degrees of freedom and the spread of each configuration, with runs missing or not."""
    logs = {
        i: {c: math.log(v) for c, v in row.items()} for i, row in with_holes(study(4, 5, seed), seed, holes).items()
    }
    cells, residuals, freedom, expected = least_squares(logs)

    found = fit_two_way(logs)

    assert found.degrees_of_freedom == freedom
    if freedom == 0:
        assert found.pooled_variance is None
        return
    pooled = float(residuals @ residuals) / freedom
    assert found.pooled_variance == pytest.approx(pooled, rel=1e-8)
    for i in logs:
        own = sum(r * r for r, (j, _) in zip(residuals, cells, strict=True) if i == j)
        wanted = max(pooled, own / expected[i] if expected[i] > 1e-6 else 0.0)
        assert found.spreads[i] == pytest.approx(wanted, rel=1e-8)


def test_full_study_follows_the_formulas() -> None:
    """Every number of measurement.md §5, "Study", written out with numpy."""
    figures, k, n = study(4, 5), 4, 5
    y = np.log([[figures[i][c] for c in range(1, n + 1)] for i in range(k)])
    r = y - y.mean(axis=1, keepdims=True) - y.mean(axis=0) + y.mean()
    nu = (k - 1) * (n - 1)
    pooled = (r**2).sum() / nu
    v = np.maximum((r**2).sum(axis=1) * k / nu, pooled)

    found = compared(figures)

    t = scipy.stats.t.ppf
    assert found.pooled_cv == pytest.approx(math.sqrt(pooled))
    assert found.degrees_of_freedom == nu
    assert found.smallest_detectable_difference == pytest.approx(
        (t(0.975, nu) + t(0.80, nu)) * math.sqrt(pooled) * math.sqrt(2 / n)
    )
    assert [c.b_hash for c in found.against_first] == HASHES[1:4]
    for c, i in zip(found.against_first, range(1, k), strict=True):
        half = t(1 - 0.025 / (k - 1), nu) * math.sqrt((v[0] + v[i]) / n)
        centre = y[i].mean() - y[0].mean()
        assert (c.ratio, c.ratio_low, c.ratio_high) == pytest.approx(
            (math.exp(centre), math.exp(centre - half), math.exp(centre + half))
        )
    assert found.best_hash == HASHES[0]
    half = t(1 - 0.025 / 6, nu) * math.sqrt((v[0] + v[1]) / n)
    assert math.log(found.against_best[0].ratio_high / found.against_best[0].ratio) == pytest.approx(half)
    assert found.drift is not None
    change = (y[:, -1] - y[:, 0]).mean()
    half = t(0.975, nu) * math.sqrt(2 * pooled / k)
    assert (found.drift.from_cycle, found.drift.to_cycle) == (1, 5)
    assert (found.drift.ratio, found.drift.low, found.drift.high) == pytest.approx(
        (math.exp(change), math.exp(change - half), math.exp(change + half))
    )


def test_two_configurations_are_a_paired_t_test() -> None:
    """With K = 2 the interval is scipy's for the differences within cycles."""
    figures = study(2, 5)
    differences = [math.log(figures[1][c] / figures[0][c]) for c in range(1, 6)]
    wanted = scipy.stats.ttest_1samp(differences, 0).confidence_interval(0.95)

    (found,) = compared(figures).against_first

    assert (math.log(found.ratio_low), math.log(found.ratio_high)) == pytest.approx((wanted.low, wanted.high))


@pytest.mark.parametrize(("n", "m"), [(2, 2), (5, 3), (5, 12)], ids=["least", "unequal", "very unequal"])
def test_different_sittings_are_welchs_test(n: int, m: int) -> None:
    """Between two studies the interval is scipy's Welch interval of the logarithms."""
    rng = np.random.default_rng(n * m)
    a, b = rng.lognormal(0, 0.01, n), rng.lognormal(0.05, 0.03, m)
    wanted = scipy.stats.ttest_ind(np.log(b), np.log(a), equal_var=False).confidence_interval(0.95)
    means = log_mean(a.tolist()), log_mean(b.tolist())
    assert means[0] is not None
    assert means[1] is not None

    found = apart(*means)

    assert (math.log(found.low), math.log(found.high)) == pytest.approx((wanted.low, wanted.high))


def test_single_runs_stand_on_their_own_uncertainty() -> None:
    """Two runs of 1 % each: ±1.96 x 1.41 % on the ratio; without a stated uncertainty there is no claim."""
    a, b = log_mean([2.0], 0.01), log_mean([2.2], 0.01)
    assert a is not None
    assert b is not None

    found = apart(a, b)

    assert math.log(found.high / found.ratio) == pytest.approx(1.959964 * 0.01 * math.sqrt(2), rel=1e-6)
    assert log_mean([2.0]) is None
    assert log_mean([]) is None


def test_an_estimated_spread_of_single_runs_widens_their_interval() -> None:
    """Twice 1 % with 10 degrees of freedom each is 20 by Welch: t is 2.086 instead of 1.96."""
    sides = [log_mean([v], 0.01, degrees_of_freedom=10) for v in (2.0, 2.2)]
    assert sides[0] is not None
    assert sides[1] is not None

    found = apart(*sides)

    assert math.log(found.high / found.ratio) == pytest.approx(2.085963 * 0.01 * math.sqrt(2), rel=1e-6)


def test_what_all_cycles_share_widens_an_interval_beside_their_spread() -> None:
    """0.3 % that repetition does not show: its normal half-width in quadrature with the t-interval of the cycles."""
    fit = fit_logs({0: {1: 2.00, 2: 2.02, 3: 1.99}, 1: {1: 2.11, 2: 2.10, 3: 2.12}})
    plain, wider = in_blocks(fit, 0, 1), in_blocks(fit, 0, 1, shared=0.003)
    assert plain is not None
    assert wider is not None
    assert wider.ratio == plain.ratio
    widths = [math.log(found.high / found.ratio) for found in (plain, wider)]
    assert widths[1] == pytest.approx(math.hypot(widths[0], 1.959964 * 0.003), rel=1e-6)


# What must not matter.

tables = st.integers(2, 6).flatmap(
    lambda k: st.integers(2, 5).map(lambda n: (k, n))
).flatmap(lambda kn: st.tuples(st.just(kn), st.integers(0, 10**6), st.sampled_from([0.0, 0.3])))  # fmt: skip


def drawn(table: tuple[tuple[int, int], int, float]) -> Figures:
    """A study by its size and seed."""
    (k, n), seed, holes = table
    return with_holes(study(k, n, seed), seed, holes)


def pairs(found: QuantityComparison) -> dict[tuple[str, str], PairComparison]:
    """All claims by the two configurations."""
    return {(c.a_hash, c.b_hash): c for c in (*found.against_best, *found.against_first)}


def claims(found: QuantityComparison) -> dict[tuple[str, str, str], float]:
    """Every ratio and both ends of its interval, by the two configurations."""
    ends = ("ratio", "ratio_low", "ratio_high")
    return {(*both, end): getattr(claim, end) for both, claim in pairs(found).items() for end in ends}


@given(tables)
@settings(max_examples=60, deadline=None)
def test_ratio_turns_over_with_its_sides(table: tuple[tuple[int, int], int, float]) -> None:
    """b against a is one over a against b, and so are the ends of the interval."""
    fit = fit_logs(drawn(table))
    for a in fit.values:
        for b in fit.values:
            there, back = in_blocks(fit, a, b), in_blocks(fit, b, a)
            assert (there is None) == (back is None)
            if there is not None and back is not None:
                assert (there.ratio, there.low, there.high) == pytest.approx(
                    (1 / back.ratio, 1 / back.high, 1 / back.low)
                )


@given(tables, st.floats(1e-6, 1e6))
@settings(max_examples=60, deadline=None)
def test_unit_does_not_matter(table: tuple[tuple[int, int], int, float], factor: float) -> None:
    """Joules or millijoules: the ratios are the same."""
    figures = drawn(table)
    other = compared({i: {c: factor * v for c, v in row.items()} for i, row in figures.items()})
    assert claims(other) == pytest.approx(claims(compared(figures)), rel=1e-9)


@given(tables, st.lists(st.floats(0.5, 2), min_size=5, max_size=5))
@settings(max_examples=60, deadline=None)
def test_drift_that_all_configurations_share_does_not_matter(
    table: tuple[tuple[int, int], int, float], factors: list[float]
) -> None:
    """A machine that is 2 % hungrier in the afternoon changes no ratio between configurations."""
    figures = drawn(table)
    other = compared({i: {c: factors[c - 1] * v for c, v in row.items()} for i, row in figures.items()})
    assert claims(other) == pytest.approx(claims(compared(figures)), rel=1e-9)


@given(tables, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_order_of_configurations_does_not_matter(table: tuple[tuple[int, int], int, float], random: Any) -> None:
    """The claims against the best, the spread and the drift are the same however the study lists its configurations."""
    figures = drawn(table)
    order = list(figures)
    random.shuffle(order)
    one = compared(figures)
    (other,) = compare_all(
        {ENERGY: {new: figures[old] for new, old in enumerate(order)}}, hashes=[HASHES[old] for old in order],
        summaries=[""] * len(order), order="shuffled", lower_is_better=LOWER_IS_BETTER,
    )  # fmt: skip

    assert other.best_hash == one.best_hash
    assert (other.pooled_cv or 0) == pytest.approx(one.pooled_cv or 0, rel=1e-6)
    assert {c.b_hash for c in one.against_best} == {c.b_hash for c in other.against_best}
    if one.drift is not None:
        assert other.drift is not None
        assert other.drift.ratio == pytest.approx(one.drift.ratio)


# Where less than everything can be said.


def test_pair_uses_only_cycles_that_both_have() -> None:
    """A cycle that failed on one side does not count on the other."""
    figures = study(3, 4)
    del figures[1][2], figures[0][4]
    figures[0][2] *= 5  # would show if it counted

    found = pairs(compared(figures))[HASHES[0], HASHES[1]]

    assert found.cycles == 2
    assert found.ratio == pytest.approx(math.sqrt(figures[1][1] / figures[0][1] * figures[1][3] / figures[0][3]))


NOTHING_CLAIMED = [
    pytest.param(study(3, 3), "sequential", "order_confounded", id="one configuration after the other"),
    pytest.param(study(3, 1), "shuffled", "one_cycle", id="one cycle"),
    pytest.param(study(1, 5), "shuffled", "one_configuration", id="one configuration"),
    pytest.param({0: {1: 1.0, 2: 1.1}, 1: {1: 2.0}}, "shuffled", "one_cycle", id="two cycles of one only"),
    pytest.param({0: {1: 1.0, 2: 1.1}, 1: {3: 2.0, 4: 1.9}}, "shuffled", "one_cycle", id="no cycle in common"),
    pytest.param({0: {}, 1: {}}, "shuffled", "no_valid_cycle", id="nothing valid"),
    pytest.param({}, "shuffled", "no_valid_cycle", id="nothing at all"),
    pytest.param({0: {1: 1.0, 2: 0.0}, 1: {1: 2.0, 2: 2.1}}, "shuffled", "not_positive", id="zero"),
    pytest.param({0: {1: 1.0, 2: -3.0}, 1: {1: 2.0, 2: 2.1}}, "shuffled", "not_positive", id="negative"),
]


@pytest.mark.parametrize(("figures", "order", "code"), NOTHING_CLAIMED)
def test_nothing_is_claimed_without_ground(figures: Figures, order: str, code: str) -> None:
    """No pair, and a sentence that says why."""
    found = compared(figures, order)

    assert found.reason is not None
    assert found.reason.startswith(f"{code}: ")
    assert found.against_best == found.against_first == []
    assert found.smallest_detectable_difference is None


def test_configuration_with_too_few_cycles_is_named() -> None:
    """The others are compared; what was left out has its reason."""
    figures = study(4, 3)
    figures[2] = {1: figures[2][1]}
    figures[3] = {}

    found = compared(figures)

    assert found.reason is None
    assert [c.b_hash for c in found.against_first] == [HASHES[1]]
    assert {h: why.partition(":")[0] for h, why in found.unclaimed.items()} == {
        HASHES[2]: "one_cycle",
        HASHES[3]: "no_valid_cycle",
    }


def test_single_configuration_has_its_drift_without_interval() -> None:
    """One configuration alone cannot tell drift from chance."""
    found = compared({0: {1: 2.0, 2: 2.5, 3: 3.0}})

    assert found.drift is not None
    assert found.drift.ratio == pytest.approx(1.5)
    assert (found.drift.low, found.drift.high, found.pooled_cv) == (None, None, None)


@pytest.mark.parametrize(
    ("factor", "finding"),
    [pytest.param(1.2, "higher", id="more"), pytest.param(0.8, "lower", id="less"),
     pytest.param(1.001, "no_difference", id="too little to see"), pytest.param(1.0, "no_difference", id="same")],
)  # fmt: skip
def test_finding_says_what_the_interval_says(factor: float, finding: str) -> None:
    """Only an interval without 1 is a difference; without one, the largest that it allows is named."""
    figures = {0: {1: 1.0, 2: 1.01, 3: 0.99}, 1: {1: factor, 2: factor * 1.004, 3: factor * 1.002}}

    (found,) = compared(figures).against_first

    assert found.finding == finding
    assert found.largest_difference == pytest.approx(max(found.ratio_high - 1, 1 - found.ratio_low))


def test_speed_is_best_where_it_is_highest() -> None:
    """What is best depends on the quantity."""
    figures = study(3, 3)
    (found,) = compare_all(
        {"s": figures}, hashes=HASHES[:3], summaries=["", "", ""], order="shuffled", lower_is_better={"s": False}
    )

    assert found.best_hash == HASHES[2]
    assert {c.finding for c in found.against_best} == {"lower"}


def test_runs_without_any_scatter_claim_nothing_by_rounding() -> None:
    """Equal figures stay equal: 1e-16 is the computer's, not the machine's."""
    figures = {0: dict.fromkeys(range(1, 4), 0.1 + 0.2), 1: dict.fromkeys(range(1, 4), 0.3)}

    (found,) = compared(figures).against_first

    assert found.finding == "no_difference"


# Different boards.


@pytest.mark.parametrize(
    ("a", "b", "wanted"),
    [
        pytest.param({"G0": 1.0}, {"G0": 1.0}, 0.0, id="same board"),
        pytest.param({}, {}, 0.0, id="no board named"),
        pytest.param({"G0": 1.0}, {"G1": 1.0}, 0.1 * 1.959964 * math.sqrt(2 / 3), id="another board"),
        pytest.param({"G0": 1.0}, {"G0": 0.5, "G1": 0.5}, 0.1 * 1.959964 * math.sqrt(0.5 / 3), id="one of two"),
        pytest.param({"G0": 0.5, "G1": 0.5}, {"G1": 0.5, "G0": 0.5}, 0.0, id="same two"),
    ],
)
def test_gains_of_different_boards_enter(a: dict[str, float], b: dict[str, float], wanted: float) -> None:
    """What both sides have on one board cancels, the rest is uncertain by up to 10 %."""
    assert gain_allowance(a, b) == pytest.approx(wanted, rel=1e-5)


def test_gain_allowance_covers_uniform_gain_errors() -> None:
    """Two boards with gains anywhere within ±10 %: at least 95 % of their differences lie inside, and not all."""
    rng = np.random.default_rng(5)
    gains = rng.uniform(-0.1, 0.1, (100_000, 2))

    inside = np.mean(np.abs(gains[:, 0] - gains[:, 1]) <= gain_allowance({"a": 1.0}, {"b": 1.0}))

    assert 0.95 <= inside < 0.97


def test_calibrated_boards_differ_by_their_own_limits() -> None:
    """Two of 1 and 2 %: a tenth of what two uncalibrated ones would have, and never beyond the sum of both."""
    limits = {"G0": 0.01, "G1": 0.02}

    found = gain_allowance({"G0": 1.0}, {"G1": 1.0}, limits=limits)

    assert found == pytest.approx(scipy.stats.norm.ppf(0.975) * math.hypot(0.01, 0.02) / math.sqrt(3))
    assert gain_allowance({"G0": 1.0}, {"G1": 1.0}, limits=limits, claims=1000) == pytest.approx(0.03)
    assert gain_allowance({"G0": 1.0}, {"G2": 1.0}, limits={"G0": 0.0}) == pytest.approx(0.1)


def test_comparison_across_boards_is_wider() -> None:
    """In a study whose configurations ran on different GPUs the joules of a pair have the gain in their interval."""
    figures = study(2, 5)
    narrow = compared(figures).against_first[0]
    wide = compared(figures, boards={ENERGY: Boards({0: {"G0": 1.0}, 1: {"G1": 1.0}})}).against_first[0]

    assert narrow.gain_allowance == 0
    assert (narrow.finding, wide.finding) == ("higher", "no_difference")  # 10 % is within what two boards differ by
    assert math.log(wide.ratio_high / wide.ratio) == pytest.approx(
        math.hypot(math.log(narrow.ratio_high / narrow.ratio), wide.gain_allowance)
    )


def test_thousand_configurations_are_compared() -> None:
    """A large study has all its claims, in so many steps that none takes a square of the configurations."""
    figures = study(1000, 5)
    figures = {i: {c: v / 1.1**i * 1.0001**i for c, v in row.items()} for i, row in figures.items()}

    found = compared(figures)

    assert len(found.against_first) == len(found.against_best) == 999
    assert found.degrees_of_freedom == 999 * 4


def test_intervals_hold_the_truth() -> None:
    """In 600 simulated studies (4 configurations, 3 cycles, CV 0.2 ... 0.8 %, 2 % drift) close to 95 % of them do.

    benchmarks/interval_coverage.py does it at length.
    """
    rng = np.random.default_rng(20260)
    hits, plain, widths = [], [], []
    for _ in range(600):
        sigma = rng.uniform(0.002, 0.008, 4)
        truth = rng.normal(0, 0.2, 4)
        logs = truth[:, None] + np.linspace(0, 0.02, 3) + sigma[:, None] * rng.standard_normal((4, 3))
        fit = fit_logs({i: dict(enumerate(np.exp(row).tolist())) for i, row in enumerate(logs)})
        found, change, alone = in_blocks(fit, 0, 1), drift(fit), statistic(rng.normal(5, sigma[0], 3).tolist())
        assert found is not None
        assert change is not None
        assert change.low is not None
        assert change.high is not None
        assert alone is not None
        assert alone.half_width_95 is not None
        hits.append(
            (found.low <= math.exp(truth[1] - truth[0]) <= found.high, change.low <= math.exp(0.02) <= change.high)
        )
        plain.append(abs(alone.mean - 5) <= alone.half_width_95)
        ideal = student_t(0.975, 6) * math.sqrt((sigma[0] ** 2 + sigma[1] ** 2) / 3)
        widths.append(math.log(found.high / found.ratio) / ideal)

    pair, drifts = np.mean(hits, axis=0)
    assert 0.93 <= pair <= 0.985
    assert 0.93 <= drifts <= 0.985
    assert 0.93 <= np.mean(plain) <= 0.97
    assert np.mean(widths) <= 1.25
