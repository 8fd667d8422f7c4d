"""Weights of networks that were rounded alone: codes in the file, and nodes of constants that say what they mean.

    Cast, Sub (the zero point), Mul (the scale), Reshape      over uint8 or uint4 codes

ONNX Runtime evaluates nodes of constants when it opens a file, so that layers run on the same float weights, prepacked,
and as fast as before; the file is a quarter or an eighth. (A DequantizeLinear node of a constant it runs at every
call.) Rows of a table are taken first and widened afterwards, so a table stays packed in memory.

Matrices of at most 4 bits are MatMulNBits and GatherBlockQuantized (weights.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from qdeploy.backends.onnx.passthrough import code_stream
from qdeploy.backends.onnx.proto import MICROSOFT, GraphBuilder, onnx_type
from qdeploy.errors import UnsupportedError
from qdeploy.ir.codes import read_codes
from qdeploy.ir.dtype import dtype
from qdeploy.ir.tensor import Array, Codes, QTensor
from qdeploy.ir.views import Affine, view


@dataclass(frozen=True)
class FoldedForm:
    """Codes with a scale per output or block, as floats when the file is opened.

    Attributes:
        name: The tensor's name; its initializers are `name.codes` and `name.scale`.
        tensor: The tensor.
        codes: Its only term.
        scale: Its scales.
    """

    name: str
    tensor: QTensor
    codes: Codes
    scale: Codes

    @property
    def label(self) -> str:
        """The type of the codes, and how many share a scale."""
        return f"uint{self._width} folded block {math.prod(self.codes.shape) // math.prod(self.scale.shape)}"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""
        return self.tensor.shape

    @property
    def by_rows(self) -> bool:
        """Whether rows can be taken from the codes as they lie: whole bytes, with one scale each."""
        rows = self.codes.shape == self.shape and self.scale.shape == (self.shape[0], 1)
        return len(self.shape) == 2 and self._width == 8 and rows

    @property
    def _width(self) -> int:
        return 4 if dtype(str(self.codes.table)).bits <= 4 else 8

    @property
    def _half(self) -> int:
        """What is added to signed codes, so that they are stored unsigned."""
        row = dtype(str(self.codes.table))
        return 1 << (row.bits - 1) if row.kind == "signed" else 0

    def _zero(self) -> float:
        zero = self.codes.zero
        if zero is None or not isinstance(zero.values, Codes):
            return float(self._half)
        return float(read_codes(zero.values, 0, 1).reshape(-1)[0])

    def value(self, builder: GraphBuilder) -> str:
        """The whole tensor in float32."""
        wide = builder.once("Cast", [self._declared(builder)], to=onnx_type("F32"))
        centred = builder.once("Sub", [wide, builder.tensor(self._zero(), "float32")])
        product = builder.once("Mul", [centred, self._scales(builder)])
        return (
            product
            if self._split()[0] == self.shape
            else builder.once("Reshape", [product, builder.constant(self.shape, "int64")])
        )

    def linear(self, builder: GraphBuilder, x: str, output: str) -> None:
        """FusedMatMul, which takes the weight as it lies."""
        builder.node("FusedMatMul", [x, self.value(builder)], output, MICROSOFT, transB=1)

    def gather(self, builder: GraphBuilder, ids: str, output: str) -> None:
        """Rows of codes and scales first, widened afterwards."""
        rows = [builder.node("Gather", [part, ids]) for part in (self._declared(builder), self._scales(builder))]
        wide = builder.node("Cast", rows[:1], to=onnx_type("F32"))
        centred = builder.node("Sub", [wide, builder.tensor(self._zero(), "float32")])
        builder.node("Mul", [centred, rows[1]], output)

    def _split(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes that codes and scales are declared in, so that they broadcast: axes with blocks are two."""
        wide: list[int] = []
        narrow: list[int] = []
        for extent, count in zip(self.codes.shape, self.scale.shape, strict=True):
            blocked = 1 < count < extent
            wide += [count, extent // count] if blocked else [extent]
            narrow += [count, 1] if blocked else [count]
        return tuple(wide), tuple(narrow)

    def _declared(self, builder: GraphBuilder) -> str:
        name, shape, key = f"{self.name}.codes", self._split()[0], ("declared", f"{self.name}.codes")
        if self._width == 8 and shape[0] == self.codes.shape[0]:
            return builder.initializer(name, onnx_type("U8"), shape, self._unsigned)
        if key not in builder.memo:
            size = -(-math.prod(shape) * self._width // 8)
            rows = code_stream(self.codes, self._width, self._half)
            builder.memo[key] = builder.initializer(name, onnx_type("U8"), (size,), rows)
            builder.graph.initializer[-1].data_type = onnx_type("U4" if self._width == 4 else "U8")
            builder.graph.initializer[-1].dims[:] = shape
        return builder.memo[key]

    def _unsigned(self, start: int, stop: int) -> Array:
        return read_codes(self.codes, start, stop).astype(np.uint8) ^ np.uint8(self._half)

    def _scales(self, builder: GraphBuilder) -> str:
        """The scales in float32, in the shape that broadcasts."""
        data, shape = self.scale.data[0], self._split()[1]
        element = dtype(str(self.scale.table)).element
        if shape[0] == self.scale.shape[0]:
            declared = builder.initializer(f"{self.name}.scale", onnx_type(element), shape, data.read)
        else:
            declared = builder.tensor(data.read().reshape(shape))
        return declared if element == "F32" else builder.once("Cast", [declared], to=onnx_type("F32"))


def folded_form(name: str, tensor: QTensor) -> FoldedForm:
    """The form of a weight that was rounded alone.

    Raises:
        UnsupportedError: It is not integers with a scale.
    """
    seen = view(tensor)
    scale = seen.codes.scale.values if isinstance(seen, Affine) and seen.codes.scale is not None else None
    if not isinstance(seen, Affine) or not isinstance(scale, Codes) or seen.codes.offset is not None or seen.divides:
        raise UnsupportedError("a weight of a network that is not integers with a scale", where=name)
    return FoldedForm(name, tensor, seen.codes, scale)
