"""Regular expressions that a file brings, matched under a bound of time and size.

A short expression with nested repeats can take longer than the age of the universe on a short name, or all memory to
compile. So expressions are bounded in length and in what their counted repeats multiply to, and every match has a time
after which it is an error (the package `regex` stops it).
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable

from qdeploy.errors import BadFileError

LENGTH, REPEATS = 1000, 1000
SECONDS, TOTAL = 0.2, 5.0
NO_EXPRESSION = "a pattern is no regular expression"
_COUNTED = re.compile(r"\{\s*(\d*)\s*(?:,\s*(\d*)\s*)?\}")


class Pattern:
    """A regular expression of a file.

    Args:
        text: In the syntax of Python's `re`.
        where: The field that holds it, for errors.

    Raises:
        BadFileError: It is none, or beyond the bounds.
    """

    def __init__(self, text: str, where: str) -> None:
        import regex  # a tenth of the start of a program, and few files bring an expression

        self.text, self.where = text, where
        counts = [int((high or low or "1")[:9]) for low, high in _COUNTED.findall(text)]
        if len(text) > LENGTH or math.prod(max(1, count) for count in counts) > REPEATS:
            raise BadFileError(
                "a regular expression is too large",
                where=where,
                found=text,
                allowed=f"{LENGTH} characters, and repeats that multiply to at most {REPEATS}",
            )
        self._left = TOTAL
        try:
            self._compiled = regex.compile(text)
        except (regex.error, OverflowError, RecursionError, ValueError) as error:
            raise BadFileError(NO_EXPRESSION, where=where, found=text) from error

    def match(self, name: str) -> bool:
        """Whether a name begins with a match; BadFileError where that takes too long to find out."""
        return self._bounded(self._compiled.match, name)

    def search(self, name: str) -> bool:
        """Whether a match is anywhere in a name; BadFileError as for `match`."""
        return self._bounded(self._compiled.search, name)

    def _bounded(self, find: Callable[..., object], name: str) -> bool:
        start = time.monotonic()
        try:
            matches = find(name, timeout=min(SECONDS, self._left)) is not None
        except TimeoutError as error:
            raise BadFileError(
                "a regular expression takes too long",
                where=self.where,
                found=self.text,
                allowed=f"{SECONDS:g} seconds for one name, {TOTAL:g} for all",
            ) from error
        self._left = max(self._left - (time.monotonic() - start), 1e-3)
        return matches
