"""Separates configurations from cycles: y_ij = configuration i + cycle j + rest, by least squares on what is there.

A cycle is a block: whatever drifts over a study meets all configurations of a cycle alike and leaves with its mean.
With every configuration in every cycle this is r_ij = y_ij - mean_i - mean_j + mean; with holes the cycle effects
solve the normal equations after the configurations' means are taken out, which are as many as there are cycles.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

Table = Mapping[int, Mapping[int, float]]
"""Values by configuration and cycle; holes are missing keys, no row is empty."""

Matrix = list[list[float]]


@dataclass(frozen=True)
class TwoWayFit:
    """The fitted table; variances are of one value.

    `spreads` holds max(s_i^2, s_p^2) of each configuration ("Uncertainty" of docs/measurement.md): one that scatters
    more than the others is not believed better than it is, one that seems to scatter less does not profit from its
    luck. It is empty where nothing is left to estimate a variance from.
    """

    values: Table
    effects: dict[int, float]
    cycle_effects: dict[int, float]
    pooled_variance: float | None
    degrees_of_freedom: int
    spreads: dict[int, float]
    cycle_covariance: dict[int, dict[int, float]]
    joined: list[set[int]]

    def change(self, first: int, last: int) -> tuple[float, float | None] | None:
        """From cycle `first` to `last`: difference and its variance (None if unknown); None if no row links them."""
        if not any({first, last} <= group for group in self.joined):
            return None
        w = self.cycle_covariance
        factor = w[first][first] + w[last][last] - 2 * w[first][last]
        variance = None if self.pooled_variance is None else factor * self.pooled_variance
        return self.cycle_effects[last] - self.cycle_effects[first], variance


def fit_two_way(values: Table) -> TwoWayFit:
    """Fit a table; pure least squares, so the order of rows and columns does not matter."""
    cycles = sorted({c for row in values.values() for c in row})
    groups = _joined(values)
    inverse = _inverse(_normal_matrix(values, cycles, groups))
    covariance = {c: dict(zip(cycles, row, strict=True)) for c, row in zip(cycles, inverse, strict=True)}
    centred = dict.fromkeys(cycles, 0.0)
    for row in values.values():
        mean = fmean(row.values())
        for cycle, value in row.items():
            centred[cycle] += value - mean
    cycle_effects = {c: math.fsum(covariance[c][d] * centred[d] for d in cycles) for c in cycles}
    effects = {i: fmean(v - cycle_effects[c] for c, v in row.items()) for i, row in values.items()}
    squares = {
        i: math.fsum((v - effects[i] - cycle_effects[c]) ** 2 for c, v in row.items()) for i, row in values.items()
    }
    freedom = sum(map(len, values.values())) - len(values) - len(cycles) + len(groups)
    pooled = math.fsum(squares.values()) / freedom if freedom > 0 else None
    spreads = {} if pooled is None else _spreads(values, squares, covariance, pooled)
    return TwoWayFit(values, effects, cycle_effects, pooled, freedom, spreads, covariance, groups)


def _joined(values: Table) -> list[set[int]]:
    """Cycles in groups that some configuration links; only within a group can cycles be compared."""
    groups: list[set[int]] = []
    for row in values.values():
        touched = [g for g in groups if not g.isdisjoint(row)]
        groups = [g for g in groups if g.isdisjoint(row)] + [set(row).union(*touched)]
    return groups


def _normal_matrix(values: Table, cycles: Sequence[int], groups: Sequence[set[int]]) -> Matrix:
    """Normal equations of the cycle effects, made regular by letting the effects of each group add up to 0."""
    place = {c: k for k, c in enumerate(cycles)}
    matrix = [[0.0] * len(cycles) for _ in cycles]
    for row in values.values():
        share = 1 / len(row)
        for c in row:
            matrix[place[c]][place[c]] += 1
            for d in row:
                matrix[place[c]][place[d]] -= share
    for group in groups:
        for c in group:
            for d in group:
                matrix[place[c]][place[d]] += 1
    return matrix


def _inverse(matrix: Matrix) -> Matrix:
    """Gauss and Jordan; the matrix is symmetric and positive definite, so the diagonal needs no pivoting."""
    size = len(matrix)
    rows = [[*row, *(1.0 if k == i else 0.0 for k in range(size))] for i, row in enumerate(matrix)]
    for i in range(size):
        pivot = [v / rows[i][i] for v in rows[i]]
        rows[i] = pivot
        for k in range(size):
            if k != i and (factor := rows[k][i]):
                rows[k] = [v - factor * p for v, p in zip(rows[k], pivot, strict=True)]
    return [row[size:] for row in rows]


def _spreads(
    values: Table, squares: Mapping[int, float], covariance: Mapping[int, Mapping[int, float]], pooled: float
) -> dict[int, float]:
    """max(s_i^2, s_p^2); s_i^2 is the sum of squares over what it would be at unit variance.

    That is n_i minus the leverages of the row: (K-1)(n-1)/K with every configuration in every cycle.
    """
    found = {}
    for i, row in values.items():
        n = len(row)
        within = math.fsum(covariance[c][d] for c in row for d in row) / n
        expected = n - 1 - math.fsum(covariance[c][c] for c in row) + within
        found[i] = max(squares[i] / expected, pooled) if expected > 1e-9 else pooled
    return found
