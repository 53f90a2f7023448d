"""Reads a study back from where its results lie: a folder of `llem run`, a bucket, a downloaded copy of one.

The files alone are enough: study.json says what was to be run, each run's newest result.json or failure.json what
came of it. What has neither is missing: not yet run, still running, or lost.
"""

import io
import json
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

from pydantic import ValidationError

from llenergymeasure import __version__, store
from llenergymeasure.core.config import ExperimentConfig, StudyConfig
from llenergymeasure.core.errors import ResultStoreError, StudyError
from llenergymeasure.core.identity import measurement_config_hash
from llenergymeasure.core.manifest import ManifestRow, StudyManifest, StudyStatus, rows_of
from llenergymeasure.core.plan import Plan, Run, describe_all, make_plan
from llenergymeasure.core.resources import STUDY_KIND, study_of
from llenergymeasure.core.result import ExperimentResult, StudyResult
from llenergymeasure.object_store import Place
from llenergymeasure.study_summary import summarise
from llenergymeasure.waiting import Patience

READ_S = 10.0  # a person waits for the answer
AT_ONCE = 8
HASH_DIGITS = 8  # of a configuration's hash in the names of folders

_CLUSTER_RUN = re.compile(
    r"(?P<index>\d{5,})-(?P<hash>[0-9a-f]{8})-c(?P<cycle>\d+)/a(?P<attempt>\d+)/(?P<file>result|failure)\.json"
)
_LOCAL_RUN = re.compile(r"runs/(?P<index>\d{5,})_c(?P<cycle>\d+)_.*_(?P<hash>[0-9a-f]{8})/(?P<file>result)\.json")
_SINGLE = re.compile(r"(?:a(?P<attempt>\d+)/)?(?P<file>result|failure)\.json")

T = TypeVar("T")


@dataclass(frozen=True)
class Rebuilt:
    """A study as its files tell it; `results` in order of `files`, which gives each run's result.json by index.

    Long lists of a result (tokens of each request, texts) are left in its file: a study has many results.
    """

    study: StudyResult
    manifest: StudyManifest
    results: list[ExperimentResult]
    config: StudyConfig
    place: Place
    files: dict[int, str]

    def by_index(self) -> dict[int, ExperimentResult]:
        """The results by index of their run."""
        return dict(zip(sorted(self.files), self.results, strict=True))


@dataclass(frozen=True)
class _Failure:
    """Why a run has no result."""

    type: str
    message: str
    at: datetime | None = None


@dataclass
class _Found:
    """Files of one run by attempt, and what was read from them."""

    results: dict[int, str] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)
    result: ExperimentResult | None = None
    failure: _Failure | None = None

    @property
    def file(self) -> str | None:
        """The newest attempt's result."""
        return self.results[max(self.results)] if self.results else None


_Key = tuple[str, int]  # first digits of the configuration's hash, cycle


def rebuild(place: Place) -> Rebuilt:
    """Read a study's files.

    Raises:
        ResultStoreError: There is nothing to report. StudyError: Files that do not belong together.
        UnreachableError, ConfigError: The store does not answer; study.json is not of this version.

    """
    names = place.names(_patience(place))
    runs = _runs(names)
    if store.STUDY not in names and not runs:
        raise ResultStoreError(f"{place.uri}: no study and no result{_hint(names)}")
    _read_all(place, runs)
    study = _study(place, names, runs)
    plan = make_plan(study)
    told = _manifest(place) if store.MANIFEST in names else None
    _refuse_strangers(place, plan, runs)
    return _assembled(place, study, plan, runs, told)


def read_series(rebuilt: Rebuilt, index: int) -> list[dict[str, Any]]:
    """The rows of a run's timeseries.parquet; none if it has no such file or no GPU."""
    import pyarrow.parquet as pq

    name = rebuilt.files[index].removesuffix(store.RESULT) + store.SERIES
    content = rebuilt.place.get(name, _patience(rebuilt.place))
    return [] if content is None else pq.read_table(io.BytesIO(content)).to_pylist()


def _patience(place: Place) -> Patience:
    return Patience(0.0 if place.is_folder else READ_S)


def _hint(names: Iterable[str]) -> str:
    below = sorted({n.rpartition("/")[0] for n in names if n.endswith(f"/{store.STUDY}")})
    return f"; studies below it: {', '.join(below[:10])}{' …' if len(below) > 10 else ''}" if below else ""


