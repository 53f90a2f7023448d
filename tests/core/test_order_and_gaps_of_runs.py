"""The plan of a study: which run starts when, with which number, after which pause."""

from collections import Counter
from itertools import pairwise, permutations
from typing import Any

import pytest

from llenergymeasure.core.config import StudyConfig
from llenergymeasure.core.plan import Run, describe, describe_all, gaps_s, gpu_count, make_plan, williams
from llenergymeasure.core.sweep import expand

LETTERS = "ABCDEFGH"


def a_study(size: int, *, cycles: int, order: str, **execution: Any) -> StudyConfig:
    entries = [{"n": i + 1} for i in range(size)]
    return expand(
        {
            "model": "m",
            "experiments": entries,
            "execution": {"n_cycles": cycles, "cycle_order": order, **execution},
        }
    )


def spelled(study: StudyConfig) -> str:
    """The runs in order of their start, a letter per experiment."""
    return "".join(LETTERS[r.position] for r in make_plan(study).runs)


def by_cycle(study: StudyConfig) -> list[str]:
    """The letters of each cycle, in order of their start."""
    cycles: dict[int, str] = {}
    for run in make_plan(study).runs:
        cycles[run.cycle] = cycles.get(run.cycle, "") + LETTERS[run.position]
    return list(cycles.values())


ORDERS = [
    ("sequential", 2, 3, "AAABBB"),
    ("interleaved", 2, 3, "ABABAB"),
    ("sequential", 3, 1, "ABC"),
    ("interleaved", 3, 2, "ABCABC"),
    ("latin_square", 2, 2, "ABBA"),
    ("shuffled", 1, 3, "AAA"),
]


@pytest.mark.parametrize(("order", "size", "cycles", "expected"), ORDERS)
def test_orders_are_those_of_the_specification(order: str, size: int, cycles: int, expected: str) -> None:
    """Sequential finishes one experiment after the other, interleaved makes whole passes."""
    assert spelled(a_study(size, cycles=cycles, order=order)) == expected


@pytest.mark.parametrize("order", ["sequential", "interleaved", "shuffled", "latin_square"])
def test_every_order_runs_every_experiment_once_per_cycle(order: str) -> None:
    """No run is lost or doubled; cycles count from 1 for each experiment, indices from 0 without a hole."""
    runs = make_plan(a_study(4, cycles=5, order=order)).runs
    assert Counter((r.position, r.cycle) for r in runs) == Counter((p, c) for p in range(4) for c in range(1, 6))
    assert sorted(r.index for r in runs) == list(range(20))
    assert all(r.index == (r.cycle - 1) * 4 + r.position for r in runs)


def test_shuffled_draws_a_new_permutation_in_every_cycle() -> None:
    """Drift of the machine hits no experiment at the same place in every cycle."""
    cycles = by_cycle(a_study(6, cycles=20, order="shuffled"))
    assert all(sorted(c) == list("ABCDEF") for c in cycles)
    assert len(set(cycles)) > 15  # of 720 possible ones, drawn 20 times


def test_shuffled_permutations_are_evenly_drawn() -> None:
    """Over 600 cycles none of the six orders is preferred: 100 of each, within 4 standard deviations."""
    seen = Counter(by_cycle(a_study(3, cycles=600, order="shuffled", shuffle_seed=1)))
    assert set(seen) == {"".join(p) for p in permutations("ABC")}
    assert all(abs(count - 100) <= 4 * (600 * (1 / 6) * (5 / 6)) ** 0.5 for count in seen.values())


def test_shuffle_depends_on_the_seed_or_else_on_the_design_and_on_nothing_else() -> None:
    """Any process that knows the study derives the same order, and a seed gives another one."""
    plain = a_study(5, cycles=4, order="shuffled")
    renamed = plain.model_copy(update={"name": "other", "runners": {"pytorch": "docker"}})
    assert spelled(plain) == spelled(renamed) == spelled(a_study(5, cycles=4, order="shuffled"))
    seeded = [spelled(a_study(5, cycles=4, order="shuffled", shuffle_seed=s)) for s in (0, 1, 2)]
    assert len({spelled(plain), *seeded}) == 4


@pytest.mark.parametrize("order", ["interleaved", "shuffled", "latin_square"])
def test_more_cycles_only_append(order: str) -> None:
    """A study that is topped up keeps every finished run: same index, same cycle, same place."""
    before = make_plan(a_study(4, cycles=3, order=order)).runs
    after = make_plan(a_study(4, cycles=7, order=order)).runs
    assert after[: len(before)] == before


def test_more_cycles_keep_the_numbers_of_sequential_runs_and_of_kept_duplicates() -> None:
    """The number of a run stays its own, whatever the order and however often an experiment is repeated."""
    repeated = {"model": "m", "experiments": [{"n": 1}, {"n": 2}, {"n": 1}]}
    for order, body in (("sequential", repeated), ("interleaved", repeated)):
        plans = [
            make_plan(expand({**body, "execution": {"n_cycles": n, "cycle_order": order, "deduplicate": False}}))
            for n in (2, 5)
        ]
        before, after = ({r.index: (r.cycle, r.config_hash) for r in plan.runs} for plan in plans)
        assert {i: after[i] for i in before} == before
        assert len(before) == 6
        assert len(after) == 15


