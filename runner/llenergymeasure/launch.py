"""Starts one run as a fresh process group and brings its result back, whatever the child does.

The child is `llem experiment`. Its stderr carries one JSON line per event; anything else there is kept for the error.
It ends with this process (see leash), and nothing of it is left when `run_in_subprocess` is over.
"""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from llenergymeasure import leash
from llenergymeasure.core.config import ExperimentConfig
from llenergymeasure.core.errors import ExperimentError, PhaseTimeoutError
from llenergymeasure.listening import Listener, OnEvent
from llenergymeasure.measure import Measured
from llenergymeasure.memory_kills import MemoryKills, count_memory_kills, killed_since
from llenergymeasure.process_group import MARK, kill_group, kill_marked, stop_group
from llenergymeasure.result_message import decode, measured_of

MAX_ENVIRONMENT_BYTES = 120 * 1024  # one environment string may be 128 KiB on Linux
END_GRACE_S = 10.0  # from the result to the end of the process
_ASK_EVERY_S = 0.2
_UNLIMITED_PHASES = ("download",)  # as long as a model is large; execution.phase_timeouts limits it


class RunFailedError(ExperimentError):
    """A run ended without a result; `error_type` names the error in the child, `phase` where it was."""

    def __init__(self, message: str, *, error_type: str, phase: str | None) -> None:
        super().__init__(message)
        self.error_type, self.phase = error_type, phase


@dataclass(frozen=True)
class Limits:
    """How long a run may take, s."""

    experiment_s: float  # from the start of phase load to the result
    phases_s: Mapping[str, float] = field(default_factory=dict)  # of these phases alone, by name
    before_load_s: float = 3600.0  # of each phase before load, but a download: none of them is long, yet each may hang


def run_in_subprocess(
    config: ExperimentConfig,
    *,
    limits: Limits,
    on_event: OnEvent,
    variables: Mapping[str, str] | None = None,
    keep_open: Sequence[int] = (),
) -> Measured:
    """Measure one experiment in a process of its own.

    A result that has arrived counts, whatever becomes of the process afterwards.

    Args:
        config: What to measure.
        limits: How long it may take.
        on_event: Receives the child's progress events, on another thread.
        variables: Further environment (study, index, cycle, attempt).
        keep_open: Descriptors that the child inherits: locks that live as long as it does.

    Raises:
        RunFailedError: The child ended without a result. Of its types, `ProcessDied`, `Killed` (SIGKILL from
            elsewhere), `OutOfMemory` (the kernel's) and `NotStarted` are ours, all others the child's.
        PhaseTimeoutError: It took too long; its whole process group was killed.

    """
    text = config.model_dump_json(exclude_unset=True, exclude_none=True)
    if len(text.encode()) > MAX_ENVIRONMENT_BYTES:
        raise ExperimentError(
            f"the configuration is larger than {MAX_ENVIRONMENT_BYTES:,} bytes; shorten passthrough_kwargs"
        )
    kills, token = count_memory_kills(), secrets.token_hex(16)
    environment = {**os.environ, **(variables or {}), "LLEM_EXPERIMENT": text, MARK: token}
    heard = Listener(on_event)
    with _process(environment, keep_open, heard) as process:
        died = _wait(process, heard, limits)
    return _outcome(heard, process.returncode if died else None, kills)


@contextlib.contextmanager
def _process(
    environment: Mapping[str, str], keep_open: Sequence[int], heard: Listener
) -> Iterator[subprocess.Popen[bytes]]:
    """A child that is listened to; afterwards nothing of it is left, workers that outlived it included."""
    process: subprocess.Popen[bytes] | None = None
    with contextlib.ExitStack() as ends:  # file objects: closing one twice is harmless, whenever Ctrl-C comes
        reader, writer, held, _leash_end = (ends.enter_context(end) for end in (*leash.pipe(), *leash.pipe()))
        try:
            with _interrupt_held_back():
                inherited = (held.fileno(), *keep_open)
                process = _start({**environment, leash.VARIABLE: str(held.fileno())}, writer.fileno(), inherited)
            writer.close()
            heard.start(process.stderr, reader)
            yield process
        finally:
            if process is not None:
                stop_group(process)
                kill_marked(environment[MARK])
                heard.join()


