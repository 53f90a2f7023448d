"""What a study needs to know of its experiments, in a few hundred bytes each: 10,000 of them must fit into memory.

A child's own status is the truth; the study's ranges remember what a child said that was deleted by hand.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from sys import intern
from typing import Any

from llem_operator.conditions import find
from llem_operator.experiment import open_attempt, retry_at
from llem_operator.names import owner_uid
from llem_operator.timestamps import parse

ROW_STATES = ("pending", "running", "completed", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class Child:
    """One experiment of a study as last seen."""

    name: str
    namespace: str
    uid: str
    owner: str  # UID of its study; empty for one that stands alone
    study: str
    resource_version: str
    index: int
    hash: str
    state: str  # of ROW_STATES
    reason: str
    message: str
    attempt: int
    verdict: str | None
    millijoules: str | None
    node: str | None
    since: str | None  # when the open attempt began
    hot: tuple[str, datetime] | None  # node and end of its last measurement, for the pause on that node
    untouched: bool  # no status was ever written: new, or made again after it was deleted by hand
    began: datetime | None  # when its last attempt was decided
    ended: datetime | None  # when its end was written
    stopped: datetime | None  # when its last attempt ended, which may be long before
    next_after: datetime | None
    epoch: int
    deleting: bool
    baselines: tuple[Mapping[str, Any], ...]

    @property
    def goes_again(self) -> bool:
        """What retryEpoch is for: it failed, was cancelled, or its verdict is invalid."""
        return self.state in ("failed", "cancelled") or self.verdict == "invalid"


def child_of(experiment: Mapping[str, Any]) -> Child:
    """Project an experiment as read from the API."""
    metadata, spec, status = experiment["metadata"], experiment["spec"], experiment.get("status") or {}
    end = find(status.get("conditions") or (), "Finished") or {}
    owner = intern(owner_uid(experiment) or "")
    rows: Sequence[Mapping[str, Any]] = status.get("attempts") or []
    row = open_attempt(status)
    state = _state(status, row)
    summary = status.get("summary") or {}
    return Child(
        name=metadata["name"],
        namespace=intern(metadata["namespace"]),
        uid=metadata["uid"],
        owner=owner,
        study=intern(str((spec.get("studyRef") or {}).get("name", ""))) if owner else "",  # orphaned: it stands alone
        resource_version=metadata["resourceVersion"],
        index=int(spec.get("index") or 0),
        hash=intern(str(spec.get("configHash") or "")),
        state=state,
        reason=intern(str(end.get("reason", ""))),
        message="" if state == "completed" else str(end.get("message", ""))[:256],
        attempt=int(status.get("attempt") or 0),
        verdict=intern(summary["verdict"]) if summary.get("verdict") else None,
        millijoules=summary.get("energyPerOutputTokenMillijoules"),
        node=intern(status["node"]) if status.get("node") else None,
        since=row["created"] if row else None,
        hot=_hot(status),
        untouched="observedGeneration" not in status,
        began=parse(rows[-1].get("created")) if rows else None,
        ended=parse(status.get("completionTime")),
        stopped=parse(rows[-1].get("end")) if rows else None,
        next_after=retry_at(status) if state == "pending" else None,
        epoch=int(status.get("observedRetryEpoch") or 0),
        deleting="deletionTimestamp" in metadata,
        baselines=tuple(status.get("baselines") or ()),
    )


def _state(status: Mapping[str, Any], row: Mapping[str, Any] | None) -> str:
    if not status.get("finished"):
        return "running" if row else "pending"
    succeeded = find(status.get("conditions") or (), "Succeeded") or {}
    if succeeded.get("status") == "True":
        return "completed"
    return "cancelled" if succeeded.get("reason") in ("Cancelled", "CircuitBreaker") else "failed"


def _hot(status: Mapping[str, Any]) -> tuple[str, datetime] | None:
    """End of the last measurement: its own word, else the end of the container."""
    for row in reversed(status.get("attempts") or ()):
        end = parse(row.get("measurementEnd") or row.get("end"))
        if row.get("outcome") and row.get("start") and row.get("node") and end:
            return intern(row["node"]), end
    return None


def last_ends(children: Iterable[Child]) -> dict[str, datetime]:
    """By node, when the last measurement on it ended."""
    found: dict[str, datetime] = {}
    for child in children:
        if child.hot is not None:
            node, end = child.hot
            found[node] = max(end, found.get(node, end))
    return found


def ranges(indexes: Iterable[int]) -> str:
    """Interval text: 0-41,43."""
    parts: list[str] = []
    start = last = None
    for index in sorted(indexes):
        if last is not None and index == last + 1:
            last = index
            continue
        if start is not None:
            parts.append(_interval(start, last))
        start = last = index
    if start is not None:
        parts.append(_interval(start, last))
    return ",".join(parts)


def _interval(start: int, last: int | None) -> str:
    return str(start) if start == last else f"{start}-{last}"


def members(intervals: str) -> Iterator[int]:
    """The indexes of an interval text."""
    for part in intervals.split(",") if intervals else ():
        low, _, high = part.partition("-")
        yield from range(int(low), int(high or low) + 1)
