"""The verbs that change a cluster: apply, suspend, resume, cancel, retry, delete, `llem run --runner kubernetes`."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llenergymeasure.cluster_cli import (
    EXPERIMENTS,
    STUDIES,
    Context,
    Kubeconfig,
    Name,
    Namespace,
    connect,
    fetch,
    find,
    say,
    show_results,
    until_finished,
)
from llenergymeasure.core.errors import ConfigError

if TYPE_CHECKING:
    from llenergymeasure.kubectl import Kubectl
    from llenergymeasure.loaders import Document
    from llenergymeasure.manifests import Wanted

ApplyFile = Annotated[Path, typer.Argument(help="Study or experiment file, or manifests (YAML, several documents).")]


UNKNOWN_INSTALLATION = (
    "note: what a study leaves to the installation is a placeholder in capitals; the variables that the chart sets "
    "(LLEM_OPERATOR_IMAGES, LLEM_OPERATOR_RESULTS, as JSON) show its own"
)


def register(app: typer.Typer) -> None:
    """Add these verbs to `llem`."""
    for verb in (apply, suspend, resume, cancel, retry, delete):
        app.command()(verb)


def apply(
    file: ApplyFile,
    namespace: Namespace = None,
    name: Annotated[str | None, typer.Option("--name", help="Name on the cluster; else the file's.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Validate and show the plan; apply nothing.")] = False,
    manifest: Annotated[
        bool, typer.Option("--manifest", help="Print the manifests, for Git; apply nothing and ask no cluster.")
    ] = False,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Validate a file as `llem run` does, show its plan, and give it to the cluster."""
    from llenergymeasure.manifests import to_yaml

    objects = _wanted(file, name)
    if manifest:
        _say_notices(objects)
        print(to_yaml([o.manifest for o in objects]), end="")
        return
    kubectl = None if dry_run else connect(namespace, context, kubeconfig)
    _show_plans(objects)
    if kubectl is not None:
        _apply(kubectl, objects)


def _wanted(file: Path, name: str | None) -> "list[Wanted]":
    from llenergymeasure.manifests import wanted
    from llenergymeasure.yaml_reading import parse_documents, read_text

    return wanted(parse_documents(read_text(file), source=str(file)), file, name=name)


def _say_notices(objects: "Sequence[Wanted]") -> None:
    from llenergymeasure.plan_view import notices

    for wanted in objects:
        say(notices(wanted.notices, wanted.study))


def _show_plans(objects: "Sequence[Wanted]") -> None:
    """Print the plan of everything that will run; raises what `llem run` would of prompts that cannot suffice."""
    from llenergymeasure.manifests import as_paced, prompts_known_here
    from llenergymeasure.plan_view import plan_text
    from llenergymeasure.preflight import check_datasets
    from llenergymeasure.user_config import load_user_config

    user = load_user_config()
    _say_notices(objects)
    for study in (w.study for w in objects if w.study is not None):
        check_datasets(prompts_known_here(study))
        print(plan_text(as_paced(study), user, with_runs=False))
        print()


def _apply(kubectl: "Kubectl", objects: "Sequence[Wanted]") -> None:
    from llenergymeasure.manifests import as_list

    said = kubectl.run("apply", "--filename=-", stdin=json.dumps(as_list([o.manifest for o in objects])))
    say(said.warnings)
    print(said.out, end="", flush=True)


