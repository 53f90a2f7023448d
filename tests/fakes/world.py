"""A whole cluster in virtual time with real operators in it, and faults at any of their writes.

The operator's Service, Controller, Cache and queue are the product's; only the connection is replaced.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from fakes import virtual_time
from fakes.api_server import ApiServer, Name, Object, selected
from fakes.machines import Life, Machines, Script, always_well
from llem_operator.api import Api, ApiError, RateLimit
from llem_operator.children import members
from llem_operator.cluster import Cluster
from llem_operator.metrics import Metrics
from llem_operator.service import Service
from llem_operator.settings import Settings

FaultKind = Literal[
    "crash before", "crash after", "conflict", "500 before", "500 after", "503", "429", "timeout after commit", "reset"
]
SETTINGS = Settings(images={"synthetic": "llem/synthetic:1"}, results={"uri": "s3://bench/llem"})
LATENCY_S, RESTART_S = 0.01, 3.0
KINDS = {"energystudies": "study", "energyexperiments": "experiment", "jobs": "job", "pods": "pod"}
Lost = Callable[[str, str, Object], bool]


def study(name: str = "sweep", *, cycles: int = 3, values: int = 2, **spec: Any) -> Object:
    """An EnergyStudy of `cycles` x `values` runs, with pauses between them."""
    sweep = {"n": list(range(1, values + 1))}
    execution = {"nCycles": cycles, "configGapSeconds": 10, "cycleGapSeconds": 15, **spec.pop("execution", {})}
    design = {"model": "pretended", "backend": "synthetic", "sweep": sweep}
    return {
        "apiVersion": "llem.dev/v1alpha1",
        "kind": "EnergyStudy",
        "metadata": {"name": name, "namespace": "bench"},
        "spec": {"design": design, "execution": execution, **spec},
    }


class Connection(Api):
    """One operator's way to the API server; the n-th write of the world may go wrong."""

    def __init__(self, world: "World", operator: "Operator") -> None:
        super().__init__(RateLimit(1e6, 1_000_000, lambda: 0.0))
        self._world, self._operator = world, operator

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
    ) -> dict[str, Any]:
        await asyncio.sleep(self._operator.latency_s)
        await self._operator.alive()
        fault = self._world.count_write(method, path) if method != "GET" else None
        if fault in ("crash before", "conflict", "500 before", "503", "429", "reset"):
            await self._fail(fault)
        refused = self._world.refuse(method, path, body)
        if refused is not None:
            raise refused
        answer = self._world.server.answer(method, path, query or {}, body, content_type)
        if fault is not None:
            await self._fail(fault)
        await asyncio.sleep(self._operator.latency_s)
        await self._operator.alive()
        return answer

    async def _fail(self, fault: FaultKind) -> None:
        match fault:
            case "crash before" | "crash after":
                self._world.kill(self._operator)
                await self._operator.alive()
            case "conflict":
                raise ApiError(409, "Conflict", "planned")
            case "500 before" | "500 after":
                raise ApiError(500, "InternalError", "planned")
            case "503":
                raise ApiError(503, "ServiceUnavailable", "planned")
            case "429":
                raise ApiError(429, "TooManyRequests", "planned", 5.0)
            case "timeout after commit":
                raise ApiError(0, "TimeoutError", "planned")
            case "reset":
                raise ApiError(0, "ClientConnectionResetError", "planned")


class Operator:
    """One operator process: what it hears comes `lag_s` late, and what `lost` says not at all."""

    def __init__(self, world: "World", *, lag_s: float = 0.05, latency_s: float = LATENCY_S, lost: Lost | None = None):
        self._world, self._lag_s, self._lost, self.latency_s = world, lag_s, lost, latency_s
        self._dead = False
        self._task: asyncio.Task[None] | None = None
        self.service: Service | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.get_running_loop().create_task(self._operate())

    async def alive(self) -> None:
        """Return while the process lives; a request of a dead one never returns."""
        if self._dead:
            await asyncio.Event().wait()

    def die(self) -> None:
        """SIGKILL."""
        self._dead = True
        if self in self._world.operators:
            self._world.operators.remove(self)
        self._world.server.unwatch(self._watched)
        if self._task is not None:
            self._task.cancel()

    async def _operate(self) -> None:
        cluster = Cluster(Connection(self._world, self))
        self.service = service = Service(cluster, self._world.settings, Metrics(), now=virtual_time.now)
        self._world.server.watch(self._watched)
        await service.compare_once(full=True)
        async with asyncio.TaskGroup() as tasks:
            for number in range(self._world.settings.workers):
                tasks.create_task(service.work(number))
            tasks.create_task(service.compare())

    def _watched(self, plural: str, change: str, obj: Object) -> None:
        if plural not in KINDS or self._dead:
            return
        if plural == "energyexperiments" and not selected(obj):
            change = "DELETED"  # it has left the selection of the watch
        if self._lost is None or not self._lost(plural, change, obj):
            virtual_time.later(self._lag_s, self._hear, KINDS[plural], change, obj)

    def _hear(self, kind: str, change: str, obj: Object) -> None:
        if not self._dead and self.service is not None:
            self.service.heard(kind, change, obj)


