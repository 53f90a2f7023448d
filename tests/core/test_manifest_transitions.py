"""The manifest of a study: which changes of a run are legal, what they record, and that the counts add up."""

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from pydantic import ValidationError

from llenergymeasure.core.errors import StudyError
from llenergymeasure.core.manifest import StudyManifest, new_manifest
from llenergymeasure.core.plan import make_plan
from llenergymeasure.core.sweep import expand

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
STATES = ("pending", "running", "completed", "failed", "interrupted", "cancelled")

# What may follow what, written from the specification: a result is final, anything else may run again (`--resume`).
ALLOWED = {
    "pending": {"running", "interrupted"},
    "running": {"completed", "failed", "interrupted"},
    "completed": set(),
    "failed": {"running"},
    "interrupted": {"running"},
    "cancelled": {"running"},
}
MARKS = ("running", "completed", "failed", "interrupted")


def fresh(experiments: int = 2, cycles: int = 2, order: str = "interleaved") -> StudyManifest:
    study = expand(
        {
            "model": "m",
            "experiments": [{"n": i + 1} for i in range(experiments)],
            "execution": {"n_cycles": cycles, "cycle_order": order},
        }
    )
    summaries = [f"experiment {i}" for i in range(experiments)]
    return new_manifest(make_plan(study), name="s", summaries=summaries, skipped=3, tool_version="2.0.0", now=NOW)


def mark(manifest: StudyManifest, index: int, status: str, now: datetime = NOW) -> StudyManifest:
    if status == "running":
        return manifest.mark_running(index, now)
    if status == "completed":
        return manifest.mark_completed(index, now, verdict="valid", result_uri="runs/0/result.json")
    if status == "failed":
        return manifest.mark_failed(index, now, error_type="BackendError", error_message="boom")
    return manifest.mark_interrupted(index, now)


def in_state(status: str) -> StudyManifest:
    """A manifest whose run 0 is in the given state, reached by legal steps."""
    manifest = fresh()
    if status == "cancelled":
        return manifest.finished(NOW)
    if status in ("completed", "failed", "interrupted", "running"):
        manifest = manifest.mark_running(0, NOW)
    return manifest if status in ("pending", "running") else mark(manifest, 0, status)


@pytest.mark.parametrize("new", MARKS)
@pytest.mark.parametrize("old", STATES)
def test_transition_is_legal_exactly_where_the_table_says(old: str, new: str) -> None:
    """A legal change happens, an illegal one is an error that names run, old and new state, and changes nothing."""
    manifest = in_state(old)
    assert manifest.row(0).status == old
    if new in ALLOWED[old]:
        assert mark(manifest, 0, new).row(0).status == new
    else:
        with pytest.raises(StudyError, match=f"run 0 cannot go from {old} to {new}"):
            mark(manifest, 0, new)
    assert manifest.row(0).status == old


def test_new_manifest_has_a_pending_row_per_run_in_order_of_index() -> None:
    """Rows are sorted by index whatever the order of the runs; each has its cycle, hash and summary."""
    manifest = fresh(experiments=3, cycles=2, order="shuffled")
    assert [r.index for r in manifest.rows] == [0, 1, 2, 3, 4, 5]
    assert [r.cycle for r in manifest.rows] == [1, 1, 1, 2, 2, 2]
    assert [r.summary for r in manifest.rows] == ["experiment 0", "experiment 1", "experiment 2"] * 2
    assert [r.config_hash for r in manifest.rows[:3]] == [r.config_hash for r in manifest.rows[3:]]
    assert {r.status for r in manifest.rows} == {"pending"}
    assert manifest.status == "running"
    assert manifest.started_at == NOW


def test_marks_record_what_happened() -> None:
    """Start, end, verdict, result and error are in the row; a new attempt clears what the last one left."""
    later = NOW + timedelta(seconds=5)
    failed = mark(fresh().mark_running(1, NOW), 1, "failed", later).row(1)
    assert (failed.attempts, failed.started_at, failed.completed_at) == (1, NOW, later)
    assert (failed.error_type, failed.error_message, failed.verdict) == ("BackendError", "boom", None)

    again = mark(fresh().mark_running(1, NOW), 1, "failed").mark_running(1, later).row(1)
    assert (again.attempts, again.started_at, again.completed_at) == (2, later, None)
    assert (again.error_type, again.error_message) == (None, None)

    done = mark(fresh().mark_running(1, NOW), 1, "completed", later).row(1)
    assert (done.verdict, done.result_uri, done.completed_at) == ("valid", "runs/0/result.json", later)


def test_change_leaves_the_old_manifest_and_the_other_rows_alone() -> None:
    """A manifest is a value: a change gives a new one."""
    before = fresh()
    after = before.mark_running(2, NOW)
    assert before == fresh()
    assert [r for r in after.rows if r.index != 2] == [r for r in before.rows if r.index != 2]
    with pytest.raises(ValidationError):
        before.status = "failed"


