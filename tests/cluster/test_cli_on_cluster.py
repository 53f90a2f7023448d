"""`llem`'s verbs against a real API server, through a real kubectl; the tests write the status that an operator would."""

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.process import FAST, Ended, environment, llem, over, start, wait_until
from cluster import kube as kubes
from cluster.kube import Kube, condition, install_crds, namespace
from llenergymeasure.core.identity import measurement_config_hash
from llenergymeasure.core.resources import study_of

pytestmark = pytest.mark.cluster

Llem = Callable[..., Ended]
STUDY: dict[str, Any] = over(FAST, {"sweep": {"precision": ["fp16", "bf16"]}, "execution": {"n_cycles": 2}})
ACCEPTED = condition("Accepted", "True", "Valid")
RUNNING = condition("Finished", "False", "Running", "1 run is measuring")
DONE = [condition("Finished", "True", "Completed", "4 runs are measured"), condition("Succeeded", "True", "Completed")]
FAILED = [condition("Finished", "True", "RunsFailed", "1 run failed"), condition("Succeeded", "False", "RunsFailed")]


@pytest.fixture(scope="module")
def server(api_server: Kube) -> Kube:
    """An API server that has both definitions."""
    install_crds(api_server)
    return api_server


@pytest.fixture
def kube(server: Kube) -> Iterator[Kube]:
    """A namespace of the test's own."""
    with namespace(server, prefix="cli") as own:
        yield own


def variables(kube: Kube) -> dict[str, str]:
    """What a user's shell has set: which cluster, which kubectl."""
    return {"KUBECONFIG": str(kube.kubeconfig), "KUBECTL": str(kube.kubectl)}


@pytest.fixture
def run(kube: Kube, tmp_path: Path) -> Llem:
    """Run `llem VERB WORDS… -n NAMESPACE`."""

    def verb(*words: object) -> Ended:
        return llem(*words, "-n", kube.namespace, cwd=tmp_path, env=variables(kube))

    return verb


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A plain study file of two configurations and two cycles."""
    path = tmp_path / "sweep.yaml"
    path.write_text(json.dumps(STUDY), encoding="utf-8")
    return path


@pytest.fixture
def applied(run: Llem, file: Path) -> str:
    """The name of that study, once it is on the cluster."""
    ended = run("apply", file)
    assert ended.code == 0, ended.err
    return "sweep"


def tell(kube: Kube, kind: str, name: str, *conditions: dict[str, Any], **status: Any) -> None:
    """Write a status as the operator does: with the generation it speaks of."""
    generation = kube.get(kind, name)["metadata"]["generation"]
    told = {"observedGeneration": generation, "conditions": list(conditions), **status}
    kube.patch(kind, name, {"status": told}, status=True)


def children(kube: Kube, study: str) -> list[str]:
    """Make the study's experiments as the operator does; give their names."""
    owner = kube.get("est", study)
    names = []
    for index, config in enumerate(study_of(owner, source="test").experiments):
        digest = measurement_config_hash(config)
        names.append(f"{study}-{index:05d}-{digest[:6]}")
        reference = {"apiVersion": owner["apiVersion"], "kind": "EnergyStudy", "name": study, "controller": True}
        child = kubes.experiment(
            names[-1], studyRef={"name": study}, index=index, cycle=1, configHash=digest,
            config=config.model_dump(mode="json", exclude_unset=True, exclude_none=True),
        )  # fmt: skip
        child["metadata"]["labels"] = {"llem.dev/study": study, "llem.dev/index": str(index)}
        child["metadata"]["ownerReferences"] = [{**reference, "uid": owner["metadata"]["uid"]}]
        kube.apply(child)
    return names


# --- apply


def test_apply_shows_the_plan_and_makes_the_study(kube: Kube, run: Llem, file: Path) -> None:
    """The plan of `llem plan`, kubectl's own word, and an object that means what the file means; again: unchanged."""
    first, again = run("apply", file), run("apply", file)

    assert "2 experiments x 2 cycles = 4 runs" in first.out
    assert "energystudy.llem.dev/sweep created" in first.out
    assert "energystudy.llem.dev/sweep unchanged" in again.out
    spec = kube.get("est", "sweep")["spec"]
    assert spec["design"] == {k: v for k, v in STUDY.items() if k != "execution"}
    assert spec["execution"] == {"nCycles": 2}
    assert (first.code, again.code) == (0, 0)


