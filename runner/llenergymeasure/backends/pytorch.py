"""PyTorch through Hugging Face transformers: `from_pretrained` and `generate` with static, left-padded batches.

The model's own generation defaults (temperature, penalties, ...) are replaced by llem's decoder settings, so that
two backends with one configuration do the same work. With `ignore_eos` the generation has no end token.
"""

import gc
import importlib.metadata
import importlib.util
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, Field, model_validator

from llenergymeasure import torch_device, transformers_arguments
from llenergymeasure.core.contracts import Generation, ModelFacts, Prompt, Request, Weights
from llenergymeasure.core.errors import (
    BackendMissingError,
    ConfigError,
    LLEMError,
)
from llenergymeasure.core.sections import Bool, Float, Int, Part

if TYPE_CHECKING:
    from llenergymeasure.core.config import ExperimentConfig

log = logging.getLogger(__name__)

NAME = "pytorch"
PRECISIONS = ("fp32", "fp16", "bf16")
DECODING = ("greedy", "sampling", "beam")
BATCH_SIZE_KEY = "batch_size"
PACKAGES = ("torch", "transformers")


class Settings(Part):
    """Settings of PyTorch and transformers; a value left out is the library's own default."""

    batch_size: Int | None = Field(None, ge=1, le=65536, description="Prompts per batch; unset: 1.")
    batching_strategy: Literal["static", "dynamic"] | None = Field(
        None,
        description="static: prompts in file order; dynamic: prompts sorted by length, so that batches hold "
        "less padding. Unset: static.",
    )
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3"] | None = Field(
        None, description="Attention kernel."
    )
    torch_compile: Bool | None = Field(None, description="Compile the model's forward pass.")
    torch_compile_mode: str | None = Field(None, min_length=1, description="Mode of torch.compile.")
    torch_compile_backend: str | None = Field(None, min_length=1, description="Backend of torch.compile.")
    load_in_8bit: Bool | None = Field(None, description="Quantise weights to 8 bits with bitsandbytes.")
    load_in_4bit: Bool | None = Field(None, description="Quantise weights to 4 bits with bitsandbytes.")
    bnb_4bit_compute_dtype: Literal["float32", "float16", "bfloat16"] | None = Field(
        None, description="Number format of 4-bit arithmetic."
    )
    bnb_4bit_quant_type: Literal["fp4", "nf4"] | None = Field(None, description="4-bit number format.")
    bnb_4bit_use_double_quant: Bool | None = Field(None, description="Quantise the scales, too.")
    use_cache: Bool | None = Field(None, description="Keep keys and values of past tokens.")
    cache_implementation: Literal["dynamic", "static", "offloaded", "offloaded_static", "quantized"] | None = Field(
        None, description="Kind of KV cache; static ones compile the forward pass on CUDA."
    )
    early_stopping: Bool | None = Field(None, description="Beam search ends with enough finished beams.")
    length_penalty: Float | None = Field(None, description="Beam search exponent of the length, no unit.")
    no_repeat_ngram_size: Int | None = Field(None, ge=0, description="Length of n-grams that may occur once.")
    prompt_lookup_num_tokens: Int | None = Field(
        None, ge=1, description="Draft tokens looked up in the prompt; needs batch size 1."
    )
    device_map: str | dict[str, int | str] | None = Field(None, description="Placement of layers on devices.")
    max_memory: dict[str, int | str] | None = Field(None, description="Most memory per device, e.g. {0: 70GiB}.")
    trust_remote_code: Bool = Field(False, description="Run code that comes with the model.")
    low_cpu_mem_usage: Bool | None = Field(None, description="Load piece by piece; transformers 5 always does.")
    allow_tf32: Bool | None = Field(None, description="TensorFloat-32 in fp32 matrix products.")
    tp_size: Int | None = Field(None, ge=1, le=64, description="GPUs that share each layer.")
    num_processes: Int | None = Field(None, ge=1, le=64, description="Copies of the model, one GPU each.")

    @model_validator(mode="before")
    @classmethod
    def _text_keys(cls, data: Any) -> Any:
        """YAML reads `max_memory: {0: 70GiB}` with a number as key; JSON has text. Both mean GPU 0."""
        memory = data.get("max_memory") if isinstance(data, Mapping) else None
        return {**data, "max_memory": {str(k): v for k, v in memory.items()}} if isinstance(memory, Mapping) else data

    @model_validator(mode="after")
    def _check(self) -> "Settings":
        if self.load_in_8bit and self.load_in_4bit:
            raise ValueError("load_in_8bit and load_in_4bit exclude each other; keep one")
        lonely = [k for k in transformers_arguments.BNB_FIELDS if getattr(self, k) is not None]
        if lonely and not self.load_in_4bit:
            raise ValueError(f"{', '.join(lonely)} needs load_in_4bit: true")
        if self.cache_implementation is not None and self.use_cache is False:
            raise ValueError(f"cache_implementation: {self.cache_implementation} conflicts with use_cache: false")
        stray = [k for k in ("torch_compile_mode", "torch_compile_backend") if getattr(self, k) is not None]
        if stray and not self.torch_compile:
            raise ValueError(f"{', '.join(stray)} needs torch_compile: true")
        if self.prompt_lookup_num_tokens and (self.batch_size or 1) > 1:
            raise ValueError(f"prompt_lookup_num_tokens needs batch_size 1, not {self.batch_size}")
        return self


