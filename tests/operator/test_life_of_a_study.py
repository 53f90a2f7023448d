"""Whole lives of a study: expansion, order, pauses, edits, breaker, hand-deleted experiments, its every end."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from datetime import datetime
from itertools import pairwise
from typing import Any

import pytest

from fakes import virtual_time
from fakes.api_server import Object
from fakes.machines import Life
from fakes.world import SETTINGS, World, said, stored_once, study
from llem_operator import acceptance
from llem_operator.api import ApiError
from llenergymeasure.core.plan import make_plan
from llenergymeasure.core.resources import study_of

ORDERS = ["sequential", "interleaved", "shuffled", "latin_square"]
NO_GAPS = {"configGapSeconds": 0, "cycleGapSeconds": 0}


def play(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario in virtual time."""
    virtual_time.run(scenario())


def begun(body: Object, **how: Any) -> World:
    """A cluster with an operator and a study."""
    world = World(**how)
    world.server.create("energystudies", body)
    world.operator()
    return world


def fails(*indexes: int, code: int = 10) -> Callable[[str, int], Life]:
    """The first attempt of these runs fails."""
    names = tuple(f"-{i:05d}-" for i in indexes)
    return lambda name, attempt: (
        Life(code, seconds=2) if attempt == 1 and any(n in name for n in names) else Life(seconds=2)
    )


def started(world: World) -> list[int]:
    """Indexes of the runs in the order in which their Jobs were made."""
    made = [name for _, plural, change, (_, name) in world.server.commits if plural == "jobs" and change == "ADDED"]
    return [int(name.split("-")[1]) for name in made]


def test_experiments_are_created_in_order_of_their_index_a_batch_at_a_time() -> None:
    """Eagerly, while the first runs already go; Expanded only when all exist."""

    async def scenario() -> None:
        world = begun(study(values=40, cycles=3))
        seen: list[tuple[int, str]] = []
        world.server.watch(
            lambda plural, _change, obj: (
                seen.append((len(world.children()), said(obj["status"])["Expanded"][0]))
                if plural == "energystudies" and "Expanded" in said(obj["status"])
                else None
            )
        )
        await world.until(lambda: len(world.children()) == 120, 60)
        await asyncio.sleep(5)
        made = [n for _, p, c, (_, n) in world.server.commits if p == "energyexperiments" and c == "ADDED"]
        assert [int(n.split("-")[1]) for n in made] == list(range(120))
        assert all(expanded == "False" for count, expanded in seen if count < 120)
        assert seen[-1] == (120, "True")

    play(scenario)


def test_an_operator_killed_in_the_middle_of_a_large_expansion_is_continued() -> None:
    """2,000 experiments: each made once, none missing, whenever the operator dies."""

    async def scenario() -> None:
        world = begun(study(values=50, cycles=40), faults={700: "crash after", 1400: "crash before"})
        await world.until(lambda: len(world.children()) == 2000, 400, step_s=5)
        await world.until(lambda: said(world.study()["status"])["Expanded"][0] == "True", 60)
        made = [n for _, p, c, n in world.server.commits if p == "energyexperiments" and c == "ADDED"]
        assert len(made) == len(set(made)) == 2000
        assert world.crashes == 2
        assert world.violations == []

    play(scenario)


@pytest.mark.parametrize("order", ORDERS)
def test_runs_start_in_the_order_of_the_plan(order: str) -> None:
    """The very order of `llem run`, from core.plan."""

    async def scenario() -> None:
        body = study(values=4, cycles=2, execution={"cycleOrder": order, **NO_GAPS})
        world = begun(body, script=fails())
        await world.until_over()
        plan = make_plan(study_of(body, source="test"))
        assert started(world) == [r.index for r in plan.runs]

    play(scenario)


