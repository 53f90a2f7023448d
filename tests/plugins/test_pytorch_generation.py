"""What the pytorch engine generates: the same tokens as plain transformers, counted without padding, repeatable."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llenergymeasure import models
from llenergymeasure.core import registry
from llenergymeasure.core.config import ExperimentConfig
from llenergymeasure.core.contracts import Prompt, Request
from llenergymeasure.datasets import DRAWN_IDS

pytestmark = pytest.mark.model

TEXTS = ["the quick brown fox jumps over the lazy dog", "hello", "numbers 1 2 3", "?", "one more to be alone"]
CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
QUESTIONS = ["What is 2 + 2? Answer with one number.", "Say yes.", "The capital of France is"]
NEVER = -1  # an id that no model emits: generate goes on to the full length


def plain_transformers(
    folder: Path, texts: list[str], length: int, batch_size: int, *, ignore_eos: bool
) -> list[list[tuple[int, ...]]]:
    """Greedy tokens per batch with nothing of llem: the library's own padding, batching and end of sequence."""
    tokenizer = AutoTokenizer.from_pretrained(str(folder), padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
    model.eval()
    eos = NEVER if ignore_eos else model.generation_config.eos_token_id
    found = []
    for first in range(0, len(texts), batch_size):
        circle = [texts[(first + i) % len(texts)] for i in range(batch_size)]
        inputs = tokenizer(circle, return_tensors="pt", padding=True, return_token_type_ids=False)
        with torch.no_grad():
            out = model.generate(
                **inputs,
                max_new_tokens=length,
                do_sample=False,
                eos_token_id=eos,
                pad_token_id=tokenizer.pad_token_id,
            )
        found.append([_until(row, eos) for row in out[:, inputs["input_ids"].shape[1] :].tolist()])
    return found


def _until(row: list[int], eos: int) -> tuple[int, ...]:
    return tuple(row[: row.index(eos) + 1] if eos in row else row)


def with_llem(engine: Any, texts: list[str], length: int) -> list[list[tuple[int, ...]]]:
    """The same work through the engine."""
    ids = engine.tokenise([Prompt(text=t) for t in texts], max_input_tokens=0)
    batches = engine.batches([Request(i, t, length) for i, t in enumerate(ids)])
    return [list(engine.generate(b).output_token_ids) for b in batches]


@pytest.fixture(scope="module")
def early_ender(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with an end token that it really emits, at different places for different prompts."""
    folder = tmp_path_factory.mktemp("ender") / "tiny-ender"
    shutil.copytree(tiny_model, folder)
    rows = [row for batch in plain_transformers(folder, TEXTS, 12, 1, ignore_eos=True) for row in batch]
    common = set(rows[0]).intersection(*map(set, rows[1:]))
    candidates = common or {t for row in rows for t in row[1:-1]}
    end = min(candidates, key=lambda t: sum(t in row for row in rows) != 2)
    for name in ("config.json", "generation_config.json"):
        data = json.loads((folder / name).read_text(encoding="utf-8"))
        data["eos_token_id"] = end
        (folder / name).write_text(json.dumps(data), encoding="utf-8")
    return folder


@pytest.mark.parametrize("ignore_eos", [True, False], ids=["eos ignored", "eos obeyed"])
@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_greedy_tokens_are_those_of_plain_transformers(
    batch_size: int, ignore_eos: bool, early_ender: Path, loaded: Callable[..., Any]
) -> None:
    """Token for token, with the same batches, whether or not sequences end early."""
    expected = plain_transformers(early_ender, TEXTS, 12, batch_size, ignore_eos=ignore_eos)
    engine = loaded(early_ender, decoder={"ignore_eos": ignore_eos}, pytorch={"batch_size": batch_size})
    assert with_llem(engine, TEXTS, 12) == expected
    lengths = {len(row) for batch in expected for row in batch}
    assert (lengths == {12}) is ignore_eos


@pytest.mark.parametrize("ignore_eos", [True, False], ids=["eos ignored", "eos obeyed"])
def test_a_real_models_tokens_are_those_of_plain_transformers(
    ignore_eos: bool, shared_model_cache: Path, loaded: Callable[..., Any]
) -> None:
    """SmolLM2 answers the same as without llem, and stops where it says it is done unless told not to."""
    folder = models.resolve("builtin:smollm2-135m", None, cache=shared_model_cache).path
    texts = [CHAT.format(q) for q in QUESTIONS]
    expected = plain_transformers(folder, texts, 12, 2, ignore_eos=ignore_eos)
    engine = loaded(folder, decoder={"ignore_eos": ignore_eos}, pytorch={"batch_size": 2})
    assert with_llem(engine, texts, 12) == expected
    lengths = {len(row) for batch in expected for row in batch}
    assert (lengths == {12}) is ignore_eos


def test_real_weights_answer_sensibly(shared_model_cache: Path, loaded: Callable[..., Any]) -> None:
    """The built-in model is a trained one: it knows the capital of France."""
    folder = models.resolve("builtin:smollm2-135m", None, cache=shared_model_cache).path
    engine = loaded(folder)
    (((ids,),),) = [with_llem(engine, ["The capital of France is"], 3)]
    assert "Paris" in engine.detokenise(ids)


def test_padding_is_never_counted(tiny_model: Path, loaded: Callable[..., Any]) -> None:
    """Input tokens are the ones of an attention mask made elsewhere, output tokens those before padding."""
    mask = AutoTokenizer.from_pretrained(str(tiny_model), padding_side="left")(TEXTS, padding=True)["attention_mask"]
    engine = loaded(tiny_model, pytorch={"batch_size": len(TEXTS)})
    ids = engine.tokenise([Prompt(text=t) for t in TEXTS], max_input_tokens=0)
    generation = engine.generate([Request(i, t, 5) for i, t in enumerate(ids)])
    assert generation.input_tokens == sum(map(sum, mask)) < len(mask) * len(mask[0])
    assert generation.output_tokens == 5 * len(TEXTS)


def test_output_tokens_end_with_the_first_end_token(early_ender: Path, loaded: Callable[..., Any]) -> None:
    """In a batch where one sequence ends early, its filler up to the longest one is not its output."""
    engine = loaded(early_ender, decoder={"ignore_eos": False}, pytorch={"batch_size": len(TEXTS)})
    ((*rows,),) = with_llem(engine, TEXTS, 12)
    end = json.loads((early_ender / "config.json").read_text(encoding="utf-8"))["eos_token_id"]
    ended = [row for row in rows if len(row) < 12]
    assert ended
    assert all(row[-1] == end and end not in row[:-1] for row in ended)


def test_each_record_keeps_its_own_output_length(tiny_model: Path, loaded: Callable[..., Any]) -> None:
    """In one batch every request yields as many tokens as it asked for, a prefix of the longer run."""
    engine = loaded(tiny_model, pytorch={"batch_size": 3})
    ids = engine.tokenise([Prompt(text=t) for t in TEXTS[:3]], max_input_tokens=0)
    mixed = engine.generate([Request(i, t, n) for i, (t, n) in enumerate(zip(ids, (2, 9, 5), strict=True))])
    full = engine.generate([Request(i, t, 9) for i, t in enumerate(ids)])
    assert list(map(len, mixed.output_token_ids)) == [2, 9, 5]
    assert [f[: len(m)] for m, f in zip(mixed.output_token_ids, full.output_token_ids, strict=True)] == list(
        mixed.output_token_ids
    )


def test_dynamic_batching_sorts_by_length(tiny_model: Path, loaded: Callable[..., Any]) -> None:
    """Sorted batches hold less padding and lose no prompt."""
    padding = {}
    for strategy in ("static", "dynamic"):
        engine = loaded(tiny_model, pytorch={"batch_size": 2, "batching_strategy": strategy})
        ids = engine.tokenise([Prompt(text=t) for t in TEXTS], max_input_tokens=0)
        batches = engine.batches([Request(i, t, 1) for i, t in enumerate(ids)])
        lengths = [[len(r.token_ids) for r in b] for b in batches]
        assert {r.index for b in batches for r in b} == set(range(len(TEXTS)))
        padding[strategy] = sum(max(b) * len(b) - sum(b) for b in lengths[:-1])
    assert padding["dynamic"] < padding["static"]


def test_sampling_repeats_with_the_same_seed_and_differs_with_another(
    tiny_model: Path, loaded: Callable[..., Any]
) -> None:
    """The configuration's seed decides what is drawn, in one engine and across engines."""
    drawn = []
    for seed in (1, 1, 2):
        engine = loaded(tiny_model, decoder={"decoding_strategy": "sampling"}, random_seed=seed)
        drawn.append(with_llem(engine, TEXTS, 10))
        engine.seed(seed)
        drawn.append(with_llem(engine, TEXTS, 10))
    assert drawn[0] == drawn[1] == drawn[2] == drawn[3]
    assert drawn[4] == drawn[5] != drawn[0]


def test_sampling_obeys_top_k_of_one(tiny_model: Path, loaded: Callable[..., Any]) -> None:
    """With one candidate left, drawing is the same as taking the best."""
    greedy = with_llem(loaded(tiny_model), TEXTS, 8)
    drawn = with_llem(loaded(tiny_model, decoder={"decoding_strategy": "sampling", "top_k": 1}), TEXTS, 8)
    assert drawn == greedy


def test_beam_search_is_that_of_plain_transformers(tiny_model: Path, loaded: Callable[..., Any]) -> None:
    """Three beams give the library's own three-beam answer."""
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_model), padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(str(tiny_model), dtype=torch.float32)
    inputs = tokenizer(TEXTS[:2], return_tensors="pt", padding=True, return_token_type_ids=False)
    out = model.generate(**inputs, max_new_tokens=8, num_beams=3, do_sample=False, eos_token_id=NEVER)
    engine = loaded(tiny_model, decoder={"decoding_strategy": "beam", "num_beams": 3}, pytorch={"batch_size": 2})
    assert with_llem(engine, TEXTS[:2], 8) == [[tuple(r) for r in out[:, inputs["input_ids"].shape[1] :].tolist()]]


def test_an_empty_prompt_becomes_the_start_token(tiny_model: Path, loaded: Callable[..., Any]) -> None:
    """A record without text is one start token long and generates like any other."""
    engine = loaded(tiny_model, pytorch={"batch_size": 2})
    ids = engine.tokenise([Prompt(text=""), Prompt(text="words")], max_input_tokens=0)
    assert ids[0] == (0,)
    assert engine.generate([Request(i, t, 3) for i, t in enumerate(ids)]).output_tokens == 6


@pytest.mark.parametrize("length", [1, 7, 64])
def test_drawn_token_ids_keep_their_length_and_avoid_special_tokens(
    length: int, tiny_model: Path, loaded: Callable[..., Any]
) -> None:
    """Generated prompts have exactly the length asked for and no start, end or padding token inside."""
    engine = loaded(tiny_model)
    size = len(AutoTokenizer.from_pretrained(str(tiny_model)))
    drawn = tuple(range(length))  # 0 and 1 are this model's special tokens
    (ids,) = engine.tokenise([Prompt(token_ids=drawn)], max_input_tokens=0)
    (wrapped,) = engine.tokenise([Prompt(token_ids=tuple(t + 5 * size for t in drawn))], max_input_tokens=0)
    assert ids == wrapped
    assert len(ids) == length
    assert {0, 1} & set(ids) == set()
    assert all(0 <= t < size for t in ids)


def test_a_real_vocabulary_is_used_up_to_its_end(shared_model_cache: Path, loaded: Callable[..., Any]) -> None:
    """Ids drawn over the whole range land all over SmolLM2's vocabulary, none on one of its special tokens."""
    folder = models.resolve("builtin:smollm2-135m", None, cache=shared_model_cache).path
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    special = set(tokenizer.all_special_ids)
    engine = loaded(folder)
    drawn = (*special, *range(0, DRAWN_IDS, DRAWN_IDS // 4000))
    (ids,) = engine.tokenise([Prompt(token_ids=drawn)], max_input_tokens=0)
    assert len(ids) == len(drawn)
    assert special & set(ids) == set()
    assert max(ids) > 0.9 * len(tokenizer)


def test_facts_of_a_loaded_model_are_its_own(tiny_model: Path) -> None:
    """Weights are counted once each, embeddings apart, by hand from the shapes of the configuration."""
    hidden, layers, vocabulary, intermediate, kv = 64, 2, 320, 128, 32
    per_layer = 2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * intermediate + 2 * hidden
    embeddings = 2 * vocabulary * hidden  # input and output tables are not tied
    engine = registry.engine("pytorch")
    config = ExperimentConfig(model=str(tiny_model), precision="fp32", dataset="builtin")
    facts = engine.load(config, models.resolve(str(tiny_model), None, cache=Path("unused")))
    engine.close()
    assert facts.parameters == embeddings + layers * per_layer + hidden
    assert facts.embedding_parameters == embeddings
    assert (facts.layers, facts.hidden_size, facts.context_length, facts.dtype) == (2, 64, 256, "float32")
