"""What a format is: how surely it recognises a checkpoint, how it reads one, and what its checkpoints look like.

A format is a module (or any object) with the members of `Format`; one whose source files can be written back has those
of `Writer` as well. Its row says what a checkpoint must look like before the module is imported at all.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from qdeploy.catalog.rows import Row
from qdeploy.errors import BadArgumentError

if TYPE_CHECKING:
    from qdeploy.contracts.clues import Clues
    from qdeploy.ir.model import Model
    from qdeploy.ir.tensor import Source
    from qdeploy.store.codec import Codec
    from qdeploy.store.folder import Folder


class Sniff(NamedTuple):
    """A format's judgement of a folder: 0 (not mine) to 100 (declared to be mine), and the reason in a few words."""

    score: int
    reason: str = ""


NOT_MINE = Sniff(0)


@runtime_checkable
class Format(Protocol):
    """A reader of checkpoints."""

    @property
    def NAME(self) -> str:  # noqa: N802
        """As in `--format`."""
        ...

    @property
    def TITLE(self) -> str:  # noqa: N802
        """One line about it."""
        ...

    @property
    def WRITES(self) -> bool:  # noqa: N802
        """Whether source files can be written back from its tensors: then it is a `Writer`."""
        ...

    def sniff(self, folder: Folder) -> Sniff:
        """How surely this folder or file is of this format, and why."""
        ...

    def read(self, folder: Folder) -> Model:
        """Tensors by their source names; nothing large is read yet."""
        ...


@runtime_checkable
class Writer(Format, Protocol):
    """A format whose source files can be written again from the tensors, byte for byte."""

    def codecs(self, source: Source) -> tuple[Codec, ...]:
        """How each stored tensor of a source is made of the tensor's buffers."""
        ...


class Looks(NamedTuple):
    """Conditions that a checkpoint must all meet; an empty condition is always met.

    Attributes:
        magic: A file that is named itself begins with one of these.
        suffixes: The file's name, or the name of a file in the folder, ends with one of these.
        files: A file of one of these names is in the folder, or beside the file that is named itself, or is that file.
        without: The folder holds no file of these names; a file that is named itself may have them beside it.
        methods: `quant_method` of the configuration is one of these; "": it has no such field.
        keys: config.json has all of these keys.
        tensors: Regular expression that is found in the text that names the tensors: the index, or the header of the
            first safetensors file.
    """

    magic: tuple[bytes, ...] = ()
    suffixes: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    tensors: str = ""

    def refuse_wrong(self, name: str) -> None:
        """Raises BadArgumentError for a condition of a wrong type, and for a pattern that is none."""
        for field, value in self._asdict().items():
            kind = bytes if field == "magic" else str
            if field == "tensors":
                continue
            if not isinstance(value, tuple) or not all(isinstance(item, kind) for item in value):
                raise BadArgumentError(
                    f"a condition of {name} has a wrong type",
                    where=field,
                    found=repr(value),
                    allowed=f"a tuple of {kind.__name__}",
                )
        try:
            re.compile(self.tensors.encode())
        except (re.error, AttributeError) as error:
            raise BadArgumentError(
                f"a condition of {name} is not a regular expression: {error}", where="tensors", found=repr(self.tensors)
            ) from error

    def fit(self, clues: Clues) -> bool:
        """Whether a checkpoint meets all of the conditions; the cheap ones are looked at first."""
        return (
            (not self.magic or clues.head.startswith(self.magic))
            and (not self.suffixes or any(name.endswith(self.suffixes) for name in clues.names))
            and (not self.files or any(clues.has(name) for name in self.files))
            and (clues.folder.only != "" or not any(clues.has(name) for name in self.without))
            and (not self.methods or clues.method in self.methods)
            and (not self.keys or set(self.keys) <= set(clues.config))
            and (not self.tensors or re.search(self.tensors.encode(), clues.tensor_names) is not None)
        )


@dataclass(frozen=True)
class FormatRow(Row):
    """A format by name.

    Attributes:
        looks: What its checkpoints look like: one of these fits. Without any, it is asked about every checkpoint.
        tested: Against what it was tested: "library" (files, numbers and logits of the format's own library),
            "published layout" (files made from the text of the layout) or "" where nothing is said.
    """

    looks: tuple[Looks, ...] = ()
    tested: str = ""

    def __post_init__(self) -> None:
        """Refuses conditions that mean something else than they seem to: a text in the place of several texts."""
        if not isinstance(self.looks, tuple) or not all(isinstance(looks, Looks) for looks in self.looks):
            raise BadArgumentError(f"what {self.name} looks like is not a tuple of Looks", found=self.looks)
        for looks in self.looks:
            looks.refuse_wrong(self.name)

    def load(self) -> Format:
        """The format; UnsupportedError where it cannot be imported or is not a format."""
        loaded = self.resolved().loaded()
        if not isinstance(loaded, Format):
            raise self.refused(loaded, "qdeploy.contracts.formats.Format")
        return loaded

    def may_be(self, clues: Clues) -> bool:
        """Whether a checkpoint could be of this format, judged without importing it."""
        return not self.looks or any(looks.fit(clues) for looks in self.looks)
