"""Starts the operator: lease, watches, workers, probes; ends when any of them ends."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Awaitable

from llem_operator.api import Api, RateLimit
from llem_operator.cluster import Cluster
from llem_operator.lease import Leadership, LeaseLostError
from llem_operator.metrics import Metrics
from llem_operator.probes import Probes
from llem_operator.service import Service
from llem_operator.settings import Settings
from llem_operator.watches import Watches
from llenergymeasure.core.errors import ConfigError

log = logging.getLogger("llem_operator")


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
    await service.first_comparison()
    watches = Watches(service.heard, settings.namespaces)
    workers = [service.work(n) for n in range(settings.workers)]
    try:
        await _first(stopped.wait(), leadership.keep(), service.compare(), watches.run(), *workers)
    finally:
        watches.stop()


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
    logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)  # it warns of signals that are ours
    try:
        asyncio.run(operate(settings))
    except LeaseLostError as err:
        log.error("%s; ending", err)  # noqa: TRY400  (a sentence says it all)
        return 1
    log.info("stopped")
    return 0
