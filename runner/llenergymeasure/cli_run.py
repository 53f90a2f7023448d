"""The verbs that run a file on this machine and that show beforehand what it expands to."""

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from llenergymeasure import cli_file, cluster_changes
from llenergymeasure.core.errors import ConfigError

if TYPE_CHECKING:
    from llenergymeasure.core.config import ExperimentConfig, StudyConfig
    from llenergymeasure.core.result import ExperimentResult
    from llenergymeasure.loaders import Document
    from llenergymeasure.progress import Progress
    from llenergymeasure.stored_study import Rebuilt
    from llenergymeasure.user_config import UserConfig

LATEST = "latest"
NO_HUB_BARS = "HF_HUB_DISABLE_PROGRESS_BARS"  # read when huggingface_hub is imported, so it is set before

OutputOption = Annotated[Path | None, typer.Option("--output", "-o", help="Folder below which results go.")]
DryOption = Annotated[bool, typer.Option("--dry-run", help="Validate the file and show the plan; run nothing.")]
NoGapsOption = Annotated[bool, typer.Option("--no-gaps", help="No pauses between runs.")]
ResumeOption = Annotated[
    str | None,
    typer.Option("--resume", metavar="PATH", help="Go on with a study's folder; latest, or no PATH: the newest one."),
]
RunnerOption = Annotated[str | None, typer.Option("--runner", help="local, docker, docker:<image>, kubernetes, auto.")]
CsvOption = Annotated[Path | None, typer.Option("--export-csv", help="Also write a CSV, one row per run.")]
ParquetOption = Annotated[
    Path | None, typer.Option("--export-parquet", help="Likewise as Parquet, with types and units.")
]
CalibrationOption = Annotated[
    Path | None, typer.Option("--calibration", help="JSON by GPU UUID: gain, offset_w, a of its power sensor.")
]
StrictOption = Annotated[bool, typer.Option("--strict", help="Exit 1 unless every verdict is valid.")]
NamespaceOption = Annotated[
    str | None, typer.Option("--namespace", help="With --runner kubernetes: namespace; else the context's.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress; the summary is still printed.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON only.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Show the run's events, and tracebacks.")]


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command()(run)
    app.command()(plan)


