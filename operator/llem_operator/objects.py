"""Every object that the operator makes, with every label and key: experiments, Jobs. Pure.

One Job is one attempt. Its pod runs `llem experiment` with everything in the environment, has no API rights, a
read-only root and no way to gain privileges.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from llem_operator.acceptance import Configuration, Refused, accept_study
from llem_operator.names import RESULTS_FOLDER, child_name, job_name, owner_reference, run_folder, run_uri
from llem_operator.pod_template import RUNNER, merge_fragment
from llem_operator.scheduling import affinity
from llem_operator.settings import Settings
from llem_operator.timestamps import text
from llenergymeasure.core import resources as r
from llenergymeasure.core.errors import ConfigError
from llenergymeasure.core.plan import Run

MANAGED_BY = "llem-operator"
STORE_FOLDER, CACHE_FOLDER = "/var/run/llem/store", "/cache"
TERMINATION_LOG = "/dev/termination-log"
USER = 10001
GRACE_S = 60
PENDING_S, UPLOAD_S = 3600, 900
START_S = 60  # the container's start, and the questions to the store before a first attempt
SHM_BYTES = 8 * 1024**3
JOB_TTL_S = 3600
UNUSED_VARIABLES = (
    "LLEM_IMAGE_DIGEST", "LLEM_CARBON_INTENSITY", "LLEM_DATACENTER_PUE", "LLEM_CALIBRATION", "LLEM_NO_PROMPT",
    "LLEM_DEBUG",
)  # fmt: skip
CONFIG_EXITS = (10, 11, 12, 13, 14)


def experiment_object(study: Mapping[str, Any], run: Run, configuration: Configuration) -> dict[str, Any]:
    """The EnergyExperiment of one run."""
    name = study["metadata"]["name"]
    return {
        "apiVersion": r.API_VERSION,
        "kind": r.EXPERIMENT_KIND,
        "metadata": {
            "name": child_name(name, run.index, run.config_hash),
            "namespace": study["metadata"]["namespace"],
            "labels": {
                r.LABEL_STUDY: name,
                r.LABEL_INDEX: str(run.index),
                r.LABEL_CYCLE: str(run.cycle),
                r.LABEL_HASH: run.config_hash,
                "app.kubernetes.io/managed-by": MANAGED_BY,
            },
            "ownerReferences": [owner_reference(study)],
        },
        "spec": {
            "studyRef": {"name": name},
            "index": run.index,
            "cycle": run.cycle,
            "configHash": run.config_hash,
            "config": json.loads(configuration.body),
        },
    }


@dataclass(frozen=True)
class Attempt:
    """One attempt to be made: whose, which, with what, and what earlier runs have left for it.

    `not_before` holds the end of the pause per node name, `baselines` rows of status.baselines,
    `adopt_from` the first attempt whose result may be taken for this run's.
    """

    experiment: Mapping[str, Any]
    study: Mapping[str, Any] | None
    number: int
    configuration: Configuration
    timeout_s: float
    record: str | None = None
    results: Mapping[str, Any] = field(default_factory=dict)
    not_before: Mapping[str, datetime] = field(default_factory=dict)
    gap_s: float = 0.0
    baselines: Sequence[Mapping[str, Any]] = ()
    adopt_from: int = 1

    @property
    def template(self) -> Mapping[str, Any]:
        """Where and how the pod runs: the study's word, or a standalone experiment's own."""
        return template_of(self.experiment, self.study)


def template_of(experiment: Mapping[str, Any], study: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The template in force."""
    return ((study or experiment)["spec"].get("template")) or {}


def deadlines_of(experiment: Mapping[str, Any], study: Mapping[str, Any] | None) -> dict[str, Any]:
    """Deadlines in force, s: pendingSeconds, runSeconds (None: from the experiment's timeout), uploadSeconds."""
    own = experiment["spec"].get("deadlines") or {}
    given = {**(template_of(experiment, study).get("deadlines") or {}), **own}
    return {"pendingSeconds": PENDING_S, "uploadSeconds": UPLOAD_S, "runSeconds": None, **given}


def pod_deadline_s(attempt: Attempt) -> int:
    """Longest life of an attempt's pod on its node, s: pause, run, upload."""
    limits = deadlines_of(attempt.experiment, attempt.study)
    run = limits["runSeconds"] or attempt.timeout_s
    return int(attempt.gap_s + run + limits["uploadSeconds"] + START_S)


def job_object(attempt: Attempt, settings: Settings) -> dict[str, Any]:
    """The Job of one attempt; raises ConfigError if there is no image for its backend."""
    metadata = attempt.experiment["metadata"]
    labels = _labels(attempt)
    queue = attempt.template.get("queueName")
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": job_name(metadata["name"], attempt.number),
            "namespace": metadata["namespace"],
            "labels": {**labels, **({"kueue.x-k8s.io/queue-name": queue} if queue else {})},
            "ownerReferences": [owner_reference(attempt.experiment)],
        },
        "spec": {
            "backoffLimit": 0,
            "completions": 1,
            "parallelism": 1,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {
                "rules": [
                    {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                    {"action": "FailJob", "onExitCodes": {"containerName": RUNNER, "operator": "NotIn", "values": [0]}},
                ]
            },
            "template": pod_template(attempt, settings, labels),
        },
    }


