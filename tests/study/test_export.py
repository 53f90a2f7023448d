"""Tables of real studies: a row per planned run, the numbers of result.json, read back by pandas and DuckDB."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from cli.process import Ended, llem, write
from llenergymeasure import StudyResult, export
from llenergymeasure.core.errors import ConfigError, ResultStoreError
from llenergymeasure.core.plan import Run
from llenergymeasure.object_store import Access, open_place
from llenergymeasure.stored_study import Rebuilt, rebuild
from study.running import Watcher, execute, make

pandas = pytest.importorskip("pandas")
duckdb = pytest.importorskip("duckdb")

CRASHES: dict[str, Any] = {
    "name": "=mixed",
    "sweep": {"precision": ["fp16", "bf16"]},
    "experiments": [{"synthetic": {"fail_after_batches": 1}}],
    "execution": {"n_cycles": 2},
}
SUMMED = ("energy_total_j", "energy_per_output_token_j", "output_tokens", "duration_s", "tokens_per_second")


@dataclass(frozen=True)
class Stored:
    """A study on disk and the result.json files in it, in order of their runs."""

    study: Rebuilt
    results: list[dict[str, Any]]


def read(folder: Path) -> Stored:
    """Read a study's folder twice: by the product, and as plain JSON."""
    results = [json.loads(p.read_bytes()) for p in sorted(folder.glob("runs/*/result.json"))]
    return Stored(rebuild(open_place(str(folder), Access(None, None))), results)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    """A study of six runs, two of which crash."""
    home = pytest.MonkeyPatch()
    parent = tmp_path_factory.mktemp("mixed")
    home.setenv("XDG_CACHE_HOME", str(parent / "cache"))
    home.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    try:
        return read(execute(make(CRASHES), parent / "results").folder)
    finally:
        home.undo()


READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "pandas CSV": ("t.csv", pandas.read_csv),
    "pandas Parquet": ("t.parquet", pandas.read_parquet),
    "DuckDB CSV": ("t.csv", lambda p: duckdb.sql(f"select * from read_csv_auto('{p}')").df()),
    "DuckDB Parquet": ("t.parquet", lambda p: duckdb.sql(f"select * from read_parquet('{p}')").df()),
}


def exported(stored: Stored, folder: Path, name: str) -> Path:
    """Write the study's table as the file name says."""
    path = folder / name
    rows = export.run_rows([stored.study])
    if path.suffix == ".csv":
        export.export_csv(path, rows)
    else:
        export.export_parquet(path, rows)
    return path


@pytest.mark.parametrize("reader", READERS)
def test_table_reads_back_with_the_numbers_of_the_results(mixed: Stored, tmp_path: Path, reader: str) -> None:
    """Six rows, numbers as numbers, and each sum is that of the result.json files."""
    name, load = READERS[reader]

    table = load(exported(mixed, tmp_path, name))

    assert table["index"].tolist() == [0, 1, 2, 3, 4, 5]
    assert len(mixed.results) == 4
    for column in SUMMED:
        assert table[column].dtype.kind in "fi"
        assert table[column].count() == 4
        assert table[column].sum() == pytest.approx(math.fsum(r[column] for r in mixed.results), rel=1e-14), column
    assert table["latency.p50_ms"].dropna().tolist() == [r["latency"]["p50_ms"] for r in mixed.results]
    assert table["config.n"].tolist() == [2] * 6
    assert table["config.decoder.ignore_eos"].tolist() == [True] * 6


@pytest.mark.parametrize("reader", READERS)
def test_failed_run_has_a_row_without_quantities(mixed: Stored, tmp_path: Path, reader: str) -> None:
    """The crash, its configuration and its times are told; its quantities are null, not 0."""
    name, load = READERS[reader]

    table = load(exported(mixed, tmp_path, name))

    failed = table[table["status"] == "failed"]
    assert failed["error_type"].tolist() == ["BackendError"] * 2
    assert failed["error_message"].str.contains("fail_after_batches").all()
    assert failed["config.synthetic.fail_after_batches"].tolist() == [1, 1]
    assert failed[list(SUMMED)].isna().all().all()
    assert failed["start_time"].notna().all()
    assert failed["model"].tolist() == ["m", "m"]


