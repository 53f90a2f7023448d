"""A counter's lag and its joules under a known load, from ticks whose lag is known."""

from collections.abc import Sequence

import pytest

from fakes import tick_generator as made
from llenergymeasure.core.energy_series import EnergySeries, Tick
from llenergymeasure.core.step_response import Burst, lag, plateau_ratio

BURSTS = tuple(Burst(10 + 2.7137 * i, 11.2 + 2.7137 * i) for i in range(8))


def series(bursts: Sequence[Burst], *, lag_s: float = 0.0, gain: float = 1.0, jitter_s: float = 0.0) -> EnergySeries:
    """Ticks of 100 W with bursts of 600 W."""
    load = [made.Piece(0, 200, 100, 100), *(made.Piece(b.start_s, b.end_s, 500, 500) for b in bursts)]
    rows = made.record(load, made.Counter(0.1, 0.3, lag_s, jitter_s, 0.005 if jitter_s else 0.0), 1, 60)
    return EnergySeries(tuple(Tick(a, b, j * gain) for a, b, j in rows), jitter_s)


@pytest.mark.parametrize("lag_s", [0.0, 0.012, 0.030])
def test_the_lag_comes_back(lag_s: float) -> None:
    """Sharp ticks give the lag exactly, at all phases of the steps."""
    found = lag(series(BURSTS, lag_s=lag_s), BURSTS)
    assert found is not None
    assert found.lag_s == pytest.approx(lag_s, abs=1e-6)
    assert found.steps == 16


def test_jitter_shows_as_spread() -> None:
    """Ticks that scatter leave the median near the lag and a spread of the same size."""
    found = lag(series(BURSTS, lag_s=0.012, jitter_s=0.004), BURSTS)
    assert found is not None
    assert found.lag_s == pytest.approx(0.012, abs=0.005)
    assert 0.001 < found.spread_s < 0.015


def test_without_steps_there_is_no_lag() -> None:
    """A load that does not change the power, or lies outside the recording, tells nothing."""
    assert lag(series(()), BURSTS) is None
    assert lag(series(BURSTS), [Burst(500, 510)]) is None
    assert lag(EnergySeries(()), BURSTS) is None
    assert lag(series(BURSTS), BURSTS[:1]) is None  # two steps are too few


def test_a_plateau_is_power_times_time() -> None:
    """Quiet edges around a steady load count all of it; no load, no ratio."""
    long = (Burst(10.03, 16.07), Burst(20.0, 26.0))
    assert plateau_ratio(series(long, lag_s=0.012), long) == pytest.approx(1, abs=1e-3)
    assert plateau_ratio(series(long), [Burst(100, 110)]) is None
