"""The custom resources on a real API server: what is refused and in which words, what survives, what may change."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.kube import ROOT, Kube, condition, experiment, install_crds, namespace, study

pytestmark = pytest.mark.cluster

KIB = 1024
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def kube(api_server: Kube) -> Iterator[Kube]:
    """A namespace on an API server that has both definitions."""
    install_crds(api_server)
    with namespace(api_server, prefix="crds") as own:
        yield own


def changed(manifest: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A manifest with one field of its spec set, or removed if the value is None."""
    new = copy.deepcopy(manifest)
    *parents, last = path.split("/")
    node = new["spec"]
    for name in parents:
        node = node.setdefault(name, {})
    if value is None:
        node.pop(last)
    else:
        node[last] = value
    return new


def accept(kube: Kube, name: str) -> None:
    """What the operator writes once a design is valid."""
    kube.patch("est", name, {"status": {"designHash": "a" * 16}}, status=True)


# --- typos


@pytest.mark.parametrize(
    ("manifest", "path", "value", "named"),
    [
        (study(), "design/presicion", "bf16", "spec.design.presicion"),
        (study(), "design/execution", {"n_cycles": 3}, "spec.design.execution"),
        (study(), "design/true", 1, "spec.design.true"),
        (study(), "parallelisim", 2, "spec.parallelisim"),
        (study(), "execution/n_cycles", 2, "spec.execution.n_cycles"),
        (study(), "template/gpu/product", "H100", "spec.template.gpu.product"),
        (study(), "template/images/vllmm", "image", "spec.template.images.vllmm"),
        (experiment(), "config/modle", "m", "spec.config.modle"),
        (experiment(), "config/sweep", {"n": [1]}, "spec.config.sweep"),
    ],
    ids=lambda v: v if isinstance(v, str) and "." in v else "",
)
def test_unknown_field_is_named_by_kubectl(kube: Kube, manifest: Any, path: str, value: Any, named: str) -> None:
    """A typo outside the sections never reaches the operator: the API server refuses it by its full name."""
    message = kube.refused(changed(manifest, path, value))

    assert f'unknown field "{named}"' in message


def test_nested_typos_survive_so_that_llem_can_name_them(kube: Kube) -> None:
    """Below the top level nothing is dropped: typo, null and nesting reach the operator as written."""
    design = {
        "model": "m",
        "decoder": {"topk": 5, "top_k": None},
        "sweep": {"pytorch.batchsize": [None, 1, "two", {"a": [None]}], "precision": "bf16"},
        "experiments": [{"modell": "x", "pytorch": {"b": None}}],
        "passthrough_kwargs": {"a": {"b": {"c": [1, 2.5, True, None]}}},
        "vllm": {"max_num_sequences": 1},
        "dataset": {"syntetic": {}},
    }
    kube.ok("create", "-f", "-", stdin=json.dumps(study("typos", design=design)))

    assert kube.get("est", "typos")["spec"]["design"] == design


@pytest.mark.parametrize("way", [[], ["--server-side"]], ids=["client-side", "server-side"])
def test_applying_the_same_nulls_again_changes_nothing(kube: Kube, way: list[str]) -> None:
    """A design with nulls can be applied again after acceptance, whatever kubectl made of the nulls."""
    name = f"nulls{len(way)}"
    design = {"model": "m", "revision": None, "decoder": {"top_k": None}, "warmup": None, "experiments": None}
    manifest = study(name, design={**design, "n": None, "sweep": {"n": [None, 1], "precision": None}})
    kube.apply(manifest, *way)
    accept(kube, name)

    kube.apply(manifest, *way)

    stored = kube.get("est", name)
    assert stored["metadata"]["generation"] == 1
    assert stored["spec"]["design"]["sweep"]["n"] == [None, 1]
    assert "design is fixed" in kube.refused(changed(manifest, "design/revision", "main"), *way)
    assert "design is fixed" in kube.refused(changed(manifest, "design/warmup", {"enabled": False}), *way)


def test_unquoted_n_arrives_as_false_and_survives(kube: Kube) -> None:
    """kubectl turns the key n into `false`; the number is kept, at the top and in the sweep."""
    text = """
    apiVersion: llem.dev/v1alpha1
    kind: EnergyStudy
    metadata: {name: unquoted}
    spec:
      design:
        model: m
        n: 50
        sweep: {n: [1, 2]}
    """
    kube.apply(text)

    assert kube.get("est", "unquoted")["spec"]["design"] == {"model": "m", "false": 50, "sweep": {"false": [1, 2]}}


# --- types and bounds

