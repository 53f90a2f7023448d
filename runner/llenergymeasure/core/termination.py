"""The message that a run leaves when its pod ends: where the result is, its digest, and the numbers people ask for.

The kubelet keeps at most 4,096 bytes of it in the pod's status; it is all that the operator ever learns of a result.
"""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic.alias_generators import to_camel

VERSION = 1
MAX_BYTES = 3_500  # of the kubelet's 4,096: room for what a later version adds

Amount = Annotated[float, Field(ge=-1e15, le=1e15)]
Count = Annotated[int, Field(ge=0, le=2**53)]
"""What a custom resource's status can hold; a record with more would never get there."""


class _Part(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="ignore", alias_generator=to_camel, populate_by_name=True, allow_inf_nan=False
    )


class Numbers(_Part):
    """Headline numbers of one run; None: not measured."""

    energy_per_output_token_millijoules: Amount | None = None
    energy_total_joules: Amount | None = None
    energy_adjusted_joules: Amount | None = None
    baseline_watts: Amount | None = None
    tokens_per_second: Amount | None = None
    output_tokens: Count | None = None
    requests: Count | None = None
    duration_seconds: Amount | None = None
    latency_p50_milliseconds: Amount | None = None
    memory_peak_mebibytes: Amount | None = None


class KnownBaseline(_Part):
    """Idle power of one GPU as measured by this run, for later runs on the same card."""

    gpu_uuid: str = Field(alias="gpuUUID")
    driver: str | None = None
    kind: str
    power_milliwatts: int
    measured_at: datetime
    conditions: str | None = Field(None, max_length=63)  # digest of the GPU's settings that it holds for


class Failure(_Part):
    """Why there is no result."""

    type: str
    message: str = Field(max_length=1024)
    phase: str | None = None
    exit_code: int


class TerminationRecord(_Part):
    """What one attempt came to; times are UTC, `sha256` and `size_bytes` are of `result.json` as stored at `uri`."""

    version: int = VERSION
    outcome: Literal["stored", "failed"]
    uri: str | None = Field(None, max_length=2048)
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    size_bytes: Count | None = None
    schema_version: str | None = Field(None, max_length=32)
    adopted: bool = False  # the result is an earlier attempt's: measured once, found again
    verdict: str | None = Field(None, max_length=63)
    synthetic: bool = False  # pretended by an engine or a sensor: not a measurement
    energy_null_reason: str | None = Field(None, max_length=300)
    window_start: datetime | None = None
    window_end: datetime | None = None
    numbers: Numbers = Numbers()
    gpu_product: str | None = Field(None, max_length=128)
    gpu_uuids: tuple[Annotated[str, Field(max_length=64)], ...] = Field((), max_length=16, alias="gpuUUIDs")
    driver: str | None = Field(None, max_length=63)
    baselines: tuple[KnownBaseline, ...] = Field((), max_length=16)
    reasons: tuple[Annotated[str, Field(max_length=63)], ...] = Field((), max_length=5)  # codes of the verdict's
    warnings: tuple[Annotated[str, Field(max_length=63)], ...] = Field((), max_length=3)  # codes of the first three
    failure: Failure | None = None

    @field_validator("version")
    @classmethod
    def _readable(cls, value: int) -> int:
        if value > VERSION:
            raise ValueError(f"version {value} is newer than {VERSION}, the newest this program reads; upgrade it")
        return value

    def to_message(self) -> str:
        """Compact JSON of at most MAX_BYTES; baselines, then long texts give way, never the digest."""
        for drop in ({}, {"baselines": ()}, {"baselines": (), "failure": _shortened(self.failure)}):
            text = self.model_copy(update=drop).model_dump_json(
                by_alias=True, exclude_none=True, exclude_defaults=False
            )
            if len(text.encode()) <= MAX_BYTES:
                return text
        raise ValueError(f"a termination message of {len(text.encode())} bytes is over {MAX_BYTES}")


def _shortened(failure: Failure | None) -> Failure | None:
    return failure and failure.model_copy(update={"message": failure.message[:200]})


def parse_termination(message: str) -> TerminationRecord | None:
    """Read a pod's termination message; None where it is no record (empty, cut off, or plain log lines)."""
    try:
        return TerminationRecord.model_validate_json(message)
    except ValidationError:
        return None


def termination_problem(message: str) -> str:
    """Say why `parse_termination` gave None."""
    if not message.strip():
        return "the container left no termination message"
    try:
        TerminationRecord.model_validate_json(message)
    except ValidationError as err:
        first: Any = err.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "message"
        return f"the termination message is no record of this version: {where}: {first['msg']}"
    return ""
