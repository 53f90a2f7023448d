"""Files of a cluster's results on this machine: what the reader pod may do, how places are named, what is checked."""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli.cluster_objects import measured, study
from cli.process import Ended, write
from llem_operator.objects import jobs_of
from llem_operator.settings import Settings
from llenergymeasure.cluster_fetch import _unpacked, fetch_directly, pack, reader_pod, uri_in_pod, wrong_digests
from llenergymeasure.cluster_results import Results, results_of
from llenergymeasure.core.errors import ClusterError, ResultStoreError

CHART = Path(__file__).resolve().parents[2] / "helm" / "llenergymeasure"
STORE = {"uri": "s3://b/p", "endpoint": "http://store:7070", "credentialsSecretRef": {"name": "keys"}}


def template(results: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The pod template of the operator's own Job for a study with this destination."""
    wanted = study()
    wanted["spec"] |= {"results": results, "template": {"images": {"synthetic": "registry/llem:1"}, **more}}
    return next(jobs_of(wanted, Settings()))["spec"]["template"]


def test_reader_pod_has_the_access_of_a_run_and_nothing_else() -> None:
    """Same image, account and security; no GPU, no place among measurements, no configuration, nothing of the user's."""
    token = {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}
    mine = {
        "metadata": {"labels": {"app.mine": "x"}},
        "spec": {
            "volumes": [{"name": "mine", "secret": {"secretName": "other"}}],
            "containers": [{"name": "runner", "volumeMounts": [
                {"name": "mine", "mountPath": "/mine"}, {"name": "store", "mountPath": "/elsewhere"},
            ]}],
        },
    }  # fmt: skip
    given = template(STORE, env=[token], envFrom=[{"secretRef": {"name": "more"}}], gpu={"count": 1}, podTemplate=mine)

    pod = reader_pod(study(), given)
    (container,) = pod["spec"]["containers"]

    assert container["image"] == "registry/llem:1"
    env = {e["name"]: e["value"] for e in container["env"] if e["value"]}
    assert set(env) == {"LLEM_STORE_ENDPOINT", "LLEM_STORE_CREDENTIALS", "HOME", "NVIDIA_VISIBLE_DEVICES"}
    assert env["NVIDIA_VISIBLE_DEVICES"] == "void"
    assert "envFrom" not in container
    assert "nvidia.com/gpu" not in json.dumps(pod)
    assert "affinity" not in pod["spec"]
    assert "llem.dev/measuring" not in pod["metadata"]["labels"]
    assert {v["name"] for v in pod["spec"]["volumes"]} == {"tmp", "store"}
    assert {m["name"]: m["mountPath"] for m in container["volumeMounts"]} == {
        "tmp": "/tmp", "store": "/var/run/llem/store",
    }  # fmt: skip
    assert pod["spec"]["securityContext"] == given["spec"]["securityContext"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod["spec"]["automountServiceAccountToken"] is False


def test_reader_pod_cannot_write_and_goes_with_its_study() -> None:
    """A volume is mounted to be read; the pod is the study's, and the chart's NetworkPolicy selects it by its label."""
    pod = reader_pod(study(), template({"pvc": {"claimName": "claim", "subPath": "a"}}))
    (container,) = pod["spec"]["containers"]

    assert {"name": "results", "mountPath": "/results", "subPath": "a", "readOnly": True} in container["volumeMounts"]
    assert {v["name"] for v in pod["spec"]["volumes"]} == {"tmp", "results"}
    (owner,) = pod["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["uid"]) == ("EnergyStudy", "sweep", study()["metadata"]["uid"])
    assert pod["metadata"]["labels"]["llem.dev/reader"] == "true"
    policy = (CHART / "templates" / "runner.yaml").read_text(encoding="utf-8")
    assert all(label in policy for label in ('"llem.dev/measuring"', '"llem.dev/reader"'))
    assert pod["spec"]["activeDeadlineSeconds"] == 3600


@pytest.mark.parametrize(
    ("uri", "results", "inside"),
    [
        ("s3://b/p/sweep-1", STORE, "s3://b/p/sweep-1"),
        ("pvc://claim/sweep-1", {"pvc": {"claimName": "claim"}}, "file:///results/sweep-1"),
        ("pvc://claim/a/b/sweep-1", {"pvc": {"claimName": "claim", "subPath": "a/b"}}, "file:///results/sweep-1"),
    ],
    ids=["bucket", "volume", "part of a volume"],
)
def test_places_are_found_again_inside_the_pod(uri: str, results: dict[str, Any], inside: str) -> None:
    """A claim is a folder in the pod; a bucket is a bucket everywhere."""
    assert uri_in_pod(uri, template(results)) == inside


def stored(folder: Path) -> Results:
    """A study of one run whose files lie in a folder of this machine."""
    run = folder / "00000-x-c1" / "a1"
    run.mkdir(parents=True)
    (run / "result.json").write_text("{}", encoding="utf-8")
    (run / "config.json").write_text("{}", encoding="utf-8")
    child = measured(0, cycle=1, config_hash="0" * 16, millijoules="1.000")
    uri = f"file://{folder}/00000-x-c1/a1/result.json"
    child["status"]["result"] = {"uri": uri, "sha256": hashlib.sha256(b"{}").hexdigest()}
    return results_of(study(resultsURI=f"file://{folder}"), [child])


def test_direct_copies_the_files_and_digests_are_compared(tmp_path: Path) -> None:
    """What the run reported is what arrives; a changed or missing file is named."""
    results, copy = stored(tmp_path / "store"), tmp_path / "copy"

    number = fetch_directly(results, copy)

    assert number == 2
    uri = str(results.uri)
    assert wrong_digests(results.stored, uri, copy) == []
    (copy / "00000-x-c1" / "a1" / "result.json").write_text("[]", encoding="utf-8")
    assert "differs" in wrong_digests(results.stored, uri, copy)[0]
    (copy / "00000-x-c1" / "a1" / "result.json").unlink()
    assert "missing" in wrong_digests(results.stored, uri, copy)[0]


def test_volume_cannot_be_read_directly() -> None:
    """A claim lives in the cluster; the error says what to do."""
    child = measured(0, cycle=1, config_hash="0" * 16, millijoules="1.000")
    with pytest.raises(ClusterError, match="leave --direct out"):
        fetch_directly(results_of(study(resultsURI="pvc://claim/sweep-1"), [child]), Path("nowhere"))


def test_nothing_leaves_the_folder(tmp_path: Path) -> None:
    """A tar that names a place above the folder is refused."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("../escaped"), io.BytesIO())
    buffer.seek(0)

    with pytest.raises(ResultStoreError):
        _unpacked(buffer, tmp_path / "inside")

    assert not (tmp_path / "escaped").exists()


def test_pack_writes_every_file(tmp_path: Path) -> None:
    """`llem pack` is what runs in the pod: a tar of all files below a place."""
    stored(tmp_path)
    buffer = io.BytesIO()

    pack(f"file://{tmp_path}", buffer)

    buffer.seek(0)
    with tarfile.open(fileobj=buffer) as tar:
        assert sorted(tar.getnames()) == ["00000-x-c1/a1/config.json", "00000-x-c1/a1/result.json"]


def test_plan_jobs_shows_the_operators_own_jobs(tmp_path: Path, quick_llem: Callable[..., Ended]) -> None:
    """The same code path: a Job per run in the order of their start; what only an installation knows is in capitals."""
    file = write(tmp_path, {"sweep": {"precision": ["fp16", "bf16"]}, "execution": {"n_cycles": 1}})

    ended = quick_llem("plan", file, "--jobs", "--json")

    jobs = json.loads(ended.out)
    assert [j["kind"] for j in jobs] == ["Job", "Job"]
    image = jobs[0]["spec"]["template"]["spec"]["containers"][0]["image"]
    assert image == "IMAGE-OF-THE-INSTALLATION/synthetic"
    assert "LLEM_OPERATOR_IMAGES" in ended.err
