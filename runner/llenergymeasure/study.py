"""Studies on this machine: what must hold before one starts, the one that is new, the one that goes on."""

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llenergymeasure import __version__, html_report, locks, preflight, store
from llenergymeasure.between_runs import remember_spread
from llenergymeasure.calibration_file import calibration_sha256
from llenergymeasure.core import registry
from llenergymeasure.core.config import ExperimentConfig, StudyConfig
from llenergymeasure.core.errors import BackendMissingError, LLEMError, PreFlightError
from llenergymeasure.core.keys import experiment_problems, refuse
from llenergymeasure.core.manifest import StudyManifest, new_manifest
from llenergymeasure.core.plan import Run, describe_all, gaps_s, make_plan
from llenergymeasure.core.result import ExperimentResult, StudyResult
from llenergymeasure.core.sweep import deep_merge, set_path
from llenergymeasure.known_baselines import KnownBaselines
from llenergymeasure.loaders import load_experiment_config, load_study_config
from llenergymeasure.measure import Measured, measure
from llenergymeasure.object_store import Access, open_place
from llenergymeasure.resume import Reopened, reopen
from llenergymeasure.stored_study import Rebuilt, rebuild
from llenergymeasure.study_folder import StudyFolder
from llenergymeasure.study_runner import Observer, StudyRunner, utc_now
from llenergymeasure.user_config import UserConfig, cache_dir, load_user_config


@dataclass(frozen=True)
class Executed:
    """What came of a study: its manifest, what its folder holds, its page, and errors of failed runs by index."""

    manifest: StudyManifest
    folder: Path
    rebuilt: Rebuilt
    report: Path | None
    errors: dict[int, LLEMError] = field(default_factory=dict)

    @property
    def result(self) -> StudyResult:
        """The study's result."""
        return self.rebuilt.study


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
    return execute(study, user, parent=Path(output_dir or user.output.results_dir)).result


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
    """Run every run of a new study in order; a failed run is recorded and the study goes on.

    Raises:
        LLEMError: Pre-flight of any experiment failed, or a GPU is in use: nothing was run and no folder is left.

    """
    preflight.check_writable(parent)
    preflight.refuse(_problems(study.experiments, user))
    with _gpus_of(study, user) as (gpus, held):
        folder = StudyFolder.create(parent, study)
        plan = make_plan(study)
        manifest = new_manifest(
            plan,
            name=study.name,
            summaries=describe_all(study.experiments),
            skipped=len(study.skipped),
            tool_version=__version__,
            now=utc_now(),
            calibration_sha256=calibration_sha256(os.environ),
        )
        with locks.hold([str(folder.path)], study=study.name) as also_held:
            opened = Reopened(study, plan, manifest)
            return _run(folder, opened, user, observer or Observer(), gaps=gaps, gpus=gpus, held=(*held, *also_held))


def resume(
    path: Path,
    user: UserConfig,
    *,
    study: StudyConfig | None = None,
    n_cycles: int | None = None,
    observer: Observer | None = None,
    gaps: bool = True,
) -> Executed:
    """Go on with the study in a folder: completed runs with a result are kept, all others are run.

    Args:
        path: The study's folder.
        user: This machine's defaults.
        study: The study as its file says it today; must have the same design. None takes it as it was.
        n_cycles: Cycles; more than before add runs.
        observer: Who watches.
        gaps: False leaves out all pauses.

    Raises:
        StudyError: No study, a damaged one, another design or calibration, or one that another process is at.
        LLEMError: Pre-flight failed; the folder is as it was.

    """
    folder, watch = StudyFolder(path), observer or Observer()
    name = folder.read_study().name  # is it one at all? before anything is locked
    with locks.hold([str(path)], study=name) as held:
        opened = reopen(folder, study, n_cycles, utc_now(), calibration_sha256(os.environ))
        preflight.check_writable(path)
        preflight.refuse(_problems(opened.study.experiments, user))
        for note in opened.notes:
            watch.note(note)
        with _gpus_of(opened.study, user) as (gpus, also_held):
            folder.remove_leftovers()
            folder.write_study(opened.study)
            return _run(folder, opened, user, watch, gaps=gaps, gpus=gpus, held=(*held, *also_held))


@contextlib.contextmanager
def _gpus_of(study: StudyConfig, user: UserConfig) -> Iterator[tuple[list[str], tuple[int, ...]]]:
    """UUIDs of the GPUs that the study's runs use, locked for this study alone."""
    names = locks.gpu_names(study.experiments, energy_backend=user.measurement.energy_backend)
    with locks.hold(names, study=study.name) as held:
        yield names, held


def _run(
    folder: StudyFolder,
    opened: Reopened,
    user: UserConfig,
    observer: Observer,
    *,
    gaps: bool,
    gpus: Sequence[str],
    held: Sequence[int],
) -> Executed:
    runner = StudyRunner(opened.study, opened.plan, folder, opened.manifest, observer, KnownBaselines(user))
    left = runner.left()
    pauses = planned_gaps_s(opened.study, left, user) if gaps else [0.0] * len(left)
    runner.run(pauses, gpus=gpus, keep_open=held)
    rebuilt = rebuild(open_place(str(folder.path), Access()))
    folder.write_result(rebuilt.study)
    remember_spread(cache_dir(user), rebuilt.study, rebuilt.results)
    return Executed(runner.manifest, folder.path, rebuilt, _report(folder, rebuilt, observer), runner.errors)


def _report(folder: StudyFolder, rebuilt: Rebuilt, observer: Observer) -> Path | None:
    """Write report.html; without the libraries that draw it the study is complete all the same."""
    path = folder.path / store.REPORT
    try:
        html_report.write_report(path, [rebuilt])
    except BackendMissingError as err:
        observer.note(str(err))
        return None
    return path


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


def planned_gaps_s(study: StudyConfig, runs: Sequence[Run], user: UserConfig) -> list[float]:
    """Pause before each of these runs, s; an unset gap is the user's, or 0 without an energy source. 0 stays 0."""
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
    return gaps_s(runs, e.cycle_order, config_gap_seconds=config_gap, cycle_gap_seconds=cycle_gap)


def _has_sensor(config: ExperimentConfig, user: UserConfig) -> bool:
    try:
        source = preflight.choose_source(config, user).source
    except PreFlightError:
        return False  # pre-flight reports it
    return source is not None and source.KIND != "simulated"
