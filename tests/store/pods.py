"""Runs of a cluster for tests: what their pods are told, a store that fails as told, time that passes by itself."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cli.process import FAST, over
from llenergymeasure import ExperimentConfig, ExperimentResult
from llenergymeasure.core.identity import measurement_config_hash
from llenergymeasure.core.termination import TerminationRecord, parse_termination
from llenergymeasure.waiting import Clock

STUDY = "sweep-0a1b2c3d"


def config(*layers: dict[str, Any]) -> ExperimentConfig:
    """FAST with `layers` on top."""
    return ExperimentConfig(**over(FAST, *layers))


def run_name(*layers: dict[str, Any], index: int = 0, cycle: int = 1) -> str:
    """The folder of a run of FAST with `layers` on top, as the operator names it."""
    return f"{index:05d}-{measurement_config_hash(config(*layers))[:8]}-c{cycle}"


@dataclass(frozen=True)
class Pod:
    """The environment of one attempt; `store` is the folder or prefix below which studies lie."""

    store: str
    log: Path
    attempt: int = 1
    index: int = 0
    cycle: int = 1
    body: Mapping[str, Any] = field(default_factory=dict)
    more: Mapping[str, str] = field(default_factory=dict)

    @property
    def run(self) -> str:
        """The run's name below its study."""
        return run_name(dict(self.body), index=self.index, cycle=self.cycle)

    def environment(self) -> dict[str, str]:
        """What the operator sets."""
        return {
            "LLEM_EXPERIMENT": json.dumps(over(FAST, self.body)),
            "LLEM_STUDY": "sweep",
            "LLEM_INDEX": str(self.index),
            "LLEM_CYCLE": str(self.cycle),
            "LLEM_ATTEMPT": str(self.attempt),
            "LLEM_CONFIG_HASH": measurement_config_hash(config(dict(self.body))),
            "LLEM_RUN_URI": f"{self.store}/{STUDY}/{self.run}",
            "LLEM_TERMINATION_LOG": str(self.log),
            "LLEM_NODE_NAME": "node-a",
            "LLEM_POD_NAME": "pod-a",
            **self.more,
        }

    @property
    def said(self) -> TerminationRecord:
        """The termination message; fails the test if it is none."""
        record = parse_termination(self.log.read_text(encoding="utf-8"))
        assert record is not None, self.log.read_text(encoding="utf-8")
        return record


@dataclass
class Time:
    """A clock that moves only while someone sleeps; `at` runs when it has passed its second."""

    now_s: float = 1000.0
    start: datetime = datetime(2026, 3, 1, 12, tzinfo=UTC)
    at: dict[float, Callable[[], None]] = field(default_factory=dict)
    slept: list[float] = field(default_factory=list)

    @property
    def passed_s(self) -> float:
        """Seconds since the beginning."""
        return self.now_s - 1000.0

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.slept.append(seconds)
        self.now_s += seconds
        for moment in [m for m in self.at if m <= self.passed_s]:
            self.at.pop(moment)()

    @property
    def clock(self) -> Clock:
        """This time as the product takes it."""
        return Clock(lambda: self.now_s, lambda: self.start + timedelta(seconds=self.passed_s), self.sleep)


@dataclass
class Memory:
    """A store in memory that answers with the next of `faults`, as long as there are some; `None` is no fault."""

    files: dict[str, bytes] = field(default_factory=dict)
    faults: list[Exception | None] = field(default_factory=list)
    always: Exception | None = None
    asked: int = 0

    def _answer(self) -> None:
        self.asked += 1
        fault = self.faults.pop(0) if self.faults else self.always
        if fault is not None:
            raise fault

    def create(self, name: str, content: bytes) -> None:
        """Write a file that is not there yet."""
        self._answer()
        if name in self.files:
            raise FileExistsError(name)
        self.files[name] = content

    def read(self, name: str) -> bytes:
        """Give a file."""
        self._answer()
        if name not in self.files:
            raise FileNotFoundError(name)
        return self.files[name]

    def names(self) -> list[str]:
        """Paths of all files."""
        self._answer()
        return sorted(self.files)


def changed(result: ExperimentResult, **fields: Any) -> ExperimentResult:
    """A result with other fields."""
    return result.model_copy(update=fields)
