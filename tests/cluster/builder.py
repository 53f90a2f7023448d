"""Runs buildah, in a storage of its own, on a base that debootstrap made: no registry, no Docker."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import containers
from places import IMAGES, ClusterError, say

BASE = "localhost/llem-test-base:1"
_SUITE = "bookworm"
_PACKAGES = "python3,python3-venv,ca-certificates"
_UNNEEDED = (
    "var/cache/apt", "var/lib/apt/lists", "var/log", "var/cache/debconf", "usr/share/doc", "usr/share/man",
    "usr/share/locale", "usr/share/info", "usr/share/lintian", "debootstrap",
)  # fmt: skip
BASE_DIGEST = hashlib.sha256(f"{_SUITE} {_PACKAGES} {_UNNEEDED}".encode()).hexdigest()
# How this machine reaches its package index; nothing of it gets into an image.
_MACHINE_SETTINGS = ("/etc/ssl/certs", "/etc/pip.conf")
_STORAGE = ("--root", str(IMAGES / "storage"), "--runroot", str(IMAGES / "run"), "--storage-driver", "overlay")


def build(reference: str, dockerfile: Path, context: Path, arguments: dict[str, str], *, target: str = "") -> None:
    """Build a Dockerfile; layers that did not change come from the storage.

    Raises:
        ClusterError: buildah failed; the message ends with its last lines.

    """
    _buildah("rm", "--all")  # of a build that was killed
    if BASE in arguments.values():
        _make_base()
    options = ["--isolation", "chroot", "--layers", "--pull-never", "--format", "oci", "--tag", reference]
    options += [f"--volume={path}:{path}:ro" for path in _MACHINE_SETTINGS if Path(path).exists()]
    options += [f"--build-arg={name}={value}" for name, value in arguments.items()]
    options += ["--target", target] if target else []
    _buildah("bud", *options, "--file", str(dockerfile), str(context))


def write_layout(reference: str, layout: Path, *, compressed: bool = False) -> None:
    """Write an image as an OCI layout; blobs that lie there already are left alone, unread.

    buildah's own push compresses on the way into a layout (1.28 does so even when told not to), and a compressed layer
    is never found again by the name of its content.
    """
    source = f"containers-storage:[overlay@{IMAGES / 'storage'}+{IMAGES / 'run'}]{reference}"
    options = [] if compressed else ["--dest-oci-accept-uncompressed-layers"]
    _run("skopeo", "copy", "--quiet", *options, source, f"oci:{layout}")


def let_go() -> None:
    """Unmount what builds, also killed ones, have left mounted; nobody else may be building."""
    if containers.mounts(IMAGES):
        _buildah("rm", "--all")
        containers.unmount_all(IMAGES)


def prune() -> None:
    """Delete layers that belong to no named image."""
    _buildah("rmi", "--prune", "--force")


def _make_base() -> None:
    """Make the base image unless it is there: Debian's smallest system and Python."""
    note = IMAGES / "base.built"
    if note.exists() and note.read_text(encoding="ascii") == BASE_DIGEST:
        return
    say(f"making the base image from Debian {_SUITE} packages ...")
    folder = IMAGES / "base.new"
    shutil.rmtree(folder, ignore_errors=True)
    _run("debootstrap", "--variant=minbase", f"--include={_PACKAGES}", _SUITE, str(folder))
    for name in _UNNEEDED:
        shutil.rmtree(folder / name, ignore_errors=True)
    container = _buildah("from", "scratch").strip()
    _buildah("add", "--quiet", container, str(folder), "/")
    _buildah("commit", "--quiet", "--rm", container, BASE)
    shutil.rmtree(folder)
    note.write_text(BASE_DIGEST, encoding="ascii")


def _buildah(verb: str, *arguments: str) -> str:
    return _run("buildah", *_STORAGE, verb, *arguments)


def _run(*command: str) -> str:
    environment = {**os.environ, "BUILDAH_ISOLATION": "chroot"}
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise ClusterError(f"{' '.join(command)} failed:\n{(done.stdout + done.stderr)[-4000:]}")
    return done.stdout
