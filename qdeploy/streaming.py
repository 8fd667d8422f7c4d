"""Text of tokens as they come: pieces of whole characters that together are what all the tokens decode to.

A token alone has no text: characters may take several (byte-level BPE, the byte tokens of SentencePiece), and decoders
drop the space before a text's first word. So a piece is the difference of two decodings of a short window, which begins
some tokens before what is new. What ends inside of a character waits; so does a run of byte tokens, which SentencePiece
decodes as a whole, to one replacement character per byte if any of it is not UTF-8. Special tokens have no text and do
not end such a run.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_CONTEXT = 8
"""Tokens that are decoded before the first new one."""
_RUN = 64
"""So many byte tokens in a row are not waited for."""
_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")
_INCOMPLETE = "\ufffd"


class TextStream:
    """The text that a model generates after a prompt, piece by piece.

    Args:
        tokenizer: Of the package tokenizers.
        ids: The prompt; its text is not returned.
    """

    def __init__(self, tokenizer: Any, ids: Sequence[int]) -> None:
        self._tokenizer, self._ids, self._emitted = tokenizer, list(ids), len(ids)

    def add(self, token: int) -> str:
        """Takes a token; returns the text that is certain now, which may be empty."""
        self._ids.append(token)
        waiting = len(self._ids) - self._emitted
        if waiting <= _RUN and (self._is_byte(token) or (waiting > 1 and self._adds_nothing())):
            return ""
        text = self._fresh()
        if text.endswith(_INCOMPLETE) and waiting <= _RUN:
            return ""
        self._emitted = len(self._ids)
        return text

    def end(self) -> str:
        """The text that was still waiting."""
        text = self._fresh() if len(self._ids) > self._emitted else ""
        self._emitted = len(self._ids)
        return text

    def _is_byte(self, token: int) -> bool:
        return _BYTE.fullmatch(self._tokenizer.id_to_token(token) or "") is not None

    def _adds_nothing(self) -> bool:
        window = self._ids[max(0, self._emitted - _CONTEXT) :]
        return bool(self._tokenizer.decode(window) == self._tokenizer.decode(window[:-1]))

    def _fresh(self) -> str:
        start = max(0, self._emitted - _CONTEXT)
        known: str = self._tokenizer.decode(self._ids[start : self._emitted])
        whole: str = self._tokenizer.decode(self._ids[start:])
        return whole[len(known) :]
