"""The pause on a node before whatever goes again, also before the plan's first run, which has none at first."""

import asyncio
from collections.abc import Callable, Coroutine
from itertools import pairwise
from typing import Any

import pytest

from fakes import virtual_time
from fakes.machines import Life, Measurement, Script
from fakes.world import World, study

GAP_S = 100
GAPS = {"configGapSeconds": GAP_S, "cycleGapSeconds": GAP_S, "cycleOrder": "sequential"}


def play(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario in virtual time."""
    virtual_time.run(scenario())


def first_fails(code: int) -> Script:
    """The first attempt of the plan's first run fails."""
    return lambda name, attempt: Life(code, seconds=5) if "-00000-" in name and attempt == 1 else Life(seconds=30)


async def begun(script: Script) -> World:
    """A study of three runs on one node."""
    world = World(script)
    world.server.create("energystudies", study(cycles=1, values=3, execution=GAPS))
    world.operator()
    return world


def in_order(world: World) -> list[Measurement]:
    """All measurements by their start."""
    return sorted(world.machines.measured, key=lambda m: m.start)


@pytest.mark.parametrize("after", [1, 2, 3], ids=["at once", "in the middle", "at the end"])
def test_the_first_run_waits_for_its_pause_when_retry_epoch_sends_it_again(after: int) -> None:
    """It measures on a node that has just measured, so the pause between configurations lies before it, too."""

    async def scenario() -> None:
        world = await begun(first_fails(16))
        await world.until(lambda: len(world.machines.measured) == after, step_s=0.05)
        await asyncio.sleep(0.5)
        world.spec({"retryEpoch": 1})
        await asyncio.sleep(3)
        await world.until_over()
        found = in_order(world)
        assert sum("/00000-" in m.run for m in found) == 2
        assert all((b.start - a.end).total_seconds() >= GAP_S for a, b in pairwise(found))
        assert world.study()["status"]["counts"]["completed"] == 3

    play(scenario)


def test_the_first_run_waits_for_its_pause_when_it_is_retried_on_the_same_node() -> None:
    """The budget's own pause of ten seconds is shorter than the node's."""

    async def scenario() -> None:
        world = await begun(first_fails(20))
        await world.until_over()
        found = in_order(world)
        assert sum(m.attempt == 2 for m in found) == 1
        assert all((b.start - a.end).total_seconds() >= GAP_S for a, b in pairwise(found))

    play(scenario)