BAD: list[tuple[str, dict[str, Any], str, Any, str]] = [
    ("n is text", study(), "design/n", "50", "spec.design.n"),
    ("n is zero", study(), "design/n", 0, "greater than or equal to 1"),
    ("model is a number", study(), "design/model", 7, "spec.design.model"),
    ("seventeen axes", study(), "design/sweep", {f"decoder.k{i}": [1] for i in range(17)}, "must have at most 16"),
    ("sixty-five values", study(), "design/sweep", {"n": list(range(65))}, "must have at most 64 items"),
    ("empty design", study(), "design", {}, "at least 1"),
    ("no design", study(), "design", None, "spec.design: Required value"),
    ("no cycles", study(), "execution/nCycles", 0, "greater than or equal to 1"),
    ("unknown order", study(), "execution/cycleOrder", "random", "latin_square"),
    ("timeout of nothing", study(), "execution/experimentTimeoutSeconds", 0, "greater than 0"),
    ("no parallelism", study(), "parallelism", 0, "greater than or equal to 1"),
    ("unknown policy", study(), "suspendPolicy", "Now", '"Drain", "Immediate"'),
    ("eleven retries", study(), "retry/infrastructure", 11, "less than or equal to 10"),
    ("negative GPUs", study(), "template/gpu/count", -1, "greater than or equal to 0"),
    ("capability as a number", study(), "template/gpu/minComputeCapability", 8.0, "must be of type string"),
    ("capability of one number", study(), "template/gpu/minComputeCapability", "8", "should match"),
    ("amount of nonsense", study(), "template/resources", {"limits": {"cpu": "many"}}, "should match"),
    ("neither uri nor pvc", study(), "results", {"region": "x"}, "write either uri or pvc"),
    ("both uri and pvc", study(), "results", {"uri": "s3://b/p", "pvc": {"claimName": "c"}}, "write either uri or pvc"),
    ("a path as uri", study(), "results/uri", "/results", "should match"),
    ("unknown policy of an experiment", experiment(), "suspendPolicy", "Now", '"Drain", "Immediate"'),
    ("two variables of one name", study(), "template/env", [{"name": "A"}, {"name": "A"}], "Duplicate value"),
    ("name of 41", study("a" * 41), "suspend", False, "may not be more than 40"),
    ("name with a dot", study("a.b"), "suspend", False, "should match"),
    ("experiment without model", experiment(), "config", {"backend": "synthetic"}, "spec.config.model: Required value"),
    ("experiment of two backends", experiment(), "config/backend", ["a"], "spec.config.backend"),
    ("experiment name of 54", experiment("a" * 54), "suspend", False, "may not be more than 53"),
    ("index of nothing", experiment(), "index", -1, "greater than or equal to 0"),
]


