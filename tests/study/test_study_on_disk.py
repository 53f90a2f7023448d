"""What a study leaves on disk while it runs and when it has ended."""

import contextlib
import re
import statistics
import subprocess
import threading
from functools import reduce
from itertools import pairwise
from operator import getitem
from pathlib import Path

import pytest

from cli.process import alive, llem, tree, write
from llenergymeasure import ExperimentResult, StudyConfig, StudyResult
from llenergymeasure.core.errors import ResultStoreError
from llenergymeasure.core.manifest import LEGAL, StudyManifest
from llenergymeasure.core.plan import Run, make_plan
from llenergymeasure.study import Executed
from study.running import Watcher, execute, load, make, manifest, statuses

TWO = {"sweep": {"n": [2, 3]}}
CRASHING = {"synthetic": {"fail_after_batches": 1}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Executed:
    """A study of two configurations in three cycles, with one combination skipped and one engine that crashes."""
    body = {
        "name": "Three Cycles",
        "sweep": {"n": [2, 3, 0]},
        "experiments": [CRASHING],
        "execution": {"n_cycles": 3, "cycle_order": "interleaved"},
    }
    return execute(make(body), tmp_path_factory.mktemp("finished"))


def test_manifest_is_written_after_each_transition(tmp_path: Path) -> None:
    """When a run starts, the disk says so, and says what became of those before it."""
    watcher = Watcher(tmp_path / "out")

    done = execute(make(TWO, {"execution": {"cycle_order": "sequential", "n_cycles": 2}}), tmp_path / "out", watcher)

    seen = [[r.status for r in m.rows] for m in watcher.on_disk]  # rows by index: cycle 1 of both, cycle 2 of both
    assert seen == [
        ["running", "pending", "pending", "pending"],
        ["completed", "pending", "running", "pending"],
        ["completed", "running", "completed", "pending"],
        ["completed", "completed", "completed", "running"],
    ]
    assert {m.status for m in watcher.on_disk} == {"running"}
    assert manifest(done.folder).status == "completed"
    assert statuses(done.folder) == ["completed"] * 4


def test_reader_sees_a_whole_manifest_at_every_moment(tmp_path: Path) -> None:
    """A reader that polls as fast as it can never finds a torn or missing manifest, only legal transitions."""
    parent, over, states, torn = tmp_path / "out", threading.Event(), [], []
    parent.mkdir()

    def poll() -> None:
        last_look = False
        while not last_look:
            last_look = over.is_set()  # look once more after the end
            for path in parent.glob("*/study_manifest.json"):
                try:
                    rows = tuple(r.status for r in StudyManifest.model_validate_json(path.read_bytes()).rows)
                except (ValueError, OSError) as err:
                    torn.append(err)
                    continue
                if not states or states[-1] != rows:
                    states.append(rows)

    reader = threading.Thread(target=poll)
    reader.start()
    try:
        execute(make(TWO, {"experiments": [CRASHING]}), parent)
    finally:
        over.set()
        reader.join()

    assert torn == []
    assert len(states) >= 4
    assert sorted(states[-1]) == ["completed", "completed", "failed"]
    for before, after in pairwise(states):
        for old, new in zip(before, after, strict=True):
            assert old == new or new in LEGAL[old] or new in {s for n in LEGAL[old] for s in LEGAL[n]}


def test_folder_of_a_finished_study(finished: Executed) -> None:
    """{name}_{UTC time}/ with study, manifest, result, and a folder of four files per completed run; nothing else."""
    assert re.fullmatch(r"three-cycles_\d{8}T\d{6}Z", finished.folder.name)
    top = {p.name for p in finished.folder.iterdir()}
    assert top == {"study.json", "study_manifest.json", "study_result.json", "report.html", "runs"}
    hashes = {r.index: r.config_hash for r in manifest(finished.folder).rows}
    runs = {f"{i:05d}_c{1 + i // 3}_m-synthetic_{hashes[i][:8]}" for i in (0, 1, 3, 4, 6, 7)}
    files = {"result.json", "config.json", "environment.json", "timeseries.parquet"}
    assert tree(finished.folder / "runs") == runs | {f"{r}/{f}" for r in runs for f in files}


def test_failed_run_is_recorded_and_the_study_goes_on(finished: Executed) -> None:
    """A crash has type, message and phase in the manifest and the result; runs behind it were done."""
    rows = manifest(finished.folder).rows
    assert [r.status for r in rows] == ["completed", "completed", "failed"] * 3
    for row in rows[2::3]:
        assert row.error_type == "BackendError"
        assert (
            row.error_message == "synthetic engine failed after 1 batches, as fail_after_batches asks (in phase window)"
        )
        assert row.result_uri is None
        assert row.verdict is None
    assert manifest(finished.folder).status == "failed"
    result = StudyResult.from_json(finished.folder / "study_result.json")
    assert [(f.index, f.cycle, f.error_type) for f in result.failed] == [
        (i, 1 + i // 3, "BackendError") for i in (2, 5, 8)
    ]


def test_times_and_attempts_are_in_the_manifest(finished: Executed) -> None:
    """Each run has one attempt, start before end in UTC, and no run overlaps the next."""
    found = manifest(finished.folder)
    in_order = sorted(found.rows, key=lambda r: r.started_at or found.started_at)

    assert all(r.attempts == 1 for r in found.rows)
    assert found.completed_at is not None
    last = found.started_at
    for row in in_order:
        assert row.started_at is not None
        assert row.completed_at is not None
        assert last <= row.started_at < row.completed_at
        assert row.started_at.utcoffset() is not None
        last = row.completed_at
    assert last <= found.completed_at


def test_summary_counts_each_thing_once(finished: Executed) -> None:
    """Generated and skipped count combinations, ran and failed count runs; cycles are counted once."""
    result = StudyResult.from_json(finished.folder / "study_result.json")

    assert result.summary == {"generated": 4, "runs": 9, "ran": 6, "failed": 3, "skipped": 1, "invalid": 6}
    assert manifest(finished.folder).counts() == {
        "total": 9, "pending": 0, "running": 0, "completed": 6, "failed": 3, "interrupted": 0, "cancelled": 0,
        "invalid": 6, "skipped": 1,
    }  # fmt: skip
    assert [s["reason"] for s in result.skipped] == ["n: Input should be greater than or equal to 1 (got 0)"]


def test_study_result_holds_paths_that_exist(finished: Executed) -> None:
    """The study's result points at files instead of holding them; every path is relative and readable."""
    result = StudyResult.from_json(finished.folder / "study_result.json")

    assert len(result.result_files) == 6
    loaded = [ExperimentResult.from_json(finished.folder / path) for path in result.result_files]
    assert [r.effective_config["n"] for r in loaded] == [2, 3] * 3
    assert len({r.experiment_id for r in loaded}) == 6
    uris = [r.result_uri for r in manifest(finished.folder).rows if r.status == "completed"]
    assert uris == result.result_files


def test_statistics_over_cycles_agree_with_scipy(finished: Executed) -> None:
    """Mean, s and the 95 % half-width over three cycles, computed again from the stored results."""
    scipy_stats = pytest.importorskip("scipy.stats")
    result = StudyResult.from_json(finished.folder / "study_result.json")

    assert [(e.cycles_completed, e.verdicts) for e in result.experiments] == [(3, {"invalid": 3})] * 2
    for experiment in result.experiments:
        stored = [
            value
            for path in result.result_files
            if (value := load(finished.folder / path))["measurement_config_hash"] == experiment.config_hash
        ]
        for name, found in experiment.statistics.items():
            values = [reduce(getitem, name.split("."), r) for r in stored]
            s = statistics.stdev(values)
            assert found.n == 3
            assert found.mean == pytest.approx(statistics.fmean(values))
            assert found.s == pytest.approx(s)
            assert found.half_width_95 == pytest.approx(scipy_stats.t.ppf(0.975, 2) * s / 3**0.5, rel=1e-9)
        assert set(experiment.statistics) == {
            "tokens_per_second",
            "duration_s",
            "latency.mean_ms",
            "latency.p50_ms",
            "latency.p95_ms",
        }  # too short to believe


def test_series_are_stored_for_every_run_of_a_study(finished: Executed) -> None:
    """timeseries.parquet of a run inside a study has the documented columns, as for a single experiment."""
    parquet = pytest.importorskip("pyarrow.parquet")

    for path in (finished.folder / "runs").glob("*/timeseries.parquet"):
        assert parquet.read_schema(path).names[:4] == ["timestamp_s", "gpu_index", "gpu_uuid", "power_w"]
        assert ExperimentResult.from_json(path.with_name("result.json")).timeseries == path.name


def test_study_json_is_the_resolved_study(finished: Executed) -> None:
    """study.json alone makes the same plan again: experiments, order, skipped combinations and all."""
    study = StudyConfig.model_validate_json((finished.folder / "study.json").read_bytes())

    plan = make_plan(study)

    assert plan == make_plan(finished.rebuilt.config)
    assert plan.design_hash == manifest(finished.folder).study_design_hash
    assert len(study.skipped) == 1
    assert study.execution.n_cycles == 3


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        pytest.param("sequential", [0, 2, 1, 3], id="sequential AABB"),
        pytest.param("interleaved", [0, 1, 2, 3], id="interleaved ABAB"),
        pytest.param("latin_square", [0, 1, 3, 2], id="latin square ABBA"),
        pytest.param("shuffled", None, id="shuffled"),
    ],
)
def test_runs_start_in_the_planned_order(tmp_path: Path, order: str, expected: list[int] | None) -> None:
    """The order of the plan is the order on the clock."""
    study = make(TWO, {"execution": {"n_cycles": 2, "cycle_order": order}})

    done = execute(study, tmp_path / "out")

    rows = [r for r in manifest(done.folder).rows if r.started_at]
    started = [r.index for r in sorted(rows, key=lambda r: r.started_at or r.completed_at)]
    assert started == [r.index for r in make_plan(study).runs]
    if expected is not None:
        assert started == expected
    assert [r.cycle for r in rows] == [1, 1, 2, 2]


