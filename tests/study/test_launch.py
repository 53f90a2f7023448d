"""One run in a process group of its own: whatever the child does, there is a result or an error with type and phase."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli.process import FAST, NEVER_ENDING, alive, over, wait_until
from llenergymeasure import ExperimentConfig, launch, process_group, result_message
from llenergymeasure.core.errors import ExperimentError
from llenergymeasure.launch import RunFailedError
from study.stand_in import Child, run


def test_error_that_the_child_reports_keeps_its_type_and_phase(child: Child, fast: ExperimentConfig) -> None:
    """What the child says about its end is passed on: type, message, phase."""
    error = {"type": "OutOfMemoryError", "message": "2 GB more are needed", "phase": "load", "exit_code": 14}
    child.does(f"send({json.dumps({'error': error}).encode()!r}); sys.exit(14)")

    with pytest.raises(RunFailedError) as caught:
        run(fast)

    assert (caught.value.error_type, caught.value.phase) == ("OutOfMemoryError", "load")
    assert str(caught.value) == "2 GB more are needed (in phase load)"


def test_worker_that_outlives_its_parent_is_killed(child: Child, fast: ExperimentConfig) -> None:
    """An engine's worker that survives a crash, and even holds the pipe open, is gone when the run is over."""
    child.does('worker(); phase("load"); os.kill(os.getpid(), signal.SIGKILL)')
    began_s = time.monotonic()

    with pytest.raises(RunFailedError, match="SIGKILL"):
        run(fast)

    assert time.monotonic() - began_s < 8
    assert len(child.pids) == 2
    wait_until(lambda: not any(map(alive, child.pids)), limit_s=5)


def test_worker_that_left_the_group_is_killed(child: Child, fast: ExperimentConfig) -> None:
    """A worker that made itself a session of its own is found by what it has inherited, and so are its children."""
    child.does("""
shell = f"sleep 600 & echo $! >> {notes}; wait"
worker = subprocess.Popen(["sh", "-c", shell], start_new_session=True, pass_fds=(descriptor,))
open(notes, "a").write(f"{worker.pid}\\n")
while open(notes).read().count("\\n") < 3:
    time.sleep(0.01)
os.kill(os.getpid(), signal.SIGKILL)
""")
    began_s = time.monotonic()

    with pytest.raises(RunFailedError, match="SIGKILL"):
        run(fast)

    assert time.monotonic() - began_s < 8
    assert len(child.pids) == 3
    assert not any(map(alive, child.pids))


def test_other_runs_are_left_alone(child: Child, fast: ExperimentConfig) -> None:
    """What ends a run's leftovers spares every process that is not of this run."""
    other = subprocess.Popen(["sleep", "600"], env={**os.environ, process_group.MARK: "of another run"})
    child.does("worker(); sys.exit(1)")

    with pytest.raises(RunFailedError):
        run(fast)

    assert other.poll() is None
    other.kill()
    other.wait()


def test_result_fills_the_pipe_before_the_child_ends() -> None:
    """A result many times the pipe's 64 KiB arrives whole: the parent reads while the child lives."""
    text = {"max_output_tokens": 1500, "output": {"save_text": True}, "synthetic": {"decode_ms_per_step": 0}}

    measured = run(ExperimentConfig(**over(FAST, text, {"n": 40})))

    size = len(result_message.encode(measured))
    assert 4 * 65_536 < size < result_message.MAX_PIPE_BYTES
    assert len(measured.result.texts or []) == 40


def test_result_above_a_megabyte_comes_through_a_file_that_is_gone_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large results take the way round a temporary file, which the parent deletes."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    body = over(
        FAST,
        {"n": 100, "max_output_tokens": 1500, "output": {"save_text": True}, "synthetic": {"decode_ms_per_step": 0}},
    )

    measured = run(ExperimentConfig(**body))

    assert len(result_message.encode(measured)) > result_message.MAX_PIPE_BYTES
    assert len(measured.result.texts or []) == 100
    assert list(tmp_path.iterdir()) == []


def test_real_child_killed_from_outside(fast: ExperimentConfig) -> None:
    """The out-of-memory killer's SIGKILL on a real experiment process: the error names the signal and the phase."""
    slow = ExperimentConfig(**over(FAST, NEVER_ENDING))
    killed = threading.Event()

    def kill_when_warm(event: dict[str, Any]) -> None:
        if event.get("phase") == "warmup" and not killed.is_set():
            (pid,) = children()
            os.kill(pid, signal.SIGKILL)
            killed.set()

    with pytest.raises(RunFailedError, match="killed by SIGKILL in phase warmup"):
        launch.run_in_subprocess(slow, limits=launch.Limits(60), on_event=kill_when_warm)

    assert killed.is_set()


def children() -> list[int]:
    """Pids of this process' children."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        found += [int(p) for p in (task / "children").read_text().split()]
    return [p for p in found if b"llenergymeasure.cli" in Path(f"/proc/{p}/cmdline").read_bytes()]


def test_events_arrive_while_the_child_runs(child: Child, fast: ExperimentConfig, tmp_path: Path) -> None:
    """Progress is passed on at once: a child that waits for an answer to its first event gets it."""
    go = tmp_path / "go"
    child.does(f"""
phase("load")
deadline = time.monotonic() + 20
while not os.path.exists({str(go)!r}):
    assert time.monotonic() < deadline
    time.sleep(0.02)
