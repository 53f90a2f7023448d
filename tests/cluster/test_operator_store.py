"""A store that is away or refuses: the upload is tried again, the measurement is not, and the reason can be read."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.commands import ObjectStore
from cluster.operators import ON_THE_CPU, Bench, Object, destination, message, reason, wait_for
from cluster.oracles import Recorder, doubled, sound, unmeasured
from cluster.s3_server import BUCKET, KEY_ID, SECRET, Server

pytestmark = pytest.mark.cluster

MEASURES: Object = {"energy": {"backend": "none"}, "synthetic": {"batch_overhead_ms": 2000}}
UPLOADS_LONG = {**ON_THE_CPU, "deadlines": {"uploadSeconds": 300}}


@pytest.fixture
def own_store(bench: Bench, tmp_path: Path) -> Iterator[tuple[Server, Bench]]:
    """A store that this test can stop, on the address that pods reach, and the bench seen with it."""
    address = bench.store.endpoint.removeprefix("http://").rpartition(":")[0]
    server = Server(tmp_path / "own", address=address)
    server.start()
    found = ObjectStore(server.endpoint, str(server.objects), BUCKET, KEY_ID, SECRET, bench.store.region)
    keys = {"AWS_ACCESS_KEY_ID": KEY_ID, "AWS_SECRET_ACCESS_KEY": SECRET}
    bench.kube.ok("create", "secret", "generic", "own-store", *(f"--from-literal={k}={v}" for k, v in keys.items()))
    yield server, Bench(bench.kube, found, destination(found, "down", secret="own-store"))
    server.stop()
    bench.kube.ok("delete", "secret", "own-store")


def test_store_that_is_down_during_the_upload(own_store: tuple[Server, Bench]) -> None:
    """No store until the upload was tried five times again: one attempt, one window, uploaded when the store is back."""
    server, bench = own_store
    with Recorder(bench.kube) as recorder:
        bench.study("down", MEASURES, results=bench.results, template=UPLOADS_LONG)
        name = bench.measuring("down")["metadata"]["name"]
        wait_for(lambda: bench.stored(bench.get("down"), "config.json"), limit_s=60)
        server.stop()
        (pod,) = bench.pods(name)
        log = ("logs", pod["metadata"]["name"])
        wait_for(lambda: bench.kube.ok(*log).count('"event": "retry"') >= 5, limit_s=200)
        assert not bench.get("down")["status"]["finished"]
        server.start()
        study = bench.finished("down")

        (child,) = bench.children("down")
        assert (reason(study), child["status"]["attempt"]) == ("Completed", 1)
        assert child["status"]["result"]["adopted"] is False
        assert unmeasured(bench, "down") + doubled(recorder) == []
        assert sound(bench, "down") == []


def test_wrong_credentials_are_told_before_anything_is_measured(bench: Bench) -> None:
    """The store's refusal is the experiment's message; nothing was measured, and no secret is in it."""
    keys = {"AWS_ACCESS_KEY_ID": bench.store.access_key_id, "AWS_SECRET_ACCESS_KEY": "not-the-right-one-at-all"}
    bench.kube.ok("create", "secret", "generic", "wrong", *(f"--from-literal={k}={v}" for k, v in keys.items()))
    results = {**bench.results, "credentialsSecretRef": {"name": "wrong"}}
    bench.study("refused", MEASURES, results=results, retry={"infrastructure": 0})

    bench.finished("refused")

    (child,) = bench.children("refused")
    assert (reason(child), child["status"]["attempts"][0]["exitCode"]) == ("ResultNotStored", 17)
    assert "s3://" in message(child)
    assert "measurementStart" not in child["status"]["attempts"][0]
    assert "not-the-right-one" not in str(child["status"])
    assert sound(bench, "refused") == []
