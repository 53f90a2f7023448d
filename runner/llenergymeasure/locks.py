"""Locks of this machine: one study per GPU and per study folder, whoever starts it.

A lock is an flock on a file in one folder that all users share. The kernel gives it back when the last process that
holds the descriptor is gone, so a file that a killed process left behind locks nothing and is never in the way; files
are therefore never deleted. What stands in a file, the holder's pid and study, only serves the error message.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from llenergymeasure.core import registry
from llenergymeasure.core.config import ExperimentConfig
from llenergymeasure.core.contracts import Device
from llenergymeasure.core.errors import StudyError
from llenergymeasure.nvml_sampling import visible_devices

PATIENCE_S = 15.0  # a study that was just killed needs a moment until its last process is gone
ASK_EVERY_S = 0.2
VARIABLE = "LLEM_LOCK_DIR"
MAX_HOLDER_BYTES = 4096


@contextlib.contextmanager
def hold(
    names: Iterable[str],
    *,
    study: str = "",
    patience_s: float = PATIENCE_S,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[tuple[int, ...]]:
    """Hold an exclusive lock per name: all of them or none, always taken in the same order.

    A child that inherits the descriptors (`pass_fds`) holds the locks too, until it is gone.

    Args:
        names: UUIDs of GPUs, or paths of folders; other spellings of one path are the same lock.
        study: Who holds them, for the error message of others.
        patience_s: How long to wait for another holder, s.
        clock: Monotonic time, s.
        sleep: Waits, s.

    Yields:
        The locks' descriptors; other programs that this process starts do not inherit them.

    Raises:
        StudyError: Somebody else holds one of them (pid, study, what to do), or the folder is unusable.

    """
    wanted = sorted({_canonical(n) for n in names})
    deadline_s = clock() + patience_s
    while True:
        taken, busy = _take(wanted)
        if busy is None:
            break
        if clock() >= deadline_s:
            raise StudyError(_refusal(busy))
        sleep(ASK_EVERY_S)
    try:
        _sign(taken, study)
        yield taken
    finally:
        _close(taken)  # closed, not unlocked: a child that is still there goes on holding them


def gpu_names(configs: Iterable[ExperimentConfig], *, energy_backend: str = "auto") -> list[str]:
    """UUIDs of the GPUs that runs of these experiments compute on or measure; none without a driver.

    Args:
        configs: The experiments of a study.
        energy_backend: The user's energy source, where an experiment says `auto`.

    """
    visible = visible_devices()
    return sorted({d.uuid for c in configs for d in _needed(c, visible, energy_backend)})


def _needed(config: ExperimentConfig, visible: tuple[Device, ...], energy_backend: str) -> tuple[Device, ...]:
    source = energy_backend if config.energy.backend == "auto" else config.energy.backend
    if not registry.is_real(config.backend) and not _reads_gpus(source):
        return ()
    count = registry.gpus_used(config.backend, config.section)
    return visible if count is None else visible[:count]


def _reads_gpus(source: str) -> bool:
    """Whether an energy source reads GPUs; `auto` does wherever there are some."""
    if source not in registry.energy_names():
        return source != "none"
    return registry.energy_source(source).KIND != "simulated"


def _canonical(name: str) -> str:
    return os.path.realpath(name) if os.sep in name or name in (".", "..") else name


def _folder() -> Path:
    """The folder of all locks of this machine; not below TMPDIR, which differs between users and jobs."""
    chosen = os.environ.get(VARIABLE)
    if chosen:
        return Path(chosen)
    shared = Path("/tmp")  # noqa: S108  (made and opened with care, see _usable and _open)
    return (shared if shared.is_dir() else Path(tempfile.gettempdir())) / "llem-locks"


def _usable(folder: Path) -> Path:
    """Make the folder for all users if it is missing; refuse one that is a link, or that others could swap files in."""
    try:
        try:
            folder.mkdir(parents=True)
            folder.chmod(0o1777)
        except FileExistsError:
            pass
        found = folder.lstat()
    except OSError as err:
        raise StudyError(f"{folder}: the folder of locks cannot be made: {err.strerror}; set {VARIABLE}") from err
    if not stat.S_ISDIR(found.st_mode):
        raise StudyError(f"{folder}: is no folder but should hold this machine's locks; remove it or set {VARIABLE}")
    if found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX and found.st_uid != os.getuid():
        raise StudyError(f"{folder}: anybody may replace the locks in it; its owner must run chmod 1777 {folder}")
    return folder


def _path(name: str) -> Path:
    """A lock's file: a readable rest of the name and a hash, so that no name leaves the folder or meets another."""
    readable = re.sub(r"[^A-Za-z0-9-]+", "_", name)[-60:].strip("_")
    return _folder() / f"{readable}.{hashlib.sha256(name.encode(errors='surrogateescape')).hexdigest()[:16]}.lock"


def _open(path: Path) -> int:
    """Open a lock file that may belong to another user; neither a link nor anything but a plain file is taken."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        try:
            descriptor = os.open(path, flags)  # without O_CREAT: Linux refuses that for another user's file in /tmp
        except FileNotFoundError:
            descriptor = _create(path, flags)
    except OSError as err:
        raise StudyError(f"{path}: the lock cannot be opened: {err.strerror}; remove it or set {VARIABLE}") from err
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        os.close(descriptor)
        raise StudyError(f"{path}: is no lock file of its own; remove it")
    return descriptor


def _create(path: Path, flags: int) -> int:
    try:
        descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:  # another process was faster
        return os.open(path, flags)
    os.fchmod(descriptor, 0o666)  # whatever the umask: every user must be able to lock it
    return descriptor


def _take(names: list[str]) -> tuple[tuple[int, ...], tuple[str, str] | None]:
    """Lock all names, or none and give the first that is taken with what is known of its holder."""
    if names:
        _usable(_folder())
    taken: list[int] = []
    try:
        for name in names:
            taken.append(_open(_path(name)))
            if not _locked(taken[-1]):
                holder = _holder(taken[-1])
                _close(taken)
                return (), (name, holder)
    except BaseException:
        _close(taken)
        raise
    return tuple(taken), None


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as err:
        if err.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise StudyError(f"this machine's locks do not work: {err.strerror}; set {VARIABLE} to a local folder") from err
    return True


def _close(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _sign(descriptors: Iterable[int], study: str) -> None:
    """Write into each lock who holds it; a full disk does not matter, the lock holds without it."""
    who = {"pid": os.getpid(), "study": study, "since": datetime.now(UTC).isoformat(timespec="seconds")}
    text = json.dumps(who).encode()[:MAX_HOLDER_BYTES]
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, text, 0)


def _holder(descriptor: int) -> str:
    """The holder as it describes itself; a lock may also be held by what a killed study left running."""
    try:
        who = json.loads(os.pread(descriptor, MAX_HOLDER_BYTES, 0))
        pid, study, since = int(who["pid"]), str(who["study"]), str(who["since"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "another process"
    named = f", study {study[:80]!r}" if study else ""
    return f"pid {pid} (as it sees itself){named}, since {since[:40]}, or by a run that it started"


def _refusal(busy: tuple[str, str]) -> str:
    name, holder = busy
    return f"{name} is in use by {holder}; wait for it or end it" + (
        "" if os.sep in name else ", or choose another GPU with CUDA_VISIBLE_DEVICES"
    )
