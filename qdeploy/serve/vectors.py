"""`POST /v1/embeddings`, `/tokenize` and `/detokenize`."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from qdeploy.serve.body import read_fields
from qdeploy.serve.fields import valid_text
from qdeploy.serve.prompts import prompt_ids
from qdeploy.serve.refusal import Refusal
from qdeploy.serve.service import Service
from qdeploy.serve.wire import as_json, while_connected


async def embeddings(request: Request) -> Response:
    """Vectors of texts, by an encoder."""
    service: Service = request.app.state.service
    fields = await read_fields(request, service.limits)
    service.check_name(fields.text("model"))
    texts = _texts(service, fields.take("input"))
    form = fields.choice("encoding_format", "float", "base64")
    if fields.take("dimensions") is not None:
        raise Refusal(400, "dimensions is not supported: vectors are whole", param="dimensions")
    fields.finish()
    if not service.model.encoder:
        raise Refusal(400, "this model gives text, and no vectors", param="model")
    return await while_connected(request, _embedded(service, texts, form))


def _texts(service: Service, value: object) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not 1 <= len(texts) <= service.limits.texts:
        raise Refusal(400, f"input must be a text or a list of 1 to {service.limits.texts}", param="input")
    return [valid_text(text, "input") for text in texts]


async def _embedded(service: Service, texts: list[str], form: str) -> Response:
    rows, tokens = [], 0
    for place, text in enumerate(texts):
        async with service.encoding:  # a text at a time, so that others come in between
            count, vector = await asyncio.to_thread(_one, service, text)
        tokens += count
        values: Any = [float(value) for value in vector]
        if form == "base64":
            values = base64.b64encode(np.ascontiguousarray(vector, "<f4").tobytes()).decode()
        rows.append({"object": "embedding", "index": place, "embedding": values})
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    body = {"object": "list", "data": rows, "model": service.name, "usage": usage}
    return as_json({**body, "qdeploy": service.computed()})


def _one(service: Service, text: str) -> tuple[int, Any]:
    """How many tokens a text has, and its vector; a text that would be cut is refused."""
    service.tokenizer.no_truncation()
    count, most = len(service.tokenizer.encode(text).ids), service.model.context
    if count > most:
        sentence = f"input has a text of {count} tokens, and the model takes {most}"
        raise Refusal(400, sentence, param="input", code="context_length_exceeded")
    return count, service.model.embed([text])[0]


async def tokenize(request: Request) -> Response:
    """A text as tokens: {"text", "special"} gives {"tokens"}."""
    service: Service = request.app.state.service
    fields = await read_fields(request, service.limits)
    text, special = fields.text("text"), fields.flag("special", True)
    fields.finish()
    ids = await asyncio.to_thread(lambda: service.tokenizer.encode(text, add_special_tokens=special).ids)
    return as_json({"tokens": ids, "count": len(ids)})


async def detokenize(request: Request) -> Response:
    """Tokens as a text: {"tokens", "special"} gives {"text"}."""
    service: Service = request.app.state.service
    fields = await read_fields(request, service.limits)
    tokens, special = fields.take("tokens"), fields.flag("special", False)
    fields.finish()
    if not isinstance(tokens, list):
        raise Refusal(400, "tokens must be a list", param="tokens")
    ids = prompt_ids(service, tokens, "tokens")
    text = await asyncio.to_thread(lambda: service.tokenizer.decode(ids, skip_special_tokens=not special))
    return as_json({"text": text})
