"""Runs a study's runs one after the other, each in a process of its own; the manifest is written after every change."""

import contextlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from llenergymeasure import gpu_memory, launch
from llenergymeasure.core.breaker import PROBE_AFTER_S, Breaker
from llenergymeasure.core.config import StudyConfig
from llenergymeasure.core.errors import LLEMError, ResultStoreError
from llenergymeasure.core.manifest import StudyManifest
from llenergymeasure.core.plan import Plan, Run, describe_all
from llenergymeasure.core.result import ExperimentResult
from llenergymeasure.known_baselines import KnownBaselines
from llenergymeasure.pacing import Terminal, pause
from llenergymeasure.study_folder import StudyFolder
from llenergymeasure.wording import counted

MAX_ERROR = 2000  # characters of an error in the manifest; the whole text is on the terminal


class Observer:
    """Someone who watches a study run; this one looks away, others override what they want to see."""

    def planned(self, done: int, total: int, pauses_s: float) -> None:
        """The study begins or goes on: runs that are done already, all runs, all pauses that lie ahead, s."""

    def run_started(self, run: Run, summary: str, total: int) -> None:
        """A run begins."""

    def event(self, event: dict[str, Any]) -> None:
        """The running experiment says something."""

    def run_finished(self, run: Run, summary: str, result: ExperimentResult | None, error: str | None) -> None:
        """A run ended with a result or an error."""

    def waiting(self, seconds: float) -> None:
        """A gap begins."""

    def remaining(self, seconds: float) -> None:
        """So much of the gap is left; told each second."""

    def note(self, text: str) -> None:
        """Something that the user should know."""


def utc_now() -> datetime:
    """The wall clock, for records only: no decision rests on it."""
    return datetime.now(UTC)


class StudyRunner:
    """A study that runs: what happened so far in `manifest`, errors of failed runs in `errors` by index."""

    def __init__(
        self,
        study: StudyConfig,
        plan: Plan,
        folder: StudyFolder,
        manifest: StudyManifest,
        observer: Observer,
        baselines: KnownBaselines | None = None,
    ) -> None:
        self.manifest = manifest
        self.errors: dict[int, LLEMError] = {}
        self._study, self._plan, self._folder = study, plan, folder
        self._watch, self._clock, self._baselines = observer, Terminal(), baselines
        self._summaries = describe_all(study.experiments)
        self._breaker = Breaker(study.execution.max_consecutive_failures)
        self._cooling_since_s: float | None = None  # nothing has heated a GPU yet
        self._loaded = False
        self._save()

    def left(self) -> list[Run]:
        """Runs without a result, in the order in which they start."""
        return [r for r in self._plan.runs if self.manifest.row(r.index).status != "completed"]

    def run(self, pauses_s: Sequence[float], *, gpus: Sequence[str] = (), keep_open: Sequence[int] = ()) -> None:
        """Run what is left; a failed run is recorded and the study goes on until its breaker opens.

        Args:
            pauses_s: Before each run of `left()`, s from the end of the window before it; a run that failed before its
                engine began to load heated nothing, and the pause counts from what ran before it.
            gpus: UUIDs whose memory must be free again after each run.
            keep_open: Descriptors that each run's process inherits: locks that live as long as it does.

        Raises:
            ResultStoreError: The manifest cannot be written. KeyboardInterrupt: Says how many runs are done.

        """
        left = self.left()
        self._watch.planned(len(self._plan.runs) - len(left), len(self._plan.runs), sum(pauses_s))
        try:
            before_mb = gpu_memory.used_mb(gpus)
            for run, pause_s in zip(left, pauses_s, strict=True):
                if self._baselines is not None:  # within the pause: the GPUs are free, and it costs no time
                    self._baselines.prepare(self._study.experiments[run.position], self._watch.note)
                self._wait(pause_s)
                self._one(run, keep_open)
                if text := gpu_memory.wait_until_back(before_mb):
                    self._watch.note(text)
                if self._breaker.state == "open":
                    break
        except BaseException as err:
            self.manifest = self.manifest.interrupted(utc_now())
            with contextlib.suppress(ResultStoreError):  # the error that is on its way says more
                self._save()
            if isinstance(err, KeyboardInterrupt):
                err.args = (self._how_far(),)
            raise
        tripped = self._breaker.state == "open"
        self.manifest = self.manifest.finished(utc_now(), status="circuit_breaker" if tripped else None)
        self._save()

    def _how_far(self) -> str:
        counts, path = self.manifest.counts(), self._folder.path
        return (
            f"{counts['completed']} of {counts['total']} runs done; results: {path}\n"
            f"go on with: llem run --resume {path}"
        )

    def _save(self) -> None:
        self._folder.write_manifest(self.manifest)

    def _wait(self, pause_s: float) -> None:
        """Pass what is left of the pause since a GPU was last hot; before a probe at least a minute from now."""
        if self._breaker.state == "probe":
            self._cooling_since_s, pause_s = self._clock.now_s(), max(pause_s, PROBE_AFTER_S)
            failed = counted(self._breaker.failures, "run")
            text = f"{failed} failed in a row; one more is tried, then the study stops"
            self._watch.note(text)
        if self._cooling_since_s is None:
            return
        until_s = self._cooling_since_s + pause_s
        left_s = until_s - self._clock.now_s()
        if pause_s > 0 and left_s > 0:
            self._watch.waiting(left_s)
            pause(until_s, self._clock, self._watch.remaining)

    def _heard(self, event: dict[str, Any]) -> None:
        phase = event.get("phase") if event.get("event") == "phase" else None
        self._loaded = self._loaded or phase == "load"
        if phase == "drain":  # what follows the window
            self._cooling_since_s = self._clock.now_s()
        self._watch.event(event)

    def _one(self, run: Run, keep_open: Sequence[int]) -> None:
        summary = self._summaries[run.position]
        self.manifest = self.manifest.mark_running(run.index, utc_now())
        self._save()
        self._watch.run_started(run, summary, len(self._plan.runs))
        result, said, self._loaded = None, None, False
        try:
            result, uri = self._measured(run, keep_open)
        except LLEMError as err:
            said, kind = str(err), getattr(err, "error_type", type(err).__name__)
            self.errors[run.index] = err
            if self._loaded:
                self._cooling_since_s = self._clock.now_s()
            self.manifest = self.manifest.mark_failed(
                run.index, utc_now(), error_type=kind, error_message=said[:MAX_ERROR]
            )
        else:
            verdict = result.verdict.state
            self.manifest = self.manifest.mark_completed(run.index, utc_now(), verdict=verdict, result_uri=uri)
        self._breaker = self._breaker.after(failed=result is None)
        self._save()
        self._watch.run_finished(run, summary, result, said)

    def _measured(self, run: Run, keep_open: Sequence[int]) -> tuple[ExperimentResult, str]:
        """Measure a run and store its files; give its result and where it is."""
        execution = self._study.execution
        variables = {
            "LLEM_STUDY": self._study.name,
            "LLEM_INDEX": str(run.index),
            "LLEM_CYCLE": str(run.cycle),
            "LLEM_ATTEMPT": str(self.manifest.row(run.index).attempts),
        }
        variables |= self._baselines.variables() if self._baselines is not None else {}
        measured = launch.run_in_subprocess(
            self._study.experiments[run.position],
            limits=launch.Limits(
                execution.experiment_timeout_seconds, {str(k): v for k, v in execution.phase_timeouts.items()}
            ),
            on_event=self._heard,
            variables=variables,
            keep_open=keep_open,
        )
        if self._baselines is not None:
            self._baselines.learn(measured.result)
        return measured.result, self._folder.save_run(run, self._study, measured)
