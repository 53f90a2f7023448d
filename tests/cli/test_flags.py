"""Every flag of `llem run` reaches the configuration, over the file and over the sweep."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli.process import Planned, write

Plan = Callable[..., Planned]


def at(config: dict[str, Any], dotted: str) -> Any:
    """The value at a dotted path; None where there is none."""
    for name in dotted.split("."):
        config = config.get(name, {}) if isinstance(config, dict) else {}
    return None if config == {} else config


@pytest.mark.parametrize(
    ("words", "path", "value"),
    [
        pytest.param(["-m", "acme/tiny"], "model", "acme/tiny", id="-m"),
        pytest.param(["--model", "acme/tiny"], "model", "acme/tiny", id="--model"),
        pytest.param(["--revision", "v1"], "revision", "v1", id="--revision"),
        pytest.param(["-b", "vllm"], "backend", "vllm", id="-b"),
        pytest.param(["--backend", "tensorrt"], "backend", "tensorrt", id="--backend"),
        pytest.param(["-d", "prompts.jsonl"], "dataset", "prompts.jsonl", id="-d"),
        pytest.param(["--dataset", "builtin"], "dataset", "builtin", id="--dataset"),
        pytest.param(["-n", "7"], "n", 7, id="-n"),
        pytest.param(["-p", "fp16"], "precision", "fp16", id="-p"),
        pytest.param(["--precision", "fp32"], "precision", "fp32", id="--precision"),
        pytest.param(["--batch-size", "8"], "pytorch.batch_size", 8, id="--batch-size, default backend"),
        pytest.param(["--batch-size", "8", "-b", "vllm"], "vllm.max_num_seqs", 8, id="--batch-size, vllm"),
        pytest.param(
            ["--batch-size", "8", "-b", "tensorrt"], "tensorrt.max_batch_size", 8, id="--batch-size, tensorrt"
        ),
        pytest.param(["--batch-size", "8", "-b", "synthetic"], "synthetic.batch_size", 8, id="--batch-size, synthetic"),
        pytest.param(["--set", "n=9"], "n", 9, id="--set, top"),
        pytest.param(
            ["--set", "decoder.repetition_penalty=1.5"], "decoder.repetition_penalty", 1.5, id="--set, nested"
        ),
        pytest.param(["--set", "warmup.enabled=false"], "warmup.enabled", False, id="--set, boolean"),
        pytest.param(
            ["--set", "pytorch.attn_implementation=eager"], "pytorch.attn_implementation", "eager", id="--set, text"
        ),
        pytest.param(["--set", "warmup={n_warmup: 2}"], "warmup.n_warmup", 2, id="--set, section"),
        pytest.param(["--set", "n=9", "--set", "random_seed=3"], "random_seed", 3, id="--set, twice"),
    ],
)
def test_flag_reaches_the_configuration(planned: Plan, words: list[str], path: str, value: Any) -> None:
    """A flag's value is in the resolved configuration under its own name."""
    model = [] if {"-m", "--model"} & set(words) else ["-m", "m"]

    (config,) = planned(*model, *words).configs

    assert at(config, path) == value


@pytest.mark.parametrize(
    ("words", "path", "value"),
    [
        pytest.param(["-m", "other"], "model", "other", id="-m"),
        pytest.param(["-n", "9"], "n", 9, id="-n"),
        pytest.param(["-d", "other.jsonl"], "dataset", "other.jsonl", id="-d"),
        pytest.param(["-p", "fp32"], "precision", "fp32", id="-p"),
        pytest.param(["--batch-size", "16"], "synthetic.batch_size", 16, id="--batch-size"),
        pytest.param(["--set", "warmup.n_warmup=4"], "warmup.n_warmup", 4, id="--set"),
    ],
)
def test_flag_beats_the_file(planned: Plan, tmp_path: Path, words: list[str], path: str, value: Any) -> None:
    """What the command line says counts more than the file; what it does not say stays the file's."""
    file = write(tmp_path, {"precision": "fp16", "synthetic": {"batch_size": 2}, "random_seed": 7})

    (config,) = planned(file, *words).configs

    assert at(config, path) == value
    assert config["random_seed"] == 7


def test_set_leaves_the_neighbours_in_a_section_alone(planned: Plan, tmp_path: Path) -> None:
    """A dotted key changes one value of a section, not the section."""
    file = write(tmp_path, {"synthetic": {"batch_size": 2, "decode_ms_per_step": 3}})

    (config,) = planned(file, "--set", "synthetic.batch_size=5").configs

    assert (config["synthetic"]["batch_size"], config["synthetic"]["decode_ms_per_step"]) == (5, 3)


SWEEP = {"sweep": {"precision": ["fp32", "bf16"], "n": [4, 8], "synthetic.batch_size": [1, 2]}}