@pytest.mark.parametrize(("manifest", "path", "value", "words"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_value_out_of_bounds_is_refused(kube: Kube, manifest: Any, path: str, value: Any, words: str) -> None:
    """The message names the field and what would do."""
    message = kube.refused(changed(manifest, path, value))

    assert words in message


@pytest.mark.parametrize(
    "results",
    [
        {"uri": "s3://AKIA:hidden@b/p"},
        {"uri": "s3://b/p?k=hidden"},
        {"uri": "s3://b", "endpoint": "https://AKIA:hidden@s"},
    ],
    ids=["user", "query", "endpoint"],
)
@pytest.mark.parametrize("manifest", [study(), experiment()], ids=["study", "experiment"])
def test_an_address_with_credentials_is_never_stored(
    kube: Kube, manifest: dict[str, Any], results: dict[str, str]
) -> None:
    """And the refusal does not repeat them."""
    message = kube.refused(changed(manifest, "results", results))

    assert "credentialsSecretRef" in message
    assert "hidden" not in message


def test_full_specs_are_accepted(kube: Kube) -> None:
    """Every field of the manual, at once."""
    claim = {"claimName": "claim", "subPath": "a/b"}
    template = {
        "images": {"pytorch": "registry/pytorch:1", "vllm": "registry/vllm@sha256:" + "0" * 64},
        "imagePullPolicy": "Never",
        "imagePullSecrets": [{"name": "pull"}],
        "serviceAccountName": "runner",
        "gpu": {"count": 2, "products": ["NVIDIA-H100-80GB-HBM3"], "minMemoryMiB": 80000, "minComputeCapability": "8.0",
                "allowShared": False, "allowCPU": True},
        "exclusivity": "GPU",
        "nodeSelector": {"zone": "a"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "runtimeClassName": "nvidia",
        "shmSizeBytes": 2**30,
        "tmpSizeBytes": 2**30,
        "modelCache": claim,
        "env": [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}},
                {"name": "A", "value": "b"}],
        "envFrom": [{"secretRef": {"name": "s"}}, {"configMapRef": {"name": "c", "optional": True}}],
        "queueName": "gpu",
        "priorityClassName": "low",
        "resources": {"requests": {"cpu": 4, "memory": "16Gi"}, "limits": {"cpu": "4", "memory": "16Gi"}},
        "deadlines": {"pendingSeconds": 60, "runSeconds": 60, "uploadSeconds": 0},
        "podTemplate": {"metadata": {"labels": {"team": "a"}}, "spec": {"dnsConfig": {"options": [{"name": "ndots"}]}}},
    }  # fmt: skip
    results = {"uri": "s3://b/p", "endpoint": "http://store:7070", "region": "r", "credentialsSecretRef": {"name": "s"}}
    execution = {
        "nCycles": 5, "cycleOrder": "latin_square", "shuffleSeed": 7, "configGapSeconds": 0.5, "cycleGapSeconds": 0,
        "experimentTimeoutSeconds": 60, "phaseTimeouts": {"download": 5, "engineBuild": 5},
        "maxConsecutiveFailures": 0, "deduplicate": False,
    }  # fmt: skip
    retry = {"measurement": 1, "infrastructure": 0, "invalid": 2}
    full = study(
        "full", execution=execution, parallelism=2, suspend=True, suspendPolicy="Immediate", retry=retry, retryEpoch=1,
        template=template, results=results, retention={"jobTTLSecondsAfterResult": 0},
    )  # fmt: skip
    alone = experiment(
        "full", template=template, results={"pvc": claim}, retry=retry, retryEpoch=0, suspend=False,
        suspendPolicy="Immediate", deadlines=template["deadlines"], studyRef={"name": "full"}, index=0, cycle=1, configHash="0" * 16,
    )  # fmt: skip

    kube.apply(full)
    kube.apply(alone)

    assert kube.get("est", "full")["spec"] == full["spec"]
    assert kube.get("eexp", "full")["spec"] == alone["spec"]


def test_defaults_of_a_study(kube: Kube) -> None:
    """What is left out of a study is filled in where the operator counts on it; an experiment stays as it is."""
    kube.apply(study("bare"))
    kube.apply(experiment("bare"))

    spec = kube.get("est", "bare")["spec"]
    assert {k: v for k, v in spec.items() if k != "design"} == {
        "execution": {"nCycles": 3},
        "parallelism": 1,
        "suspend": False,
        "suspendPolicy": "Drain",
        "retry": {"measurement": 0, "infrastructure": 3, "invalid": 0},
        "retryEpoch": 0,
        "retention": {"jobTTLSecondsAfterResult": 3600},
    }
    assert set(kube.get("eexp", "bare")["spec"]) == {"config"}


@pytest.mark.parametrize(
    "path", [*EXAMPLES.glob("cluster-*.yaml"), *EXAMPLES.glob("gitops/studies/*-*.yaml")], ids=lambda p: p.stem
)
def test_examples_are_accepted(kube: Kube, path: Path) -> None:
    """What the examples say can be applied as it stands, and is stored as written (a bare n would be lost)."""
    said = kube.ok("apply", "--dry-run=server", "-f", str(path), "-o", "json")

    stored = json.loads(said)
    for obj in stored["items"] if stored["kind"] == "List" else [stored]:
        assert obj["spec"]["design"]["n"] > 0


def test_sample_repository_can_be_built(kube: Kube) -> None:
    """kubectl's own kustomize takes both folders, and puts the studies where the operator looks."""
    studies = kube.ok("kustomize", str(EXAMPLES / "gitops" / "studies"))
    operator = kube.ok("kustomize", str(EXAMPLES / "gitops" / "llem"))

    assert "namespace: bench" in studies
    assert "kind: HelmRelease" in operator


# --- what may change

TEMPLATE = {"gpu": {"count": 1}, "podTemplate": {"metadata": {"labels": {"a": "b"}}}}
START = study(
    "rules",
    design={"model": "m", "sweep": {"n": [1, 2]}, "decoder": {"temperature": 0.5}},
    execution={"nCycles": 3, "shuffleSeed": 1},
    template=TEMPLATE,
    results={"uri": "s3://b/p"},
)
ONCE_ACCEPTED: list[tuple[str, str, Any, str]] = [
    ("scalar added", "design/precision", "bf16", "design is fixed once the study is accepted"),
    ("scalar changed", "design/model", "other", "design is fixed"),
    ("key swapped for its unquoted twin", "design", {**START["spec"]["design"], "false": 1}, "design is fixed"),
    ("axis extended", "design/sweep/n", [1, 2, 3], "design is fixed"),
    ("axis swapped", "design/sweep", {"precision": [1, 2]}, "design is fixed"),
    ("deep value changed", "design/decoder/temperature", 0.6, "design is fixed"),
    ("section swapped", "design", {"model": "m", "sweep": {"n": [1, 2]}, "warmup": {}}, "design is fixed"),
    ("fewer cycles", "execution/nCycles", 2, "execution.nCycles may only grow"),
    ("cycles removed", "execution", {"shuffleSeed": 1, "nCycles": 1}, "execution.nCycles may only grow"),
    ("order changed", "execution/cycleOrder", "sequential", "execution.cycleOrder is fixed"),
    ("seed changed", "execution/shuffleSeed", 2, "execution.shuffleSeed is fixed"),
    ("seed removed", "execution/shuffleSeed", None, "execution.shuffleSeed is fixed"),
    ("duplicates kept", "execution/deduplicate", False, "execution.deduplicate is fixed"),
    ("template changed", "template/gpu/count", 2, "template is fixed"),
    ("pod template changed", "template/podTemplate/metadata/labels/a", "c", "template is fixed"),
    ("template removed", "template", None, "template is fixed"),
    ("results changed", "results/uri", "s3://b/q", "results is fixed"),
    ("results removed", "results", None, "results is fixed"),
]


@pytest.fixture(scope="module")
def accepted(kube: Kube) -> dict[str, Any]:
    """A study that the operator has accepted."""
    kube.apply(START)
    accept(kube, "rules")
    return START


@pytest.mark.parametrize(("path", "value", "words"), [c[1:] for c in ONCE_ACCEPTED], ids=[c[0] for c in ONCE_ACCEPTED])
def test_what_is_fixed_once_accepted(kube: Kube, accepted: dict[str, Any], path: str, value: Any, words: str) -> None:
    """The message names the field, says since when it is fixed, and what to do."""
    message = kube.refused(changed(accepted, path, value))

    assert words in message
    assert f"spec.{path.split('/', maxsplit=1)[0]}" in message
    assert "Forbidden" in message


@pytest.mark.parametrize(("path", "value"), [c[1:3] for c in ONCE_ACCEPTED], ids=[c[0] for c in ONCE_ACCEPTED])
def test_the_same_may_change_before_acceptance(kube: Kube, path: str, value: Any) -> None:
    """A commit repairs a study that was refused: until acceptance nothing is fixed."""
    fresh = {**copy.deepcopy(START), "metadata": {"name": "fresh"}}
    kube.run("delete", "est", "fresh", "--ignore-not-found")
    kube.apply(fresh)
    kube.patch(
        "est", "fresh", {"status": {"conditions": [condition("Accepted", "False", "InvalidDesign")]}}, status=True
    )

    kube.apply(changed(fresh, path, value))

    assert kube.get("est", "fresh")["metadata"]["generation"] == 2


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("execution/nCycles", 5),
        ("execution/configGapSeconds", 1),
        ("execution/cycleGapSeconds", 1),
        ("execution/maxConsecutiveFailures", 1),
        ("parallelism", 4),
        ("suspend", True),
        ("suspendPolicy", "Immediate"),
        ("retry/invalid", 2),
        ("retryEpoch", 1),
        ("retention/jobTTLSecondsAfterResult", 1),
    ],
)
def test_what_may_change_in_an_accepted_study(kube: Kube, path: str, value: Any) -> None:
    """More cycles, pauses, parallelism, suspension, retries: at any time."""
    name = "may-" + path.replace("/", "-").lower()
    manifest = {**copy.deepcopy(START), "metadata": {"name": name}}
    kube.apply(manifest)
    accept(kube, name)

    kube.apply(changed(manifest, path, value))

    assert kube.get("est", name)["metadata"]["generation"] == 2


