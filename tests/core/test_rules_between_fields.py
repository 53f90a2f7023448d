"""What no single field can know: support tables, sections, decoder, LoRA, dataset lengths, and the order of checks."""

from typing import Any

import pytest
from pydantic import ValidationError

from llenergymeasure.core import registry
from llenergymeasure.core.config import ExperimentConfig
from llenergymeasure.core.identity import measurement_config_hash
from llenergymeasure.core.sweep import reasons

PRECISIONS = ("fp32", "fp16", "bf16", "fp8", "int8", "int4")
STRATEGIES = ("greedy", "sampling", "beam")

# requirements §2, "Support tables", word for word.
PRECISION_SUPPORT = {
    "pytorch": {"fp32", "fp16", "bf16"},
    "vllm": {"fp16", "bf16", "fp8", "int8", "int4"},
    "tensorrt": {"fp16", "bf16", "fp8", "int8", "int4"},
}
DECODING_SUPPORT = {
    "pytorch": {"greedy", "sampling", "beam"},
    "vllm": {"greedy", "sampling", "beam"},
    "tensorrt": {"greedy", "sampling"},
}
BACKENDS = tuple(PRECISION_SUPPORT)


def experiment(**fields: Any) -> ExperimentConfig:
    return ExperimentConfig.model_validate({"model": "m", **fields})


def refusal(**fields: Any) -> str:
    """The message with which a configuration is refused."""
    with pytest.raises(ValidationError) as caught:
        experiment(**fields)
    return "; ".join(e["msg"] for e in caught.value.errors())


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_precision_is_accepted_exactly_where_the_table_says(backend: str, precision: str) -> None:
    """A precision runs on the backends of the table and on no other; the error lists the valid ones."""
    supported = PRECISION_SUPPORT[backend]
    if precision in supported:
        assert experiment(backend=backend, precision=precision).precision == precision
    else:
        message = refusal(backend=backend, precision=precision)
        assert precision in message
        assert backend in message
        assert all(valid in message for valid in supported)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_decoding_is_accepted_exactly_where_the_table_says(backend: str, strategy: str) -> None:
    """A decoding strategy runs on the backends of the table and on no other; the error lists the valid ones."""
    decoder = {"decoding_strategy": strategy} | ({"num_beams": 2} if strategy == "beam" else {})
    supported = DECODING_SUPPORT[backend]
    if strategy in supported:
        assert experiment(backend=backend, decoder=decoder).decoder.decoding_strategy == strategy
    else:
        message = refusal(backend=backend, decoder=decoder)
        assert strategy in message
        assert all(valid in message for valid in supported)


def test_backends_and_their_tables_are_the_documented_ones() -> None:
    """The golden list of names: the one place that changes with a new backend."""
    assert set(registry.backend_names()) == {*BACKENDS, "synthetic"}
    assert set(registry.energy_names()) == {"nvml", "zeus", "codecarbon", "simulated"}
    assert {b: set(registry.precision_support()[b]) for b in BACKENDS} == PRECISION_SUPPORT
    assert {b: set(registry.decoding_support()[b]) for b in BACKENDS} == DECODING_SUPPORT


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("other", BACKENDS)
def test_section_of_another_backend_is_refused_naming_both(backend: str, other: str) -> None:
    """A section is legal for its own backend only; an error names the section and the backend that was chosen."""
    if backend == other:
        assert experiment(backend=backend, **{other: {}}).section is not None
    else:
        message = refusal(backend=backend, **{other: {}})
        assert f"section {other}" in message
        assert f"backend is {backend}" in message


# Every entry breaks one rule; a configuration that breaks several is refused for the first [CFG-09].
BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"precision": "fp32"}, "precision fp32 is not supported"),
    ({"decoder": {"decoding_strategy": "beam"}}, "decoding_strategy beam is not supported"),
    ({"pytorch": {}}, "section pytorch belongs to"),
    ({"decoder": {"decoding_strategy": "greedy", "num_beams": 4}}, "num_beams"),
    ({"lora": {"adapter_id": "a", "adapter_path": "b"}}, "lora"),
    ({"passthrough_kwargs": {"model": "x"}}, "passthrough_kwargs"),
]


@pytest.mark.parametrize("first", range(len(BROKEN)), ids=[text for _, text in BROKEN])
def test_first_broken_rule_is_the_one_reported(first: int) -> None:
    """Of several broken rules the user hears the first of the documented order, so the message is stable."""
    fields: dict[str, Any] = {"backend": "tensorrt"}
    for broken, _ in reversed(BROKEN[first:]):
        fields |= broken
    if first == 1:  # beam without num_beams also breaks a decoder rule
        assert "num_beams" not in fields["decoder"]
    assert BROKEN[first][1] in refusal(**fields)
    assert not any(text in refusal(**fields) for _, text in BROKEN[first + 1 :])