def test_types_and_units_of_the_parquet_file(mixed: Stored, tmp_path: Path) -> None:
    """Times, whole numbers, numbers and truth values have their types, also where all values are null; units are told."""
    import pyarrow.parquet as pq

    schema = pq.read_schema(exported(mixed, tmp_path, "t.parquet"))

    types = {f.name: str(f.type) for f in schema}
    assert types["start_time"] == types["energy_breakdown.baseline_timestamp"] == "timestamp[us, tz=UTC]"
    assert types["output_tokens"] == types["config.n"] == "int64"
    assert (
        types["energy_total_j"] == types["host_energy_j"] == types["config.energy.simulated.load_power_w"] == "double"
    )
    assert types["synthetic"] == types["thermal.detected"] == "bool"
    assert types["error_type"] == types["driver_version"] == "string"
    assert "null" not in types.values()
    assert schema.field("energy_per_output_token_j").metadata[b"unit"] == b"J/token"


def test_times_of_both_files_are_those_of_the_result(mixed: Stored, tmp_path: Path) -> None:
    """To the microsecond, in UTC."""
    wanted = [datetime.fromisoformat(r["start_time"]) for r in mixed.results]

    csv = pandas.read_csv(exported(mixed, tmp_path, "t.csv"), parse_dates=["start_time"])
    parquet = pandas.read_parquet(exported(mixed, tmp_path, "t.parquet"))

    for table in (csv, parquet):
        found = table[table["status"] == "completed"]["start_time"]
        assert [t.to_pydatetime() for t in found] == wanted


def test_name_that_looks_like_a_formula_is_disarmed_in_csv_only(mixed: Stored, tmp_path: Path) -> None:
    """A study named `=mixed` is run by no spreadsheet, and keeps its name where nothing would run it."""
    assert set(pandas.read_csv(exported(mixed, tmp_path, "t.csv"))["study"]) == {"'=mixed"}
    assert set(pandas.read_parquet(exported(mixed, tmp_path, "t.parquet"))["study"]) == {"=mixed"}


def test_runs_that_never_ran_have_rows(tmp_path: Path) -> None:
    """A study that was interrupted in its second run: that one and the rest have rows with their configuration."""

    def stop(run: Run, folder: Path) -> None:
        del folder
        if watcher.heard.count(("end", run.index)) == 0 and any(kind == "end" for kind, _ in watcher.heard):
            raise KeyboardInterrupt

    watcher = Watcher(tmp_path / "results", stop)
    with pytest.raises(KeyboardInterrupt):
        execute(make({"sweep": {"n": [1, 2, 3]}}), tmp_path / "results", watcher)

    rows = export.run_rows([read(watcher.folder).study])

    assert sorted(r["status"] for r in rows) == ["completed", "interrupted", "pending"]
    assert [r["config.n"] for r in rows] == [1, 2, 3]
    assert [r["output_tokens"] is None for r in rows] == [r["status"] != "completed" for r in rows]


def test_studies_of_different_fields_share_one_table(mixed: Stored, tmp_path: Path) -> None:
    """Rows of several studies have the same columns in the same order, the union of their configurations' fields."""
    more = read(execute(make({"decoder": {"min_p": 0.1, "preset": "standard"}}), tmp_path / "results").folder)

    rows = export.run_rows([mixed.study, more.study])

    assert len({tuple(r) for r in rows}) == 1
    assert [r["config.decoder.min_p"] for r in rows] == [None] * 6 + [0.1]
    assert [r["study"] for r in rows] == ["=mixed"] * 6 + ["study"]


def test_table_of_ten_thousand_runs_is_complete(mixed: Stored, tmp_path: Path) -> None:
    """Large tables are written whole in either format."""
    rows = export.run_rows([mixed.study] * 1667)

    export.export_csv(tmp_path / "t.csv", rows)
    export.export_parquet(tmp_path / "t.parquet", rows)

    counted = [duckdb.sql(f"select count(*), sum(output_tokens) from '{tmp_path / n}'").fetchone() for n in ("t.csv", "t.parquet")]  # fmt: skip
    assert counted == [(10_002, 1667 * sum(r["output_tokens"] for r in mixed.results))] * 2


