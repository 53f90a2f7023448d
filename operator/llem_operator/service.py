"""The operator at work: watch events and a regular full comparison make keys dirty, workers look at them.

The watches (kopf's) are only a trigger. Whatever they lose, the next comparison finds.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from llem_operator.api import ApiError
from llem_operator.cache import Cache, Shelf, lean_job, lean_pod, owner_name
from llem_operator.cluster import Cluster
from llem_operator.controller import Controller, Key, Look
from llem_operator.metrics import Metrics
from llem_operator.queue import KeyedQueue
from llem_operator.settings import Settings

log = logging.getLogger(__name__)

FULL_EVERY = 10  # every so many comparisons finished experiments are read, too
DEAF_AFTER = 3  # comparisons in a row that found what the watches should have told


class Service:
    """Workers, comparison, and what the probes ask."""

    def __init__(
        self,
        cluster: Cluster,
        settings: Settings,
        metrics: Metrics,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._cluster, self._settings, self._metrics, self._now = cluster, settings, metrics, now
        loop = asyncio.get_running_loop()
        self._clock: Callable[[], float] = loop.time
        self.cache = Cache()
        self.queue: KeyedQueue[Key] = KeyedQueue(self._lane)
        self._controller = Controller(cluster, self.cache, settings, now=now, monotonic=loop.time, on_end=metrics.ended)
        self._ticked: dict[int, float] = {}
        self._missed = 0
        self._heard_of: set[str] = set()  # kinds of which a watch has told since the last comparison
        self.synced = False

    def _lane(self, key: Key) -> tuple[str, str]:
        child = self.cache.children.get((key.namespace, key.name)) if key.kind != "study" else None
        return key.namespace, child.study if child is not None and child.study else key.name

    @property
    def healthy(self) -> str:
        """Empty if all is well, else what is wrong."""
        stuck = [n for n, at in self._ticked.items() if self._clock() - at > 60]
        if stuck:
            return f"worker {stuck[0]} has not moved for 60 s"
        return "the watches miss changes" if self._missed >= DEAF_AFTER else ""

    async def work(self, number: int) -> None:
        """One worker: take a key, look at it, again."""
        while True:
            self._ticked[number] = self._clock()
            try:
                key = await asyncio.wait_for(self.queue.get(), timeout=20)
            except TimeoutError:
                continue
            self._metrics.queue_depth.set(len(self.queue))
            began = self._clock()
            try:
                look = await asyncio.wait_for(self._controller.look(key), timeout=50)
            except Exception as err:  # noqa: BLE001  (the door of the reconcile loop)
                self._failed(key, err)
            else:
                self.queue.succeeded(key)
                self._after(key, look)
                self._metrics.reconciled(key.kind, "success", self._clock() - began)
            finally:
                self.queue.done(key)

    def _failed(self, key: Key, err: Exception) -> None:
        wait_s = err.retry_after_s if isinstance(err, ApiError) else 0.0
        pause = self.queue.failed(key, wait_s)
        conflict = isinstance(err, ApiError) and err.status == 409
        self._metrics.reconciled(key.kind, "conflict" if conflict else "error", 0.0)
        if isinstance(err, ApiError):
            level = logging.DEBUG if conflict else logging.WARNING
            log.log(level, "%s %s/%s: %s; again in %.1f s", key.kind, key.namespace, key.name, err, pause)
        else:
            log.error("%s %s/%s failed", key.kind, key.namespace, key.name, exc_info=err)

    def _after(self, key: Key, look: Look) -> None:
        if look.rest_s > 0:
            self.queue.rest(key, look.rest_s)
        for dirty in look.dirty:
            self.queue.add(dirty)
        if look.requeue_at is not None:
            delay = (look.requeue_at - self._now()).total_seconds()
            self.queue.add_after(key, max(delay, 0.05))

    def heard(self, kind: str, change: str | None, obj: Mapping[str, Any]) -> None:
        """A watch has told something; `change` None is part of its first list."""
        self._heard_of.add(kind)
        name = (obj["metadata"]["namespace"], obj["metadata"]["name"])
        if kind == "study":
            if change == "DELETED" or self.cache.put_study(obj):
                self.queue.add(Key("study", *name))
        elif kind == "experiment":
            self._heard_experiment(change, obj, name)
        else:
            shelf, lean = (self.cache.jobs, lean_job) if kind == "job" else (self.cache.pods, lean_pod)
            if shelf.bury(obj) if change == "DELETED" else shelf.put(lean(obj)):
                self._owner_changed(obj)

    def _owner_changed(self, obj: Mapping[str, Any]) -> None:
        """The experiment of a Job or pod must be looked at; one that carries our mark and names none is not ours."""
        namespace, experiment = owner_name(obj)
        if experiment:
            self.queue.add(Key("experiment", namespace, experiment))

    def _heard_experiment(self, change: str | None, obj: Mapping[str, Any], name: tuple[str, str]) -> None:
        if change == "DELETED" and not self.cache.has_finished(obj):  # deleted, or so far unknown to be finished
            self.queue.add(Key("verify", *name))
        elif change != "DELETED" and self.cache.put_experiment(obj):
            self._experiment_changed(name)

    def _experiment_changed(self, name: tuple[str, str]) -> None:
        """A child that waits for its turn is its study's business alone."""
        child = self.cache.children[name]
        if child.study:
            self.queue.add(Key("study", child.namespace, child.study))
        if not child.study or child.state == "running" or child.deleting:
            self.queue.add(Key("experiment", *name))

    async def compare(self) -> None:
        """Compare with the API server for ever, with a little jitter."""
        round_number = 0
        while True:
            pause = self._settings.resync_seconds * (0.9 + 0.2 * (round_number % 7) / 6)
            try:
                await self.compare_once(full=round_number % FULL_EVERY == 0)
            except ApiError as err:
                log.warning("comparison with the API server failed: %s", err)
                pause = max(5.0, err.retry_after_s)
            else:
                round_number += 1
            await asyncio.sleep(pause)

    async def first_comparison(self) -> None:
        """Compare in full, however often the API server must be asked."""
        while not self.synced:
            try:
                await self.compare_once(full=True)
            except ApiError as err:
                log.warning("the first comparison failed: %s", err)
                await asyncio.sleep(max(2.0, err.retry_after_s))

    async def compare_once(self, *, full: bool) -> None:
        """List everything that may matter and mark what differs from what was known."""
        news: Counter[str] = Counter()
        for namespace in self._settings.namespaces or (None,):
            news["study"] += await self._compare_studies(namespace)
            news["experiment"] += await self._compare_experiments(namespace, full=full)
            for kind, shelf, lean, listed in (
                ("job", self.cache.jobs, lean_job, self._cluster.jobs(namespace)),
                ("pod", self.cache.pods, lean_pod, self._cluster.pods(namespace)),
            ):
                news[kind] += await self._compare_shelf(shelf, lean, listed, namespace)
        silent = [k for k, n in news.items() if n and k not in self._heard_of]  # news in a race with a watch are none
        self._missed = self._missed + 1 if silent and self.synced else 0
        self._heard_of.clear()
        if not self.synced:
            log.info("synced: %d studies, %d experiments", len(self.cache.studies), len(self.cache.children))
        self.synced = True
        self._metrics.observe(self.cache)

    async def _compare_studies(self, namespace: str | None) -> int:
        seen, news = set(), 0
        async for study in self._cluster.studies(namespace):
            name = (study["metadata"]["namespace"], study["metadata"]["name"])
            seen.add(name)
            if self.cache.put_study(study):
                news += 1
            finished = (study.get("status") or {}).get("finished")
            current = (study.get("status") or {}).get("observedGeneration") == study["metadata"].get("generation")
            if not finished or not current:
                self.queue.add(Key("study", *name))
        for name in [n for n in self.cache.studies if _within(n, namespace) and n not in seen]:
            self.queue.add(Key("study", *name))
        return news

    async def _compare_experiments(self, namespace: str | None, *, full: bool) -> int:
        seen, news = set(), 0
        lists = [self._cluster.experiments(namespace, unfinished_only=not full)]
        lists += [] if full else [self._cluster.standalone_experiments(namespace)]
        for listed in lists:
            async for experiment in listed:
                name = (experiment["metadata"]["namespace"], experiment["metadata"]["name"])
                seen.add(name)
                if self.cache.put_experiment(experiment):
                    news += 1
                    self._experiment_changed(name)
                elif self.cache.children[name].state == "running":
                    self.queue.add(Key("experiment", *name))
        for name, child in list(self.cache.children.items()):
            if _within(name, namespace) and name not in seen and (full or child.state in ("pending", "running")):
                self.queue.add(Key("verify", *name))
        for name, study in self.cache.studies.items() if full else ():
            total = ((study.get("status") or {}).get("counts") or {}).get("total", 0)
            if _within(name, namespace) and len(self.cache.children_of(study["metadata"]["uid"])) < total:
                self.queue.add(Key("study", *name))  # deleted by hand while no operator looked
        return news

    async def _compare_shelf(
        self,
        shelf: Shelf,
        lean: Callable[[Mapping[str, Any]], dict[str, Any]],
        listed: AsyncIterator[dict[str, Any]],
        namespace: str | None,
    ) -> int:
        seen, news = set(), 0
        before = set(shelf.objects)  # what arrives by watch during the list is not missing from it
        async for obj in listed:
            name = (obj["metadata"]["namespace"], obj["metadata"]["name"])
            seen.add(name)
            if shelf.put(lean(obj)):
                news += 1
                self._owner_changed(obj)
        for name in [n for n in before if _within(n, namespace) and n not in seen and n in shelf.objects]:
            self._owner_changed(shelf.objects[name])
            shelf.drop(name)
        return news


def _within(name: tuple[str, str], namespace: str | None) -> bool:
    return namespace is None or name[0] == namespace
