"""The Python API: seven names, two functions, one result type each, and nothing on disk unless asked."""

import inspect
import os
import subprocess
import sys
import typing
from pathlib import Path
from types import UnionType
from typing import Any

import pytest
from pydantic import ValidationError

import llenergymeasure
from cli.process import FAST, over, tree, write
from llenergymeasure import (
    ExperimentConfig,
    ExperimentResult,
    StudyConfig,
    StudyResult,
    run_experiment,
    run_study,
)
from llenergymeasure.core.errors import ConfigError, PreFlightError
from study.running import make

NAMES = {
    "run_experiment", "run_study", "ExperimentConfig", "StudyConfig", "ExperimentResult", "StudyResult", "__version__",
}  # fmt: skip


def test_public_names_are_exactly_seven() -> None:
    """`dir`, `__all__` and `import *` agree on the seven names; everything else is private."""
    space: dict[str, Any] = {}
    exec("from llenergymeasure import *", space)

    assert set(llenergymeasure.__all__) == NAMES
    assert set(dir(llenergymeasure)) == NAMES
    assert set(space) - {"__builtins__"} == NAMES
    assert len(llenergymeasure.__all__) == 7


def test_unknown_name_is_an_attribute_error() -> None:
    """A name that is not public is missing in the ordinary way."""
    with pytest.raises(AttributeError, match="run_everything"):
        _ = llenergymeasure.run_everything  # type: ignore[attr-defined]


def test_version() -> None:
    """The version of the specification, also in the installed package's metadata."""
    from importlib.metadata import version

    assert llenergymeasure.__version__ == version("llenergymeasure") == "2.0.0"


def test_signature_of_run_experiment() -> None:
    """LA-01: config may be a file, a configuration or absent; output_dir by keyword; any field beside it."""
    parameters = inspect.signature(run_experiment).parameters
    hints = typing.get_type_hints(run_experiment)

    assert list(parameters) == ["config", "output_dir", "fields"]
    assert parameters["config"].default is None
    assert set(typing.get_args(hints["config"])) == {str, Path, ExperimentConfig, type(None)}
    assert parameters["output_dir"].kind is inspect.Parameter.KEYWORD_ONLY
    assert parameters["output_dir"].default is None
    assert set(typing.get_args(hints["output_dir"])) == {Path, type(None)}
    assert parameters["fields"].kind is inspect.Parameter.VAR_KEYWORD


def test_signature_of_run_study() -> None:
    """LA-02: config is a file or a study; output_dir by keyword."""
    parameters = inspect.signature(run_study).parameters
    hints = typing.get_type_hints(run_study)

    assert list(parameters) == ["config", "output_dir"]
    assert parameters["config"].default is inspect.Parameter.empty
    assert set(typing.get_args(hints["config"])) == {str, Path, StudyConfig}
    assert parameters["output_dir"].kind is inspect.Parameter.KEYWORD_ONLY
    assert parameters["output_dir"].default is None


def test_no_public_function_returns_a_union() -> None:
    """LA-06: each function gives one type, so that callers need no isinstance."""
    returned = {f: typing.get_type_hints(f)["return"] for f in (run_experiment, run_study)}

    assert returned == {run_experiment: ExperimentResult, run_study: StudyResult}
    assert not any(isinstance(t, UnionType) or typing.get_origin(t) is typing.Union for t in returned.values())


