"""A TFLite file without its weights: verified, then read with the published schema.

    bytes 0..3   offset of the root table      bytes 4..7   "TFL3"
    table        i32 back to its vtable, then fields inline: scalars, or u32 forward offsets
    vtable       u16 its size, u16 the table's size, then one u16 per field: where in the table it lies, 0: absent
    vector       u32 count, elements; tables in a vector are u32 offsets       string   a vector of bytes

The schema package (`tflite`, generated from schema_v3c.fbs) follows offsets without asking whether they lie in the
file. So everything that it will follow is followed here first. What was verified is copied page by page into a sparse
image of the file, and the package reads that image: memory is taken for the metadata, not for the weights, whose
vectors are only located. Work is bounded by a multiple of the file's size, so that tables that share their content
cannot make a small file a large job; subgraphs besides the main one are not entered.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.ir.tensor import Array
from qdeploy.store.folder import File

IDENTIFIER = b"TFL3"
_PAGE = 4096
_SLACK = 16  # behind the end: a scalar of 8 bytes whose field begins in the last byte reads zeros

Spec = dict[int, Any]
"""Of a table: what each field that is an offset leads to."""
STRING, BYTES = ("vector", 1), "bytes"
_QUANTIZATION: Spec = {0: ("vector", 4), 1: ("vector", 4), 2: ("vector", 4), 3: ("vector", 8)}
_TENSOR: Spec = {0: ("vector", 4), 3: STRING, 4: ("table", _QUANTIZATION), 7: ("vector", 4)}
_OPERATOR: Spec = {1: ("vector", 4), 2: ("vector", 4), 4: ("table", {0: ("vector", 4)})}
_SCALARS: Spec = {1: ("vector", 4), 2: ("vector", 4), 4: ("table", {})}
_SUBGRAPH: Spec = {0: ("tables", _TENSOR), 1: ("vector", 4), 2: ("vector", 4), 3: "operators", 4: STRING}
_MODEL: Spec = {1: ("tables", {1: STRING}), 2: ("first", _SUBGRAPH), 4: ("tables", {0: BYTES})}
_LISTED = ("ReshapeOptions", "SqueezeOptions")
"""Options whose first field is a vector; the others that are read here hold scalars alone."""

OPTIONS = {
    "ADD": ("AddOptions", "FusedActivationFunction", "PotScaleInt16"),
    "SUB": ("SubOptions", "FusedActivationFunction", "PotScaleInt16"),
    "MUL": ("MulOptions", "FusedActivationFunction"),
    "DIV": ("DivOptions", "FusedActivationFunction"),
    "CONV_2D": (
        "Conv2DOptions",
        "Padding",
        "StrideW",
        "StrideH",
        "FusedActivationFunction",
        "DilationWFactor",
        "DilationHFactor",
    ),
    "DEPTHWISE_CONV_2D": (
        "DepthwiseConv2DOptions",
        "Padding",
        "StrideW",
        "StrideH",
        "DepthMultiplier",
        "FusedActivationFunction",
        "DilationWFactor",
        "DilationHFactor",
    ),
    **dict.fromkeys(
        ("AVERAGE_POOL_2D", "MAX_POOL_2D"),
        ("Pool2DOptions", "Padding", "StrideW", "StrideH", "FilterWidth", "FilterHeight", "FusedActivationFunction"),
    ),
    "FULLY_CONNECTED": ("FullyConnectedOptions", "FusedActivationFunction", "WeightsFormat", "KeepNumDims"),
    "SOFTMAX": ("SoftmaxOptions", "Beta"),
    "CONCATENATION": ("ConcatenationOptions", "Axis", "FusedActivationFunction"),
    "MEAN": ("ReducerOptions", "KeepDims"),
    "SQUEEZE": ("SqueezeOptions",),
    "RESHAPE": ("ReshapeOptions",),
    "LEAKY_RELU": ("LeakyReluOptions", "Alpha"),
}
"""The options of an operator: their class in the schema, and what is read of it."""


@dataclass(frozen=True)
class Tensor:
    """A tensor as the file describes it.

    Attributes:
        name: UTF-8, or bytes that are none as half surrogates; not unique.
        kind: Its type: FLOAT32, INT8, ...
        shape: As stored; a free axis is 1 there.
        free: Which axes are free.
        data: (begin, size) of its bytes in the file; None for what is computed.
        scales: float32 [] or one, or one per index of `axis`.
        zeros: int64, as many.
        axis: Of several scales.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    free: tuple[bool, ...]
    data: tuple[int, int] | None
    scales: Array
    zeros: Array
    axis: int


