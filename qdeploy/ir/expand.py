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
    """The nodes of an activation by its name: silu, gelu, gelu_tanh, quick_gelu, relu, relu2 or tanh."""
    if name == "silu":
        gate = fresh("sigmoid")
        return [Node("Sigmoid", (x,), (gate,)), Node("Mul", (x, gate), (out,))]
    if name in ("gelu", "gelu_tanh"):
        return [Node("Gelu", (x,), (out,), {"approximate": "tanh" if name == "gelu_tanh" else "none"})]
    if name == "quick_gelu":
        factor, small, gate = fresh("factor"), fresh("small"), fresh("sigmoid")
        return [
            Node("Constant", (), (factor,), {"value_float": 1.702}),
            Node("Mul", (x, factor), (small,)),
            Node("Sigmoid", (small,), (gate,)),
            Node("Mul", (x, gate), (out,)),
        ]
    if name == "relu2":
        positive = fresh("positive")
        return [Node("Relu", (x,), (positive,)), Node("Mul", (positive, positive), (out,))]
    if name in ("relu", "tanh"):
        return [Node(name.capitalize(), (x,), (out,))]
    raise UnsupportedError(
        "unknown activation", found=name, allowed="silu, gelu, gelu_tanh, quick_gelu, relu, relu2, tanh"
    )


def gated_mlp(node: Node, fresh: Fresh) -> list[Node]:
    """Three Linear nodes around an activation and a product."""
    x, gate, up, down, *biases = node.inputs
    of_gate, of_up, of_down = ((bias,) if bias else () for bias in (*biases, *("",) * (3 - len(biases))))
    gated, active, raised, product = fresh("gate"), fresh("active"), fresh("up"), fresh("product")
    return [
        Node("Linear", (x, gate, *of_gate), (gated,)),
        *activation(str(node.attrs["activation"]), gated, active, fresh),
        Node("Linear", (x, up, *of_up), (raised,)),
        Node("Mul", (active, raised), (product,)),
        Node("Linear", (product, down, *of_down), node.outputs),
    ]


