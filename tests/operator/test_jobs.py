"""The Job of an attempt, word for word, and where its pod may run.

tests/golden/jobs holds one Job per case; a deliberate change rewrites them:
`UPDATE_GOLDEN=1 .venv/bin/pytest tests/operator/test_jobs.py`.
"""

import json
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from fakes.world import study
from llem_operator.acceptance import Accepted, accept_study
from llem_operator.names import child_name, job_name, public_uri, study_uri
from llem_operator.objects import Attempt, experiment_object, job_object, jobs_of, literal, pod_deadline_s
from llem_operator.pod_template import fragment_problems, merge_fragment
from llem_operator.scheduling import affinity, gpu_terms
from llem_operator.settings import Settings
from llenergymeasure.core.errors import ConfigError

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "jobs"
IMAGES = {"synthetic": "llem/synthetic:1", "pytorch": "llem/pytorch:1", "vllm": "llem/vllm:1"}
SETTINGS = Settings(images=IMAGES, results={"uri": "s3://bench/llem"})
UID = "0123abcd-0000-4000-8000-000000000000"
NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)

EVERYTHING = {
    "images": {"vllm": "registry/vllm:2"},
    "imagePullPolicy": "Always",
    "imagePullSecrets": [{"name": "pull"}],
    "serviceAccountName": "runner",
    "gpu": {"products": ["NVIDIA-H100-80GB-HBM3"], "minMemoryMiB": 80000, "minComputeCapability": "9.0"},
    "exclusivity": "GPU",
    "nodeSelector": {"pool": "gpu"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "runtimeClassName": "nvidia",
    "shmSizeBytes": 1073741824,
    "tmpSizeBytes": 2147483648,
    "modelCache": {"claimName": "models", "subPath": "hf"},
    "env": [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}],
    "envFrom": [{"configMapRef": {"name": "proxy"}}],
    "queueName": "night",
    "priorityClassName": "low",
    "resources": {"requests": {"cpu": "8"}, "limits": {"memory": "64Gi"}},
    "deadlines": {"runSeconds": 7200, "uploadSeconds": 600},
    "podTemplate": {
        "metadata": {"labels": {"team": "a"}, "annotations": {"note": "b"}},
        "spec": {
            "securityContext": {"supplementalGroups": [44]},
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}],
            "containers": [{"name": "runner", "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
        },
    },
}


def design(**body: Any) -> dict[str, Any]:
    """A study's body with a single configuration."""
    return {"model": "org/model", "n": 10, **body}


CASES: dict[str, dict[str, Any]] = {
    "plain": {"design": design(backend="synthetic")},
    "gpu": {"design": design(backend="pytorch")},
    "four-gpus": {"design": design(backend="vllm", vllm={"tensor_parallel_size": 4})},
    "everything": {
        "design": design(backend="vllm"), "template": EVERYTHING,
        "results": {
            "uri": "s3://mine/x/", "endpoint": "https://s3.example", "region": "eu", "credentialsSecretRef": {"name": "s3"},
        },
    },
    "volume": {"design": design(backend="synthetic"), "results": {"pvc": {"claimName": "results", "subPath": "llem"}}},
    "cpu-allowed": {"design": design(backend="pytorch"), "template": {"gpu": {"allowCPU": True}}},
    "no-gpu": {"design": design(backend="pytorch"), "template": {"gpu": {"count": 0}}},
    "leaking-name": {"design": design(backend="synthetic", model="$(HF_TOKEN)/$HOME/$$(X)")},
}  # fmt: skip


def a_study(spec: Mapping[str, Any], name: str = "sweep") -> dict[str, Any]:
    """A study as read from the API."""
    found = study(name, cycles=1, values=1)
    found["metadata"]["uid"] = UID
    execution = {"nCycles": 1, "configGapSeconds": 0}
    return {**found, "spec": {"execution": execution, **spec}}


