"""Decides whether a study can run as written, and lays out what it then consists of. Pure; may take a second.

The very model of `llem run` judges the design, so the sentences are the same.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from llem_operator.pod_template import env_from_problems, env_problems, fragment_problems
from llem_operator.settings import Settings
from llenergymeasure.core import resources
from llenergymeasure.core.config import ExperimentConfig, StudyConfig
from llenergymeasure.core.errors import ConfigError
from llenergymeasure.core.identity import HASH_SCHEMA, measurement_config_hash
from llenergymeasure.core.plan import Plan, Run, describe, describe_all, gaps_s, gpu_count, make_plan
from llenergymeasure.core.sweep import reasons

EXPANDER_VERSION = "1"
"""Raise it when a design would expand into other experiments or another order than before."""

MAX_CONFIG_BYTES = 120_000  # one environment variable may be 128 KiB on Linux
UNMEASURED_SOURCES = ("none", "simulated")
NOT_IN_AN_ADDRESS = "@?#"


@dataclass(frozen=True, slots=True)
class Configuration:
    """One resolved configuration as a child carries it: `body` is JSON, `gpus` what one run occupies."""

    body: str
    hash: str
    summary: str
    backend: str
    gpus: int
    gpus_visible: int


@dataclass(frozen=True, slots=True)
class Accepted:
    """A study that can run: its configurations by position, its runs in order with the gap before each, s."""

    configurations: tuple[Configuration, ...]
    runs: tuple[Run, ...]
    gap_s: Mapping[int, float]
    design_hash: str
    plan_hash: str
    skipped: tuple[tuple[str, int], ...]
    notices: tuple[str, ...]
    timeout_s: float
    max_consecutive_failures: int
    results: Mapping[str, Any]
    record: str
    config_gap_s: float = 0.0

    def pause_s(self, index: int, *, again: bool) -> float:
        """The pause before a run, s; the plan's first run has one, too, when the study has measured before."""
        return self.gap_s[index] or (self.config_gap_s if again else 0.0)

    def configuration(self, run: Run) -> Configuration:
        """What a run measures."""
        return self.configurations[run.position]


@dataclass(frozen=True, slots=True)
class Refused:
    """A specification that cannot run: a reason of the closed list and the sentence for its author."""

    reason: str
    message: str


def accept_study(study: Mapping[str, Any], settings: Settings) -> Accepted | Refused:
    """Judge an EnergyStudy as read from the API."""
    try:
        config = resources.study_of(study, source="spec.design")
    except (ConfigError, ValidationError) as err:
        return Refused("InvalidDesign", sentence(err))
    total = config.execution.n_cycles * (
        sum(config.repeats) or len(config.experiments)
    )  # counted before it is laid out
    if total > settings.max_runs:
        text = f"{total} runs are more than this operator's limit of {settings.max_runs}; split the study"
        return Refused("InvalidDesign", text)
    found = list(_spec_problems(study["spec"], config.experiments, settings))
    if found:
        return Refused("InvalidTemplate", listed(found))
    return _laid_out(study, config, make_plan(config), settings)


def accept_experiment(
    experiment: Mapping[str, Any], template: Mapping[str, Any], settings: Settings, *, in_study: bool
) -> Configuration | Refused:
    """Judge an EnergyExperiment; `template` is its own or, where it is in a study, that one's."""
    try:
        config = resources.experiment_of(experiment, source="spec.config")
    except (ConfigError, ValidationError) as err:
        return Refused("InvalidConfig", sentence(err))
    spec = {"template": template, "results": experiment["spec"].get("results")}
    found = [] if in_study else list(_spec_problems(spec, [config], settings))
    return Refused("InvalidTemplate", listed(found)) if found else _configuration(config, describe(config), template)


def sentence(err: ConfigError | ValidationError) -> str:
    """The error as `llem run` prints it."""
    return listed(reasons(err)) if isinstance(err, ValidationError) else str(err)


