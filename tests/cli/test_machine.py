"""`llem config` says what this machine has and never fails; every other command refuses a broken user config."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.process import Ended, tree, write

Quick = Callable[..., Ended]
USER_FILE = ".config/llenergymeasure/config.yaml"


def user_file(text: str | bytes) -> Path:
    """Write the user's configuration of this test's home."""
    path = Path(os.environ["HOME"]) / USER_FILE
    path.parent.mkdir(parents=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_config_says_what_is_there_and_how_to_get_the_rest(
    tmp_path: Path, quick_llem: Quick, heavy_imports: Callable[[], list[str]]
) -> None:
    """On a machine with nothing: exit 0, each backend and energy source with its state and the fix, no engine loaded."""
    ended = quick_llem("config", env={"CUDA_VISIBLE_DEVICES": ""})

    assert ended.code == 0
    lines = {line.split()[0]: line for line in ended.out.splitlines() if line.startswith("  ")}
    assert "ready (torch" in lines["pytorch"]
    assert "not part of this version" in lines["vllm"]
    assert "not available" in lines["nvml"]
    assert "run on an NVIDIA GPU" in lines["nvml"]
    assert "no GPU is visible" in lines["zeus"]
    assert "host energy only: no GPU is visible" in lines["codecarbon"]
    assert "none visible" in ended.out
    assert f"{os.environ['HOME']}/{USER_FILE} (not there: defaults)" in ended.out
    assert heavy_imports() == []
    assert tree(tmp_path) == set()


def test_config_shows_what_the_user_changed(tmp_path: Path, quick_llem: Quick) -> None:
    """Values of the user's file and of the environment are shown, defaults are not."""
    user_file("output: {results_dir: /data/llem}\n")

    ended = quick_llem("config", env={"LLEM_DATACENTER_PUE": "1.4"})

    shown = [line.split() for line in ended.out.splitlines()]
    assert ["output.results_dir", "/data/llem"] in shown
    assert ["measurement.datacenter_pue", "1.4"] in shown
    assert "cycle_gap_seconds" not in ended.out


BROKEN = [
    pytest.param("output: {results_dri: x}\n", "did you mean results_dir?", id="unknown key"),
    pytest.param("outptu: {results_dir: x}\n", "did you mean output?", id="unknown section"),
    pytest.param("execution: {config_gap_seconds: -1}\n", "config_gap_seconds", id="bad value"),
    pytest.param("runners: {pytorch: singularity:x}\n", "not supported in 2.0", id="removed runner"),
    pytest.param("output: [\n", "config.yaml:2", id="syntax"),
    pytest.param("- a\n", "mapping", id="a list"),
    pytest.param(b"\xff\xfe\x00", "UTF-8", id="not text"),
    pytest.param("notifications: {webhook_url: 'https://u:secret1@host/'}\n", "credential", id="credential"),
]


@pytest.mark.parametrize(("text", "hint"), BROKEN)
def test_broken_user_config_is_shown_by_config_and_refused_by_run(
    tmp_path: Path, quick_llem: Quick, text: str | bytes, hint: str
) -> None:
    """`llem config` prints what is wrong with it and ends with 0; `llem run` ends with 2 and the same words."""
    path = user_file(text)

    shown, refused = quick_llem("config"), quick_llem("run", write(tmp_path))

    assert shown.code == 0
    assert "BROKEN" in shown.out
    assert hint in shown.out
    assert "backends" in shown.out
    assert refused.code == 2
    assert len(refused.errors) == 1
    assert str(path) in refused.err
    assert hint in refused.err
    assert "secret1" not in shown.out + shown.err + refused.err
    assert tree(tmp_path) == {"config.yaml"}


@pytest.mark.parametrize(
    ("variable", "value"), [("LLEM_CARBON_INTENSITY", "much"), ("LLEM_DATACENTER_PUE", "1,4"), ("LLEM_RUNNER_PYTORCH", "moon")]
)  # fmt: skip
def test_malformed_environment_is_refused_by_name(tmp_path: Path, quick_llem: Quick, variable: str, value: str) -> None:
    """A malformed number or runner in the environment is an error of exit code 2 that shows the value."""
    ended = quick_llem("run", write(tmp_path), env={variable: value})

    assert ended.code == 2
    assert len(ended.errors) == 1
    assert value in ended.err
    shown = quick_llem("config", env={variable: value})
    assert "mend what is named above" in shown.out  # it is no line of the file, which need not be there
    assert variable in shown.out or value in shown.out


def test_users_results_folder_and_verbosity_are_respected(tmp_path: Path, quick_llem: Quick) -> None:
    """Results go to the user's folder and a quiet user gets no progress, unless the command line says otherwise."""
    user_file(f"output: {{results_dir: {tmp_path}/mine}}\nui: {{verbosity: quiet}}\n")
    file = write(tmp_path, {"sweep": {"n": [2, 3]}, "execution": {"n_cycles": 1}})

    by_user, by_flag = quick_llem("run", file), quick_llem("run", file, "-o", "flag")

    assert by_user.err == ""  # the same study says [1/2] and [2/2] to others: test_output.py
    assert (by_user.code, by_flag.code) == (0, 0)
    for folder in ("mine", "flag"):
        assert len(list((tmp_path / folder).glob("*/study_result.json"))) == 1


@pytest.mark.parametrize("body", [pytest.param({}, id="experiment"), pytest.param({"sweep": {"n": [1]}}, id="study")])
def test_runner_flag_beats_environment_beats_user_config(
    tmp_path: Path, quick_llem: Quick, body: dict[str, object]
) -> None:
    """Precedence: flag > environment > user config; a runner that this version lacks is refused with the way out."""
    user_file("runners: {pytorch: docker}\n")
    # the model is missing: an attempt that gets past the runner ends in its pre-flight
    file = write(tmp_path, {"backend": "pytorch", "model": "/no/such/model"}, body)

    by_user = quick_llem("run", file)
    by_environment = quick_llem("run", file, env={"LLEM_RUNNER_PYTORCH": "local"})
    by_flag = quick_llem("run", file, "--runner", "local", env={"LLEM_RUNNER_PYTORCH": "kubernetes"})

    assert "--runner local" in by_user.err
    assert "pytorch: docker" in by_user.err
    for passed in (by_environment, by_flag):
        assert "no such folder" in passed.err
    assert {by_user.code, by_environment.code, by_flag.code} == {1}


def test_the_self_test_follows_on_request_and_fails_nothing(quick_llem: Quick) -> None:
    """Without a GPU the self-test is one sentence and the exit code stays 0; without the flag it is not there."""
    ended = quick_llem("config", "--self-test", env={"CUDA_VISIBLE_DEVICES": ""})
    assert ended.code == 0
    assert ended.out.splitlines()[-1].startswith("sensor self-test: not possible: no NVIDIA GPU")
    assert "self-test" not in quick_llem("config").out
