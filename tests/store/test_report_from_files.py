"""`llem report`: the table of a study from its files alone, as a cluster or `llem run` left them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli.process import FAST, Ended, over
from llenergymeasure import store
from llenergymeasure.core.errors import ResultStoreError, StudyError
from llenergymeasure.core.plan import make_plan
from llenergymeasure.core.resources import study_of
from llenergymeasure.measure import Measured, measure
from llenergymeasure.object_store import Access, open_place
from llenergymeasure.stored_study import Rebuilt, rebuild
from llenergymeasure.user_config import UserConfig
from store.pods import changed
from study.running import execute, make

DESIGN = over({k: v for k, v in FAST.items() if k != "n"}, {"sweep": {"n": [1, 2]}})
RECORD: dict[str, Any] = {
    "name": "sweep",
    "uid": "0a1b2c3d-0000",
    "namespace": "bench",
    "design": DESIGN,
    "execution": {"nCycles": 2, "cycleOrder": "interleaved"},
    "study_design_hash": "",
}
FAILED = {
    "failed_at": "2026-03-01T12:00:00+00:00",
    "error": {"type": "BackendError", "message": "boom", "phase": "load", "exit_code": 16},
}


@pytest.fixture(scope="session")
def by_hash() -> dict[str, Measured]:
    """A result of each configuration of the design, by its hash."""
    study = the_study()
    found = [measure(e, UserConfig()) for e in study.experiments]
    return {m.result.measurement_config_hash: m for m in found}


def the_study() -> Any:
    """The design as the operator expands it."""
    spec = {"design": DESIGN, "execution": RECORD["execution"]}
    return study_of({"kind": "EnergyStudy", "metadata": {"name": "sweep"}, "spec": spec}, source="test")


class Stored:
    """A study's prefix in a store, filled by hand."""

    def __init__(self, root: Path, by_hash: dict[str, Measured]) -> None:
        self.root, self.by_hash = root, by_hash
        self.runs = {r.index: r for r in make_plan(the_study()).runs}
        self.write("study.json", RECORD)

    def write(self, name: str, content: Any) -> None:
        """A file."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())

    def folder(self, index: int, *, cycle: int | None = None) -> str:
        """A run's folder."""
        run = self.runs[index]
        return f"{index:05d}-{run.config_hash[:8]}-c{cycle or run.cycle}"

    def result(self, index: int, attempt: int = 1, *, cycle: int | None = None, **fields: Any) -> None:
        """A run that was measured."""
        measured = self.by_hash[self.runs[index].config_hash]
        files = store.files_of(changed(measured.result, **fields), measured.series, None)
        for name, content in files.items():
            self.write(f"{self.folder(index, cycle=cycle)}/a{attempt}/{name}", content)

    def failure(self, index: int, attempt: int = 1) -> None:
        """An attempt that failed."""
        self.write(f"{self.folder(index)}/a{attempt}/config.json", b"{}")
        self.write(f"{self.folder(index)}/a{attempt}/failure.json", FAILED)

    def rebuilt(self) -> Rebuilt:
        """What the files tell."""
        return rebuild(open_place(str(self.root), Access()))


@pytest.fixture
def stored(tmp_path: Path, by_hash: dict[str, Measured]) -> Stored:
    """A study of two configurations in two cycles of which nothing has run."""
    return Stored(tmp_path / "sweep-0a1b2c3d", by_hash)


def statuses(found: Rebuilt) -> list[str]:
    """Status of each run by index."""
    return [r.status for r in found.manifest.rows]


def test_completed_failed_and_missing_runs_are_told_apart(stored: Stored) -> None:
    """A result, a failure, neither: from the files of the newest attempts."""
    stored.result(0)
    stored.failure(1)
    stored.failure(2, attempt=1)
    stored.result(2, attempt=2)
    stored.write(f"{stored.folder(3)}/a1/config.json", b"{}")

    found = stored.rebuilt()

    assert statuses(found) == ["completed", "failed", "completed", "pending"]
    assert [r.attempts for r in found.manifest.rows] == [1, 1, 2, 0]
    assert found.study.summary == {"generated": 2, "runs": 4, "ran": 2, "failed": 1, "skipped": 0, "invalid": 2}
    (failed,) = found.study.failed
    assert (failed.index, failed.error_type, failed.error_message) == (1, "BackendError", "boom")
    assert found.study.result_files == [f"{stored.folder(0)}/a1/result.json", f"{stored.folder(2)}/a2/result.json"]
    assert [e.cycles_completed for e in found.study.experiments] == [2]
    assert (found.manifest.status, found.study.directory) == ("running", str(stored.root))


def test_newest_result_counts(stored: Stored) -> None:
    """A repetition replaces what was measured before; a failed repetition does not."""
    stored.result(0, attempt=1, output_tokens=11)
    stored.result(0, attempt=2, output_tokens=22)
    stored.failure(0, attempt=3)

    assert [r.output_tokens for r in stored.rebuilt().results] == [22]


def test_cycles_that_came_later_are_counted(stored: Stored) -> None:
    """study.json is written once; a study that was topped up since has more cycles than it says."""
    for index in stored.runs:
        stored.result(index)
    stored.runs |= {4: stored.runs[0]}
    stored.result(4, cycle=3)

    found = stored.rebuilt()

    assert statuses(found) == ["completed"] * 5 + ["pending"]
    assert found.study.measurement_protocol["n_cycles"] == 3


