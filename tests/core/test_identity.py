"""The hash of a configuration: equal exactly for equal measurements, and the same for ever.

tests/golden/hashes.json holds hashes that must not change by accident; a deliberate change raises
`identity.HASH_SCHEMA` and rewrites it: `UPDATE_GOLDEN=1 .venv/bin/pytest tests/core/test_identity.py`.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import create_model

from llenergymeasure.core.config import ExperimentConfig
from llenergymeasure.core.identity import HASH_SCHEMA, canonical, measurement_config_hash, study_design_hash
from llenergymeasure.core.sweep import expand
from llenergymeasure.yaml_reading import parse_yaml

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "hashes.json"


def digest(**fields: Any) -> str:
    return measurement_config_hash(ExperimentConfig.model_validate({"model": "m", **fields}))


SAMPLING = {"decoding_strategy": "sampling"}
FP8 = {"vllm": {"quantization": "fp8"}}
BEAM = {"decoding_strategy": "beam"}

# Two spellings of one measurement.
EQUAL: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("float-and-int", {"n": 1, "decoder": {"top_p": 1}}, {"n": 1.0, "decoder": {"top_p": 1.0}}),
    ("free-form-float", {"passthrough_kwargs": {"a": [1, {"b": 2}]}}, {"passthrough_kwargs": {"a": [1.0, {"b": 2.0}]}}),
    ("minus-zero", {"passthrough_kwargs": {"a": 0}}, {"passthrough_kwargs": {"a": -0.0}}),
    ("key-order", {"n": 2, "decoder": {"ignore_eos": False}}, {"decoder": {"ignore_eos": False}, "n": 2}),
    ("free-form-key-order", {"passthrough_kwargs": {"a": 1, "b": 2}}, {"passthrough_kwargs": {"b": 2, "a": 1}}),
    ("null-field", {}, {"n": None, "lora": None, "traffic": None, "decoder": {"top_k": None}}),
    ("null-in-free-form", {"passthrough_kwargs": {"a": 1}}, {"passthrough_kwargs": {"a": 1, "b": None}}),
    ("explicit-defaults", {}, {"n": 100, "precision": "bf16", "backend": "pytorch", "random_seed": 42}),
    ("explicit-default-sections", {}, {"decoder": {}, "warmup": {}, "baseline": {}, "energy": {}, "measurement": {}}),
    ("empty-backend-section", {}, {"pytorch": {}}),
    ("default-in-backend-section", {}, {"pytorch": {"trust_remote_code": False}}),
    ("our-defaults-in-backend-section", {}, {"pytorch": {"batch_size": 1, "batching_strategy": "static"}}),
    ("empty-section-vllm", {"backend": "vllm"}, {"backend": "vllm", "vllm": {}}),
    ("own-default-vllm", {"backend": "vllm"}, {"backend": "vllm", "vllm": {"enable_prefix_caching": False}}),
    ("implied-fp8", {"backend": "vllm", "precision": "fp8"}, {"backend": "vllm", "precision": "fp8", **FP8}),
    ("own-default-trt", {"backend": "tensorrt"}, {"backend": "tensorrt", "tensorrt": {"kv_cache_config": {}}}),
    ("energy-section", {"energy": {"backend": "simulated"}}, {"energy": {"backend": "simulated", "simulated": {}}}),
    ("empty-passthrough", {}, {"passthrough_kwargs": {}}),
    ("dataset-of-builtin", {"model": "builtin:smollm2-135m"}, {"model": "builtin:smollm2-135m", "dataset": "builtin"}),
    ("dataset-of-hub", {"model": "org/m"}, {"model": "org/m", "dataset": "aienergyscore"}),
    ("greedy-temperature", {}, {"decoder": {"temperature": 0.3}}),
    ("greedy-top", {}, {"decoder": {"top_k": 5, "top_p": 0.5, "min_p": 0.1}}),
    ("temperature-0-is-greedy", {}, {"decoder": {**SAMPLING, "temperature": 0}}),
    ("temperature-0-drops-top", {}, {"decoder": {**SAMPLING, "temperature": 0, "top_k": 5, "top_p": 0.5}}),
    ("preset", {"decoder": {"preset": "factual"}}, {"decoder": {**SAMPLING, "temperature": 0.3, "top_p": 0.9}}),
    ("deterministic-preset", {}, {"decoder": {"preset": "deterministic"}}),
    ("overridden-preset", {"decoder": {"preset": "creative", "decoding_strategy": "greedy"}}, {}),
    ("output", {}, {"output": {"save_text": True, "raw_samples": True}}),
    ("version", {}, {"version": "2.0"}),
    ("integer-gpu-key", {"pytorch": {"max_memory": {0: "1GiB"}}}, {"pytorch": {"max_memory": {"0": "1GiB"}}}),
]  # fmt: skip


@pytest.mark.parametrize(("one", "two"), [r[1:] for r in EQUAL], ids=[r[0] for r in EQUAL])
def test_two_spellings_of_one_measurement_hash_alike(one: dict[str, Any], two: dict[str, Any]) -> None:
    """What does not change the work, or the way it is measured, is not in the hash."""
    assert digest(**one) == digest(**two)


DIFFERENT: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("model", {"model": "a"}, {"model": "b"}),
    ("revision", {}, {"revision": "main"}),
    ("backend", {}, {"backend": "synthetic"}),
    ("precision", {}, {"precision": "fp16"}),
    ("dataset", {"dataset": "a.jsonl"}, {"dataset": "b.jsonl"}),
    ("n", {"n": 1}, {"n": 2}),
    ("seed", {}, {"random_seed": 43}),
    ("ignore-eos", {}, {"decoder": {"ignore_eos": False}}),
    ("penalty-in-greedy", {}, {"decoder": {"repetition_penalty": 1.1}}),
    ("temperature", {"decoder": {**SAMPLING, "temperature": 0.5}}, {"decoder": {**SAMPLING, "temperature": 0.6}}),
    ("top-k", {"decoder": SAMPLING}, {"decoder": {**SAMPLING, "top_k": 5}}),
    ("sampling-at-1-is-not-greedy", {}, {"decoder": SAMPLING}),
    ("beams", {"decoder": {**BEAM, "num_beams": 2}}, {"decoder": {**BEAM, "num_beams": 3}}),
    ("warmup", {}, {"warmup": {"enabled": False}}),
    ("baseline", {}, {"baseline": {"kind": "bare"}}),
    ("window", {}, {"measurement": {"min_duration_seconds": 0}}),
    ("energy", {}, {"energy": {"backend": "none"}}),
    ("section", {}, {"pytorch": {"batch_size": 2}}),
    ("false-is-not-unset", {}, {"pytorch": {"use_cache": False}}),
    ("true-is-not-one", {"passthrough_kwargs": {"a": True}}, {"passthrough_kwargs": {"a": 1}}),
    ("text-is-not-number", {"passthrough_kwargs": {"a": "1"}}, {"passthrough_kwargs": {"a": 1}}),
    ("list-order", {"passthrough_kwargs": {"a": [1, 2]}}, {"passthrough_kwargs": {"a": [2, 1]}}),
    ("lora", {}, {"lora": {"adapter_id": "a"}}),
    ("lora-merge", {"lora": {"adapter_id": "a"}}, {"lora": {"adapter_id": "a", "merge_weights": True}}),
    ("traffic", {}, {"traffic": {"target_qps": 1}}),
]  # fmt: skip


@pytest.mark.parametrize(("one", "two"), [r[1:] for r in DIFFERENT], ids=[r[0] for r in DIFFERENT])
def test_different_measurements_hash_differently(one: dict[str, Any], two: dict[str, Any]) -> None:
    """Everything that changes the work, or the way it is measured, is in the hash."""
    assert digest(**one) != digest(**two)


def test_hash_is_the_documented_construction() -> None:
    """Sixteen hex digits of SHA-256 over the schema's version and the canonical JSON, made here by hand."""
    config = ExperimentConfig(
        model="é", backend="synthetic", decoder={"temperature": 0.5}, synthetic={"decode_ms_per_step": 2.0},
        output={"save_text": True},
    )  # fmt: skip
    by_hand = (
        '{"backend":"synthetic","baseline":{"cache_ttl_seconds":3600,"duration_seconds":30,"enabled":true,'
        '"kind":"context"},"dataset":"aienergyscore","decoder":{"decoding_strategy":"greedy","ignore_eos":true,'
        '"repetition_penalty":1},"energy":{"backend":"auto"},"max_input_tokens":512,"max_output_tokens":128,'
        '"measurement":{"allow_dummy":false,"phase_split":false,"sample_interval_ms":100,"window":"auto"},'
        '"model":"\\u00e9","n":100,"precision":"bf16","random_seed":42,"synthetic":{"batch_overhead_ms":1,'
        '"batch_size":1,"decode_ms_per_step":2,"prefill_ms_per_token":0.01},"warmup":{"convergence_detection":false,'
        '"cv_threshold":0.05,"enabled":true,"max_output_tokens":32,"max_prompts":20,"n_warmup":5,'
        '"thermal_floor_seconds":60,"thermal_wait":"adaptive","window_size":5}}'
    )
    assert measurement_config_hash(config) == hashlib.sha256(f"{HASH_SCHEMA}:{by_hand}".encode()).hexdigest()[:16]


