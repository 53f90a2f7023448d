"""What is accepted, what is refused and in which words; and a study's status at its largest."""

import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.api_server import Object, _check, copied
from fakes.world import SETTINGS, miscounts, study
from llem_operator.acceptance import Accepted, Configuration, Refused, accept_experiment, accept_study
from llem_operator.children import Child, child_of
from llem_operator.conditions import condition
from llem_operator.decision import CreateExperiment
from llem_operator.objects import experiment_object
from llem_operator.study import BATCH, StudyFacts, reconcile_study
from llem_operator.timestamps import text
from llenergymeasure.core.errors import ConfigError
from llenergymeasure.core.resources import study_of

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


def a_study(**spec: Any) -> Object:
    """A study as read from the API; `spec` is laid over it."""
    found = study(cycles=2, values=3)
    found["metadata"] |= {"uid": "0123abcd-0000", "generation": 1, "resourceVersion": "5"}
    found["spec"] |= spec
    return found


def accepted(**spec: Any) -> Accepted:
    """What acceptance makes of it."""
    found = accept_study(a_study(**spec), SETTINGS)
    assert isinstance(found, Accepted), found
    return found


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str, str]] = {
    "typo": ({"design": {"modle": "x"}}, {}, "InvalidDesign", "modle"),
    "wrong value": ({"design": {"model": "x", "backend": "synthetic", "precision": "fp7"}}, {}, "InvalidDesign", "fp7"),
    "boolean key": ({"design": {"model": "x", "true": 3}}, {}, "InvalidDesign", "true"),
    "too many runs": ({"execution": {"nCycles": 900}}, {"max_runs": 2699}, "InvalidDesign", "2700 runs"),
    "no image": ({"design": {"model": "x", "backend": "vllm"}}, {}, "InvalidTemplate", "template.images.vllm"),
    "foreign image": (
        {"template": {"images": {"synthetic": "evil/x"}}}, {"allowed_images": ("llem/",)}, "InvalidTemplate", "evil/x",
    ),
    "foreign account": (
        {"template": {"serviceAccountName": "admin"}}, {"allowed_service_accounts": ("runner",)}, "InvalidTemplate", "admin",
    ),
    "no destination": ({}, {"results": {}}, "InvalidTemplate", "results: no destination"),
    "two destinations": (
        {"results": {"uri": "s3://a", "pvc": {"claimName": "b"}}}, {}, "InvalidTemplate", "both uri and pvc",
    ),
    "local destination": ({"results": {"uri": "file:///tmp"}}, {}, "InvalidTemplate", "file:///tmp"),
    "too few GPUs": (
        {"design": {"model": "x", "backend": "vllm", "vllm": {"tensor_parallel_size": 4}},
         "template": {"gpu": {"count": 2}, "images": {"vllm": "v"}}},
        {}, "InvalidTemplate", "less than the 4 GPUs",
    ),
    "capability": ({"template": {"gpu": {"minComputeCapability": "nine"}}}, {}, "InvalidTemplate", "nine"),
    "our variable": ({"template": {"env": [{"name": "LLEM_X", "value": "1"}]}}, {}, "InvalidTemplate", "LLEM_X"),
    "pod template": ({"template": {"podTemplate": {"spec": {"hostIPC": True}}}}, {}, "InvalidTemplate", "hostIPC"),
    "too large": (
        {"design": {"model": "x", "backend": "synthetic", "passthrough_kwargs": {"x": "y" * 130_000}}},
        {}, "InvalidTemplate", "passthrough_kwargs",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("spec", "options", "reason", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_run_is_refused_by_name(
    spec: dict[str, Any], options: dict[str, Any], reason: str, words: str
) -> None:
    """Before anything is created, with a sentence for the author."""
    found = accept_study(a_study(**spec), SETTINGS.model_copy(update=options))
    assert isinstance(found, Refused)
    assert found.reason == reason
    assert words in found.message


def test_several_problems_are_told_at_once() -> None:
    """Nobody should have to apply five times."""
    found = accept_study(a_study(template={"gpu": {"minComputeCapability": "x"}, "serviceAccountName": "a"}, results={
        "uri": "ftp://x"}), SETTINGS.model_copy(update={"allowed_service_accounts": ("b",)}))  # fmt: skip
    assert isinstance(found, Refused)
    assert found.message.startswith("3 problems\n  - ")


def test_the_words_are_those_of_llem_run() -> None:
    """The very model judges."""
    body = a_study(design={"model": "x", "bach": 1, "sweep": {"n": [1, 2]}})
    with pytest.raises(ConfigError) as said:
        study_of(body, source="spec.design")
    found = accept_study(body, SETTINGS)
    assert isinstance(found, Refused)
    assert found.message == str(said.value)


def test_null_equals_absent() -> None:
    """Server-side apply carries nulls that client-side apply drops; neither hash may change."""
    plain = accepted()
    design = {**a_study()["spec"]["design"], "revision": None, "decoder": None}
    with_nulls = accepted(design=design, template=None, results=None)
    assert (plain.design_hash, plain.plan_hash) == (with_nulls.design_hash, with_nulls.plan_hash)
    assert [c.body for c in plain.configurations] == [c.body for c in with_nulls.configurations]


def test_a_float_and_an_integer_of_one_value_are_one_design() -> None:
    """kubectl writes `1` where YAML had `1.0`."""
    base = a_study()["spec"]["design"]
    one = accepted(design={**base, "synthetic": {"batch_overhead_ms": 1}})
    same = accepted(design={**base, "synthetic": {"batch_overhead_ms": 1.0}})
    assert (one.design_hash, one.plan_hash) == (same.design_hash, same.plan_hash)


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"execution": {"nCycles": 9}}, True),
        ({"execution": {"nCycles": 2, "configGapSeconds": 1}}, True),
        ({"parallelism": 7}, True),
        ({"execution": {"nCycles": 2, "cycleOrder": "sequential"}}, False),
        ({"execution": {"nCycles": 2, "shuffleSeed": 3}}, False),
        ({"design": {"model": "other", "backend": "synthetic"}}, False),
    ],
    ids=["more cycles", "gaps", "parallelism", "order", "seed", "design"],
)
def test_the_plans_hash_changes_with_what_would_mix_two_plans(change: dict[str, Any], same: bool) -> None:
    """More cycles only append."""
    assert (accepted().plan_hash == accepted(**change).plan_hash) is same


