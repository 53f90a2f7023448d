"""The defects of earlier generations (requirements §9): each has a regression test, here or where its subject is tested.

The table says where. A pointer to a test that does not exist fails, so a test that is renamed takes its entry along.
"""

import ast
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from cli.process import FAST, llem, over, processes_with, wait_until, write
from llenergymeasure import ExperimentConfig, ExperimentResult, launch
from llenergymeasure.core.manifest import StudyManifest
from llenergymeasure.core.plan import make_plan
from llenergymeasure.loaders import load_study_config
from study.running import execute, make, manifest

TESTS = Path(__file__).resolve().parents[1]
HERE = "study/test_earlier_defects.py"
SECRET = "hf_" + "Zx9q" * 8

REGRESSIONS = {
    "model settings never passed to the library": (
        "plugins/test_pytorch_settings_reach_the_library.py::test_a_setting_reaches_the_library",
    ),
    "pipe ends swapped": (
        f"{HERE}::test_the_childs_end_of_the_pipe_is_the_writing_one",
        "cli/test_experiment_process.py::test_result_comes_through_the_descriptor",
    ),
    "join before receive": ("study/test_launch.py::test_result_fills_the_pipe_before_the_child_ends",),
    "cycles expanded twice": (f"{HERE}::test_cycles_are_expanded_once",),
    "cycle number fixed at 1": (
        f"{HERE}::test_each_cycle_has_its_number",
        "study/test_study_on_disk.py::test_runs_start_in_the_planned_order",
    ),
    "sweep points sharing a mapping": ("core/test_sweep_grammar.py::test_points_share_no_mapping",),
    "foreign sections inherited": (
        "core/test_sweep_grammar.py::test_explicit_experiment_does_not_inherit_a_foreign_section",
    ),
    "a scoped key changing the backend": (f"{HERE}::test_a_scoped_key_does_not_change_the_backend",),
    "None gap read as 0": ("study/test_pauses.py::test_gap_before_each_run",),
    "duplicates crashing the manifest": (
        f"{HERE}::test_duplicates_have_one_row_each_that_ran",
        "study/test_study_on_disk.py::test_kept_duplicates_run_as_extra_cycles",
    ),
    "study never marked completed": ("study/test_study_on_disk.py::test_manifest_is_written_after_each_transition",),
    "save failure marked completed": (
        "study/test_study_on_disk.py::test_result_that_cannot_be_saved_is_a_failed_run",
        "study/test_study_on_disk.py::test_full_disk_is_an_error_and_leaves_earlier_results_alone",
    ),
    "output path inside the hash": (
        "study/test_library.py::test_output_dir_gets_a_folder_and_is_not_part_of_the_identity",
    ),
    "series missing in studies": ("study/test_study_on_disk.py::test_series_are_stored_for_every_run_of_a_study",),
    "baseline re-measured per process": (
        "measure/test_baseline.py::test_it_is_measured_once_and_read_by_the_next_process",
        "measure/test_baseline.py::test_the_parents_baselines_are_used",
    ),
    "wrong thermal flags": ("measure/test_record.py::test_each_event_bit_sets_its_own_flag",),
    "padding counted as tokens": ("plugins/test_pytorch_generation.py::test_padding_is_never_counted",),
    # one process per run in this version: its span is the window's, whatever the number of batches
    "times summed across processes": (
        "measure/test_phases_and_window.py::test_rates_are_the_windows_tokens_over_its_length",
    ),
    "torch seed unset": (
        "plugins/test_pytorch_settings_reach_the_library.py::test_seeding_reaches_every_generator",
        "measure/test_phases_and_window.py::test_the_seed_is_set_again_before_the_window",
    ),
    "two denominators for energy per token": ("measure/test_record.py::test_the_two_denominators_are_consistent",),
    "only GPU 0 inspected": ("measure/test_scripted_gpus.py::test_two_boards_are_told_apart_and_summed",),
    "token on the command line": (f"{HERE}::test_token_is_on_no_command_line_and_in_no_file",),
    "summary counting cycles twice": ("study/test_study_on_disk.py::test_summary_counts_each_thing_once",),
    "partial failure exiting 0": ("cli/test_exit_codes.py::test_any_failed_run_is_1",),
    "dry run ignored for studies": ("cli/test_plan.py::test_planning_runs_and_writes_nothing",),
    "latency attributes misspelt": (f"{HERE}::test_latency_is_in_the_result_under_its_names",),
    "methodology constant": (f"{HERE}::test_methodology_follows_the_warm_up",),
    "precision table unused": (
        "core/test_rules_between_fields.py::test_precision_is_accepted_exactly_where_the_table_says",
    ),
    "KV estimate always 0": (
        "plugins/test_flops_and_memory.py::test_the_cache_is_never_zero_and_grows_with_batch_and_length",
    ),
    "no energy written as 0.0": (f"{HERE}::test_energy_that_was_not_measured_is_null_everywhere",),
    "exporters not wired": (
        "cli/test_output.py::test_exported_csv_loads_in_pandas",
        "core/test_result_records.py::test_parquet_row_reads_back",
    ),
    "energy adapter reading a field that the library does not have": (
        "plugins/test_zeus_and_codecarbon_interfaces.py::test_zeus_measurement_has_what_the_adapter_reads",
        "plugins/test_zeus_and_codecarbon_interfaces.py::test_codecarbon_gives_what_the_adapter_reads",
    ),
}


