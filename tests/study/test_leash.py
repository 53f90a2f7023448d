"""A run ends with the process that started it: no orphan goes on using the GPU, whatever it is doing."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cli.process import FAST, NEVER_ENDING, alive, over, processes_with, wait_until
from llenergymeasure import ExperimentConfig, leash
from study.stand_in import run

PARENT = """
import os, subprocess, sys
from llenergymeasure import ExperimentConfig, launch
sys.executable = {interpreter!r}
def hear(event):
    if event.get("phase") == {phase!r}:
        {then}
        print("heard", flush=True)
launch.run_in_subprocess(
    ExperimentConfig(**{config!r}), limits=launch.Limits(600), on_event=hear, variables={{"LLEM_STUDY": {name!r}}}
)
"""
STAND_IN = """#!{python}
import ctypes, json, os, signal, subprocess, sys, time
from llenergymeasure.leash import tie_to_parent
tie_to_parent(os.environ)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
{body}
"""
HEARD = 'print(json.dumps({"event": "phase", "phase": "warmup"}), file=sys.stderr, flush=True)\n'


@pytest.fixture
def name() -> str:
    """A name that marks all processes of this test."""
    return f"leash-{os.getpid()}-{os.urandom(4).hex()}"


def start(name: str, *, interpreter: str = sys.executable, then: str = "pass") -> subprocess.Popen[str]:
    """Start a process that runs a never-ending experiment, and wait until that has begun its warm-up."""
    config = over(FAST, NEVER_ENDING)
    text = PARENT.format(interpreter=interpreter, phase="warmup", then=then, config=config, name=name)
    parent = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "heard\n"
    return parent


def kill(parent: subprocess.Popen[str]) -> None:
    """End it without a chance to tidy up."""
    parent.kill()
    parent.communicate()


def test_real_experiment_ends_with_its_parent(name: str) -> None:
    """The parent is killed: experiment and guard are gone soon after."""
    parent = start(name)
    pids = processes_with("LLEM_STUDY", name)
    assert pids

    kill(parent)

    wait_until(lambda: not any(map(alive, pids)), limit_s=10)
    assert processes_with("LLEM_STUDY", name) == []


BODIES = {
    "sleeps": HEARD + "time.sleep(600)",
    "hangs in native code with the interpreter's lock": (
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n" + HEARD + "ctypes.PyDLL(None).sleep(600)"
    ),
    "has a worker": 'subprocess.Popen(["sleep", "600"])\n' + HEARD + "time.sleep(600)",
    "has a worker in a session of its own": (
        'subprocess.Popen(["sleep", "600"], start_new_session=True)\n' + HEARD + "time.sleep(600)"
    ),
    "is stopped": HEARD + "os.kill(os.getpid(), signal.SIGSTOP)",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_whatever_a_run_does_it_ends_with_its_parent(tmp_path: Path, name: str, body: str) -> None:
    """No state of the run, and no worker of it, outlives a parent that was killed."""
    script = tmp_path / "child.py"
    script.write_text(STAND_IN.format(python=sys.executable, body=body))
    script.chmod(0o755)
    parent = start(name, interpreter=str(script))
    pids = processes_with("LLEM_STUDY", name)
    assert len(pids) == 2 + body.count("Popen")  # run, guard, workers

    kill(parent)

    wait_until(lambda: not any(map(alive, pids)), limit_s=10)


def test_other_programs_of_the_parent_do_not_hold_the_leash(name: str) -> None:
    """Something that the parent has started, and that outlives it, does not keep the run alive."""
    other = 'subprocess.Popen(["sleep", "600"], close_fds=False, stdout=subprocess.DEVNULL, env={"OTHER": "%s"})'
    parent = start(name, then=other % name)
    (stranger,) = wait_until(lambda: processes_with("OTHER", name))
    try:
        kill(parent)

        wait_until(lambda: processes_with("LLEM_STUDY", name) == [], limit_s=10)
        assert alive(stranger)
    finally:
        os.kill(stranger, signal.SIGKILL)


def test_guard_ends_with_a_run_that_ends_by_itself(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left of a run that has ended well; nor does its guard hold the result's pipe open."""
    monkeypatch.setenv("LLEM_STUDY", name)

    measured = run(ExperimentConfig(**FAST))

    assert measured.result.output_tokens == 8
    assert set(processes_with("LLEM_STUDY", name)) <= {os.getpid()}


@pytest.mark.parametrize("text", ["", "x", "-1", "7777", "99999999999999999999", "file"])
def test_what_is_no_leash_ties_nothing(tmp_path: Path, text: str) -> None:
    """A variable that is missing, wrong or left over from elsewhere neither fails nor ends anybody."""
    script = "import os\nfrom llenergymeasure.leash import tie_to_parent\ntie_to_parent(os.environ)\nprint(len(os.listdir('/proc/self/task')), 'LLEM_LEASH_FD' in os.environ)"
    with (tmp_path / "file").open("w") as file:
        value = str(file.fileno()) if text == "file" else text
        done = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, leash.VARIABLE: value},
            pass_fds=(file.fileno(),),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    assert (done.stdout, done.returncode) == ("1 False\n", 0), done.stderr


def test_run_in_a_foreign_group_ends_alone(tmp_path: Path) -> None:
    """A run that leads no group of its own must not take its neighbours along."""
    script = (
        "import os, sys, time\nfrom llenergymeasure.leash import tie_to_parent\ntie_to_parent(os.environ)\n"
        "print('tied', flush=True)\ntime.sleep(600)"
    )
    reader, writer = os.pipe()
    child = subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, leash.VARIABLE: str(reader)},
        pass_fds=(reader,),
        stdout=subprocess.PIPE,
        text=True,
        process_group=os.getpgrp(),
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "tied\n"

    os.close(writer)

    assert child.wait(timeout=20) == -signal.SIGKILL
    os.close(reader)
    child.stdout.close()
