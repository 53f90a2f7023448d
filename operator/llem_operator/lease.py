"""One operator at a time, by a Lease. A convenience, not a safety: two at once do no harm (see study.py).

A standby judges the leader's silence by its own monotonic clock, so skewed clocks change nothing.
"""

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from llem_operator.api import ApiError
from llem_operator.cluster import Cluster

log = logging.getLogger(__name__)

DURATION_S, RENEW_DEADLINE_S, RETRY_S = 60.0, 40.0, 15.0


class LeaseLostError(Exception):
    """Another operator leads, or the API server could not be asked in time."""


class Leadership:
    """Takes and keeps the Lease; `clock` is monotonic, in s."""

    def __init__(self, cluster: Cluster, namespace: str, name: str, identity: str, clock: Callable[[], float]) -> None:
        self._cluster, self._namespace, self._name, self._identity = cluster, namespace, name, identity
        self._clock = clock
        self._seen: tuple[str, float] = ("", clock())
        self._led = False

    async def acquire(self) -> None:
        """Wait until this operator leads."""
        self._led = False
        while not await self._try():
            await asyncio.sleep(RETRY_S if self._seen[0] else 2.0)
        self._led = True
        log.info("leading as %s", self._identity)

    async def keep(self) -> None:
        """Renew until that fails for too long; raises LeaseLostError."""
        renewed = self._clock()
        while True:
            await asyncio.sleep(RETRY_S)
            if await self._try():
                renewed = self._clock()
            elif self._clock() - renewed > RENEW_DEADLINE_S:
                raise LeaseLostError(f"lease {self._namespace}/{self._name} could not be renewed")

    async def release(self) -> None:
        """Give the Lease up, so that the next operator need not wait for it to run out."""
        try:
            lease = await self._cluster.lease(self._namespace, self._name)
            if (lease.get("spec") or {}).get("holderIdentity") == self._identity:
                lease["spec"] = {**lease["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}
                await self._cluster.write_lease(lease)
        except ApiError as err:
            log.warning("the lease could not be released: %s", err)

    async def _try(self) -> bool:
        """Take or renew the Lease if it is ours or has run out."""
        try:
            lease = await self._cluster.lease(self._namespace, self._name)
            spec: dict[str, Any] = lease.get("spec") or {}
            holder = spec.get("holderIdentity") or ""
            mark = f"{holder}/{spec.get('renewTime')}"
            if mark != self._seen[0]:
                self._seen = (mark, self._clock())
            silent_s = self._clock() - self._seen[1]
            if self._led and holder not in ("", self._identity):
                raise LeaseLostError(f"lease {self._namespace}/{self._name} is {holder}'s")
            if holder not in ("", self._identity) and silent_s < float(spec.get("leaseDurationSeconds") or DURATION_S):
                return False
            now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
            changes = int(spec.get("leaseTransitions") or 0) + (holder != self._identity)
            lease["spec"] = {
                **spec,
                "holderIdentity": self._identity,
                "leaseDurationSeconds": int(DURATION_S),
                "renewTime": now,
                "acquireTime": spec.get("acquireTime") if holder == self._identity else now,
                "leaseTransitions": changes,
            }
            await self._cluster.write_lease(lease)
        except ApiError as err:
            log.warning("lease %s/%s: %s", self._namespace, self._name, err)
            return False
        return True
