"""Every field of the configuration takes its legal values, keeps them, and refuses the others."""

import re
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from llenergymeasure.core import introspection, registry
from llenergymeasure.core.config import ExperimentConfig

BACKENDS = registry.backend_names()
SECTIONS = {f.path for f in introspection.fields() if f.type.endswith("section") and f.path != "dataset"}
LEAVES = {f.path: f for f in introspection.fields() if f.path not in SECTIONS}

# Fields whose content belongs to the engine: any mapping goes.
FREE_FORM = {
    "passthrough_kwargs",
    "pytorch.max_memory",
    "tensorrt.quant_config",
    "tensorrt.cuda_graph_config",
    "vllm.speculative_config",
}

# What else must be set for a value to be legal; the key is a field, or a field and one of its values.
COMPANIONS: dict[str, dict[str, Any]] = {
    "decoder.num_beams": {"decoder.decoding_strategy": "beam"},
    "decoder.decoding_strategy=beam": {"decoder.num_beams": 2},
    "dataset.synthetic.n": {"n": 1},
    "lora.merge_weights": {"lora.adapter_id": "org/adapter"},
    "traffic.mode": {"traffic.target_qps": 1},
    "traffic.mode=trace": {"traffic.trace": "trace.jsonl"},
    "traffic.trace": {"traffic.mode": "trace"},
    "traffic.burstiness": {"traffic.mode": "gamma", "traffic.target_qps": 1},
    "traffic.seed": {"traffic.target_qps": 1},
    "traffic.duration_seconds": {"traffic.target_qps": 1},
    "traffic.max_concurrency": {"traffic.target_qps": 1},
    "traffic.goodput.ttft_ms": {"traffic.target_qps": 1},
    "traffic.goodput.tpot_ms": {"traffic.target_qps": 1},
    "traffic.goodput.e2el_ms": {"traffic.target_qps": 1},
    "pytorch.torch_compile_mode": {"pytorch.torch_compile": True},
    "pytorch.torch_compile_backend": {"pytorch.torch_compile": True},
    "pytorch.bnb_4bit_compute_dtype": {"pytorch.load_in_4bit": True},
    "pytorch.bnb_4bit_quant_type": {"pytorch.load_in_4bit": True},
    "pytorch.bnb_4bit_use_double_quant": {"pytorch.load_in_4bit": True},
}


def with_value(path: str, value: Any) -> dict[str, Any]:
    """A smallest experiment in which `path` has `value`."""
    head = path.partition(".")[0]
    body: dict[str, Any] = {"model": "m", "backend": head if head in BACKENDS else "synthetic"}
    if path.startswith("energy.") and path.count(".") == 2:  # a source's own section belongs to that source
        body["energy"] = {"backend": path.split(".")[1]}
    companions = COMPANIONS.get(f"{path}={value}", COMPANIONS.get(path, {}))
    for dotted, content in {**companions, path: value}.items():
        *parents, last = dotted.split(".")
        node = body
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = content
    return body


SCHEMA = Draft202012Validator(introspection.experiment_schema())


def read(config: Any, path: str) -> Any:
    for name in path.split("."):
        config = getattr(config, name)
    return config


@pytest.mark.parametrize("path", [p for p in LEAVES if p not in FREE_FORM])
def test_field_takes_and_keeps_every_legal_value(path: str) -> None:
    """What the user writes into a field is what the engine's file reads from it; the JSON schema takes it, too."""
    for value in introspection.test_values(path):
        assert SCHEMA.is_valid(with_value(path, value))
        kept = read(ExperimentConfig.model_validate(with_value(path, value)), path)
        assert kept == value
        assert type(kept) in (type(value), float)  # a number field may widen 1 to 1.0, nothing else


def test_every_field_has_legal_values_to_test_with() -> None:
    """No field escapes the table above, except those whose content belongs to the engine."""
    without = {p for p in LEAVES if not introspection.test_values(p)}
    assert without == FREE_FORM


@pytest.mark.parametrize("path", sorted(FREE_FORM))
def test_free_form_field_keeps_its_mapping(path: str) -> None:
    """Settings that only the engine understands are handed on as they are."""
    value = {"a": 1, "b": "two"}
    assert read(ExperimentConfig.model_validate(with_value(path, value)), path) == value


