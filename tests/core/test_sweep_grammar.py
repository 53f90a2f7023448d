"""The sweep grammar: which experiments a study is made of, in which order, and what is said about the others."""

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from llenergymeasure.core.config import ExecutionConfig, ExperimentConfig, StudyConfig
from llenergymeasure.core.errors import ConfigError
from llenergymeasure.core.identity import measurement_config_hash
from llenergymeasure.core.plan import make_plan
from llenergymeasure.core.resources import STUDY_CYCLES
from llenergymeasure.core.sweep import deep_merge, expand, set_path, study_of_one


def study(**body: Any) -> StudyConfig:
    return expand({"model": "m", **body}, source="study.yaml")


def refusal(**body: Any) -> str:
    """The message with which a study is refused."""
    with pytest.raises(ConfigError) as caught:
        study(**body)
    return str(caught.value)


def shape(found: StudyConfig, *paths: str) -> list[tuple[Any, ...]]:
    """Backend and chosen values of each experiment, in order."""
    rows = []
    for config in found.experiments:
        row: list[Any] = [config.backend]
        for path in paths:
            node: Any = config
            for name in path.split("."):
                node = getattr(node, name, None)
            row.append(node)
        rows.append(tuple(row))
    return rows


# Rule 1: universal and scoped keys.


def test_key_of_a_sweep_goes_to_every_backend_and_a_scoped_key_to_its_own() -> None:
    """precision[2] x pytorch.batch_size[3] and x vllm.max_num_seqs[2] make 6 + 4 = 10, in this order."""
    found = study(
        backend=["pytorch", "vllm"],
        sweep={"precision": ["fp16", "bf16"], "pytorch.batch_size": [1, 2, 4], "vllm.max_num_seqs": [8, 64]},
    )
    assert shape(found, "precision", "pytorch.batch_size", "vllm.max_num_seqs") == [
        ("pytorch", "fp16", 1, None), ("pytorch", "fp16", 2, None), ("pytorch", "fp16", 4, None),
        ("pytorch", "bf16", 1, None), ("pytorch", "bf16", 2, None), ("pytorch", "bf16", 4, None),
        ("vllm", "fp16", None, 8), ("vllm", "fp16", None, 64), ("vllm", "bf16", None, 8), ("vllm", "bf16", None, 64),
    ]  # fmt: skip


SCALARS = [("scalar", 4), ("one-value-list", [4])]


@pytest.mark.parametrize("value", [s[1] for s in SCALARS], ids=[s[0] for s in SCALARS])
def test_scalar_is_an_axis_of_one_value(value: Any) -> None:
    """A sweep key without a list is not an error but one value."""
    assert shape(study(backend="pytorch", sweep={"pytorch.batch_size": value}), "pytorch.batch_size") == [
        ("pytorch", 4)
    ]


REUSE = "kv_cache_config.enable_block_reuse"
DEEP: list[tuple[str, str, list[Any], str]] = [
    ("universal", "decoder.repetition_penalty", [1.1, 1.2], "decoder.repetition_penalty"),
    ("scoped", f"tensorrt.{REUSE}", [True, False], f"tensorrt.{REUSE}"),
    ("dataset", "dataset.synthetic.input_len", [8, 16], "dataset.synthetic.input_len"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "values", "path"), [r[1:] for r in DEEP], ids=[r[0] for r in DEEP])
def test_dots_reach_into_nested_fields(key: str, values: list[Any], path: str) -> None:
    """The first dot may name a backend, all further ones open a mapping."""
    found = study(backend="tensorrt", sweep={key: values})
    assert [row[1] for row in shape(found, path)] == values


def test_value_of_an_axis_may_be_a_mapping() -> None:
    """A whole section can be one axis."""
    found = study(backend="pytorch", sweep={"decoder": [{"preset": "factual"}, {"preset": "creative"}]})
    assert shape(found, "decoder.temperature") == [("pytorch", 0.3), ("pytorch", 1.2)]


def test_null_in_a_sweep_list_is_the_default() -> None:
    """Elements of a sweep list may be null: the point at which the field is left alone."""
    found = study(backend="pytorch", sweep={"n": [None, 7]})
    assert shape(found, "n") == [("pytorch", 100), ("pytorch", 7)]


