"""An ML program (Core ML's MIL.proto): functions of operations over named values.

Of the messages these fields are read:

    Model            1 specificationVersion    502 mlProgram
    Program          2 functions, a map
    Function         1 inputs    2 opset    3 block_specializations, a map
    Block            2 outputs   3 operations
    Operation        1 type   2 inputs, a map of Arguments   3 outputs   4 blocks   5 attributes, a map of Values
    Argument         1 arguments: 1 name, or 2 value
    NamedValueType   1 name   2 type: 1 tensorType: 1 dataType   3 dimensions: 1 constant (1 size), 2 unknown
    Value            2 type   3 immediateValue: 1 tensor   5 blobFileValue: 1 fileName   2 offset
    TensorValue      1 floats   2 ints   3 bools   4 strings   5 longInts   6 doubles   7 bytes, each with 1 values

A map is a repeated message of 1 key and 2 value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.formats.protobuf import fields, signed, varint
from qdeploy.ir.tensor import Shape

ELEMENTS = {
    1: "bool",
    2: "string",
    10: "f16",
    11: "f32",
    12: "f64",
    13: "bf16",
    21: "int8",
    22: "int16",
    23: "int32",
    24: "int64",
    25: "int4",
    31: "uint8",
    32: "uint16",
    33: "uint32",
    34: "uint64",
    35: "uint4",
    36: "uint2",
    37: "uint1",
    38: "uint6",
    39: "uint3",
    40: "e4m3",
    41: "e5m2",
}
"""dataType -> the number type."""
_MOST_OPERATIONS, _MOST_AXES = 1 << 20, 8


@dataclass(frozen=True)
class Type:
    """Of a tensor: the number type of its elements, and its extents, -1 where one is free."""

    element: str
    shape: Shape


@dataclass(frozen=True)
class Constant:
    """A value that is stored: in the message itself, or in a file at an offset."""

    type: Type
    data: bytes = b""
    texts: tuple[str, ...] = ()
    file: str = ""
    offset: int = 0


@dataclass(frozen=True)
class Operation:
    """One application of an operator.

    Attributes:
        kind: Its type.
        inputs: By parameter: names of values, or constants.
        outputs: (name, type) each.
        has_blocks: Whether it runs blocks of its own (loops, conditions).
    """

    kind: str
    inputs: Mapping[str, tuple[str | Constant, ...]]
    outputs: tuple[tuple[str, Type], ...]
    has_blocks: bool = False

    @property
    def name(self) -> str:
        """Of its first output."""
        return self.outputs[0][0]


@dataclass
class Function:
    """A function: what it takes, its operations in order, and what it gives."""

    inputs: list[tuple[str, Type]] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)


def parse(data: bytes, where: str) -> Function:
    """Reads the one function of a model.

    Raises:
        BadFileError: The message is damaged.
        UnsupportedError: It is no ML program, or holds several functions.
    """
    program = b"".join(_messages(data, 502, where))
    functions = [_entry(part, where) for part in _messages(program, 2, where)]
    if len(functions) != 1:
        raise UnsupportedError(
            "a Core ML model that is no ML program of one function",
            where=where,
            found=f"{len(functions)} functions",
            todo="Convert the model with coremltools as an mlprogram.",
        )
    body = functions[0][1]
    blocks = [_entry(part, where)[1] for part in _messages(body, 3, where)]
    if len(blocks) != 1:
        raise UnsupportedError("a function of several specializations", where=where, found=len(blocks))
    function = Function([_named(part, where) for part in _messages(body, 1, where)])
    names = {name for name, _ in function.inputs}
    for number, value in fields(blocks[0], where):
        if number == 2:
            function.outputs.append(_text(value, where))
        elif number == 3:
            operation = _operation(_bytes(value, where), where)
            fresh = {name for name, _ in operation.outputs}
            if fresh & names or len(fresh) != len(operation.outputs) or len(names) > _MOST_OPERATIONS:
                raise BadFileError("a value is made twice", where=where, found=sorted(fresh)[:4])
            names |= fresh
            function.operations.append(operation)
    return function


def _operation(data: bytes, where: str) -> Operation:
    kind, inputs, outputs, blocks = "", dict[str, tuple[str | Constant, ...]](), [], False
    attributes: dict[str, tuple[str | Constant, ...]] = {}
    for number, value in fields(data, where):
        if number == 1:
            kind = _text(value, where)
        elif number == 2:
            key, argument = _entry(_bytes(value, where), where)
            inputs[key] = tuple(_binding(part, where) for part in _messages(argument, 1, where))
        elif number == 3:
            outputs.append(_named(_bytes(value, where), where))
        elif number == 4:
            blocks = True
        elif number == 5:
            key, attribute = _entry(_bytes(value, where), where)
            attributes[key] = (_constant(attribute, where),)
    if not kind or not outputs:
        raise BadFileError("an operation without a type or an output", where=where, found=kind)
    return Operation(kind, {**attributes, **inputs}, tuple(outputs), blocks)


def _binding(data: bytes, where: str) -> str | Constant:
    for number, value in fields(data, where):
        if number == 1:
            return _text(value, where)
        if number == 2:
            return _constant(_bytes(value, where), where)
    raise BadFileError("an argument that is nothing", where=where)


def _constant(data: bytes, where: str) -> Constant:
    parts = {number: _bytes(value, where) for number, value in fields(data, where) if number in (2, 3, 5)}
    kind = _type(parts.get(2, b""), where)
    if 5 in parts:
        place = dict(fields(parts[5], where))
        offset = place.get(2, 0)
        return Constant(kind, file=_text(place.get(1, b""), where), offset=offset if isinstance(offset, int) else -1)
    tensors = list(_messages(parts.get(3, b""), 1, where))
    data, texts = _immediate(tensors[0], kind, where) if tensors else (b"", ())
    return Constant(kind, data, texts)


def _immediate(tensor: bytes, kind: Type, where: str) -> tuple[bytes, tuple[str, ...]]:
    """The elements of a TensorValue, little-endian; or texts."""
    for number, value in fields(tensor, where):
        part = _bytes(value, where)
        if number in (1, 6, 7):  # packed floats and doubles, or bytes
            return b"".join(_messages(part, 1, where)), ()
        if number == 4:
            return b"", tuple(_text(text, where) for n, text in fields(part, where) if n == 1)
        if number in (2, 3, 5):
            dtype = {2: "<i4", 3: "u1", 5: "<i8"}[number]
            return np.array(_integers(part, where), np.int64).astype(dtype).tobytes(), ()
    return b"", ()


def _integers(part: bytes, where: str) -> list[int]:
    """Packed or single varints."""
    numbers: list[int] = []
    for number, value in fields(part, where):
        if number != 1:
            continue
        if isinstance(value, int):
            numbers.append(signed(value))
            continue
        at = 0
        while at < len(value):
            item, at = varint(value, at, where)
            numbers.append(signed(item))
    return numbers


def _named(data: bytes, where: str) -> tuple[str, Type]:
    parts = {number: _bytes(value, where) for number, value in fields(data, where)}
    return _text(parts.get(1, b""), where), _type(parts.get(2, b""), where)


def _type(data: bytes, where: str) -> Type:
    tensor = next(_messages(data, 1, where), None)
    if tensor is None:  # a list, a tuple, a state: named by the operator that takes it
        return Type("", ())
    element, shape = "", list[int]()
    for number, value in fields(tensor, where):
        if number == 1 and isinstance(value, int):
            if value not in ELEMENTS:
                raise UnsupportedError("values of this element type are not read", where=where, found=value)
            element = ELEMENTS[value]
        elif number == 3:
            shape.append(_extent(_bytes(value, where), where))
    if len(shape) > _MOST_AXES:
        raise BadFileError("a shape is out of bounds", where=where, found=shape[:16])
    return Type(element, tuple(shape))


def _extent(data: bytes, where: str) -> int:
    for number, value in fields(data, where):
        if number == 1:
            size = dict(fields(_bytes(value, where), where)).get(1, 0)
            return size if isinstance(size, int) and size < 1 << 40 else -1
    return -1


def _entry(data: bytes, where: str) -> tuple[str, bytes]:
    parts = {number: _bytes(value, where) for number, value in fields(data, where)}
    return _text(parts.get(1, b""), where), parts.get(2, b"")


def _messages(data: bytes, number: int, where: str) -> Any:
    return (_bytes(value, where) for n, value in fields(data, where) if n == number)


def _bytes(value: int | bytes, where: str) -> bytes:
    if isinstance(value, bytes):
        return value
    raise BadFileError("a field of another form", where=where, found=value)


def _text(value: int | bytes, where: str) -> str:
    return _bytes(value, where).decode("utf-8", "replace")


def numbers(constant: Constant, where: str) -> npt.NDArray[Any]:
    """The elements of a constant in the message itself, as an array without its shape."""
    kind = {"f16": "<f2", "f32": "<f4", "f64": "<f8", "bool": "u1"}.get(constant.type.element)
    kind = kind or (
        {"int": "i", "uin": "u"}.get(constant.type.element[:3], "") and _integer_kind(constant.type.element)
    )
    if not kind or len(constant.data) % np.dtype(kind).itemsize:
        raise BadFileError("a constant of another size", where=where, found=f"{len(constant.data)} bytes")
    return np.frombuffer(constant.data, kind)


def _integer_kind(element: str) -> str:
    bits = int(element.lstrip("uint"))
    return f"<{'u' if element[0] == 'u' else 'i'}{max(8, bits) // 8}"
