"""A decision that another write has overtaken does nothing: versions, UIDs, and changes that check themselves."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from fakes import virtual_time
from fakes.api_server import Object
from fakes.world import Connection, Operator, World, study
from llem_operator.api import ApiError
from llem_operator.cluster import Cluster, TakenError
from llem_operator.decision import Cancel, Release, Reopen, Restore, StatusChange
from llem_operator.transitions import changed

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
OPEN = {"attempt": 1, "attempts": [{"attempt": 1, "jobName": "one-a1", "created": "2026-03-04T05:00:00.000Z"}]}
CLOSED = {"attempt": 1, "attempts": [{**OPEN["attempts"][0], "outcome": "Failed", "reason": "Unreachable"}]}  # type: ignore[index]
FAILED = {**CLOSED, "finished": True, "observedGeneration": 1, "conditions": [
    {"type": "Succeeded", "status": "False", "reason": "Unreachable", "message": "", "lastTransitionTime": "2026-03-04T05:00:00Z"}
]}  # fmt: skip
GOOD = {**FAILED, "conditions": [{**FAILED["conditions"][0], "status": "True"}], "summary": {"verdict": "valid"}}
MEMORY = {"attempt": 1, "observedRetryEpoch": 0, "finished": True}

TABLE: dict[str, tuple[StatusChange, Object, bool]] = {
    "release the first": (Release(0), {}, True),
    "release the next": (Release(1), CLOSED, True),
    "release what another has released": (Release(0), OPEN, False),
    "release what another has released and ended": (Release(0), CLOSED, False),
    "release what is finished": (Release(1), FAILED, False),
    "reopen what failed": (Reopen(1), FAILED, True),
    "reopen what is good": (Reopen(1), GOOD, False),
    "reopen an invalid result": (Reopen(1), {**GOOD, "summary": {"verdict": "invalid"}}, True),
    "reopen twice": (Reopen(1), {**FAILED, "observedRetryEpoch": 1}, False),
    "reopen what goes on": (Reopen(1), OPEN, False),
    "cancel what waits": (Cancel("CircuitBreaker", "x"), {}, True),
    "cancel what has been released": (Cancel("CircuitBreaker", "x"), OPEN, False),
    "cancel what is finished": (Cancel("CircuitBreaker", "x"), FAILED, False),
    "restore what is new": (Restore(MEMORY, "completed"), {"finished": False}, True),
    "restore what has been seen": (Restore(MEMORY, "completed"), {"observedGeneration": 1}, False),
}


@pytest.mark.parametrize(("change", "status", "applies"), TABLE.values(), ids=TABLE)
def test_a_change_looks_whether_it_still_applies(change: StatusChange, status: Object, applies: bool) -> None:
    """On the experiment as read live; one under deletion is left alone."""
    metadata = {"name": "one", "namespace": "bench", "generation": 1}
    experiment = {"metadata": metadata, "spec": {}, "status": status}
    assert (changed(experiment, change, NOW) is not None) is applies
    dying = {**experiment, "metadata": {**metadata, "deletionTimestamp": "2026-03-04T05:00:00Z"}}
    assert changed(dying, change, NOW) is None


def with_cluster(scenario: Callable[[World, Cluster], Awaitable[None]]) -> None:
    """A cluster with one study and nobody at work."""

    async def lived() -> None:
        world = World()
        world.server.create("energystudies", study())
        await scenario(world, Cluster(Connection(world, Operator(world))))

    virtual_time.run(lived())


def job(uid: str = "owner") -> dict[str, Any]:
    """A Job to be created."""
    owner = {"apiVersion": "v1", "kind": "X", "name": "x", "uid": uid, "controller": True}
    metadata = {
        "name": "one-a1",
        "namespace": "bench",
        "labels": {"llem.dev/experiment": "one", "llem.dev/attempt": "1"},
    }
    return {"kind": "Job", "metadata": {**metadata, "ownerReferences": [owner]}, "spec": {"suspend": True}}


def test_a_status_is_written_against_the_version_that_was_read() -> None:
    """Somebody else's write in between makes ours a conflict."""

    async def scenario(world: World, cluster: Cluster) -> None:
        read = await cluster.study("bench", "sweep")
        assert read is not None
        world.server.edit("energystudies", "bench", "sweep", {"spec": {"parallelism": 2}})
        with pytest.raises(ApiError) as said:
            await cluster.write_status(read, {**read["status"], "planHash": "x"})
        assert (said.value.status, said.value.reason) == (409, "Conflict")
        assert "planHash" not in world.study()["status"]

    with_cluster(scenario)


def test_a_status_that_does_not_differ_is_not_sent() -> None:
    """O7 at the last door."""

    async def scenario(world: World, cluster: Cluster) -> None:
        read = await cluster.study("bench", "sweep")
        assert read is not None
        assert await cluster.write_status(read, read["status"]) is None
        assert world.writes == []

    with_cluster(scenario)


def test_only_the_very_job_that_was_seen_is_deleted() -> None:
    """A new Job of the same name survives a late deletion; one that is gone is no error."""

    async def scenario(world: World, cluster: Cluster) -> None:
        made = await cluster.create_job(job())
        await cluster.delete_job("bench", "one-a1", "another-uid")
        assert world.server.get("jobs", "bench", "one-a1") is not None
        await cluster.delete_job("bench", "one-a1", made["metadata"]["uid"])
        assert world.server.get("jobs", "bench", "one-a1") is None
        await cluster.delete_job("bench", "one-a1", made["metadata"]["uid"])

    with_cluster(scenario)


def test_an_object_that_is_there_is_ours_if_its_owner_is() -> None:
    """Created twice is created once; another's is refused."""

    async def scenario(_world: World, cluster: Cluster) -> None:
        first = await cluster.create_job(job())
        assert (await cluster.create_job(job()))["metadata"]["uid"] == first["metadata"]["uid"]
        with pytest.raises(TakenError, match="one-a1"):
            await cluster.create_job(job("somebody else"))

    with_cluster(scenario)