def test_unknown_run_is_an_error_that_names_the_study() -> None:
    """An index from another study is not silently ignored."""
    with pytest.raises(StudyError, match="run 99 is not in the manifest of study 's'"):
        fresh().mark_running(99, NOW)


FINISHED: list[tuple[str, list[str], str, dict[str, int]]] = [
    ("all-completed", ["completed"] * 4, "completed", {"completed": 4}),
    ("one-failed", ["completed"] * 3 + ["failed"], "failed", {"completed": 3, "failed": 1}),
    ("never-started", ["completed"] * 3 + ["pending"], "failed", {"completed": 3, "cancelled": 1}),
    ("interrupted", ["completed", "interrupted", "pending", "pending"], "failed",
     {"completed": 1, "interrupted": 1, "cancelled": 2}),
]  # fmt: skip


@pytest.mark.parametrize(("states", "status", "counts"), [r[1:] for r in FINISHED], ids=[r[0] for r in FINISHED])
def test_end_of_a_study_follows_from_its_rows(states: list[str], status: str, counts: dict[str, int]) -> None:
    """Completed means that every run has a result; what never started is cancelled."""
    manifest = fresh()
    for index, state in enumerate(states):
        if state != "pending":
            manifest = mark(manifest.mark_running(index, NOW), index, state)
    ended = manifest.finished(NOW + timedelta(hours=1))
    assert ended.status == status
    assert ended.completed_at == NOW + timedelta(hours=1)
    assert {k: v for k, v in ended.counts().items() if v and k in STATES} == counts


@pytest.mark.parametrize("status", ["interrupted", "circuit_breaker"])
def test_reason_for_an_early_end_is_kept(status: str) -> None:
    """A study that was stopped says so, whatever its rows say."""
    assert fresh().finished(NOW, status=status).status == status


def test_counts_have_every_state_and_the_invalid_and_skipped() -> None:
    """Invalid counts completed runs that may not be believed; skipped ones never had a row."""
    manifest = fresh().mark_running(0, NOW).mark_completed(0, NOW, verdict="invalid", result_uri="x")
    manifest = manifest.mark_running(1, NOW).mark_completed(1, NOW, verdict="valid", result_uri="x")
    manifest = mark(manifest.mark_running(2, NOW), 2, "failed")
    assert manifest.counts() == {
        "total": 4, "pending": 1, "running": 0, "completed": 2, "failed": 1, "interrupted": 0, "cancelled": 0,
        "invalid": 1, "skipped": 3,
    }  # fmt: skip


def test_manifest_survives_its_json_exactly() -> None:
    """What is on disk is what was in memory, times to the microsecond."""
    manifest = mark(mark(fresh().mark_running(0, NOW), 0, "failed").mark_running(1, NOW), 1, "completed")
    assert StudyManifest.model_validate_json(manifest.model_dump_json()) == manifest


BROKEN = [("status", "done"), ("index", -1), ("cycle", 0), ("surprise", 1)]


@pytest.mark.parametrize(("field", "value"), BROKEN, ids=[b[0] for b in BROKEN])
def test_row_that_nobody_wrote_is_refused(field: str, value: object) -> None:
    """An edited manifest with an unknown state, number or key is not trusted."""
    data = fresh().model_dump()
    data["rows"][0][field] = value
    with pytest.raises(ValidationError, match=field):
        StudyManifest.model_validate(data)


class AnyHistory(RuleBasedStateMachine):
    """Random marks on random runs, followed in a plain dictionary."""

    @initialize()
    def start(self) -> None:
        self.manifest = fresh()
        self.known = dict.fromkeys(range(4), "pending")
        self.attempts = Counter[int]()

    @rule(index=st.integers(0, 3), status=st.sampled_from(MARKS))
    def mark(self, index: int, status: str) -> None:
        old = self.known[index]
        try:
            self.manifest = mark(self.manifest, index, status)
        except StudyError:
            assert status not in ALLOWED[old]
            return
        assert status in ALLOWED[old]
        self.known[index] = status
        self.attempts[index] += status == "running"

    @rule()
    def end(self) -> None:
        self.manifest = self.manifest.finished(NOW)
        self.known = {i: "cancelled" if s == "pending" else s for i, s in self.known.items()}

    @invariant()
    def rows_and_counts_are_those_of_the_history(self) -> None:
        assert {r.index: r.status for r in self.manifest.rows} == self.known
        assert {r.index: r.attempts for r in self.manifest.rows} == {i: self.attempts[i] for i in self.known}
        counts = self.manifest.counts()
        assert sum(counts[s] for s in STATES) == counts["total"] == 4

    @invariant()
    def only_a_completed_run_has_a_result(self) -> None:
        for row in self.manifest.rows:
            assert (row.result_uri is not None) == (row.status == "completed")
            assert (row.error_type is not None) == (row.status == "failed")


TestAnyHistory = AnyHistory.TestCase
TestAnyHistory.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
TestAnyHistory.__doc__ = "No history of marks reaches a state that the table does not allow."
