"""Tests the energy counter of each visible GPU: its beat, its lag behind a load, what a reading costs.

The load is a matrix product by torch in bursts whose ends are synchronised; without torch or CUDA only what an idle
GPU shows is found. Nothing of the GPU's settings is touched.
"""

import importlib.util
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import median
from typing import Any

from llenergymeasure import sensor_cache
from llenergymeasure.core.contracts import Device
from llenergymeasure.core.energy_series import EnergySeries
from llenergymeasure.core.errors import MeasurementError
from llenergymeasure.core.phase_split import LAG_S
from llenergymeasure.core.step_response import (
    BURST_TICKS,
    FADING_S,
    LEAST_ENDS,
    PAUSE_TICKS,
    SETTLED_S,
    Burst,
    Lag,
    lag,
    plateau_ratio,
)
from llenergymeasure.core.tick_times import Jitter
from llenergymeasure.nvml_sampling import NvmlSampler, counter_availability, driver_version, nvml, visible_devices
from llenergymeasure.sensor_cache import SelfTest

IDLE_S, CALLS = 10.0, 100
BURSTS, BURST_S, PAUSE_S = 12, 1.2, 1.5  # at least: what ticks of up to 0.11 s need
PAUSE_STEP_S, PAUSE_STEP = 0.0137, 0.137  # the larger of s and periods: the ends meet the ticks at all phases
PLATEAUS, PLATEAU_S, PLATEAU_TICKS = 2, 6.0, 15  # two of so many ticks tell the jitter under load
ROUNDS, LONGER_S = 3, 1.2  # of bursts, at most; each round's are so much longer than those of the last
SLOWEST_S = 1.0  # bursts are not made longer for slower ticks
MATRIX = 8192
Load = Callable[[float], Burst]
"""Works for so many seconds and gives when."""


@dataclass(frozen=True)
class _Pace:
    """How long bursts, plateaus and the pauses around them last, s; each pause is `step_s` longer than the last."""

    burst_s: float
    plateau_s: float
    pause_s: float
    step_s: float

    @classmethod
    def of(cls, period_s: float | None) -> "_Pace":
        """As long as a counter of this period needs, s, to show level power on both sides of an end."""
        tick_s = min(period_s or 0.0, SLOWEST_S)
        return cls(
            max(BURST_S, SETTLED_S + BURST_TICKS * tick_s),
            max(PLATEAU_S, PLATEAU_TICKS * tick_s),
            max(PAUSE_S, FADING_S + PAUSE_TICKS * tick_s),
            max(PAUSE_STEP_S, PAUSE_STEP * tick_s),
        )


@dataclass(frozen=True)
class _Heard:
    """What was recorded of one GPU; `loads` are all bursts and plateaus in order of time."""

    idle: EnergySeries
    whole: EnergySeries
    loads: tuple[Burst, ...]
    plateaus: tuple[Burst, ...]
    no_load_reason: str | None


def run() -> str:
    """Test every visible GPU, keep the findings, and say them in plain words."""
    available = counter_availability()
    if not available.ok:
        return f"sensor self-test: not possible: {available.reason}; {available.fix}"
    try:
        tests = [examine(d, position, idle_s=IDLE_S) for position, d in enumerate(visible_devices())]
    except MeasurementError as err:
        return f"sensor self-test: not possible: {err}"
    lines = ["sensor self-test", *(line for t in tests for line in _lines(t))]
    try:
        lines.append(f"  kept in {sensor_cache.keep(tests)} for later runs on this GPU and driver")
    except OSError as err:
        lines.append(f"  not kept: {err.filename}: {err.strerror}; runs use the defaults")
    return "\n".join(lines)


def examine(device: Device, position: int, *, load: Load | None = None, idle_s: float) -> SelfTest:
    """Test one GPU, the `position`-th that CUDA sees.

    It takes 12 s without a load; with one a minute at ticks of up to 0.1 s, 2.5 minutes at 0.5 s, 5 at most. Where too
    few ends tell the lag, more rounds of bursts follow: up to 3 minutes in all at 0.1 s, 7 at 0.5 s, 12.5 at most.
    """
    walls_s, processor_s = _call_costs(device)
    heard = _hear(device, position, load, idle_s)
    widths = [t.after_s - t.before_s for t in heard.whole.ticks]
    return SelfTest(
        format=2,
        gpu_uuid=device.uuid,
        gpu_name=device.name,
        driver=driver_version() or "unknown",
        tested_at=datetime.now(UTC),
        ticks=len(widths),
        period_s=heard.whole.period_s,
        jitter_idle=heard.idle.measured_jitter,
        jitter_load=_under_load(heard).measured_jitter,
        reading_width_s=median(widths) if widths else None,
        call_wall_s=median(walls_s),
        call_wall_p99_s=sorted(walls_s)[int(0.99 * (len(walls_s) - 1))],
        call_processor_s=processor_s,
        lag=_lag(heard),
        plateau_ratio=plateau_ratio(heard.whole, heard.plateaus),
    )


def _lag(heard: _Heard) -> Lag:
    if heard.no_load_reason:
        return Lag(None, None, 0, heard.no_load_reason)
    return lag(heard.whole, heard.loads)


