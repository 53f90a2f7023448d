"""Checks the keys of raw mappings before any model sees them: unknown, removed and misplaced names, credentials.

All findings are collected and reported at once, each with a suggestion.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any, get_args

from pydantic import BaseModel

from llenergymeasure.core import registry
from llenergymeasure.core.config import ExecutionConfig, ExperimentConfig
from llenergymeasure.core.errors import ConfigError
from llenergymeasure.core.redaction import TOKENS

STUDY_KEYS = ("name", "base", "sweep", "experiments", "execution", "runners", "images")

REMOVED = {
    "model_name": "use model",
    "fp_precision": "use precision",
    "num_input_prompts": "use n",
    "extra": "use passthrough_kwargs, or the backend's own section",
    "schedule": "removed; run llem from cron or a cluster's CronJob",
    "io": "use output, or -o for the folder",
    "query_rate": "use traffic.target_qps (requests/s)",
    "streaming": "removed; latency is measured by the backend's own means",
    "save_outputs": "use output.save_text",
    "config_name": "use name in a study file",
    "gpus": "use the backend's parallelism, e.g. vllm.tensor_parallel_size; choose cards by CUDA_VISIBLE_DEVICES",
    "min_output_tokens": "use decoder.ignore_eos: true, which makes every output max_output_tokens long",
}

_SECRET_KEY = re.compile(
    r"^(token|.*(hf|hub|access|auth|api|bearer|secret)_?token|.*api_?key|.*password|.*passwd|.*secret(\w*key)?)$",
    re.I,
)
_SECRET_VALUE = re.compile(
    rf"^({TOKENS})$"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY|://[^/\s:@]+:[^/\s@]+@"
)

KeyTree = Mapping[str, "KeyTree | None"]


def edit_distance(a: str, b: str) -> int:
    """Levenshtein distance of two short words."""
    row = list(range(len(b) + 1))
    for i, ca in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, cb in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (ca != cb))
    return row[-1]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Give '; did you mean X?' for the nearest known word at distance <= 3, else ''."""
    near = sorted((edit_distance(word.lower(), k.lower()), k) for k in known)
    if near and near[0][0] <= min(3, max(1, len(word) - 1)):
        return f"; did you mean {near[0][1]}?"
    return ""


@cache
def key_tree(model: type[BaseModel]) -> dict[str, Any]:
    """Give the keys of a model as a tree; None at a leaf or where anything may follow."""
    tree: dict[str, Any] = {}
    for name, info in model.model_fields.items():
        merged: dict[str, Any] = {}
        parts = list(_models_in(info.annotation))
        for part in parts:
            merged.update(key_tree(part))
        takes_any = any(p.model_config.get("extra") == "allow" for p in parts)
        tree[name] = None if takes_any else merged or None
    return tree


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    else:
        for part in get_args(annotation):
            yield from _models_in(part)


def section_owners(parameter: str) -> list[str]:
    """Dotted names of a parameter that lives in backend sections: `batch_size` → [`pytorch.batch_size`]."""
    return [
        f"{b}.{parameter}" for b in registry.backend_names() if parameter in registry.backend_settings(b).model_fields
    ]


def experiment_problems(data: Mapping[str, Any], *, extra: Iterable[str] = (), where: str = "") -> list[str]:
    """Name every key of an experiment mapping that llem does not know; `extra` keys are allowed at the top."""
    tree = {**key_tree(ExperimentConfig), "version": None, **dict.fromkeys(extra)}
    return list(_unknown(data, tree, where, top=True))


def _unknown(data: Mapping[str, Any], tree: Mapping[str, Any], path: str, *, top: bool = False) -> Iterator[str]:
    for key, value in data.items():
        here = f"{path}{key}"
        if not isinstance(key, str):
            yield f'{here}: keys must be text; write it in quotes: "{str(key).lower()}"'
        elif key not in tree:
            yield _explain(key, here, tree, top=top)
        elif isinstance(value, Mapping) and tree[key]:
            yield from _unknown(value, tree[key], f"{here}.")


def _explain(key: str, here: str, known: Iterable[str], *, top: bool) -> str:
    if top:
        if key in REMOVED:
            return f"{here}: removed in 2.0; {REMOVED[key]}"
        owners = section_owners(key)
        if owners:
            return f"{here}: belongs to a backend's section; write {' or '.join(owners)}"
        if key in STUDY_KEYS:
            return f"{here}: belongs to a study; add a sweep or experiments to this file"
    return f"{here}: unknown key{did_you_mean(key, known)}"


