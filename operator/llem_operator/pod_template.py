"""What a study's podTemplate may say: a closed list of fields, checked at acceptance and merged into the Job's pod.

A fragment, not a patch: maps are merged, lists are appended by name. Anything else is refused by name, so that a
study cannot switch off the pod's security or reach the runner's own settings.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llenergymeasure.core.keys import did_you_mean
from llenergymeasure.core.resources import GROUP

RUNNER = "runner"
POD_MAPS = ("nodeSelector",)
POD_LISTS = ("tolerations", "volumes", "topologySpreadConstraints")
POD_FIELDS = (*POD_MAPS, *POD_LISTS, "dnsConfig", "securityContext", "containers")
POD_SECURITY = ("fsGroup", "supplementalGroups")
CONTAINER_LISTS = ("env", "envFrom", "volumeMounts")
CONTAINER_FIELDS = ("name", *CONTAINER_LISTS, "resources")
RESERVED_PREFIXES = ("LLEM_", "NVIDIA_")
RESERVED_NAMES = ("CUDA_VISIBLE_DEVICES",)
RESERVED_VOLUMES = ("tmp", "shm", "cache", "results", "store")


def fragment_problems(fragment: Mapping[str, Any], *, allow_host_path: bool) -> list[str]:
    """Name everything in `template.podTemplate` that is not on the list."""
    return list(_problems(fragment, allow_host_path=allow_host_path))


def _problems(fragment: Mapping[str, Any], *, allow_host_path: bool) -> Iterator[str]:
    here = "template.podTemplate"
    yield from _unknown(fragment, ("metadata", "spec"), here)
    metadata, spec = fragment.get("metadata") or {}, fragment.get("spec") or {}
    yield from _unknown(metadata, ("labels", "annotations"), f"{here}.metadata")
    for part in ("labels", "annotations"):
        for key in metadata.get(part) or {}:
            if key.partition("/")[0].endswith(GROUP):
                yield f"{here}.metadata.{part}.{key}: keys of {GROUP} are the operator's"
    yield from _unknown(spec, POD_FIELDS, f"{here}.spec")
    yield from _unknown(spec.get("securityContext") or {}, POD_SECURITY, f"{here}.spec.securityContext")
    for volume in spec.get("volumes") or ():
        name = volume.get("name", "?")
        if name in RESERVED_VOLUMES:
            yield f"{here}.spec.volumes[{name}]: this name is the runner's own; choose another"
        if "hostPath" in volume and not allow_host_path:
            yield f"{here}.spec.volumes[{name}]: hostPath is not allowed on this cluster; use a PersistentVolumeClaim"
    for container in spec.get("containers") or ():
        yield from _container_problems(container, f"{here}.spec.containers[{container.get('name', '?')}]")


def _container_problems(container: Mapping[str, Any], here: str) -> Iterator[str]:
    if container.get("name") != RUNNER:
        yield f"{here}: only the container {RUNNER!r} can be changed"
        return
    yield from _unknown(container, CONTAINER_FIELDS, here)
    yield from env_problems(container.get("env") or (), f"{here}.env")
    for part in ("requests", "limits"):
        for name in (container.get("resources") or {}).get(part) or {}:
            if name not in ("cpu", "memory"):
                yield f"{here}.resources.{part}.{name}: only cpu and memory; GPUs come from template.gpu"


def env_problems(env: Sequence[Mapping[str, Any]], here: str) -> Iterator[str]:
    """Name the variables that only the operator may set."""
    for variable in env:
        name = str(variable.get("name", ""))
        if name.startswith(RESERVED_PREFIXES) or name in RESERVED_NAMES:
            yield f"{here}.{name}: LLEM_*, NVIDIA_* and CUDA_VISIBLE_DEVICES are the operator's"


def _unknown(data: Mapping[str, Any], known: Sequence[str], here: str) -> Iterator[str]:
    for key in data:
        if key not in known:
            near = did_you_mean(str(key), known)
            yield f"{here}.{key}: cannot be set{near or '; allowed: ' + ', '.join(known)}"


def merge_fragment(pod: dict[str, Any], fragment: Mapping[str, Any]) -> dict[str, Any]:
    """Give a Job's pod template with an accepted fragment laid over it."""
    metadata, spec = fragment.get("metadata") or {}, fragment.get("spec") or {}
    merged = {"metadata": dict(pod["metadata"]), "spec": dict(pod["spec"])}
    for part in ("labels", "annotations"):
        if metadata.get(part):
            merged["metadata"][part] = {**metadata[part], **pod["metadata"].get(part, {})}
    out = merged["spec"]
    for name in (*POD_MAPS, "dnsConfig"):
        if spec.get(name):
            out[name] = {**out.get(name, {}), **spec[name]}
    for name in POD_LISTS:
        if spec.get(name):
            out[name] = [*out.get(name, []), *spec[name]]
    if spec.get("securityContext"):
        out["securityContext"] = {**out["securityContext"], **spec["securityContext"]}
    for change in spec.get("containers") or ():
        out["containers"] = [
            _merge_container(c, change) if c["name"] == change["name"] else c for c in out["containers"]
        ]
    return merged


def _merge_container(container: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(container)
    for name in CONTAINER_LISTS:
        if change.get(name):
            merged[name] = [*merged.get(name, []), *change[name]]
    for part, values in (change.get("resources") or {}).items():
        merged["resources"] = {**merged["resources"], part: {**merged["resources"].get(part, {}), **values}}
    return merged
