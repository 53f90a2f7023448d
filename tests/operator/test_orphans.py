"""Objects without the owner or label that they should have: nothing is started for them, and nothing is written in a loop."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from fakes import virtual_time
from fakes.api_server import Object, copied
from fakes.machines import Life, Script, always_well
from fakes.world import World, said, study
from llem_operator.api import ApiError

NO_GAPS = {"configGapSeconds": 0, "cycleGapSeconds": 0, "cycleOrder": "sequential"}
NO_OWNER = {"metadata": {"ownerReferences": None}}


def play(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario in virtual time."""
    virtual_time.run(scenario())


async def begun(script: Script = always_well, *, values: int = 4, **spec: Any) -> World:
    """A study of some runs whose first one measures."""
    world = World(script, nodes=("a", "b", "c", "d", "e"))
    world.server.create("energystudies", study(cycles=1, values=values, execution=NO_GAPS, **spec))
    world.operator()
    await world.until(lambda: bool(world.machines.measuring))
    await asyncio.sleep(3)
    return world


def orphan_all(world: World) -> None:
    """What `kubectl delete energystudy --cascade=orphan` does."""
    for child in world.children():
        world.server.edit("energyexperiments", "bench", child["metadata"]["name"], NO_OWNER)
    gone = world.server.objects["energystudies"].pop(("bench", "sweep"))
    service = world.operators[0].service
    assert service is not None
    service.heard("study", "DELETED", copied(gone))


def ends(world: World) -> list[str]:
    """Reason of each child's end."""
    return [world.reason(c) for c in world.children()]


def message(obj: Object, kind: str = "Finished") -> str:
    """Message of a condition."""
    return next(str(c["message"]) for c in obj["status"]["conditions"] if c["type"] == kind)


def test_orphans_of_a_deleted_study_start_nothing() -> None:
    """What measures goes on to its result; what waited is Cancelled."""

    async def scenario() -> None:
        world = await begun()
        orphan_all(world)
        await asyncio.sleep(700)
        assert ends(world) == ["ResultStored", "Cancelled", "Cancelled", "Cancelled"]
        assert message(world.experiment(1)) == "its study sweep is gone"
        assert len(world.machines.measured) == len(world.server.all("jobs")) == 1
        assert world.violations == []
        assert await world.writes_while_idle() == []

    play(scenario)


def test_an_orphan_that_fails_is_not_tried_again() -> None:
    """Its budget allows a retry, but the study's template, turn and pause are gone."""

    async def scenario() -> None:
        world = await begun(lambda *_: Life(20))
        orphan_all(world)
        await asyncio.sleep(700)
        assert ends(world) == ["Cancelled"] * 4
        assert len(world.machines.measured) == 1
        assert await world.writes_while_idle() == []

    play(scenario)


def test_an_orphan_released_without_a_job_gets_none() -> None:
    """The API server took no Job while the study was there; afterwards it would be one without the study's template."""

    async def scenario() -> None:
        world = World()
        no = ApiError(503, "ServiceUnavailable", "not now")
        world.refuse = lambda method, path, _body: no if method == "POST" and path.endswith("/jobs") else None
        world.server.create("energystudies", study(cycles=1, values=2, execution=NO_GAPS))
        world.operator()
        await asyncio.sleep(20)
        orphan_all(world)
        await asyncio.sleep(5)
        world.refuse = lambda *_: None
        await asyncio.sleep(700)
        assert ends(world) == ["Cancelled", "Cancelled"]
        assert world.server.all("jobs") == []
        assert world.machines.measured == []

    play(scenario)


def test_a_removed_owner_reference_is_said_on_both_sides_and_starts_nothing() -> None:
    """NameTaken on the study and on the experiment, no write loop; deleted, the experiment is made again and runs."""

    async def scenario() -> None:
        world = await begun(values=3)
        name = world.experiment(2)["metadata"]["name"]
        world.server.edit("energyexperiments", "bench", name, NO_OWNER)
        await asyncio.sleep(200)
        assert world.reason(world.experiment(2)) == "NameTaken"
        assert world.reason(world.study()) == "NameTaken"
        assert name in message(world.study())
        assert world.study()["status"]["finished"] is False
        assert len(world.machines.measured) == 2
        since = len(world.writes)
        await asyncio.sleep(700)
        assert world.status_patches(since) == []
        tries = world.writes[since:]
        assert {method for _, method, _ in tries} <= {"POST"}
        assert len(tries) <= 70  # every 15 s, and at every comparison
        assert len(world.server.all("jobs")) == 2
        world.server.delete("energyexperiments", "bench", name)
        await world.until_over()
        assert said(world.study()["status"])["Succeeded"] == ("True", "Completed")
        assert len(world.machines.measured) == 3
        assert world.violations == []

    play(scenario)


@pytest.mark.parametrize("labels", [{}, {"llem.dev/experiment": ""}], ids=["no label", "empty label"])
@pytest.mark.parametrize("kind", ["job", "pod"])
def test_what_carries_our_mark_and_names_no_experiment_is_ignored(
    kind: str, labels: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    """No key without a name comes of it, by watch, by comparison or by its deletion."""

    async def scenario() -> None:
        world = await begun()
        metadata = {
            "name": "x", "namespace": "bench", "uid": "u", "resourceVersion": "1",
            "labels": {"llem.dev/measuring": "true", **labels},
        }  # fmt: skip
        alien = {"metadata": metadata, "spec": {"template": {"spec": {}}}, "status": {}}
        service = world.operators[0].service
        assert service is not None
        service.heard(kind, "ADDED", alien)
        await asyncio.sleep(30)
        service.heard(kind, "DELETED", alien)
        await asyncio.sleep(30)
        await world.until_over()
        world.server.objects[f"{kind}s"]["bench", "x"] = alien
        await asyncio.sleep(700)
        del world.server.objects[f"{kind}s"]["bench", "x"]
        await asyncio.sleep(700)
        assert world.study()["status"]["finished"]

    play(scenario)
    assert [r.message for r in caplog.records if r.levelno >= logging.ERROR] == []
