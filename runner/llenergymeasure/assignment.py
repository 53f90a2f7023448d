"""What a pod is told by its environment: which run this is, where its files go, how long it may wait. Pure reading."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import AwareDatetime, TypeAdapter, ValidationError

from llenergymeasure.core.errors import ConfigError
from llenergymeasure.object_store import Access

RUN_URI, CONFIG_HASH, STUDY_RECORD, GAP_UNTIL = (
    "LLEM_RUN_URI",
    "LLEM_CONFIG_HASH",
    "LLEM_STUDY_RECORD",
    "LLEM_GAP_UNTIL",
)
UPLOAD_SECONDS = 900.0

_GAPS = TypeAdapter(dict[str, AwareDatetime])


@dataclass(frozen=True)
class Assignment:
    """One attempt at one run; `run_uri` is the run's own prefix, below which its attempts lie as a1, a2 and so on."""

    run_uri: str
    attempt: int
    adopt_from: int = 1
    index: int = 0
    cycle: int = 1
    config_hash: str | None = None
    study_record: Mapping[str, Any] | None = None
    gap_until: datetime | None = None
    upload_seconds: float = UPLOAD_SECONDS
    access: Access = field(default_factory=Access)
    node: str | None = None
    pod: str | None = None

    @property
    def study_uri(self) -> str:
        """The prefix of the whole study."""
        return self.run_uri.rpartition("/")[0]

    @property
    def earlier(self) -> list[int]:
        """Attempts whose result would be this run's, newest first; its own, too: its pod may be a second one."""
        return list(range(self.attempt, self.adopt_from - 1, -1))


def read_assignment(environ: Mapping[str, str], run_uri: str | None = None) -> Assignment | None:
    """The assignment in the environment, `run_uri` winning over its own; None without a place for results.

    Raises:
        ConfigError: A variable that is missing or malformed.

    """
    uri = (run_uri or environ.get(RUN_URI) or "").rstrip("/")
    if not uri:
        return None
    if "/" not in uri:
        raise ConfigError(f"{RUN_URI}: {uri} is no prefix of a run; write e.g. s3://bucket/study/00000-0a1b2c3d-c1")
    attempt = _whole(environ, "LLEM_ATTEMPT", None, least=1)
    folder = environ.get("LLEM_STORE_CREDENTIALS")
    return Assignment(
        run_uri=uri,
        attempt=attempt,
        adopt_from=_whole(environ, "LLEM_ADOPT_FROM", 1, least=1),
        index=_whole(environ, "LLEM_INDEX", 0, least=0),
        cycle=_whole(environ, "LLEM_CYCLE", 1, least=1),
        config_hash=environ.get(CONFIG_HASH) or None,
        study_record=_record(environ),
        gap_until=_gap_end(environ),
        upload_seconds=_seconds(environ, "LLEM_UPLOAD_SECONDS", UPLOAD_SECONDS),
        access=Access(
            environ.get("LLEM_STORE_ENDPOINT") or None,
            environ.get("LLEM_STORE_REGION") or None,
            Path(folder) if folder else None,
        ),
        node=environ.get("LLEM_NODE_NAME") or None,
        pod=environ.get("LLEM_POD_NAME") or None,
    )


def _whole(environ: Mapping[str, str], name: str, default: int | None, *, least: int) -> int:
    text = environ.get(name)
    if not text:
        if default is None:
            raise ConfigError(f"{name}: must be set beside {RUN_URI}, a whole number from {least}")
        return default
    if not text.isdecimal() or int(text) < least:
        raise ConfigError(f"{name}: must be a whole number from {least}, not {text!r}")
    return int(text)


def _seconds(environ: Mapping[str, str], name: str, default: float) -> float:
    text = environ.get(name)
    try:
        value = float(text) if text else default
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ConfigError(f"{name}: must be seconds, 0 or more, not {text!r}")
    return value


def _record(environ: Mapping[str, str]) -> dict[str, Any] | None:
    text = environ.get(STUDY_RECORD)
    if not text:
        return None
    try:
        record = json.loads(text)
    except ValueError as err:
        raise ConfigError(f"{STUDY_RECORD}: is no JSON: {err}") from err
    if not isinstance(record, dict):
        raise ConfigError(f"{STUDY_RECORD}: must be a JSON object")
    return record


def _gap_end(environ: Mapping[str, str]) -> datetime | None:
    """When a measurement may begin on this pod's node; None if nothing was measured there lately."""
    text = environ.get(GAP_UNTIL)
    if not text:
        return None
    try:
        ends = _GAPS.validate_json(text)
    except ValidationError as err:
        first = err.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "text"
        raise ConfigError(f"{GAP_UNTIL}: must be JSON {{node: time with zone}}; {where}: {first['msg']}") from err
    node = environ.get("LLEM_NODE_NAME")
    if ends and not node:
        raise ConfigError(f"{GAP_UNTIL} names nodes, but LLEM_NODE_NAME does not say which one this is")
    return ends.get(node or "")
