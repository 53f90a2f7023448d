"""Children that die without a result: each is an error with a type, the phase, a sentence and its last words."""

import fcntl
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.process import alive, wait_until
from llenergymeasure import ExperimentConfig, result_message
from llenergymeasure.launch import RunFailedError
from llenergymeasure.measure import measure
from llenergymeasure.memory_kills import MemoryKills, count_memory_kills, killed_since
from llenergymeasure.user_config import load_user_config
from study.stand_in import Child, run

DEATHS = [
    pytest.param('phase("load"); ctypes.string_at(0)', ["killed by SIGSEGV", "phase load"], id="segmentation fault"),
    pytest.param('phase("warmup"); os.abort()', ["killed by SIGABRT", "phase warmup"], id="abort"),
    pytest.param(
        'phase("result"); sys.exit(0)', ["exit code 0 and no result", "phase result"], id="exit 0 without a result"
    ),
    pytest.param(
        'phase("load"); print("CUDA driver version is insufficient", file=sys.stderr); sys.exit(3)',
        ["exit code 3", "phase load", "CUDA driver version is insufficient"],
        id="exit code and a message on stderr",
    ),
    pytest.param(
        'phase("load"); sys.stderr.buffer.write(b"\\xff\\xfe{\\n{broken json\\n[1]\\n"); sys.exit(1)',
        ["{broken json", "phase load"],
        id="garbage on stderr",
    ),
    pytest.param(
        'phase("result"); send(b"\\x00\\xff not json")', ["no result", "phase result"], id="garbage on the pipe"
    ),
    pytest.param('phase("result"); send(b"[1, 2]")', ["no result", "phase result"], id="a list on the pipe"),
    pytest.param(
        'phase("result"); send(json.dumps({"result": {"model": "m"}}).encode())',
        ["cannot be read", "wrong"],
        id="half a result",
    ),
    pytest.param(
        'phase("result"); send(b\'{"result": {"energy_total_j": NaN}}\')', ["cannot be read"], id="a result with NaN"
    ),
    pytest.param('phase("result"); send(b\'{"path": "/no/such/file"}\')', ["no result"], id="path of no file"),
    pytest.param('phase("result"); send(b\'{"path": 5}\')', ["no result"], id="path that is none"),
    pytest.param(
        'phase("load"); os.kill(os.getpid(), signal.SIGRTMIN + 3)', ["killed by signal 37"], id="real-time signal"
    ),
    pytest.param(
        'phase("load"); sys.stderr.write("x" * 10_000_000); print("\\nlast words", file=sys.stderr); sys.exit(1)',
        ["exit code 1", "phase load", "xxx", "last words"],
        id="10 MB without a line's end",
    ),
    pytest.param(
        'phase("load"); sys.stderr.write("noise\\n" * 2_000_000 + "last words\\n"); sys.exit(1)',
        ["exit code 1", "phase load", "noise", "last words"],
        id="stderr flooded",
    ),
    pytest.param(
        'phase("load"); print("{\\"event\\":" * 6_000 + "\\nlast words", file=sys.stderr); sys.exit(1)',
        ["exit code 1", "last words"],
        id="JSON without bottom",
    ),
    pytest.param(
        'phase("load"); sys.stderr.write(" 1%\\r 50%\\r 100%\\n\\x1b[2Jgone\\x00\\n"); sys.exit(1)',
        ["\n     100%\n    [2Jgone"],
        id="progress bar and control characters",
    ),
    pytest.param(
        'phase("load"); print("using hf_abcdefghijklmnopqrstuvwxyz", file=sys.stderr); sys.exit(1)',
        ["using ***"],
        id="token in its last words",
    ),
    pytest.param(
        'phase("result"); send(b"[" * 200_000)', ["exit code 0", "200,000 bytes"], id="JSON without bottom on the pipe"
    ),
    pytest.param(
        'phase("result"); send(b"0" * 10_000_000)', ["exit code 0", "cannot be read"], id="10 MB of garbage on the pipe"
    ),
]


@pytest.mark.parametrize(("body", "says"), DEATHS)
def test_dead_child_is_an_error_with_type_and_phase(
    child: Child, fast: ExperimentConfig, body: str, says: list[str]
) -> None:
    """However a child dies, the error says how and in which phase, with its last words."""
    child.does(body)

    with pytest.raises(RunFailedError) as caught:
        run(fast)

    assert caught.value.error_type == "ProcessDied"
    assert [text for text in says if text not in str(caught.value)] == [], str(caught.value)
    assert not any(map(alive, child.pids))


NANS: dict[str, Callable[[dict[str, Any]], None]] = {
    "in the result": lambda message: message["result"].update(duration_s=float("nan")),
    "in the time series": lambda message: message["series"].append({"t_s": 0.0, "power_w": float("inf")}),
}