GOLDEN_CONFIGS: dict[str, dict[str, Any]] = {
    "smallest": {"model": "m"},
    "builtin": {"model": "builtin:smollm2-135m", "n": 8, "max_output_tokens": 32},
    "pytorch": {
        "model": "Qwen/Qwen3-8B", "revision": "abc", "precision": "fp16", "decoder": {"preset": "creative"},
        "pytorch": {"batch_size": 8, "attn_implementation": "sdpa", "max_memory": {"0": "70GiB"}},
    },
    "vllm": {
        "model": "m", "backend": "vllm", "precision": "fp8",
        "vllm": {"max_num_seqs": 64, "gpu_memory_utilization": 0.9},
    },
    "tensorrt": {"model": "m", "backend": "tensorrt", "tensorrt": {"kv_cache_config": {"enable_block_reuse": True}}},
    "synthetic": {
        "model": "m", "backend": "synthetic", "synthetic": {"batch_size": 4}, "energy": {"backend": "simulated"},
    },
    "beam": {"model": "m", "decoder": {"decoding_strategy": "beam", "num_beams": 4}},
    "lora": {"model": "m", "lora": {"adapter_path": "a", "merge_weights": True}},
    "traffic": {
        "model": "m",
        "traffic": {"mode": "gamma", "target_qps": 2.5, "burstiness": 0.5, "goodput": {"ttft_ms": 200}},
    },
    "synthetic-prompts": {"model": "m", "dataset": {"synthetic": {"input_len": 64, "output_len": 8}}},
    "free-form": {"model": "m", "passthrough_kwargs": {"a": [1.0, 0.1, None, True, "é"], "b": {"c": None, "d": 1e30}}},
}  # fmt: skip


