"""Runs kubectl, which knows the user's contexts, credentials and plug-ins, and says in a sentence what it refused."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from llenergymeasure.core.errors import ClusterError, ClusterUnreachableError

PATIENCE = "--request-timeout=30s"
"""For everything but streams: the API server answers a request within this, or the user learns that it does not."""

INSTALL = "helm install llem helm/llenergymeasure (docs/how-to.md, On a cluster)"


@dataclass(frozen=True)
class Said:
    """What kubectl printed: its answer, and warnings of the API server."""

    out: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Kubectl:
    """The program and the user's choice of cluster; every call is a list of words, never a shell's line."""

    program: str
    namespace: str | None = None
    context: str | None = None
    kubeconfig: str | None = None

    def command(self, *words: str) -> list[str]:
        """The whole command line."""
        chosen = {"namespace": self.namespace, "context": self.context, "kubeconfig": self.kubeconfig}
        return [self.program, *(f"--{k}={v}" for k, v in chosen.items() if v is not None), *words]

    def run(self, *words: str, stdin: str = "") -> Said:
        """Run to the end, no request longer than PATIENCE; raises ClusterError."""
        return self.run_long(PATIENCE, *words, stdin=stdin)

    def run_long(self, *words: str, stdin: str = "") -> Said:
        """Run to the end, however long a request may take; raises ClusterError."""
        command = self.command(*words)
        done = self._start(subprocess.run, command, input=stdin, capture_output=True, text=True, check=False)
        if done.returncode:
            raise error_of(done.stderr, words)
        return Said(done.stdout, tuple(line for line in done.stderr.splitlines() if line.startswith("Warning:")))

    def json(self, *words: str) -> dict[str, Any]:
        """Run a `get` and parse its JSON; {} where `--ignore-not-found` found nothing."""
        out = self.run(*words, "--output=json").out
        found: dict[str, Any] = json.loads(out) if out.strip() else {}
        return found

    def items(self, *words: str) -> list[dict[str, Any]]:
        """Run a `get` of several objects."""
        found = self.json(*words)
        return list(found.get("items", [found] if found else []))

    def stream(self, *words: str) -> int:
        """Run with this process's own output, for logs; gives kubectl's exit code."""
        done = self._start(subprocess.run, self.command(*words), stdin=subprocess.DEVNULL, check=False)
        return int(done.returncode)

    def to_file(self, *words: str, file: Any) -> None:
        """Run with its output going into an open binary file; raises ClusterError."""
        how = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": subprocess.PIPE, "check": False}
        done = self._start(subprocess.run, self.command(*words), **how)
        if done.returncode:
            raise error_of(done.stderr.decode(errors="replace"), words)

    def _start(self, run: Callable[..., Any], command: list[str], **how: Any) -> Any:
        try:
            return run(command, **how)
        except OSError as err:
            raise ClusterError(f"{self.program}: kubectl cannot be started: {err.strerror}") from None

    def chosen_namespace(self) -> str:
        """The namespace that a call without `-n` goes to."""
        if self.namespace:
            return self.namespace
        return self.run("config", "view", "--minify", "--output=jsonpath={..namespace}").out.strip() or "default"


def find_kubectl(
    environ: Mapping[str, str] | None = None,
    *,
    namespace: str | None = None,
    context: str | None = None,
    kubeconfig: str | None = None,
) -> Kubectl:
    """The kubectl that KUBECTL names, or the one on PATH; raises ClusterError with what to do."""
    environ = os.environ if environ is None else environ
    named = environ.get("KUBECTL")
    program = shutil.which(named or "kubectl", path=environ.get("PATH"))
    if program is None and named:
        raise ClusterError(f"KUBECTL: {named} is not a program; set it to the path of kubectl, or unset it")
    if program is None:
        raise ClusterError(
            "kubectl is not on PATH, and the verbs for a cluster go through it; install it "
            "(https://kubernetes.io/docs/tasks/tools/) or set KUBECTL to its path"
        )
    return Kubectl(program, namespace, context, kubeconfig)


_NO_CRD = re.compile(r"doesn't have a resource type \"energy|no matches for kind \"Energy|could not find the requested")
_AWAY = re.compile(
    r"connection refused|was refused|i/o timeout|no route to host|TLS handshake timeout|Client\.Timeout|no such host|"
    r"network is unreachable|ServiceUnavailable|etcdserver|context deadline exceeded|unexpected EOF|connection reset|"
    r"apiserver not ready|Timeout: ",
)


def error_of(stderr: str, words: tuple[str, ...] = ()) -> ClusterError:
    """What kubectl's words on stderr mean, with what to do where that is known."""
    lines = [
        line.strip() for line in stderr.splitlines() if line.strip() and not re.match(r"[EWI]\d{4} |Warning:", line)
    ]
    text = " ".join(lines) or stderr.strip()
    plain = re.sub(r"^(error: |Error from server( \(\w+\))?: |Unable to connect to the server: )", "", text)
    plain = re.sub(
        r' error when \w+ing "STDIN": | when \w+ing "STDIN": |error when \w+ing "STDIN": ', " ", plain
    ).strip()
    if _NO_CRD.search(text):
        return ClusterError(
            f"this cluster does not know EnergyStudy and EnergyExperiment: llem is not installed in it; {INSTALL}"
        )
    if "(Forbidden)" in text or "is forbidden" in text or "(Unauthorized)" in text or "must be logged in" in text:
        return ClusterError(
            f"not allowed: {plain}; ask for the cluster's role view (to look) or edit (to change) in this namespace"
        )
    if _AWAY.search(text):
        return ClusterUnreachableError(f"the cluster does not answer: {plain}; see kubectl config current-context")
    verb = words[0] if words else "kubectl"
    return ClusterError(plain or f"kubectl {verb} failed without a word")
