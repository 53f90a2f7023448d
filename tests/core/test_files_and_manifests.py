"""From files to configurations: experiment and study files, cluster manifests, base files, command-line overrides."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from llenergymeasure.core.config import ExperimentConfig, StudyConfig
from llenergymeasure.core.errors import ConfigError
from llenergymeasure.core.identity import measurement_config_hash, study_design_hash
from llenergymeasure.core.plan import make_plan
from llenergymeasure.core.sweep import expand
from llenergymeasure.loaders import (
    apply_overrides,
    load_experiment_config,
    load_study_config,
    parse_set,
    read_document,
)
from llenergymeasure.yaml_reading import parse_yaml

DESIGN: dict[str, Any] = {
    "model": "Qwen/Qwen3-8B", "backend": ["pytorch", "vllm"], "n": 50, "max_output_tokens": 64,
    "pytorch": {"attn_implementation": "sdpa"},
    "sweep": {"precision": ["bf16", "fp16"], "pytorch.batch_size": [1, 8], "vllm.max_num_seqs": [8, 64, 256]},
}  # fmt: skip


def write(path: Path, content: Any) -> Path:
    """A file with the text, or with the mapping as JSON, which is YAML."""
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def hashes(study: StudyConfig) -> list[str]:
    return [measurement_config_hash(e) for e in study.experiments]


def manifest(**spec: Any) -> dict[str, Any]:
    return {"apiVersion": "llem.dev/v1alpha1", "kind": "EnergyStudy", "metadata": {"name": "batch-sweep"}, "spec": spec}


def experiment_manifest(**spec: Any) -> dict[str, Any]:
    return {"apiVersion": "llem.dev/v1alpha1", "kind": "EnergyExperiment", "metadata": {"name": "one"}, "spec": spec}


# Which file is what.


def test_file_with_a_sweep_or_experiments_is_a_study_and_any_other_an_experiment(tmp_path: Path) -> None:
    """One key decides; each loader refuses the other kind and names the right function."""
    single = write(tmp_path / "one.yaml", {"model": "m"})
    swept = write(tmp_path / "swept.yaml", {"model": "m", "backend": "pytorch", "sweep": {"n": [1]}})
    listed = write(tmp_path / "listed.yaml", {"model": "m", "experiments": [{"n": 1}]})
    assert [read_document(p).study for p in (single, swept, listed)] == [False, True, True]
    with pytest.raises(ConfigError, match=r"is a study .*; use run_study"):
        load_experiment_config(swept)
    with pytest.raises(ConfigError, match=r"is one experiment; .*use run_experiment"):
        load_study_config(single)


def test_experiment_file_means_what_its_mapping_means(tmp_path: Path) -> None:
    """Reading adds nothing and loses nothing, in YAML and in JSON."""
    body = {"model": "m", "n": 5, "decoder": {"preset": "factual"}, "pytorch": {"batch_size": 2}}
    wanted = ExperimentConfig.model_validate(body)
    assert load_experiment_config(write(tmp_path / "e.yaml", body)) == wanted
    assert load_experiment_config(str(write(tmp_path / "e.json", json.dumps(body)))) == wanted


def test_study_file_has_three_cycles_and_the_name_study_unless_it_says_otherwise(tmp_path: Path) -> None:
    """The defaults of a study by file are those of the cluster."""
    plain = load_study_config(write(tmp_path / "a.yaml", DESIGN))
    assert (plain.name, plain.execution.n_cycles, plain.execution.cycle_order) == ("study", 3, "shuffled")
    named = load_study_config(write(tmp_path / "b.yaml", {**DESIGN, "name": "x", "execution": {"nCycles": 5}}))
    assert (named.name, named.execution.n_cycles) == ("x", 5)


def test_bad_value_passes_through_as_pydantics_error(tmp_path: Path) -> None:
    """Callers of the library see ValidationError, not a wrapper."""
    with pytest.raises(ValidationError, match="max_output_tokens"):
        load_experiment_config(write(tmp_path / "e.yaml", {"model": "m", "max_output_tokens": 0}))
    with pytest.raises(ValidationError, match="model"):
        load_experiment_config(write(tmp_path / "e.yaml", {"n": 1}))


def test_unknown_keys_and_credentials_of_a_file_are_reported_together(tmp_path: Path) -> None:
    """One error names the file and everything that is wrong with its keys."""
    path = write(tmp_path / "e.yaml", {"model": "m", "presicion": 1, "decoder": {"topk": 1}, "hf_token": "abc"})
    with pytest.raises(ConfigError) as caught:
        load_experiment_config(path)
    assert str(caught.value).startswith(f"{path}: 4 problems")
    assert "abc" not in str(caught.value)


# Manifests of a cluster.


def test_energy_study_equals_the_plain_file(tmp_path: Path) -> None:
    """The same design is the same study by `llem run file`, `llem run manifest` and `kubectl apply`."""
    execution = {"n_cycles": 4, "cycle_order": "interleaved", "config_gap_seconds": 0}
    camel = {"nCycles": 4, "cycleOrder": "interleaved", "configGapSeconds": 0}
    plain = load_study_config(write(tmp_path / "s.yaml", {**DESIGN, "name": "batch-sweep", "execution": execution}))
    applied = load_study_config(write(tmp_path / "m.yaml", manifest(design=DESIGN, execution=camel)))
    assert applied.model_dump() == plain.model_dump()
    assert make_plan(applied) == make_plan(plain)
    assert len(plain.experiments) == 10


def test_energy_study_without_a_sweep_is_a_study_of_one_with_three_cycles(tmp_path: Path) -> None:
    """A design need not vary anything, and the cluster's default of cycles holds."""
    found = load_study_config(write(tmp_path / "m.yaml", manifest(design={"model": "m", "backend": "pytorch"})))
    assert len(found.experiments) == 1
    assert found.execution.n_cycles == 3


