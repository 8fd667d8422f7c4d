"""`POST /v1/chat/completions`."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from qdeploy.serve.answers import REASONS, Collected, collect, frame, respond, usage
from qdeploy.serve.conversation import checked_messages, conversation_ids
from qdeploy.serve.fields import Fields
from qdeploy.serve.generation import Ended, Generation, Piece
from qdeploy.serve.grammar import schema_grammar, take_response_format
from qdeploy.serve.prompts import Settings, checked_most, take_settings
from qdeploy.serve.refusal import Refusal
from qdeploy.serve.scores import chat_form
from qdeploy.serve.service import Service
from qdeploy.serve.tools import Parsed, Tools, parse_calls, parse_forced, take_tools
from qdeploy.serve.wire import as_json


@dataclass(frozen=True)
class Chat:
    """A request that was judged: what is asked of the scheduler, and how the answer looks."""

    service: Service
    settings: Settings
    tools: Tools
    ids: list[int]
    most: int
    top: int | None
    grammar: Any
    name: str
    created: int

    def generation(self, tell: Any) -> Generation:
        """For the scheduler."""
        return self.settings.generation(self.ids, self.most, tell, top=self.top, grammar=self.grammar)

    def parsed(self, answer: Collected) -> Parsed:
        """An answer's text and the calls in it."""
        if self.tools.forced is not None:
            return parse_forced(answer.text)
        if not self.tools.listed:
            return answer.text, []
        written = self.service.tokenizer.decode(answer.tokens, skip_special_tokens=False)
        content, calls = parse_calls(written, self.service.template)
        return (content, calls) if calls else (answer.text, [])


async def chat_completions(request: Request) -> Response:
    """Answers a conversation, as a whole or as a stream of server-sent events."""
    return await respond(request, _taken, _stream, _whole)


def _taken(service: Service, fields: Fields) -> Chat:
    settings = take_settings(service, fields, "max_completion_tokens", "max_tokens")
    messages = checked_messages(fields.take("messages"))
    tools = take_tools(fields)
    scored = fields.flag("logprobs")
    top = fields.integer("top_logprobs", 0, 0, service.limits.top_logprobs)
    grammar = take_response_format(service, fields)
    variables = fields.object("chat_template_kwargs")
    fields.finish()
    if settings.most == 0:
        raise Refusal(400, "max_tokens must be at least 1", param="max_tokens")
    if tools.forced is not None:
        if grammar is not None:
            raise Refusal(400, "response_format and a required tool exclude each other", param="tool_choice")
        grammar = schema_grammar(service, tools.forced, "tools")
    ids = conversation_ids(service, messages, tools, variables)
    most = checked_most(service, ids, settings.most, "messages")
    name, created = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())
    return Chat(service, settings, tools, ids, most, top if scored else None, grammar, name, created)


async def _whole(chat: Chat) -> Response:
    answers = await collect(chat.service.run(chat.generation), chat.settings.choices)
    choices = []
    for index, answer in enumerate(answers):
        content, calls = chat.parsed(answer)
        message: dict[str, Any] = {"role": "assistant", "content": content if content or not calls else None}
        if calls:
            message["tool_calls"] = [call.as_json() for call in calls]
        scores = None if chat.top is None else chat_form(chat.service.tokenizer, answer.scores)
        reason = "tool_calls" if calls else REASONS[answer.ended.reason]
        choices.append({"index": index, "message": message, "logprobs": scores, "finish_reason": reason})
    ends = [answer.ended for answer in answers]
    body = {**frame(chat, "chat.completion", choices), "usage": usage(len(chat.ids), ends)}
    return as_json({**body, "qdeploy": chat.service.computed(ends[-1].rung)})


async def _stream(chat: Chat) -> AsyncGenerator[dict[str, Any], None]:
    """The chunks; where tools may be called, an answer comes in one, when it is known to be a call or not."""
    kept = [Collected() for _ in range(chat.settings.choices)]
    ends: list[Ended] = []
    begun: set[int] = set()
    async with aclosing(chat.service.run(chat.generation)) as events:
        async for event in events:
            if isinstance(event, Piece | Ended) and event.index not in begun:
                begun.add(event.index)
                yield _chunk(chat, event.index, {"role": "assistant", "content": ""})
            if isinstance(event, Piece):
                kept[event.index].add(event)
                if not chat.tools.listed:
                    scores = None if chat.top is None else chat_form(chat.service.tokenizer, list(event.scores))
                    yield _chunk(chat, event.index, {"content": event.text}, scores=scores)
            elif isinstance(event, Ended):
                ends.append(event)
                kept[event.index].ended = event
                for chunk in _last(chat, event.index, kept[event.index]):
                    yield chunk
    if chat.settings.usage:
        body = {**frame(chat, "chat.completion.chunk", []), "usage": usage(len(chat.ids), ends)}
        yield {**body, "qdeploy": chat.service.computed(ends[-1].rung)}


def _last(chat: Chat, index: int, answer: Collected) -> list[dict[str, Any]]:
    """The chunks that end an answer."""
    chunks, reason = [], REASONS[answer.ended.reason]
    if chat.tools.listed:
        content, calls = chat.parsed(answer)
        delta: dict[str, Any] = {"content": content} if content or not calls else {}
        if calls:
            delta["tool_calls"] = [call.as_json(place) for place, call in enumerate(calls)]
            reason = "tool_calls"
        scores = None if chat.top is None else chat_form(chat.service.tokenizer, answer.scores)
        chunks.append(_chunk(chat, index, delta, scores=scores))
    last = _chunk(chat, index, {}, reason)
    return [*chunks, {**last, "qdeploy": chat.service.computed(answer.ended.rung)}]


def _chunk(
    chat: Chat, index: int, delta: dict[str, Any], reason: str | None = None, scores: dict[str, Any] | None = None
) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "logprobs": scores, "finish_reason": reason}
    return frame(chat, "chat.completion.chunk", [choice])
