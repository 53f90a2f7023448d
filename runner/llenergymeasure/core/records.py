"""What every record on disk has in common: frozen, tolerant of later versions' keys, without infinities."""

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """Frozen; keys that a newer version wrote are ignored, missing ones are None."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=(), allow_inf_nan=False)

    def to_json(self) -> str:
        """JSON text with an indent of 2; `from_json` gives back an equal object."""
        return self.model_dump_json(indent=2)

    @classmethod
    def from_json(cls, source: str | bytes | Path) -> Self:
        """Read JSON text, or the file at a Path; raises pydantic.ValidationError."""
        return cls.model_validate_json(source.read_bytes() if isinstance(source, Path) else source)
