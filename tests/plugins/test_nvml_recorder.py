"""The recorder finds every tick where that matters, spares the processor where it does not, and never grows."""

import io
import json
import random
import sys
from itertools import pairwise
from typing import Any

import pytest

from llenergymeasure import nvml_recorder
from llenergymeasure.core.contracts import Occupants, PowerSample, Reading, ThrottleCounters
from llenergymeasure.core.energy_series import EnergySeries, Tick
from llenergymeasure.nvml_lines import Recorded
from llenergymeasure.nvml_recorder import Beat, GpuRecorder

UUID = "GPU-aaaaaaaa"
CALL_S = 0.0032  # what a counter call takes on an H100 (measurement.md §1)


class Clock:
    """Time that passes only by waiting; stands in for the module `time`."""

    def __init__(self, now: float) -> None:
        self.now = now

    def monotonic(self) -> float:
        """Seconds."""
        return self.now

    def process_time(self) -> float:
        """As if the processor were never used."""
        return 0.0

    def sleep(self, seconds: float) -> None:
        """Let time pass; asking costs a little, so that no loop stands still."""
        self.now += max(seconds, 1e-5)


class Bell:
    """An event whose waiting moves the pretended clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self._rung = clock, False

    def set(self) -> None:
        """Ring."""
        self._rung = True

    def clear(self) -> None:
        """Forget it."""
        self._rung = False

    def is_set(self) -> bool:
        """Whether it rang."""
        return self._rung

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self._clock.sleep(seconds)


class PretendedSensors:
    """A counter of 300 W whose ticks scatter, and sensors that take time; all on a pretended clock."""

    def __init__(self, clock: Clock, *, period_s: float = 0.1, jitter_s: float = 0.002, other_s: float = 0.0) -> None:
        self._clock, self._period_s, self._jitter_s, self._other_s = clock, period_s, jitter_s, other_s
        self._late: dict[int, float] = {}
        self._draw = random.Random(7)
        self.calls: list[float] = []
        self.script: list[tuple[float, Any]] = []  # (at, what to do), in order of time
        self.hidden: tuple[float, float] = (0.0, 0.0)  # nothing new is shown in between

    def appears_s(self, tick: int) -> float:
        """When a tick is shown."""
        if tick not in self._late:
            self._late[tick] = self._draw.gauss(0, self._jitter_s)
        return tick * self._period_s + self._late[tick]

    def counter_mj(self) -> int:
        """The last tick's value, read in the middle of a call of 3.2 ms."""
        while self.script and self._clock.now >= self.script[0][0]:
            self.script.pop(0)[1]()
        self._clock.sleep(CALL_S / 2)
        now_s = self._clock.now
        self.calls.append(now_s)
        if self.hidden[0] <= now_s < self.hidden[1]:
            now_s = self.hidden[0]
        tick = int(now_s / self._period_s) + 1
        while self.appears_s(tick) > now_s:
            tick -= 1
        self._late = {k: v for k, v in self._late.items() if k > tick - 50}
        self._clock.sleep(CALL_S / 2)
        return round(300_000 * self._period_s * tick)

    def reading(self) -> Reading:
        """Power and temperature."""
        self._clock.sleep(self._other_s)
        return Reading(self._clock.now, UUID, 0, power_w=300.0, temperature_c=50.0)

    def occupants(self) -> Occupants:
        """Nobody."""
        self._clock.sleep(self._other_s)
        return Occupants(self._clock.now, UUID, compute_pids=())

    def throttle(self) -> ThrottleCounters:
        """Nothing counted."""
        return ThrottleCounters(self._clock.now, UUID)

    def power_samples(self) -> list[PowerSample]:
        """One sample."""
        return [PowerSample(self._clock.now, 300.0)]


