"""The node's network on this machine: a bridge for pods, forwarding, and taking back every trace of them."""

import contextlib
import json
import socket
import subprocess
from pathlib import Path

from places import ClusterError

BRIDGE = "llem0"
ADDRESS = "10.88.0.1"
POD_RANGE = "10.88.0.0/16"
_SYSCTLS = {"net/ipv4/ip_forward": "1", "net/bridge/bridge-nf-call-iptables": "1"}
_CHAIN = "KUBE-"  # every rule of kubelet and kube-proxy is in, or jumps to, a chain with such a name


def create(state: Path) -> None:
    """Create the bridge and turn forwarding on; what was before is noted in the state folder."""
    _note_sysctls(state / "sysctls.json")
    for name, value in _SYSCTLS.items():
        with contextlib.suppress(FileNotFoundError):  # bridge-nf: without the module pods' traffic is not filtered
            Path("/proc/sys", name).write_text(value, encoding="ascii")
    _run("ip", "link", "add", BRIDGE, "type", "bridge")
    _run("ip", "address", "add", f"{ADDRESS}/16", "dev", BRIDGE)
    _run("ip", "link", "set", BRIDGE, "up")


def write_cni_config(folder: Path, *, ipam: Path) -> None:
    """Write the configuration by which containerd connects a pod to the bridge."""
    folder.mkdir(parents=True, exist_ok=True)
    bridge = {
        "type": "bridge", "bridge": BRIDGE, "isGateway": True, "ipMasq": False, "hairpinMode": True,
        "ipam": {
            "type": "host-local", "dataDir": str(ipam), "routes": [{"dst": "0.0.0.0/0"}],
            "ranges": [[{"subnet": POD_RANGE, "gateway": ADDRESS, "rangeStart": "10.88.0.10"}]],
        },
    }  # fmt: skip
    plugins = [bridge, {"type": "portmap", "capabilities": {"portMappings": True}}]
    config = {"cniVersion": "0.4.0", "name": "llem", "plugins": plugins}
    (folder / "10-llem.conflist").write_text(json.dumps(config, indent=1), encoding="utf-8")


def remove(state: Path) -> None:
    """Remove bridge and rules and set the kernel's switches back; does nothing where nothing is."""
    if bridge_exists():
        _run("ip", "link", "delete", BRIDGE)
    for family in ("iptables", "ip6tables"):
        _remove_rules(family)
    before = state / "sysctls.json"
    if before.exists():
        for name, value in json.loads(before.read_text(encoding="utf-8")).items():
            Path("/proc/sys", name).write_text(value, encoding="ascii")


def bridge_exists() -> bool:
    """True if the node's bridge is there."""
    return any(name == BRIDGE for _, name in socket.if_nameindex())


def rules() -> list[str]:
    """The lines of iptables-save, of both families, that belong to a Kubernetes node."""
    return [line for family in ("iptables", "ip6tables") for line in _saved(family) if _CHAIN in line]


def _remove_rules(family: str) -> None:
    lines = _saved(family)
    kept = [line for line in lines if _CHAIN not in line]
    if kept != lines:
        subprocess.run([f"{family}-restore"], input="\n".join(kept) + "\n", text=True, capture_output=True, check=True)


def _saved(family: str) -> list[str]:
    try:
        done = subprocess.run([f"{family}-save"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return []
    return done.stdout.splitlines()


def _note_sysctls(file: Path) -> None:
    if not file.exists():
        paths = {name: Path("/proc/sys", name) for name in _SYSCTLS}
        before = {name: path.read_text(encoding="ascii").strip() for name, path in paths.items() if path.exists()}
        file.write_text(json.dumps(before), encoding="utf-8")


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ClusterError(f"{' '.join(command)}: {done.stderr.strip()}")