def the_job(spec: Mapping[str, Any], name: str = "sweep", **attempt: Any) -> dict[str, Any]:
    """The Job of the study's first run."""
    body = a_study(spec, name)
    accepted = accept_study(body, SETTINGS)
    assert isinstance(accepted, Accepted), accepted
    run = accepted.runs[0]
    experiment = experiment_object(body, run, accepted.configuration(run))
    experiment["metadata"]["uid"] = "child-uid"
    fields = {
        "experiment": experiment, "study": body, "number": 1, "configuration": accepted.configuration(run),
        "timeout_s": accepted.timeout_s, "results": accepted.results, **attempt,
    }  # fmt: skip
    return job_object(Attempt(**fields), SETTINGS)


def environment(job: Mapping[str, Any]) -> dict[str, str]:
    """Variables of the runner that have a plain value."""
    variables = job["spec"]["template"]["spec"]["containers"][0]["env"]
    return {v["name"]: v["value"] for v in variables if "value" in v}


@pytest.mark.parametrize("case", CASES)
def test_jobs_are_those_of_the_golden_files(case: str) -> None:
    """Nothing of a Job changes by accident."""
    path = GOLDEN / f"{case}.yaml"
    found = yaml.safe_dump(json.loads(json.dumps(the_job(CASES[case]))), sort_keys=False, width=110)
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(found, encoding="utf-8")
    assert found == path.read_text(encoding="utf-8")


def test_a_model_name_cannot_read_a_secret() -> None:
    """The kubelet expands `$(NAME)` in values; a `$$(` it leaves alone, and the runner reads the name as written."""
    raw = environment(the_job(CASES["leaking-name"]))["LLEM_EXPERIMENT"]
    assert "$$(HF_TOKEN)" in raw
    assert json.loads(expanded(raw, {"HF_TOKEN": "hf_secret", "X": "y"}))["model"] == "$(HF_TOKEN)/$HOME/$$(X)"


def expanded(value: str, known: Mapping[str, str]) -> str:
    """As the kubelet does it (third_party/forked/golang/expansion/expand.go): `$$` is `$`, `$(NAME)` its value if known."""

    def meaning(found: re.Match[str]) -> str:
        return "$" if found[0] == "$$" else known.get(found[1], found[0])

    return re.sub(r"\$\$|\$\(([^)]*)\)", meaning, value)


def test_literal_values_survive_the_kubelet() -> None:
    """Whatever a configuration contains, the container reads it."""
    for value in ("plain", "$(A)", "$$(A)", "$$$(A)", "a$(A)b$(B)", "$(", "$$", "cost: $5"):
        assert expanded(literal(value), {"A": "secret", "B": "secret"}) == value


def test_names_of_the_longest_study_fit() -> None:
    """At 58 characters and more a pod's name loses characters."""
    child = child_name("s" * 40, 99_999, "abcdef0123456789")
    assert len(child) == 53
    assert len(job_name(child, 99)) <= 57


def test_the_pod_is_told_what_earlier_runs_left() -> None:
    """Pauses per node, baselines, and from which attempt on a result may be adopted."""
    row = {
        "gpuUUID": "GPU-1",
        "driver": "570",
        "kind": "bare",
        "powerMilliwatts": 71_500,
        "measuredAt": "2026-03-04T05:00:00Z",
        "conditions": "0123456789ab",
    }
    job = the_job(
        CASES["gpu"], number=3, adopt_from=2, baselines=[{**row, "node": "a"}], not_before={"a": NOW}, gap_s=60.0
    )
    found = environment(job)
    assert json.loads(found["LLEM_GAP_UNTIL"]) == {"a": "2026-03-04T05:06:07.000Z"}
    assert json.loads(found["LLEM_BASELINES"]) == [
        {
            "gpu_uuid": "GPU-1",
            "driver": "570",
            "kind": "bare",
            "power_w": 71.5,
            "measured_at": "2026-03-04T05:00:00Z",
            "conditions": "0123456789ab",
        }
    ]
    assert (found["LLEM_ADOPT_FROM"], found["LLEM_ATTEMPT"]) == ("2", "3")
    assert job["metadata"]["name"].endswith("-a3")
    without = the_job(CASES["gpu"])["spec"]["template"]["spec"]["activeDeadlineSeconds"]
    assert job["spec"]["template"]["spec"]["activeDeadlineSeconds"] == without + 60