def _labels(attempt: Attempt) -> dict[str, str]:
    spec = attempt.experiment["spec"]
    labels = {
        r.LABEL_EXPERIMENT: attempt.experiment["metadata"]["name"],
        r.LABEL_HASH: attempt.configuration.hash,
        r.LABEL_ATTEMPT: str(attempt.number),
        r.LABEL_MEASURING: "true",
        "app.kubernetes.io/name": "llem",
        "app.kubernetes.io/managed-by": MANAGED_BY,
    }
    if attempt.study is not None:
        labels |= {
            r.LABEL_STUDY: attempt.study["metadata"]["name"],
            r.LABEL_INDEX: str(spec["index"]),
            r.LABEL_CYCLE: str(spec["cycle"]),
        }
    return labels


def pod_template(attempt: Attempt, settings: Settings, labels: Mapping[str, str]) -> dict[str, Any]:
    """The pod of an attempt, with the study's fragment merged in."""
    template = attempt.template
    pod: dict[str, Any] = {
        "metadata": {
            "labels": dict(labels),
            "annotations": {
                "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
                "karpenter.sh/do-not-disrupt": "true",
            },
        },
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": GRACE_S,
            "activeDeadlineSeconds": pod_deadline_s(attempt),
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER,
                "runAsGroup": USER,
                "fsGroup": USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "affinity": affinity(template, attempt.configuration.gpus),
            "containers": [_container(attempt, settings)],
            "volumes": _volumes(attempt),
        },
    }
    spec = pod["spec"]
    for name in ("nodeSelector", "tolerations", "runtimeClassName", "priorityClassName"):
        if template.get(name):
            spec[name] = template[name]
    account = template.get("serviceAccountName") or settings.runner_service_account
    if account:
        spec["serviceAccountName"] = account
    secrets = [*(template.get("imagePullSecrets") or ()), *({"name": n} for n in settings.image_pull_secrets)]
    if secrets:
        spec["imagePullSecrets"] = secrets
    if not spec["affinity"]:
        del spec["affinity"]
    return merge_fragment(pod, template.get("podTemplate") or {})


def _container(attempt: Attempt, settings: Settings) -> dict[str, Any]:
    template, configuration = attempt.template, attempt.configuration
    images = {**settings.images, **(template.get("images") or {})}
    image = images.get(configuration.backend)
    if not image:
        raise ConfigError(f"template.images.{configuration.backend}: no image is known for this backend")
    asked = {k: dict(v) for k, v in (template.get("resources") or settings.resources).items()}
    if configuration.gpus:
        asked["limits"] = {**asked.get("limits", {}), "nvidia.com/gpu": str(configuration.gpus)}
    return {
        "name": RUNNER,
        "image": image,
        "imagePullPolicy": template.get("imagePullPolicy") or settings.image_pull_policy,
        "command": ["llem"],
        "args": ["experiment"],
        "env": _environment(attempt, image),
        **({"envFrom": template["envFrom"]} if template.get("envFrom") else {}),
        "resources": asked,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePath": TERMINATION_LOG,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": _mounts(attempt),
    }


def literal(value: str) -> str:
    """A value that the kubelet must not expand: `$(NAME)` would become the value of a variable set before it.

    Every `$` is doubled, since `$$` becomes `$`: with only `$(` escaped, `$$(NAME)` would still be expanded.
    """
    return value.replace("$", "$$")


def _environment(attempt: Attempt, image: str) -> list[dict[str, Any]]:
    """The runner's variables; the configuration comes before anything secret and is never expanded.

    Each that the runner reads is set, empty where it says nothing, so that no key of an `envFrom` can stand in for it.
    """
    spec, metadata = attempt.experiment["spec"], attempt.experiment["metadata"]
    study = attempt.study["metadata"]["name"] if attempt.study else metadata["name"]
    limits = deadlines_of(attempt.experiment, attempt.study)
    values = {
        "LLEM_EXPERIMENT": attempt.configuration.body,
        "LLEM_STUDY": study,
        "LLEM_INDEX": str(spec.get("index") or 0),
        "LLEM_CYCLE": str(spec.get("cycle") or 1),
        "LLEM_ATTEMPT": str(attempt.number),
        "LLEM_CONFIG_HASH": attempt.configuration.hash,
        "LLEM_STUDY_RECORD": attempt.record or "",
        "LLEM_RUN_URI": _run_uri(attempt),
        "LLEM_ADOPT_FROM": str(attempt.adopt_from),
        "LLEM_UPLOAD_SECONDS": str(limits["uploadSeconds"]),
        "LLEM_GPU_COUNT": str(attempt.configuration.gpus_visible),
        "LLEM_ALLOW_CPU": "1" if _may_use_cpu(attempt) else "",
        "LLEM_BASELINES": json.dumps([_baseline(b) for b in attempt.baselines]) if attempt.baselines else "",
        "LLEM_GAP_UNTIL": json.dumps({n: text(t) for n, t in attempt.not_before.items()}) if attempt.not_before else "",
        "LLEM_STORE_ENDPOINT": attempt.results.get("endpoint") or "",
        "LLEM_STORE_REGION": attempt.results.get("region") or "",
        "LLEM_STORE_CREDENTIALS": STORE_FOLDER if attempt.results.get("credentialsSecretRef") else "",
        "LLEM_TERMINATION_LOG": TERMINATION_LOG,
        "LLEM_IMAGE": image,
        **dict.fromkeys(UNUSED_VARIABLES, ""),
        "HOME": "/tmp",  # noqa: S108  (an emptyDir of the pod's own)
        "XDG_CACHE_HOME": CACHE_FOLDER,
        "HF_HOME": f"{CACHE_FOLDER}/hf",
    }
    if attempt.configuration.gpus == 0:
        values["NVIDIA_VISIBLE_DEVICES"] = "void"  # else NVIDIA's runtime, where it is the default, shows every GPU
    env: list[dict[str, Any]] = [{"name": k, "value": literal(v)} for k, v in values.items()]
    for name, path in (("NODE_NAME", "spec.nodeName"), ("POD_NAME", "metadata.name"), ("POD_UID", "metadata.uid")):
        env.append({"name": f"LLEM_{name}", "valueFrom": {"fieldRef": {"fieldPath": path}}})
    return [*env, *(attempt.template.get("env") or ())]


