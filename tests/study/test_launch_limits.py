"""Children that take too long, or that do not end: each phase has its limit, and a result that has arrived counts."""

import time
from pathlib import Path

import pytest

from cli.process import FAST, NEVER_ENDING, alive, over, wait_until
from llenergymeasure import ExperimentConfig, launch, result_message
from llenergymeasure.core.errors import PhaseTimeoutError
from llenergymeasure.launch import Limits, RunFailedError
from llenergymeasure.measure import measure
from llenergymeasure.user_config import load_user_config
from study.stand_in import Child, run

NATIVE_HANG = 'signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]); phase("load"); ctypes.PyDLL(None).sleep(600)'


@pytest.mark.parametrize(
    "habit",
    [
        pytest.param("", id="hears SIGTERM"),
        pytest.param("signal.signal(signal.SIGTERM, signal.SIG_IGN)", id="ignores SIGTERM"),
    ],
)
def test_hanging_child_is_killed_with_its_whole_group(child: Child, fast: ExperimentConfig, habit: str) -> None:
    """After the timeout the error names the phase, and no process of the group is left, workers included."""
    child.does(f'{habit}\nworker(); phase("load"); phase("window"); time.sleep(600)')
    began_s = time.monotonic()

    with pytest.raises(PhaseTimeoutError, match=r"0\.5 s .* in phase window") as caught:
        run(fast, timeout_s=0.5)

    assert "execution.experiment_timeout_seconds" in str(caught.value)
    assert time.monotonic() - began_s < 60  # it would have slept ten minutes
    assert len(child.pids) == 2
    wait_until(lambda: not any(map(alive, child.pids)), limit_s=30)


def test_timeout_counts_from_the_engines_load(child: Child, fast: ExperimentConfig) -> None:
    """A slow download does not use up the experiment's time: the clock starts when the engine loads."""
    child.does('phase("download"); time.sleep(3.5); phase("load"); phase("window"); sys.exit(0)')

    with pytest.raises(RunFailedError, match="no result"):  # not a timeout
        run(fast, timeout_s=3.0)


def test_real_hang_is_a_timeout_in_its_phase() -> None:
    """An experiment that takes longer than its limit is stopped, and the error names the phase."""
    slow = ExperimentConfig(**over(FAST, NEVER_ENDING))

    with pytest.raises(PhaseTimeoutError, match="in phase warmup"):
        run(slow, timeout_s=0.3)


def test_hang_in_native_code_is_killed(child: Child, fast: ExperimentConfig) -> None:
    """A child that holds the interpreter's lock in native code and hears no SIGTERM dies by SIGKILL."""
    child.does(NATIVE_HANG)

    with pytest.raises(PhaseTimeoutError, match="in phase load") as caught:
        run(fast, timeout_s=0.3)

    assert caught.value.phase == "load"
    assert not any(map(alive, child.pids))


PHASES = {
    "download": ('phase("download"); time.sleep(600)', {"download": 0.3}, "download"),
    "engine build": ('phase("load"); phase("engine_build"); time.sleep(600)', {"engine_build": 0.3}, "engine_build"),
}


@pytest.mark.parametrize(("body", "limits", "phase"), PHASES.values(), ids=PHASES)
def test_limit_of_one_phase(
    child: Child, fast: ExperimentConfig, body: str, limits: dict[str, float], phase: str
) -> None:
    """A phase that took longer than its own limit is named, with the setting to raise."""
    child.does(body)

    with pytest.raises(PhaseTimeoutError, match=rf"phase {phase} .* 0\.3 s; raise execution.phase_timeouts.{phase}"):
        launch.run_in_subprocess(fast, limits=Limits(60, limits), on_event=print)


def test_limit_of_one_phase_does_not_count_the_next(child: Child, fast: ExperimentConfig) -> None:
    """The limit of a phase ends with it."""
    child.does('phase("download"); phase("environment"); time.sleep(3.5); sys.exit(0)')

    with pytest.raises(RunFailedError, match="no result"):  # not a timeout
        launch.run_in_subprocess(fast, limits=Limits(60, {"download": 3.0}), on_event=print)


@pytest.mark.parametrize(
    ("body", "where", "limit_s"),
    [
        pytest.param("time.sleep(600)", "the start of the process", 1, id="before the first phase"),
        pytest.param('phase("baseline"); time.sleep(600)', "phase baseline", 6, id="before the engine"),
    ],
)
def test_hang_before_the_engines_load_is_bounded_too(
    child: Child, fast: ExperimentConfig, body: str, where: str, limit_s: int
) -> None:
    """No hang lasts for ever: phases before the load, which no setting limits, have a generous limit of their own."""
    child.does(body)

    with pytest.raises(PhaseTimeoutError, match=f"{where} took longer than {limit_s} s"):
        launch.run_in_subprocess(fast, limits=Limits(60, before_load_s=limit_s), on_event=print)


ENDINGS = {
    "stuck": "time.sleep(600)",
    "stuck in native code": NATIVE_HANG,
    "a worker keeps the pipe open": (
        "worker(); from llenergymeasure import result_message; result_message.send(descriptor, message[:-1]); "
        "time.sleep(600)"
    ),
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "crashed": "ctypes.string_at(0)",
}


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
def test_result_counts_whatever_becomes_of_its_process(
    child: Child, fast: ExperimentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    """A process that hangs or dies after its last word has measured: the result is kept, the process is not."""
    monkeypatch.setattr(launch, "END_GRACE_S", 0.3)
    measured = measure(fast, load_user_config())
    (tmp_path / "message").write_bytes(result_message.encode(measured) + result_message.END)
    send = "" if "send" in ending else "send(message); "
    child.does(f'message = open({str(tmp_path / "message")!r}, "rb").read(); phase("load"); {send}{ending}')

    assert run(fast) == measured

    wait_until(lambda: not any(map(alive, child.pids)), limit_s=5)


def test_process_that_gives_up_its_pipe_without_a_result_is_not_waited_for(
    child: Child, fast: ExperimentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing more can come from it: it is ended, and the error says so."""
    monkeypatch.setattr(launch, "END_GRACE_S", 0.3)
    child.does('phase("window"); os.close(descriptor); time.sleep(600)')

    with pytest.raises(RunFailedError, match="closed its pipe without a result in phase window") as caught:
        run(fast)

    assert caught.value.error_type == "ProcessDied"