def test_the_pods_deadline_is_run_and_upload_and_pause() -> None:
    """So that a node that lost its network stops the pod by itself."""
    body = a_study(CASES["everything"])
    accepted = accept_study(body, SETTINGS)
    assert isinstance(accepted, Accepted)
    experiment = experiment_object(body, accepted.runs[0], accepted.configurations[0])
    attempt = Attempt(experiment, body, 1, accepted.configurations[0], 9.0, gap_s=30.0)
    assert pod_deadline_s(attempt) == 30 + 7200 + 600 + 60


@pytest.mark.parametrize("case", CASES)
def test_every_pod_is_restricted(case: str) -> None:
    """No API token, no root, no privileges, nothing writable but its own folders, never a second pod."""
    job = the_job(CASES[case])
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert (pod["restartPolicy"], job["spec"]["backoffLimit"], job["spec"]["podReplacementPolicy"]) == (
        "Never",
        0,
        "Failed",
    )
    assert [r["action"] for r in job["spec"]["podFailurePolicy"]["rules"]] == ["FailJob", "FailJob"]
    assert "ttlSecondsAfterFinished" not in job["spec"]


def test_secrets_come_after_the_configuration_and_as_files() -> None:
    """A variable can only be expanded by one that was set before it."""
    container = the_job(CASES["everything"])["spec"]["template"]["spec"]["containers"][0]
    names = [v["name"] for v in container["env"]]
    assert names.index("LLEM_EXPERIMENT") < names.index("HF_TOKEN")
    assert not [n for n in names if n.startswith("AWS_")]
    assert {"name": "store", "mountPath": "/var/run/llem/store", "readOnly": True} in container["volumeMounts"]


def test_jobs_of_a_study_are_those_of_its_plan() -> None:
    """`llem plan --jobs` shows every run's Job, in the order of starts; a study that is refused says why."""
    body = study(cycles=2, values=3)
    accepted = accept_study({**body, "metadata": {**body["metadata"], "uid": UID}}, SETTINGS)
    assert isinstance(accepted, Accepted)
    names = [j["metadata"]["name"] for j in jobs_of(body, SETTINGS)]
    assert [int(n.split("-")[1]) for n in names] == [r.index for r in accepted.runs]
    body["spec"]["design"]["modle"] = "x"
    with pytest.raises(ConfigError, match="modle"):
        list(jobs_of(body, SETTINGS))


def test_places_of_results_read_the_same_outside_the_pod() -> None:
    """A volume is named by its claim, a bucket by its URI."""
    owner = {"metadata": {"name": "sweep", "uid": UID}}
    pvc = {"pvc": {"claimName": "c", "subPath": "/p/"}}
    assert study_uri({"uri": "s3://b/x/"}, owner) == "s3://b/x/sweep-0123abcd"
    assert study_uri(pvc, owner) == "pvc://c/p/sweep-0123abcd"
    assert (
        public_uri("file:///results/sweep-0123abcd/r/a1/result.json", pvc)
        == "pvc://c/p/sweep-0123abcd/r/a1/result.json"
    )
    assert public_uri("s3://b/r", {"uri": "s3://b"}) == "s3://b/r"


