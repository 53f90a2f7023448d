"""Which GPUs this process may use, whether their energy counters are its own, and the recording of them.

The recording itself is made by a process of its own (nvml_recorder.py); this is the side of the parent.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from llenergymeasure.core.contracts import (
    QUIET_LEAST_S,
    QUIET_TICKS,
    Availability,
    Device,
    EnergyRecord,
    SensorFacts,
)
from llenergymeasure.core.energy_series import DEFAULT_JITTER_S, EnergySeries, counter_facts
from llenergymeasure.core.errors import MeasurementError
from llenergymeasure.core.step_response import Lag
from llenergymeasure.nvml_lines import Follower, Recorded, path_of

if TYPE_CHECKING:
    from llenergymeasure.sensor_cache import SelfTest

RECORDER = "llenergymeasure.nvml_recorder"
TIMED_TICKS, TIMING_S = 20, 2.0  # how long a run times the ticks before it goes on
TAIL_TICKS = 8  # ticks recorded behind the last edge before the recorder is stopped: a guard and one to spare
FIRST_TICK_TIMEOUT_S = 3.0
NO_SELF_TEST = "no self-test of this GPU and driver is known"
INIT_TIMEOUT_S = 20.0  # without persistence mode the driver starts the GPU first
LOOK_S = 0.01  # between looks at a counter that should move


class CounterStandsStillError(MeasurementError):
    """A GPU's energy counter does not move; even an idle GPU's does, so it is broken."""

    def __init__(self, uuid: str) -> None:
        super().__init__(
            f"counter_constant: the energy counter of {uuid} did not move within {FIRST_TICK_TIMEOUT_S:g} s"
        )


@contextlib.contextmanager
def nvml() -> Iterator[Any]:
    """The `pynvml` module between init and shutdown; raises pynvml.NVMLError without a driver."""
    import pynvml

    pynvml.nvmlInit()
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def driver_version() -> str | None:
    """Version of NVIDIA's driver; None without one."""
    try:
        with nvml() as lib:
            return _text(lib.nvmlSystemGetDriverVersion())
    except Exception:  # noqa: BLE001  (no library, no driver, no permission: no version either way)
        return None


def visible_devices() -> tuple[Device, ...]:
    """The GPUs that this process may use, by NVML order, CUDA_VISIBLE_DEVICES respected; none without a driver."""
    try:
        with nvml() as lib:
            handles = [lib.nvmlDeviceGetHandleByIndex(i) for i in range(lib.nvmlDeviceGetCount())]
            found = [
                Device(i, _text(lib.nvmlDeviceGetUUID(h)), _text(lib.nvmlDeviceGetName(h)))
                for i, h in enumerate(handles)
            ]
    except Exception:  # noqa: BLE001  (no library, no driver, no permission: no device either way)
        return ()
    return _visible(found, os.environ.get("CUDA_VISIBLE_DEVICES"))


def _visible(found: Sequence[Device], wanted: str | None) -> tuple[Device, ...]:
    if wanted is None:
        return tuple(found)
    chosen = []
    for word in (w.strip() for w in wanted.split(",")):
        match = [d for d in found if (word.isdigit() and d.index == int(word)) or (word and d.uuid.startswith(word))]
        if not match:
            break  # CUDA, too, ignores everything behind the first unknown entry
        chosen.append(match[0])
    return tuple(chosen)


def counter_availability() -> Availability:
    """Whether every visible GPU has an energy counter that is ours alone."""
    devices = visible_devices()
    if not devices:
        return Availability(False, "no NVIDIA GPU or driver is visible", "run on an NVIDIA GPU with its driver")
    whole = whole_boards()
    if not whole.ok:
        return whole
    try:
        with nvml() as lib:
            for device in devices:
                lib.nvmlDeviceGetTotalEnergyConsumption(lib.nvmlDeviceGetHandleByUUID(device.uuid))
    except Exception as err:  # noqa: BLE001  (any failure to read means: not available, with its text)
        return Availability(False, f"the energy counter cannot be read: {err}", "use a Volta or later GPU")
    return Availability(True)


def counter_that_stands_still() -> str:
    """Which visible GPU's counter does not move, in words; empty if all do.

    That takes a tick to see, three seconds if one stands still, so it is looked at once in a process: a plan asks for
    each of its configurations.
    """
    return _still(tuple(d.uuid for d in visible_devices()))


