"""Heads of values: what reshapes, slices and joins of them become.

A value [B, T, heads * size] and [B, T, heads, size] are the same floats, so a Reshape is no node but another way to see
a value. What is cut from heads, or joined, is a node; so is a norm of every head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qdeploy.backends.native.layout import Op
from qdeploy.errors import UnsupportedError
from qdeploy.ir.graph import Node

if TYPE_CHECKING:
    from qdeploy.backends.native.plan import Planning


@dataclass(frozen=True)
class HeadView:
    """A value seen as heads.

    Attributes:
        value: Its number.
        count: Heads.
        size: Elements of each.
        shared: Whether the value holds one head, which stands for all.
    """

    value: int
    count: int
    size: int
    shared: bool = False


def reshape(planning: Planning, node: Node) -> None:
    """A value as heads [0, 0, heads, size], or heads as a value [0, 0, heads * size]."""
    name, shape = node.inputs[0], [int(n) for n in node.attrs.get("shape") or ()]  # type: ignore[union-attr]
    view = planning.heads.get(name)
    if len(shape) == 4 and shape[:2] == [0, 0]:
        count, size = shape[2:]
        if view is not None and view.shared and (view.count, view.size) == (count, size):
            planning.heads[node.outputs[0]] = view
            return
        value = planning.source(name)
        if view is None and planning.width(value) == count * size:
            planning.heads[node.outputs[0]] = HeadView(value, count, size)
            return
    elif view is not None and shape == [0, 0, view.count * view.size] and not view.shared:
        planning.rename(node.outputs[0], view.value)
        return
    raise UnsupportedError("a Reshape that neither makes heads nor joins them", where=node.name, found=shape)


def cut(planning: Planning, node: Node) -> None:
    """A part of a value, or of each of its heads."""
    attrs: Mapping[str, Any] = node.attrs
    (start,), (stop,), (axis,) = attrs["starts"], attrs["ends"], attrs["axes"]
    view = planning.heads.get(node.inputs[0])
    if axis == 2 and view is None:
        value = planning.source(node.inputs[0])
        view = HeadView(value, 1, planning.width(value))
    elif axis != 3 or view is None or view.shared:
        raise UnsupportedError("a Slice of another axis than the last", where=node.name, found=axis)
    if attrs.get("steps", [1]) != [1] or not 0 <= start < stop:
        raise UnsupportedError("a Slice with steps, or from the end", where=node.name, found=attrs.get("steps"))
    size = min(stop, view.size) - start
    width = view.count * size
    value = planning.emit(Op.SELECT, (view.value,), node.outputs[0], width, attrs=(view.count, view.size, start))
    if axis == 3:
        planning.heads[node.outputs[0]] = HeadView(value, view.count, size)


def join(planning: Planning, node: Node) -> None:
    """Parts of heads side by side; or one head, repeated."""
    axis, names = node.attrs.get("axis"), node.inputs
    if axis == 2 and len(set(names)) == 1 and names[0] not in planning.heads:
        value = planning.source(names[0])
        planning.heads[node.outputs[0]] = HeadView(value, len(names), planning.width(value), shared=True)
        return
    views = [planning.heads.get(name) for name in names]
    if axis == 2 and len(names) == 2 and not any(views):
        both = [planning.source(name) for name in names]
        planning.emit(Op.JOIN, tuple(both), node.outputs[0], sum(map(planning.width, both)), attrs=(1, 0, 0))
        return
    first, second = views if len(views) == 2 else (None, None)
    if axis != 3 or first is None or second is None or first.count != second.count:
        raise UnsupportedError("a Concat of something else than heads", where=node.name, found=f"axis {axis}")
    width = first.count * (first.size + second.size)
    attrs = (first.count, int(first.shared), int(second.shared))
    value = planning.emit(Op.JOIN, (first.value, second.value), node.outputs[0], width, attrs=attrs)
    planning.heads[node.outputs[0]] = HeadView(value, first.count, first.size + second.size)


def norm(planning: Planning, node: Node) -> None:
    """A norm of every head."""
    view, rms = planning.heads[node.inputs[0]], node.op == "RMSNormalization"
    weight, *bias = node.inputs[1:]
    epsilon, width = float(node.attrs["epsilon"]), view.count * view.size  # type: ignore[arg-type]
    if view.shared or any(bias):
        raise UnsupportedError("a norm of heads with a bias", where=node.name)
    op, attrs = (Op.RMS_NORM, (epsilon, view.size)) if rms else (Op.HEAD_NORM, (epsilon, view.size, 1))
    tensors = (planning.tensor(weight),)
    value = planning.emit(op, (view.value,), node.outputs[0], width, tensors=tensors, attrs=attrs)
    planning.heads[node.outputs[0]] = HeadView(value, view.count, view.size)


def binary(planning: Planning, node: Node) -> None:
    """Heads times, or plus, a constant with a number for each of their elements."""
    if all(name in planning.heads for name in node.inputs) and node.op == "Mul":
        _scaled(planning, node)
        return
    name, other = node.inputs if node.inputs[0] in planning.heads else node.inputs[::-1]
    view = planning.heads[name]
    if view.shared or planning.is_computed(other) or other in planning.heads:
        raise UnsupportedError("heads and other heads", where=node.name)
    shape = tuple(planning.tensor_of(other).shape)
    if shape not in ((1,), (view.count, view.size)):
        raise UnsupportedError("heads and a constant of another shape", where=node.name, found=shape)
    op = Op.ADD if node.op == "Add" else Op.MUL
    width, tensors = view.count * view.size, (planning.tensor(other),)
    value = planning.emit(op, (view.value,), node.outputs[0], width, tensors=tensors)
    planning.heads[node.outputs[0]] = HeadView(value, view.count, view.size)


def _scaled(planning: Planning, node: Node) -> None:
    """Heads times one number for each."""
    heads, factors = sorted((planning.heads[name] for name in node.inputs), key=lambda view: -view.size)
    if factors.size != 1 or heads.count != factors.count or heads.shared or factors.shared:
        raise UnsupportedError("heads and other heads", where=node.name)
    value = planning.emit(Op.SCALE, (heads.value, factors.value), node.outputs[0], heads.count * heads.size)
    planning.heads[node.outputs[0]] = HeadView(value, heads.count, heads.size)


def rotary(planning: Planning, node: Node) -> None:
    """Heads rotated by their positions."""
    source, rope = planning.source(node.inputs[0]), node.attrs["rope"]
    if not isinstance(rope, dict) or rope.get("long"):
        raise UnsupportedError("a rotation that is not described", where=node.name)
    rotation = (int(rope["rotary_dim"]), int(bool(rope["interleaved"])), float(rope["factor"]))
    planning.emit(
        Op.ROTATE,
        (source,),
        node.outputs[0],
        planning.width(source),
        tensors=(planning.tensor(str(rope["inv_freq"])),),
        attrs=(int(node.attrs["heads"]), *rotation),  # type: ignore[arg-type]
    )


def clip(planning: Planning, node: Node) -> None:
    """Numbers within limits."""
    source = planning.source(node.inputs[0])
    least, most = (float(node.attrs.get(k, d)) for k, d in (("min", -3e38), ("max", 3e38)))  # type: ignore[arg-type]
    planning.emit(Op.CLIP, (source,), node.outputs[0], planning.width(source), attrs=(least, most))


def xielu(planning: Planning, node: Node) -> None:
    """An activation with parameters."""
    source = planning.source(node.inputs[0])
    words = tuple(float(node.attrs[name]) for name in ("positive", "negative", "linear", "least"))  # type: ignore[arg-type]
    planning.emit(Op.XIELU, (source,), node.outputs[0], planning.width(source), attrs=words)


def hadamard(planning: Planning, node: Node) -> None:
    """Blocks of columns turned by Hadamard's matrix."""
    source, size = planning.source(node.inputs[0]), int(node.attrs["size"])  # type: ignore[arg-type]
    kind = planning.plan.values[source].kind
    planning.emit(Op.HADAMARD, (source,), node.outputs[0], planning.width(source), kind, attrs=(size,))


def are_positions(planning: Planning, node: Node) -> bool:
    """Whether a node moves positions by a number."""
    makers = [planning.makers.get(name) for name in node.inputs]
    return any(maker is not None and maker.op in POSITIONS for maker in makers)


def first_position(planning: Planning, ids: str, node: Node) -> int:
    """The row of the first token in a table of positions: what is added to them."""
    maker = planning.makers.get(ids)
    if maker is not None and maker.op == "Add":
        constants = [planning.makers.get(name) for name in maker.inputs]
        number = next((n for n in constants if n is not None and n.op == "Constant"), None)
        maker = next((n for n in constants if n is not None and n.op != "Constant"), None)
        if number is not None and maker is not None and maker.op in POSITIONS:
            return int(number.attrs["value_int"])  # type: ignore[arg-type]
    if maker is None or maker.op not in POSITIONS:
        raise UnsupportedError("rows of a table by something else than ids and positions", where=node.name)
    return 0


POSITIONS = ("Positions", "PositionsBehind")
"""Ops that give positions; what takes them is a table of positions."""