DECODER_ERRORS: list[tuple[str, dict[str, Any], str]] = [
    ("beams-without-beam", {"num_beams": 4}, "num_beams: 4 works only with decoding_strategy: beam"),
    ("beam-without-beams", {"decoding_strategy": "beam"}, "needs num_beams"),
    ("sampling-field-in-beam", {"decoding_strategy": "beam", "num_beams": 2, "temperature": 0.5}, "temperature"),
    ("top-k-in-beam", {"decoding_strategy": "beam", "num_beams": 2, "top_k": 5}, "top_k"),
    ("sampling-preset-in-beam", {"decoding_strategy": "beam", "num_beams": 2, "preset": "creative"}, "temperature"),
]


@pytest.mark.parametrize(("decoder", "text"), [r[1:] for r in DECODER_ERRORS], ids=[r[0] for r in DECODER_ERRORS])
def test_decoder_values_that_contradict_each_other_are_refused(decoder: dict[str, Any], text: str) -> None:
    """A decoder setting that could have no effect is an error that names it, not a silent loss."""
    assert text in refusal(decoder=decoder)


PRESETS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("deterministic", {"preset": "deterministic"}, {"decoding_strategy": "greedy"}),
    ("standard", {"preset": "standard"}, {"decoding_strategy": "sampling", "temperature": 1.0, "top_p": 0.95}),
    ("creative", {"preset": "creative"}, {"decoding_strategy": "sampling", "temperature": 1.2, "top_k": 100}),
    ("factual", {"preset": "factual"}, {"decoding_strategy": "sampling", "temperature": 0.3, "top_p": 0.9}),
    ("explicit-wins", {"preset": "factual", "temperature": 0.7}, {"temperature": 0.7, "top_p": 0.9}),
    ("explicit-strategy-wins", {"preset": "creative", "decoding_strategy": "greedy"}, {"decoding_strategy": "greedy"}),
    ("null-does-not-win", {"preset": "factual", "temperature": None}, {"temperature": 0.3}),
]


@pytest.mark.parametrize(("decoder", "expected"), [r[1:] for r in PRESETS], ids=[r[0] for r in PRESETS])
def test_preset_fills_in_what_was_not_written(decoder: dict[str, Any], expected: dict[str, Any]) -> None:
    """The preset is laid down first, explicit values win over it."""
    got = experiment(decoder=decoder).decoder.model_dump()
    assert {k: got[k] for k in expected} == expected


GREEDY = [
    ("greedy", {}, True),
    ("greedy-with-temperature", {"temperature": 0.5}, True),
    ("sampling", {"decoding_strategy": "sampling"}, False),
    ("sampling-at-0", {"decoding_strategy": "sampling", "temperature": 0}, True),
    ("sampling-just-above-0", {"decoding_strategy": "sampling", "temperature": 0.01}, False),
    ("beam", {"decoding_strategy": "beam", "num_beams": 2}, False),
]


@pytest.mark.parametrize(("decoder", "greedy"), [r[1:] for r in GREEDY], ids=[r[0] for r in GREEDY])
def test_greedy_is_the_strategy_or_temperature_zero(decoder: dict[str, Any], greedy: bool) -> None:
    """Sampling at temperature 0 is greedy decoding; beam search never is."""
    assert experiment(decoder=decoder).decoder.is_greedy is greedy


LORA: list[tuple[str, str, dict[str, Any], str]] = [
    ("id", "pytorch", {"adapter_id": "a"}, ""),
    ("path", "vllm", {"adapter_path": "p", "merge_weights": True}, ""),
    ("both", "pytorch", {"adapter_id": "a", "adapter_path": "p"}, "exactly one"),
    ("neither", "pytorch", {}, "exactly one"),
    ("tensorrt", "tensorrt", {"adapter_id": "a"}, "merge"),
]


@pytest.mark.parametrize(("backend", "lora", "error"), [r[1:] for r in LORA], ids=[r[0] for r in LORA])
def test_lora_needs_one_adapter_and_a_backend_that_takes_it(backend: str, lora: dict[str, Any], error: str) -> None:
    """Exactly one of id and path; where the backend cannot, the error says to merge first."""
    if error:
        assert error in refusal(backend=backend, lora=lora)
    else:
        assert experiment(backend=backend, lora=lora).lora is not None