@dataclass
class World:
    """API server, machines, operators, and the oracles that hold at every moment."""

    script: Script = always_well
    nodes: tuple[str, ...] = ("node-a",)
    settings: Settings = SETTINGS
    faults: dict[int, FaultKind] = field(default_factory=dict)
    refuse: Callable[[str, str, Any], ApiError | None] = lambda _method, _path, _body: None  # a policy of the cluster

    def __post_init__(self) -> None:
        """Build it around the running loop."""
        self.server = ApiServer()
        self.machines = Machines(self.server, self.nodes, self.script)
        self.operators: list[Operator] = []
        self.writes: list[tuple[float, str, str]] = []
        self.crashes = 0
        self.violations = self.machines.violations
        self._ended: dict[Name, int] = {}
        self.server.watch(self._watch_oracles)

    def operator(self, **how: Any) -> Operator:
        """Start one more operator."""
        found = Operator(self, **how)
        self.operators.append(found)
        found.start()
        return found

    def count_write(self, method: str, path: str) -> FaultKind | None:
        """Note a write, give what goes wrong with it."""
        if path.endswith("/events"):
            return None  # an Event is a courtesy
        self.writes.append((virtual_time.seconds(), method, path))
        return self.faults.get(len(self.writes))

    def kill(self, operator: Operator) -> None:
        """An operator is killed and started again."""
        operator.die()
        self.crashes += 1
        virtual_time.later(RESTART_S, self.operator)

    async def until(self, done: Callable[[], bool], limit_s: float = 3600.0, *, step_s: float = 0.5) -> None:
        """Let time pass until something holds."""
        end = virtual_time.seconds() + limit_s
        while not done():
            assert virtual_time.seconds() < end, f"still not after {limit_s:g} s: {self.summary()}"
            await asyncio.sleep(step_s)

    async def until_over(self, name: str = "sweep", limit_s: float = 3600.0) -> None:
        """Let time pass until the study is finished."""
        await self.until(lambda: self.is_over(name), limit_s)

    def is_over(self, name: str = "sweep") -> bool:
        """Whether the study has finished what its specification asks."""
        found = self.study(name)
        status = found["status"]
        return bool(status["finished"]) and status.get("observedGeneration") == found["metadata"]["generation"]

    def study(self, name: str = "sweep") -> Object:
        """The study as it is."""
        found = self.server.get("energystudies", "bench", name)
        assert found is not None
        return found

    def children(self, name: str = "sweep") -> list[Object]:
        """Its experiments by index."""
        found = [
            e for e in self.server.all("energyexperiments") if (e["spec"].get("studyRef") or {}).get("name") == name
        ]
        return sorted(found, key=lambda e: int(e["spec"]["index"]))

    def reason(self, obj: Object, kind: str = "Finished") -> str:
        """Reason of a condition."""
        return next((str(c["reason"]) for c in obj["status"]["conditions"] if c["type"] == kind), "")

    def summary(self) -> str:
        """What stands where, for a failure's message."""
        lines = [f"{o['metadata']['name']}: {self.reason(o)}" for o in self.server.all("energystudies")]
        lines += [
            f"{o['metadata']['name']}: {o['status']['conditions'][-1]}" for o in self.server.all("energyexperiments")
        ]
        return "\n".join(lines[:20])

    def experiment(self, index: int = 0) -> Object:
        """A child of the study, or the only experiment."""
        return self.server.all("energyexperiments")[index]

    def spec(self, patch: Object, name: str = "sweep") -> None:
        """Edit a study's specification."""
        self.server.edit("energystudies", "bench", name, {"spec": patch})

    def status_patches(self, since: int = 0) -> list[str]:
        """Names whose status was written."""
        return [
            path.split("/")[-2] for _, method, path in self.writes[since:] if method == "PATCH" and "/status" in path
        ]

    async def writes_while_idle(self, seconds: float = 700.0) -> list[tuple[float, str, str]]:
        """O7: what is written when nothing changes."""
        before = len(self.writes)
        await asyncio.sleep(seconds)
        return self.writes[before:]

    def _watch_oracles(self, plural: str, change: str, obj: Object) -> None:
        """O2 and O3 hold after every commit."""
        if change == "DELETED" or plural not in ("energystudies", "energyexperiments"):
            return
        status, name = obj["status"], (obj["metadata"]["namespace"], obj["metadata"]["name"])
        if plural == "energyexperiments":
            epoch, uid = int(status.get("observedRetryEpoch") or 0), obj["metadata"]["uid"]
            key = (uid, name[1])
            if status["finished"]:
                self._ended[key] = epoch
            elif self._ended.get(key, -1) >= epoch:
                self.violations.append(f"O3: {name[1]} was finished in epoch {epoch} and goes on")
        elif status.get("counts"):
            self.violations += [f"O2: {p}" for p in miscounts(status)]


