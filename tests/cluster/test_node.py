"""The node of the tests is a real one: scheduling, logs, DNS, Services, admission, an S3 store that pods reach."""

import json
import time

import pytest

from cluster import pods
from cluster.commands import Kubectl, ObjectStore

PROGRAM = """
import http.server, sys
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"hello from " + sys.argv[1].encode())
http.server.HTTPServer(("", 8080), Answer).serve_forever()
"""
# A Service refuses connections until kube-proxy has heard of its pod, so a client tries again, as everywhere.
FETCH = """
import sys, time, urllib.error, urllib.request
deadline = time.monotonic() + 30
while True:
    try:
        print(urllib.request.urlopen(sys.argv[1], timeout=5).read().decode())
        break
    except urllib.error.URLError:
        if time.monotonic() > deadline:
            raise
        time.sleep(0.2)
"""


def finished_logs(kubectl: Kubectl, namespace: str, name: str) -> str:
    """What a Job printed, once it has completed."""
    kubectl("wait", "-n", namespace, "--for=condition=complete", f"job/{name}", "--timeout=60s")
    return kubectl("logs", "-n", namespace, f"job/{name}")


def test_the_node_is_ready_and_has_the_gpus_it_claims(kubectl: Kubectl) -> None:
    """The node is Ready, labelled as GPU Feature Discovery would, with a GPU to give away."""
    (found,) = kubectl.get("nodes")["items"]
    ready = [c["status"] for c in found["status"]["conditions"] if c["type"] == "Ready"]
    assert ready == ["True"]
    assert found["status"]["allocatable"]["nvidia.com/gpu"] == "1"
    assert found["metadata"]["labels"]["nvidia.com/gpu.product"] == "NVIDIA-H100-80GB-HBM3"


def test_the_gpus_stay_when_the_kubelet_reports_again(kubectl: Kubectl) -> None:
    """The kubelet's own status updates leave the claimed GPUs alone."""
    before = heartbeat(kubectl)
    deadline = time.monotonic() + 90
    while heartbeat(kubectl) == before and time.monotonic() < deadline:
        time.sleep(1)
    (found,) = kubectl.get("nodes")["items"]
    assert heartbeat(kubectl) != before
    assert found["status"]["capacity"]["nvidia.com/gpu"] == "1"


def heartbeat(kubectl: Kubectl) -> str:
    """When the kubelet last looked at the node's memory."""
    (found,) = kubectl.get("nodes")["items"]
    return next(str(c["lastHeartbeatTime"]) for c in found["status"]["conditions"] if c["type"] == "MemoryPressure")


def test_a_restricted_job_completes_and_its_logs_are_readable(
    kubectl: Kubectl, namespace: str, images: dict[str, str]
) -> None:
    """A Job that takes the GPU runs as an ordinary user, and `kubectl logs` shows what it said."""
    kubectl.apply(
        pods.job("hello", pods.spec(images["shell"], "sh", "-c", "id -u; echo hello", gpus=1)), namespace=namespace
    )
    assert finished_logs(kubectl, namespace, "hello").split() == ["65532", "hello"]


def test_a_second_pod_waits_for_the_only_gpu(kubectl: Kubectl, namespace: str, images: dict[str, str]) -> None:
    """The scheduler keeps count: with one GPU taken the next pod stays pending and says why."""
    sleeper = pods.spec(images["shell"], "sleep", "300", gpus=1)
    kubectl.apply(pods.pod("first", sleeper), namespace=namespace)
    kubectl("wait", "-n", namespace, "--for=condition=Ready", "pod/first", "--timeout=60s")
    kubectl.apply(pods.pod("second", sleeper), namespace=namespace)
    kubectl("wait", "-n", namespace, "--for=condition=PodScheduled=False", "pod/second", "--timeout=30s")
    (reason,) = [
        c["message"]
        for c in kubectl.get("-n", namespace, "pod/second")["status"]["conditions"]
        if c["type"] == "PodScheduled"
    ]
    assert "Insufficient nvidia.com/gpu" in reason
    kubectl("delete", "-n", namespace, "pod", "first", "second", "--wait", "--timeout=60s")


