"""Adjusted joules over cycles: a baseline that runs share is in no spread, so it stands beside it."""

import math
from datetime import UTC, datetime
from typing import Any

import pytest
import scipy.stats

from core.test_result_records import result
from llenergymeasure.core.comparison import ADJUSTED, ENERGY
from llenergymeasure.core.result import ExperimentResult
from llenergymeasure.core.study_statistics import comparisons_of, idle_share, over_cycles

WINDOW_S, TOKENS, STD_W = 60.0, 1000, 2.0


def run(adjusted_j: float, *, day: int = 1, std_w: float | None = STD_W, **fields: Any) -> ExperimentResult:
    """A run that subtracted the idle power measured on a day of January."""
    return result(
        energy_total_j=adjusted_j + 6000,
        energy_per_output_token_j=(adjusted_j + 6000) / TOKENS,
        energy_adjusted_j=adjusted_j,
        energy_adjusted_per_output_token_j=adjusted_j / TOKENS,
        duration_s=WINDOW_S,
        energy_breakdown={
            "baseline_timestamp": datetime(2026, 1, day, tzinfo=UTC), "baseline_std_uncertainty_w": std_w,
        },
        **fields,
    )  # fmt: skip


def half_width(runs: list[ExperimentResult]) -> float:
    found = over_cycles("h", "s", runs).statistics[ADJUSTED].half_width_95
    assert found is not None
    return found


def test_a_shared_baseline_widens_the_interval_of_a_mean() -> None:
    """9.9, 10.0, 10.1 J/token and 2 W of 60 s over 10,000 J: s/sqrt(3) with 2 degrees of freedom beside 1.2 %."""
    runs = [run(v) for v in (9900.0, 10_000.0, 10_100.0)]
    share = idle_share(runs)
    assert share is not None
    chance, system = 0.1 / math.sqrt(3), 10.0 * share.seconds_per_joule * STD_W
    assert system == pytest.approx(10.0 * WINDOW_S / 10_000 * STD_W, rel=1e-3)
    standard = math.hypot(chance, system)
    t = scipy.stats.t.ppf(0.975, standard**4 / (chance**4 / 2))
    assert half_width(runs) == pytest.approx(t * standard, rel=1e-9)


def test_a_baseline_per_run_is_in_the_spread_already() -> None:
    """Each run measured its own idle power: the plain t-interval."""
    runs = [run(v, day=i + 1) for i, v in enumerate((9900.0, 10_000.0, 10_100.0))]
    assert half_width(runs) == pytest.approx(scipy.stats.t.ppf(0.975, 2) * 0.1 / math.sqrt(3))


UNKNOWN = [
    pytest.param([], id="no run"),
    pytest.param([run(100.0, std_w=None)], id="idle power of unknown quality"),
    pytest.param([run(100.0), run(-5.0)], id="less than nothing"),
    pytest.param([result()], id="nothing adjusted"),
]


@pytest.mark.parametrize("runs", UNKNOWN)
def test_what_does_not_tell_has_no_share(runs: list[ExperimentResult]) -> None:
    """None, not 0."""
    assert idle_share(runs) is None


def test_a_study_compares_adjusted_joules_with_the_part_of_their_baseline() -> None:
    """|T_A/E_A - T_B/E_B| x 2 W, and none of it in the joules as counted."""
    a = {c: run(v) for c, v in enumerate((5000.0, 5010.0, 4990.0), start=1)}
    b = {c: run(v) for c, v in enumerate((10_000.0, 10_040.0, 9980.0), start=1)}
    found = {c.quantity: c for c in comparisons_of({0: a, 1: b}, ["a", "b"], ["A", "B"], "shuffled")}
    (pair,) = found[ADJUSTED].against_first
    assert pair.ratio == pytest.approx(2.0, rel=1e-3)
    assert pair.idle_power_part == pytest.approx(STD_W * (WINDOW_S / 5000 - WINDOW_S / 10_000), rel=1e-3)
    assert found[ENERGY].against_first[0].idle_power_part == 0.0


def test_without_adjusted_joules_they_are_not_compared() -> None:
    """No empty table in a study without baselines."""
    plain = {c: result(energy_per_output_token_j=v) for c, v in enumerate((1.0, 1.01), start=1)}
    found = comparisons_of({0: plain, 1: plain}, ["a", "b"], ["A", "B"], "shuffled")
    assert ADJUSTED not in {c.quantity for c in found}
