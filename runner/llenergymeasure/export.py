"""Writes runs of studies as one table: CSV for everybody, Parquet with types and units; both complete or not at all."""

import io
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llenergymeasure.core.errors import ConfigError
from llenergymeasure.core.identity import canonical
from llenergymeasure.core.manifest import ManifestRow
from llenergymeasure.core.plan import make_plan
from llenergymeasure.core.result import ExperimentResult
from llenergymeasure.core.rows import RunFacts, config_columns, run_columns, run_row, single_values
from llenergymeasure.core.tables import arrow_table, csv_text, names_in
from llenergymeasure.store import write_atomically

if TYPE_CHECKING:
    from llenergymeasure.stored_study import Rebuilt

Rows = Sequence[Mapping[str, Any]]


def run_rows(studies: "Sequence[Rebuilt]") -> list[dict[str, Any]]:
    """A row per planned run of each study, also of those that failed or have not run; all with the same columns.

    The configuration's fields come last, those that any of the runs has, in the order of the schema.
    """
    rows = [row for rebuilt in studies for row in _rows_of(rebuilt)]
    present = set(names_in(rows))
    fields = [c.name for c in config_columns() if c.name in present]
    head = [name for name in names_in(rows) if name not in fields]
    return [{name: row.get(name) for name in (*head, *fields)} for row in rows]


def _rows_of(rebuilt: "Rebuilt") -> list[dict[str, Any]]:
    results, quantities = rebuilt.by_index(), single_values(ExperimentResult)
    configs = [canonical(e) for e in rebuilt.config.experiments]  # as a run of it would note it
    positions = {r.index: r.position for r in make_plan(rebuilt.config).runs}
    rows = []
    for told in rebuilt.manifest.rows:
        result = results.get(told.index)
        config = configs[positions[told.index]] if result is None else result.effective_config
        rows.append(run_row(_facts(rebuilt, told), result, config, quantities))
    return rows


def _facts(rebuilt: "Rebuilt", told: ManifestRow) -> RunFacts:
    return RunFacts(
        study=rebuilt.study.name,
        index=told.index,
        cycle=told.cycle,
        configuration=told.summary,
        config_hash=told.config_hash,
        status=told.status,
        attempts=told.attempts,
        error_type=told.error_type,
        error_message=told.error_message,
        directory=rebuilt.study.directory,
        result_file=rebuilt.files.get(told.index),
        start_time=told.started_at,
        end_time=told.completed_at,
    )


def export_csv(path: Path, rows: Rows) -> None:
    """Write rows as CSV, see `core.tables`; raises ResultStoreError."""
    write_atomically(path, csv_text(rows).encode())


def export_parquet(path: Path, rows: Rows) -> None:
    """Write rows of runs as Parquet: types also for columns without a value, units in the fields' metadata.

    Raises:
        ResultStoreError: The file cannot be written.

    """
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(arrow_table(rows, run_columns(ExperimentResult)), buffer)
    write_atomically(path, buffer.getvalue())


def check_target(path: Path) -> None:
    """Raise ConfigError unless a table can be written to `path`; called before anything is measured, leaves nothing."""
    if path.is_dir():
        raise ConfigError(f"export to {str(path)!r}: is a folder; name a file, for example {path / 'runs.csv'}")
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}."):
            pass
    except OSError as err:
        fix = f"make the folder {path.parent}, or name another file"
        raise ConfigError(f"export to {str(path)!r}: cannot be written: {err.strerror}; {fix}") from err
