"""Makes configurations of files: experiment files, study files, and the manifests of a cluster.

All three pass through one reader (`yaml_reading`), so a file means the same by `llem run` and by `kubectl apply`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llenergymeasure.core import keys, registry
from llenergymeasure.core.config import ExperimentConfig, StudyConfig
from llenergymeasure.core.errors import ConfigError
from llenergymeasure.core.resources import GROUP, PARTS, STUDY_CYCLES, body_of, boolean_n, refuse_empty_sweep
from llenergymeasure.core.sweep import copy_tree, deep_merge, expand, is_study, set_path
from llenergymeasure.yaml_reading import parse_yaml, read_mapping


@dataclass(frozen=True)
class Document:
    """A configuration file as read: its body in study-file form, whether it is a study, and what was ignored."""

    body: dict[str, Any]
    study: bool
    source: str
    notices: tuple[str, ...] = field(default=())


def read_document(path: Path) -> Document:
    """Read a plain experiment or study file, or an EnergyStudy/EnergyExperiment manifest; raises ConfigError."""
    return document_of(read_mapping(path), path, source=str(path))


def document_of(data: Mapping[str, Any], path: Path, *, source: str) -> Document:
    """Make a document of what was read; `path` is where a `base` is looked for, `source` what messages name."""
    if is_manifest(data):
        return _manifest(data, source)
    body = boolean_n(data, source=source)
    if body.get("base") is not None:
        body = _with_base(body, path)
    refuse_empty_sweep(body, source=source)
    return Document(body, is_study(body), source)


def is_manifest(data: Mapping[str, Any]) -> bool:
    """Whether what was read is one of the cluster's resources that llem owns."""
    return str(data.get("apiVersion", "")).startswith(f"{GROUP}/")


def _with_base(body: dict[str, Any], path: Path) -> dict[str, Any]:
    base_path = path.parent / str(body.pop("base"))
    base = boolean_n(read_mapping(base_path), source=str(base_path))
    if "base" in base or is_study(base):
        raise ConfigError(f"{base_path}: a base must be a plain experiment file (one level, no sweep)")
    return deep_merge(base, body)


def _manifest(data: Mapping[str, Any], source: str) -> Document:
    """An EnergyStudy's design or an EnergyExperiment's config as a document; the cluster's own fields are ignored."""
    body = body_of(data, source=source)
    spec, (part, others) = data["spec"], PARTS[data["kind"]]
    ignored = [f"spec.{k}" for k in spec if k in others and k != "execution"]
    notices = (f"{source}: on this machine {', '.join(ignored)} is ignored",) if ignored else ()
    return Document(body, study=part == "design", source=source, notices=notices)


def apply_overrides(document: Document, overrides: Mapping[str, Any]) -> Document:
    """Lay dotted command-line values over a document; a value for a swept key replaces that axis, with a notice."""
    body = copy_tree(document.body)
    notices = [*document.notices, *_without_removed_backends(body, overrides.get("backend"))]
    sweep, entries = body.get("sweep"), body.get("experiments")
    for dotted, value in overrides.items():
        key = dotted.removeprefix("sweep.")
        if isinstance(sweep, dict) and key in sweep:
            notices.append(f"{key}: the value from the command line replaces the sweep's {_short(sweep.pop(key))}")
        if key != dotted:  # a new axis; its dots stay part of its name
            body["sweep"] = {**(body.get("sweep") or {}), key: value}
            continue
        if key.startswith("execution.") and isinstance(body.get("execution"), Mapping):
            body["execution"] = keys.snake_case(body["execution"])
        set_path(body, key, value)
        for entry in entries if isinstance(entries, list) else ():
            if _names(entry, key):  # the command line wins over the file's entries, too
                set_path(entry, key, value)
    return Document(body, document.study, document.source, tuple(notices))


def _without_removed_backends(body: dict[str, Any], chosen: Any) -> list[str]:
    """Take out axes and sections of backends that the command line removes from a study; a notice for each.

    Only a choice among the file's own backends removes the others; with another one their keys are refused as ever.
    """
    sweep = body.get("sweep")
    if not isinstance(sweep, dict) or not chosen:
        return []
    scoped = {key: str(key).partition(".")[0] for key in sweep}
    written = body.get("backend")
    known = set(written if isinstance(written, list) else [written] if written else scoped.values())
    kept = set(chosen if isinstance(chosen, list) else [chosen])
    removed = known & set(registry.backend_names()) - kept if kept <= known else set()
    axes = [key for key, backend in scoped.items() if backend in removed]
    sections = [name for name in body if name in removed]
    for key in axes:
        del sweep[key]
    for name in sections:
        del body[name]
    runs = ", ".join(sorted(kept))
    return [
        f"{n}: is left out, as the command line runs {runs} alone" for n in [*(f"sweep.{k}" for k in axes), *sections]
    ]


def _names(entry: Any, dotted: str) -> bool:
    """Whether a mapping holds a value at `a.b.c`."""
    for name in dotted.split("."):
        if not isinstance(entry, Mapping) or name not in entry:
            return False
        entry = entry[name]
    return True


def _short(value: Any) -> str:
    return json.dumps(value)[:60]


def load_experiment_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> ExperimentConfig:
    """Load one experiment; raises ConfigError for the file, pydantic.ValidationError for its values."""
    document = apply_overrides(read_document(Path(path)), overrides or {})
    if document.study:
        raise ConfigError(f"{path}: is a study (it has a sweep or experiments); use run_study")
    return experiment_from(document)


def experiment_from(document: Document) -> ExperimentConfig:
    """Validate a document as one experiment, all key problems at once."""
    found = [*keys.experiment_problems(document.body), *keys.credential_problems(document.body)]
    keys.refuse(found, source=document.source)
    return ExperimentConfig.model_validate(document.body)


def load_study_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> StudyConfig:
    """Load and expand a study; raises ConfigError for the file, pydantic.ValidationError for its values."""
    return study_from(apply_overrides(read_document(Path(path)), overrides or {}))


def study_from(document: Document) -> StudyConfig:
    """Expand a document as a study."""
    if not document.study:
        raise ConfigError(f"{document.source}: is one experiment; add a sweep or experiments, or use run_experiment")
    study = expand(document.body, source=document.source, default_cycles=STUDY_CYCLES)
    return study.model_copy(update={"notices": (*document.notices, *study.notices)})


def parse_set(pairs: Sequence[str]) -> dict[str, Any]:
    """Turn `key=value` words into overrides; values are read as YAML, so `8` is a number and `[1, 8]` a list."""
    found: dict[str, Any] = {}
    for pair in pairs:
        key, sign, text = pair.partition("=")
        if not sign or not key.strip():
            raise ConfigError(f"--set {pair!r}: write key=value, e.g. --set pytorch.batch_size=8")
        found[key.strip()] = parse_yaml(text, source=f"--set {key}")
    return found
