"""Work and memory against hand computation, for published model shapes."""

from typing import Any

import pytest

from llenergymeasure import flops
from llenergymeasure.core.config import ExperimentConfig
from llenergymeasure.core.contracts import ModelFacts

LLAMA_3_8B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    "tie_word_embeddings": False, "max_position_embeddings": 8192,
}  # fmt: skip
GPT_2 = {
    "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12,
    "n_positions": 1024, "vocab_size": 50257,
}  # fmt: skip
MIXTRAL_8X7B = {
    "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "tie_word_embeddings": False,
    "num_local_experts": 8, "num_experts_per_tok": 2, "max_position_embeddings": 32768,
}  # fmt: skip
QWEN_3_30B_A3B = {
    "model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768,
    "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
    "vocab_size": 151936, "tie_word_embeddings": False, "num_experts": 128, "num_experts_per_tok": 8,
}  # fmt: skip
SMOLLM2 = {
    "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
}  # fmt: skip
UNKNOWN = ModelFacts(parameters=None, embedding_parameters=None)
MIB = 2**20


def _config(**fields: Any) -> ExperimentConfig:
    return ExperimentConfig(**{"model": "x", "dataset": "builtin"} | fields)


@pytest.mark.parametrize(
    ("config", "published"),
    [
        pytest.param(LLAMA_3_8B, 8.03e9, id="Llama 3 8B"),
        pytest.param(GPT_2, 124.4e6, id="GPT-2"),
        pytest.param(MIXTRAL_8X7B, 46.7e9, id="Mixtral 8x7B"),
        pytest.param(QWEN_3_30B_A3B, 30.5e9, id="Qwen3 30B A3B"),
        pytest.param(SMOLLM2, 134.5e6, id="SmolLM2 135M"),
        pytest.param({"text_config": LLAMA_3_8B, "vision_config": {}}, 8.03e9, id="nested text config"),
    ],
)
def test_parameters_follow_from_the_published_config(config: dict[str, Any], published: float) -> None:
    """The count is within 2 % of what the model's makers say."""
    shape = flops.shape_of(config)
    assert shape is not None
    assert shape.parameters == pytest.approx(published, rel=0.02)


@pytest.mark.parametrize(
    ("config", "published"),
    [(MIXTRAL_8X7B, 12.9e9), (QWEN_3_30B_A3B, 3.3e9)],
    ids=["Mixtral 8x7B", "Qwen3 30B A3B"],
)
def test_a_mixture_of_experts_counts_the_active_ones(config: dict[str, Any], published: float) -> None:
    """A token passes through the chosen experts only; with embeddings that is the published active size."""
    shape = flops.shape_of(config)
    assert shape is not None
    embeddings = 2 * shape.vocabulary * shape.hidden
    assert shape.active_block_parameters + embeddings == pytest.approx(published, rel=0.05)
    work = flops.count(_config(), UNKNOWN, config, [(10, 5)])
    assert work.value == 2 * shape.active_block_parameters * 15
    assert work.confidence == "medium"
    assert "active" in work.method


def test_work_is_twice_the_non_embedding_weights_per_token() -> None:
    """By hand: 1,000 weights of which 300 are embeddings, 3 requests of 10+5, 20+5 and 1+1 tokens."""
    facts = ModelFacts(parameters=1000, embedding_parameters=300)
    work = flops.count(_config(), facts, {}, [(10, 5), (20, 5), (1, 1)])
    assert work.value == 2 * 700 * 42
    assert (work.confidence, work.precision, work.reason) == ("high", "bf16", None)


def test_attention_is_counted_apart() -> None:
    """By hand for one request of 3 tokens in all: pairs 1+2+3, two layers, 4 heads of 16: 4 x 2 x 4 x 16 x 6."""
    config = {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 128, "vocab_size": 320,
    }  # fmt: skip
    facts = ModelFacts(parameters=100, embedding_parameters=0)
    work = flops.count(_config(), facts, config, [(2, 1)])
    assert work.attention_flops == 4 * 2 * 4 * 16 * 6
    assert work.value == 2 * 100 * 3