def test_removing_the_cycles_is_no_way_round(kube: Kube) -> None:
    """Leaving execution or nCycles out means three, which is fewer than five."""
    manifest = study("round", execution={"nCycles": 5})
    kube.apply(manifest)
    accept(kube, "round")

    assert "may only grow" in kube.refused(changed(manifest, "execution", None))
    assert "may only grow" in kube.refused(changed(manifest, "execution/nCycles", None))


@pytest.mark.parametrize("way", [[], ["--server-side"]], ids=["client-side", "server-side"])
def test_one_and_one_point_zero_are_no_change(kube: Kube, way: list[str]) -> None:
    """A number written in another way is the same design."""
    name = f"one{len(way)}"
    text = json.dumps(
        study(name, design={"model": "m", "decoder": {"temperature": "?"}, "sweep": {"decoder.top_p": "?"}})
    )
    kube.apply(text.replace('"?"', "1"), *way)
    accept(kube, name)

    kube.apply(text.replace('"?"', "1.0"), *way)

    assert kube.get("est", name)["metadata"]["generation"] == 1


def test_retry_epoch_only_grows(kube: Kube) -> None:
    """A lower epoch is refused in both kinds, accepted or not; leaving it out is zero."""
    kube.apply(study("epoch", retryEpoch=2))
    kube.apply(experiment("epoch", retryEpoch=2))

    for manifest in (
        study("epoch", retryEpoch=1),
        study("epoch"),
        experiment("epoch", retryEpoch=1),
        experiment("epoch"),
    ):
        assert "retryEpoch may only grow" in kube.refused(manifest)
    kube.apply(study("epoch", retryEpoch=3))
    kube.apply(experiment("epoch", retryEpoch=3))


