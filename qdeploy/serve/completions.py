"""`POST /v1/completions`: texts continued, and with `echo` and `logprobs` judged token by token."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from qdeploy.serve.answers import REASONS, Collected, collect, frame, respond, usage
from qdeploy.serve.fields import Fields
from qdeploy.serve.generation import Ended, Generation, Piece, PromptScores
from qdeploy.serve.grammar import take_response_format
from qdeploy.serve.prompts import Settings, checked_most, prompt_ids, take_settings
from qdeploy.serve.refusal import Refusal
from qdeploy.serve.scores import Score, completion_form
from qdeploy.serve.service import Service
from qdeploy.serve.wire import as_json

_DEFAULT_TOKENS, _MOST_LOGPROBS = 16, 5
_KIND = "text_completion"


@dataclass(frozen=True)
class Completions:
    """A request that was judged, with one entry of `prompts` and `most` per prompt."""

    service: Service
    settings: Settings
    prompts: list[list[int]]
    most: list[int]
    echo: bool
    top: int | None
    grammar: Any
    name: str
    created: int

    def generation(self, place: int, tell: Any) -> Generation:
        """For the scheduler: the answers to one prompt."""
        scored = self.echo and self.top is not None
        ids, most = self.prompts[place], self.most[place]
        return self.settings.generation(ids, most, tell, top=self.top, score_prompt=scored, grammar=self.grammar)

    def prompt_text(self, place: int) -> str:
        """A prompt as text; "" where it is not wanted."""
        return str(self.service.tokenizer.decode(self.prompts[place])) if self.echo else ""


async def completions(request: Request) -> Response:
    """Continues one or more texts, as a whole or as a stream of server-sent events."""
    return await respond(request, _taken, _stream, _whole)


def _taken(service: Service, fields: Fields) -> Completions:
    settings = take_settings(service, fields, "max_tokens")
    prompts = [prompt_ids(service, prompt) for prompt in _listed(service, fields.take("prompt"))]
    echo = fields.flag("echo")
    top = fields.integer("logprobs", -1, 0, _MOST_LOGPROBS)
    if fields.integer("best_of", settings.choices, 1, service.limits.choices) != settings.choices:
        raise Refusal(400, "best_of must equal n", param="best_of")
    if fields.text("suffix"):
        raise Refusal(400, "suffix is not supported", param="suffix")
    grammar = take_response_format(service, fields)
    fields.finish()
    if settings.stream and len(prompts) > 1:
        raise Refusal(400, "a stream takes one prompt", param="prompt")
    asked_for = _DEFAULT_TOKENS if settings.most is None else settings.most
    if asked_for == 0 and not echo:
        raise Refusal(400, "max_tokens must be at least 1 without echo", param="max_tokens")
    most = [checked_most(service, ids, asked_for, "prompt") for ids in prompts]
    name, created = f"cmpl-{secrets.token_hex(12)}", int(time.time())
    return Completions(service, settings, prompts, most, echo, top if top >= 0 else None, grammar, name, created)


def _listed(service: Service, prompt: object) -> list[Any]:
    """One prompt or several, as texts or as tokens."""
    several = isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], str | list)
    prompts: list[Any] = prompt if several and isinstance(prompt, list) else [prompt]
    if len(prompts) > service.limits.texts:
        raise Refusal(400, f"at most {service.limits.texts} prompts", param="prompt")
    return prompts


async def _whole(wanted: Completions) -> Response:
    answers = await asyncio.gather(*(_one(wanted, place) for place in range(len(wanted.prompts))))
    choices, ends = [], list[Ended]()
    for place, (collected, prompt_scores) in enumerate(answers):
        for index, answer in enumerate(collected):
            number = place * wanted.settings.choices + index
            choices.append(_choice(wanted, place, number, answer, prompt_scores))
            ends.append(answer.ended)
    body = {**frame(wanted, _KIND, choices), "usage": usage(sum(map(len, wanted.prompts)), ends)}
    return as_json({**body, "qdeploy": wanted.service.computed(ends[-1].rung)})


async def _one(wanted: Completions, place: int) -> tuple[list[Collected], list[Score]]:
    prompt_scores: list[Score] = []
    events = wanted.service.run(lambda tell: wanted.generation(place, tell))
    return await collect(events, wanted.settings.choices, prompt_scores), prompt_scores


def _choice(
    wanted: Completions, place: int, number: int, answer: Collected, prompt_scores: list[Score]
) -> dict[str, Any]:
    scores = [*prompt_scores, *answer.scores]
    form = None if wanted.top is None else completion_form(wanted.service.tokenizer, scores)
    text = wanted.prompt_text(place) + answer.text
    return {"index": number, "text": text, "logprobs": form, "finish_reason": REASONS[answer.ended.reason]}


async def _stream(wanted: Completions) -> AsyncGenerator[dict[str, Any], None]:
    ends: list[Ended] = []
    offsets = [len(wanted.prompt_text(0))] * wanted.settings.choices
    if wanted.echo:
        for index in range(wanted.settings.choices):
            yield frame(wanted, _KIND, [_delta(index, wanted.prompt_text(0))])
    async with aclosing(wanted.service.run(lambda tell: wanted.generation(0, tell))) as events:
        async for event in events:
            if isinstance(event, Piece):
                form = None
                if wanted.top is not None:
                    form = completion_form(wanted.service.tokenizer, list(event.scores), offsets[event.index])
                offsets[event.index] += len(event.text)
                yield frame(wanted, _KIND, [_delta(event.index, event.text, form)])
            elif isinstance(event, PromptScores):
                form = completion_form(wanted.service.tokenizer, list(event.scores))
                yield frame(wanted, _KIND, [_delta(0, "", form)])
            elif isinstance(event, Ended):
                ends.append(event)
                last = frame(wanted, _KIND, [_delta(event.index, "", None, REASONS[event.reason])])
                yield {**last, "qdeploy": wanted.service.computed(event.rung)}
    if wanted.settings.usage:
        body = {**frame(wanted, _KIND, []), "usage": usage(len(wanted.prompts[0]), ends)}
        yield {**body, "qdeploy": wanted.service.computed(ends[-1].rung)}


def _delta(index: int, text: str, scores: dict[str, Any] | None = None, reason: str | None = None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": scores, "finish_reason": reason}
