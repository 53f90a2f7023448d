"""Finds the calibration file that the user named, by the flag or by LLEM_CALIBRATION, and reads it."""

import os
from collections.abc import Mapping
from pathlib import Path

from llenergymeasure.core.calibration import Calibration, read
from llenergymeasure.core.errors import ConfigError

VARIABLE = "LLEM_CALIBRATION"
"""Path of the file, for the processes that a command starts."""


def read_calibration(path: Path) -> Calibration:
    """Read a calibration file; raises ConfigError if it cannot be read or is none."""
    try:
        text = path.read_bytes()
    except OSError as err:
        raise ConfigError(f"{path}: the calibration cannot be read: {err.strerror}") from err
    return read(text, source=str(path))


def named_calibration(environ: Mapping[str, str]) -> Calibration:
    """The calibration that the environment names, none otherwise; raises ConfigError."""
    path = environ.get(VARIABLE)
    return read_calibration(Path(path)) if path else {}


def use_calibration(path: Path, *, on_cluster: bool) -> None:
    """Check a file before anything is measured, and name it to this process and those that it starts.

    Raises:
        ConfigError: It is no calibration, or the runs are not on this machine.

    """
    if on_cluster:
        raise ConfigError("--calibration: is for runs on this machine; on a cluster results stay as the sensors read")
    read_calibration(path)
    os.environ[VARIABLE] = str(path.resolve())
