"""What came of a study, from its plan, its manifest and its results: the same on one machine and on a cluster."""

from collections.abc import Mapping

from llenergymeasure.core.config import StudyConfig
from llenergymeasure.core.manifest import StudyManifest
from llenergymeasure.core.plan import Plan
from llenergymeasure.core.result import ExperimentResult, FailedRun, StudyResult
from llenergymeasure.core.study_statistics import comparisons_of, over_cycles


def summarise(
    study: StudyConfig,
    plan: Plan,
    manifest: StudyManifest,
    results: Mapping[int, ExperimentResult],
    *,
    files: Mapping[int, str],
    directory: str,
) -> StudyResult:
    """The study's result: paths, counts, statistics over cycles, what was skipped and what failed.

    Args:
        study: What was to be run.
        plan: Its runs.
        manifest: What happened to them.
        results: By index of the run.
        files: Path of each result below `directory`, by index of the run.
        directory: Folder or URI of the study.

    """
    groups = by_position(plan, results)
    summaries = {r.index: r.summary for r in manifest.rows}
    told = {run.position: (run.config_hash, summaries[run.index]) for run in plan.runs}
    counts = manifest.counts()
    return StudyResult(
        name=study.name,
        study_design_hash=plan.design_hash,
        directory=directory,
        measurement_protocol=study.execution.model_dump(exclude_none=True),
        result_files=[files[i] for i in sorted(files)],
        summary={
            "generated": len(study.experiments) + len(study.skipped),
            "runs": counts["total"],
            "ran": counts["completed"],
            "failed": counts["failed"],
            "skipped": len(study.skipped),
            "invalid": counts["invalid"],
        },
        experiments=[over_cycles(*told[p], [groups[p][c] for c in sorted(groups[p])]) for p in sorted(groups)],
        comparisons=comparisons_of(
            groups,
            [told[p][0] for p in sorted(told)],
            [told[p][1] for p in sorted(told)],
            study.execution.cycle_order,
        ),
        skipped=[s.model_dump() for s in study.skipped],
        failed=_failed(manifest),
    )


def by_position(plan: Plan, results: Mapping[int, ExperimentResult]) -> dict[int, dict[int, ExperimentResult]]:
    """Results by position of their configuration and cycle, from results by index of the run."""
    groups: dict[int, dict[int, ExperimentResult]] = {}
    for run in plan.runs:
        if run.index in results:
            groups.setdefault(run.position, {})[run.cycle] = results[run.index]
    return groups


def _failed(manifest: StudyManifest) -> list[FailedRun]:
    names = tuple(FailedRun.model_fields)
    return [FailedRun(**{n: getattr(r, n) for n in names}) for r in manifest.rows if r.status == "failed"]