# Rule 2: fixed values and sections.


def test_fixed_section_applies_to_its_own_backends_points_only() -> None:
    """What is written for one engine is absent from the others, which would refuse it."""
    found = study(
        backend=["pytorch", "vllm"], pytorch={"attn_implementation": "sdpa"}, sweep={"n": [1, 2]}, max_output_tokens=9
    )
    assert shape(found, "n", "pytorch.attn_implementation", "max_output_tokens") == [
        ("pytorch", 1, "sdpa", 9), ("pytorch", 2, "sdpa", 9), ("vllm", 1, None, 9), ("vllm", 2, None, 9),
    ]  # fmt: skip


FOREIGN: list[tuple[str, dict[str, Any]]] = [
    ("of-a-sweep", {"backend": "pytorch", "vllm": {}, "sweep": {"n": [1]}}),
    ("of-entries", {"vllm": {"max_num_seqs": 8}, "experiments": [{"backend": "pytorch"}]}),
    ("of-entries-by-default", {"vllm": {"max_num_seqs": 8}, "experiments": [{"n": 1}]}),
]


@pytest.mark.parametrize("body", [r[1] for r in FOREIGN], ids=[r[0] for r in FOREIGN])
def test_section_of_a_backend_that_is_not_in_the_study_is_an_error(body: dict[str, Any]) -> None:
    """A section that could not apply to any experiment is a slip, and named."""
    assert "vllm: this study runs pytorch, not vllm" in refusal(**body)


def test_section_of_a_backend_that_only_an_entry_runs_is_kept_for_it() -> None:
    """A section may wait for an explicit experiment."""
    found = study(
        backend="pytorch", vllm={"max_num_seqs": 8}, sweep={"n": [1]}, experiments=[{"backend": "vllm", "n": 2}]
    )
    assert shape(found, "n", "vllm.max_num_seqs") == [("pytorch", 1, None), ("vllm", 2, 8)]


# Rule 3: unknown and misplaced keys, the backend.


KEY_ERRORS: list[tuple[str, dict[str, Any], str]] = [
    ("absent-backend", {"vllm.max_num_seqs": [1]}, "sweep.vllm.max_num_seqs: this study runs pytorch, not vllm; add"),
    ("parameter", {"pytorch.batchsize": [1]}, "sweep.pytorch.batchsize: unknown key; did you mean pytorch.batch_size?"),
    ("head", {"pytorhc.batch_size": [1]}, "sweep.pytorhc.batch_size: unknown key pytorhc; did you mean pytorch?"),
    ("unscoped", {"batch_size": [1]}, "sweep.batch_size: belongs to a backend's section; write pytorch.batch_size or "),
    ("unknown", {"presicion": ["bf16"]}, "sweep.presicion: unknown key; did you mean precision?"),
    ("unknown-nested", {"decoder.topk": [1]}, "sweep.decoder.topk: unknown key; did you mean decoder.top_k?"),
    ("removed", {"fp_precision": ["bf16"]}, "sweep.fp_precision: removed in 2.0; use precision"),
    ("whole-section", {"pytorch": [{}]}, "sweep.pytorch: names a whole section; write pytorch.<parameter>"),
    ("backend", {"backend": ["pytorch"]}, "sweep.backend: write backend: [...] beside sweep instead"),
    ("study-key", {"n_cycles": [1]}, "sweep.n_cycles: unknown key"),
    ("no-values", {"precision": []}, "sweep.precision: has no values"),
    ("null", {"precision": None}, "sweep.precision: has no values"),
]  # fmt: skip


@pytest.mark.parametrize(("sweep", "expected"), [r[1:] for r in KEY_ERRORS], ids=[r[0] for r in KEY_ERRORS])
def test_wrong_sweep_key_is_named_with_the_way_out(sweep: dict[str, Any], expected: str) -> None:
    """A sweep key that would vary nothing is an error that says what was probably meant."""
    message = refusal(backend="pytorch", sweep=sweep)
    assert message.startswith("study.yaml: 1 problem\n  - ")
    assert expected in message


