"""Idle power that is subtracted: what is known of it, how sure that is, and where it is kept between runs.

A known idle power holds for one GPU with one set of settings (driver, power limit, clocks, persistence, ECC, MIG) in
one kind of idle, for as long as `baseline.cache_ttl_seconds` says.
"""

import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, TypeAdapter

from llenergymeasure import cache_file
from llenergymeasure.core.config import ExperimentConfig
from llenergymeasure.core.energy_series import DEFAULT_JITTER_S
from llenergymeasure.core.errors import MeasurementError
from llenergymeasure.gpu_settings import GpuSettings

log = logging.getLogger(__name__)

VARIABLE = "LLEM_BASELINES"
FILE = "baselines.json"
STABLE = 0.005
"""Largest drift over a recording that counts as stable, a fraction of the idle power (measurement.md §3).

Over a few seconds more is allowed, see `allowed_drift`. As much is taken for a drift that is not known, and for the
standard uncertainty of a mean whose parts are not known.
"""
PART_S = 1.0
"""A recording is looked at in parts of about this length."""
SPOT_LEAST_W, SPOT_SHARE = 2.0, 0.02
"""A spot check that differs by more than the larger of the two makes a known idle power worthless."""
LEAST_DOUBT_W = 1.0
"""Half-width of what an idle power may have moved between its measurement and the window, W per GPU."""


@dataclass(frozen=True)
class Spread:
    """How idle power moved while it was recorded, W: standard deviation of `samples` parts, drift from end to end.

    `drift_w` is None where the recording is too short to show one: the guard beside a window.
    """

    spread_w: float
    samples: int
    drift_w: float | None = None

    def times(self, gain: float) -> "Spread":
        """The same of powers that are `gain` times as large."""
        return Spread(gain * self.spread_w, self.samples, None if self.drift_w is None else gain * self.drift_w)


@dataclass(frozen=True)
class Baseline:
    """Idle power of all GPUs of a run, W, and how it was had."""

    power_w: float
    kind: str
    method: Literal["fresh", "cached", "validated"]
    measured_at: datetime
    per_device_w: Mapping[str, float] = field(default_factory=dict)  # by GPU UUID
    recorded: Mapping[str, Spread] = field(default_factory=dict)  # by GPU UUID, where it is known
    temperature_c: float | None = None  # of the warmest GPU, when it was measured
    spot_w: float | None = None  # what a spot check before this run found
    settings: Mapping[str, str] = field(default_factory=dict)  # by GPU UUID: digest of what it holds for

    @property
    def age_s(self) -> float:
        """Seconds since it was measured."""
        return (datetime.now(UTC) - self.measured_at).total_seconds()

    @property
    def drift_w(self) -> float | None:
        """Drift of the sum over its recording, W; None where it is not known for every GPU."""
        drifts = [s.drift_w for s in self.recorded.values() if s.drift_w is not None]
        return sum(drifts) if drifts and len(drifts) == len(self.per_device_w) else None

    @property
    def stable(self) -> bool | None:
        """Whether it moved little enough over its recording; None where its drift is not known."""
        if self.drift_w is None or self.power_w <= 0:
            return None
        return abs(self.drift_w) <= allowed_drift(min(s.samples for s in self.recorded.values())) * self.power_w

    @property
    def std_uncertainty_w(self) -> float:
        """u(P_b), W: u² = s²/n + drift²/12 + max(1 W, |spot - known|)²/3, over all GPUs (measurement.md §5).

        Where a drift is not known it is taken as the largest that would have counted as stable, s/√n of a GPU likewise.
        """
        chance = sum(self._chance_w(u, w) ** 2 for u, w in (self.per_device_w or {"": self.power_w}).items())
        drift_w = self.drift_w if self.drift_w is not None else STABLE * self.power_w
        moved_w = abs(self.spot_w - self.power_w) if self.spot_w is not None else 0.0
        doubt_w = max(LEAST_DOUBT_W * max(1, len(self.per_device_w)), moved_w)
        return math.sqrt(chance + drift_w**2 / 12 + doubt_w**2 / 3)

    def _chance_w(self, uuid: str, power_w: float) -> float:
        """s/√n of one GPU, W."""
        seen = self.recorded.get(uuid)
        return seen.spread_w / math.sqrt(seen.samples) if seen is not None else STABLE * power_w


class Row(BaseModel):
    """One GPU's idle power as kept; a time without a zone is refused, since ages could not be told."""

    power_w: float
    measured_at: AwareDatetime
    spread_w: float | None = None
    samples: int | None = None
    drift_w: float | None = None
    temperature_c: float | None = None
    settings: dict[str, Any] | None = None  # what the key's digest stands for

    @property
    def recorded(self) -> Spread | None:
        """How it moved, where that is known."""
        if self.spread_w is None or not self.samples:
            return None
        return Spread(self.spread_w, self.samples, self.drift_w)


_Rows = TypeAdapter(dict[str, Row])


