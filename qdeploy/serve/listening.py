"""The server's socket: uvicorn, with a limit on connections that say nothing."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from qdeploy.errors import OutputError
from qdeploy.serve.limits import Limits

_BACKLOG = 128
_HEAD_BYTES = 1 << 16
_KEEP_ALIVE_SECONDS = 30
_LINGER_SECONDS = 5


def protocol(seconds: float) -> type[asyncio.Protocol]:
    """HTTP/1.1 that closes a connection whose first request does not come within some seconds."""

    class Guarded(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._silence = self.loop.call_later(seconds, self._close_if_silent)

        def connection_lost(self, exc: Exception | None) -> None:
            self._silence.cancel()
            super().connection_lost(exc)

        def _close_if_silent(self) -> None:
            if self.cycle is None and not self.transport.is_closing():
                self.transport.close()

    return Guarded


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens; OutputError where the address is taken or not this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((host, port))
        opened.listen(_BACKLOG)
    except (OSError, OverflowError) as error:
        opened.close()
        raise OutputError(
            "the address cannot be listened on", where=f"{host}:{port}", found=error, todo="Give another --port."
        ) from None
    return opened


def server(app: Starlette, limits: Limits) -> uvicorn.Server:
    """A uvicorn server, to be run on a socket of `bind`."""
    options: dict[str, Any] = {"http": protocol(limits.head_seconds), "ws": "none", "lifespan": "on"}
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=_HEAD_BYTES,
        limit_concurrency=4 * limits.requests + 64,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_LINGER_SECONDS,
        **options,
    )
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    return uvicorn.Server(config)
