"""The contract of quantizers: each declares the statistics of a layer's inputs that it needs, and quantizes a matrix.

A quantizer is a dataclass whose fields are its options (`qdeploy.options.option`); `TYPES` are the number types that it
rounds to, the first one by default. A driver (driver.py) parses the options, measures the statistics that the quantizer
needs, and passes both to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import ClassVar, Literal, Protocol, TypeGuard, get_args, runtime_checkable

import numpy as np
import numpy.typing as npt

from qdeploy.catalog.rows import Row
from qdeploy.errors import BadArgumentError
from qdeploy.ir.tensor import Float32, QTensor

Kind = Literal["norms", "moments", "means"]
MOST_LEVELS = 64
"""Runs of the network over the data that a quantizer may ask for."""


@dataclass(frozen=True)
class Needs:
    """What a quantizer asks of the data.

    Attributes:
        kinds: Of `Statistics`; empty: it looks at weights alone.
        text: The file that they are measured on; empty: nothing is measured.
        levels: 0: measured once, on the float model. N: measured N times in the order of the graph, each time with what
            the layers before have become by then; the tensor that is made of n statistics has n levels.
        streams: 0, or N: the inputs are followed side by side on the float model and at N rungs, with what the layers
            before have become at that rung. The quantizer gets 1 + N statistics: of the float model, then of each rung.
        integers: Whether it also takes weights that are integers already, and keeps them as they are.
        costs: Whether what each rung costs the network is measured on the data, where that is not too much work.
        without: What the user is told where no text is named: what the weights lack then.
    """

    kinds: frozenset[Kind] = frozenset()
    text: str = ""
    levels: int = 0
    streams: int = 0
    integers: bool = False
    costs: bool = False
    without: str = "it sees weights alone"

    def __post_init__(self) -> None:
        """Refuses what no driver measures, or could not measure in a lifetime."""
        if unknown := set(self.kinds) - set(get_args(Kind)):
            raise BadArgumentError(
                "no such statistics of inputs", found=", ".join(map(str, unknown)), allowed=", ".join(get_args(Kind))
            )
        for name, count in (("levels", self.levels), ("streams", self.streams)):
            if type(count) is not int or not 0 <= count <= MOST_LEVELS:
                raise BadArgumentError(
                    f"a quantizer cannot be given so many {name}", found=count, allowed=f"0..{MOST_LEVELS}"
                )


@dataclass(frozen=True)
class Statistics:
    """Statistics of the inputs x [tokens, K] of a linear layer: those that the quantizer needs.

    Attributes:
        norms: How large each column is, in proportion to the others: float32 [K] with a geometric mean of 1.
        moments: x^T x / tokens, float64 [K, K].
        means: Mean of each column, float64 [K].
        cross: Of a rung: x^T y / tokens, float64 [K, K], with x of the float model and y of the rung.
    """

    norms: Float32 | None = None
    moments: npt.NDArray[np.float64] | None = None
    means: npt.NDArray[np.float64] | None = None
    cross: npt.NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Grid:
    """Where codes lie.

    Attributes:
        bits: Of a code; 0: the quantizer has no codes of so many bits.
        group: Weights of a row that share a scale; -1: the whole row.
        type: The number type, one of the quantizer's `TYPES`; "" where it has none.
    """

    bits: int = 0
    group: int = -1
    type: str = ""


@dataclass(frozen=True)
class Weight:
    """A weight to be quantized.

    Attributes:
        name: Of the tensor.
        tensor: A plain float matrix [N, K]; where the quantizer takes integers, codes that are cut into planes, too.
        losses: Where the signal-to-noise ratio in dB is put under the name, when the codes are first read.
        shifts: Where a quantizer may put, under the name, what the layer is to add to its outputs: float [N].
    """

    name: str
    tensor: QTensor
    losses: dict[str, float] = field(default_factory=dict)
    shifts: dict[str, QTensor] = field(default_factory=dict)


@runtime_checkable
class Quantizer(Protocol):
    """A way to quantize, with its settings; a dataclass whose fields are options."""

    TYPES: ClassVar[tuple[str, ...]]
    """Number types of the method ("int4"), the default first; empty: the method has neither types nor groups."""

    @property
    def needs(self) -> Needs:
        """What is to be measured first."""
        ...

    def quantize(self, weight: Weight, statistics: Sequence[Statistics], grid: Grid) -> QTensor:
        """Describes the quantized tensor; nothing large is computed before one of its buffers is read.

        Args:
            weight: What to quantize.
            statistics: Of its inputs, one per level (one, where `needs.levels` is 0); empty where nothing was measured.
            grid: The number type and the group size.
        """
        ...


@dataclass(frozen=True)
class QuantizerRow(Row):
    """A quantizer by name; its target is the dataclass."""

    def load(self) -> type[Quantizer]:
        """The dataclass; UnsupportedError where it cannot be imported or is not a quantizer."""
        loaded = self.resolved().loaded()
        if not _is_quantizer(loaded):
            raise self.refused(loaded, "qdeploy.quantize.contract.Quantizer")
        return loaded


def _is_quantizer(loaded: object) -> TypeGuard[type[Quantizer]]:
    """Whether this is a dataclass with the members of a quantizer, which can be made without an argument."""
    if not (isinstance(loaded, type) and is_dataclass(loaded) and isinstance(loaded, Quantizer)):
        return False
    named = isinstance(loaded.TYPES, tuple) and all(isinstance(name, str) for name in loaded.TYPES)
    return named and all(f.default is not MISSING or f.default_factory is not MISSING for f in fields(loaded))
