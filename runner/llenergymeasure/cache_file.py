"""Rows by name in a JSON file of the user's cache: what processes of this machine leave for later ones."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter

Row = TypeVar("Row")


def read(path: Path, rows: TypeAdapter[dict[str, Row]]) -> dict[str, Row]:
    """The rows of a file; none if it is not there or broken: whoever wants them finds out again."""
    try:
        return rows.validate_json(path.read_bytes())
    except (OSError, ValueError):
        return {}


def write(path: Path, rows: TypeAdapter[dict[str, Row]], found: Mapping[str, Row]) -> None:
    """Replace a file's rows at once, so that readers see the old or the new ones; raises OSError where it cannot."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_bytes(rows.dump_json(dict(found), indent=1))
    temporary.replace(path)
