"""Shows studies of a cluster as text: tables, a page per study, one sentence on what it waits for. Pure."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from llenergymeasure import cluster_status as status
from llenergymeasure.cluster_status import Resource, age_text, condition, fails, holds, message_of, name_of, sentence
from llenergymeasure.report import grid
from llenergymeasure.wording import DASH, counted, number

MOST_ROWS = 40
"""A study's page shows its runs one by one up to this many; above, as ranges of indexes."""

STUDY_HEAD = ["study", "state", "total", "done", "failed", "invalid", "running", "best (mJ/token)", "age"]
EXPERIMENT_HEAD = ["experiment", "state", "node", "energy (mJ/token)", "verdict", "age"]


def studies_table(items: Sequence[Resource], now: datetime, *, namespaces: bool = False) -> str:
    """All studies, a row each, in the order of their names."""
    rows = [_study_row(s, now) for s in sorted(items, key=_place)]
    if namespaces:
        rows = [[status.namespace_of(s), *row] for s, row in zip(sorted(items, key=_place), rows, strict=True)]
    return grid(["namespace", *STUDY_HEAD] if namespaces else STUDY_HEAD, rows, left=3 if namespaces else 2)


def _place(obj: Resource) -> tuple[str, str]:
    return status.namespace_of(obj), name_of(obj)


def _study_row(study: Resource, now: datetime) -> list[str]:
    n = status.counts(study)
    best = status.status_of(study).get("best") or {}
    numbers = [str(n[k]) for k in ("total", "completed", "failed", "invalid", "running")]
    energy = number_text(best.get("energyPerOutputTokenMillijoules"))
    return [name_of(study), status.state(study), *numbers, energy, _age(study, now)]


def _age(obj: Resource, now: datetime) -> str:
    return age_text(obj["metadata"].get("creationTimestamp"), now)


def number_text(value: Any) -> str:
    """A decimal string of the status with four significant digits; a dash for none."""
    return DASH if value in (None, "") else number(float(value))


def experiments_table(items: Sequence[Resource], now: datetime, *, namespaces: bool = False) -> str:
    """Experiments that belong to no study, a row each."""
    rows = []
    for experiment in sorted(items, key=_place):
        found = status.status_of(experiment)
        summary = found.get("summary") or {}
        row = [name_of(experiment), status.state(experiment), str(found.get("node") or DASH)]
        row += [number_text(summary.get("energyPerOutputTokenMillijoules")), str(summary.get("verdict") or DASH)]
        rows.append([*([status.namespace_of(experiment)] if namespaces else []), *row, _age(experiment, now)])
    return grid(["namespace", *EXPERIMENT_HEAD] if namespaces else EXPERIMENT_HEAD, rows, left=4 if namespaces else 3)


def progress_line(obj: Resource) -> str:
    """A study or experiment in one line, for terminals that are none: state, counts, what it does."""
    said = message_of(obj, "Finished")
    parts = [f"{name_of(obj)}: {status.state(obj)}"]
    if status.is_study(obj) and not _tells_counts(said):
        parts.append(_counts_text(obj))
    return ", ".join([*parts, *([said] if said else [])])


def _tells_counts(message: str) -> bool:
    """Whether the operator's own words begin with how many runs are done."""
    return " runs completed" in message


def _counts_text(study: Resource) -> str:
    n = status.counts(study)
    if not n["total"]:
        return "runs not yet known"
    invalid = f" ({n['invalid']} invalid)" if n["invalid"] else ""
    others = [f"{n[k]} {k}" for k in ("running", "pending", "failed", "interrupted", "cancelled") if n[k]]
    return ", ".join([f"{n['completed']} of {counted(n['total'], 'run')} completed{invalid}", *others])


def page(obj: Resource, now: datetime) -> str:
    """All that is worth knowing of one study or experiment."""
    return _study_page(obj, now) if status.is_study(obj) else _experiment_page(obj, now)


def _study_page(study: Resource, now: datetime) -> str:
    found = status.status_of(study)
    lines = [
        ("study", f"{name_of(study)} (namespace {status.namespace_of(study)}, {_age(study, now)} old)"),
        ("state", _state_text(study)),
        ("runs", f"{_bar(study)}{_counts_text(study)}"),
        *_times(found, now),
        ("best", _best_text(found.get("best"))),
        ("results", str(found.get("resultsURI") or DASH)),
        ("baselines", _baselines_text(found.get("baselines") or ())),
    ]
    parts = [_aligned([(k, v) for k, v in lines if v != DASH])]
    parts += [_active(found.get("active") or (), now), _failures(found.get("recentFailures") or ())]
    skipped = found.get("skipped") or ()
    if skipped:
        parts.append("\n".join(["skipped combinations", *(f"  {s['count']} x {s['reason']}" for s in skipped)]))
    parts.append(_runs(found))
    return "\n\n".join(p for p in parts if p)


