"""Every wait has an end: lost nodes, names that are taken, an API server that takes no Job, records that do not fit."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from fakes import virtual_time
from fakes.machines import Life, Script, always_well
from fakes.workloads import condition, job, pod, running
from fakes.world import World, study
from llem_operator.api import ApiError
from llem_operator.attempts import Ended, progress

SHORT = {"deadlines": {"pendingSeconds": 240}}


def play(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario in virtual time."""
    virtual_time.run(scenario())


def begun(script: Script = always_well, *, nodes: tuple[str, ...] = ("node-a", "node-b"), **spec: Any) -> World:
    """A cluster with an operator and a study of one run."""
    world = World(script, nodes)
    world.server.create("energystudies", study(cycles=1, values=1, **spec))
    world.operator()
    return world


def rows(world: World) -> list[tuple[str, str]]:
    """Outcome and reason of each attempt."""
    return [(a["outcome"], a["reason"]) for a in world.experiment()["status"]["attempts"]]


def used(world: World) -> dict[str, int]:
    """Retries that were drawn on."""
    return dict(world.experiment()["status"].get("retriesUsed") or {})


def then_well(*lives: Life) -> Script:
    """These lives, then a good one."""
    return lambda _experiment, attempt: lives[attempt - 1] if attempt <= len(lives) else Life()


def test_a_pod_that_was_deleted_on_a_lost_node_before_its_container_started_is_given_up() -> None:
    """The node lifecycle controller deletes it, no kubelet takes it away; two minutes later the run goes elsewhere."""

    async def scenario() -> None:
        world = begun()
        await world.until(lambda: any(p["spec"].get("nodeName") for p in world.server.all("pods")), step_s=0.05)
        world.machines.lose("node-a")
        await asyncio.sleep(300)
        world.server.delete("pods", "bench", world.server.all("pods")[0]["metadata"]["name"])
        await asyncio.sleep(100)
        assert world.experiment()["status"]["attempt"] == 1
        await world.until_over(limit_s=120)
        assert rows(world) == [("Lost", "NodeLost"), ("Completed", "ResultStored")]
        assert used(world) == {"infrastructure": 1}
        assert world.experiment()["status"]["node"] == "node-b"
        assert world.violations == []

    play(scenario)


def test_a_pod_that_never_starts_for_no_reason_is_tried_again_after_its_deadline() -> None:
    """PodStarting is the node's business, not the study's: infrastructure."""

    async def scenario() -> None:
        world = begun(then_well(Life(waiting=("ContainerCreating", ""))), template=SHORT)
        await world.until_over(limit_s=400)
        assert rows(world) == [("Failed", "PodStarting"), ("Completed", "ResultStored")]
        assert used(world) == {"infrastructure": 1}

    play(scenario)


@pytest.mark.parametrize("after_s", [14.0, 17.0, 22.0, 29.0])
def test_a_volume_that_is_missed_late_is_told_at_the_next_look(after_s: float) -> None:
    """The kubelet speaks when the pod's Events have been read before: they are read again at each look."""

    async def scenario() -> None:
        world = begun(lambda *_: Life(waiting=("ContainerCreating", "")))
        await world.until(lambda: any(p["spec"].get("nodeName") for p in world.server.all("pods")), step_s=0.05)
        await asyncio.sleep(after_s)
        assert world.reason(world.experiment()) == "PodStarting"
        (starting,) = world.server.all("pods")
        world.machines.tell(starting, "FailedMount", 'secret "s" not found')
        await world.until(lambda: world.reason(world.experiment()) == "ContainerConfig", limit_s=20)
        assert any('secret "s" not found' in c["message"] for c in world.experiment()["status"]["conditions"])

    play(scenario)


def test_a_job_name_held_by_something_else_ends_at_the_deadline() -> None:
    """The foreign Job stays as it is, the run ends as NameTaken."""

    async def scenario() -> None:
        world = begun(lambda *_: Life(rejected="no pods here"), template=SHORT)
        await world.until(lambda: bool(world.server.all("jobs")), step_s=0.02)
        world.operators[0].die()
        (mine,) = world.server.all("jobs")
        name = mine["metadata"]["name"]
        world.server.delete("jobs", "bench", name)
        foreign = {**mine, "metadata": {"name": name, "namespace": "bench", "labels": mine["metadata"]["labels"]}}
        uid = world.server.create("jobs", foreign)["metadata"]["uid"]
        world.operator()
        await asyncio.sleep(200)
        assert world.reason(world.experiment()) == "NameTaken"
        await world.until_over(limit_s=60)
        assert rows(world) == [("Failed", "NameTaken")]
        assert [j["metadata"]["uid"] for j in world.server.all("jobs")] == [uid]
        await asyncio.sleep(5)
        assert await world.writes_while_idle() == []

    play(scenario)


@pytest.mark.parametrize("status", [500, 503, 504])
def test_a_job_that_the_api_server_never_takes_is_said_and_ends_at_the_deadline(status: int) -> None:
    """NotCreated with the server's words within 30 s, few writes, then TimedOut."""

    async def scenario() -> None:
        world = begun(template=SHORT)
        no = ApiError(status, "InternalError", "failed calling webhook: connection refused")
        world.refuse = lambda method, path, _body: no if method == "POST" and path.endswith("/jobs") else None
        await asyncio.sleep(30)
        assert world.reason(world.experiment()) == "NotCreated"
        assert "failed calling webhook" in world.experiment()["status"]["conditions"][-1]["message"]
        written = len(world.status_patches())
        await asyncio.sleep(150)
        assert len(world.status_patches()) == written
        await world.until_over(limit_s=200)
        assert rows(world) == [("Failed", "TimedOut")]
        assert "failed calling webhook" in world.experiment()["status"]["attempts"][0]["message"]

    play(scenario)


