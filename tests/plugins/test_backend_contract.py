"""What every inference backend must keep, whichever engine it drives."""

import inspect
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llenergymeasure.core import registry
from llenergymeasure.core.config import ExperimentConfig
from llenergymeasure.core.contracts import InferenceEngine, Prompt, Request
from llenergymeasure.core.sections import Part

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "plugins.json"
BACKENDS = registry.backend_names()
RUNNABLE = [
    pytest.param(n, marks=pytest.mark.model if registry.needs_weights(n) else ())
    for n in BACKENDS
    if registry.can_run(n)
]
TEXTS = ["a", "two words", "now there are four", "and this one is the longest of all"]


def _plugin(name: str) -> Any:
    return registry._plugin("backends", name)


@pytest.fixture
def fresh(request: pytest.FixtureRequest, loaded: Callable[..., Any]) -> Callable[..., Any]:
    """An engine of the named backend, loaded on what it needs."""

    def load(name: str, **fields: Any) -> Any:
        model = request.getfixturevalue("tiny_model") if registry.needs_weights(name) else "pretended"
        return loaded(model, backend=name, **fields)

    return load


def _requests(engine: Any, texts: list[str], length: int = 3) -> list[Request]:
    ids = engine.tokenise([Prompt(text=t) for t in texts], max_input_tokens=0)
    return [Request(i, t, length) for i, t in enumerate(ids)]


