"""Starts the operator: lease, watches (kopf), workers, probes; ends when any of them ends."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Awaitable
from typing import Any

import kopf

from llem_operator.api import Api, RateLimit
from llem_operator.cluster import MEASURING, UNFINISHED, Cluster
from llem_operator.lease import Leadership, LeaseLostError
from llem_operator.metrics import Metrics
from llem_operator.probes import Probes
from llem_operator.service import Service
from llem_operator.settings import Settings
from llenergymeasure.core.errors import ConfigError
from llenergymeasure.core.resources import EXPERIMENT_PLURAL, GROUP, STUDY_PLURAL, VERSION

log = logging.getLogger("llem_operator")

WATCHED = {
    "study": (GROUP, VERSION, STUDY_PLURAL),
    "experiment": (GROUP, VERSION, EXPERIMENT_PLURAL),
    "job": ("batch", "v1", "jobs"),
    "pod": ("", "v1", "pods"),
}


def triggers(service: Service) -> kopf.OperatorRegistry:
    """Handlers that pass every watch event on and do nothing else."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    def login(**about: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**about) or kopf.login_with_kubeconfig(**about)

    for kind, (group, version, plural) in WATCHED.items():

        def heard(event: kopf.RawEvent, kind: str = kind, **_: object) -> None:
            service.heard(kind, event["type"], event["object"])

        kopf.on.event(group, version, plural, registry=registry, id=kind)(heard)
    return registry


def watching(settings: Settings) -> kopf.OperatorSettings:
    """kopf as a source of triggers: no peering, no posting, no scanning for resources, its own time limits."""
    found = kopf.OperatorSettings()
    found.posting.enabled = False
    found.peering.standalone = True
    found.scanning.disabled = True
    found.watching.server_timeout, found.watching.client_timeout = 120, 150
    found.watching.connect_timeout, found.networking.request_timeout = 5, 30
    found.watching.label_selectors["batch", "v1", "jobs"] = MEASURING
    found.watching.label_selectors["", "v1", "pods"] = MEASURING
    found.watching.field_selectors[GROUP, VERSION, EXPERIMENT_PLURAL] = UNFINISHED
    found.process.ultimate_exiting_timeout = 5
    found.networking.error_backoffs = (1, 2, 5, 10, 20)
    del settings
    return found


async def operate(settings: Settings) -> None:
    """Run until SIGTERM, a lost lease or a failure; raises what ended it."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    metrics = Metrics()
    probes = Probes(metrics)
    await probes.start(settings.health_port, settings.metrics_port)
    limit = RateLimit(settings.qps, settings.burst, loop.time)
    async with Api(limit, metrics.requested) as api:
        cluster = Cluster(api)
        leadership = Leadership(cluster, settings.namespace, settings.lease, settings.identity, loop.time)
        try:
            if await _first(leadership.acquire(), stopped.wait()) == 0:
                await _lead(cluster, settings, metrics, probes, leadership, stopped)
        finally:
            await leadership.release()
            await probes.stop()


async def _lead(
    cluster: Cluster,
    settings: Settings,
    metrics: Metrics,
    probes: Probes,
    leadership: Leadership,
    stopped: asyncio.Event,
) -> None:
    service = Service(cluster, settings, metrics)
    probes.service = service
    await service.compare_once(full=True)
    stop_watching = asyncio.Event()
    watches = kopf.operator(
        registry=triggers(service),
        settings=watching(settings),
        namespaces=settings.namespaces,
        clusterwide=not settings.namespaces,
        stop_flag=stop_watching,
    )
    workers = [service.work(n) for n in range(settings.workers)]
    await _first(stopped.wait(), leadership.keep(), service.compare(), watches, *workers)


async def _first(*parts: Awaitable[object]) -> int:
    """Run parts side by side until one ends, stop the others, give its place; raises what it raised."""
    tasks = [asyncio.ensure_future(p) for p in parts]
    done, rest = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in rest:
        task.cancel()
    await asyncio.wait(rest, timeout=5) if rest else None
    for task in done:
        task.result()
    return min(tasks.index(t) for t in done)


def main() -> int:
    """Entry point of `python -m llem_operator`; gives the exit code."""
    try:
        settings = Settings.from_environment(os.environ)
    except ConfigError as err:
        sys.stderr.write(f"{err}\n")
        return 2
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("kopf").setLevel(logging.WARNING)
    try:
        asyncio.run(operate(settings))
    except LeaseLostError as err:
        log.error("%s; ending", err)  # noqa: TRY400  (a sentence says it all)
        return 1
    log.info("stopped")
    return 0