def test_unscoped_parameter_names_every_section_that_has_it() -> None:
    """`batch_size` could be that of several backends, so all dotted forms are offered."""
    message = refusal(backend=["pytorch", "synthetic"], sweep={"batch_size": [1]})
    assert "pytorch.batch_size or synthetic.batch_size" in message


IMPLIED: list[tuple[str, dict[str, Any], str]] = [
    ("scoped-key", {"sweep": {"vllm.max_num_seqs": [1]}}, "vllm"),
    ("section", {"tensorrt": {}, "sweep": {"n": [1]}}, "tensorrt"),
]


@pytest.mark.parametrize(("body", "backend"), [r[1:] for r in IMPLIED], ids=[r[0] for r in IMPLIED])
def test_missing_backend_is_taken_from_the_only_one_implied(body: dict[str, Any], backend: str) -> None:
    """Where the keys leave no doubt, the backend need not be written."""
    assert {e.backend for e in study(**body).experiments} == {backend}


UNCLEAR: list[tuple[str, dict[str, Any], str]] = [
    ("none-implied", {"sweep": {"n": [1]}}, "no key implies one"),
    ("two-implied", {"sweep": {"pytorch.batch_size": [1], "vllm.max_num_seqs": [1]}}, "imply pytorch and vllm"),
    ("unknown", {"backend": "vlm", "sweep": {"n": [1]}}, "pytorch, synthetic, tensorrt, vllm; did you mean vllm?"),
    ("one-unknown", {"backend": ["vllm", "jax"], "sweep": {"n": [1]}}, "is not known; valid: pytorch"),
    ("empty", {"backend": [], "sweep": {"n": [1]}}, "is not known"),
    ("number", {"backend": 3, "sweep": {"n": [1]}}, "is not known"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "expected"), [r[1:] for r in UNCLEAR], ids=[r[0] for r in UNCLEAR])
def test_unclear_backend_is_an_error_that_says_what_to_write(body: dict[str, Any], expected: str) -> None:
    """The backend is never guessed."""
    message = refusal(**body)
    assert "backend: " in message
    assert expected in message


def test_an_unclear_backend_hides_no_other_mistake() -> None:
    """A key that belongs to backends is told at once, though it is not known which one will run."""
    message = refusal(sweep={"batch_size": [1, 8], "precison": ["bf16"], "vllm.max_num_seq": [1], "n": [1]}, vllm={})
    assert "sweep.batch_size: belongs to a backend's section; write pytorch.batch_size" in message
    assert "sweep.precison: unknown key; did you mean precision?" in message

    message = refusal(sweep={"batch_size": [1, 8], "n": [1]})
    assert "backend: is missing" in message
    assert "sweep.batch_size: belongs to a backend's section" in message


def test_backend_written_twice_runs_once() -> None:
    """A repeated name is not a second engine."""
    assert shape(study(backend=["vllm", "vllm"], sweep={"n": [1]}), "n") == [("vllm", 1)]


# Rule 4: explicit experiments.


def test_explicit_experiments_come_after_the_sweep_and_lie_over_the_fixed_values() -> None:
    """Entries deep-merge: what they do not name stays, at every depth."""
    found = study(
        backend=["pytorch"],
        decoder={"decoding_strategy": "sampling", "temperature": 0.5},
        pytorch={"batch_size": 2, "attn_implementation": "sdpa"},
        sweep={"n": [1]},
        experiments=[{"n": 2, "decoder": {"top_k": 3}}, {"n": 3, "pytorch": {"batch_size": 8}}],
    )
    paths = ("n", "decoder.temperature", "decoder.top_k", "pytorch.batch_size", "pytorch.attn_implementation")
    assert shape(found, *paths) == [
        ("pytorch", 1, 0.5, None, 2, "sdpa"), ("pytorch", 2, 0.5, 3, 2, "sdpa"), ("pytorch", 3, 0.5, None, 8, "sdpa"),
    ]  # fmt: skip


def test_explicit_experiment_does_not_inherit_a_foreign_section() -> None:
    """An entry for another backend is not refused for what it did not write."""
    found = study(backend="pytorch", pytorch={"batch_size": 2}, sweep={"n": [1]}, experiments=[{"backend": "vllm"}])
    assert shape(found, "pytorch.batch_size") == [("pytorch", 2), ("vllm", None)]


