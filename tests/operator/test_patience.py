"""An API server that asks for patience gets it, a leader whose Lease is another's ends, a wish taken back kills nothing."""

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from fakes import virtual_time
from fakes.world import Connection, Operator, World, study
from llem_operator.api import Api, ApiError, RateLimit
from llem_operator.cluster import Cluster
from llem_operator.lease import RETRY_S, Leadership, LeaseLostError
from llem_operator.metrics import Metrics
from llem_operator.queue import KeyedQueue
from llem_operator.service import Service


def play(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario in virtual time."""
    virtual_time.run(scenario())


class Answer:
    """What a connection reads from the wire."""

    def __init__(self, status: int, retry_after: str | None = None) -> None:
        self.status, self._retry_after = status, retry_after

    async def read(self) -> bytes:
        """The body."""
        return json.dumps({} if self.status == 200 else {"message": "too many"}).encode()

    def getheader(self, _name: str) -> str | None:
        """Retry-After."""
        return self._retry_after


class Wire:
    """In place of the client library: answers in turn and notes when it was asked."""

    def __init__(self, answers: Iterator[Answer]) -> None:
        self.rest_client, self._answers = self, answers
        self.asked: list[float] = []

    async def param_serialize(self, method: str, path: str, **_: Any) -> tuple[str, str, dict[str, str], None, None]:
        """A request as the library lays it out."""
        return method, path, {}, None, None

    async def request(self, *_: Any, **__: Any) -> Answer:
        """Send it."""
        self.asked.append(virtual_time.seconds())
        return next(self._answers)


def connected(*answers: Answer) -> tuple[Api, Wire]:
    """A connection that gets these answers, then good ones."""

    def each() -> Iterator[Answer]:
        yield from answers
        while True:
            yield Answer(200)

    api, wire = Api(RateLimit(1000, 1000, virtual_time.seconds)), Wire(each())
    api._client = wire  # type: ignore[assignment]  # the library is not what is tested
    return api, wire


@pytest.mark.parametrize(("asked_s", "kept_s"), [(7, 7), (3600, 60)], ids=["as asked", "a minute at most"])
def test_retry_after_holds_back_every_request(asked_s: int, kept_s: int) -> None:
    """429 with seven seconds: nobody asks within them, whoever was told."""

    async def scenario() -> None:
        api, wire = connected(Answer(429, str(asked_s)))
        with pytest.raises(ApiError) as told:
            await api.request("GET", "/a")
        assert told.value.retry_after_s == asked_s
        await asyncio.gather(*(api.request("GET", f"/{n}") for n in range(5)))
        assert wire.asked[0] == 0
        assert all(at >= kept_s for at in wire.asked[1:])
        assert len(wire.asked) == 6
        assert virtual_time.seconds() < kept_s + 1

    play(scenario)


def test_a_refusal_without_a_word_on_patience_holds_back_nobody() -> None:
    """404 and 503 are one request's own."""

    async def scenario() -> None:
        api, wire = connected(Answer(404), Answer(503))
        for _ in range(2):
            with pytest.raises(ApiError):
                await api.request("GET", "/a")
        await api.request("GET", "/b")
        assert wire.asked == [0, 0, 0]

    play(scenario)


def test_a_failed_key_keeps_its_pause_when_an_event_adds_it() -> None:
    """What failed may have made the event; the pause doubles none the less, and ends."""

    async def scenario() -> None:
        queue: KeyedQueue[str] = KeyedQueue(lambda key: key)
        queue.add("a")
        for _ in range(4):
            key = await queue.get()
            pause = queue.failed(key)
            queue.add(key)  # its own write is heard while it is still looked at
            queue.done(key)
            queue.add(key)
            began = virtual_time.seconds()
            assert len(queue) == 0
            assert await asyncio.wait_for(queue.get(), 100) == key
            assert virtual_time.seconds() - began == pytest.approx(pause)
            queue.done(key)
            queue.add(key)
        key = await queue.get()
        queue.succeeded(key)
        queue.done(key)
        queue.add(key)
        assert len(queue) == 1

    play(scenario)


@pytest.mark.parametrize("status", [0, 429, 500, 503])
def test_the_first_comparison_waits_for_the_api_server(status: int) -> None:
    """An operator that starts beside an API server that is busy does not crash; it is ready when it has been answered."""

    async def scenario() -> None:
        world = World()
        world.server.create("energystudies", study(cycles=1, values=1))
        service = Service(Cluster(Connection(world, Operator(world))), world.settings, Metrics(), now=virtual_time.now)
        no = ApiError(status, "TooManyRequests", "not now", 5.0)
        world.refuse = lambda *_: no if virtual_time.seconds() < 60 else None
        comparing = asyncio.create_task(service.first_comparison())
        await asyncio.sleep(59)
        assert not comparing.done()
        assert not service.synced
        await asyncio.sleep(10)
        assert comparing.done()
        assert service.synced
        assert len(service.queue) == 1

    play(scenario)


def test_a_leader_whose_lease_is_another_operators_ends_at_once() -> None:
    """At its next look, not when its own patience has run out."""

    async def scenario() -> None:
        world = World()
        metadata = {"name": "llem-operator", "namespace": "system"}
        world.server.create("leases", {"kind": "Lease", "metadata": metadata, "spec": {}})
        cluster = Cluster(Connection(world, Operator(world)))
        leader = Leadership(cluster, "system", "llem-operator", "a", virtual_time.seconds)
        await leader.acquire()
        keeping = asyncio.create_task(leader.keep())
        await asyncio.sleep(20)
        taken = virtual_time.seconds()
        theirs = {"spec": {"holderIdentity": "b", "renewTime": "2026-03-04T05:07:00.000000Z"}}
        world.server.edit("leases", "system", "llem-operator", theirs)
        with pytest.raises(LeaseLostError, match="is b's"):
            await keeping
        assert virtual_time.seconds() - taken <= RETRY_S + 1
        lease = world.server.get("leases", "system", "llem-operator")
        assert lease is not None
        assert lease["spec"]["holderIdentity"] == "b"

    play(scenario)


def test_a_suspension_that_is_lifted_before_it_acts_kills_nothing() -> None:
    """What cannot be undone rests on the study as it is then, not on the wish that made the operator look."""

    async def scenario() -> None:
        world = World()
        world.server.create("energystudies", study(cycles=1, values=1, suspendPolicy="Immediate"))
        world.operator()
        await world.until(lambda: bool(world.machines.measuring))
        await asyncio.sleep(3)
        lifted: list[float] = []

        def lift(method: str, path: str, _body: Any) -> None:
            if method == "GET" and path.endswith("/namespaces/bench/jobs") and not lifted:
                lifted.append(virtual_time.seconds())
                world.spec({"suspend": False})

        world.refuse = lift
        world.spec({"suspend": True})
        await world.until_over()
        assert len(lifted) == 1
        assert [a["outcome"] for a in world.experiment()["status"]["attempts"]] == ["Completed"]
        assert len(world.machines.measured) == len(world.server.all("jobs")) == 1
        assert ("DELETE" in {method for _, method, _ in world.writes}) is False

    play(scenario)
