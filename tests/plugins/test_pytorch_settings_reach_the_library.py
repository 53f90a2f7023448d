"""Every field of the pytorch section, and every decoder field, is what transformers and torch receive."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationMixin

from llenergymeasure.backends.pytorch import Settings
from llenergymeasure.core import registry
from llenergymeasure.core.config import ExperimentConfig
from llenergymeasure.core.contracts import Prompt, Request
from llenergymeasure.core.errors import BackendMissingError
from llenergymeasure.core.sections import DecoderConfig

pytestmark = pytest.mark.model

REFUSED = {"num_processes"}  # reaches no library: more than one is refused, one changes nothing
TEXTS = ["the longest of the three prompts", "short", "of middle size"]


@dataclass
class Heard:
    """What the vendor's functions received, in order."""

    model: dict[str, Any] = field(default_factory=dict)
    tokenizer: dict[str, Any] = field(default_factory=dict)
    generate: list[dict[str, Any]] = field(default_factory=list)
    eos: list[Any] = field(default_factory=list)
    compiled: list[dict[str, Any]] = field(default_factory=list)
    precision: list[str] = field(default_factory=list)

    @property
    def rows(self) -> list[int]:
        """Rows of each batch."""
        return [len(g["input_ids"]) for g in self.generate]

    @property
    def widths(self) -> list[int]:
        """Tokens in each row of each batch, padding not counted."""
        return [int(w) for g in self.generate for w in g["attention_mask"].sum(1)]


@pytest.fixture
def listen(monkeypatch: pytest.MonkeyPatch, loaded: Callable[..., Any], tiny_model: Path) -> Callable[..., Heard]:
    """Run three prompts of the tiny model with spies around the vendor's functions; `drop` what a CPU cannot do."""

    def run(*, drop: tuple[str, ...] = (), **fields: Any) -> Heard:
        heard = Heard()
        load, load_tokenizer = AutoModelForCausalLM.from_pretrained, AutoTokenizer.from_pretrained
        generate, set_precision = GenerationMixin.generate, torch.set_float32_matmul_precision

        def spy_load(*args: Any, **kwargs: Any) -> Any:
            heard.model = kwargs
            return load(*args, **{k: v for k, v in kwargs.items() if k not in drop})

        def spy_tokenizer(*args: Any, **kwargs: Any) -> Any:
            heard.tokenizer = kwargs
            return load_tokenizer(*args, **kwargs)

        def spy_generate(self: Any, *args: Any, **kwargs: Any) -> Any:
            heard.generate.append(kwargs)
            heard.eos.append(self.generation_config.eos_token_id)
            return generate(self, *args, **{k: v for k, v in kwargs.items() if k not in drop})

        monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", spy_load)
        monkeypatch.setattr(AutoTokenizer, "from_pretrained", spy_tokenizer)
        monkeypatch.setattr(GenerationMixin, "generate", spy_generate)
        monkeypatch.setattr(torch.nn.Module, "compile", lambda _self, **kwargs: heard.compiled.append(kwargs))
        monkeypatch.setattr(torch, "set_float32_matmul_precision", heard.precision.append)
        engine = loaded(tiny_model, **fields)
        monkeypatch.setattr(torch, "set_float32_matmul_precision", set_precision)
        ids = engine.tokenise([Prompt(text=t) for t in TEXTS], max_input_tokens=0)
        for batch in engine.batches([Request(i, t, 4) for i, t in enumerate(ids)]):
            engine.generate(batch)
        return heard

    return run


@dataclass(frozen=True)
class Case:
    """A section, where its value is heard, and what must be heard there."""

    section: dict[str, Any]
    heard: Callable[[Heard], Any]
    expected: Any
    drop: tuple[str, ...] = ()
    more: dict[str, Any] = field(default_factory=dict)


def _model(name: str) -> Callable[[Heard], Any]:
    return lambda h: h.model[name]


def _generate(name: str) -> Callable[[Heard], Any]:
    return lambda h: h.generate[0][name]


def _quantised(name: str) -> Callable[[Heard], Any]:
    return lambda h: getattr(h.model["quantization_config"], name)


