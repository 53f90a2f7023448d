"""Watches through kopf, as a trigger and nothing else: every event is passed on, nothing is stored or written.

kopf runs in a thread with a loop of its own, as its documentation advises for embedding: it takes over the signals of
the main thread otherwise, and cancels tasks that are not its own when it ends.
"""

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import kopf

from llem_operator.api import PAGE
from llem_operator.cluster import MEASURING, UNFINISHED
from llenergymeasure.core.resources import EXPERIMENT_PLURAL, GROUP, STUDY_PLURAL, VERSION

WATCHED = {
    "study": (GROUP, VERSION, STUDY_PLURAL),
    "experiment": (GROUP, VERSION, EXPERIMENT_PLURAL),
    "job": ("batch", "v1", "jobs"),
    "pod": ("", "v1", "pods"),
}
Heard = Callable[[str, str | None, Mapping[str, Any]], None]
"""Called in the main loop with the kind, the change (None: part of a first list), and the object."""


class WatchesEndedError(Exception):
    """The watches ended by themselves; without them the operator would be deaf."""


class Watches:
    """The four watches; `heard` is called in the event loop in which this object was made."""

    def __init__(self, heard: Heard, namespaces: Sequence[str]) -> None:
        self._heard, self._namespaces = heard, namespaces
        self._loop = asyncio.get_running_loop()
        self._stop = threading.Event()
        self._ended = asyncio.Event()
        self._error: BaseException | None = None

    async def run(self) -> None:
        """Watch until `stop`; raises WatchesEndedError if the watches end before."""
        threading.Thread(target=self._watch, daemon=True, name="watches").start()
        await self._ended.wait()
        if not self._stop.is_set():
            raise WatchesEndedError("the watches have ended") from self._error

    def stop(self) -> None:
        """Ask the watches to end; nothing waits for them."""
        self._stop.set()

    def _watch(self) -> None:
        watching = kopf.operator(
            registry=self._triggers(),
            settings=_settings(),
            namespaces=self._namespaces,
            clusterwide=not self._namespaces,
            identity="llem-operator",  # type: ignore[arg-type]  # unused without peering; kopf would look for a user name
            stop_flag=self._stop,
        )
        try:
            asyncio.run(watching)
        except Exception as err:  # noqa: BLE001  (whatever ended kopf is the main loop's to report)
            self._error = err
        finally:
            self._loop.call_soon_threadsafe(self._ended.set)

    def _triggers(self) -> kopf.OperatorRegistry:
        """Handlers that pass every event on and do nothing else."""
        registry = kopf.OperatorRegistry()

        @kopf.on.login(registry=registry)
        def login(**about: Any) -> kopf.ConnectionInfo | None:
            return kopf.login_with_service_account(**about) or kopf.login_with_kubeconfig(**about)

        for kind, (group, version, plural) in WATCHED.items():

            async def heard(event: kopf.RawEvent, kind: str = kind, **_: object) -> None:
                self._loop.call_soon_threadsafe(self._heard, kind, event["type"], event["object"])

            kopf.on.event(group, version, plural, registry=registry, id=kind)(heard)
        return registry


def _settings() -> kopf.OperatorSettings:
    """No peering, no posting, no scanning for resources; selection at the server; time limits of our own."""
    found = kopf.OperatorSettings()
    found.posting.enabled = False
    found.peering.standalone = True
    found.scanning.disabled = True
    found.watching.server_timeout, found.watching.client_timeout = 120, 150
    found.watching.chunk_size = PAGE
    found.watching.connect_timeout, found.networking.request_timeout = 5, 30
    found.watching.label_selectors["batch", "v1", "jobs"] = MEASURING
    found.watching.label_selectors["", "v1", "pods"] = MEASURING
    found.watching.field_selectors[GROUP, VERSION, EXPERIMENT_PLURAL] = UNFINISHED
    found.networking.error_backoffs = (1, 2, 5, 10, 20)
    return found
