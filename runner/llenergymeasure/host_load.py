"""How much of the CPU others used while we measured on it: /proc/stat against this process' own time."""

import os
from dataclasses import dataclass
from pathlib import Path

_IDLE_COLUMNS = (3, 4)  # idle and iowait of the `cpu` line (proc_stat(5)); guest time is part of user
_COLUMNS = 8


@dataclass(frozen=True)
class CpuTimes:
    """CPU seconds since boot: of all processors, of the busy part, and of this process with its ended children."""

    total_s: float
    busy_s: float
    own_s: float


def cpu_times(stat: Path = Path("/proc/stat")) -> CpuTimes | None:
    """Read the clocks; None where there is no /proc/stat."""
    try:
        columns = [int(c) for c in stat.read_text(encoding="ascii").split("\n", 1)[0].split()[1 : 1 + _COLUMNS]]
    except (OSError, ValueError):
        return None
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    idle = sum(columns[i] for i in _IDLE_COLUMNS)
    own = os.times()
    return CpuTimes(
        total_s=sum(columns) * tick_s,
        busy_s=(sum(columns) - idle) * tick_s,
        own_s=own.user + own.system + own.children_user + own.children_system,
    )


def foreign_share(before: CpuTimes | None, after: CpuTimes | None) -> float | None:
    """Share of all processors' time that went to others, 0 to 1; None where it cannot be known."""
    if before is None or after is None or after.total_s <= before.total_s:
        return None
    foreign_s = (after.busy_s - before.busy_s) - (after.own_s - before.own_s)
    return min(1.0, max(0.0, foreign_s / (after.total_s - before.total_s)))
