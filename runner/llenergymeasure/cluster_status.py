"""Reads what the operator wrote into a resource's status: conditions, counts, times. Pure, and patient with gaps."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from llenergymeasure.core import resources

Resource = Mapping[str, Any]

GITOPS = ("argocd", "kustomize-controller", "helm-controller", "flux")
"""How managers of fields that a Git repository feeds begin their names."""


def name_of(obj: Resource) -> str:
    """The object's name."""
    return str(obj["metadata"]["name"])


def namespace_of(obj: Resource) -> str:
    """The object's namespace."""
    return str(obj["metadata"].get("namespace") or "default")


def status_of(obj: Resource) -> Mapping[str, Any]:
    """The status, empty before the operator has written one."""
    return obj.get("status") or {}


def spec_of(obj: Resource) -> Mapping[str, Any]:
    """The specification."""
    return obj.get("spec") or {}


def is_study(obj: Resource) -> bool:
    """Whether this is an EnergyStudy."""
    return bool(obj.get("kind") == resources.STUDY_KIND)


def is_child(obj: Resource) -> bool:
    """Whether an experiment belongs to a study."""
    return bool(spec_of(obj).get("studyRef"))


def condition(obj: Resource, kind: str) -> Mapping[str, Any]:
    """The condition of that type; an empty one where there is none."""
    return next((c for c in status_of(obj).get("conditions") or () if c.get("type") == kind), {})


def holds(obj: Resource, kind: str) -> bool:
    """Whether a condition is True."""
    return bool(condition(obj, kind).get("status") == "True")


def fails(obj: Resource, kind: str) -> bool:
    """Whether a condition is False, which is more than not being there."""
    return bool(condition(obj, kind).get("status") == "False")


def message_of(obj: Resource, kind: str) -> str:
    """A condition's message on one line."""
    return one_line(str(condition(obj, kind).get("message") or ""))


def is_new(obj: Resource) -> bool:
    """Whether no operator has written a status yet; what the API server fills in speaks of no generation."""
    return not status_of(obj).get("observedGeneration")


def is_seen(obj: Resource) -> bool:
    """Whether the status speaks of the specification as it is now."""
    generation = obj["metadata"].get("generation") or 0
    return bool((status_of(obj).get("observedGeneration") or 0) >= generation)


def is_finished(obj: Resource) -> bool:
    """Whether nothing further happens by itself; false while the operator has not seen the latest change."""
    return is_seen(obj) and holds(obj, "Finished")


def has_succeeded(obj: Resource) -> bool:
    """Whether everything was measured and stored."""
    return is_finished(obj) and holds(obj, "Succeeded")


def state(obj: Resource) -> str:
    """One word for the state: the reason of the condition Finished."""
    if obj["metadata"].get("deletionTimestamp"):
        return "Deleting"
    if is_new(obj):
        return "New"
    return str(condition(obj, "Finished").get("reason") or condition(obj, "Accepted").get("reason") or "Pending")


def counts(obj: Resource) -> dict[str, int]:
    """The counts of runs; an absent one is 0."""
    names = ("total", "pending", "running", "completed", "failed", "invalid", "interrupted", "cancelled", "skipped")
    found = status_of(obj).get("counts") or {}
    return {n: int(found.get(n) or 0) for n in names}


def last_attempt(obj: Resource) -> Mapping[str, Any]:
    """The youngest attempt of an experiment; empty before the first."""
    attempts: Sequence[Mapping[str, Any]] = status_of(obj).get("attempts") or ()
    return max(attempts, key=lambda a: int(a.get("attempt") or 0), default={})


def git_managers(obj: Resource) -> list[str]:
    """Controllers that write this object from a Git repository."""
    managers = [str(m.get("manager") or "") for m in obj["metadata"].get("managedFields") or ()]
    return list(dict.fromkeys(m for m in managers if m.startswith(GITOPS)))


def when(text: Any) -> datetime | None:
    """A timestamp of the API; None where there is none."""
    return datetime.fromisoformat(str(text)).astimezone(UTC) if text else None


def age_text(text: Any, now: datetime) -> str:
    """How long ago, as kubectl says it: 90s, 12m, 5h, 3d."""
    then = when(text)
    return "-" if then is None else span_text((now - then).total_seconds())


def span_text(seconds: float) -> str:
    """A span as kubectl says it."""
    whole = max(0, int(seconds))
    for size, unit, until in ((1, "s", 120), (60, "m", 120 * 60), (3600, "h", 48 * 3600)):
        if whole < until:
            return f"{whole // size}{unit}"
    return f"{whole // 86400}d"


def one_line(text: str) -> str:
    """A text of several lines, or a list of problems, on one."""
    parts = [part.strip() for part in text.split("\n  - ")]
    head = f"{parts[0]}: {'; '.join(parts[1:])}" if len(parts) > 1 else parts[0]
    return " ".join(head.split())


def sentence(text: str) -> str:
    """With a full stop at its end."""
    text = one_line(text)
    return text if not text or text.endswith((".", "!", "?", "…")) else f"{text}."
