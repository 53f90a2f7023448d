"""A runner's pod on a real node, as restricted as the operator makes it: result in the store, record in the status."""

import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cli.process import FAST, over
from cluster import pods
from cluster.commands import Kubectl, ObjectStore
from llenergymeasure import ExperimentConfig, ExperimentResult
from llenergymeasure.core.identity import measurement_config_hash
from llenergymeasure.core.termination import TerminationRecord, parse_termination

REAL: dict[str, Any] = {
    "model": "builtin:smollm2-135m",
    "n": 2,
    "max_output_tokens": 4,
    "warmup": {"n_warmup": 1},
    "energy": {"backend": "none"},
    "precision": "fp32",
}


class Runner:
    """Pods of one run in a namespace of its own."""

    def __init__(self, kubectl: Kubectl, namespace: str, image: str, store: ObjectStore) -> None:
        self.kubectl, self.namespace, self.image, self.store = kubectl, namespace, image, store
        keys = {"AWS_ACCESS_KEY_ID": store.access_key_id, "AWS_SECRET_ACCESS_KEY": store.secret_access_key}
        self.kubectl.apply(
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "store"}, "stringData": keys},
            namespace=namespace,
        )

    def start(self, attempt: int, body: dict[str, Any], **more: str) -> str:
        """Make the pod of an attempt, give its name."""
        digest = measurement_config_hash(ExperimentConfig(**body))
        env = {
            "LLEM_EXPERIMENT": json.dumps(body),
            "LLEM_ATTEMPT": str(attempt),
            "LLEM_CONFIG_HASH": digest,
            "LLEM_RUN_URI": f"s3://{self.store.bucket}/{self.namespace}/run-0/00000-{digest[:8]}-c1",
            "LLEM_STORE_ENDPOINT": self.store.endpoint,
            "LLEM_STORE_REGION": self.store.region,
            "LLEM_STORE_CREDENTIALS": "/var/run/llem/store",
            "LLEM_TERMINATION_LOG": "/dev/termination-log",
            **more,
        }
        spec = pods.spec(self.image)
        (container,) = spec["containers"]
        del container["command"]
        limits = {"cpu": "2", "memory": "3Gi"}
        container |= {
            "name": "runner",
            "command": ["llem"],
            "args": ["experiment"],
            "resources": {"limits": limits, "requests": {"cpu": "50m", "memory": "256Mi"}},
            "terminationMessagePolicy": "FallbackToLogsOnError",
            "env": [
                *({"name": k, "value": v} for k, v in env.items()),
                {"name": "LLEM_NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
                {"name": "LLEM_POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            ],
            "volumeMounts": [
                {"name": "tmp", "mountPath": "/tmp"},
                {"name": "cache", "mountPath": "/cache"},
                {"name": "store", "mountPath": "/var/run/llem/store", "readOnly": True},
            ],
        }
        spec |= {
            "terminationGracePeriodSeconds": 60,
            "volumes": [
                {"name": "tmp", "emptyDir": {}},
                {"name": "cache", "emptyDir": {}},
                {"name": "store", "secret": {"secretName": "store"}},
            ],
        }
        self.kubectl.apply(pods.pod(f"run-a{attempt}", spec), namespace=self.namespace)
        return f"run-a{attempt}"

    def end(self, name: str, timeout_s: int = 120) -> tuple[int, TerminationRecord]:
        """Wait until a pod has ended; its exit code and record."""
        path = "{.status.containerStatuses[0].state.terminated.exitCode}"
        self.kubectl("wait", "-n", self.namespace, f"pod/{name}", f"--for=jsonpath={path}", f"--timeout={timeout_s}s")
        (status,) = self.kubectl.get("pod", name, "-n", self.namespace)["status"]["containerStatuses"]
        ended = status["state"]["terminated"]
        record = parse_termination(ended.get("message", ""))
        assert record is not None, ended
        return int(ended["exitCode"]), record

    def content(self, record: TerminationRecord) -> bytes:
        """The stored result."""
        assert record.uri is not None
        return (Path(self.store.folder) / record.uri.removeprefix("s3://")).read_bytes()


@pytest.fixture
def runner(kubectl: Kubectl, namespace: str, images: dict[str, str], object_store: ObjectStore) -> Runner:
    """A namespace with the store's Secret."""
    return Runner(kubectl, namespace, images["pytorch"], object_store)


def test_result_is_stored_and_adopted(runner: Runner) -> None:
    """Exit 0, the digest in the pod's status is the object's, the snapshot names node and pod; a second pod adopts."""
    code, record = runner.end(runner.start(1, over(FAST)))

    content = runner.content(record)
    machine = ExperimentResult.from_json(content).environment_snapshot
    assert (code, record.outcome, record.sha256) == (0, "stored", hashlib.sha256(content).hexdigest())
    assert machine["pod"] == "run-a1"
    assert machine["node"]

    code, again = runner.end(runner.start(2, over(FAST)))
    assert (code, again.adopted, again.sha256) == (0, True, record.sha256)


def test_real_model_needs_no_writable_root(runner: Runner) -> None:
    """torch and transformers measure with a read-only root file system, as an ordinary user, without a GPU."""
    code, record = runner.end(runner.start(1, REAL), timeout_s=300)

    assert code == 0, record
    assert record.numbers.output_tokens == 8
    assert record.verdict == "unmeasured"
    assert record.energy_null_reason


def test_failure_is_in_the_pods_status(runner: Runner) -> None:
    """What failed, where and with which code, without reading a log."""
    code, record = runner.end(runner.start(1, over(FAST, {"synthetic": {"fail_after_batches": 0}})))

    assert code == 16
    assert record.failure is not None
    assert (record.failure.type, record.failure.phase, record.failure.exit_code) == ("BackendError", "warmup", 16)


def test_deleted_pod_that_waits_ends_with_19(runner: Runner) -> None:
    """A pod in its pause is told to stop and ends at once, not after its grace period."""
    node = runner.kubectl.get("nodes")["items"][0]["metadata"]["name"]
    until = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    name = runner.start(1, over(FAST), LLEM_GAP_UNTIL=json.dumps({node: until}))
    ready = ("wait", "-n", runner.namespace, f"pod/{name}", "--for=jsonpath={.status.phase}=Running", "--timeout=60s")
    runner.kubectl(*ready)
    logs = ""
    for _ in range(100):
        logs = runner.kubectl("logs", "-n", runner.namespace, name)
        if '"gap"' in logs:
            break
    assert '"gap"' in logs

    began = datetime.now(UTC)
    runner.kubectl("delete", "-n", runner.namespace, f"pod/{name}", "--timeout=50s")

    assert datetime.now(UTC) - began < timedelta(seconds=45)  # of 60 s of grace
    failures = Path(runner.store.folder).glob(f"{runner.store.bucket}/{runner.namespace}/**/failure.json")
    (noted,) = [json.loads(p.read_bytes()) for p in failures]
    assert (noted["error"]["exit_code"], noted["error"]["phase"]) == (19, "gap")