@pytest.mark.parametrize("defect", REGRESSIONS)
def test_defect_has_its_regression_test(defect: str) -> None:
    """The tests that the table names exist and carry a promise."""
    for pointer in REGRESSIONS[defect]:
        file, _, name = pointer.partition("::")
        tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
        (found,) = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == name]
        assert ast.get_docstring(found)


def test_table_has_every_defect_of_the_list() -> None:
    """Thirty-two defects are on the list of requirements §9."""
    assert len(REGRESSIONS) == 32


def test_the_childs_end_of_the_pipe_is_the_writing_one() -> None:
    """The child can write to what it is given, and the parent gets exactly what was written."""
    measured = launch.run_in_subprocess(ExperimentConfig(**FAST), limits=launch.Limits(60), on_event=lambda _: None)

    assert measured.result.output_tokens == 2 * 4


def test_cycles_are_expanded_once(tmp_path: Path) -> None:
    """Three cycles of two experiments are six runs, in the file's plan and in one read back from study.json."""
    file = write(tmp_path, {"sweep": {"n": [2, 3]}, "execution": {"n_cycles": 3}})
    study = load_study_config(file)
    again = type(study).model_validate_json(study.model_dump_json())

    assert len(study.experiments) == len(again.experiments) == 2
    assert len(make_plan(study).runs) == len(make_plan(again).runs) == 6


def test_each_cycle_has_its_number(tmp_path: Path) -> None:
    """Cycles count from 1 per experiment: in the manifest and in folder names."""
    done = execute(make({"sweep": {"n": [2]}, "execution": {"n_cycles": 3}}), tmp_path / "out")

    assert [r.cycle for r in manifest(done.folder).rows] == [1, 2, 3]
    assert sorted(p.name.split("_")[1] for p in (done.folder / "runs").iterdir()) == ["c1", "c2", "c3"]


def test_a_scoped_key_does_not_change_the_backend() -> None:
    """A key of one backend leaves the other's points as they are, and makes no point of a third."""
    study = make({"backend": ["synthetic", "pytorch"], "sweep": {"pytorch.batch_size": [1, 8]}})

    assert [e.backend for e in study.experiments] == ["synthetic", "pytorch", "pytorch"]


def test_duplicates_have_one_row_each_that_ran(tmp_path: Path) -> None:
    """Equal combinations are one run with a notice; the manifest has unique rows and the study completes."""
    study = make({"sweep": {"decoder.temperature": [0.5, 1.0, 1.5]}})  # dormant in greedy decoding

    done = execute(study, tmp_path / "out")

    rows = manifest(done.folder).rows
    assert [(r.index, r.status) for r in rows] == [(0, "completed")]
    assert any("equal" in n for n in study.notices)