def sweep_problems(sweep: Mapping[str, Any], backends: Iterable[str]) -> list[str]:
    """Name every sweep key that is unknown, unscoped or scoped to a backend that the study does not run."""
    chosen = tuple(backends)
    universal = {k: v for k, v in key_tree(ExperimentConfig).items() if k not in registry.backend_names()}
    return [text for key in sweep for text in _sweep_key_problems(key, universal, chosen)]


def _sweep_key_problems(key: Any, universal: Mapping[str, Any], chosen: tuple[str, ...]) -> Iterator[str]:
    here = f"sweep.{key}"
    if not isinstance(key, str):
        yield f'{here}: keys must be text; write it in quotes: "{str(key).lower()}"'
        return
    first, _, rest = key.partition(".")
    if key == "backend":
        yield "sweep.backend: write backend: [...] beside sweep instead"
    elif first in registry.backend_names():
        if not rest:
            yield f"{here}: names a whole section; write {first}.<parameter>"
        elif first not in chosen:
            yield f"{here}: this study runs {', '.join(chosen)}, not {first}; add the backend or remove the key"
        else:
            yield from _dotted_problems(rest, key_tree(registry.backend_settings(first)), here, prefix=f"{first}.")
    elif not rest and first not in universal:
        yield _explain(key, here, [*universal, *_scoped_names(chosen)], top=True)
    elif rest and first not in universal:
        near = did_you_mean(first, [*universal, *registry.backend_names()])
        yield f"{here}: unknown key {first}{near}"
    elif rest:
        yield from _dotted_problems(rest, universal[first], here, prefix=f"{first}.")


def _scoped_names(backends: Iterable[str]) -> list[str]:
    return [f"{b}.{p}" for b in backends for p in registry.backend_settings(b).model_fields]


def _dotted_problems(rest: str, tree: Mapping[str, Any] | None, here: str, *, prefix: str) -> Iterator[str]:
    for part in rest.split("."):
        if tree is None:
            return
        if part not in tree:
            yield f"{here}: unknown key{did_you_mean(prefix + part, [prefix + k for k in tree])}"
            return
        tree, prefix = tree[part], f"{prefix}{part}."


def execution_problems(execution: Any) -> list[str]:
    """Name unknown keys of an `execution` mapping (already in snake_case)."""
    if not isinstance(execution, Mapping):
        return [f"execution: must be a mapping, not {type(execution).__name__}"]
    return list(_unknown(execution, key_tree(ExecutionConfig), "execution."))


def backend_map_problems(name: str, mapping: Any) -> list[str]:
    """Name every key of `runners` or `images` that is no backend."""
    if not isinstance(mapping, Mapping):
        return [f"{name}: must be a mapping of backend to value, not {type(mapping).__name__}"]
    return list(_unknown(mapping, dict.fromkeys(registry.backend_names()), f"{name}."))


def credential_problems(data: Any, path: str = "") -> list[str]:
    """Name every place that looks like a credential, without repeating it."""
    if isinstance(data, Mapping):
        found = []
        for key, value in data.items():
            here = f"{path}.{key}" if path else str(key)
            if isinstance(key, str) and _SECRET_KEY.match(key) and isinstance(value, str) and value:
                found.append(f"{here}: looks like a credential; remove it and set it in the environment (HF_TOKEN)")
            else:
                found += credential_problems(value, here)
        return found
    if isinstance(data, list):
        return [text for i, value in enumerate(data) for text in credential_problems(value, f"{path}[{i}]")]
    if isinstance(data, str) and _SECRET_VALUE.search(data):
        return [f"{path}: the value looks like a credential; remove it and set it in the environment (HF_TOKEN)"]
    return []


def snake_case(data: Mapping[str, Any]) -> dict[str, Any]:
    """Give a mapping with camelCase keys turned into snake_case, at every depth; ConfigError if one stands twice."""
    found = {}
    for key, value in data.items():
        name = re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", key).lower() if isinstance(key, str) else key
        if name in found:
            raise ConfigError(f"{name}: is written twice, once in camelCase; keep one")
        found[name] = snake_case(value) if isinstance(value, Mapping) else value
    return found


def refuse(problems: Iterable[str], *, source: str) -> None:
    """Raise one ConfigError that lists every problem, or return if there is none."""
    found = list(dict.fromkeys(problems))
    if found:
        head = f"{source}: " + ("1 problem" if len(found) == 1 else f"{len(found)} problems")
        raise ConfigError("\n  - ".join([head, *found]))
