"""An ONNX graph as a graph of ours: initializers as tensors, nodes as rows of the table, everything else as Opaque.

Three things change on the way, none of them a number:

    weights that the graph dequantizes are one tensor (formats/onnx/claims.py), and its dequantizing node is gone
    small constant inputs are attributes where the row has attributes for them (formats/onnx/nodes.py)
    float initializers that are not float32 pass through a Cast to their own type, since tensors enter as float32

Values keep their names. An operator that has no row, or not with these attributes, becomes an `Opaque` node with its
domain, version and attributes as they were.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np

from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.formats.onnx.attributes import TENSOR, attributes, captured, encoded, subgraphs
from qdeploy.formats.onnx.claims import Claims
from qdeploy.formats.onnx.initializers import element_of, open_initializers, typed_units
from qdeploy.formats.onnx.rewrites import Known
from qdeploy.formats.onnx.subgraphs import lifted
from qdeploy.formats.onnx.versions import CURRENT
from qdeploy.formats.stored import Array, InMemory, Stored
from qdeploy.ir.dtype import DType, element_row, of_onnx, onnx_rows, plain_name
from qdeploy.ir.graph import Attr, Graph, Node, Value
from qdeploy.ir.graph_rules import check_graph
from qdeploy.ir.ops.table import OPS
from qdeploy.ir.tensor import Buffer, QTensor, plain
from qdeploy.store.folder import Folder
from qdeploy.store.origin import Origin

STATIC_ELEMENTS = 4096
"""Constants up to this size can become attributes."""


class Network:
    """A parsed graph over its initializers.

    Attributes:
        proto: The ModelProto without the data of its initializers.
        stored: Initializers, and constants of nodes, by name.
        claims: Weights that the graph dequantizes; `claimed` are their tensors.
        settings: Attributes of nodes without a row, by their first output.
        tensors: The model's tensors.
        versions: Imported version of each domain.
    """

    def __init__(self, proto: Any, stored: Sequence[Stored], file: str, folder: Folder | None = None) -> None:
        self.proto, self.file, self._folder = proto, file, folder
        self.versions = {_domain(o.domain): int(o.version) for o in proto.opset_import}
        self.stored = {s.name: s for s in stored}
        if len(self.stored) != len(stored) or "" in self.stored:
            raise BadFileError("two initializers with one name, or one without", where=file)
        for node in proto.graph.node:
            if not node.op_type or not any(node.output):
                raise BadFileError("a node without an operator or an output", where=file, found=node.name)
        self._is_current = False
        for tensor in lifted(proto.graph):
            self.stored[tensor.name] = self._inline(tensor, tensor.name)
        self._constants_of_nodes()
        self.claims = Claims(proto, self.stored)
        self.claimed = self.claims.tensors
        self.tensors = {
            name: self.claimed.get(name) or s.tensor("onnx")
            for name, s in self.stored.items()
            if name not in self.claims.absorbed
        }
        self._reset()

    def _reset(self) -> None:
        self.nodes: list[Node] = []
        self.constants: dict[str, QTensor] = {}
        self.settings: dict[str, dict[str, Any]] = {}
        self._alias: dict[str, str] = {}
        self._cast: dict[str, str] = {}

    # ---- constants and claims

    def _constants_of_nodes(self) -> None:
        for node in self.proto.graph.node:
            if node.op_type == "Constant" and not node.domain and len(node.attribute) == 1:
                constant = self._constant(node)
                if constant is not None and constant.name in self.stored:
                    raise BadFileError("a name is made twice", where=self.file, found=constant.name)
                if constant is not None:
                    self.stored[constant.name] = constant

    def _constant(self, node: Any) -> Stored | None:
        (attribute,) = node.attribute
        name = node.output[0]
        if attribute.type == TENSOR and attribute.t.data_location == 1:
            return self._constant_elsewhere(attribute.t, name)
        if attribute.type == TENSOR:
            return self._inline(attribute.t, name)
        if attribute.name in ("value_int", "value_ints", "value_float", "value_floats"):
            whole = "int" in attribute.name
            number = attributes(node)[attribute.name]
            array = np.array(number, np.int64 if whole else np.float32)
            element, shape, units = element_row("I64" if whole else "F32"), array.shape, array.reshape(-1)
        else:
            return None
        origin = Origin(self.file, name, element.storage, (units.size,))
        return Stored(name, element, shape, InMemory(units), origin, exact=False)

    def _inline(self, tensor: Any, name: str) -> Stored:
        """A constant whose data lies in the message itself."""
        where = f"{self.file}: {name}"
        element = element_of(tensor, where)
        units = typed_units(tensor, element, where)
        origin = Origin(self.file, name, element.storage, (units.size,))
        return Stored(name, element, tuple(tensor.dims), InMemory(units), origin, exact=False)

    def _constant_elsewhere(self, tensor: Any, name: str) -> Stored:
        """A constant whose data lies in a file beside this one."""
        if self._folder is None:
            raise UnsupportedError("a constant inside of a node lies in another file", where=f"{self.file}: {name}")
        named = type(tensor).FromString(tensor.SerializeToString())
        named.name = name
        return open_initializers(self._folder, self.file, [named], [None])[0]

    # ---- what importers of nodes ask for

    def static(self, name: str) -> Array | None:
        """A small constant as an array; None for anything else."""
        stored = self.stored.get(name)
        if stored is None or stored.dtype.bits < 8 or stored.count > STATIC_ELEMENTS or name in self.claimed:
            return None
        return stored.array()

    def value(self, name: str) -> str:
        """The value of a name in our graph, in its own element type."""
        name = self._alias.get(name, name)
        stored = self.stored.get(name)
        if stored is None or name in self.claimed or not _enters_by_a_cast(stored.dtype):
            return name
        if name not in self._cast:
            self._cast[name] = self.cast(name, stored.dtype.element, f"{name}/{stored.dtype.element.lower()}")
        return self._cast[name]

    def cast(self, name: str, to: str, output: str) -> str:
        """Adds a Cast; returns its output."""
        return self.add("Cast", (name,), (output,), {"to": to})

    def alias(self, name: str, of: str) -> None:
        """Lets a name stand for another value."""
        self._alias[name] = of

    def constant(self, array: Array, dtype: str) -> str:
        """A constant of the graph that the source holds in another form."""
        name = f"constant/{len(self.constants)}"
        self.constants[name] = plain(Buffer.of("data", np.atleast_1d(array), dtype), plain_name(dtype))
        return name

    def add(
        self,
        op: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        attrs: dict[str, Any] | None = None,
        name: str = "",
    ) -> str:
        """Adds a node; returns its first output."""
        trimmed = list(inputs)
        while trimmed and not trimmed[-1]:
            trimmed.pop()
        self.nodes.append(Node(op, tuple(trimmed), tuple(outputs), attrs or {}, name))
        return outputs[0]

    def is_output(self, name: str) -> bool:
        """Whether the graph gives this value."""
        return any(v.name == name for v in self.proto.graph.output)

    def version(self, domain: str) -> int:
        """The imported version of a domain; at least the one that rows mean while rewritten nodes are imported."""
        version = self.versions.get(_domain(domain), 1)
        return max(version, CURRENT) if self._is_current and not _domain(domain) else version

    @contextmanager
    def current(self) -> Iterator[None]:
        """Nodes that are imported here were rewritten to the current version of ONNX."""
        before, self._is_current = self._is_current, True
        try:
            yield
        finally:
            self._is_current = before

    @cached_property
    def known(self) -> Known:
        """Ranks and element types of values, as far as onnx infers them."""
        import onnx

        try:
            graph = onnx.shape_inference.infer_shapes(self.proto).graph
        except (ValueError, RuntimeError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
            graph = self.proto.graph  # what the source itself declares
        tensors = [v for v in (*graph.input, *graph.value_info, *graph.output) if v.type.HasField("tensor_type")]
        ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in tensors if v.type.tensor_type.HasField("shape")}
        types = {v.name: int(v.type.tensor_type.elem_type) for v in tensors if v.type.tensor_type.elem_type}
        for name, stored in self.stored.items():
            ranks[name], types[name] = len(stored.shape), stored.dtype.onnx
        return Known(ranks, types, self._floats)

    def _floats(self, name: str) -> list[float] | None:
        array = self.static(name)
        return None if array is None or array.dtype.kind != "f" else [float(x) for x in array.reshape(-1)]

    # ---- the graph

    def graph(self) -> Graph:
        """Builds the graph.

        Raises:
            BadFileError: A node takes what nothing makes, or a name is made twice.
            UnsupportedError: A value of the graph is not a tensor of a known type and rank.
        """
        from qdeploy.formats.onnx.nodes import import_node

        self._reset()
        source = self.proto.graph
        inputs = tuple(self._value(v) for v in source.input if v.name not in self.stored)
        for node in source.node:
            constant = node.op_type == "Constant" and node.output[0] in self.stored
            if not constant and not self.claims.is_only_a_view(node):
                import_node(self, node)
        outputs = tuple(self._value(v) for v in self._typed_outputs())
        wrong = [v.name for v in outputs if v.name in self.stored]
        if wrong:
            raise UnsupportedError("an output of the graph is a constant", where=self.file, found=", ".join(wrong))
        meta: dict[str, Attr] = {"kind": "network", "opset": self.version("")}
        graph = Graph(inputs, outputs, tuple(self.nodes), (), self.constants, meta)
        check_graph(graph, self.tensors)
        return graph

    def opaque(self, node: Any, version: int = 0) -> None:
        """Carries a node as it is, in a version of its domain (default: the imported one)."""
        outside = list(dict.fromkeys(name for graph in subgraphs(node) for name in captured(graph)))
        types = {v.name: v for v in self.proto.graph.value_info}
        attrs: dict[str, Any] = {
            "domain": _domain(node.domain),
            "type": node.op_type,
            "version": version or self.version(node.domain),
            "attributes": encoded(node),
            "outputs": [_described(types.get(name)) for name in node.output],
        }
        self.settings[next(name for name in node.output if name)] = attributes(node)
        inputs = [self.value(name) for name in node.input]
        if outside:
            attrs["captured"] = outside
            inputs += [self.value(name) for name in outside]
            self.nodes.append(Node("Opaque", tuple(inputs), tuple(node.output), attrs, node.name))
            return
        self.add("Opaque", inputs, node.output, attrs, node.name)

    def _typed_outputs(self) -> Any:
        outputs = self.proto.graph.output
        if all(v.type.tensor_type.HasField("shape") for v in outputs):
            return outputs
        import onnx

        try:
            return onnx.shape_inference.infer_shapes(self.proto).graph.output
        except (ValueError, RuntimeError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise BadFileError(f"shapes of outputs cannot be inferred: {error}", where=self.file) from error

    def _value(self, info: Any) -> Value:
        kind = info.type.tensor_type
        row = of_onnx(kind.elem_type)
        if not info.type.HasField("tensor_type") or row is None:
            raise UnsupportedError(
                "an input or output of a type that graphs do not hold",
                where=f"{self.file}: {info.name}",
                found=_type_name(info.type),
                allowed="tensors of " + ", ".join(known.element for known in onnx_rows()),
            )
        if not kind.HasField("shape"):
            raise UnsupportedError(
                "an input or output without a number of axes",
                where=f"{self.file}: {info.name}",
                found="no shape",
                todo="Declare its shape in the source; free axes are allowed.",
            )
        return Value(info.name, row.element, _axes(info))


def _type_name(kind: Any) -> str:
    """A TypeProto in words: "sequence of tensors of STRING"."""
    import onnx

    which = kind.WhichOneof("value") or "nothing"
    if which in ("tensor_type", "sparse_tensor_type"):
        number = getattr(kind, which).elem_type
        names = onnx.TensorProto.DataType
        name = names.Name(number) if number in names.values() else f"type {number}"
        return f"{'sparse tensors' if which.startswith('sparse') else 'tensors'} of {name}"
    if which in ("sequence_type", "optional_type"):
        return f"{which.removesuffix('_type')} of {_type_name(getattr(kind, which).elem_type)}"
    return which.removesuffix("_type")


def _enters_by_a_cast(row: DType) -> bool:
    """Whether values of this type are floats that a tensor, which enters as float32, has to be cast back to."""
    return row.kind in ("float", "exponent") and row.element != "F32"


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _axes(info: Any) -> tuple[int | str, ...]:
    dims = info.type.tensor_type.shape.dim
    return tuple(
        int(d.dim_value) if d.HasField("dim_value") and d.dim_value >= 0 else d.dim_param or f"{info.name}.{i}"
        for i, d in enumerate(dims)
    )


def _described(info: Any) -> list[Any] | None:
    row = None if info is None else of_onnx(info.type.tensor_type.elem_type)
    if row is None:
        return None
    known = info.type.tensor_type.HasField("shape")
    return [row.element, list(_axes(info)) if known else None]


def row_takes(op: str, inputs: Sequence[str]) -> bool:
    """Whether a row takes these inputs."""
    least, most = OPS[op].arity
    return least <= len(inputs) <= most and all(inputs[:least])
