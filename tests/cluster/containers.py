"""containerd for the node: its configuration, its start, its images, and the end of every container."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import network
import processes
from places import CONTAINERD, ClusterError

SANDBOX_IMAGE = "localhost/llem-test-shell:1"  # every pod's pause container
CGROUP = "llem-node"
_CONFIG = """\
version = 2
root = "{root}"
state = "{state}/containerd"
oom_score = 0
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs", "io.containerd.tracing.processor.v1.otlp"]

[grpc]
  address = "{socket}"

[plugins."io.containerd.internal.v1.opt"]
  path = "{state}/opt"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{sandbox}"
  restrict_oom_score_adj = true  # root may lack CAP_SYS_RESOURCE
  netns_mounts_under_state_dir = true

  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{state}/cni"

  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
"""


def socket(state: Path) -> Path:
    """The socket on which containerd answers."""
    return state / "containerd.sock"


def start(state: Path) -> None:
    """Start containerd with no container of an earlier life."""
    config = _CONFIG.format(root=CONTAINERD, state=state, socket=socket(state), sandbox=SANDBOX_IMAGE)
    (state / "containerd.toml").write_text(config, encoding="utf-8")
    network.write_cni_config(state / "cni", ipam=state / "ipam")
    _start(state)
    if forget_containers(state):  # containerd's memory still has them: start it again
        processes.kill_all(state)
        _start(state)


def ctr(state: Path, *arguments: str | Path) -> str:
    """Run containerd's own client in the namespace of Kubernetes.

    Raises:
        ClusterError: It failed; the message is what it wrote.

    """
    command = ["ctr", "--address", str(socket(state)), "--namespace", "k8s.io", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ClusterError(f"{' '.join(command)}: {done.stderr.strip()[-2000:]}")
    return done.stdout


def forget_containers(state: Path) -> list[str]:
    """Delete the records of all containers, whose processes must have ended; images stay."""
    known = ctr(state, "containers", "list", "--quiet").split()
    for name in known:
        with contextlib.suppress(ClusterError):
            ctr(state, "tasks", "delete", "--force", name)
        with contextlib.suppress(ClusterError):
            ctr(state, "containers", "delete", name)
    return known


def make_cgroup() -> None:
    """Make the cgroup, in every hierarchy, under which the kubelet keeps all pods of this node."""
    for hierarchy in _hierarchies():
        folder = hierarchy / CGROUP
        folder.mkdir(exist_ok=True)
        for name in ("cpuset.cpus", "cpuset.mems"):  # version 1 starts them empty, and then nothing may run inside
            file = folder / name
            if file.exists() and not file.read_text(encoding="ascii").strip():
                file.write_text((hierarchy / name).read_text(encoding="ascii"), encoding="ascii")
        control = hierarchy / "cgroup.subtree_control"
        if control.exists():
            _enable_all(hierarchy)
            _enable_all(folder)


def kill_cgroup() -> None:
    """Kill every process of every pod and remove the node's cgroup."""
    for hierarchy in _hierarchies():
        folder = hierarchy / CGROUP
        for _ in range(100):
            if not folder.exists() or _emptied(folder):
                break
            time.sleep(0.05)


def cgroup_exists() -> bool:
    """True if the node's cgroup is there in any hierarchy."""
    return any((hierarchy / CGROUP).exists() for hierarchy in _hierarchies())


def mounts(state: Path) -> list[str]:
    """The mount points under the state folder, the innermost first."""
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    points = [line.split()[4].encode().decode("unicode_escape") for line in lines]
    return [point for point in reversed(points) if point.startswith(f"{state}/")]


def unmount_all(state: Path) -> None:
    """Unmount everything under the state folder."""
    for point in mounts(state):
        subprocess.run(["umount", "--lazy", point], capture_output=True, check=False)


def _start(state: Path) -> None:
    processes.start("containerd", ["containerd", "--config", state / "containerd.toml"], state=state)
    deadline = time.monotonic() + 30
    while True:
        try:
            ctr(state, "version")
        except ClusterError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


def _hierarchies() -> list[Path]:
    """The root of each cgroup hierarchy: one for version 2, one per controller for version 1."""
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    mounted = [line.split() for line in lines]
    return [Path(m[4]) for m in mounted if m[m.index("-") + 1] in ("cgroup", "cgroup2") and m[3] == "/"]


def _enable_all(folder: Path) -> None:
    wanted = (folder / "cgroup.controllers").read_text(encoding="ascii").split()
    with contextlib.suppress(OSError):
        (folder / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in wanted), encoding="ascii")


def _emptied(folder: Path) -> bool:
    """Kill what is in the tree and try to remove it; True once it is gone."""
    for inner, _, _ in os.walk(folder, topdown=False):
        with contextlib.suppress(OSError):
            for pid in Path(inner, "cgroup.procs").read_text(encoding="ascii").split():
                os.kill(int(pid), signal.SIGKILL)
        with contextlib.suppress(OSError):
            Path(inner).rmdir()
    return not folder.exists()