SECTION_ERRORS: list[tuple[str, str, dict[str, Any], str]] = [
    ("8bit-and-4bit", "pytorch", {"load_in_8bit": True, "load_in_4bit": True}, "exclude each other"),
    ("bnb-without-4bit", "pytorch", {"bnb_4bit_quant_type": "nf4"}, "load_in_4bit"),
    ("double-quant-without-4bit", "pytorch", {"bnb_4bit_use_double_quant": True}, "load_in_4bit"),
    ("cache-kind-without-cache", "pytorch", {"use_cache": False, "cache_implementation": "static"}, "use_cache"),
    ("compile-mode-without-compile", "pytorch", {"torch_compile_mode": "max-autotune"}, "torch_compile"),
    ("two-kv-sizes", "vllm", {"kv_cache_memory_bytes": 1, "gpu_memory_utilization": 0.5}, "exclude each other"),
    ("engine-path-of-pytorch", "tensorrt", {"variant": "pytorch", "engine_path": "p"}, "engine_path"),
]


@pytest.mark.parametrize(
    ("backend", "section", "text"), [r[1:] for r in SECTION_ERRORS], ids=[r[0] for r in SECTION_ERRORS]
)
def test_settings_of_one_engine_that_contradict_each_other_are_refused(
    backend: str, section: dict[str, Any], text: str
) -> None:
    """Engine settings that exclude or need each other are an error before anything is loaded."""
    assert text in refusal(backend=backend, **{backend: section})


IMPLIED: list[tuple[str, dict[str, Any], str, Any]] = [
    ("fp8", {"precision": "fp8"}, "quantization", "fp8"),
    ("fp8-named", {"precision": "fp8", "vllm": {"quantization": "fbgemm_fp8"}}, "quantization", "fbgemm_fp8"),
    ("bf16", {"precision": "bf16"}, "quantization", None),
    ("int4-needs-a-method", {"precision": "int4"}, "quantization", None),
    ("lora", {"lora": {"adapter_id": "a"}}, "enable_lora", True),
    ("no-lora", {}, "enable_lora", None),
]


@pytest.mark.parametrize(("fields", "name", "value"), [r[1:] for r in IMPLIED], ids=[r[0] for r in IMPLIED])
def test_vllm_section_holds_what_precision_and_lora_imply(fields: dict[str, Any], name: str, value: Any) -> None:
    """What another field implies is in the section before hashing, unless the section says otherwise."""
    assert experiment(backend="vllm", **fields).section.model_dump()[name] == value


PASSTHROUGH = [
    ("universal", "pytorch", "max_output_tokens"),
    ("own-section", "vllm", "max_num_seqs"),
    ("section-name", "pytorch", "vllm"),
]


@pytest.mark.parametrize(("backend", "key"), [r[1:] for r in PASSTHROUGH], ids=[r[0] for r in PASSTHROUGH])
def test_passthrough_of_a_declared_field_is_refused_by_name(backend: str, key: str) -> None:
    """There is one way to set a declared field, so the record cannot contradict the engine."""
    message = refusal(backend=backend, passthrough_kwargs={key: 1, "free": 2})
    assert f"passthrough_kwargs: {key} is a field" in message
    assert "free" not in message


def test_passthrough_of_anything_else_is_kept() -> None:
    """What llem does not know goes to the engine as it is."""
    kwargs = {"rope_scaling": {"factor": 2.0}, "eos_token": "</s>"}
    assert experiment(passthrough_kwargs=kwargs).passthrough_kwargs == kwargs


TRAFFIC: list[tuple[str, dict[str, Any], str]] = [
    ("poisson", {"target_qps": 2}, ""),
    ("gamma", {"mode": "gamma", "target_qps": 2, "burstiness": 0.5}, ""),
    ("trace", {"mode": "trace", "trace": "t.jsonl"}, ""),
    ("no-rate", {"mode": "constant"}, "needs target_qps"),
    ("no-trace", {"mode": "trace"}, "belong together"),
    ("stray-trace", {"target_qps": 1, "trace": "t.jsonl"}, "belong together"),
    ("stray-burstiness", {"target_qps": 1, "burstiness": 2}, "mode: gamma"),
]


@pytest.mark.parametrize(("traffic", "error"), [r[1:] for r in TRAFFIC], ids=[r[0] for r in TRAFFIC])
def test_traffic_has_what_its_mode_needs_and_nothing_else(traffic: dict[str, Any], error: str) -> None:
    """An arrival process is complete, and no setting of it is without effect."""
    if error:
        assert error in refusal(traffic=traffic)
    else:
        assert experiment(traffic=traffic).traffic is not None


