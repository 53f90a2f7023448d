"""Counts how often the 95 % intervals of a study hold the truth, over simulated studies with known truth.

Studies of K = 2, 4, 10 configurations in n = 3, 5 cycles; each configuration's run-to-run CV drawn evenly from
0.2 ... 0.8 %, or 0.5 % for all; a steady drift of 0 or 2 % over the study, whose runs are shuffled in each cycle.
Four intervals are counted:

- pair: one claim, configuration 2 against 1, by the pooled spread (v_i = max(s_i^2, s_p^2));
- family: all K-1 claims against the first at once, every one must hold;
- drift: last cycle against first;
- mean: the plain t-interval of one configuration (without drift, which it does not know).

The ideal half-width is that of the same interval with the true variances of the two configurations (and of the drift
inside a cycle, which the shuffling turns into chance) in the place of the estimated ones, same degrees of freedom.
Targets: 93 ... 98.5 % for pairs and families, 93 ... 97 % for means and where all spreads are equal; mean half-width
at most 1.25 x ideal. With more than two configurations max(s_i^2, s_p^2) errs to the wide side by design.

    python benchmarks/interval_coverage.py [--studies 4000] [--seed 20260] [--output PATH]
"""

import argparse
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

import numpy as np

from llenergymeasure.core.comparison import drift, fit_logs, in_blocks
from llenergymeasure.core.statistics import statistic, student_t

RESULT = Path(__file__).parent / "results" / "interval_coverage.json"
CVS = {"equal": (0.005, 0.005), "mixed": (0.002, 0.008)}


@dataclass(frozen=True)
class Cell:
    """Coverage, as fractions, in one kind of study; widths as multiples of the ideal."""

    configurations: int
    cycles: int
    spreads: str
    drift: float
    studies: int
    pair: float
    family: float
    drift_covered: float
    mean: float
    pair_width: float


def simulate(k: int, n: int, spreads: str, drift_share: float, studies: int, rng: np.random.Generator) -> Cell:
    """Count over `studies` studies."""
    hits = np.zeros(4)
    widths = []
    step = math.log1p(drift_share) / n  # of a cycle; inside it the drift meets configurations in random order
    times = step * np.arange(n)
    shuffled = step**2 * (k + 1) / (6 * k)  # what that adds to the variance of a difference of two runs
    for _ in range(studies):
        sigma = rng.uniform(*CVS[spreads], size=k)
        truth = rng.normal(0, 0.2, size=k)
        places = np.array([rng.permutation(k) for _ in range(n)]).T / k
        logs = truth[:, None] + times + step * places + sigma[:, None] * rng.standard_normal((k, n))
        fit = fit_logs({i: dict(enumerate(np.exp(row).tolist())) for i, row in enumerate(logs)})
        one = in_blocks(fit, 0, 1)
        assert one is not None
        family = [(truth[b] - truth[0], in_blocks(fit, 0, b, claims=k - 1)) for b in range(1, k)]
        change = drift(fit)
        alone = statistic((truth[0] + sigma[0] * rng.standard_normal(n)).tolist())
        assert change is not None
        assert change.low is not None
        assert change.high is not None
        assert alone is not None
        assert alone.half_width_95 is not None
        hits += [
            one.low <= math.exp(truth[1] - truth[0]) <= one.high,
            all(found is not None and found.low <= math.exp(true) <= found.high for true, found in family),
            change.low <= math.exp(times[-1] - times[0]) <= change.high,
            abs(alone.mean - truth[0]) <= alone.half_width_95,
        ]
        ideal = student_t(0.975, (k - 1) * (n - 1)) * math.sqrt((sigma[0] ** 2 + sigma[1] ** 2 + shuffled) / n)
        widths.append(math.log(one.high / one.low) / 2 / ideal)
    return Cell(k, n, spreads, drift_share, studies, *(hits / studies).tolist(), fmean(widths))


def main() -> None:
    """Simulate all kinds and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--studies", type=int, default=4000, help="simulated studies of each kind")
    parser.add_argument("--seed", type=int, default=20260)
    parser.add_argument("--output", type=Path, default=RESULT)
    given = parser.parse_args()
    rng = np.random.default_rng(given.seed)
    cells = []
    for spreads in CVS:
        for k in (2, 4, 10):
            for n in (3, 5):
                for drift_share in (0.0, 0.02):
                    cells.append(simulate(k, n, spreads, drift_share, given.studies, rng))
                    print({key: round(v, 4) if isinstance(v, float) else v for key, v in asdict(cells[-1]).items()})
    text = {"seed": given.seed, "numpy": np.__version__, "kinds": [asdict(c) for c in cells]}
    given.output.write_text(json.dumps(text, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
