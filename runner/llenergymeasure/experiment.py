"""The experiment process: configuration in by file or environment, result out by descriptor or folder.

It is what every runner starts (`llem experiment`): a subprocess, a container or a Kubernetes Job. Its exit codes are
those of `core.errors`, away from 1, 2 and 125 and above, which shells and container engines use themselves.
"""

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from pydantic import ValidationError

from llenergymeasure import store
from llenergymeasure.core.errors import ConfigError, ResultStoreError, TerminatedError, run_exit_code
from llenergymeasure.core.resources import boolean_n
from llenergymeasure.launch import encode, send
from llenergymeasure.loaders import Document, experiment_from, read_document
from llenergymeasure.measure import Measured, measure
from llenergymeasure.report import error_text
from llenergymeasure.user_config import load_user_config
from llenergymeasure.yaml_reading import parse_yaml

VARIABLE = "LLEM_EXPERIMENT"


def run_as_child(config: Path | None, descriptor: int | None, uri: str | None) -> int:
    """Measure one experiment, hand its result over, and give the exit code; errors become an event and a message."""
    signal.signal(signal.SIGTERM, _stop)
    phase: list[str] = ["start"]

    def emit(event: dict[str, Any]) -> None:
        phase[0] = str(event.get("phase", phase[0]))
        _event(event)

    try:
        _deliver(_measure(config, emit), descriptor, uri)
    except (Exception, KeyboardInterrupt) as err:  # noqa: BLE001  (the door of the experiment process)
        return _report(err, phase[0], descriptor)
    return 0


def _stop(number: int, frame: FrameType | None) -> None:
    del frame
    raise TerminatedError(f"stopped by {signal.Signals(number).name}")


def _event(event: dict[str, Any]) -> None:
    sys.stderr.write(json.dumps(event) + "\n")
    sys.stderr.flush()


def _measure(path: Path | None, emit: Callable[[dict[str, Any]], None]) -> Measured:
    document = read_document(path) if path is not None else _from_environment()
    if document.study:
        raise ConfigError(f"{document.source}: is a study; llem experiment takes one experiment")
    return measure(experiment_from(document), load_user_config(), emit=emit)


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


def _report(err: BaseException, phase: str, descriptor: int | None) -> int:
    known: BaseException = err
    if isinstance(err, ValidationError):
        known = ConfigError(error_text(err))
    elif isinstance(err, KeyboardInterrupt):
        known = TerminatedError("interrupted")
    code = run_exit_code(known)
    error = {"type": type(err).__name__, "message": error_text(known), "phase": phase, "exit_code": code}
    _event({"event": "error", **error})
    if descriptor is not None:
        with contextlib.suppress(OSError):  # nobody listens there; the event and the exit code have said it
            send(descriptor, json.dumps({"error": error}).encode())
    return code
