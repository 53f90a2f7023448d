"""The fake API server of the operator's tests answers as a real one does, wherever the operator depends on it."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cluster.kube import Kube, install_crds, namespace
from fakes import virtual_time
from fakes.world import Connection, Operator, World, study
from llem_operator.api import MERGE_PATCH, Api, ApiError, RateLimit

ROOT = "/apis/llem.dev/v1alpha1/namespaces/{}"


@pytest.fixture(scope="module")
def kube(api_server: Kube) -> Iterator[Kube]:
    install_crds(api_server)
    with namespace(api_server, prefix="fake") as found:
        yield found


async def answers(api: Api, where: str) -> list[Any]:
    """What one API server says to the operator's kinds of request, without names and times."""
    path = ROOT.format(where)
    said: list[Any] = []

    async def ask(method: str, at: str, pick: Callable[[dict[str, Any]], Any], **more: Any) -> dict[str, Any]:
        try:
            found = await api.request(method, path + at, **more)
        except ApiError as err:
            said.append((method, err.status, err.reason))
            return {}
        said.append((method, pick(found)))
        return found

    def status(found: dict[str, Any]) -> Any:
        return found["status"]

    body = study(execution={"cycleOrder": "sequential"})
    body["metadata"]["namespace"] = where
    made = await ask("POST", "/energystudies", lambda o: (o["status"], o["metadata"]["generation"]), body=body)
    await ask("POST", "/energystudies", status, body=body)
    await ask("GET", "/energystudies/none", status)
    version = made["metadata"]["resourceVersion"]

    def patch(change: dict[str, Any], version: str) -> dict[str, Any]:
        return {"body": {"metadata": {"resourceVersion": version}, **change}, "content_type": MERGE_PATCH}

    one = {"status": {"planHash": "a", "best": {"cycles": 1}}}
    first = await ask("PATCH", "/energystudies/sweep/status", status, **patch(one, version))
    await ask("PATCH", "/energystudies/sweep/status", status, **patch({"status": {"planHash": "b"}}, version))
    version = first["metadata"]["resourceVersion"]
    same = await ask("PATCH", "/energystudies/sweep/status", status, **patch(one, version))
    said.append(("a write that changes nothing keeps the version", same["metadata"]["resourceVersion"] == version))
    nulls = {"status": {"planHash": None, "best": {"cycles": None, "configHash": "x"}}, "spec": {"parallelism": 9}}
    after = await ask("PATCH", "/energystudies/sweep/status", status, **patch(nulls, version))
    said.append(("a status write leaves the spec", after["spec"] == made["spec"], after["metadata"]["generation"]))
    version = after["metadata"]["resourceVersion"]
    bad = {"status": {"manifestMode": "Sideways"}}
    await ask("PATCH", "/energystudies/sweep/status", status, **patch(bad, version))
    await ask("GET", "/energystudies", lambda o: [(i["kind"], i["apiVersion"]) for i in o["items"]])
    children = "/energyexperiments"
    for n in range(3):
        experiment = {
            "apiVersion": "llem.dev/v1alpha1", "kind": "EnergyExperiment",
            "metadata": {"name": f"e{n}", "namespace": where, "labels": {"llem.dev/study": "x"} if n else {}},
            "spec": {"config": {"model": "m", "backend": "synthetic"}},
        }  # fmt: skip
        await ask("POST", children, status, body=experiment)
    over = {"body": {"status": {"finished": True}}, "content_type": MERGE_PATCH}
    await ask("PATCH", f"{children}/e1/status", lambda o: o["status"]["finished"], **over)

    def names(found: dict[str, Any]) -> Any:
        return [i["metadata"]["name"] for i in found["items"]], bool(found["metadata"].get("continue"))

    await ask("GET", children, names, query={"fieldSelector": "status.finished!=true"})
    await ask("GET", children, names, query={"labelSelector": "!llem.dev/study"})
    await ask("GET", children, names, query={"limit": "2"})
    said.append([e["metadata"]["name"] async for e in api.pages(path + children, {"limit": "2"})])
    wrong = {"preconditions": {"uid": "no"}, "kind": "DeleteOptions", "apiVersion": "v1"}
    await ask("DELETE", f"{children}/e2", lambda _o: "gone", body=wrong)
    await ask("DELETE", f"{children}/e2", lambda _o: "gone", body={"kind": "DeleteOptions", "apiVersion": "v1"})
    await ask("DELETE", f"{children}/e2", lambda _o: "gone", body={"kind": "DeleteOptions", "apiVersion": "v1"})
    return said


def test_the_fake_says_what_a_real_api_server_says(kube: Kube, monkeypatch: pytest.MonkeyPatch) -> None:
    """Conflict, AlreadyExists, null in a merge patch, defaults, no-op writes, selectors, pages, preconditions."""

    async def of_the_fake() -> list[Any]:
        world = World()
        return await answers(Connection(world, Operator(world)), "bench")

    async def of_the_real_one() -> list[Any]:
        async with Api(RateLimit(100, 100, asyncio.get_running_loop().time)) as api:
            return await answers(api, kube.namespace)

    place = "kubernetes.aio.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION"  # read from KUBECONFIG at import
    monkeypatch.setattr(place, str(kube.kubeconfig))
    real = asyncio.run(of_the_real_one())
    fake = virtual_time.run(of_the_fake())
    for expected, found in zip(real, fake, strict=True):
        assert found == expected
