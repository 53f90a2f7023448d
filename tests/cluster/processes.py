"""Starts, finds and ends the cluster's daemons.

A daemon is known by a mark in its environment, which the kernel keeps from the instant of exec on and which its own
children inherit. So nothing has to be recorded, a starter killed at any moment leaves nothing unknown, and a reused
process id is never mistaken: the mark is read again through a pidfd before the signal goes out.
"""

import contextlib
import os
import select
import signal
import subprocess
from pathlib import Path

MARK = "LLEM_CLUSTER"


def start(name: str, arguments: list[str | Path], *, state: Path) -> None:
    """Start a daemon in a session of its own, its output in the state folder's log."""
    log = state / "log" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        subprocess.Popen(
            [str(a) for a in arguments],
            env={**os.environ, MARK: str(state)},
            cwd="/", stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


def running(state: Path) -> dict[int, str]:
    """The living processes of this cluster: process id → program name."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if _marked(int(folder.name), state) and not _is_zombie(folder):
                found[int(folder.name)] = (folder / "comm").read_text(encoding="utf-8", errors="replace").strip()
    return found


def names(state: Path) -> set[str]:
    """The programs of this cluster that run, by the name of their file."""
    found = set()
    for pid in running(state):
        with contextlib.suppress(OSError):
            found.add(Path(f"/proc/{pid}/exe").readlink().name)
    return found


def kill_all(state: Path, *, but: frozenset[str] = frozenset()) -> None:
    """Kill every process of this cluster, also those that start meanwhile."""
    for _ in range(50):
        victims = [pid for pid, name in running(state).items() if name not in but]
        if not victims:
            return
        for pid in victims:
            _kill(pid, state)


def kill_pid(pid: int, *, seconds: float = 5) -> None:
    """Kill one process and wait until it is gone."""
    with contextlib.suppress(ProcessLookupError):
        _signal(os.pidfd_open(pid), seconds)


def _kill(pid: int, state: Path) -> None:
    with contextlib.suppress(OSError):
        fd = os.pidfd_open(pid)
        if _marked(pid, state):
            _signal(fd, 5)
        else:
            os.close(fd)


def _signal(fd: int, seconds: float) -> None:
    try:
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.poll(seconds * 1000)
    finally:
        os.close(fd)


def _marked(pid: int, state: Path) -> bool:
    return f"{MARK}={state}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")


def _is_zombie(folder: Path) -> bool:
    return (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0] == "Z"
