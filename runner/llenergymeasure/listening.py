"""What a running child says: events and last words on stderr, its result on a pipe, each without bound or trust."""

import contextlib
import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any

from llenergymeasure.core.redaction import redacted
from llenergymeasure.result_message import END, MAX_PIPE_BYTES

TAIL_LINES = 20
TAIL_CHARACTERS = 500  # of a line
MAX_LINE_BYTES = 64 * 1024  # the rest of a longer line is dropped
MAX_RECEIVED_BYTES = 2 * MAX_PIPE_BYTES  # more is no message of ours
_CHUNK_BYTES = 64 * 1024

OnEvent = Callable[[dict[str, Any]], None]
_log = logging.getLogger(__name__)


@dataclass
class Listener:
    """Two threads that hear a child out, so that it never waits for a full pipe."""

    on_event: OnEvent
    phase: str | None = None
    phase_began_s: float = field(default_factory=time.monotonic)
    load_began_s: float | None = None
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL_LINES))
    received: bytearray = field(default_factory=bytearray)
    complete: threading.Event = field(default_factory=threading.Event)  # nothing more will come on the result pipe
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self, stderr: IO[bytes] | None, pipe: IO[bytes]) -> None:
        """Begin to listen; both are read to their ends and closed."""
        for listen, source in ((self._receive, pipe), (self._hear, stderr)):
            thread = threading.Thread(target=listen, args=(source,), daemon=True)
            thread.start()
            self._threads.append(thread)

    def join(self) -> None:
        """Wait until all that was sent is read; not for ever, should somebody unknown hold a pipe open."""
        for thread in self._threads:
            thread.join(timeout=10)

    def _hear(self, stream: IO[bytes]) -> None:
        heeded = True
        with contextlib.closing(stream):
            for raw in _lines(stream):
                event = _event(raw)
                if event is None:
                    self.tail.append(_plain(raw))
                    continue
                self._note(event)
                try:
                    if heeded:
                        self.on_event(event)
                except Exception:  # noqa: BLE001  (a listener's fault must neither stop the run nor fill the child's pipe)
                    heeded = False
                    _log.exception("progress is no longer shown")

    def _note(self, event: dict[str, Any]) -> None:
        if event.get("event") != "phase":
            return
        self.phase, self.phase_began_s = str(event.get("phase")), time.monotonic()
        if self.phase == "load":
            self.load_began_s = self.phase_began_s

    def _receive(self, pipe: IO[bytes]) -> None:
        with contextlib.closing(pipe):
            while chunk := pipe.read(_CHUNK_BYTES):
                if len(self.received) <= MAX_RECEIVED_BYTES:
                    self.received += chunk
                if self.received.endswith(END):
                    self.complete.set()
        self.complete.set()


def _lines(stream: IO[bytes]) -> Iterator[bytes]:
    """Lines of a stream, each cut at a limit: a child may write megabytes without a line's end."""
    line, read = b"", getattr(stream, "read1", stream.read)
    while chunk := read(_CHUNK_BYTES):
        first, *others = chunk.split(b"\n")
        line = (line + first)[:MAX_LINE_BYTES]
        for other in others:
            yield line
            line = other[:MAX_LINE_BYTES]
    if line:
        yield line


def _event(line: bytes) -> dict[str, Any] | None:
    if not line.startswith(b"{"):
        return None
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        return None
    return data if isinstance(data, dict) and "event" in data else None


def _plain(line: bytes) -> str:
    """A line as text for people: of a progress bar its last state, nothing that moves a cursor, no credential."""
    states = [s for s in line.decode("utf-8", errors="replace").split("\r") if s.strip()]
    visible = "".join(c for c in (states or [""])[-1] if c.isprintable() or c == "\t")
    return redacted(visible.rstrip())[:TAIL_CHARACTERS]
