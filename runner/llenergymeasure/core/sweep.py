"""Expands one study body into its experiments: the sweep grammar, pure and deterministic.

1. Every backend of the study gets the Cartesian product of the universal keys and its own scoped keys
   (`backend.parameter`); backends are concatenated, then come the explicit `experiments`.
2. Combinations that are not valid experiments are skipped with their reason; equal ones are kept once.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from math import prod
from typing import Any

from pydantic import ValidationError

from llenergymeasure.core import keys, registry
from llenergymeasure.core.config import (
    ExecutionConfig,
    ExperimentConfig,
    SkippedCombination,
    StudyConfig,
    without_nulls,
)
from llenergymeasure.core.errors import ConfigError
from llenergymeasure.core.identity import measurement_config_hash
from llenergymeasure.core.sections import SyntheticDataset

MAX_COMBINATIONS = 10_000
"""Most points of one study; the cluster's own cap on runs is the same (kubernetes.md §6)."""

_DEFAULT_BACKEND = ExperimentConfig.model_fields["backend"].default


def is_study(body: Mapping[str, Any]) -> bool:
    """A file is a study when it has a top-level `sweep` or `experiments`."""
    return "sweep" in body or "experiments" in body


def copy_tree(value: Any) -> Any:
    """Deep copy of JSON-like data; several times faster than copy.deepcopy, which also copies cycles."""
    if type(value) is dict:
        return {k: copy_tree(v) for k, v in value.items()}
    if type(value) is list:
        return [copy_tree(v) for v in value]
    return value


