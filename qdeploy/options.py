"""Options as dataclass fields: the help, the choices and the JSON of an option stand where the option is declared.

A field that `option` makes is an option of the command line, a keyword argument of `qdeploy.convert` and a key of the
JSON that outputs record. Its default value tells its type: a bool is a switch, an int a number, a tuple may be given
several times, a mapping is given as NAME=NUMBER, and anything else is text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self, TypeVar

from qdeploy.errors import BadArgumentError

T = TypeVar("T")
_KEY = "option"
Arithmetic = Literal["", "wide", "narrow"]


class Option(NamedTuple):
    """What is known of an option.

    Attributes:
        name: Of the field, the keyword argument and the JSON key ("calibrate_method").
        default: The value of an option that the user does not set.
        help: One or two sentences for `--help`.
        metavar: What stands for its value in `--help`; empty: the choices.
        choices: The values that there are; empty: any of its type.
        flag: The name on the command line, where that is another ("form" for `forms`).
        label: What errors call it ("calibration method").
        least: The least number.
        most: The greatest number.
        mapping: A text may also be a mapping, which stands for the file that the text names.
        recorded: Whether the result depends on it, so that outputs say it.
    """

    name: str
    default: object
    help: str
    metavar: str = ""
    choices: tuple[object, ...] = ()
    flag: str = ""
    label: str = ""
    least: int = 0
    most: int = 1 << 31
    mapping: bool = False
    recorded: bool = True

    @property
    def title(self) -> str:
        """What errors call it."""
        return self.label or self.name.replace("_", " ")

    def parsed(self, value: object) -> object:
        """The value as the field holds it: lists become tuples.

        Raises:
            BadArgumentError: It is of another type, or none of the choices.
        """
        if isinstance(self.default, tuple):
            value = self._several(value)
        elif isinstance(self.default, Mapping):
            self._refuse(not _are_numbers(value), value, "a mapping from names to numbers")
        elif isinstance(self.default, bool):
            self._refuse(not isinstance(value, bool), value, "true, false")
        elif isinstance(self.default, int):
            whole = isinstance(value, int) and not isinstance(value, bool) and self.least <= value <= self.most
            self._refuse(not whole, value, f"a whole number, {self.least}..{self.most}")
        elif not (self.mapping and isinstance(value, Mapping)):
            self._refuse(not isinstance(value, str), value, "text")
        wrong = [v for v in (value if isinstance(value, tuple) else (value,)) if self.choices and v not in self.choices]
        self._refuse(bool(wrong), ", ".join(map(str, wrong)), ", ".join(str(c) for c in self.choices if c != ""))
        return value

    def _several(self, value: object) -> tuple[str, ...]:
        values = (value,) if isinstance(value, str) else value
        fine = isinstance(values, list | tuple) and all(isinstance(v, str) for v in values)
        self._refuse(not fine, value, "a list of texts")
        return tuple(values)  # type: ignore[arg-type]

    def _refuse(self, wrong: bool, value: object, allowed: str) -> None:
        if wrong:
            raise BadArgumentError(f"unknown {self.title}", where=self.name, found=value, allowed=allowed)


def _are_numbers(value: object) -> bool:
    """Whether this is a mapping from names to numbers."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        return False
    return all(isinstance(number, int | float) and not isinstance(number, bool) for number in value.values())


def option(
    default: T,
    help: str,
    *,
    metavar: str = "",
    choices: tuple[object, ...] = (),
    flag: str = "",
    label: str = "",
    least: int = 0,
    most: int = 1 << 31,
    mapping: bool = False,
    recorded: bool = True,
) -> T:
    """Declares a dataclass field that is an option; the arguments are the attributes of `Option`."""
    known = Option("", default, help, metavar, choices, flag, label, least, most, mapping, recorded)
    field: Any = (
        dataclasses.field(default_factory=lambda: type(default)(), metadata={_KEY: known})
        if isinstance(default, dict)
        else dataclasses.field(default=default, metadata={_KEY: known})
    )
    declared: T = field
    return declared


def options_of(settings: type[Any]) -> tuple[Option, ...]:
    """The options that a dataclass declares, in order."""
    fields = dataclasses.fields(settings)
    return tuple(f.metadata[_KEY]._replace(name=f.name) for f in fields if _KEY in f.metadata)


def refuse_unknown(settings: Any) -> None:
    """Raises BadArgumentError where the value of an option is not allowed; for `__post_init__`."""
    for known in options_of(type(settings)):
        known.parsed(getattr(settings, known.name))


def requested(settings: Any) -> dict[str, object]:
    """The options of a settings object that differ from their defaults, as JSON values, in order."""
    values = {known.name: (known, getattr(settings, known.name)) for known in options_of(type(settings))}
    return {name: as_json(value) for name, (known, value) in values.items() if value != known.default}


def as_json(value: object) -> object:
    """Tuples as lists and mappings as dicts, down to the leaves."""
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    return [as_json(item) for item in value] if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class TargetOptions:
    """What a caller can ask of a target: each target's own dataclass of options derives from this."""

    @property
    def arithmetic(self) -> Arithmetic:
        """Whether the target computes with integers: "" it takes networks of floats.

        "wide": the network becomes one of integers first. "narrow": the same, with sums of 8 bits.
        """
        return ""

    @property
    def reads_text(self) -> bool:
        """Whether `calibrate` may name a text: weights that nothing else quantizes then become ladders."""
        return False

    @property
    def reads_rows(self) -> bool:
        """Whether the output reads quantized embeddings row by row, so that they may be rounded without a cost."""
        return False

    @classmethod
    def of(cls, options: TargetOptions) -> Self:
        """The options as those of this target; BadArgumentError where they are another target's."""
        if not isinstance(options, cls):
            type_name = f"{type(options).__module__}.{type(options).__name__}"
            raise BadArgumentError("these are the options of another target", found=type_name, allowed=cls.__module__)
        return options


@dataclass(frozen=True)
class SourceOptions:
    """How the source is read.

    Attributes:
        format: The reader's name; empty: the format is recognised.
        trust_links: Follow links that lead outside of the source folder.
        signature: Which network of a file that holds several; empty: the only one.
        allow_nonfinite: Carry weights that are infinite or NaN; they are refused otherwise.
        no_verify: Read a package without comparing its buffers with their checksums.
    """

    format: str = option("", "Read as this format instead of sniffing.", metavar="NAME", recorded=False)
    trust_links: bool = option(False, "Follow links that lead outside of the source.", recorded=False)
    signature: str = option("", "Which network of a file that holds several.", metavar="NAME")
    allow_nonfinite: bool = option(False, "Carry weights that are infinite or NaN.")
    no_verify: bool = option(False, "Do not check the checksums of a package that is read.", recorded=False)

    def __post_init__(self) -> None:
        """Refuses values that are not allowed."""
        refuse_unknown(self)