LOOKALIKES: dict[str, tuple[Any, ...]] = {
    "integer": (True, "8", "x", 1.5, [1]),
    "number": (True, "8", "x", [1]),
    "boolean": (1, 0, "yes", "true", [True]),
    "string": (5, True, 1.5, ["x"]),
    "choice": ("nonsense", 1, True, ["nonsense"]),
}


@pytest.mark.parametrize("path", [p for p, f in LEAVES.items() if f.type in LOOKALIKES or "|" in f.type])
def test_field_refuses_a_value_that_only_looks_right(path: str) -> None:
    """`true` and "8" are no numbers, 1 is no boolean, 5 is no text; for the models and for the JSON schema."""
    for value in LOOKALIKES.get(LEAVES[path].type, LOOKALIKES["choice"]):
        assert not SCHEMA.is_valid(with_value(path, value))
        with pytest.raises(ValidationError) as caught:
            ExperimentConfig.model_validate(with_value(path, value))
        assert any(e["loc"][-1] == path.rpartition(".")[2] for e in caught.value.errors())


# Bounds as the specification states them (requirements §2): field, legal edges, the nearest values outside.
BOUNDS: list[tuple[str, list[Any], list[Any]]] = [
    ("n", [1, 10**6], [0, -1, 1.5]),
    ("random_seed", [0, 2**32 - 1], [-1, 2**32]),
    ("max_input_tokens", [0], [-1]),
    ("max_output_tokens", [1], [0]),
    ("decoder.temperature", [0, 2], [-0.01, 2.01]),
    ("decoder.top_p", [0, 1], [-0.01, 1.01]),
    ("decoder.top_k", [0, 100], [-1, 0.5]),
    ("decoder.min_p", [0, 1], [-0.01, 1.01]),
    ("decoder.repetition_penalty", [0.1, 10], [0.09, 10.01]),
    ("decoder.num_beams", [2, 8], [0, 1]),
    ("warmup.n_warmup", [1], [0]),
    ("warmup.max_output_tokens", [1], [0]),
    ("warmup.thermal_floor_seconds", [0, 30, 60], [-1, 0.1, 29.9]),
    ("warmup.window_size", [3], [2]),
    ("warmup.cv_threshold", [0.01, 0.5], [0.009, 0.51]),
    ("warmup.max_prompts", [5], [4]),
    ("baseline.duration_seconds", [5, 120], [4.9, 120.1]),
    ("baseline.cache_ttl_seconds", [0], [-1]),
    ("measurement.min_duration_seconds", [0, 60], [-1]),
    ("measurement.sample_interval_ms", [10, 10000], [9.9, 10001]),
    ("traffic.target_qps", [0.001], [0, -1]),
    ("traffic.burstiness", [0.5], [0]),
    ("pytorch.batch_size", [1], [0]),
    ("pytorch.tp_size", [1], [0]),
    ("pytorch.num_processes", [1], [0]),
    ("pytorch.no_repeat_ngram_size", [0], [-1]),
    ("vllm.max_num_seqs", [1], [0]),
    ("vllm.gpu_memory_utilization", [0.01, 1], [0, 1.01]),
    ("vllm.tensor_parallel_size", [1], [0]),
    ("vllm.cpu_offload_gb", [0], [-0.1]),
    ("tensorrt.max_batch_size", [1], [0]),
    ("tensorrt.pipeline_parallel_size", [1], [0]),
]


@pytest.mark.parametrize(("path", "inside", "outside"), BOUNDS, ids=[p for p, _, _ in BOUNDS])
def test_bounds_are_inclusive_and_a_value_outside_is_refused_by_name(
    path: str, inside: list[Any], outside: list[Any]
) -> None:
    """The documented bound itself is legal, the next value outside is an error that names the field.

    The JSON schema agrees, except for the wait of "0 or at least 30", which a schema does not say.
    """
    for value in inside:
        assert SCHEMA.is_valid(with_value(path, value))
        assert read(ExperimentConfig.model_validate(with_value(path, value)), path) == value
    for value in outside:
        assert SCHEMA.is_valid(with_value(path, value)) == (path == "warmup.thermal_floor_seconds" and value > 0)
        with pytest.raises(ValidationError) as caught:
            ExperimentConfig.model_validate(with_value(path, value))
        assert path.rpartition(".")[2] in str(caught.value)


