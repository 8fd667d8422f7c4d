"""Nodes of older versions of ONNX as nodes of today's: one function per change that `versions.py` lists.

A rewrite gives the nodes that mean the same, the operator's own successor last; None where there are none. Constants
are Constant nodes, so that the nodes stand in a subgraph as well as in the graph.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

FLOAT, INT, STRING, TENSOR, INTS, FLOATS = 1, 2, 3, 4, 7, 6
_I64, _F32 = 7, 1


@dataclass(frozen=True)
class Known:
    """What is known of the values of a graph.

    Attributes:
        ranks: Number of axes, by name.
        types: Element type of ONNX, by name.
        floats: Gives a small constant of floats; None for anything else.
    """

    ranks: Mapping[str, int]
    types: Mapping[str, int]
    floats: Callable[[str], list[float] | None]

    def within(self, graph: Any) -> Known:
        """The same inside of a subgraph, whose names hide those outside."""
        own = {name for node in graph.node for name in node.output} | {v.name for v in graph.input}
        own |= {t.name for t in graph.initializer}
        return Known(
            {k: v for k, v in self.ranks.items() if k not in own},
            {k: v for k, v in self.types.items() if k not in own},
            lambda name: None if name in own else self.floats(name),
        )


Rewrite = Callable[[Any, Known], "list[Any] | None"]


# ---- parts -----------------------------------------------------------------------------------------------------------


def _node(op: str, inputs: list[str], outputs: list[str], **attrs: Any) -> Any:
    import onnx

    return onnx.helper.make_node(op, inputs, outputs, **attrs)


def _new(node: Any, label: str) -> str:
    return f"{next(name for name in node.output if name)}/{label}"


def _attrs(node: Any) -> dict[str, Any]:
    return {a.name: a for a in node.attribute}


def _without(node: Any, *names: str, op: str = "", inputs: list[str] | None = None) -> Any:
    """A copy without some attributes."""
    copy = type(node)()
    copy.CopyFrom(node)
    kept = [a for a in node.attribute if a.name not in names]
    del copy.attribute[:]
    copy.attribute.extend(kept)
    copy.op_type = op or node.op_type
    if inputs is not None:
        copy.input[:] = inputs
    return copy


def _with(node: Any, **attrs: Any) -> Any:
    import onnx

    copy = _without(node, *attrs)
    copy.attribute.extend(onnx.helper.make_attribute(key, value) for key, value in attrs.items())
    return copy


def _integers(name: str, values: list[int], scalar: bool = False) -> Any:
    import onnx

    raw = struct.pack(f"<{len(values)}q", *values)
    dims = [] if scalar else [len(values)]
    return _node("Constant", [], [name], value=onnx.TensorProto(data_type=_I64, dims=dims, raw_data=raw))


def _floats(name: str, values: list[float], scalar: bool = False) -> Any:
    import onnx

    raw = struct.pack(f"<{len(values)}f", *values)
    dims = [] if scalar else [len(values)]
    return _node("Constant", [], [name], value=onnx.TensorProto(data_type=_F32, dims=dims, raw_data=raw))


def _like(node: Any, label: str, value: float, known: Known) -> tuple[list[Any], str]:
    """A number in the element type of the node's first input."""
    name = _new(node, label)
    if known.types.get(node.input[0]) == _F32:
        return [_floats(name, [value], scalar=True)], name
    wide = f"{name}/f32"
    return [_floats(wide, [value], scalar=True), _node("CastLike", [wide, node.input[0]], [name])], name


# ---- forms that many operators share ---------------------------------------------------------------------------------


def impossible(node: Any, known: Known) -> list[Any] | None:
    """No nodes of today mean the same."""
    return None


def without(*names: str) -> Rewrite:
    """Attributes that said nothing about the result."""
    return lambda node, known: [_without(node, *names)]


def default(name: str, value: Any) -> Rewrite:
    """What the absence of an attribute meant, in words."""
    return lambda node, known: [node if name in _attrs(node) else _with(node, **{name: value})]


def renamed(old: str, new: str) -> Rewrite:
    """An attribute with another name."""

    def rewrite(node: Any, known: Known) -> list[Any] | None:
        attribute = _attrs(node).get(old)
        return [node] if attribute is None else [_with(_without(node, old), **{new: list(attribute.ints)})]

    return rewrite


def as_operator(op: str) -> Rewrite:
    """Another operator with the same inputs and attributes."""
    return lambda node, known: [_without(node, op=op)]


def inputs(*names: str, drop: str = "") -> Rewrite:
    """Integers that became inputs behind the first one, in this order."""

    def rewrite(node: Any, known: Known) -> list[Any] | None:
        attrs = _attrs(node)
        if not any(name in attrs for name in names):
            return [_without(node, drop)]
        constants, taken = [], [node.input[0]]
        for name in names:
            attribute = attrs.get(name)
            if attribute is None:
                taken.append("")
                continue
            values = [attribute.i] if attribute.type == INT else list(attribute.ints)
            taken.append(_new(node, name))
            constants.append(_integers(taken[-1], values))
        while not taken[-1]:
            taken.pop()
        return [*constants, _without(node, *names, drop, inputs=taken)]

    return rewrite


