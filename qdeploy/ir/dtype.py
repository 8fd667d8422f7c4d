"""Number types: one row each. What a code of the type is worth, and what the type is called elsewhere.

Every other part of the program that speaks of number types reads this table: the decoder, packages, graphs, the
readers of ONNX and TFLite, and the writers. A new type is one row. It may be added at run time (`register`); nothing
copies the table.

Names are short forms of those of ml_dtypes and ONNX (arXiv 2310.10537 for the element types of OCP MX). A type of at
most 8 bits is its whole table of values, so that decoding is one look-up and the meaning of every code can be read off;
a wider one is a view of the code's bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from qdeploy.catalog.extensions import load_extensions
from qdeploy.errors import BadArgumentError, UnsupportedError
from qdeploy.store.storage import storage_dtype

Kind = Literal["unsigned", "signed", "bool", "float", "exponent", "sign", "ternary", "levels"]


@dataclass(frozen=True)
class DType:
    """A number type.

    Attributes:
        name: Its name in descriptions of tensors, and so on disk ("uint4", "e2m1").
        bits: Width of a code.
        kind: unsigned and signed (two's complement) integers; bool; float; exponent (powers of two, no sign); sign and
            ternary codes; or levels that follow no rule.
        storage: The storage type of its plain layout, one code per element.
        element: Its name as the type of values in a graph; "": such tensors enter a graph as float32.
        ml_dtypes: Its name in ml_dtypes, where it is not the storage type itself.
        onnx: Its number in ONNX (TensorProto.DataType); 0: ONNX has no such type.
        onnx_since: The version of ONNX that brought the type, where that is later than the one that is written.
        dequantized: Whether DequantizeLinear of ONNX takes codes of this type.
        native: The number of its format in model files of the runtime (NumberKind); 0: there is none.
        levels: The value of every code, where neither arithmetic nor ml_dtypes says it.
    """

    name: str
    bits: int
    kind: Kind
    storage: str
    element: str = ""
    ml_dtypes: str = ""
    onnx: int = 0
    onnx_since: int = 0
    dequantized: bool = False
    native: int = 0
    levels: tuple[float, ...] = ()

    @property
    def is_integer(self) -> bool:
        """Whether the value of a code is the code, or the code as two's complement."""
        return self.kind in ("unsigned", "signed")

    @property
    def limits(self) -> tuple[int, int]:
        """The least and the greatest integer; ValueError for what is none."""
        if not self.is_integer:
            raise ValueError(f"{self.name} is no integer")
        half = 1 << (self.bits - 1)
        return (-half, half - 1) if self.kind == "signed" else (0, 2 * half - 1)

    @property
    def is_float(self) -> bool:
        """Whether it is a floating-point format, of any width."""
        return self.kind == "float"

    @property
    def numpy(self) -> np.dtype[Any]:
        """The numpy dtype of values in a graph; types of less than a byte lie one to a byte."""
        if not self.ml_dtypes:
            return storage_dtype(self.storage)
        import ml_dtypes

        extended: np.dtype[Any] = np.dtype(getattr(ml_dtypes, self.ml_dtypes))
        return extended

    def values(self) -> npt.NDArray[np.float32]:
        """The value of every code, float32 [2 ** bits], read-only; only for types of at most 8 bits."""
        return _value_table(self)

    def decode(self, codes: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Returns the float32 value of each code; codes may be unsigned integers or the storage type itself."""
        if self.bits <= 8:
            looked_up: npt.NDArray[np.float32] = self.values()[
                codes.view(np.uint8) if codes.dtype.itemsize == 1 else codes
            ]
            return looked_up
        wide = self.numpy
        typed = codes if codes.dtype == wide else codes.astype(f"<u{wide.itemsize}", copy=False).view(wide)
        numbers: npt.NDArray[np.float32] = typed.astype(np.float32)
        return numbers


_BUILT_IN = (
    DType("uint8", 8, "unsigned", "U8", "U8", onnx=2, dequantized=True, native=5),
    DType("int8", 8, "signed", "I8", "I8", onnx=3, dequantized=True, native=6),
    DType("uint16", 16, "unsigned", "U16", "U16", onnx=4, dequantized=True),
    DType("int16", 16, "signed", "I16", "I16", onnx=5, dequantized=True),
    DType("uint32", 32, "unsigned", "U32", "U32", onnx=12),
    DType("int32", 32, "signed", "I32", "I32", onnx=6, dequantized=True),
    DType("uint64", 64, "unsigned", "U64", "U64", onnx=13),
    DType("int64", 64, "signed", "I64", "I64", onnx=7),
    DType("bool", 8, "bool", "BOOL", "BOOL", onnx=9),
    DType("f16", 16, "float", "F16", "F16", onnx=10, native=2),
    DType("f32", 32, "float", "F32", "F32", onnx=1, native=1),
    DType("f64", 64, "float", "F64", "F64", onnx=11),
    DType("bf16", 16, "float", "BF16", "BF16", onnx=16, native=3),
    DType("e4m3", 8, "float", "F8_E4M3", "F8_E4M3", onnx=17, dequantized=True, native=7),
    DType("e5m2", 8, "float", "F8_E5M2", "F8_E5M2", onnx=19, dequantized=True, native=8),
    DType("e4m3fnuz", 8, "float", "U8", "F8_E4M3FNUZ", "float8_e4m3fnuz", onnx=18, dequantized=True),
    DType("e5m2fnuz", 8, "float", "U8", "F8_E5M2FNUZ", "float8_e5m2fnuz", onnx=20, dequantized=True),
    DType("e8m0", 8, "exponent", "F8_E8M0", "F8_E8M0", onnx=24, native=4),
    DType("e2m3", 6, "float", "U8", ml_dtypes="float6_e2m3fn"),
    DType("e3m2", 6, "float", "U8", ml_dtypes="float6_e3m2fn"),
    DType("e2m1", 4, "float", "U8", "F4_E2M1", "float4_e2m1fn", onnx=23, onnx_since=23, dequantized=True),
    DType("uint4", 4, "unsigned", "U8", "U4", "uint4", onnx=21, dequantized=True),
    DType("int4", 4, "signed", "U8", "I4", "int4", onnx=22, dequantized=True),
    DType("uint2", 2, "unsigned", "U8", "U2", "uint2", onnx=25, onnx_since=25, dequantized=True),
    DType("int2", 2, "signed", "U8", "I2", "int2", onnx=26, onnx_since=25, dequantized=True),
    *(DType(f"uint{bits}", bits, "unsigned", "U8") for bits in (1, 3, 5, 6, 7)),
    *(DType(f"int{bits}", bits, "signed", "U8") for bits in (1, 3, 5, 6, 7)),
    DType("sign", 1, "sign", "U8", levels=(-1, 1)),
    # Code 3 never occurs in a legal tensor; it decodes to what 2-bit arithmetic would give.
    DType("ternary", 2, "ternary", "U8", levels=(-1, 0, 1, 2)),
)
_ROWS = {row.name: row for row in _BUILT_IN}
_ELEMENTS = {row.element: row for row in _BUILT_IN if row.element}
_WIDEST = 64


def dtype(name: str) -> DType:
    """Returns the row of a number type; raises UnsupportedError for an unknown name."""
    if not is_known(name):
        raise UnsupportedError(
            "unknown number format", found=name, allowed=", ".join(_ROWS), todo=" ".join(load_extensions())
        )
    return _ROWS[name]


def is_known(name: str) -> bool:
    """Whether there is a row of this name, here or in an extension."""
    if name not in _ROWS:
        load_extensions()
    return name in _ROWS


def rows() -> Iterator[DType]:
    """Every row, in the order in which they came."""
    return iter(tuple(_ROWS.values()))


def of_storage(storage: str) -> DType | None:
    """The default number type of a plain tensor of a storage type."""
    row = _ELEMENTS.get(storage)
    return row if row is not None and row.storage == storage else None


def plain_name(storage: str) -> str:
    """The name of `of_storage`; raises UnsupportedError where no number type lies so."""
    row = of_storage(storage)
    if row is None:
        raise UnsupportedError("no number format has this storage type", found=storage)
    return row.name


def of_element(element: str) -> DType | None:
    """The number type of values of an element type in a graph."""
    return _ELEMENTS.get(element)


def element_row(element: str) -> DType:
    """As `of_element`; raises UnsupportedError for an unknown name."""
    row = _ELEMENTS.get(element)
    if row is None:
        raise UnsupportedError("unknown element type", found=element, allowed=", ".join(_ELEMENTS))
    return row


def elements() -> tuple[str, ...]:
    """The names of all element types."""
    return tuple(_ELEMENTS)


def of_onnx(number: int) -> DType | None:
    """The number type of an element type of ONNX."""
    return next((row for row in rows() if row.onnx == number), None) if number else None


def onnx_rows() -> tuple[DType, ...]:
    """The number types that ONNX has, in the order of its numbers."""
    return tuple(sorted((row for row in rows() if row.onnx), key=lambda row: row.onnx))


def register(row: DType) -> None:
    """Adds a number type; it is then decoded, packaged, inspected and converted as those that stand here.

    Raises:
        BadArgumentError: The row contradicts itself, its name, element type or number in ONNX is taken, or it has a
            number in the runtime, whose formats stand in its own table (numbers.def).
    """
    _check(row)
    if row.native:
        raise BadArgumentError("the runtime's formats of numbers are built in", where=row.name, found=row.native)
    for other in rows():
        for field in ("name", "element", "onnx"):
            if getattr(row, field) and getattr(row, field) == getattr(other, field):
                raise BadArgumentError(
                    f"a number format's {field} is taken", where=row.name, found=getattr(row, field), allowed=other.name
                )
    _ROWS[row.name] = row
    if row.element:
        _ELEMENTS[row.element] = row


def unregister(name: str) -> None:
    """Takes back what `register` added; raises BadArgumentError for a name that is not there, or is built in."""
    if name not in _ROWS or any(row.name == name for row in _BUILT_IN):
        raise BadArgumentError("no such number format was added", found=name)
    _ELEMENTS.pop(_ROWS.pop(name).element, None)


def _check(row: DType) -> None:
    wide = 8 * storage_dtype(row.storage).itemsize
    levelled = row.kind in ("sign", "ternary", "levels")
    by_rule = row.kind in ("unsigned", "signed", "bool", "exponent")
    if row.kind not in get_args(Kind):
        wrong: Any = f"kind {row.kind}"
    elif type(row.bits) is not int or not 1 <= row.bits <= _WIDEST or not row.name:
        wrong = f"{row.bits} bits"
    elif row.bits > wide or (row.bits > 8 and row.bits != wide):
        wrong = f"{row.bits} bits in {row.storage}"
    elif row.levels and (row.bits > 8 or len(row.levels) != 1 << row.bits):
        wrong = f"{len(row.levels)} levels for {row.bits} bits"
    elif (levelled and not row.levels) or (by_rule and row.levels):
        wrong = f"{row.kind} {'with' if row.levels else 'without'} levels"
    elif not all(isinstance(level, int | float) for level in row.levels):
        wrong = "levels that are not numbers"
    elif row.ml_dtypes and _bits_of_ml_dtypes(row) != row.bits:
        wrong = f"{row.bits} bits, and ml_dtypes.{row.ml_dtypes}"
    elif not row.levels and row.kind in ("float", "exponent") and row.numpy.kind in "iu":
        wrong = f"{row.kind} without a type of ml_dtypes"
    else:
        return
    raise BadArgumentError("a number format contradicts itself", where=row.name, found=wrong)


def _bits_of_ml_dtypes(row: DType) -> int:
    """The width of the type of ml_dtypes that a row names; 0 where there is none of that name and storage."""
    import ml_dtypes

    extended = getattr(ml_dtypes, row.ml_dtypes, None)
    if extended is None or np.dtype(extended).itemsize != storage_dtype(row.storage).itemsize:
        return 0
    info = ml_dtypes.iinfo if row.is_integer else ml_dtypes.finfo
    try:
        return int(info(extended).bits)
    except (TypeError, ValueError):  # a float where the row says integer, or the other way round
        return 0


@cache
def _value_table(row: DType) -> npt.NDArray[np.float32]:
    codes = np.arange(1 << row.bits, dtype=np.uint8)
    table: npt.NDArray[np.float32]
    if row.levels:
        table = np.array(row.levels, np.float32)
    elif row.kind in ("float", "exponent"):
        table = codes.view(row.numpy).astype(np.float32)
    elif row.kind == "signed":
        half = 1 << (row.bits - 1)
        table = ((codes.astype(np.int16) ^ half) - half).astype(np.float32)
    else:
        table = codes.astype(np.float32)
    table.setflags(write=False)
    return table
