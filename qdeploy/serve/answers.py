"""Events of a generation gathered into whole answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from qdeploy.serve.generation import Ended, Event, Piece, PromptScores
from qdeploy.serve.scores import Score


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
