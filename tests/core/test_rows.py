"""The flat row of a run and the tables made of rows: names, units, types, nulls, and cells that no spreadsheet runs."""

import csv
import io
import json
from collections import Counter
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llenergymeasure.core.config import ExperimentConfig
from llenergymeasure.core.identity import canonical
from llenergymeasure.core.result import ExperimentResult, FailedRun, StudyResult
from llenergymeasure.core.rows import RunFacts, config_columns, run_columns, run_row, single_values
from llenergymeasure.core.tables import Column, arrow_table, csv_text

BEGAN = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
RESULT: dict[str, Any] = {
    "experiment_id": "e", "measurement_config_hash": "0123456789abcdef", "model": "m", "backend": "synthetic",
    "measurement_methodology": "steady_state", "input_tokens": 10, "output_tokens": 20, "total_tokens": 30,
    "requests": 2, "duration_s": 1.5, "tokens_per_second": 13.3, "total_tokens_per_second": 20.0,
    "requests_per_second": 1.3, "start_time": BEGAN, "end_time": BEGAN + timedelta(seconds=2),
    "energy_total_j": 450.25, "energy_per_device_j": {"GPU-b": 200.25, "GPU-a": 250.0},
    "verdict": {"state": "invalid", "reasons": [
        {"code": "throttled", "sentence": "Hot.", "fix": "Cool."}, {"code": "noisy", "sentence": "Loud.", "fix": "Hush."}]},
    "measurement_warnings": ["cpu_run: measured on the CPU", "busy_host: 3 processes", "busy_host: 4 processes"],
    "null_reasons": {"co2_estimate_g": "no intensity", "host_energy_j": "not read"},
    "environment_snapshot": {"driver_version": "570.1", "gpus": [
        {"uuid": "GPU-a", "name": "H100"}, {"uuid": "GPU-b", "name": "H200"}, {"uuid": "GPU-c", "name": "A10"}]},
}  # fmt: skip
FACTS = RunFacts("s", 3, 2, "synthetic bf16", "0123456789abcdef", "completed")
COUNTS_AND_SHARES = {
    "index", "cycle", "attempts", "requests", "latency.samples", "warmup.iterations_completed", "warmup.max_prompts",
    "warmup_excluded_samples", "uncertainty.edge", "uncertainty.between_runs", "uncertainty.comparison",
    "uncertainty.absolute", "cross_check.ratio", "warmup.final_cv", "warmup.target_cv",
    "uncertainty.tokens", "uncertainty.work", "uncertainty.between_runs_degrees_of_freedom", "uncertainty.baseline",
    "uncertainty.gain_limit", "uncertainty.standard", "uncertainty.degrees_of_freedom",
    "uncertainty.adjusted_comparison", "uncertainty.adjusted_absolute", "cross_check.allowance", "cross_check.excess",
    "conditions.throttled_share", "conditions.power_cap_share", "conditions.clock_drift", "conditions.power_drift", "conditions.pace_drift",
    "conditions.interior_gap_ticks", "conditions.peak_above_limit", "occupancy.looks", "settle.power_drift",
    "work.concurrency", "work.mean_running", "work.preemptions", "work.imbalance",
} | {
    f"phase_split.{name}" for name in (
        "prefill_share", "decode_share", "idle_share", "closure", "prefill_relative_error", "decode_relative_error",
        "condition_number", "concurrency", "decode_context", "probe_ticks",
    )
}  # fmt: skip


def result(**changes: Any) -> ExperimentResult:
    """A result of two of three GPUs."""
    return ExperimentResult.model_validate({**RESULT, **changes})


def row(found: ExperimentResult | None = None, facts: RunFacts = FACTS, **config: Any) -> dict[str, Any]:
    """The row of a run of a configuration of the pretended engine."""
    effective = canonical(ExperimentConfig.model_validate({"model": "m", "backend": "synthetic", **config}))
    return run_row(facts, found, effective, single_values(ExperimentResult))


def back(text: str) -> list[dict[str, str]]:
    """What a reader of CSV gets."""
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_every_quantity_of_a_result_tells_its_unit_by_its_name() -> None:
    """A number without a unit is a count or a share, and those are known one by one."""
    numbers = [c for c in run_columns(ExperimentResult) if c.unit and not c.name.startswith("config.")]

    assert {c.name for c in numbers if c.unit == "1"} == COUNTS_AND_SHARES
    units = {c.name: c.unit for c in numbers}
    assert units["energy_per_output_token_j"] == "J/token"
    assert units["latency.p50_ms"] == "ms"
    assert units["memory_peak_mb"] == "MB"
    assert units["thermal.max_temperature_c"] == "°C"
    assert units["tokens_per_second_per_watt"] == "tokens/J"
    assert units["start_time"] == "UTC"