@pytest.mark.parametrize("size", range(2, 8))
def test_latin_square_is_balanced_for_carry_over(size: int) -> None:
    """Every experiment stands at every place equally often and follows every other equally often."""
    cycles = by_cycle(a_study(size, cycles=size if size % 2 == 0 else 2 * size, order="latin_square"))
    letters = LETTERS[:size]
    rounds = len(cycles) // size
    for place in range(size):
        assert Counter(c[place] for c in cycles) == Counter(dict.fromkeys(letters, rounds))
    followers = Counter(pair for c in cycles for pair in pairwise(c))
    assert followers == Counter(dict.fromkeys(permutations(letters, 2), rounds))


@pytest.mark.parametrize("size", range(1, 8))
def test_williams_rows_are_permutations(size: int) -> None:
    """Each row of the square is one complete pass."""
    assert all(sorted(row) == list(range(size)) for row in williams(size))


GAPS: list[tuple[str, str, int, int, list[float]]] = [
    ("one-run", "shuffled", 1, 1, [0]),
    ("sequential", "sequential", 2, 3, [0, 7, 7, 7, 7, 7]),
    ("interleaved", "interleaved", 2, 3, [0, 7, 50, 7, 50, 7]),
    ("shuffled", "shuffled", 3, 2, [0, 7, 7, 50, 7, 7]),
    ("latin-square", "latin_square", 2, 2, [0, 7, 50, 7]),
    ("one-experiment", "interleaved", 1, 3, [0, 50, 50]),
]


@pytest.mark.parametrize(("order", "size", "cycles", "expected"), [r[1:] for r in GAPS], ids=[r[0] for r in GAPS])
def test_cycle_gap_replaces_the_config_gap_between_passes(
    order: str, size: int, cycles: int, expected: list[float]
) -> None:
    """No pause before the first run or after the last; one kind of pause at each boundary; sequential has no passes."""
    study = a_study(size, cycles=cycles, order=order)
    gaps = gaps_s(make_plan(study).runs, study.execution.cycle_order, config_gap_seconds=7, cycle_gap_seconds=50)
    assert gaps == expected


def test_gap_of_zero_is_zero_and_no_runs_have_no_gaps() -> None:
    """0 is not replaced by anything."""
    runs = make_plan(a_study(2, cycles=2, order="interleaved")).runs
    assert gaps_s(runs, "interleaved", config_gap_seconds=0, cycle_gap_seconds=0) == [0, 0, 0, 0]
    assert gaps_s([], "interleaved", config_gap_seconds=7, cycle_gap_seconds=50) == []


def test_run_is_identified_by_hash_and_cycle() -> None:
    """Runs of one experiment share the hash and differ in the cycle."""
    runs = make_plan(a_study(2, cycles=2, order="interleaved")).runs
    assert runs[0].config_hash == runs[2].config_hash != runs[1].config_hash
    assert len({(r.config_hash, r.cycle) for r in runs}) == 4
    assert isinstance(runs[0], Run)


GPUS: list[tuple[str, dict[str, Any], int]] = [
    ("pytorch", {"backend": "pytorch"}, 1),
    ("pytorch-tp-x-dp", {"backend": "pytorch", "pytorch": {"tp_size": 2, "num_processes": 3}}, 6),
    ("vllm-tp-x-pp", {"backend": "vllm", "vllm": {"tensor_parallel_size": 4, "pipeline_parallel_size": 2}}, 8),
    ("tensorrt-tp", {"backend": "tensorrt", "tensorrt": {"tensor_parallel_size": 2}}, 2),
    ("synthetic", {"backend": "synthetic"}, 0),
]


@pytest.mark.parametrize(("fields", "gpus"), [r[1:] for r in GPUS], ids=[r[0] for r in GPUS])
def test_gpus_of_a_run_are_tensor_times_pipeline_times_data_parallel(fields: dict[str, Any], gpus: int) -> None:
    """The number of GPUs follows from the engine's own parallelism."""
    (config,) = expand({"model": "m", "experiments": [fields]}).experiments
    assert gpu_count(config) == gpus


def test_description_names_what_tells_an_experiment_apart() -> None:
    """In a list of experiments the line shows the varied fields only, without the backend's prefix."""
    study = expand(
        {
            "model": "m",
            "backend": ["pytorch", "vllm"],
            "sweep": {"precision": ["fp16", "bf16"], "pytorch.batch_size": [1, 8]},
        }
    )
    lines = describe_all(study.experiments)
    assert len(set(lines)) == len(lines)
    assert lines[0].startswith("pytorch ")
    assert "batch_size=1" in lines[0]
    assert "precision=fp16" in lines[0]
    assert "model" not in lines[0]
    assert describe(study.experiments[0]) == "pytorch fp16"
