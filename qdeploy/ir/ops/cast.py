"""Conversion of element types as ONNX's Cast defines it (onnx/docs/docsgen/source/technical/float8.md).

to float8        what lies beyond the greatest number, and infinity, becomes that number (saturate=1), or infinity or
                 NaN, as the type has it (saturate=0); NaN stays NaN
to F8_E8M0       powers of two alone: the exponent of the float32, raised where `round_mode` says so of what is behind
                 it (up, down, nearest with halves up); the sign is dropped, infinity becomes NaN, and so does what
                 is rounded beyond the greatest power, except with saturate=1
everything else  numpy's conversion
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qdeploy.errors import UnsupportedError
from qdeploy.ir.dtype import DType, of_element
from qdeploy.ir.element import element_dtype, element_name
from qdeploy.ir.tensor import Array

ROUND_MODES = ("up", "down", "nearest")
_GREATEST, _NAN = 254, 255  # codes of F8_E8M0


def cast(x: Array, *, to: str, saturate: int = 1, round_mode: str = "up") -> Array:
    """X in another element type.

    Args:
        x: Any shape.
        to: Name of the element type.
        saturate: Whether what float8 cannot hold becomes its greatest number.
        round_mode: For F8_E8M0: up, down or nearest.

    Raises:
        UnsupportedError: No such element type or rounding.
    """
    row, dtype = of_element(to), element_dtype(to)
    if x.dtype == dtype or row is None or row.bits != 8 or x.dtype.kind in "OUS":
        return x.astype(dtype)
    if row.kind == "exponent":
        return _powers(x, dtype, bool(saturate), round_mode)
    return _float8(x, row, bool(saturate)) if row.is_float else x.astype(dtype)


def cast_like(x: Array, like: Array, *, saturate: int = 1, round_mode: str = "up") -> Array:
    """X in the element type of another value; the rest as in `cast`."""
    return cast(x, to=element_name(like.dtype), saturate=saturate, round_mode=round_mode)


def _float8(x: Array, row: DType, saturate: bool) -> Array:
    import ml_dtypes

    wide = x.astype(np.float32)
    if saturate:
        top = np.float32(ml_dtypes.finfo(row.numpy).max)  # type: ignore[no-untyped-call]
        wide = np.where(np.isnan(wide), wide, np.clip(wide, -top, top))
    return wide.astype(row.numpy)


def _powers(x: Array, dtype: np.dtype[Any], saturate: bool, round_mode: str) -> Array:
    if round_mode not in ROUND_MODES:
        raise UnsupportedError("unknown rounding of a Cast", found=round_mode, allowed=", ".join(ROUND_MODES))
    bits = x.astype(np.float32).view(np.uint32) & 0x7FFFFFFF
    exponent, rest = (bits >> 23).astype(np.int64), bits & 0x7FFFFF
    raised = {"up": rest > 0, "down": rest < 0, "nearest": rest >= 0x400000}[round_mode]
    code = exponent + raised.astype(np.int64)
    greatest = np.minimum(code, _GREATEST) if saturate else code
    return np.where(exponent == _NAN, _NAN, greatest).astype(np.uint8).view(dtype)
