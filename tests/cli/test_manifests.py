"""`llem apply` gives the cluster what a file means: plain files converted, manifests untouched, names made legal."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.process import FAST, over
from llenergymeasure.core.errors import ConfigError
from llenergymeasure.core.plan import make_plan
from llenergymeasure.core.resources import study_of
from llenergymeasure.loaders import load_study_config
from llenergymeasure.manifests import Wanted, as_paced, legal_name, to_yaml, wanted, without_gaps
from llenergymeasure.yaml_reading import parse_documents, parse_yaml

STUDY: dict[str, Any] = over(FAST, {"sweep": {"precision": ["fp16", "bf16"]}, "execution": {"n_cycles": 2}})


def of_text(text: str, folder: Path, *, name: str | None = None, file: str = "my_study.yaml") -> list[Wanted]:
    """What a file of that text asks for."""
    path = folder / file
    path.write_text(text, encoding="utf-8")
    return wanted(parse_documents(text, source=str(path)), path, name=name)


def of_body(body: dict[str, Any], folder: Path, *, name: str | None = None) -> Wanted:
    """What a file that holds this body asks for."""
    (found,) = of_text(json.dumps(body), folder, name=name)
    return found


def test_converted_study_has_the_plan_of_the_file(tmp_path: Path) -> None:
    """The same runs, hashes and order by `llem run` and on the cluster."""
    made = of_body(STUDY, tmp_path)

    here = make_plan(load_study_config(tmp_path / "my_study.yaml"))
    assert make_plan(study_of(made.manifest, source="cluster")) == here


def test_design_is_the_body_without_what_stands_beside_it(tmp_path: Path) -> None:
    """Name, execution, images, runners, output and version have another place in a manifest, or none."""
    beside = {
        "name": "grid", "images": {"synthetic": "registry/llem:1"}, "runners": {"synthetic": "local"},
        "output": {"save_text": True}, "version": 2, "revision": None,
        "execution": {"n_cycles": 2, "cycle_order": "sequential", "phase_timeouts": {"engine_build": 60}, "shuffle_seed": None},
    }  # fmt: skip

    made = of_body(over(STUDY, beside), tmp_path)

    body = {k: v for k, v in STUDY.items() if k != "execution"}
    assert made.manifest == {
        "apiVersion": "llem.dev/v1alpha1",
        "kind": "EnergyStudy",
        "metadata": {"name": "grid"},
        "spec": {
            "design": body,
            "execution": {"nCycles": 2, "cycleOrder": "sequential", "phaseTimeouts": {"engineBuild": 60}},
            "template": {"images": {"synthetic": "registry/llem:1"}},
        },
    }
    for word in ("images:", "runners:", "output:"):
        assert any(n.startswith(word) for n in made.notices), word


def test_base_is_resolved(tmp_path: Path) -> None:
    """A cluster knows no other files: what `base` names is written out."""
    (tmp_path / "base.yaml").write_text(json.dumps(FAST), encoding="utf-8")

    made = of_body({"base": "base.yaml", "sweep": {"n": [1, 2]}}, tmp_path)

    assert made.manifest["spec"]["design"] == {**FAST, "sweep": {"n": [1, 2]}}


def test_plain_experiment_becomes_an_experiment(tmp_path: Path) -> None:
    """A file without sweep is one EnergyExperiment, named after the file."""
    made = of_body(FAST, tmp_path)

    assert made.manifest["kind"] == "EnergyExperiment"
    assert made.manifest["metadata"] == {"name": "my-study"}
    assert made.manifest["spec"] == {"config": FAST}


MANIFEST = """
apiVersion: llem.dev/v1alpha1
kind: EnergyStudy
metadata: {name: sweep, labels: {team: a}}
spec:
  design: {model: m, backend: synthetic, n: 5, sweep: {precision: [fp16, bf16]}}
  parallelism: 2