def test_run_experiment_leaves_nothing_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LA-04: without output_dir neither the working folder nor the temporary folder nor the home is touched."""
    for name in ("work", "tmp", "home"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    script = f"from llenergymeasure import run_experiment; print(run_experiment(**{FAST!r}).output_tokens)"
    env = {**os.environ, "TMPDIR": str(tmp_path / "tmp"), "HOME": str(tmp_path / "home")}
    env |= {"XDG_CACHE_HOME": str(tmp_path / "home/.cache"), "XDG_CONFIG_HOME": str(tmp_path / "home/.config")}

    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)

    assert done.stdout == "8\n"
    assert tree(tmp_path) == {"work", "tmp", "home"}


def test_run_experiment_takes_a_file_a_configuration_or_fields(tmp_path: Path) -> None:
    """LA-01: the same experiment in each of its forms has the same identity."""
    file = write(tmp_path)
    forms: list[dict[str, Any]] = [
        {"config": str(file)}, {"config": file}, {"config": ExperimentConfig(**FAST)}, dict(FAST),
        {"config": file, "n": 2}, {"config": ExperimentConfig(**over(FAST, {"n": 9})), "n": 2},
    ]  # fmt: skip

    results = [run_experiment(**form) for form in forms]

    assert {type(r) for r in results} == {ExperimentResult}
    assert len({r.measurement_config_hash for r in results}) == 1
    assert {r.requests for r in results} == {2}


def test_fields_reach_inside_sections() -> None:
    """A dotted key changes one value; a field laid over a configuration leaves that object alone."""
    config = ExperimentConfig(**over(FAST, {"synthetic": {"batch_size": 2}}))

    result = run_experiment(config, **{"synthetic.batch_overhead_ms": 2.0, "max_output_tokens": 3})

    assert result.effective_config["synthetic"]["batch_overhead_ms"] == 2
    assert result.effective_config["synthetic"]["batch_size"] == 2
    assert result.output_tokens == 2 * 3
    assert config.max_output_tokens == FAST["max_output_tokens"]


def test_output_dir_gets_a_folder_and_is_not_part_of_the_identity(tmp_path: Path) -> None:
    """LA-04: with output_dir the files are there, and the hash is the same as without."""
    stored, unstored = run_experiment(**FAST, output_dir=tmp_path / "new" / "out"), run_experiment(**FAST)

    (file,) = (tmp_path / "new" / "out").glob("*/result.json")
    assert ExperimentResult.from_json(file).experiment_id == stored.experiment_id
    assert stored.measurement_config_hash == unstored.measurement_config_hash
    assert str(tmp_path) not in str(stored.effective_config)


@pytest.mark.parametrize(
    ("fields", "kind", "says"),
    [
        pytest.param({"modle": "m"}, ConfigError, "did you mean model?", id="unknown field"),
        pytest.param({**FAST, "synthetic.bach_size": 1}, ConfigError, "did you mean batch_size?", id="unknown dotted field"),
        pytest.param({**FAST, "n": 0}, ValidationError, "greater than or equal to 1", id="bad value"),
        pytest.param({}, ValidationError, "model", id="nothing"),
        pytest.param({**FAST, "backend": "vllm"}, PreFlightError, "vllm", id="backend that cannot run"),
    ],
)  # fmt: skip
def test_mistakes_raise_what_they_are(fields: dict[str, Any], kind: type[Exception], says: str) -> None:
    """Unknown names are a ConfigError, wrong values pydantic's own ValidationError, missing things a PreFlightError."""
    with pytest.raises(kind, match=says.replace("?", r"\?")):
        run_experiment(**fields)


def test_a_study_is_not_an_experiment_nor_the_other_way_round(tmp_path: Path) -> None:
    """Each function refuses the other's file and says which function to use."""
    experiment = write(tmp_path)
    study = write(tmp_path, {"sweep": {"n": [1]}}, name="study.yaml")

    with pytest.raises(ConfigError, match="run_study"):
        run_experiment(study)
    with pytest.raises(ConfigError, match="run_experiment"):
        run_study(experiment, output_dir=tmp_path / "out")

    assert not (tmp_path / "out").exists()


def test_run_study_always_writes_its_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LA-05: without output_dir the manifest is below the user's results folder, ./results."""
    monkeypatch.chdir(tmp_path)
    body = {"sweep": {"n": [2]}, "execution": {"n_cycles": 1}}

    from_file = run_study(write(tmp_path, body))
    from_object = run_study(make(body), output_dir=tmp_path / "other")

    assert {type(from_file), type(from_object)} == {StudyResult}
    assert len(list((tmp_path / "results").glob("study_*/study_manifest.json"))) == 1
    assert len(list((tmp_path / "other").glob("study_*/study_manifest.json"))) == 1
    assert Path(from_object.directory or "").parent == tmp_path / "other"
    assert from_file.study_design_hash == from_object.study_design_hash


def test_study_result_is_what_is_stored(tmp_path: Path) -> None:
    """The returned StudyResult, read back from its file, is the same; to_json and from_json are exact."""
    result = run_study(make({"sweep": {"n": [2, 3]}}), output_dir=tmp_path)

    (file,) = tmp_path.glob("*/study_result.json")
    assert StudyResult.from_json(file) == result
    assert StudyResult.from_json(result.to_json()) == result


def test_failed_run_does_not_raise(tmp_path: Path) -> None:
    """A study with a crash is still a result; the failure is in it."""
    result = run_study(make({"experiments": [{"synthetic": {"fail_after_batches": 0}}]}), output_dir=tmp_path)

    assert result.summary["failed"] == 1
    assert result.failed[0].error_type == "BackendError"
    assert result.result_files == []
    assert result.experiments == []


def test_models_are_frozen() -> None:
    """A configuration and a result cannot be changed after the fact."""
    config = ExperimentConfig(**FAST)
    result = run_experiment(config)

    with pytest.raises(ValidationError, match="frozen"):
        config.n = 5
    with pytest.raises(ValidationError, match="frozen"):
        result.output_tokens = 5
