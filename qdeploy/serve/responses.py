"""`POST /v1/responses`: texts in, one text out, as an object or as a stream of named events.

An answer is never stored, so `previous_response_id` and `store` are refused: the conversation comes with each request.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from qdeploy.serve.answers import Collected, collect, respond, usage
from qdeploy.serve.conversation import checked_messages, conversation_ids
from qdeploy.serve.fields import Fields, valid_text
from qdeploy.serve.generation import Ended, Generation, Piece
from qdeploy.serve.grammar import take_response_format
from qdeploy.serve.prompts import Settings, checked_most, take_settings
from qdeploy.serve.refusal import Refusal
from qdeploy.serve.service import Service
from qdeploy.serve.tools import Tools
from qdeploy.serve.wire import as_json

_PARTS = ("input_text", "output_text", "text")


@dataclass(frozen=True)
class Wanted:
    """A request that was judged.

    Args:
        repeated: Fields that the answer repeats.
    """

    service: Service
    settings: Settings
    ids: list[int]
    most: int
    grammar: Any
    repeated: dict[str, Any]
    name: str
    message: str
    created: int

    def generation(self, tell: Any) -> Generation:
        """For the scheduler."""
        return self.settings.generation(self.ids, self.most, tell, grammar=self.grammar)

    def body(self, status: str, answer: Collected | None = None) -> dict[str, Any]:
        """The response as it is: in progress, completed, or incomplete."""
        cut = status == "incomplete"
        whole = {
            "id": self.name,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "model": self.settings.model,
            "output": [self.item(status, answer.text)] if answer is not None else [],
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "tool_choice": "none",
            "tools": [],
            "truncation": "disabled",
            "usage": _usage(len(self.ids), answer.ended) if answer is not None else None,
            **self.repeated,
        }
        if answer is not None:
            whole["qdeploy"] = self.service.computed(answer.ended.rung)
        return whole

    def item(self, status: str, text: str | None) -> dict[str, Any]:
        """The message; `text` None: it has begun and holds nothing."""
        content = [] if text is None else [_part(text)]
        return {
            "type": "message",
            "id": self.message,
            "status": status,
            "role": "assistant",
            "content": content,
        }


async def responses(request: Request) -> Response:
    """Answers a text or a conversation."""
    return await respond(request, _taken, _stream, _whole, named=True)


def _taken(service: Service, fields: Fields) -> Wanted:
    settings = take_settings(service, fields, "max_output_tokens")
    if settings.choices != 1:
        raise Refusal(400, "a response has one answer", param="n")
    instructions = fields.text("instructions")
    messages = _messages(fields.take("input"))
    if instructions:
        messages = [{"role": "system", "content": instructions}, *messages]
    grammar, form = _format(service, fields)
    _refuse_the_rest(fields)
    if settings.most == 0:
        raise Refusal(400, "max_output_tokens must be at least 1", param="max_output_tokens")
    ids = conversation_ids(service, checked_messages(messages), Tools(()), {})
    most = checked_most(service, ids, settings.most, "input")
    repeated = {
        "instructions": instructions or None,
        "max_output_tokens": settings.most,
        "temperature": settings.sampling.temperature,
        "top_p": settings.sampling.top_p,
        "text": {"format": form},
    }
    name, message = f"resp_{secrets.token_hex(12)}", f"msg_{secrets.token_hex(12)}"
    return Wanted(service, settings, ids, most, grammar, repeated, name, message, int(time.time()))


def _messages(value: object) -> list[Any]:
    """The messages of `input`: one text, or items of which each is a message."""
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, list):
        raise Refusal(400, "input must be a text or a list of messages", param="input")
    return [_message(item, f"input[{place}]") for place, item in enumerate(value)]


def _message(item: object, where: str) -> dict[str, Any]:
    if not isinstance(item, dict) or item.get("type", "message") != "message":
        kind = item.get("type") if isinstance(item, dict) else type(item).__name__
        raise Refusal(400, f"{where} is no message: {str(kind)[:40]} is not supported", param=where)
    content = item.get("content")
    if isinstance(content, list):
        content = "".join(_text_of(part, f"{where}.content") for part in content)
    for key in item.keys() - {"type", "role", "content", "id", "status"}:
        raise Refusal(400, f"{where}.{str(key)[:40]} is not supported", param=where)
    return {"role": item.get("role"), "content": valid_text(content, f"{where}.content")}


def _text_of(part: object, where: str) -> str:
    if not isinstance(part, dict) or part.get("type") not in _PARTS:
        raise Refusal(400, f"{where} has a part that is no text", param=where)
    return valid_text(part.get("text"), where)


def _format(service: Service, fields: Fields) -> tuple[Any, dict[str, Any]]:
    """The grammar that `text.format` asks for, and the format as it is repeated."""
    text = Fields(dict(fields.object("text")), "text")
    form = dict(text.object("format")) or {"type": "text"}
    text.choice("verbosity", "medium")
    text.finish()
    nested = {key: value for key, value in form.items() if key != "type"}
    wanted = {"type": form.get("type"), "json_schema": nested} if nested else form
    return take_response_format(service, Fields({"response_format": wanted})), form


def _refuse_the_rest(fields: Fields) -> None:
    """Fields of the API that this server does not have are taken where they ask for nothing."""
    for name in ("background", "parallel_tool_calls"):
        if fields.flag(name) and name == "background":
            raise Refusal(400, "answers are not made in the background", param=name)
    fields.choice("truncation", "disabled")
    fields.choice("tool_choice", "auto", "none")
    for name in ("tools", "include"):
        if fields.take(name):
            raise Refusal(400, f"{name} is not supported here", param=name)
    fields.finish()


def _usage(prompt: int, ended: Ended) -> dict[str, Any]:
    counts = usage(prompt, [ended])
    return {
        "input_tokens": counts["prompt_tokens"],
        "input_tokens_details": counts["prompt_tokens_details"],
        "output_tokens": counts["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": counts["total_tokens"],
    }


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _status(answer: Collected) -> str:
    return "completed" if answer.ended.reason == "stop" else "incomplete"


async def _whole(wanted: Wanted) -> Response:
    (answer,) = await collect(wanted.service.run(wanted.generation), 1)
    return as_json(wanted.body(_status(answer), answer))


async def _stream(wanted: Wanted) -> AsyncGenerator[dict[str, Any], None]:
    """The events of one message, numbered."""
    number = 0

    def event(kind: str, **more: Any) -> dict[str, Any]:
        nonlocal number
        number += 1
        return {"type": f"response.{kind}", "sequence_number": number - 1, **more}

    answer, begun = Collected(), False
    place = {"item_id": wanted.message, "output_index": 0, "content_index": 0}
    async with aclosing(wanted.service.run(wanted.generation)) as events:
        async for happened in events:
            if not begun:
                begun = True
                for kind in ("created", "in_progress"):
                    yield event(kind, response=wanted.body("in_progress"))
                yield event("output_item.added", output_index=0, item=wanted.item("in_progress", None))
                yield event("content_part.added", **place, part=_part(""))
            if isinstance(happened, Piece):
                answer.add(happened)
                yield event("output_text.delta", **place, delta=happened.text, logprobs=[])
            elif isinstance(happened, Ended):
                answer.ended = happened
    status = _status(answer)
    yield event("output_text.done", **place, text=answer.text, logprobs=[])
    yield event("content_part.done", **place, part=_part(answer.text))
    yield event("output_item.done", output_index=0, item=wanted.item(status, answer.text))
    yield event(status, response=wanted.body(status, answer))