LENGTHS: list[tuple[str, dict[str, Any], str]] = [
    ("fits", {"dataset": {"synthetic": {"input_len": 512}}}, ""),
    ("no-limit", {"dataset": {"synthetic": {"input_len": 4096}}, "max_input_tokens": 0}, ""),
    ("too-long", {"dataset": {"synthetic": {"input_len": 513}}}, "input_len: 513 is above max_input_tokens: 512"),
    ("enough", {"dataset": {"synthetic": {"n": 10}}, "n": 10}, ""),
    ("too-few", {"dataset": {"synthetic": {"n": 9}}, "n": 10}, "synthetic.n: 9 is below n: 10"),
]


@pytest.mark.parametrize(("fields", "error"), [r[1:] for r in LENGTHS], ids=[r[0] for r in LENGTHS])
def test_synthetic_prompts_fit_the_experiment(fields: dict[str, Any], error: str) -> None:
    """Generated prompts are never cut and never too few; the error has both numbers."""
    if error:
        assert error in refusal(**fields)
    else:
        assert experiment(**fields).dataset is not None


DATASETS = [
    ("builtin-model", "builtin:smollm2-135m", None, "builtin"),
    ("hub-model", "org/model", None, "aienergyscore"),
    ("written", "builtin:smollm2-135m", "prompts.jsonl", "prompts.jsonl"),
]


@pytest.mark.parametrize(("model", "dataset", "expected"), [r[1:] for r in DATASETS], ids=[r[0] for r in DATASETS])
def test_unset_dataset_follows_the_model(model: str, dataset: str | None, expected: str) -> None:
    """The builtin model reads the builtin prompts, any other the benchmark's; a written one stays."""
    config = ExperimentConfig.model_validate({"model": model, "dataset": dataset})
    assert config.dataset == expected


def test_version_key_is_tolerated_and_dropped() -> None:
    """A file that says which format it has is not refused, and means the same."""
    assert experiment(version="2.0") == experiment()


def test_null_equals_an_absent_key_at_every_depth() -> None:
    """kubectl deletes nulls, so a null may not mean anything of its own."""
    nulls = {
        "n": None, "precision": None, "backend": None, "lora": None, "decoder": {"temperature": None, "top_k": None},
        "warmup": None, "baseline": {"kind": None}, "energy": {"backend": None}, "pytorch": {"trust_remote_code": None},
        "measurement": {"phase_split": None}, "passthrough_kwargs": {"a": 1, "b": None},
    }  # fmt: skip
    assert experiment(**nulls) == experiment(passthrough_kwargs={"a": 1})


def test_unknown_field_is_refused_by_the_model_too() -> None:
    """Python callers get the same strictness as files; older names have no aliases."""
    with pytest.raises(ValidationError, match="model_name"):
        experiment(model_name="m")


@pytest.mark.parametrize("number", [float("nan"), float("inf")], ids=str)
def test_numbers_that_json_cannot_hold_are_refused(number: float) -> None:
    """NaN and infinity are no settings."""
    with pytest.raises(ValidationError):
        experiment(warmup={"thermal_floor_seconds": number})


def test_section_of_another_energy_source_is_refused() -> None:
    """A sensor script that no sensor would read is named, with both sources."""
    with pytest.raises(
        ValidationError, match="section simulated belongs to energy.backend simulated, but that is nvml"
    ):
        ExperimentConfig(model="m", energy={"backend": "nvml", "simulated": {"tick_ms": 10}})


def test_fp8_on_vllm_is_the_same_measurement_as_naming_its_quantisation() -> None:
    """What a precision implies is filled in before hashing, and a method that the user names stays."""
    implied = ExperimentConfig(model="m", backend="vllm", precision="fp8")
    written = ExperimentConfig(model="m", backend="vllm", precision="fp8", vllm={"quantization": "fp8"})
    other = ExperimentConfig(model="m", backend="vllm", precision="fp8", vllm={"quantization": "fp8_per_block"})
    assert measurement_config_hash(implied) == measurement_config_hash(written)
    assert other.section.quantization == "fp8_per_block"


def test_error_inside_a_generated_dataset_is_one_line_with_its_plain_name() -> None:
    """The user sees the key that was written, not the names of our classes."""
    with pytest.raises(ValidationError) as caught:
        ExperimentConfig(model="m", dataset={"synthetic": {"input_len": 0}})
    (line,) = reasons(caught.value)
    assert line.startswith("dataset.synthetic.input_len: ")
