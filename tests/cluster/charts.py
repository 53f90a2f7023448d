"""Helm and kubeconform for tests: the chart rendered, checked against Kubernetes' own schemas, installed."""

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cluster.commands import HERE, REAL_ENVIRONMENT, run_cluster

ROOT = HERE.parent.parent
CHART = ROOT / "helm" / "llenergymeasure"


@dataclass(frozen=True)
class Helm:
    """The built helm with a home of its own, and a cluster if it has a kubeconfig."""

    program: Path
    home: Path
    kubeconfig: Path | None = None

    def run(self, *arguments: str, values: dict[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
        """Run it; whoever calls looks at the exit code."""
        folders = {f"HELM_{kind}_HOME": str(self.home / kind) for kind in ("CACHE", "CONFIG", "DATA")}
        given = ["--values", "-"] if values is not None else []
        where = {"KUBECONFIG": str(self.kubeconfig or self.home / "none")}
        return subprocess.run(
            [self.program, *arguments, *given],
            input=json.dumps(values), env={**os.environ, **folders, **where}, capture_output=True, text=True,
            check=False, timeout=300,
        )  # fmt: skip

    def ok(self, *arguments: str, values: dict[str, Any] | None = None) -> str:
        """Run it, which must succeed, and give what it prints."""
        done = self.run(*arguments, values=values)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def refused(self, *arguments: str, values: dict[str, Any] | None = None) -> str:
        """Run it, which must fail, and give its words."""
        done = self.run(*arguments, values=values)
        assert done.returncode != 0, "was accepted"
        return done.stderr

    def render(
        self, values: dict[str, Any], *, namespace: str = "bench", release: str = "llem"
    ) -> list[dict[str, Any]]:
        """All objects of the chart, tests included."""
        text = self.ok("template", release, str(CHART), "--namespace", namespace, values=values)
        return [d for d in yaml.safe_load_all(text) if d]


def program(name: str) -> Path:
    """One of the programs that are built from source, built if it is not there."""
    run_cluster("build", name)
    return Path(run_cluster("which", name).strip())


def one(objects: Sequence[dict[str, Any]], kind: str, name: str = "") -> dict[str, Any]:
    """The only object of a kind, or the one whose name ends so."""
    (found,) = [o for o in objects if o["kind"] == kind and o["metadata"]["name"].endswith(name)]
    return found


def environment_of(deployment: dict[str, Any]) -> dict[str, str]:
    """Variables of the first container that have a value of their own."""
    return {
        e["name"]: e["value"] for e in deployment["spec"]["template"]["spec"]["containers"][0]["env"] if "value" in e
    }


def write_schemas(folder: Path) -> Path:
    """JSON schemas of Kubernetes' own kinds from the sources that the test cluster is built from; unknown keys fail."""
    module = subprocess.run(  # fetches them again where the programs are built and the sources are gone
        ["go", "mod", "download", "-json", "k8s.io/kubernetes"],
        cwd=HERE, env=REAL_ENVIRONMENT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    swagger = Path(json.loads(module)["Dir"]) / "api" / "openapi-spec" / "swagger.json"
    definitions = json.loads(swagger.read_text(encoding="utf-8"))
    found: dict[str, Any] = definitions["definitions"]
    for definition in found.values():
        if "properties" in definition:
            definition["additionalProperties"] = False
    found["io.k8s.apimachinery.pkg.util.intstr.IntOrString"] = {"type": ["string", "integer"]}
    found["io.k8s.apimachinery.pkg.api.resource.Quantity"] = {"type": ["string", "number"]}
    (folder / "_definitions.json").write_text(json.dumps({"definitions": found}), encoding="utf-8")
    for name, definition in found.items():
        for kind in definition.get("x-kubernetes-group-version-kind", ()):
            group = kind["group"].partition(".")[0]
            file = "-".join(w for w in (kind["kind"].lower(), group, kind["version"]) if w)
            reference = {"$ref": f"_definitions.json#/definitions/{name}"}
            (folder / f"{file}.json").write_text(json.dumps(reference), encoding="utf-8")
    return folder