def test_cycles_of_a_single_experiment_are_a_study(tmp_path: Path) -> None:
    """`llem run FILE --cycles 2` on a plain experiment leaves a study with two runs of the same configuration."""
    ended = llem("run", write(tmp_path), "--cycles", "2", cwd=tmp_path)

    assert ended.code == 0
    (folder,) = (tmp_path / "results").iterdir()
    rows = manifest(folder).rows
    assert [(r.cycle, r.status) for r in rows] == [(1, "completed"), (2, "completed")]
    assert len({r.config_hash for r in rows}) == 1
    assert "2 of 2 runs completed" in ended.out


def test_kept_duplicates_run_as_extra_cycles(tmp_path: Path) -> None:
    """`deduplicate: false` runs equal experiments as many times, each with a cycle and a folder of its own."""
    study = make({"experiments": [{}, {}]}, {"execution": {"deduplicate": False}})

    done = execute(study, tmp_path / "out")

    assert [(r.index, r.cycle, r.status) for r in manifest(done.folder).rows] == [
        (0, 1, "completed"),
        (1, 2, "completed"),
    ]
    assert len(list((done.folder / "runs").iterdir())) == 2


def block_runs(run: Run, folder: Path) -> None:
    """Put a file where the folder of results should be, during the first run; take it away before the second."""
    if run.index == 0:
        (folder / "runs").write_text("in the way")
    else:
        (folder / "runs").unlink()


