"""The verbs that look at a cluster: words in, kubectl and pure views between, text out; prints, as `cli` does."""

import json
import shutil
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from llenergymeasure.core.errors import ClusterError, ClusterUnreachableError, ConfigError

if TYPE_CHECKING:
    from llenergymeasure.cluster_results import Results
    from llenergymeasure.kubectl import Kubectl

REFRESH_S = 2.0
STUDIES, EXPERIMENTS = "energystudies.llem.dev", "energyexperiments.llem.dev"

Name = Annotated[str, typer.Argument(help="Study, or an experiment that belongs to none.")]
Namespace = Annotated[str | None, typer.Option("--namespace", "-n", help="Namespace; else the context's.")]
Context = Annotated[str | None, typer.Option("--context", help="Context of the kubeconfig; else the current one.")]
Kubeconfig = Annotated[str | None, typer.Option("--kubeconfig", help="Kubeconfig file, as for kubectl.")]


def register(app: typer.Typer) -> None:
    """Add these verbs to `llem`."""
    verbs = (list_studies, status, why, watch, logs, results, pack)
    for verb in verbs:
        app.command("list" if verb is list_studies else None)(verb)


def connect(namespace: str | None, context: str | None, kubeconfig: str | None) -> "Kubectl":
    """The kubectl to go through; raises ClusterError if there is none."""
    from llenergymeasure.kubectl import find_kubectl

    return find_kubectl(namespace=namespace, context=context, kubeconfig=kubeconfig)


def say(lines: Sequence[str]) -> None:
    """Print lines beside the output proper."""
    for line in lines:
        print(line, file=sys.stderr)


