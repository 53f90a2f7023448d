"""Counts how often the 95 % intervals of a study hold the truth, over simulated studies with known truth.

Studies of K = 2, 4, 10 configurations in n = 3, 5 cycles; each configuration's run-to-run CV drawn evenly from
0.2 ... 0.8 %, or 0.5 % for all; a steady drift of 0 or 2 % over the study, whose runs are shuffled in each cycle.
Five intervals are counted:

- pair: one claim, configuration 2 against 1, by the pooled spread (v_i = max(s_i^2, s_p^2));
- family: all K-1 claims against the first at once, every one must hold;
- drift: last cycle against first;
- mean: the plain t-interval of one configuration (without drift, which it does not know);
- adjusted: like pair, of joules from which one idle power was subtracted in all runs, wrong by a draw with 1.5 W of
  standard deviation: windows of 60 s at 250 ... 650 W, 122 W idle. Beside it the same interval without the term for
  the shared baseline, |T_A/E_A - T_B/E_B| u(P_b), which shows what that term is for.

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
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean

import numpy as np

from llenergymeasure.core.comparison import drift, fit_logs, in_blocks
from llenergymeasure.core.statistics import statistic, student_t
from llenergymeasure.core.uncertainty import IdleShare, idle_part

RESULT = Path(__file__).parent / "results" / "interval_coverage.json"
WINDOW_S, IDLE_W, IDLE_STD_W = 60.0, 122.0, 1.5
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
    adjusted: float
    adjusted_without_term: float
    pair_width: float


def simulate(k: int, n: int, spreads: str, drift_share: float, studies: int, rng: np.random.Generator) -> Cell:
    """Count over `studies` studies."""
    hits = np.zeros(6)
    widths = []
    step = math.log1p(drift_share) / n  # of a cycle; inside it the drift meets configurations in random order
    times = step * np.arange(n)
    shuffled = step**2 * (k + 1) / (6 * k)  # what that adds to the variance of a difference of two runs
    for _ in range(studies):
        sigma = rng.uniform(*CVS[spreads], size=k)
        truth = rng.normal(0, 0.2, size=k)
        places = np.array([1 + rng.permutation(k) for _ in range(n)]).T / k
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
            *adjusted(logs - truth[:, None], float(fmean(times) + step * (k + 1) / (2 * k)), rng),
        ]
        ideal = student_t(0.975, (k - 1) * (n - 1)) * math.sqrt((sigma[0] ** 2 + sigma[1] ** 2 + shuffled) / n)
        widths.append(math.log(one.high / one.low) / 2 / ideal)
    return Cell(k, n, spreads, drift_share, studies, *(hits / studies).tolist(), fmean(widths))


def adjusted(noise: np.ndarray, drifted: float, rng: np.random.Generator) -> tuple[bool, bool]:
    """Whether the interval of adjusted joules of configuration 2 against 1 holds, with the baseline's term and without.

    Args:
        noise: Of ln(joules), by configuration and cycle, drift included.
        drifted: Mean of the drift in it.
        rng: Draws powers and the error of the idle power.

    """
    load_w = rng.uniform(250, 650, size=len(noise))
    known_w = IDLE_W + rng.normal(0, IDLE_STD_W)
    joules = WINDOW_S * (load_w[:, None] * np.exp(noise) - known_w)
    true = load_w * math.exp(drifted) - IDLE_W
    fit = fit_logs({i: dict(enumerate(row.tolist())) for i, row in enumerate(joules)})
    when, runs = frozenset({datetime(2026, 1, 1, tzinfo=UTC)}), noise.shape[1]
    shares = [IdleShare(WINDOW_S / float(row.mean()), IDLE_STD_W, when, runs) for row in joules[:2]]
    found = [in_blocks(fit, 0, 1, shared=shared) for shared in (idle_part(*shares), 0.0)]
    held = [f is not None and f.low <= true[1] / true[0] <= f.high for f in found]
    return held[0], held[1]


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
