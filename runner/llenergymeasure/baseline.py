"""Measures the idle power that is subtracted: a bare GPU, one with a CUDA context, or one with the engine loaded.

A `context` baseline is held by a helper process that opens the primary context through libcuda and nothing else, so
it is the same for every engine and may be cached per GPU, driver and kind.
"""

import ctypes
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, TypeAdapter

from llenergymeasure.core.config import ExperimentConfig
from llenergymeasure.core.contracts import Device, EnergyBackend
from llenergymeasure.core.errors import MeasurementError

log = logging.getLogger(__name__)

VARIABLE = "LLEM_BASELINES"
HELPER_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Baseline:
    """Idle power of all GPUs of a run, W, and how it was had."""

    power_w: float
    kind: str
    method: Literal["fresh", "cached"]
    measured_at: datetime
    per_device_w: Mapping[str, float] = field(default_factory=dict)  # by GPU UUID

    @property
    def age_s(self) -> float:
        """Seconds since it was measured."""
        return (datetime.now(UTC) - self.measured_at).total_seconds()


def cached(config: ExperimentConfig, devices: Sequence[Device], driver: str | None, folder: Path) -> Baseline | None:
    """A known baseline for these GPUs, driver and kind that is young enough; from the parent, else from disk."""
    known = {**_read_file(folder), **_from_environment(os.environ)}
    rows = [known.get(_key(d.uuid, driver, config.baseline.kind)) for d in devices]
    present = [r for r in rows if r is not None]
    if not rows or len(present) < len(rows):
        return None
    found = Baseline(
        sum(r.power_w for r in present),
        config.baseline.kind,
        "cached",
        min(r.measured_at for r in present),
        {d.uuid: r.power_w for d, r in zip(devices, present, strict=True)},
    )
    return found if 0 <= found.age_s <= config.baseline.cache_ttl_seconds else None


def record(config: ExperimentConfig, source: EnergyBackend, devices: Sequence[Device]) -> float:
    """Record an idle window named `baseline` on a running source, give its length in s; `remember` needs its joules."""
    with _idle(config.baseline.kind, devices, pretended=source.KIND == "simulated"):
        start_s = source.open_window("baseline")
        time.sleep(config.baseline.duration_seconds)
        return source.close_window("baseline") - start_s


def remember(
    config: ExperimentConfig,
    joules: Mapping[str, float],
    duration_s: float,
    driver: str | None,
    folder: Path | None,
) -> Baseline:
    """Turn measured joules per GPU into a baseline; with a `folder`, keep it there for the next process if it can."""
    now = datetime.now(UTC)
    rows = {
        _key(uuid, driver, config.baseline.kind): _Row(power_w=j / duration_s, measured_at=now)
        for uuid, j in joules.items()
    }
    if folder is not None:
        try:
            _write_file(folder, rows)
        except OSError as err:  # the measurement is made; the next process will measure the idle power itself
            log.warning("%s: the baseline cannot be kept: %s", folder, err.strerror)
    per_device_w = {uuid: j / duration_s for uuid, j in joules.items()}
    return Baseline(sum(joules.values()) / duration_s, config.baseline.kind, "fresh", now, per_device_w)


def _key(uuid: str, driver: str | None, kind: str) -> str:
    return f"{uuid}/{driver}/{kind}"


def _from_environment(environ: Mapping[str, str]) -> dict[str, "_Row"]:
    """Baselines of the parent or the operator: a JSON list of {gpu_uuid, driver, kind, power_w, measured_at}."""
    text = environ.get(VARIABLE)
    if not text:
        return {}
    try:
        rows = json.loads(text)
        return {_key(r["gpu_uuid"], r.get("driver"), r["kind"]): _Row.model_validate(r) for r in rows}
    except (ValueError, KeyError, TypeError, AttributeError) as err:  # pydantic's ValidationError is a ValueError
        raise MeasurementError(f"{VARIABLE} is not a list of baselines: {err!r}") from err


class _Row(BaseModel):
    """One GPU's idle power as kept; a time without a zone is refused, since ages could not be told."""

    power_w: float
    measured_at: AwareDatetime


_Rows = TypeAdapter(dict[str, _Row])


def _read_file(folder: Path) -> dict[str, _Row]:
    try:
        return _Rows.validate_json((folder / "baselines.json").read_bytes())
    except (OSError, ValueError):
        return {}  # no cache, or a broken one: it is measured again


def _write_file(folder: Path, rows: Mapping[str, _Row]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "baselines.json"
    temporary = target.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_bytes(_Rows.dump_json({**_read_file(folder), **rows}, indent=1))
    temporary.replace(target)


@contextmanager
def _idle(kind: str, devices: Sequence[Device], *, pretended: bool) -> Iterator[None]:
    """Hold the GPU in the named idle: `context` by a helper process, the others by doing nothing."""
    if kind != "context" or pretended:
        yield
        return
    command = [sys.executable, "-m", "llenergymeasure.baseline", *(d.uuid for d in devices)]
    helper = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert helper.stdin is not None
    assert helper.stdout is not None
    assert helper.stderr is not None
    try:
        if helper.stdout.readline().strip() != b"ready":
            said = helper.stderr.read().decode(errors="replace").strip().splitlines() or ["no message"]
            raise MeasurementError(f"no CUDA context for the baseline: {said[-1]}; use baseline.kind: bare")
        time.sleep(2.0)  # creating the context takes power of its own for about a second
        yield
    finally:
        helper.stdin.close()
        helper.wait(timeout=HELPER_TIMEOUT_S)


def _hold_contexts(uuids: Sequence[str]) -> None:
    """The helper: open every device's primary context, say so, and wait until standard input closes."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(uuids)
    cuda = ctypes.CDLL("libcuda.so.1")

    def call(name: str, *arguments: Any) -> None:
        code = getattr(cuda, name)(*arguments)
        if code:
            raise SystemExit(f"{name} failed with CUDA error {code}")

    call("cuInit", 0)
    for index in range(len(uuids)):
        device, context = ctypes.c_int(), ctypes.c_void_p()
        call("cuDeviceGet", ctypes.byref(device), index)
        call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    _hold_contexts(sys.argv[1:])