def test_foreign_section_that_an_entry_wrote_is_an_error() -> None:
    """A mismatch in the entry itself is the user's slip, and named with its place."""
    message = refusal(experiments=[{"n": 1}, {"backend": "pytorch", "vllm": {"max_num_seqs": 1}}])
    assert "experiments[1]: section vllm belongs to backend vllm, but this entry's backend is pytorch" in message


def test_entry_must_choose_one_of_several_backends() -> None:
    """With a list of backends an entry says which it is for."""
    message = refusal(backend=["pytorch", "vllm"], experiments=[{"n": 1}])
    assert "experiments[0]: name one backend of pytorch, vllm" in message


def test_entries_alone_make_a_study_on_the_default_backend() -> None:
    """A sweep is not required, and the default backend stays the default."""
    assert shape(study(experiments=[{"n": 2}, {"n": 1}]), "n") == [("pytorch", 2), ("pytorch", 1)]


def test_null_in_an_entry_leaves_the_fixed_value() -> None:
    """Null equals absent in an entry, too."""
    assert shape(study(n=5, experiments=[{"n": None, "decoder": None}]), "n") == [("pytorch", 5)]


SHAPES: list[tuple[str, dict[str, Any], str]] = [
    ("sweep-list", {"backend": "pytorch", "sweep": ["n"]}, "sweep: must be a mapping"),
    ("experiments-mapping", {"experiments": {"n": 1}}, "experiments: must be a list of mappings"),
    ("experiments-text", {"experiments": "n"}, "experiments: must be a list of mappings"),
    ("entry-scalar", {"experiments": [1]}, "experiments[0]: must be a mapping"),
    ("execution-list", {"experiments": [{}], "execution": [1]}, "execution: must be a mapping"),
    ("runners-list", {"experiments": [{}], "runners": [1]}, "runners: must be a mapping"),
]


@pytest.mark.parametrize(("body", "expected"), [r[1:] for r in SHAPES], ids=[r[0] for r in SHAPES])
def test_part_of_the_wrong_shape_is_refused_by_name(body: dict[str, Any], expected: str) -> None:
    """A list where a mapping belongs is an error about that key, not a traceback."""
    assert expected in refusal(**body)


# Rule 5: invalid combinations.


def test_invalid_combination_is_skipped_with_its_reason_and_the_rest_is_kept() -> None:
    """The grid may have holes: fp32 exists on pytorch only."""
    found = study(backend=["pytorch", "vllm"], sweep={"precision": ["fp32", "bf16"]})
    assert shape(found, "precision") == [("pytorch", "fp32"), ("pytorch", "bf16"), ("vllm", "bf16")]
    (skipped,) = found.skipped
    assert skipped.config["backend"] == "vllm"
    assert skipped.config["precision"] == "fp32"
    assert skipped.reason.startswith("precision fp32 is not supported by backend vllm")
    assert found.notices == ()


def test_bad_value_in_an_axis_is_skipped_with_field_and_value() -> None:
    """The reason of a skipped point has the field and what was written there."""
    (skipped,) = study(backend="pytorch", sweep={"n": [1, 0]}).skipped
    assert skipped.reason == "n: Input should be greater than or equal to 1 (got 0)"


def test_all_combinations_invalid_is_a_config_error_with_the_reasons() -> None:
    """A study of which nothing is left does not start; every distinct reason is shown once."""
    message = refusal(backend="vllm", sweep={"precision": ["fp32"], "n": [1, 2, 3]})
    assert message.startswith("study.yaml: all 3 combinations are invalid\n  - ")
    assert message.count("precision fp32 is not supported by backend vllm") == 1


HALVES: list[tuple[str, list[int], str]] = [
    ("half", [1, 0], ""),
    ("more-than-half", [1, 0, -1], "2 of 3 combinations are invalid and will be skipped"),
]


