"""The chart: rendered in every shape, checked against Kubernetes' schemas, installed on a real API server."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.charts import CHART, ROOT, Helm, environment_of, one, program, write_schemas
from cluster.commands import Kubectl
from cluster.kube import Kube, condition, experiment, study
from cluster.kube import namespace as fresh_namespace
from llem_operator.settings import Settings
from llenergymeasure import __version__
from llenergymeasure.core import crds, registry

pytestmark = pytest.mark.cluster

DIGEST = "sha256:" + "0" * 64
TOLERATION = {"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}
FULL: dict[str, Any] = {
    "commonLabels": {"team": "bench"},
    "commonAnnotations": {"owner": "someone@example.com"},
    "watchNamespaces": ["bench", "other"],
    "imagePullSecrets": ["pull"],
    "image": {"digest": DIGEST},
    "runner": {
        "serviceAccount": {"create": True, "annotations": {"role": "reader"}},
        "allowedImages": ["ghcr.io/llenergymeasure/"],
        "allowedServiceAccounts": ["llem-runner"],
        "resources": {"requests": {"cpu": 2, "memory": "8Gi"}, "limits": {"cpu": 2, "memory": "8Gi"}},
        "images": {"pytorch": {"repository": "my-pytorch", "digest": DIGEST}},
    },
    "results": {"uri": "s3://bench/llem", "region": "eu-central-1", "credentialsSecretRef": {"name": "store"}},
    "objectStore": {"enabled": True, "existingSecret": "store", "extraArgs": ["--nometa"], "tolerations": [TOLERATION]},
    "operator": {
        "replicas": 2,
        "labels": {"a": "b"},
        "annotations": {"c": "d"},
        "nodeSelector": {"zone": "a"},
        "tolerations": [TOLERATION],
        "affinity": {"nodeAffinity": {}},
        "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}],
        "priorityClassName": "high",
        "serviceAccount": {"annotations": {"e": "f"}},
    },
    "networkPolicy": {
        "metricsFrom": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}],
        "runnerEgress": [{"ports": [{"port": 8443, "protocol": "TCP"}]}],
    },
    "metrics": {"serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}}},
}
STORE = {"objectStore": {"enabled": True, "existingSecret": "store"}}
OFF: dict[str, Any] = {
    "crds": {"install": False},
    "rbac": {"create": False, "aggregateToUserRoles": False},
    "operator": {"serviceAccount": {"create": False, "name": "mine"}},
    "podDisruptionBudget": {"enabled": False},
    "networkPolicy": {"enabled": False},
    "metrics": {"service": {"enabled": False}},
    "helmTest": {"enabled": False},
}
SHAPES: dict[str, dict[str, Any]] = {
    "as shipped": {},
    "everything": FULL,
    "nothing optional": OFF,
    "whole cluster": {"clusterWide": True},
    "with a store": STORE,
    "with a store in memory": {"objectStore": {**STORE["objectStore"], "persistence": {"enabled": False}}},
    "results on a volume": {"results": {"pvc": {"claimName": "results", "subPath": "llem"}}},
}
SHAPED = pytest.mark.parametrize("values", SHAPES.values(), ids=SHAPES.keys())


@pytest.fixture(scope="module")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """helm without a cluster."""
    return Helm(program("helm"), tmp_path_factory.mktemp("helm"))


@pytest.fixture(scope="module")
def schemas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kubernetes' own schemas."""
    return write_schemas(tmp_path_factory.mktemp("schemas"))


# --- rendered


@SHAPED
def test_lint_finds_nothing(helm: Helm, values: dict[str, Any]) -> None:
    """`helm lint --strict` has no complaint."""
    said = helm.ok("lint", "--strict", str(CHART), "--namespace", "bench", values=values)

    assert "0 chart(s) failed" in said


