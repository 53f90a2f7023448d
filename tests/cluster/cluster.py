"""Starts and stops a real Kubernetes on this machine, without Docker, for tests and for trying llem out.

python tests/cluster/cluster.py up                   a node: pods, images, Services, DNS, an S3 store (root, Linux)
python tests/cluster/cluster.py up --control-plane   an API server with its controllers, in seconds
python tests/cluster/cluster.py down [--name NAME]   end it and take back every change to the machine
"""

import argparse
import dataclasses
import json
import shlex
import shutil
import sys
from pathlib import Path

import binaries
import containers
import control_plane
import images
import network
import node
import object_store
import packages
import processes
from certificates import Authority
from control_plane import Cluster
from places import CLUSTERS, IMAGES, ClusterError, locked, say

_NODE_NAME = "node"  # one machine has room for one: kubelets share folders, bridge and rules
_CONTROL_PLANE_NAME = "control-plane"


@dataclasses.dataclass(frozen=True)
class Place:
    """One cluster by name: its state folder, whether it has a node, and the lock of who starts or stops it."""

    name: str
    with_node: bool

    @property
    def state(self) -> Path:
        """The folder of all that this cluster writes; gone after `down`."""
        return CLUSTERS / self.name

    @property
    def lock(self) -> Path:
        """Held while the cluster starts or stops."""
        return CLUSTERS / f".{self.name}.lock"

    @property
    def programs(self) -> frozenset[str]:
        """What must run for the cluster to be well."""
        return (node.PROGRAMS | {"versitygw"}) if self.with_node else (control_plane.PROGRAMS | {"versitygw"})


def up(place: Place, *, gpus: int) -> Path:
    """Bring the cluster up, or find it up; give the administrator's kubeconfig."""
    packages.install(node=place.with_node)
    binaries.build(binaries.NODE if place.with_node else (*binaries.CONTROL_PLANE, "versitygw"))
    with locked(place.lock):
        running = _open(place)
        if running is not None and _is_well(place, running):
            if place.with_node:
                node.announce_gpus(running, gpus)
            say(f"{place.name}: already up")
            return running.kubeconfig
        _remove(place)
        _refuse_second_node(place)
        return _start(place, gpus=gpus).kubeconfig


def down(place: Place) -> None:
    """Stop the cluster; nothing of it stays but the caches."""
    with locked(place.lock):
        _remove(place)
    if place.with_node:
        images.let_go()
    say(f"{place.name}: down")


def status(place: Place) -> dict[str, object]:
    """What a test or a person needs to use the cluster."""
    cluster = _open(place)
    store = object_store.read(place.state)
    return {
        "name": place.name,
        "healthy": cluster is not None and _is_well(place, cluster),
        "kubeconfig": str(cluster.kubeconfig) if cluster else None,
        "programs": sorted(processes.names(place.state)),
        "object_store": dataclasses.asdict(store) if store else None,
        "images": {name: image.reference for name, image in images.BY_NAME.items()},
        "kubectl": str(binaries.path("kubectl")),
        "state": str(place.state),
        "traces": _traces(place),
    }


def _start(place: Place, *, gpus: int) -> Cluster:
    place.state.mkdir(parents=True)
    say(f"{place.name}: starting the control plane ...")
    if not place.with_node:
        cluster = control_plane.start(place.state, address="127.0.0.1")
    else:
        network.create(place.state)
        containers.start(place.state)
        images.load(place.state, (images.SHELL,))
        cluster = control_plane.start(place.state, address=network.ADDRESS)
        say(f"{place.name}: starting the node ...")
        node.start(cluster, gpus=gpus)
    object_store.start(cluster)
    (place.state / "port").write_text(str(cluster.api_port), encoding="ascii")  # last: the start is complete
    say(f"{place.name}: up")
    return cluster


def _open(place: Place) -> Cluster | None:
    """The cluster whose start was once complete, well or not."""
    port = place.state / "port"
    if not port.exists():
        return None
    address = network.ADDRESS if place.with_node else "127.0.0.1"
    number = int(port.read_text(encoding="ascii"))
    return Cluster(place.state, address, number, Authority(place.state / "pki", f"https://{address}:{number}"))


def _is_well(place: Place, cluster: Cluster) -> bool:
    if not place.programs <= processes.names(place.state) or not control_plane.is_ready(cluster.kubeconfig):
        return False
    return not place.with_node or node.is_ready(cluster)


def _remove(place: Place) -> None:
    if place.with_node and place.state.exists():
        node.remove(place.state)
    processes.kill_all(place.state)
    if containers.mounts(place.state):
        raise ClusterError(f"still mounted, so not deleted: {containers.mounts(place.state)}")
    shutil.rmtree(place.state, ignore_errors=True)


def _refuse_second_node(place: Place) -> None:
    if place.with_node and (network.bridge_exists() or network.rules() or containers.cgroup_exists()):
        raise ClusterError("another Kubernetes node runs on this machine, or left its bridge or iptables rules behind")


def _traces(place: Place) -> dict[str, object]:
    """What of this cluster is on the machine outside its state folder: all empty after `down`."""
    return {
        "processes": processes.running(place.state),
        "mounts": containers.mounts(place.state) + (containers.mounts(IMAGES) if place.with_node else []),
        **({"bridge": network.bridge_exists(), "rules": len(network.rules())} if place.with_node else {}),
        **({"cgroup": containers.cgroup_exists()} if place.with_node else {}),
    }


def main(arguments: list[str]) -> int:
    """Run one verb; problems that a person can act on are one message on standard error."""
    options = _parser().parse_args(arguments)
    try:
        place = _place(options)
        _run(options, place)
    except ClusterError as problem:
        print(f"cluster: {problem}", file=sys.stderr)
        return 1
    return 0


def _place(options: argparse.Namespace) -> Place:
    name = options.name or (_CONTROL_PLANE_NAME if options.control_plane else _NODE_NAME)
    if options.control_plane and name == _NODE_NAME:
        raise ClusterError(f"{_NODE_NAME} is the name of the cluster with a node: choose another")
    return Place(name, with_node=name == _NODE_NAME)  # a machine has room for one node


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("up", "down", "status", "build", "images", "load", "which"))
    parser.add_argument(
        "names", nargs="*", help="programs for build and which; operator, pytorch, shell for images and load"
    )
    parser.add_argument("--control-plane", action="store_true", help="without a node: API server and controllers only")
    parser.add_argument("--name", help="of a control plane: several can live side by side (default: control-plane)")
    parser.add_argument("--gpus", type=int, default=1, help="how many GPUs the node claims (default: 1)")
    return parser


def _run(options: argparse.Namespace, place: Place) -> None:
    names = tuple(options.names)
    if options.verb == "up":
        kubeconfig = up(place, gpus=options.gpus)
        say(f"export KUBECONFIG={shlex.quote(str(kubeconfig))}")
    elif options.verb == "down":
        down(place)
    elif options.verb == "status":
        say(json.dumps(status(place), indent=1))
    elif options.verb == "build":
        binaries.build(names or binaries.ALL)
    elif options.verb == "which":
        for name in names:
            say(str(binaries.path(name)))
    else:
        _run_images(options.verb, place, tuple(images.BY_NAME[name] for name in names or images.BY_NAME))


def _run_images(verb: str, place: Place, wanted: tuple[images.Image, ...]) -> None:
    packages.install(node=True)
    if verb == "load":
        images.load(place.state, wanted)
        return
    for image in wanted:
        images.build(image)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