@dataclass(frozen=True)
class Operator:
    """One operator: its name in the schema, tensor indices (-1: left out) and options."""

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: dict[str, Any]


@dataclass(frozen=True)
class Parsed:
    """The main subgraph."""

    tensors: list[Tensor]
    operators: list[Operator]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


class _Image:
    """Verifies tables and copies what they hold."""

    def __init__(self, file: File) -> None:
        self.file, self.size = file, file.size
        self.bytes = np.zeros(file.size + _SLACK, np.uint8)  # pages that are never written take no memory
        self._loaded = bytearray(-(-file.size // _PAGE))
        self._work = 64 * file.size + (1 << 16)

    def bad(self, found: object) -> BadFileError:
        return BadFileError(
            "a TFLite file whose offsets lead nowhere",
            where=self.file.name,
            found=found,
            todo="The file is damaged or truncated; fetch it again.",
        )

    def need(self, begin: int, size: int) -> None:
        """Makes a range of the file readable in the image."""
        if begin < 0 or size < 0 or begin + size > self.size:
            raise self.bad(f"bytes {begin}..{begin + size} of {self.size}")
        self._work -= size + 16
        if self._work < 0:
            raise self.bad("the same bytes used again and again")
        for page in range(begin // _PAGE, -(-(begin + size) // _PAGE)):
            if not self._loaded[page]:
                low, high = page * _PAGE, min((page + 1) * _PAGE, self.size)
                self.file.read_into(low, self.bytes[low:high])
                self._loaded[page] = 1

    def number(self, place: int, form: str = "<I") -> int:
        self.need(place, struct.calcsize(form))
        return int(struct.unpack_from(form, self.bytes.data, place)[0])

    def vector(self, place: int, size: int, read: bool = True) -> tuple[int, int]:
        """First element and count of a vector that an offset at `place` leads to."""
        at = place + self.number(place)
        count = self.number(at)
        if at + 4 + count * size > self.size:
            raise self.bad(f"{count} elements at byte {at}")
        if read:
            self.need(at + 4, count * size)
        return at + 4, count

    def fields(self, at: int) -> list[int]:
        """Where each field of a table lies; 0: absent."""
        back = at - self.number(at, "<i")
        size, extent = self.number(back, "<H"), self.number(back + 2, "<H")
        if size < 4 or size % 2 or extent < 4:
            raise self.bad(f"a table without a description at byte {at}")
        self.need(at, extent)
        self.need(back, size)
        slots = self.bytes[back + 4 : back + size].view("<u2").tolist()
        if any(slot >= extent for slot in slots):
            raise self.bad(f"a field behind its table at byte {at}")
        return [at + slot if slot else 0 for slot in slots]

    def table(self, at: int, spec: Spec) -> None:
        """Verifies a table and all that its specification leads to."""
        places = self.fields(at)
        for slot, kind in spec.items():
            if slot < len(places) and places[slot]:
                self._field(places[slot], kind)

    def _field(self, place: int, kind: Any) -> None:
        if kind == BYTES:
            self.vector(place, 1, read=False)
        elif kind == "operators":
            first, count = self.vector(place, 4)
            for i in range(count):
                self._operator(first + 4 * i + self.number(first + 4 * i))
        elif kind[0] == "vector":
            self.vector(place, kind[1])
        elif kind[0] == "table":
            self.table(place + self.number(place), kind[1])
        else:
            first, count = self.vector(place, 4)
            for i in range(count if kind[0] == "tables" else min(count, 1)):
                self.table(first + 4 * i + self.number(first + 4 * i), kind[1])

    def _operator(self, at: int) -> None:
        """An operator; its options have a vector only where their type says so."""
        import tflite

        places = self.fields(at)
        held = int(self.bytes[places[3]]) if len(places) > 3 and places[3] else 0
        listed = held in [getattr(tflite.BuiltinOptions, name) for name in _LISTED]
        self.table(at, _OPERATOR if listed else _SCALARS)


def parse(file: File) -> Parsed:
    """Reads everything but the weights.

    Raises:
        BadFileError: An offset leaves the file, an index names nothing, or a shape or scale is impossible.
        UnsupportedError: The schema package is not installed, or there is no network in the file.
    """
    try:
        import tflite
    except ImportError as error:
        raise UnsupportedError(
            f"reading TFLite needs a package that is not installed: {error.name}",
            where=file.name,
            todo="pip install 'qdeploy[tflite]'",
        ) from error
    image = _Image(file)
    if image.size < 8 or file.read(4, 4) != IDENTIFIER:
        raise BadFileError("not a TFLite file", where=file.name, allowed="TFL3 in bytes 4..7")
    image.table(image.number(0), _MODEL)
    model = tflite.Model.GetRootAs(image.bytes.data, 0)
    if not model.SubgraphsLength():
        raise UnsupportedError("a TFLite file without a network", where=file.name)
    return _Reader(file, model, tflite).parsed()


class _Reader:
    """Turns verified tables into plain data."""

    def __init__(self, file: File, model: Any, schema: Any) -> None:
        self.file, self.model, self.schema, self.graph = file, model, schema, model.Subgraphs(0)
        self.kinds = {n: key for key, n in vars(schema.TensorType).items() if isinstance(n, int)}
        self.ops = {n: key for key, n in vars(schema.BuiltinOperator).items() if isinstance(n, int)}

    def parsed(self) -> Parsed:
        tensors = [self._tensor(i) for i in range(self.graph.TensorsLength())]
        count = len(tensors)
        operators = [self._operator(i, count) for i in range(self.graph.OperatorsLength())]
        ends = [self._indices(found, count, 0) for found in (self.graph.InputsAsNumpy(), self.graph.OutputsAsNumpy())]
        return Parsed(tensors, operators, ends[0], ends[1])

    def _bad(self, what: str, where: str, found: object, allowed: str = "") -> BadFileError:
        return BadFileError(what, where=f"{self.file.name}: {where}", found=found, allowed=allowed)

    def _indices(self, found: Any, count: int, least: int) -> tuple[int, ...]:
        listed = tuple(int(n) for n in found) if not isinstance(found, int) else ()
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
        scales, zeros, axis = self._quantization(t.Quantization(), shape, name)
        free = tuple(n < 0 for n in signature)
        return Tensor(name, self.kinds[t.Type()], shape, free, self._data(t.Buffer(), name), scales, zeros, axis)

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
        if kind == "CUSTOM":
            kind = f"CUSTOM {(code.CustomCode() or b'').decode('utf-8', 'replace')}"
        inputs = self._indices(o.InputsAsNumpy(), count, -1)
        outputs = self._indices(o.OutputsAsNumpy(), count, 0)
        return Operator(kind, inputs, outputs, self._options(o, kind))

    def _options(self, o: Any, kind: str) -> dict[str, Any]:
        name, *fields = OPTIONS.get(kind, ("",))
        held = o.BuiltinOptions()
        if not name or held is None or o.BuiltinOptionsType() != getattr(self.schema.BuiltinOptions, name):
            return {}
        options = getattr(self.schema, name)()
        options.Init(held.Bytes, held.Pos)
        found = {field: getattr(options, field)() for field in fields}
        if name == "ReshapeOptions":
            found["NewShape"] = _ints(options.NewShapeAsNumpy())
        if name == "SqueezeOptions":
            found["SqueezeDims"] = _ints(options.SqueezeDimsAsNumpy())
        return found


def _ints(found: Any) -> tuple[int, ...]:
    return () if isinstance(found, int) else tuple(int(n) for n in found)
