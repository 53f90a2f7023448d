"""What the configuration's JSON schema says: the schema itself, a flat list of fields, values to test them with.

The command line's help, the reference pages and the custom resources are made from it; nothing is written twice.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from llenergymeasure.core.config import ExecutionConfig, ExperimentConfig

STUDY_ONLY: dict[str, Any] = {
    "name": {"type": "string", "default": "study", "description": "Name of the study."},
    "base": {
        "type": "string",
        "description": "Experiment file whose values lie under this file's, one level.",
    },
    "sweep": {
        "type": "object",
        "description": "Axes: `key: [values]` for every backend, `backend.parameter: [values]` for one.",
    },
    "experiments": {
        "type": "array",
        "items": {"type": "object"},
        "description": "Explicit experiments; each is laid over the fixed values.",
    },
    "runners": {
        "type": "object",
        "description": "Runner per backend: local, docker, docker:<image>, kubernetes, auto.",
    },
    "images": {"type": "object", "description": "Container image per backend."},
}


@dataclass(frozen=True)
class FieldInfo:
    """One field of the configuration, for people: `type` in words, `default` as YAML shows it."""

    path: str
    type: str
    default: str
    description: str
    bounds: str


def experiment_schema() -> dict[str, Any]:
    """JSON schema (2020-12) of an experiment file."""
    schema = _standard_bounds(ExperimentConfig.model_json_schema())
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


_BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}


def _standard_bounds(node: Any) -> Any:
    """Rename what pydantic (2.14) writes for an optional number behind a validator: `ge` is no schema keyword."""
    if isinstance(node, dict):
        return {_BOUNDS.get(k, k) if isinstance(v, int | float) else k: _standard_bounds(v) for k, v in node.items()}
    return [_standard_bounds(v) for v in node] if isinstance(node, list) else node


def study_schema() -> dict[str, Any]:
    """JSON schema of a study file: an experiment's fields, lists of backends, and the study's own keys."""
    schema = experiment_schema()
    execution = _standard_bounds(ExecutionConfig.model_json_schema())
    schema["$defs"].update(execution.pop("$defs", {}))
    schema["$defs"]["ExecutionConfig"] = execution
    backend = schema["properties"]["backend"]
    schema["properties"]["backend"] = {
        "description": backend["description"],
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
    }
    schema["properties"] |= {**STUDY_ONLY, "execution": {"$ref": "#/$defs/ExecutionConfig"}}
    schema["title"] = "Study"
    schema.pop("required", None)
    return schema


def schema_digest() -> str:
    """SHA-256 of the experiment schema; images carry it as a label, so that host and image can compare."""
    return hashlib.sha256(json.dumps(experiment_schema(), sort_keys=True).encode()).hexdigest()


def fields(schema: dict[str, Any] | None = None) -> list[FieldInfo]:
    """All fields as dotted paths, in the order of the models."""
    schema = schema or experiment_schema()
    return list(_walk(schema, schema, ""))


def _walk(schema: dict[str, Any], node: dict[str, Any], prefix: str) -> Iterator[FieldInfo]:
    for name, prop in node.get("properties", {}).items():
        path = f"{prefix}{name}"
        inner = _object_in(schema, prop)
        yield FieldInfo(
            path=path,
            type=_type_words(schema, prop),
            default="" if inner else _default(prop, required=name in node.get("required", ())),
            description=prop.get("description") or (inner or {}).get("description", ""),
            bounds=_bounds(prop),
        )
        if inner:
            yield from _walk(schema, inner, f"{path}.")


def _variants(prop: dict[str, Any]) -> list[dict[str, Any]]:
    return [v for v in prop.get("anyOf", [prop]) if v.get("type") != "null"]


def _resolve(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    ref = node.get("$ref")
    return schema["$defs"][ref.rpartition("/")[2]] if ref else node


def _object_in(schema: dict[str, Any], prop: dict[str, Any]) -> dict[str, Any] | None:
    for variant in _variants(prop):
        node = _resolve(schema, variant)
        if "properties" in node:
            return node
    return None


def _type_words(schema: dict[str, Any], prop: dict[str, Any]) -> str:
    words = []
    for variant in _variants(prop):
        node = _resolve(schema, variant)
        if "enum" in node:
            words.append(" \\| ".join(str(v) for v in node["enum"]))
        elif "const" in node:
            words.append(str(node["const"]))
        elif "properties" in node:
            words.append("section")
        else:
            words.append(str(node.get("type", "any")))
    return " or ".join(dict.fromkeys(words))


def _default(prop: dict[str, Any], *, required: bool) -> str:
    if required:
        return "required"
    value = prop.get("default")
    if value is None or value == "":
        return "unset"
    return json.dumps(value) if isinstance(value, bool | dict | list) else str(value)


def _bounds(prop: dict[str, Any]) -> str:
    signs = {"minimum": ">= ", "exclusiveMinimum": "> ", "maximum": "<= ", "exclusiveMaximum": "< "}
    return ", ".join(f"{sign}{v[key]:g}" for v in _variants(prop) for key, sign in signs.items() if key in v)


@cache
def _shared_schema() -> dict[str, Any]:
    return experiment_schema()  # made once for all fields; only read


def test_values(path: str) -> list[Any]:
    """Legal values of a scalar field, for table-driven tests: each choice, or both bounds, or both booleans."""
    schema = _shared_schema()
    node: dict[str, Any] = schema
    prop: dict[str, Any] = {}
    for name in path.split("."):
        prop = node["properties"][name]
        node = _object_in(schema, prop) or {}
    values: list[Any] = []
    for variant in _variants(prop):
        leaf = _resolve(schema, variant)
        if "enum" in leaf:
            values += leaf["enum"]
        elif leaf.get("type") == "boolean":
            values += [True, False]
        elif leaf.get("type") in ("integer", "number"):
            low = leaf.get("minimum", leaf.get("exclusiveMinimum", 0) + 1)
            high = leaf.get("maximum", low + 1)
            values += [low, high] if high != low else [low]
        elif leaf.get("type") == "string":
            values.append(leaf.get("default") or "x" * max(1, leaf.get("minLength", 1)))
    return values
