"""The experiment process: configuration in by file or environment, result out by descriptor or folder.

It is what every runner starts (`llem experiment`): a subprocess, a container or a Kubernetes Job. Its exit codes are
those of `core.errors`, away from 1, 2 and 125 and above, which shells and container engines use themselves.
"""

import contextlib
import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from pydantic import ValidationError

from llenergymeasure import ending, leash, store
from llenergymeasure.assignment import Assignment, read_assignment
from llenergymeasure.core.config import ExperimentConfig
from llenergymeasure.core.errors import ConfigError, ResultStoreError, TerminatedError, run_exit_code
from llenergymeasure.core.resources import boolean_n
from llenergymeasure.core.termination import TerminationRecord
from llenergymeasure.handover import Handover
from llenergymeasure.loaders import Document, experiment_from, read_document
from llenergymeasure.measure import Measured, measure
from llenergymeasure.report import error_text
from llenergymeasure.result_message import encode, send
from llenergymeasure.user_config import load_user_config
from llenergymeasure.yaml_reading import parse_yaml

VARIABLE = "LLEM_EXPERIMENT"
TERMINATION_LOG = "LLEM_TERMINATION_LOG"


@dataclass(frozen=True)
class Destination:
    """Where the result goes: a descriptor, a folder, or a run's place in a store; stdout if nowhere else."""

    descriptor: int | None = None
    folder: str | None = None
    run_uri: str | None = None


def run_as_child(config: Path | None, to: Destination) -> int:
    """Measure one experiment, hand its result over, and give the exit code; errors become an event and a message."""
    signal.signal(signal.SIGTERM, _stop)
    leash.tie_to_parent(os.environ)
    _keep_to_itself(to.descriptor)
    phase: list[str] = ["start"]
    handover: Handover | None = None

    def emit(event: dict[str, Any]) -> None:
        phase[0] = str(event.get("phase", phase[0]))
        _event(event)

    try:
        duty = _duty(to)
        handover = Handover(duty, emit) if duty is not None else None
        experiment = _configuration(config)
        user = load_user_config()
        if handover is None:
            _deliver(measure(experiment, user, emit=emit), to.descriptor, to.folder)
        else:
            record = handover.bring_home(experiment, lambda: measure(experiment, user, emit=emit))
            _leave_message(record)
    except (Exception, KeyboardInterrupt) as err:  # noqa: BLE001  (the door of the experiment process)
        return _report(err, phase[0], to.descriptor, handover)
    return 0


def _duty(to: Destination) -> Assignment | None:
    """What a pod is told, unless a flag names another place: a parent's environment is not always meant for us."""
    if to.descriptor is None and to.folder is None:
        return read_assignment(os.environ, to.run_uri)
    if to.run_uri is not None:
        raise ConfigError("--run-uri goes with neither --result nor --result-fd; name one place")
    return None


def _keep_to_itself(descriptor: int | None) -> None:
    """Let no program that an engine starts inherit the result's pipe: it would keep it open."""
    if descriptor is not None:
        with contextlib.suppress(OSError):  # not open: told when the result cannot be handed over
            os.set_inheritable(descriptor, False)


def _stop(number: int, frame: FrameType | None) -> None:
    del frame
    raise TerminatedError(f"stopped by {signal.Signals(number).name}")


def _event(event: dict[str, Any]) -> None:
    sys.stderr.write(json.dumps(event) + "\n")
    sys.stderr.flush()


def _configuration(path: Path | None) -> ExperimentConfig:
    document = read_document(path) if path is not None else _from_environment()
    if document.study:
        raise ConfigError(f"{document.source}: is a study; llem experiment takes one experiment")
    return experiment_from(document)


def _from_environment() -> Document:
    text = os.environ.get(VARIABLE)
    if not text:
        raise ConfigError(f"no configuration: give --config FILE or set {VARIABLE} (JSON)")
    body = parse_yaml(text, source=VARIABLE)
    if not isinstance(body, dict):
        raise ConfigError(f"{VARIABLE}: must be a JSON object")
    return Document(boolean_n(body, source=VARIABLE), study=False, source=VARIABLE)


def _deliver(measured: Measured, descriptor: int | None, uri: str | None) -> None:
    """Hand the result over: into a folder, through a descriptor, and to stdout if neither was asked for."""
    if uri is not None:
        store.save_run(store.folder_of_uri(uri), store.files_of(measured.result, measured.series, measured.raw))
    try:
        if descriptor is not None:
            send(descriptor, encode(measured))
        if uri is None and descriptor is None:
            sys.stdout.write(measured.result.to_json() + "\n")
            sys.stdout.flush()
    except OSError as err:
        raise ResultStoreError(f"the result cannot be handed over: {err.strerror}") from err


def _report(err: BaseException, phase: str, descriptor: int | None, handover: Handover | None) -> int:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends anyway; what is known is still said
    known: BaseException = err
    if isinstance(err, ValidationError):
        known = ConfigError(error_text(err))
    elif isinstance(err, KeyboardInterrupt):
        known = TerminatedError("interrupted")
    code = run_exit_code(known)
    message = ending.cleaned(error_text(known), ending.secrets_in(os.environ))
    error = {"type": type(err).__name__, "message": message, "phase": phase, "exit_code": code}
    _event({"event": "error", **error})
    with contextlib.suppress(ResultStoreError):  # without a message the kubelet takes the log's end, the event
        _leave_message(ending.failed_record(error))
    if handover is not None:
        handover.note_failure(error)
    if descriptor is not None:
        with contextlib.suppress(OSError):  # nobody listens there; the event and the exit code have said it
            send(descriptor, json.dumps({"error": error}).encode())
    return code


def _leave_message(record: TerminationRecord) -> None:
    """Write a pod's termination message where the kubelet reads it; raises ResultStoreError."""
    path = os.environ.get(TERMINATION_LOG)
    if not path:
        return
    try:
        Path(path).write_text(record.to_message(), encoding="utf-8")  # in place: the file is a mount
    except OSError as err:
        raise ResultStoreError(f"{path}: the termination message cannot be written: {err.strerror}") from err
