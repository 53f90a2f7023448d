"""`llem logs` and `llem results -o` on a node: the log of a real pod, files out of a store that only pods may read."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.process import FAST, Ended, llem, over, wait_until
from cluster.commands import Kubectl, ObjectStore
from cluster.kube import Kube, condition, install_crds
from llem_operator.objects import experiment_object, jobs_of
from llem_operator.settings import Settings
from llenergymeasure.core.termination import TerminationRecord, parse_termination

pytestmark = pytest.mark.cluster

DONE = [condition("Finished", "True", "Completed", "1 run is measured"), condition("Succeeded", "True", "ResultStored")]
SMALL = {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"cpu": "1", "memory": "1Gi"}}


@pytest.fixture
def kube(kubectl: Kubectl, namespace: str) -> Kube:
    """The node's API server with llem's kinds, in a namespace that takes only restricted pods."""
    found = Kube(kubectl.kubeconfig, Path(kubectl.program), namespace)
    install_crds(found)
    return found


@pytest.fixture
def measured(
    kube: Kube, images: dict[str, str], object_store: ObjectStore, tmp_path: Path
) -> Iterator[tuple[str, TerminationRecord]]:
    """A study of one run that a pod has really done: the operator's own Job, its end written as the operator does."""
    keys = {"AWS_ACCESS_KEY_ID": object_store.access_key_id, "AWS_SECRET_ACCESS_KEY": object_store.secret_access_key}
    kube.ok("create", "secret", "generic", "store", *(f"--from-literal={k}={v}" for k, v in keys.items()))
    spec: dict[str, Any] = {
        "design": over(FAST, {"experiments": [{}]}),
        "execution": {"nCycles": 1},
        "template": {"images": {"synthetic": images["pytorch"]}, "imagePullPolicy": "Never", "resources": SMALL},
        "results": {
            "uri": f"s3://{object_store.bucket}/{kube.namespace}",
            "endpoint": object_store.endpoint,
            "region": object_store.region,
            "credentialsSecretRef": {"name": "store"},
        },
    }
    manifest = {"apiVersion": "llem.dev/v1alpha1", "kind": "EnergyStudy", "metadata": {"name": "one"}, "spec": spec}
    (tmp_path / "one.yaml").write_text(json.dumps(manifest), encoding="utf-8")
    applied = verb(kube, tmp_path, "apply", "one.yaml")
    assert applied.code == 0, applied.err
    study = kube.get("est", "one")
    (job,) = jobs_of(study, Settings())
    child = _child(study)
    kube.apply(child)
    name = child["metadata"]["name"]
    job["metadata"]["ownerReferences"][0]["uid"] = kube.get("eexp", name)["metadata"]["uid"]
    kube.apply(job)
    pod = wait_until(lambda: _ended(kube), limit_s=120)
    record = parse_termination(pod["status"]["containerStatuses"][0]["state"]["terminated"]["message"])
    assert record is not None, pod["status"]
    assert record.outcome == "stored", record
    summary = {"verdict": record.verdict, "tokensPerSecond": str(record.numbers.tokens_per_second)}
    attempt = {"attempt": 1, "podName": pod["metadata"]["name"], "jobName": job["metadata"]["name"]}
    result = {"uri": record.uri, "sha256": record.sha256}
    told = {"conditions": DONE, "observedGeneration": 1, "attempts": [attempt], "result": result, "summary": summary}
    kube.patch("eexp", name, {"status": told}, status=True)
    uri = f"{spec['results']['uri']}/one-{study['metadata']['uid'][:8]}"
    told = {"conditions": DONE, "observedGeneration": 1, "counts": {"total": 1, "completed": 1}, "resultsURI": uri}
    kube.patch("est", "one", {"status": told}, status=True)
    yield "one", record
    verb(kube, tmp_path, "delete", "one")


def verb(kube: Kube, cwd: Path, *words: object) -> Ended:
    """Run `llem WORDS…` in that namespace."""
    env = {"KUBECONFIG": str(kube.kubeconfig), "KUBECTL": str(kube.kubectl)}
    return llem(*words, "-n", kube.namespace, cwd=cwd, env=env)


def _child(study: dict[str, Any]) -> dict[str, Any]:
    from llem_operator.acceptance import Accepted, accept_study

    accepted = accept_study(study, Settings())
    assert isinstance(accepted, Accepted), accepted
    (run,) = accepted.runs
    return experiment_object(study, run, accepted.configuration(run))


def _ended(kube: Kube) -> dict[str, Any] | None:
    found = json.loads(kube.ok("get", "pods", "-o", "json"))["items"]
    ended = [p for p in found if p["status"].get("phase") in ("Succeeded", "Failed")]
    return ended[0] if ended else None


def test_logs_and_results_of_a_real_run(kube: Kube, measured: tuple[str, TerminationRecord], tmp_path: Path) -> None:
    """The log is the pod's; the files come through a reader pod, digest for digest, and the pod is gone afterwards."""
    study, record = measured

    logs = verb(kube, tmp_path, "logs", study, 0)
    fetched = verb(kube, tmp_path, "results", study, "-o", "copy")

    assert '"event": "phase"' in logs.out
    assert fetched.code == 0, fetched.err
    assert "1 of 1 run completed" in fetched.out
    (result,) = (tmp_path / "copy").rglob("result.json")
    assert hashlib.sha256(result.read_bytes()).hexdigest() == record.sha256
    assert {p.name for p in result.parent.iterdir()} >= {"config.json", "environment.json", "timeseries.parquet"}
    assert (tmp_path / "copy" / "study.json").is_file()
    wait_until(lambda: "reader" not in kube.ok("get", "pods", "-o", "name"))


def test_results_that_nobody_can_fetch_say_why(
    kube: Kube, measured: tuple[str, TerminationRecord], tmp_path: Path
) -> None:
    """Jobs gone: no pod can be made like theirs; what remains is to read the store oneself."""
    study, _ = measured
    kube.ok("delete", "jobs", "--all", "--wait=true")

    fetched = verb(kube, tmp_path, "results", study, "-o", "copy")

    assert fetched.code == 1
    assert "--direct" in fetched.err
    assert "1 of 1 run completed" in fetched.out
