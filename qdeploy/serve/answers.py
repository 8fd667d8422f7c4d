"""Events of a generation gathered into whole answers, and what chats and completions have in common."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from qdeploy.serve.body import read_fields
from qdeploy.serve.fields import Fields
from qdeploy.serve.generation import Ended, Event, Piece, PromptScores
from qdeploy.serve.prompts import Settings
from qdeploy.serve.scores import Score
from qdeploy.serve.service import Service
from qdeploy.serve.wire import as_events, while_connected

REASONS = {"stop": "stop", "length": "length", "context": "length"}
"""Why an answer ended, in the words of OpenAI's API."""


class Judged(Protocol):
    """A request that was judged."""

    @property
    def settings(self) -> Settings:
        """What it asks for."""
        ...

    @property
    def name(self) -> str:
        """Of the answer."""
        ...

    @property
    def created(self) -> int:
        """When, in seconds since 1970."""
        ...


Wanted = TypeVar("Wanted", bound=Judged)


async def respond(
    request: Request,
    take: Callable[[Service, Fields], Wanted],
    stream: Callable[[Wanted], AsyncGenerator[dict[str, Any], None]],
    whole: Callable[[Wanted], Coroutine[Any, Any, Response]],
    named: bool = False,
) -> Response:
    """Judges a request in a thread of its own, and answers as a whole or as a stream of server-sent events.

    Args:
        request: As it came.
        take: Judges its fields.
        stream: The events.
        whole: The answer as one object.
        named: Whether events have names, which are their types; such a stream ends without a mark.
    """
    service: Service = request.app.state.service
    fields = await read_fields(request, service.limits)
    wanted = await asyncio.to_thread(take, service, fields)
    if wanted.settings.stream:
        return await as_events(stream(wanted), named)
    return await while_connected(request, whole(wanted))


def frame(wanted: Judged, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
    """What all objects of an answer have in common."""
    common = {"id": wanted.name, "object": kind, "created": wanted.created, "model": wanted.settings.model}
    return {**common, "choices": choices}


@dataclass
class Collected:
    """An answer as far as it has come."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    ended: Ended = field(default_factory=lambda: Ended(0, "", 0, 0, 0, (0, 0)))

    def add(self, piece: Piece) -> None:
        """Takes more of it."""
        self.text += piece.text
        self.tokens += piece.tokens
        self.scores += piece.scores


async def collect(
    events: AsyncIterator[Event], choices: int, prompt_scores: list[Score] | None = None
) -> list[Collected]:
    """All answers of a generation.

    Args:
        events: As they come.
        choices: How many answers.
        prompt_scores: Takes the scores of the prompt, where there are any.
    """
    answers = [Collected() for _ in range(choices)]
    async for event in events:
        if isinstance(event, Piece):
            answers[event.index].add(event)
        elif isinstance(event, Ended):
            answers[event.index].ended = event
        elif isinstance(event, PromptScores) and prompt_scores is not None:
            prompt_scores += event.scores
    return answers


def usage(prompt: int, ends: Sequence[Ended]) -> dict[str, Any]:
    """Counts of tokens.

    Args:
        prompt: Tokens of the prompts.
        ends: Of all answers.
    """
    generated = sum(end.tokens for end in ends)
    reused = max((end.reused for end in ends if end.index == 0), default=0)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": reused},
    }
