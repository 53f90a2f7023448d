"""Results in a real S3 store: written once, waited for, adopted, reported from; `llem experiment` as pods run it."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cli.process import FAST, LLEM, Ended, llem, start, wait_until
from cluster.s3_server import BUCKET, SECRET, Server
from llenergymeasure.core.errors import ConfigError, ResultStoreError
from llenergymeasure.object_store import Access, NotTakenError, Place, open_place
from llenergymeasure.waiting import Patience
from store.pods import STUDY, Pod, Time

FILES = {"config.json", "environment.json", "timeseries.parquet", "result.json"}
SLOW = {"measurement": {"min_duration_seconds": 3}}
"""Laid over FAST: a window long enough to stop a server in."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A running store with one bucket."""
    found = Server(tmp_path / "s3")
    found.start()
    yield found
    found.stop()


def place(server: Server, path: str = f"{BUCKET}/llem", **access: Any) -> Place:
    """A prefix of the store."""
    return open_place(
        f"s3://{path}", Access(**{"endpoint": server.endpoint, "credentials": server.credentials, **access})
    )


@pytest.fixture
def pod(server: Server, tmp_path: Path) -> Pod:
    """A first attempt whose results go to the store."""
    record = {
        "name": "sweep",
        "design": {k: v for k, v in FAST.items() if k != "n"} | {"sweep": {"n": [2, 3]}},
        "execution": {"nCycles": 1},
    }
    return Pod(
        f"s3://{BUCKET}/llem", tmp_path / "log", more={**server.variables, "LLEM_STUDY_RECORD": json.dumps(record)}
    )


def with_(pod: Pod, **fields: Any) -> Pod:
    """A pod that differs; `more` adds to its environment."""
    more = {**pod.more, **fields.pop("more", {})}
    return Pod(**{**vars(pod), **fields, "more": more})


def run(pod: Pod) -> Ended:
    """Run a pod to its end."""
    return llem("experiment", cwd=pod.log.parent, env=pod.environment())


def attempt(pod: Pod, number: int = 1) -> set[str]:
    """Names of an attempt's files."""
    return {f"llem/{STUDY}/{pod.run}/a{number}/{n}" for n in FILES}


def test_second_write_compares(server: Server) -> None:
    """412 from a real server: equal content is stored, other content an error; nothing changes."""
    run_ = place(server).below("a1")

    first, again = (run_.put_new("result.json", b"one", Patience(5)) for _ in range(2))
    with pytest.raises(ResultStoreError, match="holds other content"):
        run_.put_new("result.json", b"two", Patience(5))

    assert first == again
    assert run_.get("result.json", Patience(5)) == b"one"
    assert run_.get("none.json", Patience(5)) is None
    assert place(server).names(Patience(5)) == ["a1/result.json"]


def test_large_file_is_one_conditional_write(server: Server) -> None:
    """Twenty megabytes of samples are written in one part, since parts cannot be conditional."""
    content = os.urandom(20_000_000)

    place(server).put_new("raw_samples.json", content, Patience(5))
    with pytest.raises(ResultStoreError, match="holds other content"):
        place(server).put_new("raw_samples.json", content + b"x", Patience(5))

    assert (server.objects / BUCKET / "llem/raw_samples.json").stat().st_size == len(content)


def test_wrong_credentials_are_named_soon(server: Server) -> None:
    """Half a minute of patience, then the store's own word for it, and no part of any key."""
    server.give_credentials("wrong-secret-of-nobody")
    clock = Time()

    with pytest.raises(
        ResultStoreError, match=r"403 Forbidden \(SignatureDoesNotMatch\); check the credentials"
    ) as err:
        place(server).put_new("x", b"", Patience(900, clock.clock))

    assert clock.passed_s == pytest.approx(30)
    assert "wrong-secret" not in str(err.value)


def test_renewed_credentials_are_taken(server: Server) -> None:
    """A Secret that is mended while a run measures: the files are read again."""
    server.give_credentials("wrong-secret-of-nobody")
    mended = threading.Timer(1.0, server.give_credentials, (SECRET,))
    mended.start()

    place(server).put_new("x", b"1", Patience(30))

    mended.join()
    assert server.names() == {"llem/x"}


@pytest.mark.parametrize("content", [b"x", b""], ids=["a file", "an empty one"])
def test_absent_bucket_is_named_soon(server: Server, content: bytes) -> None:
    """A typing error in the bucket's name is final after half a minute."""
    clock = Time()

    with pytest.raises(ResultStoreError, match="s3://bnech/llem/x: cannot be stored: no such bucket"):
        place(server, "bnech/llem").put_new("x", content, Patience(900, clock.clock))

    assert clock.passed_s == pytest.approx(30)


