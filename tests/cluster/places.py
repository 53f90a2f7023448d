"""Where the test cluster keeps things: caches that outlive it, and one state folder per running cluster."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).resolve().parent
ROOT = SOURCE.parent.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llem"
BINARIES = CACHE / "bin"
IMAGES = CACHE / "images"
CONTAINERD = CACHE / "containerd"  # imported images; kept by `down`, since five gigabytes take minutes
CLUSTERS = CACHE / "cluster"


class ClusterError(Exception):
    """Something that the person in front of the terminal has to do or to read."""


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process at a time do what is inside; the kernel frees the lock of a killed one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def say(text: str) -> None:
    """Print one line of progress at once, also into a pipe."""
    print(text, flush=True)
