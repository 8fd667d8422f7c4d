"""From a request's fields to a generation: settings, limits, and the prompt as tokens."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qdeploy.serve.fields import Fields, valid_text
from qdeploy.serve.generation import Event, Generation
from qdeploy.serve.refusal import Refusal
from qdeploy.serve.sampling import Sampling
from qdeploy.serve.service import Service


@dataclass(frozen=True)
class Settings:
    """What chats and completions have in common.

    Args:
        most: Tokens of an answer at most; None: the limit of the server.
        usage: Whether a stream ends with counts of tokens.
    """

    model: str
    choices: int
    stops: tuple[str, ...]
    sampling: Sampling
    stream: bool
    usage: bool
    deadline: float
    most: int | None = None

    def generation(self, ids: list[int], most: int, tell: Callable[[Event], None], **more: Any) -> Generation:
        """For the scheduler: the answers to one prompt of at most so many tokens; `more` as for `Generation`."""
        return Generation(
            ids=ids,
            most=most,
            tell=tell,
            deadline=self.deadline,
            choices=self.choices,
            sampling=self.sampling,
            stops=self.stops,
            **more,
        )


def take_settings(service: Service, fields: Fields, *names_of_most: str) -> Settings:
    """Takes the fields of sampling and delivery out of a request.

    Args:
        service: Whose limits hold.
        fields: Of the request.
        names_of_most: Fields that may say how many tokens an answer has at most, the first one first.
    """
    limits = service.limits
    model = fields.text("model")
    service.check_name(model)
    counts = [fields.integer(name, -1, 0, 1 << 31) for name in names_of_most]
    most = next((count for count in counts if count >= 0), None)
    stream = fields.flag("stream")
    usage = Fields(fields.object("stream_options"), "stream_options")
    include_usage = usage.flag("include_usage")
    usage.flag("include_obfuscation")
    usage.finish()
    fields.choice("service_tier", "auto", "default")
    if fields.flag("store"):
        raise Refusal(400, "answers are not stored", param="store")
    return Settings(
        model=service.name,
        choices=fields.integer("n", 1, 1, limits.choices),
        stops=fields.texts("stop", limits.stops, limits.stop_characters),
        sampling=_sampling(service, fields),
        stream=stream,
        usage=include_usage,
        deadline=time.monotonic() + limits.seconds,
        most=most,
    )


def _sampling(service: Service, fields: Fields) -> Sampling:
    return Sampling(
        temperature=fields.number("temperature", 1.0, 0, 100),
        top_k=fields.integer("top_k", 0, 0, 1 << 30),
        top_p=fields.number("top_p", 1.0, 1e-6, 1),
        min_p=fields.number("min_p", 0.0, 0, 1),
        repetition_penalty=fields.number("repetition_penalty", 1.0, 1e-3, 1e3),
        frequency_penalty=fields.number("frequency_penalty", 0.0, -2, 2),
        presence_penalty=fields.number("presence_penalty", 0.0, -2, 2),
        bias=_bias(service, fields),
        seed=fields.integer("seed", secrets.randbits(62), -(1 << 63), (1 << 63) - 1) % (1 << 64),
    )


def _bias(service: Service, fields: Fields) -> dict[int, float]:
    entries = fields.object("logit_bias")
    if len(entries) > service.limits.biases:
        raise Refusal(400, f"logit_bias has at most {service.limits.biases} entries", param="logit_bias")
    biases = {}
    for key, value in entries.items():
        known = key.isdecimal() and len(key) < 10 and int(key) < service.model.vocab
        number = isinstance(value, int | float) and not isinstance(value, bool) and -100 <= value <= 100
        if not known or not number:
            raise Refusal(400, "logit_bias maps tokens to numbers from -100 to 100", param="logit_bias")
        biases[int(key)] = float(value)
    return biases


def prompt_ids(service: Service, prompt: object, name: str = "prompt") -> list[int]:
    """One prompt as tokens: a text, or the tokens themselves."""
    if isinstance(prompt, list):
        vocab = service.model.vocab
        if not all(isinstance(t, int) and not isinstance(t, bool) and 0 <= t < vocab for t in prompt):
            raise Refusal(400, f"{name} has tokens outside of the vocabulary of {vocab}", param=name)
        return [int(token) for token in prompt]
    ids: list[int] = service.tokenizer.encode(valid_text(prompt, name)).ids
    return ids


def checked_most(service: Service, ids: list[int], most: int | None, name: str) -> int:
    """How many tokens an answer may have behind a prompt; refuses a prompt that fills the context."""
    room = service.context - len(ids)
    if not ids:
        raise Refusal(400, f"{name} has no tokens", param=name)
    if room < 0 or (room == 0 and most != 0):
        text = f"{name} has {len(ids)} tokens, and the context is {service.context}"
        raise Refusal(400, text, param=name, code="context_length_exceeded")
    return min(room, service.limits.answer_tokens if most is None else most)
