"""Least squares of few columns against numpy, and against columns that cannot be told apart."""

import math
import random

import numpy as np
import pytest

from llenergymeasure.core.least_squares import least_squares


@pytest.mark.parametrize("columns", [1, 2, 3, 4])
def test_it_gives_what_numpy_gives(columns: int) -> None:
    """Coefficients, standard errors, residuals and the condition of the scaled columns agree with numpy's SVD."""
    draw = random.Random(columns)
    rows = [[draw.uniform(0, 10**i) for i in range(columns)] for _ in range(60)]
    wanted = [sum(3.0 * x for x in row) + draw.gauss(0, 2) for row in rows]
    found = least_squares(rows, wanted)
    x, y = np.array(rows), np.array(wanted)
    values, *_ = np.linalg.lstsq(x, y, rcond=None)
    rest = y - x @ values
    errors = np.sqrt(np.diag(np.linalg.inv(x.T @ x)) * (rest @ rest) / (60 - columns))
    assert found is not None
    assert found.values == pytest.approx(list(values), rel=1e-9)
    assert found.errors == pytest.approx(list(errors), rel=1e-9)
    assert found.residuals == pytest.approx(list(rest), abs=1e-8)
    assert found.condition_number == pytest.approx(np.linalg.cond(x / np.linalg.norm(x, axis=0)), rel=1e-9)


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([], id="no rows"),
        pytest.param([[1.0, 2.0], [2.0, 1.0]], id="no row to spare"),
        pytest.param([[1.0, 0.0]] * 5, id="a column of zeros"),
        pytest.param([[i, 3.0 * i] for i in range(1, 9)], id="one column is a multiple of the other"),
    ],
)
def test_what_has_no_answer_gets_none(rows: list[list[float]]) -> None:
    """Too little to go on is None, never a large number."""
    assert least_squares(rows, [1.0] * len(rows)) is None


def test_units_do_not_change_the_condition() -> None:
    """A column in other units is as easy to tell from its neighbours."""
    rows = [[math.cos(i), math.sin(i) + 2] for i in range(20)]
    milli = [[1000 * a, b] for a, b in rows]
    first, second = least_squares(rows, [1.0] * 20), least_squares(milli, [1.0] * 20)
    assert first is not None
    assert second is not None
    assert first.condition_number == pytest.approx(second.condition_number)
