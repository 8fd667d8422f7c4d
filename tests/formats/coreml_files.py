"""Core ML packages written field by field: one product, whose weight a constexpr operation decompresses."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

KINDS = {"bool": 1, "f16": 10, "f32": 11, "int8": 21, "int32": 23, "int4": 25, "uint8": 31, "uint32": 33}
KINDS |= {"uint4": 35, "uint2": 36, "uint1": 37, "uint6": 38, "uint3": 39}
WIDTHS = {"int4": 4, "uint4": 4, "uint2": 2, "uint1": 1, "uint6": 6, "uint3": 3}
TYPES = {
    "f16": 1,
    "f32": 2,
    "uint8": 3,
    "int8": 4,
    "int16": 6,
    "uint16": 7,
    "int4": 8,
    "uint1": 9,
    "uint2": 10,
    "uint4": 11,
    "uint3": 12,
    "uint6": 13,
    "int32": 14,
    "uint32": 15,
    "bool": 3,
}
"""Numbers of types in a record of weights."""
NUMPY = {"f16": "<f2", "f32": "<f4", "int8": "i1", "int32": "<i4", "uint8": "u1", "uint32": "<u4", "bool": "u1"}


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: int | str | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def tensor_type(kind: str, shape: tuple[int, ...]) -> bytes:
    axes = b"".join(field(3, field(1, field(1, n)) if n >= 0 else field(2, field(1, 0))) for n in shape)
    return field(1, field(1, KINDS[kind]) + field(2, len(shape)) + axes)


def named(name: str, kind: str, shape: tuple[int, ...]) -> bytes:
    return field(1, name) + field(2, tensor_type(kind, shape))


def mapped(number: int, key: str, value: bytes) -> bytes:
    return field(number, field(1, key) + field(2, value))


def stream(codes: np.ndarray, bits: int) -> bytes:
    number = sum(int(c) % (1 << bits) << (i * bits) for i, c in enumerate(codes.reshape(-1)))
    return number.to_bytes(-(-codes.size * bits // 8), "little")


@dataclass(frozen=True)
class Stored:
    """A value in the file of weights."""

    kind: str
    array: np.ndarray


class Package:
    """Collects operations and weights."""

    def __init__(self) -> None:
        self.weights = bytearray(struct.pack("<II", 0, 2) + b"\0" * 56)
        self.operations = b""

    def blob(self, value: Stored) -> bytes:
        """A Value whose data stand in the file of weights."""
        bits = WIDTHS.get(value.kind)
        data = stream(value.array, bits) if bits else value.array.astype(NUMPY[value.kind]).tobytes()
        at = len(self.weights)
        self.weights += struct.pack("<IIQQQ", 0xDEADBEEF, TYPES[value.kind], len(data), at + 64, 0) + b"\0" * 32 + data
        self.weights += b"\0" * (-len(self.weights) % 64)
        place = field(1, "@model_path/weights/weight.bin") + field(2, at)
        return field(2, tensor_type(value.kind, value.array.shape)) + field(5, place)

    @staticmethod
    def immediate(kind: str, array: np.ndarray) -> bytes:
        """A Value that stands in the message."""
        packed = b"".join(varint(int(n)) for n in array.reshape(-1))
        return field(2, tensor_type(kind, array.shape)) + field(3, field(1, field(2, field(1, packed))))

    def operation(
        self, kind: str, outputs: list[bytes], inputs: dict[str, bytes | str], attributes: bool = False
    ) -> None:
        body = field(1, kind)
        for key, value in inputs.items():
            bound = field(1, value) if isinstance(value, str) else field(2, value)
            body += (
                mapped(5, key, value) if attributes and isinstance(value, bytes) else mapped(2, key, field(1, bound))
            )
        self.operations += field(3, body + b"".join(field(3, output) for output in outputs))

    def write(self, folder: Path, shape: tuple[int, int]) -> Path:
        """The package, with x [1, K] times the weight of that shape."""
        self.operation("linear", [named("y", "f32", (1, shape[0]))], {"x": "x", "weight": "weight"})
        block = self.operations + field(2, "y")
        function = field(1, named("x", "f32", (1, shape[1]))) + field(2, "CoreML8") + mapped(3, "CoreML8", block)
        data = folder / "model.mlpackage/Data/com.apple.CoreML"
        (data / "weights").mkdir(parents=True)
        (data / "model.mlmodel").write_bytes(field(1, 9) + field(502, field(1, 1) + mapped(2, "main", function)))
        (data / "weights/weight.bin").write_bytes(bytes(self.weights))
        (folder / "model.mlpackage/Manifest.json").write_text("{}")
        return folder / "model.mlpackage"
