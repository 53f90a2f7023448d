"""Results on a volume instead of a bucket: written by the runs, named `pvc://` in the status, fetched by a reader pod."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.process import llem
from cluster.operators import Bench, Object, reason

pytestmark = pytest.mark.cluster

SIZE = {"storage": "1Gi"}


@pytest.fixture
def claim(bench: Bench, tmp_path: Path) -> Iterator[str]:
    """A claim on a folder of this machine, which any user may write to, as a network file system would be."""
    folder = tmp_path / "volume"
    folder.mkdir()
    folder.chmod(0o777)
    name = f"results-{bench.kube.namespace}"
    common: Object = {"accessModes": ["ReadWriteMany"], "storageClassName": name}
    volume: Object = {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}}
    bench.kube.apply({**volume, "spec": {**common, "capacity": SIZE, "hostPath": {"path": str(folder)}}})
    wanted: Object = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}}
    bench.kube.apply({**wanted, "spec": {**common, "resources": {"requests": SIZE}}})
    yield name
    bench.kube.ok("delete", "pvc", name, "--wait=false")
    bench.kube.ok("delete", "pv", name, "--wait=false")


def test_results_on_a_volume(bench: Bench, claim: str, tmp_path: Path) -> None:
    """The files lie in the claim's folder, the status names them by `pvc://`, and a copy has the same digest."""
    bench.study("volume", results={"pvc": {"claimName": claim, "subPath": "llem"}})

    study = bench.finished("volume", limit_s=120)

    (child,) = bench.children("volume")
    assert (reason(study), reason(child, "Succeeded")) == ("Completed", "ResultStored")
    assert study["status"]["resultsURI"].startswith(f"pvc://{claim}/llem/volume-")
    result = child["status"]["result"]
    assert result["uri"].startswith(study["status"]["resultsURI"])
    (stored,) = (tmp_path / "volume" / "llem").rglob("result.json")
    assert hashlib.sha256(stored.read_bytes()).hexdigest() == result["sha256"]
    env = {"KUBECONFIG": str(bench.kube.kubeconfig), "KUBECTL": str(bench.kube.kubectl)}
    fetched = llem("results", "volume", "-o", "copy", "-n", bench.kube.namespace, cwd=tmp_path, env=env)
    assert fetched.code == 0, fetched.err
    (copy,) = (tmp_path / "copy").rglob("result.json")
    assert copy.read_bytes() == stored.read_bytes()
