"""Records NVML's energy counter and sensors from a process of its own, and reads the recording.

The sampler must not share the engine's interpreter lock. The child sleeps until just before the counter's next
predicted tick, polls until the value changes, and writes one JSON line per tick and per reading to a file; it ends
when its standard input closes, so it cannot outlive its parent. All times are CLOCK_MONOTONIC.
"""

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import IO, Any

from llenergymeasure.core.contracts import Availability, Device, Reading
from llenergymeasure.core.energy_series import EnergySeries, Tick
from llenergymeasure.core.errors import MeasurementError

POLL_S = 0.002  # between polls near a tick; one NVML call takes up to 4 ms itself (measurement.md §1)
LEAD_S = 0.012  # how long before the predicted tick polling starts
LEARN_TICKS = 6  # intervals looked at to predict the next tick
TAIL_TICKS = 8  # ticks recorded behind the last edge before the sampler is stopped: a guard and one to spare
FIRST_TICK_TIMEOUT_S = 3.0


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
    """The parent's side: starts the child, reads its file, stops it."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._last_edge_s = 0.0

    def start(self, devices: Sequence[Device], *, interval_s: float) -> None:
        """Start recording and wait for every device's second tick; raises MeasurementError if none comes."""
        self._folder = tempfile.TemporaryDirectory(prefix="llem-sampler-")
        request = json.dumps({"devices": [asdict(d) for d in devices], "interval_s": interval_s})
        command = [sys.executable, "-m", "llenergymeasure.nvml_sampling", str(self._recording), request]
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        deadline_s = time.monotonic() + FIRST_TICK_TIMEOUT_S
        while any(len(self.series(d.uuid).ticks) < 2 for d in devices):
            if time.monotonic() > deadline_s:
                self.stop()
                raise MeasurementError(f"the energy counter did not move within {FIRST_TICK_TIMEOUT_S:g} s")
            self._must_run()
            time.sleep(0.02)

    @property
    def _recording(self) -> Path:
        assert self._folder is not None
        return Path(self._folder.name) / "recording.jsonl"

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

    def _lines(self) -> Iterator[dict[str, Any]]:
        if not self._recording.exists():
            return
        with self._recording.open(encoding="utf-8") as file:
            for line in file:
                if line.endswith("\n"):  # the child may be in the middle of writing the last one
                    yield json.loads(line)

    def series(self, uuid: str) -> EnergySeries:
        """All ticks of a device so far."""
        ticks = (Tick(x["before_s"], x["after_s"], x["mj"] / 1e3) for x in self._lines() if x.get("tick") == uuid)
        return EnergySeries(tuple(ticks))

    def readings(self) -> tuple[Reading, ...]:
        """All sensor readings so far."""
        return tuple(Reading(**x["reading"]) for x in self._lines() if "reading" in x)

    def wait_for_tail(self, uuids: Sequence[str]) -> None:
        """Wait until the ticks behind the last edge are recorded, at most a second per device."""
        deadline_s = time.monotonic() + 1.0 * max(1, len(uuids))
        while time.monotonic() < deadline_s:
            self._must_run()
            behind = [sum(t.t_s > self._last_edge_s for t in self.series(u).ticks) for u in uuids]
            if all(n >= TAIL_TICKS for n in behind):
                return
            time.sleep(0.05)

    def mean_power_w(self, uuids: Sequence[str], start_s: float, end_s: float) -> float | None:
        """Sum over devices of counter differences per second; None while ticks are missing."""
        parts = [self.series(u).between(start_s, end_s).value for u in uuids]
        return None if None in parts else sum(p for p in parts if p is not None) / (end_s - start_s)

    def finish(self, uuids: Sequence[str]) -> tuple[dict[str, EnergySeries], tuple[Reading, ...]]:
        """Wait for the ticks behind the last edge, end the child, give series and readings, delete the recording."""
        try:
            self.wait_for_tail(uuids)
            self.stop()
            return {u: self.series(u) for u in uuids}, self.readings()
        finally:
            self.stop()
            self.discard()

    def stop(self) -> None:
        """End the child; the recording stays readable until `discard`."""
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