def listed(problems: list[str]) -> str:
    """One problem as it is, several as a list."""
    return problems[0] if len(problems) == 1 else "\n  - ".join([f"{len(problems)} problems", *problems])


def _laid_out(study: Mapping[str, Any], config: StudyConfig, plan: Plan, settings: Settings) -> Accepted:
    spec, execution = study["spec"], config.execution
    template = spec.get("template") or {}
    summaries = describe_all(config.experiments)
    configurations = tuple(_configuration(c, s, template) for c, s in zip(config.experiments, summaries, strict=True))
    paced = any(
        c.gpus > 0 and e.energy.backend not in UNMEASURED_SOURCES
        for c, e in zip(configurations, config.experiments, strict=True)
    )
    unset = (settings.config_gap_seconds, settings.cycle_gap_seconds) if paced else (0.0, 0.0)
    written = (execution.config_gap_seconds, execution.cycle_gap_seconds)
    config_gap, cycle_gap = (u if w is None else w for w, u in zip(written, unset, strict=True))
    gaps = gaps_s(plan.runs, execution.cycle_order, config_gap_seconds=config_gap, cycle_gap_seconds=cycle_gap)
    return Accepted(
        configurations=configurations,
        runs=plan.runs,
        gap_s={r.index: g for r, g in zip(plan.runs, gaps, strict=True)},
        design_hash=plan.design_hash,
        plan_hash=plan_hash([c.hash for c in configurations], config),
        skipped=tuple(Counter(s.reason for s in config.skipped).most_common(10)),
        notices=(*config.notices, *_spare_gpus(configurations, template)),
        timeout_s=execution.experiment_timeout_seconds,
        max_consecutive_failures=execution.max_consecutive_failures,
        results=spec.get("results") or settings.results,
        record=_record(study, plan.design_hash),
        config_gap_s=config_gap,
    )


def plan_hash(hashes: list[str], config: StudyConfig) -> str:
    """Identity of the order of a study's experiments; more cycles keep it, since they only append."""
    execution = config.execution
    parts = [EXPANDER_VERSION, HASH_SCHEMA, hashes, list(config.repeats), execution.cycle_order, execution.shuffle_seed]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _record(study: Mapping[str, Any], design_hash: str) -> str:
    """What `study.json` in the store says, so that the store alone can tell what was planned."""
    metadata, spec = study["metadata"], study["spec"]
    record = {
        "name": metadata["name"],
        "namespace": metadata.get("namespace"),
        "uid": metadata.get("uid"),
        "study_design_hash": design_hash,
        "design": spec["design"],
        "execution": spec.get("execution") or {},
    }
    text = json.dumps(record, ensure_ascii=False)
    if environment_bytes(text) <= MAX_CONFIG_BYTES:
        return text
    omitted = f"{environment_bytes(text):,} bytes do not fit into a pod's environment"
    return json.dumps({**record, "design": None, "design_omitted": omitted}, ensure_ascii=False)


def environment_bytes(value: str) -> int:
    """Size of a value as the pod's environment carries it, every `$(` doubled."""
    return len(value.replace("$(", "$$(").encode())


def _configuration(config: ExperimentConfig, summary: str, template: Mapping[str, Any]) -> Configuration:
    needed = gpu_count(config)
    gpu = template.get("gpu") or {}
    count = gpu.get("count")
    return Configuration(
        body=_body(config),
        hash=measurement_config_hash(config),
        summary=summary,
        backend=config.backend,
        gpus=needed if count is None else count,
        gpus_visible=0 if count == 0 else needed,
    )


def _body(config: ExperimentConfig) -> str:
    return json.dumps(config.model_dump(mode="json", exclude_unset=True, exclude_none=True), ensure_ascii=False)


