"""Signs times low-rank magnitudes (BitStack, arXiv 2410.23918), through qdeploy.SignLowRankLinear."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from qdeploy.backends.onnx.functions import REASON, add_all, function
from qdeploy.backends.onnx.proto import QDEPLOY, GraphBuilder
from qdeploy.ir.codes import read_codes
from qdeploy.ir.decode import decode_codes
from qdeploy.ir.tensor import Codes
from qdeploy.ir.views import SignLowRank
from qdeploy.pack import bits as bit_stream

FLOAT, UINT8, INT32 = onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8, onnx.TensorProto.INT32


@dataclass(frozen=True)
class SignLowRankForm:
    """A weight as a sum of sign matrices times low-rank magnitudes."""

    name: str
    shape: tuple[int, int]
    terms: tuple[tuple[Codes, Codes, Codes], ...]
    reason: str = REASON

    @property
    def label(self) -> str:
        """The function and how often it runs."""
        return f"signs x low rank, {len(self.terms)} terms"

    def linear(self, builder: GraphBuilder, x: str, output: str) -> None:
        """One SignLowRankLinear per term, summed."""
        builder.function(function("SignLowRankLinear"))
        products = [
            builder.node("SignLowRankLinear", [x, *self._inputs(builder, i)], "", QDEPLOY)
            for i in range(len(self.terms))
        ]
        add_all(builder, products, output)

    def gather(self, builder: GraphBuilder, ids: str, output: str) -> None:
        """Rows of signs and of u; vt is shared."""
        rows = []
        for i in range(len(self.terms)):
            signs, table, u, vt = self._inputs(builder, i)
            taken = builder.node("Cast", [builder.node("Gather", [signs, ids])], to=INT32)  # [B, T, bytes]
            values = builder.node("Gather", [table, taken])  # [B, T, bytes, 8]
            flat = builder.node("Reshape", [values, builder.constant([0, 0, -1], "int64")])
            bounds = [builder.constant([n], "int64") for n in (0, self.shape[1], -1)]
            magnitude = builder.node("MatMul", [builder.node("Gather", [u, ids]), vt])
            rows.append(builder.node("Mul", [builder.node("Slice", [flat, *bounds]), magnitude]))
        add_all(builder, rows, output)

    def _inputs(self, builder: GraphBuilder, i: int) -> tuple[str, str, str, str]:
        (signs, u, vt), (n, k), name = self.terms[i], self.shape, f"{self.name}.{i}"
        table = np.array([[1 if byte >> j & 1 else -1 for j in range(8)] for byte in range(256)], np.float32)
        rank = u.decoded_shape[1]
        return (
            builder.initializer(
                f"{name}.codes", UINT8, (n, -(-k // 8)), lambda a, b: bit_stream.pack(read_codes(signs, a, b), 1), 16
            ),
            builder.initializer("qdeploy.signs.table", FLOAT, table.shape, lambda a, b: table[a:b], shared=True),
            builder.initializer(f"{name}.u", FLOAT, (n, rank), lambda a, b: decode_codes(u, slice(a, b)), 4),
            builder.initializer(
                f"{name}.vt", FLOAT, (rank, k), lambda a, b: decode_codes(vt, slice(a, b)), 4, shared=True
            ),
        )


def sign_lowrank_form(name: str, seen: SignLowRank) -> SignLowRankForm | None:
    """The form of a matrix that is a sum of signs times low rank; None for a tensor of other rank."""
    return SignLowRankForm(name, (seen.shape[0], seen.shape[1]), seen.terms) if len(seen.shape) == 2 else None
