"""A Kubernetes API server in memory: what the operator's `Api` asks of one, and no more.

Checked against a real one by tests/cluster/test_fake_api_server.py. Objects are plain data; every read gives a copy.
"""

import json
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import jsonschema

from fakes import virtual_time
from llem_operator.api import MERGE_PATCH, ApiError
from llem_operator.timestamps import whole_seconds
from llenergymeasure.core import crds

Object = dict[str, Any]
Name = tuple[str, str]
Watcher = Callable[[str, str, Object], None]

CUSTOM = ("energystudies", "energyexperiments")
PLURALS = (*CUSTOM, "jobs", "pods", "events", "leases")
COLLECTED_AFTER_S = 0.7  # the garbage collector is not quick


def copied(value: Any) -> Any:
    """A copy through JSON, which is all that an API server can hold."""
    return json.loads(json.dumps(value))


class ApiServer:
    """Objects by plural and name, with versions, status subresources, selectors, garbage collection, watches."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[Name, Object]] = {p: {} for p in PLURALS}
        self.commits: list[tuple[float, str, str, Name]] = []
        self.reads = 0
        self._version = 0
        self._born = 0
        self._watchers: list[Watcher] = []
        self._owned: dict[str, set[tuple[str, Name]]] = defaultdict(set)

    # what tests and stand-ins of controllers call

    def watch(self, watcher: Watcher) -> None:
        """Tell `watcher(plural, change, object)` of every commit, at once."""
        self._watchers.append(watcher)

    def unwatch(self, watcher: Watcher) -> None:
        """Tell it no more."""
        self._watchers.remove(watcher)

    def get(self, plural: str, namespace: str, name: str) -> Object | None:
        """An object as it is now."""
        found = self.objects[plural].get((namespace, name))
        return copied(found) if found is not None else None

    def all(self, plural: str) -> list[Object]:
        """Copies of all objects of a kind, by name."""
        return [copied(o) for _, o in sorted(self.objects[plural].items())]

    def create(self, plural: str, body: Object) -> Object:
        """Create an object as a user or controller would."""
        return self._create(plural, body["metadata"].setdefault("namespace", "bench"), body)

    def edit(self, plural: str, namespace: str, name: str, patch: Object, *, status: bool = False) -> Object:
        """Merge a change into an object or its status."""
        return self._patch(plural, (namespace, name), "status" if status else "", patch)

    def delete(self, plural: str, namespace: str, name: str) -> None:
        """Delete an object as `kubectl delete` does; a pod ends gracefully."""
        self._delete(plural, (namespace, name), {})

    def remove(self, plural: str, name: Name) -> None:
        """Take an object away and let the garbage collector follow."""
        gone = self.objects[plural].pop(name, None)
        if gone is None:
            return
        self._version += 1
        gone["metadata"]["resourceVersion"] = str(self._version)
        for owner in gone["metadata"].get("ownerReferences") or ():
            self._owned[owner["uid"]].discard((plural, name))
        self._commit(plural, "DELETED", name, gone)
        self._collect_later(gone["metadata"]["uid"])

    # what an operator's requests end in

    def answer(self, method: str, path: str, query: Mapping[str, str], body: Any, content_type: str) -> Object:
        """One request; raises ApiError."""
        plural, namespace, name, sub = _parsed(path)
        if method == "GET":
            self.reads += 1
            return self._read(plural, namespace, name, query)
        assert namespace, path
        if method == "POST":
            return self._create(plural, namespace, copied(body))
        if method == "PATCH":
            assert content_type == MERGE_PATCH, content_type
            return self._patch(plural, (namespace, name), sub, copied(body))
        if method == "PUT":
            return self._replace(plural, (namespace, name), copied(body))
        assert method == "DELETE", method
        return self._delete(plural, (namespace, name), body or {})

    def _read(self, plural: str, namespace: str | None, name: str, query: Mapping[str, str]) -> Object:
        if name:
            found = self.objects[plural].get((str(namespace), name))
            if found is None:
                raise _not_found(plural, name)
            return copied(found)  # type: ignore[no-any-return]
        names = [n for n, o in sorted(self.objects[plural].items()) if _chosen(o, n, namespace, query)]
        position = query.get("continue", "")
        names = [n for n in names if "/".join(n) > position] if position else names
        limit = int(query.get("limit") or len(names) or 1)
        page, more = names[:limit], names[limit:]
        without = (
            () if plural in CUSTOM else ("kind", "apiVersion")
        )  # in lists, only custom resources say what they are
        items = [{k: v for k, v in self.objects[plural][n].items() if k not in without} for n in page]
        metadata = {"resourceVersion": str(self._version), **({"continue": "/".join(page[-1])} if more else {})}
        return copied({"metadata": metadata, "items": items})  # type: ignore[no-any-return]

    def _create(self, plural: str, namespace: str, body: Object) -> Object:
        metadata = body["metadata"]
        if "generateName" in metadata and "name" not in metadata:
            metadata["name"] = f"{metadata['generateName']}{self._born:x}"
        name = (namespace, metadata["name"])
        if name in self.objects[plural]:
            raise ApiError(409, "AlreadyExists", f'{plural} "{metadata["name"]}" already exists')
        if plural in CUSTOM:
            _check(plural, "spec", body["spec"])
            body.pop("status", None)
            body["status"] = copied(_schema(plural)["properties"]["status"]["default"])
        self._born += 1
        self._version += 1
        metadata |= {
            "namespace": namespace,
            "uid": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{plural}/{self._born}")),
            "generation": 1,
            "creationTimestamp": whole_seconds(virtual_time.now()),
            "resourceVersion": str(self._version),
        }
        self.objects[plural][name] = body
        owners = metadata.get("ownerReferences") or ()
        for owner in owners:
            self._owned[owner["uid"]].add((plural, name))
        self._commit(plural, "ADDED", name, body)
        if owners and not any(self._exists(o["uid"]) for o in owners):
            self._collect_later(owners[0]["uid"])
        return copied(body)  # type: ignore[no-any-return]

    def _patch(self, plural: str, name: Name, sub: str, patch: Object) -> Object:
        before = self.objects[plural].get(name)
        if before is None:
            raise _not_found(plural, name[1])
        self._same_version(before, patch)
        parts = ("status",) if sub == "status" else ("spec", "metadata") if plural in CUSTOM else tuple(patch)
        patch = {k: v for k, v in patch.items() if k in parts}
        patch.get("metadata", {}).pop("resourceVersion", None)
        return self._store(plural, name, before, _merged(before, patch))

    def _replace(self, plural: str, name: Name, body: Object) -> Object:
        before = self.objects[plural].get(name)
        if before is None:
            raise _not_found(plural, name[1])
        self._same_version(before, body)
        return self._store(plural, name, before, body)

    def _same_version(self, before: Object, body: Object) -> None:
        asked = (body.get("metadata") or {}).get("resourceVersion")
        if asked is not None and asked != before["metadata"]["resourceVersion"]:
            raise ApiError(409, "Conflict", "the object has been modified; please apply your changes to the latest")

    def _store(self, plural: str, name: Name, before: Object, after: Object) -> Object:
        if plural in CUSTOM and after.get("status") != before.get("status"):
            after["status"] = _check(plural, "status", after.get("status") or {})
        if after == before:
            return copied(before)  # type: ignore[no-any-return]  # a write that changes nothing is none
        self._version += 1
        generation = before["metadata"]["generation"] + (after.get("spec") != before.get("spec"))
        after["metadata"] = {**after["metadata"], "resourceVersion": str(self._version), "generation": generation}
        self.objects[plural][name] = after
        self._commit(plural, "MODIFIED", name, after)
        return copied(after)  # type: ignore[no-any-return]

    def _delete(self, plural: str, name: Name, options: Mapping[str, Any]) -> Object:
        before = self.objects[plural].get(name)
        if before is None:
            raise _not_found(plural, name[1])
        uid = (options.get("preconditions") or {}).get("uid")
        if uid is not None and uid != before["metadata"]["uid"]:
            raise ApiError(409, "Conflict", f"the UID in the precondition ({uid}) does not match")
        if plural == "pods":  # the kubelet takes it away when its container has ended
            when = {"deletionTimestamp": whole_seconds(virtual_time.now())}
            return self._store(plural, name, before, _merged(before, {"metadata": when}))
        self.remove(plural, name)
        return {"kind": "Status", "status": "Success"}

    def _exists(self, uid: str) -> bool:
        return any(o["metadata"]["uid"] == uid for p in (*CUSTOM, "jobs") for o in self.objects[p].values())

    def _collect_later(self, uid: str) -> None:
        virtual_time.later(COLLECTED_AFTER_S, self._collect, uid)

    def _collect(self, uid: str) -> None:
        if self._exists(uid):
            return
        for plural, name in sorted(self._owned.pop(uid, ())):
            if name in self.objects[plural]:
                self._delete(plural, name, {})

    def _commit(self, plural: str, change: str, name: Name, obj: Object) -> None:
        self.commits.append((virtual_time.seconds(), plural, change, name))
        for watcher in list(self._watchers):
            watcher(plural, change, copied(obj))


def _parsed(path: str) -> tuple[str, str | None, str, str]:
    """Plural, namespace, name and subresource of a request's path."""
    parts = path.strip("/").split("/")
    parts = parts[2:] if parts[0] == "api" else parts[3:]
    namespace = None
    if parts[0] == "namespaces":
        namespace, parts = parts[1], parts[2:]
    plural, name, sub = [*parts, "", ""][:3]
    assert plural in PLURALS, path
    return plural, namespace, name, sub


