"""The part of a custom resource that says where and how the pods of a run live, and where its result goes."""

from llenergymeasure.core import registry
from llenergymeasure.core.crd_schema import (
    PRESERVE,
    Schema,
    by_default,
    choice,
    flag,
    integer,
    keyed,
    listing,
    mapping,
    name_of,
    quantity,
    record,
    rule,
    text,
)

MONTH_SECONDS = 31 * 86_400
_IMAGE = 512
_LABEL_VALUE = r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$"


def template() -> Schema:
    """`spec.template` of both kinds."""
    return record(
        "Where and how the pods run: images, GPUs, nodes, storage, environment. Everything is optional.",
        {
            **_images(),
            **_placement(),
            **_storage(),
            **_environment(),
            "deadlines": deadlines(),
            "podTemplate": _patch(),
        },
    )


def _images() -> Schema:
    each = {b: text(f"Image for backend {b}.", _IMAGE, shortest=1) for b in registry.backend_names()}
    secret = record("A Secret of this namespace.", {"name": name_of("Name of the Secret.")}, required=["name"])
    return {
        "images": record(
            "Container image per backend; left out: the images that the operator was installed with.", each
        ),
        "imagePullPolicy": choice("When images are pulled.", ["Always", "IfNotPresent", "Never"]),
        "imagePullSecrets": keyed("Secrets with registry credentials.", secret, 16, key="name"),
        "serviceAccountName": name_of("ServiceAccount of the pods; they get no API token from it."),
    }


def _placement() -> Schema:
    product = text("A GPU product as its node label has it, e.g. NVIDIA-H100-80GB-HBM3.", 63, pattern=_LABEL_VALUE)
    gpu = record(
        "Which GPUs a run needs. The pods go only to nodes whose GPU Feature Discovery labels say that they have them.",
        {
            "count": integer(
                "GPUs of a run. Left out: what the configuration needs. Fewer than that is refused; 0 is a run "
                "without GPU.",
                0,
                64,
            ),
            "products": listing("GPU products that will do (label nvidia.com/gpu.product); empty: any.", product, 32),
            "minMemoryMiB": integer("Least memory of each GPU, MiB.", 0, 16_777_216),
            "minComputeCapability": text(
                'Least CUDA compute capability, as text, e.g. "8.0".', 8, pattern=r"^[0-9]{1,2}\.[0-9]$"
            ),
            "allowCPU": flag(
                "Run on the CPU where the pod sees no GPU, with a warning; for trying out. Default: false."
            ),
            "allowShared": flag(
                "Also take GPUs that others use at the same time (time slicing, MIG). Default: false, since their "
                "energy cannot be told apart."
            ),
        },
    )
    return {
        "gpu": gpu,
        "exclusivity": choice(
            "Node: no other measurement on the same node at the same time, since CPU, fans and power budget are "
            "shared. GPU: several on one node, each with its own GPUs. Default: Node.",
            ["Node", "GPU"],
        ),
        "nodeSelector": mapping(
            "Labels that a node must have.", text("Value of the label.", 63, pattern=_LABEL_VALUE), 32
        ),
        "tolerations": listing("Taints of nodes that the pods put up with.", _toleration(), 32),
        "runtimeClassName": name_of("RuntimeClass of the pods, e.g. nvidia."),
        "queueName": text("Queue of Kueue in which the Jobs wait.", 63, pattern=_LABEL_VALUE),
        "priorityClassName": name_of("PriorityClass of the pods."),
        "resources": record(
            "CPU and memory of a pod. Left out: what the operator was installed with (4 CPU, 16Gi).",
            {
                "requests": _amounts("What a node must have free."),
                "limits": _amounts("What the pod cannot go beyond."),
            },
        ),
    }


def _amounts(description: str) -> Schema:
    return record(description, {"cpu": quantity("CPU cores, e.g. 4."), "memory": quantity("Memory, e.g. 16Gi.")})


def _toleration() -> Schema:
    return record(
        "A taint that is put up with.",
        {
            "key": text("Key of the taint; left out with operator Exists: every taint.", 316),
            "operator": choice("How key and value are compared. Default: Equal.", ["Equal", "Exists"]),
            "value": text("Value of the taint.", 63),
            "effect": choice(
                "Effect of the taint; left out: every effect.", ["NoSchedule", "PreferNoSchedule", "NoExecute"]
            ),
            "tolerationSeconds": integer("How long NoExecute is put up with, s; left out: for ever.", 0, MONTH_SECONDS),
        },
    )


def _storage() -> Schema:
    return {
        "shmSizeBytes": integer("Size of /dev/shm, bytes.", 0),
        "tmpSizeBytes": integer("Size of /tmp, bytes.", 0),
        "modelCache": _claim("A PersistentVolumeClaim for downloaded models, so that a model is downloaded once."),
    }


def _claim(description: str) -> Schema:
    return record(
        description,
        {
            "claimName": name_of("Name of the PersistentVolumeClaim in this namespace."),
            "subPath": text("Folder in it, relative.", 512, pattern=r"^[^/].*$"),
        },
        required=["claimName"],
    )


