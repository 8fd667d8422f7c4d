"""A TFLite file without its weights: verified (image.py), then read with the published schema.

The schema package is `tflite`, generated from schema_v3c.fbs. It is older than the blockwise quantization that LiteRT
writes, whose table is read here by its slots:

    BlockwiseQuantization   0: i32 tensor of scales   1: i32 tensor of zero points, below 0: none   2: i32 block size
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from qdeploy.errors import AmbiguousError, BadArgumentError, BadFileError, UnsupportedError
from qdeploy.extras import require
from qdeploy.formats.tflite.fields import OPTIONS, fields_beyond, unread_fields, unread_options
from qdeploy.formats.tflite.image import MODEL, Image
from qdeploy.formats.tflite.sparse import Sparsity, read_sparsity
from qdeploy.ir.tensor import Array
from qdeploy.store.folder import File

IDENTIFIER = b"TFL3"
_CUSTOM_OPTIONS = "CustomOptions"
_CUSTOM, _BLOCKWISE = 1, 2
"""QuantizationDetails."""


@dataclass(frozen=True)
class Blocks:
    """Scales of blocks along one axis: tensor indices, and the elements of a block; `zeros` -1: none."""

    scales: int
    zeros: int
    size: int


@dataclass(frozen=True)
class Tensor:
    """A tensor as the file describes it.

    Attributes:
        name: UTF-8, with other bytes as lone surrogates; not unique.
        kind: Its type: FLOAT32, INT8, ...
        shape: As stored; a free axis is 1 there.
        free: Which axes are free.
        data: (begin, size) of its bytes in the file; None for what is computed.
        scales: float32 [] or one, or one per index of `axis`.
        zeros: int64, as many.
        axis: Of several scales.
        blocks: Scales of blocks, where there are such.
        unread: Fields that are set and that this reader does not know.
        sparsity: Where its elements lie, where not all of them are stored.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    free: tuple[bool, ...]
    data: tuple[int, int] | None
    scales: Array
    zeros: Array
    axis: int
    blocks: Blocks | None = None
    unread: tuple[str, ...] = ()
    sparsity: Sparsity | None = None


@dataclass(frozen=True)
class Operator:
    """One operator: its name in the schema, tensor indices (-1: left out), options, and fields that are not known.

    `custom` is what an operator without a name in the schema says of itself, in bytes.
    """

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Mapping[str, Any]
    unread: tuple[str, ...] = ()
    custom: bytes = b""


@dataclass(frozen=True)
class Parsed:
    """The subgraph that was asked for; `others` are the networks that were not."""

    tensors: list[Tensor]
    operators: list[Operator]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    others: tuple[str, ...] = ()


def parse(file: File, signature: str = "") -> Parsed:
    """Reads everything but the weights.

    Args:
        file: The file.
        signature: Which of its networks; empty: the only one.

    Raises:
        AmbiguousError: There are several networks, and none was asked for.
        BadArgumentError: There is no network of this name.
        BadFileError: An offset leaves the file, an index names nothing, or a shape or scale is impossible.
        UnsupportedError: The schema package is not installed, or there is no network in the file.
    """
    require("tflite", "flatbuffers", purpose="reading TFLite")
    import tflite

    image = Image(file)
    if image.size < 8 or file.read(4, 4) != IDENTIFIER:
        raise BadFileError("not a TFLite file", where=file.name, allowed="TFL3 in bytes 4..7")
    image.table(image.number(0), MODEL)
    model = tflite.Model.GetRootAs(image.bytes.data, 0)
    if not model.SubgraphsLength():
        raise UnsupportedError("a TFLite file without a network", where=file.name)
    names = _networks(model)
    index = _chosen(names, signature, file.name)
    image.subgraph(index)
    others = tuple(name for name, place in names.items() if place != index)
    return _Reader(file, model, tflite, index).parsed(others)


def _networks(model: Any) -> dict[str, int]:
    """The networks of a file by name: its signatures, and subgraphs that no signature names."""
    networks: dict[str, int] = {}
    for i in range(model.SignatureDefsLength()):
        signature = model.SignatureDefs(i)
        name = (signature.SignatureKey() or b"").decode("utf-8", "replace") or f"signature {i}"
        networks[name] = int(signature.SubgraphIndex())
    for i in range(model.SubgraphsLength()):
        if i not in networks.values():
            name = (model.Subgraphs(i).Name() or b"").decode("utf-8", "replace")
            networks[name if name and name not in networks else f"subgraph {i}"] = i
    return networks


