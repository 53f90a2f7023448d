"""The part of a custom resource that is a study's or an experiment's own text, made from the configuration models.

Every key of the top level is declared, so that the API server names a typo there and a comparison of two designs sees
every key. What lies deeper is kept as written: llem checks it and can name a typo, where an API server would drop it.
No default and no list of choices stands here: they live in the models, and a stored design says only what its author
wrote.
"""

from typing import Any

from pydantic.alias_generators import to_camel

from llenergymeasure.core import introspection, registry
from llenergymeasure.core.config import ExperimentConfig
from llenergymeasure.core.crd_schema import Schema, by_default, flag, free, integer, mapping, record, text
from llenergymeasure.core.resources import STUDY_CYCLES

MAX_AXES, MAX_VALUES = 16, 64
MAX_ENTRIES = 5_000
LONGEST = 1_024
NOT_IN_A_DESIGN = ("output",)
"""Fields of an experiment that a study's design does not take (resources.BESIDE_DESIGN says so by name)."""


def design() -> Schema:
    """`spec.design` of an EnergyStudy."""
    properties = _experiment_fields(lists_of_backends=True)
    for name in NOT_IN_A_DESIGN:
        properties.pop(name)
    for name, field in properties.items():
        properties[name] = field | {"description": field["description"].replace("Required.", "Required, or swept.")}
    axis = _null_too(free("Values of one axis: a list, or a single value.", maxItems=MAX_VALUES, maxLength=LONGEST))
    sweep = mapping(
        f"{introspection.STUDY_ONLY['sweep']['description']} At most {MAX_AXES} axes of {MAX_VALUES} values. Every "
        "combination that is a valid experiment runs.",
        axis,
        MAX_AXES,
    )
    entries = free(introspection.STUDY_ONLY["experiments"]["description"], maxItems=MAX_ENTRIES)
    return record(
        "What is measured: the text of a study file, word for word (snake_case), without its name, execution, base, "
        "runners, images and output. Fixed once the study is accepted. Values that are left out have the defaults of "
        "llem; `llem plan` shows what a design comes to.",
        {"sweep": _null_too(sweep), "experiments": _null_too(entries), **properties},
        atomic=True,
    ) | {"minProperties": 1}


def config() -> Schema:
    """`spec.config` of an EnergyExperiment."""
    return record(
        "What is measured: the text of an experiment file, word for word (snake_case). Values that are left out have "
        "the defaults of llem.",
        _experiment_fields(lists_of_backends=False),
        required=["model"],
        atomic=True,
    )


def _experiment_fields(*, lists_of_backends: bool) -> Schema:
    schema = introspection.experiment_schema()
    about = {f.path: f for f in introspection.fields(schema)}
    found: Schema = {}
    for name in ExperimentConfig.model_fields:
        found[name] = _field(about, schema["properties"][name], name)
    if lists_of_backends:
        known = ", ".join(registry.backend_names())
        found["backend"] = free(f"Inference engine, or a list of them: {known}.", maxItems=16, maxLength=63)
    unquoted = "What kubectl makes of the unquoted key n, which YAML reads as false; it means n."
    found["false"] = found["n"] | {"description": f"{unquoted} {found['n']['description']}"}
    found["version"] = free("Ignored; other tools write it.", maxLength=63, maxProperties=0, maxItems=0)
    return {name: _null_too(field) for name, field in found.items()}


def _null_too(field: Schema) -> Schema:
    """Null equals absent in llem; without this, server-side apply refuses a null that client-side apply drops."""
    return {**field, "nullable": True}


def _field(about: dict[str, introspection.FieldInfo], prop: dict[str, Any], name: str) -> Schema:
    """A scalar with its type and bounds; anything else untyped, its own fields listed in the description."""
    variants = [v for v in prop.get("anyOf", [prop]) if v.get("type") != "null"]
    kinds = {v.get("type") for v in variants}
    inner = [f for path, f in about.items() if path.startswith(f"{name}.")]
    if len(variants) == 1 and not inner and kinds <= {"string", "integer", "number", "boolean"}:
        return scalar(variants[0], _sentence(about[name]))
    lines = [f"{f.path.removeprefix(f'{name}.')} ({_facts(f)}): {f.description}" for f in inner]
    fields = "\n\n".join([about[name].description, *(["Fields:"] if lines else []), *lines])
    return free(fields, maxProperties=256, maxItems=256, maxLength=LONGEST)


