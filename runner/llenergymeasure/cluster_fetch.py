"""Brings result files from a cluster's store here through a short-lived pod, so that credentials stay inside.

The pod is the study's own, as its Jobs describe it, without GPU, affinity and configuration: same image, account and
way to the results, which it can only read; nothing else that the study mounts. It sleeps; `llem pack` in it writes the
files to its output as one tar. It goes with the study, or after LIFE_S.
"""

import contextlib
import hashlib
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from llenergymeasure import cluster_status as status
from llenergymeasure.cluster_results import Results, Row
from llenergymeasure.cluster_status import Resource
from llenergymeasure.core import resources
from llenergymeasure.core.errors import ClusterError, ResultStoreError
from llenergymeasure.kubectl import Kubectl

LIFE_S = 3600
START_S = 300
CONTAINER = "reader"
KEPT_VARIABLES = ("LLEM_STORE_ENDPOINT", "LLEM_STORE_REGION", "LLEM_STORE_CREDENTIALS", "HOME")
MOUNTS: dict[str, dict[str, Any]] = {"tmp": {}, "results": {"readOnly": True}, "store": {"readOnly": True}}
NO_GPU = {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"}
LABELS = {
    "app.kubernetes.io/name": "llem",
    "app.kubernetes.io/component": "reader",
    resources.LABEL_READER: "true",
}
KEPT_FIELDS = (
    "securityContext", "imagePullSecrets", "serviceAccountName", "tolerations", "nodeSelector", "dnsConfig",
)  # fmt: skip
RESOURCES = {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"cpu": "1", "memory": "1Gi"}}


def reader_pod(owner: Resource, template: Mapping[str, Any]) -> dict[str, Any]:
    """The pod that can read what the pods of a Job's `template`, those of `owner`, could write. Pure."""
    given = template["spec"]
    runner = next(c for c in given["containers"] if c["name"] == "runner")
    own = {m["name"]: m for m in reversed(runner.get("volumeMounts") or ())}  # the operator's come first
    mounts = [{**own[name], **how} for name, how in MOUNTS.items() if name in own]
    container = {
        "name": CONTAINER,
        "image": runner["image"],
        "imagePullPolicy": runner.get("imagePullPolicy", "IfNotPresent"),
        "command": ["sleep", str(LIFE_S)],
        "env": [*(e for e in runner.get("env") or () if e["name"] in KEPT_VARIABLES), NO_GPU],
        "resources": RESOURCES,
        "securityContext": runner.get("securityContext") or {},
        "volumeMounts": mounts,
    }
    spec = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "activeDeadlineSeconds": LIFE_S,
        "terminationGracePeriodSeconds": 0,
        **{k: given[k] for k in KEPT_FIELDS if k in given},
        "containers": [container],
        "volumes": [v for v in given.get("volumes") or () if v["name"] in own and v["name"] in MOUNTS],
    }
    metadata = owner["metadata"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": f"{metadata['name'][:40]}-reader-",
            "labels": LABELS,
            "ownerReferences": [
                {
                    "apiVersion": resources.API_VERSION,
                    "kind": owner["kind"],
                    "name": metadata["name"],
                    "uid": metadata["uid"],
                }
            ],
        },
        "spec": spec,
    }


def uri_in_pod(uri: str, template: Mapping[str, Any]) -> str:
    """A result's public URI as the pod reaches it: a claim is a folder there."""
    if not uri.startswith("pvc://"):
        return uri
    runner = next(c for c in template["spec"]["containers"] if c["name"] == "runner")
    mount: Mapping[str, Any] = next((m for m in runner["volumeMounts"] if m["name"] == "results"), {})
    path = uri.removeprefix("pvc://").partition("/")[2]
    sub_path = str(mount.get("subPath") or "").strip("/")
    inside = path.removeprefix(f"{sub_path}/") if sub_path else path
    return f"file://{mount.get('mountPath', '/results')}/{inside}"


def folder_uri(results: Results) -> str:
    """The place below which all results of a study lie; for a standalone experiment that of its result."""
    uris = [r.uri for r in results.stored if r.uri]
    if not uris:
        raise ClusterError(f"{results.name}: no result is stored yet; llem status {results.name}")
    if results.uri:
        return results.uri.rstrip("/")
    folder = uris[0].rpartition("/")[0] if uris[0].endswith(".json") else uris[0]
    return folder.rstrip("/")


def fetch_through_pod(kubectl: Kubectl, obj: Resource, results: Results, folder: Path) -> int:
    """Copy the files below a study's URI into `folder`, give their number; raises ClusterError, ResultStoreError."""
    uri = folder_uri(results)
    template = _template(kubectl, obj, uri)
    with _pod(kubectl, reader_pod(obj, template)) as pod, tempfile.TemporaryFile() as file:
        words = ("exec", pod, f"--container={CONTAINER}", "--", "llem", "pack", uri_in_pod(uri, template))
        kubectl.to_file(*words, file=file)
        file.seek(0)
        return _unpacked(file, folder)


