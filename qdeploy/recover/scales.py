"""The scale within an interval that the narrowest type can hold: a power of two, float16, bfloat16, else float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
TYPES = ("f16", "bf16", "f32")
"""Types of scales, in the order of preference: GGUF and ONNX take float16 where it is exact."""


def within(low: Float64, high: Float64, kind: str) -> tuple[Float64, Bools]:
    """A number of a type in each interval [low, high] of positive numbers, and whether there is one.

    The number next to the middle is taken, else its neighbours.
    """
    middle = (low + high) / 2
    if kind == "e8m0":
        power = np.exp2(np.floor(np.log2(np.maximum(high, np.finfo(np.float64).tiny))))
        return power, (power >= low) & (power >= 2.0**-127) & (power <= 2.0**127)
    dtype = _numpy(kind)
    with np.errstate(over="ignore"):
        nearest = middle.astype(dtype)
    bits = nearest.view(f"<u{dtype.itemsize}")
    best = nearest.astype(np.float64)
    fine = _inside(best, low, high)
    for neighbour in (bits + bits.dtype.type(1), np.maximum(bits, 1) - bits.dtype.type(1)):
        other = neighbour.astype(bits.dtype).view(dtype).astype(np.float64)
        better = ~fine & _inside(other, low, high)
        best, fine = np.where(better, other, best), fine | better
    return best, fine


def _inside(value: Float64, low: Float64, high: Float64) -> Bools:
    inside: Bools = (value >= low) & (value <= high) & np.isfinite(value) & (value > 0)
    return inside


def _numpy(kind: str) -> np.dtype[Any]:
    from qdeploy.ir.dtype import dtype

    return dtype(kind).numpy
