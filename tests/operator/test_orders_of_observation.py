"""One end of an attempt has one outcome, in whatever order and however early the operator sees its parts."""

import asyncio
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any

import pytest

from fakes import api_server, virtual_time
from fakes.machines import Life
from fakes.workloads import condition, ended, gone, job, pod
from fakes.world import Connection, Operator, World, study
from llem_operator.attempts import Ended, progress
from llem_operator.cache import Shelf, lean_pod
from llem_operator.cluster import Cluster
from llem_operator.timestamps import whole_seconds


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
        (doomed,) = world.server.all("pods")
        world.server.delete("pods", "bench", doomed["metadata"]["name"])
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
        (doomed,) = world.server.all("pods")
        world.server.delete("pods", "bench", doomed["metadata"]["name"])
        began = virtual_time.now()
        await world.until_over(limit_s=20000)
        deadline_s = doomed["spec"]["activeDeadlineSeconds"]
        assert outcomes(world) == [("Lost", "PodDeleted")]
        assert virtual_time.now() - began < timedelta(seconds=deadline_s + 60 + 120 + 600 + 60)

    play(scenario)


def test_a_container_that_a_reboot_took_is_lost_with_its_node() -> None:
    """The kubelet makes up its 137; had the node stayed away, the attempt would be lost just so."""
    found = progress(job(), gone(ended(137, reason="ContainerStatusUnknown")), [])
    assert isinstance(found, Ended)
    assert (found.outcome, found.reason, found.budget) == ("Lost", "NodeLost", "infrastructure")


@pytest.mark.parametrize("infrastructure", [0, 3])
def test_a_stored_result_whose_pod_went_unread_costs_no_budget(infrastructure: int) -> None:
    """The runner ended well while no operator looked, and its pod was removed: the next attempt adopts the result."""

    async def scenario() -> None:
        world = World(lambda *_: Life(seconds=20))
        retry = {"infrastructure": infrastructure}
        world.server.create("energystudies", study(cycles=1, values=1, retry=retry))
        operator = world.operator()
        await world.until(lambda: bool(world.machines.measuring))
        await asyncio.sleep(3)
        operator.die()
        await world.until(lambda: bool(world.machines.store))
        await asyncio.sleep(3)
        (read_by_nobody,) = world.server.all("pods")
        world.server.remove("pods", ("bench", read_by_nobody["metadata"]["name"]))
        world.operator()
        await world.until_over()
        assert outcomes(world) == [("Lost", "PodDeleted"), ("Completed", "ResultStored")]
        assert not world.experiment()["status"].get("retriesUsed")
        assert world.reason(world.study()) == "Completed"
        assert len(world.machines.measured) == 1

    play(scenario)


def test_pods_that_always_go_unread_end_by_the_budget() -> None:
    """Free of charge is only the first; something that removes every pod at its end must not keep a study going."""

    async def scenario() -> None:
        world = World(lambda *_: Life(seconds=20))
        world.server.create("energystudies", study(cycles=1, values=1, retry={"infrastructure": 1}))

        def over(plural: str, _change: str, obj: dict[str, Any]) -> bool:
            return plural == "pods" and obj["status"].get("phase") == "Succeeded"

        def remove(plural: str, change: str, obj: dict[str, Any]) -> None:
            if over(plural, change, obj):  # as soon as its Job has counted it
                virtual_time.later(0.41, world.server.remove, "pods", ("bench", obj["metadata"]["name"]))

        world.server.watch(remove)
        world.operator(lost=over)
        await world.until_over()
        assert outcomes(world) == [("Lost", "PodDeleted")] * 3
        assert len(world.machines.measured) == 1

    play(scenario)


def test_a_deleted_pod_does_not_come_back_with_an_older_list() -> None:
    """A list that was answered before the deletion arrives after its event; a later state of that name is another's."""
    shelf, seen = Shelf(), lean_pod(pod(resourceVersion="8"))
    assert shelf.put(seen)
    assert shelf.bury(pod(resourceVersion="12"))
    assert not shelf.put(seen)
    assert not shelf.objects
    assert shelf.put(lean_pod(pod(resourceVersion="14")))  # its labels had gone and are there again
    assert not shelf.bury(pod("another"))
    assert shelf.put(lean_pod(pod("another", uid="new")))


