"""What a lowered matrix is: terms, each a few runs of bytes that are made by ranges of row blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from qdeploy.backends.native import interleave, numbers
from qdeploy.backends.native.columns import Columns
from qdeploy.backends.native.layout import NumberKind, TermKind
from qdeploy.ir.views.levels import WHOLE, Levels

Array = npt.NDArray[Any]
RowReader = Callable[[int, int], Array]
Piece = tuple[str, int, Array]
"""Part, offset in it, and what lies there."""
Producer = Callable[[int, int], Iterable[Piece]]
"""Makes what row blocks [first, last) have of every part."""

SLAB = 1 << 21
"""Elements of a matrix that are worked on at a time."""


@dataclass(frozen=True)
class ParamForm:
    """How a param is stored: its format, and that of a second level."""

    kind: NumberKind = NumberKind.NO
    super_kind: NumberKind = NumberKind.NO
    super_span: int = 0


@dataclass(frozen=True)
class LoweredTerm:
    """A term of the file.

    Attributes:
        kind: How its codes lie.
        sizes: Bytes of each part: "codes", "plane1" .., "scale", "scale.super", "select", ... in their order.
        produce: Makes the parts.
        planes: Blocks; plane p > 0 is the part "plane<p>".
        record: Further fields of its record.
        params: "scale", "zero", "offset" where they are there.
        tensors: Resident tensors by the field of the record that points to them.
        level: From which level of the stack on it is there (terms of a decomposition come one by one).
        bias: Of a ladder, the format of the biases; its parts "plane<p>/<name>" lie in every plane's block as those of
            plane 0 do in theirs.
    """

    kind: TermKind
    sizes: Mapping[str, int]
    produce: Producer
    planes: int = 1
    record: Mapping[str, float] = field(default_factory=dict)
    params: Mapping[str, ParamForm] = field(default_factory=dict)
    tensors: Mapping[str, Array] = field(default_factory=dict)
    level: int = 0
    bias: NumberKind | None = None

    def plane_bytes(self, plane: int) -> int:
        """Size of a block, without the alignment of its parts."""
        return sum(size for part, size in self.sizes.items() if plane_of(part) == plane)


def plane_of(part: str) -> int:
    """Which plane's block a part lies in: "plane2" and "plane2/scale" in that of plane 2, all others in that of 0."""
    return int(part[5:].partition("/")[0]) if part.startswith("plane") else 0


@dataclass(frozen=True)
class LoweredMatrix:
    """A matrix of the file; its terms all have the same columns.

    Attributes:
        name: Of the tensor.
        shape: Rows, columns.
        columns: Their order.
        terms: What is summed.
        form: In a few words.
        reason: Why this form.
        lossless: Every stored number is carried unrounded.
        row_scale: float32 [rows], after the sum.
        levels: How the terms are cut into levels of the stack.
    """

    name: str
    shape: tuple[int, int]
    columns: Columns
    terms: tuple[LoweredTerm, ...]
    form: str
    reason: str
    lossless: bool = True
    row_scale: Array | None = None
    levels: Levels = WHOLE


@dataclass(frozen=True)
class ParamPlan:
    """A param of a term, with its bytes."""

    name: str
    form: ParamForm
    parts: tuple[tuple[str, int, Producer], ...]
    """Name, bytes per row block, and what makes it."""


def row_slabs(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """Ranges of row blocks that cover a matrix, each of at most SLAB elements but at least one block."""
    blocks, step = -(-rows // 16), max(1, SLAB // max(1, 16 * columns))
    for first in range(0, blocks, step):
        yield first, min(first + step, blocks)


def row_range(first: int, last: int, rows: int) -> tuple[int, int]:
    """The rows of a range of row blocks."""
    return first * 16, min(last * 16, rows)


def param(name: str, read: RowReader, rows: int, columns: Columns, kinds: Iterable[NumberKind]) -> ParamPlan:
    """A param in the smallest format that holds all of it."""

    def parts() -> Iterator[Array]:
        for first, last in row_slabs(rows, columns.groups):
            yield read(*row_range(first, last, rows))

    kind = numbers.smallest(kinds, parts) or NumberKind.F32
    return ParamPlan(name, ParamForm(kind), (_part(name, read, rows, columns, kind),))


def two_level(name: str, sub: RowReader, above: RowReader, span: int, rows: int, columns: Columns) -> ParamPlan | None:
    """A param that is a product of two: small integers, and one float per `span` groups; None where they do not fit."""
    if not np.array_equal(columns.which, np.arange(columns.groups)):
        return None

    def parts(read: RowReader) -> Callable[[], Iterator[Array]]:
        return lambda: (read(*row_range(f, s, rows)) for f, s in row_slabs(rows, columns.groups))

    kind = numbers.smallest((*numbers.SUBSCALES, NumberKind.E4M3), parts(sub))
    super_kind = numbers.smallest(numbers.SUPERS, parts(above))
    if kind is None or super_kind is None:
        return None
    spans = Columns(columns.count, columns.padded, columns.group * span, np.arange(-(-columns.groups // span)))
    low, high = _part(name, sub, rows, columns, kind), _part(f"{name}.super", above, rows, spans, super_kind)
    return ParamPlan(name, ParamForm(kind, super_kind, span), (low, high))


def _part(name: str, read: RowReader, rows: int, columns: Columns, kind: NumberKind) -> tuple[str, int, Producer]:
    size = columns.groups * 16 * numbers.DTYPES[kind].itemsize

    def produce(first: int, last: int) -> Iterator[Piece]:
        values = read(*row_range(first, last, rows))
        full = np.zeros((16 * (last - first), columns.groups), values.dtype)
        full[: len(values)] = values[:, columns.which]
        yield name, first * size, interleave.by_columns(numbers.stored(kind, full))

    return name, size, produce


def grouped_term(
    kind: TermKind,
    rows: int,
    columns: Columns,
    codes: Mapping[str, int],
    produce: Producer,
    params: Iterable[ParamPlan],
    planes: int = 1,
    record: Mapping[str, float] | None = None,
    tensors: Mapping[str, Array] | None = None,
) -> LoweredTerm:
    """A term of codes (bytes per row block by part) and params."""
    blocks, plans = -(-rows // 16), list(params)
    makers = [part for plan in plans for part in plan.parts]
    sizes = {name: blocks * size for name, size in codes.items()}
    sizes |= {name: blocks * size for name, size, _ in makers}

    def everything(first: int, last: int) -> Iterator[Piece]:
        yield from produce(first, last)
        for _, _, maker in makers:
            yield from maker(first, last)

    fields = {"group": columns.group, "groups": columns.groups, **(record or {})}
    return LoweredTerm(kind, sizes, everything, planes, fields, {p.name: p.form for p in plans}, tensors or {})
