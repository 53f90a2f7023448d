"""The wheel that users install, the one version, and the promise that a new backend or energy source is one file."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import llenergymeasure
from cli.process import environment

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "runner" / "llenergymeasure"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT, capture_output=True, check=True,
    )  # fmt: skip
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_holds_both_packages_and_their_data(wheel: Path) -> None:
    """Every module of both packages, the prompts and the type marker lie at the wheel's top; nothing else does."""
    names = set(zipfile.ZipFile(wheel).namelist())

    modules = {f"llenergymeasure/{p.relative_to(PACKAGE)}" for p in PACKAGE.rglob("*.py")}
    modules |= {f"llem_operator/{p.name}" for p in (ROOT / "operator" / "llem_operator").glob("*.py")}
    assert modules - names == set()
    assert {"llenergymeasure/data/prompts.jsonl", "llenergymeasure/py.typed"} <= names
    assert {n.partition("/")[0] for n in names} == {
        "llenergymeasure",
        "llem_operator",
        "llenergymeasure-2.0.0.dist-info",
    }
    assert not any("__pycache__" in n or "tests" in n for n in names)


def test_installed_wheel_has_both_commands_and_its_prompts(wheel: Path, tmp_path: Path) -> None:
    """Unpacked alone, without this checkout, the package runs: prompts are found, both scripts name one function."""
    zipfile.ZipFile(wheel).extractall(tmp_path)
    script = (
        "from llenergymeasure import cli, datasets, ExperimentConfig as C; import sys\n"
        "found = datasets.load_prompts(C(model='m', backend='synthetic', dataset='builtin', n=200))\n"
        "print(len(found.prompts), cli.__file__)"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}

    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )

    count, place = done.stdout.split()
    assert count == "200"
    assert Path(place).is_relative_to(tmp_path)
    entry_points = (tmp_path / "llenergymeasure-2.0.0.dist-info" / "entry_points.txt").read_text()
    assert "llem = llenergymeasure.entry:main" in entry_points
    assert "kubectl-llem = llenergymeasure.entry:main" in entry_points


def test_builtin_prompts_are_varied_and_numerous() -> None:
    """At least 200 different prompts for first runs without a network."""
    lines = (PACKAGE / "data" / "prompts.jsonl").read_text(encoding="utf-8").splitlines()

    prompts = [json.loads(line)["prompt"] for line in lines if "prompt" in json.loads(line)]
    assert len(prompts) == len(set(prompts)) >= 200


def test_version_is_the_same_everywhere() -> None:
    """pyproject.toml and the package agree."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    assert project["version"] == llenergymeasure.__version__ == "2.0.0"
    assert project["requires-python"] == ">=3.11"


def test_base_dependencies_are_those_of_the_specification() -> None:
    """Engines and clusters are extras; the base is small, and there is no extra called all."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    base = {r.partition(">=")[0] for r in project["dependencies"]}
    assert base == {"pydantic", "typer", "pyyaml", "platformdirs", "nvidia-ml-py", "pyarrow", "tqdm"}
    assert "all" not in project["optional-dependencies"]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package to put a file into."""
    shutil.copytree(PACKAGE, tmp_path / "llenergymeasure", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def llem(copy: Path, *words: str) -> str:
    """stdout of `llem WORDS…` from the copy."""
    command = [sys.executable, "-m", "llenergymeasure.cli", *words]
    env = environment({"PYTHONPATH": str(copy)})
    done = subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_new_backend_is_one_file(copy: Path) -> None:
    """A file in backends/ is all: schema, plan, batch flag, config and a run know it."""
    source = (copy / "llenergymeasure" / "backends" / "synthetic.py").read_text(encoding="utf-8")
    toy = source.replace('NAME = "synthetic"', 'NAME = "toy"').replace(
        'BATCH_SIZE_KEY = "batch_size"', 'BATCH_SIZE_KEY = "lanes"'
    )
    toy = toy.replace("batch_size: Int", "lanes: Int").replace(".batch_size", ".lanes")
    (copy / "llenergymeasure" / "backends" / "toy.py").write_text(toy, encoding="utf-8")
    words = ("-m", "m", "-b", "toy", "-d", "builtin", "-n", "4", "--batch-size", "2", "--set", "max_output_tokens=2")

    plan = json.loads(llem(copy, "run", *words, "--dry-run", "--json"))
    result = json.loads(llem(copy, "run", *words, "--json"))

    assert plan["experiments"][0]["config"]["toy"]["lanes"] == 2
    assert (result["backend"], result["requests"], result["synthetic"]) == ("toy", 4, True)
    assert "toy" in json.loads(llem(copy, "schema"))["properties"]
    assert "toy" in llem(copy, "config")


def test_new_energy_source_is_one_file(copy: Path) -> None:
    """A file in energy/ is all: the schema accepts its name, config lists it, a run measures with it."""
    source = (copy / "llenergymeasure" / "energy" / "simulated.py").read_text(encoding="utf-8")
    (copy / "llenergymeasure" / "energy" / "dice.py").write_text(
        source.replace('NAME = "simulated"', 'NAME = "dice"').replace("Field(300.0,", "Field(100.0,"), encoding="utf-8"
    )
    words = ("-m", "m", "-b", "synthetic", "-d", "builtin", "-n", "2", "--set", "energy.backend=dice")
    quick = ("--set", "baseline.enabled=false", "--set", "measurement.min_duration_seconds=0.3")

    result = json.loads(llem(copy, "run", *words, *quick, "--json"))

    assert result["energy_source"] == "dice"
    assert result["energy_total_j"] == pytest.approx(100 * result["duration_s"], rel=1e-3)
    assert "dice" in llem(copy, "config")


def test_reference_and_schemas_are_up_to_date() -> None:
    """docs/reference says what the code says (`make generate`)."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "generate.py"), "--check"], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stdout) == (0, "")


def test_reference_check_notices_drift(tmp_path: Path) -> None:
    """A page that was edited by hand fails the check and is named."""
    for part in ("tools", "docs"):
        shutil.copytree(ROOT / part, tmp_path / part)
    (tmp_path / "docs" / "reference" / "exit-codes.md").write_text("edited\n")

    done = subprocess.run(
        [sys.executable, str(tmp_path / "tools" / "generate.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1
    assert "docs/reference/exit-codes.md" in done.stdout
