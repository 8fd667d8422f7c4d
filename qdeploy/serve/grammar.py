"""Answers that are JSON of a schema: the tokens that may come next, by llguidance, and the fields that ask for it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from qdeploy.errors import BadArgumentError
from qdeploy.extras import require
from qdeploy.serve.fields import Fields
from qdeploy.serve.generation import Grammar
from qdeploy.serve.refusal import Refusal
from qdeploy.serve.service import Service

_FUEL, _SYMBOLS, _STATES = 500_000, 50_000, 50_000
"""Work for building a schema's grammar, its symbols, and the states of its lexer: what goes beyond is refused."""

_MOST = {"allOf": 8, "pattern": 64, "patternProperties": 16}
"""Entries of a schema under these words: what they ask for together grows with products of automata."""


class SchemaGrammar:
    """One answer's place in a grammar.

    Args:
        matcher: Of llguidance, at the beginning.
        vocab: Tokens of the model.
    """

    def __init__(self, matcher: Any, vocab: int) -> None:
        self._matcher, self._words = matcher, -(-vocab // 32)

    def mask(self) -> npt.NDArray[np.uint32]:
        """uint32 words whose bits allow tokens."""
        words = np.frombuffer(self._matcher.compute_bitmask(), np.uint32)[: self._words]  # it is padded
        if self._matcher.is_error():
            raise BadArgumentError("the JSON schema is too complex to follow", found=_first_line(self._matcher))
        return words

    def take(self, token: int) -> None:
        """The token that came."""
        self._matcher.consume_token(token)

    @property
    def complete(self) -> bool:
        """Whether the JSON is complete, and nothing may follow."""
        return bool(self._matcher.is_stopped())


def take_response_format(service: Service, fields: Fields) -> Callable[[], Grammar] | None:
    """What `response_format` asks for; None for text."""
    wanted = fields.object("response_format")
    if not wanted:
        return None
    choice = Fields(dict(wanted), "response_format")
    kind = choice.choice("type", "text", "json_object", "json_schema")
    schema: Any = {"type": "object"}
    if kind == "json_schema":
        named = Fields(choice.take("json_schema"), "response_format.json_schema")
        named.text("name")
        named.text("description")
        named.flag("strict")
        schema = named.take("schema")
        named.finish()
    choice.finish()
    return None if kind == "text" else schema_grammar(service, schema, "response_format")


def schema_grammar(service: Service, schema: object, name: str) -> Callable[[], Grammar]:
    """What makes the grammar of a schema, once per answer.

    Args:
        service: Whose vocabulary and limits hold.
        schema: A JSON schema.
        name: The field that it came in.

    Raises:
        Refusal: The schema is none, too large, or too complex.
    """
    if not isinstance(schema, Mapping):
        raise Refusal(400, f"{name} must have a schema that is an object", param=name)
    text = json.dumps(schema)
    if len(text) > service.limits.schema_bytes:
        raise Refusal(400, f"the schema is larger than {service.limits.schema_bytes} bytes", param=name)
    for word, count in _counts(schema).items():
        if count > _MOST[word]:
            raise Refusal(400, f"the schema has more than {_MOST[word]} entries under {word}", param=name)
    require("llguidance", purpose="an answer by a JSON schema")
    from llguidance import LLMatcher

    try:
        grammar = LLMatcher.grammar_from_json_schema(text, overrides={"whitespace_flexible": False})
    except ValueError as error:
        raise Refusal(400, f"not a JSON schema: {error}"[:400], param=name) from None

    def make() -> SchemaGrammar:
        matcher = LLMatcher(service.grammar_tokenizer, grammar, log_level=0, limits=_limits())
        if matcher.is_error():
            raise Refusal(400, f"a JSON schema that cannot be followed: {_first_line(matcher)}", param=name)
        return SchemaGrammar(matcher, service.model.vocab)

    make()
    return make


def _counts(schema: object) -> Counter[str]:
    """How many entries a schema has under each word of `_MOST`."""
    counts: Counter[str] = Counter()
    left = [schema]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            for word, inside in value.items():
                if word in _MOST:
                    counts[word] += len(inside) if isinstance(inside, list | dict) else 1
            left += value.values()
        elif isinstance(value, list):
            left += value
    return counts


def _limits() -> Any:
    from llguidance import LLParserLimits

    return LLParserLimits(
        initial_lexer_fuel=_FUEL, max_grammar_size=_SYMBOLS, max_lexer_states=_STATES, verbose_errors=False
    )


def _first_line(matcher: Any) -> str:
    return str(matcher.get_error()).strip().split("\n", 1)[0][:300]