def _call_costs(device: Device) -> tuple[list[float], float]:
    """Wall times of single counter calls and their mean processor time, s."""
    walls_s = []
    with nvml() as lib:
        handle = lib.nvmlDeviceGetHandleByUUID(device.uuid)
        began_s = time.thread_time()
        for _ in range(CALLS):
            asked_s = time.monotonic()
            lib.nvmlDeviceGetTotalEnergyConsumption(handle)
            walls_s.append(time.monotonic() - asked_s)
        return walls_s, (time.thread_time() - began_s) / CALLS


def _hear(device: Device, position: int, load: Load | None, idle_s: float) -> _Heard:
    """Record an idle GPU, then bursts of load and longer plateaus where a load can be made."""
    made, reason = (load, None) if load else _torch_load(position)
    sampler = NvmlSampler()
    try:
        sampler.start((device,), interval_s=1.0)
        time.sleep(idle_s)
        idle_until_s = sampler.mark()
        pace = _Pace.of(sampler.series(device.uuid).period_s)
        loads, plateaus = _loads(made, pace, lambda: sampler.series(device.uuid)) if made else ((), ())
        sampler.mark()
        whole = sampler.finish({}).series[device.uuid]
    finally:
        sampler.stop()
        sampler.discard()
    idle = EnergySeries(tuple(t for t in whole.ticks if t.after_s < idle_until_s))
    return _Heard(idle, whole, loads, plateaus, reason)


def _loads(load: Load, pace: _Pace, so_far: Callable[[], EnergySeries]) -> tuple[tuple[Burst, ...], tuple[Burst, ...]]:
    """All loads in order of time, and the plateaus among them.

    While too few ends tell the lag, a round of longer bursts follows: their power has more time to become level.
    """
    bursts = _bursts(load, BURSTS, pace.burst_s, pace)
    plateaus = _bursts(load, PLATEAUS, pace.plateau_s, pace)
    loads = (*bursts, *plateaus)
    for number in range(1, ROUNDS):
        if lag(so_far(), loads).ends >= LEAST_ENDS:
            break
        loads = (*loads, *_bursts(load, BURSTS, pace.burst_s + number * LONGER_S, pace))
    return loads, plateaus


def _bursts(load: Load, count: int, seconds: float, pace: _Pace) -> tuple[Burst, ...]:
    found = []
    for number in range(count):
        time.sleep(pace.pause_s + number * pace.step_s)
        found.append(load(seconds))
    time.sleep(pace.pause_s)
    return tuple(found)


def _under_load(heard: _Heard) -> EnergySeries:
    """The ticks inside the plateaus."""
    inside = (
        t for t in heard.whole.ticks if any(p.start_s < t.before_s and t.after_s < p.end_s for p in heard.plateaus)
    )
    return EnergySeries(tuple(inside))


def _torch_load(position: int) -> tuple[Load | None, str | None]:
    """A matrix product on one GPU, or None with the reason."""
    if importlib.util.find_spec("torch") is None:
        return None, "torch is not installed, so no load could be made"
    import torch

    if not torch.cuda.is_available() or position >= torch.cuda.device_count():
        return None, "this torch sees no such CUDA device, so no load could be made"
    return _matrix_product(torch, f"cuda:{position}"), None


def _matrix_product(torch: Any, device: str) -> Load:
    matrix = torch.randn(MATRIX, MATRIX, device=device, dtype=torch.float16)
    for _ in range(3):
        torch.matmul(matrix, matrix)
    torch.cuda.synchronize(device)

    def load(seconds: float) -> Burst:
        start_s = time.monotonic()
        while time.monotonic() - start_s < seconds:
            for _ in range(4):
                torch.matmul(matrix, matrix)
            torch.cuda.synchronize(device)
        return Burst(start_s, time.monotonic())

    return load


def _ms(seconds: float | None) -> str:
    return "unknown" if seconds is None else f"{1e3 * seconds:.1f} ms"


def _scatter(jitter: Jitter | None) -> str:
    if jitter is None:
        return "an unknown time"
    return f"less than {_ms(jitter.jitter_s)}" if jitter.hidden else _ms(jitter.jitter_s)


def _lines(test: SelfTest) -> Sequence[str]:
    """The findings about one GPU in plain words."""
    found = [
        f"  {test.gpu_name} {test.gpu_uuid}, driver {test.driver}",
        f"    the energy counter shows a new value every {_ms(test.period_s)} ({test.ticks} seen)",
        f"    the moment scatters by {_scatter(test.jitter_idle)} idle, {_scatter(test.jitter_load)} under load",
        f"    reading it takes {_ms(test.call_wall_s)} (99 % within {_ms(test.call_wall_p99_s)})",
        f"    and {_ms(test.call_processor_s)} of processor time",
    ]
    if test.lag.lag_s is not None:
        by = f"standard uncertainty {_ms(test.lag.uncertainty_s)}, from {test.lag.ends} ends"
        found.append(f"    it shows the end of a load {_ms(test.lag.lag_s)} late ({by})")
        if test.lag.left_out:
            found.append(f"    ends left out: {test.lag.left_out}")
    else:
        found.append(f"    how late it shows the end of a load is unknown: {test.lag.reason};")
        found.append(f"    runs count on {_ms(LAG_S)}")
    if test.lag.tried:
        found.append(f"    loads that were tried: {test.lag.tried}")
    if test.plateau_ratio is not None:
        found.append(f"    under steady load it counts {100 * test.plateau_ratio:.2f} % of power times time")
    return found
