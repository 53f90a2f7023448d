"""Runs buildah, in a storage of its own, on a base that debootstrap made: no registry, no Docker."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

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


def push(reference: str, layout: Path) -> None:
    """Write an image as an OCI layout, its layers uncompressed; blobs that lie there already are left alone."""
    _buildah("push", "--disable-compression", reference, f"oci:{layout}")


def size_bytes(reference: str, folder: Path) -> int:
    """The size of an image's blobs when compressed, as a registry would hold and send it."""
    _buildah("push", "--disable-compression=false", "--compression-format", "gzip", reference, f"oci:{folder}")
    return sum(blob.stat().st_size for blob in (folder / "blobs" / "sha256").iterdir())


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
