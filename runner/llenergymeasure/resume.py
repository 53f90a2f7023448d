"""What is left of a study that has a folder already: checks that it is the same study, and which of its runs count."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from llenergymeasure import __version__
from llenergymeasure.core.config import ExperimentConfig, StudyConfig
from llenergymeasure.core.errors import StudyError
from llenergymeasure.core.identity import measurement_config_hash
from llenergymeasure.core.manifest import StudyManifest, rows_of
from llenergymeasure.core.plan import Plan, describe_all, flatten, make_plan
from llenergymeasure.study_folder import StudyFolder

MAX_DIFFERENCES = 12


@dataclass(frozen=True)
class Reopened:
    """A study that goes on; `notes` are what the user should know of it."""

    study: StudyConfig
    plan: Plan
    manifest: StudyManifest
    notes: tuple[str, ...] = ()


def reopen(
    folder: StudyFolder,
    wanted: StudyConfig | None,
    n_cycles: int | None,
    now: datetime,
    calibration_sha256: str | None = None,
) -> Reopened:
    """Read a study's folder and give what is left to do; writes nothing.

    Args:
        folder: The study's folder.
        wanted: The study as its file says it today; None takes it as it was.
        n_cycles: Cycles asked for by name; more than before add runs.
        now: UTC, for the rows that change.
        calibration_sha256: Of the calibration file that is used today; None for none.

    Raises:
        StudyError: The folder is no whole study, or not this one: the sentence names each difference.

    """
    before, manifest = folder.read_study(), folder.read_manifest()
    _refuse_foreign(folder, before, manifest)
    _refuse_other_calibration(folder, manifest, calibration_sha256)
    if wanted is not None:
        _refuse_other_design(folder, before, wanted)
    study, notes = _merged(before, wanted, n_cycles)
    plan = make_plan(study)
    added = rows_of(plan, describe_all(study.experiments))[len(manifest.rows) :]
    manifest, changed = _checked(folder, study, plan, manifest.reopened(added), now)
    if manifest.tool_version != __version__:
        notes.append(f"begun with llem {manifest.tool_version}, goes on with {__version__}")
    return Reopened(study, plan, manifest, (*notes, *changed))


def _refuse_foreign(folder: StudyFolder, study: StudyConfig, manifest: StudyManifest) -> None:
    """The manifest must be that of study.json: the same design, the same runs in the same places."""
    plan = make_plan(study)
    wanted = rows_of(plan, describe_all(study.experiments))
    faults = []
    if manifest.study_design_hash != plan.design_hash:
        faults.append(f"design hash {manifest.study_design_hash}, but study.json has {plan.design_hash}")
    per_cycle = len(wanted) // study.execution.n_cycles
    if len(manifest.rows) > len(wanted) or len(manifest.rows) % per_cycle:  # fewer whole cycles: killed while adding
        faults.append(f"{len(manifest.rows)} runs, but study.json has {len(wanted)}")
    for row, expected in zip(manifest.rows, wanted, strict=False):
        for name in ("index", "cycle", "config_hash"):
            if getattr(row, name) != getattr(expected, name):
                faults.append(f"run {expected.index}: {name} {getattr(row, name)}, expected {getattr(expected, name)}")
    if faults:
        shown = _listed(faults)
        raise StudyError(
            f"{folder.path}: study_manifest.json is not of study.json (written by llem {manifest.tool_version}, this "
            f"is {__version__}); it was edited, or is of another study or version:{shown}"
        )


def _refuse_other_calibration(folder: StudyFolder, manifest: StudyManifest, today: str | None) -> None:
    was = manifest.calibration_sha256
    if today == was:
        return
    fix = "name the file that it began with by --calibration" if was else "leave --calibration and LLEM_CALIBRATION out"
    raise StudyError(
        f"{folder.path}: the calibration has changed since, so its joules would not be on one scale: "
        f"{_file(today)}, was {_file(was)}\n{fix}, or run it as a new study (without --resume)"
    )


def _file(sha256: str | None) -> str:
    return f"a file with SHA-256 {sha256[:16]}…" if sha256 else "none"


def _refuse_other_design(folder: StudyFolder, before: StudyConfig, wanted: StudyConfig) -> None:
    found = design_differences(before, wanted)
    if found:
        raise StudyError(
            f"{folder.path}: the design has changed since, so its results cannot be continued:{_listed(found)}\n"
            "run it as a new study (without --resume), or bring the file back to what it was"
        )


def _listed(lines: Sequence[str]) -> str:
    shown = [*lines[:MAX_DIFFERENCES]]
    if len(lines) > len(shown):
        shown.append(f"and {len(lines) - len(shown)} more")
    return "".join(f"\n  - {line}" for line in shown)


def design_differences(before: StudyConfig, wanted: StudyConfig) -> list[str]:
    """What makes two designs different, field by field; experiments are paired with the one that is most like them."""
    old = _by_hash(before)
    new = _by_hash(wanted)
    gone, come = [h for h in old if h not in new], [h for h in new if h not in old]
    lines = []
    for digest in list(gone):
        if not come:
            break
        partner = min(come, key=lambda h: len(list(_field_changes(old[digest][1], new[h][1]))))
        changes = ", ".join(_field_changes(old[digest][1], new[partner][1]))
        lines.append(f"{old[digest][0]}: {changes}")
        gone.remove(digest)
        come.remove(partner)
    lines += [f"{old[h][0]}: is not in the file any more" for h in gone]
    lines += [f"{new[h][0]}: is new in the file" for h in come]
    repeats = [tuple(s.repeats or (1,) * len(s.experiments)) for s in (before, wanted)]
    if not lines and list(old) != list(new):
        lines.append("the experiments are the same but stand in another order")
    elif not lines and repeats[0] != repeats[1]:
        lines.append(f"repetitions of equal experiments are {list(repeats[1])}, were {list(repeats[0])}")
    return lines


def _by_hash(study: StudyConfig) -> dict[str, tuple[str, Mapping[str, object]]]:
    texts = describe_all(study.experiments)
    return {measurement_config_hash(e): (text, _fields(e)) for e, text in zip(study.experiments, texts, strict=True)}


def _fields(config: ExperimentConfig) -> dict[str, object]:
    return flatten(config.model_dump(exclude_none=True, exclude={"output"}))


def _field_changes(old: Mapping[str, object], new: Mapping[str, object]) -> Iterator[str]:
    for key in sorted({*old, *new}):
        if old.get(key) != new.get(key):
            yield f"{key} is {new.get(key, 'unset')}, was {old.get(key, 'unset')}"


def _merged(before: StudyConfig, wanted: StudyConfig | None, n_cycles: int | None) -> tuple[StudyConfig, list[str]]:
    """The study that goes on: experiments and cycles as they were or more, order and pauses as the file says today."""
    had = before.execution.n_cycles
    if n_cycles is not None and n_cycles < had:
        raise StudyError(
            f"--cycles {n_cycles}: the study has {had} cycles already; cycles can be added, not taken away"
        )
    asked = n_cycles or (wanted.execution.n_cycles if wanted else had)
    notes = []
    if asked < had:
        notes.append(f"the file says {asked} cycles, the study has {had} already: it keeps them")
    if asked > had:
        notes.append(f"cycles are raised from {had} to {asked}")
    base = before if wanted is None else before.model_copy(update={"runners": wanted.runners, "images": wanted.images})
    execution = (wanted or before).execution.model_copy(update={"n_cycles": max(asked, had)})
    return base.model_copy(update={"execution": execution}), notes


def _checked(
    folder: StudyFolder, study: StudyConfig, plan: Plan, manifest: StudyManifest, now: datetime
) -> tuple[StudyManifest, list[str]]:
    """The manifest with what the files say: results that are there count, what was running is not running any more."""
    notes = []
    for run in sorted(plan.runs, key=lambda r: r.index):
        row = manifest.row(run.index)
        if row.status not in ("completed", "running"):
            continue
        found = folder.stored(run, study)
        if row.status == "completed" and found is None:
            manifest = manifest.mark_lost(run.index, now)
            notes.append(f"run {run.index} was completed, but {row.result_uri} is not there: it is run again")
        elif row.status == "running" and found is not None:
            uri, result = found
            manifest = manifest.mark_completed(run.index, now, verdict=result.verdict.state, result_uri=uri)
            notes.append(f"run {run.index} had stored its result before the study was ended: it counts")
        elif row.status == "running":
            manifest = manifest.mark_interrupted(run.index, now)
    return manifest, notes
