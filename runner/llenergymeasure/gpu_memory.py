"""Waits until a run's GPUs have their memory back: a dead process' memory is freed a while after it is gone."""

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from llenergymeasure.nvml_sampling import nvml

LIMIT_S = 60.0
ASK_EVERY_S = 0.5
SLACK_MB = 256.0  # what the driver and a desktop take and give by themselves, MiB
SLACK_SHARE = 0.01  # of a GPU's memory, if that is more
_MIB = 2**20


def used_mb(uuids: Iterable[str]) -> dict[str, float]:
    """Used memory by GPU, MiB; a GPU that does not answer is left out, and will not be waited for."""
    found: dict[str, float] = {}
    for uuid in uuids:
        with contextlib.suppress(Exception):  # no driver, no such GPU, no permission: not known either way
            found[uuid] = _memory_mb(uuid)[0]
    return found


def wait_until_back(
    before: Mapping[str, float],
    *,
    limit_s: float = LIMIT_S,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> str | None:
    """Wait until no GPU uses more memory than before, apart from 256 MiB or 1 % of it.

    Args:
        before: Used memory by GPU's UUID before the run, MiB.
        limit_s: Longest wait, s.
        clock: Monotonic time, s.
        sleep: Waits, s.

    Returns:
        None when it is back, else a sentence: who holds how much, or why it is not known.

    """
    deadline_s = clock() + limit_s
    while True:
        try:
            held = _held(before)
        except Exception as err:  # noqa: BLE001  (the run is over; whatever NVML says is told, not raised)
            return f"gpu_memory_unknown: whether the GPUs' memory is free again cannot be read: {err}"
        if not held:
            return None
        if clock() >= deadline_s:
            return (
                f"gpu_memory_held: {limit_s:g} s after the run {'; '.join(held)}; end what holds it, or reset the GPU"
            )
        sleep(ASK_EVERY_S)


def _held(before: Mapping[str, float]) -> list[str]:
    """A sentence per GPU that uses more than before."""
    said = []
    for uuid, before_mb in before.items():
        now_mb, total_mb = _memory_mb(uuid)
        if now_mb > before_mb + max(SLACK_MB, SLACK_SHARE * total_mb):
            said.append(f"{now_mb - before_mb:.0f} MiB of {uuid} are still held by {_holders(uuid)}")
    return said


def _memory_mb(uuid: str) -> tuple[float, float]:
    """Used and total memory of a GPU, MiB."""
    with nvml() as lib:
        found = lib.nvmlDeviceGetMemoryInfo(lib.nvmlDeviceGetHandleByUUID(uuid))
    return found.used / _MIB, found.total / _MIB


def _holders(uuid: str) -> str:
    """Processes on a GPU by pid, as the driver sees them; in a container it may not say."""
    with nvml() as lib:
        handle = lib.nvmlDeviceGetHandleByUUID(uuid)
        found = [*_asked(lib.nvmlDeviceGetComputeRunningProcesses, handle)]
        found += _asked(lib.nvmlDeviceGetGraphicsRunningProcesses, handle)
    pids = sorted({int(p.pid) for p in found})
    return "pid " + ", ".join(map(str, pids)) if pids else "a process that the driver does not name"


def _asked(ask: Callable[[Any], Iterable[Any]], handle: Any) -> list[Any]:
    try:
        return list(ask(handle))
    except Exception:  # noqa: BLE001  (a card or driver that does not tell)
        return []