CHILD = experiment(
    "child", studyRef={"name": "parent"}, index=3, cycle=1, configHash="a" * 16,
)  # fmt: skip
ALONE = experiment(
    "alone", template=TEMPLATE, results={"uri": "s3://b/p"}, retry={"invalid": 1}, deadlines={"runSeconds": 60}
)
FIXED: list[tuple[str, Any]] = [
    ("config/model", "other"),
    ("config/decoder", {"temperature": 0.1}),
    ("template", {"gpu": {"count": 2}}),
    ("results", {"uri": "s3://b/q"}),
    ("retry", {"invalid": 2}),
    ("deadlines", {"runSeconds": 61}),
]
ORIGIN: list[tuple[str, Any]] = [("studyRef", {"name": "x"}), ("index", 4), ("cycle", 2), ("configHash", "b" * 16)]


@pytest.mark.parametrize(("path", "value"), [*FIXED, *ORIGIN], ids=[p for p, _ in [*FIXED, *ORIGIN]])
def test_a_child_is_fixed_from_its_creation(kube: Kube, path: str, value: Any) -> None:
    """A run of a study is what the study says; nobody can make it another."""
    kube.apply(CHILD)

    message = kube.refused(changed(CHILD, path, value))

    field = path.split("/", maxsplit=1)[0]
    assert f"spec.{field}: Forbidden: {field} is " in message


@pytest.mark.parametrize(("path", "value"), FIXED, ids=[p for p, _ in FIXED])
def test_an_experiment_by_hand_is_fixed_by_its_first_attempt(kube: Kube, path: str, value: Any) -> None:
    """Until then it can be repaired."""
    name = "by-hand-" + path.replace("/", "-").lower()
    manifest = {**copy.deepcopy(ALONE), "metadata": {"name": name}}
    kube.apply(manifest)
    kube.patch("eexp", name, {"status": {"attempt": 0}}, status=True)
    kube.apply(changed(manifest, path, value))
    kube.apply(manifest)

    kube.patch("eexp", name, {"status": {"attempt": 1}}, status=True)

    assert "after the first attempt" in kube.refused(changed(manifest, path, value))
    kube.patch("eexp", name, {"spec": {"suspend": True, "retryEpoch": 1}})


@pytest.mark.parametrize(("path", "value"), ORIGIN, ids=[p for p, _ in ORIGIN])
def test_nobody_can_adopt_an_experiment_by_hand(kube: Kube, path: str, value: Any) -> None:
    """Study, index, cycle and hash cannot be added later."""
    kube.apply(experiment("orphan"))

    assert "is set by the operator and never changes" in kube.refused(changed(experiment("orphan"), path, value))


def test_status_can_be_written_under_all_rules(kube: Kube) -> None:
    """Every rule is also evaluated for a write of the status, where the spec is the same."""
    manifest = {**copy.deepcopy(START), "metadata": {"name": "writes"}}
    kube.apply(manifest)
    accept(kube, "writes")

    kube.patch("est", "writes", {"status": {"finished": True}}, status=True)

    status = kube.get("est", "writes")["status"]
    assert (status["designHash"], status["finished"]) == ("a" * 16, True)


