"""What a pod is told: read once, every wrong variable named."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from llenergymeasure.assignment import read_assignment
from llenergymeasure.core.errors import ConfigError

LEAST = {"LLEM_RUN_URI": "s3://bench/llem/sweep-0a1b2c3d/00003-0a1b2c3d-c2/", "LLEM_ATTEMPT": "3"}


def test_without_a_place_there_is_no_assignment() -> None:
    """Any other runner of `llem experiment` is left alone."""
    assert read_assignment({"LLEM_ATTEMPT": "1", "LLEM_STORE_REGION": "x"}) is None


def test_all_is_read() -> None:
    """Every variable of the contract arrives; the study's prefix is the run's parent."""
    duty = read_assignment(
        LEAST
        | {
            "LLEM_ADOPT_FROM": "2",
            "LLEM_INDEX": "3",
            "LLEM_CYCLE": "2",
            "LLEM_CONFIG_HASH": "0a1b2c3d0a1b2c3d",
            "LLEM_STUDY_RECORD": '{"name": "sweep"}',
            "LLEM_GAP_UNTIL": '{"node-a": "2026-03-01T12:00:00Z", "node-b": "2026-03-01T13:00:00+00:00"}',
            "LLEM_NODE_NAME": "node-b",
            "LLEM_UPLOAD_SECONDS": "60",
            "LLEM_STORE_ENDPOINT": "http://store:9000",
            "LLEM_STORE_REGION": "eu-central-1",
            "LLEM_STORE_CREDENTIALS": "/var/run/llem/store",
        }
    )

    assert duty is not None
    assert duty.study_uri == "s3://bench/llem/sweep-0a1b2c3d"
    assert (duty.attempt, duty.adopt_from, duty.index, duty.cycle, duty.upload_seconds) == (3, 2, 3, 2, 60)
    assert duty.gap_until == datetime(2026, 3, 1, 13, tzinfo=UTC)
    assert duty.study_record == {"name": "sweep"}
    assert (duty.access.endpoint, duty.access.region) == ("http://store:9000", "eu-central-1")
    assert duty.access.credentials == Path("/var/run/llem/store")


def test_defaults() -> None:
    """An address and an attempt are enough."""
    duty = read_assignment(LEAST)

    assert duty is not None
    assert (duty.adopt_from, duty.upload_seconds, duty.gap_until, duty.study_record) == (1, 900, None, None)
    assert duty.earlier == [3, 2, 1]


def test_flag_wins_over_the_environment() -> None:
    """--run-uri names another place."""
    duty = read_assignment(LEAST, "/data/sweep/00000-0a1b2c3d-c1")

    assert duty is not None
    assert duty.run_uri == "/data/sweep/00000-0a1b2c3d-c1"


def test_node_without_an_earlier_measurement_waits_for_nothing() -> None:
    """The pause belongs to a node; another one may begin."""
    duty = read_assignment(LEAST | {"LLEM_GAP_UNTIL": '{"a": "2026-03-01T12:00:00Z"}', "LLEM_NODE_NAME": "b"})

    assert duty is not None
    assert duty.gap_until is None


@pytest.mark.parametrize(
    ("more", "says"),
    [
        pytest.param({"LLEM_ATTEMPT": ""}, "LLEM_ATTEMPT: must be set", id="attempt missing"),
        pytest.param({"LLEM_ATTEMPT": "0"}, "LLEM_ATTEMPT: .* from 1", id="attempt 0"),
        pytest.param({"LLEM_ATTEMPT": "1.5"}, "LLEM_ATTEMPT", id="attempt is no whole number"),
        pytest.param({"LLEM_INDEX": "-1"}, "LLEM_INDEX", id="negative index"),
        pytest.param({"LLEM_CYCLE": "two"}, "LLEM_CYCLE", id="cycle is a word"),
        pytest.param({"LLEM_UPLOAD_SECONDS": "soon"}, "LLEM_UPLOAD_SECONDS", id="upload seconds are a word"),
        pytest.param({"LLEM_UPLOAD_SECONDS": "nan"}, "LLEM_UPLOAD_SECONDS", id="upload seconds are no number"),
        pytest.param({"LLEM_UPLOAD_SECONDS": "-5"}, "LLEM_UPLOAD_SECONDS", id="upload seconds are negative"),
        pytest.param({"LLEM_GAP_UNTIL": "{"}, "LLEM_GAP_UNTIL", id="gap is no JSON"),
        pytest.param({"LLEM_GAP_UNTIL": '{"a": "soon"}'}, "LLEM_GAP_UNTIL.*a:", id="gap is no time"),
        pytest.param({"LLEM_GAP_UNTIL": '{"a": "2026-03-01T12:00:00"}'}, "timezone", id="gap without a zone"),
        pytest.param({"LLEM_GAP_UNTIL": '{"a": "2026-03-01T12:00:00Z"}'}, "LLEM_NODE_NAME", id="node unknown"),
        pytest.param({"LLEM_STUDY_RECORD": "[]"}, "LLEM_STUDY_RECORD", id="study is a list"),
        pytest.param({"LLEM_STUDY_RECORD": "{"}, "LLEM_STUDY_RECORD", id="study is no JSON"),
        pytest.param({"LLEM_RUN_URI": "run"}, "LLEM_RUN_URI", id="place without a parent"),
    ],
)
def test_wrong_variable_is_named(more: dict[str, str], says: str) -> None:
    """A pod that cannot know what to do does nothing, and says which variable is wrong."""
    with pytest.raises(ConfigError, match=says):
        read_assignment(LEAST | more)
