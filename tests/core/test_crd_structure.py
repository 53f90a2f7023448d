"""Both custom resource definitions, looked at without a cluster: complete, described, bounded, within an API server's limits."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from llenergymeasure.core import crds, introspection, keys, registry, resources
from llenergymeasure.core.config import ExecutionConfig, ExperimentConfig
from llenergymeasure.core.termination import Numbers
from llenergymeasure.yaml_reading import read_mapping

ROOT = Path(__file__).resolve().parents[2]
STUDY, EXPERIMENT = crds.definitions()
BOTH = pytest.mark.parametrize("definition", [STUDY, EXPERIMENT], ids=["study", "experiment"])


def schema(definition: dict[str, Any]) -> dict[str, Any]:
    """The schema of the only version."""
    (version,) = definition["spec"]["versions"]
    return version["schema"]["openAPIV3Schema"]


def fields(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every field of a schema with its path; items and values of maps, too."""
    for name, child in node.get("properties", {}).items():
        yield f"{path}.{name}", child
        yield from fields(child, f"{path}.{name}")
    for inner, mark in (("items", "[]"), ("additionalProperties", "{}")):
        if isinstance(node.get(inner), dict):
            yield f"{path}{mark}", node[inner]
            yield from fields(node[inner], f"{path}{mark}")


def at(definition: dict[str, Any], path: str) -> dict[str, Any]:
    """The schema of one field."""
    return dict(fields(schema(definition)))[path]


def below(definition: dict[str, Any], part: str) -> list[tuple[str, dict[str, Any]]]:
    """Fields of the user's own text."""
    return [(p, f) for p, f in fields(schema(definition)) if p.startswith(f".spec.{part}.")]


@BOTH
def test_every_field_says_what_it_is(definition: dict[str, Any]) -> None:
    """`kubectl explain` has a sentence for each field (the API server writes those of metadata)."""
    silent = [p for p, f in fields(schema(definition)) if not f.get("description") and p != ".metadata"]

    assert silent == []
    assert len(list(fields(schema(definition)))) > 100


@BOTH
def test_every_description_is_a_sentence(definition: dict[str, Any]) -> None:
    """It ends with a full stop, so that what is appended to it stays readable."""
    loose = [p for p, f in fields(schema(definition)) if f.get("description", ".")[-1] not in ".)"]

    assert loose == []


@BOTH
def test_every_field_is_bounded(definition: dict[str, Any]) -> None:
    """No text, list, map or number is without a limit: an object's size is limited by its schema."""
    limits = {
        "string": "maxLength",
        "array": "maxItems",
        "integer": "maximum",
        "number": "maximum",
        None: "maxLength",  # untyped, or a quantity
    }
    loose = []
    for path, field in fields(schema(definition)):
        kind = field.get("type")
        closed_object = kind == "object" and ("properties" in field or "maxProperties" in field)
        if path in (".apiVersion", ".kind", ".metadata") or kind == "boolean" or closed_object:
            continue
        if "enum" not in field and not {limits[kind], "maxItems"} & set(field):
            loose.append(path)

    assert loose == []


@BOTH
def test_lists_say_how_they_merge(definition: dict[str, Any]) -> None:
    """Server-side apply knows for every list whether it is one value or a map of entries."""
    lists = {p: f for p, f in fields(schema(definition)) if f.get("type") == "array"}

    assert [p for p, f in lists.items() if "x-kubernetes-list-type" not in f] == []
    assert lists[".status.conditions"]["x-kubernetes-list-map-keys"] == ["type"]


@pytest.mark.parametrize(
    ("definition", "part"), [(STUDY, "design"), (EXPERIMENT, "config")], ids=["study", "experiment"]
)
def test_the_users_own_text_has_neither_defaults_nor_choices(definition: dict[str, Any], part: str) -> None:
    """What is stored is what was written; a new precision needs no new definition."""
    assert [p for p, f in below(definition, part) if {"default", "enum"} & set(f)] == []
    assert at(definition, f".spec.{part}").get("x-kubernetes-preserve-unknown-fields") is None
    assert at(definition, f".spec.{part}")["x-kubernetes-map-type"] == "atomic"


def test_null_is_legal_wherever_a_user_may_write_it() -> None:
    """Null equals absent: it must not depend on the way of applying whether a null is refused."""
    below_design = [(p, f) for d, part in ((STUDY, "design"), (EXPERIMENT, "config")) for p, f in below(d, part)]

    assert [p for p, f in below_design if not f.get("nullable")] == []


def test_a_design_declares_every_key_that_a_study_body_may_have() -> None:
    """A key of llem that were not declared would be refused by the API server."""
    legal = {*ExperimentConfig.model_fields, "sweep", "experiments", "version", "false"} - {"output"}

    assert set(at(STUDY, ".spec.design")["properties"]) == legal
    beside = set(resources.BESIDE_DESIGN) | {"runners", "images"}
    assert not beside & legal


def test_a_config_declares_every_key_that_an_experiment_body_may_have() -> None:
    """The same for a single experiment."""
    legal = {*ExperimentConfig.model_fields, "version", "false"}

    assert set(at(EXPERIMENT, ".spec.config")["properties"]) == legal
    assert keys.experiment_problems(dict.fromkeys(legal - {"false"})) == []


