"""What people delete by hand comes back where it must, is never measured twice, and leaves nothing behind."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from cli.process import processes_with
from cluster.operators import ON_THE_CPU, Bench, conditions, reason, wait_for
from cluster.oracles import Recorder, doubled, orphans, reopened, sound

pytestmark = pytest.mark.cluster

QUICK: dict[str, Any] = {"energy": {"backend": "none"}}
SLOW = {**QUICK, "synthetic": {"batch_overhead_ms": 3000}}
"""A run of about ten seconds, so that there is time to delete it."""
LONG = {**QUICK, "synthetic": {"batch_overhead_ms": 8000}}
"""A run of about half a minute, so that there is time to delete four of them one by one."""
TOLD_TO_STOP = {19, 143}
NOWHERE = {**ON_THE_CPU, "nodeSelector": {"no": "such-node"}}


def four(layer: dict[str, Any]) -> dict[str, Any]:
    """Four configurations."""
    return {**layer, "experiments": [{"random_seed": n} for n in range(4)]}


def pod_of(bench: Bench, experiment: str) -> str:
    """The one pod of an experiment."""
    (pod,) = (p["metadata"]["name"] for p in bench.pods(experiment))
    return str(pod)


def working(bench: Bench, experiment: str) -> str:
    """Wait until the engine of a run works; give its pod."""
    pod = pod_of(bench, experiment)
    wait_for(lambda: '"warmup"' in bench.kube.ok("logs", pod))
    return pod


def hears(pod: str) -> bool:
    """Whether the runner of a pod handles SIGTERM, which process 1 must do itself: from before its imports on."""
    for process in processes_with("HOSTNAME", pod):
        status = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
        return bool(int(status["SigCgt"], 16) >> (signal.SIGTERM - 1) & 1)
    return False


def frozen(pod: str) -> list[int]:
    """Hold the runner of a pod where it is, deaf to SIGTERM, as an engine in native code is; give its processes."""
    processes: list[int] = wait_for(lambda: processes_with("HOSTNAME", pod))
    for process in processes:
        os.kill(process, signal.SIGSTOP)
    return processes


def exit_codes(recorder: Recorder) -> dict[str, int]:
    """Pods whose runner has ended, each with its exit code."""
    return {
        pod["metadata"]["name"]: container["state"]["terminated"]["exitCode"]
        for _, pod in recorder.changes("pods")
        for container in pod["status"].get("containerStatuses", ())
        if "terminated" in container["state"]
    }


def test_deleted_while_running(bench: Bench) -> None:
    """Pod killed, pod told to stop, Job or experiment deleted: one more attempt each, and one result."""
    with Recorder(bench.kube) as recorder:
        bench.study("hands", four(LONG), parallelism=4)
        names = [bench.measuring("hands", index)["metadata"]["name"] for index in range(4)]
        killed, told, job, experiment = names
        killed_pod, told_pod, _, _ = (working(bench, name) for name in names)
        bench.kube.ok("delete", "pod", killed_pod, "--grace-period=0", "--force")
        bench.kube.ok("delete", "pod", told_pod, "--wait=false")
        bench.kube.ok("delete", "job", f"{job}-a1", "--wait=false")
        bench.kube.ok("delete", "eexp", experiment, "--wait=false")
        study = bench.finished("hands")

        rows = {c["metadata"]["name"]: c["status"]["attempts"] for c in bench.children("hands")}
        ends = {name: [(r["attempt"], r["outcome"], r["reason"]) for r in rows[name]] for name in names}
        done = (2, "Completed", "ResultStored")
        stopped = (1, "Failed", "Terminated")
        assert ends[killed] in ([(1, "Lost", "PodDeleted"), done], [stopped, done])  # SIGTERM comes first, for a moment
        assert ends[told] == [stopped, done]
        assert exit_codes(recorder)[told_pod] == 19
        assert ends[job] == [(1, "Lost", "JobDeleted"), done]
        assert ends[experiment][-1] == done
        assert ends[experiment][:-1] in ([], [(1, "Lost", "ExperimentDeleted")])
        assert reason(study) == "Completed"
        assert len(bench.stored(study)) == 4
        assert sound(bench, "hands", recorder=recorder) == []


def test_killed_by_force_while_nobody_looked(bench: Bench) -> None:
    """The pod is gone and only its Job remembers that the container was killed: lost, not an engine that crashed."""
    bench.study("unseen", SLOW)
    name = bench.measuring("unseen")["metadata"]["name"]
    pod = pod_of(bench, name)
    frozen(pod)
    bench.scale(0)
    bench.kube.ok("delete", "pod", pod, "--grace-period=0", "--force")
    wait_for(lambda: bench.pods(name) == [])
    (job,) = bench.jobs("unseen")
    bench.kube.ok("wait", "job", job["metadata"]["name"], "--for=condition=Failed", "--timeout=60s")
    said = conditions(bench.kube.get("job", job["metadata"]["name"]))["Failed"]["message"]
    assert "exit code 137" in said

    bench.scale(1)
    bench.finished("unseen")
    rows = bench.child("unseen")["status"]["attempts"]
    assert [(r["outcome"], r["reason"]) for r in rows] == [("Lost", "PodDeleted"), ("Completed", "ResultStored")]
    assert rows[0]["exitCode"] == 137
    assert sound(bench, "unseen") == []


def test_deleted_while_pending(bench: Bench) -> None:
    """A Job without a node is made again as the next attempt; an experiment that never ran is made again as it was."""
    bench.study("waiting", QUICK, template=NOWHERE)
    name = bench.until("eexp", bench.child("waiting")["metadata"]["name"], lambda c: reason(c) == "Unschedulable")[
        "metadata"
    ]["name"]

    bench.kube.ok("delete", "job", f"{name}-a1", "--wait=false")
    again = bench.until("eexp", name, lambda c: c["status"]["attempt"] == 2 and reason(c) == "Unschedulable")
    assert [a.get("reason") for a in again["status"]["attempts"]] == ["JobDeleted", None]

    bench.study("held", QUICK, suspend=True)
    child = bench.child("held")
    bench.kube.ok("delete", "eexp", child["metadata"]["name"])
    new = bench.until("eexp", child["metadata"]["name"], lambda c: c["metadata"]["uid"] != child["metadata"]["uid"])
    assert new["spec"] == child["spec"]
    bench.change("held", suspend=False)
    bench.finished("held")
    assert bench.child("held")["status"]["attempt"] == 1
    assert sound(bench, "held") == []

    bench.delete("est", "waiting", "--cascade=foreground", "--timeout=60s")
    assert [o for o in orphans(bench) if "waiting" in o] == []


def test_deleted_after_the_end(bench: Bench) -> None:
    """A finished experiment comes back finished, without a measurement; a Job that nobody read is found in the store."""
    bench.study("over", QUICK)
    bench.finished("over")
    bench.study("unread", SLOW)
    unread = bench.measuring("unread")["metadata"]["name"]
    runner = frozen(pod_of(bench, unread))  # it must not end before the operator is gone
    with Recorder(bench.kube) as recorder:
        bench.scale(0)
        for process in runner:
            os.kill(process, signal.SIGCONT)
        done = ("wait", "job", f"{unread}-a1", "--for=condition=Complete", "--timeout=120s")
        bench.kube.ok(*done)
        bench.kube.ok("delete", "job", f"{unread}-a1", "--cascade=foreground")
        (before,) = bench.children("over")
        bench.kube.ok("delete", "eexp", before["metadata"]["name"])
        bench.scale(1)
        bench.finished("unread")

        (adopted,) = bench.children("unread")
        assert [(a["outcome"], a["reason"]) for a in adopted["status"]["attempts"]] == [
            ("Lost", "JobDeleted"), ("Completed", "ResultStored"),
        ]  # fmt: skip
        assert adopted["status"]["result"]["adopted"] is True
        assert sound(bench, "unread", recorder=recorder) == []

        name = before["metadata"]["name"]
        after = bench.until("eexp", name, lambda c: reason(c) == "RestoredFromStudy")
        assert conditions(after)["Succeeded"]["status"] == "True"
        assert bench.get("over")["status"]["counts"]["completed"] == 1
        jobs = {o["metadata"]["name"] for what, o in recorder.changes("jobs") if what == "ADDED"}
        assert f"{name}-a2" not in jobs


@pytest.mark.parametrize("cascade", ["foreground", "background"])
def test_study_deleted_while_running(bench: Bench, cascade: str) -> None:
    """All of it goes, nothing is made again, its pods are told to stop."""
    name = f"gone-{cascade}"
    with Recorder(bench.kube) as recorder:
        bench.study(name, four(LONG), parallelism=2)
        study = bench.until("est", name, lambda s: s["status"]["counts"]["running"] == 2)
        pods = [p["metadata"]["name"] for p in bench.all("pods", **{"llem.dev/study": name})]
        wait_for(lambda: all(map(hears, pods)))
        bench.delete("est", name, f"--cascade={cascade}", "--timeout=90s")
        wait_for(
            lambda: not any(bench.all(kind, **{"llem.dev/study": name}) for kind in ("eexp", "jobs", "pods")),
            limit_s=90,
        )
        changes = [what for what, o in recorder.changes("experiments") if o["metadata"]["name"].startswith(name)]
        assert (changes.count("ADDED"), changes.count("DELETED")) == (4, 4)
        codes = {pod: code for pod, code in exit_codes(recorder).items() if pod.startswith(name)}
        assert codes.keys() == set(pods)
        assert set(codes.values()) <= TOLD_TO_STOP
        assert bench.stored(study) == []
        assert orphans(bench) == []


def test_study_deleted_and_made_again_at_once(bench: Bench) -> None:
    """The new one waits until the old one's experiments are gone, then measures its own."""
    with Recorder(bench.kube) as recorder:
        bench.study("twice", LONG)  # the garbage collector takes seconds to come to its pod
        old = bench.measuring("twice")
        told = pod_of(bench, old["metadata"]["name"])
        wait_for(lambda: hears(told))
        bench.kube.ok("delete", "est", "twice", "--wait=false")
        bench.study("twice", QUICK)
        study = bench.finished("twice")

        (child,) = bench.children("twice")
        assert child["metadata"]["uid"] != old["metadata"]["uid"]
        assert child["metadata"]["ownerReferences"][0]["uid"] == study["metadata"]["uid"]
        assert (reason(study), child["status"]["attempt"]) == ("Completed", 1)
        assert exit_codes(recorder)[told] in TOLD_TO_STOP
        assert sound(bench, "twice") + doubled(recorder) + reopened(recorder) == []
    assert orphans(bench) == []