def test_dry_run_and_manifest_make_nothing(kube: Kube, run: Llem, file: Path) -> None:
    """`--dry-run` shows the plan, `--manifest` what to commit; the printed manifest is the study that apply makes."""
    dry, printed = run("apply", file, "--dry-run"), run("apply", file, "--manifest")

    assert "2 experiments x 2 cycles" in dry.out
    assert json.loads(kube.ok("get", "est", "-o", "json"))["items"] == []
    kube.apply(printed.out)
    assert "unchanged" in run("apply", file).out


def test_file_of_several_documents_is_applied_whole(kube: Kube, run: Llem, tmp_path: Path) -> None:
    """A study, an experiment and a ConfigMap from one file; the unquoted n arrives as with kubectl."""
    text = """
apiVersion: llem.dev/v1alpha1
kind: EnergyStudy
metadata: {name: first}
spec: {design: {model: m, backend: synthetic, n: 5, sweep: {precision: [fp16, bf16]}}}
---
apiVersion: llem.dev/v1alpha1
kind: EnergyExperiment
metadata: {name: second}
spec: {config: {model: m, backend: synthetic}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: third}
"""
    (tmp_path / "many.yaml").write_text(text, encoding="utf-8")

    ended = run("apply", "many.yaml")

    assert [line.split()[-1] for line in ended.out.splitlines()[-3:]] == ["created"] * 3
    kube.apply(text)
    assert kube.get("est", "first")["metadata"]["generation"] == 1
    assert kube.get("eexp", "second")["spec"] == {"config": {"model": "m", "backend": "synthetic"}}


def test_change_of_an_accepted_design_is_refused_in_the_servers_words(
    kube: Kube, run: Llem, applied: str, file: Path
) -> None:
    """The sentence says what is fixed; nothing of kubectl's own noise stands around it."""
    kube.patch("est", applied, {"status": {"designHash": "a" * 16}}, status=True)
    file.write_text(json.dumps({**STUDY, "n": 7}), encoding="utf-8")

    ended = run("apply", file)

    assert "design is fixed" in ended.errors[0]
    assert "STDIN" not in ended.err
    assert ended.code == 1


def test_bad_file_ends_as_with_run_and_reaches_no_cluster(kube: Kube, run: Llem, file: Path) -> None:
    """The same sentence and the same exit code 2 as `llem run`, before kubectl is even looked for."""
    file.write_text(json.dumps({**STUDY, "precison": "bf16"}), encoding="utf-8")

    by_run = llem("run", file, "--dry-run", cwd=file.parent)
    by_apply = llem("apply", file, cwd=file.parent, env={"KUBECTL": "/nowhere"})

    assert by_apply.errors == by_run.errors
    assert by_apply.err == by_run.err
    assert (by_apply.code, by_run.code) == (2, 2)


# --- looking


def test_list_shows_studies_and_lonely_experiments(kube: Kube, run: Llem, applied: str) -> None:
    """A row per study; experiments of studies are not listed, those that stand alone are."""
    assert "no studies" not in run("list").out
    children(kube, applied)
    kube.apply(kubes.experiment("alone"))
    tell(kube, "est", applied, ACCEPTED, RUNNING, counts={"total": 4, "completed": 1, "running": 1})

    lines = run("list").out.splitlines()

    assert lines[2].split()[:7] == ["sweep", "Running", "4", "1", "0", "0", "1"]
    assert [line.split()[0] for line in lines[3:] if line and line[0] not in "- "] == ["experiment", "alone"]


def test_empty_namespace_says_how_to_begin(run: Llem, kube: Kube) -> None:
    """Nothing there is no error."""
    ended = run("list")

    assert ended.out == f"no studies in namespace {kube.namespace}; llem apply FILE makes one\n"
    assert ended.code == 0


def test_status_shows_what_the_operator_wrote(kube: Kube, run: Llem, applied: str) -> None:
    """State, counts and failures of the status; without -w a failed study is no failed command."""
    failure = {"experiment": "sweep-00001", "reason": "OutOfGPUMemory", "message": "the batch does not fit"}
    tell(kube, "est", applied, ACCEPTED, *FAILED, counts={"total": 4, "failed": 1}, recentFailures=[failure])

    ended = run("status", applied)

    assert "RunsFailed: 1 run failed" in ended.out
    assert "sweep-00001: OutOfGPUMemory: the batch does not fit" in ended.out
    assert ended.code == 0


