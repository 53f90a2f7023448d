"""A study on a real node from kubectl apply to the last digest: order, pauses, more cycles, failed runs again."""

from datetime import datetime, timedelta
from itertools import pairwise
from math import inf
from statistics import fmean
from typing import Any

import pytest

from cluster.operators import Bench, conditions, message, reason, wait_for
from cluster.oracles import Recorder, sound, written

pytestmark = pytest.mark.cluster

GAP_S = 3
VALID: dict[str, Any] = {
    "n": 8,
    "baseline": {"enabled": True, "duration_seconds": 5},
    "measurement": {"min_duration_seconds": 5},
    "experiments": [],
    "sweep": {"synthetic.batch_size": [1, 4]},
}


def attempts(bench: Bench, study: str) -> list[dict[str, Any]]:
    """All attempts of a study by the time at which their Jobs were made, each with the index of its run."""
    rows = [
        {**row, "index": child["spec"]["index"], "cycle": child["spec"]["cycle"], "hash": child["spec"]["configHash"]}
        for child in bench.children(study)
        for row in child["status"]["attempts"]
    ]
    return sorted(rows, key=lambda r: str(r["created"]))


def test_interleaved_study_keeps_order_and_pauses_then_grows(bench: Bench) -> None:
    """Two configurations, three cycles, interleaved, pauses of 3 s: six runs; a fourth cycle runs exactly two more."""
    execution = {"nCycles": 3, "cycleOrder": "interleaved", "configGapSeconds": GAP_S, "cycleGapSeconds": GAP_S}
    with Recorder(bench.kube) as recorder:
        bench.study("shown", VALID, execution=execution, parallelism=1, template={"gpu": {"count": 1}})
        study = bench.finished("shown")

        before = bench.children("shown")
        assert (reason(study), message(study)) == ("Completed", f"6 of 6 runs completed{doubts(before)}")
        six = attempts(bench, "shown")
        first, second = six[0]["hash"], six[1]["hash"]
        assert [r["hash"] for r in six] == [first, second] * 3
        assert [r["cycle"] for r in six] == [1, 1, 2, 2, 3, 3]
        assert_pauses(six)
        assert best(study) == lowest(before, cycles=3)
        assert sound(bench, "shown", recorder=recorder) == []

        bench.change("shown", execution={"nCycles": 4})
        grown = bench.finished("shown")

        eight = attempts(bench, "shown")
        assert eight[:6] == six
        assert [r["hash"] for r in eight[6:]] == [first, second]
        assert_pauses(eight)
        assert grown["status"]["counts"]["completed"] == 8
        assert bench.children("shown")[:6] == before
        assert sound(bench, "shown", recorder=recorder) == []


def doubts(children: list[dict[str, Any]]) -> str:
    """What a study adds about invalid verdicts, which a machine that others use gives now and then."""
    invalid = sum(c["status"]["summary"]["verdict"] == "invalid" for c in children)
    return f", {invalid} with an invalid verdict" if invalid else ""


def best(study: dict[str, Any]) -> tuple[str, int] | None:
    """What a study calls its best configuration: its hash, and of how many cycles."""
    said = study["status"].get("best")
    return (said["configHash"], said["cycles"]) if said else None


def lowest(children: list[dict[str, Any]], *, cycles: int) -> tuple[str, int] | None:
    """The same from the runs: the lowest mean of those configurations whose verdicts are all valid."""
    joules: dict[str, list[float]] = {}
    for child in children:
        told = child["status"]["summary"]
        value = float(told["energyPerOutputTokenMillijoules"]) if told["verdict"] == "valid" else inf
        joules.setdefault(child["spec"]["configHash"], []).append(value)
    assert {len(group) for group in joules.values()} == {cycles}
    mean, digest = min((fmean(group), digest) for digest, group in joules.items())
    return (digest, cycles) if mean < inf else None


def assert_pauses(rows: list[dict[str, Any]]) -> None:
    """Each Job was made after the pause that follows the measurement before it."""
    for before, after in pairwise(rows):
        waited = datetime.fromisoformat(after["created"]) - datetime.fromisoformat(before["measurementEnd"])
        assert waited >= timedelta(seconds=GAP_S), (before, after)


def test_retry_epoch_runs_failed_runs_only(bench: Bench) -> None:
    """A crashing configuration fails with its code and log; a higher retryEpoch runs it again and nothing else."""
    designs = {"energy": {"backend": "none"}, "experiments": [{}, {"synthetic": {"fail_after_batches": 0}}]}
    with Recorder(bench.kube) as recorder:
        bench.study("mixed", designs)
        study = bench.finished("mixed")

        good, bad = bench.children("mixed")
        assert (reason(study), message(study)) == ("RunsFailed", "1 of 2 runs completed, 1 failed")
        assert (reason(bad), bad["status"]["attempts"][0]["exitCode"]) == ("EngineCrashed", 16)
        assert "as fail_after_batches asks" in message(bad)
        assert {t: c["status"] for t, c in conditions(study).items() if t in ("Ready", "Stalled", "Succeeded")} == {
            "Ready": "False",
            "Stalled": "True",
            "Succeeded": "False",
        }

        bench.change("mixed", retryEpoch=1)
        bench.finished("mixed")

        same, again = bench.children("mixed")
        assert same == good
        assert [a["attempt"] for a in again["status"]["attempts"]] == [1, 2]
        assert again["status"]["attempts"][0] == bad["status"]["attempts"][0]
        assert sound(bench, "mixed", recorder=recorder) == []


def test_nothing_is_written_once_studies_are_over(bench: Bench) -> None:
    """Twenty seconds in which no object changes, and a log in which nothing went wrong."""
    bench.study("quiet")
    bench.finished("quiet")
    wait_for(lambda: all(ended_and_expiring(job) for job in bench.all("jobs")), limit_s=60)

    assert written(bench, 20) == []
    assert bench.complaints() == []


def ended_and_expiring(job: dict[str, Any]) -> bool:
    """Whether Kubernetes has written the end of a Job, and the operator when it may go."""
    return "ttlSecondsAfterFinished" in job["spec"] and bool(job["status"].get("conditions"))