def test_the_plugins_are_exactly_those_of_the_golden_list() -> None:
    """A new or lost plug-in changes the golden list, and nothing else."""
    found = {
        "backends": list(BACKENDS),
        "backends_that_run": [n for n in BACKENDS if registry.can_run(n)],
        "energy": list(registry.energy_names()),
        "energy_auto_order": list(registry.energy_auto_order()),
    }
    assert found == json.loads(GOLDEN.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", BACKENDS)
def test_a_backend_declares_what_the_core_asks_for(name: str) -> None:
    """Each file names itself, its settings, its positive support lists and its batch parameter."""
    plugin = _plugin(name)
    assert name == plugin.NAME
    assert issubclass(plugin.Settings, Part)
    assert set(plugin.PRECISIONS) <= {"fp32", "fp16", "bf16", "fp8", "int8", "int4"}
    assert plugin.PRECISIONS
    assert {"greedy"} <= set(plugin.DECODING) <= {"greedy", "sampling", "beam"}
    assert plugin.BATCH_SIZE_KEY in plugin.Settings.model_fields
    assert isinstance(plugin.installed(), bool)
    assert plugin.gpu_count(plugin.Settings()) == (1 if registry.is_real(name) else 0)


@pytest.mark.parametrize("name", BACKENDS)
def test_every_setting_of_a_backend_is_described_and_has_a_default(name: str) -> None:
    """A section may be left out, and its reference page has a sentence for every field."""
    fields = registry.backend_settings(name).model_fields
    assert {n: f.description for n, f in fields.items() if not f.description} == {}
    assert [n for n, f in fields.items() if f.is_required()] == []


@pytest.mark.parametrize("kind", ["backends", "energy"])
def test_looking_at_a_plugin_loads_no_heavy_library(kind: str, python: Callable[..., Any]) -> None:
    """Settings, support lists and availability of libraries cost no import of torch, transformers, pynvml or zeus."""
    code = f"""
import json, sys
from llenergymeasure.core import registry
for name in registry._names({kind!r}):
    registry._plugin({kind!r}, name)
heavy = ("torch", "transformers", "numpy", "pynvml", "zeus", "codecarbon", "vllm", "tensorrt_llm", "pandas")
print(json.dumps([m for m in heavy if m in sys.modules]))
"""
    assert python(code) == []


@pytest.mark.parametrize("name", [n for n in BACKENDS if registry.can_run(n)])
def test_an_engine_has_the_methods_of_the_contract(name: str) -> None:
    """Every method of InferenceEngine is there with the same parameters."""
    engine = registry.engine(name)
    wanted = {n: m for n, m in vars(InferenceEngine).items() if not n.startswith("_") and inspect.isfunction(m)}
    assert {n: list(inspect.signature(getattr(type(engine), n)).parameters) for n in wanted} == {
        n: list(inspect.signature(m).parameters) for n, m in wanted.items()
    }


@pytest.mark.parametrize("name", RUNNABLE)
def test_check_finds_nothing_wrong_with_the_defaults(name: str) -> None:
    """A configuration without any setting can run where the library is installed."""
    assert registry.engine(name).check(ExperimentConfig(model="x", backend=name)) == []


@pytest.mark.parametrize("name", RUNNABLE)
def test_prompts_are_cut_to_the_limit_and_no_further(name: str, fresh: Callable[..., Any]) -> None:
    """Tokenising gives one sequence per prompt, never longer than the limit; 0 is no limit."""
    engine = fresh(name)
    prompts = [Prompt(text=t) for t in TEXTS]
    whole = engine.tokenise(prompts, max_input_tokens=0)
    cut = engine.tokenise(prompts, max_input_tokens=2)
    assert [c == w[:2] for c, w in zip(cut, whole, strict=True)] == [True] * len(TEXTS)
    assert max(map(len, whole)) > 2
    assert len(set(whole)) == len(TEXTS)


@pytest.mark.parametrize("name", RUNNABLE)
@pytest.mark.parametrize(
    ("requests", "size", "expected"),
    [
        pytest.param(4, 1, [[0], [1], [2], [3]], id="one by one"),
        pytest.param(4, 2, [[0, 1], [2, 3]], id="even"),
        pytest.param(3, 2, [[0, 1], [2, 0]], id="the last batch is filled from the front"),
        pytest.param(2, 5, [[0, 1, 0, 1, 0]], id="a batch larger than the list goes round it"),
    ],
)
def test_every_batch_is_full_and_the_list_is_read_in_a_circle(
    name: str, requests: int, size: int, expected: list[list[int]], fresh: Callable[..., Any]
) -> None:
    """One pass has only full batches, holds each prompt at least once, and keeps the file's order."""
    engine = fresh(name, **{name: {_plugin(name).BATCH_SIZE_KEY: size}})
    batches = engine.batches(_requests(engine, TEXTS[:requests]))
    assert [[r.index for r in b] for b in batches] == expected


@pytest.mark.parametrize("name", RUNNABLE)
def test_a_generation_belongs_to_its_batch(name: str, fresh: Callable[..., Any]) -> None:
    """A batch gives one sequence per request, in order, no longer than asked, and instants inside the call."""
    engine = fresh(name, **{name: {_plugin(name).BATCH_SIZE_KEY: 4}})
    batch = [Request(r.index, r.token_ids, n) for r, n in zip(_requests(engine, TEXTS), [1, 4, 2, 3], strict=True)]
    before_s = time.monotonic()
    generation = engine.generate(batch)
    after_s = time.monotonic()
    assert generation.requests == tuple(batch)
    assert [len(ids) for ids in generation.output_token_ids] == [1, 4, 2, 3]
    assert before_s <= generation.start_s < generation.end_s <= after_s
    assert generation.input_tokens == sum(len(r.token_ids) for r in batch)
    assert generation.output_tokens == 10


@pytest.mark.parametrize("name", RUNNABLE)
def test_greedy_output_is_the_same_from_a_fresh_engine(name: str, fresh: Callable[..., Any]) -> None:
    """Two engines with one configuration produce the same tokens."""
    runs = []
    for _ in range(2):
        engine = fresh(name)
        runs.append([engine.generate(b).output_token_ids for b in engine.batches(_requests(engine, TEXTS[:2]))])
    assert runs[0] == runs[1]


@pytest.mark.parametrize("name", RUNNABLE)
def test_an_engine_describes_itself_in_plain_json(name: str, fresh: Callable[..., Any]) -> None:
    """Effective values fit into a result, the version is known, and a text comes back from tokens."""
    engine = fresh(name)
    assert json.loads(json.dumps(engine.effective()))["batch_size"] == 1
    assert engine.version()
    ids = engine.generate(engine.batches(_requests(engine, TEXTS[:1]))[0]).output_token_ids[0]
    assert isinstance(engine.detokenise(ids), str)


@pytest.mark.parametrize("name", RUNNABLE)
def test_memory_without_a_gpu_is_unknown_not_zero(name: str, fresh: Callable[..., Any]) -> None:
    """On a CPU there is no device memory to report, so the peak is None."""
    engine = fresh(name)
    engine.reset_memory_peak()
    assert engine.memory_peak_mb() is None


@pytest.mark.parametrize("name", RUNNABLE)
def test_closing_twice_is_harmless(name: str, fresh: Callable[..., Any]) -> None:
    """Cleaning up after a failure may close an engine that is closed, or was never loaded."""
    engine = fresh(name)
    before = engine.generate(engine.batches(_requests(engine, TEXTS[:1]))[0]).output_token_ids
    engine.close()
    engine.close()
    registry.engine(name).close()
    again = fresh(name)
    assert again.generate(again.batches(_requests(again, TEXTS[:1]))[0]).output_token_ids == before
