"""What the recorder writes is what the parent reads, also while it is still being written."""

from pathlib import Path

import pytest

from llenergymeasure.core.contracts import Occupants, PowerSample, Reading, ThrottleCounters
from llenergymeasure.core.energy_series import Tick
from llenergymeasure.nvml_lines import TAIL_TICKS, Follower, Recorded, record_fields, tick_fields, write
from llenergymeasure.nvml_sampling import _share_of_a_core

TICKS = [Tick(0.1 * i, 0.1 * i + 0.006, 30.0 * i, skipped=9 if i == 3 else 0) for i in range(5)]
READING = Reading(1.0, "GPU-a", 0, power_w=300.0, throttle_reasons=4)
OCCUPANTS = Occupants(1.0, "GPU-a", compute_pids=(7, 8), graphics_pids=(), busy_pids=None, memory_used_mb=776.0)
THROTTLE = ThrottleCounters(1.0, "GPU-a", sw_power_cap_ns=10**15)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A recording with a line of every kind."""
    path = tmp_path / "gpu0.jsonl"
    with path.open("w", encoding="utf-8") as out:
        for tick in TICKS:
            write(out, "t", tick_fields(tick, round(1e3 * tick.joules), 0.003))
        for letter, record in {"r": READING, "o": OCCUPANTS, "h": THROTTLE}.items():
            write(out, letter, record_fields(record))  # type: ignore[arg-type]  # one of three records
        write(out, "s", [[0.98, 299.5], [1.0, 300.5]])
        write(out, "c", [1.0, 0.02])
    return path


def test_everything_comes_back(file: Path) -> None:
    """Ticks, readings, occupants, counters and samples are equal to what was written; None stays None."""
    found = Follower(file).everything()
    assert [t.skipped for t in found.ticks] == [0, 0, 0, 9, 0]
    assert [t.joules for t in found.ticks] == [t.joules for t in TICKS]
    assert [t.after_s for t in found.ticks] == pytest.approx([t.after_s for t in TICKS], abs=1e-6)
    assert (found.readings, found.occupants, found.throttle) == ([READING], [OCCUPANTS], [THROTTLE])
    assert found.samples == [PowerSample(0.98, 299.5), PowerSample(1.0, 300.5)]
    assert found.calls_s == [0.003] * 5
    assert found.processor == [(1.0, 0.02)]


def test_a_growing_file_is_read_on_from_where_it_was(file: Path) -> None:
    """Each look takes in what is new, a line that is only half written waits for its end."""
    follower = Follower(file)
    assert len(follower.ticks()) == 5
    with file.open("a", encoding="utf-8") as out:
        out.write('{"t":[9.0,9.1,')
        out.flush()
        assert len(follower.ticks()) == 5
        out.write("900,0,0.003]}\n")
    before = file.read_bytes()
    file.write_bytes(b"x" * (len(before) - 30) + before[-30:])  # what was read is not read again
    assert len(follower.ticks()) == 6
    assert follower.ticks()[-1] == Tick(9.0, 9.1, 0.9)


def test_a_follower_keeps_the_newest_ticks_only(tmp_path: Path) -> None:
    """A day of recording does not grow in the parent while it waits."""
    path = tmp_path / "gpu0.jsonl"
    with path.open("w", encoding="utf-8") as out:
        for i in range(TAIL_TICKS + 500):
            write(out, "t", [0.1 * i, 0.1 * i, 30 * i, 0, 0.003])
    kept = Follower(path).ticks()
    assert len(kept) == TAIL_TICKS
    assert kept[-1].joules == pytest.approx(0.03 * (TAIL_TICKS + 499))


def test_a_recording_that_has_not_begun_is_empty(tmp_path: Path) -> None:
    """Before the recorder has made its file there is nothing."""
    assert Follower(tmp_path / "gpu0.jsonl").ticks() == ()


def test_the_recorders_cost_is_that_of_the_window() -> None:
    """Processor time between the looks inside the window, per second; what was used before and after does not count."""
    recorded = Recorded(processor=[(0.0, 0.0), (1.0, 0.5), (2.0, 0.52), (4.0, 0.58), (5.0, 2.0)])
    assert _share_of_a_core(recorded, (0.9, 4.1)) == pytest.approx(0.08 / 3)
    assert _share_of_a_core(recorded, (0.9, 1.5)) is None
    assert _share_of_a_core(recorded, None) is None