@pytest.mark.parametrize(("end", "code"), [(DONE, 0), (FAILED, 1)], ids=["succeeded", "failed"])
def test_status_w_waits_and_tells_by_its_exit_code(
    kube: Kube, applied: str, tmp_path: Path, end: list[dict[str, Any]], code: int
) -> None:
    """It ends when the study has, with 0 only if every run was measured; each change is one line in a pipe."""
    tell(kube, "est", applied, ACCEPTED, RUNNING, counts={"total": 4, "running": 1, "pending": 3})
    waiting = start("status", applied, "-w", "-n", kube.namespace, cwd=tmp_path, env=variables(kube))
    assert waiting.stdout is not None
    first = waiting.stdout.readline()

    tell(kube, "est", applied, ACCEPTED, *end, counts={"total": 4, "completed": 4})
    rest, _ = waiting.communicate(timeout=30)

    assert first == "sweep: Running, 0 of 4 runs completed, 1 running, 3 pending, 1 run is measuring\n"
    assert len(rest.splitlines()) == 1
    assert waiting.returncode == code


def test_watch_goes_on_until_ctrl_c(kube: Kube, applied: str, tmp_path: Path) -> None:
    """In a pipe each change of any study is told once; Ctrl-C ends it."""
    watching = start("watch", "-n", kube.namespace, cwd=tmp_path, env=variables(kube))
    assert watching.stdout is not None
    first = watching.stdout.readline()
    tell(kube, "est", applied, ACCEPTED, RUNNING, counts={"total": 4, "running": 1})
    second = watching.stdout.readline()

    watching.send_signal(signal.SIGINT)
    watching.communicate(timeout=30)

    assert first.startswith("sweep: New")
    assert second.startswith("sweep: Running, 0 of 4 runs completed")
    assert watching.returncode == 130


def test_why_takes_the_reason_from_the_run_that_waits(kube: Kube, run: Llem, applied: str) -> None:
    """The scheduler's words are in the condition of a child; the sentence carries them."""
    assert "waits for the operator" in run("why", applied).out
    names = children(kube, applied)
    tell(kube, "est", applied, ACCEPTED, RUNNING, counts={"total": 4}, active=[{"experiment": n} for n in names])
    tell(kube, "eexp", names[1], condition("Scheduled", "False", "Unschedulable", "0/1 nodes are available"))

    said = run("why", applied).out

    assert said.count("\n") == 1
    assert f"{names[1]} waits (Unschedulable): 0/1 nodes are available." in said


def test_logs_of_a_run_without_a_pod(kube: Kube, run: Llem, applied: str) -> None:
    """No pod yet: what it waits for. Pod gone: the end of its log. No such run: the range there is."""
    names = children(kube, applied)
    tell(kube, "est", applied, ACCEPTED, RUNNING, counts={"total": 4})
    tell(kube, "eexp", names[0], condition("Scheduled", "False", "Unschedulable", "0/1 nodes are available"))
    attempt = {"attempt": 1, "podName": "gone", "jobName": "j"}
    tell(kube, "eexp", names[1], *FAILED, attempts=[attempt], logTail="Traceback\nMemoryError")

    waits, gone, beyond, unnamed = (run("logs", applied, *words) for words in ([0], [1], [7], []))

    assert "there is no pod yet" in waits.err
    assert "0/1 nodes are available" in waits.err
    assert gone.out == "Traceback\nMemoryError\n"
    assert "sweep has no run 7; its runs are 0 to 3" in beyond.err
    assert "0 to 3" in unnamed.err
    assert [e.code for e in (waits, gone, beyond, unnamed)] == [1, 0, 1, 2]


def test_results_compare_configurations(kube: Kube, run: Llem, applied: str, tmp_path: Path) -> None:
    """Table, JSON and CSV come from the summaries of the study's experiments."""
    for index, name in enumerate(children(kube, applied)):
        summary = {
            "verdict": "valid",
            "energyPerOutputTokenMillijoules": f"{90 + index}.00",
            "tokensPerSecond": "250.0",
        }
        stored = {"uri": f"s3://b/p/{index}/a1/result.json", "sha256": "a" * 64}
        tell(kube, "eexp", name, *DONE, summary=summary, result=stored, attempt=1)
    tell(kube, "est", applied, ACCEPTED, *DONE, counts={"total": 4, "completed": 2})

    table, as_json = run("results", applied, "--export-csv", "out.csv"), run("results", applied, "--json")

    assert "synthetic precision=fp16" in table.out
    assert "0.09 " in table.out
    assert "s3://b/p/1/a1/result.json" in table.out
    assert [r["energy_per_output_token_j"] for r in json.loads(as_json.out)["runs"]] == [0.09, 0.091]
    with (tmp_path / "out.csv").open(encoding="utf-8") as rows:
        assert [r["index"] for r in csv.DictReader(rows)] == ["0", "1"]


