"""A real engine measured on the CPU: counts against an independent count, flags, reasons, a result that round-trips."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from llenergymeasure import phase_split
from llenergymeasure.core.config import ExperimentConfig
from llenergymeasure.core.errors import ConfigError
from llenergymeasure.core.result import ExperimentResult
from llenergymeasure.measure import Measured, measure
from llenergymeasure.user_config import UserConfig

pytestmark = pytest.mark.model

TEXTS = ["a first prompt of some length", "short", "and a third one"]
Run = Callable[..., Measured]


@pytest.fixture
def tiny(tiny_model: Path, tmp_path: Path, machine: Any) -> Run:
    """Measure three prompts on the tiny model, without any GPU."""
    machine.play()
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": t}) + "\n" for t in TEXTS), encoding="utf-8")

    def start(**fields: Any) -> Measured:
        base = {"dataset": str(path), "n": 3, "precision": "fp32", "max_output_tokens": 6, "warmup": {"n_warmup": 1}}
        return measure(ExperimentConfig(model=str(tiny_model), **(base | fields)), UserConfig())

    return start


def test_tokens_are_those_of_an_independent_count(tiny: Run, tiny_model: Path) -> None:
    """Input tokens by an attention mask made elsewhere, each prompt as often as the circle of batches reads it."""
    mask = AutoTokenizer.from_pretrained(str(tiny_model), padding_side="left")(TEXTS, padding=True)["attention_mask"]
    lengths = [sum(row) for row in mask]
    result = tiny(pytorch={"batch_size": 2}).result
    assert result.request_input_tokens == [lengths[0], lengths[1], lengths[2], lengths[0]]
    assert result.request_output_tokens == [6] * 4
    assert (result.input_tokens, result.output_tokens, result.requests) == (sum(lengths) + lengths[0], 24, 4)
    assert result.input_tokens < 4 * max(lengths)  # what a count with padding would give


def test_prompts_are_cut_to_the_limit(tiny: Run) -> None:
    """max_input_tokens is the longest prompt in the result."""
    assert tiny(max_input_tokens=5).result.request_input_tokens == [5, 5, 5]


def test_a_result_of_a_real_run_survives_a_round_trip(tiny: Run, tmp_path: Path) -> None:
    """Everything a real engine put into the record comes back equal from JSON."""
    result = tiny(output={"save_text": True}).result
    (tmp_path / "result.json").write_text(result.to_json(), encoding="utf-8")
    assert ExperimentResult.from_json(tmp_path / "result.json") == result


def test_a_run_without_a_gpu_says_what_it_is(tiny: Run) -> None:
    """Measured on the CPU: no joules, the reasons, a warning, and speed all the same; not synthetic."""
    result = tiny().result
    assert result.energy_total_j is None
    assert result.verdict.state == "unmeasured"
    assert result.null_reasons["memory_peak_mb"] == "no GPU"
    assert any(w.startswith("cpu_run:") for w in result.measurement_warnings)
    assert result.tokens_per_second > 0
    assert (result.memory_model_mb or 0) > 0
    assert not result.synthetic
    assert result.engine_effective["device"] == "cpu"


def test_random_weights_are_flagged_but_not_refused(tiny: Run) -> None:
    """Seeded weights of realistic scale get a flag and a sentence; they are not `unrealistic_values`."""
    result = tiny(
        energy={"backend": "simulated"}, baseline={"enabled": False}, measurement={"min_duration_seconds": 0}
    ).result
    assert result.random_weights
    assert any(w.startswith("random_weights:") for w in result.measurement_warnings)
    assert "unrealistic_values" not in [r.code for r in result.verdict.reasons]


def test_the_engine_loads_before_the_window(tiny: Run) -> None:
    """Loading takes its own phase, which ends before the window opens."""
    phases = tiny().result.phases
    assert phases["load"].end_s > phases["load"].start_s
    assert phases["load"].end_s <= phases["warmup"].start_s <= phases["window"].start_s


def test_work_is_counted_from_the_loaded_weights(tiny: Run) -> None:
    """FLOPs by hand: 2 x weights without embeddings x tokens of the window."""
    result = tiny().result
    per_layer = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64
    assert result.flops is not None
    assert result.flops.value == 2 * (2 * per_layer + 64) * result.total_tokens
    assert (result.flops.confidence, result.flops.precision) == ("high", "fp32")


@pytest.mark.parametrize(
    ("fields", "number"),
    [
        pytest.param({"max_output_tokens": 250}, 0, id="output too long"),
        pytest.param({"dataset": {"synthetic": {"input_len": 300, "output_len": 1}}}, 0, id="prompt too long"),
    ],
)
def test_more_than_the_context_holds_is_named_by_prompt(fields: dict[str, Any], number: int, tiny: Run) -> None:
    """The error has the prompt's number, what it needs, what the model holds, and the settings to lower."""
    with pytest.raises(ConfigError) as caught:
        tiny(**fields)
    text = str(caught.value)
    assert f"prompt {number} " in text
    assert "256" in text
    assert "max_output_tokens" in text


