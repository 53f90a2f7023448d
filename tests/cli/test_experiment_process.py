"""`llem experiment`, what every runner starts: configuration in, events and result out, and an exit code of its own."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cli.process import FAST, LLEM, NEVER_ENDING, Ended, environment, llem, over, start, tree, wait_until, write
from fakes.hub import Hub
from llenergymeasure import ExperimentResult
from llenergymeasure.core.result import SCHEMA_VERSION

CLOSED_PORT = "http://127.0.0.1:9"  # discard: nothing listens there
NO_HUB = {"HF_ENDPOINT": CLOSED_PORT, "HF_HUB_OFFLINE": "0"}


def given(*layers: dict[str, Any]) -> dict[str, str]:
    """FAST with `layers` on top as the environment's configuration."""
    return {"LLEM_EXPERIMENT": json.dumps(over(FAST, *layers))}


def events(ended: Ended) -> list[dict[str, Any]]:
    """All of stderr as events; fails if a line is anything else."""
    return [json.loads(line) for line in ended.err.splitlines()]


PYTORCH = {"backend": "pytorch", "model": "./absent"}


@dataclass(frozen=True)
class Way:
    """One way to end: configuration over FAST, words after `llem experiment`, environment, what the event says."""

    code: int
    type: str
    says: str
    phase: str
    body: dict[str, Any] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)


# 14 needs a GPU to be out of memory of, 18 is the parent's word for a child that hangs, 15 takes seconds
# (study/test_exit_codes_of_real_windows.py)
WAYS = {
    "10 unknown key": Way(10, "ConfigError", "did you mean precision?", "start", {"precison": "fp16"}),
    "10 bad value": Way(10, "ValidationError", "n:", "start", {"n": 0}),
    "10 a study": Way(10, "ConfigError", "is a study", "start", words=("--config", "study.yaml")),
    "10 no file": Way(10, "ConfigError", "gone.yaml: no such file", "start", words=("--config", "gone.yaml")),
    "10 dataset too small": Way(10, "ConfigError", "builtin has 240", "preflight", {"n": 9999}),
    "10 environment is no JSON object": Way(
        10, "ConfigError", "LLEM_EXPERIMENT", "start", env={"LLEM_EXPERIMENT": "[1]"}
    ),
    "10 environment is empty": Way(10, "ConfigError", "--config FILE", "start", env={"LLEM_EXPERIMENT": ""}),
    "10 broken environment variable": Way(
        10, "ConfigError", "LLEM_CARBON_INTENSITY", "start", env={"LLEM_CARBON_INTENSITY": "x"}
    ),
    "11 GPU missing": Way(
        11, "PreFlightError", "1 GPUs must be visible, but there are 0", "preflight", env={"LLEM_GPU_COUNT": "1"}
    ),
    "11 energy source missing": Way(11, "PreFlightError", "NVIDIA", "preflight", {"energy": {"backend": "nvml"}}),
    "12 backend missing": Way(
        12, "PreFlightError", "vllm", "preflight", {"backend": "vllm", "energy": {"backend": "none"}}
    ),
    "12 option not supported": Way(
        12, "PreFlightError", "saturated", "preflight", {"measurement": {"window": "saturated"}}
    ),
    "13 model not found": Way(13, "PreFlightError", "no such folder", "preflight", PYTORCH),
    "16 engine crashed": Way(
        16, "BackendError", "failed after 0 batches", "warmup", {"synthetic": {"fail_after_batches": 0}}
    ),
    "16 engine crashed in the window": Way(
        16, "BackendError", "failed after 1 batches", "window", {"synthetic": {"fail_after_batches": 1}}
    ),
    "17 result below a file": Way(
        17, "ResultStoreError", "Not a directory", "result", words=("--result", "study.yaml/deep")
    ),
    "17 result to an unknown store": Way(
        17, "ResultStoreError", "s3://bucket/x", "result", words=("--result", "s3://bucket/x")
    ),
    "17 result to a closed descriptor": Way(
        17, "ResultStoreError", "Bad file descriptor", "result", words=("--result-fd", "77")
    ),
    "20 hub does not answer": Way(
        20,
        "UnreachableError",
        "-m builtin:smollm2-135m",
        "download",
        {"backend": "pytorch", "model": "acme/tiny"},
        env=NO_HUB,
    ),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_exit_code_tells_what_kind_of_failure_it_was(tmp_path: Path, way: Way) -> None:
    """Code, error event and nothing else: the operator sorts retries by the code, people read the event."""
    write(tmp_path, {"sweep": {"n": [1]}}, name="study.yaml")

    ended = llem("experiment", *way.words, cwd=tmp_path, env=given(way.body) | way.env)

    said = events(ended)[-1]
    assert ended.code == way.code, ended.err
    assert {k: said[k] for k in ("event", "type", "phase", "exit_code")} == {
        "event": "error", "type": way.type, "phase": way.phase, "exit_code": way.code,
    }  # fmt: skip
    assert way.says in said["message"]
    assert ended.out == ""


@pytest.mark.parametrize(
    ("answer", "code", "says"),
    [
        pytest.param("gated", 13, "gated", id="gated"),
        pytest.param("missing", 13, "not found", id="404"),
        pytest.param("broken", 20, "500", id="500"),
    ],
)
def test_exit_code_of_a_hub_that_refuses(tmp_path: Path, answer: Any, code: int, says: str) -> None:
    """Not readable is final (13), broken is for now (20)."""
    with Hub() as hub:
        hub.add("acme/tiny", {"config.json": b"{}"}, answer=answer)

        ended = llem(
            "experiment", cwd=tmp_path, env=given({"backend": "pytorch", "model": "acme/tiny"}) | hub.environment()
        )

    assert ended.code == code, ended.err
    assert says in json.loads(ended.err.splitlines()[-1])["message"]


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["--nope"], id="unknown flag"),
        pytest.param(["--result-fd", "seven"], id="descriptor is no number"),
        pytest.param(["--config"], id="flag without its value"),
        pytest.param(["extra"], id="argument too many"),
    ],
)
def test_unusable_flags_are_a_configuration_error(tmp_path: Path, words: list[str]) -> None:
    """1, 2 and 125 and above belong to shells and container engines: a usage error here is 10."""
    assert llem("experiment", *words, cwd=tmp_path, env=given()).code == 10


