"""Element types of the values that flow through a graph, and tensors as such values.

Names are those of the storage types (`store/storage.py`); besides, the types of less than a byte, which lie in memory
with one element per byte: U4, I4, U2, I2 and F4_E2M1. A tensor that is nothing but integers enters a graph as integers
of its own type; every other one as the float32 that it decodes to.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from qdeploy.errors import UnsupportedError
from qdeploy.ir.codes import read_codes
from qdeploy.ir.tensor import Array, Codes, QTensor
from qdeploy.store.storage import STORAGE_TYPES, storage_dtype

SMALL_TYPES = {"U4": "uint4", "I4": "int4", "U2": "uint2", "I2": "int2", "F4_E2M1": "float4_e2m1fn"}
"""Types of less than a byte: name -> name in ml_dtypes."""
INTEGER_TABLES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "uint32": "U32",
    "int32": "I32",
    "int64": "I64",
    "uint4": "U4",
    "int4": "I4",
    "uint2": "U2",
    "int2": "I2",
}
"""Number formats that are integers: the name of their element type."""


@cache
def element_dtype(name: str) -> np.dtype[Any]:
    """Returns the numpy dtype of an element type; raises UnsupportedError for an unknown name."""
    if name in SMALL_TYPES:
        import ml_dtypes

        small: np.dtype[Any] = np.dtype(getattr(ml_dtypes, SMALL_TYPES[name]))
        return small
    return storage_dtype(name)


def element_name(dtype: np.dtype[Any]) -> str:
    """Returns the name of a numpy dtype; raises UnsupportedError for one that no graph holds."""
    names = (*STORAGE_TYPES, *SMALL_TYPES)
    found = next((name for name in names if element_dtype(name) == dtype), None)
    if found is None:
        raise UnsupportedError("values of this type are not in any graph", found=dtype, allowed=", ".join(names))
    return found


def integer_type(tensor: QTensor) -> str | None:
    """Returns the element type of a tensor that is nothing but integers in its own shape; None for any other."""
    if len(tensor.terms) != 1 or tensor.scale or tensor.offset or tensor.terms[0].where is not None:
        return None
    codes = tensor.terms[0].values
    if not isinstance(codes, Codes) or codes.zero or codes.scale or codes.offset or not isinstance(codes.table, str):
        return None
    return INTEGER_TABLES.get(codes.table) if codes.shape == (tensor.shape or (1,)) else None


def as_value(tensor: QTensor) -> Array:
    """Returns a tensor as nodes take it: integers as such, everything else in float32; its own shape."""
    name = integer_type(tensor)
    codes = tensor.terms[0].values if tensor.terms else None
    if name is None or not isinstance(codes, Codes):
        return tensor.decode()
    found = read_codes(codes, 0, codes.shape[0])
    if name not in SMALL_TYPES:
        return found.view(element_dtype(name)).reshape(tensor.shape)
    bits = 2 if name.endswith("2") else 4
    if name.startswith("I"):  # two's complement of few bits
        found = ((found.astype(np.int8) ^ (1 << (bits - 1))) - (1 << (bits - 1))).astype(np.int8)
    return found.astype(element_dtype(name)).reshape(tensor.shape)
