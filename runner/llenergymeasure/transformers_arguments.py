"""What transformers is told: the arguments of `from_pretrained` and `generate` for a configuration, and its adapter.

Library modules are imported inside functions: planning and validating need none.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llenergymeasure.core.config import ExperimentConfig

BNB_FIELDS = ("bnb_4bit_compute_dtype", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant")
_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
_GENERATE_FIELDS = (
    "use_cache",
    "cache_implementation",
    "early_stopping",
    "length_penalty",
    "no_repeat_ngram_size",
    "prompt_lookup_num_tokens",
)


def load_kwargs(config: "ExperimentConfig") -> dict[str, Any]:
    """Give what `from_pretrained` receives for a configuration."""
    import torch
    from transformers import BitsAndBytesConfig

    s: Any = config.section
    kwargs: dict[str, Any] = {"dtype": getattr(torch, _DTYPES[config.precision])}
    for name in ("attn_implementation", "device_map", "low_cpu_mem_usage"):
        if getattr(s, name) is not None:
            kwargs[name] = getattr(s, name)
    kwargs["trust_remote_code"] = s.trust_remote_code
    if s.max_memory is not None:
        kwargs["max_memory"] = {int(k) if k.isdigit() else k: v for k, v in s.max_memory.items()}
    if s.tp_size is not None:
        kwargs |= {"tp_plan": "auto", "tp_size": s.tp_size}
    if s.load_in_8bit or s.load_in_4bit:
        extra = {k: getattr(s, k) for k in BNB_FIELDS if getattr(s, k) is not None}
        kwargs["quantization_config"] = BitsAndBytesConfig(
            load_in_8bit=bool(s.load_in_8bit), load_in_4bit=bool(s.load_in_4bit), **extra
        )
    return kwargs | (config.passthrough_kwargs or {})


def generate_kwargs(config: "ExperimentConfig") -> dict[str, Any]:
    """Give what `generate` receives beside the batch; greedy decoding gets no sampling parameter."""
    d, s = config.decoder, config.section
    kwargs: dict[str, Any] = {
        "do_sample": d.decoding_strategy == "sampling" and not d.is_greedy,
        "num_beams": d.num_beams if d.decoding_strategy == "beam" else 1,
        "repetition_penalty": d.repetition_penalty,
    }
    if kwargs["do_sample"]:
        kwargs |= {"temperature": d.temperature, "top_p": d.top_p, "top_k": d.top_k or 0}
        if d.min_p is not None:
            kwargs["min_p"] = d.min_p
    for name in _GENERATE_FIELDS:
        if getattr(s, name) is not None:
            kwargs[name] = getattr(s, name)
    return kwargs


def with_adapter(model: Any, config: "ExperimentConfig") -> Any:
    """Put the LoRA adapter on the model, merged into the weights if asked."""
    from peft import PeftModel

    assert config.lora is not None
    adapted = PeftModel.from_pretrained(model, config.lora.adapter_id or config.lora.adapter_path)
    return adapted.merge_and_unload() if config.lora.merge_weights else adapted
