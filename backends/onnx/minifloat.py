"""Floats of eight bits (e4m3, e5m2 and the like) with a scale per block: DequantizeLinear, exact but slow.

    DequantizeLinear <axis = 1, block_size = b> (codes FLOAT8 [N, K], scale F32 [N, ceil(K / b)])

which ONNX Runtime computes anew at every call, since its fused kernels take integers only. A scale for a tile of
several rows is repeated per row; one for the whole tensor or per row is a scale of one block per row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qdeploy.backends.onnx.proto import MICROSOFT, GraphBuilder, onnx_type
from qdeploy.ir.views import Minifloat
from qdeploy.ir.views.params import RowReader


@dataclass(frozen=True)
class MinifloatForm:
    """Eight-bit floats.

    Attributes:
        name: The tensor's name.
        shape: [N, K].
        element: Element type of the codes.
        codes: Their bytes, [rows, K].
        block: Columns per scale.
        scale: float32 [rows, ceil(K / block)].
    """

    name: str
    shape: tuple[int, int]
    element: str
    codes: RowReader
    block: int
    scale: RowReader
    reason: str = "dequantized at every call, since the fast kernels take integers only"

    @property
    def label(self) -> str:
        """The element type and the block."""
        return f"{self.element.lower()} block {self.block}"

    def linear(self, builder: GraphBuilder, x: str, output: str) -> None:
        """DequantizeLinear, then a product with the transpose."""
        codes, scale = self._inputs(builder)
        weight = builder.once("DequantizeLinear", [codes, scale], axis=1, block_size=self.block)
        builder.node("FusedMatMul", [x, weight], output, MICROSOFT, transB=1)

    def gather(self, builder: GraphBuilder, ids: str, output: str) -> None:
        """Dequantizes the whole table, since ONNX Runtime gathers no eight-bit floats."""
        codes, scale = self._inputs(builder)
        weight = builder.once("DequantizeLinear", [codes, scale], axis=1, block_size=self.block)
        builder.node("Gather", [weight, ids], output)

    def _inputs(self, builder: GraphBuilder) -> tuple[str, str]:
        n, k = self.shape
        return (
            builder.initializer(f"{self.name}.codes", onnx_type(self.element), (n, k), self.codes),
            builder.initializer(f"{self.name}.scale", onnx_type("F32"), (n, -(-k // self.block)), self.scale, 4),
        )


def minifloat_form(name: str, seen: Minifloat) -> MinifloatForm | None:
    """The form of a matrix of floats of a byte that DequantizeLinear takes; None for anything else."""
    floats = seen.floats
    if floats is None or seen.dtype.bits != 8 or not seen.dtype.dequantized or floats.grouping.index is not None:
        return None
    scale = floats.scale or (lambda start, stop: np.ones((stop - start, 1), np.float32))
    return MinifloatForm(name, floats.shape, seen.dtype.element, floats.codes, floats.grouping.group, scale)