def _aligned(lines: Sequence[tuple[str, str]]) -> str:
    width = max(len(k) for k, _ in lines)
    return "\n".join(f"{k.ljust(width)}  {v}" for k, v in lines)


def _state_text(obj: Resource) -> str:
    if status.is_new(obj):
        return "New: the operator has not looked at it yet"
    said = message_of(obj, "Finished") or message_of(obj, "Accepted")
    unseen = "" if status.is_seen(obj) else " (the operator has not seen the latest change yet)"
    return f"{status.state(obj)}{': ' if said else ''}{said}{unseen}"


def _bar(study: Resource, width: int = 20) -> str:
    n = status.counts(study)
    if not n["total"]:
        return ""
    ended = n["completed"] + n["failed"] + n["cancelled"]
    filled = min(width, width * ended // n["total"])
    return f"[{'#' * filled}{'-' * (width - filled)}] "


def _times(found: Mapping[str, Any], now: datetime) -> list[tuple[str, str]]:
    start, end, following = (found.get(k) for k in ("startTime", "completionTime", "nextEligibleTime"))
    lines = []
    if start:
        lines.append(("started", f"{start}, {age_text(start, now)} ago"))
    if end:
        lines.append(("ended", f"{end}, {age_text(end, now)} ago"))
    then = status.when(following)
    if then is not None and then > now and not end:
        lines.append(("next run", f"not before {following}, in {status.span_text((then - now).total_seconds())}"))
    return lines


def _best_text(best: Mapping[str, Any] | None) -> str:
    if not best:
        return DASH
    energy = number_text(best.get("energyPerOutputTokenMillijoules"))
    what = best.get("configSummary") or best.get("configHash") or best.get("experiment")
    return f"{what}: {energy} mJ/token over {counted(int(best.get('cycles') or 1), 'cycle')}"


def _baselines_text(baselines: Sequence[Mapping[str, Any]]) -> str:
    watts = [f"{int(b['powerMilliwatts']) / 1000:.1f} W {b['kind']}" for b in baselines]
    return f"{counted(len(watts), 'GPU')}: {', '.join(watts)}" if watts else DASH


def _active(active: Sequence[Mapping[str, Any]], now: datetime) -> str:
    if not active:
        return ""
    rows = [
        [
            str(a.get("experiment") or DASH),
            str(a.get("attempt") or DASH),
            str(a.get("node") or DASH),
            age_text(a.get("since"), now),
            status.one_line(str(a.get("message") or "")),
        ]
        for a in active
    ]
    return grid(["active run", "attempt", "node", "for", "what it does"], rows, left=5)


def _failures(failures: Sequence[Mapping[str, Any]]) -> str:
    if not failures:
        return ""
    lines = [f"  {f.get('experiment')}: {f.get('reason')}: {status.one_line(str(f.get('message')))}" for f in failures]
    return "\n".join(["latest failures", *lines])


def _runs(found: Mapping[str, Any]) -> str:
    rows, nodes = found.get("manifest") or (), found.get("nodes") or ()
    if rows and len(rows) <= MOST_ROWS:
        head = ["run", "cycle", "hash", "state", "attempt", "node", "mJ/token"]
        return grid(head, [_run_row(r, nodes) for r in rows], left=4)
    ranges = [(k, str(v)) for k, v in (found.get("indexes") or {}).items() if v]
    return "\n".join(["runs by index", *(f"  {line}" for line in _aligned(ranges).splitlines())]) if ranges else ""


def _run_row(row: Mapping[str, Any], nodes: Sequence[str]) -> list[str]:
    place = row.get("nodeIndex")
    node = nodes[place] if isinstance(place, int) and 0 <= place < len(nodes) else DASH
    cells = [str(DASH if row.get(k) in (None, "") else row[k]) for k in ("index", "cycle", "hash", "status", "attempt")]
    return [*cells, node, number_text(row.get("millijoulesPerOutputToken"))]


def _experiment_page(experiment: Resource, now: datetime) -> str:
    found, spec = status.status_of(experiment), status.spec_of(experiment)
    summary, result = found.get("summary") or {}, found.get("result") or {}
    study = (spec.get("studyRef") or {}).get("name")
    place = f"{study}, index {spec.get('index')}, cycle {spec.get('cycle')}" if study else DASH
    energy = number_text(summary.get("energyPerOutputTokenMillijoules"))
    last = status.last_attempt(experiment)
    lines = [
        (
            "experiment",
            f"{name_of(experiment)} (namespace {status.namespace_of(experiment)}, {_age(experiment, now)} old)",
        ),
        ("study", place),
        ("state", _state_text(experiment)),
        *_times(found, now),
        ("attempt", f"{last.get('attempt')}, pod {last.get('podName') or DASH}" if last else DASH),
        ("node", str(found.get("node") or DASH)),
        ("GPU", str((found.get("environment") or {}).get("gpuProduct") or DASH)),
        ("tokens/s", number_text(summary.get("tokensPerSecond"))),
        ("energy", DASH if energy == DASH else f"{energy} mJ/token"),
        ("no energy", str(summary.get("energyNullReason") or DASH)),
        ("verdict", str(summary.get("verdict") or DASH)),
        ("result", str(result.get("uri") or DASH)),
    ]
    warnings = "\n".join(f"warning {w}" for w in found.get("warnings") or ())
    return "\n\n".join(p for p in (_aligned([(k, v) for k, v in lines if v != DASH]), warnings) if p)


def why(obj: Resource, children: Sequence[Resource] = (), *, now: datetime) -> str:
    """One sentence: what a study or experiment waits for, or why it failed.

    `children` are the experiments that a running study has under way (its `status.active`).
    """
    name = name_of(obj)
    if obj["metadata"].get("deletionTimestamp"):
        return f"{name} is being deleted."
    if status.is_new(obj) and status.is_child(obj):
        return f"{name} waits for its turn in {status.spec_of(obj)['studyRef']['name']}."
    if status.is_new(obj):
        return (
            f"{name} waits for the operator, which has not looked at it in {_age(obj, now)}: "
            f"it may not run, or not watch namespace {status.namespace_of(obj)}."
        )
    if not status.is_seen(obj):
        return f"{name} waits for the operator, which has not seen the latest change of its specification yet."
    if fails(obj, "Accepted"):
        return sentence(f"{name} was refused: {message_of(obj, 'Accepted')}")
    if holds(obj, "Finished"):
        return _why_finished(obj)
    if holds(obj, "Suspended"):
        return sentence(f"{name} is suspended until llem resume {name}: {message_of(obj, 'Suspended')}".rstrip(": "))
    return _why_study(obj, children, now) if status.is_study(obj) else _why_experiment(obj, now)


def _why_finished(obj: Resource) -> str:
    name, said = name_of(obj), message_of(obj, "Finished")
    if holds(obj, "Succeeded"):
        note = "" if not fails(obj, "MeasurementValid") else f", but: {message_of(obj, 'MeasurementValid')}"
        invalid = status.counts(obj)["invalid"]
        note = f", but {counted(invalid, 'result')} must not be believed" if invalid else note
        return sentence(f"{name} waits for nothing, it is done: {said}{note}".replace(".,", ","))
    text = f"{name} failed ({status.state(obj)}): {said}"
    failures = status.status_of(obj).get("recentFailures") or ()
    if failures:
        latest = failures[0]
        text = f"{text.rstrip('.')}; {latest.get('experiment')}: {latest.get('reason')}: {latest.get('message')}"
    return sentence(text)


def _why_study(study: Resource, children: Sequence[Resource], now: datetime) -> str:
    name = name_of(study)
    blocked = [c for c in children if fails(c, "Scheduled") and not holds(c, "Finished")]
    if blocked:
        return sentence(f"{name} ({_counts_text(study)}): {_waits(blocked[0])}")
    measuring = [c for c in children if not holds(c, "Finished")]
    said = message_of(study, "Finished")
    if measuring and not said:
        said = _measures(measuring[0], now)
    if _tells_counts(said):
        return sentence(f"{name}: {said}")
    return sentence(f"{name} ({_counts_text(study)}): {said or status.state(study)}")


def _waits(experiment: Resource) -> str:
    reason = condition(experiment, "Scheduled").get("reason")
    return f"{name_of(experiment)} waits ({reason}): {message_of(experiment, 'Scheduled')}"


def _measures(experiment: Resource, now: datetime) -> str:
    last = status.last_attempt(experiment)
    node = last.get("node") or status.status_of(experiment).get("node")
    since = last.get("start") or last.get("created")
    where = f" on {node}" if node else ""
    return f"{name_of(experiment)} runs{where}" + (f" for {age_text(since, now)}" if since else "")


def _why_experiment(experiment: Resource, now: datetime) -> str:
    if fails(experiment, "Scheduled"):
        return sentence(_waits(experiment))
    said = message_of(experiment, "Finished")
    running = status.state(experiment) in ("Running", "Measuring")
    return sentence(f"{name_of(experiment)}: {said}" if said and not running else _measures(experiment, now))