def test_broken_user_config_is_10(tmp_path: Path) -> None:
    """What is wrong with this machine's own configuration is final, too, and not a crash."""
    file = Path(os.environ["XDG_CONFIG_HOME"]) / "llenergymeasure" / "config.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("ui: {verbosty: quiet}\n", encoding="utf-8")

    ended = llem("experiment", cwd=tmp_path, env=given())

    assert ended.code == 10
    assert "did you mean verbosity?" in events(ended)[-1]["message"]


def test_full_device_for_the_result_is_17(tmp_path: Path) -> None:
    """A result that stdout does not take is not stored."""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [str(LLEM), "experiment"],
            cwd=tmp_path,
            env=environment(given()),
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )

    assert done.returncode == 17


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_told_to_stop_is_19(tmp_path: Path, number: int) -> None:
    """A kubelet's SIGTERM (or Ctrl-C) ends the run at once with its own code, phase and event."""
    child = start("experiment", cwd=tmp_path, env=given(NEVER_ENDING))
    assert child.stderr is not None
    wait_until(lambda: '"warmup"' in child.stderr.readline())

    os.kill(child.pid, number)
    out, err = child.communicate(timeout=20)

    said = json.loads(err.splitlines()[-1])
    assert child.returncode == 19
    assert (said["event"], said["type"] in ("TerminatedError", "KeyboardInterrupt"), said["phase"]) == (
        "error",
        True,
        "warmup",
    )
    assert out == ""


