"""Runs the cluster's script and its kubectl from tests, in the real environment."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
# Every test gets an empty home; the caches of binaries, images and clusters are in the real one.
REAL_ENVIRONMENT = dict(os.environ)


def run_cluster(*arguments: str) -> str:
    """Run the cluster's own script and give what it prints; fails with what it wrote."""
    done = subprocess.run(
        cluster_command(*arguments), env=REAL_ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def cluster_command(*arguments: str) -> list[str]:
    """The command line of the cluster's script."""
    return [sys.executable, str(HERE / "cluster.py"), *arguments]


def status(*arguments: str) -> dict[str, Any]:
    """What the script says about a cluster."""
    found: dict[str, Any] = json.loads(run_cluster("status", *arguments))
    return found


@dataclasses.dataclass(frozen=True)
class Kubectl:
    """The built kubectl with one cluster's kubeconfig."""

    program: str
    kubeconfig: Path

    def __call__(self, *arguments: str, stdin: str | None = None) -> str:
        """Run it and give its output; a failure is an AssertionError with its words."""
        command = [self.program, "--kubeconfig", str(self.kubeconfig), *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr.strip()}"
        return done.stdout

    def get(self, *arguments: str) -> dict[str, Any]:
        """`kubectl get … -o json`, parsed."""
        found: dict[str, Any] = json.loads(self("get", *arguments, "-o", "json"))
        return found

    def apply(self, *objects: dict[str, Any], namespace: str = "default") -> str:
        """Apply objects given as dictionaries."""
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
        return self("apply", "-n", namespace, "-f", "-", stdin=text)


@dataclasses.dataclass(frozen=True)
class ObjectStore:
    """A real S3 server that pods reach; `folder` is where it keeps the objects, for tests to look into."""

    endpoint: str
    folder: str
    bucket: str
    access_key_id: str
    secret_access_key: str
    region: str
