"""A YAML file means by `llem run` what it means by `kubectl apply`: each scalar, each key, each merge.

tests/golden/kubectl_scalars.json was written by kubectl; to write it anew:
`UPDATE_GOLDEN=1 .venv/bin/pytest tests/core/test_yaml_means_what_kubectl_says.py` with kubectl on PATH.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llenergymeasure.core.errors import ConfigError
from llenergymeasure.core.resources import boolean_n
from llenergymeasure.loaders import load_study_config
from llenergymeasure.yaml_reading import parse_yaml, read_mapping

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
SCALARS = GOLDEN / "kubectl_scalars.yaml"
ANSWER = GOLDEN / "kubectl_scalars.json"
KUBECTL = shutil.which("kubectl")


def by_kubectl(path: Path) -> Any:
    """The JSON that kubectl would send for the `spec` of a file; needs no server."""
    assert KUBECTL is not None
    command = [KUBECTL, "annotate", "--local", "--dry-run=client", "-f", str(path), "-o", "json", "a=b"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    return json.loads(done.stdout)["spec"]


def as_json(value: Any) -> Any:
    """llem's reading as JSON holds it: a boolean key is the text that kubectl writes."""
    if isinstance(value, dict):
        return {str(k).lower() if isinstance(k, bool) else k: as_json(v) for k, v in value.items()}
    return [as_json(v) for v in value] if isinstance(value, list) else value


def typed(value: Any) -> Any:
    """Values beside their kind, so that `1` and `true` differ while `1` and `1.0` do not."""
    if isinstance(value, dict):
        return {k: typed(v) for k, v in value.items()}
    if isinstance(value, list):
        return [typed(v) for v in value]
    kind = "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__
    return kind, value


@pytest.fixture(scope="module")
def answer() -> dict[str, Any]:
    """What kubectl said when the golden file was written."""
    if os.environ.get("UPDATE_GOLDEN"):
        ANSWER.write_text(json.dumps(by_kubectl(SCALARS), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    spec: dict[str, Any] = json.loads(ANSWER.read_text(encoding="utf-8"))
    return spec


@pytest.fixture(scope="module")
def ours() -> dict[str, Any]:
    """What llem reads in the same file."""
    read: dict[str, Any] = as_json(read_mapping(SCALARS)["spec"])
    return read


NAMES = list(json.loads(ANSWER.read_text(encoding="utf-8"))) if ANSWER.exists() else []


@pytest.mark.parametrize("name", NAMES)
def test_value_is_the_one_kubectl_reads(name: str, ours: dict[str, Any], answer: dict[str, Any]) -> None:
    """Each group of scalars has the values and kinds that kubectl gives it."""
    assert typed(ours[name]) == typed(answer[name])


def test_keys_are_those_kubectl_reads(answer: dict[str, Any]) -> None:
    """No key is lost or added, and the unquoted `n` and `y` are booleans for both."""
    ours = read_mapping(SCALARS)["spec"]
    assert set(as_json(ours)) == set(answer)
    assert ours[False] == answer["false"] == 50
    assert ours[True] == answer["true"] == 51


@pytest.mark.skipif(KUBECTL is None, reason="kubectl is not on PATH")
def test_golden_answer_is_still_kubectls(answer: dict[str, Any]) -> None:
    """The recorded answer is what the kubectl of this machine says today."""
    assert typed(by_kubectl(SCALARS)) == typed(answer)


@pytest.mark.skipif(KUBECTL is None, reason="kubectl is not on PATH")
def test_any_plain_scalar_means_the_same(tmp_path: Path) -> None:
    """Beside the chosen scalars, 400 composed ones are read alike."""
    parts = ["0", "1", "7", "8", "_", ".", "e", "E", "+", "-", "x", "b", "o", "y", "n", "inf", "00", "10"]
    words = [a + b + c for a in parts for b in parts for c in parts]
    chosen = [w for i, w in enumerate(words) if i % 14 == 0 and w[0] not in "-" and "inf" not in w]
    assert len(chosen) > 350
    path = tmp_path / "words.yaml"
    lines = [f"  k{i}: {word}" for i, word in enumerate(chosen)]
    path.write_text("\n".join(["apiVersion: v1", "kind: ConfigMap", "metadata: {name: x}", "spec:", *lines]))
    ours = read_mapping(path)["spec"]
    assert typed(ours) == typed(by_kubectl(path))


text = st.text(st.characters(exclude_categories=("C", "Zl", "Zp")))
scalars = st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    scalars | text, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3), max_leaves=8
)


@given(json_values)
@settings(max_examples=150, deadline=None)
def test_json_is_yaml(value: Any) -> None:
    """A JSON file is read as JSON: quoted text stays text, numbers keep their value."""
    written = json.dumps({"key": value}, ensure_ascii=False)
    assert typed(parse_yaml(written, source="x.json")["key"]) == typed(value)


UNQUOTED = """
model: builtin:smollm2-135m
backend: pytorch
n: 7
sweep: {precision: [fp32, bf16]}
"""
IN_SWEEP = """
model: builtin:smollm2-135m
backend: pytorch
sweep: {n: [7, 8]}
"""
SPELLINGS = [
    ("quoted", '"n"'),
    ("single-quoted", "'n'"),
    ("unquoted", "n"),
    ("no", "no"),
    ("as-kubectl-has-it", '"false"'),
]


@pytest.mark.parametrize("spelling", [s[1] for s in SPELLINGS], ids=[s[0] for s in SPELLINGS])
def test_unquoted_n_is_n_at_the_top_and_in_the_sweep(tmp_path: Path, spelling: str) -> None:
    """The key that YAML 1.1 turns into `false` means the number of prompts, also as kubectl hands it on."""
    path = tmp_path / "study.yaml"
    path.write_text(UNQUOTED.replace("\nn:", f"\n{spelling}:"))
    assert [e.n for e in load_study_config(path).experiments] == [7, 7]
    path.write_text(IN_SWEEP.replace("{n:", f"{{{spelling}:"))
    assert [e.n for e in load_study_config(path).experiments] == [7, 8]


def test_n_written_twice_in_two_spellings_is_refused() -> None:
    """Two values for one field are an error even if YAML sees two keys."""
    with pytest.raises(ConfigError, match="n is written twice"):
        boolean_n(parse_yaml('n: 1\n"n": 2\n', source="f.yaml"), source="f.yaml")


BOOLEAN_KEYS = [
    ("y-at-the-top", "y: 1", "true"),
    ("on-at-the-top", "on: 1", "true"),
    ("in-a-section", "decoder: {no: 1}", "decoder.false"),
    ("in-the-dataset", "dataset: {synthetic: {n: 4}}", "dataset.synthetic.false"),
    ("in-an-entry", "experiments: [{n: 4}]", "experiments.0.false"),
    ("y-in-the-sweep", "sweep: {y: [1]}", "sweep.true"),
]


@pytest.mark.parametrize(("text", "where"), [r[1:] for r in BOOLEAN_KEYS], ids=[r[0] for r in BOOLEAN_KEYS])
def test_any_other_boolean_key_is_an_error_that_says_to_quote_it(text: str, where: str) -> None:
    """Nothing but `n` at its two places is guessed."""
    with pytest.raises(ConfigError) as caught:
        boolean_n(parse_yaml(text, source="f.yaml"), source="f.yaml")
    assert f"{where}: a boolean is not a key" in str(caught.value)
    assert 'put it in quotes, e.g. "n"' in str(caught.value)
