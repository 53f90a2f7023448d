"""Plays one scripted GPU: what each sensor shows at an instant, from the plain mapping that fakes.nvml_script writes.

Nothing here knows NVIDIA's structures; `pynvml/__init__.py` puts these numbers into them. Instants are seconds of
CLOCK_MONOTONIC. `between` lists of the script hold rows that end with (from_s, to_s).
"""

import hashlib
from typing import Any

Script = dict[str, Any]
AVERAGE_S = 1.0  # length of the mean that field 185 gives
INSTANT_S = 0.025  # what field 186 sees of each period (measured on an H100)
SAMPLE_S, SAMPLES = 0.02, 119  # the driver's power buffer on an H100


def active(rows: list[list[Any]], t_s: float) -> list[list[Any]]:
    """The rows [..., from_s, to_s] in force at an instant."""
    return [row for row in rows if row[-2] <= t_s < row[-1]]


def step(rows: list[list[float]], t_s: float) -> float:
    """Value of a list of (from_s, value) steps: the last that has begun, the first before that."""
    found = rows[0][1]
    for begin_s, value in rows:
        if t_s >= begin_s:
            found = value
    return found


def joules(gpu: Script, t_s: float) -> float:
    """Integral of the scripted power from the counter's origin to an instant, with the jumps that happened."""
    steps = [[gpu["origin_s"], gpu["power"][0][1]], *gpu["power"]]
    total = 0.0
    for (begin_s, watts), end_s in zip(steps, [*(s[0] for s in steps[1:]), float("inf")], strict=True):
        total += watts * max(0.0, min(t_s, end_s) - max(begin_s, gpu["origin_s"]))
    return total + sum(extra for at_s, extra in gpu["jumps"] if t_s >= at_s)


def mean_power_w(gpu: Script, start_s: float, end_s: float) -> float:
    """Mean of the scripted power, without the counter's jumps."""
    clean = gpu | {"jumps": []}
    return (joules(clean, end_s) - joules(clean, start_s)) / (end_s - start_s)


def _delay_s(gpu: Script, tick: int) -> float:
    """How late one tick appears: the lag, and a jitter that only depends on the tick's number."""
    digest = hashlib.sha256(f"{gpu['uuid']}/{tick}".encode()).digest()
    even = int.from_bytes(digest[:8], "big") / 2**64
    return float(gpu["lag_s"]) + float(gpu["jitter_s"]) * 12**0.5 * (even - 0.5)


def _tick(gpu: Script, now_s: float) -> int:
    """Number of the last tick that has appeared; ticks inside a scripted hole never do."""
    zero_s, period_s = gpu["origin_s"] + gpu["phase_s"], gpu["period_s"]
    tick = int((now_s - zero_s - gpu["lag_s"]) // period_s) + 2
    while True:
        nominal_s = zero_s + tick * period_s
        if nominal_s + _delay_s(gpu, tick) <= now_s and not active(gpu["holes"], nominal_s):
            return tick
        tick -= 1


def counter_mj(gpu: Script, now_s: float) -> int:
    """What the energy counter shows: the energy up to its last tick, or a recorded trace's last value."""
    if gpu["constant"]:
        return 123_456
    if gpu["trace"]:
        past = [mj for t_s, mj in gpu["trace"] if gpu["origin_s"] + t_s <= now_s]
        return int(past[-1] if past else gpu["trace"][0][1])
    tick_s = gpu["origin_s"] + gpu["phase_s"] + _tick(gpu, now_s) * gpu["period_s"]
    value = 1e3 * joules(gpu, tick_s)
    if gpu["reset_at_s"] is not None and tick_s >= gpu["reset_at_s"]:
        value -= 1e3 * joules(gpu, gpu["reset_at_s"])
    return int(value)


def samples(gpu: Script, now_s: float) -> list[tuple[float, int]]:
    """The power buffer, oldest first: (end of the sample in s, mean power in mW)."""
    last = int(now_s // SAMPLE_S)
    ends = [i * SAMPLE_S for i in range(last - SAMPLES + 1, last + 1)]
    return [(t, round(1e3 * mean_power_w(gpu, t - SAMPLE_S, t))) for t in ends]


def reasons(gpu: Script, now_s: float) -> int:
    """Event bits in force."""
    bits = 0
    for value, _, _ in active([[b, f, t] for f, t, b in gpu["reasons"]], now_s):
        bits |= value
    return bits


def slowed_ns(gpu: Script, bit: int, now_s: float) -> int:
    """Time since the counter's origin that an event bit was set, ns."""
    spans = [(max(f, gpu["origin_s"]), min(t, now_s)) for f, t, bits in gpu["reasons"] if bits & bit]
    return int(1e9 * sum(max(0.0, b - a) for a, b in spans))


def used_mb(gpu: Script, now_s: float) -> int:
    """Memory in use by processes, MiB: ours and foreign, without the driver's reserve."""
    return int(gpu["used_mb"] + sum(row[0] for row in active(gpu["foreign_memory"], now_s)))


def compute_pids(gpu: Script, now_s: float) -> list[int]:
    """Processes that compute, as the process list shows them."""
    return [*gpu["pids"], *(row[0] for row in active(gpu["foreign_compute"], now_s))]


def graphics_pids(gpu: Script, now_s: float) -> list[int]:
    """Processes that draw, as the process list shows them."""
    return [row[0] for row in active(gpu["foreign_graphics"], now_s)]


def busy(gpu: Script, now_s: float) -> list[tuple[int, int]]:
    """(pid, SM utilisation in per cent) of the processes that use the GPU, host pids too."""
    return [(row[0], row[1]) for row in active(gpu["busy"], now_s)]
