"""QMoE (com.microsoft) as a choice of experts.

    0       tokens                       1        the router's logits, one per expert
    2..4    fc1 [E, I or 2 I, H], its scales and bias; 5..7 fc2 [E, H, I]; 8..10 fc3 [E, I, H]; 11..13 their zero points

The best k experts of a token share it by the softmax of their own logits (normalize_routing_weights 1; with 0 ONNX
Runtime's kernels differ in what they do, so that it has no row here). With "swiglu" gate and up are one tensor, whose
rows alternate (swiglu_fusion 1) or lie one half behind the other (2): gate * sigmoid(alpha * gate) * (up + beta), both
limited. With other activations fc1 is activated, and multiplied with fc3 where there is one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qdeploy.ir.graph import Attr

if TYPE_CHECKING:
    from qdeploy.formats.onnx.graph import Network

MICROSOFT = "com.microsoft"
EXPERTS = ((2, (3, 11)), (5, (6, 12)), (8, (9, 13)))
"""Where weights stand among the inputs, and their scales and zero points."""
INPUTS = 14
_KNOWN = frozenset(
    {
        *("k", "activation_type", "normalize_routing_weights", "expert_weight_bits", "swiglu_fusion", "swiglu_limit"),
        *("activation_alpha", "activation_beta", "block_size"),
    }
)
_NEUTRAL: Mapping[str, Any] = {"use_sparse_mixer": 0, "quant_type": "int", "weights_prepacked": 0}
"""Attributes that mean nothing with these values."""
_ACTIVATIONS = {"silu": "silu", "gelu": "gelu_tanh", "relu": "relu"}
"""ONNX Runtime's name, and ours: its gelu is the formula with tanh."""


def means_experts(node: Any, attrs: Mapping[str, Any]) -> bool:
    """Whether a node is a choice of experts that has rows here."""
    odd = [k for k, v in attrs.items() if k not in _KNOWN and _NEUTRAL.get(k, _NEUTRAL) != v]
    whole = all(isinstance(attrs.get(k, 0), int) for k in ("k", "expert_weight_bits", "block_size", "swiglu_fusion"))
    odd += [] if attrs.get("normalize_routing_weights") == 1 else ["normalize_routing_weights"]
    if node.domain != MICROSOFT or odd or not whole or not 8 <= len(node.input) <= INPUTS or not node.input[5]:
        return False
    third = len(node.input) > 8 and bool(node.input[8])
    if attrs.get("activation_type") == "swiglu":
        return _gating(attrs) is not None and attrs.get("swiglu_fusion", 0) in (1, 2) and not third
    return str(attrs.get("activation_type", "relu")) in _ACTIVATIONS


def import_experts(network: Network, node: Any, attrs: dict[str, Any]) -> bool:
    """Adds Route and Experts; nothing where a weight is not claimed."""
    inputs = [*node.input, *[""] * (INPUTS - len(node.input))]
    weights = [inputs[place] for place, _ in EXPERTS if inputs[place]]
    if not means_experts(node, attrs) or any(network.claimed.get(name) is None for name in weights):
        return False
    output, shape = node.output[0], network.claimed[inputs[2]].shape
    described: dict[str, Attr] = {"count": shape[0]}
    if attrs.get("activation_type") == "swiglu":
        described |= _gating(attrs) or {}
        parts = _fused(network, output, inputs, shape[1], attrs["swiglu_fusion"] == 1)
    else:
        described["activation"] = _ACTIVATIONS[str(attrs.get("activation_type", "relu"))]
        up, gate = (8, 2) if inputs[8] else (2, 0)
        parts = [inputs[up], inputs[5], inputs[gate] if gate else ""]
        parts += [inputs[up + 2], inputs[7], inputs[gate + 2] if gate else ""]
    routing: dict[str, Attr] = {"top_k": int(attrs.get("k", 1)), "scores": "softmax_of_chosen"}
    choice = (f"{output}/ids", f"{output}/shares")
    network.add("Route", (network.value(inputs[1]),), choice, routing, f"{node.name or output}/route")
    network.add("Experts", (network.value(inputs[0]), *choice, *parts), (output,), described, node.name)
    return True


def _gating(attrs: Mapping[str, Any]) -> dict[str, Attr] | None:
    """The form of a gated unit; None for those that rows do not have: with a limit 1 is added to up, else nothing."""
    alpha, beta = float(attrs.get("activation_alpha", 1.0)), float(attrs.get("activation_beta", 0.0))
    limit = float(attrs.get("swiglu_limit", 0.0))
    limit = 0.0 if limit > 1e30 else limit
    if beta != (1.0 if limit else 0.0):
        return None
    described: dict[str, Attr] = {"activation": "silu"}
    return described | ({"alpha": alpha} if alpha != 1 else {}) | ({"limit": limit} if limit else {})


def _fused(network: Network, output: str, inputs: list[str], rows: int, pairs: bool) -> list[str]:
    """Up, down and gate, and their biases, of which gate and up are halves of one tensor."""
    halves = []
    for both in (inputs[2], inputs[4]):
        names = []
        for place, side in enumerate(("gate", "up")):
            start, end = (place, rows) if pairs else (place * rows // 2, (place + 1) * rows // 2)
            cut: dict[str, Attr] = {"starts": [start], "ends": [end], "axes": [1], "steps": [2 if pairs else 1]}
            name = f"{output}/{both}.{side}"
            names.append(network.add("Slice", (both,), (name,), cut, name) if both else "")
        halves.append(names)
    (gate, up), (gate_bias, up_bias) = halves
    return [up, inputs[5], gate, up_bias, inputs[7], gate_bias]