@SHAPED
def test_every_object_fits_the_schema_of_its_kind(helm: Helm, schemas: Path, values: dict[str, Any]) -> None:
    """Strictly: a misspelt key in a template is found (ServiceMonitor's schema is not Kubernetes' own)."""
    text = helm.ok("template", "llem", str(CHART), "--namespace", "bench", values=values)

    done = subprocess.run(
        [program("kubeconform"), "-summary", "-output", "json", "-skip", "ServiceMonitor", "-schema-location",
         f"{schemas}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json"],
        input=text, capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found.get("resources", []) == []
    assert done.returncode == 0
    assert found["summary"]["valid"] >= 1


@SHAPED
def test_settings_are_those_that_the_operator_reads(helm: Helm, values: dict[str, Any]) -> None:
    """The operator starts with this environment: every variable is known, every value can be read."""
    deployment = one(helm.render(values), "Deployment", "llem-llenergymeasure")

    settings = Settings.from_environment(environment_of(deployment))

    assert settings.namespace == "bench"
    assert settings.lease == "llem-llenergymeasure-leader"
    assert set(settings.images) == set(registry.backend_names())


def settings_of(helm: Helm, values: dict[str, Any]) -> Settings:
    """What the operator reads from a rendered chart."""
    return Settings.from_environment(environment_of(one(helm.render(values), "Deployment", "llem-llenergymeasure")))


def test_defaults_of_the_chart_are_those_of_the_operator(helm: Helm) -> None:
    """Where the chart sets nothing special, both agree."""
    ours, own = settings_of(helm, {}).model_dump(), Settings().model_dump()

    same = set(own) - {"namespaces", "namespace", "lease", "images"}
    assert {k: ours[k] for k in same} == {k: own[k] for k in same}
    assert ours["namespaces"] == ("bench",)
    assert ours["images"]["vllm"] == f"ghcr.io/llenergymeasure/llem-vllm:{__version__}"


def test_values_reach_the_operator(helm: Helm) -> None:
    """What is set is what the operator reads."""
    found = settings_of(helm, FULL)

    assert found.namespaces == ("bench", "other")
    assert found.images["pytorch"] == f"ghcr.io/llenergymeasure/my-pytorch@{DIGEST}"
    assert found.image_pull_secrets == ("pull",)
    assert found.runner_service_account == "llem-llenergymeasure-runner"
    assert found.results == FULL["results"]
    assert found.allowed_images == ("ghcr.io/llenergymeasure/",)
    assert found.allowed_service_accounts == ("llem-runner",)
    assert found.resources == {k: {"cpu": "2", "memory": "8Gi"} for k in ("requests", "limits")}
    assert settings_of(helm, {"clusterWide": True}).namespaces == ()


def test_the_store_is_where_results_go(helm: Helm) -> None:
    """With the chart's own store and no other destination, a study needs to say nothing."""
    objects = helm.render(STORE)
    found = settings_of(helm, STORE).results

    service = one(objects, "Service", "-store")
    assert found == {
        "uri": "s3://llem",
        "endpoint": f"http://{service['metadata']['name']}.bench.svc:7070",
        "region": "us-east-1",
        "credentialsSecretRef": {"name": "store"},
    }
    claim = one(objects, "PersistentVolumeClaim")
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


def test_definitions_are_the_generated_ones(helm: Helm) -> None:
    """What Helm installs is what kubectl applies, plus labels and the wish to be kept."""
    found = {o["metadata"]["name"]: o for o in helm.render({}) if o["kind"] == "CustomResourceDefinition"}

    for definition in crds.definitions():
        installed = found[definition["metadata"]["name"]]
        assert installed["spec"] == definition["spec"]
        assert installed["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert not any(o["kind"] == "CustomResourceDefinition" for o in helm.render(OFF))


def test_labels_and_annotations_are_on_every_object(helm: Helm) -> None:
    """Whoever asks for a label finds it everywhere, in pods, too."""
    objects = helm.render(FULL)

    assert [o["metadata"]["name"] for o in objects if o["metadata"]["labels"].get("team") != "bench"] == []
    bare = [
        o["metadata"]["name"]
        for o in objects
        if (o["metadata"].get("annotations") or {}).get("owner") != "someone@example.com"
    ]
    assert bare == [one(objects, "ServiceMonitor")["metadata"]["name"]] or bare == []
    for deployment in (o for o in objects if o["kind"] == "Deployment"):
        assert deployment["spec"]["template"]["metadata"]["labels"]["team"] == "bench"


def test_the_operator_is_where_it_was_asked_to_be(helm: Helm) -> None:
    """Selector, tolerations, affinity, spread, priority, labels and image digest reach the pod."""
    deployment = one(helm.render(FULL), "Deployment", "llem-llenergymeasure")
    template, wanted = deployment["spec"]["template"], FULL["operator"]
    pod = template["spec"]

    for name in ("nodeSelector", "tolerations", "affinity", "topologySpreadConstraints", "priorityClassName"):
        assert pod[name] == wanted[name]
    assert template["metadata"]["labels"]["a"] == "b"
    assert template["metadata"]["annotations"]["c"] == "d"
    assert deployment["spec"]["replicas"] == 2
    assert pod["containers"][0]["image"] == f"ghcr.io/llenergymeasure/llem-operator@{DIGEST}"
    assert pod["imagePullSecrets"] == [{"name": "pull"}]


def test_no_role_names_a_wildcard_or_a_secret(helm: Helm) -> None:
    """In no shape of the chart."""
    for values in SHAPES.values():
        roles = [o for o in helm.render(values) if o["kind"] in ("Role", "ClusterRole")]
        words = {
            w for r in roles for rule in r["rules"] for key in ("apiGroups", "resources", "verbs") for w in rule[key]
        }
        assert not words & {"*", "secrets", "pods/exec", "pods/log", "nodes", "impersonate", "escalate", "bind"}


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("typo at the top", {"watchNamespace": ["a"]}, "watchNamespace"),
    ("typo in a section", {"operator": {"replica": 2}}, "replica"),
    ("typo in an image", {"runner": {"images": {"vllm": {"repository": "a", "tags": "1"}}}}, "tags"),
    ("typo in results", {"results": {"url": "s3://a/b"}}, "url"),
    ("number as text", {"operator": {"workers": "four"}}, "workers"),
    ("unknown level", {"operator": {"logLevel": "LOUD"}}, "logLevel"),
    ("too many runs", {"maxRuns": 20000}, "maxRuns"),
    ("tag as digest", {"image": {"digest": "latest"}}, "digest"),
    ("uri and pvc", {"results": {"uri": "s3://a/b", "pvc": {"claimName": "c"}}}, "results"),
    ("store without a secret", {"objectStore": {"enabled": True}}, "objectStore.existingSecret"),
    ("store for another namespace", {**STORE, "watchNamespaces": ["other"]}, "objectStore serves namespace bench only"),
    ("all and some", {"clusterWide": True, "watchNamespaces": ["a"]}, "leave watchNamespaces empty"),
    ("account everywhere", {"clusterWide": True, "runner": {"serviceAccount": {"create": True}}}, "which namespaces"),
]


@pytest.mark.parametrize(("values", "words"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_wrong_values_are_refused_by_name(helm: Helm, values: dict[str, Any], words: str) -> None:
    """Before anything is installed."""
    assert words in helm.refused("template", "llem", str(CHART), "--namespace", "bench", values=values)


def test_every_value_is_in_the_schema_and_closed() -> None:
    """No object of the schema takes unknown keys, but those that are maps of the user's; every value has its place."""
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))

    def walk(node: dict[str, Any], value: Any, path: str) -> None:
        if "properties" in node:
            assert node["additionalProperties"] is False, path
            known = set(node["properties"]) - ({"global"} if not path else set())
            if path != "results":
                assert isinstance(value, dict), path
                assert known == set(value), path
                for name in known:
                    if node["properties"][name].get("type") == "object" and value[name] != {}:
                        walk(node["properties"][name], value[name], f"{path}{name}.")

    walk({**schema, "properties": {k: v for k, v in schema["properties"].items() if k != "global"}}, values, "")


def test_chart_names_the_images_that_it_runs(helm: Helm) -> None:
    """Artifact Hub's list is the list of what is started; versions are the package's."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    listed = {i["image"] for i in yaml.safe_load(chart["annotations"]["artifacthub.io/images"])}
    objects = helm.render(STORE)

    used = set(settings_of(helm, {}).images.values())
    for deployment in (o for o in objects if o["kind"] == "Deployment"):
        spec = deployment["spec"]["template"]["spec"]
        used |= {c["image"] for c in [*spec["containers"], *spec.get("initContainers", [])]}
    assert used == listed
    assert chart["version"] == chart["appVersion"] == __version__
    kinds = {c["kind"] for c in yaml.safe_load(chart["annotations"]["artifacthub.io/crds"])}
    assert kinds == {d["spec"]["names"]["kind"] for d in crds.definitions()}
    for sample in yaml.safe_load(chart["annotations"]["artifacthub.io/crdsExamples"]):
        assert sample["kind"] in kinds


# --- installed


@dataclass(frozen=True)
class Installed:
    """The chart on an API server."""

    helm: Helm
    kube: Kube
    other: str
    release: str = "llem"

    @property
    def account(self) -> str:
        """The operator's ServiceAccount as the API server knows it."""
        return f"system:serviceaccount:{self.kube.namespace}:{self.release}-llenergymeasure"

    def __call__(self, verb: str, *flags: str, **values: Any) -> str:
        """install or upgrade."""
        place = ("--namespace", self.kube.namespace)
        return self.helm.ok(verb, self.release, str(CHART), *place, *flags, values=values)

    def may(self, verb: str, resource: str, namespace: str = "", account: str = "") -> bool:
        """Whether the operator (or another account) may do something; a part of a resource is written `kind/part`."""
        kind, _, rest = resource.partition("/")
        asked = (
            [f"{kind}/{rest}"]
            if kind.startswith("leases") and rest
            else [kind, *([f"--subresource={rest}"] if rest else [])]
        )
        answer = replace(self.kube, namespace=namespace or self.kube.namespace).run(
            "auth", "can-i", verb, *asked, "--as", account or self.account
        )
        assert answer.stdout.strip() in ("yes", "no"), answer.stderr
        return answer.stdout.strip() == "yes"


@pytest.fixture(scope="module")
def installed(api_server: Kube, helm: Helm) -> Iterator[Installed]:
    """The chart installed in a namespace of its own, with the chart's store; a namespace beside it is not watched."""
    with (
        fresh_namespace(api_server, prefix="chart") as kube,
        fresh_namespace(api_server, prefix="beside") as beside,
    ):
        kube.ok("delete", "crd", "--ignore-not-found", *(d["metadata"]["name"] for d in crds.definitions()))
        chart = Installed(replace(helm, kubeconfig=kube.kubeconfig), kube, beside.namespace)
        chart("install", **STORE)
        kube.ok("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
        yield chart
        chart.helm.run("uninstall", chart.release, "--namespace", kube.namespace)


MAY = [
    *(f"{verb} {kind}" for kind in ("energystudies", "energyexperiments") for verb in ("get", "list", "watch")),
    *(f"{v} {k}/status" for k in ("energystudies", "energyexperiments") for v in ("get", "patch", "update")),
    "create energyexperiments",
    *(f"{verb} jobs.batch" for verb in ("create", "delete", "get", "list", "watch", "patch")),
    *(f"{verb} pods" for verb in ("get", "list", "watch")),
    *(f"{verb} events" for verb in ("create", "list")),
    *(f"{verb} leases.coordination.k8s.io/llem-llenergymeasure-leader" for verb in ("get", "update", "patch")),
]
MAY_NOT = [
    *(f"{verb} secrets" for verb in ("get", "list", "watch", "create", "update", "patch", "delete")),
    *(f"{verb} configmaps" for verb in ("get", "create")),
    "create pods/exec", "get pods/log", "create pods/attach", "create pods/portforward", "create pods/eviction",
    *(f"{verb} pods" for verb in ("create", "update", "patch", "delete", "deletecollection")),
    *(f"{verb} nodes" for verb in ("get", "list", "watch", "patch")),
    *(f"{v} {k}" for k in ("energystudies", "energyexperiments") for v in ("update", "patch", "delete", "deletecollection")),
    "create energystudies", "update energystudies/finalizers",
    *(f"{verb} jobs.batch" for verb in ("update", "deletecollection")),
    *(f"{verb} events" for verb in ("get", "watch", "delete", "patch")),
    *(f"{verb} leases.coordination.k8s.io" for verb in ("create", "list", "get", "delete")),
    "get leases.coordination.k8s.io/another",
    "create serviceaccounts/token", "impersonate users", "get customresourcedefinitions", "list namespaces",
    *(f"{verb} roles.rbac.authorization.k8s.io" for verb in ("get", "create", "escalate", "bind")),
    "* *",
]  # fmt: skip


@pytest.mark.parametrize("right", MAY)
def test_the_operator_may(installed: Installed, right: str) -> None:
    """What it needs, in its namespace and in no other."""
    verb, resource = right.split()

    assert installed.may(verb, resource)
    assert not installed.may(verb, resource, installed.other)


@pytest.mark.parametrize("right", MAY_NOT)
def test_the_operator_may_not(installed: Installed, right: str) -> None:
    """What it does not need, least of all what is secret."""
    verb, resource = right.split()

    assert not installed.may(verb, resource)


def test_nobody_else_gained_a_right(installed: Installed) -> None:
    """The default account of the namespace and the runs' may do nothing with llem's kinds."""
    account = f"system:serviceaccount:{installed.kube.namespace}:default"

    assert not installed.may("get", "energystudies", account=account)
    assert not installed.may("create", "energyexperiments", account=account)


@pytest.mark.parametrize(
    ("role", "may", "may_not"),
    [
        (
            "view",
            ["get energystudies", "list energyexperiments", "watch energystudies"],
            ["create energystudies", "patch energystudies/status", "delete energyexperiments"],
        ),
        (
            "edit",
            ["get energystudies", "create energystudies", "patch energystudies", "deletecollection energyexperiments"],
            ["patch energystudies/status", "update energyexperiments/status"],
        ),
    ],
)
def test_users_of_a_namespace_get_their_rights(
    installed: Installed, role: str, may: list[str], may_not: list[str]
) -> None:
    """Whoever may view or edit a namespace may view or edit its studies; nobody but the operator writes a status."""
    installed.kube.ok("create", "rolebinding", f"user-{role}", f"--clusterrole={role}", f"--user=user-{role}")
    deadline = time.monotonic() + 30  # the controller that aggregates roles takes a moment
    while not installed.may(*may[0].split(), account=f"user-{role}") and time.monotonic() < deadline:
        time.sleep(0.5)

    rights = {right: installed.may(*right.split(), account=f"user-{role}") for right in [*may, *may_not]}
    assert rights == {**dict.fromkeys(may, True), **dict.fromkeys(may_not, False)}


def pods_of(installed: Installed) -> list[dict[str, Any]]:
    """Every pod that the chart starts, as a Pod of its own."""
    found = []
    for obj in installed.helm.render(STORE, namespace=installed.kube.namespace):
        template = obj if obj["kind"] == "Pod" else obj["spec"]["template"] if obj["kind"] == "Deployment" else None
        if template:
            name = f"{obj['metadata']['name']}-try"
            labels = template["metadata"]["labels"]
            found.append(
                {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "metadata": {"name": name, "labels": labels},
                    "spec": template["spec"],
                }
            )
    return found


def test_pods_live_under_restricted_pod_security(installed: Installed) -> None:
    """The API server itself takes operator, store and test pod in a namespace of the restricted level."""
    pods = pods_of(installed)
    assert len(pods) == 3

    installed.kube.ok("create", "serviceaccount", f"{installed.release}-llenergymeasure-test")
    for pod in pods:
        installed.kube.ok("create", "--dry-run=server", "-f", "-", stdin=json.dumps(pod))
        for container in [*pod["spec"]["containers"], *pod["spec"].get("initContainers", [])]:
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"] is True
            assert security["allowPrivilegeEscalation"] is False
            assert {"requests", "limits"} <= set(container["resources"])


def test_notes_name_the_next_commands(installed: Installed) -> None:
    """After installing one knows what to type, and what to do about definitions that somebody else owns."""
    notes = installed.helm.ok("get", "notes", installed.release, "--namespace", installed.kube.namespace)

    assert f"helm test {installed.release} --namespace {installed.kube.namespace}" in notes
    assert "kubectl apply" in notes
    assert "--take-ownership" in notes
    assert "s3://llem" in notes


def test_an_upgrade_leaves_the_lease_and_the_studies_alone(installed: Installed) -> None:
    """The leader stays the leader, a study stays as it is, and the new setting is there."""
    installed.kube.apply(study("survivor"))
    installed.kube.apply(experiment("survivor"))
    lease = f"{installed.release}-llenergymeasure-leader"
    installed.kube.patch("lease", lease, {"spec": {"holderIdentity": "pod-1", "leaseDurationSeconds": 60}})

    installed("upgrade", **STORE, operator={"logLevel": "DEBUG"})

    assert installed.kube.get("lease", lease)["spec"]["holderIdentity"] == "pod-1"
    deployment = installed.kube.get("deployment", f"{installed.release}-llenergymeasure")
    assert environment_of(deployment)["LLEM_OPERATOR_LOG_LEVEL"] == "DEBUG"
    assert installed.kube.get("est", "survivor")["metadata"]["generation"] == 1


def script(installed: Installed, tmp_path: Path, kube: Kube, destination: str) -> subprocess.Popen[str]:
    """Start what the test pod runs, with its account's real token."""
    account = tmp_path / "account"
    account.mkdir()
    name = f"{installed.release}-llenergymeasure-test"
    config = json.loads(kube.ok("config", "view", "--raw", "-o", "json"))
    server = config["clusters"][0]["cluster"]
    authority = kube.ok("get", "configmap", "kube-root-ca.crt", "-o", "jsonpath={.data.ca\\.crt}")
    (account / "ca.crt").write_text(authority, encoding="utf-8")
    (account / "token").write_text(kube.ok("create", "token", name), encoding="utf-8")
    text = (CHART / "files" / "synthetic_study.py").read_text(encoding="utf-8")
    host, _, port = server["server"].removeprefix("https://").partition(":")
    environment = {
        "PATH": os.environ["PATH"], "STUDY_NAME": name, "STUDY_NAMESPACE": kube.namespace, "DESTINATION": destination,
        "STUDY_RESOURCES": '{"limits": {"cpu": "1"}}', "TIMEOUT_SECONDS": "60",
        "KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port,
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-c", text.replace("/var/run/secrets/kubernetes.io/serviceaccount", str(account))],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


END = {
    "measured": (
        "True",
        [condition("Succeeded", "True", "Completed"), condition("Finished", "True", "Completed", "done")],
    ),
    "failed": (
        "True",
        [condition("Succeeded", "False", "RunsFailed"), condition("Finished", "True", "RunsFailed", "2")],
    ),
    "refused": ("False", [condition("Finished", "True", "InvalidTemplate", "no destination")]),
}


@pytest.mark.parametrize(
    ("end", "destination", "code"),
    [("measured", "yes", 0), ("failed", "yes", 1), ("refused", "no", 0), ("refused", "yes", 1)],
)
def test_the_test_pod_waits_for_its_study(
    installed: Installed, tmp_path: Path, end: str, destination: str, code: int
) -> None:
    """`helm test` makes a legal study with the rights it has, follows it to its end, and passes only if it was measured."""
    kube = installed.kube
    name = f"{installed.release}-llenergymeasure-test"
    objects = installed.helm.render(STORE, namespace=kube.namespace)
    for kind in ("ServiceAccount", "Role", "RoleBinding"):
        kube.apply(one(objects, kind, "-test"))
    kube.run("delete", "est", name, "--ignore-not-found")
    process = script(installed, tmp_path, kube, destination)
    while kube.run("get", "est", name).returncode and process.poll() is None:
        time.sleep(0.2)
    accepted, conditions = END[end]

    status = {
        "conditions": [condition("Accepted", accepted, "Valid", "words"), *conditions],
        "counts": {"completed": 2},
    }
    kube.patch("est", name, {"status": status}, status=True)

    said, _ = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert conditions[-1]["message"] in said
    assert (kube.run("get", "est", name).returncode != 0) is (end != "failed")


def test_definitions_and_studies_stay_after_uninstalling(installed: Installed) -> None:
    """Uninstalling takes the operator away and nothing that somebody measured; installing again finds it all."""
    kube, place = installed.kube, ("--namespace", installed.kube.namespace)
    kube.apply(study("kept"))

    installed.helm.ok("uninstall", installed.release, *place)

    assert kube.get("est", "kept")["spec"]
    assert kube.run("get", "deployment", f"{installed.release}-llenergymeasure").returncode != 0
    assert kube.ok("get", "pvc", "-o", "name").split() == [
        f"persistentvolumeclaim/{installed.release}-llenergymeasure-store"
    ]
    installed("install", **STORE)
    assert kube.get("est", "kept")["metadata"]["generation"] == 1


def test_definitions_of_another_owner_are_taken_over_only_when_told(installed: Installed) -> None:
    """A second release says whose they are; it may leave them, or take them with --take-ownership."""
    kube, helm, place = installed.kube, installed.helm, ("--namespace", installed.kube.namespace)
    second = ("second", str(CHART), *place)

    assert "invalid ownership metadata" in helm.refused("install", *second)
    helm.ok("install", *second, values={"crds": {"install": False}})
    helm.ok("upgrade", *second, "--take-ownership", values={"crds": {"install": True}})
    owner = kube.get("crd", "energystudies.llem.dev")["metadata"]["annotations"]["meta.helm.sh/release-name"]
    assert owner == "second"
    helm.ok("uninstall", "second", *place)
    installed("upgrade", "--take-ownership", **STORE)


# --- health for Git controllers


def lua() -> str:
    """A Lua interpreter of this machine; without one, beside a cluster that was there, what needs one is skipped."""
    for name in ("lua5.4", "lua5.3", "lua5.1", "lua"):
        if subprocess.run(["which", name], capture_output=True, check=False).returncode == 0:
            return name
    pytest.skip("no Lua interpreter")


def as_lua(value: Any) -> str:
    """A value as a Lua expression."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"[{json.dumps(k)}] = {as_lua(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "{" + ", ".join(map(as_lua, value)) + "}"
    return "nil" if value is None else json.dumps(value)


def states(*true: str, seen: int = 2, kinds: tuple[str, ...] = ()) -> dict[str, Any]:
    """A status of generation 2 in which these conditions are true and those of `kinds` are false."""
    conditions = [condition(k, "True", "Because", f"{k} holds") for k in true]
    conditions += [condition(k, "False", "Because", f"{k} fails") for k in kinds]
    return {"observedGeneration": seen, "conditions": conditions}


HEALTH: list[tuple[str, str, dict[str, Any] | None, str]] = [
    ("no status", "EnergyStudy", None, "Progressing"),
    ("unseen", "EnergyStudy", {"conditions": [condition("Finished", "False", "Pending", "waits")]}, "Progressing"),
    ("older generation", "EnergyStudy", states("Ready", seen=1), "Progressing"),
    ("expanding", "EnergyStudy", states("Accepted", "Reconciling", kinds=("Ready", "Stalled")), "Progressing"),
    ("running", "EnergyStudy", states("Accepted", "Ready", kinds=("Finished", "Stalled", "Reconciling")), "Healthy"),
    ("suspended", "EnergyStudy", states("Accepted", "Ready", "Suspended", kinds=("Finished",)), "Suspended"),
    ("all measured", "EnergyStudy", states("Accepted", "Ready", "Finished", "Succeeded"), "Healthy"),
    ("measured, suspended", "EnergyStudy", states("Ready", "Finished", "Succeeded", "Suspended"), "Healthy"),
    ("some failed", "EnergyStudy", states("Accepted", "Finished", "Stalled", kinds=("Ready", "Succeeded")), "Degraded"),
    ("invalid", "EnergyStudy", states("Finished", "Stalled", kinds=("Accepted", "Ready")), "Degraded"),
    ("changed", "EnergyStudy", states("Accepted", "Stalled", kinds=("Ready", "Finished")), "Degraded"),
    ("no status", "EnergyExperiment", None, "Progressing"),
    ("older generation", "EnergyExperiment", states("Finished", "Succeeded", seen=1), "Progressing"),
    ("waits", "EnergyExperiment", states("Accepted", kinds=("Scheduled", "Finished")), "Healthy"),
    ("done", "EnergyExperiment", states("Accepted", "Succeeded", "Finished"), "Healthy"),
    ("failed", "EnergyExperiment", states("Accepted", "Finished", kinds=("Succeeded",)), "Degraded"),
    ("refused", "EnergyExperiment", states("Finished", kinds=("Accepted", "Succeeded")), "Degraded"),
]  # fmt: skip
STATES = pytest.mark.parametrize(
    ("kind", "status", "health"), [h[1:] for h in HEALTH], ids=[f"{h[1]} {h[0]}" for h in HEALTH]
)


@STATES
@pytest.mark.usefixtures("control_plane")  # which installs Lua, too
def test_argo_cd_sees_the_health(kind: str, status: dict[str, Any] | None, health: str) -> None:
    """The Lua that is shipped, in a real interpreter, for every combination of conditions that occurs."""
    data = yaml.safe_load((CHART / "gitops" / "argocd-health.yaml").read_text(encoding="utf-8"))["data"]
    code = data[f"resource.customizations.health.llem.dev_{kind}"]
    obj = as_lua({"metadata": {"generation": 2}, "status": status})
    program = f"obj = {obj}\nlocal function check()\n{code}\nend\nlocal h = check()\nprint(h.status)\nprint(h.message)"

    done = subprocess.run([lua(), "-"], input=program, capture_output=True, text=True, check=True)

    found, message = done.stdout.splitlines()
    assert found == health
    assert message


FLUX = {"Progressing": "inProgress", "Healthy": "current", "Suspended": "current", "Degraded": "failed"}


def cel_holds(kube: Kube, rules: dict[str, str], kind: str, obj: dict[str, Any]) -> dict[str, bool]:
    """Evaluate Flux' expressions in the API server's own CEL, on a resource made for it that holds the object."""
    name = f"flux{kind.lower()}s"
    definition = json.loads(json.dumps(next(d for d in crds.definitions() if d["spec"]["names"]["kind"] == kind)))
    status = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]
    status.pop("default", None)
    root = {
        "type": "object",
        "properties": {
            "spec": {
                "type": "object",
                "properties": {"generation": {"type": "integer"}, "status": status, "wanted": {"type": "string"}},
                "x-kubernetes-validations": [
                    {"rule": _on_self(rule), "messageExpression": f"'{word}: false'"} for word, rule in rules.items()
                ],
            }
        },
    }
    copy = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{name}.test.llem.dev"},
        "spec": {
            "group": "test.llem.dev",
            "names": {"kind": f"Flux{kind}", "plural": name, "singular": f"flux{kind.lower()}"},
            "scope": "Namespaced",
            "versions": [{"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": root}}],
        },
    }
    kube.ok("apply", "--server-side", "-f", "-", stdin=json.dumps(copy))
    kube.ok("wait", "--for=condition=Established", f"crd/{name}.test.llem.dev", "--timeout=30s")
    manifest = {
        "apiVersion": "test.llem.dev/v1",
        "kind": f"Flux{kind}",
        "metadata": {"generateName": "try-"},
        "spec": {"generation": obj["metadata"]["generation"], "status": obj["status"]},
    }
    deadline = time.monotonic() + 30
    while True:
        done = kube.run("create", "--dry-run=server", "-f", "-", stdin=json.dumps(manifest))
        if "no matches for kind" not in done.stderr and "could not find" not in done.stderr:
            break
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert done.returncode == 0 or ": false" in done.stderr, done.stderr
    return {word: f"{word}: false" not in done.stderr for word in rules}


def _on_self(rule: str) -> str:
    """Flux' `status` and `metadata.generation` as fields of `self`."""
    return re.sub(r"\bstatus\.(observedGeneration|conditions)", r"self.status.\1", rule).replace(
        "metadata.generation", "self.generation"
    )


@STATES
def test_flux_sees_the_health(api_server: Kube, kind: str, status: dict[str, Any] | None, health: str) -> None:
    """The CEL that is shipped, in the API server's own interpreter; Flux asks inProgress, failed, current in this order."""
    if status is None:
        return  # Flux itself waits for a status
    (found,) = [
        e
        for e in yaml.safe_load((CHART / "gitops" / "flux-health.yaml").read_text(encoding="utf-8"))["spec"][
            "healthCheckExprs"
        ]
        if e["kind"] == kind
    ]
    rules = {word: found[word] for word in ("inProgress", "failed", "current")}

    holds = cel_holds(api_server, rules, kind, {"metadata": {"generation": 2}, "status": status})

    first = next((word for word in rules if holds[word]), "inProgress")
    assert first == FLUX[health]


def test_sample_repository_is_complete() -> None:
    """examples/gitops holds only files that its own lists name, and manifests that are read."""
    folder = ROOT / "examples" / "gitops"
    for listing in folder.rglob("kustomization.yaml"):
        named = yaml.safe_load(listing.read_text(encoding="utf-8"))["resources"]
        there = {p.name for p in listing.parent.glob("*.yaml")} - {"kustomization.yaml"}
        assert there == {n for n in named if n.endswith(".yaml")}


# --- on a real node


def test_helm_test_measures_on_a_real_node(
    helm: Helm, kubectl: Kubectl, namespace: str, images: dict[str, str]
) -> None:
    """The chart as shipped, under restricted pod security: the store takes, and gives back, what two runs measured."""
    secret = {"AWS_ACCESS_KEY_ID": "llem", "AWS_SECRET_ACCESS_KEY": "of-this-test-only"}
    literals = [f"--from-literal={k}={v}" for k, v in secret.items()]
    kubectl("create", "secret", "generic", "store", "-n", namespace, *literals)
    on_node = replace(helm, kubeconfig=kubectl.kubeconfig)

    def image(name: str) -> dict[str, str]:
        repository, _, tag = images[name].rpartition(":")
        return {"repository": repository, "tag": tag}

    there = kubectl("get", "crd", "-o", "name").split()
    values = {
        "crds": {"install": "customresourcedefinition.apiextensions.k8s.io/energystudies.llem.dev" not in there},
        "imageRegistry": "",
        "image": {**image("operator"), "pullPolicy": "Never"},
        "runner": {"images": {"synthetic": image("pytorch")}, "imagePullPolicy": "Never"},
        "objectStore": {
            "enabled": True,
            "existingSecret": "store",
            "image": {**image("store"), "pullPolicy": "Never"},
            "persistence": {"enabled": False},
        },
    }
    place = ("--namespace", namespace)
    on_node.ok("install", "llem", str(CHART), *place, "--wait", "--timeout", "120s", values=values)
    try:
        said = on_node.ok("test", "llem", *place, "--logs", "--timeout", "280s")
    finally:
        on_node.run("uninstall", "llem", *place)

    assert "Completed: 2 of 2 runs completed" in said
    assert '"completed": 2' in said
