"""`make demo-cluster`: a real cluster on this machine, the chart, two studies, and what a user sees of them.

Every command that a user would type is printed before it runs. The same commands work on a cluster of one's own; only
the values file differs, since the images are built here instead of pulled.
"""

import json
import os
import secrets
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CLUSTER = ROOT / "tests" / "cluster" / "cluster.py"
NAMESPACE = "llem"
STUDIES = ("smollm2", "simulated")
EXAMPLE = "examples/cluster-quickstart.yaml"


def main() -> int:
    """Run the demonstration; gives 0 when every run is measured and every digest matches."""
    silent(sys.executable, str(CLUSTER), "up")
    silent(sys.executable, str(CLUSTER), "load", "operator", "pytorch", "store")
    use_cluster()
    prepare_namespace()
    values = "tools/demo-values.yaml"
    owner = ("--take-ownership", "--force-conflicts")  # tests may have applied the definitions with kubectl
    show(
        "helm", "upgrade", "--install", "llem", "helm/llenergymeasure", "-n", NAMESPACE, "-f", values, *owner, "--wait"
    )
    remove_earlier_studies()
    show("kubectl", "apply", "-n", NAMESPACE, "-f", EXAMPLE)
    codes = [show("llem", "status", "-n", NAMESPACE, name, "-w", check=False) for name in STUDIES]
    show("kubectl", "get", "est,eexp", "-n", NAMESPACE)
    folder = Path(tempfile.mkdtemp(prefix="llem-demo-"))
    for name in STUDIES:
        show("llem", "results", "-n", NAMESPACE, name, "-o", str(folder / name))
    problems = [p for name in STUDIES for p in mismatches(name, folder / name)]
    print(*problems or [f"every digest in the status matches its file; a copy of all results is in {folder}"], sep="\n")
    print("\nThe cluster goes on running: `make cluster` says how to reach it, `make cluster-down` ends it.")
    return 1 if problems or any(codes) else 0


def use_cluster() -> None:
    """Put the cluster's kubectl and helm, and llem itself, where plain names find them."""
    status = json.loads(output(sys.executable, str(CLUSTER), "status"))
    helm = Path(output(sys.executable, str(CLUSTER), "which", "helm").strip())
    if not helm.exists():
        silent(sys.executable, str(CLUSTER), "build", "helm")
    folders = [str(Path(status["kubectl"]).parent), str(helm.parent), str(Path(sys.executable).parent)]
    os.environ |= {"KUBECONFIG": status["kubeconfig"], "PATH": os.pathsep.join([*folders, os.environ["PATH"]])}
    print(f"$ export KUBECONFIG={shlex.quote(status['kubeconfig'])}")


def prepare_namespace() -> None:
    """A namespace that takes only restricted pods, with the store's credentials."""
    found = subprocess.run(["kubectl", "get", "namespace", NAMESPACE], capture_output=True, check=False, cwd=ROOT)
    if found.returncode == 0:
        return
    show("kubectl", "create", "namespace", NAMESPACE)
    show("kubectl", "label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")
    keys = {"AWS_ACCESS_KEY_ID": "llem", "AWS_SECRET_ACCESS_KEY": secrets.token_hex(20)}
    literals = [f"--from-literal={k}={v}" for k, v in keys.items()]
    hidden = [f"--from-literal={k}=…" for k in keys]
    print("$", shlex.join(["kubectl", "create", "secret", "generic", "llem-store", "-n", NAMESPACE, *hidden]))
    silent("kubectl", "create", "secret", "generic", "llem-store", "-n", NAMESPACE, *literals)


def remove_earlier_studies() -> None:
    """A second demonstration starts anew."""
    for name in STUDIES:
        silent("kubectl", "delete", "energystudy", name, "-n", NAMESPACE, "--ignore-not-found", "--cascade=foreground")


def mismatches(study: str, folder: Path) -> list[str]:
    """Compare the digests in the statuses with the files that came out of the store."""
    import hashlib

    listed = json.loads(
        output("kubectl", "get", "eexp", "-n", NAMESPACE, "-l", f"llem.dev/study={study}", "-o", "json")
    )
    found = {hashlib.sha256(f.read_bytes()).hexdigest() for f in folder.rglob("result.json")}
    problems = []
    for item in listed["items"]:
        name, result = item["metadata"]["name"], item["status"].get("result")
        if result is None:
            problems.append(f"{name}: no result")
        elif result["sha256"] not in found:
            problems.append(f"{name}: no file below {folder} has the digest {result['sha256']}")
    return problems or ([] if listed["items"] else [f"{study}: no experiments"])


def show(*command: str, check: bool = True) -> int:
    """Print a command as a user would type it, run it, and let it speak for itself."""
    print(f"\n$ {shlex.join(command)}", flush=True)
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    if code and check:
        raise SystemExit(f"demo: {command[0]} ended with exit code {code}")
    return code


def silent(*command: str) -> None:
    """Run a command of the set-up; its own lines say what it does."""
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    if code:
        raise SystemExit(f"demo: {shlex.join(command)} ended with exit code {code}")


def output(*command: str) -> str:
    """What a command prints."""
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    sys.exit(main())