def _template(kubectl: Kubectl, obj: Resource, uri: str) -> Mapping[str, Any]:
    """The pod template of the youngest Job of a study or experiment."""
    label = resources.LABEL_STUDY if status.is_study(obj) else resources.LABEL_EXPERIMENT
    jobs = kubectl.items("get", "jobs.batch", f"--selector={label}={status.name_of(obj)}")
    if not jobs:
        raise ClusterError(
            f"{uri}: the study's Jobs are gone (spec.retention), and with them the way its pods reached the store; "
            "use --direct with credentials of your own, or your store's client"
        )
    youngest = max(jobs, key=lambda j: str(j["metadata"].get("creationTimestamp")))
    template: Mapping[str, Any] = youngest["spec"]["template"]
    return template


@contextlib.contextmanager
def _pod(kubectl: Kubectl, manifest: Mapping[str, Any]) -> Iterator[str]:
    """A running pod that is gone afterwards, whatever happened."""
    made = json.loads(kubectl.run("create", "--filename=-", "--output=json", stdin=json.dumps(manifest)).out)
    name = str(made["metadata"]["name"])
    try:
        try:
            kubectl.run_long("wait", f"pod/{name}", "--for=condition=Ready", f"--timeout={START_S}s")
        except ClusterError as err:
            raise ClusterError(
                f"pod {name} that reads the store did not start: {_why_not(kubectl, name) or err}"
            ) from err
        yield name
    finally:
        with contextlib.suppress(ClusterError):
            kubectl.run("delete", f"pod/{name}", "--wait=false", "--ignore-not-found")


def _why_not(kubectl: Kubectl, name: str) -> str:
    found = kubectl.json("get", f"pod/{name}", "--ignore-not-found")
    conditions = (found.get("status") or {}).get("conditions") or ()
    waiting = [
        (c.get("state") or {}).get("waiting") or {} for c in (found.get("status") or {}).get("containerStatuses") or ()
    ]
    said = [
        *(str(w["message"]) for w in waiting if w.get("message")),
        *(str(c["message"]) for c in conditions if c.get("message")),
    ]
    return said[0] if said else ""


def pack(uri: str, file: IO[bytes]) -> int:
    """Write all files below a URI into `file` as a tar, result.json last per run; gives their number."""
    from llenergymeasure.object_store import Access, open_place
    from llenergymeasure.waiting import Patience

    credentials = os.environ.get("LLEM_STORE_CREDENTIALS")
    access = Access(
        os.environ.get("LLEM_STORE_ENDPOINT") or None,
        os.environ.get("LLEM_STORE_REGION") or None,
        Path(credentials) if credentials else None,
    )
    place = open_place(uri, access)
    names = place.names(Patience(60))
    with tarfile.open(fileobj=file, mode="w|") as tar:
        for name in names:
            content = place.get(name, Patience(60))
            if content is not None:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return len(names)


def fetch_directly(results: Results, folder: Path) -> int:
    """Copy the files below a study's URI with this machine's own credentials; gives their number."""
    uri = folder_uri(results)
    if uri.startswith("pvc://"):
        raise ClusterError(f"{uri}: a volume of the cluster cannot be read from here; leave --direct out")
    with tempfile.TemporaryFile() as file:
        pack(uri, file)
        file.seek(0)
        return _unpacked(file, folder)


def _unpacked(file: IO[bytes], folder: Path) -> int:
    """Unpack a tar that another machine made: nothing may leave the folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tarfile.open(fileobj=file, mode="r|") as tar:
            count = 0
            for member in tar:
                tar.extract(member, folder, filter="data")
                count += 1
    except (OSError, tarfile.TarError) as err:
        raise ResultStoreError(f"{folder}: the results could not be unpacked: {err}") from err
    return count


def wrong_digests(rows: Sequence[Row], uri: str, folder: Path) -> list[str]:
    """Name every result whose file here is missing, or is not the one whose digest the run reported."""
    found = []
    for row in rows:
        if row.uri is None or row.sha256 is None or not row.uri.startswith(f"{uri}/"):
            continue
        path = folder / row.uri.removeprefix(f"{uri}/")
        path = path if path.suffix == ".json" else path / "result.json"
        if not path.is_file():
            found.append(f"{path}: is missing")
        elif hashlib.sha256(path.read_bytes()).hexdigest() != row.sha256:
            found.append(f"{path}: is not the file that run {row.index} stored (its SHA-256 differs)")
    return found
