"""Shows what a file expands to before anything runs: as text for people, as a mapping for programs."""

from collections.abc import Iterable
from typing import Any

from llenergymeasure import preflight
from llenergymeasure.core.config import StudyConfig
from llenergymeasure.core.errors import PreFlightError
from llenergymeasure.core.identity import canonical
from llenergymeasure.core.plan import Plan, describe_all, make_plan
from llenergymeasure.expected import all_runs_s, expected
from llenergymeasure.report import grid
from llenergymeasure.study import check_runners, planned_gaps_s
from llenergymeasure.user_config import UserConfig
from llenergymeasure.wording import counted, duration_text


def plan_text(study: StudyConfig, user: UserConfig, *, with_runs: bool) -> str:
    """The grid of experiments with hash and memory estimate, the expected duration, and the runs in order if asked."""
    plan = make_plan(study)
    summaries = describe_all(study.experiments)
    parts = [_head(study, plan), "", _experiments(study, user, plan, summaries), "", duration_line(study, user, plan)]
    if with_runs:
        rows = [[str(i), str(r.index), str(r.cycle), summaries[r.position]] for i, r in enumerate(plan.runs, 1)]
        parts += ["", "order of runs:", grid(["run", "index", "cycle", "configuration"], rows, left=4)]
    return "\n".join(parts)


def _head(study: StudyConfig, plan: Plan) -> str:
    cycles, runs = study.execution.n_cycles, len(plan.runs)
    sizes = f"{counted(len(study.experiments), 'experiment')} x {counted(cycles, 'cycle')} = {counted(runs, 'run')}"
    return f"{study.name}: {sizes}" + (f", order {study.execution.cycle_order}" if runs > 1 else "")


def _experiments(study: StudyConfig, user: UserConfig, plan: Plan, summaries: list[str]) -> str:
    hashes = {r.position: r.config_hash for r in plan.runs}
    rows = []
    for position, config in enumerate(study.experiments):
        estimate = preflight.estimate_memory(config, user)
        memory = f"{estimate.total_mb:,.0f}" if estimate else "(unavailable)"
        rows.append([str(position), summaries[position], hashes[position], memory])
    return grid(["#", "configuration", "hash", "memory (MB)"], rows, left=3)


def duration_line(study: StudyConfig, user: UserConfig, plan: Plan, *, gaps: bool = True) -> str:
    """How long the study takes at least, as far as that is known beforehand."""
    gap_s = sum(planned_gaps_s(study, plan.runs, user)) if gaps else 0.0
    each = [expected(e, user) for e in study.experiments]
    least_s = gap_s + all_runs_s([each[r.position] for r in plan.runs])
    if not least_s:
        return "expected duration: one pass over the prompts per run, known after the first batch"
    pauses = f", of which pauses {duration_text(gap_s)}" if gap_s else ""
    return f"expected duration: at least {duration_text(least_s)} plus loading{pauses}"


def plan_json(study: StudyConfig) -> dict[str, Any]:
    """The plan as documented for `llem plan --json`."""
    plan = make_plan(study)
    hashes = {r.position: r.config_hash for r in plan.runs}
    summaries = describe_all(study.experiments)
    return {
        "study_design_hash": plan.design_hash,
        "experiments": [
            {
                "index": i,
                "config_hash": hashes[i],
                "backend": e.backend,
                "summary": summaries[i],
                "config": canonical(e),
            }
            for i, e in enumerate(study.experiments)
        ],
        "runs": [{"index": r.index, "cycle": r.cycle, "config_hash": r.config_hash} for r in plan.runs],
        "skipped": [s.model_dump() for s in study.skipped],
    }


def refusals(study: StudyConfig, user: UserConfig, runner: str | None = None) -> list[str]:
    """What `llem run` would refuse of it on this machine, each once; `runner` as the command line names it.

    Only what is known at once: models, prompts, sensors and GPUs are looked at when it is run.
    """
    found = [str(p) for config in study.experiments for p in preflight.engine_problems(config)]
    try:
        check_runners(study, user, runner)
    except PreFlightError as err:
        found += map(str, err.problems)
    return [f"note: llem run refuses this on this machine: {text}" for text in dict.fromkeys(found)]


def notices(texts: Iterable[str], study: StudyConfig | None) -> list[str]:
    """What a user should know before anything runs, each once, and how many combinations are skipped for what."""
    lines = [f"note: {text}" for text in dict.fromkeys(texts)]
    if study is not None and study.skipped:
        are = "is" if len(study.skipped) == 1 else "are"
        lines.append(f"note: {counted(len(study.skipped), 'combination')} {are} skipped:")
        found = [s.reason for s in study.skipped]
        lines += [f"  {found.count(reason)} x {reason}" for reason in dict.fromkeys(found)]
    return lines