def test_without_a_loaded_model_the_config_gives_a_rough_count() -> None:
    """Only the config known: same rule, low confidence."""
    work = flops.count(_config(), UNKNOWN, LLAMA_3_8B, [(1, 0)])
    assert work.value == pytest.approx(2 * 6.98e9, rel=0.01)
    assert work.confidence == "low"


def test_an_unknown_size_is_null_with_a_reason() -> None:
    """Nothing known gives None and says so, never 0."""
    work = flops.count(_config(), UNKNOWN, {}, [(10, 5)])
    assert work.value is None
    assert work.reason


@pytest.mark.parametrize(
    ("precision", "bytes_per_weight"),
    [("fp32", 4), ("fp16", 2), ("bf16", 2)],
    ids=["fp32", "fp16", "bf16"],
)
def test_memory_of_llama_3_8b_by_hand(precision: str, bytes_per_weight: int) -> None:
    """Weights, KV cache and 15 % overhead from the shape, batch 4, 512 + 128 tokens."""
    estimate = flops.estimate_memory(
        _config(precision=precision, pytorch={"batch_size": 4}), LLAMA_3_8B, batch_key="batch_size"
    )
    assert estimate is not None
    weights = 8.03e9 * bytes_per_weight / MIB
    cache = 2 * 32 * 8 * 128 * 640 * 4 * bytes_per_weight / MIB
    assert estimate.weights_mb == pytest.approx(weights, rel=0.02)
    assert estimate.kv_cache_mb == pytest.approx(cache)
    assert estimate.overhead_mb == pytest.approx(0.15 * estimate.weights_mb)
    assert estimate.total_mb == estimate.weights_mb + estimate.kv_cache_mb + estimate.overhead_mb


@pytest.mark.parametrize(("precision", "share"), [("fp8", 0.5), ("int8", 0.5), ("int4", 0.25)])
def test_quantised_weights_take_less(precision: str, share: float) -> None:
    """One byte for 8 bits, half a byte for 4, against two for bf16."""
    wide, narrow = (
        flops.estimate_memory(_config(backend="vllm", precision=p), LLAMA_3_8B, batch_key="max_num_seqs")
        for p in ("bf16", precision)
    )
    assert wide is not None
    assert narrow is not None
    assert narrow.weights_mb == pytest.approx(share * wide.weights_mb)


def test_the_cache_is_never_zero_and_grows_with_batch_and_length() -> None:
    """Unset batch sizes count as the engine's default; twice the batch or twice the tokens is twice the cache."""

    def cache(**fields: Any) -> float:
        found = flops.estimate_memory(_config(**fields), LLAMA_3_8B, batch_key="batch_size")
        assert found is not None
        return found.kv_cache_mb

    one = cache()
    assert one > 0
    assert cache(pytorch={"batch_size": 2}) == pytest.approx(2 * one)
    assert cache(max_input_tokens=1024, max_output_tokens=256) == pytest.approx(2 * one)


def test_a_continuous_batcher_counts_its_sequences() -> None:
    """vLLM's batch is max_num_seqs, and 256 where it is unset."""

    def cache(**section: Any) -> float:
        found = flops.estimate_memory(_config(backend="vllm", vllm=section), LLAMA_3_8B, batch_key="max_num_seqs")
        assert found is not None
        return found.kv_cache_mb

    assert cache() == pytest.approx(256 * cache(max_num_seqs=1))


def test_no_limit_on_prompts_counts_the_whole_context() -> None:
    """max_input_tokens 0 means the model's context may be filled."""
    limited, unlimited = (
        flops.estimate_memory(_config(max_input_tokens=n), LLAMA_3_8B, batch_key="batch_size") for n in (8192, 0)
    )
    assert limited is not None
    assert unlimited == limited


@pytest.mark.parametrize("config", [{}, {"hidden_size": 8}, {"hidden_size": True, "num_hidden_layers": 1}])
def test_a_config_that_does_not_say_enough_gives_no_estimate(config: dict[str, Any]) -> None:
    """Unknown is None, never 0."""
    assert flops.estimate_memory(_config(), config, batch_key="batch_size") is None
