"""Scores of pairs of texts by a cross-encoder: how well a text answers a query."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from qdeploy.errors import BadArgumentError, UnsupportedError

if TYPE_CHECKING:
    from qdeploy.native.runtime import Float32, Runtime

Pair = tuple[list[int], list[int]]
"""The tokens of two texts, and which of the two each belongs to."""


def pair_tokens(model: Runtime, query: str, text: str) -> Pair:
    """The tokens of a pair, as the model's tokenizer joins them.

    Raises:
        BadArgumentError: They are more than the model takes.
    """
    model.tokenizer.no_padding()
    model.tokenizer.no_truncation()
    encoded = model.tokenizer.encode(query, text)
    if len(encoded.ids) > model.context:
        raise BadArgumentError(
            "the query and a text are too long together",
            found=f"{len(encoded.ids)} tokens",
            allowed=f"{model.context} tokens",
        )
    return encoded.ids, encoded.type_ids


def pair_score(model: Runtime, pair: Pair) -> float:
    """The score of one pair, as the classifier gives it.

    Raises:
        UnsupportedError: The model gives no single score of a sequence.
    """
    scores = model.run(*pair).get("logits") if model.encoder else None
    if scores is None or scores.shape != (1, 1):
        raise UnsupportedError(
            "the model does not score pairs of texts",
            where=model.path,
            found=", ".join(model.outputs) if model.encoder else "a decoder",
            allowed="a classifier of sequences with one label",
            todo="Convert a cross-encoder, such as a reranker.",
        )
    return float(scores[0, 0])


def rank(model: Runtime, query: str, texts: Sequence[str]) -> Float32:
    """The score of each text for a query, float32 [texts], as the classifier gives it: without a sigmoid.

    Args:
        model: A cross-encoder: a classifier of sequences with one label.
        query: What is looked for.
        texts: What may answer it.

    Raises:
        UnsupportedError: The model scores no pairs.
        BadArgumentError: A pair is longer than the model's context.
    """
    return np.array([pair_score(model, pair_tokens(model, query, text)) for text in texts], np.float32)