def _spare_gpus(configurations: tuple[Configuration, ...], template: Mapping[str, Any]) -> Iterator[str]:
    count = (template.get("gpu") or {}).get("count")
    spare = [c.summary for c in configurations if count is not None and count > c.gpus_visible > 0]
    if spare:
        yield f"template.gpu.count: {count} is more than {len(spare)} configurations use, e.g. {spare[0]}"


_CAPABILITY = re.compile(r"^\d{1,2}\.\d$")


def _spec_problems(
    spec: Mapping[str, Any], configs: "tuple[ExperimentConfig, ...] | list[ExperimentConfig]", settings: Settings
) -> Iterator[str]:
    template = spec.get("template") or {}
    yield from _image_problems(template, configs, settings)
    yield from _gpu_problems(template.get("gpu") or {}, configs)
    yield from env_problems(template.get("env"), "template.env")
    yield from env_from_problems(template.get("envFrom"), "template.envFrom")
    yield from fragment_problems(template.get("podTemplate"), allow_host_path=settings.allow_host_path)
    account = template.get("serviceAccountName")
    if account and settings.allowed_service_accounts and account not in settings.allowed_service_accounts:
        allowed = ", ".join(settings.allowed_service_accounts)
        yield f"template.serviceAccountName: {account} is not allowed on this cluster; allowed: {allowed}"
    yield from _result_problems(spec.get("results") or settings.results)
    for config in configs:
        size = environment_bytes(_body(config))
        if size > MAX_CONFIG_BYTES:
            text = f"{size:,} bytes of configuration are over {MAX_CONFIG_BYTES:,}"
            yield f"{config.model}: {text}; shorten passthrough_kwargs"


def _image_problems(template: Mapping[str, Any], configs: Any, settings: Settings) -> Iterator[str]:
    images = {**settings.images, **(template.get("images") or {})}
    for backend in sorted({c.backend for c in configs}):
        image = images.get(backend)
        if not image:
            yield f"template.images.{backend}: no image is known; name one here or in the chart's values"
        elif settings.allowed_images and not any(_is_within(image, prefix) for prefix in settings.allowed_images):
            allowed = ", ".join(settings.allowed_images)
            yield f"template.images.{backend}: {image} is not allowed on this cluster; allowed: {allowed}"


def _is_within(image: str, prefix: str) -> bool:
    """Whether an allowed prefix reaches to a border of the image's name: `r/llem` allows r/llem:1, not r/llem-other."""
    borders = ("/", ":", "@")
    return image.startswith(prefix) and (prefix.endswith(borders) or image[len(prefix) :][:1] in ("", *borders))


def _gpu_problems(gpu: Mapping[str, Any], configs: Any) -> Iterator[str]:
    count = gpu.get("count")
    needed = max(gpu_count(c) for c in configs)
    if count is not None and 0 < count < needed:
        yield f"template.gpu.count: {count} is less than the {needed} GPUs of the design; raise it or leave it out"
    capability = gpu.get("minComputeCapability")
    if capability is not None and not _CAPABILITY.match(str(capability)):
        yield f'template.gpu.minComputeCapability: {capability!r} is no compute capability; write it as "9.0"'


def _result_problems(results: Mapping[str, Any]) -> Iterator[str]:
    uri, pvc = results.get("uri"), results.get("pvc")
    for name in ("uri", "endpoint"):
        if set(str(results.get(name) or "")) & set(NOT_IN_AN_ADDRESS):
            marks = " ".join(NOT_IN_AN_ADDRESS)
            yield f"results.{name}: must have none of {marks}; credentials come from credentialsSecretRef"
            return  # the value stays out of every message
    if not uri and not pvc:
        yield "results: no destination; set results.uri or results.pvc here, or a default in the chart's values"
    elif uri and pvc:
        yield "results: has both uri and pvc; keep one"
    elif uri and uri.partition("://")[0] not in ("s3", "gs", "az"):
        yield f"results.uri: {uri} cannot be reached by a pod; write s3://, gs:// or az://, or use results.pvc"