def test_hashes_are_those_of_the_golden_file() -> None:
    """Results of last year still belong to the configurations of today."""
    found = {name: measurement_config_hash(ExperimentConfig.model_validate(c)) for name, c in GOLDEN_CONFIGS.items()}
    found["study"] = study_design_hash(found.values())
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(json.dumps({"hash_schema": HASH_SCHEMA, **found}, indent=1) + "\n", encoding="utf-8")
    assert {"hash_schema": HASH_SCHEMA, **found} == json.loads(GOLDEN.read_text(encoding="utf-8"))


def test_new_optional_field_changes_no_hash() -> None:
    """A later version with one more field, unset, gives the same identity to the same configuration."""
    later = create_model("Later", __base__=ExperimentConfig, brand_new=(str | None, None))
    old, new = ExperimentConfig(model="m"), later(model="m")
    assert measurement_config_hash(new) == measurement_config_hash(old)
    assert measurement_config_hash(later(model="m", brand_new="x")) != measurement_config_hash(old)


def test_yaml_and_json_of_one_configuration_hash_alike() -> None:
    """The format of the file is not part of the measurement."""
    text = """
model: m
precision: fp16
"n": 5
decoder: {decoding_strategy: sampling, temperature: 5e-1, top_p: .9}
baseline: {duration_seconds: 3e1}
passthrough_kwargs: {flag: yes, off: "off"}
pytorch: {batch_size: 0x8}
"""
    as_json = {
        "pytorch": {"batch_size": 8}, "passthrough_kwargs": {"off": "off", "flag": True}, "model": "m",
        "baseline": {"duration_seconds": 30.0}, "n": 5, "precision": "fp16",
        "decoder": {"top_p": 0.9, "temperature": 0.5, "decoding_strategy": "sampling"},
    }  # fmt: skip
    by_yaml = parse_yaml(text.replace("off:", '"off":'), source="f.yaml")
    by_json = parse_yaml(json.dumps(as_json), source="f.json")
    assert digest(**by_yaml) == digest(**by_json) == digest(**as_json)


def test_validated_configuration_hashes_like_its_own_json() -> None:
    """What the parent writes for the experiment process has the parent's hash."""
    for fields in GOLDEN_CONFIGS.values():
        config = ExperimentConfig.model_validate(fields)
        again = ExperimentConfig.model_validate_json(config.model_dump_json())
        trimmed = ExperimentConfig.model_validate_json(config.model_dump_json(exclude_none=True))
        assert measurement_config_hash(again) == measurement_config_hash(trimmed) == measurement_config_hash(config)


