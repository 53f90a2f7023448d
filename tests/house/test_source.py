"""What the house demands of its source: short functions, names of backends in one place, reasons beside exceptions."""

import ast
import re
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from llenergymeasure.core import registry

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = sorted([*(ROOT / "runner").rglob("*.py"), *(ROOT / "operator").rglob("*.py")])
MAX_LINES = 60


def short(path: Path) -> str:
    """A path as messages show it."""
    return str(path.relative_to(ROOT))


def test_product_is_where_this_test_looks() -> None:
    """The scan below sees both packages."""
    assert {"cli.py", "measure.py", "plan.py"} <= {p.name for p in PRODUCT}
    assert any("llem_operator" in p.parts for p in PRODUCT)


def long_functions() -> set[str]:
    """Functions above the limit, as file:name."""
    return {
        f"{path.name}:{node.name}"
        for path in PRODUCT
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or node.lineno) - node.lineno >= MAX_LINES
    }


def test_functions_are_short() -> None:
    """No function is longer than 60 lines."""
    assert long_functions() == set()


def literals(path: Path) -> Iterator[tuple[int, str]]:
    """String constants of a file with their lines; docstrings and comments are prose and left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    prose = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node.lineno, node.value


SPELLED = {  # literal → why it may stand outside the plug-in's own file
    ("core/config.py", "pytorch"): "the documented default backend",
    ("datasets.py", "synthetic"): "the name of generated prompts, not of the backend",
    ("core/config.py", "dataset.synthetic"): "likewise",
    ("core/config.py", "{synthetic:"): "likewise",
    ("datasets.py", "{synthetic:"): "likewise",
    ("report.py", "synthetic"): "the flag of results that are not measured",
    ("ranking.py", "(synthetic)"): "likewise",
    ("cluster_results.py", "synthetic"): "likewise",
    ("core/crd_status.py", "synthetic"): "likewise",
    ("experiment_status.py", "synthetic"): "likewise",
    ("environment.py", "vllm|tensorrt.llm"): "names of packages to record, not of backends",
    ("core/keys.py", "vllm.tensor_parallel_size"): "an example in advice for a removed field",
    ("loaders.py", "pytorch.batch_size"): "an example in a message",
    ("models.py", "llenergymeasure[pytorch"): "the extra that installs the hub's library",
}


def test_backend_names_are_spelled_in_their_own_file_only() -> None:
    """A new backend is one file: no other code knows the names of the others (the exceptions have a reason)."""
    names = re.compile(rf"(?<![\w-])({'|'.join(registry.backend_names())})(?![\w-])")
    found = [
        f"{short(path)}:{line}: {text!r}"
        for path in PRODUCT
        if path.parent.name != "backends"
        for line, text in literals(path)
        if names.search(text)
        and not any(str(path).endswith(f"/{file}") and allowed in text for file, allowed in SPELLED)
    ]
    assert found == []


def comments(path: Path) -> Iterator[tuple[int, str]]:
    """Comments of a file with their lines."""
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type == tokenize.COMMENT:
                yield token.start[0], token.string


def test_every_ignored_type_error_has_a_code_and_a_reason() -> None:
    """`# type: ignore[code]  # reason`."""
    ignored = [(p, n, c) for p in PRODUCT for n, c in comments(p) if "type: ignore" in c]

    bare = [f"{short(p)}:{n}: {c}" for p, n, c in ignored if not re.search(r"type: ignore\[[\w-]+\]  # \w", c)]
    assert bare == []
    assert len(ignored) > 0


def test_every_silenced_lint_has_a_code_and_a_reason() -> None:
    """`# noqa: CODE  (reason)`."""
    silenced = [(p, n, c) for p in PRODUCT for n, c in comments(p) if "noqa" in c]

    bare = [
        f"{short(p)}:{n}: {c}" for p, n, c in silenced if not re.search(r"noqa: [A-Z]+\d+(, [A-Z]+\d+)*  \(.+\)", c)
    ]
    assert bare == []
    assert len(silenced) > 0


def broad_handlers() -> set[str]:
    """Functions that catch Exception or everything, as file:function."""
    found = set()
    for path in PRODUCT:
        for outer in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(outer, ast.FunctionDef):
                for node in ast.walk(outer):
                    if isinstance(node, ast.ExceptHandler) and node.type is None:
                        found.add(f"{path.name}:{outer.name}")
    return found


def test_no_bare_except() -> None:
    """`except:` catches what nobody meant."""
    assert broad_handlers() == set()


PRINTING = ("cli", "cli_run", "cli_reports", "cli_compare", "cluster_changes", "cluster_cli")


def test_only_the_command_line_prints() -> None:
    """Output is the business of cli.py and of its verbs for a cluster."""
    printing = {
        short(path)
        for path in PRODUCT
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }
    assert printing == {f"runner/llenergymeasure/{name}.py" for name in PRINTING}


def pins() -> list[tuple[str, str]]:
    """Each requirement of pyproject.toml with the text behind it on its line."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)["project"]
    wanted = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    lines = text.splitlines()
    return [(r, line.partition(f'"{r}"')[2]) for r in wanted for line in lines if f'"{r}"' in line]


@pytest.mark.parametrize(("requirement", "rest"), pins(), ids=[f"{i}-{r}" for i, (r, _) in enumerate(pins())])
def test_every_pin_has_an_upper_bound_and_a_reason(requirement: str, rest: str) -> None:
    """A dependency says why it is there, and stops before the version nobody has tried."""
    assert "<" in requirement or "==" in requirement
    assert re.search(r"#\s+\w{3,}", rest)


def test_make_explains_every_target() -> None:
    """`make help` lists what there is: every target that a person types has its line."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")

    targets = set(re.findall(r"^([a-z][a-z-]*):", text, re.MULTILINE))
    explained = set(re.findall(r"^([a-z][a-z-]*):.*## \S", text, re.MULTILINE))
    assert targets == explained
    assert {"setup", "run", "check", "test", "fix", "generate", "bench"} <= explained


def test_reasons_are_still_needed() -> None:
    """An exception that nothing needs any more is taken off the lists above."""
    spelled = [(short(p), text) for p in PRODUCT if p.parent.name != "backends" for _, text in literals(p)]

    unused = [key for key in SPELLED if not any(f.endswith(f"/{key[0]}") and key[1] in text for f, text in spelled)]
    assert unused == []