def test_library_gives_the_same_rows_as_a_data_frame(mixed: Stored) -> None:
    """`StudyResult.to_dataframe()` after a round trip through JSON: the runs, their numbers, their failures."""
    frame = StudyResult.from_json(mixed.study.study.to_json()).to_dataframe()

    rows = export.run_rows([mixed.study])
    assert frame["index"].tolist() == [r["index"] for r in rows]
    assert frame["cycle"].tolist() == [r["cycle"] for r in rows]
    assert frame["configuration"].tolist() == [r["configuration"] for r in rows]
    assert frame["energy_total_j"].dropna().tolist() == [r["energy_total_j"] for r in mixed.results]
    assert frame["error_type"].dropna().tolist() == ["BackendError"] * 2


@pytest.mark.parametrize("target", ["", "folder", "nowhere/t.csv", "file/t.csv", "/proc/t.csv"])
def test_target_that_cannot_be_written_is_refused_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    """An empty path, a folder, a missing folder, a file as folder, a place without permission: one error, no trace."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))

    with pytest.raises(ConfigError, match="export to"):
        export.check_target(Path(target))

    assert sorted(tmp_path.rglob("*")) == before


def test_target_that_is_fine_is_left_alone(tmp_path: Path) -> None:
    """Looking leaves neither a file nor changes one that is there."""
    (tmp_path / "old.csv").write_text("old")

    export.check_target(tmp_path / "old.csv")
    export.check_target(tmp_path / "new.csv")

    assert [p.name for p in tmp_path.iterdir()] == ["old.csv"]
    assert (tmp_path / "old.csv").read_text() == "old"


def test_table_that_cannot_be_written_leaves_the_old_one(mixed: Stored, tmp_path: Path) -> None:
    """Complete or not at all."""
    with pytest.raises(ResultStoreError):
        exported(mixed, tmp_path / "nowhere", "t.csv")
    with pytest.raises(ResultStoreError):
        exported(mixed, tmp_path / "nowhere", "t.parquet")


@pytest.mark.parametrize("flag", ["--export-csv", "--export-parquet"])
@pytest.mark.parametrize("target", ["", "nowhere/table"])
def test_run_refuses_the_target_before_it_measures(tmp_path: Path, flag: str, target: str) -> None:
    """Exit 2, one error, and nothing was run."""
    ended: Ended = llem("run", write(tmp_path), flag, target, cwd=tmp_path)

    assert ended.code == 2
    assert len(ended.errors) == 1
    assert not (tmp_path / "results").exists()


def test_run_and_report_write_the_same_table(tmp_path: Path) -> None:
    """`llem run` at its end and `llem report` from the files alone: the same bytes."""
    flags = ("--export-csv", "t.csv", "--export-parquet", "t.parquet")

    assert llem("run", write(tmp_path, {"sweep": {"n": [1, 2]}}), *flags, cwd=tmp_path).code == 0
    first = [(tmp_path / name).read_bytes() for name in ("t.csv", "t.parquet")]
    (folder,) = (tmp_path / "results").iterdir()
    assert llem("report", folder.relative_to(tmp_path), *flags, cwd=tmp_path).code == 0

    assert [(tmp_path / name).read_bytes() for name in ("t.csv", "t.parquet")] == first


@pytest.mark.parametrize("words", [("report", "no-such-study"), ("results", "sweep")], ids=["report", "on a cluster"])
def test_other_verbs_refuse_the_target_at_once(tmp_path: Path, words: tuple[str, str]) -> None:
    """The target is looked at before the study or the cluster is asked for anything."""
    ended = llem(*words, "--export-csv", "nowhere/table.csv", cwd=tmp_path)

    assert ended.code == 2
    assert len(ended.errors) == 1
    assert "nowhere/table.csv" in ended.errors[0]