def _start(environment: Mapping[str, str], writer: int, inherited: Sequence[int]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "llenergymeasure.cli", "experiment", "--result-fd", str(writer)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(writer, *inherited),
            start_new_session=True,  # a group of its own, so that workers of the engine can be killed with it
        )
    except OSError as err:
        raise RunFailedError(
            f"no process could be started: {err.strerror}", error_type="NotStarted", phase=None
        ) from err


@contextlib.contextmanager
def _interrupt_held_back() -> Iterator[None]:
    """Hold back signals that would raise here while a child is being started: nobody would know of it, nor end it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    handled = {n: handler for n, handler in before.items() if callable(handler)}
    for each in handled:
        signal.signal(each, lambda number, _frame: held.append(number))
    try:
        yield
    finally:
        for each, handler in handled.items():
            signal.signal(each, handler)
        for number in held[:1]:
            signal.raise_signal(number)


def _wait(process: subprocess.Popen[bytes], heard: Listener, limits: Limits) -> bool:
    """Wait until the child is over; give whether it ended by itself. Raises PhaseTimeoutError."""
    grace_until_s: float | None = None
    while True:
        try:
            process.wait(timeout=_ASK_EVERY_S)
        except subprocess.TimeoutExpired:
            now_s = time.monotonic()
            if not heard.complete.is_set():
                _check(heard, limits, now_s)
            elif grace_until_s is None:
                grace_until_s = now_s + END_GRACE_S
            elif now_s > grace_until_s:
                kill_group(process)  # hung after its last word: a stuck worker, a native thread
                return False
        else:
            return True


def _check(heard: Listener, limits: Limits, now_s: float) -> None:
    phase, in_phase_s = heard.phase, now_s - heard.phase_began_s
    limit_s = limits.phases_s.get(phase or "")
    if limit_s is not None and in_phase_s > limit_s:
        raise PhaseTimeoutError(
            f"phase {phase} took longer than {limit_s:g} s; raise execution.phase_timeouts.{phase}", phase=phase
        )
    if heard.load_began_s is None:
        if phase not in _UNLIMITED_PHASES and in_phase_s > limits.before_load_s:
            where = f"phase {phase}" if phase else "the start of the process"
            text = f"{where} took longer than {limits.before_load_s:g} s, though the engine was not even loaded"
            raise PhaseTimeoutError(text, phase=phase)
    elif now_s - heard.load_began_s > limits.experiment_s:
        raise PhaseTimeoutError(
            f"no result {limits.experiment_s:g} s after the engine began to load; it was in phase {phase}; "
            "raise execution.experiment_timeout_seconds",
            phase=phase,
        )


def _outcome(heard: Listener, code: int | None, kills: MemoryKills) -> Measured:
    """The result, or the error that the child told, or what can be said of its end; `code` None: we have killed it."""
    message = decode(bytes(heard.received))
    if "result" in message:
        try:
            return measured_of(message)
        except ValueError as err:
            text = f"the process sent a result that cannot be read: {err}"
            raise RunFailedError(text, error_type="ProcessDied", phase=heard.phase) from err
    error = message.get("error")
    if isinstance(error, dict):
        text = f"{error.get('message')} (in phase {error.get('phase')})"
        raise RunFailedError(text, error_type=str(error.get("type")), phase=_words(error.get("phase")))
    error_type, why = _death(code, heard.phase, kills)
    sent = f"; the {len(heard.received):,} bytes that it sent cannot be read" if heard.received else ""
    tail = "".join(f"\n    {line}" for line in heard.tail)
    raise RunFailedError(f"the process {why}{sent}{tail}", error_type=error_type, phase=heard.phase)


def _words(value: object) -> str | None:
    return None if value is None else str(value)


def _death(code: int | None, phase: str | None, kills: MemoryKills) -> tuple[str, str]:
    """Type and words of an end without a result."""
    if code is None:
        return "ProcessDied", f"closed its pipe without a result in phase {phase} and did not end; it was killed"
    if code >= 0:
        return "ProcessDied", f"ended with exit code {code} and no result in phase {phase}"
    text = f"was killed by {_signal_name(-code)} in phase {phase}"
    if code != -signal.SIGKILL:
        return "ProcessDied", text
    if where := killed_since(kills, count_memory_kills()):
        return "OutOfMemory", f"{text}: the kernel ran out of memory {where}; use less host memory, or allow more"
    return "Killed", f"{text}, not by llem: by a person, a scheduler, or a kernel out of memory (see dmesg)"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal has no name
        return f"signal {number}"
