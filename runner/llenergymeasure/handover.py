"""A run of a cluster from end to end: look for an earlier result, wait for the pause, measure, store, say so.

Nothing is loaded before the store has answered and the pause is over. The store is asked first, and the configuration
is put there, so that wrong credentials are found before a GPU has worked for hours. What was measured is never
measured again because of the store: writing is tried again until the time for it is used up.
"""

import contextlib
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from llenergymeasure import ending, store
from llenergymeasure.assignment import CONFIG_HASH, Assignment
from llenergymeasure.core.config import ExperimentConfig
from llenergymeasure.core.errors import ConfigError, LLEMError, TerminatedError, UnreachableError
from llenergymeasure.core.identity import canonical, measurement_config_hash
from llenergymeasure.core.result import ExperimentResult
from llenergymeasure.core.termination import TerminationRecord
from llenergymeasure.measure import Measured
from llenergymeasure.object_store import NotTakenError, Place, Stored, open_place
from llenergymeasure.phases import Emit
from llenergymeasure.waiting import REFUSED_S, SYSTEM, Clock, Patience, wait_until

HURRIED_S = 40.0  # for an upload after SIGTERM: less than the 60 s that the operator has the kubelet grant
FAILURE_S = 5.0  # for the note about a failure, which must not keep a dying pod


@dataclass
class Handover:
    """One attempt's dealings with the store."""

    duty: Assignment
    emit: Emit
    clock: Clock = SYSTEM
    config: ExperimentConfig | None = None
    _patience: Patience = field(init=False)
    _probe: Patience = field(init=False)
    _run: Place = field(init=False)
    _study: Place = field(init=False)

    def __post_init__(self) -> None:
        """Open the run's place; raises ConfigError, BackendMissingError."""
        self._patience = Patience(self.duty.upload_seconds, self.clock, self._say_retry)
        self._probe = Patience(REFUSED_S, self.clock, self._say_retry)
        self._run = open_place(self.duty.run_uri, self.duty.access)
        self._study = open_place(self.duty.study_uri, self.duty.access)

    def bring_home(self, config: ExperimentConfig, measure: Callable[[], Measured]) -> TerminationRecord:
        """Give the record of this run's result, which is in the store: an earlier attempt's, or one that is measured.

        Raises:
            LLEMError: What `measure` raises; ConfigError, ResultStoreError, UnreachableError, TerminatedError.

        """
        self.config = config
        self._check_identity(config)
        self._phase("adopt")
        if (found := self._earlier_result()) is not None:
            return found
        self._announce(config)
        if self.duty.gap_until is not None:
            self._wait(self.duty.gap_until)
        measured = measure()
        with self._hurried_by_sigterm():
            self._phase("upload")
            return self._upload(measured)

    def note_failure(self, error: dict[str, Any]) -> None:
        """Leave `failure.json`; that this fails, too, is no news."""
        document = ending.failure_document(error, self.duty, self.config, self.clock.now())
        with contextlib.suppress(LLEMError):
            self._own().put_new(store.FAILURE, store.dump_json(document), Patience(FAILURE_S, self.clock))

    def _own(self) -> Place:
        return self._run.below(f"a{self.duty.attempt}")

    def _phase(self, name: str, **more: Any) -> None:
        self.emit({"event": "phase", "phase": name, **more})

    def _say_retry(self, seconds: float, reason: str) -> None:
        self.emit({"event": "retry", "seconds": round(seconds, 1), "message": f"the store: {reason}"})

    def _check_identity(self, config: ExperimentConfig) -> None:
        told, own = self.duty.config_hash, measurement_config_hash(config)
        if told is not None and told != own:
            raise ConfigError(
                f"{CONFIG_HASH} is {told}, but this version of llem computes {own}; "
                "use an image of the operator's version"
            )

    def _earlier_result(self) -> TerminationRecord | None:
        for attempt in self.duty.earlier:
            place = self._run.below(f"a{attempt}")
            content = self._look(place)
            if content is None:
                continue
            try:
                result = ExperimentResult.from_json(content)
            except ValidationError as err:
                reason = f"is no result that this version reads ({err.error_count()} problems)"
            else:
                if self.config is not None and result.measurement_config_hash == measurement_config_hash(self.config):
                    uri = f"{place.uri}/{store.RESULT}"
                    self.emit({"event": "adopted", "uri": uri, "attempt": attempt})
                    return ending.stored_record(result, Stored.of(uri, content), adopted=True)
                reason = f"is of configuration {result.measurement_config_hash}"
            self.emit({"event": "warning", "message": f"{place.uri}/{store.RESULT} {reason}; not adopted"})
        return None

    def _look(self, place: Place) -> bytes | None:
        """The result in an attempt's place; a first attempt need not know, since nothing can have been lost."""
        if self.duty.attempt > self.duty.adopt_from:
            return place.get(store.RESULT, self._patience)
        with contextlib.suppress(UnreachableError):
            return place.get(store.RESULT, self._probe)
        return None

    def _announce(self, config: ExperimentConfig) -> None:
        """Put study and configuration into the store; one that is down now may be up when there is a result."""
        try:
            if self.duty.study_record is not None:
                content = store.dump_json(dict(self.duty.study_record))
                self._study.put_if_absent(store.STUDY, content, self._probe)
            self._own().put_new(store.CONFIG, store.dump_json(canonical(config)), self._probe)
        except NotTakenError as err:
            self.emit({"event": "warning", "message": f"{err}; tried again after the measurement"})

    def _wait(self, until: datetime) -> None:
        seconds = (until - self.clock.now()).total_seconds()
        if seconds > 0:
            self._phase("gap", seconds=round(seconds, 1), until=until.isoformat())
            wait_until(until, self.clock)

    @contextlib.contextmanager
    def _hurried_by_sigterm(self) -> Iterator[None]:
        """From here on SIGTERM shortens the waiting, but no longer throws away what was measured."""
        signal.signal(signal.SIGTERM, lambda number, frame: self._patience.hurry(HURRIED_S))
        try:
            yield
        except NotTakenError as err:
            if self._patience.hurried:
                raise TerminatedError(f"stopped by SIGTERM while the result waited for the store: {err}") from err
            raise

    def _upload(self, measured: Measured) -> TerminationRecord:
        own = self._own()
        files = store.files_of(measured.result, measured.series, measured.raw)
        if self.duty.study_record is not None:  # the store was down before the measurement, perhaps
            content = store.dump_json(dict(self.duty.study_record))
            self._study.put_if_absent(store.STUDY, content, self._patience)
        stored = [own.put_new(name, content, self._patience) for name, content in files.items()]
        return ending.stored_record(measured.result, stored[-1])
