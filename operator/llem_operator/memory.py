"""What a study's status remembers of its runs, for experiments that were deleted by hand. Pure.

A finished measurement is never silently repeated: its experiment is made again with the end that the study recorded.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from llem_operator.children import Child, members
from llem_operator.experiment import DEFAULT_RETRY
from llem_operator.names import job_name
from llem_operator.timestamps import text
from llenergymeasure.core.plan import Run


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the manifest."""

    index: int
    cycle: int
    hash: str
    state: str
    attempt: int = 0
    node: str | None = None
    millijoules: str | None = None
    invalid: bool = False


def remembered(status: Mapping[str, Any]) -> dict[int, Row]:
    """Rows of a study's status that are not pending: from the manifest in full, else from the ranges."""
    rows: dict[int, Row] = {}
    indexes = status.get("indexes") or {}
    invalid = set(members(indexes.get("invalid", "")))
    for state in ("running", "completed", "failed", "cancelled"):
        for index in members(indexes.get(state, "")):
            rows[index] = Row(index, 0, "", state, 1 if state == "running" else 0, invalid=index in invalid)
    nodes = status.get("nodes") or []
    for line in status.get("manifest") or ():
        place = line.get("nodeIndex")
        if line["index"] in rows:
            rows[line["index"]] = Row(
                line["index"],
                line["cycle"],
                line["hash"],
                line["status"],
                int(line.get("attempt") or 0),
                nodes[place] if place is not None and place < len(nodes) else None,
                line.get("millijoulesPerOutputToken"),
                line["index"] in invalid,
            )
    return rows


def row_of(run: Run, child: Child | None, known: Mapping[int, Row]) -> Row:
    """The manifest's line of a run: its experiment's word, or the study's memory while there is none to be heard."""
    if child is None or (child.untouched and run.index in known):
        return known.get(run.index) or Row(run.index, run.cycle, run.config_hash, "pending")
    return Row(
        run.index,
        run.cycle,
        run.config_hash,
        child.state,
        child.attempt,
        child.node,
        child.millijoules,
        child.verdict == "invalid",
    )


def restored(row: Row, name: str, *, retry: Mapping[str, Any], epoch: int, now: datetime) -> dict[str, Any]:
    """The part of a status that an experiment made again is given; conditions are set by whoever writes it."""
    least = 0 if row.state == "cancelled" else 1  # one that was cancelled may never have been started
    base: dict[str, Any] = {"attempt": max(row.attempt, least), "observedRetryEpoch": epoch}
    if row.invalid:
        base["adoptFrom"] = base["attempt"] + 1
    if row.node:
        base["node"] = row.node
    if row.state == "running":
        lost = {
            "attempt": base["attempt"],
            "jobName": job_name(name, base["attempt"]),
            "created": text(now),
            "end": text(now),
            "outcome": "Lost",
            "reason": "ExperimentDeleted",
            "message": "the experiment was deleted by hand while it ran",
        }
        spared = int({**DEFAULT_RETRY, **retry}["infrastructure"]) > 0
        return {**base, "attempts": [lost], "finished": not spared, "retriesUsed": {"infrastructure": 1}}
    summary = {"verdict": "invalid"} if row.invalid else {}
    summary |= {"energyPerOutputTokenMillijoules": row.millijoules} if row.millijoules else {}
    return {**base, "finished": True, **({"summary": summary} if summary else {})}
