"""Real clusters for tests: an API server of one's own, and the node of this machine, started if they are not there."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.charts import Helm, program
from cluster.commands import REAL_ENVIRONMENT, Kubectl, ObjectStore, run_cluster, status
from cluster.kube import Kube
from cluster.operators import Bench, installed

# LLEM_TEST_EXISTING=1 KUBECONFIG=…: run against that cluster, which must have the images, instead of starting one.
EXISTING = REAL_ENVIRONMENT.get("KUBECONFIG") if REAL_ENVIRONMENT.get("LLEM_TEST_EXISTING") == "1" else None


@pytest.fixture(scope="session")
def control_plane() -> Iterator[Path]:
    """The administrator's kubeconfig of an API server of this test session's own, without nodes."""
    _end_those_of_killed_sessions()
    name = ("--control-plane", "--name", f"test-{os.getpid()}-{uuid.uuid4().hex[:6]}")
    try:
        run_cluster("up", *name)
        yield Path(status(*name)["kubeconfig"])
    finally:
        run_cluster("down", *name)


def _end_those_of_killed_sessions() -> None:
    """A session that was killed could not end its own: take down what is named after a process that is gone."""
    home = REAL_ENVIRONMENT.get("XDG_CACHE_HOME") or f"{REAL_ENVIRONMENT['HOME']}/.cache"
    for state in (Path(home) / "llem" / "cluster").glob("test-*"):
        owner = state.name.split("-")[1]
        if not (owner.isdigit() and Path(f"/proc/{owner}").exists()):
            run_cluster("down", "--control-plane", "--name", state.name)


@pytest.fixture(scope="session")
def control_plane_kubectl(control_plane: Path) -> Kubectl:
    """kubectl for the cluster without nodes."""
    return Kubectl(run_cluster("which", "kubectl").strip(), control_plane)


@pytest.fixture(scope="session")
def node_was_up() -> bool:
    """True if somebody else started the node; then no test may stop it."""
    return EXISTING is not None or bool(status()["healthy"])


@pytest.fixture(scope="session")
def node(node_was_up: bool) -> Iterator[Path]:
    """The administrator's kubeconfig of the cluster with a node, the images on it."""
    if EXISTING is not None:
        yield Path(EXISTING)
        return
    try:
        run_cluster("up")
        run_cluster("load")
        yield Path(status()["kubeconfig"])
    finally:
        if not node_was_up:
            run_cluster("down")


@pytest.fixture(scope="session")
def images(node: Path) -> dict[str, str]:
    """References of the loaded images: `operator`, `pytorch`, `shell`; for imagePullPolicy Never."""
    return dict(status()["images"])


@pytest.fixture(scope="session")
def kubectl(node: Path) -> Kubectl:
    """kubectl for the cluster with a node."""
    return Kubectl(run_cluster("which", "kubectl").strip(), node)


@pytest.fixture
def namespace(kubectl: Kubectl) -> Iterator[str]:
    """A fresh namespace that takes only pods of the restricted level."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    kubectl("create", "namespace", name)
    kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    yield name
    kubectl("delete", "namespace", name, "--wait=false", "--ignore-not-found")


@pytest.fixture(scope="session")
def object_store(node: Path) -> ObjectStore:
    """The S3 server beside the node."""
    return ObjectStore(**status()["object_store"])


@pytest.fixture(scope="session")
def node_api(kubectl: Kubectl) -> Kube:
    """The API server of the cluster with a node."""
    return Kube(kubectl.kubeconfig, Path(kubectl.program))


@pytest.fixture(scope="session")
def node_helm(node_api: Kube, tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """helm for the cluster with a node."""
    return Helm(program("helm"), tmp_path_factory.mktemp("helm"), node_api.kubeconfig)


@pytest.fixture(scope="session")
def bench(node_api: Kube, node_helm: Helm, images: dict[str, str], object_store: ObjectStore) -> Iterator[Bench]:
    """An operator, installed by the chart, that tests share; each uses studies of names of its own."""
    with installed(node_api, node_helm, images, object_store) as found:
        yield found
