"""Who comes in: names of hosts, keys, the admin token, and how many at once. Nothing of a body is read before."""

from __future__ import annotations

import hashlib
import hmac
import math
import time
from collections.abc import Collection, Sequence

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qdeploy.serve.limits import Limits
from qdeploy.serve.metrics import Metrics
from qdeploy.serve.refusal import Refusal
from qdeploy.serve.wire import as_json

_OPEN = ("/", "/health", "/ready", "/metrics")
_WORKS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/tokenize", "/detokenize")


class Keys:
    """Secrets of which a client must show one.

    Args:
        keys: Any of them will do; none at all lets everybody in.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key) for key in keys if key]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def accept(self, shown: str) -> bool:
        """Whether a key is right; takes the same time for every wrong one."""
        digest = _digest(shown)
        return bool(sum(hmac.compare_digest(digest, known) for known in self._digests))


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="replace")).digest()


class Gate:
    """Stands before the application.

    Args:
        app: What it guards.
        limits: How many requests at once.
        metrics: Counts answers.
        keys: Of clients.
        admin: Of who may move the memory; none: nobody may.
        hosts: Names that the Host header may have; none: any. A page of another origin cannot reach a server on
            127.0.0.1 by a name of its own (DNS rebinding) where they are set.
    """

    def __init__(
        self, app: ASGIApp, limits: Limits, metrics: Metrics, keys: Keys, admin: Keys, hosts: Collection[str]
    ) -> None:
        self._app, self._limits, self._metrics = app, limits, metrics
        self._keys, self._admin, self._hosts = keys, admin, frozenset(hosts)
        self._inside = 0
        self._seconds = 1.0  # of a request, on the average of late

    @property
    def free(self) -> bool:
        """Whether one more may come in."""
        return self._inside < self._limits.requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or lets it in."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        try:
            self._check(request)
        except Refusal as refusal:
            self._metrics.refused.labels(str(refusal.status)).inc()
            await as_json(refusal.body(), refusal.status, refusal.headers)(scope, receive, send)
            return
        if request.url.path not in _WORKS:
            await self._app(scope, receive, send)
            return
        await self._counted(request.url.path, scope, receive, send)

    def _check(self, request: Request) -> None:
        host = request.headers.get("host", "").rpartition("@")[2]
        name = host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]
        if self._hosts and name.lower() not in self._hosts:
            raise Refusal(421, "this server is not called that; see --host")
        path = request.url.path
        shown = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        if path == "/v1/memory" and request.method == "PUT":
            if not self._admin:
                raise Refusal(403, "the memory cannot be moved over the network: no admin token is set")
            if not self._admin.accept(shown):
                raise Refusal(401, "this needs the admin token", code="invalid_api_key", headers=_BEARER)
        elif self._keys and path not in _OPEN and not self._keys.accept(shown) and not self._admin.accept(shown):
            raise Refusal(401, "this needs a key: Authorization: Bearer KEY", code="invalid_api_key", headers=_BEARER)
        if path in _WORKS and not self.free:
            wait = math.ceil(self._seconds * self._limits.requests / max(1, self._limits.sequences))
            headers = {"Retry-After": str(min(60, max(1, wait)))}
            raise Refusal(429, "as many requests wait and run as may", code="queue_full", headers=headers)

    async def _counted(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        status = 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._inside += 1
        start = time.monotonic()
        try:
            await self._app(scope, receive, watched)
        finally:
            self._inside -= 1
            self._seconds += 0.1 * (time.monotonic() - start - self._seconds)
            self._metrics.requests.labels(path, str(status or 499)).inc()


_BEARER = {"WWW-Authenticate": "Bearer"}