FOUR_BIT = {"load_in_4bit": True}
BEAM = {"decoder": {"decoding_strategy": "beam", "num_beams": 2}}
CASES: dict[str, Case] = {
    "batch_size": Case({"batch_size": 2}, lambda h: h.rows, [2, 2]),
    "batching_strategy": Case({"batching_strategy": "dynamic"}, lambda h: h.widths, sorted(map(len, TEXTS))),
    "attn_implementation": Case({"attn_implementation": "eager"}, _model("attn_implementation"), "eager"),
    "torch_compile": Case({"torch_compile": True}, lambda h: h.compiled, [{}]),
    "torch_compile_mode": Case(
        {"torch_compile": True, "torch_compile_mode": "max-autotune"},
        lambda h: h.compiled,
        [{"mode": "max-autotune"}],
    ),
    "torch_compile_backend": Case(
        {"torch_compile": True, "torch_compile_backend": "eager"}, lambda h: h.compiled, [{"backend": "eager"}]
    ),
    "load_in_8bit": Case({"load_in_8bit": True}, _quantised("load_in_8bit"), True, ("quantization_config",)),
    "load_in_4bit": Case(FOUR_BIT, _quantised("load_in_4bit"), True, ("quantization_config",)),
    "bnb_4bit_compute_dtype": Case(
        FOUR_BIT | {"bnb_4bit_compute_dtype": "float16"},
        _quantised("bnb_4bit_compute_dtype"),
        torch.float16,
        ("quantization_config",),
    ),
    "bnb_4bit_quant_type": Case(
        FOUR_BIT | {"bnb_4bit_quant_type": "nf4"}, _quantised("bnb_4bit_quant_type"), "nf4", ("quantization_config",)
    ),
    "bnb_4bit_use_double_quant": Case(
        FOUR_BIT | {"bnb_4bit_use_double_quant": True},
        _quantised("bnb_4bit_use_double_quant"),
        True,
        ("quantization_config",),
    ),
    "use_cache": Case({"use_cache": False}, _generate("use_cache"), False),
    "cache_implementation": Case({"cache_implementation": "static"}, _generate("cache_implementation"), "static"),
    "early_stopping": Case({"early_stopping": True}, _generate("early_stopping"), True, more=BEAM),
    "length_penalty": Case({"length_penalty": 0.5}, _generate("length_penalty"), 0.5, more=BEAM),
    "no_repeat_ngram_size": Case({"no_repeat_ngram_size": 2}, _generate("no_repeat_ngram_size"), 2),
    "prompt_lookup_num_tokens": Case({"prompt_lookup_num_tokens": 3}, _generate("prompt_lookup_num_tokens"), 3),
    "device_map": Case({"device_map": {"": "cpu"}}, _model("device_map"), {"": "cpu"}),
    "max_memory": Case(
        {"device_map": "auto", "max_memory": {0: "70GiB", "cpu": "8GiB"}},
        _model("max_memory"),
        {0: "70GiB", "cpu": "8GiB"},
        ("max_memory",),
    ),
    "trust_remote_code": Case(
        {"trust_remote_code": True},
        lambda h: (h.model["trust_remote_code"], h.tokenizer["trust_remote_code"]),
        (True, True),
    ),
    "low_cpu_mem_usage": Case({"low_cpu_mem_usage": True}, _model("low_cpu_mem_usage"), True),
    "allow_tf32": Case({"allow_tf32": True}, lambda h: h.precision, ["high"]),
    "tp_size": Case({"tp_size": 1}, lambda h: (h.model["tp_size"], h.model["tp_plan"]), (1, "auto")),
}
FURTHER: dict[str, Case] = {
    "allow_tf32 false": Case({"allow_tf32": False}, lambda h: h.precision, ["highest"]),
    "batching_strategy static": Case({"batching_strategy": "static"}, lambda h: h.widths, list(map(len, TEXTS))),
    "device_map by name": Case({"device_map": "auto"}, _model("device_map"), "auto"),
    **{
        f"attn_implementation {kernel}": Case(
            {"attn_implementation": kernel}, _model("attn_implementation"), kernel, ("attn_implementation",)
        )
        for kernel in ("sdpa", "flash_attention_2", "flash_attention_3")
    },
    **{
        f"cache_implementation {kind}": Case(
            {"cache_implementation": kind}, _generate("cache_implementation"), kind, ("cache_implementation",)
        )
        for kind in ("dynamic", "offloaded", "offloaded_static", "quantized")
    },
}