@pytest.mark.parametrize(("parallelism", "nodes"), [(1, 1), (3, 4), (4, 2)])
def test_as_many_runs_go_at_once_as_the_study_allows(parallelism: int, nodes: int) -> None:
    """Never more; and as many as nodes allow."""

    async def scenario() -> None:
        body = study(values=6, cycles=1, parallelism=parallelism, execution=NO_GAPS)
        world = begun(body, nodes=tuple(f"node-{i}" for i in range(nodes)))
        most = measured = 0
        while not world.is_over() and virtual_time.seconds() < 1000:
            running = sum(1 for e in world.children() if e["status"].get("attempts") and not e["status"]["finished"])
            most, measured = max(most, running), max(measured, len(world.machines.measuring))
            await asyncio.sleep(0.5)
        assert most == parallelism
        assert measured == min(parallelism, nodes)

    play(scenario)


def test_parallelism_follows_its_edits() -> None:
    """Raised: more start at once. Lowered: nothing is killed, and no more start."""

    async def scenario() -> None:
        world = begun(study(values=8, cycles=1, execution=NO_GAPS), nodes=("a", "b", "c"))
        await world.until(lambda: len(world.machines.measuring) == 1)
        world.spec({"parallelism": 3})
        await world.until(lambda: len(world.machines.measuring) == 3, 10)
        world.spec({"parallelism": 1})
        await asyncio.sleep(5)
        assert len(world.machines.measuring) == 3
        await asyncio.sleep(25)
        assert len(world.machines.measuring) <= 1
        await world.until_over()
        assert len(world.machines.measured) == 8

    play(scenario)


GAPS = {
    "one node": (1, ("a",), 10, 15),
    "two nodes": (1, ("a", "b"), 10, 15),
    "in parallel": (2, ("a", "b"), 30, 40),
    "long": (1, ("a",), 600, 900),
}


@pytest.mark.parametrize(("parallelism", "nodes", "config_gap", "cycle_gap"), GAPS.values(), ids=GAPS)
def test_between_two_measurements_on_a_node_lies_the_pause(
    parallelism: int, nodes: tuple[str, ...], config_gap: int, cycle_gap: int
) -> None:
    """Per node, from the end of the one measurement to the start of the next, whoever waits: study or pod."""

    async def scenario() -> None:
        gaps = {"configGapSeconds": config_gap, "cycleGapSeconds": cycle_gap}
        world = begun(study(values=3, cycles=2, parallelism=parallelism, execution=gaps), nodes=nodes)
        await world.until_over(limit_s=12000)
        by_node: dict[str, list[Any]] = {}
        for m in world.machines.measured:
            by_node.setdefault(m.node, []).append(m)
        pauses = [(b.start - a.end).total_seconds() for ms in by_node.values() for a, b in pairwise(ms)]
        assert all(p >= config_gap for p in pauses)
        if len(nodes) == 1:
            expected = [cycle_gap if i == 2 else config_gap for i in range(5)]
            assert all(e <= p <= e + 5 for p, e in zip(pauses, expected, strict=True))

    play(scenario)


def test_the_next_time_is_shown_while_a_study_waits_for_its_pause() -> None:
    """nextEligibleTime and WaitingForGap, gone when the run starts."""

    async def scenario() -> None:
        world = begun(study(values=2, cycles=1, execution={"configGapSeconds": 300}))
        await world.until(lambda: world.reason(world.study()) == "WaitingForGap")
        shown = datetime.fromisoformat(world.study()["status"]["nextEligibleTime"])
        end = world.machines.measured[0].end
        assert abs((shown - end).total_seconds() - 300) < 1
        await world.until(lambda: len(world.machines.measuring) == 1)
        assert abs((virtual_time.now() - shown).total_seconds()) < 5
        await asyncio.sleep(2)
        assert "nextEligibleTime" not in world.study()["status"]

    play(scenario)


def test_more_cycles_append_exactly_the_new_runs() -> None:
    """nCycles grows: finished runs stay, the new ones are made and measured, the study is over again."""

    async def scenario() -> None:
        world = begun(study(cycles=2, values=2, execution=NO_GAPS))
        await world.until_over()
        before = {e["metadata"]["name"]: e["metadata"]["uid"] for e in world.children()}
        first_end = world.study()["status"]["completionTime"]
        world.spec({"execution": {"nCycles": 4}})
        await asyncio.sleep(3)
        assert world.study()["status"]["finished"] is False
        await world.until_over()
        after = {e["metadata"]["name"]: e["metadata"]["uid"] for e in world.children()}
        assert before.items() <= after.items()
        assert [e["spec"]["index"] for e in world.children()] == list(range(8))
        assert [e["spec"]["cycle"] for e in world.children()] == [1, 1, 2, 2, 3, 3, 4, 4]
        assert len(world.machines.measured) == 8
        assert world.study()["status"]["completionTime"] > first_end
        assert said(world.study()["status"])["Succeeded"] == ("True", "Completed")

    play(scenario)


