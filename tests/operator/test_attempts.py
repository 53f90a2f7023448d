"""What has become of an attempt, read off its Job, pod and Events (kubernetes.md, decision 19; faults.md 10 to 14)."""

import re
from pathlib import Path
from typing import Any

import pytest

from fakes.workloads import NOW, SHA, URI, at, condition, ended, failed, gone, job, pod, running, stored, waiting
from llem_operator.attempts import EXITS, Ended, Running, Waiting, container_ended, job_is_live, lost_at, progress

TOKEN = "hf_" + "x" * 30
UNREACHABLE = [condition("Ready", "Unknown", "NodeStatusUnknown")]
DISRUPTED = [condition("DisruptionTarget", "True", "PreemptionByScheduler", "preempted by a better pod")]
RULE = "Container runner for pod bench/one-a1-x failed with exit code {} matching FailJob rule at index 1"
NO_NODE = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."

Row = tuple[dict[str, Any], dict[str, Any] | None, list[dict[str, Any]], str, str]
WAITS: dict[str, Row] = {
    "no pod yet": (job(), None, [], "WaitingForPod", "no pod yet"),
    "suspended by a queue": (job(suspend=True), None, [], "WaitingForQueue", "suspended"),
    "pod rejected by quota": (
        job(), None, [{"reason": "FailedCreate", "message": "exceeded quota: gpus"}], "PodRejected", "exceeded quota",
    ),
    "volume that cannot be mounted": (
        job(), pod(phase="Pending", state=waiting("ContainerCreating")),
        [{"reason": "Scheduled", "message": "x"}, {"reason": "FailedMount", "message": 'secret "s" not found'}],
        "ContainerConfig", 'secret "s" not found',
    ),
    "another event": (job(), None, [{"reason": "SuccessfulCreate", "message": "x"}], "WaitingForPod", "no pod yet"),
    "latest rejection counts": (
        job(), None, [{"reason": "FailedCreate", "message": "old"}, {"reason": "FailedCreate", "message": "new"}],
        "PodRejected", "new",
    ),
    "no node fits": (
        job(), pod(phase="Pending", node=None, conditions=[condition("PodScheduled", "False", "Unschedulable", NO_NODE)]),
        [], "Unschedulable", NO_NODE,
    ),
    "not looked at by the scheduler": (job(), pod(phase="Pending", node=None), [], "Unschedulable", "has not looked"),
    "image pull": (
        job(), pod(phase="Pending", state=waiting("ImagePullBackOff", "Back-off pulling x")), [], "ImagePull",
        "ImagePullBackOff: Back-off pulling x",
    ),
    "image name": (job(), pod(phase="Pending", state=waiting("InvalidImageName")), [], "ImagePull", "InvalidImageName"),
    "secret missing": (
        job(), pod(phase="Pending", state=waiting("CreateContainerConfigError", 'secret "hub" not found')), [],
        "ContainerConfig", 'secret "hub" not found',
    ),
    "starting": (job(), pod(phase="Pending", state=waiting("ContainerCreating")), [], "PodStarting", "node-a"),
    "volume not yet attached": (job(), pod(phase="Pending"), [], "PodStarting", "node-a"),
}  # fmt: skip


@pytest.mark.parametrize(("a_job", "a_pod", "events", "reason", "words"), WAITS.values(), ids=WAITS)
def test_an_attempt_that_has_not_begun_says_why(
    a_job: dict[str, Any], a_pod: dict[str, Any] | None, events: list[dict[str, Any]], reason: str, words: str
) -> None:
    """The reason is of the closed list, the message in the cluster's own words."""
    found = progress(a_job, a_pod, events)
    assert isinstance(found, Waiting)
    assert found.reason == reason
    assert words in found.message


