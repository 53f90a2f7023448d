"""Parts on which everything else stands: patches, ranges, conditions, settings, refusals of the API, the Lease."""

import asyncio
import re
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes import virtual_time
from fakes.api_server import _merged
from fakes.world import Connection, Operator, World
from llem_operator.api import RateLimit, _refusal, merge_patch
from llem_operator.children import members, ranges
from llem_operator.cluster import Cluster
from llem_operator.conditions import MAX_MESSAGE, REASONS, Status, condition, find, merged
from llem_operator.experiment_status import four_digits
from llem_operator.lease import DURATION_S, Leadership, LeaseLostError
from llem_operator.settings import Settings
from llem_operator.timestamps import parse, text, whole_seconds
from llenergymeasure.core.errors import ConfigError

OPERATOR = Path(__file__).resolve().parents[2] / "operator" / "llem_operator"
NOW = datetime(2026, 3, 4, 5, 6, 7, 891_234, tzinfo=UTC)

LEAVES = st.booleans() | st.integers(0, 3) | st.sampled_from(["", "x", "y"])
KEYS = st.sampled_from("abcd")
OBJECTS = st.recursive(
    st.dictionaries(KEYS, LEAVES, max_size=3),
    lambda inner: st.dictionaries(KEYS, inner | st.lists(inner, max_size=2) | LEAVES, max_size=4),
    max_leaves=12,
)


