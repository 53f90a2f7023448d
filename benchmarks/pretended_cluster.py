"""A real API server with pretended GPU nodes (kwok), and the operator on it as a process with its chart's rights."""

import json
import os
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
CLUSTER = (sys.executable, str(ROOT / "tests" / "cluster" / "cluster.py"))
NAMESPACE = "bench"
CUSTOM = f"/apis/llem.dev/v1alpha1/namespaces/{NAMESPACE}"
JOBS = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"

# The labels of GPU Feature Discovery on a machine with one H100.
GPU_LABELS = {
    "nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3",
    "nvidia.com/gpu.memory": "81559",
    "nvidia.com/gpu.compute.major": "9",
    "nvidia.com/gpu.compute.minor": "0",
    "nvidia.com/gpu.count": "1",
    "nvidia.com/gpu.replicas": "1",
    "nvidia.com/mig.strategy": "single",
}
CAPACITY = {"cpu": "64", "memory": "512Gi", "pods": "110", "nvidia.com/gpu": "1"}

NODE_READY = """
{{ $now := Now }}
conditions:
{{ range NodeConditions }}
- {type: {{ .type | Quote }}, status: {{ .status | Quote }}, reason: {{ .reason | Quote }},
   message: {{ .message | Quote }}, lastHeartbeatTime: {{ $now | Quote }}, lastTransitionTime: {{ $now | Quote }}}
{{ end }}
phase: Running
"""
STARTED = """
{{ $now := Now }}
conditions:
- {type: Initialized, status: "True", lastTransitionTime: {{ $now | Quote }}}
- {type: Ready, status: "True", lastTransitionTime: {{ $now | Quote }}}
- {type: ContainersReady, status: "True", lastTransitionTime: {{ $now | Quote }}}
containerStatuses:
- name: runner
  image: {{ (index .spec.containers 0).image | Quote }}
  imageID: {{ printf "pretended@sha256:%s" (sha256sum (index .spec.containers 0).image) | Quote }}
  ready: true
  restartCount: 0
  state: {running: {startedAt: {{ $now | Quote }}}}
phase: Running
startTime: {{ $now | Quote }}
"""
# What `llem experiment` leaves: a core.termination.TerminationRecord of a stored result.
ENDED = """
{{ $now := Now }}
{{ $start := (index .status.containerStatuses 0).state.running.startedAt }}
{{ $env := dict }}
{{ range (index .spec.containers 0).env }}{{ if .value }}{{ $_ := set $env .name .value }}{{ end }}{{ end }}
{{ $index := atoi (get $env "LLEM_INDEX") }}
{{ $numbers := dict "energyPerOutputTokenMillijoules" (addf 150 (mulf 0.5 (mod $index 100)))
  "energyTotalJoules" 5012.25 "energyAdjustedJoules" 3120.5 "baselineWatts" 71.25 "tokensPerSecond" 1395.5
  "outputTokens" 64000 "requests" 100 "durationSeconds" 1.0 "latencyP50Milliseconds" 812.5
  "memoryPeakMebibytes" 20480 }}
{{ $baseline := dict "gpuUUID" (printf "GPU-%s" .spec.nodeName) "driver" "580.159.04" "kind" "context"
  "powerMilliwatts" 71250 "measuredAt" $start }}
{{ $record := dict "version" 1 "outcome" "stored" "verdict" "valid" "schemaVersion" "3" "sizeBytes" 48211
  "uri" (printf "%s/a%s/result.json" (get $env "LLEM_RUN_URI") (get $env "LLEM_ATTEMPT"))
  "sha256" (sha256sum .metadata.name) "windowStart" $start "windowEnd" $now "numbers" $numbers
  "gpuProduct" "NVIDIA H100 80GB HBM3" "gpuUUIDs" (list (printf "GPU-%s" .spec.nodeName))
  "driver" "580.159.04" "baselines" (list $baseline) "warnings" (list) }}
containerStatuses:
- name: runner
  image: {{ (index .spec.containers 0).image | Quote }}
  imageID: {{ (index .status.containerStatuses 0).imageID | Quote }}
  ready: false
  restartCount: 0
  started: false
  state:
    terminated:
      exitCode: 0
      reason: Completed
      startedAt: {{ $start | Quote }}
      finishedAt: {{ $now | Quote }}
      message: {{ $record | toJson | Quote }}
phase: Succeeded
"""


