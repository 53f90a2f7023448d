"""Stable identities: what makes two configurations the same measurement.

The hash covers the validated configuration as canonical JSON: sorted keys, no nulls, integral floats as integers,
dormant decoder fields left out. Output choices, environment, runner and cycle are not in it. A field that is added
later with the default null changes no hash; HASH_SCHEMA must be raised when a meaning changes.
"""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from llenergymeasure.core.config import ExperimentConfig
from llenergymeasure.core.sections import SAMPLING_FIELDS

HASH_SCHEMA = "1"
_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode
_NOT_HASHED: Any = {"output": True, "decoder": {"preset": True}}


def normalise(value: Any) -> Any:
    """Give `value` with nulls left out of mappings and integral floats as integers, at every depth."""
    if type(value) is float:
        return int(value) if value.is_integer() else value
    if type(value) is dict:
        return {k: normalise(v) for k, v in value.items() if v is not None}
    if type(value) is list or type(value) is tuple:
        return [normalise(v) for v in value]
    return value


def canonical(config: ExperimentConfig) -> dict[str, Any]:
    """Give the mapping that is hashed: everything that changes what is measured, nothing else."""
    data: dict[str, Any] = normalise(config.model_dump(exclude=_NOT_HASHED, exclude_none=True))
    if config.decoder.is_greedy:
        for name in SAMPLING_FIELDS:
            data["decoder"].pop(name, None)
        data["decoder"]["decoding_strategy"] = "greedy"
    for key in [k for k, v in data.items() if v == {}]:
        del data[key]  # an empty section says what an absent one says
    return data


def measurement_config_hash(config: ExperimentConfig) -> str:
    """First 16 hex digits of SHA-256 over the canonical JSON, prefixed by the hash schema's version."""
    text = f"{HASH_SCHEMA}:{_encode(canonical(config))}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def study_design_hash(experiment_hashes: Iterable[str]) -> str:
    """Identity of a set of experiments: cycles, order and gaps do not change it, so a study can be topped up."""
    text = f"{HASH_SCHEMA}:{_encode(sorted(set(experiment_hashes)))}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]