def _runs(names: Iterable[str]) -> dict[_Key, _Found]:
    """Where each run's files are; a folder of one run has the key ("", 1)."""
    runs: dict[_Key, _Found] = {}
    for name in names:
        match = _CLUSTER_RUN.fullmatch(name) or _LOCAL_RUN.fullmatch(name) or _SINGLE.fullmatch(name)
        if match is None:
            continue
        said = match.groupdict()
        found = runs.setdefault((said.get("hash") or "", int(said.get("cycle") or 1)), _Found())
        files = found.results if said["file"] == "result" else found.failures
        files[int(said.get("attempt") or 1)] = name
    return runs


def _read_all(place: Place, runs: Mapping[_Key, _Found]) -> None:
    parse = _Keeper().result
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda found: _read(place, found, parse), runs.values()))


def _read(place: Place, found: _Found, parse: Callable[[bytes], ExperimentResult]) -> None:
    if found.file is not None:
        found.result = _parsed(place, found.file, parse)
        if found.result is None:
            found.failure = _Failure("ResultUnreadable", f"{found.file} is no result that this version reads")
    elif found.failures:
        name = found.failures[max(found.failures)]
        found.failure = _parsed(place, name, _failure) or _Failure("Unknown", f"{name} cannot be read")


def _parsed(place: Place, name: str, parse: Callable[[bytes], T]) -> T | None:
    try:
        return parse(place.get(name, _patience(place)) or b"")
    except (ValueError, KeyError, TypeError):  # pydantic's and json's errors are ValueErrors
        return None


class _Keeper:
    """Parses results without what only their own readers need; what many have in common is kept once."""

    def __init__(self) -> None:
        self._seen: dict[str, Any] = {}

    def result(self, content: bytes) -> ExperimentResult:
        """A result whose long lists are left in its file."""
        found = ExperimentResult.from_json(content)
        lists: dict[str, Any] = {"request_input_tokens": [], "request_output_tokens": [], "texts": None}
        groups = ("environment_snapshot", "effective_config", "engine_effective", "parameter_provenance")
        return found.model_copy(update={**lists, **{n: self._shared(getattr(found, n)) for n in groups}})

    def _shared(self, group: Mapping[str, Any]) -> dict[str, Any]:
        return {k: self._seen.setdefault(json.dumps(v, sort_keys=True), v) for k, v in group.items()}


def _failure(content: bytes) -> _Failure:
    data = json.loads(content)
    error = data["error"]
    return _Failure(str(error["type"]), str(error["message"]), datetime.fromisoformat(data["failed_at"]))


def _json(place: Place, name: str) -> dict[str, Any]:
    try:
        data = json.loads(place.get(name, _patience(place)) or b"")
    except ValueError as err:
        raise StudyError(f"{place.uri}/{name}: cannot be read: {err}") from err
    if not isinstance(data, dict):
        raise StudyError(f"{place.uri}/{name}: must be a JSON object")
    return data


