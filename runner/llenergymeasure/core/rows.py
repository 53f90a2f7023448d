"""Makes one flat row per run: what was run, what became of it, and every single quantity of its result.

A quantity's column has the name that it has in result.json, groups dotted (`latency.p50_ms`); a field of the
configuration has `config.` before it. What is not one value is joined by `;` (codes of warnings and of the verdict's
reasons, GPUs) or left to result.json (lists, texts, the whole environment). A run without a result has a row as well,
in which all quantities are null.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from functools import cache
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel

from llenergymeasure.core.config import ExperimentConfig
from llenergymeasure.core.errors import ResultStoreError
from llenergymeasure.core.tables import Column, Kind, in_utc

if TYPE_CHECKING:
    from llenergymeasure.core.result import ExperimentResult, StudyResult

CONFIG = "config."
JOIN = ";"
FIRST = (
    "study",
    "index",
    "cycle",
    "configuration",
    "config_hash",
    "status",
    "verdict.state",
    "verdict.reasons",
    "backend",
    "model",
    "start_time",
    "end_time",
)
DERIVED = ("verdict.reasons", "measurement_warnings", "null_reasons", "gpu_uuids", "gpu_names", "driver_version")
_KINDS: dict[type, Kind] = {bool: "boolean", int: "integer", float: "number", str: "text", datetime: "time"}


@dataclass(frozen=True)
class RunFacts:
    """What is known of a run beside its result; times are those of the run where there is no result."""

    study: str
    index: int
    cycle: int
    configuration: str
    config_hash: str
    status: str
    attempts: int | None = None
    error_type: str | None = None
    error_message: str | None = None
    directory: str | None = None
    result_file: str | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None


def run_row(
    facts: RunFacts, result: "ExperimentResult | None", config: Mapping[str, Any], quantities: tuple[Column, ...]
) -> dict[str, Any]:
    """The row of one run.

    Args:
        facts: What is known beside the result.
        result: What was measured, or None.
        config: The effective configuration as nested mappings; its fields come last.
        quantities: Columns of a result, from `single_values(ExperimentResult)`.

    """
    told = {f.name: getattr(facts, f.name) for f in fields(RunFacts)}
    row: dict[str, Any] = dict.fromkeys((*FIRST, *told, *(c.name for c in quantities), *DERIVED)) | told
    row |= {name: config.get(name) for name in ("backend", "model")}
    if result is not None:
        row |= values_of(result, quantities) | _derived(result)
    for name in ("start_time", "end_time"):
        row[name] = in_utc(row[name]) if row[name] is not None else None
    row.pop("measurement_config_hash", None)  # it is config_hash
    return row | _config_cells(config)


def values_of(record: BaseModel, columns: tuple[Column, ...]) -> dict[str, Any]:
    """The values of a record in these columns, by name; null where a group is missing."""
    return {c.name: _dig(record, c.name) for c in columns}


def _dig(record: Any, name: str) -> Any:
    for part in name.split("."):
        record = getattr(record, part, None)
    return in_utc(record) if isinstance(record, datetime) else record


def _derived(result: "ExperimentResult") -> dict[str, str | None]:
    environment = result.environment_snapshot
    visible = {g.get("uuid"): g.get("name") for g in environment.get("gpus") or ()}
    used = list(result.energy_per_device_j or visible)
    return {
        "verdict.reasons": JOIN.join(r.code for r in result.verdict.reasons),
        "measurement_warnings": JOIN.join(dict.fromkeys(t.partition(":")[0] for t in result.measurement_warnings)),
        "null_reasons": f"{JOIN} ".join(f"{name}: {reason}" for name, reason in result.null_reasons.items()),
        "gpu_uuids": JOIN.join(str(u) for u in used if u) or None,
        "gpu_names": JOIN.join(str(visible[u]) for u in used if visible.get(u)) or None,
        "driver_version": environment.get("driver_version"),
    }


def _config_cells(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that a configuration has, in the order of the schema."""
    cells: dict[str, Any] = {}
    for column in config_columns():
        value: Any = config
        for part in column.name.removeprefix(CONFIG).split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None and (cell := _as_declared(value, column)) is not None:
            cells[column.name] = cell
    return cells


def _as_declared(value: Any, column: Column) -> Any:
    if column.kind == "number":
        return float(value)  # an effective configuration has whole numbers as integers
    if column.kind != "text" or isinstance(value, str):
        return value
    inside = f"{column.name}."  # a field that may be a text or a group: the group has columns of its own
    grouped = any(c.name.startswith(inside) for c in config_columns())
    return None if grouped else json.dumps(value, sort_keys=True, ensure_ascii=False)


