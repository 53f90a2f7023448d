"""The lines in which the recorder hands a GPU's ticks and readings to its parent.

One JSON object per line with one letter: t tick, r reading, o occupants, h throttle counters, s power samples, c the
recorder's own processor time. What is None is left out.
"""

import json
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from llenergymeasure.core.contracts import Device, Occupants, PowerSample, Reading, ThrottleCounters
from llenergymeasure.core.energy_series import Tick

TICK, LAST_OF_ALL = '{"t"', '{"c"'
TAIL_TICKS = 6000  # kept while recording: ten minutes of a 100 ms counter


def path_of(folder: Path, device: Device) -> Path:
    """The file of one GPU."""
    return folder / f"gpu{device.index}.jsonl"


def write(out: IO[str], letter: str, value: Any) -> None:
    """Write one line."""
    out.write(json.dumps({letter: value}, separators=(",", ":")) + "\n")


def record_fields(record: Reading | Occupants | ThrottleCounters) -> dict[str, Any]:
    """The fields of a record that are known, as JSON can hold them."""
    return {k: v for k, v in asdict(record).items() if v is not None}


def tick_fields(tick: Tick, mj: int, call_s: float) -> list[float]:
    """A tick as numbers; the counter stays in whole mJ, so that nothing is lost on the way."""
    return [round(tick.before_s, 6), round(tick.after_s, 6), mj, tick.skipped, round(call_s, 6)]


@dataclass
class Recorded:
    """Everything that was recorded of one GPU."""

    ticks: list[Tick] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    occupants: list[Occupants] = field(default_factory=list)
    throttle: list[ThrottleCounters] = field(default_factory=list)
    samples: list[PowerSample] = field(default_factory=list)
    calls_s: list[float] = field(default_factory=list)  # length of the counter calls that saw a tick
    processor: list[tuple[float, float]] = field(default_factory=list)  # (instant, processor time used), s

    def add(self, line: dict[str, Any]) -> None:
        """Take in one line."""
        ((letter, value),) = line.items()
        if letter == "t":
            self.ticks.append(_tick(value))
            self.calls_s.append(value[4])
        elif letter == "r":
            self.readings.append(Reading(**value))
        elif letter == "o":
            lists = {k: tuple(v) for k, v in value.items() if isinstance(v, list)}
            self.occupants.append(Occupants(**value | lists))
        elif letter == "h":
            self.throttle.append(ThrottleCounters(**value))
        elif letter == "s":
            self.samples += [PowerSample(*pair) for pair in value]
        elif letter == "c":
            self.processor.append((value[0], value[1]))


class Follower:
    """Reads a file that still grows, each line once; keeps the newest ticks only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.begun = False  # whether every sensor was read once, so that the counter is watched from now on
        self._offset = 0
        self._tail: deque[Tick] = deque(maxlen=TAIL_TICKS)

    def ticks(self) -> tuple[Tick, ...]:
        """The newest ticks, those just written included."""
        for line in _whole_lines(self.path, self._offset):
            self._offset += len(line)
            text = line.decode()
            self.begun = self.begun or text.startswith(LAST_OF_ALL)
            if text.startswith(TICK):
                self._tail.append(_tick(json.loads(text)["t"]))
        return tuple(self._tail)

    def everything(self) -> Recorded:
        """The whole recording, once it has ended."""
        found = Recorded()
        for line in _whole_lines(self.path, 0):
            found.add(json.loads(line))
        return found


def _whole_lines(path: Path, offset: int) -> Iterator[bytes]:
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if line.endswith(b"\n"):  # the recorder may be in the middle of writing the last one
                yield line


def _tick(value: list[float]) -> Tick:
    return Tick(value[0], value[1], value[2] / 1e3, int(value[3]))
