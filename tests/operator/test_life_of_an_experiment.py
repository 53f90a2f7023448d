"""Whole lives of an experiment, from release to end, with a cluster in virtual time (faults.md 10, 12, 14, 18)."""

import asyncio
from collections.abc import Callable, Coroutine
from datetime import datetime
from itertools import pairwise
from typing import Any

import pytest

from fakes import virtual_time
from fakes.api_server import Object
from fakes.machines import Life, Script, always_well
from fakes.world import World, said, study
from llem_operator.api import ApiError

OOM = Life(exit_code=137, reason="OOMKilled", says="")
BAD = Life(verdict="invalid", reasons=("gpu_shared", "throttled"))


def lives(*each: Life) -> Script:
    """The n-th attempt of every experiment has the n-th life; later ones the last."""
    return lambda _experiment, attempt: each[min(attempt, len(each)) - 1]


def one_run(**spec: Any) -> Object:
    """A study of a single run."""
    return study(cycles=1, values=1, **spec)


async def begun(script: Script = always_well, *, nodes: tuple[str, ...] = ("node-a",), **spec: Any) -> World:
    """A cluster with an operator and a study of one run."""
    world = World(script, nodes)
    world.server.create("energystudies", one_run(**spec))
    world.operator()
    return world


def play(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario in virtual time."""
    virtual_time.run(scenario())


def rows(experiment: Object) -> list[tuple[str, str]]:
    """Outcome and reason of each attempt."""
    return [(a["outcome"], a["reason"]) for a in experiment["status"]["attempts"]]


def is_measuring(world: World) -> Callable[[], bool]:
    """Whether a container measures."""
    return lambda: bool(world.machines.measuring)


BUDGETS: dict[str, tuple[dict[str, int], list[Life], str, list[str]]] = {
    "well at once": ({}, [Life()], "Completed", ["ResultStored"]),
    "configuration is never tried again": (
        {"measurement": 5, "infrastructure": 5, "invalid": 5}, [Life(10), Life()], "RunsFailed", ["ConfigurationError"],
    ),
    "memory is never tried again": ({"measurement": 5, "infrastructure": 5}, [OOM], "RunsFailed", ["OutOfMemory"]),
    "measurement has no retries by default": ({}, [Life(16), Life()], "RunsFailed", ["EngineCrashed"]),
    "measurement within its budget": (
        {"measurement": 2}, [Life(16), Life(18), Life()], "Completed", ["EngineCrashed", "PhaseTimeout", "ResultStored"],
    ),
    "measurement beyond its budget": (
        {"measurement": 1}, [Life(16), Life(15), Life()], "RunsFailed", ["EngineCrashed", "MeasurementFailed"],
    ),
    "infrastructure has three": (
        {}, [Life(20), Life(17), Life(19), Life()], "Completed",
        ["Unreachable", "ResultNotStored", "Terminated", "ResultStored"],
    ),
    "infrastructure beyond three": ({}, [Life(20)], "RunsFailed", ["Unreachable"] * 4),
    "none allowed": ({"infrastructure": 0}, [Life(20), Life()], "RunsFailed", ["Unreachable"]),
    "budgets are counted apart": (
        {"measurement": 1, "infrastructure": 1}, [Life(16), Life(20), Life()], "Completed",
        ["EngineCrashed", "Unreachable", "ResultStored"],
    ),
    "no digest": ({}, [Life(says=""), Life()], "Completed", ["ResultMissing", "ResultStored"]),
    "invalid is a result by default": ({}, [BAD, Life()], "Completed", ["VerdictInvalid"]),
    "invalid within its budget": ({"invalid": 2}, [BAD, BAD, Life()], "Completed", ["VerdictInvalid"] * 2 + ["ResultStored"]),
    "invalid to the end": ({"invalid": 1}, [BAD], "Completed", ["VerdictInvalid"] * 2),
}  # fmt: skip


@pytest.mark.parametrize(("retry", "each", "end", "reasons"), BUDGETS.values(), ids=BUDGETS)
def test_retries_follow_their_budgets(retry: dict[str, int], each: list[Life], end: str, reasons: list[str]) -> None:
    """Every attempt is one Job with one row; the study ends as its runs do."""

    async def scenario() -> None:
        world = await begun(lives(*each), retry=retry)
        await world.until_over()
        experiment = world.experiment()
        assert world.reason(world.study()) == end
        assert [r for _, r in rows(experiment)] == reasons
        assert [a["attempt"] for a in experiment["status"]["attempts"]] == list(range(1, len(reasons) + 1))
        used = experiment["status"].get("retriesUsed") or {}
        assert sum(used.values()) == len(reasons) - 1
        assert all(n <= {"infrastructure": 3, **retry}.get(kind, 0) for kind, n in used.items())
        assert world.violations == []

    play(scenario)


def test_an_invalid_result_is_not_adopted_by_the_attempt_that_is_to_replace_it() -> None:
    """The retry really measures; before it, the store is asked only for later attempts."""

    async def scenario() -> None:
        world = await begun(lives(BAD, Life()), retry={"invalid": 1})
        await world.until_over()
        status = world.experiment()["status"]
        assert len(world.machines.measured) == 2
        assert status["summary"]["verdict"] == "valid"
        assert not status["result"]["adopted"]
        assert status["result"]["uri"].endswith("/a2/result.json")

    play(scenario)


def test_an_invalid_result_is_kept_and_marked() -> None:
    """Succeeded, but not to be believed; it is counted apart and never the best."""

    async def scenario() -> None:
        world = await begun(lives(BAD))
        await world.until_over()
        status = world.study()["status"]
        assert said(world.experiment()["status"])["MeasurementValid"] == ("False", "VerdictInvalid")
        told = {c["type"]: c["message"] for c in world.experiment()["status"]["conditions"]}
        assert told["MeasurementValid"].startswith("verdict invalid: gpu_shared, throttled")
        assert said(world.experiment()["status"])["Succeeded"] == ("True", "ResultStored")
        assert (status["counts"]["completed"], status["counts"]["invalid"]) == (1, 1)
        assert "best" not in status

    play(scenario)


def test_the_pause_before_a_retry_doubles_up_to_five_minutes() -> None:
    """10 s, 20 s, 40 s … between the end of one attempt and the next."""

    async def scenario() -> None:
        world = await begun(lives(Life(20, seconds=1)), retry={"infrastructure": 8})
        await world.until_over()
        attempts = world.experiment()["status"]["attempts"]
        pauses = [
            (datetime.fromisoformat(b["created"]) - datetime.fromisoformat(a["end"])).total_seconds()
            for a, b in pairwise(attempts)
        ]
        for pause, least in zip(pauses, [10, 20, 40, 80, 160, 300, 300, 300], strict=True):
            assert least <= pause <= least + 3

    play(scenario)


def test_at_most_ten_attempts_are_kept() -> None:
    """The latest ones; their numbers go on."""

    async def scenario() -> None:
        world = await begun(lives(Life(20, seconds=1)), retry={"infrastructure": 10, "measurement": 10})
        world.machines.script = lambda _e, attempt: Life(20 if attempt % 2 else 16, seconds=1)
        await world.until_over(limit_s=9000)
        attempts = world.experiment()["status"]["attempts"]
        assert [a["attempt"] for a in attempts] == list(range(12, 22))
        assert world.experiment()["status"]["attempt"] == 21

    play(scenario)


WAITS: dict[str, tuple[Life, str, str]] = {
    "no node": (Life(unschedulable="0/1 nodes: no GPU"), "Unschedulable", "no GPU"),
    "quota": (Life(rejected="exceeded quota: gpus"), "PodRejected", "exceeded quota"),
    "image": (Life(waiting=("ErrImagePull", "not found")), "ImagePull", "not found"),
    "secret": (Life(waiting=("CreateContainerConfigError", "no secret hub")), "ContainerConfig", "no secret hub"),
}


@pytest.mark.parametrize("first", [1, 2], ids=["first attempt", "retry"])
@pytest.mark.parametrize(("life", "reason", "words"), WAITS.values(), ids=WAITS)
def test_a_wait_says_its_reason_within_30_s_and_ends_at_its_deadline(
    life: Life, reason: str, words: str, first: int
) -> None:
    """O8, also while the pod of an earlier attempt is still there to be looked at."""

    async def scenario() -> None:
        script = lives(*[Life(16, seconds=1)] * (first - 1), life)
        world = await begun(script, retry={"measurement": 1}, template={"deadlines": {"pendingSeconds": 240}})
        await world.until(lambda: (world.children() or [{}])[0].get("status", {}).get("attempt") == first)
        await asyncio.sleep(30)
        status = world.experiment()["status"]
        assert world.reason(world.experiment(), "Scheduled") == reason
        assert words in next(c["message"] for c in status["conditions"] if c["type"] == "Finished")
        assert words in next(c["message"] for c in world.study()["status"]["conditions"] if c["type"] == "Finished")
        await world.until_over(limit_s=240)
        assert rows(world.experiment())[-1] == ("Failed", reason)
        assert not [j for j in world.server.all("jobs") if j["metadata"]["name"].endswith(f"-a{first}")]

    play(scenario)


def test_a_wait_in_a_queue_has_no_deadline_and_a_job_taken_back_is_not_counted() -> None:
    """Kueue may hold a Job for days; what it stops after its start is tried again in a new attempt."""

    async def scenario() -> None:
        world = await begun(lives(Life(seconds=60)), template={"deadlines": {"pendingSeconds": 100}})
        await world.until(lambda: bool(world.server.all("jobs")), step_s=0.05)
        name = world.server.all("jobs")[0]["metadata"]["name"]
        world.server.edit("jobs", "bench", name, {"spec": {"suspend": True}})
        await asyncio.sleep(5000)
        assert world.reason(world.experiment()) == "WaitingForQueue"
        reads = world.server.reads
        await asyncio.sleep(600)
        assert world.server.reads - reads < 200
        world.server.edit("jobs", "bench", name, {"spec": {"suspend": False}})
        await world.until(is_measuring(world))
        world.server.edit("jobs", "bench", name, {"spec": {"suspend": True}})
        await world.until_over()
        assert rows(world.experiment()) == [("Preempted", "WaitingForQueue"), ("Completed", "ResultStored")]
        assert "retriesUsed" not in world.experiment()["status"]
        assert world.violations == []

    play(scenario)


def test_a_lost_node_is_waited_for_until_its_pod_must_have_ended() -> None:
    """Until then NodeUnreachable; then NodeLost, and the next attempt measures elsewhere although the pod is still listed."""

    async def scenario() -> None:
        nodes = ("node-a", "node-b")
        world = await begun(nodes=nodes, template={"deadlines": {"runSeconds": 600, "uploadSeconds": 100}})
        await world.until(is_measuring(world))
        await asyncio.sleep(5)
        world.machines.lose("node-a")
        await asyncio.sleep(5)
        assert world.reason(world.experiment()) == "NodeUnreachable"
        (pod,) = world.server.all("pods")
        start = datetime.fromisoformat(pod["status"]["containerStatuses"][0]["state"]["running"]["startedAt"])
        deadline = pod["spec"]["activeDeadlineSeconds"] + 60 + 120
        await asyncio.sleep(deadline - (virtual_time.now() - start).total_seconds() - 2)
        assert world.reason(world.experiment()) == "NodeUnreachable"
        await world.until_over(limit_s=120)
        assert rows(world.experiment()) == [("Lost", "NodeLost"), ("Completed", "ResultStored")]
        assert world.experiment()["status"]["node"] == "node-b"
        assert len(world.machines.measured) == 1
        assert world.violations == []

    play(scenario)


def test_suspend_with_drain_lets_the_run_end_and_starts_no_other() -> None:
    """What measures is not disturbed."""

    async def scenario() -> None:
        world = World()
        world.server.create("energystudies", study(cycles=2, values=1))
        world.operator()
        await world.until(is_measuring(world))
        world.spec({"suspend": True})
        await asyncio.sleep(300)
        status = world.study()["status"]
        assert (status["counts"]["completed"], status["counts"]["pending"]) == (1, 1)
        assert said(status)["Suspended"] == ("True", "Suspended")
        assert said(status)["Ready"][0] == "True"
        assert said(status)["Reconciling"][0] == "False"
        assert world.reason(world.study()) == "Suspended"
        world.spec({"suspend": False})
        await world.until_over()
        assert len(world.machines.measured) == 2

    play(scenario)


@pytest.mark.parametrize("moment", [0.05, 0.35, 10.0], ids=["before the pod", "before the start", "measuring"])
def test_suspend_immediately_stops_the_run_which_goes_again_uncounted(moment: float) -> None:
    """The Job is deleted, the attempt Preempted; resumed, the next attempt measures."""

    async def scenario() -> None:
        world = await begun(suspendPolicy="Immediate", retry={"infrastructure": 0})
        await world.until(lambda: bool(world.server.all("jobs")), step_s=0.02)
        await asyncio.sleep(moment)
        world.spec({"suspend": True})
        await asyncio.sleep(30)
        assert world.server.all("jobs") == world.server.all("pods") == []
        assert world.reason(world.experiment()) == "Suspended"
        assert world.study()["status"]["counts"]["pending"] == 1
        world.spec({"suspend": False})
        await world.until_over()
        assert rows(world.experiment()) == [("Preempted", "Suspended"), ("Completed", "ResultStored")]
        assert "retriesUsed" not in world.experiment()["status"]
        assert len(world.machines.measured) == 1
        assert world.violations == []

    play(scenario)


def test_suspend_on_and_off_quickly_changes_nothing() -> None:
    """Two edits that the operator sees as one, or not at all."""

    async def scenario() -> None:
        world = await begun()
        for _ in range(5):
            world.spec({"suspend": True})
            await asyncio.sleep(0.01)
            world.spec({"suspend": False})
            await asyncio.sleep(0.3)
        await world.until_over()
        assert len(world.machines.measured) == 1
        assert world.violations == []

    play(scenario)


@pytest.mark.parametrize(
    ("moment", "attempts"), [(0.05, 1), (5.0, 2), (18.0, 2)], ids=["new", "measuring", "nearly done"]
)
def test_a_job_deleted_by_hand_is_made_again(moment: float, attempts: int) -> None:
    """Before anything was seen of it under the same name, later as a new attempt; no two pods measure at once."""

    async def scenario() -> None:
        world = await begun()
        await world.until(lambda: bool(world.server.all("jobs")), step_s=0.02)
        await asyncio.sleep(moment)
        world.server.delete("jobs", "bench", world.server.all("jobs")[0]["metadata"]["name"])
        await world.until_over()
        found = rows(world.experiment())
        assert found[-1] == ("Completed", "ResultStored")
        assert found[:-1] in ([], [("Lost", "JobDeleted")])
        assert len(found) <= attempts
        assert len(world.machines.measured) == 1
        assert world.violations == []

    play(scenario)


def test_the_pod_of_an_earlier_attempt_must_be_gone_before_the_next_is_made() -> None:
    """A container may take its whole grace period to stop; on another node the next one would measure beside it."""

    async def scenario() -> None:
        world = await begun(lives(Life(seconds=100)), nodes=("node-a", "node-b"))
        world.machines.pod_gone_after_s = 50
        await world.until(is_measuring(world))
        world.server.delete("jobs", "bench", world.server.all("jobs")[0]["metadata"]["name"])
        await asyncio.sleep(30)
        assert world.server.all("jobs") == []
        assert "earlier attempt is gone" in next(
            c["message"] for c in world.experiment()["status"]["conditions"] if c["type"] == "Finished"
        )
        await world.until_over()
        assert rows(world.experiment()) == [("Lost", "JobDeleted"), ("Completed", "ResultStored")]
        assert world.violations == []

    play(scenario)


@pytest.mark.parametrize("what", ["jobs", "pods"])
def test_what_is_deleted_after_its_success_but_before_it_was_read_is_recovered_from_the_store(what: str) -> None:
    """The operator was away; the next attempt finds the result and measures nothing."""

    async def scenario() -> None:
        world = await begun()
        await world.until(is_measuring(world))
        world.operators[0].die()
        await asyncio.sleep(40)
        (obj,) = world.server.all(what)
        if what == "pods":
            world.server.remove("pods", ("bench", obj["metadata"]["name"]))
        else:
            world.server.delete(what, "bench", obj["metadata"]["name"])
        await asyncio.sleep(5)
        world.operator()
        await world.until_over()
        status = world.experiment()["status"]
        assert len(world.machines.measured) == 1
        assert status["result"]["adopted"]
        assert status["result"]["uri"].endswith("/a1/result.json")
        assert rows(world.experiment())[0][0] == "Lost"

    play(scenario)


def test_a_pod_deleted_by_hand_while_it_measures_is_measured_anew() -> None:
    """Lost, infrastructure; a half measurement is never a result."""

    async def scenario() -> None:
        world = await begun()
        await world.until(is_measuring(world))
        world.server.delete("pods", "bench", world.server.all("pods")[0]["metadata"]["name"])
        await world.until_over()
        assert [r for r, _ in rows(world.experiment())] == ["Lost", "Completed"]
        assert world.experiment()["status"]["retriesUsed"] == {"infrastructure": 1}
        assert len(world.machines.measured) == 1
        assert world.violations == []

    play(scenario)


def test_a_template_that_the_cluster_refuses_fails_with_its_words() -> None:
    """422 at the Job's creation is not tried again."""

    async def scenario() -> None:
        world = await begun()
        refusal = ApiError(422, "Invalid", "spec.template: volume claim is odd")
        world.refuse = lambda method, path, _body: refusal if method == "POST" and "/jobs" in path else None
        await world.until_over()
        assert rows(world.experiment()) == [("Failed", "InvalidTemplate")]
        assert "volume claim is odd" in world.experiment()["status"]["attempts"][0]["message"]
        assert world.study()["status"]["recentFailures"][0]["reason"] == "InvalidTemplate"

    play(scenario)


def test_a_forbidden_job_waits_with_its_reason_writes_little_and_goes_on_when_allowed() -> None:
    """403 (quota, RBAC): said in the experiment and the study, tried again with a growing pause, until the deadline."""

    async def scenario() -> None:
        world = await begun()
        no = ApiError(403, "Forbidden", "jobs.batch is forbidden: exceeded quota: count/jobs.batch")
        world.refuse = lambda method, path, _body: no if method == "POST" and "/jobs" in path else None
        await asyncio.sleep(120)
        assert world.reason(world.experiment()) == "Forbidden"
        assert "exceeded quota" in world.study()["status"]["conditions"][0]["message"]
        written = len(world.status_patches())
        await asyncio.sleep(600)
        assert world.reason(world.experiment()) == "Forbidden"
        assert len(world.status_patches()) == written
        world.refuse = lambda *_: None
        await world.until_over()
        assert world.reason(world.study()) == "Completed"
        world.server.create("energystudies", one_run() | {"metadata": {"name": "other", "namespace": "bench"}})
        world.refuse = lambda method, path, _body: no if method == "POST" and "/jobs" in path else None
        await world.until_over("other", limit_s=3700)
        assert world.reason(world.study("other")) == "RunsFailed"

    play(scenario)


def test_a_run_released_before_a_long_absence_of_the_operator_is_still_made() -> None:
    """The pending deadline is the cluster's time to find a node, not the operator's own absence."""

    async def scenario() -> None:
        world = await begun()
        await world.until(lambda: any(e["status"].get("attempt") for e in world.children()), step_s=0.01)
        world.operators[0].die()
        assert world.server.all("jobs") == []
        await asyncio.sleep(8000)
        world.operator()
        await world.until_over()
        assert world.reason(world.study()) == "Completed"

    play(scenario)


def test_a_live_job_of_an_ended_attempt_is_deleted() -> None:
    """What a crash or a lost node left may not measure beside the next attempt."""

    async def scenario() -> None:
        world = await begun(lives(Life(20, seconds=5), Life()))
        await world.until(lambda: any(e["status"].get("retriesUsed") for e in world.children()))
        (old,) = world.server.all("jobs")
        stray = {**old, "status": {}, "metadata": {**old["metadata"], "name": old["metadata"]["name"][:-1] + "7"}}
        world.server.create("jobs", stray)
        await world.until_over()
        assert [j["metadata"]["name"][-3:] for j in world.server.all("jobs")] == ["-a1", "-a2"]
        assert rows(world.experiment())[-1] == ("Completed", "ResultStored")
        assert len([m for m in world.machines.measured if m.stored]) == 1

    play(scenario)


def test_a_job_name_held_by_something_else_is_waited_for() -> None:
    """A foreign Job is neither taken for ours nor touched; when it is gone the run goes on."""

    async def scenario() -> None:
        world = await begun()
        await world.until(lambda: bool(world.server.all("jobs")), step_s=0.02)
        world.operators[0].die()
        (mine,) = world.server.all("jobs")
        name = mine["metadata"]["name"]
        world.server.delete("jobs", "bench", name)
        foreign = {**mine, "metadata": {"name": name, "namespace": "bench", "labels": {**mine["metadata"]["labels"]}}}
        world.machines.script = lives(Life(rejected="foreign"))
        world.server.create("jobs", foreign)
        world.operator()
        await asyncio.sleep(60)
        assert world.reason(world.experiment()) == "NameTaken"
        assert len(world.server.all("jobs")) == 1
        world.machines.script = lives(Life())
        world.server.delete("jobs", "bench", name)
        await world.until_over()
        assert world.reason(world.study()) == "Completed"

    play(scenario)


def standalone(**spec: Any) -> Object:
    """An experiment that a person wrote."""
    config = {"model": "pretended", "backend": "synthetic"}
    metadata = {"name": "one", "namespace": "bench"}
    return {
        "apiVersion": "llem.dev/v1alpha1",
        "kind": "EnergyExperiment",
        "metadata": metadata,
        "spec": {"config": config, **spec},
    }


def ended(world: World) -> Callable[[], bool]:
    """Whether the one experiment is over."""
    return lambda: bool(world.experiment()["status"]["finished"])


def test_an_experiment_without_a_study_works_alone() -> None:
    """Its own retry, suspend, retryEpoch and destination are in force; its results lie under its own name."""

    async def scenario() -> None:
        world = World(lives(Life(20), Life(16), Life()))
        world.server.create(
            "energyexperiments", standalone(retry={"infrastructure": 1}, suspend=True, results={"uri": "s3://mine/x"})
        )
        world.operator()
        await asyncio.sleep(100)
        assert world.reason(world.experiment()) == "Suspended"
        world.server.edit("energyexperiments", "bench", "one", {"spec": {"suspend": False}})
        await world.until(ended(world))
        assert [r for _, r in rows(world.experiment())] == ["Unreachable", "EngineCrashed"]
        assert said(world.experiment()["status"])["Succeeded"] == ("False", "EngineCrashed")
        world.server.edit("energyexperiments", "bench", "one", {"spec": {"retryEpoch": 1}})
        await world.until(lambda: not world.experiment()["status"]["finished"], 100)
        await world.until(ended(world))
        status = world.experiment()["status"]
        assert said(status)["Succeeded"] == ("True", "ResultStored")
        uid = world.experiment()["metadata"]["uid"][:8]
        assert status["result"]["uri"].startswith(f"s3://mine/x/one-{uid}/00000-")
        await asyncio.sleep(5)
        assert await world.writes_while_idle() == []

    play(scenario)


REFUSED: dict[str, tuple[Object, str, str]] = {
    "a typo": ({"config": {"model": "x", "synthetic": {"btach_size": 1}}}, "InvalidConfig", "btach_size"),
    "a backend without an image": ({"config": {"model": "x", "backend": "vllm"}}, "InvalidTemplate", "images.vllm"),
    "a forbidden field": (
        {"template": {"podTemplate": {"spec": {"hostNetwork": True}}}}, "InvalidTemplate", "hostNetwork",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("spec", "reason", "word"), REFUSED.values(), ids=REFUSED)
def test_an_experiment_that_cannot_run_is_refused_and_finished(spec: Object, reason: str, word: str) -> None:
    """Accepted and Finished say why; no Job is made."""

    async def scenario() -> None:
        world = World()
        world.server.create("energyexperiments", standalone(**spec))
        world.operator()
        await world.until(ended(world), 60)
        conditions = said(world.experiment()["status"])
        assert conditions["Accepted"] == ("False", reason)
        assert conditions["Finished"] == ("True", reason)
        assert word in next(c["message"] for c in world.experiment()["status"]["conditions"] if c["type"] == "Finished")
        assert world.server.all("jobs") == []

    play(scenario)


def test_the_job_of_a_result_expires_after_its_time() -> None:
    """Only a Job that has ended gets a time to live: the study's."""

    async def scenario() -> None:
        world = await begun(retention={"jobTTLSecondsAfterResult": 77})
        await world.until_over()
        await asyncio.sleep(5)
        assert [j["spec"]["ttlSecondsAfterFinished"] for j in world.server.all("jobs")] == [77]

    play(scenario)


def test_the_status_says_what_was_seen_of_job_pod_and_result() -> None:
    """Identities, times and numbers for a table, a report and a bug report."""

    async def scenario() -> None:
        world = await begun()
        await world.until_over()
        status = world.experiment()["status"]
        (row,) = status["attempts"]
        (pod,) = world.server.all("pods")
        (job,) = world.server.all("jobs")
        assert (row["jobUID"], row["podUID"], row["node"]) == (job["metadata"]["uid"], pod["metadata"]["uid"], "node-a")
        assert row["created"][:19] <= row["start"] <= row["measurementStart"] < row["measurementEnd"]
        assert row["measurementEnd"][:19] <= row["end"]  # the kubelet writes whole seconds
        assert status["summary"]["tokensPerSecond"] == "251.2"
        assert status["summary"]["outputTokens"] == 500
        assert status["environment"]["gpuUUIDs"] == ["GPU-node-a"]
        assert status["environment"]["imageID"] == "sha256:feed"
        assert status["baselines"][0]["node"] == "node-a"
        assert world.study()["status"]["baselines"] == status["baselines"]

    play(scenario)