# --- what people see


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("est", ["DESCRIPTION", "energy", "spec\t<Object> -required-"]),
        ("est.spec.design", ["n\t<integer>", "Number of prompts", "Number format of the weights", "One of fp32"]),
        ("est.spec.design.sweep", ["backend.parameter: [values]", "At most 16 axes of 64 values"]),
        ("est.spec.design.decoder", ["temperature (number, >= 0, <= 2, default 1.0)", "Softmax temperature"]),
        ("est.spec.design.pytorch", ["batch_size (integer", "Prompts per batch"]),
        ("est.spec.execution", ["nCycles\t<integer>", "May only grow", "enum: sequential, interleaved, shuffled"]),
        ("est.spec.template.gpu", ["minMemoryMiB\t<integer>", "MiB"]),
        ("est.status.best", ["energyPerOutputTokenMillijoules\t<string>", "mJ"]),
        ("eexp.spec.config", ["model\t<string> -required-", "builtin:smollm2-135m"]),
        ("eexp.status.summary", ["tokensPerSecond\t<string>", "tokens/s"]),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_explain_tells_fields_and_units(kube: Kube, path: str, words: list[str]) -> None:
    """`kubectl explain` is the manual that is always there."""
    said = kube.ok("explain", path)

    flowing = " ".join(said.split())
    assert [w for w in words if " ".join(w.split()) not in flowing] == []


def columns(said: str) -> list[dict[str, str]]:
    """A table of kubectl as rows; columns are told apart by where their head begins."""
    head, *lines = said.splitlines()
    names = head.split()
    starts = [head.index(n) for n in names]
    ends = [*starts[1:], None]
    return [{n: line[a:b].strip() for n, a, b in zip(names, starts, ends, strict=True)} for line in lines]


def test_columns_of_a_study(kube: Kube) -> None:
    """State, counts and the best result at a glance; with -o wide what it waits for."""
    kube.apply(study("seen"))
    kube.patch(
        "est",
        "seen",
        {
            "status": {
                "designHash": "0123456789abcdef",
                "counts": {"total": 12, "completed": 7, "failed": 2, "invalid": 1, "running": 3},
                "best": {"energyPerOutputTokenMillijoules": "41.25"},
                "nextEligibleTime": "2026-01-02T03:04:05Z",
                "conditions": [
                    condition("Ready", "True", "Fine", "not this"),
                    condition("Finished", "False", "WaitingForGap", "waits for the gap"),
                ],
            }
        },
        status=True,
    )

    (row,) = columns(kube.ok("get", "est", "seen"))
    (wide,) = columns(kube.ok("get", "est", "seen", "-o", "wide"))
    assert row.pop("AGE")
    assert row == {
        "NAME": "seen", "STATE": "WaitingForGap", "TOTAL": "12", "DONE": "7", "FAILED": "2", "INVALID": "1",
        "RUNNING": "3", "BEST-MILLIJOULES/TOKEN": "41.25",
    }  # fmt: skip
    assert wide["DESIGN"] == "0123456789abcdef"
    assert wide["NEXT"] == "2026-01-02T03:04:05Z"
    assert wide["MESSAGE"] == "waits for the gap"


def test_columns_of_an_experiment(kube: Kube) -> None:
    """Which run, where, how much energy, and whether it can be believed."""
    kube.apply(experiment("seen", studyRef={"name": "s"}, index=4, cycle=2, configHash="ff00"))
    kube.patch(
        "eexp",
        "seen",
        {
            "status": {
                "attempt": 2,
                "node": "node-1",
                "summary": {"energyPerOutputTokenMillijoules": "41.25", "verdict": "valid"},
                "environment": {"gpuProduct": "NVIDIA-H100"},
                "conditions": [
                    condition("Succeeded", "True", "ResultStored"),
                    condition("Finished", "True", "Completed"),
                ],
            }
        },
        status=True,
    )

    (row,) = columns(kube.ok("get", "eexp", "seen"))
    (wide,) = columns(kube.ok("get", "eexp", "seen", "-o", "wide"))
    assert row.pop("AGE")
    assert row == {
        "NAME": "seen", "STATE": "Completed", "STUDY": "s", "INDEX": "4", "CYCLE": "2", "NODE": "node-1",
        "MILLIJOULES/TOKEN": "41.25", "VERDICT": "valid",
    }  # fmt: skip
    assert (wide["ATTEMPT"], wide["REASON"], wide["GPU"], wide["HASH"]) == ("2", "ResultStored", "NVIDIA-H100", "ff00")


def test_an_object_that_nobody_has_looked_at_says_so(kube: Kube) -> None:
    """Before the operator's first write the state is Pending, and whoever waits for Finished waits."""
    kube.apply(study("unseen"))
    kube.apply(experiment("unseen"))

    for kind in ("est", "eexp"):
        (row,) = columns(kube.ok("get", kind, "unseen"))
        status = kube.get(kind, "unseen")["status"]
        assert row["STATE"] == "Pending"
        assert status["finished"] is False
        assert "designHash" not in status
        (finished,) = [c for c in status["conditions"] if c["type"] == "Finished"]
        assert finished["message"].startswith("waits for")
        waited = kube.run("wait", kind, "unseen", "--for=condition=Finished", "--timeout=1s")
        assert waited.returncode != 0


