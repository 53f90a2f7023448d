"""Corrects the gain of power sensors by a file: what a better meter said of each GPU, by its UUID.

    {"GPU-5c2f…": {"gain": 1.031, "offset_w": -0.8, "a": 0.01}}

True power = gain x reading + offset_w. `a` is the half-width of what the gain may still be off by, a fraction; it takes
the place of the ±10 % of a board that nobody has calibrated. Load and idle power are corrected alike, so the offset
leaves with the idle power when that is subtracted.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from llenergymeasure.core.contracts import DeviceEnergy, EnergyRecord, Window
from llenergymeasure.core.energy_series import EnergySeries
from llenergymeasure.core.errors import ConfigError


class BoardCalibration(BaseModel):
    """One board's correction."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)

    gain: float = Field(gt=0.5, lt=2, description="True power per power read, no unit.")
    offset_w: float = Field(0.0, ge=-100, le=100, description="Added to the corrected power, W.")
    a: float = Field(ge=0, le=0.5, description="Half-width of what the gain may still be off by, a fraction.")


Calibration = Mapping[str, BoardCalibration]
"""Corrections by GPU UUID."""

_File = TypeAdapter(dict[Annotated[str, Field(pattern=r"^GPU-.+")], BoardCalibration])


def read(text: str | bytes, *, source: str) -> Calibration:
    """Read a calibration file's text.

    Raises:
        ConfigError: It is no such file; every problem in one message, with the key it is at.

    """
    try:
        found = _File.validate_json(text)
    except ValidationError as err:
        problems = [f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in err.errors(include_url=False)]
        raise ConfigError(
            f"{source}: no calibration: {'; '.join(problems)}; "
            'write {"GPU-<uuid>": {"gain": 1.02, "offset_w": 0.0, "a": 0.01}}'
        ) from err
    if not found:
        raise ConfigError(f"{source}: names no GPU; write one entry per GPU UUID (nvidia-smi -L), or leave it away")
    return found


def corrected(energy: EnergyRecord, calibration: Calibration, window: Window) -> EnergyRecord:
    """A record whose window "window" and whose ticks are corrected; readings of other sensors stay as they were read.

    Joules between two ticks become gain x joules + offset_w x time, so every window cut from the series is corrected.
    """
    devices = tuple(
        _corrected_device(d, window.duration_s, calibration.get(d.gpu_uuid)) for d in energy.windows.get("window", ())
    )
    series = {u: _corrected_series(s, calibration.get(u)) for u, s in energy.series.items()}
    return replace(energy, windows={**energy.windows, "window": devices}, series=series)


def _corrected_device(device: DeviceEnergy, seconds: float, board: BoardCalibration | None) -> DeviceEnergy:
    if board is None:
        return device
    return replace(
        device,
        joules=None if device.joules is None else board.gain * device.joules + board.offset_w * seconds,
        std_uncertainty_j=None if device.std_uncertainty_j is None else board.gain * device.std_uncertainty_j,
        power_before_std_w=None if device.power_before_std_w is None else board.gain * device.power_before_std_w,
        power_before_w=corrected_w(device.power_before_w, board),
        power_after_w=corrected_w(device.power_after_w, board),
    )


def _corrected_series(series: EnergySeries, board: BoardCalibration | None) -> EnergySeries:
    if board is None or not series.ticks:
        return series
    zero_s = series.ticks[0].t_s
    ticks = (replace(t, joules=board.gain * t.joules + board.offset_w * (t.t_s - zero_s)) for t in series.ticks)
    return replace(series, ticks=tuple(ticks))


def corrected_w(power_w: float | None, board: BoardCalibration | None) -> float | None:
    """A power after correction, W."""
    return power_w if power_w is None or board is None else board.gain * power_w + board.offset_w


def corrected_idle_w(per_device_w: Mapping[str, float], calibration: Calibration) -> dict[str, float]:
    """Idle power by GPU after correction, W."""
    return {
        u: calibration[u].gain * w + calibration[u].offset_w if u in calibration else w for u, w in per_device_w.items()
    }


def gain_limit(joules: Mapping[str, float], calibration: Calibration, uncalibrated: float) -> float:
    """Half-width of the gain of a sum over boards: each board's own, weighted by its joules."""
    total = sum(joules.values())
    if total <= 0:
        return uncalibrated
    limits = {u: calibration[u].a if u in calibration else uncalibrated for u in joules}
    return sum(limits[u] * j for u, j in joules.items()) / total