@given(OBJECTS, OBJECTS)
def test_a_patch_turns_the_old_status_into_the_new(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Applied as RFC 7386 says; and it is empty exactly when nothing changes."""
    patch = merge_patch(old, new)
    assert _merged(old, patch) == new
    assert (patch == {}) == (old == new)


@given(st.sets(st.integers(0, 500)))
def test_ranges_are_read_back_as_they_were_written(indexes: set[int]) -> None:
    """Interval text loses nothing, and neighbours share an interval."""
    written = ranges(indexes)
    assert list(members(written)) == sorted(indexes)
    bounds = [[int(n) for n in part.split("-")] for part in written.split(",") if part]
    assert all(after[0] > before[-1] + 1 for before, after in pairwise(bounds))
    assert re.fullmatch(r"[0-9,-]*", written)


NUMBERS = {
    0: "0",
    123.456: "123.5",
    0.000123456: "0.0001235",
    1e9: "1000000000",
    99.995: "100",
    251.25: "251.2",
    -3.5: "-3.5",
}


@pytest.mark.parametrize(("value", "written"), NUMBERS.items())
def test_quantities_have_four_digits_and_no_exponent(value: float, written: str) -> None:
    """As people and kubectl's columns read them."""
    assert four_digits(value) == written


def test_the_time_of_a_transition_moves_only_with_the_status() -> None:
    """Another reason or message is no transition; tools sort by this time."""
    first = condition([], "Ready", "True", "Running", "a", generation=1, now=NOW)
    second = condition([first], "Ready", "True", "Suspended", "b", generation=2, now=NOW + timedelta(hours=1))
    third = condition([second], "Ready", "False", "RunsFailed", "c", generation=2, now=NOW + timedelta(hours=2))
    assert first["lastTransitionTime"] == second["lastTransitionTime"] == "2026-03-04T05:06:07Z"
    assert third["lastTransitionTime"] == "2026-03-04T07:06:07Z"
    assert (second["reason"], second["message"], second["observedGeneration"]) == ("Suspended", "b", 2)


def test_conditions_keep_their_order_and_one_of_each_type() -> None:
    """A list that does not change is not written."""
    a, b = (condition([], t, "True", "Valid", "", generation=1, now=NOW) for t in ("A", "B"))
    newer = {**a, "message": "x"}
    assert merged([a, b], [newer]) == [newer, b]
    assert merged([a], [b]) == [a, b]
    assert find([a, b], "B") == b
    assert find([a], "B") is None


def test_a_long_message_is_cut_and_says_so() -> None:
    """A status is bounded."""
    found = condition([], "Ready", "True", "Valid", "x" * 5000, generation=1, now=NOW)
    assert len(found["message"]) == MAX_MESSAGE
    assert found["message"].endswith("…")


def test_an_unknown_reason_cannot_be_written() -> None:
    """The list of reasons is closed and documented."""
    with pytest.raises(AssertionError, match="Whatever"):
        condition([], "Ready", "True", "Whatever", "", generation=1, now=NOW)
    assert set(get_args(Status)) == {"True", "False", "Unknown"}


def test_every_reason_is_used_and_every_word_that_looks_like_one_is_listed() -> None:
    """The reference tells users of no reason that the operator never gives."""
    source = "\n".join(p.read_text() for p in OPERATOR.glob("*.py") if p.name != "conditions.py")
    unused = [r for r in REASONS if f'"{r}"' not in source]
    assert unused == []


def test_instants_are_read_back_as_they_were_written() -> None:
    """Milliseconds in our own fields, whole seconds where metav1.Time is read; always UTC."""
    assert text(NOW) == "2026-03-04T05:06:07.891Z"
    assert whole_seconds(NOW) == "2026-03-04T05:06:07Z"
    assert parse(whole_seconds(NOW)) == NOW.replace(microsecond=0)
    assert parse("2026-03-04T06:06:07+01:00") == NOW.replace(microsecond=0)
    assert parse(None) is None
    assert parse("") is None


def test_settings_come_from_the_environment() -> None:
    """Lists and mappings as JSON, namespaces as a comma list, an empty variable is none."""
    found = Settings.from_environment(
        {
            "LLEM_OPERATOR_NAMESPACES": "a, b,",
            "LLEM_OPERATOR_IMAGES": '{"vllm": "x:1"}',
            "LLEM_OPERATOR_ALLOWED_IMAGES": '["r/"]',
            "LLEM_OPERATOR_MAX_RUNS": "10000",
            "LLEM_OPERATOR_ALLOW_HOST_PATH": "true",
            "LLEM_OPERATOR_RUNNER_SERVICE_ACCOUNT": "",
            "PATH": "/bin",
        }
    )
    assert found.namespaces == ("a", "b")
    assert found.images == {"vllm": "x:1"}
    assert found.allowed_images == ("r/",)
    assert found.max_runs == 10000
    assert found.allow_host_path is True
    assert found.runner_service_account is None
    assert Settings.from_environment({}) == Settings()


BAD = {
    "LLEM_OPERATOR_WORKERS": "many", "LLEM_OPERATOR_MAX_RUNS": "20000", "LLEM_OPERATOR_IMAGES": "{broken",
    "LLEM_OPERATOR_QPS": "0", "LLEM_OPERATOR_WORKES": "3", "LLEM_OPERATOR_ALLOWED_IMAGES": "r/",
}  # fmt: skip


@pytest.mark.parametrize(("variable", "value"), BAD.items())
def test_a_bad_setting_is_named(variable: str, value: str) -> None:
    """An operator that starts with half its settings would be worse than one that does not."""
    with pytest.raises(ConfigError, match=variable):
        Settings.from_environment({variable: value})


def test_a_refusal_is_read_from_whatever_the_server_sent() -> None:
    """Status objects, plain text and nothing; both spellings of when to try again."""
    status = b'{"kind":"Status","reason":"TooManyRequests","message":"slow","details":{"retryAfterSeconds":7}}'
    assert (_refusal(429, status, "3").retry_after_s, _refusal(429, status, None).reason) == (7.0, "TooManyRequests")
    assert _refusal(503, b"storage is (re)initializing", "2").retry_after_s == 2.0
    assert "re)init" in _refusal(503, b"storage is (re)initializing", None).message
    assert _refusal(500, b"", None).message == ""
    assert _refusal(502, b'"a string"', None).status == 502


def test_the_rate_limit_lets_a_burst_through_and_then_so_many_a_second() -> None:
    """100 at once, then 50/s: 300 requests take 4 s."""

    async def scenario() -> None:
        limit = RateLimit(50, 100, virtual_time.seconds)
        for _ in range(300):
            await limit.wait()
        assert virtual_time.seconds() == pytest.approx(4, abs=0.1)

    virtual_time.run(scenario())


async def _leaders(world: World) -> tuple[Leadership, Leadership]:
    lease = {"kind": "Lease", "metadata": {"name": "llem-operator", "namespace": "system"}, "spec": {}}
    world.server.create("leases", lease)

    def one(identity: str) -> Leadership:
        cluster = Cluster(Connection(world, Operator(world)))
        return Leadership(cluster, "system", "llem-operator", identity, virtual_time.seconds)

    return one("a"), one("b")


def _holder(world: World) -> str:
    lease = world.server.get("leases", "system", "llem-operator")
    assert lease is not None
    return str(lease["spec"].get("holderIdentity"))


def test_one_of_two_operators_leads_and_the_other_takes_over_when_it_is_silent() -> None:
    """The standby waits the full duration by its own clock; a leader that gives up its Lease is followed at once."""

    async def scenario() -> None:
        world = World()
        a, b = await _leaders(world)
        await a.acquire()
        keeping = asyncio.create_task(a.keep())
        waiting = asyncio.create_task(b.acquire())
        await asyncio.sleep(600)
        assert _holder(world) == "a"
        assert not waiting.done()
        keeping.cancel()
        silent = virtual_time.seconds()
        await waiting
        assert DURATION_S - 15 <= virtual_time.seconds() - silent <= DURATION_S + 31
        assert _holder(world) == "b"
        await b.release()
        again = virtual_time.seconds()
        await a.acquire()
        assert virtual_time.seconds() - again < 5
        lease = world.server.get("leases", "system", "llem-operator")
        assert lease is not None
        assert lease["spec"]["leaseTransitions"] == 3

    virtual_time.run(scenario())


def test_a_leader_that_cannot_renew_ends_before_another_may_lead() -> None:
    """The API server is away: it stops by itself within the Lease's duration."""

    async def scenario() -> None:
        world = World()
        a, _ = await _leaders(world)
        await a.acquire()
        await asyncio.sleep(1)
        taken = virtual_time.seconds()
        world.faults = dict.fromkeys(range(len(world.writes) + 1, 1000), "503")
        with pytest.raises(LeaseLostError):
            await a.keep()
        assert virtual_time.seconds() - taken <= DURATION_S + 1

    virtual_time.run(scenario())


def test_two_that_take_a_free_lease_at_once_do_not_both_get_it() -> None:
    """The second write is against a version that is gone."""

    async def scenario() -> None:
        world = World()
        a, b = await _leaders(world)
        first, second = await asyncio.gather(a._try(), b._try())
        assert first != second

    virtual_time.run(scenario())
