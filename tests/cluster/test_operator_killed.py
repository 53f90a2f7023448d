"""An operator that is killed again and again on a real node: no run is lost and none is measured twice."""

import random
import re
import time

import pytest

from cluster.operators import Bench, Object, reason, wait_for
from cluster.oracles import Recorder, doubled, end_state, orphans, reopened, sound, unwaiting

pytestmark = pytest.mark.cluster

KILLS, SEED = 20, 20260101
SIX: Object = {"energy": {"backend": "none"}, "experiments": [{}, {"n": 3}]}
SLOW: Object = {"synthetic": {"batch_overhead_ms": 4000}}
"""Six runs then take longer than twenty kills."""


def test_twenty_kills_lose_nothing_and_repeat_nothing(bench: Bench) -> None:
    """SIGKILL at 20 random moments of a study of six runs: each run is measured once; the end is that without kills."""
    draw = random.Random(SEED)
    with Recorder(bench.kube) as recorder:
        bench.study("killed", SIX, SLOW, execution={"nCycles": 3}, parallelism=1)
        for _ in range(KILLS):
            bench.process()
            time.sleep(draw.uniform(0.5, 5))  # seconds after the start of its Python
            bench.kill()
            assert list(unwaiting(bench.children("killed"))) == []
        early = not bench.get("killed")["status"]["finished"]
        study = bench.finished("killed")

        assert sound(bench, "killed", recorder=recorder) == []
        assert len(bench.stored(study)) == 6
        assert [c["status"]["attempt"] for c in bench.children("killed")] == [1] * 6
        assert early, "the study was over before the last kill"
    bench.study("unharmed", SIX, execution={"nCycles": 3}, parallelism=2)
    bench.finished("unharmed")
    assert end_state(bench, "killed") == end_state(bench, "unharmed")


def test_kills_during_the_expansion_of_a_large_study(bench: Bench) -> None:
    """Three kills while 300 experiments are created: `Expanded` only when all exist, each made once, none started."""
    draw = random.Random(SEED)
    with Recorder(bench.kube) as recorder:
        bench.study(
            "large", {"experiments": [{"random_seed": i} for i in range(100)]}, execution={"nCycles": 3}, suspend=True
        )
        for share in (20, 120, 220):
            wait_for(lambda share=share: len(bench.children("large")) >= share + draw.randrange(30))
            seen = bench.get("large")
            assert reason(seen, "Expanded") in ("", "Expanding")
            bench.kill()
            bench.process()
        study = bench.until("est", "large", lambda s: reason(s, "Expanded") == "AllCreated")

        made = [o["metadata"]["name"] for what, o in recorder.changes("experiments") if what == "ADDED"]
        made = [n for n in made if re.match(r"large-\d", n)]
        assert (len(made), len(set(made))) == (300, 300)
        assert study["status"]["counts"]["pending"] == 300
        assert bench.jobs("large") == []
        assert doubled(recorder) + reopened(recorder) == []
        bench.kill()
        bench.delete("est", "large", "--cascade=foreground", "--timeout=120s")
    assert orphans(bench) == []
