"""Floats of eight bits (e4m3, e5m2) with a scale per block: DequantizeLinear, exact and never folded, but slow.

    DequantizeLinear <axis = 1, block_size = b> (codes FLOAT8 [N, K], scale F32 [N, ceil(K / b)])

which ONNX Runtime computes anew at every call, since its fused kernels take integers only. A scale for a tile of
several rows is repeated per row; one for the whole tensor or per row is a scale of one block per row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qdeploy.backends.onnx.proto import MICROSOFT, STORAGE_TO_ONNX, GraphBuilder
from qdeploy.ir.codes import read_codes
from qdeploy.ir.match import minifloat_block
from qdeploy.ir.tensor import Codes, QTensor
from qdeploy.ir.views.params import Grid, RowReader, is_blockwise, spread

_STORAGE = {"e4m3": "F8_E4M3", "e5m2": "F8_E5M2"}


@dataclass(frozen=True)
class MinifloatForm:
    """Eight-bit floats.

    Attributes:
        name: The tensor's name.
        shape: [N, K].
        storage: Storage type of the codes.
        codes: Their bytes, [rows, K].
        block: Columns per scale.
        scale: float32 [rows, ceil(K / block)].
    """

    name: str
    shape: tuple[int, int]
    storage: str
    codes: RowReader
    block: int
    scale: RowReader
    reason: str = "dequantized at every call, since the fast kernels take integers only"

    @property
    def label(self) -> str:
        """The storage type and the block."""
        return f"{self.storage.lower()} block {self.block}"

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
            builder.initializer(f"{self.name}.codes", STORAGE_TO_ONNX[self.storage], (n, k), self.codes),
            builder.initializer(f"{self.name}.scale", STORAGE_TO_ONNX["F32"], (n, -(-k // self.block)), self.scale, 4),
        )


def minifloat_form(name: str, tensor: QTensor) -> MinifloatForm | None:
    """The form of a matrix of e4m3 or e5m2; None for anything else."""
    found = minifloat_block(tensor)
    if found is None or found.kind not in _STORAGE or len(tensor.shape) != 2:
        return None
    if found.codes.decoded_shape != tensor.shape:
        return None
    (n, k), scale = tensor.shape, found.scale
    grid, block = Grid((n, k), k), found.tile[1]
    if scale is not None and not is_blockwise(scale, grid):
        return None
    count = -(-k // block)
    if scale is None:
        return MinifloatForm(
            name, (n, k), _STORAGE[found.kind], _bytes(found.codes), k, lambda a, b: np.ones((b - a, 1), np.float32)
        )
    read = spread(scale, grid, block, count)
    divided: RowReader = (lambda a, b: (1 / read(a, b)).astype(np.float32)) if scale.divide else read
    return MinifloatForm(name, (n, k), _STORAGE[found.kind], _bytes(found.codes), block, divided)


def _bytes(codes: Codes) -> RowReader:
    return lambda a, b: read_codes(codes, a, b)
