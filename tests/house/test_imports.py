"""Who may import whom, and how light it must be: contracts that hold, and that notice when they do not."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cli.process import environment

ROOT = Path(__file__).resolve().parents[2]
LINT = Path(sys.executable).with_name("lint-imports")
HEAVY = ("torch", "transformers", "vllm", "tensorrt_llm", "pynvml", "zeus", "codecarbon", "pandas", "pyarrow", "numpy", "huggingface_hub")  # fmt: skip


def loaded_by(statement: str) -> set[str]:
    """Top-level modules in a fresh interpreter after `statement`."""
    script = f"{statement}\nimport sys, json\nprint(json.dumps(sorted({{m.partition('.')[0] for m in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment())
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "statement",
    [
        pytest.param("import llenergymeasure", id="the package"),
        pytest.param("from llenergymeasure import *", id="all public names"),
        pytest.param("import llem_operator", id="the operator"),
        pytest.param("import llenergymeasure.cli", id="the command line"),
        pytest.param(
            "from llenergymeasure.core import introspection as i; i.experiment_schema(), i.study_schema(), i.fields()",
            id="building the schema",
        ),
        pytest.param(
            "from llenergymeasure.core.result import ExperimentResult as R; R.model_json_schema()",
            id="the result's schema",
        ),
        pytest.param(
            "from llenergymeasure.core import registry as r\n"
            "for n in r.backend_names(): r.backend_settings(n), r.installed(n), r.library_versions(n)",
            id="asking what is installed",
        ),
        pytest.param(
            "from llenergymeasure.core.sweep import expand\nfrom llenergymeasure.core.plan import make_plan\n"
            "make_plan(expand({'model': 'm', 'backend': ['pytorch', 'vllm', 'tensorrt'], 'sweep': {'n': [1, 2]}}))",
            id="planning a study of all backends",
        ),
    ],
)
def test_heavy_libraries_stay_unloaded(statement: str) -> None:
    """Importing, describing and planning load no engine, no GPU library and no data-frame library."""
    assert loaded_by(statement) & set(HEAVY) == set()


def test_importing_the_package_loads_almost_nothing() -> None:
    """`import llenergymeasure` is as light as its version: pydantic and YAML come with the first name that is used."""
    assert loaded_by("import llenergymeasure; llenergymeasure.__version__") & {"pydantic", "yaml", "typer"} == set()


def test_operator_folder_is_no_package() -> None:
    """`operator` is a module of the standard library; an __init__.py in that folder would hide it."""
    assert not (ROOT / "operator" / "__init__.py").exists()
    done = subprocess.run(
        [sys.executable, "-c", "import operator; print(operator.add(1, 2))"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "3\n"


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter in `folder` on the packages that lie there."""
    return subprocess.run(
        [str(LINT), "--no-cache"],
        cwd=folder,
        env=environment({"PYTHONPATH": str(folder)}),
        capture_output=True,
        text=True,
        check=False,
    )


def broken(said: str) -> set[str]:
    """Names of the contracts that do not hold."""
    return {line.removesuffix(" BROKEN") for line in said.splitlines() if line.endswith(" BROKEN")}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The two packages and the contracts, to break."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for package in ("runner/llenergymeasure", "operator/llem_operator"):
        shutil.copytree(ROOT / package, tmp_path / Path(package).name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_contracts_hold(copy: Path) -> None:
    """The import contracts of pyproject.toml are kept, all five of them."""
    done = lint(copy)

    assert broken(done.stdout) == set(), done.stdout
    assert "7 kept, 0 broken" in done.stdout
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        pytest.param(
            "llenergymeasure/core/plan.py", "import subprocess", "the core is pure", id="the core starts processes"
        ),
        pytest.param(
            "llenergymeasure/core/sweep.py", "import time", "the core is pure", id="the core looks at the clock"
        ),
        pytest.param("llenergymeasure/core/keys.py", "import random", "the core is pure", id="the core draws lots"),
        pytest.param(
            "llenergymeasure/core/config.py", "import torch", "the core is pure", id="the core loads an engine"
        ),
        pytest.param(
            "llenergymeasure/core/errors.py",
            "from llenergymeasure.core import plan",
            "the core's layers",
            id="upwards in the core",
        ),
        pytest.param(
            "llenergymeasure/core/plan.py",
            "from llenergymeasure import store",
            "who acts may know who decides, never the reverse",
            id="the core writes files",
        ),
        pytest.param(
            "llenergymeasure/measure.py",
            "def f():\n    from llenergymeasure import study",
            "who acts may know who decides, never the reverse",
            id="measuring knows studies, even inside a function",
        ),
        pytest.param(
            "llenergymeasure/backends/pytorch.py",
            "from llenergymeasure.backends import vllm",
            "plug-ins do not know each other",
            id="one backend knows another",
        ),
        pytest.param(
            "llenergymeasure/energy/nvml.py",
            "from llenergymeasure.energy import zeus",
            "plug-ins do not know each other",
            id="one energy source knows another",
        ),
        pytest.param(
            "llem_operator/__init__.py",
            "from llenergymeasure import measure",
            "the operator imports only the core",
            id="the operator measures",
        ),
    ],
)
def test_seeded_violation_is_caught(copy: Path, file: str, line: str, contract: str) -> None:
    """A forbidden import, put into a copy, breaks the contract that forbids it."""
    with (copy / file).open("a", encoding="utf-8") as source:
        source.write(f"\n{line}\n")

    done = lint(copy)

    assert contract in broken(done.stdout), done.stdout
    assert done.returncode == 1