def test_hash_is_the_same_in_every_process() -> None:
    """No order of a set or dictionary leaks into an identity: two processes with different hash seeds agree."""
    code = (
        "import json, sys; from llenergymeasure.core.config import ExperimentConfig as E;"
        "from llenergymeasure.core.identity import measurement_config_hash as h;"
        "print([h(E.model_validate(c)) for c in json.loads(sys.argv[1]).values()])"
    )
    answers = {
        subprocess.run(
            [sys.executable, "-c", code, json.dumps(GOLDEN_CONFIGS)],
            env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True, timeout=60,
        ).stdout
        for seed in ("0", "4711")
    }  # fmt: skip
    here = [measurement_config_hash(ExperimentConfig.model_validate(c)) for c in GOLDEN_CONFIGS.values()]
    assert answers == {f"{here}\n"}


values = st.recursive(
    st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def reordered(value: Any) -> Any:
    """The same tree with mappings in the other order, integral numbers as floats, and nulls added."""
    if isinstance(value, dict):
        return {**{k: reordered(v) for k, v in reversed(value.items())}, "\x00null": None}
    if isinstance(value, list):
        return [reordered(v) for v in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


@given(st.dictionaries(st.text(max_size=8), values, max_size=3))
@settings(max_examples=100, deadline=None)
def test_hash_ignores_order_nulls_and_the_kind_of_integral_numbers(kwargs: dict[str, Any]) -> None:
    """For any free-form content, the spelling does not matter."""
    assert digest(passthrough_kwargs={"free": kwargs}) == digest(passthrough_kwargs={"free": reordered(kwargs)})


def test_canonical_form_has_no_null_no_output_and_no_preset() -> None:
    """The mapping that is hashed holds values only, and nothing about what is kept."""
    mapping = canonical(ExperimentConfig(model="m", output={"save_text": True}, decoder={"preset": "factual"}))
    assert "output" not in mapping
    assert "preset" not in mapping["decoder"]
    assert "null" not in json.dumps(mapping)


# The study's design.


BODY: dict[str, Any] = {"model": "m", "backend": "pytorch", "sweep": {"n": [1, 2, 3]}}
SAME_DESIGN: list[tuple[str, dict[str, Any]]] = [
    ("cycles", {**BODY, "execution": {"n_cycles": 7}}),
    ("order-of-runs", {**BODY, "execution": {"cycle_order": "sequential", "shuffle_seed": 3}}),
    ("gaps", {**BODY, "execution": {"config_gap_seconds": 0, "cycle_gap_seconds": 9}}),
    ("name", {**BODY, "name": "other"}),
    ("runner", {**BODY, "runners": {"pytorch": "docker"}, "images": {"pytorch": "img"}}),
    ("order-of-experiments", {**BODY, "sweep": {"n": [3, 1, 2]}}),
    ("written-out", {"model": "m", "experiments": [{"n": 1}, {"n": 2}, {"n": 3}]}),
    ("with-a-duplicate", {**BODY, "sweep": {"n": [1, 2, 3, 1]}, "execution": {"deduplicate": False}}),
    ("with-a-skipped-one", {**BODY, "sweep": {"n": [1, 2, 3, 0]}}),
    ("output", {**BODY, "output": {"save_text": True}}),
]


def design(body: dict[str, Any]) -> str:
    return study_design_hash(measurement_config_hash(e) for e in expand(body).experiments)


@pytest.mark.parametrize("body", [r[1] for r in SAME_DESIGN], ids=[r[0] for r in SAME_DESIGN])
def test_how_often_and_in_which_order_leaves_the_design_alone(body: dict[str, Any]) -> None:
    """A study can be topped up, renamed and moved without becoming another one."""
    assert design(body) == design(BODY)


OTHER_DESIGN: list[tuple[str, dict[str, Any]]] = [
    ("one-more", {**BODY, "sweep": {"n": [1, 2, 3, 4]}}),
    ("one-less", {**BODY, "sweep": {"n": [1, 2]}}),
    ("another", {**BODY, "sweep": {"n": [1, 2, 4]}}),
    ("another-fixed-value", {**BODY, "precision": "fp16"}),
]


@pytest.mark.parametrize("body", [r[1] for r in OTHER_DESIGN], ids=[r[0] for r in OTHER_DESIGN])
def test_other_experiments_are_another_design(body: dict[str, Any]) -> None:
    """What is measured is the design."""
    assert design(body) != design(BODY)