DEFAULTS = {  # requirements §2, the defaults that define the product's behaviour
    "backend": "pytorch", "precision": "bf16", "n": 100, "random_seed": 42, "max_input_tokens": 512,
    "max_output_tokens": 128, "decoder.decoding_strategy": "greedy", "decoder.temperature": 1.0, "decoder.top_p": 1.0,
    "decoder.top_k": None, "decoder.min_p": None, "decoder.repetition_penalty": 1.0, "decoder.num_beams": None,
    "decoder.ignore_eos": True, "decoder.preset": None, "warmup.enabled": True, "warmup.n_warmup": 5,
    "warmup.max_output_tokens": 32, "warmup.thermal_wait": "adaptive", "warmup.thermal_floor_seconds": 60,
    "warmup.convergence_detection": False, "warmup.window_size": 5, "warmup.cv_threshold": 0.05,
    "warmup.max_prompts": 20, "baseline.enabled": True, "baseline.duration_seconds": 30, "baseline.kind": "context",
    "baseline.cache_ttl_seconds": 3600, "energy.backend": "auto", "measurement.window": "auto",
    "measurement.min_duration_seconds": None, "measurement.phase_split": False, "measurement.allow_dummy": False,
    "measurement.sample_interval_ms": 100, "output.save_text": False, "output.raw_samples": False, "lora": None,
    "traffic": None, "passthrough_kwargs": None, "revision": None,
}  # fmt: skip


def test_defaults_are_the_documented_ones() -> None:
    """A model's name alone is a complete configuration, with the documented defaults."""
    config = ExperimentConfig(model="m")
    assert {path: read(config, path) for path in DEFAULTS} == DEFAULTS


OWN_DEFAULTS = {"vllm.enable_prefix_caching": False, "tensorrt.kv_cache_config.enable_block_reuse": False}


@pytest.mark.parametrize(("path", "value"), OWN_DEFAULTS.items(), ids=list(OWN_DEFAULTS))
def test_caches_of_repeated_prompts_are_off_unless_asked_for(path: str, value: Any) -> None:
    """Repeated prompts never measure a cache by accident."""
    config = ExperimentConfig(model="m", backend=path.partition(".")[0])
    assert read(config, path) is value


@pytest.mark.parametrize("backend", ["pytorch", "vllm", "tensorrt"])
def test_section_left_out_leaves_the_engine_its_own_defaults(backend: str) -> None:
    """Nothing but llem's documented defaults of its own is set where the user set nothing."""
    given = ExperimentConfig(model="m", backend=backend).section.model_dump(exclude_none=True)
    ours = {
        "pytorch": {"trust_remote_code": False, "batch_size": 1, "batching_strategy": "static"},
        "vllm": {"enable_prefix_caching": False},
        "tensorrt": {"kv_cache_config": {"enable_block_reuse": False}},
    }
    assert given == ours[backend]


def test_configuration_cannot_be_changed_after_validation() -> None:
    """A validated configuration is frozen, nested parts included: its hash stays true."""
    config = ExperimentConfig(model="m")
    with pytest.raises(ValidationError):
        config.n = 5
    with pytest.raises(ValidationError):
        config.decoder.temperature = 0.5


def test_every_field_is_described_by_a_sentence() -> None:
    """The reference page has no gap."""
    gaps = [f.path for f in introspection.fields() if len(f.description) <= 10 or not f.description.endswith(".")]
    assert gaps == []


UNITS = {"_seconds": "s", "_ms": "ms", "_gb": "GiB", "_bytes": "bytes", "_w": "W", "_len": "tokens", "_tokens": "token"}


def test_description_of_every_quantity_names_its_unit() -> None:
    """A reader of the reference page never has to guess the unit."""
    quantities = [(f, unit) for f in introspection.fields() for end, unit in UNITS.items() if f.path.endswith(end)]
    unnamed = [f.path for f, unit in quantities if not re.search(rf"(?<![a-z]){unit}s?(?![a-z])", f.description, re.I)]
    assert len(quantities) > 25
    assert unnamed == []