class Played:
    """A recording on a pretended clock."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, seconds: float, *, interval_s: float = 0.1, **sensors: Any
    ) -> None:
        self.clock = Clock(1000.0)
        self.sensors = PretendedSensors(self.clock, **sensors)
        self.out = io.StringIO()
        monkeypatch.setattr(nvml_recorder, "time", self.clock)
        self.recorder = GpuRecorder(self.sensors, self.out, interval_s)  # type: ignore[arg-type]  # the part that it asks
        monkeypatch.setattr(self.recorder, "_wake", Bell(self.clock))
        self.sensors.script.append((1000.0 + seconds, lambda: self.recorder.order("end")))

    def at(self, second: float, word: str) -> None:
        """Give an order at a second of the recording."""
        self.sensors.script.insert(-1, (1000.0 + second, lambda: self.recorder.order(word)))

    def record(self) -> Recorded:
        """Run to the end and read the lines."""
        self.recorder.run()
        found = Recorded()
        for line in self.out.getvalue().splitlines():
            found.add(json.loads(line))
        return found


def test_every_tick_is_seen_and_narrowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recording every tick of a minute: none is missing, and all but a few lie between two calls."""
    found = Played(monkeypatch, 60).record()
    series = EnergySeries(tuple(found.ticks))
    assert len(found.ticks) >= 598
    assert series.interior_gap_ticks(1000, 1060) == 0
    widths = sorted(t.after_s - t.before_s for t in found.ticks)
    assert widths[len(widths) // 2] == pytest.approx(2 * CALL_S, rel=0.05)
    assert widths[int(0.99 * len(widths))] < 0.02
    assert series.period_s == pytest.approx(0.1, rel=0.01)


def test_a_ticks_two_readings_enclose_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the jitter, the tick appeared between the start of the old and the end of the new reading."""
    played = Played(monkeypatch, 5, jitter_s=0.004)
    found = played.record().ticks
    assert len(found) > 45
    for tick in found:
        number = round(tick.joules / 30.0)
        if number in played.sensors._late:
            assert tick.before_s <= played.sensors.appears_s(number) <= tick.after_s


def test_inside_a_long_window_one_tick_a_second_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve ticks after the order only one in ten is looked for, as precisely, with a few calls each."""
    played = Played(monkeypatch, 70)
    played.at(5, "sparse")
    found = played.record()
    late = [t for t in found.ticks if t.t_s > 1007]
    assert {t.skipped for t in late} == {9}
    assert all(t.after_s - t.before_s < 0.02 for t in late)
    assert sum(5.0 < t.t_s - 1000 < 6.3 and not t.skipped for t in found.ticks) >= 12
    calls = sum(t > 1007 for t in played.sensors.calls)
    assert calls / 63 * 1.3 * CALL_S <= 0.03  # of one core, the call's processor time being 1.3 of its length
    assert EnergySeries(tuple(found.ticks)).interior_gap_ticks(1000, 1070) == 0


def test_told_that_an_edge_is_near_it_sees_every_tick_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order reaches a recorder that sleeps for a second: the next tick but one at the latest is seen."""
    played = Played(monkeypatch, 20)
    played.at(2, "sparse")
    bell = played.recorder._wake
    waited = bell.wait

    def wait(seconds: float) -> None:
        """Let the order come in the middle of a long sleep."""
        end_s = played.clock.now + seconds
        if played.clock.now < 1012.43 < end_s:
            waited(1012.43 - played.clock.now)
            played.recorder.order("dense")
            return
        waited(seconds)

    monkeypatch.setattr(bell, "wait", wait)
    after = [t for t in played.record().ticks if t.t_s > 1012.43]
    assert after[0].t_s < 1012.62
    assert after[0].skipped > 0
    assert not any(t.skipped for t in after[1:])
    assert max(b.t_s - a.t_s for a, b in pairwise(after)) < 0.15


def test_slow_sensors_do_not_delay_the_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readings of 20 ms each, as often as they fit in, and more once a second: no tick is seen late for that."""
    found = Played(monkeypatch, 30, interval_s=0.03, other_s=0.020).record()
    widths = sorted(t.after_s - t.before_s for t in found.ticks)
    assert len(found.ticks) >= 298
    assert widths[int(0.98 * len(widths))] < 0.02
    assert len(found.readings) >= 250
    assert len(found.occupants) >= 25


def test_other_sensors_keep_their_pace_between_rare_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """While one tick a second is looked for, powers and temperatures still come each 100 ms, the rest each second."""
    played = Played(monkeypatch, 30)
    played.at(3, "sparse")
    found = played.record()
    times = [r.t_s for r in found.readings if r.t_s > 1005]
    assert max(b - a for a, b in pairwise(times)) < 0.15
    assert 25 <= len(found.throttle) <= 32
    assert len(found.samples) == len(found.throttle)


def test_a_counter_that_stands_still_is_not_hammered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tick that does not come is waited for at a slower pace, readings go on, and the next one is found."""
    played = Played(monkeypatch, 20)
    played.sensors.hidden = (1005.0, 1010.0)
    found = played.record()
    assert sum(1006 < t < 1009 for t in played.sensors.calls) <= 3 / (CALL_S + nvml_recorder.LATE_POLL_S) + 2
    assert sum(1005 < r.t_s < 1010 for r in found.readings) >= 40
    assert EnergySeries(tuple(found.ticks)).interior_gap_ticks(1000, 1020) >= 45
    assert sum(t.t_s > 1010.5 for t in found.ticks) >= 90


def test_a_hole_is_a_hole_also_where_few_ticks_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A counter that showed nothing new for three seconds of a long window has a gap that is told."""
    played = Played(monkeypatch, 30)
    played.at(2, "sparse")
    played.sensors.hidden = (1012.0, 1015.0)
    series = EnergySeries(tuple(played.record().ticks))
    assert series.interior_gap_ticks(1005, 1011) == 0
    assert 18 <= series.interior_gap_ticks(1005, 1025) <= 32


def test_another_beat_is_learnt(monkeypatch: pytest.MonkeyPatch) -> None:
    """A counter that suddenly ticks 40 ms earlier is lost for a moment and then found again."""
    played = Played(monkeypatch, 20)
    shown_s = played.sensors.appears_s
    monkeypatch.setattr(played.sensors, "appears_s", lambda n: shown_s(n) - (0.04 if n * 0.1 > 1008 else 0.0))
    late = [t for t in played.record().ticks if t.t_s > 1010]
    assert len(late) >= 95
    assert sorted(t.after_s - t.before_s for t in late)[90] < 0.02


def test_a_day_leaves_nothing_behind_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the recorder itself holds is no larger after an hour than after a minute: its predictor and no more."""

    class Nowhere(io.StringIO):
        """A file that forgets."""

        def write(self, text: str) -> int:
            """Forget."""
            return len(text)

    def held(seconds: float) -> int:
        played = Played(monkeypatch, seconds)
        played.at(5, "sparse")
        played.recorder._out = Nowhere()
        played.recorder.run()
        parts = [*vars(played.recorder).values(), *vars(played.recorder._beat).values()]
        return sum(sys.getsizeof(p) for p in parts) + sum(len(p) for p in parts if isinstance(p, list))

    assert held(3600) - held(60) < 64  # bytes: numbers grow by a digit


def tick(t_s: float, width_s: float = 0.006) -> Tick:
    return Tick(t_s - width_s / 2, t_s + width_s / 2, 30 * t_s)


def test_a_beat_ignores_ticks_that_were_read_late() -> None:
    """A reading that took 100 ms says nothing of when the counter ticks."""
    beat = Beat()
    for i in range(8):
        beat.saw(tick(0.1 * i))
    before = beat.last_s
    beat.saw(tick(0.85, width_s=0.1))
    assert beat.last_s == pytest.approx(before + 0.1)
    assert beat.period_s == pytest.approx(0.1)


def test_a_beat_that_is_lost_is_learnt_anew() -> None:
    """Several late ticks in a row mean that the beat is another."""
    beat = Beat()
    for i in range(8):
        beat.saw(tick(0.1 * i))
    for i in range(8, 12):
        beat.saw(tick(0.1 * i + 0.05, width_s=0.09))
    assert beat.period_s is None