---
---
apiVersion: v1
kind: ConfigMap
metadata: {name: other}
data: {a: b}
"""


def test_manifests_pass_as_they_were_written(tmp_path: Path) -> None:
    """`kubectl apply` on the same file changes nothing, so an unquoted n stays what kubectl makes of it."""
    study, other = of_text(MANIFEST, tmp_path)

    sent = json.loads(json.dumps(study.manifest))
    assert sent["spec"]["design"]["false"] == 5
    assert sent["metadata"]["labels"] == {"team": "a"}
    assert study.study is not None
    assert [e.n for e in study.study.experiments] == [5, 5]
    assert other.manifest["data"] == {"a": "b"}
    assert other.study is None


@pytest.mark.parametrize(
    ("written", "name"),
    [("Batch_Sweep", "batch-sweep"), ("a..b", "a-b"), ("  x  ", "x"), ("7B", "7b"), ("é-study", "study")],
    ids=lambda v: v,
)
def test_names_become_legal(written: str, name: str) -> None:
    """Lower case letters, digits and single dashes."""
    assert legal_name(written, 40) == name


BAD: dict[str, tuple[str, tuple[str, ...]]] = {
    "no letter in the name": (json.dumps({**STUDY, "name": "__"}), ("name", "'__'", "letters a to z")),
    "name too long": (json.dumps({**STUDY, "name": "a" * 41}), ("41 characters", "40", "--name")),
    "typo in a plain file": (json.dumps({**STUDY, "precison": "bf16"}), ("precison", "did you mean precision?")),
    "typo in a manifest": (MANIFEST.replace("precision", "precison"), ("document 1", "precison", "precision?")),
    "typo in a spec": (MANIFEST.replace("parallelism", "paralelism"), ("spec.paralelism", "parallelism?")),
    "illegal name in a manifest": (MANIFEST.replace("name: sweep", "name: Sweep"), ("metadata.name", "'Sweep'")),
    "manifest without a name": (MANIFEST.replace("name: sweep,", ""), ("metadata.name", "None")),
    "another version": (MANIFEST.replace("v1alpha1", "v2"), ("apiVersion", "llem.dev/v2", "llem.dev/v1alpha1")),
    "credential": (json.dumps({**STUDY, "model": "hf_" + "a" * 30}), ("credential",)),
    "empty": ("---\n", ("nothing",)),
    "a list": ("[1]", ("mapping", "list")),
}


@pytest.mark.parametrize(("text", "words"), BAD.values(), ids=BAD)
def test_what_cannot_be_used_is_refused_before_any_cluster_hears_of_it(
    tmp_path: Path, text: str, words: tuple[str, ...]
) -> None:
    """The sentence names the file, what is wrong and what would do."""
    with pytest.raises(ConfigError) as err:
        of_text(text, tmp_path)

    assert all(w in str(err.value) for w in ("my_study.yaml", *words)), str(err.value)


def test_name_of_the_command_line_wins(tmp_path: Path) -> None:
    """`--name` names the one document of a file; several keep their own."""
    assert of_body(STUDY, tmp_path, name="Second").manifest["metadata"] == {"name": "second"}
    with pytest.raises(ConfigError, match="holds 2 documents"):
        of_text(MANIFEST, tmp_path, name="x")


def test_paths_of_this_machine_are_named(tmp_path: Path) -> None:
    """A model folder or prompt file must be in the pod; the user hears of it before the run fails there."""
    made = of_body(over(STUDY, {"model": "./weights", "dataset": "prompts.jsonl"}), tmp_path)

    told = [n for n in made.notices if "inside the pod" in n]
    assert [n.partition(":")[0] for n in told] == ["model", "dataset"]


def test_pauses_of_the_plan_are_the_clusters(tmp_path: Path) -> None:
    """The expected duration counts the operator's default pauses where there is a GPU and a counter, else none."""
    synthetic = of_body(STUDY, tmp_path).study
    real = of_body({"model": "m", "backend": "pytorch", "sweep": {"precision": ["fp16", "bf16"]}}, tmp_path).study
    assert synthetic is not None
    assert real is not None

    assert as_paced(synthetic).execution.config_gap_seconds == 0
    assert as_paced(real).execution.config_gap_seconds == 60
    assert as_paced(real).execution.cycle_gap_seconds == 300


def test_no_gaps_reaches_the_manifest(tmp_path: Path) -> None:
    """`llem run --no-gaps --runner kubernetes` writes zeros; 0 is not unset."""
    execution = without_gaps(of_body(STUDY, tmp_path)).manifest["spec"]["execution"]

    assert execution == {"nCycles": 2, "configGapSeconds": 0, "cycleGapSeconds": 0}


WORDS = st.text(st.sampled_from("nyYN01x.:-+_e ~'\"#tfrueals"), max_size=8)


@given(st.dictionaries(WORDS, st.one_of(WORDS, st.integers(), st.booleans(), st.lists(WORDS, max_size=3)), max_size=5))
def test_yaml_for_git_says_the_same_to_kubectl(mapping: dict[str, Any]) -> None:
    """Whatever text a value or key is, the reader with kubectl's rules gives it back: n, no, 012, 1e3, ~."""
    assert parse_yaml(to_yaml([mapping]), source="test") == mapping