@pytest.mark.parametrize(("values", "notice"), [r[1:] for r in HALVES], ids=[r[0] for r in HALVES])
def test_more_than_half_invalid_is_said_prominently(values: list[int], notice: str) -> None:
    """A grid with more holes than points is announced before anything else."""
    notices = study(backend="pytorch", sweep={"n": values}).notices
    assert notices == ((notice,) if notice else ())


# Rule 6: equal experiments.


def test_equal_experiments_are_kept_once_with_a_notice() -> None:
    """What differs only in spelling is one measurement."""
    found = study(backend="pytorch", sweep={"decoder.temperature": [0.2, 0.7], "n": [1]}, experiments=[{"n": 1.0}])
    assert len(found.experiments) == 1
    assert found.notices == ("2 of 3 experiments equal another one and are kept once",)
    assert found.repeats == ()


def test_equal_experiments_run_as_extra_cycles_on_request() -> None:
    """`deduplicate: false` turns three equal entries into three runs per cycle, each with its own cycle number."""
    found = study(experiments=[{"n": 1}, {"n": 2}, {"n": 1}, {"n": 1}], execution={"deduplicate": False, "n_cycles": 2})
    assert found.repeats == (3, 1)
    assert found.notices == ()
    runs = make_plan(found).runs
    assert sorted((r.position, r.cycle) for r in runs) == [*[(0, c) for c in range(1, 7)], (1, 1), (1, 2)]


# Rule 7: nothing to run, determinism.


EMPTY: list[tuple[str, dict[str, Any]]] = [
    ("no-entries", {"experiments": []}),
    ("no-entries-with-backend", {"backend": "pytorch", "experiments": []}),
]


@pytest.mark.parametrize("body", [r[1] for r in EMPTY], ids=[r[0] for r in EMPTY])
def test_nothing_to_run_is_an_error(body: dict[str, Any]) -> None:
    """An empty list of experiments is an unfinished file, not a study of zero."""
    assert "nothing to run" in refusal(**body)


def test_fixed_values_alone_are_one_experiment_per_backend() -> None:
    """A cluster's design needs no sweep; an emptied one (every axis set from the command line) has one point."""
    assert shape(study(backend=["pytorch", "vllm"])) == [("pytorch",), ("vllm",)]
    assert shape(study(backend="pytorch", sweep={})) == [("pytorch",)]


BODY: dict[str, Any] = {
    "model": "m", "backend": ["vllm", "pytorch"], "pytorch": {"batch_size": 2},
    "decoder": {"decoding_strategy": "sampling"}, "passthrough_kwargs": {"list": [{"deep": 1}]},
    "sweep": {"decoder.temperature": [0.1, 0.9], "vllm.max_num_seqs": [1, 8], "precision": ["bf16", "fp32"]},
    "experiments": [{"backend": "pytorch", "n": 3}],
}  # fmt: skip


def test_expansion_leaves_the_users_mapping_alone_and_is_repeatable() -> None:
    """Expansion is pure: same input, same output, input untouched."""
    before = json.dumps(BODY)
    first, second = expand(BODY), expand(BODY)
    assert first == second
    assert json.dumps(BODY) == before


def test_points_share_no_mapping() -> None:
    """Changing one point, however deep, changes no other and not the file's content."""
    found = expand(BODY)
    victim, *others = [e for e in found.experiments if e.passthrough_kwargs]
    assert victim.passthrough_kwargs is not None
    victim.passthrough_kwargs["list"][0]["deep"] = "changed"
    victim.passthrough_kwargs["new"] = 1
    assert all(o.passthrough_kwargs == {"list": [{"deep": 1}]} for o in others)
    assert len(others) == len(found.experiments) - 1
    assert BODY["passthrough_kwargs"] == {"list": [{"deep": 1}]}


def test_values_of_an_axis_are_not_shared_between_points() -> None:
    """A mapping that is one value of an axis is copied into each point."""
    sweep = {"passthrough_kwargs": [{"a": [{"b": 1}]}], "n": [1, 2]}
    one, two = study(backend="pytorch", sweep=sweep).experiments
    assert one.passthrough_kwargs is not None
    one.passthrough_kwargs["a"][0]["b"] = "changed"
    assert two.passthrough_kwargs == sweep["passthrough_kwargs"][0] == {"a": [{"b": 1}]}


