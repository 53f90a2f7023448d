"""Finds the calibration file that the user named, by the flag or by LLEM_CALIBRATION, and reads it."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from llenergymeasure.core.calibration import Calibration, read
from llenergymeasure.core.errors import ConfigError

VARIABLE = "LLEM_CALIBRATION"
"""Path of the file, for the processes that a command starts."""


def read_calibration(path: Path) -> Calibration:
    """Read a calibration file; raises ConfigError if it cannot be read or is none."""
    return read(_content(path), source=str(path))


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as err:
        raise ConfigError(f"{path}: the calibration cannot be read: {err.strerror}") from err


def named_calibration(environ: Mapping[str, str]) -> Calibration:
    """The calibration that the environment names, none otherwise; raises ConfigError."""
    path = environ.get(VARIABLE)
    return read_calibration(Path(path)) if path else {}


def calibration_sha256(environ: Mapping[str, str]) -> str | None:
    """SHA-256 of the file that the environment names, None without one; raises ConfigError if it cannot be read."""
    path = environ.get(VARIABLE)
    return hashlib.sha256(_content(Path(path))).hexdigest() if path else None


def use_calibration(path: Path, *, on_cluster: bool) -> None:
    """Check a file before anything is measured, and name it to this process and those that it starts.

    Raises:
        ConfigError: It is no calibration, or the runs are not on this machine.

    """
    if on_cluster:
        raise ConfigError("--calibration: is for runs on this machine; on a cluster results stay as the sensors read")
    read_calibration(path)
    os.environ[VARIABLE] = str(path.resolve())
