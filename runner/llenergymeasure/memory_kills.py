"""Counts what the kernel has killed for want of memory: a SIGKILL that nobody else has sent is then explained."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class MemoryKills:
    """Kills so far; None where the kernel does not tell."""

    cgroup: int | None  # in this process' control group and below
    machine: int | None


def count_memory_kills() -> MemoryKills:
    """Read the kernel's counters (cgroup v2 and v1, /proc/vmstat)."""
    files = _cgroup_files()
    return MemoryKills(next((n for n in map(_counter, files) if n is not None), None), _counter(Path("/proc/vmstat")))


def killed_since(before: MemoryKills, now: MemoryKills) -> str:
    """Where a process was killed for want of memory between two readings, as words; empty if nowhere."""
    if _more(before.cgroup, now.cgroup):
        return "in this control group (container or job), whose memory limit was reached"
    if _more(before.machine, now.machine):
        return "on this machine"
    return ""


def _more(before: int | None, now: int | None) -> bool:
    return before is not None and now is not None and now > before


def _cgroup_files() -> list[Path]:
    """Files that may hold this process' counter; inside a container its path may be one of the host's."""
    found: list[Path] = []
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                found += [_CGROUPS / path.strip("/") / "memory.events", _CGROUPS / "memory.events"]
            elif "memory" in controllers.split(","):
                top = _CGROUPS / "memory"
                found += [top / path.strip("/") / "memory.oom_control", top / "memory.oom_control"]
    return found


def _counter(path: Path) -> int | None:
    """The line `oom_kill N` of a file."""
    with contextlib.suppress(OSError, ValueError):
        for line in path.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    return None
