"""A run that cannot start says why within 30 s, ends at its deadline, and holds nobody else up."""

from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import datetime

import pytest

from cluster import kube as kubes
from cluster.charts import Helm
from cluster.commands import ObjectStore
from cluster.kube import Kube
from cluster.operators import ON_THE_CPU, Bench, Object, installed, message, reason, wait_for
from cluster.oracles import Recorder, sound
from llenergymeasure.core.resources import LABEL_STUDY

pytestmark = pytest.mark.cluster

PENDING_S = 60
FIRST_WORD_S = 30
NO_IMAGE = {"images": {"synthetic": "localhost/there-is-no-such-image:1"}}
NO_GPU = {"gpu": {"count": 1, "products": ["NVIDIA-THAT-NOBODY-HAS"]}}
NO_CONFIG = {"envFrom": [{"configMapRef": {"name": "nowhere"}}]}
NO_SECRET: Object = {"credentialsSecretRef": {"name": "nowhere"}}
HOST_PATH = {
    "podTemplate": {
        "spec": {"volumes": [{"name": "disk", "hostPath": {"path": "/var"}}]},
    }
}
CASES: dict[str, tuple[Object, str, str]] = {
    "no-gpu": ({"template": NO_GPU}, "Unschedulable", "0/1 nodes are available"),
    "no-image": ({"template": {**ON_THE_CPU, **NO_IMAGE}}, "ImagePull", "there-is-no-such-image"),
    "no-config": ({"template": {**ON_THE_CPU, **NO_CONFIG}}, "ContainerConfig", 'configmap "nowhere" not found'),
    "no-secret": ({"template": ON_THE_CPU, "results": NO_SECRET}, "ContainerConfig", 'secret "nowhere" not found'),
    "insecure": ({"template": {**ON_THE_CPU, **HOST_PATH}}, "PodRejected", "violates PodSecurity"),
    "quota": ({"template": ON_THE_CPU}, "PodRejected", "exceeded quota"),
}
"""Study → its spec, the reason, and words of the sentence."""


@dataclass(frozen=True)
class Told:
    """What an experiment said of its waiting, and how long after its Job was made."""

    reason: str
    message: str
    seconds: float

    def names(self, wanted: str, words: str) -> bool:
        """Whether it gives the true reason in the words of who knows it."""
        return self.reason == wanted and words in self.message

    @classmethod
    def by(cls, child: Object) -> "Told":
        """As a state of an experiment has it, which its status' writer has dated."""
        written = max(f["time"] for f in child["metadata"]["managedFields"] if f.get("subresource") == "status")
        made = child["status"]["attempts"][-1]["created"]
        seconds = (datetime.fromisoformat(written) - datetime.fromisoformat(made)).total_seconds()
        return cls(reason(child, "Scheduled"), message(child, "Scheduled"), seconds)


@pytest.fixture(scope="module")
def stuck(
    node_api: Kube, node_helm: Helm, images: dict[str, str], object_store: ObjectStore
) -> Iterator[dict[str, Bench]]:
    """Six studies that cannot start and one that can, all at once; one of them in a namespace whose quota is used up."""
    with (
        kubes.namespace(node_api, prefix="quota") as full,
        installed(
            node_api,
            node_helm,
            images,
            object_store,
            beside=(full.namespace,),
            more={"runner": {"allowHostPath": True}},
        ) as own,
    ):
        full.ok("create", "quota", "none", "--hard=pods=0")
        benches = dict.fromkeys((*CASES, "healthy"), own) | {"quota": Bench(full, own.store, own.results)}
        for name, (given, _, _) in CASES.items():
            template = {**given["template"], "deadlines": {"pendingSeconds": PENDING_S}}
            results = {**own.results, **given.get("results", {})}
            benches[name].study(name, template=template, results=results)
        own.study("healthy", execution={"nCycles": 2})
        yield benches


@pytest.fixture(scope="module")
def told(stuck: dict[str, Bench]) -> dict[str, Told]:
    """The first sentence of each that names the true reason; or the last, if none does."""
    found: dict[str, Told] = {}
    recorders = {id(b): Recorder(b.kube) for b in stuck.values()}

    def heard() -> bool:
        for name, (_, *wanted) in CASES.items():
            if said := sayings(recorders[id(stuck[name])], name, *wanted):
                found[name] = said[-1]
        return all(name in found and found[name].names(*wanted) for name, (_, *wanted) in CASES.items())

    with ExitStack() as stack:
        for recorder in recorders.values():
            stack.enter_context(recorder)
        with suppress(AssertionError):  # each case of the test tells what it has heard instead
            wait_for(heard, limit_s=PENDING_S - 10)
    return found


def sayings(recorder: Recorder, study: str, wanted: str, words: str) -> list[Told]:
    """What a study's one experiment has said of its waiting, up to the first sentence that names the reason."""
    states = [o for _, o in recorder.changes("experiments") if o["metadata"]["labels"].get(LABEL_STUDY) == study]
    said = [Told.by(o) for o in states if (o.get("status") or {}).get("attempts") and reason(o, "Scheduled")]
    first = next((i for i, t in enumerate(said) if t.names(wanted, words)), len(said))
    return said[: first + 1]


@pytest.mark.parametrize("name", CASES)
def test_reason_is_told_within_half_a_minute(told: dict[str, Told], name: str) -> None:
    """The scheduler's, the kubelet's or the API server's own words are in the experiment's condition."""
    _, wanted, words = CASES[name]
    assert told[name].reason == wanted, told[name]
    assert words in told[name].message
    assert told[name].seconds <= FIRST_WORD_S


@pytest.mark.parametrize("name", CASES)
def test_waiting_ends_at_its_deadline(stuck: dict[str, Bench], told: dict[str, Told], name: str) -> None:
    """The run fails with the reason it waited for; no second attempt is made, nothing of it stays on the cluster."""
    study = stuck[name].finished(name, limit_s=PENDING_S + 60)

    (child,) = stuck[name].children(name)
    assert (reason(study), reason(child)) == ("RunsFailed", told[name].reason)
    assert message(child).startswith(f"no start within {PENDING_S} s: ")
    assert child["status"]["attempt"] == 1
    assert wait_for(lambda: stuck[name].pods(child["metadata"]["name"]) == [], limit_s=60)
    assert sound(stuck[name], name) == []


def test_others_go_on_meanwhile(stuck: dict[str, Bench]) -> None:
    """A study beside them was over before the first of them gave up."""
    healthy = stuck["healthy"].finished("healthy")
    assert reason(healthy) == "Completed"
    ends = [str(stuck[n].finished(n)["status"]["completionTime"]) for n in CASES]
    assert str(healthy["status"]["completionTime"]) < min(ends)


def test_operator_found_nothing_odd_in_that(stuck: dict[str, Bench]) -> None:
    """Waiting is no error of the operator's."""
    assert stuck["healthy"].complaints() == []
