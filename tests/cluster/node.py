"""The node: containerd, kubelet, kube-proxy and DNS as ordinary processes, and GPUs that are not there."""

import contextlib
import json
import time
from pathlib import Path

import containers
import control_plane
import network
import processes
from control_plane import Cluster

NAME = "llem-node"
PROGRAMS = control_plane.PROGRAMS | {"containerd", "kubelet", "kube-proxy", "coredns"}
DNS_ADDRESS = "10.96.0.10"
GPU = "nvidia.com/gpu"
# What GPU Feature Discovery writes on a node with one H100 (its documentation, "Generated labels").
GPU_LABELS = {
    "nvidia.com/gpu.present": "true",
    "nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3",
    "nvidia.com/gpu.family": "hopper",
    "nvidia.com/gpu.memory": "81559",
    "nvidia.com/gpu.compute.major": "9",
    "nvidia.com/gpu.compute.minor": "0",
    "nvidia.com/gpu.replicas": "1",
    "nvidia.com/gpu.sharing-strategy": "none",
    "nvidia.com/mig.capable": "true",
    "nvidia.com/mig.strategy": "none",
}
_KUBELET_DEFAULTS = Path("/var/lib/kubelet")  # device-plugins there, whatever --root-dir says
_LOG_LINKS = Path("/var/log/containers")  # and links to logs there, whatever podLogsDir says


def start(cluster: Cluster, *, gpus: int) -> None:
    """Start the node beside a running control plane and wait until it takes pods.

    Args:
        cluster: The control plane, on the bridge's address.
        gpus: How many GPUs the node says it has.

    """
    containers.make_cgroup()
    _start_kubelet(cluster, gpus)
    _start_proxy(cluster)
    _start_dns(cluster)
    cluster.wait_for("node Ready", lambda: is_ready(cluster), program="kubelet")
    announce_gpus(cluster, gpus)


def is_ready(cluster: Cluster) -> bool:
    """True if the node exists and its Ready condition holds."""
    nodes = json.loads(cluster.kubectl("get", "nodes", "-o", "json"))["items"]
    conditions = [c for n in nodes if n["metadata"]["name"] == NAME for c in n["status"].get("conditions", [])]
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def announce_gpus(cluster: Cluster, gpus: int) -> None:
    """Write the GPUs into the node's status; the kubelet keeps resources that it does not know itself."""
    amount = {GPU: str(gpus)}
    patch = json.dumps({"status": {"capacity": amount, "allocatable": amount}})
    deadline = time.monotonic() + 20
    while _announced(cluster) != str(gpus) and time.monotonic() < deadline:
        cluster.kubectl("patch", "node", NAME, "--subresource=status", "--type=merge", "-p", patch)
        time.sleep(0.2)


def remove(state: Path) -> None:
    """End every process of the node, its pods included, and take back all it changed on this machine."""
    processes.kill_all(state, but=frozenset({"containerd", "containerd-shim"}))
    containers.kill_cgroup()
    processes.kill_all(state)
    containers.kill_cgroup()
    containers.unmount_all(state)
    network.remove(state)
    _remove_kubelet_traces(state)


def _announced(cluster: Cluster) -> str | None:
    status = json.loads(cluster.kubectl("get", "node", NAME, "-o", "json"))["status"]
    found: str | None = status["allocatable"].get(GPU)
    return found


def _start_kubelet(cluster: Cluster, gpus: int) -> None:
    pki, state = cluster.pki, cluster.state
    pki.server_certificate("kubelet", f"/CN={NAME}", [f"DNS:{NAME}", f"IP:{network.ADDRESS}"])
    identity = pki.kubeconfig("node", f"system:node:{NAME}", "system:nodes")
    (state / "resolv.conf").write_text(f"nameserver {DNS_ADDRESS}\n", encoding="ascii")
    config = _write_config(cluster, "KubeletConfiguration", "kubelet.config.k8s.io/v1beta1", _kubelet_settings(cluster))
    labels = GPU_LABELS | {"nvidia.com/gpu.count": str(gpus)} if gpus else {}
    cluster.start(
        "kubelet", f"--config={config}", f"--kubeconfig={identity}", f"--root-dir={state / 'kubelet'}",
        f"--hostname-override={NAME}", f"--node-ip={network.ADDRESS}",
        f"--node-labels={','.join(f'{key}={value}' for key, value in labels.items())}",
    )  # fmt: skip