def test_a_container_that_runs_is_running_since_its_start() -> None:
    """The start is the container's, not the pod's."""
    found = progress(job(), pod(state=running(-60)), [])
    assert isinstance(found, Running)
    assert found.start is not None
    assert (NOW - found.start).total_seconds() == 60
    assert not found.unreachable


SILENT = {
    "node controller": pod(state=running(), conditions=UNREACHABLE),
    "pod reason": pod(state=running(), status={"reason": "NodeLost"}),
    "evicted and not answering": pod(
        state=running(), conditions=[condition("Ready", "Unknown")], deletionTimestamp="2026-03-04T11:59:00Z"
    ),
}


@pytest.mark.parametrize("a_pod", SILENT.values(), ids=SILENT)
def test_a_silent_node_is_told_from_a_running_pod(a_pod: dict[str, Any]) -> None:
    """A lost node leaves the pod running for ever in the API; it is marked unreachable, not ended."""
    found = progress(job(), a_pod, [])
    assert isinstance(found, Running)
    assert found.unreachable


ENDS: dict[str, tuple[dict[str, Any], dict[str, Any] | None, str, str, str]] = {
    # first match decides; outcome, reason, budget
    "stored": (job(), gone(ended(0, stored())), "Completed", "ResultStored", "none"),
    "stored, then disrupted": (job(), gone(ended(0, stored()), conditions=DISRUPTED), "Completed", "ResultStored", "none"),
    "disrupted before its exit code": (
        job(), gone(ended(10, failed(10)), conditions=DISRUPTED), "Failed", "Disrupted", "infrastructure",
    ),
    "disruption taken back": (
        job(), gone(ended(10, failed(10)), conditions=[condition("DisruptionTarget", "False")]),
        "Failed", "ConfigurationError", "none",
    ),
    "deadline before memory": (
        job(), gone(ended(137, reason="OOMKilled"), status={"reason": "DeadlineExceeded", "message": "too long"}),
        "Failed", "TimedOut", "measurement",
    ),
    "deadline before the container": (
        job(), pod(phase="Failed", status={"reason": "DeadlineExceeded"}), "Failed", "TimedOut", "measurement",
    ),
    "memory": (job(), gone(ended(137, reason="OOMKilled")), "Failed", "OutOfMemory", "none"),
    "killed with its pod": (
        job(), gone(ended(137), deletionTimestamp=at(-3)), "Lost", "PodDeleted", "infrastructure",
    ),
    "killed, not for memory": (job(), gone(ended(137)), "Failed", "EngineCrashed", "measurement"),
    "start error": (job(), gone(ended(1, "exec: no such file", "StartError")), "Failed", "ContainerStartFailed", "none"),
    "cannot run": (job(), gone(ended(1, "x", "ContainerCannotRun")), "Failed", "ContainerStartFailed", "none"),
    "126": (job(), gone(ended(126)), "Failed", "ContainerStartFailed", "none"),
    "127": (job(), gone(ended(127)), "Failed", "ContainerStartFailed", "none"),
    "128": (job(), gone(ended(128)), "Failed", "ContainerStartFailed", "none"),
    "129 is a crash": (job(), gone(ended(129)), "Failed", "EngineCrashed", "measurement"),
    "terminated": (job(), gone(ended(143)), "Failed", "Terminated", "infrastructure"),
    "unknown code": (job(), gone(ended(77)), "Failed", "EngineCrashed", "measurement"),
    "python's own 1": (job(), gone(ended(1, "Traceback")), "Failed", "EngineCrashed", "measurement"),
    "rejected by the kubelet": (
        job(), pod(phase="Failed", status={"reason": "UnexpectedAdmissionError", "message": "no GPU left"}),
        "Failed", "PodFailed", "infrastructure",
    ),
    "evicted before its container": (
        job(), pod(phase="Failed", status={"reason": "Evicted"}, conditions=DISRUPTED),
        "Failed", "Disrupted", "infrastructure",
    ),
    "0, empty message": (job(), gone(ended(0)), "Failed", "ResultMissing", "infrastructure"),
    "0, blank message": (job(), gone(ended(0, " \n")), "Failed", "ResultMissing", "infrastructure"),
    "0, log lines": (job(), gone(ended(0, "INFO all is well\n")), "Failed", "ResultMissing", "infrastructure"),
    "0, cut off": (job(), gone(ended(0, stored()[:200])), "Failed", "ResultMissing", "infrastructure"),
    "0, too long": (job(), gone(ended(0, "x" * 4096)), "Failed", "ResultMissing", "infrastructure"),
    "0, of a newer runner": (
        job(), gone(ended(0, stored().replace('"version":1', '"version":9'))), "Failed", "ResultMissing", "infrastructure",
    ),
    "0, digest missing": (job(), gone(ended(0, stored(sha256=None))), "Failed", "ResultMissing", "infrastructure"),
    "0, place missing": (job(), gone(ended(0, stored(uri=None))), "Failed", "ResultMissing", "infrastructure"),
    "0, says failed": (job(), gone(ended(0, failed(16))), "Failed", "ResultMissing", "infrastructure"),
    "pod gone, code in the Job": (job(end=("Failed", RULE.format(11))), None, "Failed", "HardwareError", "none"),
    "pod gone, crash in the Job": (job(end=("Failed", RULE.format(139))), None, "Failed", "EngineCrashed", "measurement"),
    "pod gone, killed in the Job": (job(end=("Failed", RULE.format(137))), None, "Lost", "PodDeleted", "infrastructure"),
    "pod gone, disrupted": (
        job(end=("Failed", "Pod bench/x has condition DisruptionTarget matching FailJob rule at index 0")), None,
        "Failed", "Disrupted", "infrastructure",
    ),
    "pod deleted by hand": (
        job(end=("Failed", "Job has reached the specified backoff limit")), None, "Lost", "PodDeleted", "infrastructure",
    ),
    "pod gone after success": (job(end=("Complete", "")), None, "Lost", "PodDeleted", "infrastructure"),
    "Job failed under a pending pod": (
        job(end=("Failed", "Job has reached the specified backoff limit")), pod(phase="Pending"),
        "Failed", "PodFailed", "infrastructure",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("a_job", "a_pod", "outcome", "reason", "budget"), ENDS.values(), ids=ENDS)
def test_an_ended_attempt_has_one_reason_and_one_budget(
    a_job: dict[str, Any], a_pod: dict[str, Any] | None, outcome: str, reason: str, budget: str
) -> None:
    """Jobs lie about reasons, so the pod is asked first, and the first rule that fits decides."""
    found = progress(a_job, a_pod, [])
    assert isinstance(found, Ended)
    assert (found.outcome, found.reason, found.budget) == (outcome, reason, budget)
    assert found.message or outcome == "Completed"
    assert len(found.log_tail or "") <= 2048


# Written from kubernetes.md, section 2: what each exit code of the runner draws on.
CODES = {
    10: "none", 11: "none", 12: "none", 13: "none", 14: "none", 15: "measurement", 16: "measurement",
    17: "infrastructure", 18: "measurement", 19: "infrastructure", 20: "infrastructure", 143: "infrastructure",
}  # fmt: skip


@pytest.mark.parametrize(("code", "budget"), CODES.items())
def test_exit_codes_draw_on_the_budget_of_the_specification(code: int, budget: str) -> None:
    """The code decides, and the runner's own words are the message; with the pod gone, the Job's copy of it decides."""
    found = progress(job(), gone(ended(code, failed(code, "it broke"))), [])
    later = progress(job(end=("Failed", RULE.format(code))), None, [])
    assert isinstance(found, Ended)
    assert isinstance(later, Ended)
    assert (found.budget, later.budget) == (budget, budget)
    assert found.reason == later.reason
    assert found.message == "BackendError: it broke"
    assert found.exit_code == later.exit_code == code
    assert set(EXITS) == set(CODES)


def test_the_reference_page_of_exit_codes_agrees() -> None:
    """docs/reference/exit-codes.md tells users the budgets that the operator uses."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "reference" / "exit-codes.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| (\d+) \| .* \| (\w+) \|$", page, re.MULTILINE))
    for code, budget in CODES.items():
        if code < 128:
            assert told[str(code)] == {"none": "never"}.get(budget, budget)


def test_a_stored_result_comes_with_its_record() -> None:
    """Place, digest and numbers are the runner's."""
    found = progress(job(), gone(ended(0, stored())), [])
    assert isinstance(found, Ended)
    assert found.record is not None
    assert (found.record.uri, found.record.sha256) == (URI, SHA)
    assert found.record.numbers.energy_per_output_token_millijoules == 123.456


def test_a_newer_record_asks_for_a_newer_operator() -> None:
    """The message says what to do about it."""
    found = progress(job(), gone(ended(0, stored().replace('"version":1', '"version":9'))), [])
    assert isinstance(found, Ended)
    assert "version 9 is newer" in found.message


LEAKS = {
    "log tail of a crash": gone(ended(16, f"GET https://hub?token={TOKEN}\n")),
    "failure of a crash": gone(ended(16, failed(16, f"401 with {TOKEN}"))),
    "failure of a timeout": gone(ended(18, failed(18, f"401 with {TOKEN}")), status={"reason": "DeadlineExceeded"}),
    "log of a start error": gone(ended(127, f"no such option {TOKEN}", "StartError")),
    "log after an end of 0": gone(ended(0, f"using {TOKEN}")),
    "word of a disruption": gone(ended(16, failed(16, TOKEN)), conditions=DISRUPTED),
}


@pytest.mark.parametrize("a_pod", LEAKS.values(), ids=LEAKS)
def test_no_credential_of_a_log_or_message_reaches_the_status(a_pod: dict[str, Any]) -> None:
    """Whoever may read experiments may not read tokens."""
    found = progress(job(), a_pod, [])
    assert isinstance(found, Ended)
    assert TOKEN not in found.message + (found.log_tail or "")


def test_a_log_tail_is_its_last_two_kibibytes() -> None:
    """The end of a log says why it ended."""
    found = progress(job(), gone(ended(16, "x" * 3000 + "the end")), [])
    assert isinstance(found, Ended)
    assert found.log_tail is not None
    assert len(found.log_tail) == 2048
    assert found.log_tail.endswith("the end")


def test_a_pod_that_the_queueing_system_stops_is_preempted_and_not_counted() -> None:
    """Kueue takes a started Job back: whatever the container said, no budget pays."""
    for code in (19, 143, 137):
        found = progress(job(suspend=True), gone(ended(code, failed(code) if code == 19 else "")), [])
        assert isinstance(found, Ended)
        assert (found.outcome, found.budget) == ("Preempted", "none")
    kept = progress(job(suspend=True), gone(ended(0, stored())), [])
    assert isinstance(kept, Ended)
    assert kept.outcome == "Completed"


def test_a_job_is_live_until_it_says_that_it_ended() -> None:
    """Complete and Failed end a Job; anything else does not."""
    assert job_is_live(job())
    assert job_is_live(
        {**job(), "status": {"conditions": [condition("Failed", "False"), condition("Suspended", "True")]}}
    )
    assert not job_is_live(job(end=("Complete", "")))
    assert not job_is_live(job(end=("Failed", "")))
    assert container_ended(gone(ended(0)))
    assert not container_ended(pod(state=running()))


def test_a_lost_pod_is_given_up_after_deadline_grace_and_margin() -> None:
    """No earlier: the kubelet of a node that only lost its network still stops the pod by itself."""
    assert (lost_at(NOW, 1000, 60) - NOW).total_seconds() == 1000 + 60 + 120
