"""Fixtures of the tests that need a Kubernetes: an API server, or the node of this machine."""

import pytest

from cluster.commands import HERE
from cluster.fixtures import (
    bench,
    control_plane,
    control_plane_kubectl,
    images,
    kubectl,
    namespace,
    node,
    node_api,
    node_helm,
    node_was_up,
    object_store,
)
from cluster.kube import api_server

__all__ = [
    "api_server",
    "bench",
    "control_plane",
    "control_plane_kubectl",
    "images",
    "kubectl",
    "namespace",
    "node",
    "node_api",
    "node_helm",
    "node_was_up",
    "object_store",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests of this folder need a cluster."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("cluster")