def test_token_is_on_no_command_line_and_in_no_file(tmp_path: Path) -> None:
    """HF_TOKEN reaches the child by the environment alone: no process list and no file of the study shows it."""
    name = f"token-{os.getpid()}"
    body = {"name": name, "sweep": {"n": [2]}, "execution": {"n_cycles": 1}, "synthetic": {"batch_overhead_ms": 300}}
    seen: list[bytes] = []

    def look() -> None:
        pids = wait_until(lambda: processes_with("LLEM_STUDY", name))
        seen.extend(Path(f"/proc/{pid}/{part}").read_bytes() for pid in pids for part in ("cmdline", "environ"))

    watcher = threading.Thread(target=look)
    watcher.start()
    ended = llem("run", write(tmp_path, body), "-v", cwd=tmp_path, env={"HF_TOKEN": SECRET})
    watcher.join()

    assert ended.code == 0
    command_line, environment = seen
    assert SECRET.encode() in environment
    assert SECRET.encode() not in command_line
    assert SECRET not in ended.out + ended.err
    files = [p for p in (tmp_path / "results").rglob("*") if p.is_file()]
    assert len(files) == 8
    assert [p.name for p in files if SECRET.encode() in p.read_bytes()] == []


def measured(**changes: Any) -> ExperimentResult:
    """The result of FAST with changes, through a process."""
    config = ExperimentConfig(**over(FAST, changes))
    return launch.run_in_subprocess(config, limits=launch.Limits(60), on_event=lambda _: None).result


def test_latency_is_in_the_result_under_its_names() -> None:
    """Batch latencies have their statistics under the documented names, in order and with known truth."""
    found = measured(
        n=6, synthetic={"batch_overhead_ms": 20.0, "decode_ms_per_step": 0, "prefill_ms_per_token": 0}
    ).latency

    assert found is not None
    assert found.samples == 6
    assert 20 <= found.min_ms <= found.p50_ms <= found.p90_ms <= found.p95_ms <= found.p99_ms <= found.max_ms
    assert found.min_ms <= found.mean_ms <= found.max_ms


@pytest.mark.parametrize(
    ("warmup", "methodology"),
    [
        pytest.param({"n_warmup": 1}, "steady_state", id="warmed up"),
        pytest.param({"enabled": False}, "total", id="no warm-up"),
        pytest.param(
            {"n_warmup": 1, "convergence_detection": True, "cv_threshold": 0.01, "max_prompts": 5, "window_size": 6},
            "total",
            id="not converged",
        ),
    ],
)
def test_methodology_follows_the_warm_up(warmup: dict[str, Any], methodology: str) -> None:
    """steady_state when the warm-up finished, total when it was off or did not converge."""
    result = measured(warmup=warmup)

    assert result.measurement_methodology == methodology
    assert (result.steady_state_window is not None) is (methodology == "steady_state")


def test_energy_that_was_not_measured_is_null_everywhere(tmp_path: Path) -> None:
    """Without a source every joule is null with a reason: in the result, the CSV and the study's statistics."""
    body = {"energy": {"backend": "none"}, "sweep": {"n": [2]}, "execution": {"n_cycles": 2}}

    ended = llem("run", write(tmp_path, body), "--export-csv", "t.csv", cwd=tmp_path)

    assert ended.code == 0
    (folder,) = (tmp_path / "results").iterdir()
    result = json.loads(next(folder.glob("runs/*/result.json")).read_text())
    joules = {k: v for k, v in result.items() if k.endswith(("_j", "_per_joule", "_power_w"))}
    assert len(joules) >= 8
    assert set(joules.values()) == {None}
    assert result["null_reasons"]["energy_total_j"] == "energy.backend is none"
    head, first, _ = (tmp_path / "t.csv").read_text().splitlines()
    assert dict(zip(head.split(","), first.split(","), strict=False))["energy_total_j"] == ""
    statistics = json.loads((folder / "study_result.json").read_text())["experiments"][0]["statistics"]
    assert "tokens_per_second" in statistics
    assert not [k for k in statistics if k.endswith("_j")]
    assert (
        StudyManifest.model_validate_json((folder / "study_manifest.json").read_text()).rows[0].verdict == "unmeasured"
    )