def test_result_that_cannot_be_saved_is_a_failed_run(tmp_path: Path) -> None:
    """A run whose result cannot be stored is failed, never completed; the study goes on."""
    done = execute(
        make(TWO, {"execution": {"cycle_order": "sequential"}}), tmp_path / "out", Watcher(tmp_path / "out", block_runs)
    )

    failed, completed = manifest(done.folder).rows
    assert (failed.status, failed.error_type) == ("failed", "ResultStoreError")
    assert "runs" in (failed.error_message or "")
    assert failed.result_uri is None
    assert completed.status == "completed"
    result = done.result
    assert len(result.result_files) == 1
    assert (result.summary["ran"], result.summary["failed"]) == (1, 1)


def test_full_disk_is_an_error_and_leaves_earlier_results_alone(tmp_path: Path) -> None:
    """On a full disk the run is not completed, the error says so, and results that are there stay readable."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no tmpfs can be mounted here")

    def fill(run: Run, folder: Path) -> None:
        if run.index == 1:
            with open(folder / "ballast", "wb", buffering=0) as file, contextlib.suppress(OSError):  # until it is full
                while True:
                    file.write(b"\0" * 4096)

    try:
        with pytest.raises(ResultStoreError, match="No space left on device"):
            execute(make(TWO, {"execution": {"cycle_order": "sequential"}}), disk / "out", Watcher(disk / "out", fill))

        (folder,) = (disk / "out").iterdir()
        first, second = manifest(folder).rows
        assert first.status == "completed"
        assert second.status != "completed"
        assert first.result_uri is not None
        ExperimentResult.from_json(folder / first.result_uri)
        assert not list((folder / "runs").glob("00001*/result.json"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_folder_deleted_under_way_is_a_clear_error(tmp_path: Path) -> None:
    """When the study's folder vanishes under a run, the study ends with an error that names it; no half study appears."""

    def vanish(run: Run, folder: Path) -> None:
        folder.rename(tmp_path / "elsewhere")

    with pytest.raises(ResultStoreError, match=r"study_manifest\.json"):
        execute(make(TWO), tmp_path / "out", Watcher(tmp_path / "out", vanish))

    assert tree(tmp_path / "out") == set()
    assert sorted(statuses(tmp_path / "elsewhere")) == ["pending", "running"]


