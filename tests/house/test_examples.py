"""Every file in examples/ does what its comment says, here and through kubectl."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from cli.process import environment
from llenergymeasure import StudyConfig
from llenergymeasure.core import introspection
from llenergymeasure.core.plan import Plan, make_plan
from llenergymeasure.core.sweep import study_of_one
from llenergymeasure.loaders import experiment_from, read_document, study_from

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
STUDIES_OF_GIT = [
    p for p in sorted((ROOT / "examples" / "gitops" / "studies").glob("*.yaml")) if p.stem != "kustomization"
]


def parts(path: Path) -> list[str]:
    """The documents of a file, as text."""
    return re.split(r"^---$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)


PARTS = [(p, i) for p in [*EXAMPLES, *STUDIES_OF_GIT] for i in range(len(parts(p)))]
EACH = pytest.mark.parametrize(
    "path", PARTS, ids=[f"{p.stem}-{i + 1}" if len(parts(p)) > 1 else p.stem for p, i in PARTS], indirect=True
)


@pytest.fixture
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An example; one of several documents in a file as a file of its own."""
    example, index = request.param
    if len(parts(example)) == 1:
        return Path(example)
    alone = tmp_path / f"{example.stem}-{index + 1}.yaml"
    alone.write_text(parts(example)[index], encoding="utf-8")
    return alone


def expanded(path: Path) -> StudyConfig:
    """A file as a study; an experiment is a study of one."""
    document = read_document(path)
    return study_from(document) if document.study else study_of_one(experiment_from(document))


def planned(path: Path) -> Plan:
    """The plan of a file."""
    return make_plan(expanded(path))


def test_there_are_examples() -> None:
    """The tests below have something to look at."""
    assert len(EXAMPLES) >= 1
    assert "quickstart" in {p.stem for p in EXAMPLES}


@EACH
def test_example_loads_and_expands_without_a_skipped_combination(path: Path) -> None:
    """An example is complete: nothing in it is refused, doubled or ignored."""
    study = expanded(path)

    assert len(study.experiments) >= 1
    assert study.skipped == ()
    assert not [n for n in study.notices if "equal" in n]


@EACH
def test_example_means_the_same_as_json(path: Path, tmp_path: Path) -> None:
    """Read by another YAML reader and written as JSON, as kubectl sends it, it has the same hashes and runs."""
    as_json = tmp_path / f"{path.stem}.json"
    as_json.write_text(json.dumps(yaml.safe_load(path.read_text(encoding="utf-8"))), encoding="utf-8")

    assert planned(as_json) == planned(path)


@EACH
def test_example_quotes_the_key_n(path: Path) -> None:
    """A bare `n` would reach the cluster as `false`."""
    assert not re.search(r"(^|[{,])\s*n\s*:", path.read_text(encoding="utf-8"), re.MULTILINE)


@EACH
def test_example_fits_the_published_schema(path: Path) -> None:
    """An editor with our schema shows no error in it (a cluster resource: in its design)."""
    body: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    body = body["spec"].get("design") or body["spec"]["config"] if "spec" in body else body
    schema = introspection.study_schema() if {"sweep", "experiments"} & set(body) else introspection.experiment_schema()

    assert [e.message for e in jsonschema.validators.validator_for(schema)(schema).iter_errors(body)] == []


@EACH
def test_examples_own_command_is_a_plan(path: Path) -> None:
    """The command in its comment, as a dry run, ends with 0 and says how many runs there are (kubectl's: as a plan)."""
    commands = re.findall(r"^#\s+(llem .+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    words = commands[0].split()[1:] if commands else ["plan", str(path)]
    assert words[-1] == (f"examples/{path.name}" if commands else str(path))
    dry = [*words, "--dry-run"] if words[0] == "run" else words

    done = subprocess.run(
        [sys.executable, "-m", "llenergymeasure.cli", *dry],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    runs = len(planned(path).runs)
    assert f"= {runs} run" in done.stdout


def test_two_backends_make_ten_experiments() -> None:
    """The grammar's own example: precision[2] x (batch[3] + sequences[2])."""
    path = ROOT / "examples" / "two-backends.yaml"

    backends = [e.backend for e in expanded(path).experiments]

    assert (backends.count("pytorch"), backends.count("vllm")) == (6, 4)
