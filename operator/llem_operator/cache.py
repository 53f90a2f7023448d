"""What the operator has last seen, as small as decisions allow. A hint: what cannot be undone is read live first."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llem_operator.attempts import job_is_live
from llem_operator.children import Child, child_of
from llenergymeasure.core.resources import LABEL_EXPERIMENT

Name = tuple[str, str]
"""Namespace and name."""


def newer(seen: str, than: str) -> bool:
    """Whether a resourceVersion is later; they have been comparable numbers since Kubernetes 1.35."""
    if seen.isdigit() and than.isdigit():
        return (len(seen), seen) > (len(than), than)
    return seen != than


def lean_study(study: Mapping[str, Any]) -> dict[str, Any]:
    """A study without its manifest: specification, conditions, baselines."""
    status = {k: v for k, v in (study.get("status") or {}).items() if k not in ("manifest", "nodes", "indexes")}
    return {**study, "metadata": _lean_metadata(study), "status": status}


def lean_job(job: Mapping[str, Any]) -> dict[str, Any]:
    """A Job without its pod template, except for the pod's deadline, and without its counters."""
    spec = {k: v for k, v in job["spec"].items() if k in ("suspend", "ttlSecondsAfterFinished")}
    deadline = job["spec"]["template"]["spec"].get("activeDeadlineSeconds")
    spec["template"] = {"spec": {"activeDeadlineSeconds": deadline}}
    status = job.get("status") or {}
    conditions = [c for c in status.get("conditions") or () if c["type"] in JOB_CONDITIONS]
    return {
        "metadata": _identity(job),
        "spec": spec,
        "status": {"startTime": status.get("startTime"), "conditions": conditions},
    }


def lean_pod(pod: Mapping[str, Any]) -> dict[str, Any]:
    """A pod's identity, node and status."""
    status = {k: v for k, v in (pod.get("status") or {}).items() if k in ("phase", "reason", "message", "conditions")}
    status["containerStatuses"] = (pod.get("status") or {}).get("containerStatuses") or []
    return {
        "metadata": _identity(pod),
        "spec": {"nodeName": (pod.get("spec") or {}).get("nodeName")},
        "status": status,
    }


JOB_CONDITIONS = ("Complete", "Failed", "Suspended")  # others announce these
MAX_DELETED = 512
IDENTITY = ("name", "namespace", "uid", "labels", "ownerReferences", "creationTimestamp", "deletionTimestamp")


def _identity(obj: Mapping[str, Any]) -> dict[str, Any]:
    """Of a Job's or pod's metadata what decisions look at; finalizers and their like come and go without being news."""
    return {k: v for k, v in obj["metadata"].items() if k in (*IDENTITY, "resourceVersion")}


def _lean_metadata(obj: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in obj["metadata"].items() if k not in ("managedFields", "annotations")}


@dataclass
class Shelf:
    """Lean Jobs or pods by name, and which of them belong to which experiment."""

    objects: dict[Name, dict[str, Any]] = field(default_factory=dict)
    of_experiment: dict[Name, set[Name]] = field(default_factory=dict)
    deleted: dict[str, str] = field(default_factory=dict)  # UID → resourceVersion of its end, of the last few hundred

    def put(self, lean: dict[str, Any]) -> bool:
        """Keep an object unless a newer state of it is known; True if something that decisions look at is new."""
        name, metadata = _name(lean), lean["metadata"]
        end = self.deleted.get(metadata["uid"])
        if end is not None and newer(end, metadata["resourceVersion"]):
            return False  # of a list that was answered before it was deleted
        before = self.objects.get(name)
        if before is not None and not newer(metadata["resourceVersion"], before["metadata"]["resourceVersion"]):
            return False
        self.objects[name] = lean
        self.of_experiment.setdefault(owner_name(lean), set()).add(name)
        return before is None or _without_version(lean) != _without_version(before)

    def drop(self, name: Name) -> None:
        """Forget an object."""
        lean = self.objects.pop(name, None)
        if lean is not None:
            owner = owner_name(lean)
            self.of_experiment[owner].discard(name)
            if not self.of_experiment[owner]:
                del self.of_experiment[owner]

    def bury(self, obj: Mapping[str, Any]) -> bool:
        """Forget an object for good, as a watch has told its end; True if it was known."""
        metadata = obj["metadata"]
        self.deleted[metadata["uid"]] = metadata["resourceVersion"]
        while len(self.deleted) > MAX_DELETED:
            del self.deleted[next(iter(self.deleted))]
        known = _name(obj) in self.objects
        self.drop(_name(obj))
        return known

    def of(self, experiment: Name) -> list[dict[str, Any]]:
        """All objects of an experiment."""
        return [self.objects[n] for n in sorted(self.of_experiment.get(experiment, ()))]