def _kubelet_settings(cluster: Cluster) -> dict[str, object]:
    pki, state = cluster.pki, cluster.state
    return {
        "address": network.ADDRESS,
        "port": control_plane.free_port(network.ADDRESS),
        "healthzPort": 0,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(pki.crt("ca"))},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(pki.crt("kubelet")),
        "tlsPrivateKeyFile": str(pki.key("kubelet")),
        "containerRuntimeEndpoint": f"unix://{containers.socket(state)}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{containers.CGROUP}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "enforceNodeAllocatable": [],
        "oomScoreAdj": 0,  # lowering it needs CAP_SYS_RESOURCE
        "clusterDNS": [DNS_ADDRESS],
        "clusterDomain": "cluster.local",
        "resolvConf": str(state / "resolv.conf"),
        "podLogsDir": str(state / "pods"),
        "maxPods": 110,
        "serializeImagePulls": False,
        "nodeStatusUpdateFrequency": "5s",
        # Images are imported by hand and the disk is the developer's: the kubelet must never tidy up.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "50Mi", "nodefs.available": "0%", "imagefs.available": "0%"},
    }


def _start_proxy(cluster: Cluster) -> None:
    identity = cluster.pki.kubeconfig("proxy", "system:kube-proxy")
    settings = {
        "clientConnection": {"kubeconfig": str(identity)},
        "mode": "iptables",
        "clusterCIDR": network.POD_RANGE,
        "hostnameOverride": NAME,
        "bindAddress": network.ADDRESS,
        "healthzBindAddress": f"127.0.0.1:{control_plane.free_port()}",
        "metricsBindAddress": f"127.0.0.1:{control_plane.free_port()}",
        "oomScoreAdj": 0,
        "conntrack": {"maxPerCore": 0, "min": 0},  # leave the machine's limits alone
        "iptables": {"minSyncPeriod": "0s"},
    }
    config = _write_config(cluster, "KubeProxyConfiguration", "kubeproxy.config.k8s.io/v1alpha1", settings)
    cluster.start("kube-proxy", f"--config={config}")


def _start_dns(cluster: Cluster) -> None:
    """Start CoreDNS on the bridge; pods find it, as everywhere, behind the Service kube-dns."""
    port = control_plane.free_port(network.ADDRESS)
    identity = cluster.pki.kubeconfig("dns", "llem-dns")
    corefile = cluster.state / "Corefile"
    corefile.write_text(
        f".:{port} {{\n  bind {network.ADDRESS}\n  errors\n"
        f"  kubernetes cluster.local in-addr.arpa {{\n    kubeconfig {identity}\n    ttl 5\n  }}\n}}\n",
        encoding="utf-8",
    )
    cluster.kubectl(
        "apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": _dns_objects(port)})
    )
    cluster.start("coredns", "-conf", corefile)


def _dns_objects(port: int) -> list[dict[str, object]]:
    name = {"name": "llem-dns"}
    service = {"name": "kube-dns", "namespace": "kube-system"}
    ports = [{"name": f"dns-{p.lower()}", "protocol": p, "port": 53, "targetPort": port} for p in ("UDP", "TCP")]
    slice_ports = [{"name": p["name"], "protocol": p["protocol"], "port": port} for p in ports]
    api = "rbac.authorization.k8s.io"
    rules = [
        {"apiGroups": [""], "resources": ["services", "pods", "namespaces", "endpoints"], "verbs": ["list", "watch"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
    ]
    return [
        {"apiVersion": f"{api}/v1", "kind": "ClusterRole", "metadata": name, "rules": rules},
        {
            "apiVersion": f"{api}/v1", "kind": "ClusterRoleBinding", "metadata": name,
            "roleRef": {"apiGroup": api, "kind": "ClusterRole", **name},
            "subjects": [{"kind": "User", "apiGroup": api, **name}],
        },
        {"apiVersion": "v1", "kind": "Service", "metadata": service, "spec": {"clusterIP": DNS_ADDRESS, "ports": ports}},
        {
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {**service, "labels": {"kubernetes.io/service-name": "kube-dns"}},
            "endpoints": [{"addresses": [network.ADDRESS], "conditions": {"ready": True}}], "ports": slice_ports,
        },
    ]  # fmt: skip


def _write_config(cluster: Cluster, kind: str, version: str, settings: dict[str, object]) -> Path:
    path = cluster.state / f"{kind}.json"
    path.write_text(json.dumps({"apiVersion": version, "kind": kind, **settings}, indent=1), encoding="utf-8")
    return path


def _remove_kubelet_traces(state: Path) -> None:
    """Remove what the kubelet writes outside its root, as far as this node wrote it."""
    if _LOG_LINKS.exists():
        for link in _LOG_LINKS.iterdir():
            if link.is_symlink() and str(link.readlink()).startswith(f"{state}/"):
                link.unlink()
    plugins, resources = (_KUBELET_DEFAULTS / name for name in ("device-plugins", "pod-resources"))
    for file in ("kubelet.sock", "kubelet_internal_checkpoint", "DEPRECATION"):
        (plugins / file).unlink(missing_ok=True)
        (resources / file).unlink(missing_ok=True)
    for folder in (plugins, resources, _KUBELET_DEFAULTS, _LOG_LINKS):
        with contextlib.suppress(OSError):  # somebody else's files are in it
            folder.rmdir()
