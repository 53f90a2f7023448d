"""No measurement is lost or made twice, whatever happens to an operator at any of its writes (faults.md 1, 3, 4, 8, 13).

A study of six runs is played once without faults; then again for every one of its writes, with the operator killed
before it or after it, or with the API server's answer spoilt. Then O1 to O5, O7 and O9 must hold.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from fakes import virtual_time
from fakes.api_server import Object
from fakes.world import FaultKind, World, end_state, play, stored_once, study

WRITES = 71  # of the reference run; a test below keeps this true
pytestmark = pytest.mark.slow
STRIDE = 6  # faults that leave the operator alive are planted at every sixth write of one run, at each offset
SPOILT: tuple[FaultKind, ...] = ("conflict", "500 before", "500 after", "503", "429", "timeout after commit", "reset")


@pytest.fixture(scope="module")
def reference() -> Object:
    """How the study ends when nothing goes wrong."""

    async def lived() -> Object:
        world = await play()
        assert len(world.writes) == WRITES
        _sound(world)
        return end_state(world)

    return virtual_time.run(lived())


def _sound(world: World) -> None:
    """O1 to O4 and O9."""
    assert world.violations == []
    assert stored_once(world) == []
    assert len(world.machines.measured) == 6
    for obj in [world.study(), *world.children()]:
        assert obj["status"]["observedGeneration"] == obj["metadata"]["generation"]


def _played(faults: Mapping[int, FaultKind]) -> tuple[World, Object, list[Any]]:
    async def lived() -> tuple[World, Object, list[Any]]:
        world = await play(faults=faults)
        return world, end_state(world), await world.writes_while_idle(150)

    return virtual_time.run(lived())


def test_a_run_without_faults_is_the_reference(reference: Object) -> None:
    """Six runs are completed, each measured once; nothing is written once the study is over."""
    assert reference["counts"]["completed"] == reference["counts"]["total"] == 6
    _, state, idle = _played({})
    assert state == reference
    assert idle == []


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("write", range(1, WRITES + 1))
def test_an_operator_killed_at_a_write_is_continued_by_the_next(reference: Object, write: int, moment: str) -> None:
    """Whatever was written when it died, the next operator ends the study as if nothing had happened."""
    kind: FaultKind = "crash before" if moment == "before" else "crash after"
    world, state, idle = _played({write: kind})
    assert world.crashes == 1
    _sound(world)
    assert state == reference
    assert idle == []


@pytest.mark.parametrize("offset", range(1, STRIDE + 1))
@pytest.mark.parametrize("kind", SPOILT)
def test_a_spoilt_answer_to_any_write_changes_nothing_in_the_end(
    reference: Object, kind: FaultKind, offset: int
) -> None:
    """Refused, lost, or carried out without an answer: the operator decides again and ends in the same state."""
    world, state, idle = _played(dict.fromkeys(range(offset, 2 * WRITES, STRIDE), kind))
    _sound(world)
    assert state == reference
    assert idle == []


@pytest.mark.parametrize("kind", ["500 before", "timeout after commit", "conflict"])
def test_most_writes_going_wrong_only_slows_a_study(reference: Object, kind: FaultKind) -> None:
    """Two of three writes spoilt: still the same end."""
    world, state, _ = _played({n: kind for n in range(1, 400) if n % 3})
    _sound(world)
    assert state == reference


def test_an_operator_that_dies_again_and_again_gets_there(reference: Object) -> None:
    """A kill at every fifth write, before and after in turn."""
    crashes: dict[int, FaultKind] = {n: "crash after" if n % 2 else "crash before" for n in range(5, 200, 5)}
    world, state, _ = _played(crashes)
    assert world.crashes > 10
    _sound(world)
    assert state == reference


@pytest.mark.parametrize(("lag", "latency"), [(0.05, 0.013), (3.0, 0.01), (8.0, 0.2)], ids=["quick", "stale", "slow"])
@pytest.mark.parametrize("write", range(0, WRITES, 9))
def test_two_operators_at_once_do_no_harm(reference: Object, lag: float, latency: float, write: int) -> None:
    """Without the Lease, the second one hearing late, the first one killed on the way: one Job per attempt."""

    async def lived() -> World:
        world = World(faults={write: "crash after"})
        world.server.create("energystudies", study())
        world.operator()
        world.operator(lag_s=lag, latency_s=latency)
        await world.until_over()
        await asyncio.sleep(30)
        _sound(world)
        assert end_state(world) == reference
        assert await world.writes_while_idle(150) == []
        return world

    virtual_time.run(lived())


LOST: dict[str, Any] = {
    "all of the Jobs": lambda plural, _change, _obj: plural == "jobs",
    "all of the pods": lambda plural, _change, _obj: plural == "pods",
    "all of the experiments": lambda plural, _change, _obj: plural == "energyexperiments",
    "all of the study": lambda plural, _change, _obj: plural == "energystudies",
    "every deletion": lambda _plural, change, _obj: change == "DELETED",
    "everything": lambda *_: True,
}


@pytest.mark.parametrize("lost", LOST.values(), ids=LOST)
def test_lost_events_only_delay_what_the_next_comparison_finds(reference: Object, lost: Any) -> None:
    """Watches that tell nothing: each wait is at most one comparison longer."""

    async def lived() -> None:
        world = World()
        world.server.create("energystudies", study())
        world.operator(lost=lost)
        await world.until_over(limit_s=200 + 6 * 4 * 66)
        await asyncio.sleep(80)
        _sound(world)
        assert end_state(world) == reference

    virtual_time.run(lived())