def _sentence(field: introspection.FieldInfo) -> str:
    facts = [_default(field)]
    choices = field.type.replace("\\|", "|")
    facts += [f"One of {choices.replace(' | ', ', ')}."] if "|" in choices else []
    return " ".join([field.description, *facts])


def _default(field: introspection.FieldInfo) -> str:
    if field.default in ("unset", "required", ""):
        return {"required": "Required."}.get(field.default, "Optional.")
    return f"Default: {field.default}."


def _facts(field: introspection.FieldInfo) -> str:
    words = [field.type.replace("\\|", "|"), field.bounds]
    words += [f"default {field.default}"] if field.default not in ("unset", "required", "") else []
    return ", ".join(w for w in words if w)


_LIMITS = {"minimum": "minimum", "maximum": "maximum", "exclusiveMinimum": "minimum", "exclusiveMaximum": "maximum"}


def scalar(source: dict[str, Any], description: str, *, choices: bool = False) -> Schema:
    """A JSON-schema scalar (2020-12) as an API server writes it: exclusive bounds are flags, strings have a limit."""
    kind = source["type"]
    if kind == "boolean":
        return flag(description)
    if kind == "string":
        found = text(description, source.get("maxLength", LONGEST), shortest=source.get("minLength", 0))
        return found | ({"enum": source["enum"]} if choices and "enum" in source else {})
    found = integer(description, -(2**53)) if kind == "integer" else _number(description)
    for word, limit in _LIMITS.items():
        if word in source:
            found[limit] = source[word]
            found |= {word: True} if word.startswith("exclusive") else {}
    return found


def _number(description: str) -> Schema:
    return {"type": "number", "description": description, "minimum": -1e15, "maximum": 1e15}


CYCLES = to_camel("n_cycles")


def execution() -> Schema:
    """`spec.execution`: the `execution` of a study file in camelCase."""
    schema = introspection.study_schema()["$defs"]["ExecutionConfig"]
    properties = {}
    for name, prop in schema["properties"].items():
        properties[to_camel(name)] = _execution_field(name, prop)
    properties[CYCLES] = by_default(properties[CYCLES], STUDY_CYCLES)
    described = record(
        "How often and in which order the runs of the study are made, and with which pauses.", properties
    )
    return by_default(described, {CYCLES: STUDY_CYCLES})


_ON_A_CLUSTER = {
    "config_gap_seconds": "Pause of a node between two runs, s. Left out: what the operator was installed with (60).",
    "cycle_gap_seconds": "Pause of a node between two cycles, s. Left out: what the operator was installed with (300).",
}
_WHEN_IT_MAY_CHANGE = {
    "n_cycles": "May only grow: the study is then topped up, finished runs stay.",
    "cycle_order": "Fixed once the study is accepted.",
    "shuffle_seed": "Fixed once the study is accepted.",
    "deduplicate": "Fixed once the study is accepted.",
}
FIXED_IN_EXECUTION = tuple(to_camel(n) for n, words in _WHEN_IT_MAY_CHANGE.items() if words.startswith("Fixed"))


def _execution_field(name: str, prop: dict[str, Any]) -> Schema:
    words = [_ON_A_CLUSTER.get(name, prop["description"]), _WHEN_IT_MAY_CHANGE.get(name, "")]
    value = STUDY_CYCLES if name == "n_cycles" else prop.get("default")
    if value not in (None, {}):
        words.append(f"Default: {f'{value:g}' if isinstance(value, float) else str(value).lower()}.")
    description = " ".join(w for w in words if w)
    variants = [v for v in prop.get("anyOf", [prop]) if v.get("type") != "null"]
    if variants[0].get("type") == "object":
        limits = variants[0]["propertyNames"]["enum"]
        phase = {"type": "number", "minimum": 0, "maximum": 7 * 86_400}
        return record(description, {to_camel(k): scalar(phase, f"Limit of {k}, s.") for k in limits})
    return scalar(variants[0], description, choices=True)
