"""Integer codes of more than 4 bits as floats that ONNX Runtime makes when it opens the file.

    (codes - zeros) * scales + offsets      uint8 [N, groups, group] with float32 [N, groups, 1] beside them

Nodes of constants are evaluated once, so that layers run on prepacked floats, as fast as before quantizing, and the
file stays small. Networks without caches take this, as they run many rows at once: kernels over codes (weights.py)
are fast with single tokens, and two to three times slower than floats with 64. Decoders are read from memory token by
token, and keep their codes there.
"""

from __future__ import annotations

from dataclasses import dataclass

from qdeploy.backends.onnx.proto import MICROSOFT, GraphBuilder, onnx_type
from qdeploy.ir.tensor import Array
from qdeploy.ir.views import Grouped
from qdeploy.ir.views.params import RowReader


@dataclass(frozen=True)
class WidenedForm:
    """Codes with parameters per group, as floats when the file is opened.

    Attributes:
        name: The tensor's name; its initializers are `name.codes`, `name.scale`, `name.zero` and `name.offset`.
        view: The tensor as integers.
    """

    name: str
    view: Grouped

    @property
    def label(self) -> str:
        """The width of the codes, and how many share a scale."""
        parts = ["zeros" if callable(self.view.zero) else "", "offsets" if self.view.offset is not None else ""]
        return " + ".join([f"int{self.view.bits} widened block {self.view.group}", *filter(None, parts)])

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""
        return self.view.shape

    def value(self, builder: GraphBuilder) -> str:
        """The whole matrix in float32."""
        rows, columns = self.view.shape
        zero = self.view.zero
        codes = self._codes(builder)
        wide = builder.once("Cast", [codes], to=onnx_type("F32"))
        if callable(zero):
            zeros = self._parameters(builder, "zero", "U8", zero)
            centred = builder.once("Sub", [wide, builder.once("Cast", [zeros], to=onnx_type("F32"))])
        else:
            centred = builder.once("Sub", [wide, builder.tensor(float(zero), "float32")]) if zero else wide
        total = builder.once("Mul", [centred, self._parameters(builder, "scale", "F32", self.view.scale)])
        if self.view.offset is not None:
            total = builder.once("Add", [total, self._parameters(builder, "offset", "F32", self.view.offset)])
        shape = builder.constant([builder.extent(rows), columns], "int64")
        return builder.once("Reshape", [total, shape])

    def linear(self, builder: GraphBuilder, x: str, output: str) -> None:
        """FusedMatMul, which takes the weight as it lies."""
        builder.node("FusedMatMul", [x, self.value(builder)], output, MICROSOFT, transB=1)

    def gather(self, builder: GraphBuilder, ids: str, output: str) -> None:
        """Rows of the floats."""
        builder.node("Gather", [self.value(builder), ids], output)

    def _codes(self, builder: GraphBuilder) -> str:
        rows, group = self.view.shape[0], self.view.group
        shape = (rows, self.view.groups, group)

        def read(start: int, stop: int) -> Array:
            return self.view.codes(start, stop).reshape(stop - start, *shape[1:])

        return builder.initializer(f"{self.name}.codes", onnx_type("U8"), shape, read)

    def _parameters(self, builder: GraphBuilder, part: str, element: str, reader: RowReader) -> str:
        shape = (self.view.shape[0], self.view.groups, 1)

        def read(start: int, stop: int) -> Array:
            return reader(start, stop).reshape(stop - start, *shape[1:])

        return builder.initializer(f"{self.name}.{part}", onnx_type(element), shape, read)


def widened_form(name: str, whole: Grouped) -> WidenedForm | None:
    """The form of integers of 5 to 8 bits in groups of equal extent; None for others, which have no such form."""
    plain = whole.index is None and whole.stored_zero is None and whole.exact
    even = whole.group * whole.groups == whole.shape[1]
    return WidenedForm(name, whole) if plain and even and 4 < whole.bits <= 8 else None