def test_the_longest_prompt_is_the_one_named(tiny: Run, tmp_path: Path) -> None:
    """Of several prompts the one that does not fit is named."""
    path = tmp_path / "long.jsonl"
    path.write_text("".join(json.dumps({"prompt": "x" * n}) + "\n" for n in (10, 400, 20)), encoding="utf-8")
    with pytest.raises(ConfigError, match="prompt 1 with its output needs 406 tokens"):
        tiny(dataset=str(path))


def test_sampling_repeats_from_run_to_run(tiny: Run) -> None:
    """Runs with one seed write the same text, however long the warm-up drew before; another seed another one."""

    def texts(seed: int, n_warmup: int) -> Any:
        fields = {"decoder": {"decoding_strategy": "sampling"}, "output": {"save_text": True}}
        return tiny(random_seed=seed, warmup={"n_warmup": n_warmup}, **fields).result.texts

    assert texts(1, 1) == texts(1, 3) != texts(2, 1)


def test_drawn_prompts_have_their_exact_length_on_a_real_engine(tiny: Run) -> None:
    """A generated dataset reaches the engine token for token."""
    result = tiny(dataset={"synthetic": {"input_len": 33, "output_len": 7}}).result
    assert result.request_input_tokens == [33, 33, 33]
    assert result.request_output_tokens == [7, 7, 7]


def test_ignoring_the_end_token_is_recorded(tiny: Run) -> None:
    """Controlled work or natural ends: the result says which, and how many tokens came out."""
    assert tiny().result.ignore_eos is True
    assert tiny(decoder={"ignore_eos": False}).result.ignore_eos is False


def test_an_adapters_use_is_on_record(tiny: Run, tiny_model: Path, tmp_path: Path) -> None:
    """A run with an adapter differs in its hash and names the adapter in its effective configuration."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base: Any = AutoModelForCausalLM.from_pretrained(str(tiny_model), dtype=torch.float32)
    get_peft_model(base, LoraConfig(target_modules=["q_proj"], init_lora_weights=False)).save_pretrained(
        str(tmp_path / "a")
    )
    bare, adapted = tiny().result, tiny(lora={"adapter_path": str(tmp_path / "a")}).result
    assert bare.measurement_config_hash != adapted.measurement_config_hash
    assert adapted.effective_config["lora"]["adapter_path"] == str(tmp_path / "a")
    assert (adapted.lora_adapter_id, adapted.lora_merged) == (str(tmp_path / "a"), False)
    assert (bare.lora_adapter_id, bare.lora_merged) == (None, None)


def test_the_built_in_model_is_measured_end_to_end(shared_model_cache: Path, machine: Any) -> None:
    """The first run of a newcomer: real weights, built-in prompts, a readable answer, sums of model and data."""
    machine.play()
    result = measure(
        ExperimentConfig(
            model="builtin:smollm2-135m",
            precision="fp32",
            n=2,
            max_input_tokens=32,
            max_output_tokens=4,
            warmup={"n_warmup": 1, "max_output_tokens": 1},
            pytorch={"batch_size": 2},
            output={"save_text": True},
        ),
        UserConfig(),
    ).result
    assert result.model_revision is not None
    assert result.model_revision.startswith("gguf-sha256:")
    assert (result.requests, result.output_tokens, result.random_weights) == (2, 8, False)
    assert result.texts is not None
    assert all(t.output for t in result.texts)
    assert result.effective_config["dataset"] == "builtin"


def test_phases_of_a_real_engine_are_probed_after_the_window(tiny: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefill alone, decode alone, a longer context: spans in order, tokens by hand, and none of it in the window."""
    seen: list[phase_split.Probes] = []
    monkeypatch.setattr(phase_split, "PROBE_S", 0.2)
    monkeypatch.setattr(phase_split, "WARM_S", 0.0)
    judge = phase_split.judge
    monkeypatch.setattr(phase_split, "judge", lambda probes, *rest: (seen.append(probes), judge(probes, *rest))[1])
    result = tiny(
        dataset={"synthetic": {"input_len": 40, "output_len": 8}},
        pytorch={"batch_size": 3},
        energy={"backend": "simulated"},
        baseline={"enabled": False},
        measurement={"min_duration_seconds": 0, "phase_split": True},
    ).result
    (probes,) = seen
    tokens = {s.name: {(span.phase, span.tokens) for span in s.spans} for s in probes.segments}
    assert tokens == {
        "prefill": {("prefill", 3 * 40)},
        "decode": {("decode", 0), ("decode", 3 * 15)},
        "context": {("prefill", 3 * 40), ("decode_long", 3 * 3)},
    }
    for segment in probes.segments:
        edges = [t for span in segment.spans for t in (span.start_s, span.end_s)]
        assert edges == sorted(edges)
        assert segment.start_s <= edges[0]
        assert edges[-1] <= segment.end_s
    assert (result.requests, result.output_tokens) == (3, 24)
    assert result.phases["window"].end_s <= result.phases["probes"].start_s
    assert result.phase_split is not None