def stages(run_s: float) -> list[dict[str, Any]]:
    """What kwok does to a pod: it starts after 0.2 s, ends well `run_s` later, goes when it is deleted."""
    alive = {"key": ".metadata.deletionTimestamp", "operator": "DoesNotExist"}
    dying = {"key": ".metadata.deletionTimestamp", "operator": "Exists"}
    pending = {"key": ".status.phase", "operator": "In", "values": ["Pending"]}
    running = {"key": ".status.phase", "operator": "In", "values": ["Running"]}
    ready = '.status.conditions.[] | select( .type == "Ready" ) | .status'
    new = {"key": ready, "operator": "NotIn", "values": ["True"]}
    return [
        _stage("node-ready", [new], 0, {"statusTemplate": NODE_READY}, kind="Node"),
        _stage("pod-starts", [alive, pending], 200, {"statusTemplate": STARTED}),
        _stage("pod-ends", [alive, running], int(run_s * 1000), {"statusTemplate": ENDED}),
        _stage("pod-goes", [dying], 0, {"finalizers": {"empty": True}, "delete": True}),
    ]


def _stage(
    name: str, when: list[dict[str, Any]], delay_ms: int, then: dict[str, Any], *, kind: str = "Pod"
) -> dict[str, Any]:
    return {
        "apiVersion": "kwok.x-k8s.io/v1alpha1",
        "kind": "Stage",
        "metadata": {"name": name},
        "spec": {
            "resourceRef": {"apiGroup": "v1", "kind": kind},
            "selector": {"matchExpressions": when},
            "delay": {"durationMilliseconds": delay_ms},
            "next": then,
        },
    }


def node(number: int) -> dict[str, Any]:
    """A machine with one GPU, as kwok and the scheduler take it."""
    name = f"gpu-{number:03d}"
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {**GPU_LABELS, "kubernetes.io/hostname": name, "type": "kwok"},
            "annotations": {"kwok.x-k8s.io/node": "fake"},
        },
        "status": {"capacity": CAPACITY, "allocatable": CAPACITY},
    }


