"""Runs a study on this machine: one process per run, in the plan's order, the manifest written after every change."""

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from llenergymeasure import __version__, launch, preflight, store
from llenergymeasure.core import registry
from llenergymeasure.core.config import ExperimentConfig, StudyConfig
from llenergymeasure.core.errors import BackendMissingError, LLEMError, PreFlightError, ResultStoreError
from llenergymeasure.core.keys import experiment_problems, refuse
from llenergymeasure.core.manifest import StudyManifest, new_manifest
from llenergymeasure.core.plan import Plan, Run, describe_all, gaps_s, make_plan
from llenergymeasure.core.result import ExperimentResult, FailedRun, StudyResult, over_cycles
from llenergymeasure.core.sweep import deep_merge, set_path
from llenergymeasure.loaders import load_experiment_config, load_study_config
from llenergymeasure.measure import Measured, measure
from llenergymeasure.user_config import UserConfig, load_user_config


class Observer(Protocol):
    """Someone who watches a study run."""

    def run_started(self, run: Run, summary: str, total: int) -> None:
        """A run begins."""

    def event(self, event: dict[str, Any]) -> None:
        """The running experiment says something."""

    def run_finished(self, run: Run, summary: str, result: ExperimentResult | None, error: str | None) -> None:
        """A run ended with a result or an error."""

    def waiting(self, seconds: float) -> None:
        """A gap begins."""


class Quiet:
    """An observer that looks away."""

    def run_started(self, run: Run, summary: str, total: int) -> None:
        """Do nothing."""

    def event(self, event: dict[str, Any]) -> None:
        """Do nothing."""

    def run_finished(self, run: Run, summary: str, result: ExperimentResult | None, error: str | None) -> None:
        """Do nothing."""

    def waiting(self, seconds: float) -> None:
        """Do nothing."""


@dataclass
class Executed:
    """What came of a study: results in memory by run index, failures, the manifest, the folder."""

    plan: Plan
    summaries: list[str]
    manifest: StudyManifest
    folder: Path
    results: dict[int, ExperimentResult] = field(default_factory=dict)
    files: dict[int, str] = field(default_factory=dict)
    errors: dict[int, LLEMError] = field(default_factory=dict)


def run_experiment(
    config: str | Path | ExperimentConfig | None = None, *, output_dir: Path | None = None, **fields: Any
) -> ExperimentResult:
    """Measure one experiment in this process and give its result.

    Args:
        config: A file, a configuration, or None to build one from `fields`.
        output_dir: Folder below which a new results folder is made; None leaves nothing on disk.
        **fields: Fields of ExperimentConfig, laid over `config`; a key such as "decoder.top_p" reaches inside.

    Raises:
        LLEMError: What `llem run` would report. pydantic.ValidationError: A bad value.

    """
    resolved = _experiment(config, fields)
    user = load_user_config()
    if output_dir is not None:
        preflight.check_writable(Path(output_dir))
    measured = measure(resolved, user)
    if output_dir is not None:
        save_single(measured, Path(output_dir))
    return measured.result


def run_study(config: str | Path | StudyConfig, *, output_dir: Path | None = None) -> StudyResult:
    """Run a study on this machine, one process per run, and give the paths of its results.

    Args:
        config: A study file or a resolved study.
        output_dir: Folder below which the study's folder is made; None takes the user's results folder.

    Raises:
        LLEMError: What keeps the study from starting. A failed run does not raise: it is in the result.

    """
    study = config if isinstance(config, StudyConfig) else load_study_config(config)
    user = load_user_config()
    check_runners(study, user)
    executed = execute(study, user, parent=Path(output_dir or user.output.results_dir))
    return summarise(study, executed)


def _experiment(config: str | Path | ExperimentConfig | None, fields: dict[str, Any]) -> ExperimentConfig:
    if isinstance(config, str | Path):
        return load_experiment_config(config, fields)
    base = config.model_dump(exclude_unset=True) if config is not None else {}
    if not fields:
        return config if config is not None else ExperimentConfig.model_validate({})
    body = deep_merge({}, base)
    for key, value in fields.items():
        set_path(body, key, value)
    refuse(experiment_problems(body), source="run_experiment")
    return ExperimentConfig.model_validate(body)


def save_single(measured: Measured, parent: Path) -> Path:
    """Write a single experiment's files into a new folder below `parent`, give that folder."""
    folder = store.new_folder(parent, measured.result.model)
    store.save_run(folder, store.files_of(measured.result, measured.series, measured.raw))
    return folder


