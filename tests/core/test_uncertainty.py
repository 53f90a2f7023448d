"""The uncertainty of one run: every term of measurement.md §5 by hand, quantiles by scipy, coverage by drawing."""

import math
from dataclasses import replace
from datetime import UTC, datetime

import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from llenergymeasure.core.uncertainty import (
    IdleShare,
    OneRun,
    Part,
    Spread,
    Uncertainty,
    baseline_part,
    effective_freedom,
    half_width,
    idle_part,
    mean_half_width,
    of_one_run,
    pooled,
    token_part,
    work_part,
)

RUN = OneRun(energy_j=10_000.0, edge_std_j=10.0, window_s=60.0)


def t_975(nu: float) -> float:
    """Quantile of Student's t by another library."""
    return float(scipy.stats.norm.ppf(0.975) if math.isinf(nu) else scipy.stats.t.ppf(0.975, nu))


def test_terms_by_hand() -> None:
    """ITL 30 ms over 60 s, W = 2 %, 2 W over 60 s of 6000 J."""
    assert token_part(0.030, 60.0) == pytest.approx(0.030 / (60 * math.sqrt(6)))
    assert token_part(None, 60.0) == 0.0
    assert work_part(-0.02) == pytest.approx(0.3 * 0.02 / math.sqrt(3))
    assert baseline_part(60.0, 2.0, 6000.0) == pytest.approx(0.02)


def test_a_run_alone_assumes_one_per_cent_between_runs() -> None:
    """Edge 0.1 % and 1 % assumed: 1.96 x 1.005 %; the absolute figure has 9.5 % for the gain beside it."""
    u = of_one_run(RUN)
    assert (u.edge, u.tokens, u.work) == (pytest.approx(0.001), 0.0, 0.0)
    assert (u.between_runs, u.between_runs_source, u.between_runs_degrees_of_freedom) == (0.01, "assumed", None)
    assert u.standard == pytest.approx(math.hypot(0.001, 0.01))
    assert u.degrees_of_freedom is None
    assert u.comparison == pytest.approx(t_975(math.inf) * math.hypot(0.001, 0.01))
    assert u.absolute == pytest.approx(math.hypot(0.095, u.comparison or 0.0))
    assert (u.baseline, u.adjusted_comparison, u.adjusted_absolute) == (None, None, None)


def test_a_measured_spread_takes_the_place_of_the_assumed_one() -> None:
    """0.3 % with 12 degrees of freedom: nearly all of the budget, so t is nearly that of 12."""
    u = of_one_run(replace(RUN, spread=Spread(0.003, 12), itl_s=0.03, imbalance=0.01))
    parts = [0.001, 0.03 / (60 * math.sqrt(6)), 0.3 * 0.01 / math.sqrt(3), 0.003]
    standard = math.sqrt(sum(p * p for p in parts))
    nu = standard**4 / (0.003**4 / 12)
    assert u.between_runs_source == "measured"
    assert u.standard == pytest.approx(standard)
    assert u.degrees_of_freedom == pytest.approx(nu)
    assert u.comparison == pytest.approx(t_975(nu) * standard, rel=1e-9)


@pytest.mark.parametrize(("nu", "source"), [(9.0, "assumed"), (10.0, "measured")])
def test_few_degrees_of_freedom_are_no_knowledge(nu: float, source: str) -> None:
    """Below ten degrees of freedom the spread stays assumed."""
    assert of_one_run(replace(RUN, spread=Spread(0.003, nu))).between_runs_source == source


def test_adjusted_joules_are_less_certain() -> None:
    """Of 10,000 J 4,000 are left: fractions of all joules grow by 2.5, and 2 W of idle power come in."""
    u = of_one_run(replace(RUN, adjusted_j=4000.0, baseline_std_w=2.0, itl_s=0.06, imbalance=0.01))
    tokens, idle = 0.06 / (60 * math.sqrt(6)), 60 * 2 / 4000
    standard = math.sqrt(
        (2.5 * 0.001) ** 2 + (2.5 * 0.01) ** 2 + (2.5 * 0.003 / math.sqrt(3)) ** 2 + tokens**2 + idle**2
    )
    assert u.baseline == pytest.approx(idle)
    assert u.adjusted_comparison == pytest.approx(t_975(math.inf) * standard)
    assert u.adjusted_absolute == pytest.approx(math.hypot(0.095, u.adjusted_comparison or 0.0))