def test_a_job_that_is_taken_late_is_made() -> None:
    """503 for a minute: the wait ends well, as the same attempt."""

    async def scenario() -> None:
        world = begun(template=SHORT)
        no = ApiError(503, "ServiceUnavailable", "not now")
        world.refuse = lambda method, path, _body: no if method == "POST" and path.endswith("/jobs") else None
        await asyncio.sleep(60)
        world.refuse = lambda *_: None
        await world.until_over(limit_s=150)
        assert rows(world) == [("Completed", "ResultStored")]
        assert used(world) == {}

    play(scenario)


@pytest.mark.parametrize(
    ("late_s", "outcome"), [(300, "Completed"), (100_000, "Lost")], ids=["a slow clock", "never ends"]
)
def test_a_node_that_answers_is_given_a_margin_for_its_clock(late_s: float, outcome: str) -> None:
    """The pod's deadline is the kubelet's to keep; only ten minutes after it the operator calls the node lost."""

    async def scenario() -> None:
        seconds = [20.0]
        world = begun(lambda *_: Life(seconds=seconds[0]), retry={"infrastructure": 0})
        await world.until(lambda: bool(world.server.all("pods")), step_s=0.02)
        limit_s = world.server.all("pods")[0]["spec"]["activeDeadlineSeconds"] + 60 + 120
        seconds[0] = limit_s + late_s
        await asyncio.sleep(limit_s + 200)
        assert world.reason(world.experiment()) == "Running"
        await world.until_over(limit_s=600)
        assert rows(world)[0][0] == outcome

    play(scenario)


def test_a_job_that_is_over_while_its_container_seems_to_run_has_lost_its_node() -> None:
    """Infrastructure, and the pod that stays listed does not hold up the next attempt."""

    async def scenario() -> None:
        world = begun()
        await world.until(lambda: bool(world.machines.measuring))
        await asyncio.sleep(2)
        world.machines.lose("node-a")
        (made,) = world.server.all("jobs")
        over = {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "message": "limit"}
        name = made["metadata"]["name"]
        world.server.edit("jobs", "bench", name, {"status": {"conditions": [over]}}, status=True)
        await world.until_over(limit_s=300)
        assert rows(world) == [("Lost", "NodeLost"), ("Completed", "ResultStored")]
        assert used(world) == {"infrastructure": 1}
        assert world.violations == []

    play(scenario)


def test_a_container_that_still_seems_to_run_is_no_crash() -> None:
    """The Job's end counts, with a reason that names the node; a disruption that is told keeps its own."""
    over = job(end=("Failed", "Job has reached the specified backoff limit"))
    state = progress(over, pod(state=running()), ())
    assert isinstance(state, Ended)
    assert (state.outcome, state.reason, state.budget) == ("Lost", "NodeLost", "infrastructure")
    evicted = pod(state=running(), conditions=[condition("DisruptionTarget", "True", "DeletionByTaintManager")])
    state = progress(over, evicted, ())
    assert isinstance(state, Ended)
    assert (state.reason, state.budget) == ("Disrupted", "infrastructure")


RECORD: dict[str, Any] = {
    "version": 1, "outcome": "stored", "uri": "s3://bench/x/a1/result.json", "sha256": "a" * 64, "verdict": "valid",
}  # fmt: skip
BASELINE = {
    "gpuUUID": "GPU-1",
    "driver": "570.1",
    "kind": "context",
    "powerMilliwatts": 7,
    "measuredAt": "2026-03-04T05:00:00Z",
}
TOO_LONG: dict[str, dict[str, Any]] = {
    "verdict": {"verdict": "v" * 100},
    "driver": {"driver": "5" * 100},
    "uri": {"uri": "s3://" + "b" * 2100},
    "schema version": {"schemaVersion": "3" * 100},
    "GPU": {"gpuProduct": "G" * 200},
    "GPU's UUID": {"gpuUUIDs": ["G" * 100]},
    "warning": {"warnings": ["W" * 100]},
    "reason for no energy": {"energyNullReason": "n" * 400},
    "baseline's GPU": {"baselines": [{**BASELINE, "gpuUUID": "G" * 500}]},
    "baseline's driver": {"baselines": [{**BASELINE, "driver": "5" * 500}]},
    "baseline's kind": {"baselines": [{**BASELINE, "kind": "k" * 500}]},
    "baseline's power": {"baselines": [{**BASELINE, "powerMilliwatts": -5}]},
    "size": {"sizeBytes": -1},
    "tokens": {"numbers": {"outputTokens": 10**30}},
    "energy": {"numbers": {"energyTotalJoules": 1e300}},
}


@pytest.mark.parametrize("change", TOO_LONG.values(), ids=TOO_LONG)
def test_a_record_that_no_status_can_hold_does_not_hang(change: dict[str, Any]) -> None:
    """It is no record: ResultMissing, and the next attempt is made; or what does not fit is left out."""

    async def scenario() -> None:
        world = begun(then_well(Life(says=json.dumps({**RECORD, **change}))))
        await world.until_over(limit_s=300)
        assert rows(world)[-1] == ("Completed", "ResultStored")
        assert len(rows(world)) == 1 or rows(world)[0] == ("Failed", "ResultMissing")

    play(scenario)
