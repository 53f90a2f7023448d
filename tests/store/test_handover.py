"""One run of a cluster: an earlier result is taken, the pause waited for, the measurement stored and never repeated."""

import json
import os
import signal
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from llenergymeasure import handover, store
from llenergymeasure.assignment import Assignment
from llenergymeasure.core.errors import ConfigError, ResultStoreError, TerminatedError, UnreachableError
from llenergymeasure.core.identity import measurement_config_hash
from llenergymeasure.handover import Handover
from llenergymeasure.measure import Measured
from llenergymeasure.object_store import Access, Place
from llenergymeasure.waiting import MayPassError, RefusedError
from store.pods import Memory, Time, changed, config

RUN = "mem://bucket/sweep-0a1b2c3d/00000-0a1b2c3d-c1"
DOWN = MayPassError("connection refused")
ATTEMPT_FILES = {"config.json", "environment.json", "timeseries.parquet", "result.json"}


class Cluster:
    """The store, the clock and the measurement of one run, and what its process said."""

    def __init__(self, measured: Measured) -> None:
        self.memory, self.time, self.said = Memory(), Time(), list[dict[str, Any]]()
        self.measured, self.measurements = measured, 0
        self.during: Callable[[], object] = lambda: None

    def open(self, uri: str, access: Access) -> Place:
        """The place below the bucket that a URI names."""
        assert uri.startswith("mem://bucket/")
        return Place(uri, self.memory, uri.removeprefix("mem://bucket/") + "/")

    def measure(self) -> Measured:
        """Pretend to measure."""
        self.measurements += 1
        self.during()
        return self.measured

    def attempt(self, number: int = 1, **fields: Any) -> Handover:
        """One attempt's process."""
        duty = Assignment(RUN, number, **{"study_record": {"name": "sweep"}, **fields})
        return Handover(duty, self.said.append, self.time.clock)

    def run(self, number: int = 1, **fields: Any) -> Any:
        """One attempt from beginning to end."""
        return self.attempt(number, **fields).bring_home(config(), self.measure)

    @property
    def files(self) -> set[str]:
        """Files of the run, relative to it."""
        return {n.split("/", 2)[2] for n in self.memory.files if n.count("/") > 1}

    def put(self, name: str, content: bytes) -> None:
        """A file that an earlier attempt left."""
        self.memory.files[f"sweep-0a1b2c3d/00000-0a1b2c3d-c1/{name}"] = content

    @property
    def phases(self) -> list[str]:
        """The phases that were said."""
        return [e["phase"] for e in self.said if e["event"] == "phase"]


@pytest.fixture
def cluster(measured: Measured, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """A store in memory instead of the one that the URI names."""
    found = Cluster(measured)
    monkeypatch.setattr(handover, "open_place", found.open)
    return found


def result_bytes(measured: Measured, **fields: Any) -> bytes:
    """A stored result."""
    return (changed(measured.result, **fields).to_json() + "\n").encode()


def test_first_attempt_stores_everything_result_last(cluster: Cluster) -> None:
    """Study, then the attempt's files; where result.json is, the others are."""
    record = cluster.run()

    assert cluster.files == {f"a1/{n}" for n in ATTEMPT_FILES}
    assert list(cluster.memory.files)[-1].endswith("a1/result.json")
    assert json.loads(cluster.memory.files["sweep-0a1b2c3d/study.json"]) == {"name": "sweep"}
    assert (record.outcome, record.adopted, record.uri) == ("stored", False, f"{RUN}/a1/result.json")
    assert cluster.phases == ["adopt", "upload"]


def test_lost_message_is_no_second_measurement(cluster: Cluster) -> None:
    """A result of an earlier attempt is this run's result: nothing is loaded, the digest is its own."""
    first = cluster.run(1)

    second = cluster.run(2)

    assert cluster.measurements == 1
    assert (second.adopted, second.sha256, second.uri) == (True, first.sha256, first.uri)
    assert second.numbers == first.numbers
    assert not any(n.startswith("a2") for n in cluster.files)


def test_newest_earlier_result_counts(cluster: Cluster, measured: Measured) -> None:
    """After a repetition that was asked for, the repetition is the result."""
    cluster.put("a1/result.json", result_bytes(measured, output_tokens=1))
    cluster.put("a2/result.json", result_bytes(measured, output_tokens=2))

    assert cluster.run(4).numbers.output_tokens == 2


def test_repetition_that_was_asked_for_measures_again(cluster: Cluster) -> None:
    """LLEM_ADOPT_FROM is the attempt from which on results count: those before it were to be repeated."""
    cluster.run(1)

    record = cluster.run(2, adopt_from=2)

    assert (cluster.measurements, record.adopted) == (2, False)
    assert record.uri.endswith("/a2/result.json")


def test_second_pod_of_one_attempt_adopts_too(cluster: Cluster) -> None:
    """Should one attempt ever get two pods, the second finds the first one's result."""
    cluster.run(1)

    assert cluster.run(1).adopted
    assert cluster.measurements == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        pytest.param("a1/timeseries.parquet", b"x", id="killed between two files"),
        pytest.param("a1/result.json", b'{"schema_version": "2.0", "measu', id="cut off"),
        pytest.param("a1/result.json", b"\xff\xfe", id="no text"),
        pytest.param("a1/failure.json", b"{}", id="failed"),
    ],
)
def test_incomplete_attempt_is_not_adopted(cluster: Cluster, name: str, content: bytes) -> None:
    """Only a whole result.json is a result; then the run is measured, in a folder of its own."""
    cluster.put(name, content)

    record = cluster.run(2)

    assert (cluster.measurements, record.adopted) == (1, False)
    assert {f"a2/{n}" for n in ATTEMPT_FILES} <= cluster.files


