"""The user's own defaults: silent when missing, strict when there, beaten by the environment and the command line."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from llenergymeasure import user_config
from llenergymeasure.core.errors import ConfigError
from llenergymeasure.user_config import UserConfig, load_user_config
from study.running import make

EVERYTHING: dict[str, Any] = {
    "output": {"results_dir": "/data/results", "model_cache_dir": "/data/cache"},
    "runners": {"pytorch": "local", "vllm": "docker:img:1", "tensorrt": "kubernetes"},
    "measurement": {"energy_backend": "nvml", "carbon_intensity_gco2_kwh": 230, "datacenter_pue": 1.2},
    "execution": {"config_gap_seconds": 5, "cycle_gap_seconds": 0},
    "ui": {"prompt": False, "verbosity": "verbose"},
    "notifications": {"webhook_url": "https://hooks.example/x", "on_complete": False, "on_failure": False},
}


def write(body: Any) -> Path:
    """Write the user's file of this test's home."""
    path = Path(os.environ["XDG_CONFIG_HOME"]) / "llenergymeasure" / "config.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(body if isinstance(body, str) else json.dumps(body), encoding="utf-8")
    return path


def test_file_is_where_the_platform_keeps_configuration() -> None:
    """~/.config/llenergymeasure/config.yaml on Linux, or below XDG_CONFIG_HOME."""
    assert user_config.user_config_path() == write({})


@pytest.mark.parametrize(
    "text", [None, "", "# only a comment\n", "{}"], ids=["no file", "empty", "comment", "nothing in it"]
)
def test_missing_means_silent_defaults(text: str | None, capfd: pytest.CaptureFixture[str]) -> None:
    """No file, or one without content, gives the documented defaults and no word about it."""
    if text is not None:
        write(text)

    found = load_user_config()

    assert found == UserConfig()
    assert found.output.results_dir == "./results"
    assert (found.execution.config_gap_seconds, found.execution.cycle_gap_seconds) == (60, 300)
    assert (found.measurement.energy_backend, found.measurement.datacenter_pue) == ("auto", 1.0)
    assert capfd.readouterr() == ("", "")


def test_every_documented_key_is_read() -> None:
    """Each section and key of the specification is accepted and kept."""
    write(EVERYTHING)

    assert load_user_config().model_dump() == EVERYTHING
    assert {s: set(keys) for s, keys in EVERYTHING.items()} == {
        s: set(section) for s, section in UserConfig().model_dump().items()
    }


@pytest.mark.parametrize(
    ("variable", "value", "section", "key", "expected"),
    [
        ("LLEM_RUNNER_PYTORCH", "docker", "runners", "pytorch", "docker"),
        ("LLEM_RUNNER_VLLM", "local", "runners", "vllm", "local"),
        ("LLEM_CARBON_INTENSITY", "50.5", "measurement", "carbon_intensity_gco2_kwh", 50.5),
        ("LLEM_DATACENTER_PUE", "1.5", "measurement", "datacenter_pue", 1.5),
        ("LLEM_NO_PROMPT", "1", "ui", "prompt", False),
    ],
)
def test_environment_beats_the_file(variable: str, value: str, section: str, key: str, expected: Any) -> None:
    """Each variable overrides its key and nothing else."""
    write({**EVERYTHING, "ui": {"prompt": True}})

    plain, changed = load_user_config({}).model_dump(), load_user_config({variable: value}).model_dump()

    assert changed[section][key] == expected
    assert plain[section][key] != expected
    assert changed == {**plain, section: {**plain[section], key: expected}}


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"LLEM_CARBON_INTENSITY": "low"}, "LLEM_CARBON_INTENSITY.*'low'"),
        ({"LLEM_DATACENTER_PUE": ""}, None),
        ({"LLEM_DATACENTER_PUE": "0.5"}, "datacenter_pue"),
        ({"LLEM_CARBON_INTENSITY": "nan"}, "carbon_intensity"),
        ({"LLEM_RUNNER_PYTORCH": "singularity:x"}, "not supported in 2.0"),
        ({"LLEM_RUNNER_PYTORCH": "docker:"}, "docker:<image>"),
    ],
)
def test_malformed_environment_is_an_error_of_its_name(environ: dict[str, str], says: str | None) -> None:
    """A value that cannot be used is named; an empty variable is an unset one."""
    if says is None:
        assert load_user_config(environ) == UserConfig()
        return
    with pytest.raises(ConfigError, match=says):
        load_user_config(environ)


def test_all_mistakes_of_a_file_are_named_at_once() -> None:
    """Unknown sections and keys come together, each with the nearest known name."""
    path = write({"outptu": {}, "ui": {"verbosty": "quiet"}, "execution": {"config_gap": 1}})

    with pytest.raises(ConfigError) as caught:
        load_user_config()

    text = str(caught.value)
    assert text.startswith(f"{path}: 3 problems")
    assert "did you mean output?" in text
    assert "ui.verbosty: unknown key; did you mean verbosity?" in text
    assert "execution.config_gap: unknown key" in text


@pytest.mark.parametrize(
    ("environ", "study", "user", "expected"),
    [
        pytest.param("docker", "local", "kubernetes", "docker", id="environment beats study"),
        pytest.param(None, "local", "kubernetes", "local", id="study beats user config"),
        pytest.param(None, None, "kubernetes", "kubernetes", id="user config beats auto"),
        pytest.param(None, None, None, "auto", id="auto"),
    ],
)
def test_precedence_of_runners(
    monkeypatch: pytest.MonkeyPatch, environ: str | None, study: str | None, user: str | None, expected: str
) -> None:
    """Environment, then study, then user config, then auto."""
    from llenergymeasure.study import runner_of

    if environ:
        monkeypatch.setenv("LLEM_RUNNER_PYTORCH", environ)
    write({"runners": {"pytorch": user}} if user else {})
    body = {"backend": "pytorch", "sweep": {"n": [1]}} | ({"runners": {"pytorch": study}} if study else {})

    assert runner_of("pytorch", make(body), load_user_config()) == expected


def test_cache_folder_is_the_platforms_unless_chosen() -> None:
    """Converted models and baselines lie in the cache folder, or where the user wants them, `~` included."""
    chosen = UserConfig(output=user_config.OutputSection(model_cache_dir="~/models"))

    assert user_config.cache_dir() == Path(os.environ["XDG_CACHE_HOME"]) / "llenergymeasure"
    assert user_config.cache_dir(chosen) == Path(os.environ["HOME"]) / "models"
