"""Which nodes a run may use: affinity over the labels of NVIDIA's GPU Feature Discovery. Pure."""

from collections.abc import Mapping
from itertools import product
from typing import Any

from llenergymeasure.core.resources import LABEL_MEASURING

NVIDIA = "nvidia.com"


def affinity(template: Mapping[str, Any], gpus: int) -> dict[str, Any]:
    """The GPU asked for, and no second measurement on the node unless the study allows it."""
    found: dict[str, Any] = {}
    terms = gpu_terms(template.get("gpu") or {}) if gpus else []
    if terms:
        found["nodeAffinity"] = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    if template.get("exclusivity", "Node") == "Node":
        found["podAntiAffinity"] = {
            "requiredDuringSchedulingIgnoredDuringExecution": [
                {
                    "labelSelector": {"matchLabels": {LABEL_MEASURING: "true"}},
                    "namespaceSelector": {},  # measurements of other namespaces share the node's fans and power, too
                    "topologyKey": "kubernetes.io/hostname",
                }
            ]
        }
    return found


def gpu_terms(gpu: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Node selector terms, one of which must hold; each is a full list of requirements."""
    always: list[dict[str, Any]] = []
    if gpu.get("products"):
        always.append(_has(f"{NVIDIA}/gpu.product", "In", *gpu["products"]))
    if gpu.get("minMemoryMiB"):
        always.append(_has(f"{NVIDIA}/gpu.memory", "Gt", str(gpu["minMemoryMiB"] - 1)))
    choices: list[list[list[dict[str, Any]]]] = []
    if gpu.get("minComputeCapability"):
        choices.append(_at_least(str(gpu["minComputeCapability"])))
    if not gpu.get("allowShared", False):
        # A card cut into replicas or instances has one energy counter for all its users. `mig.strategy: single` is the
        # GPU operator's default also where MIG is off, so only `mixed` tells; the runner looks at the card itself.
        always.append(_has(f"{NVIDIA}/mig.strategy", "NotIn", "mixed"))
        replicas = f"{NVIDIA}/gpu.replicas"
        choices.append([[_has(replicas, "DoesNotExist")], [_has(replicas, "In", "1")]])
    terms = [[*always, *(r for part in parts for r in part)] for parts in product(*choices)]
    return [{"matchExpressions": term} for term in terms if term]


def _at_least(capability: str) -> list[list[dict[str, Any]]]:
    """Compute capability X.Y or later: a greater major number, or the same one and a minor number of at least Y."""
    major, minor = capability.split(".")
    greater = [_has(f"{NVIDIA}/gpu.compute.major", "Gt", major)]
    same = [_has(f"{NVIDIA}/gpu.compute.major", "In", major)]
    if int(minor) > 0:
        same.append(_has(f"{NVIDIA}/gpu.compute.minor", "Gt", str(int(minor) - 1)))
    return [greater, same]


def _has(key: str, operator: str, *values: str) -> dict[str, Any]:
    return {"key": key, "operator": operator, **({"values": list(values)} if values else {})}