def test_both_kinds_are_one_category(kube: Kube) -> None:
    """`kubectl get llem` shows studies and experiments; `kubectl get all` shows neither."""
    kube.apply(study("category"))
    kube.apply(experiment("category"))

    said = kube.ok("get", "llem", "-o", "name")
    assert {"energystudy.llem.dev/category", "energyexperiment.llem.dev/category"} <= set(said.split())
    assert "llem.dev" not in kube.ok("get", "all", "-o", "name")


def test_lists_can_be_narrowed_by_fields(kube: Kube) -> None:
    """Unfinished ones and those of one study; an object without status counts as unfinished."""
    for name, parent in (("f-new", "f"), ("f-open", "f"), ("f-done", "f"), ("g-done", "g")):
        kube.apply(experiment(name, studyRef={"name": parent}))
    kube.patch("eexp", "f-open", {"status": {"finished": False}}, status=True)
    for name in ("f-done", "g-done"):
        kube.patch("eexp", name, {"status": {"finished": True}}, status=True)

    def names(selector: str) -> list[str]:
        found = kube.ok("get", "eexp", "--field-selector", selector, "-o", "jsonpath={.items[*].metadata.name}")
        return [n for n in found.split() if n[:2] in ("f-", "g-")]

    assert names("spec.studyRef.name=f") == ["f-done", "f-new", "f-open"]
    assert names("status.finished!=true") == ["f-new", "f-open"]
    assert names("status.finished=false") == ["f-new", "f-open"]
    assert names("status.finished=true,spec.studyRef.name=g") == ["g-done"]


# --- sizes


def test_largest_legal_sweep_fits(kube: Kube) -> None:
    """Sixteen axes of sixty-four long values, and many entries beside them, can be stored and compared."""
    axis = ["v" * 90 + f"{i:06d}" for i in range(64)]
    entries = [{"model": "m", "revision": f"{i:05d}" + "r" * 60} for i in range(5000)]
    design = {"model": "m", "sweep": {f"pytorch.key{i:02d}": axis for i in range(16)}, "experiments": entries}
    manifest = study("largest", design=design)
    body = json.dumps(manifest)
    assert len(body) > 500 * KIB

    kube.ok("create", "-f", "-", stdin=body)
    accept(kube, "largest")

    kube.patch("est", "largest", {"status": {"finished": False}}, status=True)  # every rule compares it all
    kube.patch("est", "largest", {"spec": {"suspend": True}})
    other = {**design, "experiments": [*entries[:-1], {"model": "other"}]}
    message = kube.run("replace", "-f", "-", stdin=json.dumps(study("largest", design=other))).stderr
    assert "design is fixed" in message


def scattered(count: int, every: int, first: int) -> str:
    """Ranges of every so-many-th index: the least compact that is realistic."""
    return ",".join(str(i) for i in range(first, count, every))


def busy_status(runs: int) -> dict[str, Any]:
    """A status with every list full and every text long."""
    failed, invalid = scattered(runs, 20, 3), scattered(runs, 25, 11)
    gone = set(map(int, failed.split(",")))
    completed = ",".join(f"{a}-{a + 18}" for a in range(4, runs - 20, 20) if a not in gone)
    message = "m" * 1024
    conditions = [
        condition(kind, "True", "SomeReasonOfSomeLength", message)
        for kind in ("Accepted", "Expanded", "Suspended", "Succeeded", "Finished", "Ready", "Reconciling", "Stalled")
    ]
    child = "n" * 40 + "-00001-abcdef"
    return {
        "observedGeneration": 3, "designHash": "d" * 16, "planHash": "p" * 16, "expanderVersion": "2.0.0",
        "finished": False, "observedRetryEpoch": 1, "resultsURI": "s3://bucket/" + "p" * 200,
        "startTime": "2026-01-02T03:04:05Z", "nextEligibleTime": "2026-01-02T03:04:05Z",
        "counts": dict.fromkeys(("total", "pending", "running", "completed", "failed", "invalid", "interrupted",
                                 "cancelled", "skipped"), runs),
        "indexes": {"running": scattered(runs, 700, 5), "completed": completed, "failed": failed, "invalid": invalid},
        "baselines": [{"gpuUUID": f"GPU-{i:032d}-000", "driver": "555.55.55", "kind": "context", "node": "n" * 60,
                       "powerMilliwatts": 70000, "measuredAt": "2026-01-02T03:04:05Z"} for i in range(16)],
        "active": [{"experiment": child, "attempt": 1, "node": "n" * 60, "since": "2026-01-02T03:04:05Z",
                    "message": "m" * 200} for _ in range(16)],
        "recentFailures": [{"experiment": child, "reason": "EngineCrashed", "message": "m" * 256} for _ in range(5)],
        "skipped": [{"reason": "r" * 300, "count": 5} for _ in range(10)],
        "best": {"experiment": child, "configHash": "c" * 16, "configSummary": "s" * 200,
                 "energyPerOutputTokenMillijoules": "41.25", "cycles": 3},
        "conditions": conditions,
    }  # fmt: skip