FORBIDDEN: dict[str, tuple[dict[str, Any], str]] = {
    "hostNetwork": ({"spec": {"hostNetwork": True}}, "spec.hostNetwork"),
    "hostPID": ({"spec": {"hostPID": True}}, "spec.hostPID"),
    "restartPolicy": ({"spec": {"restartPolicy": "Always"}}, "spec.restartPolicy"),
    "initContainers": ({"spec": {"initContainers": []}}, "spec.initContainers"),
    "affinity": ({"spec": {"affinity": {}}}, "spec.affinity"),
    "account": ({"spec": {"serviceAccountName": "root"}}, "spec.serviceAccountName"),
    "token": ({"spec": {"automountServiceAccountToken": True}}, "spec.automountServiceAccountToken"),
    "runAsUser": ({"spec": {"securityContext": {"runAsUser": 0}}}, "spec.securityContext.runAsUser"),
    "runAsNonRoot": ({"spec": {"securityContext": {"runAsNonRoot": False}}}, "spec.securityContext.runAsNonRoot"),
    "command": ({"spec": {"containers": [{"name": "runner", "command": ["sh"]}]}}, "containers[runner].command"),
    "image": ({"spec": {"containers": [{"name": "runner", "image": "x"}]}}, "containers[runner].image"),
    "privileged": (
        {"spec": {"containers": [{"name": "runner", "securityContext": {"privileged": True}}]}},
        "containers[runner].securityContext",
    ),
    "a second container": ({"spec": {"containers": [{"name": "spy"}]}}, "containers[spy]"),
    "a nameless container": ({"spec": {"containers": [{}]}}, "containers[?]"),
    "our variable": (
        {"spec": {"containers": [{"name": "runner", "env": [{"name": "LLEM_RUN_URI", "value": "x"}]}]}}, "LLEM_RUN_URI",
    ),
    "the card": (
        {"spec": {"containers": [{"name": "runner", "env": [{"name": "CUDA_VISIBLE_DEVICES"}]}]}}, "CUDA_VISIBLE_DEVICES",
    ),
    "the driver": (
        {"spec": {"containers": [{"name": "runner", "env": [{"name": "NVIDIA_VISIBLE_DEVICES"}]}]}},
        "NVIDIA_VISIBLE_DEVICES",
    ),
    "gpus": (
        {"spec": {"containers": [{"name": "runner", "resources": {"limits": {"nvidia.com/gpu": "8"}}}]}}, "nvidia.com/gpu",
    ),
    "our labels": ({"metadata": {"labels": {"llem.dev/measuring": "false"}}}, "llem.dev/measuring"),
    "our annotations": ({"metadata": {"annotations": {"x.llem.dev/y": "1"}}}, "x.llem.dev/y"),
    "owners": ({"metadata": {"ownerReferences": []}}, "metadata.ownerReferences"),
    "host path": ({"spec": {"volumes": [{"name": "h", "hostPath": {"path": "/"}}]}}, "volumes[h]"),
    "our volume": ({"spec": {"volumes": [{"name": "store", "emptyDir": {}}]}}, "volumes[store]"),
    "a typo": ({"spec": {"tolerationz": []}}, "tolerations"),
    "beside spec": ({"status": {}}, "podTemplate.status"),
}  # fmt: skip


@pytest.mark.parametrize(("fragment", "word"), FORBIDDEN.values(), ids=FORBIDDEN)
def test_a_fragment_cannot_touch_what_is_not_on_the_list(fragment: dict[str, Any], word: str) -> None:
    """Each field is refused by its name."""
    (problem,) = fragment_problems(fragment, allow_host_path=False)
    assert word in problem


def test_a_host_path_is_allowed_where_the_cluster_allows_it() -> None:
    """A setting of the chart."""
    assert (
        fragment_problems({"spec": {"volumes": [{"name": "h", "hostPath": {"path": "/"}}]}}, allow_host_path=True) == []
    )


def test_maps_of_a_fragment_merge_and_lists_are_appended() -> None:
    """The operator's own labels win; the fragment given is left as it was."""
    pod = the_job(CASES["plain"])["spec"]["template"]
    fragment = {
        "metadata": {"labels": {"team": "a", "app.kubernetes.io/name": "mine"}},
        "spec": {
            "nodeSelector": {"zone": "b"},
            "tolerations": [{"key": "x"}],
            "dnsConfig": {"nameservers": ["1.1.1.1"]},
            "securityContext": {"fsGroup": 5},
            "containers": [
                {"name": "runner", "env": [{"name": "A", "value": "b"}], "resources": {"limits": {"cpu": "9"}}}
            ],
        },
    }
    assert fragment_problems(fragment, allow_host_path=False) == []
    before = json.dumps(pod)
    found = merge_fragment(pod, fragment)
    assert json.dumps(pod) == before
    assert found["metadata"]["labels"]["app.kubernetes.io/name"] == "llem"
    assert found["metadata"]["labels"]["team"] == "a"
    assert found["spec"]["nodeSelector"] == {"zone": "b"}
    assert found["spec"]["tolerations"] == [{"key": "x"}]
    assert found["spec"]["securityContext"]["fsGroup"] == 5
    assert found["spec"]["securityContext"]["runAsNonRoot"] is True
    (container,) = found["spec"]["containers"]
    assert container["env"][-1] == {"name": "A", "value": "b"}
    assert container["resources"]["limits"] == {"cpu": "9", "memory": "16Gi"}