@pytest.mark.parametrize("plant", NANS.values(), ids=NANS)
def test_what_is_no_number_is_no_result(
    child: Child, fast: ExperimentConfig, tmp_path: Path, plant: Callable[[dict[str, Any]], None]
) -> None:
    """A whole result with one NaN or infinity in it is refused: it would spoil every mean it enters."""
    message = json.loads(result_message.encode(measure(fast, load_user_config())))
    plant(message)
    (tmp_path / "message").write_text(json.dumps(message))
    child.does(f'phase("result"); send(open({str(tmp_path / "message")!r}, "rb").read())')

    with pytest.raises(RunFailedError, match="cannot be read") as caught:
        run(fast)

    assert (caught.value.error_type, caught.value.phase) == ("ProcessDied", "result")


@pytest.mark.parametrize("series", [5, [1, 2], {"a": 1}], ids=["a number", "a list of numbers", "a mapping"])
def test_broken_series_beside_a_good_result_is_no_result(
    child: Child, fast: ExperimentConfig, tmp_path: Path, series: object
) -> None:
    """What could not be stored is refused on arrival, not when the study writes it down."""
    message = json.loads(result_message.encode(measure(fast, load_user_config()))) | {"series": series}
    (tmp_path / "message").write_text(json.dumps(message))
    child.does(f'phase("result"); send(open({str(tmp_path / "message")!r}, "rb").read())')

    with pytest.raises(RunFailedError, match="cannot be read: its time series"):
        run(fast)


KILLS = {
    "in the window": ('phase("window"); os.kill(os.getpid(), 9)', "window"),
    "while it sends": ('phase("result"); send(b\'{"result": {"model"\'); os.kill(os.getpid(), 9)', "result"),
    "before the first phase": ("os.kill(os.getpid(), 9)", None),
}


@pytest.fixture
def alone_with_the_kernel() -> Iterator[None]:
    """Nobody else provokes kills, or takes them as its own, at the same time: the kernel counts for all."""
    with (Path(tempfile.gettempdir()) / "llem-test-memory-kills").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.mark.usefixtures("alone_with_the_kernel")
@pytest.mark.parametrize(("body", "phase"), KILLS.values(), ids=KILLS)
def test_sigkill_from_elsewhere_has_a_type_of_its_own(
    child: Child, fast: ExperimentConfig, body: str, phase: str | None
) -> None:
    """A SIGKILL that llem did not send is told as such, with the usual suspects."""
    child.does(body)

    with pytest.raises(RunFailedError, match=f"killed by SIGKILL in phase {phase}, not by llem: .*dmesg") as caught:
        run(fast)

    assert (caught.value.error_type, caught.value.phase) == ("Killed", phase)


GREEDY = """
open({tasks!r}, "w").write(str(os.getpid()))
phase("load")
hoard = []
while True:
    hoard.append(bytearray(os.urandom(1 << 20)))
"""


@pytest.fixture
def small_cgroup() -> Iterator[Path]:
    """The file by which a process joins a memory cgroup of 64 MiB; skips where none can be made."""
    unified = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    top = Path("/sys/fs/cgroup" if unified else "/sys/fs/cgroup/memory")
    folder = top / f"llem-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as err:
        pytest.skip(f"no memory cgroup can be made here: {err}")
    try:
        (folder / ("memory.max" if unified else "memory.limit_in_bytes")).write_text(str(64 << 20))
        (folder / ("memory.swap.max" if unified else "memory.swappiness")).write_text("0")
    except OSError as err:
        folder.rmdir()
        pytest.skip(f"no memory limit can be set here: {err}")
    yield folder / "cgroup.procs"
    wait_until(lambda: not (folder / "cgroup.procs").read_text())
    folder.rmdir()


@pytest.mark.usefixtures("alone_with_the_kernel")
def test_kernel_out_of_memory(child: Child, fast: ExperimentConfig, small_cgroup: Path) -> None:
    """A real kill by the kernel, at a real limit of memory, has the type by which clusters call it."""
    child.does(GREEDY.format(tasks=str(small_cgroup)))

    with pytest.raises(RunFailedError, match="killed by SIGKILL in phase load: the kernel ran out of memory") as caught:
        run(fast)

    assert caught.value.error_type == "OutOfMemory"


COUNTERS = {
    "nothing happened": (MemoryKills(2, 5), MemoryKills(2, 5), ""),
    "in the group": (MemoryKills(2, 5), MemoryKills(3, 6), "in this control group"),
    "elsewhere": (MemoryKills(2, 5), MemoryKills(2, 6), "on this machine"),
    "the kernel does not tell": (MemoryKills(None, None), MemoryKills(None, None), ""),
    "the kernel tells only later": (MemoryKills(None, None), MemoryKills(4, 4), ""),
}


@pytest.mark.parametrize(("before", "now", "where"), COUNTERS.values(), ids=COUNTERS)
def test_place_of_a_memory_kill(before: MemoryKills, now: MemoryKills, where: str) -> None:
    """Only a counter that has moved explains a kill, the nearest one first."""
    assert killed_since(before, now).startswith(where)
    assert bool(killed_since(before, now)) == bool(where)


def test_machines_counter_is_read() -> None:
    """Where Linux counts its kills, the count is read and not taken as unknown."""
    vmstat = Path("/proc/vmstat")
    if not vmstat.exists() or "oom_kill " not in vmstat.read_text():
        pytest.skip("this kernel does not count its kills")

    assert count_memory_kills().machine is not None
