"""What `llem list`, `status` and `why` make of a status: the operator's words, in the order in which people ask."""

from typing import Any

import pytest

from cli.cluster_objects import NOW, condition, experiment, study
from llenergymeasure import cluster_status, cluster_view

ACCEPTED = condition("Accepted", "True", "Valid")
RUNNING = condition("Finished", "False", "Running", "1 run is measuring")
COUNTS = {"total": 8, "pending": 3, "running": 1, "completed": 3, "failed": 1, "invalid": 1}
UNSCHEDULABLE = condition(
    "Scheduled", "False", "Unschedulable", "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
)


def changed(obj: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    """The object with other metadata."""
    return {**obj, "metadata": {**obj["metadata"], **metadata}}


WHY: dict[str, tuple[dict[str, Any], list[dict[str, Any]], str]] = {
    "nobody has looked": (
        study(),
        [],
        "sweep waits for the operator, which has not looked at it in 60m: it may not run, or not watch namespace bench.",
    ),
    "change not seen": (
        changed(study(ACCEPTED, RUNNING), generation=2),
        [],
        "sweep waits for the operator, which has not seen the latest change of its specification yet.",
    ),
    "refused": (
        study(
            condition(
                "Accepted", "False", "InvalidDesign", "spec.design: 2 problems\n  - modle: unknown\n  - n: too big"
            ),
            condition("Finished", "True", "InvalidDesign", "the design is invalid"),
        ),
        [],
        "sweep was refused: spec.design: 2 problems: modle: unknown; n: too big.",
    ),
    "suspended": (
        study(ACCEPTED, condition("Suspended", "True", "Suspended", "3 of 8 runs are done"), RUNNING),
        [],
        "sweep is suspended until llem resume sweep: 3 of 8 runs are done.",
    ),
    "no node fits": (
        study(ACCEPTED, RUNNING, counts=COUNTS),
        [experiment(UNSCHEDULABLE, index=3)],
        (
            "sweep (3 of 8 runs completed (1 invalid), 1 running, 3 pending, 1 failed): sweep-00003-000000 waits "
            "(Unschedulable): 0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
        ),
    ),
    "pause": (
        study(
            ACCEPTED,
            condition("Finished", "False", "WaitingForGap", "pause on gpu-1 until 2026-11-25T12:05:00Z"),
            counts={"total": 2, "completed": 1, "pending": 1},
        ),
        [],
        "sweep (1 of 2 runs completed, 1 pending): pause on gpu-1 until 2026-11-25T12:05:00Z.",
    ),
    "measuring": (
        study(ACCEPTED, condition("Finished", "False", "Running"), counts={"total": 1, "running": 1}),
        [experiment(attempts=[{"attempt": 1, "node": "gpu-1", "start": "2026-11-25T11:58:00Z"}])],
        "sweep (0 of 1 run completed, 1 running): sweep-00000-000000 runs on gpu-1 for 2m.",
    ),
    "done": (
        study(
            ACCEPTED,
            condition("Finished", "True", "Completed", "8 runs are measured"),
            condition("Succeeded", "True", "Completed"),
            counts={"total": 8, "completed": 8, "invalid": 2},
        ),
        [],
        "sweep waits for nothing, it is done: 8 runs are measured, but 2 results must not be believed.",
    ),
    "failed": (
        study(
            ACCEPTED,
            condition("Finished", "True", "RunsFailed", "1 of 8 runs has no result."),
            condition("Succeeded", "False", "RunsFailed"),
            counts=COUNTS,
            recentFailures=[{"experiment": "sweep-00003-abcdef", "reason": "OutOfGPUMemory", "message": "batch 512"}],
        ),
        [],
        "sweep failed (RunsFailed): 1 of 8 runs has no result; sweep-00003-abcdef: OutOfGPUMemory: batch 512.",
    ),
    "being deleted": (
        changed(study(ACCEPTED), deletionTimestamp="2026-11-25T11:59:00Z"),
        [],
        "sweep is being deleted.",
    ),
    "the operator counts itself": (
        study(
            ACCEPTED, condition("Finished", "False", "Running", "1 of 2 runs completed; next in 30 s"), counts=COUNTS
        ),
        [],
        "sweep: 1 of 2 runs completed; next in 30 s.",
    ),
    "a run whose turn has not come": (
        {**experiment(), "status": {}},
        [],
        "sweep-00000-000000 waits for its turn in sweep.",
    ),
    "an experiment that waits": (
        experiment(UNSCHEDULABLE),
        [],
        "sweep-00000-000000 waits (Unschedulable): 0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
    ),
}


@pytest.mark.parametrize(("obj", "children", "sentence"), WHY.values(), ids=WHY)
def test_why_is_one_sentence(obj: dict[str, Any], children: list[dict[str, Any]], sentence: str) -> None:
    """`llem why` names the one thing that a study waits for, or that ended it, in the cluster's own words."""
    assert cluster_view.why(obj, children, now=NOW) == sentence


PAGE = """\
study      sweep (namespace bench, 60m old)
state      Running: 1 run is measuring
runs       [##########----------] 3 of 8 runs completed (1 invalid), 1 running, 3 pending, 1 failed
started    2026-11-25T11:01:00Z, 59m ago
next run   not before 2026-11-25T12:01:30Z, in 90s
best       synthetic n=10 precision=bf16: 95.04 mJ/token over 2 cycles
results    s3://bench/llem/sweep-11112222
baselines  1 GPU: 62.5 W context

active run          attempt  node   for  what it does
------------------  -------  -----  ---  ------------
sweep-00003-abcdef  2        gpu-1  10m  measures

latest failures
  sweep-00001-abcdef: OutOfGPUMemory: the batch does not fit

skipped combinations
  2 x precision int8 is not supported

run  cycle  hash      state      attempt   node  mJ/token
---  -----  --------  ---------  -------  -----  --------
0    1      01234567  completed        1  gpu-1     95.04
1    1      89abcdef  pending          -      -         -"""


def test_page_of_a_study_shows_what_is_known_and_leaves_out_the_rest() -> None:
    """State, counts, times, best, active runs, failures, skipped combinations and the manifest, in this order."""
    shown = study(
        ACCEPTED,
        RUNNING,
        counts=COUNTS,
        startTime="2026-11-25T11:01:00Z",
        nextEligibleTime="2026-11-25T12:01:30Z",
        best={"configSummary": "synthetic n=10 precision=bf16", "energyPerOutputTokenMillijoules": "95.04", "cycles": 2},
        resultsURI="s3://bench/llem/sweep-11112222",
        baselines=[{"gpuUUID": "GPU-1", "kind": "context", "powerMilliwatts": 62500}],
        active=[
            {"experiment": "sweep-00003-abcdef", "attempt": 2, "node": "gpu-1", "since": "2026-11-25T11:50:00Z",
             "message": "measures"}
        ],
        recentFailures=[{"experiment": "sweep-00001-abcdef", "reason": "OutOfGPUMemory", "message": "the batch does\nnot fit"}],
        skipped=[{"reason": "precision int8 is not supported", "count": 2}],
        nodes=["gpu-1"],
        manifest=[
            {"index": 0, "cycle": 1, "hash": "01234567", "status": "completed", "attempt": 1, "nodeIndex": 0,
             "millijoulesPerOutputToken": "95.04"},
            {"index": 1, "cycle": 1, "hash": "89abcdef", "status": "pending"},
        ],
    )  # fmt: skip

    assert cluster_view.page(shown, NOW) == PAGE


def test_page_of_a_large_study_shows_ranges() -> None:
    """Above forty runs, or without a manifest, index ranges say which runs are where."""
    rows = [{"index": i, "cycle": 1, "hash": "0" * 8, "status": "completed"} for i in range(41)]
    large = study(
        ACCEPTED, RUNNING, counts={"total": 41}, manifest=rows, indexes={"completed": "0-39", "running": "40"}
    )

    page = cluster_view.page(large, NOW)

    assert page.endswith("runs by index\n  completed  0-39\n  running    40")


FILLED_IN = {"finished": False, "conditions": [condition("Finished", "False", "Pending", "waits for the operator")]}


@pytest.mark.parametrize(
    "obj",
    [study(), {**study(), "status": FILLED_IN}, {**experiment(), "status": {}}, {"metadata": {"name": "bare"}}],
    ids=["study", "study with the defaults of its definition", "child", "bare"],
)
def test_page_of_what_nobody_has_touched_yet(obj: dict[str, Any]) -> None:
    """A status that is not there is no error: the page says so."""
    assert "the operator has not looked at it yet" in cluster_view.page(obj, NOW)


def test_table_of_studies_is_sorted_by_name() -> None:
    """`llem list`: a row per study with state, counts, best and age."""
    best = {"energyPerOutputTokenMillijoules": "1234.5"}
    items = [study(ACCEPTED, RUNNING, counts=COUNTS, best=best), study(name="another")]

    assert cluster_view.studies_table(items, NOW).splitlines() == [
        "study    state    total  done  failed  invalid  running  best (mJ/token)  age",
        "-------  -------  -----  ----  ------  -------  -------  ---------------  ---",
        "another  New          0     0       0        0        0                -  60m",
        "sweep    Running      8     3       1        1        1             1234  60m",
    ]


def test_finished_means_finished_with_the_latest_change() -> None:
    """After `llem retry` the old Finished=True says nothing: `status -w` goes on until the operator has seen it."""
    done = study(condition("Finished", "True", "Completed"), condition("Succeeded", "True", "Completed"))

    assert cluster_status.is_finished(done)
    assert cluster_status.has_succeeded(done)
    assert not cluster_status.is_finished(changed(done, generation=2))


@pytest.mark.parametrize(
    ("managers", "named"),
    [
        (["kubectl-client-side-apply"], []),
        (["argocd-controller", "llem-operator"], ["argocd-controller"]),
        (["kustomize-controller"], ["kustomize-controller"]),
        (["helm-controller", "helm-controller"], ["helm-controller"]),
    ],
    ids=["by hand", "Argo CD", "Flux", "Flux through Helm"],
)
def test_managers_that_follow_git_are_recognised(managers: list[str], named: list[str]) -> None:
    """Whoever feeds an object from Git would undo a change by hand, so it is named."""
    obj = changed(study(), managedFields=[{"manager": m, "operation": "Apply"} for m in managers])

    assert cluster_status.git_managers(obj) == named


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (119, "119s"), (120, "2m"), (7199, "119m"), (7200, "2h"), (172800, "2d"), (-5, "0s")],
    ids=str,
)
def test_spans_read_like_those_of_kubectl(seconds: float, text: str) -> None:
    """One unit, the one that people use."""
    assert cluster_status.span_text(seconds) == text
