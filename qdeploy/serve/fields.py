"""Fields of a request: each is taken by its name and judged once, and one that nobody takes is refused by its name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from qdeploy.errors import printable
from qdeploy.serve.refusal import Refusal

_WITHOUT_EFFECT = ("user", "metadata", "safety_identifier", "prompt_cache_key")
"""What names the caller, and changes no answer."""


class Fields:
    """The JSON object of a request.

    Args:
        body: As it was parsed.
    """

    def __init__(self, body: Any, where: str = "") -> None:
        if not isinstance(body, dict):
            raise Refusal(400, f"{where or 'the body'} must be a JSON object")
        self._left: dict[str, Any] = {name: value for name, value in body.items() if value is not None}
        self._where = f"{where}." if where else ""

    def take(self, name: str) -> Any:
        """A field as it came; None where there is none."""
        return self._left.pop(name, None)

    def finish(self) -> None:
        """Refuses what was not taken."""
        for name in _WITHOUT_EFFECT:
            self._left.pop(name, None)
        for name in self._left:
            raise self._wrong(name, "is not supported")

    def number(self, name: str, default: float, least: float, most: float) -> float:
        """A finite number within bounds."""
        value = self.take(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise self._wrong(name, f"must be a number from {least:g} to {most:g}")
        return float(value)

    def integer(self, name: str, default: int, least: int, most: int) -> int:
        """An integer within bounds."""
        value = self.take(name)
        if value is None:
            return default
        if isinstance(value, float) and value.is_integer() and math.isfinite(value):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self._wrong(name, f"must be an integer from {least} to {most}")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false."""
        value = self.take(name)
        if value is not None and not isinstance(value, bool):
            raise self._wrong(name, "must be true or false")
        return default if value is None else bool(value)

    def text(self, name: str, default: str = "") -> str:
        """A string that is valid Unicode."""
        value = self.take(name)
        if value is None:
            return default
        return valid_text(value, self._where + name)

    def choice(self, name: str, *allowed: str) -> str:
        """One of some words; the first is the default."""
        value = self.take(name)
        if value is not None and value not in allowed:
            raise self._wrong(name, f"must be one of: {', '.join(allowed)}")
        return allowed[0] if value is None else str(value)

    def texts(self, name: str, most: int, characters: int) -> tuple[str, ...]:
        """One string or a list of some, none of them empty."""
        value = self.take(name)
        items = [value] if isinstance(value, str) else [] if value is None else value
        if not isinstance(items, list) or len(items) > most:
            raise self._wrong(name, f"must be a string or a list of at most {most}")
        for item in items:
            if not valid_text(item, self._where + name) or len(item) > characters:
                raise self._wrong(name, f"must hold texts of 1 to {characters} characters")
        return tuple(items)

    def object(self, name: str) -> Mapping[str, Any]:
        """A JSON object; empty where there is none."""
        value = self.take(name)
        if value is not None and not isinstance(value, dict):
            raise self._wrong(name, "must be an object")
        return value or {}

    def _wrong(self, name: str, sentence: str) -> Refusal:
        full = printable(self._where + name, 80)
        return Refusal(400, f"{full} {sentence}", param=full)


def valid_text(value: object, name: str) -> str:
    """A string without half surrogate pairs, which JSON's escapes can write and no tokenizer takes."""
    if not isinstance(value, str):
        raise Refusal(400, f"{name} must be a string", param=name)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Refusal(400, f"{name} holds half of a surrogate pair", param=name) from None
    return value
