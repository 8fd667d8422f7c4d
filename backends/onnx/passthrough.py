"""What networks that came as ONNX bring and no architecture of ours has.

    rows                most are ONNX operators as they stand
    Opaque              an operator without a row goes out as it came in
    integers            initializers of their own type (indices, zero points, codes of QLinear operators)
    quantized weights   the codes as they lie, and a DequantizeLinear node with the stored scale and zero points
    small constants     in the graph itself, so that ONNX Runtime sees shapes and scales when it optimizes

A row's inputs are the operator's inputs, so a row of the table needs only the operator's domain.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from qdeploy.backends.onnx.proto import MICROSOFT, OPSET, GraphBuilder, onnx_type
from qdeploy.errors import UnsupportedError
from qdeploy.ir.codes import read_codes
from qdeploy.ir.dtype import DType, dtype, of_element
from qdeploy.ir.element import as_value, integer_type
from qdeploy.ir.graph import Node
from qdeploy.ir.ops.table import op
from qdeploy.ir.tensor import Array, Codes, Param, QTensor
from qdeploy.ir.views import Affine, Floats, Integers, Minifloat, view
from qdeploy.ir.views.params import RowReader
from qdeploy.pack import bits as bit_stream

if TYPE_CHECKING:
    from qdeploy.backends.onnx.nodes import Scope

SMALL = 1024
"""Elements up to which a constant stands in the graph itself."""
_TYPES = ("output_dtype", "to", "dtype")

# ---- nodes


def emit_operator(scope: Scope, node: Node) -> None:
    """Emits a row as the operator of ONNX or of ONNX Runtime that it is."""
    row = op(node.op)
    attrs: dict[str, Any] = dict(node.attrs)
    inputs = [scope.value(name) for name in node.inputs]
    present = max((place for place, key in enumerate(row.constants, 1) if attrs.get(key) is not None), default=0)
    constants = [attrs.pop(key, None) for key in row.constants][:present]
    inputs += ["" if value is None else scope.builder.constant(value, "int64") for value in constants]
    kept: dict[str, Any] = {key: value for key, value in attrs.items() if value is not None and value != []}
    for key in _TYPES:
        if key in kept:
            needs_type(scope.builder, str(kept[key]))
            kept[key] = onnx_type(str(kept[key]))
    if node.op == "ConstantOfShape":
        number_type = onnx.helper.tensor_dtype_to_np_dtype(int(kept.pop("dtype", 1)))
        kept["value"] = onnx.numpy_helper.from_array(np.array([kept.pop("value", 0.0)], number_type))
    domain = MICROSOFT if row.source.startswith(MICROSOFT) else ""
    scope.builder.node(node.op, inputs, node.outputs, domain, **kept)


def emit_opaque(scope: Scope, node: Node) -> None:
    """Emits an operator without a row as it was in its source.

    Raises:
        UnsupportedError: Its meaning changed between the source's version of ONNX and the one that is written.
    """
    captured = [str(name) for name in node.attrs.get("captured", [])]  # type: ignore[union-attr]
    values = [scope.value(name) for name in node.inputs]
    direct = len(values) - len(captured)
    domain, kind, version = (node.attrs[key] for key in ("domain", "type", "version"))
    needs_operator(scope.builder, str(domain), str(kind), int(version))  # type: ignore[arg-type]
    scope.builder.node(str(kind), values[:direct], node.outputs, str(domain))
    renamed = dict(zip(captured, values[direct:], strict=True))
    for text in node.attrs["attributes"]:  # type: ignore[union-attr]
        attribute = onnx.AttributeProto.FromString(base64.b64decode(str(text)))
        for graph in (attribute.g, *attribute.graphs):
            _rename(graph, renamed)
            _needs_operators(scope.builder, graph, domain, int(version))  # type: ignore[arg-type]
        scope.builder.graph.node[-1].attribute.append(attribute)


def _needs_operators(builder: GraphBuilder, graph: Any, domain: Any, version: int) -> None:
    """Notes what the nodes of a subgraph need, which are of the same version as the node around it."""
    for node in graph.node:
        if node.domain in ("", "ai.onnx") and not domain:
            builder.require_operator(node.op_type, version)
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                _needs_operators(builder, inner, domain, version)


def _rename(graph: Any, names: Mapping[str, str]) -> None:
    """Puts the values of our graph in the place of the names that a subgraph takes from outside."""
    inside = {v.name for v in graph.input} | {t.name for t in graph.initializer}
    inside |= {name for node in graph.node for name in node.output}
    outside = {name: value for name, value in names.items() if name not in inside}
    for node in graph.node:
        node.input[:] = [outside.get(name, name) for name in node.input]
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                _rename(inner, outside)
    for value in graph.output:
        value.name = outside.get(value.name, value.name)


def needs_type(builder: GraphBuilder, name: str) -> None:
    """Notes that an element type is used."""
    row = of_element(name)
    builder.require("", max(OPSET, row.onnx_since if row is not None else 0))


def needs_operator(builder: GraphBuilder, domain: str, kind: str, version: int) -> None:
    """Notes that an operator of a version of its domain is used."""
    if domain:
        builder.require(domain, version)
        return
    try:
        since = onnx.defs.get_schema(kind, version).since_version
        ours = onnx.defs.get_schema(kind, max(OPSET, version)).since_version
    except onnx.defs.SchemaError:
        builder.require("", max(OPSET, version))  # an operator that ONNX Runtime alone has in this domain
        return
    if since != ours:
        raise UnsupportedError(
            "the meaning of an operator changed since the source was written",
            where=kind,
            found=f"ONNX {version}",
            allowed=f"ONNX {ours} and later",
            todo="No nodes of today mean the same; export the network again with a newer version of ONNX.",
        )
    builder.require("", since)


# ---- tensors


@dataclass(frozen=True)
class Literal:
    """A small constant in the graph itself."""

    name: str
    tensor: QTensor

    def value(self, builder: GraphBuilder) -> str:
        """Its initializer."""
        name, key = self.name, ("literal", self.name)
        if key not in builder.memo:
            builder.memo[key] = name
            array = np.ascontiguousarray(as_value(self.tensor)).reshape(self.tensor.shape)
            builder.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
            needs_type(builder, integer_type(self.tensor) or "F32")
        return name


@dataclass(frozen=True)
class StoredForm:
    """A tensor as its source stores it: bare integers, or codes with a DequantizeLinear node.

    Attributes:
        name: The tensor's name, which its codes have in the file too.
        tensor: The tensor.
        codes: Its only term.
        element: Element type of the codes.
        axis: What scale and zero points belong to: an axis, or None for all elements.
        block: Elements of that axis per number; 0: one number per index.
    """

    name: str
    tensor: QTensor
    codes: Codes
    element: str
    axis: int | None = None
    block: int = 0

    @property
    def label(self) -> str:
        """Element type, and how the numbers are spread."""
        spread = "" if self.axis is None else f" axis {self.axis}" + (f" block {self.block}" if self.block else "")
        return self.element.lower() + (f" dequantized{spread}" if self.codes.scale else "")

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""
        return self.tensor.shape

    def value(self, builder: GraphBuilder) -> str:
        """The whole tensor: integers, or float32."""
        needs_type(builder, self.element)
        stored = _declare(builder, self.name, self.codes, self.element, self.tensor.shape)
        scale = self.codes.scale
        if scale is None:
            return stored
        values = _sole(scale)
        assert values is not None  # `stored_form` has looked
        shape = self._numbers(values)
        factor = _declare(builder, f"{self.name}.:scale", values, dtype(str(values.table)).element, shape)
        if values.table != "f32":
            factor = builder.once("Cast", [factor], to=onnx_type("F32"))
        inputs = [stored, factor]
        zero = _sole(self.codes.zero) if self.codes.zero else None
        if zero is not None:
            inputs.append(_declare(builder, f"{self.name}.:zero", zero, self.element, shape))
        elif builder.explicit_zeros and self.element == "I8" and len(shape) == 1:
            inputs.append(builder.zeros(f"{self.name}.:zero", shape))
        attrs: dict[str, Any] = {"axis": self.axis or 0} | ({"block_size": self.block} if self.block else {})
        return builder.once("DequantizeLinear", inputs, **attrs)

    def _numbers(self, values: Codes) -> tuple[int, ...]:
        """The shape of scale and zero points in ONNX."""
        if self.block:
            return values.shape
        return () if self.axis is None else (values.shape[self.axis],)

    def linear(self, builder: GraphBuilder, x: str, output: str) -> None:
        """FusedMatMul over the dequantized weight."""
        builder.node("FusedMatMul", [x, self.value(builder)], output, MICROSOFT, transB=1)

    def gather(self, builder: GraphBuilder, ids: str, output: str) -> None:
        """Rows of the dequantized weight."""
        builder.node("Gather", [self.value(builder), ids], output)


def literal(name: str, tensor: QTensor) -> Literal | None:
    """A tensor that is small and not quantized, as a constant in the graph."""
    seen = view(tensor)
    plain = isinstance(seen, Integers) or (isinstance(seen, Floats) and _is_scale(seen.dtype))
    return Literal(name, tensor) if plain and math.prod(tensor.shape) <= SMALL else None


def stored_form(name: str, tensor: QTensor) -> StoredForm | None:
    """A tensor as it is stored, or None where ONNX has no such form."""
    seen = view(tensor)
    if isinstance(seen, Integers):
        return StoredForm(name, tensor, seen.codes, seen.element)
    if not isinstance(seen, Affine | Minifloat) or not seen.is_own_grid or seen.codes.offset is not None:
        return None
    codes, row = seen.codes, dtype(str(seen.codes.table))
    if codes.scale is None or not row.dequantized:
        return None
    if any(_sole(p) is None or p.tile != codes.scale.tile for p in seen.params):
        return None
    scale = _sole(codes.scale)
    zero = _sole(codes.zero) if codes.zero else None
    if scale is None or not _is_scale(dtype(str(scale.table))) or (zero is not None and zero.table != codes.table):
        return None
    placed = _axis(codes.shape, codes.scale.tile, scale.shape)
    return None if placed is None else StoredForm(name, tensor, codes, row.element, *placed)


def _is_scale(row: DType) -> bool:
    """Whether DequantizeLinear takes scales of this type."""
    return row.is_float and 16 <= row.bits <= 32


def _axis(grid: tuple[int, ...], tile: tuple[int, ...], numbers: tuple[int, ...]) -> tuple[int | None, int] | None:
    """(axis, block) of a tiling; None where ONNX has no such tiling."""
    if all(n == 1 for n in numbers):
        return None, 0
    for axis in range(len(grid)):
        if numbers == tuple(n if i == axis else 1 for i, n in enumerate(grid)):
            return axis, 0
    blocked = [axis for axis, t in enumerate(tile) if t > 1]
    return (blocked[0], tile[blocked[0]]) if len(blocked) == 1 else None


def _sole(param: Param | None) -> Codes | None:
    """The numbers of a param that are stored as such."""
    if param is None or param.index is not None or param.divide or not isinstance(param.values, Codes):
        return None
    values = param.values
    return None if values.zero or values.scale or values.offset or not isinstance(values.table, str) else values


def _declare(builder: GraphBuilder, name: str, codes: Codes, element: str, shape: tuple[int, ...]) -> str:
    """Declares codes as an initializer of their element type; types of less than a byte are one stream."""
    bits, count = dtype(str(codes.table)).bits, math.prod(codes.shape)
    if bits >= 8 and shape:
        rows = codes.data[0].read if codes.shape == shape else _flat(codes)
        return builder.initializer(name, onnx_type(element), shape, rows)
    size = bit_stream.row_bytes(count, bits)
    known = ("declared", name)
    if known not in builder.memo:
        builder.memo[known] = builder.initializer(name, onnx_type("U8"), (size,), code_stream(codes, bits))
        builder.graph.initializer[-1].data_type = onnx_type(element)
        builder.graph.initializer[-1].dims[:] = shape
    return builder.memo[known]


def _flat(codes: Codes) -> RowReader:
    """A grid of one number per index of an axis as the run that it is."""
    return lambda start, stop: codes.data[0].read().reshape(-1)[start:stop]


def code_stream(codes: Codes, bits: int, half: int = 0) -> RowReader:
    """Bytes [start, stop) of all codes as one stream; `half` turns the sign bit of signed codes over."""
    row, count = math.prod(codes.shape[1:]), math.prod(codes.shape)

    def read(start: int, stop: int) -> Array:
        first, last = start * 8 // bits, min(stop * 8 // bits, count)
        if bits > 8:  # whole elements: the bytes of a scalar
            return read_codes(codes, 0, codes.shape[0]).reshape(-1).view(np.uint8)[start:stop]
        low, high = first // row, -(-last // row)
        selected = read_codes(codes, low, high).reshape(-1)[first - low * row : last - low * row]
        return bit_stream.pack(np.ascontiguousarray(selected ^ half if half else selected), bits)

    return read