# ---- operators -------------------------------------------------------------------------------------------------------


def broadcast(node: Any, known: Known) -> list[Any] | None:
    """Broadcasting by attributes: the second input's axes lie at `axis` of the first, or at its end."""
    attrs = _attrs(node)
    plain = _without(node, "broadcast", "axis")
    if "axis" not in attrs or not (attrs["broadcast"].i if "broadcast" in attrs else 0):
        return [plain]
    first, second = (known.ranks.get(name) for name in node.input[:2])
    if first is None or second is None:
        return None
    axis = attrs["axis"].i + (first if attrs["axis"].i < 0 else 0)
    behind = first - axis - second
    if behind < 0:
        return None
    if not behind:
        return [plain]
    axes, wide = _new(node, "axes"), _new(node, "b")
    return [
        _integers(axes, list(range(second, second + behind))),
        _node("Unsqueeze", [node.input[1], axes], [wide]),
        _without(node, "broadcast", "axis", inputs=[node.input[0], wide]),
    ]


def slope_per_channel(node: Any, known: Known) -> list[Any] | None:
    """A slope per channel, which is the second axis."""
    rank, slope = known.ranks.get(node.input[0]), known.ranks.get(node.input[1])
    if rank is None or slope != 1:
        return None
    axes, wide = _new(node, "axes"), _new(node, "slope")
    return [
        _integers(axes, list(range(1, rank - 1))),
        _node("Unsqueeze", [node.input[1], axes], [wide]),
        _without(node, inputs=[node.input[0], wide]),
    ]


def flattened(node: Any, known: Known) -> list[Any] | None:
    """Softmax and its kind over all axes from `axis` on, as one."""
    attrs, rank = _attrs(node), known.ranks.get(node.input[0])
    axis = attrs["axis"].i if "axis" in attrs else 1
    if axis == -1 or (rank is not None and axis == rank - 1):
        return [_with(node, axis=-1)]
    shape, flat, result = (_new(node, label) for label in ("shape", "flat", "normal"))
    x, output = node.input[0], node.output[0]
    return [
        _node("Shape", [x], [shape]),
        _node("Flatten", [x], [flat], axis=axis),
        _node(node.op_type, [flat], [result], axis=-1),
        _node("Reshape", [result, shape], [output]),
    ]


def in_tests(node: Any, known: Known) -> list[Any] | None:
    """Before 7 nodes train unless they say is_test."""
    attrs = _attrs(node)
    return [_without(node, "is_test")] if "is_test" in attrs and attrs["is_test"].i else None


def batch_normalization(node: Any, known: Known) -> list[Any] | None:
    """Before 9 statistics may be per element (spatial=0)."""
    attrs = _attrs(node)
    if ("spatial" in attrs and not attrs["spatial"].i) or any(node.output[1:]):
        return None
    return [_without(node, "spatial")]


def inference_normalization(node: Any, known: Known) -> list[Any] | None:
    """Before 14: more than one output means training."""
    return None if any(node.output[1:]) else [node]


def cast_by_name(node: Any, known: Known) -> list[Any] | None:
    """The type by its name."""
    import onnx

    name = _attrs(node)["to"].s.decode("utf-8", "replace")
    if name not in onnx.TensorProto.DataType.keys():  # noqa: SIM118 (an enumeration of protobuf)
        return None
    return [_with(node, to=onnx.TensorProto.DataType.Value(name))]


def clip(node: Any, known: Known) -> list[Any] | None:
    """Limits as attributes."""
    attrs, constants, taken = _attrs(node), [], [node.input[0]]
    if not {"min", "max"} & set(attrs):
        return [node]
    for key, label in (("min", "lower"), ("max", "upper")):
        if key in attrs:
            parts, name = _like(node, label, attrs[key].f, known)
            constants += parts
            taken.append(name)
        else:
            taken.append("")
    return [*constants, _without(node, "min", "max", inputs=taken)]


def dft(node: Any, known: Known) -> list[Any] | None:
    """The axis as an attribute, by default the second."""
    attrs, name = _attrs(node), _new(node, "axis")
    length = node.input[1] if len(node.input) > 1 else ""
    axis = attrs["axis"].i if "axis" in attrs else 1
    return [_integers(name, [axis], scalar=True), _without(node, "axis", inputs=[node.input[0], length, name])]


def dropout(node: Any, known: Known) -> list[Any] | None:
    """The share that is dropped as an attribute: nothing, outside of training; before 10 a mask was of numbers."""
    bare = _without(node, "ratio")
    if not any(node.output[1:]):
        return [bare]
    mask = known.types.get(node.output[1])
    if mask is None:
        return None
    bare.output[1] = _new(node, "mask")
    return [bare, _node("Cast", [bare.output[1]], [node.output[1]], to=mask)]


def grid_sample(node: Any, known: Known) -> list[Any] | None:
    """Other words for two modes."""
    words = {"bilinear": "linear", "bicubic": "cubic"}
    attrs = _attrs(node)
    mode = attrs["mode"].s.decode() if "mode" in attrs else "bilinear"
    return [_with(node, mode=words.get(mode, mode))]


