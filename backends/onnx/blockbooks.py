"""Vector codebooks whose entries span rows, or that have several tables or an offset: through qdeploy.BlockCodebook."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from qdeploy.backends.onnx.functions import REASON, add_all, function
from qdeploy.backends.onnx.proto import QDEPLOY, GraphBuilder
from qdeploy.ir.codes import read_codes
from qdeploy.ir.decode import decode_param
from qdeploy.ir.tensor import Array, Param
from qdeploy.ir.views import Vector

FLOAT, INT32 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT32
UINT8, UINT16 = onnx.TensorProto.UINT8, onnx.TensorProto.UINT16


@dataclass(frozen=True)
class BlockBooksForm:
    """A weight as a sum of vector codebooks, then a scale and an offset per row, per column or for all."""

    name: str
    seen: Vector
    reason: str = REASON

    @property
    def shape(self) -> tuple[int, int]:
        """Of the tensor."""
        return self.seen.shape

    @property
    def unit(self) -> int:
        """Rows that an entry spans."""
        return self.seen.block[0]

    @property
    def label(self) -> str:
        """The function and how often it runs."""
        return f"{len(self.seen.grids)} codebooks of {'x'.join(map(str, self.seen.block))} blocks"

    def linear(self, builder: GraphBuilder, x: str, output: str) -> None:
        """The weight, unpacked anew, and a product."""
        transposed = builder.node("Transpose", [self._weight(builder, x)], perm=[1, 0])
        builder.node("MatMul", [x, transposed], output)

    def gather(self, builder: GraphBuilder, ids: str, output: str) -> None:
        """Rows of the weight, which is unpacked as a whole."""
        builder.node("Gather", [self._weight(builder, ids), ids], output)

    def _weight(self, builder: GraphBuilder, x: str) -> str:
        builder.function(function("BlockCodebook"))
        (a, b), columns = self.seen.block, self.seen.grids[0].shape[1]
        rows = builder.extent(self.shape[0], a)
        split, flat = ([rows, columns, a, b], [rows * a, columns * b])
        sizes = [builder.constant(size, "int64") for size in (split, flat)]
        parts = [
            builder.node("BlockCodebook", [x, *self._inputs(builder, place), *sizes], "", QDEPLOY)
            for place in range(len(self.seen.grids))
        ]
        total = builder.fresh("weight")
        add_all(builder, parts, total)
        for key, op, param in (("scale", "Mul", self.seen.scale), ("offset", "Add", self.seen.offset)):
            if param is not None:
                total = builder.node(op, [self._cut(builder, total), self._param(builder, key, param)])
        return self._cut(builder, total) if self.seen.scale is None and self.seen.offset is None else total

    def _cut(self, builder: GraphBuilder, weight: str) -> str:
        """The weight without what entries reach past it."""
        if self.seen.grids[0].decoded_shape == self.shape:
            return weight
        bounds = [builder.constant([n], "int64") for n in (0, builder.extent(self.shape[0]), 0)]
        return builder.node("Slice", [weight, *bounds])

    def _inputs(self, builder: GraphBuilder, place: int) -> tuple[str, str, str]:
        codes, books, name = self.seen.grids[place], self.seen.books(place), f"{self.name}.{place}"
        if books is None:
            books = np.zeros((1, 1, *self.seen.block), np.float32)  # `block_form` has looked
        flat = np.ascontiguousarray(books.reshape(books.shape[0] * books.shape[1], -1))
        wide = books.shape[1] > 256
        kind, dtype = (UINT16, np.dtype("<u2")) if wide else (UINT8, np.dtype("u1"))
        stored = builder.initializer(
            f"{name}.codes", kind, codes.shape, lambda start, stop: read_codes(codes, start, stop).astype(dtype), 16
        )
        table = builder.initializer(
            f"{name}.table", FLOAT, flat.shape, lambda start, stop: flat[start:stop], shared=True
        )
        select = self.seen.select(place)
        if select is None:
            return stored, builder.constant([[0]], "int32"), table
        small = (decode_param(select, slice(0, 1), codes.shape) * books.shape[1]).astype(np.int32)
        base = builder.initializer(
            f"{name}.select", INT32, small.shape, lambda start, stop: small[start:stop], 4, shared=True
        )
        return stored, base, table

    def _param(self, builder: GraphBuilder, key: str, param: Param) -> str:
        small = _spread(param, self.shape)
        name = f"{self.name}.{key}"
        shared = len(small) == 1
        return builder.initializer(name, FLOAT, small.shape, lambda start, stop: small[start:stop], 4, shared=shared)


def block_form(name: str, seen: Vector) -> BlockBooksForm | None:
    """The form of a sum of vector codebooks; None where a parameter varies along both axes, or tables are too large."""
    if any(not _is_flat(param, seen.shape) for param in (seen.scale, seen.offset) if param is not None):
        return None
    for place, codes in enumerate(seen.grids):
        select = seen.select(place)
        if seen.books(place) is None or (select is not None and select.tile[0] < codes.shape[0]):
            return None
    return BlockBooksForm(name, seen)


def _is_flat(param: Param, shape: tuple[int, int]) -> bool:
    """Whether a parameter has one number per row, per column or for all."""
    flat = param.tile[0] >= shape[0] or param.tile[1] >= shape[1]
    return flat and not param.divide and param.index is None


def _spread(param: Param, shape: tuple[int, int]) -> Array:
    """Its numbers: [N or 1, K or 1]."""
    whole = decode_param(param, slice(0, 1) if param.tile[0] >= shape[0] else None, shape)
    return np.ascontiguousarray(whole[:, :1] if param.tile[1] >= shape[1] else whole, np.float32)
