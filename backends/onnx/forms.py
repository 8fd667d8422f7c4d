"""What a form of a weight is, and the simplest: floats as they are stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import onnx

from qdeploy.backends.onnx.proto import MICROSOFT, GraphBuilder, onnx_type
from qdeploy.ir.tensor import QTensor
from qdeploy.ir.views.params import RowReader

FLOAT = onnx.TensorProto.FLOAT


class Form(Protocol):
    """How a tensor lies in the file, and how nodes use it.

    Attributes:
        label: Names the form in the report; forms with equal labels are lowered alike.
        shape: Of the tensor.
    """

    @property
    def label(self) -> str:
        """See above."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """See above."""
        ...

    def linear(self, builder: GraphBuilder, x: str, output: str) -> None:
        """Appends nodes for `output = x @ W.T`, x float32 [B, T, K]."""
        ...

    def gather(self, builder: GraphBuilder, ids: str, output: str) -> None:
        """Appends nodes for `output = W[ids]` in float32."""
        ...


@dataclass(frozen=True)
class FloatForm:
    """A float tensor in its stored type; the graph widens it to float32, which is exact."""

    name: str
    tensor: QTensor
    storage: str
    rows: RowReader

    @property
    def label(self) -> str:
        """The storage type."""
        return self.storage.lower()

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""
        return self.tensor.shape

    def value(self, builder: GraphBuilder) -> str:
        """The whole tensor in float32."""
        stored = self._stored(builder)
        return stored if self.storage == "F32" else builder.once("Cast", [stored], to=FLOAT)

    def linear(self, builder: GraphBuilder, x: str, output: str) -> None:
        """FusedMatMul, which takes the weight as it lies."""
        builder.node("FusedMatMul", [x, self.value(builder)], output, MICROSOFT, transB=1)

    def gather(self, builder: GraphBuilder, ids: str, output: str) -> None:
        """Rows first, widened afterwards."""
        stored = self._stored(builder)
        if self.storage == "F32":
            builder.node("Gather", [stored, ids], output)
        else:
            builder.node("Cast", [builder.node("Gather", [stored, ids])], output, to=FLOAT)

    def _stored(self, builder: GraphBuilder) -> str:
        shape = self.shape or (1,)
        name = builder.initializer(self.name, onnx_type(self.storage), shape, self.rows)
        return name if self.shape else builder.once("Squeeze", [name])
