"""What joules per token follow from one fresh process to the next: the pace of the work, and the board's temperature.

Reads the files that gpu_repeat.py wrote; needs no GPU. Over the runs of all configurations it fits

    joules per token = own constant + (p + k x (temperature - mean temperature)) x seconds per token

with one constant per configuration and one p (W) and k (W/°C) for all: a GPU that waits for its host burns p for
longer, and a warmer board leaks k more. What is left is the scatter that neither explains. Each run is predicted from
the others, too, which tells a law from a curve through few points.

    python benchmarks/scatter.py [OUT.json [FILE.json.gz ...]]     # without files: those of this repository
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean
from typing import Any

import recorded
from judge import Run, groups, read

from llenergymeasure.core.least_squares import Solution, least_squares


@dataclass(frozen=True)
class Point:
    """One run; the fit takes everything as a share of its configuration's mean, so that configurations weigh alike."""

    run: Run
    energy_j: float  # per token
    mean_j: float  # of the configuration's runs
    pace_per_w: float  # seconds per token / mean_j: what one more watt would add
    warmth_per_w_c: float  # the same times (temperature - mean): what one more watt per °C would add

    @property
    def key(self) -> tuple[str, str]:
        """The file, and the configuration in it."""
        return self.run.source, self.run.key

    @property
    def energy(self) -> float:
        """Joules per token over the configuration's mean."""
        return self.energy_j / self.mean_j


def points(runs: Sequence[Run]) -> list[Point]:
    """The runs of every configuration that was repeated."""
    middle_c = fmean(r.temperature_c for r in runs)
    found = []
    for some in groups(runs).values():
        energies_j = [r.joules_per_token() for r in some]
        mean_j = fmean(energies_j)
        for run, energy_j in zip(some, energies_j, strict=True):
            pace = run.window_s / run.result["output_tokens"] / mean_j
            found.append(Point(run, energy_j, mean_j, pace, pace * (run.temperature_c - middle_c)))
    return [p for p in found if sum(q.key == p.key for q in found) > 1]


def solved(told: Sequence[Point], columns: Sequence[str]) -> tuple[Solution, int]:
    """The fit with a constant per configuration and these columns, and its degrees of freedom."""
    keys = sorted({p.key for p in told})
    rows = [[*(float(p.key == k) for k in keys), *(getattr(p, c) for c in columns)] for p in told]
    found = least_squares(rows, [p.energy for p in told])
    assert found is not None, "too few runs, or runs that do not differ"
    return found, len(rows) - len(rows[0])


def scatter(found: Solution, freedom: int) -> float:
    """Standard deviation of what is left, as a share of the mean joules per token."""
    return sqrt(sum(r * r for r in found.residuals) / freedom)


COLUMNS = ("pace_per_w", "warmth_per_w_c")


def left_out(told: Sequence[Point]) -> list[float]:
    """Each run's joules less their prediction from all others, against its configuration's other runs, as shares.

    The constant of a configuration comes from its other runs; p and k from the whole of the others.
    """
    misses = []
    for point in told:
        others = [p for p in told if p is not point]
        same = [p for p in others if p.key == point.key]
        paired = [p for p in others if sum(q.key == p.key for q in others) > 1]
        fit, _ = solved(paired, COLUMNS)
        slopes = fit.values[-len(COLUMNS) :]
        change = sum(
            b * (getattr(point, c) - fmean(getattr(p, c) for p in same)) for b, c in zip(slopes, COLUMNS, strict=True)
        )
        misses.append(point.energy - fmean(p.energy for p in same) - change)
    return misses


def judged(runs: Sequence[Run]) -> dict[str, Any]:
    """Scatter with and without either cause, p and k with standard errors, every run's figures."""
    told = points(runs)
    fits = {name: solved(told, columns) for name, columns in
            {"as measured": (), "pace": COLUMNS[:1], "temperature": COLUMNS[1:], "both": COLUMNS}.items()}  # fmt: skip
    both, freedom = fits["both"]
    misses = left_out(told)
    return {
        "scatter": {n: {"sd": scatter(*f), "degrees_of_freedom": f[1]} for n, f in fits.items()},
        "waiting_power_w": {"value": both.values[-2], "std_error": both.errors[-2]},
        "leakage_w_per_c": {"value": both.values[-1], "std_error": both.errors[-1]},
        "fit_degrees_of_freedom": freedom,
        "own_constants": constants(told, both),
        "left_out_rms": sqrt(fmean(m * m for m in misses)),
        "unexplained_rms": sqrt(fmean(_against_others(p, told) ** 2 for p in told)),
        "runs": [_row(*each) for each in zip(told, both.residuals, misses, strict=True)],
    }


def constants(told: Sequence[Point], fit: Solution) -> list[dict[str, Any]]:
    """What a token takes beside waiting and leaking at mean temperature, J: equal work must have equal constants."""
    means_j = {p.key: p.mean_j for p in told}
    return [
        {
            "file": file,
            "configuration": name,
            "joules_per_token": fit.values[i] * means_j[file, name],
            "std_error": fit.errors[i] * means_j[file, name],
        }
        for i, (file, name) in enumerate(sorted(means_j))
    ]


def _row(point: Point, residual: float, missed: float) -> dict[str, Any]:
    run = point.run
    return {
        "file": run.source,
        "configuration": run.key,
        "cycle": run.cycle,
        "joules_per_token": point.energy_j,
        "tokens_per_second": run.result["output_tokens"] / run.window_s,
        "temperature_c": run.temperature_c,
        "loaded_idle_power_w": run.result["loaded_idle_power_w"],
        "residual": residual,
        "left_out": missed,
    }


def _against_others(point: Point, told: Sequence[Point]) -> float:
    return point.energy - fmean(p.energy for p in told if p.key == point.key and p is not point)


def main() -> None:
    """Judge the files and print the record."""
    wanted = recorded.asked(__doc__)
    recorded.give(judged([r for f in wanted.files for r in read(f)]), wanted)


if __name__ == "__main__":
    main()
