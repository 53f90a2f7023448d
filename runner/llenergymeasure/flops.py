"""Counts the model's work and estimates its memory: 2 x non-embedding parameters x tokens, attention apart.

The factor 2 (one multiplication and one addition per weight and token) and the exclusion of embeddings follow Kaplan
et al. 2020, "Scaling Laws for Neural Language Models", section 2.1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llenergymeasure.core.config import ExperimentConfig
from llenergymeasure.core.contracts import ModelFacts
from llenergymeasure.core.result import FlopsResult

BYTES = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "fp8": 1.0, "int8": 1.0, "int4": 0.5}
OVERHEAD = 0.15  # of the weights: activations, buffers, allocator
LIKELY_OOM = 0.90  # of the GPU's memory
DEFAULT_SEQUENCES = 256  # vLLM's max_num_seqs on cards below 70 GB


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder-only transformer that count; from its config.json."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool
    experts: int = 0
    active_experts: int = 0

    @property
    def block_parameters(self) -> int:
        """Weights of all layers, every expert counted."""
        return self.layers * (self._attention + self._mlp * max(1, self.experts))

    @property
    def active_block_parameters(self) -> int:
        """Weights that one token passes through."""
        return self.layers * (self._attention + self._mlp * max(1, self.active_experts))

    @property
    def parameters(self) -> int:
        """All weights, with embeddings."""
        return self.block_parameters + self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def _attention(self) -> int:
        return self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)

    @property
    def _mlp(self) -> int:
        return 3 * self.hidden * self.intermediate if self.intermediate else 8 * self.hidden**2


def shape_of(config: Mapping[str, Any]) -> Shape | None:
    """Read a model's config.json (several families' names); None if it does not say enough."""
    text = config.get("text_config") if isinstance(config.get("text_config"), Mapping) else config
    assert isinstance(text, Mapping)

    def first(*names: str) -> int:
        return next((int(v) for n in names if isinstance(v := text.get(n), int) and not isinstance(v, bool)), 0)

    layers, hidden, heads = (
        first("num_hidden_layers", "n_layer"),
        first("hidden_size", "n_embd"),
        first("num_attention_heads", "n_head"),
    )
    if not (layers and hidden and heads):
        return None
    gpt2_like = "n_embd" in text  # two matrices of 4 x hidden instead of three: 8 hidden^2 in all
    return Shape(
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=first("num_key_value_heads") or heads,
        head_dim=first("head_dim") or hidden // heads,
        intermediate=0 if gpt2_like else first("moe_intermediate_size", "intermediate_size"),
        vocabulary=first("vocab_size"),
        tied=bool(text.get("tie_word_embeddings", True)),  # transformers' own default
        experts=first("num_local_experts", "num_experts", "n_routed_experts"),
        active_experts=first("num_experts_per_tok"),
    )


def count(
    config: ExperimentConfig,
    facts: ModelFacts,
    model_config: Mapping[str, Any],
    lengths: Sequence[tuple[int, int]],
) -> FlopsResult:
    """FLOPs of a window from (input, output) token counts per request; warm-up and padding are not in it."""
    tokens = sum(i + o for i, o in lengths)
    shape = shape_of(model_config)
    attention = _attention_flops(shape, lengths) if shape else None
    if shape and shape.experts:
        value, method, confidence = (
            2.0 * shape.active_block_parameters * tokens,
            "2_active_params_from_config",
            "medium",
        )
    elif facts.parameters is not None and facts.embedding_parameters is not None:
        weights = facts.parameters - facts.embedding_parameters
        value, method, confidence = 2.0 * weights * tokens, "2_non_embedding_params", "high"
    elif shape:
        value, method, confidence = 2.0 * shape.block_parameters * tokens, "2_params_from_config", "low"
    else:
        return FlopsResult(
            value=None,
            method="none",
            confidence="low",
            precision=config.precision,
            reason="the model's size is unknown",
        )
    return FlopsResult(
        value=value,
        method=method,
        confidence=confidence,
        precision=config.precision,
        attention_flops=attention,
    )


def _attention_flops(shape: Shape, lengths: Sequence[tuple[int, int]]) -> float:
    """4 x layers x heads x head_dim x attended pairs: scores and weighted sum, causal."""
    pairs = sum((i + o) * (i + o + 1) / 2 for i, o in lengths)
    return 4.0 * shape.layers * shape.heads * shape.head_dim * pairs


@dataclass(frozen=True)
class MemoryEstimate:
    """Expected device memory of an experiment, MiB per part."""

    weights_mb: float
    kv_cache_mb: float
    overhead_mb: float

    @property
    def total_mb(self) -> float:
        """Sum of the parts."""
        return self.weights_mb + self.kv_cache_mb + self.overhead_mb


def estimate_memory(
    config: ExperimentConfig, model_config: Mapping[str, Any], *, batch_key: str | None
) -> MemoryEstimate | None:
    """Memory from config.json alone, no torch; None if the config does not say enough."""
    shape = shape_of(model_config)
    if shape is None:
        return None
    width = BYTES[config.precision]
    batch = getattr(config.section, batch_key, None) if batch_key else None
    if batch is None:
        batch = 1 if batch_key == "batch_size" else DEFAULT_SEQUENCES
    sequence = (
        config.max_input_tokens or int(model_config.get("max_position_embeddings") or 4096)
    ) + config.max_output_tokens
    weights = shape.parameters * width
    kv = 2 * shape.layers * shape.kv_heads * shape.head_dim * sequence * batch * max(width, 1.0)
    return MemoryEstimate(weights / 2**20, kv / 2**20, OVERHEAD * weights / 2**20)
