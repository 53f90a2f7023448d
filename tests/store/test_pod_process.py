"""`llem experiment` as a pod runs it: everything by environment, a folder as the store, a file as termination log."""

import hashlib
import json
import os
import signal
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cli.process import LLEM, NEVER_ENDING, Ended, environment, llem, start, tree, wait_until
from fakes.nvml_script import FAKES, Gpu, Machine
from llenergymeasure import ExperimentResult
from store.pods import STUDY, Pod

SECRET = "wJalrXUtnFEMIK7MDENGbPxRfiCY"


@pytest.fixture
def pod(tmp_path: Path) -> Pod:
    """A first attempt."""
    return Pod(f"file://{tmp_path}/store", tmp_path / "log", more={"LLEM_STUDY_RECORD": '{"name": "sweep"}'})


def with_(pod: Pod, **fields: Any) -> Pod:
    """A pod that differs; `more` adds to its environment."""
    more = {**pod.more, **fields.pop("more", {})}
    return Pod(**{**vars(pod), **fields, "more": more})


def run(pod: Pod, *words: str) -> Ended:
    """Run a pod to its end."""
    return llem("experiment", *words, cwd=pod.log.parent, env=pod.environment())


def events(ended: Ended) -> list[dict[str, Any]]:
    """All of stderr as events."""
    return [json.loads(line) for line in ended.err.splitlines()]


def files(pod: Pod) -> set[str]:
    """All files of the store."""
    root = pod.log.parent / "store"
    return {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()}


def test_result_is_stored_and_its_digest_left(pod: Pod) -> None:
    """The record's digest and size are those of the file; the snapshot names node, pod and image."""
    more = {"LLEM_POD_UID": "u-1", "LLEM_IMAGE": "registry/llem@sha256:1"}
    pod = with_(pod, more=more)

    ended = run(pod)

    said = pod.said
    assert (ended.code, ended.out) == (0, "")
    assert said.uri is not None
    content = Path(said.uri.removeprefix("file://")).read_bytes()
    assert (said.sha256, said.size_bytes) == (hashlib.sha256(content).hexdigest(), len(content))
    result = ExperimentResult.from_json(content)
    assert said.numbers.output_tokens == result.output_tokens
    machine = result.environment_snapshot
    assert [machine[k] for k in ("node", "pod", "pod_uid", "image")] == ["node-a", "pod-a", "u-1", more["LLEM_IMAGE"]]
    assert files(pod) == {
        f"{STUDY}/study.json",
        *(
            f"{STUDY}/{pod.run}/a1/{n}"
            for n in ("config.json", "environment.json", "timeseries.parquet", "result.json")
        ),
    }


def test_second_attempt_adopts_without_loading(pod: Pod) -> None:
    """Exit 0 with the first attempt's digest; no phase of a measurement begins."""
    run(pod)
    first = pod.said
    pod.log.unlink()

    ended = run(with_(pod, attempt=2))

    assert ended.code == 0
    assert (pod.said.adopted, pod.said.sha256) == (True, first.sha256)
    assert [e["phase"] for e in events(ended) if e["event"] == "phase"] == ["adopt"]


