"""What a study's own words may make of its pods: a closed list, every exception by name, and nothing that crashes."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fakes.world import SETTINGS, study
from llem_operator.acceptance import Accepted, Refused, accept_study
from llem_operator.pod_template import fragment_problems, merge_fragment

TOKEN = {"serviceAccountToken": {"path": "token", "audience": "vault"}}


def judged(options: dict[str, Any] | None = None, **spec: Any) -> Accepted | Refused:
    """What acceptance says of a study with these parts."""
    found = study(cycles=1, values=1, **spec)
    found["metadata"] |= {"uid": "0123abcd-0000"}
    return accept_study(found, SETTINGS.model_copy(update=options or {}))


def volume(**source: Any) -> dict[str, Any]:
    """A fragment with one volume."""
    return {"spec": {"volumes": [{"name": "mine", **source}]}}


def runner(**more: Any) -> dict[str, Any]:
    """A fragment that changes the runner."""
    return {"spec": {"containers": [{"name": "runner", **more}]}}


ALLOWED = {
    "emptyDir": {"emptyDir": {}},
    "configMap": {"configMap": {"name": "c"}},
    "secret": {"secret": {"secretName": "s"}},
    "claim": {"persistentVolumeClaim": {"claimName": "p"}},
    "downwardAPI": {"downwardAPI": {"items": []}},
    "projected": {"projected": {"sources": [{"configMap": {"name": "c"}}, {"secret": {"name": "s"}}]}},
}


@pytest.mark.parametrize("source", ALLOWED.values(), ids=ALLOWED)
def test_storage_and_objects_of_the_namespace_can_be_mounted(source: dict[str, Any]) -> None:
    """The whole list of what a run may need."""
    assert fragment_problems(volume(**source), allow_host_path=False) == []


REFUSED_VOLUMES = {
    "token": ({"projected": {"sources": [{"secret": {"name": "s"}}, TOKEN]}}, "projected.serviceAccountToken"),
    "trust bundle": ({"projected": {"sources": [{"clusterTrustBundle": {}}]}}, "projected.clusterTrustBundle"),
    "driver": ({"csi": {"driver": "x"}}, ".csi: "),
    "server": ({"nfs": {"server": "x", "path": "/"}}, ".nfs: "),
    "claim of its own": ({"ephemeral": {"volumeClaimTemplate": {}}}, ".ephemeral: "),
    "node": ({"hostPath": {"path": "/"}}, "hostPath is not allowed"),
    "something new": ({"whatever": {}}, ".whatever: "),
}


@pytest.mark.parametrize(("source", "words"), REFUSED_VOLUMES.values(), ids=REFUSED_VOLUMES)
def test_no_volume_brings_an_identity_a_driver_or_the_node(source: dict[str, Any], words: str) -> None:
    """The pod has no API token, and a study cannot fetch one; what is refused is named."""
    (problem,) = fragment_problems(volume(**source), allow_host_path=False)
    assert "volumes[mine]" in problem
    assert words in problem


def test_the_chart_alone_allows_folders_of_the_node() -> None:
    """allowHostPath is about hostPath and nothing else."""
    assert fragment_problems(volume(hostPath={"path": "/data"}), allow_host_path=True) == []
    assert len(fragment_problems(volume(csi={}), allow_host_path=True)) == 1


WRONG: dict[str, tuple[Any, str]] = {
    "fragment": ("x", "template.podTemplate: must be a mapping"),
    "metadata": ({"metadata": []}, "metadata: must be a mapping"),
    "spec": ({"spec": "x"}, "spec: must be a mapping"),
    "labels": ({"metadata": {"labels": []}}, "metadata.labels: must be a mapping of texts"),
    "number as a label": ({"metadata": {"labels": {"a": 1}}}, "into quotes"),
    "volumes": ({"spec": {"volumes": ["x"]}}, "volumes: must be a list of mappings"),
    "one volume": ({"spec": {"volumes": {"name": "x"}}}, "volumes: must be a list of mappings"),
    "source": (volume(emptyDir="x"), "volumes[mine].emptyDir: must be a mapping"),
    "projections": (volume(projected={"sources": TOKEN}), "projected.sources: must be a list of mappings"),
    "containers": ({"spec": {"containers": "x"}}, "containers: must be a list of mappings"),
    "tolerations": ({"spec": {"tolerations": [None]}}, "tolerations: must be a list of mappings"),
    "nodeSelector": ({"spec": {"nodeSelector": ["a"]}}, "nodeSelector: must be a mapping of texts"),
    "dnsConfig": ({"spec": {"dnsConfig": 3}}, "dnsConfig: must be a mapping"),
    "group": ({"spec": {"securityContext": {"fsGroup": "root"}}}, "fsGroup: must be a whole number"),
    "groups": ({"spec": {"securityContext": {"supplementalGroups": 1}}}, "must be a list of whole numbers"),
    "env": (runner(env="oops"), "containers[runner].env: must be a list of mappings"),
    "envFrom": (runner(envFrom={"prefix": "A"}), "envFrom: must be a list of mappings"),
    "mounts": (runner(volumeMounts=["x"]), "volumeMounts: must be a list of mappings"),
    "resources": (runner(resources=[]), "resources: must be a mapping"),
    "amounts": (runner(resources={"limits": "4"}), "resources.limits: must be a mapping"),
    "claims": (runner(resources={"claims": [{"name": "gpu"}]}), "resources.claims: cannot be set"),
}


@pytest.mark.parametrize(("fragment", "words"), WRONG.values(), ids=WRONG)
def test_a_wrong_shape_is_named(fragment: Any, words: str) -> None:
    """The API server keeps podTemplate as it is written, so that all of it is checked here."""
    found = judged(template={"podTemplate": fragment})
    assert isinstance(found, Refused)
    assert words in found.message


PLACES = st.sampled_from([
    "metadata", "spec", "labels", "annotations", "volumes", "containers", "env", "envFrom", "name", "runner", "resources",
    "limits", "requests", "cpu", "prefix", "securityContext", "fsGroup", "supplementalGroups", "nodeSelector",
    "tolerations", "dnsConfig", "volumeMounts", "projected", "sources", "emptyDir", "csi",
])  # fmt: skip
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | PLACES,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(PLACES | st.booleans(), inner, max_size=4),
    max_leaves=12,
)
NEARLY = st.fixed_dictionaries({}, optional={
    "metadata": st.fixed_dictionaries({}, optional={"labels": ANYTHING, "annotations": ANYTHING}),
    "spec": st.fixed_dictionaries({}, optional={
        "nodeSelector": ANYTHING, "volumes": ANYTHING, "dnsConfig": ANYTHING, "securityContext": ANYTHING,
        "tolerations": ANYTHING, "containers": st.lists(st.fixed_dictionaries({"name": st.just("runner")}, optional={
            "env": ANYTHING, "envFrom": ANYTHING, "volumeMounts": ANYTHING,
            "resources": ANYTHING | st.fixed_dictionaries({"limits": ANYTHING, "requests": st.none()}),
        }), max_size=2),
    }),
})  # fmt: skip
POD = {
    "metadata": {"labels": {"a": "b"}},
    "spec": {"securityContext": {}, "containers": [{"name": "runner", "resources": {"limits": {"cpu": "4"}}}]},
}


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no failure
@given(ANYTHING | NEARLY)
def test_nothing_that_a_user_can_write_crashes(fragment: Any) -> None:
    """Refused with a sentence, or merged: an exception would stop the operator's work on this study in silence."""
    if not fragment_problems(fragment, allow_host_path=False):
        merged = merge_fragment(POD, fragment or {})
        assert merged["metadata"]["labels"]["a"] == "b"


