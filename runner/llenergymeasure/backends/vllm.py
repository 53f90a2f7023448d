"""vLLM: settings and what it supports; running it is not part of this release, planning and validating is."""

import importlib.util
from typing import Any, Literal

from pydantic import BaseModel, Field, model_validator

from llenergymeasure.core.sections import Bool, Float, Int, Part

NAME = "vllm"
PRECISIONS = ("fp16", "bf16", "fp8", "int8", "int4")
DECODING = ("greedy", "sampling", "beam")
BATCH_SIZE_KEY = "max_num_seqs"


class Settings(Part):
    """Settings of vLLM; a value left out is the engine's own default, which may depend on the card."""

    max_num_seqs: Int | None = Field(None, ge=1, description="Most sequences decoded at once.")
    max_num_batched_tokens: Int | None = Field(None, ge=1, description="Most tokens in one engine step.")
    max_model_len: Int | None = Field(None, ge=1, description="Longest prompt plus output, tokens.")
    gpu_memory_utilization: Float | None = Field(
        None, gt=0, le=1, description="Share of the GPU's memory that the engine may take, no unit."
    )
    kv_cache_memory_bytes: Int | None = Field(None, ge=1, description="Size of the KV cache per GPU, bytes.")
    tensor_parallel_size: Int | None = Field(None, ge=1, le=64, description="GPUs that share each layer.")
    pipeline_parallel_size: Int | None = Field(None, ge=1, le=64, description="GPUs that share the layers.")
    enable_prefix_caching: Bool = Field(
        False,
        description="Reuse the KV cache of equal prefixes. Off unless set, unlike in vLLM: repeated prompts "
        "would otherwise measure a cache.",
    )
    enable_chunked_prefill: Bool | None = Field(None, description="Mix pieces of prefills into decode steps.")
    block_size: Int | None = Field(None, ge=1, description="Size of a KV cache block, tokens.")
    quantization: str | None = Field(None, min_length=1, description="Quantisation method.")
    kv_cache_dtype: str | None = Field(None, min_length=1, description="Number format of the KV cache.")
    enforce_eager: Bool | None = Field(None, description="No CUDA graphs and no compilation.")
    compilation_config: dict[str, Any] | Int | None = Field(None, description="vLLM's compilation settings.")
    speculative_config: dict[str, Any] | None = Field(None, description="vLLM's speculative decoding settings.")
    cpu_offload_gb: Float | None = Field(None, ge=0, description="Weights kept in host memory per GPU, GiB.")
    attention_backend: str | None = Field(None, min_length=1, description="Attention kernel.")
    enable_lora: Bool | None = Field(None, description="Accept LoRA adapters; lora turns it on.")
    load_format: str | None = Field(None, min_length=1, description="How weights are read; dummy makes none up.")
    distributed_executor_backend: Literal["mp", "ray", "uni", "external_launcher"] | None = Field(
        None, description="How workers of several GPUs are started."
    )

    @model_validator(mode="after")
    def _check(self) -> "Settings":
        if self.kv_cache_memory_bytes is not None and self.gpu_memory_utilization is not None:
            raise ValueError("kv_cache_memory_bytes and gpu_memory_utilization exclude each other; keep one")
        return self


def completed(section: Settings, *, precision: str, lora: bool) -> Settings:
    """Fill in what precision and adapter imply: fp8 weights are quantised online, an adapter needs enable_lora."""
    implied: dict[str, object] = {}
    if precision == "fp8" and section.quantization is None:
        implied["quantization"] = "fp8"
    if lora and section.enable_lora is None:
        implied["enable_lora"] = True
    return section.model_copy(update=implied) if implied else section


def gpu_count(section: BaseModel | None) -> int:
    """GPUs of one run: tensor parallel x pipeline parallel."""
    if not isinstance(section, Settings):
        return 1
    return (section.tensor_parallel_size or 1) * (section.pipeline_parallel_size or 1)


def installed() -> bool:
    """Whether the library can be found."""
    return importlib.util.find_spec("vllm") is not None