def deep_merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Give `under` with the values of `over` laid on top, mappings merged at every depth; a new tree."""
    merged: dict[str, Any] = copy_tree(dict(under))
    for key, value in over.items():
        below = merged.get(key)
        if value is None and key in merged:
            continue  # null equals absent
        if isinstance(below, dict) and isinstance(value, Mapping):
            merged[key] = deep_merge(below, value)
        else:
            merged[key] = copy_tree(value)
    return merged


def set_path(mapping: dict[str, Any], dotted: str, value: Any) -> None:
    """Set `a.b.c` in nested mappings, making those that are missing."""
    *parents, last = dotted.split(".")
    for name in parents:
        below = mapping.get(name)
        if not isinstance(below, dict):
            below = mapping[name] = {}
        mapping = below
    mapping[last] = value


def expand(body: Mapping[str, Any], *, source: str = "study", default_cycles: int = 1) -> StudyConfig:
    """Turn a study body (the content of a study file) into a resolved StudyConfig.

    Args:
        body: The mapping; `base` must have been merged in by the loader.
        source: Name of the file for error messages.
        default_cycles: `n_cycles` if the body names none.

    Raises:
        ConfigError: Unknown, misplaced or removed keys (all at once), nothing to run, every combination invalid.
        pydantic.ValidationError: A bad value in `execution`, `runners` or `name`.

    """
    fixed = {k: v for k, v in body.items() if k not in keys.STUDY_KEYS and k != "version"}
    sweep = body.get("sweep") or {}
    entries = body.get("experiments") or []
    execution = (
        keys.snake_case(body["execution"]) if isinstance(body.get("execution"), Mapping) else body.get("execution")
    )
    problems = [*keys.experiment_problems(fixed), *_shape_problems(sweep, entries)]
    problems += keys.execution_problems(execution) if execution is not None else []
    for name in ("runners", "images"):
        problems += keys.backend_map_problems(name, body.get(name) or {})
    problems += keys.credential_problems(dict(body))
    backends, unclear = _backends(fixed, sweep) if _has_sweep(body) and isinstance(sweep, Mapping) else ((), [])
    problems += unclear or [*_section_problems(fixed, backends, entries)]
    if isinstance(sweep, Mapping):  # which backends run is unclear: each key is held against all of them
        problems += keys.sweep_problems(sweep, backends or registry.backend_names()) if backends or unclear else []
    keys.refuse(problems, source=source)
    _refuse_too_many(sweep, backends, entries, source)

    points = [*_points(fixed, sweep, backends), *_entry_points(fixed, entries, source)]
    valid, skipped = _validate(points)
    if not points:
        raise ConfigError(f"{source}: nothing to run; the study has neither a sweep nor experiments")
    if not valid:
        reasons = list(dict.fromkeys(s.reason for s in skipped))
        raise ConfigError(f"{source}: all {len(skipped)} combinations are invalid\n  - " + "\n  - ".join(reasons[:10]))
    resolved = ExecutionConfig.model_validate({"n_cycles": default_cycles, **without_nulls(execution or {})})
    unique, repeats, notices = _unique(valid, deduplicate=resolved.deduplicate)
    if 2 * len(skipped) > len(points):
        notices.insert(0, f"{len(skipped)} of {len(points)} combinations are invalid and will be skipped")
    return StudyConfig(
        name=body.get("name") or "study",
        experiments=tuple(unique),
        repeats=tuple(repeats) if any(r > 1 for r in repeats) else (),
        execution=resolved,
        skipped=tuple(skipped),
        notices=tuple(notices),
        runners=body.get("runners") or {},
        images=body.get("images") or {},
    )


def study_of_one(config: ExperimentConfig, *, name: str | None = None) -> StudyConfig:
    """A single run is a study of one."""
    return StudyConfig(name=name or "experiment", experiments=(config,))


def _has_sweep(body: Mapping[str, Any]) -> bool:
    return "sweep" in body or body.get("experiments") is None


def _shape_problems(sweep: Any, entries: Any) -> Iterator[str]:
    if not isinstance(sweep, Mapping):
        yield f"sweep: must be a mapping of key: [values], not {type(sweep).__name__}"
    else:
        for key, values in sweep.items():
            if values is None or values == []:
                yield f"sweep.{key}: has no values; give a list or remove the key"
    if not isinstance(entries, Sequence) or isinstance(entries, str):
        yield f"experiments: must be a list of mappings, not {type(entries).__name__}"
        return
    for i, entry in enumerate(entries):
        if not isinstance(entry, Mapping):
            yield f"experiments[{i}]: must be a mapping, not {type(entry).__name__}"
        else:
            yield from keys.experiment_problems(entry, where=f"experiments[{i}].")


def _backends(fixed: Mapping[str, Any], sweep: Mapping[str, Any]) -> tuple[tuple[str, ...], list[str]]:
    """The backends of a sweep, or none and the problem that keeps them unknown."""
    written = fixed.get("backend")
    if written is not None:
        chosen = (written,) if isinstance(written, str) else tuple(written) if isinstance(written, list) else ()
        unknown = [b for b in chosen if b not in registry.backend_names()]
        if unknown or not chosen:
            near = keys.did_you_mean(str(unknown[0]), registry.backend_names()) if unknown else ""
            return (), [f"backend: {written!r} is not known; valid: {', '.join(registry.backend_names())}{near}"]
        return tuple(dict.fromkeys(chosen)), []
    heads = [str(k).partition(".")[0] for k in sweep] + [k for k, v in fixed.items() if v is not None]
    implied = tuple(b for b in registry.backend_names() if b in heads)
    if len(implied) != 1:
        found = f"its keys imply {' and '.join(implied)}" if implied else "no key implies one"
        example = ", ".join(implied or registry.backend_names())
        return (), [f"backend: is missing and {found}; write backend: [{example}] or one of them"]
    return implied, []


def _section_problems(fixed: Mapping[str, Any], backends: tuple[str, ...], entries: Sequence[Any]) -> Iterator[str]:
    written = [_entry_backend(e, fixed) for e in entries if isinstance(e, Mapping)]
    in_study = [*backends, *(b for w in written for b in _values(w))]
    for name in registry.backend_names():
        if fixed.get(name) is not None and in_study and name not in in_study:
            runs = ", ".join(map(str, dict.fromkeys(in_study)))
            yield f"{name}: this study runs {runs}, not {name}; remove the section or add the backend"


def _entry_backend(entry: Mapping[str, Any], fixed: Mapping[str, Any]) -> Any:
    return entry.get("backend") or fixed.get("backend") or _DEFAULT_BACKEND


def _values(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _own_axes(sweep: Mapping[str, Any], backend: str) -> dict[str, list[Any]]:
    others = [b for b in registry.backend_names() if b != backend]
    return {k: _values(v) for k, v in sweep.items() if k.partition(".")[0] not in others}


def _refuse_too_many(sweep: Mapping[str, Any], backends: Iterable[str], entries: Sequence[Any], source: str) -> None:
    total = len(entries) + sum(prod(len(v) for v in _own_axes(sweep, b).values()) for b in backends)
    if total > MAX_COMBINATIONS:
        raise ConfigError(f"{source}: {total} combinations are more than {MAX_COMBINATIONS}; split the study")


def _points(fixed: Mapping[str, Any], sweep: Mapping[str, Any], backends: Iterable[str]) -> Iterator[dict[str, Any]]:
    for backend in backends:
        base = _without_foreign(fixed, backend)
        axes = _own_axes(sweep, backend)
        for values in product(*axes.values()):
            point: dict[str, Any] = copy_tree(base)
            for key, value in zip(axes, values, strict=True):
                set_path(point, key, copy_tree(value))
            yield point


def _without_foreign(fixed: Mapping[str, Any], backend: str) -> dict[str, Any]:
    foreign = set(registry.backend_names()) - {backend}
    return {**{k: v for k, v in fixed.items() if k not in foreign}, "backend": backend}


def _entry_points(
    fixed: Mapping[str, Any], entries: Sequence[Mapping[str, Any]], source: str
) -> Iterator[dict[str, Any]]:
    for i, entry in enumerate(entries):
        backend = _entry_backend(entry, fixed)
        if isinstance(backend, list):
            if len(backend) != 1:
                raise ConfigError(f"{source}: experiments[{i}]: name one backend of {', '.join(map(str, backend))}")
            backend = backend[0]
        foreign = [b for b in registry.backend_names() if b != backend and entry.get(b) is not None]
        if foreign:
            raise ConfigError(
                f"{source}: experiments[{i}]: section {foreign[0]} belongs to backend {foreign[0]}, "
                f"but this entry's backend is {backend}"
            )
        yield deep_merge(_without_foreign(fixed, backend), {**entry, "backend": backend})


def _validate(points: Iterable[dict[str, Any]]) -> tuple[list[ExperimentConfig], list[SkippedCombination]]:
    valid, skipped = [], []
    for point in points:
        try:
            valid.append(ExperimentConfig.model_validate(point))
        except ValidationError as err:
            skipped.append(SkippedCombination(config=point, reason=reason(err)))
    return valid, skipped


def reason(err: ValidationError) -> str:
    """One line for a refused combination: all its errors."""
    return "; ".join(reasons(err))


_UNION_BRANCHES = ("str", SyntheticDataset.__name__)
"""What pydantic adds to the place of an error inside `dataset`, which no user wrote."""


def reasons(err: ValidationError) -> list[str]:
    """Field and message of each error, without pydantic's decoration."""
    parts = []
    found = err.errors(include_url=False, include_context=False)
    deeper = {e["loc"][0] for e in found if len(e["loc"]) > 2}
    for e in found:
        if len(e["loc"]) == 2 and e["loc"][1] == "str" and e["loc"][0] in deeper:
            continue  # the other branch of a union, which the value never meant
        where = ".".join(str(p) for p in e["loc"] if p not in _UNION_BRANCHES)
        text = e["msg"].removeprefix("Value error, ")
        shown = "" if e["type"] in ("value_error", "missing") else f" (got {e['input']!r:.60})"
        parts.append(f"{where}: {text}{shown}" if where else text)
    return parts


def _unique(
    configs: Sequence[ExperimentConfig], *, deduplicate: bool
) -> tuple[list[ExperimentConfig], list[int], list[str]]:
    count: dict[str, int] = {}
    first: dict[str, ExperimentConfig] = {}
    for config in configs:
        digest = measurement_config_hash(config)
        count[digest] = count.get(digest, 0) + 1
        first.setdefault(digest, config)
    doubled = len(configs) - len(first)
    notices = []
    if doubled and deduplicate:
        notices.append(f"{doubled} of {len(configs)} experiments equal another one and are kept once")
    repeats = [1 if deduplicate else count[h] for h in first]
    return list(first.values()), repeats, notices