def test_energy_study_with_an_unquoted_n_equals_the_quoted_one(tmp_path: Path) -> None:
    """The key that kubectl would send as "false" is the number of prompts at the design's top and in its sweep."""
    text = """
apiVersion: llem.dev/v1alpha1
kind: EnergyStudy
metadata: {name: prompts}
spec:
  design:
    model: m
    backend: pytorch
    n: 7
    sweep: {n: [8, 9], precision: [bf16, fp16]}
"""
    unquoted = load_study_config(write(tmp_path / "unquoted.yaml", text))
    quoted = load_study_config(write(tmp_path / "quoted.yaml", re.sub(r"\bn:", '"n":', text)))
    sent = load_study_config(write(tmp_path / "sent.yaml", re.sub(r"\bn:", '"false":', text)))
    assert hashes(unquoted) == hashes(quoted) == hashes(sent)
    assert [e.n for e in unquoted.experiments] == [8, 8, 9, 9]


def test_energy_experiment_equals_the_plain_file(tmp_path: Path) -> None:
    """`spec.config` is an experiment file's body."""
    body = {"model": "m", "n": 5, "pytorch": {"batch_size": 2}}
    plain = load_experiment_config(write(tmp_path / "e.yaml", body))
    applied = load_experiment_config(write(tmp_path / "m.yaml", experiment_manifest(config=body)))
    assert applied == plain
    assert measurement_config_hash(applied) == measurement_config_hash(plain)


IGNORED: list[tuple[str, dict[str, Any], list[str]]] = [
    ("study", manifest(design=DESIGN, execution={"nCycles": 1}, parallelism=2, template={"gpu": {}}, results={},
                       retry={}, suspend=False, suspendPolicy="Drain", retryEpoch=1, retention={}),
     ["parallelism", "template", "results", "retry", "suspend", "suspendPolicy", "retryEpoch", "retention"]),
    ("experiment", experiment_manifest(config={"model": "m"}, studyRef={"name": "s"}, index=3, cycle=1, configHash="x"),
     ["studyRef", "index", "cycle", "configHash"]),
    ("nothing", manifest(design=DESIGN), []),
]  # fmt: skip


