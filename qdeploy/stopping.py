"""Texts that end a generation: found across pieces, and never shown, not even in part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Reason = Literal["", "stop", "length", "context"]
"""Why a generation ended: a stop token or text; as many tokens as were asked for; the cache is full."""


class StopTexts:
    """Holds back what may be the beginning of a stop text."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = [text for text in texts if text]
        self._waiting = ""
        self.stopped = False

    def add(self, piece: str) -> str:
        """Takes a piece; returns what can be shown now. `stopped` is set where a stop text was found."""
        text = self._waiting + piece
        places = [place for stop in self._texts if (place := text.find(stop)) >= 0]
        if places:
            self.stopped, self._waiting = True, ""
            return text[: min(places)]
        waiting = max((self._begun(text, stop) for stop in self._texts), default=0)
        self._waiting = text[len(text) - waiting :]
        return text[: len(text) - waiting]

    def end(self) -> str:
        """What was still held back."""
        text, self._waiting = self._waiting, ""
        return text

    @staticmethod
    def _begun(text: str, stop: str) -> int:
        """How many characters at the end of a text are the beginning of a stop text."""
        longest = min(len(text), len(stop) - 1)
        return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
