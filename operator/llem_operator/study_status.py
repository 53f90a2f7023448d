"""Composes a study's status: counts, ranges, manifest, best configuration, conditions. Pure, and bounded in size."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import fmean
from typing import Any

from llem_operator.acceptance import EXPANDER_VERSION, Accepted, Refused
from llem_operator.children import Child, ranges
from llem_operator.conditions import Status, condition, merged
from llem_operator.experiment_status import Said, four_digits
from llem_operator.memory import Row
from llem_operator.names import study_uri
from llem_operator.timestamps import text, whole_seconds

INLINE_RUNS = 250
MAX_ACTIVE, MAX_FAILURES, MAX_BASELINES, FAILURE_CHARS = 16, 5, 16, 256
Trouble = tuple[str, str]
"""What keeps an accepted study from going on for now: NameTaken or Forbidden, and the words for it."""

COUNTED = ("pending", "running", "completed", "failed", "cancelled")


@dataclass(frozen=True)
class Situation:
    """What a study's status is made of."""

    study: Mapping[str, Any]
    accepted: Accepted
    rows: Sequence[Row]  # in the plan's order
    children: Mapping[int, Child]
    missing: int
    next_eligible: datetime | None
    waits_for: str
    tripped: bool
    unsettled: bool
    starting: bool
    trouble: Trouble | None = None

    @property
    def old(self) -> Mapping[str, Any]:
        """The status as read."""
        return self.study.get("status") or {}


def compose(s: Situation, now: datetime) -> dict[str, Any]:
    """The whole status of an accepted study."""
    counts = _counts(s)
    over = not s.missing and not s.unsettled and counts["pending"] == counts["running"] == 0
    epoch = int(s.study["spec"].get("retryEpoch") or 0)
    waiting = any(c.goes_again and c.epoch < epoch for c in s.children.values())
    over = over and not waiting
    begun = s.starting or counts["total"] > counts["pending"]
    started = s.old.get("startTime") or (text(now) if begun else None)
    found: dict[str, Any] = {
        "observedGeneration": int(s.study["metadata"].get("generation") or 0),
        "observedRetryEpoch": int(s.old.get("observedRetryEpoch") or 0) if waiting else epoch,
        "designHash": s.accepted.design_hash,
        "planHash": s.accepted.plan_hash,
        "expanderVersion": s.old.get("expanderVersion") or EXPANDER_VERSION,
        "finished": over,
        "counts": counts,
        "indexes": _indexes(s.rows),
        **_manifest(s.rows),
        "baselines": _baselines(s.children.values()) or None,
        "active": _active(s.children.values()) or None,
        "recentFailures": _recent_failures(s.children.values()) or None,
        "skipped": [{"reason": r[:FAILURE_CHARS], "count": n} for r, n in s.accepted.skipped] or None,
        "best": best(s),
        "resultsURI": study_uri(s.accepted.results, s.study),
        "startTime": started,
        "completionTime": (s.old.get("completionTime") or text(now)) if over else None,
        "nextEligibleTime": whole_seconds(s.next_eligible) if s.next_eligible and s.next_eligible > now else None,
    }
    found = {k: v for k, v in found.items() if v is not None}
    return {**found, "conditions": _conditions(s.study, _said(s, counts, over=over), now)}


def _counts(s: Situation) -> dict[str, int]:
    by_state = Counter(r.state for r in s.rows)
    return {
        "total": len(s.rows),
        **{state: by_state[state] for state in COUNTED},
        "interrupted": 0,
        "invalid": sum(r.invalid and r.state == "completed" for r in s.rows),
        "skipped": sum(n for _, n in s.accepted.skipped),
    }


def _indexes(rows: Iterable[Row]) -> dict[str, str]:
    rows = list(rows)
    found = {state: ranges(r.index for r in rows if r.state == state) for state in COUNTED if state != "pending"}
    found["invalid"] = ranges(r.index for r in rows if r.invalid and r.state == "completed")
    return {k: v for k, v in found.items() if v}