def test_there_is_a_case_for_every_field_of_the_section() -> None:
    """A new setting without a test that it reaches the library fails here."""
    assert set(CASES) | REFUSED == set(Settings.model_fields)


@pytest.mark.parametrize("case", [pytest.param(c, id=n) for n, c in (CASES | FURTHER).items()])
def test_a_setting_reaches_the_library(case: Case, listen: Callable[..., Heard]) -> None:
    """What the user wrote in the section is what from_pretrained, generate, compile or torch receives."""
    heard = listen(drop=case.drop, pytorch=case.section, **case.more)
    assert case.heard(heard) == case.expected


def test_settings_left_out_leave_the_library_its_own_defaults(listen: Callable[..., Heard]) -> None:
    """An empty section hands over nothing but the number format and the refusal of remote code."""
    heard = listen()
    assert heard.model == {"dtype": torch.float32, "trust_remote_code": False}
    assert set(heard.generate[0]) == {
        "input_ids",
        "attention_mask",
        "max_new_tokens",
        "do_sample",
        "num_beams",
        "repetition_penalty",
    }
    assert (heard.compiled, heard.precision) == ([], [])


@pytest.mark.parametrize("field_name", ["num_processes", "tp_size"])
def test_more_processes_than_one_are_refused_before_loading(field_name: str) -> None:
    """What this release cannot do is an error that names the field, not a setting that is dropped."""
    config = ExperimentConfig(model="x", pytorch={field_name: 2})
    (problem,) = registry.engine("pytorch").check(config)
    assert isinstance(problem, BackendMissingError)
    assert f"pytorch.{field_name}: 2" in str(problem)


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("fp32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)],
    ids=["fp32", "fp16", "bf16"],
)
def test_the_precision_is_the_dtype_of_the_loaded_weights(
    precision: str, dtype: torch.dtype, listen: Callable[..., Heard], loaded: Callable[..., Any], tiny_model: Path
) -> None:
    """The precision arrives as dtype, and the model reports it back."""
    assert listen(precision=precision).model["dtype"] is dtype
    engine = loaded(tiny_model, precision=precision)
    assert engine.effective()["dtype"] == str(dtype).removeprefix("torch.")


def test_passthrough_arguments_reach_from_pretrained(listen: Callable[..., Heard]) -> None:
    """What llem has no field for goes to the constructor as it is."""
    assert listen(passthrough_kwargs={"use_safetensors": True}).model["use_safetensors"] is True


SAMPLING = {"decoding_strategy": "sampling"}
DECODER: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # field → (section, what generate must hear)
    "decoding_strategy": (SAMPLING, {"do_sample": True, "num_beams": 1}),
    "temperature": (SAMPLING | {"temperature": 0.7}, {"temperature": 0.7}),
    "top_p": (SAMPLING | {"top_p": 0.9}, {"top_p": 0.9}),
    "top_k": (SAMPLING | {"top_k": 7}, {"top_k": 7}),
    "min_p": (SAMPLING | {"min_p": 0.05}, {"min_p": 0.05}),
    "repetition_penalty": ({"repetition_penalty": 1.3}, {"repetition_penalty": 1.3}),
    "num_beams": ({"decoding_strategy": "beam", "num_beams": 3}, {"num_beams": 3, "do_sample": False}),
    "preset": ({"preset": "factual"}, {"do_sample": True, "temperature": 0.3, "top_p": 0.9}),
}


def test_there_is_a_case_for_every_decoder_field() -> None:
    """A new decoder field without a test that it reaches generate fails here."""
    assert {*DECODER, "ignore_eos"} == set(DecoderConfig.model_fields)


@pytest.mark.parametrize(("decoder", "expected"), DECODER.values(), ids=DECODER)
def test_a_decoder_value_reaches_generate(
    decoder: dict[str, Any], expected: dict[str, Any], listen: Callable[..., Heard]
) -> None:
    """Decoder values arrive under transformers' own names."""
    heard = listen(decoder=decoder).generate[0]
    assert {k: heard[k] for k in expected} == expected