@cache
def _still(uuids: tuple[str, ...]) -> str:
    with nvml() as lib:
        handles = {uuid: lib.nvmlDeviceGetHandleByUUID(uuid) for uuid in uuids}
        first = {u: lib.nvmlDeviceGetTotalEnergyConsumption(h) for u, h in handles.items()}
        deadline_s = time.monotonic() + FIRST_TICK_TIMEOUT_S
        while still := [u for u, h in handles.items() if lib.nvmlDeviceGetTotalEnergyConsumption(h) == first[u]]:
            if time.monotonic() > deadline_s:
                return str(CounterStandsStillError(still[0]))
            time.sleep(LOOK_S)
    return ""


def whole_boards() -> Availability:
    """No if a visible GPU is cut into MIG slices: its sensors cover all of them. Yes without any GPU."""
    devices = visible_devices()
    if devices:
        with nvml() as lib:
            for device in devices:
                if _mig_enabled(lib, lib.nvmlDeviceGetHandleByUUID(device.uuid)):
                    return Availability(
                        False, f"{device.uuid} is in MIG mode: its counter covers all slices", "turn MIG off"
                    )
    return Availability(True)


def _mig_enabled(lib: Any, handle: Any) -> bool:
    try:
        return bool(lib.nvmlDeviceGetMigMode(handle)[0])
    except lib.NVMLError:
        return False  # cards without MIG refuse the question