def test_a_calibrated_sensor_has_its_own_gain_limit() -> None:
    """a = 1 %: the absolute figure has 0.95 % in the place of 9.5 %."""
    u = of_one_run(replace(RUN, gain_limit=0.01))
    assert u.absolute == pytest.approx(math.hypot(0.0095, u.comparison or 0.0))
    assert u.gain_limit == 0.01


@pytest.mark.parametrize(
    "run",
    [
        pytest.param(replace(RUN, energy_j=None), id="no energy"),
        pytest.param(replace(RUN, energy_j=0.0), id="zero energy"),
        pytest.param(replace(RUN, edge_std_j=None), id="edges unknown"),
    ],
)
def test_uncertainty_of_nothing_is_null(run: OneRun) -> None:
    """Where energy or edges are unknown there is no figure, above all not 0 %."""
    assert of_one_run(run) == Uncertainty()


@pytest.mark.parametrize(
    "run",
    [
        pytest.param(replace(RUN, adjusted_j=None, baseline_std_w=1.0), id="nothing subtracted"),
        pytest.param(replace(RUN, adjusted_j=-1.0, baseline_std_w=1.0), id="negative"),
        pytest.param(replace(RUN, adjusted_j=1.0, baseline_std_w=None), id="idle power of unknown quality"),
    ],
)
def test_adjusted_joules_without_a_budget_have_no_figure(run: OneRun) -> None:
    """Nothing, or less than nothing, has no relative uncertainty."""
    u = of_one_run(run)
    assert u.comparison is not None
    assert u.adjusted_comparison is None


def test_spreads_of_studies_are_pooled_by_their_degrees_of_freedom() -> None:
    """Sums of squares 4e-4 over 4 and 9e-5 over 1 give 4.9e-4 over 5."""
    found = pooled([(4e-4, 4), (9e-5, 1)])
    assert found is not None
    assert (found.value, found.degrees_of_freedom) == (pytest.approx(math.sqrt(4.9e-4 / 5)), 5)
    assert pooled([]) is None


parts = st.lists(st.builds(Part, st.floats(1e-6, 0.1), st.sampled_from([2.0, 5.0, 12.0, math.inf])), min_size=1)


@given(parts)
def test_effective_freedom_lies_between_its_parts(of: list[Part]) -> None:
    """Never fewer degrees of freedom than the least certain part has, and a part more never narrows the interval."""
    nu = effective_freedom(of)
    assert nu >= min(p.degrees_of_freedom for p in of) * (1 - 1e-9)
    assert half_width([*of, Part(0.01)]) >= 1.96 * math.sqrt(sum(p.value**2 for p in of))


def test_mean_of_cycles_by_hand() -> None:
    """1, 2, 3 with 0.5 that all share: s/sqrt(3) with 2 degrees of freedom beside it, Welch and Satterthwaite."""
    chance = 1 / math.sqrt(3)
    standard = math.hypot(chance, 0.5)
    nu = standard**4 / (chance**4 / 2)
    assert mean_half_width([1.0, 2.0, 3.0], 0.5) == pytest.approx(t_975(nu) * standard, rel=1e-9)
    assert mean_half_width([1.0, 2.0, 3.0], 0.0) == pytest.approx(t_975(2) * chance, rel=1e-9)
    assert mean_half_width([1.0], 0.5) is None


FIRST, SECOND = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)
A = IdleShare(60 / 6000, 2.0, frozenset({FIRST}), 5)
IDLES = [
    pytest.param(A, A, 0.0, id="the same work: the error of a shared baseline cancels"),
    pytest.param(A, replace(A, seconds_per_joule=60 / 5000), 2 * (60 / 5000 - 60 / 6000), id="shared, other work"),
    pytest.param(A, replace(A, measured=frozenset({SECOND})), math.sqrt(2) * 0.02, id="one baseline each"),
    pytest.param(
        replace(A, measured=frozenset({FIRST, SECOND}), runs=2),
        replace(A, measured=frozenset({SECOND.replace(day=3)}), runs=1),
        0.0,
        id="one per run: repetition shows it",
    ),
    pytest.param(A, None, 0.0, id="unknown"),
]


@pytest.mark.parametrize(("a", "b", "wanted"), IDLES)
def test_what_a_comparison_of_adjusted_joules_owes_to_the_idle_power(
    a: IdleShare, b: IdleShare | None, wanted: float
) -> None:
    """|T_A/E_A - T_B/E_B| u(P_b) for a baseline that both share, both errors for two, nothing that repetition shows."""
    assert idle_part(a, b) == pytest.approx(wanted)