def _not_found(plural: str, name: str) -> ApiError:
    return ApiError(404, "NotFound", f'{plural} "{name}" not found')


def _merged(old: Any, patch: Any) -> Any:
    """RFC 7386, written from its pseudo-code."""
    if not isinstance(patch, dict):
        return patch
    found = dict(old) if isinstance(old, dict) else {}
    for key, value in patch.items():
        if value is None:
            found.pop(key, None)
        else:
            found[key] = _merged(found.get(key), value)
    return found


def _chosen(obj: Object, name: Name, namespace: str | None, query: Mapping[str, str]) -> bool:
    if namespace is not None and name[0] != namespace:
        return False
    labels = obj["metadata"].get("labels") or {}
    wanted = query.get("labelSelector", "")
    if wanted.startswith("!"):
        if wanted[1:] in labels:
            return False
    elif wanted:
        key, _, value = wanted.partition("=")
        if labels.get(key) != value:
            return False
    field = query.get("fieldSelector", "")
    if field == "status.finished!=true":
        return selected(obj)
    if field:
        key, _, value = field.partition("=")
        assert key == "involvedObject.uid", field
        return bool(obj["involvedObject"]["uid"] == value)
    return True


def selected(experiment: Object) -> bool:
    """Whether an experiment is in the operator's watch."""
    return not (experiment.get("status") or {}).get("finished")