def test_the_breaker_allows_its_failures_then_one_probe_then_nothing() -> None:
    """maxConsecutiveFailures 2: two fail, after a pause one more is tried, the rest is cancelled."""

    async def scenario() -> None:
        world = begun(
            study(values=8, cycles=1, parallelism=2, execution={"maxConsecutiveFailures": 2, **NO_GAPS}),
            script=lambda *_: Life(16, seconds=2), nodes=("a", "b"),
        )  # fmt: skip
        await world.until_over()
        status = world.study()["status"]
        assert len(started(world)) == 3
        assert (status["counts"]["failed"], status["counts"]["cancelled"]) == (3, 5)
        assert said(status)["Finished"] == ("True", "CircuitBreaker")
        assert said(status)["Succeeded"] == ("False", "CircuitBreaker")
        jobs = [t for t, p, c, _ in world.server.commits if p == "jobs" and c == "ADDED"]
        assert jobs[2] - jobs[1] > 60
        await asyncio.sleep(5)
        assert await world.writes_while_idle() == []

    play(scenario)


def test_a_probe_that_succeeds_closes_the_breaker() -> None:
    """The streak is broken and the study goes on."""

    async def scenario() -> None:
        body = study(values=6, cycles=1, execution={"maxConsecutiveFailures": 2, "cycleOrder": "sequential", **NO_GAPS})
        world = begun(body, script=fails(0, 1))
        await world.until_over()
        status = world.study()["status"]
        assert status["indexes"] == {"failed": "0-1", "completed": "2-5"}
        assert said(status)["Finished"] == ("True", "RunsFailed")

    play(scenario)


def test_retry_epoch_sends_what_failed_was_invalid_or_cancelled_again_and_nothing_else() -> None:
    """Good results stay; what went again has the new epoch and fresh budgets."""

    async def scenario() -> None:
        def script(name: str, attempt: int) -> Life:
            if attempt > 1 or "-00000-" in name:
                return Life(seconds=2)
            return Life(verdict="invalid", seconds=2) if "-00001-" in name else Life(16, seconds=2)

        limits = {"maxConsecutiveFailures": 2, "cycleOrder": "sequential", **NO_GAPS}
        world = begun(study(values=8, cycles=1, execution=limits), script=script)
        await world.until_over()
        counts = world.study()["status"]["counts"]
        assert (counts["completed"], counts["invalid"], counts["failed"], counts["cancelled"]) == (2, 1, 3, 3)
        good = world.experiment(0)
        world.machines.script = lambda *_: Life(seconds=2)
        world.spec({"retryEpoch": 1})
        await asyncio.sleep(2)
        await world.until_over()
        status = world.study()["status"]
        assert status["counts"]["completed"] == 8
        assert status["counts"]["invalid"] == 0
        assert status["observedRetryEpoch"] == 1
        assert world.experiment(0)["status"]["attempts"] == good["status"]["attempts"]
        assert [len(e["status"]["attempts"]) for e in world.children()] == [1, 2, 2, 2, 2, 1, 1, 1]
        assert said(status)["Succeeded"] == ("True", "Completed")
        assert world.violations == []
        await asyncio.sleep(5)
        assert await world.writes_while_idle() == []

    play(scenario)


async def _at_state(world: World, state: str) -> Object:
    """Wait until a run is in that state and the study's status says so; give its experiment."""

    def there() -> bool:
        status = world.study()["status"]
        return state in status.get("indexes", {}) or (
            state == "pending" and status.get("counts", {}).get("completed", 0) > 0
        )

    await world.until(there)
    await asyncio.sleep(3)
    index = 5 if state == "pending" else int(world.study()["status"]["indexes"][state].split(",")[0].split("-")[0])
    return world.experiment(index)