def run(
    config: cli_file.ConfigArgument = None,
    model: cli_file.ModelOption = None,
    revision: cli_file.RevisionOption = None,
    backend: cli_file.BackendOption = None,
    dataset: cli_file.DatasetOption = None,
    n: cli_file.CountOption = None,
    batch_size: cli_file.BatchOption = None,
    precision: cli_file.PrecisionOption = None,
    output: OutputOption = None,
    dry_run: DryOption = False,
    cycles: cli_file.CyclesOption = None,
    order: cli_file.OrderOption = None,
    no_gaps: NoGapsOption = False,
    resume: ResumeOption = None,
    runner: RunnerOption = None,
    export_csv: CsvOption = None,
    export_parquet: ParquetOption = None,
    calibration: CalibrationOption = None,
    strict: StrictOption = False,
    assignments: cli_file.SetOption = None,
    namespace: NamespaceOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Measure one experiment or a study on this machine, or, with --runner kubernetes, on a cluster."""
    said = cli_file.Said(
        model=model, revision=revision, dataset=dataset, n=n, precision=precision, backend=backend,
        batch_size=batch_size, cycles=cycles, order=order, assignments=tuple(assignments or ()),
    )  # fmt: skip
    how = _How(
        folder=output, resume=resume, cycles=cycles, gaps=not no_gaps, dry_run=dry_run, quiet=quiet or as_json,
        verbose=verbose, as_json=as_json, strict=strict, runner=runner, csv=export_csv, parquet=export_parquet,
    )  # fmt: skip
    if namespace is not None and runner != "kubernetes":
        raise ConfigError(f"--namespace {namespace} is for a cluster; add --runner kubernetes, or leave it out")
    document = cli_file.document(config, said) if config is not None or resume is None or said.anything else None
    _use_calibration(calibration, runner)
    if runner == "kubernetes" and document is not None:
        _run_on_cluster(config, document, how, namespace, quiet=quiet)
    else:
        _run_here(cli_file.target(document, runner) if document is not None else None, document, how)


@dataclass(frozen=True)
class _How:
    """How a run on this machine was asked for."""

    folder: Path | None
    resume: str | None
    cycles: int | None
    gaps: bool
    dry_run: bool
    quiet: bool
    verbose: bool
    as_json: bool
    strict: bool
    runner: str | None
    csv: Path | None
    parquet: Path | None


def _use_calibration(path: Path | None, runner: str | None) -> None:
    from llenergymeasure.calibration_file import use_calibration

    if path is not None:
        use_calibration(path, on_cluster=runner == "kubernetes")


def _run_on_cluster(
    config: Path | None, document: "Document", how: _How, namespace: str | None, *, quiet: bool
) -> None:
    if how.resume is not None:
        raise ConfigError("--resume is for studies of this machine; a cluster goes on by itself, see llem resume")
    asked = cluster_changes.Asked(
        namespace, how.dry_run, how.folder, how.csv, how.strict, gaps=how.gaps, as_json=how.as_json, quiet=quiet
    )
    cluster_changes.run_on_cluster(config, document, asked)


def _run_here(target: "ExperimentConfig | StudyConfig | None", document: "Document | None", how: _How) -> None:
    """Run a study, an experiment, or what is left of the study that `how.resume` names, on this machine."""
    from llenergymeasure.core.config import StudyConfig
    from llenergymeasure.preflight import check_datasets
    from llenergymeasure.user_config import load_user_config

    user = load_user_config()
    if document is not None and target is not None:
        _say_notices(document, target)
    if how.dry_run:
        if target is None:
            raise ConfigError("--dry-run needs a file or a model; with --resume alone there is nothing to look at")
        check_datasets(target.experiments if isinstance(target, StudyConfig) else [target])
        _print_plan(target, user, as_json=how.as_json, with_runs=False, runner=how.runner)
        return
    _check_targets(how)
    how = replace(
        how,
        quiet=how.quiet or user.ui.verbosity == "quiet",
        verbose=how.verbose or user.ui.verbosity == "verbose",
        folder=how.folder or Path(user.output.results_dir),
    )
    if how.quiet or not sys.stderr.isatty():
        os.environ.setdefault(NO_HUB_BARS, "1")
    if how.resume is not None or isinstance(target, StudyConfig):
        ended = _run_study(target, user, how)
    else:
        ended = _run_single(target, user, how)
    if ended.failed or (how.strict and any(r.verdict.state != "valid" for r in ended.results)):
        raise typer.Exit(1)


def _check_targets(how: _How) -> None:
    """Refuse files that could not be written, before anything is measured."""
    from llenergymeasure.export import check_target

    for path in (how.csv, how.parquet):
        if path is not None:
            check_target(path)


@dataclass(frozen=True)
class _Ended:
    """What was measured, and how many runs failed."""

    results: "list[ExperimentResult]"
    failed: int = 0


def _export(how: _How, rebuilt: "Rebuilt") -> None:
    from llenergymeasure.export import export_csv, export_parquet, run_rows

    if how.csv is not None:
        export_csv(how.csv, run_rows([rebuilt]))
    if how.parquet is not None:
        export_parquet(how.parquet, run_rows([rebuilt]))


def _say_notices(document: "Document", target: "ExperimentConfig | StudyConfig") -> None:
    from llenergymeasure.core.config import StudyConfig
    from llenergymeasure.plan_view import notices

    study = target if isinstance(target, StudyConfig) else None
    for line in notices([*document.notices, *(study.notices if study else ())], study):
        print(line, file=sys.stderr)


def _run_single(target: "ExperimentConfig | StudyConfig | None", user: "UserConfig", how: _How) -> _Ended:
    from llenergymeasure import locks, preflight, report, study
    from llenergymeasure.core.config import ExperimentConfig
    from llenergymeasure.core.plan import Run, describe
    from llenergymeasure.core.sweep import study_of_one
    from llenergymeasure.expected import expected, sentence
    from llenergymeasure.measure import measure
    from llenergymeasure.object_store import Access, open_place
    from llenergymeasure.progress import Progress
    from llenergymeasure.stored_study import rebuild

    assert how.folder is not None
    assert isinstance(target, ExperimentConfig)
    study.check_runners(study_of_one(target), user, how.runner)
    preflight.check_writable(how.folder)
    progress = Progress(1, quiet=how.quiet, verbose=how.verbose)
    progress.run_started(Run(0, 1, 0, ""), describe(target), 1)
    progress.note(sentence(expected(target, user)))
    gpus = locks.gpu_names([target], energy_backend=user.measurement.energy_backend)
    with locks.hold(gpus, study="experiment"), _drawn(progress):
        measured = measure(target, user, emit=progress.event)
    where = study.save_single(measured, how.folder)
    if how.as_json:
        print(measured.result.to_json())
    else:
        print(report.single(measured.result))
        print(f"\nresults: {where}")
    _export(how, rebuild(open_place(str(where), Access())))
    return _Ended([measured.result])


@contextlib.contextmanager
def _drawn(progress: "Progress") -> Iterator[None]:
    """Take the bar away at the end; an interrupted run ends with the number of its signal, and says how far it came."""
    try:
        with stoppable() as signals:
            yield
    except KeyboardInterrupt as err:
        with contextlib.suppress(OSError):  # the terminal may be what has gone
            progress.close()
            print(": ".join(["interrupted", *map(str, err.args)]), file=sys.stderr)
        raise typer.Exit(128 + (signals[0] if signals else signal.SIGINT)) from None
    finally:
        with contextlib.suppress(OSError):
            progress.close()


@contextlib.contextmanager
def stoppable() -> Iterator[list[int]]:
    """Let SIGTERM and a closed terminal (SIGHUP) end a run as Ctrl-C does; gives the list that such signals enter.

    A signal that is ignored (nohup) stays ignored.
    """
    came: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        raise KeyboardInterrupt

    chosen = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {n: signal.signal(n, stop) for n in chosen}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run_study(target: "ExperimentConfig | StudyConfig | None", user: "UserConfig", how: _How) -> _Ended:
    from llenergymeasure import report, study_folder
    from llenergymeasure import study as studies
    from llenergymeasure.core.config import StudyConfig
    from llenergymeasure.core.plan import make_plan
    from llenergymeasure.core.sweep import study_of_one
    from llenergymeasure.expected import expected, sentence
    from llenergymeasure.plan_view import duration_line
    from llenergymeasure.progress import Progress

    assert how.folder is not None
    wanted = target if target is None or isinstance(target, StudyConfig) else study_of_one(target)
    again = None
    if how.resume is not None:
        again = study_folder.latest(how.folder) if how.resume == LATEST else Path(how.resume)
    shown = wanted or study_folder.StudyFolder(Path(again or "")).read_study()
    studies.check_runners(shown, user, how.runner)
    progress = Progress(quiet=how.quiet, verbose=how.verbose)
    with _drawn(progress):
        progress.note(f"each run: {sentence(expected(shown.experiments[0], user))}")
        if again is None:
            progress.note(duration_line(shown, user, make_plan(shown), gaps=how.gaps))
        if again is not None:
            done = studies.resume(again, user, study=wanted, n_cycles=how.cycles, observer=progress, gaps=how.gaps)
        else:
            done = studies.execute(shown, user, parent=how.folder, observer=progress, gaps=how.gaps)
    if how.as_json:
        print(done.result.to_json())
    else:
        lines = [report.study_summary(done.result, done.rebuilt.results), *report.stopped(done.result, done.manifest)]
        lines += [f"results: {done.folder}", *([f"report:  {done.report}"] if done.report else [])]
        print("\n".join(lines))
    _export(how, done.rebuilt)
    unfinished = sum(r.status != "completed" for r in done.manifest.rows)
    return _Ended(done.rebuilt.results, unfinished)


def plan(
    config: Annotated[Path, typer.Argument(help="Experiment or study file.")],
    cycles: cli_file.CyclesOption = None,
    order: cli_file.OrderOption = None,
    assignments: cli_file.SetOption = None,
    jobs: Annotated[bool, typer.Option("--jobs", help="Show the Jobs that the operator would make of it.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what a file expands to and the order of its runs; runs nothing."""
    from llenergymeasure.user_config import load_user_config

    if jobs:
        cluster_changes.show_jobs(config, as_json=as_json)
        return
    said = cli_file.Said(cycles=cycles, order=order, assignments=tuple(assignments or ()))
    document = cli_file.document(config, said)
    target = cli_file.target(document, None)
    _say_notices(document, target)
    _print_plan(target, load_user_config(), as_json=as_json, with_runs=True)


def _print_plan(
    target: "ExperimentConfig | StudyConfig",
    user: "UserConfig",
    *,
    as_json: bool,
    with_runs: bool,
    runner: str | None = None,
) -> None:
    from llenergymeasure.core.config import StudyConfig
    from llenergymeasure.core.sweep import study_of_one
    from llenergymeasure.plan_view import plan_json, plan_text, refusals

    study = target if isinstance(target, StudyConfig) else study_of_one(target)
    for line in refusals(study, user, runner):
        print(line, file=sys.stderr)
    print(json.dumps(plan_json(study), indent=2) if as_json else plan_text(study, user, with_runs=with_runs))
