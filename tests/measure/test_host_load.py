"""Foreign work on the CPU is seen: what others used while we measured on it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llenergymeasure.host_load import CpuTimes, cpu_times, foreign_share


@pytest.mark.parametrize(
    ("busy_s", "own_s", "share"),
    [(10.0, 10.0, 0.0), (20.0, 10.0, 0.5), (20.0, 0.0, 1.0), (9.9, 10.0, 0.0)],
    ids=["ours alone", "half is foreign", "all foreign", "own clock ahead by a tick"],
)
def test_share_of_others_is_busy_time_less_our_own(busy_s: float, own_s: float, share: float) -> None:
    """Of 20 s of processor time, what was busy and not ours went to others."""
    after = CpuTimes(total_s=120.0, busy_s=50.0 + busy_s, own_s=3.0 + own_s)
    assert foreign_share(CpuTimes(100.0, 50.0, 3.0), after) == pytest.approx(share)


def test_unknown_is_none_not_zero(tmp_path: Path) -> None:
    """Without /proc/stat nobody knows, and no time means no share."""
    assert cpu_times(tmp_path / "stat") is None
    assert foreign_share(None, CpuTimes(1, 1, 1)) is None
    assert foreign_share(CpuTimes(1, 1, 1), CpuTimes(1, 1, 1)) is None


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="no /proc/stat on this system")
def test_a_busy_neighbour_is_seen() -> None:
    """A process that spins while we sleep has used most of a processor."""
    neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        before = cpu_times()
        while (after := cpu_times()) and before and after.total_s - before.total_s < 2.0:
            time.sleep(0.05)
        share = foreign_share(before, after)
    finally:
        neighbour.kill()
        neighbour.wait()
    assert share is not None
    assert share > 0.3 / (os.cpu_count() or 1)
