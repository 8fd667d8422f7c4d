"""Storage types: how an element lies in a file. The names are those of safetensors; all are little-endian."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from qdeploy.errors import UnsupportedError

_NUMPY = {
    "BOOL": "|b1",
    "U8": "|u1",
    "I8": "|i1",
    "U16": "<u2",
    "I16": "<i2",
    "U32": "<u4",
    "I32": "<i4",
    "U64": "<u8",
    "I64": "<i8",
    "F16": "<f2",
    "F32": "<f4",
    "F64": "<f8",
}
_EXTENDED = {"BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu"}
_EXTENDED_BYTES = {"BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1}
STORAGE_TYPES = (*_NUMPY, *_EXTENDED)
"""Every storage type that can be read."""


def element_bytes(name: str) -> int:
    """Bytes of an element of a storage type, for which no numbers need be read; errors are those of `storage_dtype`."""
    return _EXTENDED_BYTES[name] if name in _EXTENDED_BYTES else storage_dtype(name).itemsize


@cache
def storage_dtype(name: str) -> np.dtype[Any]:
    """Returns the numpy dtype of a storage type; raises UnsupportedError for an unknown name."""
    if name in _NUMPY:
        return np.dtype(_NUMPY[name])
    if name in _EXTENDED:
        import ml_dtypes

        extended: np.dtype[Any] = np.dtype(getattr(ml_dtypes, _EXTENDED[name]))
        return extended
    raise UnsupportedError("unknown storage type", found=name, allowed=", ".join(STORAGE_TYPES))
