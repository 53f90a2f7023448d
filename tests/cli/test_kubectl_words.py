"""What kubectl refuses becomes one sentence with what to do; the texts are those of kubectl 1.36."""

import pytest

from llenergymeasure.core.errors import ClusterError, ClusterUnreachableError, ConfigError
from llenergymeasure.kubectl import Kubectl, error_of, find_kubectl
from llenergymeasure.manifests import refuse_name

SAID: dict[str, tuple[str, type[ClusterError], tuple[str, ...]]] = {
    "no CRD, get": (
        'error: the server doesn\'t have a resource type "energystudies"\n',
        ClusterError,
        ("does not know EnergyStudy", "helm install"),
    ),
    "no CRD, apply": (
        (
            'error: resource mapping not found for name: "sweep" namespace: "" from "STDIN": no matches for kind '
            '"EnergyStudy" in version "llem.dev/v1alpha1"\nensure CRDs are installed first\n'
        ),
        ClusterError,
        ("does not know EnergyStudy", "helm install"),
    ),
    "forbidden": (
        (
            'Error from server (Forbidden): energystudies.llem.dev is forbidden: User "eve" cannot list resource '
            '"energystudies" in API group "llem.dev" in the namespace "bench"\n'
        ),
        ClusterError,
        ("not allowed", 'User "eve" cannot list', "role"),
    ),
    "API server away": (
        (
            "E1125 02:20:00.000000   1 memcache.go:265] couldn't get current server API group list\n"
            "The connection to the server 127.0.0.1:1 was refused - did you specify the right host or port?\n"
        ),
        ClusterUnreachableError,
        ("does not answer", "127.0.0.1:1"),
    ),
    "invalid": (
        'The EnergyStudy "sweep" is invalid: spec.design: Forbidden: design is fixed once the study is accepted\n',
        ClusterError,
        ("design is fixed once the study is accepted",),
    ),
    "silence": ("", ClusterError, ("get failed without a word",)),
}


@pytest.mark.parametrize(("said", "kind", "words"), SAID.values(), ids=SAID)
def test_refusals_of_kubectl_become_sentences(said: str, kind: type[ClusterError], words: tuple[str, ...]) -> None:
    """No log lines of kubectl's own, and the next step where there is one."""
    err = error_of(said, ("get",))

    assert type(err) is kind
    assert all(w in str(err) for w in words), str(err)
    assert "memcache.go" not in str(err)


def test_users_choice_of_cluster_goes_before_the_verb() -> None:
    """Namespace, context and kubeconfig are handed on as they are, as words of their own."""
    kubectl = Kubectl("kubectl", namespace="my ns", context="c", kubeconfig="/a b")

    assert kubectl.command("get", "x") == [
        "kubectl",
        "--namespace=my ns",
        "--context=c",
        "--kubeconfig=/a b",
        "get",
        "x",
    ]


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"PATH": "/nowhere"}, ("not on PATH", "kubernetes.io/docs/tasks/tools", "KUBECTL")),
        ({"PATH": "/nowhere", "KUBECTL": "/opt/kubectl"}, ("KUBECTL: /opt/kubectl is not a program",)),
    ],
    ids=["not installed", "KUBECTL names nothing"],
)
def test_missing_kubectl_says_what_to_do(environ: dict[str, str], words: tuple[str, ...]) -> None:
    """The verbs need kubectl; without it there is a place to get it."""
    with pytest.raises(ClusterError) as err:
        find_kubectl(environ)

    assert all(w in str(err.value) for w in words)


@pytest.mark.parametrize("name", ["--all", "-A", "a b", "Sweep", "a/b", "", "a,b", "-"], ids=repr)
def test_names_that_kubectl_might_read_as_something_else_never_reach_it(name: str) -> None:
    """A name is letters, digits, - and .; an option or a list is none."""
    with pytest.raises(ConfigError):
        refuse_name(name)


def test_a_folder_is_no_name_and_the_refusal_names_the_command_for_it() -> None:
    """Results on this machine are read by `llem report`."""
    with pytest.raises(ConfigError, match=r"on this machine: llem report results/simulated_2026"):
        refuse_name("results/simulated_2026")
