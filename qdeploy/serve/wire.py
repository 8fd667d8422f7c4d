"""Answers on the wire: JSON, server-sent events, and the watch over clients that go away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from qdeploy.serve.refusal import refusal_of


def as_json(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON answer."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return Response(text.encode(errors="replace"), status, headers, "application/json")


async def as_events(chunks: AsyncGenerator[dict[str, Any], None], named: bool = False) -> Response:
    """A stream of server-sent events; what goes wrong before the first is an ordinary answer.

    Args:
        chunks: Each one an event's JSON. An error later on is an event with "error", and the stream ends.
        named: Whether an event's name is its "type", and no mark ends the stream.
    """
    first = await anext(chunks, None)

    async def lines() -> AsyncIterator[bytes]:
        try:
            if first is not None:
                yield _event(first, named)
            async for chunk in chunks:
                yield _event(chunk, named)
        except Exception as error:  # the status is sent: the client learns of it by an event
            failed = refusal_of(error).body()
            yield _event({"type": "error", **failed["error"]} if named else failed, named)
            return
        finally:
            await chunks.aclose()
        if not named:
            yield b"data: [DONE]\n\n"

    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(lines(), media_type="text/event-stream", headers=headers)


def _event(value: dict[str, Any], named: bool) -> bytes:
    head = f"event: {value['type']}\n" if named else ""
    return f"{head}data: {json.dumps(value, ensure_ascii=False, allow_nan=False)}\n\n".encode(errors="replace")


class GoneError(Exception):
    """The client closed its connection."""


async def while_connected(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """Awaits an answer, and gives it up when the client goes away."""
    answer = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise GoneError
        return answer.result()
    finally:
        answer.cancel()
        gone.cancel()
        await asyncio.gather(answer, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
