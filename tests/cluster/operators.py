"""The operator of the chart at work in a namespace of a test's own, and the studies that the tests give to it."""

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.process import FAST, over, processes_with
from cluster import kube as kubes
from cluster.charts import CHART, Helm
from cluster.commands import ObjectStore
from cluster.kube import Kube
from llenergymeasure.core.resources import LABEL_EXPERIMENT, LABEL_STUDY

Object = dict[str, Any]

RELEASE = "llem"
LEASE = f"{RELEASE}-llenergymeasure-leader"
OPERATOR_PODS = "app.kubernetes.io/component=operator"
ON_THE_CPU: Object = {"gpu": {"count": 0}, "exclusivity": "GPU"}
"""A template for tests of anything but GPUs: the node has only one, and others use it."""

LIMIT_S = 240
"""A minute of it may pass until a killed operator's Lease has run out."""
POLL_S = 0.5


def wait_for(condition: Callable[[], Any], *, limit_s: float = LIMIT_S) -> Any:
    """Give the first true value of `condition`, which asks the cluster; fails the test after `limit_s`."""
    deadline_s = time.monotonic() + limit_s
    while not (value := condition()):
        assert time.monotonic() < deadline_s, f"did not become true within {limit_s:g} s"
        time.sleep(POLL_S)
    return value


@dataclass(frozen=True)
class Bench:
    """A namespace in which an operator runs studies; `results` is the chart's default destination."""

    kube: Kube
    store: ObjectStore
    results: Object

    # --- what a user does

    def study(self, name: str, *layers: Object, **spec: Any) -> str:
        """Apply a study of one quick configuration with `layers` over its design; give its name."""
        design = over(FAST, {"experiments": [{}]}, *layers)
        spec = {"execution": {"nCycles": 1}, "template": ON_THE_CPU, **spec}
        self.kube.apply(kubes.study(name, design=design, **spec))
        return name

    def change(self, name: str, **spec: Any) -> None:
        """Merge a change into a study's spec."""
        self.kube.patch("est", name, {"spec": spec})

    def delete(self, kind: str, name: str, *flags: str) -> None:
        """Delete an object and wait until it is gone."""
        self.kube.ok("delete", kind, name, *flags)

    # --- what there is

    def get(self, name: str) -> Object:
        """A study."""
        return self.kube.get("est", name)

    def all(self, kind: str, **labels: str) -> list[Object]:
        """Objects of a kind by labels, in order of their names."""
        selector = ",".join(f"{k}={v}" for k, v in labels.items())
        listed = json.loads(self.kube.ok("get", kind, "-o", "json", "-l", selector))["items"]
        return sorted(listed, key=lambda o: str(o["metadata"]["name"]))

    def children(self, study: str) -> list[Object]:
        """A study's experiments in order of their index."""
        return self.all("eexp", **{LABEL_STUDY: study})

    def jobs(self, study: str) -> list[Object]:
        """A study's Jobs."""
        return self.all("jobs", **{LABEL_STUDY: study})

    def pods(self, experiment: str) -> list[Object]:
        """Pods of an experiment."""
        return self.all("pods", **{LABEL_EXPERIMENT: experiment})

    def stored(self, study: Object, file: str = "result.json") -> list[Path]:
        """Files of one name in the store below a study's folder."""
        return sorted(self.folder(study).rglob(file))

    def folder(self, study: Object) -> Path:
        """The study's folder in the store, as the test sees it."""
        uri = str(self.results["uri"]).removeprefix("s3://")
        return Path(self.store.folder) / uri / f"{study['metadata']['name']}-{study['metadata']['uid'][:8]}"

    # --- what happens

    def finished(self, name: str, *, limit_s: float = LIMIT_S) -> Object:
        """Wait until a study is over, as far as its present spec is concerned; give it."""
        return self.until("est", name, _over, limit_s=limit_s)

    def until(self, kind: str, name: str, is_so: Callable[[Object], Any], *, limit_s: float = LIMIT_S) -> Object:
        """Wait until something is so of an object; give the object, or fail with what its conditions say."""
        seen: Object = {}

        def looked() -> bool:
            done = self.kube.run("get", kind, name, "-o", "json")
            seen.clear()
            seen.update(json.loads(done.stdout) if done.returncode == 0 else {})
            return bool(seen) and bool(is_so(seen))

        try:
            wait_for(looked, limit_s=limit_s)
        except AssertionError as err:
            said = [f"{c['type']}={c['status']}/{c['reason']}: {c['message']}" for c in conditions(seen).values()]
            raise AssertionError(f"{kind} {name}: {err}; {said}") from None
        return seen

    def measuring(self, study: str, index: int = 0, *, attempt: int = 1) -> Object:
        """Wait until the container of a run's attempt works; give the experiment."""

        def runs(child: Object) -> bool:
            return child["status"].get("attempt") == attempt and reason(child, "Scheduled") == "Measuring"

        return self.until("eexp", self.child(study, index)["metadata"]["name"], runs)

    def child(self, study: str, index: int = 0) -> Object:
        """Wait for one experiment of a study; give it."""

        def found() -> Object | None:
            return next((c for c in self.children(study) if c["spec"]["index"] == index), None)

        given: Object = wait_for(found)
        return given

    # --- the operator itself

    def log(self, release: str = RELEASE) -> str:
        """What the operator's pods have written."""
        return self.kube.ok("logs", "-l", f"{OPERATOR_PODS},app.kubernetes.io/instance={release}", "--tail=-1")

    def complaints(self) -> list[str]:
        """Lines of the log that no study should cause; that kopf asks again where no answer came is none."""
        bad = [line for line in self.log().splitlines() if re.search(r"\b(ERROR|CRITICAL|Traceback)\b", line)]
        return [line for line in bad if not re.search(r"Request attempt \S+ failed; will retry: (?!.*Forbidden)", line)]

    def process(self) -> int:
        """Wait for the operator's process; give its number on this machine."""
        found: list[int] = wait_for(lambda: processes_with("LLEM_OPERATOR_NAMESPACE", self.kube.namespace))
        return found[0]

    def kill(self) -> None:
        """SIGKILL for the operator. Its pod goes, too, and its lease, or the kubelet and the next one would pause."""
        pods = [
            p["metadata"]["name"]
            for p in json.loads(self.kube.ok("get", "pods", "-l", OPERATOR_PODS, "-o", "json"))["items"]
        ]
        for pid in processes_with("LLEM_OPERATOR_NAMESPACE", self.kube.namespace):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.kube.run("delete", "pod", *pods, "--grace-period=0", "--force", "--wait=false")
        self.kube.patch("lease", LEASE, {"spec": {"holderIdentity": ""}})

    def scale(self, replicas: int) -> None:
        """Set the number of operators, and wait until so many run."""
        self.kube.ok("scale", "deployment", f"{RELEASE}-llenergymeasure", f"--replicas={replicas}")
        wait_for(lambda: len(processes_with("LLEM_OPERATOR_NAMESPACE", self.kube.namespace)) == replicas, limit_s=60)