def test_no_column_is_declared_with_two_types() -> None:
    """Times of the manifest and of the result share their columns; nothing else is declared twice."""
    kinds = {(c.name, c.kind) for c in run_columns(ExperimentResult)}

    assert [name for name, n in Counter(name for name, _ in kinds).items() if n > 1] == []


def test_row_begins_with_what_a_reader_looks_for_and_ends_with_the_configuration() -> None:
    """Study, run, verdict and times come first, the configuration's fields last in the order of the schema."""
    names = list(row(result()))

    assert names[:7] == ["study", "index", "cycle", "configuration", "config_hash", "status", "verdict.state"]
    first = names.index("config.model")
    assert all(n.startswith("config.") for n in names[first:])
    schema = [c.name for c in config_columns()]
    assert names[first:] == sorted(names[first:], key=schema.index)


def test_what_is_not_one_value_is_joined() -> None:
    """Codes once each, reasons of nulls, and the GPUs that were measured, not all that are visible."""
    found = row(result())

    assert found["verdict.reasons"] == "throttled;noisy"
    assert found["measurement_warnings"] == "cpu_run;busy_host"
    assert found["null_reasons"] == "co2_estimate_g: no intensity; host_energy_j: not read"
    assert (found["gpu_uuids"], found["gpu_names"], found["driver_version"]) == ("GPU-b;GPU-a", "H200;H100", "570.1")


def test_without_energy_the_visible_gpus_are_named() -> None:
    """A run whose energy is unknown still says where it was."""
    assert row(result(energy_per_device_j=None))["gpu_names"] == "H100;H200;A10"


def test_run_without_a_result_has_the_same_columns_all_quantities_null() -> None:
    """What was to be run, when, and why it failed are told; nothing is 0 that was not measured."""
    facts = RunFacts("s", 4, 1, "c", "h", "failed", 2, "OutOfMemory", "too large", start_time=BEGAN)

    failed = row(None, facts, precision="fp16")

    assert failed.keys() == row(result()).keys()
    told = {k: v for k, v in failed.items() if v is not None and not k.startswith("config.")}
    assert told == {
        "study": "s", "index": 4, "cycle": 1, "configuration": "c", "config_hash": "h", "status": "failed",
        "backend": "synthetic", "model": "m", "start_time": BEGAN, "attempts": 2, "error_type": "OutOfMemory",
        "error_message": "too large",
    }  # fmt: skip
    assert failed["config.precision"] == "fp16"


def test_times_are_utc_whatever_their_zone() -> None:
    """A time is converted, not cut; the result's own time wins over the manifest's."""
    eastern = BEGAN.astimezone(timezone(timedelta(hours=5, minutes=30)))

    found = row(
        result(start_time=eastern), RunFacts("s", 0, 1, "c", "h", "completed", start_time=BEGAN.replace(year=2000))
    )

    assert found["start_time"] == BEGAN
    assert found["start_time"].tzinfo is UTC


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        pytest.param({"warmup": {"thermal_floor_seconds": 60}}, {"config.warmup.thermal_floor_seconds": 60.0}, id="float"),
        pytest.param({"n": 5}, {"config.n": 5, "config.dataset": "aienergyscore"}, id="whole number"),
        pytest.param(
            {"dataset": {"synthetic": {"input_len": 5}}},
            {"config.dataset": None, "config.dataset.synthetic.input_len": 5},
            id="a text or a group: the group",
        ),
        pytest.param(
            {"passthrough_kwargs": {"b": [1], "a": {"x": None}}},
            {"config.passthrough_kwargs": '{"a": {}, "b": [1]}'},
            id="a free mapping is JSON",
        ),
    ],
)  # fmt: skip
def test_fields_of_the_configuration_have_their_types(config: dict[str, Any], expected: dict[str, Any]) -> None:
    """Whole numbers of a float field are floats again, and what has no columns of its own is JSON text."""
    found = row(result(), **config)

    assert {k: found.get(k) for k in expected} == expected
    assert {k: type(found.get(k)) for k in expected} == {k: type(v) for k, v in expected.items()}


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_text_that_a_spreadsheet_would_run_is_disarmed(text: str) -> None:
    """An apostrophe stands before it; a number with a sign stays a number."""
    (found,) = back(csv_text([{"text": text, "number": -1.5}]))

    assert found == {"text": f"'{text}", "number": "-1.5"}


