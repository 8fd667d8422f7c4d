"""A fitted ladder as a tensor: codes in planes, and for each level its scales and its bias.

    scale = u8 [rows, groups] * bf16 [rows]       the factor is rounded up, and the small numbers make up for it
    bias  = f16 [rows], of every level but the last

A level that reads l bits has its scale in steps of l-bit codes: 2 ** (P - l) steps of the whole code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import numpy.typing as npt

from qdeploy.ir.tensor import PLAIN, Buffer, Codes, Float32, Layout, Param, QTensor, Rung, Term
from qdeploy.pack import planes as packing
from qdeploy.quantize.ladder.fit import Fitted
from qdeploy.store.spill import Spill

UInt8 = npt.NDArray[np.uint8]
_TOP = 255


@dataclass(frozen=True, eq=False)
class SmallScales:
    """Scales of one level: small [rows, groups], factor float32 [rows], each a bfloat16."""

    small: UInt8
    factor: Float32

    @classmethod
    def of(cls, scales: Float32) -> SmallScales:
        """The nearest to scales, float32 [rows, groups], that are positive."""
        exact = np.ascontiguousarray(np.maximum(scales.max(axis=1), 1e-30) / np.float32(_TOP), np.float32)
        bits = exact.view(np.uint32)
        factor = ((bits + np.uint32(0xFFFF)) & np.uint32(0xFFFF0000)).view(np.float32)  # never less than the exact one
        small = np.clip(np.rint(scales / factor[:, None]), 1, _TOP).astype(np.uint8)
        return cls(small, factor)

    def values(self) -> Float32:
        """What they mean: float32 [rows, groups]."""
        wide: Float32 = self.small.astype(np.float32) * self.factor[:, None]
        return wide


def rounded(fitted: Fitted) -> tuple[Fitted, list[SmallScales]]:
    """The ladder with its scales as they are stored, and how they are."""
    levels = [SmallScales.of(fitted.scales[:, :, level]) for level in range(fitted.scales.shape[2])]
    return Fitted(fitted.codes, np.stack([level.values() for level in levels], axis=2), fitted.group), levels


def ladder_tensor(
    fitted: Fitted,
    scales: Sequence[SmallScales],
    biases: Sequence[Float32 | None],
    errors: Sequence[float],
    dtype: str,
    spill: Spill,
) -> QTensor:
    """The tensor of a ladder.

    Args:
        fitted: Codes [rows, K], and the group.
        scales: Of each level.
        biases: Of each level, float32 [rows] against the last level's; None: none.
        errors: Relative squared error of each level.
        dtype: Of the weight that it stands for.
        spill: Where all of it is kept.
    """
    (rows, columns), count = fitted.codes.shape, len(scales)
    kept = [spill.keep(plane) for plane in packing.pack(fitted.codes, count)]
    planes = tuple(Buffer(f"plane.{place}", "U8", (rows, -(-columns // 8)), plane) for place, plane in enumerate(kept))

    def term(level: int) -> Term:
        small = Buffer(f"scale.{level}", "U8", scales[level - 1].small.shape, spill.keep(scales[level - 1].small))
        factor = (scales[level - 1].factor * np.float32(1 << (count - level)))[:, None].astype(ml_dtypes.bfloat16)
        above = Buffer.of(f"scale.{level}.scale", factor, "BF16")
        spread = Param(Codes(above.shape, (above,), PLAIN, "bf16"), (1, small.shape[1]))
        zero = Buffer.of(f"zero.{level}", np.full((1, 1), ((1 << level) - 1) / 2, np.float16), "F16")
        return Term(
            Codes(
                (rows, columns),
                planes[:level],
                Layout("planes", level),
                f"uint{level}",
                zero=Param(Codes((1, 1), (zero,), PLAIN, "f16"), (rows, columns)),
                scale=Param(Codes(small.shape, (small,), PLAIN, "uint8", scale=spread), (1, fitted.group)),
            )
        )

    terms = [term(level) for level in range(1, count + 1)]
    rungs = tuple(
        Rung((level,), (terms[level - 1],), float(errors[level - 1]), bias_of(level, biases[level - 1]))
        for level in range(1, count + 1)
    )
    return QTensor((rows, columns), dtype, (terms[-1],), rungs)


def bias_of(level: int, values: Float32 | None) -> Codes | None:
    """The bias of a level in float16, within its range."""
    if values is None:
        return None
    limit = float(np.finfo(np.float16).max)
    buffer = Buffer.of(f"bias.{level}", np.clip(values, -limit, limit).astype(np.float16), "F16")
    return Codes(buffer.shape, (buffer,), PLAIN, "f16")