def _manifest(rows: Sequence[Row]) -> dict[str, Any]:
    if len(rows) > INLINE_RUNS:
        return {"manifestMode": "Ranges"}
    nodes = sorted({r.node for r in rows if r.node})
    places = {n: i for i, n in enumerate(nodes)}
    lines = [_line(r, places) for r in sorted(rows, key=lambda r: r.index)]
    return {"manifestMode": "Inline", "nodes": nodes or None, "manifest": lines}


def _line(row: Row, places: Mapping[str, int]) -> dict[str, Any]:
    line: dict[str, Any] = {"index": row.index, "cycle": row.cycle, "hash": row.hash[:8], "status": row.state}
    line |= {"attempt": row.attempt} if row.attempt else {}
    line |= {"nodeIndex": places[row.node]} if row.node else {}
    return line | ({"millijoulesPerOutputToken": row.millijoules} if row.millijoules else {})


def _baselines(children: Iterable[Child]) -> list[dict[str, Any]]:
    """The newest idle power per GPU, driver, kind and settings that runs of this study have measured."""
    newest: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for child in children:
        for row in child.baselines:
            key = (row["gpuUUID"], row.get("driver"), row["kind"], row.get("conditions"))
            if key not in newest or str(row["measuredAt"]) > str(newest[key]["measuredAt"]):
                newest[key] = row
    rows = sorted(newest.values(), key=lambda r: str(r["measuredAt"]), reverse=True)[:MAX_BASELINES]
    return [dict(r) for r in rows]


def _active(children: Iterable[Child]) -> list[dict[str, Any]]:
    running = sorted((c for c in children if c.state == "running"), key=lambda c: c.index)[:MAX_ACTIVE]
    rows = [
        {"experiment": c.name, "attempt": c.attempt, "node": c.node, "since": c.since, "message": c.message}
        for c in running
    ]
    return [{k: v for k, v in r.items() if v is not None} for r in rows]


def _recent_failures(children: Iterable[Child]) -> list[dict[str, Any]]:
    failed = [c for c in children if c.state == "failed" and c.ended]
    newest = sorted(failed, key=lambda c: (c.ended, c.index), reverse=True)[:MAX_FAILURES]
    return [{"experiment": c.name, "reason": c.reason, "message": c.message[:FAILURE_CHARS]} for c in newest]


def best(s: Situation) -> dict[str, Any] | None:
    """The configuration of the lowest mean over its cycles, among those whose results are all valid."""
    groups: dict[str, list[Child]] = {}
    for child in s.children.values():
        if child.state == "completed":
            groups.setdefault(child.hash, []).append(child)
    means = {
        digest: fmean(float(c.millijoules) for c in group if c.millijoules)
        for digest, group in groups.items()
        if all(c.verdict == "valid" and c.millijoules for c in group)
    }
    if not means:
        return None
    digest = min(means, key=lambda d: (means[d], d))
    summaries = {c.hash: c.summary for c in s.accepted.configurations}
    return {
        "experiment": min(groups[digest], key=lambda c: c.index).name,
        "configHash": digest,
        "configSummary": summaries.get(digest, digest)[:FAILURE_CHARS],
        "energyPerOutputTokenMillijoules": four_digits(means[digest]),
        "cycles": len(groups[digest]),
    }


def _said(s: Situation, counts: Mapping[str, int], *, over: bool) -> list[Said]:
    reason, message = _state(s, counts, over=over)
    suspended = bool(s.study["spec"].get("suspend"))
    created = counts["total"] - s.missing
    good = over and reason == "Completed"
    stuck = (over and not good) or s.trouble is not None
    yes: Status = "True"
    notices = "; ".join(s.accepted.notices)
    return [
        (
            "Accepted",
            yes,
            "Valid",
            notices or f"{counts['total']} runs of {len(s.accepted.configurations)} configurations",
        ),
        (
            "Expanded",
            "False" if s.missing else yes,
            "Expanding" if s.missing else "AllCreated",
            f"{created} of {counts['total']} experiments",
        ),
        (
            "Suspended",
            yes if suspended else "False",
            "Suspended" if suspended else "NotSuspended",
            f"spec.suspend is {str(suspended).lower()}",
        ),
        ("Succeeded", (yes if good else "False") if over else "Unknown", reason, message if over else ""),
        ("Finished", yes if over else "False", reason, message),
        ("Ready", "False" if stuck or s.missing else yes, reason, message if stuck else ""),
        ("Reconciling", yes if s.missing and not s.trouble else "False", reason, message if s.missing else ""),
        ("Stalled", yes if stuck else "False", reason, message if stuck else ""),
    ]


