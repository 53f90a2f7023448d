"""What acceptance does at its limits: huge plans, its own bugs, records and texts that do not fit, a destination that moved."""

import asyncio
import json
import time
import tracemalloc
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from fakes import virtual_time
from fakes.api_server import Object
from fakes.world import SETTINGS, World, said, study
from llem_operator import acceptance, controller, judgements
from llem_operator.acceptance import MAX_CONFIG_BYTES, Accepted, Refused, accept_study
from llem_operator.objects import jobs_of

NO_GAPS = {"configGapSeconds": 0, "cycleGapSeconds": 0, "cycleOrder": "sequential"}


def play(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario in virtual time."""
    virtual_time.run(scenario())


def a_study(**spec: Any) -> Object:
    """A study as read from the API; `spec` is laid over it."""
    found = study(cycles=1, values=1)
    found["metadata"] |= {"uid": "0123abcd-0000", "generation": 1, "resourceVersion": "5"}
    found["spec"] |= spec
    return found


def huge(first: int, second: int, cycles: int = 1000) -> Object:
    """A study of `first` x `second` configurations."""
    sweep = {"n": list(range(1, first + 1)), "max_output_tokens": list(range(1, second + 1))}
    return a_study(design={"model": "m", "backend": "synthetic", "sweep": sweep}, execution={"nCycles": cycles})


def message(obj: Object, kind: str = "Finished") -> str:
    """Message of a condition."""
    return next(str(c["message"]) for c in obj["status"]["conditions"] if c["type"] == kind)


def test_runs_are_counted_before_they_are_laid_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """512 configurations in 1,000 cycles are refused without making one run."""

    def made(*_: Any) -> None:
        raise AssertionError("the plan was laid out")

    monkeypatch.setattr(acceptance, "make_plan", made)
    found = accept_study(huge(64, 8), SETTINGS)
    assert isinstance(found, Refused)
    assert found.reason == "InvalidDesign"
    assert "512000 runs" in found.message


def test_refusing_a_huge_plan_takes_little_memory() -> None:
    """No more than its configurations; 512,000 runs would be hundreds of MiB."""
    tracemalloc.start()
    accept_study(huge(64, 8), SETTINGS)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 32 * 2**20


def test_ten_thousand_configurations_in_a_thousand_cycles_are_refused_in_the_time_of_reading_them() -> None:
    """Ten million runs cost what one cycle of them costs."""
    took_s = []
    for cycles in (1, 1000):
        began = time.process_time()
        found = accept_study(huge(100, 100, cycles), SETTINGS)
        took_s.append(time.process_time() - began)
        assert isinstance(found, Refused)
        assert f"{10_000 * cycles} runs" in found.message
    assert took_s[1] < 2 * took_s[0] + 1


def test_repeats_count_as_runs() -> None:
    """Configurations that are listed several times, and cycles, make the number of the message."""
    design = {"model": "m", "backend": "synthetic", "experiments": [{"n": 1}, {"n": 2}, {"n": 1}]}
    whole = accept_study(a_study(design=design, execution={"nCycles": 4}), SETTINGS)
    assert isinstance(whole, Accepted)
    runs = len(whole.runs)
    at_limit = accept_study(
        a_study(design=design, execution={"nCycles": 4}), SETTINGS.model_copy(update={"max_runs": runs})
    )
    assert isinstance(at_limit, Accepted)
    over = accept_study(
        a_study(design=design, execution={"nCycles": 4}), SETTINGS.model_copy(update={"max_runs": runs - 1})
    )
    assert isinstance(over, Refused)
    assert f"{runs} runs" in over.message


def test_a_bug_of_acceptance_is_said_and_stops_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """InternalError with the exception's words on that study; another study runs."""

    def odd(body: Any, settings: Any) -> Accepted | Refused:
        if body["metadata"]["name"] == "odd":
            raise RuntimeError("never thought of that")
        return accept_study(body, settings)

    monkeypatch.setattr(judgements, "accept_study", odd)

    async def scenario() -> None:
        world = World()
        world.server.create("energystudies", study("odd", cycles=1, values=1))
        world.server.create("energystudies", study(cycles=1, values=1))
        world.operator()
        await world.until_over()
        await world.until_over("odd", limit_s=5)
        assert said(world.study("odd")["status"])["Accepted"] == ("False", "InternalError")
        assert said(world.study("odd")["status"])["Finished"] == ("True", "InternalError")
        assert "RuntimeError: never thought of that" in message(world.study("odd"))
        assert world.reason(world.study()) == "Completed"
        await asyncio.sleep(5)
        assert await world.writes_while_idle() == []

    play(scenario)


def test_a_bug_in_judging_a_standalone_experiment_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same door is before experiments that no study has accepted."""

    def odd(*_: Any, **__: Any) -> None:
        raise RuntimeError("never thought of that")

    monkeypatch.setattr(judgements, "accept_experiment", odd)

    async def scenario() -> None:
        world = World()
        config = {"model": "m", "backend": "synthetic"}
        metadata = {"name": "one", "namespace": "bench"}
        body = {"apiVersion": "llem.dev/v1alpha1", "kind": "EnergyExperiment", "metadata": metadata}
        world.server.create("energyexperiments", {**body, "spec": {"config": config}})
        world.operator()
        await asyncio.sleep(10)
        assert world.reason(world.experiment()) == "InternalError"
        assert "never thought of that" in message(world.experiment())

    play(scenario)


@pytest.mark.parametrize("error", [TypeError, AttributeError, KeyError, ValueError])
def test_a_template_of_which_no_job_can_be_made_fails_the_run(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """InvalidTemplate with the exception's words, not a wait without end."""

    def odd(*_: Any) -> None:
        raise error("podTemplate is odd")

    monkeypatch.setattr(controller, "job_object", odd)

    async def scenario() -> None:
        world = World()
        world.server.create("energystudies", study(cycles=1, values=1))
        world.operator()
        await world.until_over(limit_s=60)
        (row,) = world.experiment()["status"]["attempts"]
        assert (row["outcome"], row["reason"]) == ("Failed", "InvalidTemplate")
        assert "podTemplate is odd" in row["message"]
        assert world.server.all("jobs") == []

    play(scenario)


def in_environment(value: str) -> int:
    """Bytes of a value of which the kubelet is not to expand anything."""
    return len(value.encode()) + value.count("$(")


def record_in_pod(body: Object) -> str:
    """LLEM_STUDY_RECORD of the study's first Job."""
    template = next(iter(jobs_of(body, SETTINGS)))["spec"]["template"]
    return str(next(v["value"] for v in template["spec"]["containers"][0]["env"] if v["name"] == "LLEM_STUDY_RECORD"))


@pytest.mark.parametrize("text", ["x", "é", "$("], ids=["plain", "non-ASCII", "expansion"])
@pytest.mark.parametrize("size", [MAX_CONFIG_BYTES // 4, 4 * MAX_CONFIG_BYTES], ids=["fits", "too long"])
def test_a_study_record_that_does_not_fit_says_what_it_leaves_out(text: str, size: int) -> None:
    """The design is left out with a word, or is there as written; never more than a pod's environment takes."""
    count = size // (100 * in_environment(text) + 40)
    body = a_study(
        design={"backend": "synthetic", "experiments": [{"model": f"m{i}" + text * 100} for i in range(count)]}
    )
    found = accept_study(body, SETTINGS)
    assert isinstance(found, Accepted), found
    carried = record_in_pod(body)
    assert len(carried.encode()) <= MAX_CONFIG_BYTES
    record = json.loads(found.record)
    assert in_environment(found.record) <= MAX_CONFIG_BYTES
    if "design_omitted" in record:
        assert record["design"] is None
        assert "bytes do not fit" in record["design_omitted"]
    else:
        assert record["design"] == body["spec"]["design"]
    whole = json.dumps({**record, "design": body["spec"]["design"]}, ensure_ascii=False)
    assert ("design_omitted" in record) == (in_environment(whole) > MAX_CONFIG_BYTES)


@pytest.mark.parametrize(
    ("text", "count", "accepted"),
    [("é", 50_000, True), ("é", 70_000, False), ("$(", 30_000, True), ("$(", 50_000, False), ("x", 110_000, True)],
)
def test_a_configuration_is_measured_as_the_environment_carries_it(text: str, count: int, accepted: bool) -> None:
    """In UTF-8, not as escapes, and with every `$(` doubled."""
    body = a_study(design={"model": "m", "backend": "synthetic", "passthrough_kwargs": {"note": text * count}})
    found = accept_study(body, SETTINGS)
    assert isinstance(found, Accepted) is accepted
    if isinstance(found, Refused):
        assert "bytes of configuration" in found.message


def test_a_destination_that_moved_stalls_the_study_and_what_runs_goes_on() -> None:
    """The chart's default changed under it: nothing new starts until it is set back."""

    async def scenario() -> None:
        world = World()
        world.server.create("energystudies", study(cycles=1, values=3, execution=NO_GAPS))
        world.operator()
        await world.until(lambda: bool(world.machines.measuring))
        await asyncio.sleep(3)
        world.operators[0].die()
        world.settings = SETTINGS.model_copy(update={"results": {"uri": "s3://elsewhere/llem"}})
        world.operator()
        await asyncio.sleep(200)
        status = world.study()["status"]
        assert said(status)["Stalled"] == ("True", "DestinationChanged")
        assert "s3://elsewhere/llem" in message(world.study(), "Stalled")
        assert "s3://bench/llem" in message(world.study(), "Stalled")
        assert world.reason(world.experiment()) == "ResultStored"
        assert len(world.machines.measured) == len(world.server.all("jobs")) == 1
        assert await world.writes_while_idle() == []
        world.operators[0].die()
        world.settings = SETTINGS
        world.operator()
        await world.until_over()
        assert world.reason(world.study()) == "Completed"
        assert {m.run.split("/")[2] for m in world.machines.measured} == {"bench"}

    play(scenario)


def test_a_run_released_without_a_job_does_not_go_to_a_destination_that_moved() -> None:
    """The operator ended between the release and the Job; the one that comes next was given another default."""

    async def scenario() -> None:
        world = World()
        world.server.create("energystudies", study(cycles=1, values=2, execution=NO_GAPS))
        world.operator()
        await world.until(lambda: any(e["status"].get("attempt") for e in world.children()), step_s=0.01)
        world.operators[0].die()
        assert world.server.all("jobs") == []
        world.settings = SETTINGS.model_copy(update={"results": {"uri": "s3://elsewhere/llem"}})
        world.operator()
        await asyncio.sleep(200)
        assert world.reason(world.experiment()) == "DestinationChanged"
        assert world.server.all("jobs") == []
        assert await world.writes_while_idle() == []
        world.operators[0].die()
        world.settings = SETTINGS
        world.operator()
        await world.until_over()
        assert world.reason(world.study()) == "Completed"
        assert {m.run.split("/")[2] for m in world.machines.measured} == {"bench"}

    play(scenario)


def test_a_destination_of_the_study_itself_does_not_move_with_the_charts() -> None:
    """Named in the study, it stays."""

    async def scenario() -> None:
        world = World()
        body = study(cycles=1, values=2, execution=NO_GAPS, results={"uri": "s3://mine/x"})
        world.server.create("energystudies", body)
        world.operator()
        await world.until(lambda: bool(world.machines.measuring))
        world.operators[0].die()
        world.settings = SETTINGS.model_copy(update={"results": {"uri": "s3://elsewhere/llem"}})
        world.operator()
        await world.until_over()
        assert world.reason(world.study()) == "Completed"

    play(scenario)