def xielu_nodes(node: Node, fresh: Fresh) -> list[Node]:
    """Both halves everywhere, and the one that counts."""
    (x,), attrs = node.inputs, node.attrs
    numbers = {name: float(attrs[name]) for name in ("positive", "negative", "linear")} | {"one": 1.0, "zero": 0.0}  # type: ignore[arg-type]
    nodes = [Node("Constant", (), (fresh(name),), {"value_float": value}) for name, value in numbers.items()]
    return [
        *nodes,
        Node("Mul", (x, x), (fresh("square"),)),
        Node("Mul", (fresh("square"), fresh("positive")), (fresh("above"),)),
        Node("Clip", (x,), (fresh("limited"),), {"max": attrs["least"]}),
        Node("Exp", (fresh("limited"),), (fresh("power"),)),
        Node("Sub", (fresh("power"), fresh("one")), (fresh("grown"),)),
        Node("Sub", (fresh("grown"), x), (fresh("rest"),)),
        Node("Mul", (fresh("rest"), fresh("negative")), (fresh("below"),)),
        Node("Greater", (x, fresh("zero")), (fresh("which"),)),
        Node("Where", (fresh("which"), fresh("above"), fresh("below")), (fresh("curved"),)),
        Node("Mul", (x, fresh("linear")), (fresh("line"),)),
        Node("Add", (fresh("curved"), fresh("line")), node.outputs),
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


def last_token(node: Node, fresh: Fresh) -> list[Node]:
    """A sum over the tokens with the weight 1 where the mask's last one stands."""
    hidden, mask = node.inputs
    names = ("axis", "counted", "total", "behind", "full", "own", "share", "row", "picked")
    axis, counted, total, behind, full, own, share, row, picked = map(fresh, names)
    return [
        Node("Constant", (), (axis,), {"value_int": 1}),
        Node("CumSum", (mask, axis), (counted,)),
        Node("ReduceMax", (counted,), (total,), {"axes": [1], "keepdims": 1}),  # [B, 1]
        Node("Equal", (counted, total), (behind,)),
        Node("Cast", (behind,), (full,), {"to": "I64"}),
        Node("Mul", (full, mask), (own,)),
        Node("Cast", (own,), (share,), {"to": "F32"}),
        Node("Unsqueeze", (share,), (row,), {"axes": [1]}),  # [B, 1, T]
        Node("MatMul", (row, hidden), (picked,)),  # [B, 1, H]
        Node("Squeeze", (picked,), node.outputs, {"axes": [1]}),
    ]


def greatest_token(node: Node, fresh: Fresh) -> list[Node]:
    """The maximum over the tokens, with the least float where the mask is 0."""
    hidden, mask = node.inputs
    seen, column, least, kept = map(fresh, ("seen", "column", "least", "kept"))
    return [
        Node("Cast", (mask,), (seen,), {"to": "BOOL"}),
        Node("Unsqueeze", (seen,), (column,), {"axes": [2]}),  # [B, T, 1]
        Node("Constant", (), (least,), {"value_float": -3.4028234663852886e38}),
        Node("Where", (column, hidden, least), (kept,)),
        Node("ReduceMax", (kept,), node.outputs, {"axes": [1], "keepdims": 0}),
    ]


def token_positions(node: Node, fresh: Fresh) -> list[Node]:
    """A running sum over the tokens that are no padding."""
    ids = node.inputs[0]
    names = ("pad", "padding", "kept", "ones", "axis", "counted", "own")
    pad, padding, kept, ones, axis, counted, own = map(fresh, names)
    return [
        Node("Constant", (), (pad,), {"value_int": node.attrs["pad"]}),
        Node("Equal", (ids, pad), (padding,)),
        Node("Not", (padding,), (kept,)),
        Node("Cast", (kept,), (ones,), {"to": "I64"}),
        Node("Constant", (), (axis,), {"value_int": 1}),
        Node("CumSum", (ones, axis), (counted,)),
        Node("Mul", (counted, ones), (own,)),
        Node("Add", (own, pad), node.outputs),
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


def experts(node: Node, fresh: Fresh) -> list[Node]:
    """Every expert for every token, times the weight that the token gives it, which is mostly zero."""
    nodes: list[Node] = [Node("Constant", (), (fresh("nothing"),), {"value_float": 0.0})]
    total = ""
    for expert in range(int(node.attrs["count"])):  # type: ignore[arg-type]
        nodes += _expert(node, expert, lambda label, e=expert: fresh(f"{e}.{label}"), fresh("nothing"))  # type: ignore[misc]
        result, last = fresh(f"{expert}.result"), expert + 1 == node.attrs["count"]
        if total:
            both = node.outputs[0] if last else fresh(f"{expert}.total")
            nodes.append(Node("Add", (total, result), (both,)))
            total = both
        else:
            total = result
    return nodes if total == node.outputs[0] else [*nodes, Node("Identity", (total,), node.outputs)]


def _expert(node: Node, expert: int, fresh: Fresh, nothing: str) -> list[Node]:
    """One expert's share of the sum; its output is fresh("result")."""
    x, ids, weights, up, down, gate, up_bias, down_bias, gate_bias = _padded(node.inputs, 9)
    number, its, kept, share = fresh("number"), fresh("its"), fresh("kept"), fresh("share")
    nodes = [
        Node("Constant", (), (number,), {"value_int": expert}),
        Node("Equal", (ids, number), (its,)),
        Node("Where", (its, weights, nothing), (kept,)),
        Node("ReduceSum", (kept,), (share,), {"axes": [2], "keepdims": 1}),  # [B, T, 1]
    ]
    first = node.attrs.get("weighted") == "inputs"
    if first and (up_bias or down_bias or gate_bias):
        raise UnsupportedError("biases of experts whose inputs are weighted", where=node.name)
    if first:
        nodes.append(Node("Mul", (x, share), (fresh("weighted"),)))
        x = fresh("weighted")
    for name, weight, bias in (("up", up, up_bias), ("gate", gate, gate_bias)):
        nodes += _projection(x, weight, bias, number, lambda label, n=name: fresh(f"{n}.{label}"), fresh(name))  # type: ignore[misc]
    nodes += _inner(node, fresh)
    result = fresh("result") if first else fresh("raw")
    nodes += _projection(fresh("inner"), down, down_bias, number, lambda label: fresh(f"down.{label}"), result)
    return nodes if first else [*nodes, Node("Mul", (result, share), (fresh("result"),))]


def _projection(x: str, weight: str, bias: str, number: str, fresh: Fresh, out: str) -> list[Node]:
    if not weight:
        return []
    nodes = [Node("Gather", (weight, number), (fresh("matrix"),), {"axis": 0})]
    if bias:
        nodes.append(Node("Gather", (bias, number), (fresh("bias"),), {"axis": 0}))
    return [*nodes, Node("Linear", (x, fresh("matrix"), *((fresh("bias"),) if bias else ())), (out,))]


def _inner(node: Node, fresh: Fresh) -> list[Node]:
    """What stands between the projections: fresh("inner") of fresh("up") and, where there is one, fresh("gate")."""
    attrs, up, gate = node.attrs, fresh("up"), fresh("gate")
    name, limit = str(attrs["activation"]), float(attrs.get("limit", 0.0))  # type: ignore[arg-type]
    if not (len(node.inputs) > 5 and node.inputs[5]):
        return activation(name, up, fresh("inner"), fresh)
    nodes: list[Node] = []
    if limit:
        nodes += [
            Node("Clip", (gate,), (fresh("gate.limited"),), {"max": limit}),
            Node("Clip", (up,), (fresh("up.limited"),), {"min": -limit, "max": limit}),
            Node("Constant", (), (fresh("one"),), {"value_float": 1.0}),
            Node("Add", (fresh("up.limited"), fresh("one")), (fresh("up.raised"),)),
        ]
        up, gate = fresh("up.raised"), fresh("gate.limited")
    alpha = float(attrs.get("alpha", 1.0))  # type: ignore[arg-type]
    if alpha == 1:
        nodes += activation(name, gate, fresh("active"), fresh)
    else:
        nodes += [
            Node("Constant", (), (fresh("alpha"),), {"value_float": alpha}),
            Node("Mul", (gate, fresh("alpha")), (fresh("steep"),)),
            Node("Sigmoid", (fresh("steep"),), (fresh("opened"),)),
            Node("Mul", (gate, fresh("opened")), (fresh("active"),)),
        ]
    return [*nodes, Node("Mul", (fresh("active"), up), (fresh("inner"),))]


def _padded(names: tuple[str, ...], count: int) -> tuple[str, ...]:
    return names + ("",) * (count - len(names))