def test_a_pod_that_wants_privileges_is_refused(kubectl: Kubectl, namespace: str, images: dict[str, str]) -> None:
    """The restricted level is enforced, so what runs here runs on a hardened cluster, too."""
    greedy = pods.spec(images["shell"], "id")
    greedy["containers"][0]["securityContext"] = {"privileged": True}
    with pytest.raises(AssertionError, match="violates PodSecurity"):
        kubectl.apply(pods.pod("greedy", greedy), namespace=namespace)


def test_the_name_of_a_service_leads_to_its_pod(kubectl: Kubectl, namespace: str, images: dict[str, str]) -> None:
    """DNS, kube-proxy and the pods' network: one pod fetches a page from another by the Service's name."""
    server = pods.spec(images["operator"], "python3", "-c", PROGRAM, namespace)
    server["containers"][0]["readinessProbe"] = {"tcpSocket": {"port": 8080}, "periodSeconds": 1}
    kubectl.apply(pods.pod("web", server), pods.service("web", 8080), namespace=namespace)
    kubectl("wait", "-n", namespace, "--for=condition=Ready", "pod/web", "--timeout=60s")
    client = pods.spec(images["operator"], "python3", "-c", FETCH, f"http://web.{namespace}.svc.cluster.local/")
    kubectl.apply(pods.job("client", client), namespace=namespace)
    assert finished_logs(kubectl, namespace, "client").strip() == f"hello from {namespace}"


def test_a_pod_with_a_token_reaches_the_api_server(kubectl: Kubectl, namespace: str, images: dict[str, str]) -> None:
    """The official client finds the API server as every operator does, and RBAC applies to its ServiceAccount."""
    program = (
        "import kubernetes; kubernetes.config.load_incluster_config()\n"
        "try: kubernetes.client.CoreV1Api().list_namespaced_secret('kube-system')\n"
        "except kubernetes.client.ApiException as err: print(err.status)"
    )
    client = pods.spec(images["operator"], "python3", "-c", program) | {"automountServiceAccountToken": True}
    kubectl.apply(pods.job("client", client), namespace=namespace)
    assert finished_logs(kubectl, namespace, "client").strip() == "403"


def test_a_pod_stores_an_object_and_the_second_put_is_refused(
    kubectl: Kubectl, namespace: str, images: dict[str, str], object_store: ObjectStore
) -> None:
    """The S3 store takes a conditional put from a pod once, and only once."""
    program = (
        "import json, sys, obstore\n"
        "from obstore.store import S3Store\n"
        "s = S3Store(client_options={'allow_http': True}, **json.loads(sys.argv[1]))\n"
        "obstore.put(s, sys.argv[2], b'joules', mode='create')\n"
        "try: obstore.put(s, sys.argv[2], b'other', mode='create')\n"
        "except Exception as err: print(type(err).__name__)"
    )
    settings = {
        "bucket": object_store.bucket, "endpoint": object_store.endpoint, "region": object_store.region,
        "access_key_id": object_store.access_key_id, "secret_access_key": object_store.secret_access_key,
    }  # fmt: skip
    writer = pods.spec(images["pytorch"], "python3", "-c", program, json.dumps(settings), f"{namespace}/result.json")
    kubectl.apply(pods.job("writer", writer), namespace=namespace)
    assert finished_logs(kubectl, namespace, "writer").strip() == "AlreadyExistsError"


@pytest.mark.parametrize("image", ["operator", "pytorch"])
def test_the_code_in_an_image_is_that_of_this_tree(
    kubectl: Kubectl, namespace: str, images: dict[str, str], image: str
) -> None:
    """What runs in pods understands the same schema as this tree, which is what the image's label promises."""
    from llenergymeasure.core.introspection import schema_digest

    program = "from llenergymeasure.core.introspection import schema_digest; print(schema_digest())"
    kubectl.apply(pods.job("digest", pods.spec(images[image], "python3", "-c", program)), namespace=namespace)
    assert finished_logs(kubectl, namespace, "digest").strip() == schema_digest()
