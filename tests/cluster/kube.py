"""An API server for tests: kubectl as its administrator or as somebody else, manifests as Python values."""

import contextlib
import json
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from cluster.commands import Kubectl

SOURCE = Path(__file__).resolve().parent
ROOT = SOURCE.parent.parent
GROUP_VERSION = "llem.dev/v1alpha1"
TIME = "2026-01-02T03:04:05Z"
RESTRICTED = "pod-security.kubernetes.io/enforce=restricted"


@dataclass(frozen=True)
class Kube:
    """One API server and one namespace of it."""

    kubeconfig: Path
    kubectl: Path
    namespace: str = "default"

    def run(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run kubectl; whoever calls looks at the exit code."""
        return subprocess.run(
            [self.kubectl, "--kubeconfig", self.kubeconfig, "-n", self.namespace, *arguments],
            input=stdin, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip

    def ok(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl, which must succeed, and give what it prints."""
        done = self.run(*arguments, stdin=stdin)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def apply(self, manifest: dict[str, Any] | str, *flags: str) -> str:
        """`kubectl apply`, which must succeed."""
        return self.ok("apply", *flags, "-f", "-", stdin=text(manifest))

    def refused(self, manifest: dict[str, Any] | str, *flags: str) -> str:
        """`kubectl apply`, which must fail; give its message."""
        done = self.run("apply", *flags, "-f", "-", stdin=text(manifest))
        assert done.returncode != 0, f"was accepted: {done.stdout}"
        return done.stderr

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """One object as it is stored."""
        found: dict[str, Any] = json.loads(self.ok("get", kind, name, "-o", "json"))
        return found

    def patch(self, kind: str, name: str, change: dict[str, Any], *, status: bool = False) -> str:
        """Merge a change into an object or its status; it must succeed."""
        return self.ok(*_patch(kind, name, change, status=status))

    def patch_refused(self, kind: str, name: str, change: dict[str, Any], *, status: bool = False) -> str:
        """Merge a change, which must be refused; give the message."""
        done = self.run(*_patch(kind, name, change, status=status))
        assert done.returncode != 0, f"was accepted: {done.stdout}"
        return done.stderr


def _patch(kind: str, name: str, change: dict[str, Any], *, status: bool) -> list[str]:
    where = ["--subresource=status"] if status else []
    return ["patch", kind, name, "--type=merge", *where, "-p", json.dumps(change)]


def text(manifest: dict[str, Any] | str) -> str:
    """A manifest as kubectl reads it."""
    return manifest if isinstance(manifest, str) else json.dumps(manifest)


@contextlib.contextmanager
def namespace(kube: Kube, *, prefix: str = "test") -> Iterator[Kube]:
    """A namespace of its own, under restricted pod security; its deletion is asked for, not waited for."""
    name = f"{prefix}-{uuid.uuid4().hex[:6]}"
    kube.ok("create", "namespace", name)
    kube.ok("label", "namespace", name, RESTRICTED)
    try:
        yield replace(kube, namespace=name)
    finally:
        kube.run("delete", "namespace", name, "--wait=false")


def install_crds(kube: Kube) -> None:
    """Both definitions, ready to use."""
    kube.ok("apply", "--server-side", "--force-conflicts", "-f", str(ROOT / "crds"))
    kube.ok("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
    deadline = time.monotonic() + 30
    while kube.run("explain", "est").returncode or kube.run("explain", "eexp").returncode:
        assert time.monotonic() < deadline, "the API server does not publish the kinds"


@pytest.fixture(scope="session")
def api_server(control_plane_kubectl: Kubectl) -> Kube:
    """A real API server with its controllers, without nodes."""
    return Kube(control_plane_kubectl.kubeconfig, Path(control_plane_kubectl.program))


def study(name: str = "sweep", **spec: Any) -> dict[str, Any]:
    """A small EnergyStudy."""
    design = {"model": "pretended", "backend": "synthetic", "sweep": {"precision": ["fp32", "bf16"]}}
    return _object("EnergyStudy", name, {"design": design, **spec})


def experiment(name: str = "one", **spec: Any) -> dict[str, Any]:
    """A small EnergyExperiment."""
    return _object("EnergyExperiment", name, {"config": {"model": "pretended", "backend": "synthetic"}, **spec})


def _object(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": GROUP_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}


def condition(kind: str, status: str, reason: str, message: str = "") -> dict[str, Any]:
    """One condition."""
    return {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": TIME}
