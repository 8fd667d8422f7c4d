"""What planning knows: where every value lies, which steps are still open, and how an open step becomes one.

Images lie with their channels last, padded to a multiple of 16 where a convolution made them; `Place` says how. A value
that one node alone takes stays open as long as elementwise nodes follow: they join its kernel as a *chain*, a list of

    {"op": "requantize", "m", "e", "axis", "rounding", "lo", "hi", "zero", "x_zero", "left_shift", "narrow", "dtype"}
    {"op": "clip", "lo", "hi"}    {"op": "lookup", "table", "base", "dtype"}
    {"op": "add" | "mul", "other", "chain", "a_zero", "b_zero"}

in which m, e, table and other are places in the step's inputs, and `axis` is that of the buffer.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from qdeploy.backends.tvm.packing import padded
from qdeploy.backends.tvm.program import Buffer, Program, Step
from qdeploy.backends.tvm.targets import LANES, Kernel
from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.ir.element import as_value, element_dtype
from qdeploy.ir.graph import Graph, Node
from qdeploy.ir.run import run
from qdeploy.ir.tensor import Array

Chain = list[dict[str, Any]]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Place:
    """Where a value lies.

    Attributes:
        buffer: Its name in the program.
        shape: Of the value. The buffer's last axis may be longer; what lies there is of no meaning.
        last: Whether axis 1 of the value is the buffer's last one.
    """

    buffer: str
    shape: Shape
    last: bool = False

    def axis(self, axis: int) -> int:
        """The buffer's axis of an axis of the value."""
        rank = len(self.shape)
        place = axis % rank
        return place if not self.last or place == 0 else rank - 1 if place == 1 else place - 1

    @property
    def stored(self) -> Shape:
        """The shape in the order of the buffer, unpadded."""
        return (self.shape[0], *self.shape[2:], self.shape[1]) if self.last else self.shape


@dataclass
class Open:
    """A step that elementwise nodes may still join.

    Attributes:
        kind: Its builder.
        inputs: Its operands so far.
        attrs: Its attributes but the chain.
        shape: Of the kernel's output.
        place: What it becomes; its buffer is empty, and `final` is that buffer's shape (a view of the output).
        final: See there.
        chain: What has joined.
        dtype: Of the value now.
    """

    kind: str
    inputs: list[str]
    attrs: dict[str, Any]
    shape: Shape
    place: Place
    final: Shape
    dtype: str
    chain: Chain = field(default_factory=list)