def test_result_of_another_configuration_is_not_adopted(cluster: Cluster, measured: Measured) -> None:
    """A result that lies in the wrong place is not this run's, and that is said."""
    cluster.put("a1/result.json", result_bytes(measured, measurement_config_hash="f" * 16))

    cluster.run(2)

    assert cluster.measurements == 1
    assert any("is of configuration ffff" in e.get("message", "") for e in cluster.said)


def test_store_that_is_down_before_a_retry_is_waited_for(cluster: Cluster) -> None:
    """Not knowing whether there is a result, a second attempt must not measure."""
    cluster.run(1)
    cluster.memory.faults = [DOWN] * 8

    assert cluster.run(2).adopted
    assert cluster.measurements == 1


def test_store_that_stays_down_before_a_retry_is_unreachable(cluster: Cluster) -> None:
    """The attempt ends without a measurement; the operator tries again later."""
    cluster.memory.always = DOWN

    with pytest.raises(UnreachableError, match="does not answer"):
        cluster.run(2)

    assert (cluster.measurements, cluster.time.passed_s) == (0, pytest.approx(900))


def test_store_that_is_down_before_a_first_attempt_may_come_back(cluster: Cluster) -> None:
    """Nothing can have been lost yet: after half a minute the run is measured and stored when the store is back."""
    cluster.memory.always = DOWN
    cluster.during = lambda: setattr(cluster.memory, "always", None)

    record = cluster.run(1)

    assert record.outcome == "stored"
    assert cluster.time.passed_s < 100
    assert {f"a1/{n}" for n in ATTEMPT_FILES} == cluster.files
    assert "sweep-0a1b2c3d/study.json" in cluster.memory.files


def test_wrong_credentials_are_found_before_the_gpu_works(cluster: Cluster) -> None:
    """A refusal is known before anything is loaded."""
    cluster.memory.always = RefusedError("403 Forbidden (SignatureDoesNotMatch); check the credentials")

    with pytest.raises(ResultStoreError, match="SignatureDoesNotMatch"):
        cluster.run(1)

    assert cluster.measurements == 0


def test_store_that_falls_over_during_the_run_is_waited_for(cluster: Cluster) -> None:
    """The upload is tried again, the measurement is not; each pause is told."""
    cluster.during = lambda: setattr(cluster.memory, "faults", [DOWN] * 9)

    cluster.run(1)

    assert cluster.measurements == 1
    assert [e["message"] for e in cluster.said if e["event"] == "retry"] == ["the store: connection refused"] * 9


def test_store_that_stays_away_is_17_after_its_time(cluster: Cluster) -> None:
    """LLEM_UPLOAD_SECONDS bounds all waiting of the upload."""
    cluster.during = lambda: setattr(cluster.memory, "always", DOWN)

    with pytest.raises(ResultStoreError, match="in the time given: connection refused") as err:
        cluster.run(1, upload_seconds=120)

    assert (err.value.run_exit_code, cluster.measurements) == (17, 1)
    assert cluster.time.passed_s == pytest.approx(120)


