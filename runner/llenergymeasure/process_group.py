"""Ends everything that a run has started: its process group, and processes that left the group.

A worker that calls setsid is in no group of ours any more, but it has inherited the run's environment. Each run
therefore carries a variable of its own, by which Linux (/proc) finds every process of it; elsewhere, and for a process
that overwrites its environment in memory to show another title, only the group is known.
"""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

MARK = "LLEM_RUN_TOKEN"
GRACE_S = 2.0  # between SIGTERM and SIGKILL
MARKED_LIMIT_S = 2.0  # for the search of processes that left the group
_PROC = Path("/proc")


def stop_group(process: subprocess.Popen[bytes]) -> None:
    """End a child's whole process group: SIGTERM to a running child, 2 s, then SIGKILL to all that is left."""
    try:
        if process.poll() is None:
            _signal_group(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=GRACE_S)
    finally:  # also when a second Ctrl-C ends the wait
        kill_group(process)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """End a child's whole process group at once, by SIGKILL."""
    _signal_group(process.pid, signal.SIGKILL)
    process.wait()


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # nobody is left in the group
        os.killpg(group, number)


def kill_marked(token: str, *, limit_s: float = MARKED_LIMIT_S) -> None:
    """Kill every process whose environment carries this run's mark, but not the caller; looks until none is left.

    It looks again because a process may start another one while it is being killed; at most for `limit_s`.
    """
    deadline_s = time.monotonic() + limit_s
    while (found := _marked(token)) and time.monotonic() < deadline_s:
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _marked(token: str) -> list[int]:
    """Pids of processes that carry the mark; a zombie has no environment any more."""
    mark, found = f"{MARK}={token}".encode(), []
    with contextlib.suppress(OSError):  # no /proc here
        for folder in _PROC.iterdir():
            if folder.name.isdigit() and int(folder.name) != os.getpid():
                with contextlib.suppress(OSError):  # another user's, or it ended meanwhile
                    if mark in (folder / "environ").read_bytes().split(b"\0"):
                        found.append(int(folder.name))
    return found