def test_idle_power_travels_to_later_runs(pod: Pod, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one run measured per GPU is in its record; given to the next run, it is taken instead of measured again."""
    idle = {"GPU-aaaaaaaa-1111": 60.0, "GPU-bbbbbbbb-2222": 90.0}
    Machine(tmp_path, monkeypatch).play(*(Gpu(uuid=u, power=[(0.0, w)], period_s=0.1) for u, w in idle.items()))
    scripted = {"PYTHONPATH": str(FAKES), "FAKE_NVML": os.environ["FAKE_NVML"]}
    body = {"energy": {"backend": "nvml", "simulated": None}, "baseline": {"enabled": True, "duration_seconds": 5, "kind": "bare"},
            "warmup": {"enabled": False}, "measurement": {"min_duration_seconds": 1}}  # fmt: skip
    first = with_(pod, body=body, more=scripted)

    ended = run(first)

    assert ended.code == 0, ended.err
    measured = {b.gpu_uuid: b.power_milliwatts / 1e3 for b in first.said.baselines}
    assert measured == pytest.approx(idle, rel=0.03)
    assert (first.said.gpu_uuids, first.said.numbers.baseline_watts) == (tuple(idle), pytest.approx(150, rel=0.03))
    known = [
        {
            "gpu_uuid": b.gpu_uuid,
            "driver": b.driver,
            "kind": b.kind,
            "power_w": b.power_milliwatts / 1e3,
            "measured_at": b.measured_at.isoformat(),
        }
        for b in first.said.baselines
    ]
    second = with_(first, index=1, more={"LLEM_BASELINES": json.dumps(known), "XDG_CACHE_HOME": str(tmp_path / "new")})
    run(second)

    assert second.said.baselines == ()
    assert second.said.numbers.baseline_watts == pytest.approx(sum(measured.values()), abs=0.01)


def test_failure_is_in_store_message_and_event(pod: Pod) -> None:
    """Type, message, phase and code are the same in all three; nothing that looks like a result is there."""
    ended = run(with_(pod, body={"synthetic": {"fail_after_batches": 1}}))

    said = pod.said.failure
    assert said is not None
    assert (ended.code, said.exit_code, said.type, said.phase) == (16, 16, "BackendError", "window")
    run_name = with_(pod, body={"synthetic": {"fail_after_batches": 1}}).run
    noted = json.loads((pod.log.parent / "store" / STUDY / run_name / "a1/failure.json").read_bytes())
    assert noted["error"] == {k: v for k, v in events(ended)[-1].items() if k != "event"}
    assert noted["error"]["message"] == said.message
    assert not any(n.endswith("result.json") for n in files(pod))


@pytest.mark.parametrize(
    ("more", "code", "type_", "says"),
    [
        pytest.param({"LLEM_ATTEMPT": ""}, 10, "ConfigError", "LLEM_ATTEMPT", id="attempt missing"),
        pytest.param({"LLEM_GAP_UNTIL": "soon"}, 10, "ConfigError", "LLEM_GAP_UNTIL", id="gap malformed"),
        pytest.param({"LLEM_RUN_URI": "ftp://host/s/r"}, 10, "ConfigError", "scheme ftp", id="unknown scheme"),
        pytest.param({"LLEM_CONFIG_HASH": "f" * 16}, 10, "ConfigError", "operator's version", id="other version"),
        pytest.param({"LLEM_EXPERIMENT": '{"model": "m", "n": 0}'}, 10, "ValidationError", "n:", id="bad value"),
        pytest.param({"LLEM_GPU_COUNT": "1"}, 11, "PreFlightError", "1 GPUs must be visible", id="too few GPUs"),
        pytest.param({"LLEM_STORE_CREDENTIALS": "/nowhere", "LLEM_RUN_URI": "s3://bucket/s/r"}, 10, "ConfigError",
                     "AWS_ACCESS_KEY_ID", id="no credentials in the Secret"),
        pytest.param({"LLEM_RUN_URI": "/proc/nothing/s/r"}, 17, "ResultStoreError", "cannot be stored", id="not writable"),
    ],
)  # fmt: skip
def test_bad_input_ends_with_its_code_and_a_message(
    pod: Pod, more: dict[str, str], code: int, type_: str, says: str
) -> None:
    """Whatever is wrong, the pod leaves a readable record; what was given wrongly is named."""
    ended = run(with_(pod, more=more))

    said = pod.said.failure
    assert said is not None
    assert (ended.code, said.exit_code, said.type) == (code, code, type_)
    assert says in said.message


def test_cpu_may_stand_in_for_trying_out(pod: Pod) -> None:
    """LLEM_ALLOW_CPU=1 takes the count back."""
    assert run(with_(pod, more={"LLEM_GPU_COUNT": "1", "LLEM_ALLOW_CPU": "1"})).code == 0


def test_secrets_stay_inside(pod: Pod) -> None:
    """A credential in an error's text reaches neither the log nor the message nor the store."""
    body = {"model": f"m token={SECRET}"}
    bad = {"LLEM_EXPERIMENT": json.dumps({**body, "n": 0, "backend": SECRET}), "HF_TOKEN": SECRET}

    ended = run(with_(pod, more=bad))

    texts = [ended.err, ended.out, pod.log.read_text(), *(p.read_text() for p in pod.log.parent.rglob("*.json"))]
    assert ended.code == 10
    assert not any(SECRET in t for t in texts)
    assert "***" in pod.log.read_text()


def test_sigterm_leaves_a_record_and_a_failure(pod: Pod) -> None:
    """A drained node: exit 19, said in the record and in the store, within seconds."""
    pod = with_(pod, body=NEVER_ENDING)
    child = start("experiment", cwd=pod.log.parent, env=pod.environment())
    assert child.stderr is not None
    wait_until(lambda: '"warmup"' in child.stderr.readline())

    os.kill(child.pid, signal.SIGTERM)
    child.communicate(timeout=20)

    said = pod.said.failure
    assert said is not None
    assert (child.returncode, said.exit_code, said.phase) == (19, 19, "warmup")
    assert any(n.endswith("a1/failure.json") for n in files(pod))


def test_waiting_pod_says_so_and_stops_at_once(pod: Pod) -> None:
    """A pause is the phase gap with its end; SIGTERM ends it with 19 and nothing measured."""
    until = datetime.now(UTC) + timedelta(hours=1)
    pod = with_(pod, more={"LLEM_GAP_UNTIL": json.dumps({"node-a": until.isoformat()})})
    child = start("experiment", cwd=pod.log.parent, env=pod.environment())
    assert child.stderr is not None
    gap = json.loads(wait_until(lambda: next((x for x in [child.stderr.readline()] if '"gap"' in x), None)))

    os.kill(child.pid, signal.SIGTERM)
    child.communicate(timeout=20)

    assert child.returncode == 19
    assert 3590 < gap["seconds"] <= 3600
    assert pod.said.failure is not None
    assert pod.said.failure.phase == "gap"


def test_message_that_cannot_be_left_is_no_success(pod: Pod) -> None:
    """The operator learns of a result by its digest only: the next attempt adopts it."""
    ended = llem("experiment", cwd=pod.log.parent, env=pod.environment() | {"LLEM_TERMINATION_LOG": "/proc/none/log"})

    assert ended.code == 17
    assert any(n.endswith("a1/result.json") for n in files(pod))
    assert run(with_(pod, attempt=2)).code == 0
    assert pod.said.adopted


def test_other_destinations_win_over_the_environment(pod: Pod, tmp_path: Path) -> None:
    """A study inside a pod keeps its children's results; two places at once by flags are refused."""
    there = llem("experiment", "--result", "out", cwd=tmp_path, env=pod.environment())
    both = llem("experiment", "--result", "out", "--run-uri", "/s/r", cwd=tmp_path, env=pod.environment())

    assert there.code == 0
    assert not (tmp_path / "store").exists()
    assert tree(tmp_path / "out") == {"result.json", "config.json", "environment.json", "timeseries.parquet"}
    assert both.code == 10


def test_flag_names_the_place_as_well(pod: Pod, tmp_path: Path) -> None:
    """--run-uri is LLEM_RUN_URI."""
    uri = tmp_path / "by hand" / "run"

    assert llem("experiment", "--run-uri", uri, cwd=tmp_path, env=pod.environment()).code == 0
    assert (uri / "a1/result.json").exists()


READ_ONLY = """
for folder in "$STORE" "$TMPDIR"; do mount --bind "$folder" "$folder"; done
mount --bind "$LLEM_TERMINATION_LOG" "$LLEM_TERMINATION_LOG"
mount -o remount,bind,ro / && ! touch "$STORE/../probe" 2>/dev/null || exit 99
exec "$@"
"""


def test_read_only_root_without_a_home(pod: Pod, tmp_path: Path) -> None:
    """A pod's file system is read-only and may have no HOME: only the temporary folder and the store are written."""
    for folder in ("store", "tmp"):
        (tmp_path / folder).mkdir()
    pod.log.touch()
    env = environment(pod.environment()) | {"TMPDIR": str(tmp_path / "tmp"), "STORE": str(tmp_path / "store")}
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "HF_HOME"):
        env.pop(name, None)

    command = ["unshare", "--mount", "sh", "-c", READ_ONLY, "sh", str(LLEM), "experiment"]
    try:
        ended = subprocess.run(command, cwd="/", env=env, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("unshare is not installed")
    if ended.returncode == 99 or ended.stderr.startswith(("unshare:", "mount:")):
        pytest.skip("mounting is not allowed here")

    assert ended.returncode == 0, ended.stderr
    assert tree(tmp_path / "tmp") == set()
    assert len(files(pod)) == 5
    assert pod.said.outcome == "stored"


@pytest.mark.parametrize("missing", ["obstore", "tenacity"])
def test_missing_library_names_the_extra(pod: Pod, tmp_path: Path, missing: str) -> None:
    """Without the extra `store`, a bucket is refused with what to install, before anything is measured."""
    (tmp_path / "hidden").mkdir()
    (tmp_path / f"hidden/{missing}.py").write_text(f"raise ModuleNotFoundError('no {missing}', name='{missing}')\n")
    uri = "s3://bucket/s/r" if missing == "obstore" else f"{tmp_path}/store/s/r"
    pod = with_(pod, more={"PYTHONPATH": str(tmp_path / "hidden"), "LLEM_RUN_URI": uri})

    ended = run(pod)

    assert ended.code == 12
    assert pod.said.failure is not None
    assert "pip install 'llenergymeasure[store]'" in pod.said.failure.message
