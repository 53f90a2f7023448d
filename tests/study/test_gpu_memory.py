"""After a run its GPUs must have their memory back, or it is told who holds it; scripted GPUs, a pretended clock."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fakes.nvml_script import Gpu, Machine, install
from llenergymeasure import gpu_memory

A, B = "GPU-aaaaaaaa-0000-0000-0000-000000000000", "GPU-bbbbbbbb-0000-0000-0000-000000000000"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine with scripted GPUs."""
    return install(tmp_path, monkeypatch)


class Clock:
    """A clock that only moves when somebody sleeps; something may happen at an instant."""

    def __init__(self) -> None:
        self.now_s, self.events = 100.0, list[tuple[float, Callable[[], None]]]()

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now_s += seconds
        for event in [e for e in self.events if e[0] <= self.now_s]:
            self.events.remove(event)
            event[1]()


def wait(before: dict[str, float], clock: Clock) -> str | None:
    """Wait on a pretended clock."""
    return gpu_memory.wait_until_back(before, clock=clock, sleep=clock.sleep)


def test_used_memory_by_gpu(machine: Machine) -> None:
    """In MiB and by UUID; a GPU that is not there is left out rather than taken as empty."""
    machine.play(Gpu(uuid=A, used_mb=1024), Gpu(uuid=B, used_mb=7))

    assert gpu_memory.used_mb([A, B, "GPU-none"]) == {A: 1024.0, B: 7.0}


def test_nothing_is_known_without_a_driver() -> None:
    """A machine without GPUs has nothing to wait for."""
    assert gpu_memory.used_mb([A]) == {}
    assert gpu_memory.wait_until_back({}) is None


BACK = {
    "as before": (1000, 81_559),
    "less than before": (10, 81_559),
    "a hundredth of a large card more": (1000 + 815, 81_559),
    "256 MiB of a small card more": (1000 + 256, 8192),
}


@pytest.mark.parametrize(("used", "total"), BACK.values(), ids=BACK)
def test_memory_that_is_back_costs_no_time(machine: Machine, used: int, total: int) -> None:
    """Within what drivers take by themselves, the next run may start at once."""
    machine.play(Gpu(uuid=A, used_mb=used, memory_mb=total))
    clock = Clock()

    assert wait({A: 1000.0}, clock) is None
    assert clock.now_s == 100.0


def test_waits_until_the_last_gpu_is_free(machine: Machine) -> None:
    """Memory comes back a while after the process is gone, on each GPU in its own time."""
    full, free = Gpu(uuid=A, used_mb=40_000), Gpu(uuid=A, used_mb=500)
    machine.play(full, Gpu(uuid=B, used_mb=40_000))
    clock = Clock()
    clock.events = [
        (103.0, lambda: machine.play(free, Gpu(uuid=B, used_mb=40_000))),
        (107.0, lambda: machine.play(free, Gpu(uuid=B, used_mb=500))),
    ]

    assert wait({A: 500.0, B: 500.0}, clock) is None
    assert 107.0 <= clock.now_s < 108.0


@pytest.mark.parametrize(
    ("pids", "who"),
    [([4711, 42], "pid 42, 4711"), ([], "a process that the driver does not name")],
    ids=["named", "in a container"],
)
def test_held_memory_is_told_after_a_minute(machine: Machine, pids: list[int], who: str) -> None:
    """The sentence names the GPU, how much is held, and by whom; it does not wait any longer."""
    machine.play(Gpu(uuid=A, used_mb=2500, memory_mb=8192, pids=pids), Gpu(uuid=B, used_mb=1))
    clock = Clock()

    text = wait({A: 1000.0, B: 1.0}, clock)

    assert text is not None
    assert f"60 s after the run 1500 MiB of {A} are still held by {who}; end" in text
    assert B not in text
    assert 160.0 <= clock.now_s < 161.0


@pytest.mark.parametrize("breaks", ["at once", "while it waits"])
def test_nvml_that_fails_is_told_and_not_raised(machine: Machine, breaks: str) -> None:
    """A driver that stops answering ends no study."""
    machine.play(Gpu(uuid=A, used_mb=40_000))
    clock = Clock()
    gone = Gpu(uuid=A, missing=["nvmlDeviceGetMemoryInfo"])
    if breaks == "at once":
        machine.play(gone)
    clock.events = [(105.0, lambda: machine.play(gone))]

    text = wait({A: 500.0}, clock)

    assert text is not None
    assert text.startswith("gpu_memory_unknown: ")
    assert "Not Supported" in text


def test_card_that_does_not_name_its_processes(machine: Machine) -> None:
    """How much is held is told even where the driver refuses to say by whom."""
    machine.play(Gpu(uuid=A, used_mb=9000, missing=["nvmlDeviceGetComputeRunningProcesses"]))

    assert "still held by a process that the driver does not name" in (wait({A: 0.0}, Clock()) or "")
