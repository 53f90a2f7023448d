"""Ordinary least squares for a few columns, with what tells whether the columns can be told apart at all.

The columns are first scaled to length 1, so that the condition number says how nearly they depend on each other and
nothing of the units they came in (Belsley, Kuh and Welsch 1980, Regression Diagnostics, chapter 3: trouble from 30 on).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

Matrix = list[list[float]]

SINGULAR = 1e-12
"""Least eigenvalue of the scaled normal equations that is no rounding."""


@dataclass(frozen=True)
class Solution:
    """Coefficients, their standard errors, residuals in order of the rows, ratio of the largest to least stretch."""

    values: list[float]
    errors: list[float]
    residuals: list[float]
    condition_number: float


def least_squares(rows: Sequence[Sequence[float]], wanted: Sequence[float]) -> Solution | None:
    """Find the coefficients of each column; None with a column of zeros, dependent columns or no row to spare.

    Args:
        rows: One line per observation, one value per column, no constant is added.
        wanted: The observed values.

    """
    if not rows or len(rows) <= len(rows[0]):
        return None
    size = range(len(rows[0]))
    norms = [math.hypot(*(row[i] for row in rows)) for i in size]
    if not all(norms):
        return None
    scaled = [[x / n for x, n in zip(row, norms, strict=True)] for row in rows]
    lengths, axes = _eigen([[math.fsum(row[i] * row[j] for row in scaled) for j in size] for i in size])
    if min(lengths) <= SINGULAR:
        return None
    inverse = [[math.fsum(axes[i][k] * axes[j][k] / lengths[k] for k in size) for j in size] for i in size]
    moments = [math.fsum(row[i] * y for row, y in zip(scaled, wanted, strict=True)) for i in size]
    weights = [math.fsum(c * m for c, m in zip(line, moments, strict=True)) for line in inverse]
    rest = [
        y - math.fsum(x * w for x, w in zip(row, weights, strict=True)) for row, y in zip(scaled, wanted, strict=True)
    ]
    variance = math.fsum(r * r for r in rest) / (len(rows) - len(size))
    return Solution(
        values=[w / n for w, n in zip(weights, norms, strict=True)],
        errors=[math.sqrt(variance * inverse[i][i]) / norms[i] for i in size],
        residuals=rest,
        condition_number=math.sqrt(max(lengths) / min(lengths)),
    )


def _eigen(matrix: Matrix) -> tuple[list[float], Matrix]:
    """Eigenvalues of a small symmetric matrix and, as columns, its eigenvectors, by Jacobi's rotations."""
    size = len(matrix)
    a = [list(row) for row in matrix]
    axes = [[float(i == j) for j in range(size)] for i in range(size)]
    pairs = [(i, j) for i in range(size) for j in range(i + 1, size)]
    for _ in range(30):  # each sweep squares what is left; five are enough for three columns
        if all(abs(a[i][j]) < 1e-15 for i, j in pairs):
            break
        for i, j in pairs:
            angle = math.atan2(2 * a[i][j], a[j][j] - a[i][i]) / 2
            c, s = math.cos(angle), math.sin(angle)
            for row in (*a, *axes):
                row[i], row[j] = c * row[i] - s * row[j], s * row[i] + c * row[j]
            upper, lower = a[i], a[j]
            a[i] = [c * x - s * y for x, y in zip(upper, lower, strict=True)]
            a[j] = [s * x + c * y for x, y in zip(upper, lower, strict=True)]
    return [a[i][i] for i in range(size)], axes