@pytest.mark.parametrize(
    ("words", "path", "value", "axis"),
    [
        pytest.param(["-p", "fp16"], "precision", "fp16", '["fp32", "bf16"]', id="-p"),
        pytest.param(["-n", "6"], "n", 6, "[4, 8]", id="-n"),
        pytest.param(["--batch-size", "3"], "synthetic.batch_size", 3, "[1, 2]", id="--batch-size"),
        pytest.param(["--set", "synthetic.batch_size=3"], "synthetic.batch_size", 3, "[1, 2]", id="--set"),
    ],
)
def test_flag_replaces_a_swept_axis_with_a_notice(
    planned: Plan, tmp_path: Path, words: list[str], path: str, value: Any, axis: str
) -> None:
    """A flag for a swept key takes the axis out of the sweep, and says so with the values that are lost."""
    file = write(tmp_path, SWEEP)

    found = planned(file, *words)

    assert [at(c, path) for c in found.configs] == [value] * 4
    (note,) = [line for line in found.notes.splitlines() if path in line]
    assert "replaces" in note
    assert axis in note


def test_flags_that_are_not_swept_give_no_notice(planned: Plan, tmp_path: Path) -> None:
    """A flag for a key that the sweep leaves alone is laid under every combination, silently."""
    found = planned(write(tmp_path, SWEEP), "--set", "random_seed=5")

    assert [c["random_seed"] for c in found.configs] == [5] * 8
    assert found.notes == ""


def test_flag_beats_the_entries_of_a_study(planned: Plan, tmp_path: Path) -> None:
    """The command line wins over values written in `experiments`, too."""
    entries = [{"n": 10}, {"n": 20, "precision": "fp16"}, {"precision": "fp32"}]

    found = planned(write(tmp_path, {"experiments": entries}), "-n", "5")

    assert [(c["n"], c["precision"]) for c in found.configs] == [(5, "bf16"), (5, "fp16"), (5, "fp32")]


def test_backend_flag_chooses_among_a_studys_backends(planned: Plan, tmp_path: Path) -> None:
    """-b takes the other backends out of a study."""
    found = planned(write(tmp_path, {"backend": ["pytorch", "vllm"], "sweep": {"n": [1, 2]}}), "-b", "vllm")

    assert [c["backend"] for c in found.configs] == ["vllm", "vllm"]


@pytest.mark.parametrize(
    ("study", "expected"),
    [
        pytest.param(
            {"backend": ["pytorch", "vllm"], "sweep": {"precision": ["bf16"]}},
            [("pytorch.batch_size", 8), ("vllm.max_num_seqs", 8)],
            id="a list of backends",
        ),
        pytest.param(
            {"backend": None, "sweep": {"synthetic.batch_size": [1, 2]}},
            [("synthetic.batch_size", 8)],
            id="a backend that only a scoped key implies",
        ),
    ],
)
def test_batch_size_sets_each_backends_own_parameter(
    planned: Plan, tmp_path: Path, study: dict[str, Any], expected: list[tuple[str, int]]
) -> None:
    """--batch-size means batch_size, max_num_seqs or max_batch_size: what the study's backends call it."""
    found = planned(write(tmp_path, study), "--batch-size", "8")

    assert [at(c, path) for c, (path, _) in zip(found.configs, expected, strict=True)] == [v for _, v in expected]


def test_cycles_and_order_reach_the_plan(planned: Plan, tmp_path: Path) -> None:
    """--cycles and --order win over the file's execution and leave its other values."""
    file = write(tmp_path, {"sweep": {"n": [1, 2]}, "execution": {"n_cycles": 5, "cycle_order": "shuffled"}})

    runs = planned(file, "--cycles", "2", "--order", "sequential").plan["runs"]

    assert [(r["index"], r["cycle"]) for r in runs] == [(0, 1), (2, 2), (1, 1), (3, 2)]


def test_cycles_make_a_study_of_one_experiment(planned: Plan, tmp_path: Path) -> None:
    """--cycles on a single experiment repeats it; the experiment itself stays what it was."""
    file = write(tmp_path)
    alone = planned(file).plan

    repeated = planned(file, "--cycles", "4").plan

    assert [r["cycle"] for r in repeated["runs"]] == [1, 2, 3, 4]
    assert repeated["experiments"][0]["config_hash"] == alone["experiments"][0]["config_hash"]
    assert len(alone["runs"]) == 1


def test_order_alone_makes_a_study_with_its_default_cycles(planned: Plan, tmp_path: Path) -> None:
    """--order asks for a study; like every study of `llem run` it has three cycles unless told otherwise."""
    assert len(planned(write(tmp_path), "--order", "interleaved").plan["runs"]) == 3


def test_a_written_default_is_the_same_experiment(planned: Plan, tmp_path: Path) -> None:
    """Writing out a default by flag changes nothing that is hashed."""
    file = write(tmp_path)

    plain, written = planned(file).plan, planned(file, "-p", "bf16", "--set", "random_seed=42.0").plan

    assert plain["study_design_hash"] == written["study_design_hash"]
