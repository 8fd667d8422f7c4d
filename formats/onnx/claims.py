"""Initializers that a graph dequantizes: found where every use of one dequantizes it alike.

    DequantizeLinear       the initializer as a whole
    MatMulNBits            [N, K] in blocks along K
    MatMulBnb4             [N, K] in blocks of the flattened matrix, with a table
    GatherBlockQuantized   rows of the same, or of a tensor in its own shape; a table that is also the head is often
                           reshaped for it, which changes nothing of what it means
    QMoE                   [experts, N, K] in blocks along K, up to three of them

The claimed tensor has the name of the packed initializer; parameters that nothing else takes are no tensors any more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from qdeploy.formats.onnx.attributes import attributes, captured, subgraphs
from qdeploy.formats.onnx.mixtures import EXPERTS, INPUTS, MICROSOFT, means_experts
from qdeploy.formats.onnx.quantized import blocks_of_columns, blocks_of_experts, blocks_of_table, dequantized
from qdeploy.formats.stored import Stored
from qdeploy.ir.tensor import QTensor

_ALLOWED: Mapping[str, frozenset[str]] = {
    "MatMulNBits": frozenset({"K", "N", "bits", "block_size", "accuracy_level", "weight_prepacked"}),
    "MatMulBnb4": frozenset({"K", "N", "block_size", "quant_type", "transB"}),
    "DequantizeLinear": frozenset({"axis", "block_size", "output_dtype"}),
    "GatherBlockQuantized": frozenset({"bits", "block_size", "gather_axis", "quantize_axis"}),
}
"""Attributes of dequantizing nodes; with others they stay as they are."""
Signature = tuple[str, tuple[str, ...], tuple[Any, ...]]
"""What a node does to its weight: the layout, the names of the parameters, and how."""
_OTHER: Signature = ("other", (), ())


class Use(NamedTuple):
    """What a node does to one of its weights: where that and its parameters stand among the inputs, and how."""

    place: int
    parameters: tuple[int, ...]
    signature: Signature


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
        self._drop_parts(proto)
        self.absorbed = self._absorbed(proto)

    def weight(self, node: Any) -> str:
        """The claimed weight that a node dequantizes; "" for none."""
        return next((name for use in self._signed(node) if (name := self._name(node, use.place)) in self.tensors), "")

    def is_only_a_view(self, node: Any) -> bool:
        """Whether a node reshapes a claimed weight for those that dequantize it."""
        return any(self._source.get(name) in self.tensors for name in node.output if name)

    def _name(self, node: Any, place: int) -> str:
        name: str = node.input[place]
        return self._source.get(name, name)

    def _uses(self, proto: Any) -> dict[str, set[Signature]]:
        uses: dict[str, set[Signature]] = {}
        for node in proto.graph.node:
            signed = {use.place: use.signature for use in self._signed(node)}
            for place, name in enumerate(node.input):
                if node.op_type == "Reshape" and any(output in self._source for output in node.output):
                    continue
                uses.setdefault(self._source.get(name, name), set()).add(signed.get(place, _OTHER))
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
        if kind == "MatMulBnb4":
            return blocks_of_table(weight, scale, *how)
        if kind == "QMoE":
            return blocks_of_experts(weight, scale, zero, *how)
        return dequantized(weight, scale, zero, *how)

    def _drop_parts(self, proto: Any) -> None:
        """Claims of nodes that take several weights stand for all of them or for none."""
        for node in proto.graph.node:
            names = [self._name(node, use.place) for use in self._signed(node)]
            if any(name not in self.tensors for name in names):
                for name in names:
                    self.tensors.pop(name, None)

    def _absorbed(self, proto: Any) -> set[str]:
        """Scales and zero points that are only used by weights that hold them."""
        absorbed: set[str] = set()
        kept: set[str] = {v.name for v in proto.graph.output}
        for node in proto.graph.node:
            mine = [use for use in self._signed(node) if self._name(node, use.place) in self.tensors]
            parameters = {place for use in mine for place in use.parameters if place < len(node.input)}
            own = parameters | {use.place for use in mine}
            absorbed.update(node.input[place] for place in parameters)
            kept.update(name for place, name in enumerate(node.input) if place not in own)
            kept.update(name for graph in subgraphs(node) for name in captured(graph))
        return absorbed - kept

    # ---- what a node does to its weights

    def _signed(self, node: Any) -> list[Use]:
        """What a node does to each of its weights; empty for nodes that dequantize nothing."""
        if node.op_type == "QMoE":
            return self._experts(node, attributes(node))
        if node.op_type not in _ALLOWED or set(attrs := attributes(node)) - _ALLOWED[node.op_type]:
            return []
        if node.op_type == "MatMulNBits":
            return _use(1, (2, 3, 4), self._blocks(node, attrs))
        if node.op_type == "MatMulBnb4":
            how = tuple(attrs.get(key) for key in ("K", "N", "block_size", "quant_type"))
            whole = node.domain == MICROSOFT and len(node.input) == 3 and attrs.get("transB", 1) == 1
            named = ("MatMulBnb4", _names(node.input[2:3]), how)
            return _use(1, (2,), named if whole and all(isinstance(value, int) for value in how) else None)
        if node.op_type == "GatherBlockQuantized":
            return _use(0, (2, 3), self._rows(node, attrs))
        return _use(0, (1, 2), self._whole(node, attrs))

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
        data = self._stored.get(self._name(node, 0)) if node.input else None
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

    def _experts(self, node: Any, attrs: Mapping[str, Any]) -> list[Use]:
        """Matrices of all experts in one tensor each."""
        if not means_experts(node, attrs):
            return []
        inputs = [*node.input, *[""] * (INPUTS - len(node.input))]
        how = (attrs.get("expert_weight_bits", 4), attrs.get("block_size", 0))
        return [
            Use(place, others, ("QMoE", _names(inputs[i] for i in others), how))
            for place, others in EXPERTS
            if inputs[place]
        ]


def _use(place: int, parameters: tuple[int, ...], signature: Signature | None) -> list[Use]:
    return [] if signature is None else [Use(place, parameters, signature)]


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