# --- changing


def test_suspend_cancel_resume(kube: Kube, run: Llem, applied: str) -> None:
    """suspend drains, cancel ends what runs, resume goes on."""

    def spec() -> tuple[bool, str]:
        found = kube.get("est", applied)["spec"]
        return found["suspend"], found["suspendPolicy"]

    seen = []
    for verb in ("suspend", "cancel", "resume"):
        assert run(verb, applied).code == 0
        seen.append(spec())

    assert seen == [(True, "Drain"), (True, "Immediate"), (False, "Immediate")]


def test_retry_raises_the_epoch(kube: Kube, run: Llem, applied: str) -> None:
    """Each `retry --failed` counts one up; without the word nothing happens."""
    bare = run("retry", applied)
    run("retry", applied, "--failed")
    second = run("retry", applied, "--failed")

    assert bare.code == 2
    assert "--failed" in bare.err
    assert "retryEpoch 2" in second.out
    assert kube.get("est", applied)["spec"]["retryEpoch"] == 2


def test_verbs_name_the_line_to_commit_where_git_rules(kube: Kube, run: Llem) -> None:
    """What Argo CD or Flux wrote they will write again: the change belongs into the repository."""
    kube.apply(kubes.study("from-git"), "--server-side", "--field-manager=argocd-controller")

    suspended, deleted = run("suspend", "from-git"), run("delete", "from-git")

    assert "argocd-controller" in suspended.err
    assert "spec.suspend: true" in suspended.err
    assert "remove it from Git" in deleted.err


def test_runs_of_a_study_are_changed_through_their_study(kube: Kube, run: Llem, applied: str) -> None:
    """A child's specification is the operator's; an experiment alone is the user's."""
    name = children(kube, applied)[0]
    kube.apply(kubes.experiment("alone"))

    refused, taken = run("suspend", name), run("suspend", "alone")

    assert f"{name} belongs to study sweep" in refused.err
    assert (refused.code, taken.code) == (2, 0)
    assert kube.get("eexp", "alone")["spec"]["suspend"] is True


def test_delete_takes_the_study_and_all_its_runs(kube: Kube, run: Llem, applied: str) -> None:
    """Study and experiments go, others stay; the sentence says where the results are."""
    children(kube, applied)
    kube.apply(kubes.experiment("alone"))
    tell(kube, "est", applied, ACCEPTED, *DONE, counts={"completed": 4}, resultsURI="s3://b/p/sweep-1")

    ended = run("delete", applied)

    assert ended.out == "sweep is deleted; its results stay at s3://b/p/sweep-1\n"
    left = wait_until(lambda: (n := kube.ok("get", "est,eexp", "-o", "name").split()) and len(n) == 1 and n)
    assert left == ["energyexperiment.llem.dev/alone"]


# --- llem run, kubectl llem


def test_run_on_kubernetes_applies_watches_and_shows_results(kube: Kube, file: Path) -> None:
    """One command: flags included, progress on stderr, the table on stdout, exit 0 once all is measured."""
    words = ("run", file, "--runner", "kubernetes", "--namespace", kube.namespace, "--cycles", 1, "--no-gaps")
    running = start(*words, cwd=file.parent, env=variables(kube))
    wait_until(lambda: kube.run("get", "est", "sweep").returncode == 0)
    for name in children(kube, "sweep"):
        summary = {"verdict": "valid", "energyPerOutputTokenMillijoules": "90.00", "tokensPerSecond": "250.0"}
        tell(kube, "eexp", name, *DONE, summary=summary, result={"uri": "s3://b/p"})
    tell(kube, "est", "sweep", ACCEPTED, *DONE, counts={"total": 2, "completed": 2})

    out, err = running.communicate(timeout=30)

    assert running.returncode == 0, err
    assert "synthetic precision=bf16" in out
    assert "2 of 2 runs completed" in out
    assert "sweep: Completed" in err
    execution = kube.get("est", "sweep")["spec"]["execution"]
    assert execution == {"nCycles": 1, "configGapSeconds": 0, "cycleGapSeconds": 0}


