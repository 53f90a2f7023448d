"""What must hold of every study, whatever happened to it: the oracles O1 to O9 of the list of faults.

`Recorder` keeps every change that the API server tells of; what must never be true for a moment is read off that.
"""

import hashlib
import json
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cluster.kube import Kube
from cluster.operators import Bench, conditions
from llem_operator.children import members
from llem_operator.names import owner_uid
from llenergymeasure.core.resources import LABEL_EXPERIMENT, LABEL_STUDY

Object = dict[str, Any]
Change = tuple[str, Object]
PATHS = {
    "jobs": "/apis/batch/v1/namespaces/{}/jobs",
    "pods": "/api/v1/namespaces/{}/pods",
    "experiments": "/apis/llem.dev/v1alpha1/namespaces/{}/energyexperiments",
}


class Recorder:
    """Every change of Jobs, pods and experiments of a namespace, in the API server's own order per kind."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        self._folder = tempfile.TemporaryDirectory()
        self._watches: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        for kind, path in PATHS.items():
            with self._file(kind).open("wb") as out:
                query = f"{path.format(self._kube.namespace)}?watch=true&timeoutSeconds=3600"
                command = [self._kube.kubectl, "--kubeconfig", self._kube.kubeconfig, "get", "--raw", query]
                self._watches.append(subprocess.Popen(command, stdout=out, stderr=subprocess.PIPE))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        self._folder.cleanup()

    def _stop(self) -> None:
        for watch in self._watches:
            watch.terminate()
            watch.wait()
        self._watches.clear()

    def _file(self, kind: str) -> Path:
        return Path(self._folder.name) / kind

    def changes(self, kind: str) -> list[Change]:
        """What was told of a kind up to now."""
        broken = [w.communicate()[1] for w in self._watches if w.poll() is not None]
        assert broken == [], "a watch has ended early"
        lines = self._file(kind).read_bytes().split(b"\n")
        told = [json.loads(line) for line in lines[:-1] if line]
        assert all(t["type"] != "ERROR" for t in told), told[-1]
        return [(t["type"], t["object"]) for t in told]


# --- while it goes on


def doubled(recorder: Recorder) -> list[str]:
    """O1: at most one live Job and one pod that may measure per experiment, one Job per attempt."""
    found = []
    for kind, is_live in (("jobs", _job_lives), ("pods", _pod_lives)):
        live: dict[str, set[str]] = defaultdict(set)
        for what, obj in recorder.changes(kind):
            experiment = (obj["metadata"].get("labels") or {}).get(LABEL_EXPERIMENT)
            if experiment is None:
                continue
            uid = obj["metadata"]["uid"]
            (live[experiment].add if what != "DELETED" and is_live(obj) else live[experiment].discard)(uid)
            if len(live[experiment]) > 1:
                found.append(
                    f"{experiment} has {len(live[experiment])} live {kind} when {obj['metadata']['name']} changes"
                )
    made: dict[str, set[str]] = defaultdict(set)
    for _, job in recorder.changes("jobs"):
        made[f"{job['metadata']['name']} of {owner_uid(job)}"].add(job["metadata"]["uid"])
    return found + [f"Job {name} was made {len(uids)} times" for name, uids in made.items() if len(uids) > 1]


def _job_lives(job: Object) -> bool:
    ends = {c["type"] for c in job.get("status", {}).get("conditions") or () if c["status"] == "True"}
    return not ends & {"Complete", "Failed"}


def _pod_lives(pod: Object) -> bool:
    states = [s.get("state") or {} for s in pod["status"].get("containerStatuses") or ()]
    return pod["status"].get("phase") not in ("Succeeded", "Failed") and not any("terminated" in s for s in states)


def reopened(recorder: Recorder) -> list[str]:
    """O3: an experiment that is over stays over, but for a higher retryEpoch."""
    found, ended = [], {}
    for what, obj in recorder.changes("experiments"):
        status, uid = obj.get("status") or {}, obj["metadata"]["uid"]
        epoch = int(status.get("observedRetryEpoch") or 0)
        if what != "DELETED" and not status.get("finished") and ended.get(uid, epoch) >= epoch and uid in ended:
            found.append(f"{obj['metadata']['name']} was over and goes on")
        if status.get("finished"):
            ended[uid] = epoch
        else:
            ended.pop(uid, None)
    return found


# --- at the end


def miscounted(bench: Bench, name: str) -> list[str]:
    """O2: the counts add up to the total, the ranges to the plan, both to what the experiments say."""
    study = bench.get(name)
    counts, indexes = study["status"]["counts"], study["status"].get("indexes") or {}
    states = ("pending", "running", "completed", "failed", "cancelled")
    found = [] if sum(counts[s] for s in states) == counts["total"] else [f"counts do not add up: {counts}"]
    placed = [i for s in states for i in members(indexes.get(s, ""))]
    if len(placed) != len(set(placed)) or len(placed) + counts["pending"] != counts["total"]:
        found.append(f"ranges do not part the plan: {indexes}, {counts}")
    children = bench.children(name)
    if [c["spec"]["index"] for c in children] != list(range(counts["total"])):
        found.append(f"experiments are not the plan: {[c['metadata']['name'] for c in children]}")
    completed = {c["spec"]["index"] for c in children if conditions(c)["Succeeded"]["status"] == "True"}
    if completed != set(members(indexes.get("completed", ""))):
        found.append(f"completed are {completed}, the study says {indexes}")
    return found


def unmeasured(bench: Bench, name: str) -> list[str]:
    """O4: each completed run has exactly one result in the store, and its status has that one's digest."""
    study, found = bench.get(name), []
    stored: dict[str, list[Path]] = defaultdict(list)
    for path in bench.stored(study):
        stored[path.parent.parent.name].append(path)
    for child in bench.children(name):
        run = f"{child['spec']['index']:05d}-{child['spec']['configHash'][:8]}-c{child['spec']['cycle']}"
        files = stored.pop(run, [])
        completed = conditions(child)["Succeeded"]["status"] == "True"
        if len(files) != (1 if completed else 0):
            found.append(f"{run} has {len(files)} results, Succeeded is {completed}")
        elif completed and hashlib.sha256(files[0].read_bytes()).hexdigest() != child["status"]["result"]["sha256"]:
            found.append(f"{run}: the digest in the status is not the stored result's")
    return found + [f"a result of no run: {p}" for paths in stored.values() for p in paths]