@pytest.mark.parametrize("collected_s", [0.03, 0.45, 0.6])
def test_the_next_attempt_does_not_wait_for_a_pod_that_is_gone(
    collected_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Job is deleted by hand, and its pod goes while the operator's own list is on its way."""
    monkeypatch.setattr(api_server, "COLLECTED_AFTER_S", collected_s)

    async def scenario() -> None:
        world = World(lambda _, attempt: Life(unschedulable="no node") if attempt == 1 else Life())
        world.machines.pod_gone_after_s = 0.02
        world.server.create("energystudies", study(cycles=1, values=1))
        world.operator(lag_s=0.02, latency_s=0.1)
        await world.until(lambda: bool(world.server.all("pods")))
        await world.until(lambda: world.reason(world.experiment()) == "Unschedulable")
        (first,) = world.server.all("jobs")
        await asyncio.sleep(5)
        world.server.delete("jobs", "bench", first["metadata"]["name"])
        began = virtual_time.seconds()
        await world.until(lambda: any(j["metadata"]["name"].endswith("-a2") for j in world.server.all("jobs")))
        assert virtual_time.seconds() - began < 15  # ten of them are the pause before a retry

    play(scenario)


def stopped(world: World, code: int) -> dict[str, Any]:
    """The only pod, its container just ended by a signal, its phase not yet told: the kubelet's first patch."""
    (found,) = world.server.all("pods")
    state = ended(code)
    state["terminated"]["finishedAt"] = whole_seconds(virtual_time.now())
    container = {"name": "runner", "state": state, "imageID": "sha256:feed"}
    world.server.edit(
        "pods", "bench", found["metadata"]["name"], {"status": {"containerStatuses": [container]}}, status=True
    )
    return found


DEADLINE = {"reason": "DeadlineExceeded", "message": "Pod was active on the node longer than the specified deadline"}
EVICTED = {"reason": "Evicted", "conditions": [condition("DisruptionTarget", "True", "TerminationByKubelet")]}


@pytest.mark.parametrize("code", [19, 137, 143])
@pytest.mark.parametrize(
    ("last_word", "reason"), [(DEADLINE, "TimedOut"), (EVICTED, "Disrupted")], ids=["deadline", "eviction"]
)
@pytest.mark.parametrize("after_s", [0.0, 3.0], ids=["at once", "a moment later"])
def test_why_a_container_was_stopped_may_be_told_after_its_code(
    code: int, last_word: dict[str, Any], reason: str, after_s: float
) -> None:
    """The kubelet withholds phase, reason and disruption while a container might run; they decide, not the code."""

    async def scenario() -> None:
        world = World(lambda *_: Life(seconds=1000))
        world.server.create("energystudies", study(cycles=1, values=1, retry={"infrastructure": 0}))
        world.operator()
        await world.until(lambda: bool(world.machines.measuring))
        await asyncio.sleep(20)
        name = stopped(world, code)["metadata"]["name"]
        await asyncio.sleep(after_s)
        world.server.edit("pods", "bench", name, {"status": {"phase": "Failed", **last_word}}, status=True)
        told = virtual_time.seconds()
        await world.until_over()
        assert virtual_time.seconds() - told < 3
        assert outcomes(world) == [("Failed", reason)]

    play(scenario)


def test_a_kubelet_that_never_says_the_last_phase_is_not_waited_for() -> None:
    """After half a minute the code is all that there is."""

    async def scenario() -> None:
        world = World(lambda *_: Life(seconds=1000))
        world.server.create("energystudies", study(cycles=1, values=1))
        world.operator()
        await world.until(lambda: bool(world.machines.measuring))
        await asyncio.sleep(20)
        stopped(world, 16)
        began = virtual_time.seconds()
        await world.until_over()
        assert 29 <= virtual_time.seconds() - began < 33
        assert outcomes(world) == [("Failed", "EngineCrashed")]

    play(scenario)


def test_a_job_that_kueue_takes_back_between_two_lists_is_read_again() -> None:
    """Jobs are listed before pods; the pod's code comes from a wish that the Job's first reading does not show."""

    async def scenario() -> None:
        world = World(lambda *_: Life(seconds=1000))
        world.server.create("energystudies", study(cycles=1, values=1))
        operator = world.operator()
        await world.until(lambda: bool(world.machines.measuring))
        operator.die()
        (a_job,) = world.server.all("jobs")
        name = a_job["metadata"]["name"]

        def taken_back(_method: str, path: str, _body: Any) -> None:
            if path.endswith("/pods"):
                world.server.edit("jobs", "bench", name, {"spec": {"suspend": True}})
                stopped(world, 19)

        world.refuse = taken_back
        cluster = Cluster(Connection(world, Operator(world)))
        jobs, pods = await cluster.attempts("bench", world.experiment()["metadata"]["name"], name)
        found = progress(jobs[0], pods[0], [])
        assert isinstance(found, Ended)
        assert (found.outcome, found.budget) == ("Preempted", "none")

    play(scenario)
