"""The custom resources of the cluster as plain data: their names, and how a spec becomes the configuration it means.

`llem run` on a manifest, `llem apply` and the operator all pass through here, so that one file means one thing.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from llenergymeasure.core import keys
from llenergymeasure.core.config import ExperimentConfig, StudyConfig
from llenergymeasure.core.errors import ConfigError
from llenergymeasure.core.sweep import expand

GROUP = "llem.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
STUDY_KIND, EXPERIMENT_KIND = "EnergyStudy", "EnergyExperiment"
STUDY_PLURAL, EXPERIMENT_PLURAL = "energystudies", "energyexperiments"

STUDY_CYCLES = 3
"""`n_cycles` of a study that names none, in a file and in the custom resource."""

MAX_STUDY_NAME, MAX_EXPERIMENT_NAME = 40, 53  # a Job is `<study>-<index5>-<hash6>-a<attempt>`, 57 at attempt 99
MAX_RUNS = 10_000

LABEL_STUDY, LABEL_EXPERIMENT = f"{GROUP}/study", f"{GROUP}/experiment"
LABEL_HASH, LABEL_CYCLE, LABEL_INDEX = f"{GROUP}/config-hash", f"{GROUP}/cycle", f"{GROUP}/index"
LABEL_ATTEMPT, LABEL_MEASURING = f"{GROUP}/attempt", f"{GROUP}/measuring"
LABEL_READER = f"{GROUP}/reader"  # the pod of `llem results -o`; the chart's NetworkPolicy knows it

BESIDE_DESIGN = ("name", "base", "execution", "runners", "images", "output")
"""Keys of a plain study file that stand beside `design` in a manifest, or nowhere."""

_COMMON = ("suspend", "suspendPolicy", "retry", "retryEpoch", "template", "results")
PARTS: dict[str, tuple[str, tuple[str, ...]]] = {
    STUDY_KIND: ("design", ("execution", "parallelism", "retention", *_COMMON)),
    EXPERIMENT_KIND: ("config", ("studyRef", "index", "cycle", "configHash", "deadlines", *_COMMON)),
}
"""By kind: the field of `spec` that is a file's body, and the fields beside it."""


def boolean_n(body: Mapping[Any, Any], *, source: str) -> dict[str, Any]:
    """Read a key `false` at the top and in the sweep as `n`; refuse any other boolean key by name.

    kubectl writes the key as the text "false" into JSON, so that one counts, too.
    """

    def fixed(mapping: Mapping[Any, Any], where: str) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in mapping.items():
            name = "n" if key is False or key == "false" else key
            if name in result:
                raise ConfigError(f"{source}: {where}n is written twice (once unquoted)")
            result[name] = value
        return result

    found = fixed(body, "")
    if isinstance(found.get("sweep"), Mapping):
        found["sweep"] = fixed(found["sweep"], "sweep.")
    spelled = {True: "y, yes or on", False: "n, no or off"}
    wrong = [
        f'{path}: a boolean is not a key; YAML reads a bare {spelled[k]} as one, so put it in quotes, e.g. "n"'
        for path, k in _boolean_keys(found)
    ]
    keys.refuse(wrong, source=source)
    return found


def refuse_empty_sweep(body: Mapping[str, Any], *, source: str) -> None:
    """Refuse a sweep without a key in a file: it is unfinished. Axes that the command line takes out are another thing.

    Raises:
        ConfigError: The file has such a sweep.

    """
    if "sweep" in body and body["sweep"] in (None, {}):
        keys.refuse(["sweep: is empty; write key: [values] below it, or remove it"], source=source)


def _boolean_keys(data: Any, path: str = "") -> list[tuple[str, bool]]:
    if isinstance(data, Mapping):
        found = [(f"{path}{str(k).lower()}", k) for k in data if isinstance(k, bool)]
        return found + [pair for k, v in data.items() for pair in _boolean_keys(v, f"{path}{k}.")]
    if isinstance(data, list):
        return [pair for i, v in enumerate(data) for pair in _boolean_keys(v, f"{path}{i}.")]
    return []


def body_of(manifest: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    """The body of a study or experiment file that a manifest carries; a study's name and execution come along.

    Raises:
        ConfigError: An unknown kind, a `spec` without its part, unknown fields (all at once), a wrong boolean key.

    """
    kind, spec, metadata = manifest.get("kind"), manifest.get("spec"), manifest.get("metadata") or {}
    if kind not in PARTS:
        raise ConfigError(f"{source}: kind: {kind!r} is unknown; valid: {', '.join(PARTS)}")
    part, others = PARTS[kind]
    if not isinstance(spec, Mapping) or not isinstance(spec.get(part), Mapping):
        raise ConfigError(f"{source}: spec.{part}: must be a mapping")
    body = boolean_n(spec[part], source=source)
    keys.refuse(_misplaced(spec, body, part, others), source=source)
    if kind == STUDY_KIND:
        refuse_empty_sweep(body, source=source)
        body |= {"name": metadata.get("name") or "study"}
        body |= {"execution": spec["execution"]} if spec.get("execution") is not None else {}
    return body


def _misplaced(spec: Mapping[str, Any], body: Mapping[str, Any], part: str, others: tuple[str, ...]) -> Iterator[str]:
    for key in spec:
        if key not in (part, *others):
            yield f"spec.{key}: unknown key{keys.did_you_mean(str(key), [part, *others])}"
    for key in BESIDE_DESIGN if part == "design" else ():
        if key in body:
            yield f"spec.{part}.{key}: belongs beside design in a manifest, not into it"


def study_of(manifest: Mapping[str, Any], *, source: str) -> StudyConfig:
    """Validate and expand an EnergyStudy; raises ConfigError, pydantic.ValidationError."""
    return expand(body_of(manifest, source=source), source=source, default_cycles=STUDY_CYCLES)


def experiment_of(manifest: Mapping[str, Any], *, source: str) -> ExperimentConfig:
    """Validate an EnergyExperiment's configuration; raises ConfigError, pydantic.ValidationError."""
    body = body_of(manifest, source=source)
    keys.refuse([*keys.experiment_problems(body), *keys.credential_problems(body)], source=source)
    return ExperimentConfig.model_validate(body)
