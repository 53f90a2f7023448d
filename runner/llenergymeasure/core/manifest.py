"""What happened to every run of a study: states, legal transitions, counts; frozen values, a change gives a new one."""

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from llenergymeasure.core.errors import StudyError
from llenergymeasure.core.plan import Plan

SCHEMA_VERSION = "2.0"

RowStatus = Literal["pending", "running", "completed", "failed", "interrupted", "cancelled"]
StudyStatus = Literal["running", "completed", "interrupted", "failed", "circuit_breaker"]

LEGAL: dict[RowStatus, frozenset[RowStatus]] = {
    "pending": frozenset({"running", "cancelled", "interrupted"}),
    "running": frozenset({"completed", "failed", "interrupted"}),
    "completed": frozenset(),
    "failed": frozenset({"running"}),
    "interrupted": frozenset({"running", "cancelled"}),
    "cancelled": frozenset({"running"}),
}


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ManifestRow(_Record):
    """The state of one run; times are UTC."""

    index: int = Field(ge=0)
    cycle: int = Field(ge=1)
    config_hash: str
    summary: str
    status: RowStatus = "pending"
    verdict: str | None = None
    attempts: int = 0
    result_uri: str | None = None
    error_type: str | None = None
    error_message: str | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None


class StudyManifest(_Record):
    """The state of a whole study; `calibration_sha256` is that of the file which corrects its GPUs, None for none."""

    schema_version: str = SCHEMA_VERSION
    name: str
    study_design_hash: str
    tool_version: str
    calibration_sha256: str | None = None
    status: StudyStatus = "running"
    started_at: datetime
    completed_at: datetime | None = None
    skipped: int = 0
    rows: tuple[ManifestRow, ...]

    def counts(self) -> dict[str, int]:
        """Rows by status, all of them (`total`), refused at expansion (`skipped`), invalid verdicts (`invalid`)."""
        by_status = Counter(r.status for r in self.rows)
        invalid = sum(r.status == "completed" and r.verdict == "invalid" for r in self.rows)
        return {
            "total": len(self.rows),
            **{s: by_status[s] for s in LEGAL},
            "invalid": invalid,
            "skipped": self.skipped,
        }

    def row(self, index: int) -> ManifestRow:
        """The row of a run; raises StudyError if there is none."""
        for row in self.rows:
            if row.index == index:
                return row
        raise StudyError(f"run {index} is not in the manifest of study {self.name!r} ({len(self.rows)} runs)")

    def _moved(self, index: int, status: RowStatus, **changes: object) -> "StudyManifest":
        row = self.row(index)
        if status not in LEGAL[row.status]:
            raise StudyError(f"run {index} cannot go from {row.status} to {status}")
        return self._with(row, status=status, **changes)

    def _with(self, row: ManifestRow, **changes: object) -> "StudyManifest":
        new = row.model_copy(update=changes)
        return self.model_copy(update={"rows": tuple(new if r.index == row.index else r for r in self.rows)})

    def mark_running(self, index: int, now: datetime) -> "StudyManifest":
        """A new attempt has started."""
        attempts = self.row(index).attempts + 1
        fresh = dict.fromkeys(("verdict", "result_uri", "error_type", "error_message", "completed_at"))
        return self._moved(index, "running", started_at=now, attempts=attempts, **fresh)

    def mark_completed(self, index: int, now: datetime, *, verdict: str, result_uri: str) -> "StudyManifest":
        """The result is stored at `result_uri`."""
        return self._moved(index, "completed", completed_at=now, verdict=verdict, result_uri=result_uri)

    def mark_failed(self, index: int, now: datetime, *, error_type: str, error_message: str) -> "StudyManifest":
        """The attempt ended without a stored result."""
        return self._moved(index, "failed", completed_at=now, error_type=error_type, error_message=error_message)

    def mark_interrupted(self, index: int, now: datetime) -> "StudyManifest":
        """The user stopped the study during this run."""
        return self._moved(index, "interrupted", completed_at=now)

    def mark_lost(self, index: int, now: datetime) -> "StudyManifest":
        """A completed run whose result is not there any more: the one way out of `completed`, taken by a resume."""
        row = self.row(index)
        if row.status != "completed":
            raise StudyError(f"run {index} is {row.status}, not completed: it has no result to lose")
        return self._with(
            row,
            status="failed",
            verdict=None,
            result_uri=None,
            completed_at=now,
            error_type="ResultMissing",
            error_message=f"{row.result_uri} is not there or cannot be read",
        )

    def reopened(self, added: Iterable[ManifestRow] = ()) -> "StudyManifest":
        """The study goes on, with further rows where cycles were added."""
        rows = (*self.rows, *added)
        return self.model_copy(update={"rows": rows, "status": "running", "completed_at": None})

    def interrupted(self, now: datetime) -> "StudyManifest":
        """The user stopped the study: what was running is interrupted, what is pending stays so."""
        rows = tuple(
            r.model_copy(update={"status": "interrupted", "completed_at": now}) if r.status == "running" else r
            for r in self.rows
        )
        return self.model_copy(update={"rows": rows, "status": "interrupted", "completed_at": now})

    def finished(self, now: datetime, *, status: StudyStatus | None = None) -> "StudyManifest":
        """Close the study: what never started is cancelled; `status` is derived from the rows unless given."""
        rows = tuple(r.model_copy(update={"status": "cancelled"}) if r.status == "pending" else r for r in self.rows)
        derived: StudyStatus = "completed" if all(r.status == "completed" for r in rows) else "failed"
        return self.model_copy(update={"rows": rows, "status": status or derived, "completed_at": now})


def rows_of(plan: Plan, summaries: Sequence[str]) -> list[ManifestRow]:
    """A pending row per run in order of index; `summaries` by position in the study."""
    return [
        ManifestRow(index=r.index, cycle=r.cycle, config_hash=r.config_hash, summary=summaries[r.position])
        for r in sorted(plan.runs, key=lambda r: r.index)
    ]


def new_manifest(
    plan: Plan,
    *,
    name: str,
    summaries: Iterable[str],
    skipped: int,
    tool_version: str,
    now: datetime,
    calibration_sha256: str | None = None,
) -> StudyManifest:
    """A manifest in which every run is pending, rows in order of index; `summaries` by position in the study."""
    return StudyManifest(
        name=name,
        study_design_hash=plan.design_hash,
        tool_version=tool_version,
        calibration_sha256=calibration_sha256,
        started_at=now,
        skipped=skipped,
        rows=tuple(rows_of(plan, list(summaries))),
    )