class NvmlSampler:
    """The parent's side: starts the recorder, gives it orders, follows its files, stops it."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._files: dict[str, Follower] = {}
        self._last_edge_s = 0.0

    def start(self, devices: Sequence[Device], *, interval_s: float) -> None:
        """Start recording and time every device's ticks for two seconds.

        Raises:
            CounterStandsStillError: A counter gave fewer than three ticks in that time; the recording goes on.
            MeasurementError: The recorder ended by itself.

        """
        self._folder = tempfile.TemporaryDirectory(prefix="llem-sampler-")
        folder = Path(self._folder.name)
        self._files = {d.uuid: Follower(path_of(folder, d)) for d in devices}
        request = json.dumps({"devices": [asdict(d) for d in devices], "interval_s": interval_s})
        command = [sys.executable, "-m", RECORDER, str(folder), request]
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        self._wait(self._watching, INIT_TIMEOUT_S)
        if not self._wait(self._timed, FIRST_TICK_TIMEOUT_S):
            raise CounterStandsStillError(min(self._files, key=lambda u: len(self._files[u].ticks())))

    def _wait(self, done: Callable[[float], bool], limit_s: float) -> bool:
        """Wait until something holds, given the seconds waited; False if it did not in time."""
        started_s = time.monotonic()
        while not done(spent_s := time.monotonic() - started_s):
            if spent_s > limit_s:
                return False
            self._must_run()
            time.sleep(0.02)
        return True

    def _watching(self, _spent_s: float) -> bool:
        """Whether every GPU's counter is watched; before that, its sensors are asked for the first time."""
        for file in self._files.values():
            file.ticks()
        return all(f.begun for f in self._files.values())

    def _timed(self, spent_s: float) -> bool:
        """Whether every counter's beat is known: twenty ticks, or what came in two seconds."""
        fewest = min((len(f.ticks()) for f in self._files.values()), default=TIMED_TICKS)
        return fewest >= TIMED_TICKS or (spent_s >= TIMING_S and fewest >= 3)

    def _must_run(self) -> None:
        if self._child is None or self._child.poll() is not None:
            stderr = self._child.stderr.read().decode(errors="replace") if self._child and self._child.stderr else ""
            last = (stderr.strip().splitlines() or ["no message"])[-1]
            raise MeasurementError(f"the energy sampler ended by itself: {last}")

    def mark(self) -> float:
        """The instant now, as an edge of a window."""
        self._must_run()
        self._last_edge_s = time.monotonic()
        return self._last_edge_s

    def record_every_tick(self) -> None:
        """An edge is near: look for every tick until `record_some_ticks`; this is how a recording begins."""
        self._order("dense")

    def record_some_ticks(self) -> None:
        """A long window has begun: after a few more ticks one in a second is enough."""
        self._order("sparse")

    def _order(self, word: str) -> None:
        self._must_run()
        assert self._child is not None
        assert self._child.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has just ended: the next mark says why
            self._child.stdin.write(f"{word}\n".encode())
            self._child.stdin.flush()

    def series(self, uuid: str) -> EnergySeries:
        """The newest ticks of a device, ten minutes of them at most; all of them come with `finish`."""
        return EnergySeries(self._files[uuid].ticks())

    def guard_s(self) -> float:
        """How long a quiet window's guard must last for the slowest of the counters, s."""
        periods = [self.series(u).period_s or 0.0 for u in self._files]
        return max(QUIET_LEAST_S, QUIET_TICKS * max(periods, default=0.0))

    def wait_for_tail(self, uuids: Sequence[str]) -> None:
        """Wait until the ticks behind the last edge are recorded, for at most twice as long as they need."""
        deadline_s = time.monotonic() + 2.0 * max(1.0, self.guard_s())
        while time.monotonic() < deadline_s:
            self._must_run()
            behind = [sum(t.t_s > self._last_edge_s for t in self.series(u).ticks[-60:]) for u in uuids]
            if all(n >= TAIL_TICKS for n in behind):
                return
            time.sleep(0.05)

    def mean_power_w(self, uuids: Sequence[str], start_s: float, end_s: float) -> float | None:
        """Sum over devices of counter differences per second; None while ticks are missing."""
        parts = [self.series(u).mean_power_w(start_s, end_s) for u in uuids]
        return None if None in parts else sum(p for p in parts if p is not None)

    def finish(
        self, tests: Mapping[str, "SelfTest | str"], *, window: tuple[float, float] | None = None
    ) -> EnergyRecord:
        """Wait for the ticks behind the last edge, end the recorder, give all but windows, delete the recording.

        Args:
            tests: What self-tests found out about these counters, by UUID, or why that cannot be used; the defaults
                hold for what they did not.
            window: Start and end of the main window, for what the recording cost inside it.

        """
        try:
            self.wait_for_tail(list(self._files))
            self.stop()
            recorded = {u: f.everything() for u, f in self._files.items()}
        finally:
            self.stop()
            self.discard()
        jitters_s = {u: t.jitter_s for u, t in tests.items() if not isinstance(t, str) and t.jitter_s is not None}
        series = {u: EnergySeries(tuple(r.ticks), jitters_s.get(u, DEFAULT_JITTER_S)) for u, r in recorded.items()}
        return EnergyRecord(
            windows={},
            readings=tuple(sorted((x for r in recorded.values() for x in r.readings), key=lambda x: x.t_s)),
            series=series,
            samples={u: tuple(r.samples) for u, r in recorded.items()},
            occupants=tuple(x for r in recorded.values() for x in r.occupants),
            throttle=tuple(x for r in recorded.values() for x in r.throttle),
            sensors={
                u: _facts(series[u], r, _share_of_a_core(r, window), tests.get(u, NO_SELF_TEST))
                for u, r in recorded.items()
            },
        )

    def stop(self) -> None:
        """End the recorder; its files stay readable until `discard`."""
        if self._child is not None and self._child.poll() is None:
            assert self._child.stdin is not None
            self._child.stdin.close()
            try:
                self._child.wait(timeout=2)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()

    def discard(self) -> None:
        """Delete the recording."""
        if self._folder is not None:
            self._folder.cleanup()


def _share_of_a_core(recorded: Recorded, window: tuple[float, float] | None) -> float | None:
    """Processor time per second that the recorder used inside a window; None without two looks in it."""
    looks = [look for look in recorded.processor if window and window[0] <= look[0] <= window[1]]
    if len(looks) < 2:
        return None
    (first_s, first_used_s), (last_s, last_used_s) = looks[0], looks[-1]
    return (last_used_s - first_used_s) / (last_s - first_s)


def _facts(
    series: EnergySeries, recorded: Recorded, share_of_a_core: float | None, test: "SelfTest | str"
) -> SensorFacts:
    """What one recording and the counter's self-test, or else why there is none, show of it."""
    lag = Lag(None, None, 0, test) if isinstance(test, str) else test.lag
    told = not isinstance(test, str) and test.jitter_s is not None
    return SensorFacts(
        **counter_facts(series),
        jitter_source="self-test" if told else "default",
        lag_s=lag.lag_s,
        lag_reason=lag.reason,
        call_s=median(recorded.calls_s) if recorded.calls_s else None,
        sampler_processor_share=share_of_a_core,
    )