def _study(place: Place, names: Iterable[str], runs: dict[_Key, _Found]) -> StudyConfig:
    """What was to be run, with as many cycles as there are now: a study may have been topped up."""
    if store.STUDY not in names:
        return _study_of_results(place, runs)
    source, data = f"{place.uri}/{store.STUDY}", _json(place, store.STUDY)
    try:
        study = _from_cluster(data, source) if "design" in data else StudyConfig.model_validate(data)
    except ValidationError as err:
        raise StudyError(f"{source}: is not a study of this version: {err.error_count()} fields are wrong") from err
    repeats = dict(zip(map(_short, study.experiments), study.repeats or (1,) * len(study.experiments), strict=True))
    seen = [(cycle - 1) // repeats[digest] + 1 for digest, cycle in runs if digest in repeats]
    cycles = max([study.execution.n_cycles, *seen])
    return study.model_copy(update={"execution": study.execution.model_copy(update={"n_cycles": cycles})})


def _short(config: ExperimentConfig) -> str:
    return measurement_config_hash(config)[:HASH_DIGITS]


def _from_cluster(data: Mapping[str, Any], source: str) -> StudyConfig:
    if data["design"] is None:
        raise StudyError(f"{source}: holds no design ({data.get('design_omitted')}); use llem results on the cluster")
    spec = {"design": data["design"], "execution": data.get("execution")}
    return study_of({"kind": STUDY_KIND, "metadata": {"name": data.get("name")}, "spec": spec}, source=source)


def _study_of_results(place: Place, runs: dict[_Key, _Found]) -> StudyConfig:
    """A study of exactly the configurations whose results are here."""
    by_hash = {r.measurement_config_hash: r for found in runs.values() if (r := found.result) is not None}
    if not by_hash:
        failed = next((f.failure for f in runs.values() if f.failure), None)
        said = f": {failed.type}: {failed.message}" if failed else ""
        raise ResultStoreError(f"{place.uri}: no study and no result, but a failure{said}")
    for digest, cycle in list(runs):
        if not digest and (result := runs[digest, cycle].result) is not None:
            runs[result.measurement_config_hash[:HASH_DIGITS], cycle] = runs.pop((digest, cycle))
    experiments = tuple(ExperimentConfig.model_validate(r.effective_config) for r in by_hash.values())
    cycles = max(cycle for _, cycle in runs)
    return StudyConfig.model_validate(
        {"name": place.uri.rpartition("/")[2] or "study", "experiments": experiments, "execution": {"n_cycles": cycles}}
    )


def _manifest(place: Place) -> StudyManifest:
    """What `llem run` noted of its runs."""
    try:
        return StudyManifest.model_validate(_json(place, store.MANIFEST))
    except ValidationError as err:
        raise StudyError(f"{store.MANIFEST}: is not of this version: {err.error_count()} fields are wrong") from err


def _key(run: Run) -> _Key:
    return run.config_hash[:HASH_DIGITS], run.cycle


def _refuse_strangers(place: Place, plan: Plan, runs: Mapping[_Key, _Found]) -> None:
    strangers = sorted(f"{digest}, cycle {cycle}" for digest, cycle in runs.keys() - {_key(r) for r in plan.runs})
    if strangers:
        raise StudyError(
            f"{place.uri}: {len(strangers)} runs belong to no run of {store.STUDY} (configuration {strangers[0]}); "
            "the files are of another study, or this version of llem expands the design differently"
        )


def _assembled(
    place: Place, study: StudyConfig, plan: Plan, runs: Mapping[_Key, _Found], told: StudyManifest | None
) -> Rebuilt:
    summaries = describe_all(study.experiments)
    found = {r.index: runs.get(_key(r), _Found()) for r in sorted(plan.runs, key=lambda r: r.index)}
    noted = {r.index: r for r in told.rows} if told else {}
    rows = tuple(_row(noted.get(r.index, r), found[r.index]) for r in rows_of(plan, summaries))
    results = {i: f.result for i, f in found.items() if f.result is not None}
    manifest = StudyManifest(
        name=study.name,
        study_design_hash=plan.design_hash,
        tool_version=next((r.tool_version for r in results.values() if r.tool_version), __version__),
        calibration_sha256=told.calibration_sha256 if told else None,
        status=told.status if told else _status(rows),
        started_at=min((r.started_at for r in rows if r.started_at), default=datetime.now(UTC)),
        completed_at=max((r.completed_at for r in rows if r.completed_at), default=None),
        skipped=len(study.skipped),
        rows=rows,
    )
    files = {i: f.file for i, f in found.items() if f.result is not None and f.file is not None}
    result = summarise(study, plan, manifest, results, files=files, directory=place.uri)
    return Rebuilt(result, manifest, [results[i] for i in sorted(results)], study, place, files)


def _row(row: ManifestRow, found: _Found) -> ManifestRow:
    """A run as its files tell it; what they do not tell is as the manifest has it."""
    attempts = max([*found.results, *found.failures, row.attempts], default=0)
    if found.result is not None:
        changes: dict[str, Any] = {
            "status": "completed",
            "verdict": found.result.verdict.state,
            "result_uri": found.file,
            "started_at": row.started_at or found.result.start_time,
            "completed_at": row.completed_at or found.result.end_time,
            "error_type": None,
            "error_message": None,
        }
    elif found.failure is not None:
        changes = {
            "status": "failed",
            "error_type": found.failure.type,
            "error_message": found.failure.message,
            "completed_at": found.failure.at,
        }
    elif row.status == "completed":
        changes = {
            "status": "failed",
            "verdict": None,
            "error_type": "ResultMissing",
            "error_message": f"{row.result_uri} is not there",
        }
    else:
        changes = {}
    return row.model_copy(update={"attempts": attempts, **changes})


def _status(rows: Iterable[ManifestRow]) -> StudyStatus:
    states = {r.status for r in rows}
    return "running" if "pending" in states else "failed" if "failed" in states else "completed"