def test_study_of_another_process_is_left_alone(cluster: Cluster) -> None:
    """The first run writes study.json; a later one, whose study has more cycles by now, is no conflict."""
    cluster.memory.files["sweep-0a1b2c3d/study.json"] = b"{}"

    assert cluster.run(1).outcome == "stored"
    assert cluster.memory.files["sweep-0a1b2c3d/study.json"] == b"{}"


def test_pause_is_waited_for_before_anything_is_loaded(cluster: Cluster) -> None:
    """Until the given second, and said: a waiting pod shows why it waits."""
    began: list[float] = []
    cluster.during = lambda: began.append(cluster.time.passed_s)

    cluster.run(1, gap_until=cluster.time.start + timedelta(seconds=100))

    assert began == [pytest.approx(100)]
    assert cluster.phases == ["adopt", "gap", "upload"]
    (gap,) = [e for e in cluster.said if e.get("phase") == "gap"]
    assert gap["seconds"] == 100
    assert gap["until"] == "2026-03-01T12:01:40+00:00"


def test_pause_that_is_over_is_no_phase(cluster: Cluster) -> None:
    """Nothing is waited for, nothing said."""
    cluster.run(1, gap_until=cluster.time.start - timedelta(seconds=1))

    assert cluster.phases == ["adopt", "upload"]
    assert cluster.time.slept == []


def test_adoption_does_not_wait_for_the_pause(cluster: Cluster) -> None:
    """Nothing will be measured, so no pause is needed."""
    cluster.run(1)

    cluster.run(2, gap_until=cluster.time.start + timedelta(hours=1))

    assert cluster.time.passed_s == 0


def test_other_hash_than_the_operators_is_refused(cluster: Cluster) -> None:
    """An image of another version would store results that nobody finds again."""
    with pytest.raises(ConfigError, match="LLEM_CONFIG_HASH is ffffffffffffffff, but this version"):
        cluster.run(1, config_hash="f" * 16)

    assert cluster.run(1, config_hash=measurement_config_hash(config())).outcome == "stored"


def test_sigterm_during_an_upload_lets_it_end(cluster: Cluster) -> None:
    """A short outage is still survived: the result is stored, and the process ends with success."""

    def told_to_stop() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        cluster.memory.always = None

    cluster.during = lambda: setattr(cluster.memory, "always", DOWN)
    cluster.time.at[1.0] = told_to_stop

    assert cluster.run(1).outcome == "stored"


def test_sigterm_during_an_upload_that_cannot_end_is_19(cluster: Cluster) -> None:
    """Within the kubelet's grace period the process gives up, and says that it was stopped."""
    cluster.during = lambda: setattr(cluster.memory, "always", DOWN)
    cluster.time.at[50.0] = lambda: os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(TerminatedError, match="SIGTERM while the result waited for the store") as err:
        cluster.run(1)

    assert err.value.run_exit_code == 19
    assert 89 < cluster.time.passed_s < 92


def test_failure_is_noted(cluster: Cluster) -> None:
    """failure.json says which run, which attempt, when and why."""
    attempt = cluster.attempt(2, index=7, cycle=3, config_hash=measurement_config_hash(config()), node="node-a")
    attempt.config = config()

    attempt.note_failure({"type": "BackendError", "message": "boom", "phase": "load", "exit_code": 16})

    noted = json.loads(cluster.memory.files[f"sweep-0a1b2c3d/00000-0a1b2c3d-c1/a2/{store.FAILURE}"])
    assert noted["error"] == {"type": "BackendError", "message": "boom", "phase": "load", "exit_code": 16}
    assert {k: noted[k] for k in ("index", "cycle", "attempt", "node")} == {
        "index": 7, "cycle": 3, "attempt": 2, "node": "node-a",
    }  # fmt: skip
    assert noted["failed_at"] == "2026-03-01T12:00:00+00:00"
    assert noted["summary"] == "synthetic bf16"


def test_failure_that_cannot_be_noted_hides_nothing(cluster: Cluster) -> None:
    """A store that is down, too, is given five seconds and no word."""
    cluster.memory.always = DOWN

    cluster.attempt().note_failure({"type": "BackendError", "message": "boom", "phase": "load", "exit_code": 16})

    assert cluster.time.passed_s == pytest.approx(5)