def test_secret_without_a_key_is_named(server: Server) -> None:
    """Found before anything is measured."""
    (server.credentials / "AWS_SECRET_ACCESS_KEY").unlink()

    with pytest.raises(ConfigError, match="has no AWS_SECRET_ACCESS_KEY"):
        place(server)


def test_store_that_comes_back_gets_the_file(server: Server) -> None:
    """Down, then up within the budget: one write in the end."""
    server.stop()
    back = threading.Timer(2.0, server.start)
    back.start()

    stored = place(server).put_new("x", b"1", Patience(60))

    back.join()
    assert stored.sha256 == hashlib.sha256(b"1").hexdigest()
    assert server.names() == {"llem/x"}


def test_store_that_stays_away_ends_the_patience(server: Server) -> None:
    """Exactly the budget, by the injected clock."""
    server.stop()
    clock = Time()

    with pytest.raises(NotTakenError, match="could not be stored in the time given"):
        place(server).put_new("x", b"1", Patience(900, clock.clock))

    assert clock.passed_s == pytest.approx(900, abs=5)


def test_many_writers_of_one_name_agree(server: Server) -> None:
    """Of ten processes that write study.json at once, one wins and none fails."""
    with ThreadPoolExecutor(10) as pool:
        won = list(
            pool.map(lambda i: place(server).put_if_absent("study.json", str(i).encode(), Patience(20)), range(10))
        )

    content = place(server).get("study.json", Patience(5))
    assert won.count(True) == 1
    assert content == str(won.index(True)).encode()


def test_run_of_a_cluster(server: Server, pod: Pod) -> None:
    """Study and the attempt's four files; the digest in the message is the object's."""
    ended = run(pod)

    said = pod.said
    assert ended.code == 0, ended.err
    assert server.names() == {f"llem/{STUDY}/study.json", *attempt(pod)}
    assert said.uri == f"s3://{BUCKET}/llem/{STUDY}/{pod.run}/a1/result.json"
    assert said.sha256 == hashlib.sha256((server.objects / said.uri.removeprefix("s3://")).read_bytes()).hexdigest()
    assert SECRET not in ended.err + pod.log.read_text()


def test_lost_message_is_adopted(server: Server, pod: Pod) -> None:
    """The node vanished after the upload: the next attempt measures nothing and says the first one's digest."""
    run(pod)
    first = pod.said
    pod.log.unlink()

    ended = run(with_(pod, attempt=2))

    assert ended.code == 0
    assert (pod.said.adopted, pod.said.sha256, pod.said.uri) == (True, first.sha256, first.uri)
    assert '"window"' not in ended.err
    assert server.names() == {f"llem/{STUDY}/study.json", *attempt(pod)}


def test_crash_between_two_files_is_measured_again(server: Server, pod: Pod) -> None:
    """Without result.json an attempt is nothing, whatever else it left."""
    run(pod)
    (server.objects / BUCKET / f"llem/{STUDY}/{pod.run}/a1/result.json").unlink()

    ended = run(with_(pod, attempt=2))

    assert ended.code == 0
    assert not pod.said.adopted
    assert attempt(pod, 2) <= server.names()


def test_store_down_during_the_measurement(server: Server, pod: Pod) -> None:
    """Stopped in the window, back later: stored without a second measurement, the waiting told."""
    pod = with_(pod, body=SLOW)
    child = start("experiment", cwd=pod.log.parent, env=pod.environment())
    assert child.stderr is not None
    wait_until(lambda: '"window"' in child.stderr.readline())
    server.stop()
    told = wait_until(lambda: next((x for x in [child.stderr.readline()] if '"retry"' in x), None))
    server.start()

    _, rest = child.communicate(timeout=60)

    assert child.returncode == 0, rest
    assert json.loads(told)["message"].startswith("the store: ")
    assert attempt(pod) <= server.names()
    assert not pod.said.adopted


def test_store_down_for_too_long_is_17(server: Server, pod: Pod) -> None:
    """After LLEM_UPLOAD_SECONDS the run has failed for want of a store; the message says so."""
    pod = with_(pod, body=SLOW, more={"LLEM_UPLOAD_SECONDS": "2"})
    child = start("experiment", cwd=pod.log.parent, env=pod.environment())
    assert child.stderr is not None
    wait_until(lambda: '"window"' in child.stderr.readline())
    server.stop()
    child.communicate(timeout=60)

    assert child.returncode == 17
    assert pod.said.failure is not None
    assert (pod.said.failure.type, pod.said.failure.phase) == ("NotTakenError", "upload")