def test_skipped_points_share_no_mapping_either() -> None:
    """The record of a skipped combination is its own copy."""
    body = {"backend": "pytorch", "passthrough_kwargs": {"a": {"b": 1}}, "sweep": {"n": [1, 0, -1]}}
    one, two = study(**body).skipped
    one.config["passthrough_kwargs"]["a"]["b"] = "changed"
    assert two.config["passthrough_kwargs"] == {"a": {"b": 1}}


@given(
    ns=st.lists(st.integers(1, 50), min_size=1, max_size=4, unique=True),
    tokens=st.lists(st.integers(1, 50), min_size=1, max_size=4, unique=True),
    batches=st.lists(st.integers(1, 50), min_size=1, max_size=4, unique=True),
    seqs=st.lists(st.integers(1, 50), min_size=1, max_size=4, unique=True),
)
@settings(max_examples=40, deadline=None)
def test_count_and_order_follow_from_the_axes(
    ns: list[int], tokens: list[int], batches: list[int], seqs: list[int]
) -> None:
    """Per backend the points are the Cartesian product of its axes, the last axis fastest, none lost or doubled."""
    found = study(
        backend=["vllm", "pytorch"],
        sweep={"n": ns, "vllm.max_num_seqs": seqs, "max_output_tokens": tokens, "pytorch.batch_size": batches},
    )
    wanted = [("vllm", a, s, c, None) for a in ns for s in seqs for c in tokens]
    wanted += [("pytorch", a, None, c, b) for a in ns for c in tokens for b in batches]
    assert shape(found, "n", "vllm.max_num_seqs", "max_output_tokens", "pytorch.batch_size") == wanted
    assert len({measurement_config_hash(e) for e in found.experiments}) == len(wanted)


def test_ten_thousand_combinations_take_less_than_a_second() -> None:
    """The largest study is expanded, validated and hashed in under a second of CPU time (best of at most three)."""
    axis = list(range(1, 101))
    used_s = []
    while len(used_s) < 3 and min(used_s, default=9.0) >= 1.0:
        start = time.process_time()
        found = study(backend="pytorch", sweep={"n": axis, "pytorch.batch_size": axis})
        used_s.append(time.process_time() - start)
        assert len(found.experiments) == 10_000
    assert min(used_s) < 1.0


# Execution.


EXECUTION = {
    "n_cycles": 5, "cycle_order": "latin_square", "shuffle_seed": 3, "config_gap_seconds": 0, "cycle_gap_seconds": 1.5,
    "experiment_timeout_seconds": 60, "phase_timeouts": {"download": 1, "engine_build": 2},
    "max_consecutive_failures": 0, "deduplicate": False,
}  # fmt: skip
CAMEL = {
    "nCycles": 5, "cycleOrder": "latin_square", "shuffleSeed": 3, "configGapSeconds": 0, "cycleGapSeconds": 1.5,
    "experimentTimeoutSeconds": 60, "phaseTimeouts": {"download": 1, "engineBuild": 2},
    "maxConsecutiveFailures": 0, "deduplicate": False,
}  # fmt: skip


def test_execution_reads_the_same_in_snake_and_camel_case() -> None:
    """A manifest's execution can be pasted into a file and the other way round, at every depth."""
    plain = study(experiments=[{}], execution=EXECUTION).execution
    assert study(experiments=[{}], execution=CAMEL).execution == plain
    assert plain.model_dump() == EXECUTION


def test_execution_defaults_are_the_documented_ones() -> None:
    """Three cycles by file, one by the model; shuffled; gaps unset, which is not zero."""
    found = expand({"model": "m", "experiments": [{}], "execution": {"n_cycles": None}}, default_cycles=3).execution
    assert found.n_cycles == 3
    assert study(experiments=[{}]).execution.n_cycles == 1
    assert found.cycle_order == "shuffled"
    assert found.config_gap_seconds is None
    assert found.cycle_gap_seconds is None
    assert found.experiment_timeout_seconds == 3600
    assert found.max_consecutive_failures == 10
    assert found.phase_timeouts == {}


