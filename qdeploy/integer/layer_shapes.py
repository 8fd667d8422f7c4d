"""The layers of a float network by their shapes: two layers of the same shape are one kernel with other weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from qdeploy.errors import BadArgumentError, UnsupportedError
from qdeploy.ir.element import as_value, element_dtype
from qdeploy.ir.graph import Graph, Node
from qdeploy.ir.model import Model
from qdeploy.ir.run import run
from qdeploy.ir.tensor import Array
from qdeploy.passes.fold import fold
from qdeploy.passes.shapes import chosen_axes
from qdeploy.quantize.allocate import LAYERS

_CONV_ATTRS = ("strides", "pads", "dilations", "group", "auto_pad")


@dataclass(frozen=True)
class LayerShape:
    """What a kernel of a layer depends on, but the bits.

    Attributes:
        op: "Conv" or "Linear".
        input: Of the activations, the batch first: [B, C, H, W] or [..., K].
        weight: [O, C / group, kh, kw], or [N, K].
        attrs: Of a convolution, as far as they say more than the defaults.
    """

    op: str
    input: tuple[int, ...]
    weight: tuple[int, ...]
    attrs: Mapping[str, Any]

    @property
    def key(self) -> str:
        """The shape in words, equal for equal shapes: "Conv 1x64x56x56 by 64x64x3x3, pads 1 1 1 1"."""
        sizes = ["x".join(map(str, shape)) for shape in (self.input, self.weight)]
        more = [
            f"{name} {' '.join(map(str, value)) if isinstance(value, list) else value}"
            for name, value in sorted(self.attrs.items())
        ]
        return ", ".join([f"{self.op} {sizes[0]} by {sizes[1]}", *more])


def folded(model: Model) -> tuple[Graph, dict[str, Array]]:
    """A float network's folded graph, and everything that its nodes take by name, constants of the graph too.

    Raises:
        UnsupportedError: The source has no network, it is one of integers, or a decoder.
    """
    if model.graph.meta.get("kind") == "integer":
        raise UnsupportedError("the source is a network of integers already: its bits are given", where=model.path)
    if model.graph.states:
        raise UnsupportedError(
            "a decoder has no integer-only form yet: its activations need a scale per token",
            where=model.path,
            todo="Bits of decoders: qdeploy plan.",
        )
    graph = fold(model.graph, model.tensors)
    tensors = {**{name: model.tensors[name] for name in graph.weights() if name in model.tensors}, **graph.constants}
    return graph, {name: as_value(tensor) for name, tensor in tensors.items()}


def fixed_axes(graph: Graph, axes: Mapping[str, int]) -> dict[str, int]:
    """The size of every free axis of the inputs; a batch (a first axis of any name) is 1 by default.

    Raises:
        BadArgumentError: The network has no such axis, a size is not positive, or one is missing.
    """
    sizes = chosen_axes(graph, axes)
    for name in (axis for value in graph.inputs for axis in value.shape if isinstance(axis, str)):
        if not isinstance(sizes.get(name), int) or sizes[name] < 1:
            raise BadArgumentError(
                "a free axis needs an extent, a positive integer",
                where=name,
                found=sizes.get(name, "none"),
                todo=f"Give --axis {name}=EXTENT.",
            )
    return sizes


def layer_shapes(graph: Graph, weights: Mapping[str, Array], axes: Mapping[str, int]) -> dict[str, LayerShape]:
    """The shape of every layer whose weight is a constant, by the name of the weight, found by running on zeros.

    Args:
        graph: A folded float network without states.
        weights: By name.
        axes: The extent of every free axis.
    """
    inputs = {
        v.name: np.zeros([axes[n] if isinstance(n, str) else n for n in v.shape], element_dtype(v.dtype))
        for v in graph.inputs
    }
    seen: dict[str, tuple[int, ...]] = {}

    def note(name: str, array: Array) -> None:
        seen[name] = array.shape

    run(graph, inputs, {}, weights, note)
    shapes: dict[str, LayerShape] = {}
    for node in graph.nodes:
        if node.op in LAYERS and node.inputs[1] in weights:
            shapes.setdefault(node.inputs[1], _shape(node, seen[node.inputs[0]], weights[node.inputs[1]].shape))
    return shapes


def _shape(node: Node, input_shape: tuple[int, ...], weight: tuple[int, ...]) -> LayerShape:
    if node.op != "Conv":
        transposed = node.op == "Gemm" and not node.attrs.get("transB", 0)
        return LayerShape("Linear", input_shape, weight[::-1] if transposed else weight, {})
    attrs = {name: node.attrs[name] for name in _CONV_ATTRS if name in node.attrs}
    usual: dict[str, set[Any]] = {"strides": {1}, "dilations": {1}, "pads": {0}, "group": {1}, "auto_pad": {"NOTSET"}}
    kept = {
        name: value
        for name, value in attrs.items()
        if not set(value if isinstance(value, list) else [value]) <= usual[name]
    }
    return LayerShape("Conv", input_shape, weight, kept)
