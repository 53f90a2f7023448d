"""A cluster comes up whatever a killed predecessor left, and goes without a trace."""

import os
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import pods
from cluster.commands import REAL_ENVIRONMENT, Kubectl, cluster_command, run_cluster, status

GONE: dict[str, object] = {"processes": {}, "mounts": []}
GONE_NODE = GONE | {"bridge": False, "rules": 0, "cgroup": False}


@pytest.fixture
def own_name() -> Iterator[tuple[str, ...]]:
    """Options that name a control plane of this test's own; it is taken down afterwards."""
    name = ("--control-plane", "--name", f"test-{uuid.uuid4().hex[:8]}")
    yield name
    run_cluster("down", *name)


@pytest.fixture
def own_node(node: Path, node_was_up: bool) -> Iterator[None]:
    """The node, to be stopped and started at will; it is up again afterwards."""
    if node_was_up:
        pytest.skip("the node was up before this session: others may be using it")
    yield
    run_cluster("up")


def kill_during_up(options: tuple[str, ...], seconds: float) -> None:
    """Start `up` and kill it with all its helpers after some time; what it has started as daemons lives on."""
    process = subprocess.Popen(
        cluster_command("up", *options), env=REAL_ENVIRONMENT, stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_second_up_is_quick_and_changes_nothing(own_name: tuple[str, ...]) -> None:
    """`up` finds the running cluster: the same processes afterwards, and an answer at once."""
    run_cluster("up", *own_name)
    before = status(*own_name)
    begin = time.monotonic()
    assert "already up" in run_cluster("up", *own_name)
    assert time.monotonic() - begin < 30
    assert status(*own_name) == before


def test_up_replaces_a_cluster_that_has_lost_a_process(own_name: tuple[str, ...]) -> None:
    """A cluster without its API server is no cluster: `up` starts another in its place."""
    run_cluster("up", *own_name)
    processes = status(*own_name)["traces"]["processes"]
    os.kill(next(int(pid) for pid, name in processes.items() if name == "kube-apiserver"), signal.SIGKILL)
    run_cluster("up", *own_name)
    assert status(*own_name)["healthy"]
    assert not processes.keys() & status(*own_name)["traces"]["processes"].keys()


@pytest.mark.parametrize("seconds", [0.5, 2, 4])
def test_up_works_after_an_up_that_was_killed(own_name: tuple[str, ...], seconds: float) -> None:
    """Whatever a killed start has left behind, the next one cleans it and succeeds."""
    kill_during_up(own_name, seconds)
    run_cluster("up", *own_name)
    assert status(*own_name)["healthy"]


def test_down_leaves_nothing(own_name: tuple[str, ...]) -> None:
    """No process and no file of a control plane stay."""
    run_cluster("up", *own_name)
    run_cluster("down", *own_name)
    found = status(*own_name)
    assert found["traces"] == GONE
    assert not Path(found["state"]).exists()


def test_down_after_a_killed_up_leaves_nothing(own_name: tuple[str, ...]) -> None:
    """Processes that a killed start never wrote down are found and ended all the same."""
    kill_during_up(own_name, 1.5)
    run_cluster("down", *own_name)
    assert status(*own_name)["traces"] == GONE


@pytest.mark.usefixtures("own_node")
def test_down_of_a_node_with_running_pods_leaves_nothing(kubectl: Kubectl, images: dict[str, str]) -> None:
    """Pods in full swing end with the node: no process, mount, bridge, rule or cgroup stays."""
    kubectl.apply(pods.pod("sleeper", pods.spec(images["shell"], "sleep", "987654")))
    kubectl("wait", "--for=condition=Ready", "pod/sleeper", "--timeout=60s")
    run_cluster("down")
    found = status()
    assert found["traces"] == GONE_NODE
    assert not Path(found["state"]).exists()
    assert "987654" not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout


@pytest.mark.usefixtures("own_node")
@pytest.mark.parametrize("seconds", [1, 3, 5])
def test_a_node_comes_up_after_an_up_that_was_killed(seconds: float) -> None:
    """A node's start can be killed while it makes its bridge, its rules, its mounts: the next one succeeds."""
    run_cluster("down")
    kill_during_up((), seconds)
    run_cluster("up")
    assert status()["healthy"]


@pytest.mark.usefixtures("own_node")
def test_the_rules_and_switches_of_the_machine_are_as_before() -> None:
    """`down` gives back the kernel's forwarding switch and leaves other people's rules alone."""
    run_cluster("down")
    forwarding = Path("/proc/sys/net/ipv4/ip_forward")
    rule = ["OUTPUT", "-m", "comment", "--comment", "not the cluster's", "-j", "ACCEPT"]
    before = forwarding.read_text(encoding="ascii")
    subprocess.run(["iptables", "-A", *rule], check=True)
    try:
        run_cluster("up")
        run_cluster("down")
        subprocess.run(["iptables", "-C", *rule], check=True)
    finally:
        subprocess.run(["iptables", "-D", *rule], check=False)
    assert forwarding.read_text(encoding="ascii") == before
