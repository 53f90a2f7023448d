"""The breaker at parallelism: failures of one wave are not a probe, and what was only remembered has no say."""

import asyncio
from collections.abc import Callable, Coroutine
from datetime import datetime
from typing import Any

import pytest

from fakes import virtual_time
from fakes.machines import Life
from fakes.world import World, said, study

NO_GAPS = {"configGapSeconds": 0, "cycleGapSeconds": 0, "cycleOrder": "sequential"}
NODES = ("a", "b", "c", "d")


def play(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario in virtual time."""
    virtual_time.run(scenario())


def index(name: str) -> int:
    """Index of an experiment by its name."""
    return int(name.split("-")[1])


async def begun(script: Callable[[str, int], Life], *, limit: int = 3, values: int = 12, parallelism: int = 4) -> World:
    """A cluster of four nodes with a study of so many runs."""
    world = World(script, nodes=NODES)
    limits = {"maxConsecutiveFailures": limit, **NO_GAPS}
    world.server.create("energystudies", study(cycles=1, values=values, parallelism=parallelism, execution=limits))
    world.operator()
    return world


def starts(world: World) -> dict[int, datetime]:
    """When each run that was started began."""
    found = {index(e["metadata"]["name"]): e["status"].get("startTime") for e in world.children()}
    return {i: datetime.fromisoformat(t) for i, t in found.items() if t}


@pytest.mark.parametrize(("parallelism", "failing"), [(1, 3), (4, 4)])
def test_failures_of_one_wave_do_not_stand_for_the_probe(parallelism: int, failing: int) -> None:
    """Four at once fail and the limit is three: the study pauses, tries one more, and goes on when that is well."""

    async def scenario() -> None:
        world = await begun(
            lambda name, _: Life(16 if index(name) < failing else 0, seconds=5), parallelism=parallelism
        )
        await world.until_over()
        status = world.study()["status"]
        ends = [datetime.fromisoformat(world.experiment(i)["status"]["completionTime"]) for i in range(failing)]
        assert (starts(world)[failing] - max(ends)).total_seconds() >= 60
        assert status["indexes"] == {"failed": f"0-{failing - 1}", "completed": f"{failing}-11"}
        assert said(status)["Finished"] == ("True", "RunsFailed")

    play(scenario)


def test_after_a_wave_of_failures_one_probe_fails_and_the_rest_is_cancelled() -> None:
    """Exactly one run is tried after the pause, alone, although four may go at once."""

    async def scenario() -> None:
        world = await begun(lambda *_: Life(16, seconds=5))
        await world.until_over()
        status = world.study()["status"]
        assert status["indexes"] == {"failed": "0-4", "cancelled": "5-11"}
        assert said(status)["Finished"] == ("True", "CircuitBreaker")
        last = max(datetime.fromisoformat(world.experiment(i)["status"]["completionTime"]) for i in range(4))
        assert (starts(world)[4] - last).total_seconds() >= 60

    play(scenario)


@pytest.mark.parametrize("well", range(4))
def test_what_ended_while_no_operator_looked_is_in_the_order_of_its_ends(well: int) -> None:
    """One run of four ended well, then three failed: three in a row, in whatever order a new operator looks at them."""

    async def scenario() -> None:
        world = await begun(
            lambda name, _: Life(16, seconds=30) if index(name) < 4 and index(name) != well else Life(seconds=20)
        )
        await world.until(lambda: len(world.machines.measuring) == 4)
        world.operators[0].die()
        world.spec({"suspend": True})  # so that nothing starts between two looks
        await asyncio.sleep(60)
        world.operator()
        await world.until(lambda: all(e["status"]["finished"] for e in world.children()[:4]))
        world.spec({"suspend": False})
        await world.until_over()
        seen = max(datetime.fromisoformat(world.experiment(i)["status"]["completionTime"]) for i in range(4))
        assert (starts(world)[4] - seen).total_seconds() >= 60
        assert world.study()["status"]["counts"]["completed"] == 9

    play(scenario)


def test_failures_restored_after_a_deletion_by_hand_do_not_trip_the_breaker() -> None:
    """Every other run failed; made again at one moment, these ends are not four in a row."""

    async def scenario() -> None:
        bad = (0, 2, 4, 6)
        world = await begun(
            lambda name, _: Life(16, seconds=2) if index(name) in bad else Life(seconds=60), values=16, parallelism=1
        )
        await world.until(lambda: (world.study()["status"].get("counts") or {}).get("completed", 0) >= 4)
        await asyncio.sleep(5)
        for i in bad:
            name = world.experiment(i)["metadata"]["name"]
            for job in [j["metadata"]["name"] for j in world.server.all("jobs")]:
                if job.startswith(name):
                    world.server.remove("jobs", ("bench", job))
        await asyncio.sleep(10)
        for i in bad:
            world.server.delete("energyexperiments", "bench", world.experiment(i)["metadata"]["name"])
            await world.until(lambda: len(world.children()) == 16, 30)
        await world.until_over(limit_s=20000)
        status = world.study()["status"]
        assert (status["counts"]["failed"], status["counts"]["completed"]) == (4, 12)
        assert said(status)["Finished"] == ("True", "RunsFailed")

    play(scenario)