def test_pauses_are_the_charts_where_something_is_measured_and_none_is_written() -> None:
    """A pretended run on no GPU needs no pause; a written pause is kept in any case."""
    plain = a_study()["spec"]["design"]
    gpu = {"design": {"model": "x", "backend": "pytorch"}, "template": {"images": {"pytorch": "p"}}}
    unset = {"execution": {"nCycles": 2}}
    assert set(accepted(design=plain, **unset).gap_s.values()) == {0.0}
    assert sorted(accepted(**gpu, **unset).gap_s.values()) == [0.0, 300.0]
    written = {"execution": {"nCycles": 2, "configGapSeconds": 7, "cycleGapSeconds": 8}}
    assert sorted(set(accepted(design=plain, **written).gap_s.values())) == [0.0, 7.0, 8.0]


def test_spare_gpus_are_a_notice_and_zero_means_none() -> None:
    """A larger count is allowed and told; 0 runs without a GPU."""
    gpu = {"design": {"model": "x", "backend": "pytorch"}}
    more = accepted(**gpu, template={"images": {"pytorch": "p"}, "gpu": {"count": 2}})
    assert any("more than 1 configurations use" in n for n in more.notices)
    assert more.configurations[0].gpus == 2
    none = accepted(**gpu, template={"images": {"pytorch": "p"}, "gpu": {"count": 0}})
    assert (none.configurations[0].gpus, none.configurations[0].gpus_visible) == (0, 0)


def test_an_experiment_of_a_study_is_judged_by_its_configuration_alone() -> None:
    """The template was judged with the study."""
    body = {"kind": "EnergyExperiment", "spec": {"config": {"model": "x", "backend": "synthetic"}}}
    alone = accept_experiment(body, {"env": [{"name": "LLEM_X"}]}, SETTINGS, in_study=False)
    within = accept_experiment(body, {"env": [{"name": "LLEM_X"}]}, SETTINGS, in_study=True)
    assert isinstance(alone, Refused)
    assert isinstance(within, Configuration)


def children(body: Object, judged: Accepted, states: list[str]) -> dict[int, Child]:
    """Experiments in these states, as the cache keeps them."""
    found = {}
    for run in judged.runs:
        state = states[run.index % len(states)]
        if state == "missing":
            continue
        experiment = copied(experiment_object(body, run, judged.configuration(run)))
        experiment["metadata"] |= {"uid": f"u{run.index}", "resourceVersion": "7"}
        experiment["status"] = _status(state, run.index)
        found[run.index] = child_of(experiment)
    return found