def behind(bench: Bench, name: str) -> list[str]:
    """O9: every status speaks of the newest spec."""
    objects = [bench.get(name), *bench.children(name)]
    return [
        f"{o['metadata']['name']}: {o['status'].get('observedGeneration')} of {o['metadata']['generation']}"
        for o in objects
        if o["status"].get("observedGeneration") != o["metadata"]["generation"]
    ]


def end_state(bench: Bench, name: str) -> Object:
    """O5: what must be the same as in a run without faults: counts, ranges, conditions."""
    study = bench.get(name)
    told = {c["type"]: (c["status"], c["reason"], c["message"]) for c in study["status"]["conditions"]}
    kept = {k: study["status"].get(k) for k in ("counts", "indexes", "finished")}
    ends = [{t: (c["status"], c["reason"]) for t, c in conditions(child).items()} for child in bench.children(name)]
    return {**kept, "conditions": told, "experiments": ends}


def sound(bench: Bench, *names: str, recorder: Recorder | None = None) -> list[str]:
    """O1 to O4 and O9 of studies that are over; empty if all is well."""
    found = [p for n in names for check in (miscounted, unmeasured, behind) for p in check(bench, n)]
    return found + (doubled(recorder) + reopened(recorder) if recorder else [])


def orphans(bench: Bench) -> list[str]:
    """O6: experiments of studies, Jobs and pods whose controller is gone."""
    there = {o["metadata"]["uid"] for kind in ("est", "eexp", "jobs") for o in bench.all(kind)}
    return [
        f"{kind}/{obj['metadata']['name']}"
        for kind in ("eexp", "jobs", "pods")
        for obj in bench.all(kind)
        if (obj["metadata"].get("labels") or {}).get(LABEL_STUDY) and owner_uid(obj) not in there
    ]


def unwaiting(children: Sequence[Object]) -> Iterator[str]:
    """O8: an experiment that is not over says in a sentence what it waits for."""
    for child in children:
        told = conditions(child).get("Finished", {})
        if told.get("status") != "True" and not (told.get("reason") and told.get("message")):
            yield f"{child['metadata']['name']} says nothing"


def written(bench: Bench, seconds: float) -> list[str]:
    """O7: objects whose resourceVersion moves within so many seconds in which nothing happens."""
    before = _versions(bench)
    time.sleep(seconds)
    after = _versions(bench)
    return sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))


def _versions(bench: Bench) -> dict[str, str]:
    listed = json.loads(bench.kube.ok("get", "est,eexp,jobs", "-o", "json"))["items"]
    return {f"{o['kind']}/{o['metadata']['name']}": o["metadata"]["resourceVersion"] for o in listed}