def execute(
    study: StudyConfig, user: UserConfig, *, parent: Path, observer: Observer | None = None, gaps: bool = True
) -> Executed:
    """Run every run of a study in order; a failed run is recorded and the study goes on.

    Raises:
        LLEMError: Pre-flight of any experiment failed: nothing was run and no folder is left.

    """
    watch = observer or Quiet()
    plan = make_plan(study)
    preflight.check_writable(parent)
    preflight.refuse(_problems(study.experiments, user))
    summaries = describe_all(study.experiments)
    folder = store.new_folder(parent, study.name)
    store.write_atomically(folder / store.STUDY, (study.model_dump_json(indent=2, exclude_none=True) + "\n").encode())
    manifest = new_manifest(
        plan,
        name=study.name,
        summaries=summaries,
        skipped=len(study.skipped),
        tool_version=__version__,
        now=_now(),
    )
    done = Executed(plan, summaries, manifest, folder)
    _save_manifest(done)
    pauses = planned_gaps_s(study, plan, user) if gaps else [0.0] * len(plan.runs)
    try:
        for run, pause_s in zip(plan.runs, pauses, strict=True):
            if pause_s > 0:
                watch.waiting(pause_s)
                time.sleep(pause_s)
            _one_run(study, run, done, watch)
    except BaseException as err:
        done.manifest = _interrupted(done.manifest)
        _save_manifest(done)
        if isinstance(err, KeyboardInterrupt):
            counts = done.manifest.counts()
            text = f"{counts['completed']} of {counts['total']} runs done; results: {folder}"
            raise KeyboardInterrupt(text) from None
        raise
    done.manifest = done.manifest.finished(_now())
    _save_manifest(done)
    result = summarise(study, done)
    store.write_atomically(folder / store.STUDY_RESULT, (result.to_json() + "\n").encode())
    return done


def _now() -> datetime:
    return datetime.now(UTC)


def _interrupted(manifest: StudyManifest) -> StudyManifest:
    for row in manifest.rows:
        if row.status == "running":
            manifest = manifest.mark_interrupted(row.index, _now())
    return manifest.model_copy(update={"status": "interrupted", "completed_at": _now()})


def _problems(experiments: Iterable[ExperimentConfig], user: UserConfig) -> list[LLEMError]:
    """Pre-flight of all experiments, each problem once; files and the hub are asked once per set of inputs."""
    found: dict[str, LLEMError] = {}
    asked: set[str] = set()
    for config in experiments:
        problems = [*preflight.engine_problems(config), *preflight.hardware_problems(config)]
        same = config.model_dump_json(include={"model", "revision", "dataset", "n", "energy"})
        if same not in asked:
            asked.add(same)
            problems += preflight.input_problems(config, user)
        found |= {str(p): p for p in problems}
    return list(found.values())


NOT_YET = ("phase_timeouts", "max_consecutive_failures")
"""Fields of `execution` that a study may carry but that this version does not act on."""


def idle_settings(study: StudyConfig) -> list[str]:
    """Say which settings of the study have no effect yet."""
    written = study.execution.model_fields_set
    return [f"execution.{name} has no effect in this version" for name in NOT_YET if name in written]


def check_runners(study: StudyConfig, user: UserConfig, flag: str | None = None) -> None:
    """Refuse what cannot run here: a runner of another kind, or several engines without containers.

    `flag` is the runner that the command line names for all backends.

    Raises:
        PreFlightError: With what to do instead.

    """
    backends = sorted({e.backend for e in study.experiments if registry.is_real(e.backend)})
    chosen = {b: flag or runner_of(b, study, user) for b in backends}
    foreign = {b: r for b, r in chosen.items() if r not in ("local", "auto")}
    if foreign:
        names = ", ".join(f"{b}: {r}" for b, r in foreign.items())
        raise PreFlightError(
            [
                BackendMissingError(
                    f"runner {names}: this version starts no containers; use --runner local or kubernetes"
                )
            ]
        )
    if len(backends) > 1:
        raise PreFlightError(
            [
                BackendMissingError(
                    f"backends {', '.join(backends)} in one study need one container each, which this version does not "
                    "start; run one study per backend, or remove backends with -b"
                )
            ]
        )


def runner_of(backend: str, study: StudyConfig, user: UserConfig) -> str:
    """Runner of a backend: environment, then study, then user config, then auto."""
    from_study = study.runners.get(backend)
    from_environment = os.environ.get(f"LLEM_RUNNER_{backend.upper()}")
    return from_environment or from_study or str(getattr(user.runners, backend, "auto"))