def list_studies(
    namespace: Namespace = None,
    everywhere: Annotated[bool, typer.Option("--all-namespaces", "-A", help="Of all namespaces.")] = False,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """List studies, and experiments that belong to none."""
    print(_tables(connect(namespace, context, kubeconfig), everywhere=everywhere))


def _tables(kubectl: "Kubectl", *, everywhere: bool = False) -> str:
    from llenergymeasure.cluster_view import experiments_table, studies_table

    where = ("--all-namespaces",) if everywhere else ()
    now = datetime.now(UTC)
    studies, alone = kubectl.items("get", STUDIES, *where), kubectl.items("get", EXPERIMENTS, *where, *_alone())
    parts = [studies_table(studies, now, namespaces=everywhere)] if studies else []
    parts += [experiments_table(alone, now, namespaces=everywhere)] if alone else []
    nowhere = "any namespace" if everywhere else f"namespace {kubectl.chosen_namespace()}" if not parts else ""
    return "\n\n".join(parts) or f"no studies in {nowhere}; llem apply FILE makes one"


def _alone() -> tuple[str, ...]:
    from llenergymeasure.core.resources import LABEL_STUDY

    return (f"--selector=!{LABEL_STUDY}",)


def find(kubectl: "Kubectl", name: str, *more: str) -> dict[str, Any]:
    """The study or experiment of a name; raises ClusterError that knows the names there are."""
    from llenergymeasure.core.keys import did_you_mean
    from llenergymeasure.manifests import refuse_name

    refuse_name(name)
    for kind in (STUDIES, EXPERIMENTS):
        found = kubectl.json("get", f"{kind}/{name}", "--ignore-not-found", *more)
        if found:
            return found
    items = [*kubectl.items("get", STUDIES), *kubectl.items("get", EXPERIMENTS, *_alone())]
    names = sorted(str(i["metadata"]["name"]) for i in items)
    known = did_you_mean(name, names) or (f"; there are {', '.join(names[:10])}" if names else "; it has none")
    raise ClusterError(f"no study or experiment {name!r} in namespace {kubectl.chosen_namespace()}{known}")


def children(kubectl: "Kubectl", study: str, *more: str) -> list[dict[str, Any]]:
    """The experiments that carry a study's label, and further labels `more`."""
    from llenergymeasure.core.resources import LABEL_STUDY

    return kubectl.items("get", EXPERIMENTS, f"--selector={','.join([f'{LABEL_STUDY}={study}', *more])}")


def status(
    name: Name,
    wait: Annotated[
        bool, typer.Option("--watch", "-w", help="Refresh until it has finished; exit 0 only if it succeeded.")
    ] = False,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Show one study: state, counts, active runs, failures, best configuration."""
    from llenergymeasure.cluster_status import has_succeeded
    from llenergymeasure.cluster_view import page

    kubectl = connect(namespace, context, kubeconfig)
    found = find(kubectl, name)
    if not wait:
        print(page(found, datetime.now(UTC)))
    elif not has_succeeded(until_finished(kubectl, name)):
        raise typer.Exit(1)


def until_finished(kubectl: "Kubectl", name: str, file: TextIO | None = None) -> dict[str, Any]:
    """Show a study until it has finished; an API server that is away for a while is waited for."""
    from llenergymeasure.cluster_status import is_finished
    from llenergymeasure.cluster_view import page, progress_line

    screen = _Screen(file or sys.stdout)
    while True:
        try:
            found = find(kubectl, name)
            screen.show(page(found, datetime.now(UTC)) if screen.live else progress_line(found))
            if is_finished(found):
                return found
        except ClusterUnreachableError as err:
            screen.show(f"{name}: {err}")
        time.sleep(REFRESH_S)


class _Screen:
    """Redraws in place on a terminal; elsewhere prints what has changed."""

    def __init__(self, file: TextIO) -> None:
        self._file, self.live = file, file.isatty()
        self._last, self._height = "", 0

    def show(self, text: str) -> None:
        """Put a text where the last one was."""
        if not self.live:
            if text != self._last:
                print(text, file=self._file, flush=True)
            self._last = text
            return
        width, height = shutil.get_terminal_size()
        lines = [line[: width - 1] for line in text.splitlines()][: height - 1]
        up = f"\x1b[{self._height}A\r\x1b[J" if self._height else ""
        print(up + "\n".join(lines), file=self._file, flush=True)
        self._height = len(lines)


def why(name: Name, namespace: Namespace = None, context: Context = None, kubeconfig: Kubeconfig = None) -> None:
    """Say in one sentence what a study waits for, or why it failed."""
    from llenergymeasure import cluster_view

    kubectl = connect(namespace, context, kubeconfig)
    found = find(kubectl, name)
    names = [str(a["experiment"]) for a in (found.get("status") or {}).get("active") or ()]
    active = kubectl.items("get", EXPERIMENTS, *names, "--ignore-not-found") if names else []
    print(cluster_view.why(found, active, now=datetime.now(UTC)))


def watch(namespace: Namespace = None, context: Context = None, kubeconfig: Kubeconfig = None) -> None:
    """Show all studies of a namespace, live, until Ctrl-C."""
    kubectl, screen = connect(namespace, context, kubeconfig), _Screen(sys.stdout)
    show = _tables if screen.live else _lines
    screen.show(show(kubectl))
    while True:
        time.sleep(REFRESH_S)
        try:
            screen.show(show(kubectl))
        except ClusterUnreachableError as err:
            screen.show(str(err))


def _lines(kubectl: "Kubectl") -> str:
    """A line per study, without the ages that change all the time, for a pipe or a log."""
    from llenergymeasure.cluster_view import progress_line

    return "\n".join(progress_line(s) for s in kubectl.items("get", STUDIES)) or "no studies yet"


def logs(
    name: Name,
    index: Annotated[int | None, typer.Argument(help="Index of the run; an experiment alone needs none.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as the run goes on.")] = False,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Print the log of a run's last attempt."""
    from llenergymeasure.cluster_status import last_attempt
    from llenergymeasure.cluster_view import why as why_not

    kubectl = connect(namespace, context, kubeconfig)
    run = _run(kubectl, find(kubectl, name), index)
    pod = last_attempt(run).get("podName")
    tail = (run.get("status") or {}).get("logTail")
    if pod and kubectl.run("get", f"pod/{pod}", "--ignore-not-found", "--output=name").out.strip():
        if kubectl.stream("logs", str(pod), "--container=runner", *(["--follow"] if follow else [])):
            raise typer.Exit(1)
    elif tail:
        print("note: the pod is gone; this is the end of its log, as the study's record keeps it", file=sys.stderr)
        print(tail)
    else:
        gone = f"pod {pod} is gone and left no log" if pod else "there is no pod yet"
        raise ClusterError(f"{run['metadata']['name']}: {gone}. {why_not(run, now=datetime.now(UTC))}")


def _run(kubectl: "Kubectl", obj: dict[str, Any], index: int | None) -> dict[str, Any]:
    """The experiment of one run."""
    from llenergymeasure import cluster_status as st
    from llenergymeasure.core.resources import LABEL_INDEX

    name = st.name_of(obj)
    if not st.is_study(obj):
        return obj
    total = st.counts(obj)["total"]
    if index is None:
        raise ConfigError(f"{name} is a study: name a run, llem logs {name} INDEX, 0 to {max(total - 1, 0)}")
    found = children(kubectl, name, f"{LABEL_INDEX}={index}")
    if not found:
        span = f"its runs are 0 to {total - 1}" if total else "it has none yet"
        raise ClusterError(f"{name} has no run {index}; {span}")
    return found[0]


def results(
    name: Name,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder to copy the result files to.")] = None,
    direct: Annotated[
        bool, typer.Option("--direct", help="With -o: read the store from here, with credentials of this machine.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
    export_csv: Annotated[Path | None, typer.Option("--export-csv", help="Also write a CSV, one row per run.")] = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Compare the configurations of a study on a cluster by what its runs have measured so far; copy the result files.

    For a folder of results on this machine: llem report.
    """
    from llenergymeasure.export import check_target

    if export_csv is not None:
        check_target(export_csv)
    kubectl = connect(namespace, context, kubeconfig)
    found = show_results(kubectl, name, as_json=as_json, export_csv=export_csv)
    if output is not None:
        fetch(kubectl, name, found, output, direct=direct)


def show_results(kubectl: "Kubectl", name: str, *, as_json: bool, export_csv: Path | None) -> "Results":
    """Print what the runs of a study have come to."""
    from llenergymeasure import cluster_results
    from llenergymeasure.cluster_status import is_study
    from llenergymeasure.store import write_atomically

    obj = find(kubectl, name)
    found = cluster_results.results_of(obj, children(kubectl, name) if is_study(obj) else [])
    print(json.dumps(cluster_results.as_json(found), indent=2) if as_json else cluster_results.text(found))
    if export_csv is not None:
        write_atomically(export_csv, cluster_results.csv_text(found).encode())
    return found


def fetch(kubectl: "Kubectl", name: str, found: "Results", folder: Path, *, direct: bool) -> None:
    """Copy a study's files here and compare their digests; raises ClusterError, ResultStoreError."""
    from llenergymeasure import cluster_fetch

    if direct:
        number = cluster_fetch.fetch_directly(found, folder)
    else:
        number = cluster_fetch.fetch_through_pod(kubectl, find(kubectl, name), found, folder)
    wrong = cluster_fetch.wrong_digests(found.stored, cluster_fetch.folder_uri(found), folder)
    if wrong:
        raise ClusterError("\n  - ".join([f"{len(wrong)} results are not what the runs stored", *wrong]))
    print(f"{number} files in {folder}, each result checked against its digest", file=sys.stderr)


def pack(uri: Annotated[str, typer.Argument(help="Folder or URI.")]) -> None:
    """Write all files below a URI to stdout as a tar: what `llem results -o` runs inside the cluster."""
    from llenergymeasure.cluster_fetch import pack as write_tar

    if sys.stdout.isatty():
        raise ConfigError("pack: writes a tar; send it to a file or a pipe")
    write_tar(uri, sys.stdout.buffer)
