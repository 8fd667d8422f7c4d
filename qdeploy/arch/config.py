"""Reading config.json field by field: every value is checked, and every error names its field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qdeploy.errors import BadFileError, UnsupportedError

LARGEST = 1 << 31
"""No extent of a network is larger; what claims to be is damaged."""


class Config:
    """An untrusted JSON object.

    Attributes:
        fields: The object.
        where: How errors call it ("config.json", "config.json: rope_scaling").
        read: The names of the fields that have been read.
    """

    def __init__(self, fields: Mapping[str, Any], where: str = "config.json") -> None:
        self.fields, self.where = fields, where
        self.read: set[str] = set()

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        self.read.add(name)
        return self.fields.get(name) is not None

    def size(self, name: str, default: int | None = None) -> int:
        """A positive integer; BadFileError where it is missing without a default, or is something else."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < LARGEST:
            raise self._wrong(name, "a positive integer")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number; BadFileError as for `size`."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e30:
            raise self._wrong(name, "a number")
        return float(value)

    def positive(self, name: str, default: float | None = None) -> float:
        """A number above zero; BadFileError as for `size`."""
        value = self.number(name, default)
        if value <= 0:
            raise self._wrong(name, "a number above 0")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """A string."""
        value = self._value(name, default)
        if not isinstance(value, str):
            raise self._wrong(name, "a string")
        return value

    def entries(self, name: str, length: int, kind: type | tuple[type, ...]) -> list[Any]:
        """A list of `length` entries of a kind."""
        value = self._value(name, None)
        if not isinstance(value, list) or len(value) != length or not all(isinstance(v, kind) for v in value):
            raise self._wrong(name, f"a list of {length} entries")
        return value

    def sizes(self, name: str, length: int) -> list[int]:
        """A list of `length` positive integers; BadFileError as for `size`."""
        value = self.entries(name, length, int)
        if not all(1 <= entry < LARGEST and not isinstance(entry, bool) for entry in value):
            raise self._wrong(name, f"{length} positive integers")
        return value

    @property
    def class_name(self) -> str:
        """The class that `architectures` names first; "" where it names none."""
        named = self.fields.get("architectures") or []
        return str(named[0]) if isinstance(named, list) and named else ""

    def choose(self, name: str, table: Mapping[str, str], default: str) -> str:
        """The table's entry for a string field; UnsupportedError for a value that the table does not have."""
        value = self.text(name, default)
        if value not in table:
            raise UnsupportedError(
                "an unsupported value in the configuration",
                where=f"{self.where}: {name}",
                found=value,
                allowed=", ".join(table),
            )
        return table[value]

    def refuse(self, neutral: Mapping[str, tuple[Any, ...]]) -> None:
        """Refuses fields that change the arithmetic: each may be absent, null, or one of its neutral values."""
        for name, values in neutral.items():
            setting = self.fields.get(name)
            if setting is not None and setting not in values:
                raise UnsupportedError(
                    "an unsupported field in the configuration",
                    where=f"{self.where}: {name}",
                    found=setting,
                    allowed=" or ".join(["absent", *map(str, values)]),
                )

    def contradiction(self, names: str, found: object, allowed: str) -> BadFileError:
        """An error for fields that do not fit each other."""
        return BadFileError(
            "the configuration contradicts itself", where=f"{self.where}: {names}", found=found, allowed=allowed
        )

    def _value(self, name: str, default: object) -> Any:
        self.read.add(name)
        value = self.fields.get(name)
        if value is None and default is None:
            raise BadFileError("a field of the configuration is missing", where=f"{self.where}: {name}")
        return default if value is None else value

    def _wrong(self, name: str, allowed: str) -> BadFileError:
        return BadFileError(
            "a field of the configuration has a wrong value",
            where=f"{self.where}: {name}",
            found=self.fields.get(name),
            allowed=allowed,
        )