def planned_gaps_s(study: StudyConfig, plan: Plan, user: UserConfig) -> list[float]:
    """Pause before each run, s; an unset gap is the user's, or 0 without an energy source. 0 stays 0."""
    e = study.execution
    paced = any(_has_sensor(c, user) for c in study.experiments)
    config_gap = (
        e.config_gap_seconds
        if e.config_gap_seconds is not None
        else (user.execution.config_gap_seconds if paced else 0.0)
    )
    cycle_gap = (
        e.cycle_gap_seconds if e.cycle_gap_seconds is not None else (user.execution.cycle_gap_seconds if paced else 0.0)
    )
    return gaps_s(plan.runs, e.cycle_order, config_gap_seconds=config_gap, cycle_gap_seconds=cycle_gap)


def _has_sensor(config: ExperimentConfig, user: UserConfig) -> bool:
    try:
        source = preflight.choose_source(config, user).source
    except PreFlightError:
        return False  # pre-flight reports it
    return source is not None and source.KIND != "simulated"


def _one_run(study: StudyConfig, run: Run, done: Executed, watch: Observer) -> None:
    config, summary = study.experiments[run.position], done.summaries[run.position]
    done.manifest = done.manifest.mark_running(run.index, _now())
    _save_manifest(done)
    watch.run_started(run, summary, len(done.plan.runs))
    row = done.manifest.row(run.index)
    variables = {
        "LLEM_STUDY": study.name,
        "LLEM_INDEX": str(run.index),
        "LLEM_CYCLE": str(run.cycle),
        "LLEM_ATTEMPT": str(row.attempts),
    }
    try:
        measured = launch.run_in_subprocess(
            config,
            limits=launch.Limits(study.execution.experiment_timeout_seconds, study.execution.phase_timeouts),
            on_event=watch.event,
            variables=variables,
        )
        relative = Path("runs") / store.run_folder_name(run.index, run.cycle, config, run.config_hash)
        if not done.folder.is_dir():  # not made again: it would look like a study that lost its earlier runs
            raise ResultStoreError(f"{done.folder}: the study's folder has vanished")
        store.save_run(done.folder / relative, store.files_of(measured.result, measured.series, measured.raw))
    except LLEMError as err:
        kind = err.error_type if isinstance(err, launch.RunFailedError) else type(err).__name__
        done.errors[run.index] = err
        done.manifest = done.manifest.mark_failed(run.index, _now(), error_type=kind, error_message=str(err)[:2000])
        watch.run_finished(run, summary, None, str(err))
    else:
        done.results[run.index] = measured.result
        done.files[run.index] = str(relative / store.RESULT)
        done.manifest = done.manifest.mark_completed(
            run.index, _now(), verdict=measured.result.verdict.state, result_uri=done.files[run.index]
        )
        watch.run_finished(run, summary, measured.result, None)
    _save_manifest(done)


def _save_manifest(done: Executed) -> None:
    data = done.manifest.model_dump_json(indent=2) + "\n"
    store.write_atomically(done.folder / store.MANIFEST, data.encode())


def summarise(study: StudyConfig, done: Executed) -> StudyResult:
    """The study's result: paths, counts, statistics over cycles, what was skipped and what failed."""
    groups: dict[int, list[ExperimentResult]] = {}
    for run in done.plan.runs:
        if run.index in done.results:
            groups.setdefault(run.position, []).append(done.results[run.index])
    hashes = {r.position: r.config_hash for r in done.plan.runs}
    failed = [
        FailedRun(
            index=r.index,
            cycle=r.cycle,
            config_hash=r.config_hash,
            summary=r.summary,
            error_type=r.error_type,
            error_message=r.error_message,
        )
        for r in done.manifest.rows
        if r.status == "failed"
    ]
    counts = done.manifest.counts()
    return StudyResult(
        name=study.name,
        study_design_hash=done.plan.design_hash,
        directory=str(done.folder),
        measurement_protocol=study.execution.model_dump(exclude_none=True),
        result_files=[done.files[i] for i in sorted(done.files)],
        summary={
            "generated": len(study.experiments) + len(study.skipped),
            "runs": counts["total"],
            "ran": counts["completed"],
            "failed": counts["failed"],
            "skipped": len(study.skipped),
            "invalid": counts["invalid"],
        },
        experiments=[over_cycles(hashes[p], done.summaries[p], groups[p]) for p in sorted(groups)],
        skipped=[s.model_dump() for s in study.skipped],
        failed=failed,
    )
