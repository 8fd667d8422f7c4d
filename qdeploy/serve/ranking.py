"""`POST /v1/rerank`: documents in the order in which they answer a query, by a cross-encoder."""

from __future__ import annotations

import asyncio
import math
import secrets
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from qdeploy.native.pairs import pair_score, pair_tokens
from qdeploy.serve.body import read_fields
from qdeploy.serve.fields import valid_text
from qdeploy.serve.refusal import Refusal
from qdeploy.serve.service import Service
from qdeploy.serve.wire import as_json, while_connected


async def rerank(request: Request) -> Response:
    """Scores of documents: {"query", "documents", "top_n", "return_documents", "raw_scores"}."""
    service: Service = request.app.state.service
    fields = await read_fields(request, service.limits)
    service.check_name(fields.text("model"))
    query = fields.text("query")
    documents = _documents(service, fields.take("documents"))
    most = fields.integer("top_n", len(documents), 1, 1 << 31)
    shown, raw = fields.flag("return_documents"), fields.flag("raw_scores")
    fields.finish()
    if not query:
        raise Refusal(400, "query must be a text", param="query")
    if not service.model.encoder:
        raise Refusal(400, "this model gives text, and no scores of pairs", param="model")
    return await while_connected(request, _ranked(service, query, documents, most, shown, raw))


def _documents(service: Service, value: object) -> list[str]:
    """Texts, or objects that hold one under "text"."""
    if not isinstance(value, list) or not 1 <= len(value) <= service.limits.texts:
        raise Refusal(400, f"documents must be a list of 1 to {service.limits.texts}", param="documents")
    texts = [item.get("text") if isinstance(item, dict) else item for item in value]
    return [valid_text(text, f"documents[{place}]") for place, text in enumerate(texts)]


async def _ranked(service: Service, query: str, documents: list[str], most: int, shown: bool, raw: bool) -> Response:
    scores, tokens = [], 0
    for document in documents:
        async with service.encoding:  # a pair at a time, so that others come in between
            count, logit = await asyncio.to_thread(_one, service, query, document)
        tokens += count
        scores.append(logit if raw else _sigmoid(logit))
    order = sorted(range(len(documents)), key=lambda place: (-scores[place], place))[:most]
    results: list[dict[str, Any]] = [{"index": place, "relevance_score": scores[place]} for place in order]
    if shown:
        for result in results:
            result["document"] = {"text": documents[result["index"]]}
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    body = {"id": f"rerank-{secrets.token_hex(12)}", "model": service.name, "results": results, "usage": usage}
    return as_json({**body, "qdeploy": service.computed()})


def _one(service: Service, query: str, document: str) -> tuple[int, float]:
    """How many tokens a pair has, and its score."""
    pair = pair_tokens(service.model, query, document)
    return len(pair[0]), pair_score(service.model, pair)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