def test_cells_of_each_type() -> None:
    """Null is empty, truth is lower case, times end in Z, text with commas, quotes and lines comes back whole."""
    cells = {"a": None, "b": True, "c": False, "d": 10**18, "e": 0.1, "f": BEGAN, "g": 'x,"y"\nz', "h": 1e-300}

    text = csv_text([cells])

    assert text.startswith("a,b,c,d,e,f,g,h\n,true,false,1000000000000000000,0.1,2026-01-02T03:04:05.678901Z,")
    assert "\r" not in text
    (found,) = back(text)
    assert (found["g"], found["h"]) == ('x,"y"\nz', "1e-300")


@given(st.lists(st.tuples(st.floats(allow_nan=False, allow_infinity=False), st.integers()), min_size=1))
def test_numbers_of_a_csv_read_back_exactly(values: list[tuple[float, int]]) -> None:
    """Each number is written so that the same number is read."""
    found = back(csv_text([{"x": x, "i": i} for x, i in values]))

    assert [(float(r["x"]), int(r["i"])) for r in found] == values


def test_missing_cells_and_chosen_columns() -> None:
    """Rows need not have all columns; columns come in the order in which they come up, or as chosen."""
    rows = [{"a": 1}, {"b": 2, "a": 3}]

    assert csv_text(rows) == "a,b\n1,\n3,2\n"
    assert csv_text(rows, ["b"]) == 'b\n""\n2\n'
    assert csv_text([], ["b"]) == "b\n"


def test_parquet_types_do_not_depend_on_the_values() -> None:
    """A column without any value has its declared type all the same, and its unit."""
    table = arrow_table([{"j_j": None, "t": None, "n": None, "b": None, "s": None, "other": 1 and "x"}], [
        Column("j_j", "number"), Column("t", "time"), Column("n", "integer"), Column("b", "boolean"), Column("s", "text"),
    ])  # fmt: skip

    types = {f.name: str(f.type) for f in table.schema}
    assert types == {
        "j_j": "double", "t": "timestamp[us, tz=UTC]", "n": "int64", "b": "bool", "s": "string", "other": "string",
    }  # fmt: skip
    assert table.schema.field("j_j").metadata == {b"unit": b"J"}
    assert table.schema.field("s").metadata is None


def stored(folder: Path, *files: str) -> StudyResult:
    """A study's result whose result files lie below `folder`, and a failed run 1."""
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True)
        path.write_text(result().to_json(), encoding="utf-8")
    failed = FailedRun(index=1, cycle=1, config_hash="f", summary="other", error_type="Killed", error_message="why")
    return StudyResult(
        name="s", study_design_hash="d", directory=str(folder), result_files=list(files), failed=[failed]
    )


LOCAL, POD = "runs/00002_c3_m-synthetic_01234567/result.json", "00000-01234567-c1/a2/result.json"


def test_data_frame_has_a_row_per_result_and_per_failure(tmp_path: Path) -> None:
    """Read from folders of this machine and of pods alike, in order of index; whole numbers stay whole beside nulls."""
    pytest.importorskip("pandas")
    study = StudyResult.from_json(stored(tmp_path / "a b", LOCAL, POD).to_json())

    for found in (study, study.model_copy(update={"directory": (tmp_path / "a b").as_uri()})):
        frame = found.to_dataframe()

        assert frame["index"].tolist() == [0, 1, 2]
        assert frame["cycle"].tolist() == [1, 1, 3]
        assert frame["status"].tolist() == ["completed", "failed", "completed"]
        assert frame["energy_total_j"].sum() == 900.5
        assert (str(frame["output_tokens"].dtype), frame["output_tokens"].sum()) == ("Int64", 40)
        assert frame["error_message"].dropna().tolist() == ["why"]


@pytest.mark.parametrize(
    ("directory", "words"),
    [("s3://bucket/study", "--export-parquet"), (None, "--export-parquet"), ("/nowhere", "/nowhere")],
    ids=["in a bucket", "nowhere", "folder gone"],
)
def test_data_frame_of_files_that_are_not_here_says_so(tmp_path: Path, directory: str | None, words: str) -> None:
    """No empty table: the error names the place and the way."""
    from llenergymeasure.core.errors import ResultStoreError

    study = stored(tmp_path, LOCAL).model_copy(update={"directory": directory})

    with pytest.raises(ResultStoreError, match=words):
        study.to_dataframe()


def test_data_frame_without_pandas_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pandas is nobody's dependency."""
    from llenergymeasure.core.errors import BackendMissingError

    monkeypatch.setitem(__import__("sys").modules, "pandas", None)

    with pytest.raises(BackendMissingError, match="pip install pandas"):
        stored(tmp_path, LOCAL).to_dataframe()


def test_row_is_plain_json_but_for_its_times() -> None:
    """No list, group or model hides in a cell."""
    found = row(result())

    assert json.loads(json.dumps({k: v for k, v in found.items() if not isinstance(v, datetime)}))
    assert not any(isinstance(v, dict | list | tuple) for v in found.values())