def test_status_of_ten_thousand_runs_is_small(kube: Kube) -> None:
    """A study of 10,000 runs with thousands of scattered failures stays below 64 KiB, and everything in it is kept."""
    status = {**busy_status(10_000), "manifestMode": "Ranges"}
    assert len(json.dumps(status)) <= 64 * KIB
    kube.apply(study("thousands"))

    kube.patch("est", "thousands", {"status": status}, status=True)

    assert kube.get("est", "thousands")["status"] == status


def test_manifest_of_250_runs_fits(kube: Kube) -> None:
    """Up to 250 runs every one has a row, also with every other list full; one more is refused."""
    rows = [
        {"index": i, "cycle": 1 + i % 10, "hash": f"{i:08x}", "status": "completed", "attempt": 1, "nodeIndex": i,
         "millijoulesPerOutputToken": "1234.5"}
        for i in range(250)
    ]  # fmt: skip
    status = {
        **busy_status(250),
        "manifestMode": "Inline",
        "nodes": [f"{i:03d}" + "n" * 60 for i in range(250)],
        "manifest": rows,
    }
    assert len(json.dumps(rows, separators=(",", ":"))) / 250 <= 140
    kube.apply(study("rows"))

    kube.patch("est", "rows", {"status": status}, status=True)

    assert kube.get("est", "rows")["status"] == status
    more = {"status": {"manifest": [*rows, rows[0]]}}
    assert "must have at most 250 items" in kube.patch_refused("est", "rows", more, status=True)


def test_status_of_an_experiment_is_kept_whole(kube: Kube) -> None:
    """Every field of the contract is declared: nothing that the operator writes is dropped."""
    moment = "2026-01-02T03:04:05Z"
    attempt = {
        "attempt": 1, "jobName": "j", "jobUID": "u" * 36, "podName": "p", "podUID": "u" * 36, "node": "n",
        "created": moment, "start": moment, "end": moment, "measurementStart": moment, "measurementEnd": moment,
        "outcome": "Failed", "reason": "EngineCrashed", "exitCode": 16, "message": "m" * 1024,
    }  # fmt: skip
    status = {
        "observedGeneration": 1, "observedRetryEpoch": 0, "finished": True, "attempt": 2, "node": "n",
        "retriesUsed": {"measurement": 1, "infrastructure": 0, "invalid": 0},
        "attempts": [attempt, {**attempt, "attempt": 2, "outcome": "Completed"}],
        "result": {"uri": "s3://b/p/result.json", "sha256": "0" * 64, "sizeBytes": 12345, "schemaVersion": "2.0",
                   "adopted": False},
        "summary": {"verdict": "valid", "energyNullReason": "none", "energyPerOutputTokenMillijoules": "41.25",
                    "energyTotalJoules": "1e-5", "energyAdjustedJoules": "-0.5", "baselineWatts": "70.5",
                    "tokensPerSecond": "100.0", "outputTokens": 1000, "requests": 10, "durationSeconds": "60.25",
                    "latencyP50Milliseconds": "12.5", "memoryPeakMebibytes": "1024"},
        "environment": {"gpuProduct": "NVIDIA H100", "gpuUUIDs": ["GPU-1"], "driver": "555", "imageID": "sha256:0"},
        "baselines": [{"gpuUUID": "GPU-1", "driver": "555", "kind": "context", "powerMilliwatts": 70000,
                       "measuredAt": moment, "node": "n"}],
        "warnings": ["a warning"], "logTail": "l" * 2048, "startTime": moment, "completionTime": moment,
        "conditions": [condition("Finished", "True", "ResultStored", "stored")],
    }  # fmt: skip
    kube.apply(experiment("whole"))

    kube.patch("eexp", "whole", {"status": status}, status=True)

    assert kube.get("eexp", "whole")["status"] == status


def test_definition_files_are_what_the_server_stores(kube: Kube) -> None:
    """No part of a definition is dropped by the API server: server-side apply of the file finds nothing to change."""
    said = kube.run("diff", "--server-side", "--force-conflicts", "-f", str(ROOT / "crds"))

    assert said.returncode == 0, said.stdout + said.stderr
