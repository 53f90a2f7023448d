"""The two sides of a comparison: a study, a run, or a configuration of one, with what its runs gave."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llenergymeasure.core.config import ExperimentConfig
from llenergymeasure.core.errors import StudyError
from llenergymeasure.core.plan import describe_all, make_plan
from llenergymeasure.core.result import ExperimentResult
from llenergymeasure.object_store import Access, open_place
from llenergymeasure.stored_study import Rebuilt, rebuild
from llenergymeasure.study_summary import by_position

_RUN_OF_STUDY = re.compile(r"/(?:runs/\d{5,}_c\d+_[^/]+|\d{5,}-[0-9a-f]{8}-c\d+(?:/a\d+)?)$")


@dataclass(frozen=True)
class Configuration:
    """One configuration of a side with its results by cycle."""

    config_hash: str
    summary: str
    runs: Mapping[int, ExperimentResult]
    config: ExperimentConfig | None = None

    @property
    def pretended(self) -> bool:
        """Whether its engine or its sensor is pretended."""
        return any(r.synthetic for r in self.runs.values())


@dataclass(frozen=True)
class Side:
    """A study or a single run as one of the two that are compared; `picked` is the position of the one that was named.

    `name` is what the user wrote, `uri` where that lies, `order` the study's cycle_order.
    """

    name: str
    uri: str
    order: str
    configurations: Sequence[Configuration]
    picked: int | None = None

    @property
    def positions(self) -> list[int]:
        """The configurations that are meant."""
        return [*range(len(self.configurations))] if self.picked is None else [self.picked]

    @property
    def study_uri(self) -> str:
        """Where the study lies that it is, or that it is a run of."""
        return _RUN_OF_STUDY.sub("", self.uri)


def read_side(text: str, access: Access) -> Side:
    """Read what the user named: PLACE, or PLACE#HASH for one configuration of it.

    Raises:
        StudyError: The hash fits no configuration, or several. Others as `stored_study.rebuild`.

    """
    place, mark, digits = (text, "", "") if Path(text).exists() else text.rpartition("#")
    side = side_of(rebuild(open_place(place if mark else text, access)), text)
    return replace(side, picked=_position(side, digits)) if mark else side


def side_of(rebuilt: Rebuilt, name: str) -> Side:
    """A study as a side."""
    plan, summaries = make_plan(rebuilt.config), describe_all(rebuilt.config.experiments)
    hashes = {run.position: run.config_hash for run in plan.runs}
    runs = by_position(plan, rebuilt.by_index())
    configurations = [
        Configuration(hashes[i], summary, runs.get(i, {}), config)
        for i, (summary, config) in enumerate(zip(summaries, rebuilt.config.experiments, strict=True))
    ]
    return Side(name, rebuilt.place.uri, rebuilt.config.execution.cycle_order, configurations)


def _position(side: Side, digits: str) -> int:
    found = [i for i, c in enumerate(side.configurations) if digits and c.config_hash.startswith(digits.lower())]
    if len(found) == 1:
        return found[0]
    what = "fits several configurations" if found else "is the beginning of no configuration's hash"
    raise StudyError(f"{side.name}: {digits!r} {what}; there are {listed(side)}")


def listed(side: Side) -> str:
    """The configurations of a side, to choose one from: hashes and summaries, at most ten."""
    shown = [f"{c.config_hash[:8]} ({c.summary})" for c in side.configurations[:10]]
    return ", ".join(shown) + (" …" if len(side.configurations) > 10 else "")
