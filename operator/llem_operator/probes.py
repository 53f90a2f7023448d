"""Answers the kubelet's probes and Prometheus."""

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from llem_operator.metrics import Metrics
from llem_operator.service import Service


class Probes:
    """Two small HTTP servers: health on one port, metrics on another."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.service: Service | None = None  # None while another operator leads: alive and ready to take over
        self._runners: list[web.AppRunner] = []

    async def start(self, health_port: int, metrics_port: int) -> None:
        """Listen."""
        health = web.Application()
        health.router.add_get("/healthz", self._healthz)
        health.router.add_get("/readyz", self._readyz)
        metrics = web.Application()
        metrics.router.add_get("/metrics", self._scrape)
        for app, port in ((health, health_port), (metrics, metrics_port)):
            runner = web.AppRunner(app, access_log=None)
            await runner.setup()
            await web.TCPSite(runner, port=port).start()
            self._runners.append(runner)

    async def stop(self) -> None:
        """Stop listening."""
        for runner in self._runners:
            await runner.cleanup()

    async def _healthz(self, _: web.Request) -> web.Response:
        wrong = self.service.healthy if self.service else ""
        return web.Response(text=wrong or "ok", status=503 if wrong else 200)

    async def _readyz(self, _: web.Request) -> web.Response:
        ready = self.service is None or self.service.synced
        return web.Response(text="ok" if ready else "the first list is not complete", status=200 if ready else 503)

    async def _scrape(self, _: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})
