"""Experiments deleted by hand get their end back before anyone else speaks, and never start from nothing."""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from itertools import permutations
from typing import Any

import pytest

from fakes import virtual_time
from fakes.api_server import Object
from fakes.machines import Life, Script
from fakes.world import KINDS, World, said, stored_once, study

NO_GAPS = {"configGapSeconds": 0, "cycleGapSeconds": 0, "cycleOrder": "sequential"}
DELAYS = list(permutations((0.05, 1.0, 4.0)))


def play(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario in virtual time."""
    virtual_time.run(scenario())


def rows(experiment: Object) -> list[tuple[str, str]]:
    """Outcome and reason of each attempt."""
    return [(a["outcome"], a["reason"]) for a in experiment["status"]["attempts"]]


def deaf_for(world: World, delays: tuple[float, ...]) -> None:
    """Start an operator that hears of deleted experiments, Jobs and pods each with a delay of its own."""
    late = dict(zip(("energyexperiments", "jobs", "pods"), delays, strict=True))

    def lost(plural: str, change: str, obj: Object) -> bool:
        if change != "DELETED" or plural not in late:
            return False
        service = world.operators[0].service
        assert service is not None
        virtual_time.later(late[plural], service.heard, KINDS[plural], change, obj)
        return True

    world.operator(lost=lost)


ENDS: dict[str, tuple[Script, dict[str, int], str]] = {
    "completed": (lambda *_: Life(seconds=2), {}, "RestoredFromStudy"),
    "failed": (lambda *_: Life(10, seconds=2), {}, "RestoredFromStudy"),
    "cancelled": (lambda *_: Life(10, seconds=2), {"maxConsecutiveFailures": 1}, "Cancelled"),
}


@pytest.mark.parametrize("delays", DELAYS, ids=str)
@pytest.mark.parametrize("state", ENDS)
def test_a_finished_child_deleted_with_its_job_and_pod_keeps_its_end(state: str, delays: tuple[float, ...]) -> None:
    """The events of the three arrive in any order; nothing is measured again and the study is as it was."""

    async def scenario() -> None:
        script, limits, reason = ENDS[state]
        world = World(script)
        world.server.create("energystudies", study(cycles=1, values=4, execution={**NO_GAPS, **limits}))
        deaf_for(world, delays)
        await world.until_over()
        await asyncio.sleep(2)
        before, measured = world.study()["status"], len(world.machines.measured)
        index = int(before["indexes"][state].split("-")[0])
        old = world.experiment(index)
        assert state == "cancelled" or any(
            old["metadata"]["name"] in j["metadata"]["name"] for j in world.server.all("jobs")
        )
        world.server.delete("energyexperiments", "bench", old["metadata"]["name"])
        await asyncio.sleep(120)
        new, after = world.experiment(index), world.study()["status"]
        assert new["metadata"]["uid"] != old["metadata"]["uid"]
        assert said(new["status"])["Finished"] == ("True", reason)
        assert new["status"]["finished"]
        assert len(world.machines.measured) == measured
        for part in ("counts", "indexes", "manifest", "finished"):
            assert after[part] == before[part], part
        assert said(after)["Finished"] == said(before)["Finished"]
        assert world.violations == []
        assert await world.writes_while_idle() == []

    play(scenario)


@pytest.mark.parametrize("delays", DELAYS, ids=str)
def test_a_running_child_deleted_with_its_job_and_pod_is_tried_again(delays: tuple[float, ...]) -> None:
    """Its attempt is Lost and counted; the next one measures when the old pod is gone."""

    async def scenario() -> None:
        world = World(lambda *_: Life(seconds=30))
        world.server.create("energystudies", study(cycles=1, values=2, execution=NO_GAPS))
        deaf_for(world, delays)
        await world.until(lambda: bool(world.machines.measuring))
        await asyncio.sleep(5)
        world.server.delete("energyexperiments", "bench", world.experiment()["metadata"]["name"])
        await world.until_over()
        first = world.experiment()
        assert rows(first) == [("Lost", "ExperimentDeleted"), ("Completed", "ResultStored")]
        assert first["status"]["retriesUsed"] == {"infrastructure": 1}
        assert Counter(m.run for m in world.machines.measured if m.stored).most_common(1)[0][1] == 1
        assert stored_once(world) == []
        assert world.reason(world.study()) == "Completed"
        assert world.violations == []

    play(scenario)


@pytest.mark.parametrize("delays", DELAYS, ids=str)
def test_what_a_deleted_child_still_stored_is_adopted(delays: tuple[float, ...]) -> None:
    """Deleted one second before its measurement ends, its pod stores; the next attempt finds that and measures nothing."""

    async def scenario() -> None:
        world = World(lambda *_: Life(seconds=30))
        world.server.create("energystudies", study(cycles=1, values=1, execution=NO_GAPS))
        deaf_for(world, delays)
        await world.until(lambda: bool(world.machines.measuring), step_s=0.05)
        await asyncio.sleep(29)
        world.server.delete("energyexperiments", "bench", world.experiment()["metadata"]["name"])
        await world.until_over()
        status = world.experiment()["status"]
        assert len(world.machines.measured) == 1
        assert status["result"]["adopted"]
        assert status["result"]["uri"].endswith("/a1/result.json")
        assert rows(world.experiment())[0] == ("Lost", "ExperimentDeleted")
        assert world.violations == []

    play(scenario)


def test_a_running_child_without_budget_is_over_when_it_is_deleted() -> None:
    """No retry of infrastructure: finished as ExperimentDeleted, and so the study ends."""

    async def scenario() -> None:
        world = World()
        body = study(cycles=1, values=2, execution=NO_GAPS, retry={"infrastructure": 0})
        world.server.create("energystudies", body)
        world.operator()
        await world.until(lambda: bool(world.machines.measuring))
        await asyncio.sleep(3)
        world.server.delete("energyexperiments", "bench", world.experiment()["metadata"]["name"])
        await world.until_over()
        assert world.reason(world.experiment()) == "ExperimentDeleted"
        assert world.study()["status"]["indexes"] == {"completed": "1", "failed": "0"}
        assert world.violations == []

    play(scenario)


def test_an_invalid_result_is_never_adopted_however_many_attempts_follow_it() -> None:
    """The list keeps ten attempts; which stored results may be taken is remembered apart."""

    async def scenario() -> None:
        def script(_experiment: str, attempt: int) -> Life:
            if attempt == 1:
                return Life(verdict="invalid", seconds=1)
            return Life(seconds=1) if attempt == 13 else Life(20 if attempt % 2 else 16, seconds=1)

        world = World(script)
        retry = {"invalid": 1, "infrastructure": 10, "measurement": 10}
        world.server.create("energystudies", study(cycles=1, values=1, retry=retry))
        world.operator()
        await world.until_over(limit_s=9000)
        status = world.experiment()["status"]
        assert [a["attempt"] for a in status["attempts"]] == list(range(4, 14))
        assert not status["result"]["adopted"]
        assert status["result"]["uri"].endswith("/a13/result.json")
        assert status["summary"]["verdict"] == "valid"

    play(scenario)


def test_an_invalid_run_deleted_by_hand_measures_when_it_goes_again() -> None:
    """Its experiment is new and has no attempts; its old result in the store is still not to be believed."""

    async def scenario() -> None:
        world = World(lambda _experiment, attempt: Life(verdict="invalid" if attempt == 1 else "valid", seconds=2))
        world.server.create("energystudies", study(cycles=1, values=1))
        world.operator()
        await world.until_over()
        await asyncio.sleep(2)
        world.server.delete("energyexperiments", "bench", world.experiment()["metadata"]["name"])
        await asyncio.sleep(60)
        assert world.study()["status"]["counts"]["invalid"] == 1
        world.spec({"retryEpoch": 1})
        await asyncio.sleep(3)
        await world.until_over()
        status = world.experiment()["status"]
        assert len(world.machines.measured) == 2
        assert status["result"]["uri"].endswith("/a2/result.json")
        assert not status["result"]["adopted"]
        assert world.study()["status"]["counts"]["invalid"] == 0

    play(scenario)


def test_a_child_that_is_being_deleted_holds_up_no_other() -> None:
    """A finalizer keeps it for long: it is not written to, and what else goes again goes."""

    async def scenario() -> None:
        world = World(lambda _experiment, attempt: Life(10 if attempt == 1 else 0, seconds=2))
        world.server.create("energystudies", study(cycles=1, values=3, execution=NO_GAPS))
        world.operator()
        await world.until_over()
        await asyncio.sleep(3)
        name = world.experiment()["metadata"]["name"]
        leaving = {"metadata": {"deletionTimestamp": "2026-03-04T05:08:00Z"}}
        world.server.edit("energyexperiments", "bench", name, leaving)
        await asyncio.sleep(2)
        since = len(world.writes)
        world.spec({"retryEpoch": 1})
        await asyncio.sleep(100)
        assert world.study()["status"]["indexes"] == {"completed": "1-2", "failed": "0"}
        assert name not in world.status_patches(since)
        reads = world.server.reads
        await asyncio.sleep(100)
        assert world.server.reads - reads < 60

    play(scenario)