def known(
    config: ExperimentConfig,
    settings: Mapping[str, GpuSettings],
    folder: Path,
    *,
    environ: Mapping[str, str] | None = None,
) -> Baseline | None:
    """A known baseline for these GPUs as they are set, young enough; from the parent, else from disk.

    Args:
        config: Which kind of idle, and how old it may be.
        settings: By UUID, in the order of the run's GPUs.
        folder: Where baselines are kept.
        environ: What the parent hands down; this process' environment.

    Raises:
        MeasurementError: The parent's are malformed.

    """
    handed, kept = handed_down(os.environ if environ is None else environ), read_rows(folder)
    rows = {u: _find(u, s, config.baseline.kind, handed, kept) for u, s in settings.items()}
    present = {u: r for u, r in rows.items() if r is not None}
    if not rows or len(present) < len(rows):
        return None
    temperatures = [r.temperature_c for r in present.values() if r.temperature_c is not None]
    found = Baseline(
        sum(r.power_w for r in present.values()),
        config.baseline.kind,
        "cached",
        min(r.measured_at for r in present.values()),
        {u: r.power_w for u, r in present.items()},
        {u: r.recorded for u, r in present.items() if r.recorded is not None},
        max(temperatures, default=None),
        settings={u: s.digest for u, s in settings.items()},
    )
    return found if 0 <= found.age_s <= config.baseline.cache_ttl_seconds else None


def _find(
    uuid: str, settings: GpuSettings, kind: str, handed: Mapping[str, Row], kept: Mapping[str, Row]
) -> Row | None:
    """What was handed down beats what lies on disk; a handed row may come without the digest of the settings."""
    exact, loose = key(uuid, settings.driver, kind, settings.digest), key(uuid, settings.driver, kind, None)
    return handed.get(exact) or handed.get(loose) or kept.get(exact)


def allowed_drift(parts: int) -> float:
    """Largest drift that counts as stable over a recording of so many parts of a second, a fraction of its power.

    The drift is twice the difference of two halves that share an edge, so jitter σ of the ticks gives it √6·4σ/T, near
    10·σ/T; twice that is no drift. With 4 ms that is more than 0.5 % in recordings of less than 16 s.
    """
    return max(STABLE, 20 * DEFAULT_JITTER_S / (PART_S * parts))


def belies(spot_w: float, known_w: float) -> bool:
    """Whether a spot check says that a known idle power no longer holds."""
    return abs(spot_w - known_w) > max(SPOT_LEAST_W, SPOT_SHARE * known_w)


def key(uuid: str, driver: str | None, kind: str, digest: str | None) -> str:
    """Name of a row: GPU, driver, kind of idle and, where known, the digest of the GPU's settings."""
    return "/".join([uuid, str(driver), kind, *([digest] if digest else [])])


def rows_of(found: Baseline, settings: Mapping[str, GpuSettings]) -> dict[str, Row]:
    """The rows to keep of a measured baseline, by name."""
    rows = {}
    for uuid, power_w in found.per_device_w.items():
        own, moved = settings.get(uuid, GpuSettings()), found.recorded.get(uuid)
        rows[key(uuid, own.driver, found.kind, own.digest)] = Row(
            power_w=power_w,
            measured_at=found.measured_at,
            spread_w=moved.spread_w if moved else None,
            samples=moved.samples if moved else None,
            drift_w=moved.drift_w if moved else None,
            temperature_c=found.temperature_c,
            settings=asdict(own),
        )
    return rows


def keep(rows: Mapping[str, Row], folder: Path) -> None:
    """Write rows where the next process finds them; that it cannot be done is logged, not raised."""
    try:
        cache_file.write(folder / FILE, _Rows, {**read_rows(folder), **rows})
    except OSError as err:  # the measurement is made; the next process will measure the idle power itself
        log.warning("%s: the baseline cannot be kept: %s", folder, err.strerror)


def read_rows(folder: Path) -> dict[str, Row]:
    """The rows that are kept, by name."""
    return cache_file.read(folder / FILE, _Rows)


def handed_down(environ: Mapping[str, str]) -> dict[str, Row]:
    """Baselines of the parent or the operator: a JSON list of rows with {gpu_uuid, driver, kind, conditions}.

    Raises:
        MeasurementError: The variable does not hold such a list.

    """
    text = environ.get(VARIABLE)
    if not text:
        return {}
    try:
        rows = json.loads(text)
        return {
            key(r["gpu_uuid"], r.get("driver"), r["kind"], r.get("conditions")): Row.model_validate(r) for r in rows
        }
    except (ValueError, KeyError, TypeError, AttributeError) as err:  # pydantic's ValidationError is a ValueError
        raise MeasurementError(f"{VARIABLE} is not a list of baselines: {err!r}") from err


def to_variable(rows: Mapping[str, Row]) -> str:
    """The same rows as `handed_down` reads them."""
    parts: list[dict[str, Any]] = []
    for name, row in rows.items():
        uuid, driver, kind, *digest = name.split("/")
        identity = {"gpu_uuid": uuid, "driver": None if driver == "None" else driver, "kind": kind}
        parts.append(identity | {"conditions": digest[0] if digest else None} | row.model_dump(mode="json"))
    return json.dumps(parts)


def spread(powers: Sequence[float]) -> Spread | None:
    """How power moved over equal parts of a recording; None with fewer than four. Drift: from the halves' means."""
    if len(powers) < 4:
        return None
    mean = sum(powers) / len(powers)
    half = len(powers) // 2
    early, late = sum(powers[:half]) / half, sum(powers[-half:]) / half
    variance = sum((p - mean) ** 2 for p in powers) / (len(powers) - 1)
    apart = (len(powers) - half) / len(powers)  # distance of the halves' middles, a fraction of the recording
    return Spread(math.sqrt(variance), len(powers), (late - early) / apart)