def gpu_count(section: BaseModel | None) -> int:
    """GPUs of one run: tensor parallel x processes."""
    return (section.tp_size or 1) * (section.num_processes or 1) if isinstance(section, Settings) else 1


def spreads(section: BaseModel | None) -> bool:
    """Whether the layers may be placed on any visible GPU."""
    return isinstance(section, Settings) and section.device_map is not None


def completed(section: Settings, *, precision: str, lora: bool) -> Settings:
    """Fill in the two defaults that are ours, so that leaving them out says what writing them says."""
    del precision, lora
    ours = {"batch_size": 1, "batching_strategy": "static"}
    return section.model_copy(update={k: v for k, v in ours.items() if getattr(section, k) is None})


def installed() -> bool:
    """Whether torch and transformers can be found."""
    return all(importlib.util.find_spec(m) is not None for m in ("torch", "transformers"))


class Engine:
    """A transformers model on one device, or spread by `device_map`."""

    NAME: ClassVar[str] = NAME

    def __init__(self) -> None:
        self._model: Any = None
        self._tokenizer: Any = None
        self._settings = Settings()
        self._generate_kwargs: dict[str, Any] = {}
        self._ignore_eos = True
        self._device = "cpu"
        self._matmul_precision_before: str | None = None

    def check(self, config: "ExperimentConfig") -> list[LLEMError]:
        """Name missing libraries, unsupported options and hardware that cannot do it."""
        if not installed():
            return [BackendMissingError(f'backend {NAME} is not installed; run: pip install "llenergymeasure[{NAME}]"')]
        s = config.section
        assert isinstance(s, Settings)
        problems: list[LLEMError] = []
        wanted = {"bitsandbytes": bool(s.load_in_8bit or s.load_in_4bit), "peft": config.lora is not None}
        wanted["flash_attn"] = s.attn_implementation == "flash_attention_2"
        problems += [
            BackendMissingError(f"{module} is not installed but the configuration needs it; run: pip install {module}")
            for module, needed in wanted.items()
            if needed and importlib.util.find_spec(module) is None
        ]
        own = sorted({"dtype", "torch_dtype", "tp_plan", "quantization_config"} & set(config.passthrough_kwargs or ()))
        if own:
            text = (
                f"passthrough_kwargs: {', '.join(own)} is set by llem from precision and the section pytorch; remove it"
            )
            problems.append(ConfigError(text))
        parallel = {"tp_size": s.tp_size or 1, "num_processes": s.num_processes or 1}
        problems += [
            BackendMissingError(f"pytorch.{k}: {v} needs several processes, which this release does not start; use 1")
            for k, v in parallel.items()
            if v > 1
        ]
        return problems

    def load(self, config: "ExperimentConfig", weights: Weights) -> ModelFacts:
        """Load tokeniser and model, place and compile them; raises BackendError and its kind."""
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
        from transformers.utils import logging as hf_logging

        hf_logging.disable_progress_bar()
        hf_logging.set_verbosity_error()
        s = config.section
        assert isinstance(s, Settings)
        self._settings, self._ignore_eos = s, config.decoder.ignore_eos
        if s.allow_tf32 is not None:
            self._matmul_precision_before = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision("high" if s.allow_tf32 else "highest")
        self.seed(config.random_seed)
        kwargs = transformers_arguments.load_kwargs(config)
        with torch_device.translated(NAME, f"loading {weights.name}"):
            self._tokenizer = AutoTokenizer.from_pretrained(str(weights.path), trust_remote_code=s.trust_remote_code)
            model = AutoModelForCausalLM.from_pretrained(str(weights.path), **kwargs)
            if config.lora is not None:
                model = transformers_arguments.with_adapter(model, config)
            model.eval()
            if not {"quantization_config", "device_map", "tp_size"} & set(kwargs):
                model.to("cuda" if torch.cuda.is_available() else "cpu")
            if s.torch_compile:
                options = {"mode": s.torch_compile_mode, "backend": s.torch_compile_backend}
                model.compile(**{k: v for k, v in options.items() if v is not None})
        self._model, self._device = model, str(model.device.type)
        eos = None if self._ignore_eos else self._eos_ids()
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        base.generation_config = GenerationConfig(
            eos_token_id=eos, pad_token_id=self._pad_id(), bos_token_id=self._tokenizer.bos_token_id
        )
        self._generate_kwargs = transformers_arguments.generate_kwargs(config)
        return self._facts()

    def _eos_ids(self) -> Any:
        return self._model.generation_config.eos_token_id or self._tokenizer.eos_token_id

    def _pad_id(self) -> int:
        for candidate in (self._tokenizer.pad_token_id, self._tokenizer.eos_token_id):
            if candidate is not None:
                return int(candidate)
        return 0  # padding is masked, so any id will do

    def _facts(self) -> ModelFacts:
        model, text = self._model, self._model.config.get_text_config()
        tables = {
            id(e.weight): e.weight.numel()
            for e in (model.get_input_embeddings(), model.get_output_embeddings())
            if e is not None
        }
        return ModelFacts(
            parameters=int(model.num_parameters()),
            embedding_parameters=sum(tables.values()),
            layers=getattr(text, "num_hidden_layers", None),
            hidden_size=getattr(text, "hidden_size", None),
            context_length=getattr(text, "max_position_embeddings", None),
            memory_model_mb=torch_device.memory_now_mb(self._device) or model.get_memory_footprint() / torch_device.MB,
            dtype=str(model.dtype).removeprefix("torch."),
            device=self._device,
            gpu_positions=tuple(sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"}))
            or None,
        )

    def seed(self, value: int) -> None:
        """Seed python, numpy, torch CPU and CUDA, from which sampling draws."""
        torch_device.seed(value)

    def tokenise(self, prompts: Sequence[Prompt], *, max_input_tokens: int) -> list[tuple[int, ...]]:
        """Token ids per prompt, cut to `max_input_tokens`; drawn ids are mapped into the vocabulary."""
        return [self._ids(i, p, max_input_tokens) for i, p in enumerate(prompts)]

    def _ids(self, index: int, prompt: Prompt, limit: int) -> tuple[int, ...]:
        if prompt.token_ids is not None:
            special, size = set(self._tokenizer.all_special_ids), len(self._tokenizer)
            plain = [i for i in range(size) if i not in special] if size <= len(special) + 64 else None
            ids = [plain[t % len(plain)] if plain else _step_over(t % size, special, size) for t in prompt.token_ids]
            return tuple(ids)
        cut = {"truncation": True, "max_length": limit} if limit else {}
        ids = self._tokenizer(prompt.text, **cut)["input_ids"]
        if not ids and self._tokenizer.bos_token_id is not None:
            ids = [self._tokenizer.bos_token_id]
        if not ids:
            raise ConfigError(f"prompt {index} is empty and the model has no start token; remove it from the dataset")
        return tuple(ids)

    def batches(self, requests: Sequence[Request]) -> list[tuple[Request, ...]]:
        """Full batches of one pass, reading the requests in a circle; `dynamic` sorts them by length first."""
        size = self._settings.batch_size or 1
        dynamic = self._settings.batching_strategy == "dynamic"
        order = sorted(requests, key=lambda r: len(r.token_ids)) if dynamic else list(requests)
        count = -(-len(order) // size)
        return [tuple(order[(b * size + i) % len(order)] for i in range(size)) for b in range(count)]

    def generate(self, batch: Sequence[Request]) -> Generation:
        """Run one left-padded batch; the device is synchronised before and after."""
        return self._generate(batch)

    def generate_timed(self, batch: Sequence[Request]) -> Generation:
        """The same with the time of the first token; every token costs a copy to the host. Not with beam search."""
        stamp = _FirstToken()
        return replace(self._generate(batch, streamer=stamp), first_token_s=stamp.first_s)

    def _generate(self, batch: Sequence[Request], **extra: Any) -> Generation:
        import torch

        width = max(len(r.token_ids) for r in batch)
        pad = self._pad_id()
        rows = [[pad] * (width - len(r.token_ids)) + list(r.token_ids) for r in batch]
        mask = [[0] * (width - len(r.token_ids)) + [1] * len(r.token_ids) for r in batch]
        with torch_device.translated(NAME, "generating"), torch.inference_mode():
            start_s = torch_device.now_s(self._device)
            out = self._model.generate(
                input_ids=torch.tensor(rows, device=self._model.device),
                attention_mask=torch.tensor(mask, device=self._model.device),
                max_new_tokens=max(r.max_new_tokens for r in batch),
                **self._generate_kwargs,
                **extra,
            )
            end_s = torch_device.now_s(self._device)
        tokens = tuple(self._useful(row[width:], r) for row, r in zip(out.tolist(), batch, strict=True))
        return Generation(tuple(batch), tokens, start_s, end_s)

    def _useful(self, ids: list[int], request: Request) -> tuple[int, ...]:
        """A sequence up to its own limit and, unless ignored, its first end token (inclusive)."""
        ids = ids[: request.max_new_tokens]
        if not self._ignore_eos:
            eos = self._model.generation_config.eos_token_id
            ends = set(eos if isinstance(eos, list) else [eos])
            stop = next((i for i, t in enumerate(ids) if t in ends), None)
            ids = ids if stop is None else ids[: stop + 1]
        return tuple(ids)

    def detokenise(self, token_ids: Sequence[int]) -> str:
        """Text without special tokens."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def memory_peak_mb(self) -> float | None:
        """Peak of torch's allocator over all GPUs, MiB; None on a CPU."""
        return torch_device.memory_peak_mb(self._device)

    def reset_memory_peak(self) -> None:
        """Start a new peak."""
        torch_device.reset_memory_peak(self._device)

    def effective(self) -> dict[str, Any]:
        """What was in force, also what the library chose."""
        import torch

        config = self._model.config
        return {
            "batch_size": self._settings.batch_size or 1,
            "batching_strategy": self._settings.batching_strategy or "static",
            "attn_implementation": getattr(config, "_attn_implementation", None),
            "dtype": str(self._model.dtype).removeprefix("torch."),
            "device": self._device,
            "cache_implementation": self._cache_in_force(),
            "torch_compile": bool(self._settings.torch_compile),
            "static_cache_compiles_forward": self._device == "cuda" and "static" in (self._cache_in_force() or ""),
            "cpu_threads": torch.get_num_threads() if self._device == "cpu" else None,
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
            "transformers_version": importlib.metadata.version("transformers"),
            "generate": dict(self._generate_kwargs),
        }

    def _cache_in_force(self) -> str | None:
        if self._settings.use_cache is False:
            return None
        return self._settings.cache_implementation or "dynamic"

    def version(self) -> str:
        """Version of torch."""
        return importlib.metadata.version("torch")

    def close(self) -> None:
        """Drop the model, give cached GPU memory back, and leave torch's global setting as it was."""
        self._model = self._tokenizer = None
        gc.collect()
        if self._matmul_precision_before is not None:
            import torch

            torch.set_float32_matmul_precision(self._matmul_precision_before)
            self._matmul_precision_before = None
        if self._device == "cuda":
            import torch

            torch.cuda.empty_cache()


class _FirstToken:
    """A streamer of transformers that keeps the time of the first generated token.

    `generate` puts the prompt first and then the tokens of every step, copied to the host: the device has finished
    the step by then (transformers 5.24, generation/utils.py, StopCheck).
    """

    def __init__(self) -> None:
        self.first_s: float | None = None
        self._prompt_seen = False

    def put(self, value: Any) -> None:
        """Take the prompt or the tokens of a step."""
        del value
        if not self._prompt_seen:
            self._prompt_seen = True
        elif self.first_s is None:
            self.first_s = time.monotonic()

    def end(self) -> None:
        """Nothing to flush."""


def _step_over(token: int, special: set[int], size: int) -> int:
    while token in special:
        token = (token + 1) % size
    return token