def _environment() -> Schema:
    def key_of(kind: str) -> Schema:
        return record(
            f"A key of a {kind} of this namespace.",
            {
                "name": name_of(f"Name of the {kind}."),
                "key": text(f"Key in the {kind}.", 253, shortest=1),
                "optional": flag(f"Start also without the {kind} or its key. Default: false."),
            },
            required=["name", "key"],
        )

    def whole(kind: str) -> Schema:
        return record(
            f"A {kind} of this namespace.",
            {
                "name": name_of(f"Name of the {kind}."),
                "optional": flag(f"Start also without the {kind}. Default: false."),
            },
            required=["name"],
        )

    source = record(
        "Where the value comes from.",
        {
            "secretKeyRef": key_of("Secret"),
            "configMapKeyRef": key_of("ConfigMap"),
            "fieldRef": record(
                "A field of the pod itself.",
                {
                    "apiVersion": text("Version of the field's schema. Default: v1.", 63),
                    "fieldPath": text("Path of the field, e.g. metadata.name.", 253, shortest=1),
                },
                required=["fieldPath"],
            ),
        },
    )
    variable = record(
        "One environment variable.",
        {
            "name": text(
                "Its name; LLEM_*, NVIDIA_* and CUDA_VISIBLE_DEVICES belong to llem.", 253, pattern=r"^[A-Za-z_]\w*$"
            ),
            "value": text("Its value. Secrets belong into valueFrom.", 4_096),
            "valueFrom": source,
        },
        required=["name"],
    )
    bundle = record(
        "Variables from all keys of a Secret or ConfigMap.",
        {
            "prefix": text("Put before each key; LLEM_*, NVIDIA_* and CUDA_* belong to llem.", 253),
            "secretRef": whole("Secret"),
            "configMapRef": whole("ConfigMap"),
        },
    )
    return {
        "env": keyed("Environment variables of the runner, e.g. HF_TOKEN from a Secret.", variable, 64, key="name"),
        "envFrom": listing("Environment variables of the runner from whole Secrets or ConfigMaps.", bundle, 16),
    }


def deadlines() -> Schema:
    """How long each part of an attempt may take."""
    return record(
        "How long an attempt may take before it counts as failed.",
        {
            "pendingSeconds": integer("Longest wait of a pod for its start, s. Default: 3600.", 1, MONTH_SECONDS),
            "runSeconds": integer(
                "Longest run of a pod, upload apart, s. Default: the experiment's timeout.", 1, MONTH_SECONDS
            ),
            "uploadSeconds": integer(
                "How long the upload of a result is tried, s; the measurement is not repeated. Default: 900.",
                0,
                MONTH_SECONDS,
            ),
        },
    )


def _patch() -> Schema:
    return {
        "type": "object",
        "description": "What else the pods need, as a fragment of a pod template: labels, annotations, nodeSelector, "
        "tolerations, volumes, topologySpreadConstraints, dnsConfig, fsGroup, supplementalGroups; of the container "
        "`runner` env, envFrom, volumeMounts, CPU and memory. A volume is an emptyDir, configMap, secret, "
        "persistentVolumeClaim, downwardAPI or a projection of these. Maps are merged, lists are appended by name. "
        "Anything else is refused by name, and the study is then not accepted.",
        "maxProperties": 8,
        **PRESERVE,
    }


def results() -> Schema:
    """`spec.results` of both kinds."""
    secret = record(
        "The Secret with the store's credentials: keys AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, if there is one, "
        "AWS_SESSION_TOKEN. Left out: the identity of the pod or node.",
        {"name": name_of("Name of a Secret of this namespace.")},
        required=["name"],
    )
    found = record(
        "Where results go: an object store by its uri, or a volume by pvc. Left out: where the operator's "
        "installation says.",
        {
            "uri": text(
                "Bucket and prefix, e.g. s3://bench/llem; also gs:// and az://.",
                1_024,
                pattern=r"^[a-z][a-z0-9+.-]*://\S+$",
            ),
            "endpoint": text("Address of an S3 server that is not Amazon's.", 1_024, pattern=r"^https?://\S+$"),
            "region": text("Region of the bucket.", 63),
            "credentialsSecretRef": secret,
            "pvc": _claim("A PersistentVolumeClaim; results are files in it."),
        },
    )
    one = rule("has(self.uri) != has(self.pvc)", "write either uri or pvc")
    bare = (
        "must have none of @ ? #; credentials come from credentialsSecretRef"  # a pattern's message repeats the value
    )
    plain = [
        rule(f"!has(self.{name}) || !self.{name}.matches('[@?#]')", bare, f".{name}") for name in ("uri", "endpoint")
    ]
    return found | {"x-kubernetes-validations": [one, *plain]}


def retry(*, defaults: bool) -> Schema:
    """How often a run is tried again; `defaults` also writes the usual numbers into the object."""
    usual = {"measurement": 0, "infrastructure": 3, "invalid": 0}
    words = {
        "measurement": "after the measurement itself failed (a sensor, the engine, a time limit)",
        "infrastructure": "after something around it failed (a node, the store, a preempted pod)",
        "invalid": "after a result whose verdict is invalid",
    }
    properties = {k: integer(f"Further attempts {words[k]}. Default: {n}.", 0, 10) for k, n in usual.items()}
    if defaults:
        properties = {k: by_default(p, usual[k]) for k, p in properties.items()}
    found = record("How often a run is tried again, by what went wrong; a wrong configuration never is.", properties)
    return by_default(found, {}) if defaults else found