phase("window")
""")
    heard: list[str] = []

    def hear(event: dict[str, Any]) -> None:
        heard.append(event["phase"])
        go.touch()

    with pytest.raises(RunFailedError):
        launch.run_in_subprocess(fast, limits=launch.Limits(60), on_event=hear)

    assert heard == ["load", "window"]


def test_child_is_told_what_it_runs_and_for_whom(child: Child, fast: ExperimentConfig, tmp_path: Path) -> None:
    """The configuration and the study's variables are in the child's environment, nothing of it on the command line."""
    child.does(f"json.dump([dict(os.environ), sys.argv[1:]], open({str(tmp_path / 'told')!r}, 'w'))")

    with pytest.raises(RunFailedError):
        launch.run_in_subprocess(
            fast, limits=launch.Limits(60), on_event=print, variables={"LLEM_STUDY": "s", "LLEM_CYCLE": "2"}
        )

    told, words = json.loads((tmp_path / "told").read_text())
    assert ExperimentConfig(**json.loads(told["LLEM_EXPERIMENT"])) == fast
    assert (told["LLEM_STUDY"], told["LLEM_CYCLE"]) == ("s", "2")
    assert words[:4] == ["-m", "llenergymeasure.cli", "experiment", "--result-fd"]
    assert len(words) == 5


def test_child_has_a_group_of_its_own_and_no_terminal(child: Child, fast: ExperimentConfig, tmp_path: Path) -> None:
    """A fresh session: Ctrl-C on the parent's terminal does not reach the child, and its group can be killed whole."""
    notes = tmp_path / "group"
    child.does(
        f"open({str(notes)!r}, 'w').write(f'{{os.getpgid(0)}} {{os.getsid(0)}} {{os.getpid()}} {{sys.stdin.read()!r}}')"
    )

    with pytest.raises(RunFailedError):
        run(fast)

    group, session, pid, stdin = notes.read_text().split()
    assert group == session == pid
    assert int(group) != os.getpgid(0)
    assert stdin == "''"


INTERRUPTING = """#!/bin/sh
kill -INT $PPID
echo $$ >> {notes}
exec sleep 600
"""
INTERRUPTED = """
import sys
from llenergymeasure import ExperimentConfig, launch
sys.executable = {stand_in!r}
for _ in range(20):
    try:
        launch.run_in_subprocess(ExperimentConfig(**{fast!r}), limits=launch.Limits(60), on_event=print)
    except KeyboardInterrupt:
        print("interrupted")
"""


def test_interrupt_while_a_child_is_started_leaves_no_child(tmp_path: Path) -> None:
    """Ctrl-C in the very moment in which a run begins ends that run like any other: no orphan goes on measuring."""
    notes, stand_in = tmp_path / "pids", tmp_path / "child.sh"
    notes.touch()
    stand_in.write_text(INTERRUPTING.format(notes=notes))
    stand_in.chmod(0o755)
    script = INTERRUPTED.format(stand_in=str(stand_in), fast=FAST)

    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores Ctrl-C
    )

    assert done.stdout.split() == ["interrupted"] * 20, done.stderr
    left = [pid for pid in map(int, notes.read_text().split()) if alive(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []


def test_child_inherits_what_is_to_be_kept_open(child: Child, fast: ExperimentConfig, tmp_path: Path) -> None:
    """Descriptors of locks are open in the child under the same numbers, and still closed to other programs here."""
    told = tmp_path / "told"
    with (tmp_path / "lock").open("w") as lock:
        child.does(f"open({str(told)!r}, 'w').write(os.readlink('/proc/self/fd/{lock.fileno()}'))")

        with pytest.raises(RunFailedError):
            launch.run_in_subprocess(fast, limits=launch.Limits(60), on_event=print, keep_open=(lock.fileno(),))

        assert told.read_text() == lock.name
        assert not os.get_inheritable(lock.fileno())


def test_listener_that_fails_does_not_harm_the_run() -> None:
    """Progress that cannot be shown, such as on a closed terminal, costs no measurement and blocks no pipe."""

    def broken(event: dict[str, Any]) -> None:
        raise OSError(5, "the terminal is gone")

    measured = launch.run_in_subprocess(ExperimentConfig(**FAST), limits=launch.Limits(60), on_event=broken)

    assert measured.result.output_tokens == 8


def test_process_that_cannot_be_started_is_a_failed_run(
    fast: ExperimentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an interpreter, or without memory to fork, the run has failed like any other."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))

    with pytest.raises(RunFailedError, match="no process could be started: No such file") as caught:
        run(fast)

    assert (caught.value.error_type, caught.value.phase) == ("NotStarted", None)


def test_configuration_too_large_for_the_environment_is_refused_by_name(fast: ExperimentConfig) -> None:
    """Above 120 KiB the kernel would refuse the process; the error names what to shorten."""
    huge = fast.model_copy(update={"passthrough_kwargs": {"x": "y" * 130_000}})

    with pytest.raises(ExperimentError, match="passthrough_kwargs"):
        run(huge)


def test_descriptors_do_not_leak(child: Child, fast: ExperimentConfig) -> None:
    """A hundred-run study must not run out of descriptors: each run gives its pipe back, also when it failed."""
    child.does("sys.exit(1)")

    def open_descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = None
    for _ in range(4):
        with pytest.raises(RunFailedError):
            run(fast)
        before = before if before is not None else open_descriptors()

    assert open_descriptors() <= before


def test_stopping_a_group_twice_is_harmless() -> None:
    """The group of a child that is long gone can be stopped again."""
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)

    process_group.stop_group(process)
    process_group.stop_group(process)

    assert process.returncode == -signal.SIGTERM
    assert not alive(process.pid)


def test_decode_gives_nothing_for_what_is_no_message() -> None:
    """Whatever bytes arrive, decoding gives a mapping."""
    cases: list[bytes] = [b"", b"null", b"7", b'"text"', b"{", b"\xff", b'{"path": null}', b'{"path": "/"}']
    decode: Callable[[bytes], dict[str, Any]] = result_message.decode

    assert [decode(c) for c in cases] == [{}] * len(cases)
