"""Student's t, intervals over cycles and percentiles, each against scipy, which shares no code with them."""

import math

import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from llenergymeasure.core.statistics import percentile, statistic, student_t

PROBABILITIES = (0.5, 0.500001, 0.51, 0.6, 0.75, 0.8, 0.9, 0.95, 0.975, 0.99, 0.995, 0.9995, 0.99995, 1 - 1e-6)
FREEDOMS = (
    1, 1.0001, 1.2, 1.5, 2, 2.5, 3, 3.7, 4, 5, 7, 10, 12.3, 20, 30, 50, 100, 200.5, 500, 999, 999.99, 1000, 1500,
    1e4, 1e6, 1e9,
)  # fmt: skip


@pytest.mark.parametrize("nu", FREEDOMS, ids=str)
def test_quantiles_of_t_are_scipys(nu: float) -> None:
    """On a grid of probabilities and real degrees of freedom the error is below 1e-8."""
    for p in PROBABILITIES:
        assert student_t(p, nu) == pytest.approx(scipy.stats.t.ppf(p, nu), rel=1e-12, abs=1e-8)


@given(st.floats(1e-6, 1 - 1e-6), st.floats(1, 5000))
@settings(max_examples=300, deadline=None)
def test_any_quantile_of_t_is_scipys(p: float, nu: float) -> None:
    """Between the grid's points as well; the heaviest tails reach 3e5, so there the limit is relative."""
    assert student_t(p, nu) == pytest.approx(scipy.stats.t.ppf(p, nu), rel=1e-10, abs=1e-8)


@given(st.floats(0.001, 0.999), st.floats(1, 1e6))
@settings(max_examples=200, deadline=None)
def test_t_is_symmetric(p: float, nu: float) -> None:
    """What lies below on one side lies above on the other."""
    assert student_t(p, nu) == pytest.approx(-student_t(1 - p, nu), rel=1e-9, abs=1e-9)


def test_without_end_t_is_normal() -> None:
    """Infinitely many degrees of freedom are the normal distribution."""
    assert student_t(0.975, math.inf) == pytest.approx(1.959963984540054, abs=1e-12)


@pytest.mark.parametrize(
    ("p", "nu"),
    [
        pytest.param(0, 3, id="nothing"),
        pytest.param(1, 3, id="everything"),
        pytest.param(math.nan, 3, id="no probability"),
        pytest.param(0.9, 0.99, id="too little freedom"),
        pytest.param(0.9, math.nan, id="no freedom"),
    ],
)
def test_arguments_out_of_range_are_refused(p: float, nu: float) -> None:
    """No quantile is made up where there is none."""
    with pytest.raises(ValueError, match="student_t"):
        student_t(p, nu)


@pytest.mark.filterwarnings("ignore:Precision loss")  # scipy's, where all values are alike
@given(st.lists(st.integers(-(10**9), 10**9).map(lambda v: v / 1000), min_size=2, max_size=60))
@settings(max_examples=100, deadline=None)
def test_interval_over_cycles_is_students(values: list[float]) -> None:
    """Mean, s and half-width agree with scipy's t interval."""
    found = statistic(values)
    assert found is not None
    assert found.s is not None
    assert found.half_width_95 is not None
    scale = max(map(abs, values)) + 1e-300
    assert found.n == len(values)
    assert found.mean == pytest.approx(math.fsum(values) / found.n, rel=1e-12, abs=1e-12 * scale)
    assert found.s == pytest.approx(scipy.stats.tstd(values), rel=1e-9, abs=1e-7 * scale)
    if found.s > 1e-6 * scale:
        low, high = scipy.stats.t.interval(0.95, found.n - 1, loc=found.mean, scale=scipy.stats.sem(values))
        assert found.mean - found.half_width_95 == pytest.approx(low, rel=1e-9, abs=1e-7 * scale)
        assert found.mean + found.half_width_95 == pytest.approx(high, rel=1e-9, abs=1e-7 * scale)


def test_interval_by_hand() -> None:
    """Three cycles of 1, 2, 3: mean 2, s 1, half-width t / sqrt(3), and t has a closed form at nu = 2."""
    found = statistic([1.0, 2.0, 3.0])
    assert found is not None
    assert (found.mean, found.s, found.n) == (2.0, 1.0, 3)
    assert found.half_width_95 == pytest.approx(0.95 / math.sqrt(2 * 0.975 * 0.025) / math.sqrt(3), rel=1e-12)


def test_single_cycle_has_a_mean_and_no_interval() -> None:
    """One run says nothing about repeatability; none says nothing at all."""
    found = statistic([5.0])
    assert found is not None
    assert (found.mean, found.s, found.half_width_95, found.n) == (5.0, None, None, 1)
    assert statistic([]) is None


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_percentile_interpolates_between_ranks(values: list[float], share: float) -> None:
    """The same percentile as scipy's default (linear between ranks)."""
    wanted = scipy.stats.scoreatpercentile(values, 100 * share)
    assert percentile(sorted(values), share) == pytest.approx(wanted, rel=1e-9, abs=1e-6)
