"""The control plane: etcd, API server, controller manager and scheduler as ordinary processes, ready in seconds."""

import dataclasses
import json
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import binaries
import processes
from certificates import Authority
from places import ClusterError

SERVICE_RANGE = "10.96.0.0/16"
PROGRAMS = frozenset({"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"})


@dataclasses.dataclass(frozen=True)
class Cluster:
    """A cluster that is starting or running: its state folder, its address and who signs its certificates."""

    state: Path
    address: str
    api_port: int
    pki: Authority

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.pki.folder / "admin.kubeconfig"

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl as administrator and give what it prints."""
        return kubectl(self.kubeconfig, *arguments, stdin=stdin)

    def start(self, name: str, *arguments: str | Path) -> None:
        """Start one of the cached programs as a daemon of this cluster."""
        processes.start(name, [binaries.path(name), *arguments], state=self.state)

    def wait_for(self, what: str, condition: Callable[[], bool], *, program: str, seconds: float = 60) -> None:
        """Wait until a condition holds.

        Raises:
            ClusterError: It does not; the message ends with the program's last lines.

        """
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                log = self.state / "log" / f"{program}.log"
                tail = log.read_text(encoding="utf-8", errors="replace")[-2500:] if log.exists() else "(no log)"
                raise ClusterError(f"{what}: not after {seconds:.0f} s; the end of {log}:\n{tail}")
            time.sleep(0.1)


def kubectl(kubeconfig: Path, *arguments: str, stdin: str | None = None) -> str:
    """Run the cached kubectl.

    Raises:
        ClusterError: It failed; the message is what it wrote to standard error.

    """
    done = subprocess.run(
        [binaries.path("kubectl"), "--kubeconfig", kubeconfig, *arguments],
        input=stdin, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise ClusterError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def free_port(address: str = "127.0.0.1") -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def is_ready(kubeconfig: Path) -> bool:
    """True if the API server says so itself."""
    try:
        return kubectl(kubeconfig, "get", "--raw", "/readyz", "--request-timeout=2s").strip() == "ok"
    except ClusterError:
        return False


def start(state: Path, *, address: str) -> Cluster:
    """Start a control plane on a local address and wait until it answers."""
    port = free_port(address)
    pki = Authority(state / "pki", f"https://{address}:{port}")
    cluster = Cluster(state, address, port, pki)
    _write_certificates(cluster)
    etcd = _start_etcd(cluster)
    _start_api_server(cluster, etcd)
    cluster.wait_for("API server ready", lambda: is_ready(cluster.kubeconfig), program="kube-apiserver")
    _start_controllers(cluster)
    cluster.wait_for("default ServiceAccount", lambda: _has_service_account(cluster), program="kube-controller-manager")
    return cluster


def _write_certificates(cluster: Cluster) -> None:
    pki = cluster.pki
    names = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "localhost",
    ]
    addresses = ["127.0.0.1", "10.96.0.1", cluster.address]
    alternatives = [f"DNS:{name}" for name in names] + [f"IP:{address}" for address in dict.fromkeys(addresses)]
    pki.create()
    pki.service_account_keys()
    pki.server_certificate("apiserver", "/CN=kube-apiserver", alternatives)
    pki.client_certificate("apiserver-kubelet", "kube-apiserver-kubelet-client", "system:masters")
    pki.kubeconfig("admin", "admin", "system:masters")
    pki.kubeconfig("controller-manager", "system:kube-controller-manager")
    pki.kubeconfig("scheduler", "system:kube-scheduler")


def _start_etcd(cluster: Cluster) -> str:
    client, peer = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    cluster.start(
        "etcd", "--data-dir", cluster.state / "etcd", "--unsafe-no-fsync", "--log-level=warn",
        "--listen-client-urls", client, "--advertise-client-urls", client,
        "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}",
    )  # fmt: skip
    return client


def _start_api_server(cluster: Cluster, etcd: str) -> None:
    pki = cluster.pki
    # Owner references and real RBAC are what the operator lives by: both admission plug-ins are on.
    cluster.start(
        "kube-apiserver", f"--etcd-servers={etcd}", f"--bind-address={cluster.address}",
        f"--secure-port={cluster.api_port}", f"--advertise-address={cluster.address}",
        f"--endpoint-reconciler-type={'none' if cluster.address.startswith('127.') else 'lease'}",
        f"--service-cluster-ip-range={SERVICE_RANGE}", f"--client-ca-file={pki.crt('ca')}",
        f"--tls-cert-file={pki.crt('apiserver')}", f"--tls-private-key-file={pki.key('apiserver')}",
        f"--service-account-key-file={pki.folder / 'sa.pub'}", f"--service-account-signing-key-file={pki.key('sa')}",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        # For API servers behind this one: there are none, but others complain where the names are missing.
        f"--requestheader-client-ca-file={pki.crt('ca')}", "--requestheader-allowed-names=front-proxy",
        "--authorization-mode=Node,RBAC", "--allow-privileged=true",
        "--enable-admission-plugins=NodeRestriction,OwnerReferencesPermissionEnforcement",
        f"--kubelet-client-certificate={pki.crt('apiserver-kubelet')}",
        f"--kubelet-client-key={pki.key('apiserver-kubelet')}", f"--kubelet-certificate-authority={pki.crt('ca')}",
        "--kubelet-preferred-address-types=InternalIP",  # else `kubectl logs` asks for the node's name
    )  # fmt: skip


def _start_controllers(cluster: Cluster) -> None:
    pki = cluster.pki
    for name in ("controller-manager", "scheduler"):
        config = pki.folder / f"{name}.kubeconfig"
        common = [
            f"--kubeconfig={config}", f"--authentication-kubeconfig={config}", f"--authorization-kubeconfig={config}",
            "--leader-elect=false", "--bind-address=127.0.0.1", f"--secure-port={free_port()}",
        ]  # fmt: skip
        if name == "controller-manager":
            common += [
                f"--service-account-private-key-file={pki.key('sa')}", f"--root-ca-file={pki.crt('ca')}",
                "--use-service-account-credentials",
            ]  # fmt: skip
        cluster.start(f"kube-{name}", *common)


def _has_service_account(cluster: Cluster) -> bool:
    answer = cluster.kubectl("get", "serviceaccounts", "-n", "default", "-o", "json")
    return any(item["metadata"]["name"] == "default" for item in json.loads(answer)["items"])
