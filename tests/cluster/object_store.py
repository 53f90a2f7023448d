"""A real S3 server over a folder (versitygw), where pods upload their results."""

import dataclasses
import json
from pathlib import Path

from control_plane import Cluster, free_port

BUCKET = "llem"
KEY_ID = "llem-test-key"
SECRET = "llem-test-secret"  # of a server that only this machine reaches


@dataclasses.dataclass(frozen=True)
class ObjectStore:
    """Where the store is and who may write to it."""

    endpoint: str
    folder: str
    bucket: str = BUCKET
    access_key_id: str = KEY_ID
    secret_access_key: str = SECRET
    region: str = "us-east-1"


def start(cluster: Cluster) -> ObjectStore:
    """Start the server on the cluster's address, with one empty bucket."""
    folder = cluster.state / "objects"
    (folder / BUCKET).mkdir(parents=True)
    port = free_port(cluster.address)
    cluster.start(
        "versitygw", "--access", KEY_ID, "--secret", SECRET, "--port", f"{cluster.address}:{port}", "posix", folder
    )
    store = ObjectStore(f"http://{cluster.address}:{port}", str(folder))
    _file(cluster.state).write_text(json.dumps(dataclasses.asdict(store)), encoding="utf-8")
    return store


def read(state: Path) -> ObjectStore | None:
    """The store of a running cluster, None if it has none."""
    if not _file(state).exists():
        return None
    return ObjectStore(**json.loads(_file(state).read_text(encoding="utf-8")))


def _file(state: Path) -> Path:
    return state / "object-store.json"