class ApiServer:
    """The API server as its administrator sees it."""

    def __init__(self, kubeconfig: Path) -> None:
        config = json.loads(kubeconfig.read_text(encoding="utf-8"))
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self.kubeconfig = kubeconfig
        self.url: str = cluster["server"]
        self.authority: str = cluster["certificate-authority"]
        self._tls = ssl.create_default_context(cafile=self.authority)
        self._tls.load_cert_chain(user["client-certificate"], user["client-key"])

    def open(self, method: str, path: str, body: Any = None, *, timeout_s: float = 30) -> Any:
        """One request; the answer is to be read and closed."""
        data = None if body is None else json.dumps(body).encode()
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        request = urllib.request.Request(self.url + path, data, {"Content-Type": kind}, method=method)
        return urllib.request.urlopen(request, timeout=timeout_s, context=self._tls)

    def ask(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """One request and its answer; raises urllib's errors."""
        with self.open(method, path, body) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def find(self, path: str) -> dict[str, Any] | None:
        """One object, or None."""
        try:
            return self.ask("GET", path)
        except urllib.error.HTTPError as err:
            if err.code == 404:
                return None
            raise

    def count(self, path: str) -> int:
        """How many objects a list would have."""
        page = self.ask("GET", f"{path}?limit=1")
        return len(page["items"]) + int(page["metadata"].get("remainingItemCount") or 0)

    def watch(self, path: str) -> Iterator[tuple[float, str, dict[str, Any]]]:
        """Moment, change and object of every change from now on."""
        version = self.ask("GET", f"{path}?limit=1")["metadata"]["resourceVersion"]
        with self.open("GET", f"{path}?watch=1&timeoutSeconds=7200&resourceVersion={version}", timeout_s=7200) as lines:
            for line in lines:
                event = json.loads(line)
                yield time.monotonic(), event["type"], event["object"]


@dataclass
class Operator:
    """`python -m llem_operator` with the environment that the chart gives it."""

    environment: Mapping[str, str]
    log: Path
    profile: Path | None = None
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0

    def start(self) -> None:
        """Start it; nothing is waited for."""
        how = ("-m", "cProfile", "-o", str(self.profile)) if self.profile else ()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *how, "-m", "llem_operator"], env={**os.environ, **self.environment}, stderr=log
            )
        self.started_at = time.monotonic()

    def kill(self) -> None:
        """End it without a word, as a lost node does."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Ask it to end."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(30)

    def is_ready(self) -> bool:
        """What /readyz says."""
        try:
            return self._get("HEALTH_PORT", "/readyz") == "ok"
        except OSError:
            return False

    def metrics(self) -> dict[str, float]:
        """Every sample of /metrics by its name and labels."""
        found = {}
        for line in self._get("METRICS_PORT", "/metrics").splitlines():
            if not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                found[name] = float(value)
        return found

    def requests(self) -> dict[str, int]:
        """Requests to the API server since its start, by method."""
        found: dict[str, int] = {}
        for name, value in self.metrics().items():
            if name.startswith("rest_client_requests_total{"):
                method = name.partition('method="')[2].partition('"')[0]
                found[method] = found.get(method, 0) + int(value)
        return found

    def _get(self, port: str, path: str) -> str:
        address = f"http://127.0.0.1:{self.environment['LLEM_OPERATOR_' + port]}{path}"
        with urllib.request.urlopen(address, timeout=10) as answer:
            return str(answer.read().decode())

    def memory_mib(self) -> tuple[float, float]:
        """Resident memory now and at its highest."""
        assert self.process is not None
        lines = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii").splitlines()
        kib = {k: int(v.split()[0]) for k, _, v in (line.partition(":") for line in lines) if k in ("VmRSS", "VmHWM")}
        return kib["VmRSS"] / 1024, kib["VmHWM"] / 1024

    def cpu_s(self) -> float:
        """Processor time since its start."""
        assert self.process is not None
        words = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


@dataclass
class Place:
    """The cluster of one run of the benchmark; `close` takes everything back."""

    name: str
    api: ApiServer
    folder: Path
    operator: Operator
    _started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def close(self) -> None:
        """Stop operator, kwok and control plane."""
        self.operator.stop()
        for process in self._started:
            process.terminate()
            process.wait(30)
        _run(*CLUSTER, "down", "--control-plane", "--name", self.name)
        shutil.rmtree(self.folder, ignore_errors=True)


def bring_up(name: str, *, nodes: int, run_s: float, profile: Path | None) -> Place:
    """A fresh control plane with pretended nodes, the chart's rights, and an operator that is not yet started."""
    _run(*CLUSTER, "down", "--control-plane", "--name", name)
    _run(*CLUSTER, "up", "--control-plane", "--name", name)
    _run(*CLUSTER, "build", "kwok", "helm")
    status = json.loads(_run(*CLUSTER, "status", "--control-plane", "--name", name))
    api = ApiServer(Path(status["kubeconfig"]))
    kubectl = (status["kubectl"], "--kubeconfig", str(api.kubeconfig))
    folder = Path(tempfile.mkdtemp(prefix="llem-bench-"))
    _run(*kubectl, "apply", "--server-side", "-f", str(ROOT / "crds"))
    _run(*kubectl, "wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
    _run(*kubectl, "create", "namespace", NAMESPACE)
    for number in range(nodes):
        api.ask("POST", "/api/v1/nodes", node(number))
    kwok = _start_kwok(api, folder, run_s)
    _run(*kubectl, "wait", "--for=condition=Ready", "node", "--all", "--timeout=60s")
    chart = _render_chart(folder)
    rights = [o for o in chart if o["kind"] in ("ServiceAccount", "Lease", "Role", "RoleBinding")]
    _run(*kubectl, "apply", "-n", NAMESPACE, "-f", "-", stdin=yaml.safe_dump_all(rights))
    environment = _environment(api, kubectl, chart, folder)
    operator = Operator(environment, folder / "operator.log", profile)
    return Place(name, api, folder, operator, [kwok])


def _start_kwok(api: ApiServer, folder: Path, run_s: float) -> subprocess.Popen[bytes]:
    config = folder / "stages.yaml"
    config.write_text(yaml.safe_dump_all(stages(run_s)), encoding="utf-8")
    program = _run(*CLUSTER, "which", "kwok").strip()
    log = (folder / "kwok.log").open("ab")
    # Leases instead of heartbeats in the status: a node costs one small write in ten seconds.
    lease = "--node-lease-duration-seconds=40"
    command = [program, "--kubeconfig", str(api.kubeconfig), "--config", str(config), "--manage-all-nodes", lease]
    return subprocess.Popen(command, stdout=log, stderr=log)


def _render_chart(folder: Path) -> list[dict[str, Any]]:
    """The chart's objects, with the largest study allowed and a destination that nobody writes to."""
    values = folder / "values.yaml"
    wanted = {"maxRuns": 10_000, "results": {"uri": "s3://bench/llem"}, "helmTest": {"enabled": False}}
    values.write_text(yaml.safe_dump(wanted), encoding="utf-8")
    helm = _run(*CLUSTER, "which", "helm").strip()
    text = _run(
        helm, "template", "llem", str(ROOT / "helm" / "llenergymeasure"), "-n", NAMESPACE, "-f", str(values),
        environment={f"HELM_{kind}_HOME": str(folder / kind) for kind in ("CACHE", "CONFIG", "DATA")},
    )  # fmt: skip
    return [o for o in yaml.safe_load_all(text) if o]


def _environment(api: ApiServer, kubectl: tuple[str, ...], chart: list[dict[str, Any]], folder: Path) -> dict[str, str]:
    """The Deployment's variables; a kubeconfig with a token of its ServiceAccount; ports that are free here."""
    (deployment,) = [o for o in chart if o["kind"] == "Deployment"]
    pod = deployment["spec"]["template"]["spec"]
    token = _run(*kubectl, "create", "token", pod["serviceAccountName"], "-n", NAMESPACE, "--duration=24h").strip()
    kubeconfig = folder / "operator.kubeconfig"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "bench",
        "clusters": [{"name": "bench", "cluster": {"server": api.url, "certificate-authority": api.authority}}],
        "users": [{"name": "bench", "user": {"token": token}}],
        "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench", "namespace": NAMESPACE}}],
    }
    kubeconfig.write_text(json.dumps(config), encoding="utf-8")
    found = {e["name"]: e["value"] for e in pod["containers"][0]["env"] if "value" in e}
    return {
        **found,
        "PYTHONPATH": f"{ROOT / 'operator'}{os.pathsep}{ROOT / 'runner'}",  # this tree, whatever is installed
        "LLEM_OPERATOR_IDENTITY": "operator-0",
        "LLEM_OPERATOR_HEALTH_PORT": "18080",
        "LLEM_OPERATOR_METRICS_PORT": "18081",
        "KUBECONFIG": str(kubeconfig),
    }


def _run(*command: str, stdin: str | None = None, environment: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(
        command, input=stdin, capture_output=True, text=True, check=False, env={**os.environ, **(environment or {})}
    )
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-1000:]}{done.stderr[-3000:]}")
    return done.stdout
