"""TensorRT-LLM: settings and what it supports; running it is not part of this release, planning is."""

import importlib.util
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from llenergymeasure.core.sections import Bool, Int, Part

NAME = "tensorrt"
PRECISIONS = ("fp16", "bf16", "fp8", "int8", "int4")
DECODING = ("greedy", "sampling")
LORA_ADVICE = "merge the adapter into the weights first and measure the merged model"
BATCH_SIZE_KEY = "max_batch_size"
INSTALL_HINT = "use NVIDIA's image nvcr.io/nvidia/tensorrt-llm/release"


class KvCacheConfig(Part):
    """The KV cache of TensorRT-LLM; further keys of its own are handed on as they are."""

    model_config = ConfigDict(**{**Part.model_config, "extra": "allow"})

    enable_block_reuse: Bool = Field(
        False,
        description="Reuse KV blocks of equal prefixes. Off unless set, unlike in TensorRT-LLM: repeated prompts "
        "would otherwise measure a cache.",
    )


class Settings(Part):
    """Settings of TensorRT-LLM; a value left out is the engine's own default."""

    variant: Literal["pytorch", "tensorrt"] | None = Field(
        None, description="pytorch (1.0 and later) or tensorrt (built engines, up to 1.2)."
    )
    max_batch_size: Int | None = Field(None, ge=1, description="Most requests decoded at once.")
    max_num_tokens: Int | None = Field(None, ge=1, description="Most tokens in one engine step.")
    max_seq_len: Int | None = Field(None, ge=1, description="Longest prompt plus output, tokens.")
    max_input_len: Int | None = Field(None, ge=1, description="Longest prompt, tokens.")
    tensor_parallel_size: Int | None = Field(None, ge=1, le=64, description="GPUs that share each layer.")
    pipeline_parallel_size: Int | None = Field(None, ge=1, le=64, description="GPUs that share the layers.")
    quant_config: dict[str, Any] | None = Field(None, description="TensorRT-LLM's quantisation settings.")
    kv_cache_config: KvCacheConfig = Field(KvCacheConfig(), description="The KV cache.")
    scheduler_policy: Literal["MAX_UTILIZATION", "GUARANTEED_NO_EVICT", "STATIC_BATCH"] | None = Field(
        None, description="Which requests enter the next step."
    )
    cuda_graph_config: dict[str, Any] | None = Field(None, description="TensorRT-LLM's CUDA graph settings.")
    fast_build: Bool | None = Field(None, description="Build the engine faster, run it slower (variant tensorrt).")
    engine_path: str | None = Field(None, min_length=1, description="A built engine; skips the build.")

    @model_validator(mode="after")
    def _check(self) -> "Settings":
        engine_only = [k for k in ("fast_build", "engine_path") if getattr(self, k) is not None]
        if engine_only and self.variant == "pytorch":
            raise ValueError(f"{engine_only[0]} works only with variant: tensorrt, not pytorch")
        return self


def gpu_count(section: BaseModel | None) -> int:
    """GPUs of one run: tensor parallel x pipeline parallel."""
    if not isinstance(section, Settings):
        return 1
    return (section.tensor_parallel_size or 1) * (section.pipeline_parallel_size or 1)


def installed() -> bool:
    """Whether the library can be found."""
    return importlib.util.find_spec("tensorrt_llm") is not None