def _status(state: str, index: int) -> Object:
    if state == "pending":
        return {"finished": False}
    ended = text(NOW - timedelta(seconds=10_000 - index))
    row = {"attempt": 1, "jobName": "j", "created": text(NOW - timedelta(hours=3)), "node": f"node-{index % 40}"}
    reason = {"completed": "ResultStored", "failed": "EngineCrashed", "cancelled": "CircuitBreaker"}.get(
        state, "Running"
    )
    over = state != "running"
    made = [
        condition(
            [], "Succeeded", "True" if state == "completed" else "False", reason, "m" * 500, generation=1, now=NOW
        ),
        condition([], "Finished", "True" if over else "False", reason, "m" * 500, generation=1, now=NOW),
    ]
    done = {"start": ended, "end": ended, "outcome": "Completed" if state == "completed" else "Failed"} if over else {}
    numbers = {
        "verdict": "invalid" if index % 11 == 0 else "valid",
        "energyPerOutputTokenMillijoules": f"{100 + index % 97}.5",
    }
    return {
        "observedGeneration": 1, "finished": over, "attempt": 1, "node": row["node"], "attempts": [{**row, **done}],
        "conditions": made, **({"completionTime": ended} if over else {}),
        **({"summary": numbers} if state == "completed" else {}),
    }  # fmt: skip


def test_a_status_of_ten_thousand_runs_is_small_and_quickly_made() -> None:
    """At most 64 KiB in the worst case: no two neighbours in one state; the API server takes it."""
    body = a_study(
        design={**a_study()["spec"]["design"], "sweep": {"n": list(range(1, 51))}}, execution={"nCycles": 200}
    )
    judged = accept_study(body, SETTINGS.model_copy(update={"max_runs": 10_000}))
    assert isinstance(judged, Accepted)
    assert len(judged.runs) == 10_000
    found = children(body, judged, ["completed", "failed", "completed", "cancelled", "running", "pending"])
    began = time.perf_counter()
    decision = reconcile_study(StudyFacts(body, judged, found), NOW)
    seconds = time.perf_counter() - began
    assert decision.status is not None
    size = len(json.dumps(decision.status).encode())
    print(f"status of 10,000 runs: {size:,} bytes, decided in {seconds * 1000:.0f} ms")
    assert size <= 64 * 1024
    assert decision.status["manifestMode"] == "Ranges"
    assert list(miscounts(decision.status)) == []
    _check("energystudies", "status", decision.status)


def test_a_manifest_in_full_fits_too() -> None:
    """250 rows with everything in them."""
    body = a_study(design={**a_study()["spec"]["design"], "sweep": {"n": list(range(1, 51))}}, execution={"nCycles": 5})
    judged = accept_study(body, SETTINGS)
    assert isinstance(judged, Accepted)
    decision = reconcile_study(StudyFacts(body, judged, children(body, judged, ["completed", "failed"])), NOW)
    assert decision.status is not None
    assert decision.status["manifestMode"] == "Inline"
    assert [r["index"] for r in decision.status["manifest"]] == list(range(250))
    assert len(json.dumps(decision.status).encode()) <= 64 * 1024
    _check("energystudies", "status", decision.status)


STATES = st.lists(
    st.sampled_from(["pending", "running", "completed", "failed", "cancelled", "missing"]), min_size=1, max_size=6
)


@settings(max_examples=60, deadline=None)
@given(STATES, st.booleans(), st.integers(1, 3), st.floats(0, 1e6))
def test_a_status_composed_later_of_the_same_facts_is_the_same(
    states: list[str], suspend: bool, parallelism: int, later_s: float
) -> None:
    """O7: once written, time alone changes nothing in a study's status, so an idle operator writes nothing."""
    body = a_study(suspend=suspend, parallelism=parallelism, execution={"nCycles": 2, "configGapSeconds": 0})
    judged = accept_study(body, SETTINGS)
    assert isinstance(judged, Accepted)
    found = children(body, judged, states)
    first = reconcile_study(StudyFacts(body, judged, found), NOW)
    body["status"] = copied(first.status)
    again = reconcile_study(StudyFacts(body, judged, found), NOW + timedelta(seconds=later_s))
    without_starts = {k: v for k, v in (again.status or {}).items() if k != "startTime"}
    assert without_starts == {k: v for k, v in (first.status or {}).items() if k != "startTime"}
    assert list(miscounts(again.status or {})) == []
    created = [a for a in again.actions if isinstance(a, CreateExperiment)]
    assert len(created) == min(BATCH, len(judged.runs) - len(found))
    assert not (suspend and [a for a in again.actions if "Release" in repr(a)])
