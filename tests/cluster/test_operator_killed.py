"""An operator that is killed again and again on a real node: no run is lost and none is measured twice."""

import random
import re
import time
from collections.abc import Iterator

import pytest

from cluster.charts import Helm
from cluster.commands import ObjectStore
from cluster.kube import Kube
from cluster.operators import Bench, Object, installed, reason, wait_for
from cluster.oracles import Recorder, doubled, end_state, orphans, reopened, sound, unwaiting

pytestmark = pytest.mark.cluster

KILLS, SEED = 20, 20260101
TWO: Object = {"energy": {"backend": "none"}, "experiments": [{}, {"n": 3}]}
SLOW: Object = {"synthetic": {"batch_overhead_ms": 4000}}
CYCLES = 6
"""Twelve runs, one after the other, take three times as long as twenty kills."""
ALL = 300
SELDOM: Object = {"operator": {"qps": 5, "burst": 10}}


@pytest.fixture
def slow_bench(node_api: Kube, node_helm: Helm, images: dict[str, str], object_store: ObjectStore) -> Iterator[Bench]:
    """An operator that asks the API server five times a second: 300 experiments take it a minute."""
    with installed(node_api, node_helm, images, object_store, more=SELDOM) as found:
        yield found


def test_twenty_kills_lose_nothing_and_repeat_nothing(bench: Bench) -> None:
    """SIGKILL at 20 random moments of a study of twelve runs: each is measured once; the end is that without kills."""
    draw = random.Random(SEED)
    with Recorder(bench.kube) as recorder:
        bench.study("killed", TWO, SLOW, execution={"nCycles": CYCLES}, parallelism=1)
        for _ in range(KILLS):
            bench.process()
            time.sleep(draw.uniform(0.5, 5))  # seconds after the start of its Python
            bench.kill()
            assert list(unwaiting(bench.children("killed"))) == []
        early = not bench.get("killed")["status"]["finished"]
        bench.change("killed", parallelism=4)  # what is left need not take long
        study = bench.finished("killed", limit_s=600)

        assert sound(bench, "killed", recorder=recorder) == []
        assert len(bench.stored(study)) == 2 * CYCLES
        assert [c["status"]["attempt"] for c in bench.children("killed")] == [1] * 2 * CYCLES
        assert early, "the study was over before the last kill"
    bench.study("unharmed", TWO, execution={"nCycles": CYCLES}, parallelism=4)
    bench.finished("unharmed")
    assert end_state(bench, "killed") == end_state(bench, "unharmed")


def test_kills_during_the_expansion_of_a_large_study(slow_bench: Bench) -> None:
    """Three kills while 300 experiments are created: `Expanded` only when all exist, each made once, none started."""
    draw, bench = random.Random(SEED), slow_bench
    with Recorder(bench.kube) as recorder:
        bench.study(
            "large", {"experiments": [{"random_seed": i} for i in range(100)]}, execution={"nCycles": 3}, suspend=True
        )
        for share in (20, 120, 220):
            wait_for(lambda share=share: len(bench.children("large")) >= share + draw.randrange(30))
            seen = reason(bench.get("large"), "Expanded")  # first: what it says of the experiments was true by then
            there = len(bench.children("large"))
            assert seen in ("", "Expanding") or (seen, there) == ("AllCreated", ALL)
            assert there < ALL, "all experiments were there before the kill"
            bench.kill()
            bench.process()
        study = bench.until("est", "large", lambda s: reason(s, "Expanded") == "AllCreated")

        made = [o["metadata"]["name"] for what, o in recorder.changes("experiments") if what == "ADDED"]
        made = [n for n in made if re.match(r"large-\d", n)]
        assert (len(made), len(set(made))) == (ALL, ALL)
        assert study["status"]["counts"]["pending"] == ALL
        assert bench.jobs("large") == []
        assert doubled(recorder) + reopened(recorder) == []
        bench.kill()
        bench.delete("est", "large", "--cascade=foreground", "--timeout=240s")
    assert orphans(bench) == []
