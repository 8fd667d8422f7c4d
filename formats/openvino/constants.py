"""Constants of an OpenVINO network, and the sub-graphs that decompress them, as tensors.

A Const has element_type, shape, offset and size; its bytes lie in the .bin file, row-major. Elements of 4 and 2 bits
are one stream, the first element in the low bits. nf4 are indices into 16 levels (arXiv 2305.14314, appendix E).

What NNCF makes of a weight is a chain from such a constant to the operator that takes it:

    Const -> Convert -> [Subtract(Convert(Const zero))] -> Multiply([Convert] Const scale) -> [Reshape] -> [Convert]

Zero and scale have one number for each index of the axes along which they have an extent. With groups of g columns the
constant is [N, K / g, g], its scale [N, K / g, 1], and a Reshape to [N, K] follows. The tensor has the constant's name
and the shape that the operator takes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.formats.openvino.document import Layer, Port
from qdeploy.formats.stored import ByteRange, Stored, source_of
from qdeploy.ir.describe import NF4
from qdeploy.ir.dtype import DType, dtype
from qdeploy.ir.tensor import Buffer, Codes, Param, QTensor, Shape, Table, Term
from qdeploy.pack import bits as streams
from qdeploy.store.folder import Folder
from qdeploy.store.origin import Origin

FLOATS = ("f16", "bf16", "f32", "f64")
_ELEMENTS = {
    "f16": "f16",
    "bf16": "bf16",
    "f32": "f32",
    "f64": "f64",
    "u8": "uint8",
    "i8": "int8",
    "u16": "uint16",
    "i16": "int16",
    "u32": "uint32",
    "i32": "int32",
    "u64": "uint64",
    "i64": "int64",
    "u4": "uint4",
    "i4": "int4",
    "u2": "uint2",
    "boolean": "bool",
    "nf4": "uint4",
    "f4e2m1": "e2m1",
    "f8e4m3": "e4m3",
    "f8e5m2": "e5m2",
    "f8e8m0": "e8m0",
}


@dataclass(frozen=True)
class Constant:
    """A Const layer over its bytes."""

    layer: Layer
    kind: str
    stored: Stored

    @property
    def is_packed(self) -> bool:
        """Whether its elements are codes, rather than floats of 16 bits or more."""
        return self.kind not in FLOATS


def open_constants(folder: Folder, file: str, layers: Sequence[Layer]) -> dict[int, Constant]:
    """Finds the bytes of every Const; none of them is read.

    Raises:
        BadFileError: A range leaves the file, or contradicts the shape.
        UnsupportedError: An element type that is not read.
    """
    constants = {}
    size = folder.size(file) if folder.has(file) else 0
    for layer in layers:
        if layer.kind == "Const":
            constants[layer.number] = _open(folder, file, size, layer)
    return constants


def _open(folder: Folder, file: str, size: int, layer: Layer) -> Constant:
    kind, where = layer.data.get("element_type", ""), f"{file}: {layer.name}"
    if kind not in _ELEMENTS:
        raise UnsupportedError(
            "constants of this element type are not read", where=where, found=kind, allowed=", ".join(_ELEMENTS)
        )
    row = dtype(_ELEMENTS[kind])
    shape = _shape(layer.data.get("shape", ""), where)
    begin, length = (_number(layer.data.get(key), where) for key in ("offset", "size"))
    wanted = streams.row_bytes(math.prod(shape), row.bits)
    if length != wanted or begin + length > size:
        raise BadFileError(
            "a constant's place contradicts its shape or the file",
            where=where,
            found=f"bytes {begin}..{begin + length} of {size}",
            allowed=f"{wanted} bytes for {list(shape)} {kind}",
        )
    units = length if row.bits < 8 else math.prod(shape)
    origin = Origin(file, layer.name, row.storage, (units,), kind=kind, begin=begin)
    rows = ByteRange(folder.rows(file), begin, row.storage)
    return Constant(layer, kind, Stored(layer.name, row, shape, rows, origin))


def _shape(text: str, where: str) -> Shape:
    return tuple(_number(part.strip(), where) for part in text.split(",") if part.strip())


def _number(text: str | None, where: str) -> int:
    if text is None or not (text.isascii() and text.isdigit()) or len(text) > 15:
        raise BadFileError("a number is missing", where=where, found=text or "nothing")
    return int(text)


@dataclass(frozen=True)
class Chain:
    """A constant on its way to an operator."""

    constant: Constant
    shape: Shape
    zero: Constant | None = None
    scale: Constant | None = None
    reshaped: bool = False


class Weights:
    """Which ports of a network are tensors.

    Attributes:
        tensors: By name.
        names: Of the tensors that ports are.
    """

    def __init__(self, layers: Sequence[Layer], constants: Mapping[int, Constant]) -> None:
        self._layers = {layer.number: layer for layer in layers}
        self._constants = constants
        self._chains: dict[Port, Chain] = {}
        self.tensors: dict[str, QTensor] = {}
        self.names: dict[Port, str] = {}
        for layer in layers:
            chain = self._chain(layer)
            if chain is not None:
                self._chains[layer.result] = chain
        taken = {port for layer in layers for port in layer.inputs if layer.result not in self._chains}
        for port in sorted(taken & set(self._chains)):
            self._claim(port, self._chains[port])
        absorbed = {part.name for tensor in self.tensors.values() if tensor.source for part in tensor.source.tensors}
        for constant in constants.values():
            if constant.layer.name not in absorbed:
                self._claim(constant.layer.result, Chain(constant, constant.stored.shape))

    def _claim(self, port: Port, chain: Chain) -> None:
        name = chain.constant.layer.name
        tensor = _tensor(chain)
        if tensor is None or (name in self.tensors and self.tensors[name].shape != tensor.shape):
            return
        self.tensors.setdefault(name, tensor)
        self.names[port] = name

    def _chain(self, layer: Layer) -> Chain | None:
        """What a layer adds to a chain; None where it is no part of one."""
        if layer.number in self._constants:
            constant = self._constants[layer.number]
            return Chain(constant, constant.stored.shape)
        chains = [self._chains.get(port) for port in layer.inputs]
        first = chains[0] if chains else None
        if layer.kind == "Convert" and first is not None:
            return first if layer.data.get("destination_type") in FLOATS and _is_real(first.constant) else None
        if layer.kind not in ("Subtract", "Multiply", "Reshape") or len(chains) != 2:
            return None
        other = chains[1]
        if first is None or other is None or other.zero or other.scale or other.reshaped:
            return None
        if layer.kind == "Reshape":
            to = layer.outputs[layer.result[1]].shape
            fits = first.scale is not None and min(to, default=-1) > 0 and math.prod(to) == math.prod(first.shape)
            return Chain(first.constant, to, first.zero, first.scale, True) if fits else None
        if not first.constant.is_packed or first.reshaped or first.scale is not None:
            return None
        if layer.kind == "Subtract":
            return Chain(first.constant, first.shape, other.constant) if first.zero is None else None
        return Chain(first.constant, first.shape, first.zero, other.constant)


def _is_real(constant: Constant) -> bool:
    """Whether a constant may be a weight, or a parameter of one: not a list of indices."""
    return constant.kind not in ("i64", "u64", "i32", "u32", "boolean")


def _tensor(chain: Chain) -> QTensor | None:
    """The tensor of a chain; None where its parameters do not lie so."""
    constant, scale, zero = chain.constant, chain.scale, chain.zero
    parts = [c.stored for c in (constant, zero, scale) if c is not None]
    source = source_of("openvino", "decompressed" if scale or zero else "verbatim", parts)
    grid, merged = constant.stored.shape or (1,), False
    if chain.reshaped and chain.shape != constant.stored.shape:
        merged = len(grid) == 3 and chain.shape == (grid[0], grid[1] * grid[2])
        if not merged:
            return None
    params = [_param(c, key, grid, merged) for c, key in ((zero, "zero"), (scale, "scale"))]
    if (zero is not None and params[0] is None) or (scale is not None and params[1] is None):
        return None
    shape = chain.shape if merged else grid
    codes = _codes(constant, "codes" if scale or zero else "data", shape, params[0], params[1])
    shown = scale.stored.dtype.element if scale is not None else constant.stored.dtype.element or "F32"
    return QTensor(chain.shape, shown, (Term(codes),), source=source)


def _codes(constant: Constant, key: str, grid: Shape, zero: Param | None, scale: Param | None) -> Codes:
    if constant.kind != "nf4":
        return constant.stored.codes(key, grid, zero=zero, scale=scale)
    codes = constant.stored.codes(key, grid, scale=scale)
    table = Table(Buffer.of("table", np.array([NF4], np.float32), "F32"))
    return Codes(grid, codes.data, codes.layout, table, zero, scale)


def _param(constant: Constant | None, key: str, grid: Shape, merged: bool) -> Param | None:
    """A parameter with one number for each index of some axes."""
    if constant is None:
        return None
    row: DType = constant.stored.dtype
    if row.bits < 8 and row.kind == "float":
        return None
    shape = (1,) * (len(grid) - len(constant.stored.shape)) + constant.stored.shape
    if len(shape) != len(grid) or any(n not in (1, g) for n, g in zip(shape, grid, strict=True)):
        return None
    tile = tuple(g if n == 1 else 1 for n, g in zip(shape, grid, strict=True))
    if merged:
        if shape[2] != 1:
            return None
        shape, tile = shape[:2], (tile[0], tile[1] * grid[2])
    return Param(constant.stored.codes(key, shape), tile)