def _change(kubectl: "Kubectl", name: str, change: Callable[[dict[str, Any]], dict[str, Any]], done: str) -> None:
    """Patch a specification, and say what to commit where Git would undo it."""
    from llenergymeasure import cluster_status as st

    obj = find(kubectl, name, "--show-managed-fields")
    if st.is_child(obj):
        study = obj["spec"]["studyRef"]["name"]
        if kubectl.json("get", f"{STUDIES}/{study}", "--ignore-not-found"):
            raise ConfigError(f"{name} belongs to study {study}, which decides for it; use {study}")
        raise ConfigError(
            f"{name}: its study {study} is gone, and nothing goes on with it; llem delete {name} removes it"
        )
    spec = change(obj)
    kind = STUDIES if st.is_study(obj) else EXPERIMENTS
    patch = {"metadata": {"resourceVersion": obj["metadata"]["resourceVersion"]}, "spec": spec}
    kubectl.run("patch", f"{kind}/{name}", "--type=merge", f"--patch={json.dumps(patch)}")
    print(done.format(name=name, **spec))
    managers = st.git_managers(obj)
    if managers:
        print(f"note: {', '.join(managers)} keeps {name} as Git has it and may undo this; commit:", file=sys.stderr)
        say([f"  spec.{k}: {json.dumps(v)}" for k, v in spec.items()])


def _suspension(policy: str | None) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A change that suspends by that policy or, without a policy, resumes."""

    def change(_obj: dict[str, Any]) -> dict[str, Any]:
        return {"suspend": policy is not None, **({"suspendPolicy": policy} if policy else {})}

    return change


def suspend(name: Name, namespace: Namespace = None, context: Context = None, kubeconfig: Kubeconfig = None) -> None:
    """Start nothing further; what is measuring ends in its own time."""
    text = "{name} is suspended: running measurements end, nothing starts; llem resume {name} goes on"
    _change(connect(namespace, context, kubeconfig), name, _suspension("Drain"), text)


def cancel(name: Name, namespace: Namespace = None, context: Context = None, kubeconfig: Kubeconfig = None) -> None:
    """Stop at once: running measurements are ended, nothing starts. `llem resume` takes it back."""
    text = (
        "{name} is stopped: running measurements are ended; llem resume {name} goes on, llem delete {name} removes it"
    )
    _change(connect(namespace, context, kubeconfig), name, _suspension("Immediate"), text)


def resume(name: Name, namespace: Namespace = None, context: Context = None, kubeconfig: Kubeconfig = None) -> None:
    """Go on with a study that was suspended or cancelled."""
    _change(connect(namespace, context, kubeconfig), name, _suspension(None), "{name} goes on")


def retry(
    name: Name,
    failed: Annotated[bool, typer.Option("--failed", help="Failed and invalid runs; completed ones stay.")] = False,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Run failed and invalid runs again."""
    if not failed:
        raise ConfigError(
            f"retry: say what, llem retry {name} --failed; results that are valid are never measured again"
        )

    def raised(obj: dict[str, Any]) -> dict[str, Any]:
        return {"retryEpoch": int(obj["spec"].get("retryEpoch") or 0) + 1}

    text = "{name}: failed and invalid runs go again (retryEpoch {retryEpoch})"
    _change(connect(namespace, context, kubeconfig), name, raised, text)


def delete(name: Name, namespace: Namespace = None, context: Context = None, kubeconfig: Kubeconfig = None) -> None:
    """Delete a study with its runs; results stay in the store."""
    from llenergymeasure import cluster_status as st
    from llenergymeasure.core import resources

    kubectl = connect(namespace, context, kubeconfig)
    obj = find(kubectl, name, "--show-managed-fields")
    if not st.is_study(obj):
        kubectl.run("delete", f"{EXPERIMENTS}/{name}", "--wait=false")
    else:
        kubectl.run("delete", f"{STUDIES}/{name}", "--cascade=foreground", "--wait=false")
        collection = (
            f"/apis/{resources.API_VERSION}/namespaces/{st.namespace_of(obj)}/{resources.EXPERIMENT_PLURAL}"
            f"?labelSelector={resources.LABEL_STUDY}%3D{name}&propagationPolicy=Background"
        )
        kubectl.run("delete", f"--raw={collection}")  # one request; kubectl's --selector sends one per object
    where = (obj.get("status") or {}).get("resultsURI") if st.counts(obj)["completed"] else None
    print(f"{name} is deleted" + (f"; its results stay at {where}" if where else ""))
    managers = st.git_managers(obj)
    if managers:
        print(f"note: {', '.join(managers)} will make {name} again, and run it; remove it from Git", file=sys.stderr)