def group_normalization(node: Any, known: Known) -> list[Any] | None:
    """Scale and bias per group; today per channel."""
    groups = _attrs(node)["num_groups"].i
    channels, count, each, shape, one, flat = (
        _new(node, label) for label in ("channels", "groups", "each", "shape", "one", "flat")
    )
    nodes = [
        _node("Shape", [node.input[0]], [channels], start=1, end=2),
        _integers(count, [groups]),
        _integers(one, [1]),
        _integers(flat, [-1]),
        _node("Div", [channels, count], [each]),
        _node("Concat", [count, each], [shape], axis=0),
    ]
    taken = [node.input[0]]
    for label, name in zip(("scale", "bias"), node.input[1:3], strict=True):
        column, spread, done = (_new(node, f"{label}/{step}") for step in ("column", "spread", "channels"))
        nodes += [
            _node("Unsqueeze", [name, one], [column]),
            _node("Expand", [column, shape], [spread]),
            _node("Reshape", [spread, flat], [done]),
        ]
        taken.append(done)
    return [*nodes, _without(node, inputs=taken)]


def pad(node: Any, known: Known) -> list[Any] | None:
    """Pads and fill as attributes."""
    attrs, name = _attrs(node), _new(node, "pads")
    if "pads" not in attrs:
        return [node]
    fill, value = _like(node, "fill", attrs["value"].f if "value" in attrs else 0.0, known)
    taken = [node.input[0], name, value]
    return [_integers(name, list(attrs["pads"].ints)), *fill, _without(node, "pads", "value", inputs=taken)]


def selu(node: Any, known: Known) -> list[Any] | None:
    """Rounder constants by default."""
    attrs = _attrs(node)
    alpha = attrs["alpha"].f if "alpha" in attrs else 1.6732
    gamma = attrs["gamma"].f if "gamma" in attrs else 1.0507
    return [_with(_without(node, "consumed_inputs"), alpha=alpha, gamma=gamma)]


def split(node: Any, known: Known) -> list[Any] | None:
    """Equal parts, which are counted since 18."""
    return [node] if len(node.input) > 1 and node.input[1] else [_with(node, num_outputs=len(node.output))]


# ---- images ----------------------------------------------------------------------------------------------------------


def upsample_by_factors(node: Any, known: Known) -> list[Any] | None:
    """Height and width as attributes."""
    attrs = _attrs(node)
    scales = [1.0, 1.0, attrs["height_scale"].f, attrs["width_scale"].f]
    return [_with(_without(node, "height_scale", "width_scale"), scales=scales)]


def upsample_by_attribute(node: Any, known: Known) -> list[Any] | None:
    """Factors as an attribute."""
    name, factors = _new(node, "scales"), list(_attrs(node)["scales"].floats)
    return [_floats(name, factors), *_resized(_without(node, "scales", inputs=[node.input[0], name]), factors)]


def resize(node: Any, known: Known) -> list[Any] | None:
    """Factors from the first corner on; the nearest pixel is the one below, or above it where an image shrinks.

    Version 10 does not say which pixel is nearest; ONNX Runtime's answer is taken (kSimple of its upsamplebase.h).
    """
    factors = known.floats(node.input[1])
    nearest = "mode" not in _attrs(node) or _attrs(node)["mode"].s == b"nearest"
    if factors is None and nearest and node.op_type == "Resize":
        return None
    return _resized(node, factors or [])


def _resized(node: Any, factors: list[float]) -> list[Any]:
    attrs = _attrs(node)
    mode = attrs["mode"].s.decode() if "mode" in attrs else "nearest"
    how = {"mode": "linear" if mode == "bilinear" else mode, "coordinate_transformation_mode": "asymmetric"}
    x, scales, output = node.input[0], node.input[1], node.output[0]
    shrinks, grows = any(f < 1 for f in factors), any(f > 1 for f in factors)
    if mode != "nearest" or not shrinks:
        return [_node("Resize", [x, "", scales], [output], **how, **_floor(mode))]
    if not grows:
        return [_node("Resize", [x, "", scales], [output], **how, nearest_mode="ceil")]
    up, down, between = (_new(node, label) for label in ("up", "down", "between"))
    return [
        _floats(up, [max(f, 1.0) for f in factors]),
        _floats(down, [min(f, 1.0) for f in factors]),
        _node("Resize", [x, "", up], [between], **how, nearest_mode="floor"),
        _node("Resize", [between, "", down], [output], **how, nearest_mode="ceil"),
    ]


def _floor(mode: str) -> dict[str, str]:
    return {"nearest_mode": "floor"} if mode == "nearest" else {}


def without_mode_of_11(node: Any, known: Known) -> list[Any] | None:
    """A way to place pixels that only version 11 had."""
    attrs = _attrs(node)
    if (
        "coordinate_transformation_mode" in attrs
        and attrs["coordinate_transformation_mode"].s == b"tf_half_pixel_for_nn"
    ):
        return None
    return [node]