def miscounts(status: Mapping[str, Any]) -> Iterator[str]:
    """Where a study's counts and ranges do not agree."""
    counts, indexes = status["counts"], status.get("indexes") or {}
    states = ("running", "completed", "failed", "cancelled")
    if counts["total"] != counts["pending"] + sum(counts[s] for s in states):
        yield f"counts do not add up: {counts}"
    seen = Counter(i for s in states for i in members(indexes.get(s, "")))
    if any(n > 1 for n in seen.values()) or any(i >= counts["total"] for i in seen):
        yield f"ranges overlap or leave the plan: {indexes}"
    if any(len(list(members(indexes.get(s, "")))) != counts[s] for s in states):
        yield f"ranges and counts differ: {indexes} {counts}"


def end_state(world: World, name: str = "sweep") -> Object:
    """What O5 compares: everything but times, identities and places."""
    status = world.study(name)["status"]
    rows = [{k: v for k, v in r.items() if k != "nodeIndex"} for r in status.get("manifest", ())]
    return {
        "counts": status["counts"],
        "indexes": status["indexes"],
        "manifest": rows,
        "best": status.get("best"),
        "conditions": said(status),
        "children": [_child_end(e) for e in world.children(name)],
    }


def _child_end(experiment: Object) -> Object:
    status = experiment["status"]
    return {
        "name": experiment["metadata"]["name"],
        "spec": experiment["spec"],
        "attempts": [(a["attempt"], a["jobName"], a["outcome"], a["reason"]) for a in status.get("attempts", ())],
        "summary": status.get("summary"),
        "result": {k: v for k, v in (status.get("result") or {}).items() if k != "adopted"},
        "conditions": said(status),
    }


def said(status: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Conditions by type: status and reason."""
    return {c["type"]: (c["status"], c["reason"]) for c in status["conditions"]}


def stored_once(world: World) -> list[str]:
    """O4: what was lost or measured twice, given that a valid result must be stored exactly once per run."""
    kept = Counter(m.run for m in world.machines.measured if m.stored)
    twice = [f"{run} was measured {n} times" for run, n in kept.items() if n > 1]
    lost = []
    for experiment in world.children():
        result = experiment["status"].get("result")
        uri = result["uri"] if result else ""
        if result and not any(uri == r["uri"] for a in world.machines.store.values() for r in a.values()):
            lost.append(f"{experiment['metadata']['name']} names a result that is not stored")
    return twice + lost


async def play(script: Script = always_well, faults: Mapping[int, FaultKind] | None = None, **spec: Any) -> World:
    """A study of six runs from its creation to its end, with faults on the way."""
    world = World(script, faults=cast("dict[int, FaultKind]", dict(faults or {})))
    world.server.create("energystudies", study(**spec))
    world.operator()
    await world.until_over()
    await asyncio.sleep(12)  # until the last Job may expire
    return world


__all__ = ["Life", "Operator", "World", "end_state", "miscounts", "play", "said", "stored_once", "study"]