@pytest.mark.parametrize("field", introspection.fields(), ids=lambda f: f.path)
def test_every_field_of_the_configuration_is_explained(field: introspection.FieldInfo) -> None:
    """`kubectl explain` tells of nested fields, too, in the description of their section."""
    top = field.path.partition(".")[0]

    described = at(EXPERIMENT, f".spec.config.{top}")["description"]
    words = field.description if top != "backend" else "engine"
    assert words in described
    if top != field.path:
        assert f"\n{field.path.removeprefix(f'{top}.')} (" in described


def test_scalars_of_a_design_are_typed() -> None:
    """An API server refuses `n: many`; a list of backends, a sweep and a section stay untyped."""
    kinds = {p.rpartition(".")[2]: f.get("type") for p, f in below(STUDY, "design") if p.count(".") == 3}

    assert kinds["n"] == kinds["false"] == kinds["random_seed"] == kinds["max_input_tokens"] == "integer"
    assert kinds["model"] == kinds["precision"] == "string"
    assert kinds["backend"] is kinds["dataset"] is kinds["decoder"] is kinds["experiments"] is None
    assert [kinds[b] for b in registry.backend_names()] == [None] * len(registry.backend_names())


def test_execution_is_that_of_a_study_file_in_camel_case() -> None:
    """Same fields, same bounds, same defaults."""
    found = at(STUDY, ".spec.execution")

    assert keys.snake_case(dict.fromkeys(found["properties"])).keys() == ExecutionConfig.model_fields.keys()
    assert found["default"] == {"nCycles": resources.STUDY_CYCLES}
    assert found["properties"]["nCycles"]["default"] == 3
    assert (found["properties"]["nCycles"]["minimum"], found["properties"]["nCycles"]["maximum"]) == (1, 1000)
    assert found["properties"]["experimentTimeoutSeconds"]["exclusiveMinimum"] is True
    assert found["properties"]["cycleOrder"]["enum"] == ["sequential", "interleaved", "shuffled", "latin_square"]
    assert set(found["properties"]["phaseTimeouts"]["properties"]) == {"download", "engineBuild"}


def test_children_stay_lean() -> None:
    """No default is written into an experiment: what it does not say is read from its study."""
    assert [p for p, f in fields(schema(EXPERIMENT)) if "default" in f] == [".status"]


@BOTH
def test_spec_takes_what_the_loaders_take(definition: dict[str, Any]) -> None:
    """`llem run` and the API server agree on the fields beside the body."""
    part, others = resources.PARTS[definition["spec"]["names"]["kind"]]

    assert set(at(definition, ".spec")["properties"]) == {part, *others}


def test_summary_has_the_numbers_of_the_termination_message() -> None:
    """Every headline number has a place."""
    summary = at(EXPERIMENT, ".status.summary")["properties"]
    numbers = Numbers(**dict.fromkeys(Numbers.model_fields, 1)).model_dump(by_alias=True)

    assert set(summary) == {*numbers, "verdict", "energyNullReason", "synthetic"}
    assert {k for k, f in summary.items() if f["type"] == "integer"} == {"outputTokens", "requests"}


def test_names_leave_room_for_those_made_of_them() -> None:
    """`<study>-<index5>-<hash6>-a<attempt>` is at most 57 characters, the longest name that a pod keeps whole."""
    study = at(STUDY, ".metadata.name")["maxLength"]
    experiment = at(EXPERIMENT, ".metadata.name")["maxLength"]

    assert (study, experiment) == (40, 53)
    assert len("-00000-abcdef") + study == experiment
    assert experiment + len("-a99") <= 57


@BOTH
def test_lists_of_a_cluster_are_found_by_what_it_selects(definition: dict[str, Any]) -> None:
    """Unfinished ones, and those of one study, can be asked for."""
    (version,) = definition["spec"]["versions"]
    selectable = [f["jsonPath"] for f in version["selectableFields"]]

    assert ".status.finished" in selectable
    assert (".spec.studyRef.name" in selectable) is (definition is EXPERIMENT)
    assert version["subresources"] == {"status": {}}


@BOTH
def test_columns_are_those_of_the_manual(definition: dict[str, Any]) -> None:
    """`kubectl get`, and `-o wide`."""
    (version,) = definition["spec"]["versions"]
    columns = version["additionalPrinterColumns"]
    shown = [c["name"].upper() for c in columns if not c.get("priority")]
    wide = [c["name"].upper() for c in columns if c.get("priority")]

    if definition is STUDY:
        assert shown == ["STATE", "TOTAL", "DONE", "FAILED", "INVALID", "RUNNING", "BEST-MILLIJOULES/TOKEN", "AGE"]
        assert wide == ["DESIGN", "NEXT", "MESSAGE"]
    else:
        assert shown == ["STATE", "STUDY", "INDEX", "CYCLE", "NODE", "MILLIJOULES/TOKEN", "VERDICT", "AGE"]
        assert wide == ["ATTEMPT", "REASON", "GPU", "HASH"]


@pytest.mark.parametrize("plural", ["energystudies", "energyexperiments"])
def test_files_are_small_and_mean_what_they_say(plural: str) -> None:
    """At most 200 KiB; read as kubectl reads it, the file is the definition (a bare key n would be lost)."""
    path = ROOT / "crds" / f"llem.dev_{plural}.yaml"

    assert path.stat().st_size <= 200 * 1024
    assert read_mapping(path) == next(d for d in (STUDY, EXPERIMENT) if d["spec"]["names"]["plural"] == plural)
    assert yaml.safe_load(path.read_text(encoding="utf-8")) == read_mapping(path)
