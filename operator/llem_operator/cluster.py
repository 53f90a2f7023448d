"""Reads and changes the cluster: every path, selector and verb that the operator uses is in this file."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

from llem_operator.api import MERGE_PATCH, Api, ApiError, merge_patch
from llem_operator.attempts import ended_badly, job_is_live
from llem_operator.names import owner_uid
from llenergymeasure.core.resources import (
    API_VERSION,
    EXPERIMENT_PLURAL,
    GROUP,
    LABEL_EXPERIMENT,
    LABEL_MEASURING,
    LABEL_STUDY,
    STUDY_PLURAL,
    VERSION,
)

MEASURING = f"{LABEL_MEASURING}=true"
UNFINISHED = "status.finished!=true"


def _path(group: str, plural: str, namespace: str | None, name: str = "", sub: str = "") -> str:
    root = "/api/v1" if group == "core" else f"/apis/{group}"
    parts = [root, *(("namespaces", namespace) if namespace else ()), plural, *(p for p in (name, sub) if p)]
    return "/".join(parts)


def _custom(plural: str, namespace: str | None, name: str = "", sub: str = "") -> str:
    return _path(f"{GROUP}/{VERSION}", plural, namespace, name, sub)


class TakenError(Exception):
    """An object of the wanted name exists and belongs to something else."""


class Cluster:
    """The operator's view of the API server."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def study(self, namespace: str, name: str) -> dict[str, Any] | None:
        """A study as it is now; None if there is none."""
        return await self._get(_custom(STUDY_PLURAL, namespace, name))

    async def experiment(self, namespace: str, name: str) -> dict[str, Any] | None:
        """An experiment as it is now; None if there is none."""
        return await self._get(_custom(EXPERIMENT_PLURAL, namespace, name))

    async def _get(self, path: str) -> dict[str, Any] | None:
        try:
            return await self._api.request("GET", path)
        except ApiError as err:
            if err.status == 404:
                return None
            raise

    def studies(self, namespace: str | None) -> AsyncIterator[dict[str, Any]]:
        """All studies of a namespace (None: of all)."""
        return self._api.pages(_custom(STUDY_PLURAL, namespace))

    def experiments(self, namespace: str | None, *, unfinished_only: bool) -> AsyncIterator[dict[str, Any]]:
        """All experiments, or those that are not over."""
        query = {"fieldSelector": UNFINISHED} if unfinished_only else {}
        return self._api.pages(_custom(EXPERIMENT_PLURAL, namespace), query)

    def standalone_experiments(self, namespace: str | None) -> AsyncIterator[dict[str, Any]]:
        """Experiments without a study, also finished ones: nothing else tells when their retryEpoch is raised."""
        return self._api.pages(_custom(EXPERIMENT_PLURAL, namespace), {"labelSelector": f"!{LABEL_STUDY}"})

    def jobs(self, namespace: str | None) -> AsyncIterator[dict[str, Any]]:
        """All Jobs of this product."""
        return self._api.pages(_path("batch/v1", "jobs", namespace), {"labelSelector": MEASURING})

    def pods(self, namespace: str | None) -> AsyncIterator[dict[str, Any]]:
        """All pods of this product."""
        return self._api.pages(_path("core", "pods", namespace), {"labelSelector": MEASURING})

    async def attempts(
        self, namespace: str, experiment: str, job: str | None
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Jobs and pods of one experiment as they are now; `job` is found by name should it have lost its labels."""
        query = {"labelSelector": f"{LABEL_EXPERIMENT}={experiment}"}
        jobs = await self._api.request("GET", _path("batch/v1", "jobs", namespace), query=query)
        pods = await self._api.request("GET", _path("core", "pods", namespace), query=query)
        found = jobs.get("items") or []
        if job is not None and all(j["metadata"]["name"] != job for j in found):
            by_name = await self._get(_path("batch/v1", "jobs", namespace, job))
            found += [by_name] if by_name else []
        stopped = {owner_uid(p) for p in pods.get("items") or [] if ended_badly(p)}
        for n, each in enumerate(found):
            if job_is_live(each) and each["metadata"]["uid"] in stopped:  # read before its pod: why may be told by now
                found[n] = await self._get(_path("batch/v1", "jobs", namespace, each["metadata"]["name"])) or each
        return found, pods.get("items") or []

    async def events_of(self, namespace: str, uid: str) -> list[dict[str, Any]]:
        """Events about one object, oldest first."""
        query = {"fieldSelector": f"involvedObject.uid={uid}"}
        found = await self._api.request("GET", _path("core", "events", namespace), query=query)
        return sorted(found.get("items") or [], key=lambda e: str(e.get("lastTimestamp") or e.get("eventTime") or ""))

    async def create_experiment(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Create a study's experiment, or find it created; raises TakenError, ApiError."""
        namespace = manifest["metadata"]["namespace"]
        return await self._create(_custom(EXPERIMENT_PLURAL, namespace), manifest)

    async def create_job(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Create an attempt's Job, or find it created; raises TakenError, ApiError."""
        return await self._create(_path("batch/v1", "jobs", manifest["metadata"]["namespace"]), manifest)

    async def _create(self, path: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Names are derived, so an object that is there with our owner is the one we wanted."""
        try:
            return await self._api.request("POST", path, body=manifest)
        except ApiError as err:
            if err.status != 409 or err.reason != "AlreadyExists":
                raise
        name = manifest["metadata"]["name"]
        there = await self._get(f"{path}/{name}")
        if there is None:
            raise ApiError(409, "Conflict", f"{name} existed and is gone again; deciding again")
        if owner_uid(there) != owner_uid(manifest):
            raise TakenError(f"{there.get('kind') or manifest['kind']} {name} exists and belongs to something else")
        return there

    async def write_status(self, obj: Mapping[str, Any], status: Mapping[str, Any]) -> dict[str, Any] | None:
        """Write a status if it differs, against the version that was read; None if there was nothing to write."""
        plural = STUDY_PLURAL if obj["kind"] == "EnergyStudy" else EXPERIMENT_PLURAL
        patch = merge_patch(obj.get("status") or {}, status)
        if not patch:
            return None
        metadata = obj["metadata"]
        body = {"metadata": {"resourceVersion": metadata["resourceVersion"]}, "status": patch}
        path = _custom(plural, metadata["namespace"], metadata["name"], "status")
        return await self._api.request("PATCH", path, body=body, content_type=MERGE_PATCH)

    async def delete_job(self, namespace: str, name: str, uid: str) -> None:
        """Delete a Job with its pods, if it is still the same one."""
        body = {
            "preconditions": {"uid": uid},
            "propagationPolicy": "Background",
            "kind": "DeleteOptions",
            "apiVersion": "v1",
        }
        try:
            await self._api.request("DELETE", _path("batch/v1", "jobs", namespace, name), body=body)
        except ApiError as err:
            if err.status not in (404, 409):
                raise

    async def expire_job(self, namespace: str, name: str, ttl_s: int) -> dict[str, Any] | None:
        """Let a finished Job be collected after so many seconds; gives it as it is then, None if it is gone."""
        body = {"spec": {"ttlSecondsAfterFinished": ttl_s}}
        try:
            path = _path("batch/v1", "jobs", namespace, name)
            return await self._api.request("PATCH", path, body=body, content_type=MERGE_PATCH)
        except ApiError as err:
            if err.status != 404:
                raise
        return None

    async def event(self, about: Mapping[str, Any], reason: str, message: str, *, warning: bool, now: str) -> None:
        """Post an Event about a custom resource, for `kubectl describe`."""
        metadata = about["metadata"]
        body = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": f"{metadata['name']}.", "namespace": metadata["namespace"]},
            "involvedObject": {
                "apiVersion": API_VERSION,
                "kind": about["kind"],
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": metadata["uid"],
            },
            "reason": reason,
            "message": message[:1024],
            "type": "Warning" if warning else "Normal",
            "source": {"component": "llem-operator"},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        await self._api.request("POST", _path("core", "events", metadata["namespace"]), body=body)

    async def lease(self, namespace: str, name: str) -> dict[str, Any]:
        """The Lease that makes one operator the leader; the chart creates it."""
        return await self._api.request("GET", _path("coordination.k8s.io/v1", "leases", namespace, name))

    async def write_lease(self, lease: Mapping[str, Any]) -> dict[str, Any]:
        """Replace the Lease against the version that was read."""
        metadata = lease["metadata"]
        path = _path("coordination.k8s.io/v1", "leases", metadata["namespace"], metadata["name"])
        return await self._api.request("PUT", path, body=lease)
