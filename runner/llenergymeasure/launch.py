"""Starts one run as a fresh process group and brings its result back: through a pipe, or a file when it is large.

The child is `llem experiment`. Its stderr carries one JSON line per event; anything else there is kept for the error.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from pydantic import ValidationError

from llenergymeasure.core.config import ExperimentConfig
from llenergymeasure.core.errors import ExperimentError, PhaseTimeoutError
from llenergymeasure.core.result import ExperimentResult
from llenergymeasure.measure import Measured

MAX_ENVIRONMENT_BYTES = 120 * 1024  # one environment string may be 128 KiB on Linux
MAX_PIPE_BYTES = 1_000_000
GRACE_S = 2.0  # between SIGTERM and SIGKILL
TAIL_LINES = 20


@dataclass(frozen=True)
class Limits:
    """How long a run may take, s."""

    experiment_s: float  # from the start of phase load to the result
    phases_s: Mapping[str, float] = field(default_factory=dict)  # of these phases alone, by name


OnEvent = Callable[[dict[str, Any]], None]


class RunFailedError(ExperimentError):
    """A run ended without a result; `error_type` names the error in the child, `phase` where it was."""

    def __init__(self, message: str, *, error_type: str, phase: str | None) -> None:
        super().__init__(message)
        self.error_type, self.phase = error_type, phase


@dataclass
class _Child:
    """What is heard from a running child."""

    process: subprocess.Popen[bytes]
    on_event: OnEvent
    phase: str | None = None
    load_began_s: float | None = None
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL_LINES))
    received: bytes = b""

    def hear(self, stream: IO[bytes]) -> None:
        """Read stderr to its end: events are passed on, other lines kept."""
        for raw in stream:
            line = raw.decode("utf-8", errors="replace").rstrip()
            event = _event(line)
            if event is None:
                self.tail.append(line)
                continue
            if event.get("event") == "phase":
                self.phase = str(event.get("phase"))
                if self.phase == "load":
                    self.load_began_s = time.monotonic()
            self.on_event(event)

    def receive(self, descriptor: int) -> None:
        """Read the result pipe to its end."""
        with os.fdopen(descriptor, "rb") as pipe:
            self.received = pipe.read()


def _event(line: str) -> dict[str, Any] | None:
    if not line.startswith("{"):
        return None
    try:
        data = json.loads(line)
    except ValueError:
        return None
    return data if isinstance(data, dict) and "event" in data else None


def run_in_subprocess(
    config: ExperimentConfig,
    *,
    limits: Limits,
    on_event: OnEvent,
    variables: Mapping[str, str] | None = None,
    keep_open: Sequence[int] = (),
) -> Measured:
    """Measure one experiment in a process of its own.

    Args:
        config: What to measure.
        limits: How long it may take.
        on_event: Receives the child's progress events.
        variables: Further environment (study, index, cycle, attempt).
        keep_open: Descriptors that the child inherits: locks that live as long as it does.

    Raises:
        RunFailedError: The child ended without a result.
        PhaseTimeoutError: It took too long; its whole process group was killed.

    """
    text = config.model_dump_json(exclude_unset=True, exclude_none=True)
    environment = {**os.environ, **(variables or {}), "LLEM_EXPERIMENT": text}
    if len(text.encode()) > MAX_ENVIRONMENT_BYTES:
        raise ExperimentError(
            f"the configuration is larger than {MAX_ENVIRONMENT_BYTES:,} bytes; shorten passthrough_kwargs"
        )
    reader, writer = os.pipe()
    process: subprocess.Popen[bytes] | None = None
    threads: list[threading.Thread] = []
    try:
        with _interrupt_held_back():
            process = _start(environment, (writer, *keep_open))
        os.close(writer)
        child = _Child(process, on_event)
        for listen, source in ((child.receive, reader), (child.hear, process.stderr)):
            thread = threading.Thread(target=listen, args=(source,), daemon=True)
            thread.start()
            threads.append(thread)
        _wait(child, limits.experiment_s)
    finally:
        if process is not None:
            stop_group(process)  # also workers that outlived their parent
        for thread in threads:
            thread.join(timeout=10)
    return _outcome(child)


def _start(environment: Mapping[str, str], inherited: Sequence[int]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "llenergymeasure.cli", "experiment", "--result-fd", str(inherited[0])],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        pass_fds=inherited,
        start_new_session=True,  # a group of its own, so that workers of the engine can be killed with it
    )


@contextlib.contextmanager
def _interrupt_held_back() -> Iterator[None]:
    """Hold Ctrl-C back while a child is being started: for a moment nobody would know of it, nor end it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _frame: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        for number in held[:1]:
            signal.raise_signal(number)


def _wait(child: _Child, timeout_s: float) -> None:
    while True:
        try:
            child.process.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            began_s = child.load_began_s
            if began_s is not None and time.monotonic() - began_s > timeout_s:
                raise PhaseTimeoutError(
                    f"no result {timeout_s:g} s after the engine began to load; it was in phase {child.phase}; "
                    "raise execution.experiment_timeout_seconds"
                ) from None
        else:
            return


def stop_group(process: subprocess.Popen[bytes]) -> None:
    """End a child's whole process group: SIGTERM to a running child, 2 s, then SIGKILL to all that is left."""
    try:
        if process.poll() is None:
            _signal_group(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=GRACE_S)
    finally:  # also when a second Ctrl-C ends the wait
        _signal_group(process.pid, signal.SIGKILL)
        process.wait()


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # nobody is left in the group
        os.killpg(group, number)


def _outcome(child: _Child) -> Measured:
    message = decode(child.received)
    if "result" in message:
        try:
            result = ExperimentResult.model_validate(message["result"])
        except ValidationError as err:
            text = f"the process sent a result that cannot be read: {err.error_count()} fields are missing or wrong"
            raise RunFailedError(text, error_type="ProcessDied", phase=child.phase) from err
        return Measured(result, message.get("series", []), message.get("raw"))
    error = message.get("error")
    if isinstance(error, dict):
        text = f"{error.get('message')} (in phase {error.get('phase')})"
        raise RunFailedError(text, error_type=str(error.get("type")), phase=error.get("phase"))
    code = child.process.returncode
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code} and no result"
    tail = "".join(f"\n    {line}" for line in child.tail)
    raise RunFailedError(f"the process {how} in phase {child.phase}{tail}", error_type="ProcessDied", phase=child.phase)


def decode(received: bytes) -> dict[str, Any]:
    """The child's message, read from its file if it was too large for the pipe; empty if it is none."""
    try:
        message = json.loads(received)
        if isinstance(message, dict) and "path" in message:
            path = Path(message["path"])
            message = json.loads(path.read_bytes())
            path.unlink()
    except (ValueError, OSError, TypeError):
        return {}
    return message if isinstance(message, dict) else {}


def encode(measured: Measured) -> bytes:
    """The message of a result."""
    body = {"result": json.loads(measured.result.to_json()), "series": measured.series, "raw": measured.raw}
    return json.dumps(body, allow_nan=False).encode()


def send(descriptor: int, message: bytes) -> None:
    """Write a message to a descriptor; a large one goes into a file whose path is sent instead."""
    if len(message) > MAX_PIPE_BYTES:
        handle, path = tempfile.mkstemp(prefix="llem-result-", suffix=".json")
        with os.fdopen(handle, "wb") as file:
            file.write(message)
        message = json.dumps({"path": path}).encode()
    with os.fdopen(descriptor, "wb") as pipe:
        pipe.write(message)
