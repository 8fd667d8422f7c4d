"""Products behind an activation as one MLP: Linear(act(Linear(x, gate)) * Linear(x, up), down) is a GatedMlp."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from qdeploy.ir.graph import Node


def with_gated_mlps(nodes: Sequence[Node], outputs: set[str]) -> tuple[Node, ...]:
    """Returns the nodes with every such group as one; values that anything else takes stay.

    Args:
        nodes: In an order in which they can run.
        outputs: Names that the graph gives.
    """
    makers = {name: node for node in nodes for name in node.outputs if name}
    uses = Counter(name for node in nodes for name in node.inputs)
    uses.update(outputs)
    gone: set[int] = set()
    replaced: dict[int, Node] = {}
    for node in nodes:
        group = _group(node, makers, uses) if node.op == "Linear" else None
        if group is not None:
            replaced[id(node)] = group[0]
            gone.update(id(part) for part in group[1])
    return tuple(replaced.get(id(node), node) for node in nodes if id(node) not in gone)


def _group(down: Node, makers: Mapping[str, Node], uses: Mapping[str, int]) -> tuple[Node, list[Node]] | None:
    """The MLP that ends in a node, and the nodes that it takes the place of."""
    product = makers.get(down.inputs[0])
    if product is None or product.op != "Mul" or uses[product.outputs[0]] != 1:
        return None
    for active, raised in (product.inputs, product.inputs[::-1]):
        up, activation = makers.get(raised), _activation(active, makers, uses)
        if up is None or up.op != "Linear" or uses[raised] != 1 or activation is None:
            continue
        kind, gated, parts = activation
        gate = makers.get(gated)
        alone = gate is not None and gate.op == "Linear" and uses[gated] == len(parts)
        if not alone or gate is None or gate.inputs[0] != up.inputs[0]:
            continue
        matrices = (gate.inputs[1], up.inputs[1], down.inputs[1])
        biases = [part.inputs[2] if len(part.inputs) > 2 else "" for part in (gate, up, down)]
        while biases and not biases[-1]:
            biases.pop()
        mlp = Node("GatedMlp", (up.inputs[0], *matrices, *biases), down.outputs, {"activation": kind}, down.name)
        return mlp, [product, gate, up, *parts]
    return None


def _activation(name: str, makers: Mapping[str, Node], uses: Mapping[str, int]) -> tuple[str, str, list[Node]] | None:
    """The kind of an activation, what it takes, and its nodes."""
    node = makers.get(name)
    if node is None or uses[name] != 1:
        return None
    if node.op == "Gelu":
        return "gelu_tanh" if node.attrs.get("approximate") == "tanh" else "gelu", node.inputs[0], [node]
    if node.op == "Mul":
        for x, gate in (node.inputs, node.inputs[::-1]):
            opened = makers.get(gate)
            if opened is not None and opened.op == "Sigmoid" and opened.inputs[0] == x and uses[gate] == 1:
                return "silu", x, [node, opened]
    return None
