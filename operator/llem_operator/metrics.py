"""What Prometheus scrapes, named as controller-runtime names it."""

from collections import Counter as Tally
from collections.abc import Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from llem_operator.attempts import job_is_live
from llem_operator.cache import Cache
from llem_operator.timestamps import parse

MAX_ENERGY_SERIES = 1000  # finished experiments with a gauge of their own; the newest of them


class Metrics:
    """The operator's metrics in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.queue_depth = Gauge("workqueue_depth", "Keys that wait for a worker", registry=self.registry)
        self._reconciles = Counter(
            "controller_reconcile_total", "Looks by kind and result", ["controller", "result"], registry=self.registry
        )
        self._seconds = Histogram(
            "controller_reconcile_time_seconds", "Duration of a look", ["controller"], registry=self.registry
        )
        self._requests = Counter(
            "rest_client_requests_total", "Requests to the API server", ["method", "code"], registry=self.registry
        )
        self._jobs = Gauge("llem_jobs", "Jobs by state", ["state"], registry=self.registry)
        self._experiments = Gauge("llem_experiments", "Experiments by state", ["state"], registry=self.registry)
        self._experiment_seconds = Histogram(
            "llem_experiment_seconds",
            "Seconds of a run's container, by how its last attempt ended",
            ["reason"],
            buckets=(10, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200),
            registry=self.registry,
        )
        self._energy = Gauge(
            "llem_energy_per_output_token_joules",
            "Joules per output token of a finished experiment",
            ["namespace", "study", "experiment", "verdict"],
            registry=self.registry,
        )

    def ended(self, obj: Mapping[str, Any]) -> None:
        """A study or an experiment has ended; the last attempt's container tells the seconds of an experiment."""
        rows: Sequence[Mapping[str, Any]] = obj["status"].get("attempts") or []
        start, end = (parse(rows[-1].get(k)) if rows else None for k in ("start", "end"))
        if start is not None and end is not None:
            self._experiment_seconds.labels(rows[-1].get("reason", "")).observe((end - start).total_seconds())

    def reconciled(self, kind: str, result: str, seconds: float) -> None:
        """A look has ended."""
        self._reconciles.labels(kind, result).inc()
        if result == "success":
            self._seconds.labels(kind).observe(seconds)

    def requested(self, method: str, status: int) -> None:
        """A request was answered; status 0: it was not."""
        self._requests.labels(method, str(status) if status else "<error>").inc()

    def observe(self, cache: Cache) -> None:
        """Set the gauges that describe the cluster."""
        states = Tally(c.state for c in cache.children.values())
        for state in ("pending", "running", "completed", "failed", "cancelled"):
            self._experiments.labels(state).set(states[state])
        live = sum(job_is_live(j) for j in cache.jobs.objects.values())
        self._jobs.labels("active").set(live)
        self._jobs.labels("finished").set(len(cache.jobs.objects) - live)
        measured = [c for c in cache.children.values() if c.millijoules]
        newest = sorted(measured, key=lambda c: str(c.ended), reverse=True)[:MAX_ENERGY_SERIES]
        self._energy.clear()
        for c in newest:
            assert c.millijoules is not None
            self._energy.labels(c.namespace, c.study, c.name, c.verdict or "").set(float(c.millijoules) / 1000)