def _chosen(names: dict[str, int], signature: str, where: str) -> int:
    count = len(set(names.values()))
    if signature and signature not in names:
        raise BadArgumentError("no such network", where=where, found=signature, allowed=", ".join(names))
    if not signature and count > 1:
        raise AmbiguousError(
            "a file with several networks",
            where=where,
            found=", ".join(names),
            todo="Name the one that is meant: --signature NAME.",
        )
    index = names[signature] if signature else next(iter(names.values()))
    if not 0 <= index < count:
        raise BadFileError("a signature of no subgraph", where=where, found=index, allowed=f"0..{count - 1}")
    return index


class _Reader:
    """Turns verified tables into plain data."""

    def __init__(self, file: File, model: Any, schema: Any, index: int) -> None:
        self.file, self.model, self.schema, self.graph = file, model, schema, model.Subgraphs(index)
        self.kinds = {n: key for key, n in vars(schema.TensorType).items() if isinstance(n, int)}
        self.ops = {n: key for key, n in vars(schema.BuiltinOperator).items() if isinstance(n, int)}

    def parsed(self, others: tuple[str, ...]) -> Parsed:
        tensors = [self._tensor(i) for i in range(self.graph.TensorsLength())]
        count = len(tensors)
        operators = [self._operator(i, count) for i in range(self.graph.OperatorsLength())]
        ends = [
            self._indices(indices, count, 0) for indices in (self.graph.InputsAsNumpy(), self.graph.OutputsAsNumpy())
        ]
        return Parsed(tensors, operators, ends[0], ends[1], others)

    def _bad(self, what: str, where: str, found: object, allowed: str = "") -> BadFileError:
        return BadFileError(what, where=f"{self.file.name}: {where}", found=found, allowed=allowed)

    def _indices(self, numbers: Any, count: int, least: int) -> tuple[int, ...]:
        listed = tuple(int(n) for n in numbers) if not isinstance(numbers, int) else ()
        if any(not least <= n < count for n in listed):
            raise self._bad("an index names no tensor", "operators", listed, f"{least}..{count - 1}")
        return listed

    def _tensor(self, index: int) -> Tensor:
        t = self.graph.Tensors(index)
        name = (t.Name() or b"").decode("utf-8", "surrogateescape")
        shape = _ints(t.ShapeAsNumpy())
        signature = _ints(t.ShapeSignatureAsNumpy()) or shape
        if len(shape) > 8 or min(shape, default=0) < 0 or len(signature) != len(shape):
            raise self._bad("a shape is out of bounds", name, shape[:16], "at most 8 axes")
        if t.Type() not in self.kinds:
            raise UnsupportedError("a tensor of an unknown type", where=f"{self.file.name}: {name}", found=t.Type())
        quantization, data = t.Quantization(), self._data(t.Buffer(), name)
        scales, zeros, axis = self._quantization(quantization, shape, name)
        blocks, unread = self._details(quantization, scales, name)
        free = tuple(n < 0 for n in signature)
        unread = (*unread_fields("Tensor", t._tab), *unread)
        sparse = t.Sparsity()
        sparsity = None if sparse is None else read_sparsity(sparse, f"{self.file.name}: {name}")
        return Tensor(name, self.kinds[t.Type()], shape, free, data, scales, zeros, axis, blocks, unread, sparsity)

    def _details(self, q: Any, scales: Array, name: str) -> tuple[Blocks | None, tuple[str, ...]]:
        """Scales of blocks, and what else a quantization says that is not read."""
        if q is None:
            return None, ()
        unread, kind, details = unread_fields("QuantizationParameters", q._tab), int(q.DetailsType()), q.Details()
        if not kind:
            return None, unread
        if kind != _BLOCKWISE or details is None:
            return None, (*unread, "Details (custom)" if kind == _CUSTOM else f"Details {kind}")
        numbers = [_int32(details, slot) for slot in range(3)]
        index, zeros, size = (-1 if n is None else n for n in numbers)
        count = self.graph.TensorsLength()
        if scales.size or not 0 <= index < count or zeros >= count or size < 1:
            raise self._bad("scales of blocks that cannot be", name, f"{numbers}, {scales.size} scales beside them")
        return Blocks(index, max(zeros, -1), size), (*unread, *fields_beyond(details, 3))

    def _quantization(self, q: Any, shape: tuple[int, ...], name: str) -> tuple[Array, Array, int]:
        if q is None or not q.ScaleLength():
            return np.zeros(0, np.float32), np.zeros(0, np.int64), 0
        scales, axis = np.array(q.ScaleAsNumpy(), np.float32), int(q.QuantizedDimension())
        zeros = np.array(q.ZeroPointAsNumpy() if q.ZeroPointLength() else np.zeros(scales.size), np.int64)
        fits = scales.size == 1 or (0 <= axis < len(shape) and scales.size == shape[axis])
        if not fits or zeros.size not in (1, scales.size) or not (np.isfinite(scales) & (scales >= 0)).all():
            raise self._bad(
                "scales that do not fit their tensor",
                name,
                f"{scales.size} along axis {axis}",
                f"1, or one per index of an axis of {list(shape)}",
            )
        return scales, np.broadcast_to(zeros, scales.shape).copy(), axis

    def _data(self, index: int, name: str) -> tuple[int, int] | None:
        if not 0 <= index < self.model.BuffersLength():
            raise self._bad("an index names no buffer", name, index)
        buffer = self.model.Buffers(index)
        if buffer.Offset() > 1:  # behind the tables, in files of more than 2 GiB
            begin, size = int(buffer.Offset()), int(buffer.Size())
            if begin + size > self.file.size:
                raise self._bad("a buffer lies outside of the file", name, f"{begin}..{begin + size}")
            return begin, size
        size = int(buffer.DataLength())
        if not size or not index:
            return None
        table = buffer._tab
        return int(table.Vector(table.Offset(4))), size

    def _operator(self, index: int, count: int) -> Operator:
        o = self.graph.Operators(index)
        if not 0 <= o.OpcodeIndex() < self.model.OperatorCodesLength():
            raise self._bad("an index names no operator", f"operator {index}", o.OpcodeIndex())
        code = self.model.OperatorCodes(o.OpcodeIndex())
        number = max(int(code.BuiltinCode()), int(code.DeprecatedBuiltinCode()))
        kind = self.ops.get(number, f"operator {number}")
        is_custom = kind == "CUSTOM"
        if is_custom:
            kind = f"CUSTOM {(code.CustomCode() or b'').decode('utf-8', 'replace')}"
        inputs = self._indices(o.InputsAsNumpy(), count, -1)
        outputs = self._indices(o.OutputsAsNumpy(), count, 0)
        options, unread = self._options(o, kind)
        names = tuple(name for name in unread_fields("Operator", o._tab) if name != _CUSTOM_OPTIONS or not is_custom)
        custom = o.CustomOptionsAsNumpy() if is_custom and o.CustomOptionsLength() else b""
        return Operator(kind, inputs, outputs, options, (*names, *unread), bytes(custom))

    def _options(self, o: Any, kind: str) -> tuple[dict[str, Any], tuple[str, ...]]:
        """What the options of an operator say, and the names of fields that are not read."""
        name, *fields = OPTIONS.get(kind, ("",))
        table = o.BuiltinOptions()
        if table is None:
            return {}, ()
        if name and o.BuiltinOptionsType() != getattr(self.schema.BuiltinOptions, name):
            return {}, ("BuiltinOptions of another operator",)
        unread = unread_options(kind, table)
        if not name:
            return {}, unread
        options = getattr(self.schema, name)()
        options.Init(table.Bytes, table.Pos)
        values = {field: getattr(options, field)() for field in fields}
        if name == "ReshapeOptions":
            values["NewShape"] = _ints(options.NewShapeAsNumpy())
        if name == "SqueezeOptions":
            values["SqueezeDims"] = _ints(options.SqueezeDimsAsNumpy())
        return values, unread


def _int32(table: Any, slot: int) -> int | None:
    """A scalar of a table that the schema package does not know; None where it is absent."""
    place = table.Offset(4 + 2 * slot)
    return int(struct.unpack_from("<i", table.Bytes, table.Pos + place)[0]) if place else None


def _ints(numbers: Any) -> tuple[int, ...]:
    return () if isinstance(numbers, int) else tuple(int(n) for n in numbers)