def test_gap_of_zero_is_kept_apart_from_an_unset_one() -> None:
    """0 is a wish, null is none."""
    found = study(experiments=[{}], execution={"config_gap_seconds": 0, "cycle_gap_seconds": None}).execution
    assert found.config_gap_seconds == 0
    assert found.cycle_gap_seconds is None


EXECUTION_ERRORS: list[tuple[str, dict[str, Any], str]] = [
    ("no-cycle", {"n_cycles": 0}, "n_cycles"),
    ("order", {"cycle_order": "random"}, "cycle_order"),
    ("negative-gap", {"config_gap_seconds": -1}, "config_gap_seconds"),
    ("phase", {"phase_timeouts": {"warmup": 1}}, "phase_timeouts"),
]


@pytest.mark.parametrize(("execution", "name"), [r[1:] for r in EXECUTION_ERRORS], ids=[r[0] for r in EXECUTION_ERRORS])
def test_bad_value_of_execution_is_a_validation_error(execution: dict[str, Any], name: str) -> None:
    """pydantic's error passes through unwrapped and names the field."""
    with pytest.raises(ValidationError, match=name):
        study(experiments=[{}], execution=execution)


RUNNERS = [("local", True), ("docker", True), ("docker:img@sha256:1", True), ("kubernetes", True), ("auto", True)]
RUNNERS += [("docker:", False), ("podman", False), ("singularity:img.sif", False), ("Local", False)]


@pytest.mark.parametrize(("runner", "legal"), RUNNERS)
def test_runner_is_one_of_the_documented_values(runner: str, legal: bool) -> None:
    """A runner per backend is checked before anything starts; singularity is named as unsupported."""
    if legal:
        assert study(experiments=[{}], runners={"pytorch": runner}).runners == {"pytorch": runner}
    else:
        with pytest.raises(ValidationError, match="valid: local, docker, docker:<image>, kubernetes, auto"):
            study(experiments=[{}], runners={"pytorch": runner})


def test_single_experiment_is_a_study_of_one() -> None:
    """A single run is planned like any study."""
    config = ExperimentConfig(model="m")
    assert study_of_one(config).experiments == (config,)
    assert [(r.index, r.cycle) for r in make_plan(study_of_one(config)).runs] == [(0, 1)]


MERGES: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ("disjoint", {"a": 1}, {"b": 2}, {"a": 1, "b": 2}),
    ("over-wins", {"a": 1}, {"a": 2}, {"a": 2}),
    ("deep", {"a": {"x": 1, "y": {"z": 1}}}, {"a": {"y": {"w": 2}}}, {"a": {"x": 1, "y": {"z": 1, "w": 2}}}),
    ("list-replaces", {"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
    ("mapping-over-scalar", {"a": 1}, {"a": {"b": 1}}, {"a": {"b": 1}}),
    ("scalar-over-mapping", {"a": {"b": 1}}, {"a": 1}, {"a": 1}),
    ("null-is-absent", {"a": 1}, {"a": None}, {"a": 1}),
]


@pytest.mark.parametrize(("under", "over", "merged"), [r[1:] for r in MERGES], ids=[r[0] for r in MERGES])
def test_merge_lays_mappings_over_each_other_at_every_depth(
    under: dict[str, Any], over: dict[str, Any], merged: dict[str, Any]
) -> None:
    """Mappings merge, anything else is replaced, and neither input is changed."""
    before = json.dumps([under, over])
    assert deep_merge(under, over) == merged
    assert json.dumps([under, over]) == before


def test_path_is_set_through_missing_and_scalar_parents() -> None:
    """A dotted key makes the mappings it needs."""
    body: dict[str, Any] = {"dataset": "builtin", "decoder": {"top_k": 1}}
    set_path(body, "dataset.synthetic.n", 5)
    set_path(body, "decoder.top_p", 0.5)
    assert body == {"dataset": {"synthetic": {"n": 5}}, "decoder": {"top_k": 1, "top_p": 0.5}}


def test_the_reference_names_the_cycles_of_a_study() -> None:
    """The model's default is that of a single experiment; the words beside it say what a study has."""
    assert f"has {STUDY_CYCLES}." in (ExecutionConfig.model_fields["n_cycles"].description or "")
