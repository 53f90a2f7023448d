"""Records NVML's energy counters and sensors in a process of its own: it must not share the engine's interpreter lock.

One thread per GPU (NVML calls release the lock, and each GPU ticks at its own beat) sleeps until just before the
counter's next tick, polls until the value changes, and writes one line per tick and reading. A counter call is slow
(3 ms) and takes the processor all the while (measured on an H100 with driver 580), so every tick is looked for only
where an edge may be (`dense`); inside a long window one in a second is enough (`sparse`), since the counter loses
nothing. Other sensors are read right after a tick, or where they end well before the next one.

The parent gives its orders as lines on standard input and ends the process by closing it, so it cannot outlive its
parent. All times are CLOCK_MONOTONIC.
"""

import json
import os
import select
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import IO, Any

from llenergymeasure.core.contracts import Device
from llenergymeasure.core.energy_series import Tick
from llenergymeasure.nvml_lines import path_of, record_fields, tick_fields, write
from llenergymeasure.nvml_sampling import nvml
from llenergymeasure.nvml_sensors import Sensors

POLL_S = 0.001  # least distance of polls; one call usually takes longer itself
LEAD_S = 0.010  # how long before the expected tick polling starts: ticks scatter by 2 ms (H100), a call takes 3 ms
LEARN_TICKS = 6  # intervals looked at before a tick is expected anywhere
LOST_TICKS = 3  # so many ticks in a row that were read late, and the beat is learnt anew
FOLLOW = 0.3  # share of a tick's surprise by which the beat is moved
SPARSE_S = 1.0  # distance of ticks inside a long window
DENSE_TICKS_AFTER_OPENING = 12
LATE_PERIODS, LATE_POLL_S = 2.5, 0.010  # a tick that is this late may never come: look less often
ALL_S = 1.0  # pace of processes, throttle counters and power samples
ORDERS_S = 0.2  # how often the main thread looks after its threads


class Beat:
    """The rhythm of one counter, followed from tick to tick."""

    def __init__(self) -> None:
        self.period_s: float | None = None
        self.last_s = 0.0  # where the last seen tick should have been, its own scatter smoothed
        self._seen: list[float] = []
        self._late = 0  # ticks in a row that were read late

    def saw(self, tick: Tick) -> None:
        """Learn from a tick; one that was read late tells nothing of the beat, several mean that it is lost."""
        if self.period_s is None:
            self._seen.append(tick.t_s)
            if len(self._seen) > LEARN_TICKS:
                self.period_s = median(b - a for a, b in zip(self._seen, self._seen[1:], strict=False))
                self.last_s = tick.t_s
            return
        passed = max(1, round((tick.t_s - self.last_s) / self.period_s))
        expected_s = self.last_s + passed * self.period_s
        surprise_s = tick.t_s - expected_s
        late = tick.after_s - tick.before_s > self.period_s / 4
        self._late = self._late + 1 if late else 0
        if self._late > LOST_TICKS:
            self.period_s, self._seen, self._late = None, [], 0
        elif late:
            self.last_s = expected_s
        elif abs(surprise_s) > self.period_s / 4:
            self.last_s = tick.t_s  # the counter changed its beat
        else:
            self.last_s = expected_s + FOLLOW * surprise_s
            self.period_s += 0.05 * surprise_s / passed

    def passed(self, t_s: float) -> int:
        """How many ticks lie between the last seen one and an instant, the one nearest to it included."""
        return 0 if self.period_s is None else max(0, round((t_s - self.last_s) / self.period_s))


@dataclass
class _Look:
    """The next tick to look for: when it should come, and how many before it are left out on purpose."""

    due_s: float
    left_out: int = 0

    def skipped(self, passed: int) -> int:
        """How many ticks before the one that was seen were left out on purpose, of those that passed.

        One more than planned may have come before the first reading; any further are missing.
        """
        extra = passed - 1 - self.left_out
        return self.left_out + extra if self.left_out and -self.left_out <= extra <= 1 else self.left_out