class Planner:
    """The state of planning; `plan.py` has the rule of each op."""

    def __init__(self, graph: Graph, weights: Mapping[str, Array], kernel: Kernel, axes: Mapping[str, int]) -> None:
        self.graph, self.kernel, self.program = graph, kernel, Program()
        self._weights = weights
        self._values: dict[str, Place | Open] = {}
        self._uses = Counter(name for node in graph.nodes for name in node.inputs)
        self._uses.update(value.name for value in graph.outputs)
        self.shapes, self.dtypes = _types(graph, weights, axes)
        self._known = {v.name for v in graph.inputs} | {name for node in graph.nodes for name in node.outputs}

    # ---- values ----

    def constant(self, name: str) -> Array | None:
        """The integers of a weight or constant; None for a value that is computed."""
        if not name or name in self._known:
            return None
        if name in self.graph.constants:
            return as_value(self.graph.constants[name])
        if name not in self._weights:
            raise BadFileError("a node takes a name that nothing defines", found=name)
        return self._weights[name]

    def shared(self, name: str) -> bool:
        """Whether more than one node (or the caller) takes a value."""
        return self._uses[name] > 1 or any(value.name == name for value in self.graph.outputs)

    def set(self, name: str, value: Place | Open) -> None:
        """Defines a value; what several nodes take is computed at once."""
        self._values[name] = value
        if isinstance(value, Open) and self.shared(name):
            self.place(name)

    def open(self, name: str) -> Open | None:
        """The open step of a value that one node alone takes."""
        value = self._values.get(name)
        return value if isinstance(value, Open) else None

    def place(self, name: str) -> Place:
        """Where a value lies; closes its step."""
        if name not in self._values:
            array = self.constant(name)
            if array is None:
                raise BadFileError("a node takes a value that nothing has made", found=name)
            self._values[name] = Place(self.data(array), array.shape)
        value = self._values[name]
        if isinstance(value, Open):
            value = self._values[name] = self.close(value)
        return value

    def plain(self, name: str) -> Place:
        """Where a value lies in its own order and without padding; moves it there."""
        place = self.place(name)
        if self.operand(place).shape == place.shape and not place.last:
            return place
        moved = self.step("to_plain", [place.buffer], {"last": place.last}, place.shape, self.operand(place).dtype)
        self._values[name] = Place(moved, place.shape)
        return Place(moved, place.shape)

    def channels_last(self, name: str) -> Place:
        """Where an image lies with its channels last; moves it there."""
        place = self.place(name)
        if place.last:
            return place
        source = self.plain(name)
        n, c, *space = source.shape
        moved = self.step("to_last", [source.buffer], {}, (n, *space, padded(c, 4)), self.operand(source).dtype)
        self._values[name] = Place(moved, source.shape, True)
        return Place(moved, source.shape, True)

    def operand(self, place: Place) -> Buffer:
        """The buffer of a place."""
        return self.program.operand(place.buffer)

    # ---- steps ----

    def data(self, array: Array) -> str:
        """Adds a constant; equal ones are one."""
        for name, constant in self.program.constants.items():
            if constant.dtype == array.dtype and constant.shape == array.shape and np.array_equal(constant, array):
                return name
        name = f"constant.{len(self.program.constants)}"
        self.program.constants[name] = np.ascontiguousarray(array)
        return name

    def step(self, kind: str, inputs: list[str], attrs: Mapping[str, Any], shape: Shape, dtype: str) -> str:
        """Adds a step; returns the name of its output."""
        name = f"value.{len(self.program.buffers)}"
        self.program.buffers[name] = Buffer(tuple(shape), dtype)
        self.program.steps.append(Step(kind, tuple(inputs), name, dict(attrs)))
        return name

    def view(self, buffer: str, shape: Shape) -> str:
        """The same bytes in another shape."""
        operand = self.program.operand(buffer)
        if operand.shape == tuple(shape):
            return buffer
        if math.prod(operand.shape) != math.prod(shape):
            raise BadFileError("a view of another size", found=f"{operand.shape} as {shape}")
        if buffer in self.program.constants:
            return self.data(self.program.constants[buffer].reshape(shape))
        return self.step("view", [buffer], {}, shape, operand.dtype)

    def close(self, step: Open) -> Place:
        """Makes an open step one of the program."""
        output = self.step(step.kind, step.inputs, {**step.attrs, "chain": step.chain}, step.shape, step.dtype)
        return replace(step.place, buffer=self.view(output, step.final))

    def opened(self, name: str) -> Open:
        """The open step of a value, or an elementwise one over it."""
        step = self.open(name)
        if step:
            return step
        place = self.place(name)
        buffer = self.operand(place)
        return Open("elementwise", [place.buffer], {}, buffer.shape, place, buffer.shape, buffer.dtype)


def _types(
    graph: Graph, weights: Mapping[str, Array], axes: Mapping[str, int]
) -> tuple[dict[str, Shape], dict[str, str]]:
    """Shape and type of every value, by running the graph on zeros."""
    inputs = {v.name: np.zeros([_extent(n, axes) for n in v.shape], element_dtype(v.dtype)) for v in graph.inputs}
    names = [value for node in graph.nodes for value in node.outputs if value]
    every = replace(graph, outputs=tuple(replace(graph.inputs[0], name=name) for name in names))
    arrays, _ = run(every, inputs, weights=weights)
    arrays.update(inputs)
    for name, array in arrays.items():
        if array.dtype.kind not in "iu":
            raise UnsupportedError("the TVM backend takes networks of integers only", where=name, found=array.dtype)
    return {name: a.shape for name, a in arrays.items()}, {name: a.dtype.name for name, a in arrays.items()}


def _extent(axis: int | str, axes: Mapping[str, int]) -> int:
    if isinstance(axis, int):
        return axis
    if axis not in axes:
        raise UnsupportedError("a free axis without an extent", found=axis, allowed=", ".join(axes))
    return axes[axis]


def integer(node: Node, name: str, default: int = 0) -> int:
    """An integer attribute."""
    return int(node.attrs.get(name, default))  # type: ignore[arg-type]


def integers(node: Node, name: str) -> list[int]:
    """An attribute that is a list of integers; empty where it is absent."""
    return [int(n) for n in node.attrs.get(name) or []]  # type: ignore[union-attr]


def blocks_of(channels: int) -> int:
    """Channels of an image that a convolution makes."""
    return padded(channels, LANES)
