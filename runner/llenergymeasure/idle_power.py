"""Records idle power on a running energy source until it is stable, and checks a known one with a short look."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from llenergymeasure.baseline import PART_S, Spread, allowed_drift, spread
from llenergymeasure.core.contracts import Device, EnergyBackend
from llenergymeasure.core.energy_series import EnergySeries
from llenergymeasure.idle_context import idle

WINDOW, SPOT_WINDOW = "baseline", "baseline_spot"
SPOT_S = 5.0
WAIT_S, WAITS = 30.0, 2  # before another recording, where the last one drifted
TICKS_WITHIN_S = 3.0  # the ticks behind an edge are there after this time, or never

MeanPower = Callable[[float, float], float | None]


@dataclass(frozen=True)
class Recorded:
    """A recorded idle window: its edges, s, and how often it was recorded; whether it was stable its ticks tell."""

    start_s: float
    end_s: float
    attempts: int


def record(
    source: EnergyBackend, devices: Sequence[Device], *, kind: str, seconds: float, note: Callable[[], None]
) -> Recorded:
    """Record an idle window named `baseline`, again after a pause while it drifts, at most three times.

    Args:
        source: Running.
        devices: GPUs that are held in this idle.
        kind: Which idle.
        seconds: Length of a recording.
        note: Called while the idle is held: its helper is one of this run's processes.

    """
    pretended = source.KIND == "simulated"
    with idle(kind, devices, pretended=pretended):
        note()
        for attempt in range(1, WAITS + 2):
            start_s = source.open_window(WINDOW)
            time.sleep(seconds)
            end_s = source.close_window(WINDOW)
            drift = _drift(source.mean_power_w, start_s, end_s) if source.KIND != "estimate" else None
            if drift is None or abs(drift) <= allowed_drift(_parts(seconds)):
                break
            if attempt <= WAITS:
                time.sleep(WAIT_S)
        return Recorded(start_s, end_s, attempt)


def spot(source: EnergyBackend, devices: Sequence[Device], *, kind: str, note: Callable[[], None]) -> float | None:
    """Mean power of five idle seconds, W, all devices together; None where the source cannot tell."""
    with idle(kind, devices, pretended=source.KIND == "simulated"):
        note()
        start_s = source.open_window(SPOT_WINDOW)
        time.sleep(SPOT_S)
        end_s = source.close_window(SPOT_WINDOW)
        return _power_w(source.mean_power_w, start_s, end_s)


def of_series(series: EnergySeries, start_s: float, end_s: float) -> Spread | None:
    """How a GPU's power moved in a recorded interval; None where its ticks do not show it."""

    def mean_power_w(a: float, b: float) -> float | None:
        joules = series.interpolated_j(a, b)
        return None if joules is None else joules / (b - a)

    return _spread(mean_power_w, start_s, end_s)


def _drift(mean_power_w: MeanPower, start_s: float, end_s: float) -> float | None:
    """Drift over the interval as a fraction of its power; waits for the ticks behind its end, None without them."""
    power_w = _power_w(mean_power_w, start_s, end_s)
    moved = _spread(mean_power_w, start_s, end_s) if power_w else None
    return moved.drift_w / power_w if power_w and moved is not None and moved.drift_w is not None else None


def _parts(seconds: float) -> int:
    """In how many parts a recording is looked at."""
    return max(4, int(seconds / PART_S))


def _spread(mean_power_w: MeanPower, start_s: float, end_s: float) -> Spread | None:
    count = _parts(end_s - start_s)
    step_s = (end_s - start_s) / count
    edges = [start_s + i * step_s for i in range(count + 1)]
    powers = [mean_power_w(a, b) for a, b in pairwise(edges)]
    known = [p for p in powers if p is not None]
    return spread(known) if len(known) == len(powers) else None


def _power_w(mean_power_w: MeanPower, start_s: float, end_s: float) -> float | None:
    deadline_s = time.monotonic() + TICKS_WITHIN_S
    while (found := mean_power_w(start_s, end_s)) is None and time.monotonic() < deadline_s:
        time.sleep(0.1)
    return found