class _Predictor:
    """Guesses when a device's counter ticks next, from its last intervals."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def saw(self, t_s: float) -> None:
        self.times = [*self.times[-LEARN_TICKS:], t_s]

    def sleep_until_s(self) -> float:
        if len(self.times) <= LEARN_TICKS:
            return 0.0  # still learning: poll all the time
        period = median(b - a for a, b in zip(self.times, self.times[1:], strict=False))
        return self.times[-1] + period - LEAD_S


def _record(path: Path, devices: Sequence[Device], interval_s: float) -> None:
    """The child's loop: ticks as they come, readings every `interval_s`, until standard input closes."""
    with nvml() as lib, path.open("w", encoding="utf-8", buffering=1) as out:
        handles = {d.uuid: lib.nvmlDeviceGetHandleByUUID(d.uuid) for d in devices}
        last = {u: (time.monotonic(), lib.nvmlDeviceGetTotalEnergyConsumption(h)) for u, h in handles.items()}
        predictors = {u: _Predictor() for u in handles}
        next_reading_s = time.monotonic()
        while not select.select([sys.stdin], [], [], 0)[0]:
            now_s = time.monotonic()
            if now_s >= next_reading_s:
                for device in devices:
                    _write(out, reading=asdict(_read(lib, handles[device.uuid], device)))
                next_reading_s = max(next_reading_s + interval_s, time.monotonic())
            for uuid, handle in handles.items():
                if now_s >= predictors[uuid].sleep_until_s():
                    last[uuid] = _poll(lib, handle, uuid, last[uuid], predictors[uuid], out)
            wake_s = min(next_reading_s, *(p.sleep_until_s() for p in predictors.values()))
            time.sleep(min(0.05, max(POLL_S, wake_s - time.monotonic())))


def _poll(
    lib: Any, handle: Any, uuid: str, last: tuple[float, int], predictor: _Predictor, out: IO[str]
) -> tuple[float, int]:
    asked_s = time.monotonic()
    value = lib.nvmlDeviceGetTotalEnergyConsumption(handle)
    seen_s = (asked_s + time.monotonic()) / 2
    if value != last[1]:
        _write(out, tick=uuid, before_s=last[0], after_s=seen_s, mj=value)
        predictor.saw(seen_s)
    return seen_s, value


def _write(out: IO[str], **fields: Any) -> None:
    out.write(json.dumps(fields) + "\n")


def _read(lib: Any, handle: Any, device: Device) -> Reading:
    """One reading; a sensor that a card lacks gives None."""

    def ask(question: Any, *more: Any) -> Any:
        try:
            return question(handle, *more)
        except lib.NVMLError:
            return None

    power_mw = ask(lib.nvmlDeviceGetPowerUsage)
    memory = ask(lib.nvmlDeviceGetMemoryInfo)
    utilisation = ask(lib.nvmlDeviceGetUtilizationRates)
    return Reading(
        t_s=time.monotonic(),
        gpu_uuid=device.uuid,
        gpu_index=device.index,
        power_w=None if power_mw is None else power_mw / 1e3,
        temperature_c=ask(lib.nvmlDeviceGetTemperature, lib.NVML_TEMPERATURE_GPU),
        memory_used_mb=None if memory is None else memory.used / 2**20,
        memory_total_mb=None if memory is None else memory.total / 2**20,
        sm_utilisation_pct=None if utilisation is None else utilisation.gpu,
        sm_clock_mhz=ask(lib.nvmlDeviceGetClockInfo, lib.NVML_CLOCK_SM),
        mem_clock_mhz=ask(lib.nvmlDeviceGetClockInfo, lib.NVML_CLOCK_MEM),
        throttle_reasons=ask(lib.nvmlDeviceGetCurrentClocksEventReasons),
    )


if __name__ == "__main__":
    _request = json.loads(sys.argv[2])
    _record(Path(sys.argv[1]), [Device(**d) for d in _request["devices"]], _request["interval_s"])