@cache
def config_columns() -> tuple[Column, ...]:
    """A column per field of a configuration in the order of its schema; lists and free mappings are JSON text."""
    return tuple(Column(f"{CONFIG}{c.name}", c.kind) for c in _leaves(ExperimentConfig, ""))


@cache
def single_values(model: type[BaseModel]) -> tuple[Column, ...]:
    """A column per field of a record that holds one value, groups dotted; lists and mappings have none."""
    return tuple(c for c in _leaves(model, "", open_ends=False))


@cache
def run_columns(model: type[BaseModel]) -> tuple[Column, ...]:
    """All columns that rows of runs may have; `model` is that of the results."""
    hints = {f.name: str(f.type) for f in fields(RunFacts)}
    told = [Column(n, "integer" if "int" in h else "time" if "time" in h else "text") for n, h in hints.items()]
    return (*told, *single_values(model), *(Column(n, "text") for n in DERIVED), *config_columns())


def _leaves(model: type[BaseModel], prefix: str, *, open_ends: bool = True) -> Iterator[Column]:
    """The fields of a model that are no groups; those of groups with a dotted name."""
    for name, field in model.model_fields.items():
        path, types = f"{prefix}{name}", _alternatives(field.annotation)
        groups = [t for t in types if isinstance(t, type) and issubclass(t, BaseModel)]
        kinds = {_KINDS.get(t) for t in types if t not in groups}
        only = kinds.pop() if len(kinds) == 1 else None
        if only is not None or (open_ends and len(groups) < len(types)):
            yield Column(path, only or "text")
        for group in groups:
            yield from _leaves(group, f"{path}.", open_ends=open_ends)


def _alternatives(annotation: Any) -> list[Any]:
    """The types that a field may have, without None; a choice of literals is its values' type."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _alternatives(get_args(annotation)[0])
    if origin is Literal:
        return list(dict.fromkeys(type(v) for v in get_args(annotation)))
    if origin in (Union, UnionType):
        return list(dict.fromkeys(t for a in get_args(annotation) for t in _alternatives(a)))
    return [] if annotation is type(None) else [annotation]


_RUN_FOLDER = re.compile(r"(?:.*/)?(?P<index>\d{5,})(?:_c(?P<cycle>\d+)_|-[0-9a-f]{8}-c(?P<cycle_of_pod>\d+)/)")


def study_rows(study: "StudyResult", results: "type[ExperimentResult]") -> list[dict[str, Any]]:
    """A row per run of a study that has a result or has failed, read from the result files below its folder.

    The configuration of a failed run is null: a study's result does not hold it.

    Raises:
        ResultStoreError: The files are not on this machine, or not where the study's result says.

    """
    folder, quantities = _folder(study), single_values(results)
    summaries = {e.config_hash: e.summary for e in study.experiments}
    rows = []
    for position, name in enumerate(study.result_files):
        try:
            result = results.from_json(folder / name)
        except (OSError, ValueError) as err:
            raise ResultStoreError(f"{folder / name}: cannot be read: {err}") from err
        match, digest = _RUN_FOLDER.match(name), result.measurement_config_hash
        index, cycle = (int(match["index"]), int(match["cycle"] or match["cycle_of_pod"])) if match else (position, 1)
        facts = RunFacts(study.name, index, cycle, summaries.get(digest, ""), digest, "completed", result_file=name)
        rows.append(run_row(facts, result, result.effective_config, quantities))
    for f in study.failed:
        failed = (f.index, f.cycle, f.summary, f.config_hash, "failed", None, f.error_type, f.error_message)
        rows.append(run_row(RunFacts(study.name, *failed), None, {}, quantities))
    return sorted(({**row, "directory": study.directory} for row in rows), key=lambda row: row["index"])


def _folder(study: "StudyResult") -> Path:
    parts = urlsplit(study.directory or "")
    if not study.directory or parts.scheme not in ("", "file"):
        place = study.directory or "a folder that is not known"
        raise ResultStoreError(
            f"the results of {study.name} are in {place}, not on this machine; "
            f"run llem report {study.directory or 'FOLDER'} --export-parquet runs.parquet and read that file"
        )
    return Path(unquote(parts.path)) if parts.scheme else Path(study.directory)