def _over(study: Object) -> bool:
    status = study.get("status") or {}
    spec, epoch = study["spec"], status.get("observedRetryEpoch")
    current = status.get("observedGeneration") == study["metadata"]["generation"]
    return bool(status.get("finished")) and current and epoch == int(spec.get("retryEpoch") or 0)


def conditions(obj: Object) -> dict[str, Object]:
    """Conditions by type."""
    return {c["type"]: c for c in (obj.get("status") or {}).get("conditions") or ()}


def reason(obj: Object, kind: str = "Finished") -> str:
    """Reason of a condition; empty if it is not there."""
    return str(conditions(obj).get(kind, {}).get("reason", ""))


def message(obj: Object, kind: str = "Finished") -> str:
    """Message of a condition; empty if it is not there."""
    return str(conditions(obj).get(kind, {}).get("message", ""))


def values(images: dict[str, str], results: Object) -> Object:
    """The chart's values for this machine: images that are on the node, small pods, no pauses."""
    tag = images["operator"].rpartition(":")[2]
    small = {"requests": {"cpu": "20m", "memory": "64Mi"}, "limits": {"cpu": "1", "memory": "512Mi"}}
    run = {"requests": {"cpu": "20m", "memory": "128Mi"}, "limits": {"cpu": "1", "memory": "1Gi"}}
    return {
        "crds": {"install": False},
        "imageRegistry": "localhost",
        "image": {"tag": tag, "pullPolicy": "Never"},
        "runner": {
            "images": {name: {"tag": tag} for name in ("pytorch", "synthetic")},
            "imagePullPolicy": "Never",
            "resources": run,
        },
        "gaps": {"configSeconds": 0, "cycleSeconds": 0},
        "results": results,
        "operator": {"resources": small},
        "rbac": {"aggregateToUserRoles": False},
    }


@contextmanager
def installed(
    kube: Kube,
    helm: Helm,
    images: dict[str, str],
    store: ObjectStore,
    *,
    beside: tuple[str, ...] = (),
    more: Object | None = None,
) -> Iterator[Bench]:
    """The chart in a namespace of its own that takes only restricted pods, and in it a working operator.

    It also serves the namespaces `beside`; `more` is laid over the chart's values.
    """
    kubes.install_crds(kube)
    with kubes.namespace(kube, prefix="op") as own:
        keys = {"AWS_ACCESS_KEY_ID": store.access_key_id, "AWS_SECRET_ACCESS_KEY": store.secret_access_key}
        own.ok("create", "secret", "generic", "store", *(f"--from-literal={k}={v}" for k, v in keys.items()))
        bench = Bench(own, store, destination(store, own.namespace))
        watched = {"watchNamespaces": [own.namespace, *beside]} if beside else {}
        install(bench, helm, over(values(images, bench.results), watched, more or {}))
        try:
            yield bench
        finally:  # studies first: an operator that is told to stop leaves their pods alone
            own.run("delete", "est,eexp", "--all", "--wait=false")


def install(bench: Bench, helm: Helm, given: Object, release: str = RELEASE) -> None:
    """One release of the chart, its operator at work."""
    helm.ok("install", release, str(CHART), "-n", bench.kube.namespace, "--wait", "--timeout=120s", values=given)


def destination(store: ObjectStore, prefix: str, *, secret: str = "store") -> Object:
    """`results` of a study or a chart: below a prefix of a store, with the credentials in a Secret."""
    return {
        "uri": f"s3://{store.bucket}/{prefix}",
        "endpoint": store.endpoint,
        "region": store.region,
        "credentialsSecretRef": {"name": secret},
    }