def test_top_k_is_off_unless_set(listen: Callable[..., Heard]) -> None:
    """Sampling without top_k draws from all tokens, although transformers' own default is 50."""
    assert listen(decoder=SAMPLING).generate[0]["top_k"] == 0


@pytest.mark.parametrize(
    "decoder",
    [
        pytest.param({"temperature": 0.3, "top_k": 5, "top_p": 0.5, "min_p": 0.1}, id="greedy"),
        pytest.param(SAMPLING | {"temperature": 0, "top_k": 5, "top_p": 0.5, "min_p": 0.1}, id="temperature 0"),
        pytest.param({"decoding_strategy": "beam", "num_beams": 2}, id="beam"),
    ],
)
def test_without_sampling_generate_gets_no_sampling_argument(
    decoder: dict[str, Any], listen: Callable[..., Heard]
) -> None:
    """Dormant values stay at home, so that transformers neither warns nor draws."""
    heard = listen(decoder=decoder).generate[0]
    assert heard["do_sample"] is False
    assert {"temperature", "top_k", "top_p", "min_p"} & set(heard) == set()


@pytest.mark.parametrize(("ignore_eos", "expected"), [(True, None), (False, 0)], ids=["ignored", "obeyed"])
def test_ignoring_the_end_token_takes_it_out_of_the_generation(
    ignore_eos: bool, expected: int | None, listen: Callable[..., Heard]
) -> None:
    """With ignore_eos the generation has no end token; without it the model's own."""
    assert listen(decoder={"ignore_eos": ignore_eos}).eos[0] == expected


def test_the_models_own_sampling_defaults_are_replaced(
    tmp_path: Path, tiny_model: Path, loaded: Callable[..., Any]
) -> None:
    """A model that ships its own temperature and penalty is decoded with llem's settings all the same."""
    model = AutoModelForCausalLM.from_pretrained(str(tiny_model))
    model.generation_config.update(do_sample=True, temperature=0.01, top_k=1, repetition_penalty=5.0)
    model.save_pretrained(str(tmp_path / "own"))
    AutoTokenizer.from_pretrained(str(tiny_model)).save_pretrained(str(tmp_path / "own"))
    request = Request(0, (40, 41, 42), 12)
    engines = [loaded(folder) for folder in (tiny_model, tmp_path / "own")]
    assert len({e.generate([request]).output_token_ids for e in engines}) == 1


def test_the_batch_is_padded_on_the_left_under_a_mask(listen: Callable[..., Heard]) -> None:
    """Shorter prompts stand at the right end of their row, the mask is 0 before them and 1 on them."""
    (call,) = listen(pytorch={"batch_size": 3}).generate
    width = max(map(len, TEXTS))
    assert call["attention_mask"].tolist() == [[0] * (width - len(t)) + [1] * len(t) for t in TEXTS]
    pads = call["input_ids"][call["attention_mask"] == 0]
    assert pads.tolist() == [1] * (3 * width - sum(map(len, TEXTS)))


def test_seeding_reaches_every_generator(
    monkeypatch: pytest.MonkeyPatch, loaded: Callable[..., Any], tiny_model: Path
) -> None:
    """One call seeds python, numpy, torch on the CPU and, where there is one, on the GPU."""
    import random

    import numpy as np

    engine = loaded(tiny_model)
    on_gpu: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", on_gpu.append)
    drawn = []
    for _ in range(2):
        engine.seed(7)
        drawn.append((random.random(), float(np.random.rand()), float(torch.rand(1))))
    assert drawn[0] == drawn[1]
    assert set(on_gpu) == {7}


def test_the_precision_of_matrix_products_is_given_back(loaded: Callable[..., Any], tiny_model: Path) -> None:
    """allow_tf32 of one run does not leak into the next run of the same process."""
    before = torch.get_float32_matmul_precision()
    engine = loaded(tiny_model, pytorch={"allow_tf32": True})
    inside = torch.get_float32_matmul_precision()
    engine.close()
    assert (inside, torch.get_float32_matmul_precision()) == ("high", before)


def test_the_installed_transformers_is_recorded(loaded: Callable[..., Any], tiny_model: Path) -> None:
    """The engine's record names the version of both libraries that it drives."""
    engine = loaded(tiny_model)
    assert engine.effective()["transformers_version"] == transformers.__version__
    assert engine.version() == torch.__version__.partition("+")[0]
