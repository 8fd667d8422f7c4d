"""The application: which path is answered by which file, and what becomes of errors."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from qdeploy.errors import QdeployError
from qdeploy.serve.chat import chat_completions
from qdeploy.serve.completions import completions
from qdeploy.serve.gate import Gate, Keys
from qdeploy.serve.page import page
from qdeploy.serve.ranking import rerank
from qdeploy.serve.refusal import Refusal, refusal_of
from qdeploy.serve.responses import responses
from qdeploy.serve.service import Service
from qdeploy.serve.status import health, memory, metrics, model, models, plan, ready, set_memory
from qdeploy.serve.vectors import detokenize, embeddings, tokenize
from qdeploy.serve.wire import GoneError, as_json

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_LOG = logging.getLogger("qdeploy.serve")

ROUTES = [
    Route("/", page),
    Route("/health", health),
    Route("/ready", ready),
    Route("/metrics", metrics),
    Route("/v1/models", models),
    Route("/v1/models/{name:path}", model),
    Route("/v1/plan", plan),
    Route("/v1/memory", memory, methods=["GET"]),
    Route("/v1/memory", set_memory, methods=["PUT"]),
    Route("/v1/chat/completions", chat_completions, methods=["POST"]),
    Route("/v1/completions", completions, methods=["POST"]),
    Route("/v1/responses", responses, methods=["POST"]),
    Route("/v1/embeddings", embeddings, methods=["POST"]),
    Route("/v1/rerank", rerank, methods=["POST"]),
    Route("/tokenize", tokenize, methods=["POST"]),
    Route("/detokenize", detokenize, methods=["POST"]),
]


def application(
    service: Service, *, keys: Sequence[str] = (), admin: str = "", hosts: Collection[str] = ()
) -> Starlette:
    """An ASGI application that serves a model.

    Args:
        service: The model; begins with the application and ends with it.
        keys: Of clients; none: everybody may ask.
        admin: Token of who may move the memory; "": nobody may.
        hosts: Names that the Host header may have; none: any.
    """

    @asynccontextmanager
    async def life(app: Starlette) -> AsyncIterator[None]:
        service.start()
        yield
        service.close()

    handlers: dict[Any, Any] = {Exception: _failed, Refusal: _refused, HTTPException: _http, GoneError: _gone}
    handlers |= {ClientDisconnect: _gone, QdeployError: _failed}
    app = Starlette(routes=ROUTES, exception_handlers=handlers, lifespan=life)
    app.state.service = service
    inner = app.build_middleware_stack()
    app.state.gate = Gate(inner, service.limits, service.metrics, Keys(keys), Keys([admin]), hosts)
    app.middleware_stack = app.state.gate
    return app


async def _refused(request: Request, error: Exception) -> Response:
    refusal = refusal_of(error)
    return as_json(refusal.body(), refusal.status, refusal.headers)


async def _failed(request: Request, error: Exception) -> Response:
    refusal = refusal_of(error)
    if refusal.status == 500:
        _LOG.error("an internal error at %s", request.url.path, exc_info=error)
    return as_json(refusal.body(), refusal.status, refusal.headers)


async def _http(request: Request, error: HTTPException) -> Response:
    texts = {404: "no such path", 405: "this path does not take this method"}
    refusal = Refusal(error.status_code, texts.get(error.status_code, str(error.detail)))
    return as_json(refusal.body(), refusal.status, dict(error.headers or {}))


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it
