"""Makes the comparison of configurations out of the summaries in experiments' statuses: table, JSON, CSV. Pure.

The same table as at the end of `llem run`, from the ten numbers that each run left in its status; the whole results
lie at their URIs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llenergymeasure import cluster_status as status
from llenergymeasure.cluster_status import Resource
from llenergymeasure.core import resources, tables
from llenergymeasure.core.identity import measurement_config_hash
from llenergymeasure.core.plan import describe_all
from llenergymeasure.core.result import ExperimentStatistics
from llenergymeasure.core.statistics import statistic
from llenergymeasure.core.study_statistics import described, has_say
from llenergymeasure.core.termination import Numbers
from llenergymeasure.report import PRETENDED, comparison, grid
from llenergymeasure.wording import DASH, counted

KILO, MEBI = 1000, 1024**2 / 1e6  # mJ to J; MiB to MB


@dataclass(frozen=True)
class Row:
    """One run as its experiment's status tells it; `numbers` is empty and `verdict` None without a result."""

    experiment: str
    index: int
    cycle: int
    config_hash: str
    state: str
    attempt: int | None
    node: str | None
    verdict: str | None
    energy_null_reason: str | None
    synthetic: bool
    numbers: Numbers
    uri: str | None
    sha256: str | None
    problem: str | None

    @property
    def quantities(self) -> dict[str, float | None]:
        """The numbers under the names and in the units of a result."""
        n = self.numbers
        tokens, adjusted = n.output_tokens, n.energy_adjusted_joules
        energy = n.energy_per_output_token_millijoules
        mean = n.energy_total_joules / n.duration_seconds if n.energy_total_joules and n.duration_seconds else None
        return {
            "energy_per_output_token_j": None if energy is None else energy / KILO,
            "energy_total_j": n.energy_total_joules,
            "energy_adjusted_j": adjusted,
            "energy_adjusted_per_output_token_j": adjusted / tokens if adjusted is not None and tokens else None,
            "baseline_power_w": n.baseline_watts,
            "mean_power_w": mean,
            "tokens_per_second": n.tokens_per_second,
            "output_tokens": n.output_tokens,
            "requests": n.requests,
            "duration_s": n.duration_seconds,
            "latency.p50_ms": n.latency_p50_milliseconds,
            "memory_peak_mb": None if n.memory_peak_mebibytes is None else n.memory_peak_mebibytes * MEBI,
        }


@dataclass(frozen=True)
class Results:
    """What a study, or one experiment alone, has come to so far."""

    name: str
    rows: tuple[Row, ...]
    summaries: Mapping[str, str]
    total: int
    uri: str | None = None

    @property
    def stored(self) -> list[Row]:
        """Runs whose result is in the store."""
        return [r for r in self.rows if r.verdict is not None]

    @property
    def all_valid(self) -> bool:
        """Whether every run has a result and every verdict is `valid`."""
        return len(self.stored) == self.total and all(r.verdict == "valid" for r in self.stored)

    def summary(self, config_hash: str) -> str:
        """The configuration in words; its hash where this version of llem cannot expand the design."""
        return self.summaries.get(config_hash, f"configuration {config_hash[:8]}")


def results_of(obj: Resource, children: Sequence[Resource]) -> Results:
    """Collect the results of a study from its experiments, or of a standalone experiment from itself."""
    if not status.is_study(obj):
        config = resources.experiment_of(obj, source=status.name_of(obj))
        digest = measurement_config_hash(config)
        return Results(status.name_of(obj), (_row(obj, digest),), {digest: describe_all([config])[0]}, 1)
    rows = sorted((_row(c, "") for c in children if is_owned(c, obj)), key=lambda r: r.index)
    total = status.counts(obj)["total"] or len(rows)
    uri = status.status_of(obj).get("resultsURI")
    return Results(status.name_of(obj), tuple(rows), _summaries(obj), total, uri)


def is_owned(experiment: Resource, study: Resource) -> bool:
    """Whether a study is the controller of an experiment: by UID, since anybody may write a label."""
    owners = experiment["metadata"].get("ownerReferences") or ()
    return any(o.get("controller") and o.get("uid") == study["metadata"].get("uid") for o in owners)


def _summaries(study: Resource) -> dict[str, str]:
    expanded = resources.study_of(study, source=status.name_of(study))
    hashes = [measurement_config_hash(e) for e in expanded.experiments]
    return dict(zip(hashes, describe_all(expanded.experiments), strict=True))


