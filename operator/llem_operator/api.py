"""Talks to the API server: JSON in, JSON out, one rate limit, every refusal as an ApiError."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

from kubernetes.aio import client, config

log = logging.getLogger(__name__)

REQUEST_TIMEOUT_S = 30.0
PAGE = 500
MERGE_PATCH = "application/merge-patch+json"


class ApiError(Exception):
    """The API server refused or did not answer (status 0); `retry_after_s` is its own word on when to try again."""

    def __init__(self, status: int, reason: str, message: str, retry_after_s: float = 0.0) -> None:
        self.status, self.reason, self.retry_after_s = status, reason, retry_after_s
        self.message = message
        super().__init__(f"{status} {reason}: {message}")


class RateLimit:
    """A token bucket: `burst` requests at once, then `qps` a second."""

    def __init__(self, qps: float, burst: int, clock: Callable[[], float]) -> None:
        self._qps, self._burst, self._clock = qps, burst, clock
        self._tokens, self._at = float(burst), clock()
        self._closed_until = 0.0

    def close_for(self, seconds: float) -> None:
        """Let nobody through for a while: the API server has asked for it."""
        self._closed_until = max(self._closed_until, self._clock() + seconds)

    async def wait(self) -> None:
        """Wait for a token."""
        while (closed_s := self._closed_until - self._clock()) > 0:
            await asyncio.sleep(closed_s)
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._qps) - 1
        self._at = now
        if self._tokens < 0:
            await asyncio.sleep(-self._tokens / self._qps)


class Api:
    """A connection with the credentials of the pod, or of KUBECONFIG outside a cluster."""

    def __init__(self, limit: RateLimit, on_request: Callable[[str, int], None] = lambda _verb, _status: None) -> None:
        self._limit, self._on_request = limit, on_request
        self._client: client.ApiClient | None = None

    async def __aenter__(self) -> "Api":
        if Path("/var/run/secrets/kubernetes.io/serviceaccount/token").exists():
            config.load_incluster_config()
        else:
            await config.load_kube_config()
        self._client = client.ApiClient()
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._client is not None
        await self._client.close()

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
    ) -> dict[str, Any]:
        """One request; raises ApiError."""
        assert self._client is not None
        await self._limit.wait()
        headers = {"Accept": "application/json", "Content-Type": content_type}
        status, raw, retry_after, warning = 0, b"", None, None
        try:
            _, url, headers, data, _ = await self._client.param_serialize(
                method,
                path,
                query_params=list((query or {}).items()),
                header_params=headers,
                body=body,
                auth_settings=["BearerToken"],
            )
            response = await self._client.rest_client.request(
                method, url, headers=headers, body=data, _request_timeout=REQUEST_TIMEOUT_S
            )
            raw, status, retry_after = await response.read(), response.status, response.getheader("Retry-After")
            warning = response.getheader("Warning") if method == "POST" else None
        except Exception as err:  # aiohttp, TLS, timeouts: each means that there was no answer
            raise ApiError(0, type(err).__name__, str(err) or "no answer") from err
        finally:
            self._on_request(method, status)
        if not 200 <= status <= 299:
            refusal = _refusal(status, raw, retry_after)
            if status == 429:
                self._limit.close_for(min(refusal.retry_after_s, 60.0))
            raise refusal
        if warning:
            log.warning("%s %s: the API server warns: %s", method, path, warning)
        found: dict[str, Any] = json.loads(raw) if raw else {}
        return found

    async def pages(self, path: str, query: Mapping[str, str] | None = None) -> AsyncIterator[dict[str, Any]]:
        """The items of a list, read in pages."""
        position = ""
        while True:
            asked = {**(query or {}), "limit": str(PAGE), **({"continue": position} if position else {})}
            page = await self.request("GET", path, query=asked)
            for item in page.get("items") or ():
                yield item
            position = (page.get("metadata") or {}).get("continue") or ""
            if not position:
                return


def _refusal(status: int, raw: bytes, retry_after: str | None) -> ApiError:
    try:
        said = json.loads(raw)
    except ValueError:
        said = {}
    said = said if isinstance(said, dict) else {}
    seconds = (said.get("details") or {}).get("retryAfterSeconds") or retry_after or 0
    text = str(said.get("message") or raw[:200].decode(errors="replace"))
    return ApiError(status, str(said.get("reason") or ""), text, float(seconds))


def merge_patch(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON merge patch (RFC 7386) that turns `old` into `new`; empty if nothing changes."""
    patch: dict[str, Any] = {k: None for k in old if k not in new}
    for key, value in new.items():
        before = old.get(key)
        if key not in old:
            patch[key] = value
        elif isinstance(value, Mapping) and isinstance(before, Mapping):
            inner = merge_patch(before, value)
            if inner:
                patch[key] = inner
        elif value != before:
            patch[key] = value
    return patch
