"""Manifests of small restricted Jobs and Pods for tests."""

from typing import Any

Manifest = dict[str, Any]


def spec(image: str, *command: str, gpus: int = 0) -> Manifest:
    """A pod that a namespace of the restricted level takes: not root, no privileges, read-only root."""
    limits = {"cpu": "500m", "memory": "256Mi"} | ({"nvidia.com/gpu": str(gpus)} if gpus else {})
    container = {
        "name": "main", "image": image, "imagePullPolicy": "Never", "command": list(command),
        "resources": {"limits": limits, "requests": limits | {"cpu": "50m"}},
        "securityContext": {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        },
    }  # fmt: skip
    return {
        "restartPolicy": "Never", "automountServiceAccountToken": False, "terminationGracePeriodSeconds": 1,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
    }  # fmt: skip


def job(name: str, pod: Manifest) -> Manifest:
    """A Job of one attempt."""
    template = {"metadata": {"labels": {"app": name}}, "spec": pod}
    return {
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name},
        "spec": {"backoffLimit": 0, "template": template},
    }  # fmt: skip


def pod(name: str, pod_spec: Manifest) -> Manifest:
    """A pod with its name as label `app`."""
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": pod_spec}


def service(name: str, port: int) -> Manifest:
    """A Service before the pods whose label `app` is its name."""
    ports = [{"port": 80, "targetPort": port}]
    return {
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"selector": {"app": name}, "ports": ports},
    }  # fmt: skip
