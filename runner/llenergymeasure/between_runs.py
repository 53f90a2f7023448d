"""Remembers how far runs in fresh processes scatter on a GPU, from the studies that ended on it.

One file per set of GPUs in the user's cache holds a row per study: the sum of its squared residuals of ln(J/token) and
their degrees of freedom. A study that goes on replaces its own row. A single run takes its run-to-run uncertainty from
there instead of assuming it.
"""

import hashlib
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, TypeAdapter

from llenergymeasure import cache_file
from llenergymeasure.core.comparison import ENERGY
from llenergymeasure.core.result import ExperimentResult, StudyResult
from llenergymeasure.core.uncertainty import Spread, pooled

log = logging.getLogger(__name__)

FOLDER = "between_runs"
STUDIES_KEPT = 50  # of one set of GPUs; older ones tell of another driver or another summer


class StudySpread(BaseModel):
    """What one study adds."""

    gpus: list[str]
    squared_residuals: float
    degrees_of_freedom: int
    ended_at: AwareDatetime


_Rows = TypeAdapter(dict[str, StudySpread])


def known_spread(cache: Path, gpu_uuids: Sequence[str]) -> Spread | None:
    """Spread between runs on exactly these GPUs; None where no study has ended on them, or the file is broken."""
    return pooled(
        (r.squared_residuals, r.degrees_of_freedom) for r in cache_file.read(_file(cache, gpu_uuids), _Rows).values()
    )


def remember_spread(cache: Path, study: StudyResult, results: Iterable[ExperimentResult]) -> None:
    """Keep what a study that ended says of its GPUs; nothing if it ran on several sets of them, or says nothing.

    A cache that cannot be written is logged: the study is complete all the same.
    """
    counted = [r for r in results if r.energy_kind == "counter" and not r.synthetic and r.energy_per_device_j]
    boards = {tuple(sorted(r.energy_per_device_j or ())) for r in counted}
    found = next((c for c in study.comparisons if c.quantity == ENERGY), None)
    if len(boards) != 1 or found is None or found.pooled_cv is None or not found.degrees_of_freedom:
        return
    gpus = boards.pop()
    row = StudySpread(
        gpus=list(gpus),
        squared_residuals=found.pooled_cv**2 * found.degrees_of_freedom,
        degrees_of_freedom=found.degrees_of_freedom,
        ended_at=max(r.end_time for r in counted),
    )
    path = _file(cache, gpus)
    rows = {**cache_file.read(path, _Rows), f"{study.study_design_hash} {study.directory or study.name}": row}
    newest = sorted(rows.items(), key=lambda item: item[1].ended_at)[-STUDIES_KEPT:]
    try:
        cache_file.write(path, _Rows, dict(newest))
    except OSError as err:
        log.warning("%s: the spread between runs cannot be kept: %s", path, err)


def _file(cache: Path, gpu_uuids: Iterable[str]) -> Path:
    """A name that is safe and of one length, however many GPUs there are."""
    digest = hashlib.sha256(" ".join(sorted(gpu_uuids)).encode()).hexdigest()[:16]
    return cache / FOLDER / f"{digest}.json"