def _run_uri(attempt: Attempt) -> str:
    spec, owner = attempt.experiment["spec"], attempt.study or attempt.experiment
    index, cycle = spec.get("index") or 0, spec.get("cycle") or 1
    return run_uri(attempt.results, owner, run_folder(index, cycle, attempt.configuration.hash))


def _may_use_cpu(attempt: Attempt) -> bool:
    gpu = attempt.template.get("gpu") or {}
    return bool(gpu.get("allowCPU")) or attempt.configuration.gpus_visible == 0


def _baseline(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "gpu_uuid": row["gpuUUID"],
        "driver": row.get("driver"),
        "kind": row["kind"],
        "power_w": row["powerMilliwatts"] / 1000,
        "measured_at": row["measuredAt"],
        **({"conditions": row["conditions"]} if row.get("conditions") else {}),
    }


def _volumes(attempt: Attempt) -> list[dict[str, Any]]:
    template, results = attempt.template, attempt.results
    tmp = {"sizeLimit": str(template["tmpSizeBytes"])} if template.get("tmpSizeBytes") else {}
    shm = str(template.get("shmSizeBytes") or SHM_BYTES)
    cache = template.get("modelCache")
    volumes: list[dict[str, Any]] = [
        {"name": "tmp", "emptyDir": tmp},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": shm}},
        {"name": "cache", "persistentVolumeClaim": {"claimName": cache["claimName"]}}
        if cache
        else {"name": "cache", "emptyDir": {}},
    ]
    if results.get("pvc"):
        volumes.append({"name": "results", "persistentVolumeClaim": {"claimName": results["pvc"]["claimName"]}})
    secret = results.get("credentialsSecretRef")
    if secret:
        volumes.append({"name": "store", "secret": {"secretName": secret["name"], "defaultMode": 0o440}})
    return volumes


def _mounts(attempt: Attempt) -> list[dict[str, Any]]:
    results, cache = attempt.results, attempt.template.get("modelCache") or {}
    mounts: list[dict[str, Any]] = [
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108  (an emptyDir of the pod's own)
        {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108  (likewise)
        {"name": "cache", "mountPath": CACHE_FOLDER, **({"subPath": cache["subPath"]} if cache.get("subPath") else {})},
    ]
    if results.get("pvc"):
        sub_path = results["pvc"].get("subPath")
        mounts.append({"name": "results", "mountPath": RESULTS_FOLDER, **({"subPath": sub_path} if sub_path else {})})
    if results.get("credentialsSecretRef"):
        mounts.append({"name": "store", "mountPath": STORE_FOLDER, "readOnly": True})
    return mounts


def jobs_of(study: Mapping[str, Any], settings: Settings) -> Iterator[dict[str, Any]]:
    """The first attempt's Job of every run of a study, in the order in which they start; what `llem plan --jobs` shows.

    Raises:
        ConfigError: The study would not be accepted.

    """
    named = {
        **study,
        "metadata": {"namespace": "default", "uid": "00000000-0000-0000-0000-000000000000", **study["metadata"]},
    }
    accepted = accept_study(named, settings)
    if isinstance(accepted, Refused):
        raise ConfigError(accepted.message)
    for run in accepted.runs:
        configuration = accepted.configuration(run)
        experiment = experiment_object(named, run, configuration)
        experiment["metadata"]["uid"] = "00000000-0000-0000-0000-000000000000"
        attempt = Attempt(
            experiment,
            named,
            1,
            configuration,
            accepted.timeout_s,
            record=accepted.record,
            results=accepted.results,
            gap_s=accepted.gap_s[run.index],
        )
        yield job_object(attempt, settings)