def show_jobs(file: Path, *, as_json: bool) -> None:
    """Print the Jobs that the operator would make for a file, by the operator's own code."""
    from llem_operator.objects import jobs_of
    from llem_operator.settings import Settings
    from llenergymeasure.core.registry import backend_names
    from llenergymeasure.core.resources import STUDY_KIND
    from llenergymeasure.manifests import to_yaml

    settings = Settings.from_environment(os.environ)
    objects = _wanted(file, None)
    _say_notices(objects)
    if not settings.results or not settings.images:
        say([UNKNOWN_INSTALLATION])
        images = {b: f"IMAGE-OF-THE-INSTALLATION/{b}" for b in backend_names()} | settings.images
        update = {"images": images, "results": settings.results or {"uri": "s3://BUCKET-OF-THE-INSTALLATION"}}
        settings = settings.model_copy(update=update)
    studies = [o.manifest for o in objects if o.manifest.get("kind") == STUDY_KIND]
    if not studies:
        raise ConfigError(f"{file}: --jobs shows the Jobs of studies, and the file holds none")
    jobs = [job for study in studies for job in jobs_of(study, settings)]
    print(json.dumps(jobs, indent=2) if as_json else to_yaml(jobs), end="" if not as_json else "\n")


@dataclass(frozen=True)
class Asked:
    """How `llem run --runner kubernetes` was asked to go about it."""

    namespace: str | None
    dry_run: bool
    output: Path | None
    export_csv: Path | None
    strict: bool
    gaps: bool
    as_json: bool
    quiet: bool


def run_on_cluster(path: Path | None, document: "Document", asked: Asked) -> None:
    """Apply, watch, results: a study in the cluster as if it ran here. Raises typer.Exit(1) unless it succeeded."""
    from llenergymeasure.cluster_status import has_succeeded, name_of
    from llenergymeasure.export import check_target
    from llenergymeasure.plan_view import plan_json

    if asked.export_csv is not None:
        check_target(asked.export_csv)
    wanted = _to_run(path, document, gaps=asked.gaps)
    assert wanted.study is not None
    kubectl = None if asked.dry_run else connect(asked.namespace, None, None)
    if asked.as_json or asked.quiet:
        _say_notices([wanted])
    else:
        _show_plans([wanted])
    if kubectl is None:
        if asked.as_json:
            print(json.dumps(plan_json(wanted.study), indent=2))
        return
    name = name_of(wanted.manifest)
    say([kubectl.run("apply", "--filename=-", stdin=json.dumps(wanted.manifest)).out.strip()])
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        try:
            ended = until_finished(kubectl, name, nowhere if asked.quiet or asked.as_json else sys.stderr)
        except KeyboardInterrupt:
            hint = f"{name} goes on in the cluster; llem status {name} -w looks again, llem cancel {name} stops it"
            print(hint, file=sys.stderr)
            raise typer.Exit(130) from None
    found = show_results(kubectl, name, as_json=asked.as_json, export_csv=asked.export_csv)
    if asked.output is not None:
        fetch(kubectl, name, found, asked.output, direct=False)
    if not has_succeeded(ended) or (asked.strict and not found.all_valid):
        raise typer.Exit(1)


def _to_run(path: Path | None, document: "Document", *, gaps: bool) -> "Wanted":
    """The one object that a command line means; flags change a plain file, never a manifest."""
    from llenergymeasure.loaders import is_manifest, read_document
    from llenergymeasure.manifests import converted, without_gaps
    from llenergymeasure.yaml_reading import read_mapping

    if path is None or not is_manifest(read_mapping(path)):
        made = converted(document)
        return made if gaps else without_gaps(made)
    if read_document(path).body != document.body or not gaps:
        raise ConfigError(f"{path}: is a manifest, which flags do not change; edit it, or use a plain study file")
    return _wanted(path, None)[0]
