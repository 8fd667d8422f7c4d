"""Initializers that a graph dequantizes: found where every use of one dequantizes it alike.

    DequantizeLinear       the initializer as a whole
    MatMulNBits            [N, K] in blocks along K
    GatherBlockQuantized   rows of the same, or of a tensor in its own shape; a table that is also the head is often
                           reshaped for it, which changes nothing of what it means

The claimed tensor has the name of the packed initializer; parameters that nothing else takes are no tensors any more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qdeploy.formats.onnx.attributes import attributes, captured, subgraphs
from qdeploy.formats.onnx.quantized import blocks_of_columns, dequantized
from qdeploy.formats.stored import Stored
from qdeploy.ir.tensor import QTensor

MICROSOFT = "com.microsoft"
_ALLOWED: Mapping[str, frozenset[str]] = {
    "MatMulNBits": frozenset({"K", "N", "bits", "block_size", "accuracy_level", "weight_prepacked"}),
    "DequantizeLinear": frozenset({"axis", "block_size", "output_dtype"}),
    "GatherBlockQuantized": frozenset({"bits", "block_size", "gather_axis", "quantize_axis"}),
}
"""Attributes of dequantizing nodes; with others they stay as they are."""
_PLACES: Mapping[str, tuple[int, int]] = {
    "MatMulNBits": (1, 5),
    "DequantizeLinear": (0, 3),
    "GatherBlockQuantized": (0, 4),
}
"""Where the weight stands among the inputs, and the end of its parameters behind it."""

Signature = tuple[str, tuple[str, ...], tuple[Any, ...]]
"""What a node does to its weight: the layout, the names of the parameters, and how."""
_OTHER: Signature = ("other", (), ())


class Claims:
    """The weights of a graph that are dequantized.

    Args:
        proto: The ModelProto.
        stored: Its initializers and constants by name.

    Attributes:
        tensors: Claimed weights by the names of their initializers.
        absorbed: Parameters that only claimed weights have.
    """

    def __init__(self, proto: Any, stored: Mapping[str, Stored]) -> None:
        self._stored = stored
        self._source = _reshaped(proto, stored)
        self.tensors: dict[str, QTensor] = {}
        for name, signatures in self._uses(proto).items():
            if name in stored and len(signatures) == 1 and signatures != {_OTHER}:
                tensor = self._tensor(stored[name], *signatures)
                if tensor is not None:
                    self.tensors[name] = tensor
        self.absorbed = self._absorbed(proto)

    def weight(self, node: Any) -> str:
        """The claimed weight that a node dequantizes; "" for none."""
        signature = self._signature(node)
        name = "" if signature is None else self._weight_name(node)
        return name if name in self.tensors else ""

    def is_only_a_view(self, node: Any) -> bool:
        """Whether a node reshapes a claimed weight for those that dequantize it."""
        return any(self._source.get(name) in self.tensors for name in node.output if name)

    def _weight_name(self, node: Any) -> str:
        name: str = node.input[_PLACES[node.op_type][0]]
        return self._source.get(name, name)

    def _uses(self, proto: Any) -> dict[str, set[Signature]]:
        uses: dict[str, set[Signature]] = {}
        for node in proto.graph.node:
            signature = self._signature(node)
            for place, name in enumerate(node.input):
                if node.op_type == "Reshape" and any(output in self._source for output in node.output):
                    continue
                weight = signature is not None and place == _PLACES[node.op_type][0]
                uses.setdefault(self._source.get(name, name), set()).add(signature if weight and signature else _OTHER)
            for graph in subgraphs(node):
                for name in captured(graph):
                    uses.setdefault(name, set()).add(_OTHER)
        return uses

    def _tensor(self, weight: Stored, signature: Signature) -> QTensor | None:
        kind, names, how = signature
        if any(name and name not in self._stored for name in names):
            return None
        scale, zero, index = (self._stored.get(name) for name in (*names, "", "", "")[:3])
        if scale is None:
            return None
        if kind == "MatMulNBits":
            return blocks_of_columns(weight, {"scale": scale, "zero": zero, "index": index}, dict(how))
        return dequantized(weight, scale, zero, *how)

    def _absorbed(self, proto: Any) -> set[str]:
        """Scales and zero points that are only used by weights that hold them."""
        absorbed: set[str] = set()
        kept: set[str] = {v.name for v in proto.graph.output}
        for node in proto.graph.node:
            mine = bool(self.weight(node))
            parameters = _parameter_places(node) if mine else range(0)
            own = {*parameters, _PLACES[node.op_type][0]} if mine else set[int]()
            absorbed.update(node.input[i] for i in parameters)
            kept.update(name for i, name in enumerate(node.input) if i not in own)
            kept.update(name for graph in subgraphs(node) for name in captured(graph))
        return absorbed - kept

    # ---- what a node does to its weight

    def _signature(self, node: Any) -> Signature | None:
        """None for nodes that dequantize nothing."""
        if node.op_type not in _PLACES or set(attrs := attributes(node)) - _ALLOWED[node.op_type]:
            return None
        return getattr(self, f"_{_SIGNATURES[node.op_type]}")(node, attrs)  # type: ignore[no-any-return]

    def _blocks(self, node: Any, attrs: Mapping[str, Any]) -> Signature | None:
        if node.domain != MICROSOFT or attrs.get("weight_prepacked"):
            return None
        how = tuple((key, attrs.get(key, 0)) for key in ("K", "N", "bits", "block_size"))
        whole = all(isinstance(value, int) for _, value in how) and len(node.input) > 2
        return ("MatMulNBits", _names(node.input[2:5]), how) if whole else None

    def _whole(self, node: Any, attrs: Mapping[str, Any]) -> Signature | None:
        if node.domain not in ("", "ai.onnx", MICROSOFT) or len(node.input) < 2:
            return None
        axis, block = attrs.get("axis", 1), attrs.get("block_size", 0)
        if attrs.get("output_dtype") or not (isinstance(axis, int) and isinstance(block, int)) or block < 0:
            return None
        return "DequantizeLinear", _names(node.input[1:3]), (axis, block)

    def _rows(self, node: Any, attrs: Mapping[str, Any]) -> Signature | None:
        """Bytes hold several codes along the last axis; typed integers lie in the table's own shape."""
        data = self._stored.get(self._weight_name(node))
        scale = self._stored.get(node.input[2]) if len(node.input) > 2 else None
        bits, block = attrs.get("bits", 4), attrs.get("block_size", 128)
        if node.domain != MICROSOFT or data is None or scale is None or len(scale.shape) != 2:
            return None
        rows, blocks = scale.shape
        if attrs.get("gather_axis", 0) != 0 or attrs.get("quantize_axis", 1) not in (1, -1) or block < 1:
            return None
        if data.dtype.element == "U8":
            columns = data.count * 8 // (bits * max(rows, 1))
            how = tuple(zip(("K", "N", "bits", "block_size"), (columns, rows, bits, block), strict=True))
            fits = bits in (2, 4, 8) and -(-columns // block) == blocks
            return ("MatMulNBits", _names(node.input[2:4]), how) if fits else None
        whole = data.dtype.bits == bits and len(data.shape) == 2
        return ("DequantizeLinear", _names(node.input[2:4]), (1, block)) if whole else None


_SIGNATURES: Mapping[str, str] = {
    "MatMulNBits": "blocks",
    "DequantizeLinear": "whole",
    "GatherBlockQuantized": "rows",
}


def _parameter_places(node: Any) -> range:
    first, last = _PLACES[node.op_type]
    start = 2 if node.op_type == "GatherBlockQuantized" else first + 1  # its ids stand between
    return range(start, min(last, len(node.input)))


def _names(inputs: Any) -> tuple[str, ...]:
    """Names of parameters, without those at the end that are left out."""
    names = list(inputs)
    while names and not names[-1]:
        names.pop()
    return tuple(names)


def _reshaped(proto: Any, stored: Mapping[str, Stored]) -> dict[str, str]:
    """Initializers by the names of their reshaped forms, where these are only taken by rows."""
    outputs = {v.name for v in proto.graph.output}
    views = {
        node.output[0]: str(node.input[0])
        for node in proto.graph.node
        if node.op_type == "Reshape"
        and node.input
        and node.input[0] in stored
        and node.output[0] not in outputs
        and stored[node.input[0]].dtype.element == "U8"
    }
    for node in proto.graph.node:
        for place, name in enumerate(node.input):
            if name in views and (node.op_type != "GatherBlockQuantized" or place):
                del views[name]
        for graph in subgraphs(node):
            for name in captured(graph):
                views.pop(name, None)
    return views