@pytest.mark.parametrize(("content", "names"), [r[1:] for r in IGNORED], ids=[r[0] for r in IGNORED])
def test_parts_of_a_manifest_that_mean_nothing_here_are_named(
    tmp_path: Path, content: dict[str, Any], names: list[str]
) -> None:
    """Running a manifest on one machine says exactly what it ignores."""
    notices = read_document(write(tmp_path / "m.yaml", content)).notices
    assert bool(notices) == bool(names)
    assert all(f"spec.{name}" in notices[0] for name in names)
    assert not any("execution" in n or "design" in n or "config " in n for n in notices)


def test_ignored_parts_reach_the_notices_of_the_study(tmp_path: Path) -> None:
    """What was ignored is said together with what expansion has to say."""
    content = manifest(design={**DESIGN, "experiments": [{"backend": "vllm", "precision": "fp32"}]}, parallelism=2)
    path = write(tmp_path / "m.yaml", content)
    assert load_study_config(path).notices == (f"{path}: on this machine spec.parallelism is ignored",)


WRONG_MANIFESTS: list[tuple[str, dict[str, Any], list[str]]] = [
    ("kind", {**manifest(design=DESIGN), "kind": "EnergyStudie"}, ["kind: 'EnergyStudie' is unknown", "EnergyStudy"]),
    ("no-design", manifest(execution={}), ["spec.design: must be a mapping"]),
    ("no-spec", {"apiVersion": "llem.dev/v1", "kind": "EnergyStudy"}, ["spec.design: must be a mapping"]),
    ("no-config", experiment_manifest(index=1), ["spec.config: must be a mapping"]),
    ("unknown-part", manifest(design=DESIGN, paralelism=1, exeqution={}),
     ["spec.paralelism: unknown key; did you mean parallelism?", "spec.exeqution: unknown key; did you mean exec"]),
    ("execution-in-design", manifest(design={**DESIGN, "execution": {}, "name": "x", "output": {}, "base": "b"}),
     ["spec.design.execution: belongs beside design", "spec.design.name", "spec.design.output", "spec.design.base"]),
    ("sweep-in-experiment", experiment_manifest(config={"model": "m", "sweep": {}}), ["sweep: belongs to a study"]),
    ("unknown-in-design", manifest(design={**DESIGN, "presicion": 1}), ["presicion: unknown key; did you mean prec"]),
]  # fmt: skip


@pytest.mark.parametrize(("content", "words"), [r[1:] for r in WRONG_MANIFESTS], ids=[r[0] for r in WRONG_MANIFESTS])
def test_wrong_manifest_is_refused_with_file_and_place(
    tmp_path: Path, content: dict[str, Any], words: list[str]
) -> None:
    """A manifest is checked as strictly as a plain file."""
    path = write(tmp_path / "m.yaml", content)
    load = load_study_config if content["kind"] != "EnergyExperiment" else load_experiment_config
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert all(w in str(caught.value) for w in words)


# Base files.


def test_file_lies_over_its_base_at_every_depth(tmp_path: Path) -> None:
    """A study names what differs; the base, found beside it, has the rest."""
    base = {"model": "m", "n": 5, "decoder": {"decoding_strategy": "sampling", "top_p": 0.5}, "precision": "fp16"}
    (tmp_path / "sub").mkdir()
    write(tmp_path / "base.yaml", base)
    body = {"base": "../base.yaml", "backend": "pytorch", "n": 6, "decoder": {"top_p": 0.9}, "precision": None}
    found = load_study_config(write(tmp_path / "sub" / "s.yaml", {**body, "sweep": {"pytorch.batch_size": [1, 2]}}))
    written_out = {**base, "backend": "pytorch", "n": 6, "decoder": {"decoding_strategy": "sampling", "top_p": 0.9}}
    plain = load_study_config(write(tmp_path / "p.yaml", {**written_out, "sweep": {"pytorch.batch_size": [1, 2]}}))
    assert found.experiments == plain.experiments
    assert load_experiment_config(write(tmp_path / "sub" / "e.yaml", body)).precision == "fp16"


BAD_BASES: list[tuple[str, dict[str, Any] | None, str]] = [
    ("missing", None, "no such file"),
    ("chain", {"model": "m", "base": "other.yaml"}, "one level"),
    ("study", {"model": "m", "sweep": {"n": [1]}}, "no sweep"),
]