def _state(s: Situation, counts: Mapping[str, int], *, over: bool) -> tuple[str, str]:
    """The word and the sentence that say how the study stands."""
    done = f"{counts['completed']} of {counts['total']} runs completed"
    if over:
        if s.tripped or any(c.reason == "CircuitBreaker" for c in s.children.values()):
            return "CircuitBreaker", f"{done}, {counts['failed']} failed, {counts['cancelled']} not started"
        if counts["failed"] or counts["cancelled"]:
            return "RunsFailed", f"{done}, {counts['failed']} failed"
        invalid = f", {counts['invalid']} with an invalid verdict" if counts["invalid"] else ""
        return "Completed", f"{done}{invalid}"
    if s.trouble:
        return s.trouble
    if s.missing:
        return "Expanding", f"{counts['total'] - s.missing} of {counts['total']} experiments created"
    if s.study["spec"].get("suspend"):
        return "Suspended", f"{done}, {counts['running']} still running"
    if counts["running"]:
        return "Running", f"{done}; {_first_active(s, counts)}"
    if s.waits_for == "WaitingForGap" and s.next_eligible:
        return "WaitingForGap", f"{done}; the next may start at {whole_seconds(s.next_eligible)}"
    return (s.waits_for if s.waits_for in ("WaitingForRetry", "Pending") else "Pending"), done


def _first_active(s: Situation, counts: Mapping[str, int]) -> str:
    """What the run under way says; the most telling one of several is the one that waits."""
    running = sorted(
        (c for c in s.children.values() if c.state == "running"), key=lambda c: (c.reason == "Running", c.index)
    )
    if not running:
        return f"{counts['running']} running"
    others = f" (and {len(running) - 1} more)" if len(running) > 1 else ""
    return f"{running[0].name}: {running[0].message}{others}"


def _conditions(study: Mapping[str, Any], said: Sequence[Said], now: datetime) -> list[dict[str, Any]]:
    generation = int(study["metadata"].get("generation") or 0)
    old = (study.get("status") or {}).get("conditions") or ()
    return merged(old, [condition(old, *c, generation=generation, now=now) for c in said])


def refused(study: Mapping[str, Any], judged: Refused, now: datetime) -> dict[str, Any]:
    """The status of a study that cannot run as written; a repaired design is judged anew."""
    reason, message = judged.reason, judged.message
    said: list[Said] = [
        ("Accepted", "False", reason, message),
        ("Succeeded", "False", reason, message),
        ("Finished", "True", reason, message),
        ("Ready", "False", reason, message),
        ("Reconciling", "False", reason, message),
        ("Stalled", "True", reason, message),
    ]
    generation = int(study["metadata"].get("generation") or 0)
    return {"observedGeneration": generation, "finished": True, "conditions": _conditions(study, said, now)}


def stalled(study: Mapping[str, Any], reason: str, message: str, now: datetime) -> dict[str, Any]:
    """The status of an accepted study that cannot go on: what it knew is kept."""
    old: Mapping[str, Any] = study.get("status") or {}
    said: list[Said] = [
        ("Ready", "False", reason, message),
        ("Reconciling", "False", reason, message),
        ("Stalled", "True", reason, message),
    ]
    if not old.get("finished"):
        said.insert(0, ("Finished", "False", reason, message))
    generation = int(study["metadata"].get("generation") or 0)
    return {**old, "observedGeneration": generation, "conditions": _conditions(study, said, now)}