def test_no_process_is_left_when_a_study_has_ended(finished: Executed) -> None:
    """Every run's process is gone, the crashed ones' too."""
    children = [int(p) for task in Path("/proc/self/task").iterdir() for p in (task / "children").read_text().split()]

    ours = [p for p in children if b"llenergymeasure" in Path(f"/proc/{p}/cmdline").read_bytes()]
    assert [p for p in ours if alive(p)] == []


def test_nothing_is_run_or_left_when_a_preflight_check_fails(tmp_path: Path) -> None:
    """If any experiment of a study cannot run, none is started and no folder is made."""
    from llenergymeasure.core.errors import ConfigError

    study = make({"experiments": [{}, {"dataset": "absent.jsonl"}]})

    with pytest.raises(ConfigError, match=r"absent\.jsonl"):
        execute(study, tmp_path / "out")

    assert tree(tmp_path / "out") == set()


def test_timeout_of_a_run_is_recorded_with_its_phase(tmp_path: Path) -> None:
    """`experiment_timeout_seconds` ends a run that takes too long; the manifest names type and phase."""
    slow = {"experiments": [{"synthetic": {"batch_overhead_ms": 60_000}}, {}]}
    study = make(slow, {"execution": {"experiment_timeout_seconds": 2, "cycle_order": "sequential"}})

    done = execute(study, tmp_path / "out")

    timed_out, other = manifest(done.folder).rows
    assert (timed_out.status, timed_out.error_type) == ("failed", "PhaseTimeoutError")
    assert "phase warmup" in (timed_out.error_message or "")
    assert other.status == "completed"
