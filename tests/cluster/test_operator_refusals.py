"""What cannot run is refused at once, in llem's own words or the API server's."""

from pathlib import Path

import pytest

from cli.process import llem, over, write
from cluster import kube as kubes
from cluster.operators import FAST, Bench, conditions, reason

pytestmark = pytest.mark.cluster


def test_typo_is_named_as_llem_run_names_it_and_can_be_repaired(bench: Bench, tmp_path: Path) -> None:
    """Accepted=False with the sentence of `llem run` and what was meant; nothing is made; a repaired design is taken."""
    typo = {"warmup": {"n_warmups": 1}}
    here = llem("run", write(tmp_path, typo), "--dry-run", cwd=tmp_path)
    bench.study("typo", typo, suspend=True)

    refused = bench.until("est", "typo", lambda s: reason(s) == "InvalidDesign")

    said = conditions(refused)
    assert said["Accepted"]["status"] == "False"
    assert "n_warmups" in said["Accepted"]["message"]
    assert "did you mean" in said["Accepted"]["message"]
    assert here.err.strip().endswith(said["Accepted"]["message"].removeprefix("spec.design: "))
    assert {t: said[t]["status"] for t in ("Finished", "Ready", "Stalled")} == {
        "Finished": "True", "Ready": "False", "Stalled": "True",
    }  # fmt: skip
    assert bench.children("typo") == []

    bench.kube.ok("replace", "-f", "-", stdin=kubes.text(_repaired(refused)))
    taken = bench.until("est", "typo", lambda s: reason(s, "Accepted") == "Valid")
    assert conditions(taken)["Stalled"]["status"] == "False"


def _repaired(study: dict[str, object]) -> dict[str, object]:
    design = over(FAST, {"experiments": [{}]})
    return {**study, "spec": {**study["spec"], "design": design}}  # type: ignore[dict-item]  # as read from JSON


def test_accepted_design_cannot_be_edited(bench: Bench) -> None:
    """The API server refuses another design, and says what to do; what runs is what was accepted."""
    bench.study("fixed", suspend=True)
    bench.until("est", "fixed", lambda s: reason(s, "Accepted") == "Valid")

    said = bench.kube.patch_refused("est", "fixed", {"spec": {"design": {"n": 9}}})

    assert "design" in said
    assert "another name" in said or "new study" in said


def test_name_that_would_not_fit_its_children_is_refused(bench: Bench) -> None:
    """41 characters are one too many; 40 make children, Jobs and pods with whole names."""
    design = over(FAST, {"experiments": [{}]})
    assert "40" in bench.kube.refused(kubes.study("n" * 41, design=design))

    bench.study("m" * 40)
    bench.finished("m" * 40)
    (child,) = bench.children("m" * 40)
    assert child["metadata"]["name"] == f"{'m' * 40}-00000-{child['spec']['configHash'][:6]}"
    (pod,) = bench.pods(child["metadata"]["name"])
    assert pod["metadata"]["name"].startswith(f"{child['metadata']['name']}-a1-")
