"""What a client may ask for: every bound of the server in one place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds of one server.

    Args:
        body_bytes: Of a request.
        body_seconds: Within which a body must have come.
        head_seconds: Within which a connection must have sent a whole request line with its headers.
        requests: Waiting and running at once; the next is told to come again (429).
        sequences: Running at once.
        choices: `n` of a request.
        answer_tokens: Of an answer that names no limit of its own.
        stops: Stop texts of a request.
        stop_characters: Of one stop text.
        top_logprobs: Alternatives per token.
        biases: Entries of `logit_bias`.
        texts: Prompts or texts to embed of a request.
        schema_bytes: Of a JSON schema, as JSON.
        seconds: From a request's arrival to the end of its answer.
    """

    body_bytes: int = 1 << 20
    body_seconds: float = 30.0
    head_seconds: float = 15.0
    requests: int = 64
    sequences: int = 16
    choices: int = 8
    answer_tokens: int = 1024
    stops: int = 16
    stop_characters: int = 256
    top_logprobs: int = 20
    biases: int = 1024
    texts: int = 128
    schema_bytes: int = 1 << 16
    seconds: float = 600.0
