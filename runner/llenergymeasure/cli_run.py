"""The verbs that run a file on this machine and that show beforehand what it expands to."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llenergymeasure import cluster_changes
from llenergymeasure.core.errors import ConfigError

if TYPE_CHECKING:
    from llenergymeasure.core.config import ExperimentConfig, StudyConfig
    from llenergymeasure.core.result import ExperimentResult
    from llenergymeasure.loaders import Document
    from llenergymeasure.progress import Progress
    from llenergymeasure.user_config import UserConfig

NO_HUB_BARS = "HF_HUB_DISABLE_PROGRESS_BARS"  # read when huggingface_hub is imported, so it is set before

ConfigArgument = Annotated[
    Path | None, typer.Argument(help="Experiment or study file (YAML), or a manifest.", show_default=False)
]
ModelOption = Annotated[
    str | None, typer.Option("--model", "-m", help="Model: hub id, folder, or builtin:smollm2-135m.")
]
RevisionOption = Annotated[str | None, typer.Option("--revision", help="Hub revision of the model.")]
BackendOption = Annotated[str | None, typer.Option("--backend", "-b", help="Inference engine.")]
DatasetOption = Annotated[str | None, typer.Option("--dataset", "-d", help="aienergyscore, builtin, or a .jsonl file.")]
CountOption = Annotated[int | None, typer.Option("-n", help="Number of prompts.")]
BatchOption = Annotated[int | None, typer.Option("--batch-size", help="The backend's own batch parameter.")]
PrecisionOption = Annotated[str | None, typer.Option("--precision", "-p", help="fp32, fp16, bf16, fp8, int8 or int4.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="key=value for any field, e.g. decoder.top_p=0.9.")]
CyclesOption = Annotated[int | None, typer.Option("--cycles", help="Repetitions of the whole set.")]
OrderOption = Annotated[str | None, typer.Option("--order", help="sequential, interleaved, shuffled or latin_square.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON only.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Show the run's events, and tracebacks.")]


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command()(run)
    app.command()(plan)


def run(
    config: ConfigArgument = None,
    model: ModelOption = None,
    revision: RevisionOption = None,
    backend: BackendOption = None,
    dataset: DatasetOption = None,
    n: CountOption = None,
    batch_size: BatchOption = None,
    precision: PrecisionOption = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder below which results go.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Validate and show the plan; run nothing.")] = False,
    cycles: CyclesOption = None,
    order: OrderOption = None,
    no_gaps: Annotated[bool, typer.Option("--no-gaps", help="No pauses between runs.")] = False,
    runner: Annotated[
        str | None, typer.Option("--runner", help="local, docker, docker:<image>, kubernetes, auto.")
    ] = None,
    export_csv: Annotated[Path | None, typer.Option("--export-csv", help="Also write a CSV, one row per run.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 1 unless every verdict is valid.")] = False,
    assignments: SetOption = None,
    namespace: Annotated[
        str | None, typer.Option("--namespace", help="With --runner kubernetes: namespace; else the context's.")
    ] = None,
    as_json: JsonOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress; the summary is still printed.")] = False,
    verbose: VerboseOption = False,
) -> None:
    """Measure one experiment or a study on this machine, or, with --runner kubernetes, on a cluster."""
    flags = {"model": model, "revision": revision, "dataset": dataset, "n": n, "precision": precision}
    document = _document(config, flags, backend, batch_size, cycles, order, assignments or [])
    if runner == "kubernetes":
        asked = cluster_changes.Asked(
            namespace, dry_run, output, export_csv, strict, gaps=not no_gaps, as_json=as_json, quiet=quiet
        )
        cluster_changes.run_on_cluster(config, document, asked)
        return
    from llenergymeasure.core.config import StudyConfig
    from llenergymeasure.core.sweep import study_of_one
    from llenergymeasure.preflight import check_datasets, check_writable
    from llenergymeasure.study import check_runners
    from llenergymeasure.user_config import load_user_config

    user = load_user_config()
    target = _target(document, runner)
    _say_notices(document, target)
    if dry_run:
        check_datasets(target.experiments if isinstance(target, StudyConfig) else [target])
        _print_plan(target, user, as_json=as_json, with_runs=False)
        return
    check_runners(target if isinstance(target, StudyConfig) else study_of_one(target), user, runner)
    folder = output or Path(user.output.results_dir)
    if export_csv is not None:
        check_writable(export_csv.parent)
    quiet = quiet or as_json or user.ui.verbosity == "quiet"
    verbose = verbose or user.ui.verbosity == "verbose"
    if quiet or not sys.stderr.isatty():
        os.environ.setdefault(NO_HUB_BARS, "1")
    how = {"quiet": quiet, "verbose": verbose, "as_json": as_json}
    if isinstance(target, StudyConfig):
        results, failed = _run_study(target, user, folder, gaps=not no_gaps, **how)
    else:
        results, failed = _run_single(target, user, folder, **how), 0
    if export_csv is not None:
        from llenergymeasure.report import export_csv as write_csv

        write_csv(export_csv, results)
    if failed or (strict and any(r.verdict.state != "valid" for r in results)):
        raise typer.Exit(1)


def _document(
    path: Path | None,
    flags: dict[str, Any],
    backend: str | None,
    batch_size: int | None,
    cycles: int | None,
    order: str | None,
    assignments: list[str],
) -> "Document":
    """The file with the command line laid over it."""
    from llenergymeasure.core.config import ExperimentConfig
    from llenergymeasure.core.registry import backend_names, batch_size_key
    from llenergymeasure.loaders import Document, apply_overrides, parse_set, read_document

    if path is None and flags["model"] is None:
        raise ConfigError(
            "nothing to run: name a file (llem run study.yaml) or a model (llem run -m builtin:smollm2-135m)"
        )
    document = read_document(path) if path is not None else Document({}, study=False, source="command line")
    overrides = {k: v for k, v in flags.items() if v is not None}
    if backend is not None:
        overrides["backend"] = backend
    if batch_size is not None:
        swept = {str(k).partition(".")[0] for k in document.body.get("sweep") or ()}
        implied = [b for b in backend_names() if b in swept]
        default = ExperimentConfig.model_fields["backend"].default
        written = backend or document.body.get("backend") or implied or default
        for name in written if isinstance(written, list) else [written]:
            key = batch_size_key(name) if name in backend_names() else None
            if key is not None:
                overrides[f"{name}.{key}"] = batch_size
    overrides |= parse_set(assignments)
    execution = {"execution.n_cycles": cycles, "execution.cycle_order": order}
    given = {k: v for k, v in execution.items() if v is not None}
    if given and not document.study:  # repetitions make a study of one
        document = Document(
            {**document.body, "experiments": [{}]},
            study=True,
            source=document.source,
            notices=document.notices,
        )
    return apply_overrides(document, overrides | given)


def _target(document: "Document", runner: str | None) -> "ExperimentConfig | StudyConfig":
    from llenergymeasure.core.config import check_runner
    from llenergymeasure.core.errors import BackendMissingError, PreFlightError
    from llenergymeasure.loaders import experiment_from, study_from

    if runner is not None:
        try:
            check_runner(runner)
        except ValueError as err:
            raise ConfigError(f"--runner: {err}") from None
        if runner not in ("local", "auto"):
            text = f"--runner {runner}: this version starts no containers; use --runner local or kubernetes"
            raise PreFlightError([BackendMissingError(text)])
    return study_from(document) if document.study else experiment_from(document)


def _say_notices(document: "Document", target: "ExperimentConfig | StudyConfig") -> None:
    from llenergymeasure.core.config import StudyConfig
    from llenergymeasure.plan_view import notices
    from llenergymeasure.study import idle_settings

    study = target if isinstance(target, StudyConfig) else None
    idle = idle_settings(study) if study else []
    for line in notices([*document.notices, *(study.notices if study else ()), *idle], study):
        print(line, file=sys.stderr)


def _run_single(
    config: "ExperimentConfig", user: "UserConfig", folder: Path, *, quiet: bool, verbose: bool, as_json: bool
) -> "list[ExperimentResult]":
    from llenergymeasure import preflight, report, study
    from llenergymeasure.core.plan import Run, describe
    from llenergymeasure.measure import measure
    from llenergymeasure.progress import Progress

    preflight.check_writable(folder)
    progress = Progress(1, quiet=quiet, verbose=verbose)
    progress.run_started(Run(0, 1, 0, ""), describe(config), 1)
    with _drawn(progress):
        measured = measure(config, user, emit=progress.event)
    where = study.save_single(measured, folder)
    if as_json:
        print(measured.result.to_json())
    else:
        print(report.single(measured.result))
        print(f"\nresults: {where}")
    return [measured.result]


@contextlib.contextmanager
def _drawn(progress: "Progress") -> Iterator[None]:
    """Take the bar away at the end, and say how far an interrupted run came."""
    try:
        yield
    except KeyboardInterrupt as err:
        progress.close()
        print(": ".join(["interrupted", *map(str, err.args)]), file=sys.stderr)
        raise typer.Exit(130) from None
    finally:
        progress.close()


def _run_study(
    study: "StudyConfig",
    user: "UserConfig",
    folder: Path,
    *,
    gaps: bool,
    quiet: bool,
    verbose: bool,
    as_json: bool,
) -> "tuple[list[ExperimentResult], int]":
    from llenergymeasure import report
    from llenergymeasure import study as studies
    from llenergymeasure.core.plan import make_plan
    from llenergymeasure.progress import Progress

    plan = make_plan(study)
    total_gap_s = sum(studies.planned_gaps_s(study, plan, user)) if gaps else 0.0
    if total_gap_s and not quiet:
        print(
            f"note: pauses add {report.duration_text(total_gap_s)}; --no-gaps leaves them out",
            file=sys.stderr,
        )
    progress = Progress(len(plan.runs), quiet=quiet, verbose=verbose)
    with _drawn(progress):
        done = studies.execute(study, user, parent=folder, observer=progress, gaps=gaps)
    result = studies.summarise(study, done)
    results = [done.results[i] for i in sorted(done.results)]
    if as_json:
        print(result.to_json())
    else:
        print(report.study_summary(result, results))
        print(f"results: {done.folder}")
    return results, len(result.failed)


def plan(
    config: Annotated[Path, typer.Argument(help="Experiment or study file.")],
    cycles: CyclesOption = None,
    order: OrderOption = None,
    assignments: SetOption = None,
    jobs: Annotated[bool, typer.Option("--jobs", help="Show the Jobs that the operator would make of it.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what a file expands to and the order of its runs; runs nothing."""
    from llenergymeasure.user_config import load_user_config

    if jobs:
        cluster_changes.show_jobs(config, as_json=as_json)
        return
    document = _document(config, {"model": None}, None, None, cycles, order, assignments or [])
    target = _target(document, None)
    _say_notices(document, target)
    _print_plan(target, load_user_config(), as_json=as_json, with_runs=True)


def _print_plan(
    target: "ExperimentConfig | StudyConfig",
    user: "UserConfig",
    *,
    as_json: bool,
    with_runs: bool,
) -> None:
    from llenergymeasure.core.config import StudyConfig
    from llenergymeasure.core.sweep import study_of_one
    from llenergymeasure.plan_view import plan_json, plan_text

    study = target if isinstance(target, StudyConfig) else study_of_one(target)
    print(json.dumps(plan_json(study), indent=2) if as_json else plan_text(study, user, with_runs=with_runs))
