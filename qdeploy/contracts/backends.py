"""What a backend is: it writes a model for a target, checks what it wrote, and holds it against its source.

What only some backends can do is a part of its own, which the backend declares: `file`, `integers`, `memory`, `layers`,
`speed` and `text` are the part, or None. A backend may derive from `Backend`, and then says only what it has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from qdeploy.catalog.rows import Row as RegistryRow
from qdeploy.errors import UnsupportedError
from qdeploy.options import TargetOptions

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from qdeploy.contracts.results import CheckResult, Lowered, Row, Timing
    from qdeploy.elastic.pieces import Piece
    from qdeploy.integer.layer_shapes import LayerShape
    from qdeploy.ir.model import Model
    from qdeploy.progress import Progress

Level = Literal["auto", "nodes", "full", "none"]
"""How much of an output is run: one node of each form, the whole model too, by its size, or nothing."""
LEVELS: tuple[Level, ...] = ("auto", "nodes", "full", "none")
Widths = tuple[int, int]
"""Bits of weights and of activations."""


class SingleFile(Protocol):
    """The output is one file rather than a folder, so it says itself what a folder's report would say."""

    @property
    def name(self) -> str:
        """The file's name while it is made; then it becomes the output itself."""
        ...

    def recording(self, options: TargetOptions, record: Mapping[str, object]) -> TargetOptions:
        """The options, with the other options of the conversion (JSON values), which the file also records."""
        ...

    def conversion(self, path: str) -> Mapping[str, object]:
        """The options of the conversion that wrote a file; BadFileError where it is damaged."""
        ...

    def describe(self, path: str) -> dict[str, Any]:
        """What `inspect` shows, as JSON values; BadFileError where the file is damaged."""
        ...

    def damaged_pages(self, path: str) -> tuple[int, list[int]]:
        """How many checksums there are, and which of them are wrong."""
        ...


class IntegerProof(Protocol):
    """Outputs can be shown to compute with integers alone."""

    def integer_only(self, path: str | Path) -> Mapping[str, Any]:
        """Whether nothing but integers was found ("integer_only"), what was looked at, and what was found."""
        ...


class Stack(Protocol):
    """The weights of an output that may be resident or not, as pieces in the order in which they become so."""

    @property
    def order(self) -> tuple[Piece, ...]:
        """The pieces; the first of every matrix at the head."""
        ...

    @property
    def stored(self) -> tuple[int, ...]:
        """Bytes of each piece in the file."""
        ...

    @property
    def weights(self) -> dict[str, int]:
        """Weights of each matrix, by name."""
        ...

    @property
    def encoder(self) -> bool:
        """Whether the model is an encoder."""
        ...

    @property
    def context(self) -> int:
        """Tokens that the model was made for."""
        ...

    @property
    def losses(self) -> dict[int, float]:
        """Loss per token of some rungs, where they were measured."""
        ...

    @property
    def floor_bytes(self) -> int:
        """Bytes of the first pieces."""
        ...

    def rung(self, count: int) -> int:
        """The rung of a prefix of so many pieces."""
        ...


class MemoryPlan(Protocol):
    """What a memory budget gives can be said before any weight is read."""

    def sketch(self, model: Model, folder: Path, options: TargetOptions) -> Path:
        """Writes the output without its weights into an empty folder, for its directory."""
        ...

    def outline(self, path: str) -> Stack:
        """The stack of an output, from its directory."""
        ...

    def session_bytes(self, path: str, context: int, kv: str) -> int:
        """What a session holds besides the weights: `context` tokens in a cache of type `kv`, and its scratch."""
        ...


class LayerTimer(Protocol):
    """Single layers can be compiled and timed on this machine."""

    def layer_times(
        self,
        layers: Sequence[tuple[LayerShape, npt.NDArray[np.float32]]],
        choices: Sequence[Widths],
        *,
        target: str,
        threads: int,
        progress: Progress,
    ) -> LayerTimes:
        """Seconds of each layer at each choice of bits."""
        ...