def test_told_to_stop_while_it_imports_is_143(tmp_path: Path) -> None:
    """Process 1 of a container has no default action for SIGTERM: the command handles it before its heavy imports."""
    (tmp_path / "typer.py").write_text(
        "import signal, sys\nsignal.alarm(60)\nprint('imports', file=sys.stderr, flush=True)\nsignal.pause()\n",
        encoding="utf-8",
    )
    as_process_1 = ("sh", "-c", 'trap "" TERM; exec "$0" experiment', LLEM)
    with subprocess.Popen(
        as_process_1, env=environment(given(NEVER_ENDING) | {"PYTHONPATH": str(tmp_path)}),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as child:  # fmt: skip
        assert child.stderr is not None
        assert child.stderr.readline() == "imports\n"

        os.kill(child.pid, signal.SIGTERM)
        out, err = child.communicate()  # a deaf one ends by its alarm

    assert (child.returncode, out, err) == (143, "", "")


def test_result_goes_to_stdout_if_nothing_else_is_asked(tmp_path: Path) -> None:
    """`llem experiment > result.json` is the smallest runner; stderr holds events only."""
    ended = llem("experiment", cwd=tmp_path, env=given())

    assert ended.code == 0
    assert ExperimentResult.from_json(ended.out).model == FAST["model"]
    assert tree(tmp_path) == set()


def test_progress_is_one_json_object_per_line(tmp_path: Path) -> None:
    """Each phase begins with {event, phase, t_s, done, total}, in order, done counting up to the total."""
    told = events(llem("experiment", cwd=tmp_path, env=given()))

    phases = [e for e in told if e["event"] == "phase"]
    assert [e["phase"] for e in phases] == [
        "preflight", "download", "environment", "baseline", "load", "tokenise", "warmup", "settle", "window", "drain",
        "result",
    ]  # fmt: skip
    assert [e["done"] for e in phases] == list(range(len(phases)))
    assert {e["total"] for e in phases} == {len(phases)}
    times = [e["t_s"] for e in told if "t_s" in e]
    assert times == sorted(times)
    for event in told:
        if event["event"] in ("phase", "progress"):
            assert {"event", "phase", "t_s", "done", "total"} <= set(event)


def through_pipe(cwd: Path, env: dict[str, str]) -> dict[str, Any]:
    """Run `llem experiment --result-fd` as a runner does, give the message from the pipe."""
    reader, writer = os.pipe()
    child = subprocess.Popen(
        [str(LLEM), "experiment", "--result-fd", str(writer)],
        cwd=cwd,
        env=environment(env),
        pass_fds=(writer,),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        message = json.loads(pipe.read())
    out, _ = child.communicate(timeout=60)
    assert out == b""
    return dict(message)


def test_result_comes_through_the_descriptor(tmp_path: Path) -> None:
    """--result-fd N gets the result and its series; stdout stays empty."""
    message = through_pipe(tmp_path, given())

    assert ExperimentResult.model_validate(message["result"]).schema_version == SCHEMA_VERSION
    assert "series" in message


def test_error_comes_through_the_descriptor(tmp_path: Path) -> None:
    """A failure is said where the result was awaited: type, message, phase, exit code."""
    message = through_pipe(tmp_path, given({"synthetic": {"fail_after_batches": 0}}))

    assert message == {
        "error": {
            "type": "BackendError",
            "message": "synthetic engine failed after 0 batches, as fail_after_batches asks",
            "phase": "warmup",
            "exit_code": 16,
        }
    }


def test_large_result_comes_as_the_path_of_a_file(tmp_path: Path) -> None:
    """Above 1,000,000 bytes the pipe gets the path of a file that only this user can read."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    large = {"n": 100, "max_output_tokens": 1500, "output": {"save_text": True}, "synthetic": {"decode_ms_per_step": 0}}

    message = through_pipe(tmp_path, given(large) | {"TMPDIR": str(temporary)})

    assert set(message) == {"path"}
    file = Path(message["path"])
    assert file.parent == temporary
    assert file.stat().st_mode & 0o077 == 0
    assert file.stat().st_size > 1_000_000
    texts = json.loads(file.read_bytes())["result"]["texts"]
    assert len(texts) == 100


@pytest.mark.parametrize("uri", ["out/run", "file:///ABS/with%20space"], ids=["a path", "a file URI"])
def test_result_goes_into_a_folder(tmp_path: Path, uri: str) -> None:
    """--result takes a folder or a file:// URI and fills it with the four files of a run, result.json whole."""
    uri = uri.replace("/ABS", str(tmp_path))
    folder = tmp_path / ("with space" if "%20" in uri else uri)

    ended = llem("experiment", "--result", uri, cwd=tmp_path, env=given())

    assert (ended.code, ended.out) == (0, "")
    assert tree(folder) == {"result.json", "config.json", "environment.json", "timeseries.parquet"}
    stored = ExperimentResult.from_json(folder / "result.json")
    assert stored.timeseries == "timeseries.parquet"
    assert json.loads((folder / "config.json").read_text()) == stored.effective_config


def test_file_wins_over_the_environment(tmp_path: Path) -> None:
    """--config FILE is read even where LLEM_EXPERIMENT is set, and means the same as the same text there."""
    file = write(tmp_path, {"max_output_tokens": 7})

    by_file = ExperimentResult.from_json(llem("experiment", "--config", file, cwd=tmp_path, env=given()).out)
    by_variable = ExperimentResult.from_json(llem("experiment", cwd=tmp_path, env=given({"max_output_tokens": 7})).out)

    assert by_file.measurement_config_hash == by_variable.measurement_config_hash
    assert by_file.output_tokens == 2 * 7


def test_python_m_is_the_same_process(tmp_path: Path) -> None:
    """Runners start `python -m llenergymeasure.cli experiment`, which needs no script on the PATH."""
    done = subprocess.run(
        [sys.executable, "-m", "llenergymeasure.cli", "experiment"],
        cwd=tmp_path, env=environment(given({"n": 0})), capture_output=True, check=False,
    )  # fmt: skip

    assert done.returncode == 10


def test_cpu_may_stand_in_where_a_gpu_was_counted(tmp_path: Path) -> None:
    """LLEM_ALLOW_CPU=1 takes the count of GPUs back."""
    ended = llem("experiment", cwd=tmp_path, env=given() | {"LLEM_GPU_COUNT": "1", "LLEM_ALLOW_CPU": "1"})

    assert ended.code == 0
