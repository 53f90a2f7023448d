"""The JSON schemas of files: they take what the models take, and refuse unknown keys at every depth."""

import json
import subprocess
import sys
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from llenergymeasure.core import introspection, registry
from llenergymeasure.core.config import ExperimentConfig
from llenergymeasure.core.result import ExperimentResult
from llenergymeasure.core.sweep import expand

EXPERIMENT = introspection.experiment_schema()
STUDY = introspection.study_schema()


def accepts(schema: dict[str, Any], body: dict[str, Any]) -> bool:
    return Draft202012Validator(schema).is_valid(body)


@pytest.mark.parametrize("schema", [EXPERIMENT, STUDY], ids=["experiment", "study"])
def test_schema_is_a_schema_with_standard_words_only(schema: dict[str, Any]) -> None:
    """Editors and API servers understand every keyword; above all no bound is hidden in an unknown one."""
    Draft202012Validator.check_schema(schema)
    known = {
        "$schema", "$defs", "$ref", "title", "description", "type", "properties", "required", "additionalProperties",
        "anyOf", "enum", "const", "default", "items", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum",
        "minLength", "maxLength", "propertyNames",
    }  # fmt: skip

    def words(node: Any, *, names: bool = False) -> set[str]:
        """Keywords of a schema; keys below `properties` and `$defs` are names, not keywords."""
        if not isinstance(node, dict):
            return set().union(*(words(v) for v in node)) if isinstance(node, list) else set()
        inner = (words(v, names=k in ("properties", "$defs") and not names) for k, v in node.items() if k != "default")
        return set().union(set() if names else set(node), *inner)

    assert words(schema) <= known


BODIES: list[tuple[str, dict[str, Any]]] = [
    ("smallest", {"model": "m"}),
    ("sections", {"model": "m", "decoder": {"preset": "factual"}, "pytorch": {"batch_size": 2}, "warmup": {}}),
    ("nested", {"model": "m", "dataset": {"synthetic": {"n": 100}}, "energy": {"backend": "none"}}),
    ("traffic", {"model": "m", "traffic": {"target_qps": 0.5, "goodput": {"ttft_ms": 1}}}),
    ("free-form", {"model": "m", "passthrough_kwargs": {"a": {"b": [1]}}, "pytorch": {"max_memory": {"0": "1GiB"}}}),
    ("vllm", {"model": "m", "backend": "vllm", "vllm": {"compilation_config": {"level": 3}, "max_num_seqs": 1}}),
    ("trt", {"model": "m", "backend": "tensorrt", "tensorrt": {"kv_cache_config": {"free_gpu_memory_fraction": 0.9}}}),
]


@pytest.mark.parametrize("body", [r[1] for r in BODIES], ids=[r[0] for r in BODIES])
def test_what_the_models_take_the_schema_takes(body: dict[str, Any]) -> None:
    """An editor marks no legal file, neither as written nor with every default filled in."""
    config = ExperimentConfig.model_validate(body)
    assert accepts(EXPERIMENT, body)
    assert accepts(EXPERIMENT, config.model_dump(mode="json"))
    assert accepts(EXPERIMENT, config.model_dump(mode="json", exclude_none=True))
    assert accepts(STUDY, {**body, "backend": [config.backend], "sweep": {"n": [1]}})


UNKNOWN: list[tuple[str, dict[str, Any]]] = [
    ("top", {"presicion": "bf16"}),
    ("removed", {"model_name": "m"}),
    ("decoder", {"decoder": {"topk": 1}}),
    ("dataset", {"dataset": {"synthetic": {"length": 1}}}),
    ("goodput", {"traffic": {"goodput": {"ttft": 1}}}),
    ("simulated", {"energy": {"simulated": {"ticks": 1}}}),
    *((b, {b: {"no_such_setting": 1}}) for b in registry.backend_names()),
]


@pytest.mark.parametrize("wrong", [r[1] for r in UNKNOWN], ids=[r[0] for r in UNKNOWN])
def test_unknown_key_is_refused_by_both_schemas(wrong: dict[str, Any]) -> None:
    """An editor marks the typo that the models would refuse."""
    assert not accepts(EXPERIMENT, {"model": "m", **wrong})
    assert not accepts(STUDY, {"model": "m", **wrong})


def test_model_is_the_only_required_field_of_an_experiment() -> None:
    """A study may have its model in the base or the sweep."""
    assert not accepts(EXPERIMENT, {"n": 1})
    assert accepts(STUDY, {"base": "b.yaml", "sweep": {"model": ["a", "b"]}})


STUDIES: list[tuple[str, dict[str, Any], bool]] = [
    ("full", {"model": "m", "name": "s", "backend": ["pytorch", "vllm"], "sweep": {"n": [1]},
              "execution": {"n_cycles": 2}, "runners": {"vllm": "docker"},
              "images": {"vllm": "img"}, "experiments": [{"backend": "vllm"}]}, True),
    ("execution-unknown", {"model": "m", "execution": {"cycles": 2}}, False),
    ("execution-bounds", {"model": "m", "execution": {"config_gap_seconds": -1}}, False),
    ("execution-null", {"model": "m", "execution": {"config_gap_seconds": None, "shuffle_seed": 0}}, True),
    ("sweep-list", {"model": "m", "sweep": ["n"]}, False),
    ("experiments-mapping", {"model": "m", "experiments": {"n": 1}}, False),
]  # fmt: skip


@pytest.mark.parametrize(("body", "legal"), [r[1:] for r in STUDIES], ids=[r[0] for r in STUDIES])
def test_study_schema_knows_the_studys_own_keys(body: dict[str, Any], legal: bool) -> None:
    """Sweep, experiments, execution, runners and images are part of the study's schema, with their shapes."""
    assert accepts(STUDY, body) is legal
    if legal and body.get("experiments"):
        assert expand(body).experiments


def test_result_schema_takes_a_result() -> None:
    """The schema of results is a schema, and knows its required fields."""
    schema = ExperimentResult.model_json_schema()
    Draft202012Validator.check_schema(schema)
    assert {"verdict", "measurement_config_hash", "output_tokens", "duration_s"} <= set(schema["required"])
    assert "energy_total_j" not in schema["required"]


def test_digest_of_the_schema_is_the_same_in_every_process() -> None:
    """Host and image compare one number, which every process computes alike."""
    code = "from llenergymeasure.core.introspection import schema_digest as d; print(d())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.strip() == introspection.schema_digest()
    assert len(introspection.schema_digest()) == 64


def test_schema_is_plain_json() -> None:
    """The schema can be written to a file as it is."""
    assert json.loads(json.dumps(EXPERIMENT)) == EXPERIMENT
    assert json.loads(json.dumps(STUDY)) == STUDY