def _row(experiment: Resource, digest: str) -> Row:
    spec, found = status.spec_of(experiment), status.status_of(experiment)
    summary, result = found.get("summary") or {}, found.get("result") or {}
    failed = status.holds(experiment, "Finished") and not status.holds(experiment, "Succeeded")
    return Row(
        experiment=status.name_of(experiment),
        index=int(spec.get("index") or 0),
        cycle=int(spec.get("cycle") or 1),
        config_hash=str(spec.get("configHash") or digest),
        state=status.state(experiment),
        attempt=found.get("attempt"),
        node=found.get("node"),
        verdict=summary.get("verdict"),
        energy_null_reason=summary.get("energyNullReason"),
        synthetic=bool(summary.get("synthetic")),
        numbers=Numbers.model_validate(summary),
        uri=result.get("uri"),
        sha256=result.get("sha256"),
        problem=f"{status.state(experiment)}: {status.message_of(experiment, 'Finished')}" if failed else None,
    )


COLUMNS = ("energy_per_output_token_j", "energy_adjusted_per_output_token_j", "tokens_per_second", "mean_power_w")
COLUMNS_UNJUDGED = ("duration_s", "latency.p50_ms")


def statistics(results: Results) -> list[ExperimentStatistics]:
    """Statistics over the cycles of each configuration; in energy only valid cycles have a say, as in a study here."""
    groups: dict[str, list[Row]] = {}
    for row in results.stored:
        groups.setdefault(row.config_hash, []).append(row)
    return [_statistics(digest, results.summary(digest), rows) for digest, rows in groups.items()]


def _statistics(digest: str, summary: str, rows: Sequence[Row]) -> ExperimentStatistics:
    verdicts: dict[str, int] = {}
    for row in rows:
        verdicts[str(row.verdict)] = verdicts.get(str(row.verdict), 0) + 1
    values = {
        name: [v for r in rows if has_say(name, r.verdict, verdicts) and (v := r.quantities[name]) is not None]
        for name in (*COLUMNS, *COLUMNS_UNJUDGED)
    }
    return ExperimentStatistics(
        config_hash=digest,
        summary=summary,
        cycles_completed=len(rows),
        verdicts=verdicts,
        statistics=described({k: s for k, v in values.items() if (s := statistic(v)) is not None}, verdicts),
    )


def text(results: Results) -> str:
    """The table, why an energy is missing, what failed, and where the whole results are."""
    stored, parts = results.stored, []
    if stored:
        pretending = {r.config_hash for r in stored if r.synthetic}
        parts.append(comparison(statistics(results), [], pretending))
        parts += [PRETENDED] if pretending else []
    parts += ["\n".join(lines) for lines in (_null_reasons(results), _problems(results)) if lines]
    parts.append(f"{len(stored)} of {counted(results.total, 'run')} completed")
    if stored:
        rows = [[str(r.index), str(r.cycle), str(r.verdict), r.uri or DASH] for r in stored]
        parts.append(grid(["run", "cycle", "verdict", "result"], rows, left=4))
    return "\n\n".join(parts)


def _null_reasons(results: Results) -> list[str]:
    found: dict[str, list[str]] = {}
    for row in results.stored:
        if row.numbers.energy_per_output_token_millijoules is None:
            found.setdefault(row.energy_null_reason or "the run named no reason", []).append(str(row.index))
    return [f"no energy in {_runs_text(indexes)}: {reason}" for reason, indexes in found.items()]


def _problems(results: Results) -> list[str]:
    return [
        f"failed run {r.index} (cycle {r.cycle}, {results.summary(r.config_hash)}): {r.problem}"
        for r in results.rows
        if r.problem
    ]


def _runs_text(indexes: Sequence[str]) -> str:
    shown = ", ".join(indexes[:10]) + (" …" if len(indexes) > 10 else "")
    return f"run {shown}" if len(indexes) == 1 else f"runs {shown}"


def as_json(results: Results) -> dict[str, Any]:
    """What `llem results --json` prints."""
    return {
        "name": results.name,
        "results_uri": results.uri,
        "summary": {
            "runs": results.total,
            "completed": len(results.stored),
            "failed": sum(r.problem is not None for r in results.rows),
            "invalid": sum(r.verdict == "invalid" for r in results.stored),
        },
        "experiments": [s.model_dump(exclude_none=True) for s in statistics(results)],
        "runs": [_flat(r, results.summary(r.config_hash)) for r in results.rows],
    }


def _flat(row: Row, summary: str) -> dict[str, Any]:
    return {
        "experiment": row.experiment,
        "index": row.index,
        "cycle": row.cycle,
        "config_hash": row.config_hash,
        "configuration": summary,
        "state": row.state,
        "attempt": row.attempt,
        "node": row.node,
        "verdict": row.verdict,
        "energy_null_reason": row.energy_null_reason,
        "synthetic": row.synthetic,
        **row.quantities,
        "result_uri": row.uri,
        "sha256": row.sha256,
        "problem": row.problem,
    }


def csv_text(results: Results) -> str:
    """One row per run, units in the headers."""
    rows = [_flat(r, results.summary(r.config_hash)) for r in results.rows]
    return tables.csv_text(rows, None if rows else ["experiment"])
