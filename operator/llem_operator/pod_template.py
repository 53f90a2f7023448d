"""What a study's podTemplate may say: a closed list of fields, checked at acceptance and merged into the Job's pod.

A fragment, not a patch: maps are merged, lists are appended by name. Anything else is refused by name, so that a
study cannot switch off the pod's security, reach the runner's own settings or mount an identity that is not its own.
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
RESERVED_KEY_PREFIXES = (*RESERVED_PREFIXES, "CUDA_")
RESERVED_VOLUMES = ("tmp", "shm", "cache", "results", "store")
VOLUME_SOURCES = ("emptyDir", "configMap", "secret", "persistentVolumeClaim", "downwardAPI", "projected")
"""What a volume may be made of: storage and objects of the namespace; no token, no driver, no server, no node."""
PROJECTED_SOURCES = ("configMap", "secret", "downwardAPI")
HOST_PATH = "hostPath"


def fragment_problems(fragment: Any, *, allow_host_path: bool) -> list[str]:
    """Name everything in `template.podTemplate` that is not on the list or has a wrong shape; never raises."""
    return list(_problems(fragment, allow_host_path=allow_host_path))


def _problems(fragment: Any, *, allow_host_path: bool) -> Iterator[str]:
    here = "template.podTemplate"
    yield from _wrong_map(fragment, here)
    fragment = _map(fragment)
    yield from _unknown(fragment, ("metadata", "spec"), here)
    for part in ("metadata", "spec"):
        yield from _wrong_map(fragment.get(part), f"{here}.{part}")
    yield from _metadata_problems(_map(fragment.get("metadata")), f"{here}.metadata")
    yield from _spec_problems(_map(fragment.get("spec")), f"{here}.spec", allow_host_path=allow_host_path)


def _metadata_problems(metadata: Mapping[Any, Any], here: str) -> Iterator[str]:
    yield from _unknown(metadata, ("labels", "annotations"), here)
    for part in ("labels", "annotations"):
        yield from _wrong_texts(metadata.get(part), f"{here}.{part}")
        for key in _map(metadata.get(part)):
            if str(key).partition("/")[0].endswith(GROUP):
                yield f"{here}.{part}.{key}: keys of {GROUP} are the operator's"


def _spec_problems(spec: Mapping[Any, Any], here: str, *, allow_host_path: bool) -> Iterator[str]:
    yield from _unknown(spec, POD_FIELDS, here)
    for name in POD_MAPS:
        yield from _wrong_texts(spec.get(name), f"{here}.{name}")
    for name in (*POD_LISTS, "containers"):
        yield from _wrong_list(spec.get(name), f"{here}.{name}")
    for name in ("dnsConfig", "securityContext"):
        yield from _wrong_map(spec.get(name), f"{here}.{name}")
    yield from _security_problems(_map(spec.get("securityContext")), f"{here}.securityContext")
    for volume in _maps(spec.get("volumes")):
        where = f"{here}.volumes[{volume.get('name', '?')}]"
        yield from _volume_problems(volume, where, allow_host_path=allow_host_path)
    for container in _maps(spec.get("containers")):
        yield from _container_problems(container, f"{here}.containers[{container.get('name', '?')}]")


def _security_problems(given: Mapping[Any, Any], here: str) -> Iterator[str]:
    yield from _unknown(given, POD_SECURITY, here)
    group, groups = given.get("fsGroup"), given.get("supplementalGroups")
    if group is not None and not _is_number(group):
        yield f"{here}.fsGroup: must be a whole number"
    if groups is not None and not (isinstance(groups, list) and all(map(_is_number, groups))):
        yield f"{here}.supplementalGroups: must be a list of whole numbers"


def _volume_problems(volume: Mapping[Any, Any], here: str, *, allow_host_path: bool) -> Iterator[str]:
    if volume.get("name") in RESERVED_VOLUMES:
        yield f"{here}: this name is the runner's own; choose another"
    for source in volume:
        if source == HOST_PATH and not allow_host_path:
            yield f"{here}: hostPath is not allowed on this cluster; use a PersistentVolumeClaim"
        elif source not in ("name", HOST_PATH, *VOLUME_SOURCES):
            yield f"{here}.{source}: no volume of a run may be made of this; allowed: {', '.join(VOLUME_SOURCES)}"
        elif source != "name":
            yield from _wrong_map(volume[source], f"{here}.{source}")
    sources = _map(volume.get("projected")).get("sources")
    yield from _wrong_list(sources, f"{here}.projected.sources")
    for projection in _maps(sources):
        for source in projection:
            if source not in PROJECTED_SOURCES:
                allowed = ", ".join(PROJECTED_SOURCES)
                yield f"{here}.projected.{source}: nothing of this kind may be mounted; allowed: {allowed}"


def _container_problems(container: Mapping[Any, Any], here: str) -> Iterator[str]:
    if container.get("name") != RUNNER:
        yield f"{here}: only the container {RUNNER!r} can be changed"
        return
    yield from _unknown(container, CONTAINER_FIELDS, here)
    yield from env_problems(container.get("env"), f"{here}.env")
    yield from env_from_problems(container.get("envFrom"), f"{here}.envFrom")
    yield from _wrong_list(container.get("volumeMounts"), f"{here}.volumeMounts")
    yield from _wrong_map(container.get("resources"), f"{here}.resources")
    resources = _map(container.get("resources"))
    yield from _unknown(resources, ("requests", "limits"), f"{here}.resources")
    for part in ("requests", "limits"):
        yield from _wrong_map(resources.get(part), f"{here}.resources.{part}")
        for name in _map(resources.get(part)):
            if name not in ("cpu", "memory"):
                yield f"{here}.resources.{part}.{name}: only cpu and memory; GPUs come from template.gpu"


def env_problems(env: Any, here: str) -> Iterator[str]:
    """Name the variables that only the operator may set."""
    yield from _wrong_list(env, here)
    for variable in _maps(env):
        name = str(variable.get("name", ""))
        if name.startswith(RESERVED_PREFIXES) or name in RESERVED_NAMES:
            yield f"{here}.{name}: LLEM_*, NVIDIA_* and CUDA_VISIBLE_DEVICES are the operator's"


def env_from_problems(env_from: Any, here: str) -> Iterator[str]:
    """Name the prefixes that would turn the keys of a Secret or ConfigMap into variables of the operator's."""
    yield from _wrong_list(env_from, here)
    for bundle in _maps(env_from):
        prefix = str(bundle.get("prefix") or "")
        if prefix.startswith(RESERVED_KEY_PREFIXES):
            yield f"{here}: prefix {prefix}: LLEM_*, NVIDIA_* and CUDA_* are the operator's; choose another prefix"


def _map(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}


def _maps(value: Any) -> list[Mapping[Any, Any]]:
    return [v for v in value if isinstance(v, Mapping)] if isinstance(value, list | tuple) else []


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _wrong_map(value: Any, here: str) -> Iterator[str]:
    if value is not None and not isinstance(value, Mapping):
        yield f"{here}: must be a mapping"


def _wrong_texts(value: Any, here: str) -> Iterator[str]:
    if value is not None and not (isinstance(value, Mapping) and all(isinstance(v, str) for v in value.values())):
        yield f"{here}: must be a mapping of texts; put numbers and true or false into quotes"


def _wrong_list(value: Any, here: str) -> Iterator[str]:
    if value is not None and not (isinstance(value, list | tuple) and all(isinstance(v, Mapping) for v in value)):
        yield f"{here}: must be a list of mappings"


def _unknown(data: Mapping[Any, Any], known: Sequence[str], here: str) -> Iterator[str]:
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
        merged["resources"] = {**merged["resources"], part: {**merged["resources"].get(part, {}), **(values or {})}}
    return merged
