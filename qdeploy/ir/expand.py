"""What the composite ops mean: each as nodes of other rows of the table.

An expansion keeps the node's outputs and takes new names from `fresh`. It may use other composites (GatedMlp uses
Linear); `passes/expand.py` goes on until only rows without an expansion are left.
"""

from __future__ import annotations

from collections.abc import Callable

from qdeploy.errors import UnsupportedError
from qdeploy.ir.graph import Node

Fresh = Callable[[str], str]
Expansion = Callable[[Node, Fresh], list[Node]]


def linear(node: Node, fresh: Fresh) -> list[Node]:
    """MatMul with the transposed weight, and Add of the bias."""
    x, weight, bias = _padded(node.inputs, 3)
    columns, product = fresh("transposed"), fresh("product") if bias else node.outputs[0]
    nodes = [Node("Transpose", (weight,), (columns,), {"perm": [1, 0]}), Node("MatMul", (x, columns), (product,))]
    return [*nodes, Node("Add", (product, bias), node.outputs)] if bias else nodes


def skip_norm(node: Node, fresh: Fresh) -> list[Node]:
    """Add, then RMSNormalization or LayerNormalization."""
    x, skip, weight, bias = _padded(node.inputs, 4)
    normal, total = _padded(node.outputs, 2)
    total = total or fresh("sum")
    rms = node.attrs["kind"] == "rms"
    parameters = (weight,) if rms or not bias else (weight, bias)
    return [
        Node("Add", (x, skip), (total,)),
        Node(
            "RMSNormalization" if rms else "LayerNormalization",
            (total, *parameters),
            (normal,),
            {"epsilon": node.attrs["epsilon"]},
        ),
    ]


def activation(name: str, x: str, out: str, fresh: Fresh) -> list[Node]:
    """The nodes of an activation by its name: silu, gelu, gelu_tanh, relu, relu2 or tanh."""
    if name == "silu":
        gate = fresh("sigmoid")
        return [Node("Sigmoid", (x,), (gate,)), Node("Mul", (x, gate), (out,))]
    if name in ("gelu", "gelu_tanh"):
        return [Node("Gelu", (x,), (out,), {"approximate": "tanh" if name == "gelu_tanh" else "none"})]
    if name == "relu2":
        positive = fresh("positive")
        return [Node("Relu", (x,), (positive,)), Node("Mul", (positive, positive), (out,))]
    if name in ("relu", "tanh"):
        return [Node(name.capitalize(), (x,), (out,))]
    raise UnsupportedError("unknown activation", found=name, allowed="silu, gelu, gelu_tanh, relu, relu2, tanh")


def gated_mlp(node: Node, fresh: Fresh) -> list[Node]:
    """Three Linear nodes around an activation and a product."""
    x, gate, up, down = node.inputs
    gated, active, raised, product = fresh("gate"), fresh("active"), fresh("up"), fresh("product")
    return [
        Node("Linear", (x, gate), (gated,)),
        *activation(str(node.attrs["activation"]), gated, active, fresh),
        Node("Linear", (x, up), (raised,)),
        Node("Mul", (active, raised), (product,)),
        Node("Linear", (product, down), node.outputs),
    ]


def mean_pool(node: Node, fresh: Fresh) -> list[Node]:
    """Sum of what the mask keeps, divided by how many that are (at least 1e-9, as sentence-transformers has it)."""
    hidden, mask = node.inputs
    real, weight, kept, total, count, safe = map(fresh, ("real", "weight", "kept", "total", "count", "safe"))
    return [
        Node("Cast", (mask,), (real,), {"to": "F32"}),
        Node("Unsqueeze", (real,), (weight,), {"axes": [2]}),  # [B, T, 1]
        Node("Mul", (hidden, weight), (kept,)),
        Node("ReduceSum", (kept,), (total,), {"axes": [1], "keepdims": 0}),  # [B, H]
        Node("ReduceSum", (weight,), (count,), {"axes": [1], "keepdims": 0}),  # [B, 1]
        Node("Clip", (count,), (safe,), {"min": 1e-9}),
        Node("Div", (total, safe), node.outputs),
    ]


def positions(node: Node, fresh: Fresh) -> list[Node]:
    """Range over the second extent of the ids."""
    length, limit, zero, one = fresh("length"), fresh("limit"), fresh("zero"), fresh("one")
    return [
        Node("Shape", node.inputs, (length,), {"start": 1, "end": 2}),
        Node("Squeeze", (length,), (limit,), {"axes": [0]}),
        Node("Constant", (), (zero,), {"value_int": 0}),
        Node("Constant", (), (one,), {"value_int": 1}),
        Node("Range", (zero, limit, one), node.outputs),
    ]


def _padded(names: tuple[str, ...], count: int) -> tuple[str, ...]:
    return names + ("",) * (count - len(names))
