"""Ends a run with the process that started it: nobody waits for its result, and it would go on using the GPU.

The parent holds the only write end of a pipe. When the parent is gone, however it ended, the kernel closes that end.
A guard, forked off the child before it does anything else, reads the end of file and kills the child with everything
it has started. It is a process of its own because a child that hangs in native code, holding the interpreter's lock,
runs no thread; PR_SET_PDEATHSIG would end such a child too, but not its workers.
"""

import atexit
import contextlib
import os
import signal
import stat
from collections.abc import MutableMapping
from io import FileIO
from typing import NoReturn

from llenergymeasure.process_group import MARK, kill_marked

VARIABLE = "LLEM_LEASH_FD"
_SEARCH_S = 0.5  # for workers that left the group
_MAX_DESCRIPTOR = 65_536


def pipe() -> tuple[FileIO, FileIO]:
    """Both ends of a pipe, inherited by nobody who is not told so; a child's leash is the first, the second is held."""
    reader, writer = os.pipe()
    return FileIO(reader, "rb"), FileIO(writer, "wb")


def tie_to_parent(environ: MutableMapping[str, str]) -> None:
    """Let this process and its group die with the parent that holds the leash; nothing without one.

    To be called while there is one thread only: it forks.

    Args:
        environ: This process' environment; names the descriptor of the leash, which is taken out.

    """
    leash = _leash(environ.pop(VARIABLE, ""))
    if leash is None:
        return
    run = os.getpid()
    guard = os.fork()
    if guard == 0:
        _guard(leash, run, environ.get(MARK))
    os.close(leash)
    atexit.register(_dismiss, guard)


def _leash(text: str) -> int | None:
    """The descriptor if it is an open pipe: a variable that was left over from elsewhere ends nobody."""
    if not text.isdecimal():
        return None
    try:
        return int(text) if stat.S_ISFIFO(os.fstat(int(text)).st_mode) else None
    except (OSError, OverflowError):
        return None


def _guard(leash: int, run: int, token: str | None) -> NoReturn:
    """The guard's life: hold nothing of the run's, wait, kill."""
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # meant for the run, which may take its time to end
        _let_go_of_all_but(leash)
        while os.read(leash, 4096):
            pass  # nobody writes, only the end counts
        if token:
            kill_marked(token, limit_s=_SEARCH_S)
        if os.getpgrp() == run:
            os.killpg(0, signal.SIGKILL)
        if os.getppid() == run:  # in somebody else's group: only the run itself
            os.kill(run, signal.SIGKILL)
    finally:
        os._exit(0)


def _let_go_of_all_but(leash: int) -> None:
    """Close the result's pipe, the locks and all else: what the guard holds open would not end with the run."""
    null = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(null, standard)
    os.closerange(3, leash)
    os.closerange(leash + 1, _MAX_DESCRIPTOR)


def _dismiss(guard: int) -> None:
    """End the guard of a run that ends by itself, and reap it: in a container, maybe nobody else would."""
    with contextlib.suppress(OSError):
        os.kill(guard, signal.SIGKILL)
        os.waitpid(guard, 0)
