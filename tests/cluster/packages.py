"""Installs the Debian packages that a node, its images and their tests need, if they are missing."""

import os
import shutil
import subprocess
from pathlib import Path

from places import ClusterError, say

# package → a file that shows that it is there
_CONTROL_PLANE = {
    "openssl": "/usr/bin/openssl",
    "lua5.4": "/usr/bin/lua5.4",  # Argo CD's language: the chart's health checks are run in it
}
_NODE = {
    **_CONTROL_PLANE,
    "containerd": "/usr/bin/containerd",
    "runc": "/usr/sbin/runc",
    "containernetworking-plugins": "/usr/lib/cni/bridge",
    "iptables": "/usr/sbin/iptables",
    "iproute2": "/usr/sbin/ip",
    "buildah": "/usr/bin/buildah",
    "skopeo": "/usr/bin/skopeo",
    "debootstrap": "/usr/sbin/debootstrap",
    "busybox-static": "/bin/busybox",
}


def install(*, node: bool) -> None:
    """Install what is missing with apt-get.

    Raises:
        ClusterError: Not root, or not a Debian: the message says what to do instead.

    """
    wanted = _NODE if node else _CONTROL_PLANE
    missing = [package for package, file in wanted.items() if not _exists(file)]
    if not missing:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise ClusterError(
            f"missing: {' '.join(missing)}. As root on Debian or Ubuntu they are installed for you; elsewhere install "
            "them yourself, or use Docker: kind create cluster --config kind-config.yaml"
        )
    say(f"installing {' '.join(missing)} ...")
    _apt("update", "-qq")
    _apt("install", "-y", "-qq", "--no-install-recommends", *missing)


def _exists(file: str) -> bool:
    return Path(file).exists() or shutil.which(Path(file).name) is not None


def _apt(*arguments: str) -> None:
    done = subprocess.run(
        ["apt-get", *arguments],
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise ClusterError(f"apt-get {' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