@dataclass(frozen=True)
class LayerTimes:
    """The processor's name, and for each layer the seconds by bits."""

    target: str
    seconds: tuple[Mapping[Widths, float], ...]


class SpeedTimer(Protocol):
    """Outputs can be timed next to the same network in floats."""

    def against_floats(self, floats: Model, model: Model, folder: Path) -> Timing | str:
        """The times of both, or why there are none.

        Args:
            floats: The network before anything was quantized.
            model: What was lowered.
            folder: Where it lies.
        """
        ...


class TextModel(Protocol):
    """Outputs that take token ids can be run on a text."""

    def logits(self, path: str, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """The logits of an output for ids [1, tokens]: [tokens, vocabulary]."""
        ...

    def limit(self, options: TargetOptions) -> float:
        """The relative L2 distance from the numpy reference that the output's arithmetic may leave."""
        ...


@runtime_checkable
class Backend(Protocol):
    """A target that models are converted to."""

    @property
    def name(self) -> str:
        """As in `--to`."""
        ...

    @property
    def title(self) -> str:
        """One line about it."""
        ...

    @property
    def options(self) -> type[TargetOptions]:
        """The dataclass of its options."""
        ...

    def lower(self, model: Model, folder: Path, options: TargetOptions, progress: Progress = ...) -> Lowered:
        """Writes a model into an existing, empty folder, which is complete only when this returns."""
        ...

    def check(self, model: Model, folder: Path, lowered: Lowered, level: Level = ...) -> list[CheckResult]:
        """Runs what was written against the numpy meaning of the source; ProofError where a result is too far off."""
        ...

    def compare(self, model: Model, path: str, options: TargetOptions, progress: Progress = ...) -> Iterator[Row]:
        """Holds an output against its source: every stored number of it."""
        ...

    def ops(self) -> frozenset[str]:
        """The ops that it lowers itself, for the table of what runs where; composites besides are expanded."""
        return frozenset()

    @property
    def file(self) -> SingleFile | None:
        """Where the output is one file."""
        return None

    @property
    def integers(self) -> IntegerProof | None:
        """Where outputs can be shown to hold no floating point number."""
        return None

    @property
    def memory(self) -> MemoryPlan | None:
        """Where budgets can be planned."""
        return None

    @property
    def layers(self) -> LayerTimer | None:
        """Where single layers can be timed."""
        return None

    @property
    def speed(self) -> SpeedTimer | None:
        """Where outputs can be timed next to floats."""
        return None

    @property
    def text(self) -> TextModel | None:
        """Where outputs can be run on a text."""
        return None


@dataclass(frozen=True)
class BackendRow(RegistryRow):
    """A backend by name.

    Attributes:
        magic: What its outputs begin with, where they are files; by this they are known without an import.
        packages: Modules without which the target cannot be written; they are looked for before anything is read.
    """

    magic: bytes = b""
    packages: tuple[str, ...] = ()

    def load(self) -> Backend:
        """The backend; UnsupportedError where it cannot be imported or is not a backend."""
        loaded = self.resolved().loaded()
        if not isinstance(loaded, Backend):
            raise self.refused(loaded, "qdeploy.contracts.backends.Backend")
        with self.blamed("while it was loaded"):
            options: object = loaded.options
        if not _declares_options(options):
            raise UnsupportedError(
                f"the options of {self.name} are not those of a target",
                where=self.place,
                found=repr(options),
                allowed="a dataclass that derives from qdeploy.options.TargetOptions, with a default for every field",
            )
        return loaded


def _declares_options(options: object) -> bool:
    """Whether this is the dataclass of a target's options, of which there is one where the user asks for nothing."""
    if not (isinstance(options, type) and issubclass(options, TargetOptions) and is_dataclass(options)):
        return False
    return all(field.default is not MISSING or field.default_factory is not MISSING for field in fields(options))