class GpuRecorder:
    """Records one GPU into a file until it is told to end."""

    def __init__(self, sensors: Sensors, out: IO[str], interval_s: float) -> None:
        self._sensors, self._out, self._interval_s = sensors, out, interval_s
        self._beat = Beat()
        self._wake, self._ended = threading.Event(), False
        self._sparse_after: int | None = None  # ticks until only one in a second is looked for
        self._fast_s = self._all_s = time.monotonic()
        self._fast_takes_s = 0.0
        self._old_s, self._value, self._known = 0.0, 0, False

    def order(self, word: str) -> None:
        """Take an order from another thread: dense, sparse or end."""
        if word == "dense":
            self._sparse_after = None
        elif word == "sparse" and self._sparse_after is None:
            self._sparse_after = DENSE_TICKS_AFTER_OPENING
        elif word == "end":
            self._ended = True
        self._wake.set()

    def run(self) -> None:
        """Record until told to end; raises NVMLError if the counter cannot be read."""
        self._read_sensors(all_of_them=True)
        look = self._next_look(was_sparse=False)
        while not self._ended:
            if self._wake.is_set():
                self._wake.clear()
                look = self._next_look(was_sparse=look.left_out > 0)
            now_s = time.monotonic()
            if now_s < look.due_s - LEAD_S:
                self._idle(now_s, look.due_s - LEAD_S)
            elif self._poll(look):
                self._read_sensors(all_of_them=True)
                look = self._next_look(was_sparse=False)
            elif self._beat.period_s and now_s - look.due_s > LATE_PERIODS * self._beat.period_s:
                self._read_sensors(all_of_them=True)
                time.sleep(LATE_POLL_S)

    def _next_look(self, *, was_sparse: bool) -> _Look:
        """When the next tick is due that is wanted; at once while the beat is not known."""
        period_s, last_s = self._beat.period_s, self._beat.last_s
        if period_s is None:
            return _Look(0.0)
        if self._sparse_after == 0:
            left_out = max(0, round(SPARSE_S / period_s) - 1)
            return _Look(last_s + (left_out + 1) * period_s, left_out)
        if was_sparse:  # some ticks have gone by on purpose: the next one that can be seen coming
            gone = int((time.monotonic() + LEAD_S - last_s) / period_s)
            return _Look(last_s + (gone + 1) * period_s, gone)
        return _Look(last_s + period_s)

    def _idle(self, now_s: float, until_s: float) -> None:
        """Read what is due and ends before polling starts, else sleep."""
        if now_s >= self._fast_s and now_s + 2 * self._fast_takes_s < until_s:
            self._read_sensors(all_of_them=False)
            return
        wanted_s = self._fast_s if self._fast_s > now_s else until_s
        self._wake.wait(max(0.0, min(wanted_s, until_s) - time.monotonic()))

    def _poll(self, look: _Look) -> bool:
        """Read the counter once; True if that showed a tick, which is then written."""
        asked_s = time.monotonic()
        value = self._sensors.counter_mj()
        seen_s = time.monotonic()
        first_of_look = self._old_s < look.due_s - LEAD_S
        if value == self._value or not self._known or (first_of_look and look.left_out):
            self._old_s, self._value, self._known = asked_s, value, True
            time.sleep(max(0.0, POLL_S - (seen_s - asked_s)))
            return False
        passed = self._beat.passed((self._old_s + seen_s) / 2)
        tick = Tick(self._old_s, seen_s, value / 1e3, look.skipped(passed))
        write(self._out, "t", tick_fields(tick, value, seen_s - asked_s))
        self._beat.saw(tick)
        self._old_s, self._value = asked_s, value
        if self._sparse_after:
            self._sparse_after -= 1
        return True

    def _read_sensors(self, *, all_of_them: bool) -> None:
        """Write what is due; the slow ones only where there is time for them."""
        now_s = time.monotonic()
        if now_s >= self._fast_s:
            write(self._out, "r", record_fields(self._sensors.reading()))
            self._fast_takes_s = time.monotonic() - now_s
            self._fast_s = max(self._fast_s + self._interval_s, now_s)
        if all_of_them and now_s >= self._all_s:
            write(self._out, "o", record_fields(self._sensors.occupants()))
            write(self._out, "h", record_fields(self._sensors.throttle()))
            write(self._out, "s", [[round(s.t_s, 6), s.power_w] for s in self._sensors.power_samples()])
            write(self._out, "c", [round(now_s, 3), time.process_time()])
            self._all_s = max(self._all_s + ALL_S, now_s)


def record(folder: Path, devices: list[Device], interval_s: float) -> None:
    """Record these GPUs until standard input closes; raises what ended a thread before that."""
    failures: list[BaseException] = []

    def guarded(recorder: GpuRecorder) -> None:
        try:
            recorder.run()
        except Exception as err:  # noqa: BLE001  (carried to the main thread, which raises it)
            failures.append(err)

    with nvml() as lib:
        outs = [path_of(folder, d).open("w", encoding="utf-8", buffering=1) for d in devices]
        recorders = [GpuRecorder(Sensors(lib, d), out, interval_s) for d, out in zip(devices, outs, strict=True)]
        threads = [threading.Thread(target=guarded, args=(r,)) for r in recorders]
        for thread in threads:
            thread.start()
        try:
            while not failures and (words := _orders()) is not None:
                for word in words:
                    for recorder in recorders:
                        recorder.order(word)
        finally:
            for recorder in recorders:
                recorder.order("end")
            for thread in threads:
                thread.join()
            for out in outs:
                out.close()
    if failures:
        raise failures[0]


def _orders() -> list[str] | None:
    """Orders that have come, none if none came for a while; None once the parent has closed its end."""
    if not select.select([0], [], [], ORDERS_S)[0]:
        return []
    text = os.read(0, 4096)
    return text.decode().split() if text else None


def main(arguments: list[str]) -> None:
    """Start as the parent asks: a folder, and a JSON object {devices, interval_s}."""
    request: dict[str, Any] = json.loads(arguments[1])
    record(Path(arguments[0]), [Device(**d) for d in request["devices"]], request["interval_s"])


if __name__ == "__main__":
    main(sys.argv[1:])