@pytest.mark.parametrize(("base", "words"), [r[1:] for r in BAD_BASES], ids=[r[0] for r in BAD_BASES])
def test_base_is_one_plain_experiment_file(tmp_path: Path, base: dict[str, Any] | None, words: str) -> None:
    """A base of a base, or a study as a base, is refused by its own file name."""
    if base is not None:
        write(tmp_path / "base.yaml", base)
    with pytest.raises(ConfigError, match=words) as caught:
        load_experiment_config(write(tmp_path / "e.yaml", {"base": "base.yaml", "n": 1}))
    assert str(tmp_path / "base.yaml") in str(caught.value)


# The command line over the file.


def test_command_line_wins_over_the_file_at_every_depth(tmp_path: Path) -> None:
    """Dotted keys reach nested fields and leave their neighbours alone."""
    path = write(
        tmp_path / "e.yaml", {"model": "m", "n": 5, "decoder": {"repetition_penalty": 1.1, "ignore_eos": False}}
    )
    found = load_experiment_config(path, {"n": 6, "decoder.repetition_penalty": 1.2, "pytorch.batch_size": 4})
    assert (found.n, found.decoder.repetition_penalty, found.decoder.ignore_eos) == (6, 1.2, False)
    assert found.section.model_dump()["batch_size"] == 4


OVERRIDES: list[tuple[str, dict[str, Any], str, list[Any]]] = [
    ("universal", {"precision": "fp16"}, "precision", ["fp16"]),
    ("with-prefix", {"sweep.precision": "fp16"}, "precision", ["fp16"]),
    ("the-only-axis-left", {"precision": "fp16", "pytorch.batch_size": 3}, "pytorch.batch_size", [3]),
]


@pytest.mark.parametrize(("overrides", "axis", "values"), [r[1:] for r in OVERRIDES], ids=[r[0] for r in OVERRIDES])
def test_value_for_a_swept_key_replaces_that_axis_with_a_notice(
    tmp_path: Path, overrides: dict[str, Any], axis: str, values: list[Any]
) -> None:
    """A flag narrows a study; the notice shows what it replaced, the other axes stay."""
    sweep = {"precision": ["bf16", "fp32"], "pytorch.batch_size": [1, 2]}
    path = write(tmp_path / "s.yaml", {"model": "m", "backend": "pytorch", "sweep": sweep})
    found = load_study_config(path, overrides)
    section, _, name = axis.rpartition(".")
    assert {getattr(getattr(e, section) if section else e, name) for e in found.experiments} == set(values)
    assert len(found.experiments) == (2 if len(overrides) == 1 else 1)
    assert len(found.notices) == len(overrides)
    assert f"{axis}: the value from the command line replaces the sweep's {json.dumps(sweep[axis])}" in found.notices


def test_command_line_wins_over_explicit_experiments_too(tmp_path: Path) -> None:
    """An entry that names the key gets the flag's value; the file is never stronger than the command line."""
    body = {"model": "m", "experiments": [{"n": 1}, {"precision": "fp16", "n": 2}, {"pytorch": {"batch_size": 8}}]}
    found = load_study_config(write(tmp_path / "s.yaml", body), {"n": 9, "pytorch.batch_size": 4})
    assert [e.n for e in found.experiments] == [9, 9]
    assert {e.section.model_dump()["batch_size"] for e in found.experiments} == {4}


def test_overrides_leave_the_document_alone(tmp_path: Path) -> None:
    """Laying values over a document gives a new one."""
    document = read_document(write(tmp_path / "s.yaml", DESIGN))
    before = json.dumps(document.body)
    changed = apply_overrides(document, {"precision": "fp16", "decoder.top_k": 3})
    assert json.dumps(document.body) == before
    assert changed.body["decoder"] == {"top_k": 3}
    assert "precision" not in changed.body["sweep"]