@cache
def _schema(plural: str) -> dict[str, Any]:
    (found,) = [d for d in crds.definitions() if d["spec"]["names"]["plural"] == plural]
    return found["spec"]["versions"][0]["schema"]["openAPIV3Schema"]  # type: ignore[no-any-return]


@cache
def _validator(plural: str, part: str) -> jsonschema.Draft7Validator:
    return jsonschema.Draft7Validator(_plain(_schema(plural)["properties"][part]))


def _plain(schema: Any) -> Any:
    """The schema in words that jsonschema knows."""
    if isinstance(schema, list):
        return [_plain(s) for s in schema]
    if not isinstance(schema, dict):
        return schema
    found = {k: _plain(v) for k, v in schema.items() if not k.startswith("x-kubernetes") and k not in ("default",)}
    if found.pop("nullable", False) and "type" in found:
        found["type"] = [found["type"], "null"]
    return found


def _pruned(schema: Any, value: Any) -> Any:
    """Without the fields that the schema does not declare, as the API server drops them."""
    if isinstance(value, dict) and "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        known = schema["properties"]
        return {k: _pruned(known[k], v) for k, v in value.items() if k in known}
    if isinstance(value, list) and "items" in schema:
        return [_pruned(schema["items"], v) for v in value]
    return value


def _check(plural: str, part: str, value: Any) -> Any:
    """Refuse what the definition does not allow, drop what it does not know (which no operator should write)."""
    error = next(iter(_validator(plural, part).iter_errors(value)), None)
    if error is not None:
        where = ".".join(map(str, error.absolute_path))
        raise ApiError(422, "Invalid", f"{part}.{where}: {error.message}")
    kept = _pruned(_schema(plural)["properties"][part], value)
    assert kept == value, f"{part} has fields that the definition drops: {_lost(value, kept)}"
    return kept


def _lost(value: Any, kept: Any, where: str = "") -> Iterator[str] | list[str]:
    if isinstance(value, dict) and isinstance(kept, dict):
        gone = [f"{where}.{k}" for k in value.keys() - kept.keys()]
        return gone + [x for k in kept for x in _lost(value[k], kept[k], f"{where}.{k}")]
    if isinstance(value, list) and isinstance(kept, list):
        return [x for a, b in zip(value, kept, strict=True) for x in _lost(a, b, f"{where}[]")]
    return []
