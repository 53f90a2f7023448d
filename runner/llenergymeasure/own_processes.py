"""Knows which processes are this run's own: this one and all that descend from it, as the GPU's lists would show them.

Process ids are those of this process' own namespace; a driver outside of it may list others.
"""

import os
from pathlib import Path

PROC = Path("/proc")


def own_pids(root: int | None = None, proc: Path = PROC) -> frozenset[int]:
    """Process ids of `root` (this process) and of everything that it has started, directly or not."""
    children: dict[int, list[int]] = {}
    for folder in proc.iterdir():
        if folder.name.isdigit() and (parent := _parent(folder)) is not None:
            children.setdefault(parent, []).append(int(folder.name))
    found: set[int] = set()
    waiting = [os.getpid() if root is None else root]
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.add(pid)
            waiting += children.get(pid, [])
    return frozenset(found)


def _parent(folder: Path) -> int | None:
    """Parent of a process; the name in its stat line may hold blanks and brackets. None: it ended meanwhile."""
    try:
        return int((folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return None
