"""What a run's pod is told: everything that the runner reads, so that nobody else can tell it."""

import re
from pathlib import Path
from typing import Any

import pytest

from fakes.world import SETTINGS, study
from llem_operator.acceptance import Accepted, accept_study
from llem_operator.objects import jobs_of
from llenergymeasure import baseline, environment
from llenergymeasure.assignment import UPLOAD_SECONDS, read_assignment
from llenergymeasure.calibration_file import named_calibration
from llenergymeasure.object_store import Access

RUNNER = Path(__file__).resolve().parents[2] / "runner" / "llenergymeasure"
OF_A_STUDY = re.compile(r"LLEM_((OPERATOR|RUNNER)_|LEASH_FD$|LOCK_DIR$|RUN_TOKEN$)")
"""The operator's own, and how `llem run` starts runs and ends them."""


def variables(**spec: Any) -> dict[str, str]:
    """The plain variables of a study's first Job."""
    job = next(jobs_of(study(cycles=1, values=1, **spec), SETTINGS))
    env = job["spec"]["template"]["spec"]["containers"][0]["env"]
    return {v["name"]: v.get("value", "from the pod") for v in env}


def test_every_variable_that_the_runner_reads_is_set() -> None:
    """A variable of the pod wins over a key of a Secret in envFrom; one that is left out would be the Secret's to set."""
    source = "\n".join(p.read_text(encoding="utf-8") for p in RUNNER.rglob("*.py"))
    read = {n for n in re.findall(r"\"(LLEM_[A-Z_]+)\"", source) if not OF_A_STUDY.match(n)}
    assert len(read) > 20
    assert read - set(variables()) == set()


def test_an_empty_variable_means_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runner takes each as if it were not there."""
    found = variables()
    assert found["LLEM_STORE_ENDPOINT"] == found["LLEM_GAP_UNTIL"] == found["LLEM_BASELINES"] == ""
    duty = read_assignment({**found, "LLEM_STUDY_RECORD": "", "LLEM_UPLOAD_SECONDS": ""})
    assert duty is not None
    assert (duty.access, duty.gap_until, duty.study_record) == (Access(), None, None)
    assert duty.upload_seconds == UPLOAD_SECONDS
    assert baseline.handed_down(found) == {}
    assert named_calibration({"LLEM_CALIBRATION": "/of/a/secret", **found}) == {}
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    assert environment.snapshot()["image_digest"] is None


@pytest.mark.parametrize(
    ("template", "design", "value"),
    [
        ({"gpu": {"count": 0}}, {"backend": "pytorch"}, "void"),
        ({}, {"backend": "synthetic"}, "void"),
        ({}, {"backend": "pytorch"}, None),
    ],
    ids=["count is 0", "pretended", "one GPU"],
)
def test_a_run_without_a_gpu_sees_none(template: dict[str, Any], design: dict[str, Any], value: str | None) -> None:
    """Where NVIDIA's runtime is the default, the image's NVIDIA_VISIBLE_DEVICES=all would show it those of others."""
    spec = {"template": {"images": {"pytorch": "p"}, **template}, "design": {"model": "m", **design}}
    assert variables(**spec).get("NVIDIA_VISIBLE_DEVICES") == value


def test_the_plan_shows_the_deadline_that_the_operators_jobs_have() -> None:
    """The pause before a run is part of its pod's life."""
    body = study(cycles=2, values=2)
    judged = accept_study({**body, "metadata": {**body["metadata"], "uid": "0123abcd-0000"}}, SETTINGS)
    assert isinstance(judged, Accepted)
    lives = [j["spec"]["template"]["spec"]["activeDeadlineSeconds"] for j in jobs_of(body, SETTINGS)]
    pauses = [judged.gap_s[r.index] for r in judged.runs]
    assert [life - lives[0] for life in lives] == pauses
    assert set(pauses) == {0.0, 10.0, 15.0}
