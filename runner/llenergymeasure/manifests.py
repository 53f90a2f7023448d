"""Turns configuration files into the manifests that a cluster takes, and manifests into YAML that kubectl reads alike.

A plain file is converted; a manifest goes to the cluster as it was written, so that `kubectl apply` on the same file
changes nothing. Pure: gives mappings and texts.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic.alias_generators import to_camel

from llenergymeasure.core import keys, resources
from llenergymeasure.core.config import ExperimentConfig, StudyConfig, without_nulls
from llenergymeasure.core.errors import ConfigError
from llenergymeasure.core.plan import gpu_count
from llenergymeasure.core.sweep import copy_tree, study_of_one
from llenergymeasure.loaders import Document, document_of, experiment_from, is_manifest, study_from
from llenergymeasure.yaml_reading import root_mapping, scalar

CONFIG_GAP_S, CYCLE_GAP_S = 60.0, 300.0  # the operator's defaults
UNMEASURED = ("none", "simulated")
LIMITS = {
    resources.STUDY_KIND: resources.MAX_STUDY_NAME,
    resources.EXPERIMENT_KIND: resources.MAX_EXPERIMENT_NAME,
}


@dataclass(frozen=True)
class Wanted:
    """One object for the cluster, what it will run (None: another project's kind), and what the user should know."""

    manifest: dict[str, Any]
    study: StudyConfig | None
    notices: tuple[str, ...] = ()


def wanted(documents: Iterable[Any], path: Path, *, name: str | None = None) -> list[Wanted]:
    """The objects of a file: plain documents converted, manifests of llem checked, any other kind passed on.

    Raises:
        ConfigError: What `llem run` would say of the same document; a name that a cluster cannot take.
        pydantic.ValidationError: A bad value.

    """
    found = list(documents)
    if not found:
        raise ConfigError(f"{path}: the file must hold a mapping of keys and values, not nothing")
    if name is not None and len(found) > 1:
        raise ConfigError(f"--name {name}: {path} holds {len(found)} documents; write the names into the file")
    sources = [str(path) if len(found) == 1 else f"{path} (document {i})" for i in range(1, len(found) + 1)]
    return [_one(root_mapping(d, source=s), path, s, name) for d, s in zip(found, sources, strict=True)]


def _one(data: Mapping[str, Any], path: Path, source: str, name: str | None) -> Wanted:
    if not is_manifest(data):
        if data.get("apiVersion") and data.get("kind"):
            return Wanted(dict(data), None)
        return converted(document_of(data, path, source=source), name=name)
    if name is not None:
        data = {**data, "metadata": {**(data.get("metadata") or {}), "name": name}}
    return _checked(data, source)


def _checked(manifest: Mapping[str, Any], source: str) -> Wanted:
    """A manifest as it was written, once it is known to mean something."""
    kind = manifest.get("kind")
    if manifest.get("apiVersion") != resources.API_VERSION:
        raise ConfigError(f"{source}: apiVersion: {manifest.get('apiVersion')!r} is not {resources.API_VERSION}")
    study = _meaning(manifest, source)
    written = (manifest.get("metadata") or {}).get("name")
    if not isinstance(written, str) or written != legal_name(written, LIMITS[str(kind)]):
        raise ConfigError(f"{source}: metadata.name: {written!r} must be lower case letters, digits and single -")
    return Wanted(dict(manifest), study, tuple(_notices_of_paths(study)))


def _meaning(manifest: Mapping[str, Any], source: str) -> StudyConfig:
    if manifest.get("kind") == resources.EXPERIMENT_KIND:
        return study_of_one(resources.experiment_of(manifest, source=source), name=_name_of(manifest))
    return resources.study_of(manifest, source=source)


def _name_of(manifest: Mapping[str, Any]) -> str:
    return str((manifest.get("metadata") or {}).get("name") or "experiment")


def converted(document: Document, *, name: str | None = None) -> Wanted:
    """A plain study or experiment file as the manifest that means the same."""
    if document.study:
        return _study(document, name)
    config = experiment_from(document)
    chosen, notices = _name(name, None, document.source, resources.EXPERIMENT_KIND)
    body = without_nulls({k: v for k, v in document.body.items() if k not in ("output", "version")})
    study = study_of_one(config, name=chosen)
    notices = [*document.notices, *notices, *_notices_of_drops(document.body), *_notices_of_paths(study)]
    return Wanted(_manifest(resources.EXPERIMENT_KIND, chosen, {"config": copy_tree(body)}), study, tuple(notices))


def _study(document: Document, name: str | None) -> Wanted:
    study = study_from(document)
    body = document.body
    chosen, notices = _name(name, body.get("name"), document.source, resources.STUDY_KIND)
    dropped = (*resources.BESIDE_DESIGN, "version")
    spec: dict[str, Any] = {"design": copy_tree(without_nulls({k: v for k, v in body.items() if k not in dropped}))}
    execution = without_nulls(body.get("execution") or {})
    if execution:
        spec["execution"] = camel_case(keys.snake_case(execution))
    images = without_nulls(body.get("images") or {})
    if images:
        spec["template"] = {"images": images}
        notices.append("images: become spec.template.images")
    notices += [*_notices_of_drops(body), *_notices_of_paths(study)]
    named = study.model_copy(update={"name": chosen})
    return Wanted(_manifest(resources.STUDY_KIND, chosen, spec), named, (*study.notices, *notices))


def _manifest(kind: str, name: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    return {"apiVersion": resources.API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": dict(spec)}


def _name(flag: str | None, written: Any, source: str, kind: str) -> tuple[str, list[str]]:
    """The object's name and, where it is not what the file says, why."""
    if flag is not None:
        return legal_name(flag, LIMITS[kind], where="--name"), []
    if written:
        chosen = legal_name(str(written), LIMITS[kind], where=f"{source}: name")
        return chosen, [] if chosen == written else [f"name: {written!r} is {chosen} on the cluster"]
    chosen = legal_name(Path(source.partition(" (")[0]).stem, LIMITS[kind], where=source)
    return chosen, [f"name: the file has none, so it is {chosen}, after the file; llem apply --name chooses another"]


def refuse_name(name: str) -> None:
    """Raise ConfigError for a word that can be no object's name, before kubectl reads it as something else."""
    if not re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", name):
        local = Path(name).exists()
        hint = f"; for results on this machine: llem report {name}" if local or "/" in name else ""
        raise ConfigError(f"{name!r} can be no name on a cluster: those are lower case letters, digits, - and .{hint}")


def legal_name(written: str, limit: int, *, where: str = "name") -> str:
    """A DNS label that resembles what was written; raises ConfigError where there is none of that length."""
    label = re.sub(r"[^a-z0-9]+", "-", written.lower()).strip("-")
    if not label:
        raise ConfigError(f"{where}: {written!r} has none of the letters a to z and digits that a cluster's names need")
    if len(label) > limit:
        raise ConfigError(
            f"{where}: {label!r} has {len(label)} characters, a cluster takes {limit}; use --name SHORTER"
        )
    return label


def camel_case(data: Mapping[str, Any]) -> dict[str, Any]:
    """snake_case keys as camelCase, at every depth."""
    return {to_camel(k): camel_case(v) if isinstance(v, Mapping) else v for k, v in data.items()}


def _notices_of_drops(body: Mapping[str, Any]) -> list[str]:
    found = []
    if body.get("runners"):
        found.append("runners: left out; every run of this study is a Job of the cluster")
    if body.get("output"):
        found.append("output: left out; results go where spec.results or the installation says")
    return found


def _notices_of_paths(study: StudyConfig) -> list[str]:
    """Warn of paths: what lies on this machine is not in the pod."""
    paths = [p for e in study.experiments for p in _paths(e)]
    return [f"{p}: is looked for inside the pod, not on this machine" for p in dict.fromkeys(paths)]


def _paths(config: ExperimentConfig) -> list[str]:
    found = [f"model: {config.model}"] if config.model.startswith(("/", "./", "../", "~")) else []
    if isinstance(config.dataset, str) and config.dataset.endswith(".jsonl"):
        found.append(f"dataset: {config.dataset}")
    return found


def prompts_known_here(study: StudyConfig) -> list[ExperimentConfig]:
    """The experiments whose prompts this machine can count; those of a file that lies elsewhere are the pod's."""

    def is_elsewhere(config: ExperimentConfig) -> bool:
        data = config.dataset
        return isinstance(data, str) and data.endswith(".jsonl") and not Path(data).expanduser().is_file()

    return [e for e in study.experiments if not is_elsewhere(e)]


def as_paced(study: StudyConfig) -> StudyConfig:
    """The study with the pauses that an installation adds unless told otherwise, for the expected duration."""
    paced = any(gpu_count(e) > 0 and e.energy.backend not in UNMEASURED for e in study.experiments)
    unset = {"config_gap_seconds": CONFIG_GAP_S if paced else 0.0, "cycle_gap_seconds": CYCLE_GAP_S if paced else 0.0}
    missing = {k: v for k, v in unset.items() if getattr(study.execution, k) is None}
    return study.model_copy(update={"execution": study.execution.model_copy(update=missing)})


def without_gaps(wanted: Wanted) -> Wanted:
    """The same object with pauses of 0; an experiment alone has none."""
    if wanted.study is None or wanted.manifest["kind"] != resources.STUDY_KIND:
        return wanted
    none = {"configGapSeconds": 0, "cycleGapSeconds": 0}
    spec = wanted.manifest["spec"]
    manifest = {**wanted.manifest, "spec": {**spec, "execution": {**spec.get("execution", {}), **none}}}
    update = {"config_gap_seconds": 0.0, "cycle_gap_seconds": 0.0}
    study = wanted.study.model_copy(update={"execution": wanted.study.execution.model_copy(update=update)})
    return replace(wanted, manifest=manifest, study=study)


class _Dumper(yaml.SafeDumper):
    """Plain YAML in the order of the mapping; texts are quoted where kubectl would read something else."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write everything out."""
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    try:
        plain = bool(value) and scalar(value) == value
    except ValueError:
        plain = False
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=None if plain else "'")


_Dumper.add_representer(str, _text)


def to_yaml(objects: Iterable[Mapping[str, Any]]) -> str:
    """Objects as YAML documents that every reader, kubectl's included, takes for the same."""
    return yaml.dump_all(objects, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def as_list(objects: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Several objects as the one that `kubectl apply` takes."""
    return {"apiVersion": "v1", "kind": "List", "items": list(objects)}