def test_unreadable_result_is_a_failure_with_its_name(stored: Stored) -> None:
    """A damaged file neither stops the report nor counts as measured."""
    stored.write(f"{stored.folder(0)}/a1/result.json", b'{"schema_version": "2.0", "exp')
    stored.write(f"{stored.folder(1)}/a1/failure.json", b"[]")

    found = stored.rebuilt()

    assert statuses(found)[:2] == ["failed", "failed"]
    assert found.study.failed[0].error_type == "ResultUnreadable"
    assert f"{stored.folder(0)}/a1/result.json" in (found.study.failed[0].error_message or "")


def test_result_of_another_study_is_refused(stored: Stored) -> None:
    """Files that study.json does not know are not left out silently."""
    stored.result(0)
    shutil.move(stored.root / stored.folder(0), stored.root / "00000-ffffffff-c1")

    with pytest.raises(StudyError, match="1 runs belong to no run of study.json .configuration ffffffff, cycle 1"):
        stored.rebuilt()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        pytest.param(b"{", "cannot be read", id="cut off"),
        pytest.param([], "must be a JSON object", id="a list"),
        pytest.param({"experiments": []}, "is not a study of this version", id="nothing in it"),
        pytest.param(
            {**RECORD, "design": {"modle": "m", "sweep": {"n": [1]}}}, "modle", id="a design of another version"
        ),
    ],
)
def test_broken_study_file_is_named(stored: Stored, content: Any, says: str) -> None:
    """What cannot be understood is said, with the file."""
    stored.write("study.json", content)

    with pytest.raises(Exception, match=says) as err:
        stored.rebuilt()

    assert "study.json" in str(err.value)


def test_experiment_of_its_own_needs_no_study(stored: Stored) -> None:
    """A standalone experiment has no study.json: its result says what it was. So has one run's or attempt's folder."""
    stored.result(0)
    (stored.root / "study.json").unlink()

    for folder in (stored.root, stored.root / stored.folder(0), stored.root / stored.folder(0) / "a1"):
        found = rebuild(open_place(str(folder), Access()))
        assert statuses(found) == ["completed"]
        assert found.study.summary["runs"] == 1


def test_failed_experiment_of_its_own_says_why(stored: Stored) -> None:
    """Nothing but a failure is still an answer."""
    stored.failure(0)
    (stored.root / "study.json").unlink()

    with pytest.raises(ResultStoreError, match="but a failure: BackendError: boom"):
        stored.rebuilt()


def test_prefix_of_several_studies_names_them(stored: Stored) -> None:
    """One level too high: the error lists what is there."""
    with pytest.raises(ResultStoreError, match="studies below it: sweep-0a1b2c3d"):
        rebuild(open_place(str(stored.root.parent), Access()))


def test_local_study_reads_back_as_it_was_written(tmp_path: Path) -> None:
    """A folder of `llem run` gives the very study_result.json that the run wrote, failures included."""
    study = make({"name": "mixed", "execution": {"n_cycles": 2}, "sweep": {"precision": ["fp16", "fp99"]}},
                 {"experiments": [{"synthetic": {"fail_after_batches": 1}}]})  # fmt: skip
    done = execute(study, tmp_path / "results")

    found = rebuild(open_place(str(done.folder), Access()))

    assert json.loads(found.study.to_json()) == json.loads((done.folder / "study_result.json").read_bytes())
    assert [(r.index, r.status, r.error_message) for r in found.manifest.rows] == [
        (r.index, r.status, r.error_message) for r in done.manifest.rows
    ]


def test_command_prints_table_missing_runs_and_place(stored: Stored, quick_llem: Callable[..., Ended]) -> None:
    """The table of `llem run`, then what is missing; with --json the study's result, with --export-csv a row per run."""
    stored.result(0)
    stored.failure(1)

    table = quick_llem("report", stored.root)
    data = quick_llem("report", f"file://{stored.root}", "--json", "--export-csv", "table.csv")

    assert table.code == data.code == 0
    assert "failed run 1 (cycle 1, synthetic n=2): BackendError: boom" in table.out
    assert "missing run 2 (cycle 2, synthetic n=1): no result and no failure" in table.out
    assert table.out.endswith(f"results: {stored.root}\n")
    assert json.loads(data.out)["summary"]["failed"] == 1
    assert len((stored.root.parent / "table.csv").read_text().splitlines()) == 1 + 4


def test_command_takes_several_studies(stored: Stored, quick_llem: Callable[..., Ended]) -> None:
    """Tables one after the other; JSON as a list."""
    stored.result(0)

    ended = quick_llem("report", stored.root, stored.root, "--json")

    assert [d["name"] for d in json.loads(ended.out)] == ["sweep", "sweep"]


@pytest.mark.parametrize(
    ("place", "code", "says"),
    [
        pytest.param("nowhere", 1, "nowhere: cannot be read: no such folder", id="no folder"),
        pytest.param(".", 1, "no study and no result", id="empty folder"),
        pytest.param("ftp://x/y", 2, "scheme ftp is unknown", id="unknown scheme"),
    ],
)
def test_command_says_what_is_wrong(quick_llem: Callable[..., Ended], place: str, code: int, says: str) -> None:
    """One sentence, and the exit code of its kind."""
    ended = quick_llem("report", place)

    assert ended.code == code
    assert says in ended.err


def test_many_missing_runs_are_counted(stored: Stored, quick_llem: Callable[..., Ended]) -> None:
    """A study that has just begun does not print a thousand lines."""
    stored.write("study.json", {**RECORD, "execution": {"nCycles": 30}})

    lines = quick_llem("report", stored.root).out.splitlines()

    assert sum(line.startswith("missing run") for line in lines) == 20
    assert lines[-2] == "and 40 missing runs more"
