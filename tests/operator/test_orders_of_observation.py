"""One end of an attempt has one outcome, in whatever order and however early the operator sees its parts."""

import asyncio
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any

import pytest

from fakes import virtual_time
from fakes.machines import Life
from fakes.workloads import ended, gone, job
from fakes.world import World, study
from llem_operator.attempts import Ended, progress


def play(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario in virtual time."""
    virtual_time.run(scenario())


def outcomes(world: World) -> list[tuple[str, str]]:
    """Outcome and reason of each attempt of the only experiment."""
    return [(a["outcome"], a["reason"]) for a in world.experiment()["status"]["attempts"]]


@pytest.mark.parametrize("lag_s", [0.05, 0.6], ids=["before its Job has ended", "after"])
def test_a_run_whose_pod_goes_after_the_pending_deadline_is_lost_and_goes_again(lag_s: float) -> None:
    """The Job says a moment after its pod has gone how that ended; what has run does not wait for its start again."""

    async def scenario() -> None:
        world = World(lambda *_: Life(seconds=100))
        short = {"deadlines": {"pendingSeconds": 30}}
        world.server.create("energystudies", study(cycles=1, values=1, template=short))
        world.operator(lag_s=lag_s)
        await world.until(lambda: bool(world.machines.measuring))
        await asyncio.sleep(40)
        (pod,) = world.server.all("pods")
        world.server.delete("pods", "bench", pod["metadata"]["name"])
        await world.until_over()
        assert outcomes(world) == [("Lost", "PodDeleted"), ("Completed", "ResultStored")]

    play(scenario)


def test_a_job_that_never_says_how_its_pod_ended_is_given_up() -> None:
    """Nothing is waited for without an end: a pod that had its deadline, grace and margins is over."""

    async def scenario() -> None:
        world = World(lambda *_: Life(seconds=100))
        world.server.create("energystudies", study(cycles=1, values=1, retry={"infrastructure": 0}))
        world.operator()
        await world.until(lambda: bool(world.machines.measuring))
        world.machines._end_job_without_pod = lambda _pod: None  # type: ignore[method-assign]  # no Job controller
        (pod,) = world.server.all("pods")
        world.server.delete("pods", "bench", pod["metadata"]["name"])
        began = virtual_time.now()
        await world.until_over(limit_s=20000)
        deadline_s = pod["spec"]["activeDeadlineSeconds"]
        assert outcomes(world) == [("Lost", "PodDeleted")]
        assert virtual_time.now() - began < timedelta(seconds=deadline_s + 60 + 120 + 600 + 60)

    play(scenario)


def test_a_container_that_a_reboot_took_is_lost_with_its_node() -> None:
    """The kubelet makes up its 137; had the node stayed away, the attempt would be lost just so."""
    found = progress(job(), gone(ended(137, reason="ContainerStatusUnknown")), [])
    assert isinstance(found, Ended)
    assert (found.outcome, found.reason, found.budget) == ("Lost", "NodeLost", "infrastructure")
