"""Log-probabilities of tokens: from the logits as the model gave them, before temperature and penalties."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Score:
    """A token, and what the model thought of it.

    Args:
        token: Its number.
        logprob: Natural logarithm of its probability; None for a text's first token, before which nothing stands.
        top: The likeliest tokens in its place with theirs, best first.
    """

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


def score(logits: npt.NDArray[np.float32], token: int, top: int) -> Score:
    """The score of a token.

    Args:
        logits: float32 [vocab], of its place.
        token: The token that stands there.
        top: How many alternatives.
    """
    wide = logits.astype(np.float64)
    best = wide.max()
    logprobs = wide - best - np.log(np.exp(wide - best).sum())
    top = min(top, logits.size)
    likely = np.argpartition(-logprobs, top - 1)[:top] if top else np.empty(0, np.int64)
    likely = likely[np.lexsort((likely, -logprobs[likely]))]
    return Score(token, float(logprobs[token]), tuple((int(t), float(logprobs[t])) for t in likely))


def token_text(tokenizer: Any, token: int) -> str:
    """The text of a token alone, special ones included."""
    return str(tokenizer.decode([token], skip_special_tokens=False))


def chat_form(tokenizer: Any, scores: list[Score]) -> dict[str, Any]:
    """`logprobs` of a chat completion."""

    def entry(token: int, logprob: float | None) -> dict[str, Any]:
        text = token_text(tokenizer, token)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    content = [
        {**entry(s.token, s.logprob), "top_logprobs": [entry(token, value) for token, value in s.top]} for s in scores
    ]
    return {"content": content, "refusal": None}


def completion_form(tokenizer: Any, scores: list[Score], offset: int = 0) -> dict[str, Any]:
    """`logprobs` of a completion; texts begin `offset` characters into it."""
    texts = [token_text(tokenizer, s.token) for s in scores]
    ends = list(accumulate(map(len, texts), initial=offset))
    tops = [{token_text(tokenizer, t): value for t, value in s.top} if s.logprob is not None else None for s in scores]
    return {
        "tokens": texts,
        "token_logprobs": [s.logprob for s in scores],
        "top_logprobs": tops,
        "text_offset": ends[:-1],
    }
