"""The ordered list of runs of a study: which experiment, in which cycle, in which order, with which gaps between.

Shuffles come from SHA-256 of seed, cycle and experiment, so that every process derives the same order.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import assert_never

from llenergymeasure.core import registry
from llenergymeasure.core.config import CycleOrder, ExperimentConfig, StudyConfig
from llenergymeasure.core.identity import measurement_config_hash, study_design_hash


@dataclass(frozen=True)
class Run:
    """One experiment in one cycle.

    `index` counts from 0 through whole cycles, (cycle - 1) x experiments + position, so that more cycles only
    append; `cycle` counts from 1 per experiment; `position` is the experiment's place in the study.
    """

    index: int
    cycle: int
    position: int
    config_hash: str


@dataclass(frozen=True)
class Plan:
    """The runs of a study in the order in which they start, and its identity."""

    runs: tuple[Run, ...]
    design_hash: str


def make_plan(study: StudyConfig) -> Plan:
    """Lay out a study's runs; pure and deterministic."""
    hashes = [measurement_config_hash(e) for e in study.experiments]
    design = study_design_hash(hashes)
    repeats = study.repeats or (1,) * len(hashes)
    numbered: list[Run] = []
    for done in range(study.execution.n_cycles):  # whole passes, kept duplicates included: more cycles only append
        for position, digest in enumerate(hashes):
            for extra in range(repeats[position]):
                numbered.append(Run(len(numbered), done * repeats[position] + extra + 1, position, digest))
    seed = design if study.execution.shuffle_seed is None else str(study.execution.shuffle_seed)
    return Plan(tuple(in_order(numbered, study.execution.cycle_order, seed)), design)


def in_order(runs: Sequence[Run], order: CycleOrder, seed: str) -> list[Run]:
    """Give the runs in the order in which they start."""
    if order == "sequential":
        return sorted(runs, key=lambda r: (r.position, r.cycle))
    if order == "interleaved":
        return sorted(runs, key=lambda r: (r.cycle, r.position))
    if order == "shuffled":
        return sorted(runs, key=lambda r: (r.cycle, _draw(seed, r)))
    if order == "latin_square":
        square = williams(1 + max(r.position for r in runs))
        return sorted(runs, key=lambda r: (r.cycle, square[(r.cycle - 1) % len(square)].index(r.position)))
    assert_never(order)


def _draw(seed: str, run: Run) -> bytes:
    return hashlib.sha256(f"{seed}/{run.cycle}/{run.config_hash}".encode()).digest()


def williams(size: int) -> list[list[int]]:
    """Latin square in which every item follows every other equally often (Williams 1949, Aust. J. Sci. Res. A 2).

    `size` rows for an even size; for an odd one the mirrored rows are added.
    """
    first, low, high = [0], 1, size - 1
    while low <= high:
        first.append(low)
        if low != high:
            first.append(high)
        low, high = low + 1, high - 1
    rows = [[(item + shift) % size for item in first] for shift in range(size)]
    return rows if size % 2 == 0 else rows + [row[::-1] for row in rows]


def gaps_s(
    runs: Sequence[Run], order: CycleOrder, *, config_gap_seconds: float, cycle_gap_seconds: float
) -> list[float]:
    """Pause before each run in s; none before the first, a cycle gap replaces the config gap between passes."""
    gaps = [0.0]
    for before, after in pairwise(runs):
        new_pass = order != "sequential" and after.cycle != before.cycle
        gaps.append(cycle_gap_seconds if new_pass else config_gap_seconds)
    return gaps[: len(runs)]


def gpu_count(config: ExperimentConfig) -> int:
    """GPUs of one run: tensor x pipeline x data parallel; 0 for an engine that needs none."""
    return registry.gpu_count(config.backend, config.section)


def describe(config: ExperimentConfig) -> str:
    """One line for a single configuration: its backend and precision."""
    return f"{config.backend} {config.precision}"


def describe_all(experiments: Sequence[ExperimentConfig]) -> list[str]:
    """One line per experiment: its backend and what tells it apart from the others, else its precision.

    Settings of a backend's own section are compared with experiments of that backend only.
    """
    flat = [flatten(e.model_dump(exclude_none=True, exclude={"output", "backend"})) for e in experiments]
    backends = [e.backend for e in experiments]
    universal = _differing(
        [{k: v for k, v in f.items() if k.partition(".")[0] != b} for f, b in zip(flat, backends, strict=True)]
    )
    scoped = {b: _differing([f for f, other in zip(flat, backends, strict=True) if other == b]) for b in set(backends)}
    lines = []
    for config, fields in zip(experiments, flat, strict=True):
        own = f"{config.backend}."
        keys = sorted(k for k in fields if (k in scoped[config.backend] if k.startswith(own) else k in universal))
        shown = [f"{k.removeprefix(own)}={fields[k]}" for k in keys]
        alone = not shown and len(scoped) == 1
        lines.append(" ".join([config.backend, *([config.precision] if alone else shown)]))
    return lines


def _differing(rows: Sequence[dict[str, object]]) -> set[str]:
    """Keys that not all rows have with one value."""
    first = rows[0]
    return {k for row in rows for k in row.keys() | first.keys() if row.get(k) != first.get(k)}


def flatten(data: dict[str, object], prefix: str = "") -> dict[str, object]:
    """Nested mappings as one level of dotted keys."""
    flat: dict[str, object] = {}
    for key, value in data.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
