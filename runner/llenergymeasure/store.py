"""Writes results, series and manifests so that a reader sees all of a file or none, and reads them back."""

import contextlib
import errno
import io
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from llenergymeasure import timeseries
from llenergymeasure.core.config import ExperimentConfig
from llenergymeasure.core.errors import ResultStoreError
from llenergymeasure.core.result import ExperimentResult

RESULT, CONFIG, ENVIRONMENT, SERIES = "result.json", "config.json", "environment.json", "timeseries.parquet"
STUDY, MANIFEST, STUDY_RESULT = "study.json", "study_manifest.json", "study_result.json"
REPORT = "report.html"
FAILURE = "failure.json"
MAX_SLUG = 60


def slug(text: str) -> str:
    """A name that is safe as one path part: last part of a path or hub id, lower case, `[a-z0-9._-]` only."""
    last = text.rstrip("/").rpartition("/")[2].rpartition(":")[2]
    safe = re.sub(r"[^a-z0-9._-]+", "-", last.lower()).strip("-.")
    return safe[:MAX_SLUG] or "run"


def new_folder(parent: Path, name: str, now: datetime | None = None) -> Path:
    """Make `{slug}_{timestamp}` (UTC, seconds) below `parent`; `_1`, `_2`… if taken. mkdir is the lock.

    Raises:
        ResultStoreError: The folder cannot be made.

    """
    stamp = (now or datetime.now(UTC)).strftime("%Y%m%dT%H%M%SZ")
    base = f"{slug(name)}_{stamp}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for number in range(10_000):
            folder = parent / (base if number == 0 else f"{base}_{number}")
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                return folder
    except OSError as err:
        raise ResultStoreError(
            f"{parent}: the results folder cannot be made: {err.strerror}; choose another with -o"
        ) from err
    raise ResultStoreError(f"{parent}: too many folders named {base}")


def run_folder_name(index: int, cycle: int, config: ExperimentConfig, config_hash: str) -> str:
    """Name of one run's folder in a study."""
    return f"{index:05d}_c{cycle}_{slug(config.model)}-{config.backend}_{config_hash[:8]}"


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is there completely or not at all: temporary file, fsync, rename, fsync of the folder.

    Raises:
        ResultStoreError: Disk full, not writable, folder gone.

    """
    try:
        with _complete(path, content) as temporary:
            temporary.replace(path)
    except OSError as err:
        raise ResultStoreError(f"{path}: cannot be written: {err.strerror}") from err


def create_atomically(path: Path, content: bytes) -> None:
    """Like `write_atomically`, but never over a file that is there.

    Raises:
        FileExistsError: It is there. OSError: It cannot be written.

    """
    with _complete(path, content) as temporary:
        try:
            path.hardlink_to(temporary)  # fails where the name is taken, which a rename does not
        except FileExistsError:
            raise
        except OSError as err:
            if err.errno not in NO_HARD_LINKS:
                raise
            os.close(
                os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            )  # takes the name; a crash here leaves it empty
            temporary.replace(path)


NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)  # FAT, some FUSE and SMB mounts


@contextlib.contextmanager
def _complete(path: Path, content: bytes) -> Iterator[Path]:
    """A temporary file beside `path` with all of `content` on the disk; what was done to it is on the disk, too."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def dump_json(data: Any) -> bytes:
    """JSON with an indent of 2 and a final newline."""
    return (json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def files_of(result: ExperimentResult, series: list[dict[str, Any]], raw: Mapping[str, Any] | None) -> dict[str, bytes]:
    """The files of one run by name, `result.json` last: where it is, the rest is, too."""
    files = {
        CONFIG: dump_json(result.effective_config),
        ENVIRONMENT: dump_json(result.environment_snapshot),
        SERIES: _parquet(timeseries.table(series)),
    }
    if raw is not None:
        files["raw_samples.json"] = dump_json(raw)
    stored = result.model_copy(update={"timeseries": SERIES})
    return {**files, RESULT: (stored.to_json() + "\n").encode()}


def _parquet(table: Any) -> bytes:
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def save_run(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write a run's files into `folder`, give the path of its result.json; raises ResultStoreError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise ResultStoreError(f"{folder}: cannot be made: {err.strerror}") from err
    for name, content in files.items():
        write_atomically(folder / name, content)
    return folder / RESULT


def folder_of_uri(uri: str) -> Path:
    """The folder that a plain path or a file:// URI names; raises ResultStoreError for other schemes."""
    parts = urlparse(uri)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    if parts.scheme:
        raise ResultStoreError(f"{uri}: only folders and file:// are supported by this version")
    return Path(uri)
