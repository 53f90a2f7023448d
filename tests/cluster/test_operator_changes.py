"""What may change while a study runs: suspended and resumed, more at once; and two operators over the same studies."""

from typing import Any

import pytest

from cli.process import over
from cluster.charts import Helm
from cluster.operators import Bench, Object, conditions, install, reason, values, wait_for
from cluster.oracles import Recorder, end_state, sound

pytestmark = pytest.mark.cluster

SLOW: Object = {"energy": {"backend": "none"}, "synthetic": {"batch_overhead_ms": 2000}}
LONG: Object = {"energy": {"backend": "none"}, "synthetic": {"batch_overhead_ms": 8000}}
"""A run of about half a minute: it is not over before it is told to stop."""


def several(count: int, layer: Object) -> Object:
    """So many configurations."""
    return {**layer, "experiments": [{"random_seed": n} for n in range(count)]}


def running(bench: Bench, study: str) -> int:
    """How many runs are under way."""
    return int(bench.get(study)["status"].get("counts", {}).get("running", 0))


def test_suspended_study_drains_and_resumes(bench: Bench) -> None:
    """Drain: the run under way is completed and no other starts; resumed, the rest is measured, each once."""
    with Recorder(bench.kube) as recorder:
        bench.study("drain", several(2, SLOW))
        wait_for(lambda: running(bench, "drain") == 1)
        bench.change("drain", suspend=True)
        held = bench.until("est", "drain", lambda s: s["status"]["counts"]["completed"] == 1)
        assert (reason(held), conditions(held)["Suspended"]["status"]) == ("Suspended", "True")
        assert [c["status"].get("attempt", 0) for c in bench.children("drain")].count(0) == 1
        assert conditions(held)["Ready"]["status"] == "True"

        bench.change("drain", suspend=False)
        bench.finished("drain")
        assert [c["status"]["attempt"] for c in bench.children("drain")] == [1, 1]
        assert sound(bench, "drain", recorder=recorder) == []


def test_study_suspended_at_once_stops_its_run_and_counts_nothing(bench: Bench) -> None:
    """Immediate: the pod is told to stop; resumed, another attempt measures, on nobody's budget."""
    with Recorder(bench.kube) as recorder:
        bench.study("stop", LONG, suspendPolicy="Immediate", retry={"infrastructure": 0})
        name = bench.measuring("stop")["metadata"]["name"]
        bench.change("stop", suspend=True)
        bench.until("eexp", name, lambda c: reason(c) == "Suspended")
        wait_for(lambda: bench.jobs("stop") == [] and bench.pods(name) == [], limit_s=90)

        bench.change("stop", suspend=False)
        bench.finished("stop")
        rows = bench.child("stop")["status"]["attempts"]
        assert [(r["outcome"], r["reason"]) for r in rows] == [
            ("Preempted", "Suspended"),
            ("Completed", "ResultStored"),
        ]
        assert sound(bench, "stop", recorder=recorder) == []


def test_raised_parallelism_is_applied_at_once(bench: Bench) -> None:
    """One run at a time becomes three."""
    with Recorder(bench.kube) as recorder:
        bench.study("wider", several(4, SLOW), parallelism=1)
        bench.until("est", "wider", lambda s: s["status"]["counts"]["running"] == 1)
        bench.change("wider", parallelism=3)
        bench.until("est", "wider", lambda s: s["status"]["counts"]["running"] == 3)
        bench.finished("wider")
        assert sound(bench, "wider", recorder=recorder) == []


def test_two_operators_do_no_harm(bench: Bench, node_helm: Helm, images: dict[str, str]) -> None:
    """A second release with a lease of its own looks after the same studies: every run once, the end as with one."""
    second: dict[str, Any] = over(values(images, bench.results), {"fullnameOverride": "second"})
    install(bench, node_helm, second, release="second")
    try:
        with Recorder(bench.kube) as recorder:
            bench.study("shared", several(3, {"energy": {"backend": "none"}}), execution={"nCycles": 2}, parallelism=2)
            bench.finished("shared")
            assert sound(bench, "shared", recorder=recorder) == []
            assert [c["status"]["attempt"] for c in bench.children("shared")] == [1] * 6
        assert "leading as" in bench.log()
        assert "leading as" in bench.log("second")
    finally:
        node_helm.ok("uninstall", "second", "-n", bench.kube.namespace, "--wait")
    bench.study("alone", several(3, {"energy": {"backend": "none"}}), execution={"nCycles": 2}, parallelism=2)
    bench.finished("alone")
    assert end_state(bench, "shared") == end_state(bench, "alone")
