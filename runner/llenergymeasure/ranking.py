"""Puts configurations in order, and says which of them may be set beside the best. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from llenergymeasure.core.comparison import ENERGY, SPEED
from llenergymeasure.core.result import JUDGED, ExperimentResult, ExperimentStatistics
from llenergymeasure.core.study_statistics import estimated

Group = tuple[Iterable[ExperimentStatistics], Sequence[ExperimentResult]]
"""The configurations of a study, and the results of its runs."""


@dataclass(frozen=True)
class Ranked:
    """A configuration's place, 1 is best; `study` counts from 0; `synthetic`: its engine or its sensor is pretended."""

    rank: int
    study: int
    experiment: ExperimentStatistics
    synthetic: bool = False

    @property
    def verdict(self) -> str:
        """The verdicts of its cycles; what is pretended says so."""
        return marked(verdict_text(self.experiment.verdicts), synthetic=self.synthetic)

    def mean(self, quantity: str) -> float | None:
        """The mean of a quantity, to set beside that of others; None if it was not measured or is an estimate."""
        found = self.experiment.statistics.get(quantity)
        return None if found is None or self.estimates(quantity) else found.mean

    def estimates(self, quantity: str) -> bool:
        """Whether its mean is of a model's estimates: shown as such, never ranked or compared."""
        return quantity in JUDGED and estimated(self.experiment.verdicts)


def marked(verdict: str, *, synthetic: bool) -> str:
    """A verdict in words; that of something pretended says so."""
    return f"{verdict} (synthetic)" if synthetic else verdict


def ranked(groups: Iterable[Group], pretending: Iterable[str] = ()) -> list[Ranked]:
    """Fewest joules per output token first; without counted energy, fastest first; pretended after all measured.

    `pretending`: hashes of pretended configurations, where the results that say so are not at hand.
    """
    every, told = [], set(pretending)
    for i, (experiments, results) in enumerate(groups):
        pretended = told | {r.measurement_config_hash for r in results if r.synthetic}
        every += [(i, e, e.config_hash in pretended) for e in experiments]
    ordered = sorted(every, key=lambda found: _place(found[1], pretended=found[2]))
    return [Ranked(place, *found) for place, found in enumerate(ordered, start=1)]


def peers(order: Sequence[Ranked]) -> list[Ranked]:
    """Those to set beside the best: what is pretended says nothing on what was measured."""
    return [r for r in order if r.synthetic == order[0].synthetic]


def _place(experiment: ExperimentStatistics, *, pretended: bool) -> tuple[bool, bool, int, float]:
    energy, speed = experiment.statistics.get(ENERGY), experiment.statistics.get(SPEED)
    if energy is not None and not estimated(experiment.verdicts):
        return (False, pretended, 0, energy.mean)
    return (False, pretended, 1, -speed.mean) if speed is not None else (True, pretended, 2, 0.0)


def verdict_text(verdicts: Mapping[str, int]) -> str:
    """The verdict of all cycles; with counts if they differ."""
    return ", ".join(f"{n} {v}" if len(verdicts) > 1 else v for v, n in sorted(verdicts.items()))
