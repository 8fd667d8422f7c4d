"""Settings of which it is known which ones were looked at: what no importer asked for is refused, never dropped."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TypeVar

from qdeploy.errors import UnsupportedError

Value = TypeVar("Value")


class Consumed(Mapping[str, Value]):
    """A mapping that notes which of its keys were asked for.

    Args:
        settings: What stands in the file.
    """

    def __init__(self, settings: Mapping[str, Value]) -> None:
        self._settings = settings
        self._asked: set[str] = set()

    def __getitem__(self, key: str) -> Value:
        self._asked.add(key)
        return self._settings[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._settings)

    def __len__(self) -> int:
        return len(self._settings)

    def refuse_rest(self, harmless: Mapping[str, Collection[Value]], where: str) -> None:
        """UnsupportedError for a key that nobody asked for, unless it is known to change no number.

        Args:
            harmless: Such keys, and the values with which they are; none: with any.
            where: For errors.
        """
        rest = sorted(
            key
            for key in set(self._settings) - self._asked
            if key not in harmless or (harmless[key] and self._settings[key] not in harmless[key])
        )
        if rest:
            raise UnsupportedError(
                "a setting of an operator that is not read, so that its meaning would be lost",
                where=where,
                found=", ".join(rest),
                allowed=", ".join(sorted(self._asked & set(self._settings))) or "none",
            )
