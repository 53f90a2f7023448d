"""LoRA adapters on the pytorch engine: they change the output, merged or not, as PEFT itself does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from llenergymeasure.core import registry
from llenergymeasure.core.config import ExperimentConfig
from llenergymeasure.core.contracts import Request
from llenergymeasure.core.errors import BackendError, BackendMissingError

pytestmark = pytest.mark.model

BATCH = [Request(0, (50, 60, 70, 80), 10), Request(1, (90, 100, 110, 120), 10)]


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A strong random adapter for the tiny model."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(str(tiny_model), dtype=torch.float32)
    spec = LoraConfig(r=8, lora_alpha=64, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    folder = tmp_path_factory.mktemp("adapter")
    get_peft_model(model, spec).save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def with_peft(tiny_model: Path, adapter: Path) -> tuple[tuple[int, ...], ...]:
    """Tokens of the adapted model without llem."""
    model = AutoModelForCausalLM.from_pretrained(str(tiny_model), dtype=torch.float32)
    adapted = PeftModel.from_pretrained(model, str(adapter)).eval()
    ids = torch.tensor([r.token_ids for r in BATCH])
    out = adapted.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False, eos_token_id=-1
    )
    return tuple(tuple(row) for row in out[:, 4:].tolist())


@pytest.mark.parametrize("merge", [False, True], ids=["beside the weights", "merged"])
def test_an_adapter_gives_the_tokens_of_peft(
    merge: bool,
    tiny_model: Path,
    adapter: Path,
    with_peft: tuple[tuple[int, ...], ...],
    loaded: Callable[..., Any],
) -> None:
    """The adapter is really applied: the output is PEFT's, not the bare model's."""
    bare = loaded(tiny_model).generate(BATCH).output_token_ids
    engine = loaded(tiny_model, lora={"adapter_path": str(adapter), "merge_weights": merge})
    assert engine.generate(BATCH).output_token_ids == with_peft != bare


@pytest.mark.parametrize(
    ("lora", "merged"),
    [
        pytest.param({"adapter_path": "{adapter}"}, False, id="path"),
        pytest.param({"adapter_id": "{adapter}"}, False, id="id"),
        pytest.param({"adapter_path": "{adapter}", "merge_weights": True}, True, id="merge"),
    ],
)
def test_every_lora_field_reaches_peft(
    lora: dict[str, Any],
    merged: bool,
    tiny_model: Path,
    adapter: Path,
    loaded: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """PEFT is asked for the named adapter, and for merging exactly when merge_weights says so."""
    heard: list[str] = []
    load = PeftModel.from_pretrained
    monkeypatch.setattr(PeftModel, "from_pretrained", lambda m, name, **kw: heard.append(name) or load(m, name, **kw))
    fields = {k: v.format(adapter=adapter) if isinstance(v, str) else v for k, v in lora.items()}
    engine = loaded(tiny_model, lora=fields)
    assert heard == [str(adapter)]
    assert isinstance(engine._model, PeftModel) is not merged


def test_the_end_token_is_ignored_with_an_adapter_too(
    tiny_model: Path, adapter: Path, loaded: Callable[..., Any]
) -> None:
    """Controlled work holds for an adapted model: every request gives its full length."""
    engine = loaded(tiny_model, lora={"adapter_path": str(adapter)})
    long = [Request(r.index, r.token_ids, 60) for r in BATCH]
    assert list(map(len, engine.generate(long).output_token_ids)) == [60, 60]


def test_a_missing_adapter_is_a_backend_error(tmp_path: Path, tiny_model: Path, loaded: Callable[..., Any]) -> None:
    """A folder without an adapter stops the load with a sentence, not with a foreign exception."""
    with pytest.raises(BackendError, match="pytorch failed while loading"):
        loaded(tiny_model, lora={"adapter_path": str(tmp_path)})


def test_without_peft_the_check_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A configuration with an adapter needs PEFT before anything is loaded."""
    import sys

    monkeypatch.setitem(sys.modules, "peft", None)
    config = ExperimentConfig(model="x", lora={"adapter_id": "a/b"})
    (problem,) = registry.engine("pytorch").check(config)
    assert isinstance(problem, BackendMissingError)
    assert "pip install peft" in str(problem)
