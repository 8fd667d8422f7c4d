"""The body of a request: bounded in bytes and in time, UTF-8, and JSON that is not too deep."""

from __future__ import annotations

import asyncio

from starlette.requests import Request

from qdeploy.errors import BadFileError
from qdeploy.serve.fields import Fields
from qdeploy.serve.limits import Limits
from qdeploy.serve.refusal import Refusal
from qdeploy.store.folder import parse_json

_CLOSE = {"Connection": "close"}
_THROWN_AWAY = 64 << 20
"""Bytes of a body that is too large that are still read."""


async def read_fields(request: Request, limits: Limits) -> Fields:
    """The JSON object that a request carries.

    Raises:
        Refusal: 413 for a body that is too large, 408 for one that does not come, 400 for one that is not JSON.
    """
    data = bytearray()
    try:
        size = await asyncio.wait_for(_read(request, limits, data), limits.body_seconds)
    except TimeoutError:
        raise Refusal(408, "the body did not come in time", headers=_CLOSE) from None
    if size > limits.body_bytes:
        raise Refusal(413, f"the body is larger than {limits.body_bytes} bytes", headers=_CLOSE)
    try:
        return Fields(parse_json(bytes(data), "the body"))
    except BadFileError as error:
        raise Refusal(400, error.what, code="json") from None
    except RecursionError:
        raise Refusal(400, "JSON is nested too deeply", code="json") from None


async def _read(request: Request, limits: Limits, data: bytearray) -> int:
    """Reads into `data` what is allowed; returns how many bytes came.

    What is beyond is thrown away as it comes, up to a bound: a client that is still sending would not read the refusal.
    """
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= limits.body_bytes:
            data += chunk
        elif size > _THROWN_AWAY:
            break
    return size