@pytest.mark.parametrize("prefix", ["LLEM_", "LLEM_STORE_", "NVIDIA_", "CUDA_"])
@pytest.mark.parametrize("inside", [False, True], ids=["template", "podTemplate"])
def test_no_prefix_makes_a_secrets_keys_the_operators_variables(prefix: str, inside: bool) -> None:
    """A key ATTEMPT below the prefix LLEM_ would be LLEM_ATTEMPT."""
    env_from = [{"prefix": "HF_", "secretRef": {"name": "s"}}, {"prefix": prefix, "secretRef": {"name": "s"}}]
    template = {"podTemplate": runner(envFrom=env_from)} if inside else {"envFrom": env_from}
    found = judged(template=template)
    assert isinstance(found, Refused)
    assert f"prefix {prefix}" in found.message
    assert "HF_" not in found.message


ADDRESSES = {
    "user and password": {"uri": "s3://AKIASECRET:hidden@bucket/llem"},
    "password with a slash": {"uri": "s3://AKIASECRET:hid/den@bucket"},
    "another scheme": {"uri": "http://AKIASECRET:hidden@bucket"},
    "query": {"uri": "s3://bucket/llem?secret=hidden"},
    "fragment": {"uri": "s3://bucket/llem#hidden"},
    "endpoint": {"uri": "s3://bucket", "endpoint": "https://AKIASECRET:hidden@store:9000"},
    "endpoint's query": {"uri": "s3://bucket", "endpoint": "https://store:9000?key=hidden"},
}


@pytest.mark.parametrize("results", ADDRESSES.values(), ids=ADDRESSES)
def test_an_address_with_credentials_is_refused_and_not_repeated(results: dict[str, Any]) -> None:
    """They would stand in every status, log and table."""
    found = judged(results=results)
    assert isinstance(found, Refused)
    assert "credentialsSecretRef" in found.message
    assert "hid" not in found.message
    assert "AKIA" not in found.message


IMAGES = {
    "r/llem": (("r/llem", "r/llem:1", "r/llem@sha256:0", "r/llem/vllm:1"), ("r/llem-evil:1", "r/llemon", "r/lle")),
    "r/": (("r/a:1", "r/a/b"), ("r", "r.evil/a")),
    "r/llem:": (("r/llem:1",), ("r/llem", "r/llem@sha256:0")),
    "r/llem@": (("r/llem@sha256:0",), ("r/llem:1",)),
}


@pytest.mark.parametrize("prefix", IMAGES)
def test_an_allowed_prefix_ends_where_a_part_of_the_name_ends(prefix: str) -> None:
    """Who may name r/llem cannot name r/llem-evil."""
    yes, no = IMAGES[prefix]
    answers = {
        image: judged({"allowed_images": (prefix,)}, template={"images": {"synthetic": image}}) for image in (*yes, *no)
    }
    assert [i for i, a in answers.items() if isinstance(a, Accepted)] == list(yes)
