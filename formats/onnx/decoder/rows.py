"""Operators of a decoder, one reader each.

A decoder's values are [B, T, width] in float32. Casts between types of floats say nothing more; a Split is a Slice for
each of its parts; a Reshape by the size of a head is another way to see a value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from qdeploy.formats.onnx.decoder.attention import grouped_attention, rotary_embedding
from qdeploy.formats.onnx.decoder.reading import IDS, Heads, ObstacleError, Reading
from qdeploy.ir.graph import Attr, Node

Reader = Callable[[Reading, Node], None]
_FLOATS = ("F32", "F16", "BF16")


def _gather(reading: Reading, node: Node) -> None:
    """Rows of a table by the ids of the tokens, or by their places."""
    stored = reading.transposed_from(node.inputs[0])
    table = reading.tensor(stored or node.inputs[0])
    if stored and table is not None and reading.name(node.inputs[1]) == IDS and node.attrs.get("axis", 0) == 0:
        reading.add("Gather", (reading.transposed(stored), IDS), node.outputs[0], table.shape[0], axis=0)
        return
    if table is None or len(table.shape) != 2 or node.attrs.get("axis", 0) != 0:
        raise ObstacleError(node, "it does not take rows of a table")
    ids = reading.name(node.inputs[1])
    if ids != IDS:
        reading.expect(node, ids, lambda new, past: np.arange(past, past + new), "the places of the tokens")
        ids = f"{node.outputs[0]}/places"
        reading.add("Positions", (IDS,), ids, 1)
        reading.contexts.append(table.shape[0])
    reading.add("Gather", (node.inputs[0], ids), node.outputs[0], table.shape[1], axis=0)


def _linear(reading: Reading, node: Node) -> None:
    weight = reading.tensor(node.inputs[1])
    if weight is None or len(weight.shape) != 2:
        raise ObstacleError(node, "its weight is no tensor")
    reading.width(node.inputs[0], node)
    reading.add("Linear", node.inputs, node.outputs[0], weight.shape[0])


def _mat_mul(reading: Reading, node: Node) -> None:
    """A product with a matrix [in, out] of the model."""
    weight = reading.tensor(node.inputs[1])
    if weight is None or len(weight.shape) != 2:
        raise ObstacleError(node, "a product of two computed values outside of attention")
    if weight.shape[0] != reading.width(node.inputs[0], node):
        raise ObstacleError(node, "its weight has another extent than its input")
    reading.add("Linear", (node.inputs[0], reading.transposed(node.inputs[1])), node.outputs[0], weight.shape[1])


def _norm(reading: Reading, node: Node) -> None:
    x = reading.name(node.inputs[0])
    width = reading.width(x, node)
    reading.add(node.op, node.inputs, node.outputs[0], width, epsilon=node.attrs["epsilon"])
    if x in reading.heads:
        reading.heads[node.outputs[0]] = reading.heads[x]


def _skip_norm(reading: Reading, node: Node) -> None:
    inputs = tuple(reading.name(name) for name in node.inputs)
    width = reading.width(inputs[0], node)
    if reading.width(inputs[1], node) != width:
        raise ObstacleError(node, "a sum of two widths")
    reading.add("SkipNorm", inputs, node.outputs[0], width, **node.attrs)
    if len(node.outputs) > 1 and node.outputs[1]:
        last = reading.nodes.pop()
        reading.nodes.append(Node(last.op, last.inputs, node.outputs, last.attrs, last.name))
        reading.widths[node.outputs[1]] = width


def _unary(reading: Reading, node: Node) -> None:
    reading.add(node.op, node.inputs[:1], node.outputs[0], reading.width(node.inputs[0], node), **node.attrs)


def _fast_gelu(reading: Reading, node: Node) -> None:
    """The tanh formula, of x or of x + bias."""
    x, width = node.inputs[0], reading.width(node.inputs[0], node)
    if len(node.inputs) > 1 and node.inputs[1]:
        x = reading.add("Add", node.inputs[:2], f"{node.outputs[0]}/biased", width)
    reading.add("Gelu", (x,), node.outputs[0], width, approximate="tanh")


def _quick_gelu(reading: Reading, node: Node) -> None:
    """The product x * sigmoid(alpha x)."""
    x, output, width = node.inputs[0], node.outputs[0], reading.width(node.inputs[0], node)
    alpha = float(reading.attributes(node).get("alpha", 1.702))
    if alpha != 1:
        factor = reading.constant(f"{output}/alpha", np.array([alpha], np.float32))
        x = reading.add("Mul", (x, factor), f"{output}/small", width)
    reading.add("Sigmoid", (x,), f"{output}/gate", width)
    reading.add("Mul", (node.inputs[0], f"{output}/gate"), output, width)


def _binary(reading: Reading, node: Node) -> None:
    """Sums and products of two values, or of a value and a constant."""
    a, b = (reading.name(name) for name in node.inputs)
    if reading.tensor(a) is not None and b in reading.widths:
        a, b = b, a  # both commute
    width = reading.width(a, node)
    if b not in reading.widths:
        numbers = reading.floats(b)
        if numbers is None or not _for_each(numbers.shape, width):
            raise ObstacleError(node, f"its input {b} is neither a value of every token nor a constant for each")
        if numbers.ndim != 1:
            b = reading.constant(f"{node.outputs[0]}/constant", numbers.reshape(-1))
    elif reading.widths[b] != width:
        raise ObstacleError(node, "two widths")
    reading.add(node.op, (a, b), node.outputs[0], width)


def _for_each(shape: tuple[int, ...], width: int) -> bool:
    """Whether a constant is one number, or one for each element of a token."""
    return math.prod(shape) == 1 or (math.prod(shape) == width and shape[-1] == width)


def _div(reading: Reading, node: Node) -> None:
    """A quotient by one number, as the product with its inverse."""
    numbers, width = reading.floats(node.inputs[1]), reading.width(node.inputs[0], node)
    if numbers is None or numbers.size != 1 or not numbers.reshape(()):
        raise ObstacleError(node, "it does not divide by one number")
    inverse = reading.constant(f"{node.outputs[0]}/inverse", np.float32(1) / numbers.reshape(1))
    reading.add("Mul", (node.inputs[0], inverse), node.outputs[0], width)


def _identity(reading: Reading, node: Node) -> None:
    if node.op == "Cast" and node.attrs["to"] not in _FLOATS:
        raise ObstacleError(node, "values of another type than floats")
    reading.alias(node.outputs[0], node.inputs[0])


def _split(reading: Reading, node: Node) -> None:
    width = reading.width(node.inputs[0], node)
    sizes = reading.integers(node.inputs[1]) if len(node.inputs) > 1 else None
    count = len(node.outputs)
    sizes = [width // count] * count if sizes is None and not width % count else sizes
    if sizes is None or sum(sizes) != width or node.attrs.get("axis", 0) not in (-1, 2):
        raise ObstacleError(node, "it does not cut the last axis")
    start = 0
    for size, output in zip(sizes, node.outputs, strict=True):
        if output:
            attrs: dict[str, Attr] = {"starts": [start], "ends": [start + size], "axes": [2]}
            reading.add("Slice", node.inputs[:1], output, size, **attrs)
        start += size


def _slice(reading: Reading, node: Node) -> None:
    if reading.tensor(node.inputs[0]) is not None:
        reading.nodes.append(node)  # a part of a tensor, which experts take
        return
    width, attrs = reading.width(node.inputs[0], node), node.attrs
    starts, ends, axes = (attrs.get(name) for name in ("starts", "ends", "axes"))
    last = axes in ([-1], [2]) and attrs.get("steps", [1]) == [1] and len(node.inputs) == 1
    if not last or not isinstance(starts, list) or not isinstance(ends, list):
        raise ObstacleError(node, "it does not cut the last axis")
    start, end, _ = slice(int(starts[0]), int(ends[0])).indices(width)
    reading.add("Slice", node.inputs, node.outputs[0], end - start, starts=[start], ends=[end], axes=[2])


def _reshape(reading: Reading, node: Node) -> None:
    """A value as heads, or heads as a value; the tokens stay what they are."""
    x, output = reading.name(node.inputs[0]), node.outputs[0]
    width, shape = reading.width(x, node), node.attrs.get("shape")
    if not isinstance(shape, list) or len(node.inputs) > 1:
        raise ObstacleError(node, "its shape is computed")
    last = int(shape[-1])
    heads = reading.heads.get(x)
    whole = width if heads is None else heads.count * heads.size
    if last == whole and len(shape) == 2 and heads is None:
        reading.alias(output, x)  # tokens of all sequences in one row
    elif last == whole and len(shape) == 3:
        if heads is None:
            reading.alias(output, x)
        else:
            reading.add("Reshape", (x,), output, whole, shape=[0, 0, whole])
    elif (
        last > 0
        and whole % last == 0
        and math.prod(int(n) for n in shape[2:]) in (last, whole)
        and len(shape) in (3, 4)
    ):
        if heads is not None and heads.size == last:
            reading.alias(output, x)
            return
        reading.add("Reshape", (x,), output, last, shape=[0, 0, whole // last, last])
        reading.heads[output] = Heads(whole // last, last)
    else:
        raise ObstacleError(node, f"a Reshape to {shape} that neither makes heads nor joins them")


def _route(reading: Reading, node: Node) -> None:
    reading.width(node.inputs[0], node)
    inputs = tuple(reading.name(name) for name in node.inputs)
    reading.nodes.append(Node(node.op, inputs, node.outputs, node.attrs, node.name))


def _experts(reading: Reading, node: Node) -> None:
    x, down = reading.name(node.inputs[0]), reading.tensor(node.inputs[4])
    reading.width(x, node)
    if down is None:
        raise ObstacleError(node, "its weights are computed")
    reading.add("Experts", (x, *node.inputs[1:]), node.outputs[0], down.shape[1], **node.attrs)


def _transpose(reading: Reading, node: Node) -> None:
    """The transpose of a matrix of the model: a table that is also the head."""
    if reading.tensor(node.inputs[0]) is None or node.attrs.get("perm", [1, 0]) != [1, 0]:
        raise ObstacleError(node, "it transposes a computed value outside of attention")


def _nothing(reading: Reading, node: Node) -> None:
    """A number that a node says: what takes it asks for it."""


READERS: Mapping[str, Reader] = {
    "Gather": _gather,
    "Linear": _linear,
    "MatMul": _mat_mul,
    "RMSNormalization": _norm,
    "LayerNormalization": _norm,
    "SkipNorm": _skip_norm,
    **dict.fromkeys(("Sigmoid", "Tanh", "Relu", "Gelu", "Clip"), _unary),
    "FastGelu": _fast_gelu,
    "QuickGelu": _quick_gelu,
    "Add": _binary,
    "Mul": _binary,
    "Div": _div,
    "Cast": _identity,
    "Identity": _identity,
    "Split": _split,
    "Slice": _slice,
    "Reshape": _reshape,
    "Constant": _nothing,
    "GroupQueryAttention": grouped_attention,
    "RotaryEmbedding": rotary_embedding,
    "Transpose": _transpose,
    "Route": _route,
    "Experts": _experts,
}
"""Readers by operator."""
