"""What goes wrong inside torch and transformers comes out as an error of llem, with the right exit code."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationMixin

from llenergymeasure import models
from llenergymeasure.core import registry
from llenergymeasure.core.config import ExperimentConfig
from llenergymeasure.core.contracts import Prompt, Request
from llenergymeasure.core.errors import (
    BackendError,
    BackendMissingError,
    ConfigError,
    LLEMError,
    OutOfMemoryError,
    TerminatedError,
    run_exit_code,
)

pytestmark = pytest.mark.model

REQUEST = Request(0, (40, 41, 42), 3)


@pytest.mark.parametrize(
    ("raised", "expected", "code"),
    [
        pytest.param(RuntimeError("device-side assert"), BackendError, 16, id="RuntimeError"),
        pytest.param(ValueError("bad value"), BackendError, 16, id="ValueError"),
        pytest.param(TypeError("bad type"), BackendError, 16, id="TypeError"),
        pytest.param(KeyError("missing"), BackendError, 16, id="KeyError"),
        pytest.param(IndexError("index out of range in self"), BackendError, 16, id="IndexError"),
        pytest.param(AttributeError("no such part"), BackendError, 16, id="AttributeError"),
        pytest.param(AssertionError("broken inside"), BackendError, 16, id="AssertionError"),
        pytest.param(NotImplementedError("no kernel"), BackendError, 16, id="NotImplementedError"),
        pytest.param(OSError("disk"), BackendError, 16, id="OSError"),
        pytest.param(torch.OutOfMemoryError("CUDA out of memory"), OutOfMemoryError, 14, id="GPU memory"),
        pytest.param(MemoryError(), OutOfMemoryError, 14, id="host memory"),
        pytest.param(Exception("plain"), BackendError, 16, id="Exception"),
        pytest.param(ImportError("needs hqq"), BackendMissingError, 12, id="missing library"),
    ],
)
def test_a_failure_inside_generate_is_translated_once(
    raised: Exception,
    expected: type[LLEMError],
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    loaded: Callable[..., Any],
    tiny_model: Path,
) -> None:
    """The error keeps the vendor's text and cause, and has the exit code that sorts it into a retry budget."""

    def fail(*_args: Any, **_kwargs: Any) -> Any:
        raise raised

    engine = loaded(tiny_model)
    monkeypatch.setattr(GenerationMixin, "generate", fail)
    with pytest.raises(LLEMError) as caught:
        engine.generate([REQUEST])
    assert type(caught.value) is expected
    assert run_exit_code(caught.value) == code
    assert caught.value.__cause__ is raised
    assert "generating" in str(caught.value)


def test_a_signal_during_generate_is_no_engine_failure(
    monkeypatch: pytest.MonkeyPatch, loaded: Callable[..., Any], tiny_model: Path
) -> None:
    """Being told to stop in the middle of the work stays exit code 19."""

    def stop(*_args: Any, **_kwargs: Any) -> Any:
        raise TerminatedError("stopped by SIGTERM")

    engine = loaded(tiny_model)
    monkeypatch.setattr(GenerationMixin, "generate", stop)
    with pytest.raises(TerminatedError):
        engine.generate([REQUEST])


def test_a_token_outside_the_vocabulary_is_a_backend_error(loaded: Callable[..., Any], tiny_model: Path) -> None:
    """What torch answers to an impossible token id on a CPU does not escape untranslated."""
    with pytest.raises(BackendError, match="generating"):
        loaded(tiny_model).generate([Request(0, (319, 320), 1)])


@pytest.mark.parametrize(
    ("section", "module"),
    [
        pytest.param({"load_in_8bit": True}, "bitsandbytes", id="8 bit"),
        pytest.param({"load_in_4bit": True}, "bitsandbytes", id="4 bit"),
        pytest.param({"attn_implementation": "flash_attention_2"}, "flash_attn", id="flash attention"),
    ],
)
def test_a_missing_library_is_named_before_loading(section: dict[str, Any], module: str) -> None:
    """The check names the package and how to get it."""
    (problem,) = registry.engine("pytorch").check(ExperimentConfig(model="x", pytorch=section))
    assert isinstance(problem, BackendMissingError)
    assert f"pip install {module}" in str(problem)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        pytest.param({"pytorch": {"load_in_4bit": True}}, "bitsandbytes", id="4 bit"),
        pytest.param({"pytorch": {"attn_implementation": "flash_attention_3"}}, "FlashAttention3", id="flash 3"),
        pytest.param({"passthrough_kwargs": {"nonsense": 1}}, "nonsense", id="unknown argument"),
    ],
)
def test_what_the_library_cannot_do_is_a_missing_backend_at_load(
    fields: dict[str, Any], text: str, loaded: Callable[..., Any], tiny_model: Path
) -> None:
    """Options without their library, or that the library does not know, are never retried (exit code 12)."""
    with pytest.raises(BackendMissingError, match=text) as caught:
        loaded(tiny_model, **fields)
    assert run_exit_code(caught.value) == 12


def test_a_cache_without_its_library_is_a_missing_backend(loaded: Callable[..., Any], tiny_model: Path) -> None:
    """A quantised KV cache that needs another package says so when it is first used."""
    engine = loaded(tiny_model, pytorch={"cache_implementation": "quantized"})
    with pytest.raises(BackendMissingError, match="quanto"):
        engine.generate([REQUEST])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        pytest.param("config.json", b'{"model_type": "no-such-model"}', id="unknown architecture"),
        pytest.param("model.safetensors", b"damaged", id="damaged weights"),
        pytest.param("tokenizer.json", b"{", id="damaged tokeniser"),
    ],
)
def test_a_broken_model_folder_is_a_backend_error(
    name: str, content: bytes, tmp_path: Path, tiny_model: Path, loaded: Callable[..., Any]
) -> None:
    """Whatever is wrong with a model's files, the load fails with a sentence that names the model."""
    import shutil

    folder = tmp_path / "broken"
    shutil.copytree(tiny_model, folder)
    (folder / name).write_bytes(content)
    with pytest.raises(BackendError, match="loading"):
        loaded(folder)


def test_an_unknown_compiler_is_a_backend_error(loaded: Callable[..., Any], tiny_model: Path) -> None:
    """A compile backend that torch does not have is named with torch's own advice."""
    with pytest.raises(BackendError, match="no-such-compiler"):
        loaded(tiny_model, pytorch={"torch_compile": True, "torch_compile_backend": "no-such-compiler"})


def test_without_torch_the_check_says_how_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without the engine gets the extra to install."""
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    assert not registry.installed("pytorch")
    (problem,) = registry.engine("pytorch").check(ExperimentConfig(model="x"))
    assert isinstance(problem, BackendMissingError)
    assert 'pip install "llenergymeasure[pytorch]"' in str(problem)


def test_an_empty_prompt_without_a_start_token_is_a_config_error(tmp_path: Path, tiny_model: Path) -> None:
    """A model that cannot begin from nothing refuses the record by its number."""
    import json
    import shutil

    folder = tmp_path / "startless"
    shutil.copytree(tiny_model, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings.pop("bos_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    engine = registry.engine("pytorch")
    config = ExperimentConfig(model=str(folder), precision="fp32", dataset="builtin")
    engine.load(config, models.resolve(str(folder), None, cache=tmp_path))
    with pytest.raises(ConfigError, match="prompt 1 is empty"):
        engine.tokenise([Prompt(text="full"), Prompt(text="")], max_input_tokens=0)
    engine.close()