def test_forgotten_values_of_an_axis_are_an_error_with_overrides_too(tmp_path: Path) -> None:
    """An axis without values is not dropped in silence on the way."""
    path = write(tmp_path / "s.yaml", "model: m\nbackend: pytorch\nsweep:\n  precision:\n")
    with pytest.raises(ConfigError, match=r"sweep\.precision: has no values"):
        load_study_config(path, {"max_output_tokens": 3})


SETS: list[tuple[str, list[str], dict[str, Any]]] = [
    ("number", ["pytorch.batch_size=8"], {"pytorch.batch_size": 8}),
    ("text", ["model=org/name"], {"model": "org/name"}),
    ("boolean", ["decoder.ignore_eos=no"], {"decoder.ignore_eos": False}),
    ("list", ["precision=[bf16, fp16]"], {"precision": ["bf16", "fp16"]}),
    ("equals-sign-in-value", ["model=a=b"], {"model": "a=b"}),
    ("null", ["lora="], {"lora": None}),
    ("quoted", ['revision="1.0"'], {"revision": "1.0"}),
    ("last-wins", ["n=1", " n =2"], {"n": 2}),
]


@pytest.mark.parametrize(("pairs", "expected"), [r[1:] for r in SETS], ids=[r[0] for r in SETS])
def test_set_words_are_read_as_yaml(pairs: list[str], expected: dict[str, Any]) -> None:
    """`--set key=value` reads the value as the file would."""
    assert parse_set(pairs) == expected


@pytest.mark.parametrize("pair", ["n", "=5", "n: 5"])
def test_set_word_without_key_or_value_is_an_error_with_an_example(pair: str) -> None:
    """The error shows how to write it."""
    with pytest.raises(ConfigError, match="write key=value"):
        parse_set([pair])


def test_design_of_a_file_survives_its_own_record(tmp_path: Path) -> None:
    """The resolved study in `study.json` is the study: same experiments, same runs, same identity."""
    found = load_study_config(write(tmp_path / "s.yaml", {**DESIGN, "execution": {"cycle_order": "latin_square"}}))
    again = StudyConfig.model_validate_json(found.model_dump_json())
    assert again == found
    assert make_plan(again) == make_plan(found)
    assert study_design_hash(hashes(again)) == make_plan(found).design_hash


def test_axis_of_a_sweep_can_be_set_on_the_command_line(tmp_path: Path) -> None:
    """`--set sweep.pytorch.batch_size=[1, 8]` makes or replaces that axis; its dots stay part of the name."""
    file = tmp_path / "study.yaml"
    file.write_text("model: m\nbackend: pytorch\nsweep: {precision: [fp32, bf16], pytorch.batch_size: [2]}\n")
    study = load_study_config(file, parse_set(["sweep.pytorch.batch_size=[1, 8]", "sweep.precision=[fp16]"]))
    assert [(e.precision, e.section.batch_size) for e in study.experiments] == [("fp16", 1), ("fp16", 8)]


def test_cycles_of_a_manifest_can_be_set_on_the_command_line(tmp_path: Path) -> None:
    """A manifest's camelCase execution and the command line's snake_case are one key."""
    file = tmp_path / "study.yaml"
    file.write_text(
        "apiVersion: llem.dev/v1alpha1\nkind: EnergyStudy\nmetadata: {name: s}\nspec:\n"
        "  design: {model: m, backend: pytorch}\n  execution: {nCycles: 3}\n"
    )
    assert load_study_config(file, {"execution.n_cycles": 5}).execution.n_cycles == 5


def test_one_key_in_both_spellings_is_refused() -> None:
    """Which of nCycles and n_cycles was meant is not guessed."""
    body = {"model": "m", "backend": "pytorch", "sweep": {}, "execution": {"nCycles": 3, "n_cycles": 4}}
    with pytest.raises(ConfigError, match="n_cycles: is written twice"):
        expand(body)


def test_json_escapes_beyond_the_basic_plane_are_read() -> None:
    """JSON made by other tools may escape an emoji as two surrogates, which YAML alone would refuse."""
    assert parse_yaml('{"model": "\\ud83d\\ude00", "n": 8.0}', source="x") == {"model": "\U0001f600", "n": 8}
