"""A stand-in for `llem experiment`: a real process that does what a test tells it, and how `launch` starts it."""

import sys
from pathlib import Path
from typing import Any

import pytest

from llenergymeasure import ExperimentConfig, launch
from llenergymeasure.measure import Measured

STAND_IN = """#!{python}
import ctypes, json, os, signal, subprocess, sys, time
notes = {notes!r}
descriptor = int(sys.argv[sys.argv.index("--result-fd") + 1])

def phase(name):
    print(json.dumps({{"event": "phase", "phase": name, "t_s": 0, "done": 0, "total": 1}}), file=sys.stderr, flush=True)

def send(data):
    with os.fdopen(descriptor, "wb") as pipe:
        pipe.write(data)

def worker():
    child = subprocess.Popen(["sleep", "600"], pass_fds=(descriptor,))
    open(notes, "a").write(f"{{child.pid}}\\n")

open(notes, "a").write(f"{{os.getpid()}}\\n")
{body}
"""


class Child:
    """A stand-in for `llem experiment`: a real process that runs `body`; `pids` are its own and its workers'."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder, self._monkeypatch = folder, monkeypatch
        self._notes = folder / "pids"

    def does(self, body: str) -> None:
        """Make every child of `launch` this script."""
        script = self._folder / "child.py"
        script.write_text(STAND_IN.format(python=sys.executable, notes=str(self._notes), body=body))
        script.chmod(0o755)
        self._monkeypatch.setattr(sys, "executable", str(script))

    @property
    def pids(self) -> list[int]:
        """All processes that the child has noted."""
        return [int(line) for line in self._notes.read_text().split()]


def run(config: ExperimentConfig, *, timeout_s: float = 60, events: list[dict[str, Any]] | None = None) -> Measured:
    """Run one experiment as a study does."""
    heard = events if events is not None else []
    return launch.run_in_subprocess(config, limits=launch.Limits(timeout_s), on_event=heard.append)
