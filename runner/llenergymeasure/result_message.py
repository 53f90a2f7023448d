"""How a run's result travels from the child to its parent: one line of JSON, or the path of a file when it is large."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError

from llenergymeasure.core.result import ExperimentResult
from llenergymeasure.measure import Measured

MAX_PIPE_BYTES = 1_000_000
END = b"\n"  # JSON as written here holds none: with it, a message is whole, even if a worker keeps the pipe open


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
        pipe.write(message + END)


def decode(received: bytes) -> dict[str, Any]:
    """The child's message, read from its file if it was too large for the pipe; empty if it is none."""
    try:
        message = json.loads(received, parse_constant=_refuse)
        if isinstance(message, dict) and "path" in message:
            path = Path(message["path"])
            message = json.loads(path.read_bytes(), parse_constant=_refuse)
            path.unlink()
    except (ValueError, OSError, TypeError, RecursionError):
        return {}
    return message if isinstance(message, dict) else {}


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")


def measured_of(message: dict[str, Any]) -> Measured:
    """The result in a message; raises ValueError with what is wrong with it."""
    try:
        result = ExperimentResult.model_validate(message["result"])
    except ValidationError as err:
        raise ValueError(f"{err.error_count()} fields are missing or wrong") from err
    series, raw = message.get("series", []), message.get("raw")
    if not isinstance(series, list) or not all(isinstance(row, dict) for row in series):
        raise ValueError("its time series are no list of rows")
    if raw is not None and not isinstance(raw, dict):
        raise ValueError("its raw readings are no mapping")
    return Measured(result, series, raw)