def _stays(job: Mapping[str, Any]) -> bool:
    return job_is_live(job) or "ttlSecondsAfterFinished" not in job["spec"]


def _without_version(lean: Mapping[str, Any]) -> dict[str, Any]:
    return {**lean, "metadata": {k: v for k, v in lean["metadata"].items() if k != "resourceVersion"}}


def _name(obj: Mapping[str, Any]) -> Name:
    return obj["metadata"]["namespace"], obj["metadata"]["name"]


def owner_name(obj: Mapping[str, Any]) -> Name:
    """The experiment that a Job or pod is labelled with."""
    labels = obj["metadata"].get("labels") or {}
    return obj["metadata"]["namespace"], labels.get(LABEL_EXPERIMENT, "")


class Cache:
    """Studies, experiments as `Child`, Jobs and pods."""

    def __init__(self) -> None:
        self.studies: dict[Name, dict[str, Any]] = {}
        self.children: dict[Name, Child] = {}
        self.open: dict[Name, dict[str, Any]] = {}  # with an attempt under way or a Job that is not yet expiring, whole
        self._by_owner: dict[str, dict[int, Child]] = {}
        self.jobs, self.pods = Shelf(), Shelf()

    def put_study(self, study: Mapping[str, Any]) -> bool:
        """Keep a study unless a newer state is known; True if it was news."""
        name = _name(study)
        before = self.studies.get(name)
        version = study["metadata"]["resourceVersion"]
        if before is not None and not newer(version, before["metadata"]["resourceVersion"]):
            return False
        self.studies[name] = lean_study(study)
        return True

    def put_experiment(self, experiment: Mapping[str, Any]) -> bool:
        """Keep an experiment's projection unless a newer state is known; True if it was news."""
        name = _name(experiment)
        before = self.children.get(name)
        version = experiment["metadata"]["resourceVersion"]
        if before is not None and not newer(version, before.resource_version):
            if version == before.resource_version:
                self.keep_open(experiment)
            return False
        child = child_of(experiment)
        if before is not None and (before.owner, before.index) != (child.owner, child.index):
            self.drop_experiment(name)
        self.children[name] = child
        self.keep_open(experiment)
        if child.owner:
            self._by_owner.setdefault(child.owner, {})[child.index] = child
        return True

    def keep_open(self, experiment: Mapping[str, Any]) -> None:
        """Keep an experiment whole while its Jobs give reason to look at it."""
        name = _name(experiment)
        if self.children[name].state == "running" or any(map(_stays, self.jobs.of(name))):
            self.open[name] = {**experiment, "metadata": _lean_metadata(experiment)}
        else:
            self.open.pop(name, None)

    def is_settled(self, name: Name) -> bool:
        """Whether nothing is left to do for a run that is over: its Jobs expire, and its study may reopen it."""
        child, jobs = self.children.get(name), self.jobs.of(name)
        over = child is not None and child.owner and child.state not in ("pending", "running")
        return bool(over and jobs) and not any(map(_stays, jobs))

    def drop_experiment(self, name: Name) -> Child | None:
        """Forget an experiment; gives what was known of it."""
        child = self.children.pop(name, None)
        self.open.pop(name, None)
        if child is not None and child.owner:
            siblings = self._by_owner.get(child.owner, {})
            if siblings.get(child.index) is child:
                del siblings[child.index]
            if not siblings:
                self._by_owner.pop(child.owner, None)
        return child

    def has_finished(self, experiment: Mapping[str, Any]) -> bool:
        """Whether the end of this experiment, in this or a later state, is known."""
        child = self.children.get(_name(experiment))
        if child is None or child.state in ("pending", "running"):
            return False
        return not newer(experiment["metadata"]["resourceVersion"], child.resource_version)

    def children_of(self, study_uid: str) -> dict[int, Child]:
        """A study's experiments by index."""
        return dict(self._by_owner.get(study_uid, {}))

    def study_of(self, child: Child) -> dict[str, Any] | None:
        """The study that owns an experiment: by UID, never by a label or a name alone."""
        study = self.studies.get((child.namespace, child.study))
        return study if study is not None and study["metadata"]["uid"] == child.owner else None