def test_sigterm_while_the_store_is_down(server: Server, pod: Pod) -> None:
    """A drained node during an upload: when the store comes back within the grace period, the result is saved."""
    pod = with_(pod, body=SLOW)
    child = start("experiment", cwd=pod.log.parent, env=pod.environment())
    assert child.stderr is not None
    wait_until(lambda: '"window"' in child.stderr.readline())
    server.stop()
    wait_until(lambda: '"retry"' in child.stderr.readline())
    os.kill(child.pid, signal.SIGTERM)
    server.start()

    child.communicate(timeout=40)

    assert child.returncode == 0
    assert attempt(pod) <= server.names()


def test_failed_run_leaves_failure_json(server: Server, pod: Pod) -> None:
    """So that the store alone tells what happened."""
    pod = with_(pod, body={"synthetic": {"fail_after_batches": 0}})

    assert run(pod).code == 16

    noted = json.loads((server.objects / BUCKET / f"llem/{STUDY}/{pod.run}/a1/failure.json").read_bytes())
    assert (noted["error"]["type"], noted["error"]["exit_code"]) == ("BackendError", 16)
    assert pod.said.outcome == "failed"


def test_two_pods_race_for_the_study(server: Server, pod: Pod) -> None:
    """Both runs of a parallel study begin at once: both succeed, study.json is whole."""
    other = with_(pod, index=1, body={"n": 3}, log=pod.log.with_name("other"))
    children = [
        subprocess.Popen(
            [str(LLEM), "experiment"], cwd=pod.log.parent, env={**os.environ, **p.environment()}, stderr=subprocess.PIPE
        )
        for p in (pod, other)
    ]

    codes = [c.wait(timeout=60) for c in children]

    assert codes == [0, 0]
    record = json.loads((server.objects / BUCKET / f"llem/{STUDY}/study.json").read_bytes())
    assert record == json.loads(pod.more["LLEM_STUDY_RECORD"])
    assert {pod.said.outcome, other.said.outcome} == {"stored"}


def report(server: Server, *words: object, cwd: Path) -> Ended:
    """`llem report` with keys in the environment, as in a shell."""
    return llem("report", *words, "--endpoint", server.endpoint, cwd=cwd, env=server.keys)


def test_report_from_the_store_equals_the_report_from_a_copy(server: Server, pod: Pod, tmp_path: Path) -> None:
    """One run measured, one failed: the table needs neither cluster nor download, and a download tells the same."""
    run(pod)
    failed = with_(pod, index=1, body={"n": 3})
    broken = failed.environment() | {"LLEM_GPU_COUNT": "9"}
    assert llem("experiment", cwd=tmp_path, env=broken).code == 11
    copy = tmp_path / "copy"
    shutil.copytree(server.objects / BUCKET / "llem" / STUDY, copy)

    there = report(server, f"s3://{BUCKET}/llem/{STUDY}", cwd=tmp_path)
    here = llem("report", copy, cwd=tmp_path)
    data = [json.loads(report(server, f"s3://{BUCKET}/llem/{STUDY}", "--json", cwd=tmp_path).out)]
    data.append(json.loads(llem("report", copy, "--json", cwd=tmp_path).out))

    assert there.code == 0, there.err
    assert there.out.replace(f"s3://{BUCKET}/llem/{STUDY}", str(copy)) == here.out
    assert [d.pop("directory") for d in data] == [f"s3://{BUCKET}/llem/{STUDY}", str(copy)]
    assert data[0] == data[1]
    assert data[0]["summary"] == {"generated": 2, "runs": 2, "ran": 1, "failed": 1, "skipped": 0, "invalid": 1}
    assert "failed run 1 (cycle 1, synthetic n=3): PreFlightError: 9 GPUs must be visible" in there.out


def test_report_of_a_store_that_is_down_is_one_sentence(server: Server, tmp_path: Path) -> None:
    """A person does not wait for a quarter of an hour."""
    server.stop()
    began_s = time.monotonic()

    ended = report(server, f"s3://{BUCKET}/llem/{STUDY}", cwd=tmp_path)

    assert ended.code == 1
    assert "the store does not answer" in ended.err
    assert time.monotonic() - began_s < 100
