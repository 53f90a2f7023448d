"""`llem plan` and `--dry-run` show what would run, in people's and in programs' words, and run nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli.process import FAST, Ended, Planned, over, tree, write
from llenergymeasure.core.config import ExperimentConfig
from llenergymeasure.core.identity import measurement_config_hash

Quick = Callable[..., Ended]
STUDY: dict[str, Any] = {
    "name": "grid",
    "sweep": {"precision": ["fp16", "fp99"], "n": [2, 3]},
    "execution": {"n_cycles": 2, "cycle_order": "interleaved"},
}


@pytest.mark.parametrize("words", [["plan"], ["run", "--dry-run"]], ids=["plan", "run --dry-run"])
def test_plan_as_json_has_the_documented_shape(tmp_path: Path, quick_llem: Quick, words: list[str]) -> None:
    """Programs get exactly the keys of the specification: design hash, experiments, runs, skipped."""
    file = write(tmp_path, STUDY)

    ended = quick_llem(words[0], file, *words[1:], "--json")

    plan = json.loads(ended.out)
    assert set(plan) == {"study_design_hash", "experiments", "runs", "skipped"}
    assert [set(e) for e in plan["experiments"]] == [{"index", "config_hash", "backend", "summary", "config"}] * 2
    assert [set(r) for r in plan["runs"]] == [{"index", "cycle", "config_hash"}] * 4
    assert [set(s) for s in plan["skipped"]] == [{"config", "reason"}] * 2
    assert ended.code == 0


def test_plan_lists_runs_in_the_order_in_which_they_start(planned: Callable[..., Planned], tmp_path: Path) -> None:
    """`runs` is the order of execution; index and cycle say where each belongs."""
    file = write(tmp_path, STUDY)

    by_cycle, by_config = planned(file).plan, planned(file, "--order", "sequential").plan
    first, second = (e["config_hash"] for e in by_cycle["experiments"])

    assert [r["config_hash"] for r in by_cycle["runs"]] == [first, second, first, second]
    assert [r["index"] for r in by_cycle["runs"]] == [0, 1, 2, 3]
    assert [r["config_hash"] for r in by_config["runs"]] == [first, first, second, second]
    assert [(r["index"], r["cycle"]) for r in by_config["runs"]] == [(0, 1), (2, 2), (1, 1), (3, 2)]


def test_planned_config_is_what_the_hash_covers(planned: Callable[..., Planned], tmp_path: Path) -> None:
    """The `config` of a planned experiment, read as an experiment again, has the same hash."""
    for experiment in planned(write(tmp_path, STUDY)).plan["experiments"]:
        assert measurement_config_hash(ExperimentConfig(**experiment["config"])) == experiment["config_hash"]


def test_plan_of_one_experiment_is_a_study_of_one(planned: Callable[..., Planned], tmp_path: Path) -> None:
    """A plain experiment file plans as one run of one cycle."""
    plan = planned(write(tmp_path)).plan

    assert [e["index"] for e in plan["experiments"]] == [0]
    assert [(r["index"], r["cycle"]) for r in plan["runs"]] == [(0, 1)]


@pytest.mark.parametrize(
    ("words", "shows_order"), [(["plan"], True), (["run", "--dry-run"], False)], ids=["plan", "run --dry-run"]
)
def test_plan_for_people_shows_grid_counts_and_duration(
    tmp_path: Path, quick_llem: Quick, words: list[str], shows_order: bool
) -> None:
    """The grid, the runs, the order, the memory, the expected duration on stdout; skipped ones on stderr."""
    file = write(tmp_path, over(STUDY, {"execution": {"config_gap_seconds": 60, "cycle_gap_seconds": 300}}))

    ended = quick_llem(words[0], file, *words[1:])

    assert ended.code == 0
    assert "grid: 2 experiments x 2 cycles = 4 runs, order interleaved" in ended.out
    assert "memory (MB)" in ended.out
    assert "pauses 7 min" in ended.out  # 60 s + 300 s + 60 s
    assert ("order of runs:" in ended.out) is shows_order
    assert "2 combinations are skipped" in ended.err
    assert "fp99" in ended.err


def test_one_skipped_combination_is_one(tmp_path: Path, quick_llem: Quick) -> None:
    """A single one is spoken of in the singular."""
    ended = quick_llem("plan", write(tmp_path, over(STUDY, {"sweep": {"n": [2]}})))
    assert "note: 1 combination is skipped:" in ended.err


@pytest.mark.parametrize("body", [pytest.param({}, id="experiment"), pytest.param(STUDY, id="study")])
@pytest.mark.parametrize(
    "words", [["run", "--dry-run"], ["run", "--dry-run", "-o", "out"], ["plan"]], ids=["dry run", "with -o", "plan"]
)  # fmt: skip
def test_planning_runs_and_writes_nothing(
    tmp_path: Path, quick_llem: Quick, heavy_imports: Callable[[], list[str]], body: dict[str, Any], words: list[str]
) -> None:
    """A plan makes no folder, starts no engine and loads none, for a study as for one experiment."""
    file = write(tmp_path, body)

    ended = quick_llem(words[0], file, *words[1:])

    assert ended.code == 0
    assert tree(tmp_path) == {"config.yaml"}
    assert heavy_imports() == []


REFUSED = {
    "engine": ({"backend": "vllm"}, "backend vllm can be planned but not yet run by this version"),
    "traffic": ({"traffic": {"target_qps": 3}}, "traffic is not supported yet by this version"),
    "two engines": (
        {"backend": ["pytorch", "vllm"], "sweep": {"precision": ["bf16"]}},
        "backends pytorch, vllm in one study need one container each",
    ),
}


@pytest.mark.parametrize(("body", "why"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("words", [["plan"], ["run", "--dry-run", "--json"]], ids=["plan", "dry run"])
def test_plan_says_what_a_run_would_refuse(
    tmp_path: Path, quick_llem: Quick, words: list[str], body: dict[str, Any], why: str
) -> None:
    """A plan may be for another machine, so it is shown; that this one cannot run it is said beside it, once."""
    ended = quick_llem(words[0], write(tmp_path, {"energy": {"backend": "none"}}, body), *words[1:])

    assert ended.code == 0
    assert ended.err.count(f"note: llem run refuses this on this machine: {why}") == 1


TWO_BACKENDS = {
    "backend": ["pytorch", "synthetic"],
    "energy": {"backend": "none"},
    "sweep": {"precision": ["bf16", "fp16"], "pytorch.batch_size": [1, 8], "synthetic.batch_size": [1, 2, 4]},
    "synthetic": {"batch_overhead_ms": 1},
}


@pytest.mark.parametrize("written", [True, False], ids=["backends written", "backends implied"])
def test_b_leaves_out_the_axes_of_the_other_backends(
    planned: Callable[..., Planned], tmp_path: Path, *, written: bool
) -> None:
    """`-b` removes a backend from a study with all that only it can use, and says so."""
    body = {k: v for k, v in over(FAST, TWO_BACKENDS).items() if written or k != "backend"}
    file = tmp_path / "two.yaml"
    file.write_text(json.dumps(body), encoding="utf-8")

    found = planned(file, "-b", "pytorch")

    assert [(c["backend"], c["precision"], c["pytorch"]["batch_size"]) for c in found.configs] == [
        ("pytorch", precision, size) for precision in ("bf16", "fp16") for size in (1, 8)
    ]
    for key in ("sweep.synthetic.batch_size", "synthetic"):
        assert f"note: {key}: is left out, as the command line runs pytorch alone\n" in found.notes


def test_plan_of_what_can_run_has_no_such_note(tmp_path: Path, quick_llem: Quick) -> None:
    """Nothing is refused, nothing is said."""
    assert quick_llem("plan", write(tmp_path)).err == ""


def test_memory_of_the_builtin_model_is_estimated_without_loading_it(
    tmp_path: Path, quick_llem: Quick, heavy_imports: Callable[[], list[str]]
) -> None:
    """A dry run estimates memory from the model's description: 135 M parameters of 2 bytes and some."""
    body = {"model": "builtin:smollm2-135m", "backend": "pytorch"}

    ended = quick_llem("run", write(tmp_path, body), "--dry-run")

    (row,) = [line for line in ended.out.splitlines() if line.startswith("0  ")]
    assert 270 < float(row.split()[-1].replace(",", "")) < 600
    assert heavy_imports() == []


def test_unknown_memory_is_said_to_be_unavailable(quick_llem: Quick) -> None:
    """Where the model's description is not at hand, the plan says so and is still a plan."""
    ended = quick_llem("run", "-m", "acme/unknown", "--dry-run")

    assert ended.code == 0
    assert "(unavailable)" in ended.out
