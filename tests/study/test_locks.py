"""One study per GPU and per folder: real processes that want the same, holders that are killed, hostile files."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli.process import FAST, over, wait_until
from fakes.nvml_script import Gpu, Machine, install
from llenergymeasure import ExperimentConfig, locks
from llenergymeasure.core.errors import StudyError

A, B, C = (f"GPU-{letter * 8}-0000-0000-0000-000000000000" for letter in "abc")
HOLDER = """
import subprocess, sys, time
from llenergymeasure import locks
with locks.hold({names!r}, study={study!r}, patience_s={patience_s}) as held:
    {then}
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of locks of this test; not made yet."""
    monkeypatch.setenv(locks.VARIABLE, str(tmp_path / "locks"))
    return tmp_path / "locks"


@pytest.fixture
def hold_elsewhere(folder: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a process that holds locks until it is told or killed."""
    assert folder
    started: list[subprocess.Popen[str]] = []

    def start(*names: str, study: str = "other", then: str = "pass", patience_s: float = 30) -> subprocess.Popen[str]:
        script = HOLDER.format(names=list(names), study=study, then=then, patience_s=patience_s)
        process = subprocess.Popen(
            [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def take(*names: str, patience_s: float = 0.0) -> None:
    """Hold locks for a moment."""
    with locks.hold(names, study="mine", patience_s=patience_s):
        pass


def test_second_study_on_a_gpu_is_told_who_has_it(hold_elsewhere: Callable[..., subprocess.Popen[str]]) -> None:
    """The error names the GPU, the other's pid and study, and what to do."""
    other = hold_elsewhere(A, study="weekend")

    with pytest.raises(StudyError) as caught:
        take(B, A)

    text = str(caught.value)
    assert text.startswith(f"{A} is in use by pid {other.pid} (as it sees itself), study 'weekend', since 2")
    assert "CUDA_VISIBLE_DEVICES" in text


def test_lock_of_a_killed_study_is_free(hold_elsewhere: Callable[..., subprocess.Popen[str]]) -> None:
    """Nothing has to be cleaned up after SIGKILL: the file stays, the lock does not."""
    other = hold_elsewhere(A)
    other.kill()
    other.communicate()
    assert other.returncode == -signal.SIGKILL

    take(A)


def test_waits_for_a_holder_that_is_about_to_end(hold_elsewhere: Callable[..., subprocess.Popen[str]]) -> None:
    """A study that is just ending is waited for, so that one can follow another in a script."""
    other = hold_elsewhere(A)
    now_s = 50.0

    def sleep(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds
        if now_s > 52:
            other.kill()
            other.wait()

    with locks.hold([A], patience_s=5, clock=lambda: now_s, sleep=sleep):
        assert 52 < now_s < 53


def test_patience_ends(hold_elsewhere: Callable[..., subprocess.Popen[str]]) -> None:
    """The wait is counted on a monotonic clock and ends."""
    hold_elsewhere(A)
    passed: list[float] = []

    with (
        pytest.raises(StudyError),
        locks.hold([A], patience_s=3, clock=lambda: sum(passed), sleep=passed.append),
    ):
        pass

    assert 3 <= sum(passed) < 3.5


def test_all_or_none(hold_elsewhere: Callable[..., subprocess.Popen[str]]) -> None:
    """While one GPU is taken, the others are not held either: a third study can have them."""
    hold_elsewhere(B)

    with pytest.raises(StudyError, match=B):
        take(A, B, C)

    hold_elsewhere(A, C, patience_s=0)


def test_opposite_orders_do_not_block_each_other(folder: Path) -> None:
    """Two studies that name two GPUs in opposite orders, a hundred times: both get through."""
    assert folder
    errors: list[BaseException] = []

    def often(*names: str) -> None:
        try:
            for _ in range(100):
                with locks.hold(names, patience_s=60, sleep=lambda _s: None):
                    pass
        except BaseException as err:
            errors.append(err)

    threads = [threading.Thread(target=often, args=order, daemon=True) for order in ((A, B), (B, A))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)

    assert not any(t.is_alive() for t in threads)
    assert errors == []


def test_same_process_cannot_take_it_twice(folder: Path) -> None:
    """Two studies in one program exclude each other like two programs."""
    assert folder
    with locks.hold([A], study="first"), pytest.raises(StudyError, match=f"pid {os.getpid()} .*'first'"):
        take(A)
    take(A)


def test_lock_lives_as_long_as_a_run_that_inherited_it(
    hold_elsewhere: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    """A study was killed but its run still computes: the GPU is not free before that has ended too."""
    noted = tmp_path / "run"
    other = hold_elsewhere(
        A,
        then=f'c = subprocess.Popen(["sleep", "600"], pass_fds=held, stdout=-3); print(c.pid, file=open({str(noted)!r}, "w"), flush=True)',
    )
    wait_until(lambda: noted.is_file() and noted.read_text().endswith("\n"))
    other.kill()
    other.communicate()
    run = int(noted.read_text())

    with pytest.raises(StudyError, match="or by a run that it started"):
        take(A)

    os.kill(run, signal.SIGKILL)
    take(A, patience_s=20)


def test_end_of_a_study_does_not_unlock_what_its_run_holds(folder: Path) -> None:
    """Leaving the block closes the lock here; a child that is still there goes on holding it."""
    assert folder
    with locks.hold([A]) as held:
        child = subprocess.Popen(["sleep", "600"], pass_fds=held)
    try:
        with pytest.raises(StudyError):
            take(A)
    finally:
        child.kill()
        child.wait()
    take(A)


def test_other_programs_do_not_inherit_locks(folder: Path) -> None:
    """Only who is told the descriptors keeps the lock."""
    assert folder
    with locks.hold([A]) as held:
        assert [os.get_inheritable(d) for d in held] == [False]


def test_folder_has_one_lock_however_its_path_is_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative, with dots or through a link: it is the same study."""
    assert folder
    study = tmp_path / "results" / "s"
    study.mkdir(parents=True)
    (tmp_path / "link").symlink_to(study)
    monkeypatch.chdir(tmp_path)

    for spelling in ("results/s", "results/../results/s", "./link", f"{study}/"):
        with locks.hold([str(study)]), pytest.raises(StudyError, match=f"{study} is in use"):
            take(spelling)


def test_names_stay_in_the_folder_and_apart(folder: Path) -> None:
    """No name reaches another folder; names that look alike as files are different locks."""
    names = ["../../etc/passwd", "a/b", "a_b", "ä" * 300, "x" * 300, "x" * 301, "", "a\nb"]

    with locks.hold(names) as held:
        assert len(held) == len(names)

    assert len(list(folder.iterdir())) == len(names)
    assert {p.parent for p in folder.rglob("*")} == {folder}


def test_lock_files_are_for_all_users_and_say_who_holds_them(folder: Path) -> None:
    """Whatever the umask, others can lock, and nobody can remove another's file."""
    before = os.umask(0o077)
    try:
        with locks.hold([A], study="s"):
            (file,) = folder.iterdir()
            content = json.loads(file.read_text())
    finally:
        os.umask(before)

    assert folder.stat().st_mode & 0o7777 == 0o1777
    assert file.stat().st_mode & 0o7777 == 0o666
    assert (content["pid"], content["study"]) == (os.getpid(), "s")
    assert content["since"].endswith("+00:00")


def test_longer_content_of_an_earlier_holder_is_replaced(folder: Path) -> None:
    """What an earlier study wrote does not show through."""
    assert folder
    with locks.hold([A], study="a very long name" * 10):
        pass
    with locks.hold([A], study="b"), pytest.raises(StudyError, match="study 'b', since"):
        take(A)


PLANTED = {
    "a link in place of the file": lambda file, other: file.symlink_to(other),
    "a second name of another file": lambda file, other: file.hardlink_to(other),
    "a folder": lambda file, _other: file.mkdir(),
    "a pipe": lambda file, _other: os.mkfifo(file),
}


@pytest.mark.parametrize("plant", PLANTED.values(), ids=PLANTED)
def test_planted_files_are_refused(folder: Path, tmp_path: Path, plant: Callable[[Path, Path], None]) -> None:
    """In a folder that all may write to, nobody can make llem write into something else."""
    take(A)
    (file,) = folder.iterdir()
    file.unlink()
    other = tmp_path / "precious"
    other.write_text("precious")
    plant(file, other)

    with pytest.raises(StudyError, match="remove it"):
        take(A)

    assert other.read_text() == "precious"


def test_link_in_place_of_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    """Locks must not be led into a folder of somebody's choice."""
    (tmp_path / "elsewhere").mkdir()
    folder.symlink_to(tmp_path / "elsewhere")

    with pytest.raises(StudyError, match="no folder"):
        take(A)


def test_folder_that_cannot_be_made_is_an_error_with_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in the way, a read-only disk: the error names the variable to set."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(locks.VARIABLE, str(tmp_path / "file" / "locks"))

    with pytest.raises(StudyError, match=r"cannot be made: .*set LLEM_LOCK_DIR"):
        take(A)


def test_broken_content_is_no_obstacle(folder: Path) -> None:
    """What stands in a lock only serves the message."""
    with locks.hold([A]):
        (file,) = folder.iterdir()
        for content in (b"", b"\xff\x00", b"[]", b'{"pid": "x"}', b"null", b"[" * 4096):
            file.write_bytes(content)
            with pytest.raises(StudyError, match=f"{A} is in use by another process; wait"):
                take(A)


def test_no_names_need_no_folder(folder: Path) -> None:
    """A study without a GPU touches nothing."""
    with locks.hold([]) as held:
        assert held == ()
    assert not folder.exists()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine with three scripted GPUs."""
    machine = install(tmp_path, monkeypatch)
    machine.play(Gpu(uuid=A), Gpu(uuid=B), Gpu(uuid=C))
    return machine


REAL = {"backend": "pytorch", "energy": {"backend": "auto"}}
VISIBLE = {
    "all": (None, [A, B, C]),
    "by number": ("2,0", [A, C]),
    "by UUID": (B, [B]),
    "by the start of a UUID": ("GPU-bbbb", [B]),
    "none": ("", []),
}


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(("value", "expected"), VISIBLE.values(), ids=VISIBLE)
def test_gpus_that_a_study_may_use(monkeypatch: pytest.MonkeyPatch, value: str | None, expected: list[str]) -> None:
    """CUDA_VISIBLE_DEVICES narrows them, by number or UUID."""
    if value is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    counted = ExperimentConfig(**over(FAST, {"energy": {"backend": "nvml"}}))

    assert locks.gpu_names([counted]) == expected


NEEDED = {
    "pretended engine and joules": ({}, "auto", []),
    "pretended engine without joules": ({"energy": {"backend": "none"}}, "auto", []),
    "pretended engine, whatever counts": ({"energy": {"backend": "auto"}}, "auto", [A, B, C]),
    "pretended engine, the user's source": ({"energy": {"backend": "auto"}}, "simulated", []),
    "pretended engine, the user wants none": ({"energy": {"backend": "auto"}}, "none", []),
    "real engine without joules": ({**REAL, "energy": {"backend": "none"}}, "auto", [A]),
    "real engine on the first GPU": (REAL, "auto", [A]),
    "real engine on two GPUs": ({"backend": "vllm", "vllm": {"tensor_parallel_size": 2}}, "auto", [A, B]),
}


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(("fields", "user", "expected"), NEEDED.values(), ids=NEEDED)
def test_gpus_that_an_experiment_needs(fields: dict[str, object], user: str, expected: list[str]) -> None:
    """Those that it computes on, or whose counters it reads; a study needs those of all its experiments."""
    config = ExperimentConfig.model_validate(over(FAST, fields))
    nothing = ExperimentConfig(**FAST)

    assert locks.gpu_names([nothing, config, config], energy_backend=user) == expected


def test_no_driver_no_gpu() -> None:
    """A machine without a GPU has nothing to lock."""
    assert locks.gpu_names([ExperimentConfig.model_validate(over(FAST, REAL))]) == []