def fits(terms: list[dict[str, Any]], labels: Mapping[str, str]) -> bool:
    """Whether a node with these labels is chosen, by the scheduler's rules: any term, all of its expressions."""

    def holds(e: Mapping[str, Any]) -> bool:
        there, value, wanted = e["key"] in labels, labels.get(e["key"], ""), e.get("values", [])
        match e["operator"]:
            case "In":
                return there and value in wanted
            case "NotIn":
                return not there or value not in wanted
            case "Exists":
                return there
            case "DoesNotExist":
                return not there
            case "Gt":
                return there and int(value) > int(wanted[0])
        raise AssertionError(e)

    return not terms or any(all(holds(e) for e in t["matchExpressions"]) for t in terms)


def node(product: str = "H100", memory: int = 81559, capability: str = "9.0", **more: str) -> dict[str, str]:
    """Labels of GPU Feature Discovery."""
    major, minor = capability.split(".")
    found = {"product": product, "memory": str(memory), "compute.major": major, "compute.minor": minor, **more}
    return {("nvidia.com/gpu." + k if "mig" not in k else "nvidia.com/" + k): v for k, v in found.items()}


NODES: dict[str, tuple[dict[str, Any], dict[str, str], bool]] = {
    "any": ({}, node(), True),
    "bare node without labels": ({}, {}, True),
    "product": ({"products": ["H100", "H200"]}, node("H200"), True),
    "other product": ({"products": ["H100", "H200"]}, node("A100"), False),
    "memory exactly": ({"minMemoryMiB": 81559}, node(memory=81559), True),
    "memory one less": ({"minMemoryMiB": 81560}, node(memory=81559), False),
    "capability exactly": ({"minComputeCapability": "8.6"}, node(capability="8.6"), True),
    "capability minor greater": ({"minComputeCapability": "8.6"}, node(capability="8.9"), True),
    "capability minor less": ({"minComputeCapability": "8.6"}, node(capability="8.0"), False),
    "capability major greater": ({"minComputeCapability": "8.6"}, node(capability="9.0"), True),
    "capability major less": ({"minComputeCapability": "8.0"}, node(capability="7.5"), False),
    "capability major two digits": ({"minComputeCapability": "9.0"}, node(capability="10.0"), True),
    "capability of a zero": ({"minComputeCapability": "8.0"}, node(capability="8.0"), True),
    "replicas one": ({}, node(replicas="1"), True),
    "replicas shared": ({}, node(replicas="4"), False),
    "replicas allowed": ({"allowShared": True}, node(replicas="4"), True),
    "mig off": ({}, node(**{"mig.strategy": "single"}), True),
    "mig mixed": ({}, node(**{"mig.strategy": "mixed"}), False),
    "mig allowed": ({"allowShared": True}, node(**{"mig.strategy": "mixed"}), True),
    "all at once": (
        {"products": ["H100"], "minMemoryMiB": 80000, "minComputeCapability": "9.0"}, node(replicas="1"), True,
    ),
    "all but one": (
        {"products": ["H100"], "minMemoryMiB": 80000, "minComputeCapability": "9.0"}, node(replicas="2"), False,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("gpu", "labels", "chosen"), NODES.values(), ids=NODES)
def test_a_run_goes_to_the_gpu_that_was_asked_for(gpu: dict[str, Any], labels: dict[str, str], chosen: bool) -> None:
    """The scheduler's answer for real label sets; a shared card has one energy counter for all of its users."""
    assert fits(gpu_terms(gpu), labels) is chosen


def test_a_run_without_a_gpu_asks_for_none_and_still_has_the_node_to_itself() -> None:
    """The CPU, fans and power budget are shared, too; another namespace's measurement counts."""
    found = affinity({"gpu": {"products": ["H100"]}}, 0)
    assert "nodeAffinity" not in found
    (term,) = found["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["namespaceSelector"] == {}
    assert term["topologyKey"] == "kubernetes.io/hostname"
    assert term["labelSelector"] == {"matchLabels": {"llem.dev/measuring": "true"}}
    assert affinity({"exclusivity": "GPU", "gpu": {"allowShared": True}}, 1) == {}