@pytest.mark.parametrize("runs", [6, 300], ids=["inline", "ranges"])
@pytest.mark.parametrize("operator_away", [False, True], ids=["operator there", "operator away"])
@pytest.mark.parametrize("state", ["pending", "running", "completed", "failed", "cancelled"])
def test_an_experiment_deleted_by_hand_is_made_again_as_it_was(state: str, operator_away: bool, runs: int) -> None:
    """Never silently measured again: what had ended has its end back, what ran is tried again, what waited waits."""

    async def scenario() -> None:
        cancelled = {"maxConsecutiveFailures": 1} if state == "cancelled" else {}
        script = (lambda *_: Life(10, seconds=2)) if state == "cancelled" else fails(1)
        limits = {"cycleOrder": "interleaved", **NO_GAPS, **cancelled}
        body = study(values=min(runs, 50), cycles=max(1, runs // 50), execution=limits)
        world = begun(body, script=script)
        old = await _at_state(world, state)
        name, before = old["metadata"]["name"], len([m for m in world.machines.measured if m.stored])
        if operator_away:
            world.operators[0].die()
        world.server.delete("energyexperiments", "bench", name)
        if operator_away:
            await asyncio.sleep(30)
            world.operator()
        await world.until(lambda: world.server.get("energyexperiments", "bench", name) is not None, 100)
        await asyncio.sleep(10)
        new = world.server.get("energyexperiments", "bench", name)
        assert new is not None
        assert new["metadata"]["uid"] != old["metadata"]["uid"]
        assert new["spec"] == old["spec"]
        if state == "completed":
            assert said(new["status"])["Succeeded"] == ("True", "RestoredFromStudy")
        elif state == "failed":
            assert said(new["status"])["Succeeded"] == ("False", "RestoredFromStudy")
        elif state == "cancelled":
            assert said(new["status"])["Succeeded"] == ("False", "Cancelled")
        if runs == 6:
            await world.until_over()
            counts = world.study()["status"]["counts"]
            assert counts["completed"] == {"cancelled": 0, "running": counts["completed"]}.get(state, 5)
            assert counts["completed"] + counts["failed"] + counts["cancelled"] == 6
            assert [t for t in stored_once(world) if "measured" in t] == []
            assert before <= len([m for m in world.machines.measured if m.stored])
        assert world.violations == []

    play(scenario)


def test_all_experiments_deleted_after_the_end_come_back_and_nothing_is_measured() -> None:
    """Counts, ranges and manifest are what they were."""

    async def scenario() -> None:
        world = begun(study(values=5, cycles=1, execution=NO_GAPS), script=fails(3))
        await world.until_over()
        before = world.study()["status"]
        for experiment in world.children():
            world.server.delete("energyexperiments", "bench", experiment["metadata"]["name"])
        await asyncio.sleep(100)
        after = world.study()["status"]
        for part in ("counts", "indexes", "manifest", "finished"):
            assert after[part] == before[part], part
        assert said(after)["Finished"] == said(before)["Finished"]
        assert len(world.machines.measured) == 5

    play(scenario)


def message(obj: Object, kind: str = "Finished") -> str:
    """Message of a condition."""
    return next(str(c["message"]) for c in obj["status"]["conditions"] if c["type"] == kind)


ENDS: dict[str, dict[str, tuple[str, str]]] = {
    "refused": {
        "Accepted": ("False", "InvalidDesign"), "Finished": ("True", "InvalidDesign"), "Ready": ("False", "InvalidDesign"),
        "Stalled": ("True", "InvalidDesign"), "Reconciling": ("False", "InvalidDesign"),
        "Succeeded": ("False", "InvalidDesign"),
    },
    "running": {
        "Accepted": ("True", "Valid"), "Expanded": ("True", "AllCreated"), "Finished": ("False", "Running"),
        "Ready": ("True", "Running"), "Stalled": ("False", "Running"), "Reconciling": ("False", "Running"),
        "Succeeded": ("Unknown", "Running"), "Suspended": ("False", "NotSuspended"),
    },
    "suspended": {
        "Finished": ("False", "Suspended"), "Suspended": ("True", "Suspended"), "Ready": ("True", "Suspended"),
        "Stalled": ("False", "Suspended"), "Reconciling": ("False", "Suspended"), "Succeeded": ("Unknown", "Suspended"),
    },
    "completed": {
        "Finished": ("True", "Completed"), "Succeeded": ("True", "Completed"), "Ready": ("True", "Completed"),
        "Stalled": ("False", "Completed"), "Reconciling": ("False", "Completed"),
    },
    "some failed": {
        "Finished": ("True", "RunsFailed"), "Succeeded": ("False", "RunsFailed"), "Ready": ("False", "RunsFailed"),
        "Stalled": ("True", "RunsFailed"), "Reconciling": ("False", "RunsFailed"),
    },
}  # fmt: skip


@pytest.mark.parametrize(("state", "expected"), ENDS.items(), ids=ENDS)
def test_conditions_of_a_study_are_those_that_tools_wait_for(state: str, expected: dict[str, tuple[str, str]]) -> None:
    """Decision 15: `kubectl wait`, `helm --wait`, Argo CD and Flux end in every state; there is no Failed condition."""

    async def scenario() -> None:
        body = study(values=2, cycles=1, execution=NO_GAPS, suspend=state == "suspended")
        if state == "refused":
            body["spec"]["design"]["synthetic"] = {"btach_size": 1}
        world = begun(body, script=fails(0) if state == "some failed" else lambda *_: Life(seconds=50))
        if state in ("running", "suspended"):
            await asyncio.sleep(20)
        else:
            await world.until_over()
        found = said(world.study()["status"])
        assert {k: found[k] for k in expected} == expected
        assert "Failed" not in found
        assert all(c["observedGeneration"] == 1 for c in world.study()["status"]["conditions"])

    play(scenario)


def test_a_refused_design_names_its_problem_and_a_repaired_one_runs() -> None:
    """Nothing is created before; the sentence is `llem run`'s."""

    async def scenario() -> None:
        body = study(values=1, cycles=1)
        body["spec"]["design"]["synthetic"] = {"btach_size": 1}
        world = begun(body)
        await world.until_over()
        assert "btach_size" in message(world.study())
        assert "batch_size" in message(world.study())
        assert world.children() == []
        assert await world.writes_while_idle(200) == []
        world.spec({"design": {"synthetic": None}})
        await asyncio.sleep(2)
        await world.until_over()
        assert world.reason(world.study()) == "Completed"

    play(scenario)


def test_a_study_that_is_refused_after_it_was_accepted_lets_runs_end_and_starts_none() -> None:
    """For example when the operator's settings change under it."""

    async def scenario() -> None:
        world = begun(study(values=2, cycles=1, execution=NO_GAPS))
        await world.until(lambda: bool(world.machines.measuring))
        world.operators[0].die()
        world.settings = SETTINGS.model_copy(update={"allowed_images": ("registry/ours/",)})
        world.operator()
        await asyncio.sleep(100)
        found = said(world.study()["status"])
        assert found["Stalled"] == ("True", "InvalidTemplate")
        assert found["Finished"] == ("False", "InvalidTemplate")
        assert len(world.machines.measured) == 1
        assert world.study()["status"]["designHash"]
        assert await world.writes_while_idle(200) == []

    play(scenario)


@pytest.mark.parametrize("reason", ["DesignChanged", "ExpanderChanged"])
def test_a_plan_that_is_no_longer_the_accepted_one_stalls(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never a mixture of two plans; what was known is kept."""

    async def scenario() -> None:
        world = begun(study(values=2, cycles=1, execution=NO_GAPS))
        await world.until(lambda: bool(world.machines.measuring))
        world.operators[0].die()
        if reason == "DesignChanged":
            world.spec({"design": {"sweep": {"n": [7]}}})
        else:
            monkeypatch.setattr(acceptance, "EXPANDER_VERSION", "2")
        before = world.study()["status"]["planHash"]
        world.operator()
        await asyncio.sleep(100)
        status = world.study()["status"]
        assert said(status)["Stalled"] == ("True", reason)
        assert said(status)["Ready"] == ("False", reason)
        assert status["planHash"] == before
        assert len(world.children()) == 2
        assert len(world.machines.measured) == 1
        assert await world.writes_while_idle(200) == []

    play(scenario)


def test_a_taken_name_stalls_the_study_quietly_until_it_is_free() -> None:
    """Another's object of a child's name is not touched; the study says so once and goes on when it is gone."""

    async def scenario() -> None:
        world = World(fails())
        body = study(values=2, cycles=1, execution=NO_GAPS)
        other = begun_name(world, body)
        world.server.create("energystudies", body)
        world.operator()
        await asyncio.sleep(30)
        found = said(world.study()["status"])
        assert found["Stalled"] == ("True", "NameTaken")
        assert found["Finished"] == ("False", "NameTaken")
        assert other in message(world.study())
        written, tried = len(world.status_patches()), len(world.writes)
        await asyncio.sleep(300)
        assert len(world.status_patches()) - written <= 2
        assert len(world.writes) - tried <= 300 / 10  # tried again every 15 s and at each comparison
        world.server.delete("energyexperiments", "bench", other)
        await world.until_over()
        assert world.reason(world.study()) == "Completed"

    play(scenario)


def begun_name(world: World, body: Object) -> str:
    """Somebody else's experiment under the name of the study's second run."""
    digest = next(r for r in make_plan(study_of(body, source="test")).runs if r.index == 1).config_hash[:6]
    name = f"sweep-00001-{digest}"
    owner = {"apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": "nobody", "controller": True}
    metadata = {"name": name, "namespace": "bench", "ownerReferences": [owner]}
    spec = {"config": {"model": "x", "backend": "synthetic"}, "suspend": True}
    world.server._exists = lambda _uid: True  # type: ignore[method-assign]  # its owner is no kind of ours
    world.server.create(
        "energyexperiments", {**study(), "kind": "EnergyExperiment", "metadata": metadata, "spec": spec}
    )
    return name


def test_a_forbidden_request_stalls_the_study_quietly_until_it_is_allowed() -> None:
    """403 at the creation of an experiment: verb and resource are named, few writes, and no storm."""

    async def scenario() -> None:
        world = begun(study(values=2, cycles=1, execution=NO_GAPS))
        no = ApiError(403, "Forbidden", "cannot create resource energyexperiments: namespace is being terminated")
        world.refuse = lambda method, path, _b: no if method == "POST" and path.endswith("energyexperiments") else None
        await asyncio.sleep(30)
        assert said(world.study()["status"])["Stalled"] == ("True", "Forbidden")
        assert "energyexperiments" in message(world.study())
        written, tried = len(world.status_patches()), len(world.writes)
        await asyncio.sleep(600)
        assert len(world.status_patches()) - written <= 2
        assert len(world.writes) - tried <= 600 / 10
        world.refuse = lambda *_: None
        await world.until_over()
        assert world.reason(world.study()) == "Completed"

    play(scenario)


def test_a_study_deleted_and_made_again_at_once_waits_for_the_old_ones_children() -> None:
    """Membership is the owner's UID: the new study measures everything itself under new addresses."""

    async def scenario() -> None:
        world = begun(study(values=2, cycles=1, execution=NO_GAPS), script=fails())
        await world.until_over()
        old = {e["metadata"]["uid"] for e in world.children()}
        world.server.delete("energystudies", "bench", "sweep")
        world.server.create("energystudies", study(values=2, cycles=1, execution=NO_GAPS))
        await asyncio.sleep(1)
        await world.until_over()
        assert not old & {e["metadata"]["uid"] for e in world.children()}
        assert len({m.run for m in world.machines.measured}) == len(world.machines.measured) == 4
        assert world.violations == []

    play(scenario)


@pytest.mark.parametrize("operator_away", [False, True], ids=["operator there", "operator away"])
def test_a_deleted_study_leaves_nothing_behind(operator_away: bool) -> None:
    """O6: while it expands and measures, with or without an operator; no finalizer, nothing is made again."""

    async def scenario() -> None:
        world = begun(study(values=60, cycles=2))
        await world.until(lambda: bool(world.machines.measuring))
        if operator_away:
            world.operators[0].die()
        world.server.delete("energystudies", "bench", "sweep")
        await asyncio.sleep(30)
        for plural in ("energystudies", "energyexperiments", "jobs", "pods"):
            assert world.server.all(plural) == [], plural

    play(scenario)


def test_the_best_configuration_is_the_lowest_mean_among_the_all_valid() -> None:
    """An invalid cycle rules its configuration out."""

    async def scenario() -> None:
        bad: set[str] = set()
        world = begun(study(values=3, cycles=2, execution=NO_GAPS))
        world.machines.script = lambda name, _a: Life(verdict="invalid" if name in bad else "valid", seconds=2)
        await world.until(lambda: len(world.children()) == 6)
        numbers: dict[str, float] = {}
        await world.until_over()
        for e in world.children():
            numbers[e["spec"]["configHash"]] = float(e["status"]["summary"]["energyPerOutputTokenMillijoules"])
        lowest, second, _ = sorted(numbers, key=lambda h: numbers[h])
        found = world.study()["status"]["best"]
        assert found["configHash"] == lowest
        assert found["cycles"] == 2
        assert float(found["energyPerOutputTokenMillijoules"]) == pytest.approx(numbers[lowest], rel=1e-3)
        bad.add(max(e["metadata"]["name"] for e in world.children() if e["spec"]["configHash"] == lowest))
        world.server.delete("energystudies", "bench", "sweep")
        await asyncio.sleep(20)
        world.server.create("energystudies", study(values=3, cycles=2, execution=NO_GAPS))
        await asyncio.sleep(5)
        await world.until_over()
        assert world.study()["status"]["best"]["configHash"] == second

    play(scenario)


def test_foreign_edits_are_mended_without_a_storm() -> None:
    """A status overwritten by hand is written anew once; noise in annotations and labels writes nothing."""

    async def scenario() -> None:
        world = begun(study(values=2, cycles=1, execution=NO_GAPS))
        await world.until_over()
        await asyncio.sleep(5)
        before = world.study()["status"]
        world.server.edit(
            "energystudies", "bench", "sweep", {"status": {"counts": {"completed": 99}, "best": None}}, status=True
        )
        written = len(world.writes)
        await asyncio.sleep(30)
        assert world.study()["status"] == before
        assert len(world.writes) == written + 1
        for i in range(20):
            world.server.edit("energystudies", "bench", "sweep", {"metadata": {"annotations": {"noise": str(i)}}})
            await asyncio.sleep(0.2)
        assert len(world.writes) == written + 1

    play(scenario)


def test_an_idle_operator_hardly_asks() -> None:
    """At most 0.5 requests/s per namespace when nothing happens (kubernetes.md, decision 9)."""

    async def scenario() -> None:
        world = begun(study(values=5, cycles=1, execution=NO_GAPS), script=fails())
        await world.until_over()
        await asyncio.sleep(30)
        reads = world.server.reads
        assert await world.writes_while_idle(1200) == []
        assert (world.server.reads - reads) / 1200 < 0.5

    play(scenario)


def test_a_small_study_beside_a_large_one_starts_soon() -> None:
    """The first Job of the small one is there within 5 s, however much the large one still has to create."""

    async def scenario() -> None:
        world = begun(study("giant", values=50, cycles=40))
        await asyncio.sleep(3)
        world.server.create("energystudies", study("small", values=1, cycles=1))
        begin = virtual_time.seconds()
        await world.until(
            lambda: any(j["metadata"]["name"].startswith("small") for j in world.server.all("jobs")), 5, step_s=0.1
        )
        assert len(world.children("giant")) < 2000
        print(f"first Job of the small study after {virtual_time.seconds() - begin:.1f} s")

    play(scenario)


def test_time_of_a_test_is_virtual() -> None:
    """Ten hours pass in well under a minute of real time."""

    async def scenario() -> None:
        await asyncio.sleep(36_000)

    began = time.perf_counter()
    play(scenario)
    assert time.perf_counter() - began < 10
