"""Number formats: one row each. How a code becomes a float32.

Names are those of ml_dtypes and ONNX where they have one (arXiv 2310.10537 for the OCP MX element types). A row of at
most 8 bits is its whole table of values, so that decoding is one look-up and the meaning of every code can be read off;
wider rows are a view of the code's bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from qdeploy.errors import UnsupportedError
from qdeploy.store.storage import storage_dtype


@dataclass(frozen=True)
class DataType:
    """A named number format.

    Attributes:
        name: As in ml_dtypes / ONNX.
        bits: Width of a code.
        storage: The storage type of its plain layout, where codes of this width have one of their own.
    """

    name: str
    bits: int
    storage: str

    def values(self) -> npt.NDArray[np.float32]:
        """The value of every code, float32 [2 ** bits]; only for rows of at most 8 bits."""
        return _value_table(self.name)

    def decode(self, codes: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Returns the float32 value of each code; codes may be unsigned integers or the storage type itself."""
        if self.bits <= 8:
            found: npt.NDArray[np.float32] = self.values()[codes.view(np.uint8) if codes.dtype.itemsize == 1 else codes]
            return found
        native = storage_dtype(self.storage)
        typed = codes if codes.dtype == native else codes.astype(f"<u{native.itemsize}", copy=False).view(native)
        wide: npt.NDArray[np.float32] = typed.astype(np.float32)
        return wide


def _rows() -> dict[str, DataType]:
    names: list[tuple[str, int, str]] = []
    for bits in range(1, 9):
        names += [(f"uint{bits}", bits, "U8"), (f"int{bits}", bits, "I8" if bits == 8 else "U8")]
    names += [
        ("uint16", 16, "U16"),
        ("int16", 16, "I16"),
        ("uint32", 32, "U32"),
        ("int32", 32, "I32"),
        ("int64", 64, "I64"),
        ("f16", 16, "F16"),
        ("bf16", 16, "BF16"),
        ("f32", 32, "F32"),
        ("f64", 64, "F64"),
        ("e4m3", 8, "F8_E4M3"),
        ("e5m2", 8, "F8_E5M2"),
        ("e8m0", 8, "F8_E8M0"),
        ("e2m1", 4, "U8"),
        ("e2m3", 6, "U8"),
        ("e3m2", 6, "U8"),
        ("sign", 1, "U8"),
        ("ternary", 2, "U8"),
        ("bool", 8, "BOOL"),
    ]
    return {name: DataType(name, bits, storage) for name, bits, storage in names}


DATATYPES = _rows()
"""Every named number format."""

PLAIN_TABLE = {
    "F16": "f16",
    "BF16": "bf16",
    "F32": "f32",
    "F64": "f64",
    "F8_E4M3": "e4m3",
    "F8_E5M2": "e5m2",
    "F8_E8M0": "e8m0",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "I64": "int64",
    "BOOL": "bool",
}
"""The number format that a plain tensor of a storage type has when nothing else is said."""


def datatype(name: str) -> DataType:
    """Returns the row of a number format; raises UnsupportedError for an unknown name."""
    if name not in DATATYPES:
        raise UnsupportedError("unknown number format", found=name, allowed=", ".join(DATATYPES))
    return DATATYPES[name]


_MINIFLOAT = {
    "e4m3": "float8_e4m3fn",
    "e5m2": "float8_e5m2",
    "e8m0": "float8_e8m0fnu",
    "e2m1": "float4_e2m1fn",
    "e2m3": "float6_e2m3fn",
    "e3m2": "float6_e3m2fn",
}


@cache
def _value_table(name: str) -> npt.NDArray[np.float32]:
    bits = DATATYPES[name].bits
    codes = np.arange(1 << bits, dtype=np.uint8)
    table: npt.NDArray[np.float32]
    if name in _MINIFLOAT:
        import ml_dtypes

        table = codes.view(getattr(ml_dtypes, _MINIFLOAT[name])).astype(np.float32)
    elif name == "sign":
        table = np.array([-1, 1], np.float32)
    elif name == "ternary":  # code 3 never occurs in a legal tensor; it decodes to what 2-bit arithmetic would give
        table = np.array([-1, 0, 1, 2], np.float32)
    elif name.startswith("int"):
        table = ((codes.astype(np.int16) ^ (1 << (bits - 1))) - (1 << (bits - 1))).astype(np.float32)
    else:
        table = codes.astype(np.float32)
    table.setflags(write=False)
    return table