def test_run_goes_on_in_the_cluster_after_ctrl_c(kube: Kube, file: Path) -> None:
    """Ctrl-C ends the watching, not the study, and says so; exit 130."""
    words = ("run", file, "--runner", "kubernetes", "--namespace", kube.namespace)
    running = start(*words, cwd=file.parent, env=variables(kube))
    wait_until(lambda: kube.run("get", "est", "sweep").returncode == 0)
    assert running.stderr is not None
    assert any("sweep: New" in line for line in iter(running.stderr.readline, ""))

    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=30)

    assert "sweep goes on in the cluster; llem status sweep -w" in err
    assert running.returncode == 130


def test_kubectl_llem_is_llem(kube: Kube, applied: str) -> None:
    """kubectl finds the plug-in on PATH; it is the same program."""
    places = [str(Path(sys.executable).parent), str(kube.kubectl.parent), os.environ["PATH"]]
    env = {**environment(variables(kube)), "PATH": os.pathsep.join(places)}

    done = subprocess.run(
        [kube.kubectl, "llem", "list", "-n", kube.namespace], env=env, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert applied in done.stdout


# --- what goes wrong


def test_wrong_name_says_which_there_are(run: Llem, applied: str) -> None:
    """The nearest name, or all; a name that could be an option never reaches kubectl."""
    near, far, option = run("status", "swep"), run("why", "nothing-like-it"), run("status", "--", "--all")

    assert "no study or experiment 'swep' in namespace" in near.err
    assert "did you mean sweep?" in near.err
    assert "there are sweep" in far.err
    assert (near.code, far.code, option.code) == (1, 1, 2)


def test_user_without_rights_is_told_so(kube: Kube, tmp_path: Path) -> None:
    """The API server's own words, and what to ask for; the context brings its namespace along."""
    config = tmp_path / "kubeconfig"
    config.write_bytes(kube.kubeconfig.read_bytes())
    eve = Kube(config, kube.kubectl, kube.namespace)
    token = kube.ok("create", "token", "default").strip()
    cluster = json.loads(eve.ok("config", "view", "-o", "json"))["clusters"][0]["name"]
    eve.ok("config", "set-credentials", "eve", f"--token={token}")
    eve.ok("config", "set-context", "eve", f"--cluster={cluster}", "--user=eve", f"--namespace={kube.namespace}")

    ended = llem("list", "--context", "eve", "--kubeconfig", config, cwd=tmp_path, env={"KUBECTL": str(kube.kubectl)})

    assert ended.code == 1
    (error,) = ended.errors
    assert "not allowed" in error
    assert f'in the namespace "{kube.namespace}"' in error


def test_cluster_that_does_not_answer(kube: Kube, tmp_path: Path) -> None:
    """One sentence, no pages of discovery errors."""
    config = tmp_path / "kubeconfig"
    config.write_bytes(kube.kubeconfig.read_bytes())
    away = Kube(config, kube.kubectl)
    cluster = json.loads(away.ok("config", "view", "-o", "json"))["clusters"][0]["name"]
    away.ok("config", "set-cluster", cluster, "--server=https://127.0.0.1:1")

    ended = llem("list", "--kubeconfig", config, cwd=tmp_path, env=variables(kube))

    assert ended.code == 1
    (error,) = ended.err.splitlines()
    assert error.startswith("error: the cluster does not answer: ")


def test_missing_kubectl(tmp_path: Path) -> None:
    """Without kubectl the verbs say where to get it, and `llem` itself goes on working."""
    ended = llem("list", cwd=tmp_path, env={"PATH": "/nowhere"})

    assert "kubectl is not on PATH" in ended.err
    assert ended.code == 1
    assert llem("schema", cwd=tmp_path, env={"PATH": "/nowhere"}).code == 0


@pytest.mark.parametrize("words", [("list",), ("status", "sweep"), ("apply", "sweep.yaml")], ids=lambda w: w[0])
def test_cluster_without_llem(bare: Kube, file: Path, words: tuple[str, ...]) -> None:
    """No CRDs: the sentence says that llem is not installed there, and how it gets there."""
    ended = llem(*words, cwd=file.parent, env=variables(bare))

    assert ended.code == 1
    assert "llem is not installed in it" in ended.err


@pytest.fixture(scope="module")
def bare() -> Iterator[Kube]:
    """A second API server, on which nothing is installed."""
    command = [sys.executable, str(kubes.SOURCE / "cluster.py")]
    place = ["--control-plane", "--name", "bare"]
    subprocess.run([*command, "up", *place], check=True)
    try:
        told = subprocess.run([*command, "status", *place], check=True, capture_output=True, text=True)
        found = json.loads(told.stdout)
        yield Kube(Path(found["kubeconfig"]), Path(found["kubectl"]))
    finally:
        subprocess.run([*command, "down", *place], check=True)
