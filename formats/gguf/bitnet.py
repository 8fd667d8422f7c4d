"""I2_S, the type of bitnet.cpp: ternary codes of 2 bits, and one scale per tensor behind them.

    n / 4 bytes   128 codes in row-major order take 32 bytes: byte j holds codes j, j + 32, j + 64 and j + 96, the first
                  in the high bits; the value is (code - 1) * scale
    32 bytes      the scale, float32, and 28 bytes of no meaning

This is the layout of its converters, and of its quantizer on x86 with ACT_PARALLEL, the default. Builds for other
machines lay the codes out otherwise under the same number, and files do not say by which they were made. The number,
36, belonged to a type that ggml has withdrawn; a tensor is I2_S if the space up to the next one is what I2_S takes.
TL1 and TL2 (38, and 39, which is MXFP4's, too) are permuted by tiles that only the configuration of the kernels says,
so they are refused. (Layout: microsoft/BitNet, src/ggml-bitnet-mad.cpp, utils/convert-hf-to-gguf-bitnet.py.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from qdeploy.errors import BadFileError
from qdeploy.formats.gguf.head import Head, Info
from qdeploy.ir.tensor import PLAIN, Buffer, Codes, Layout, Param, QTensor, Shape, Source, SourceTensor, Term
from qdeploy.store.codec import Codec, Slabs, UnpackedRows
from qdeploy.store.origin import Origin

NAME, NUMBER, WRITER = "I2_S", 36, "i2_s"
TILED = {38: "TL1", 39: "TL2"}
"""The types of its look-up kernels, by number."""
_BLOCK, _TAIL = 128, 32
_SHIFTS = np.array([6, 4, 2, 0], np.uint8)[:, None]

Array = npt.NDArray[Any]


def size_of(shape: Shape) -> int:
    """Bytes of a tensor."""
    return prod(shape) // 4 + _TAIL


def is_stored(info: Info, head: Head, end: int) -> bool:
    """Whether a tensor of this number is I2_S: by where the next one begins, or the file ends."""
    later = [other.offset for other in head.tensors if other.offset > info.offset]
    space = min(later, default=end - head.data) - info.offset
    size = size_of(info.shape)
    return size <= space < size + head.alignment


def is_bitnet(metadata: Mapping[str, Any]) -> bool:
    """Whether a file is one of bitnet.cpp."""
    return str(metadata.get("general.architecture", "")).startswith("bitnet")


def check(info: Info, where: str) -> None:
    """BadFileError where rows are no whole blocks."""
    if not info.shape or info.shape[-1] % _BLOCK:
        raise BadFileError(
            "a row is not a whole number of blocks",
            where=where,
            found=list(info.shape),
            allowed=f"multiples of {_BLOCK} ({NAME})",
        )


def codec(shape: Sequence[int], where: str = "") -> Codec:
    """U8 [n / 4 + 32] <-> ternary codes U8 [rows, columns / 4], low bits first, and the scale F32 [1, 1]."""
    rows, columns = prod(shape[:-1]), shape[-1]
    count = rows * columns // 4

    def unpack(raw: Array) -> tuple[Array, ...]:
        if not raw.size:
            return np.empty((0, columns // 4), np.uint8), np.empty((0, 1), np.float32)
        blocks = raw[:count].reshape(-1, 1, _BLOCK // 4)
        codes = (blocks >> _SHIFTS & np.uint8(3)).reshape(rows, columns)
        if codes.size and int(codes.max()) > 2:
            raise BadFileError("a code is out of range", where=where, found=3, allowed="0, 1, 2")
        quads = codes.reshape(rows, -1, 4) << np.array([0, 2, 4, 6], np.uint8)
        return np.bitwise_or.reduce(quads, axis=2), raw[count : count + 4].view("<f4").reshape(1, 1)

    def pack(packed: Array, scale: Array) -> Array:
        codes = (packed[..., None] >> np.array([0, 2, 4, 6], np.uint8) & np.uint8(3)).reshape(-1, 4, _BLOCK // 4)
        raw = np.zeros(count + _TAIL, np.uint8)
        raw[:count] = np.bitwise_or.reduce(codes << _SHIFTS, axis=1).reshape(-1)
        raw[count : count + 4] = np.ascontiguousarray(scale).view(np.uint8).reshape(-1)
        return raw

    return Codec(("codes", "scale"), unpack, pack, group=rows, units=count + _TAIL)


def tensor(shape: Shape, entry: Slabs, origin: Origin) -> QTensor:
    """The tensor; shape [..., columns]."""
    rows, columns = prod(shape[:-1]), shape[-1]
    how = codec((rows, columns), f"{origin.file}: {origin.name}")
    data = Buffer("codes", "U8", (rows, columns // 4), UnpackedRows(how, "codes", entry, origin))
    worth = Buffer("scale", "F32", (1, 1), UnpackedRows(how, "scale", entry, origin))
    scale = Codes((1, 1), (worth,), PLAIN, "f32")
    codes = Codes((rows, columns), (data,), Layout("bits", width=2), "ternary", scale=Param(scale, (rows, columns)))
    stored = (SourceTensor(origin.file, origin.name, NAME, (size_of(shape),)),)
    source = Source("gguf", WRITER, {"rows": rows, "columns": columns}, stored)
    return QTensor(shape, "F32", (Term(codes),), source=source)
