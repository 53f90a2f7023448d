"""Finds plug-ins by file name and imports them by name: the one dynamic import of the product.

A backend or energy source is one file in `backends/` or `energy/`. Its module top level is light (pydantic only);
the engine's own library is imported inside functions.
"""

import contextlib
import importlib
import importlib.metadata
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import cast

from pydantic import BaseModel

from llenergymeasure.core.contracts import EnergyBackend, InferenceEngine

_PACKAGE = Path(__file__).resolve().parent.parent


@cache
def _names(kind: str) -> tuple[str, ...]:
    return tuple(sorted(p.stem for p in (_PACKAGE / kind).glob("*.py") if not p.stem.startswith("_")))


@cache
def _plugin(kind: str, name: str) -> ModuleType:
    if name not in _names(kind):
        raise LookupError(f"no {kind} plug-in named {name!r}; there are: {', '.join(_names(kind))}")
    return importlib.import_module(f"llenergymeasure.{kind}.{name}")


def backend_names() -> tuple[str, ...]:
    """Names of all inference backends, alphabetically."""
    return _names("backends")


def energy_names() -> tuple[str, ...]:
    """Names of all energy sources, alphabetically."""
    return _names("energy")


def energy_auto_order() -> tuple[str, ...]:
    """Sources that `energy.backend: auto` tries, best first; a source without AUTO_RANK is never automatic."""
    ranked = [(getattr(_plugin("energy", n), "AUTO_RANK", None), n) for n in energy_names()]
    return tuple(n for rank, n in sorted((r, n) for r, n in ranked if r is not None))


@cache
def backend_settings(name: str) -> type[BaseModel]:
    """The pydantic model of a backend's section."""
    return cast("type[BaseModel]", _plugin("backends", name).Settings)


@cache
def energy_settings(name: str) -> type[BaseModel] | None:
    """The pydantic model of an energy source's section, if it has one."""
    return cast("type[BaseModel] | None", getattr(_plugin("energy", name), "Settings", None))


@cache
def precision_support() -> dict[str, tuple[str, ...]]:
    """PRECISION_SUPPORT: precisions by backend; only positive lists."""
    return {n: tuple(_plugin("backends", n).PRECISIONS) for n in backend_names()}


@cache
def decoding_support() -> dict[str, tuple[str, ...]]:
    """DECODING_SUPPORT: decoding strategies by backend; only positive lists."""
    return {n: tuple(_plugin("backends", n).DECODING) for n in backend_names()}


@cache
def lora_support() -> dict[str, str]:
    """Per backend "" if LoRA adapters work, else the sentence that says what to do instead."""
    return {n: str(getattr(_plugin("backends", n), "LORA_ADVICE", "")) for n in backend_names()}


@cache
def batch_size_key(name: str) -> str | None:
    """The parameter of a backend's section that `--batch-size` sets, or None if it has none."""
    return cast("str | None", getattr(_plugin("backends", name), "BATCH_SIZE_KEY", None))


def completed(name: str, section: BaseModel, *, precision: str, lora: bool) -> BaseModel:
    """A backend's section with what other fields imply filled in, where its plug-in has a rule for that."""
    rule = getattr(_plugin("backends", name), "completed", None)
    return section if rule is None else cast("BaseModel", rule(section, precision=precision, lora=lora))


def gpu_count(name: str, section: BaseModel | None) -> int:
    """GPUs that one run of this backend needs with these settings (0: none)."""
    return int(_plugin("backends", name).gpu_count(section))


def gpus_used(name: str, section: BaseModel | None) -> int | None:
    """How many of the visible GPUs a run computes on, the first ones; None: it may spread over all of them."""
    plugin = _plugin("backends", name)
    spread = getattr(plugin, "spreads", lambda _section: False)(section)
    return None if spread else (plugin.gpu_count(section) or None)


def is_continuous(name: str, section: BaseModel | None) -> bool:
    """Whether an engine with these settings takes requests into its running batch as others end."""
    return bool(getattr(_plugin("backends", name), "continuous", lambda _section: False)(section))


def is_real(name: str) -> bool:
    """False for an engine that pretends: its results carry `synthetic: true`."""
    return bool(getattr(_plugin("backends", name), "REAL", True))


def can_run(name: str) -> bool:
    """False for a backend whose settings are known but whose engine is not part of this release."""
    return hasattr(_plugin("backends", name), "Engine")


def needs_weights(name: str) -> bool:
    """False for an engine that has no model files."""
    return bool(getattr(_plugin("backends", name), "NEEDS_WEIGHTS", True))


def installed(name: str) -> bool:
    """Whether the engine's library can be found (without importing it)."""
    return bool(_plugin("backends", name).installed())


def library_versions(name: str) -> dict[str, str]:
    """Versions of the packages that make up an engine, as far as they are installed."""
    found = {}
    for package in getattr(_plugin("backends", name), "PACKAGES", ()):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def install_hint(name: str) -> str:
    """How to install the engine, for error messages."""
    return str(getattr(_plugin("backends", name), "INSTALL_HINT", f'pip install "llenergymeasure[{name}]"'))


def engine(name: str) -> InferenceEngine:
    """A new engine object of that backend; nothing is loaded yet."""
    return cast("InferenceEngine", _plugin("backends", name).Engine())


def energy_source(name: str, settings: BaseModel | None = None) -> EnergyBackend:
    """A new energy source object; nothing is recorded yet."""
    return cast("EnergyBackend", _plugin("energy", name).Source(settings))
