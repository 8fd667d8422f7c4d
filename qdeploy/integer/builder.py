"""What the rules of integerize build with: the integer graph so far, and rescaling from one grid to another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np

from qdeploy.errors import UnsupportedError
from qdeploy.integer.plan import Plan
from qdeploy.integer.quantized_value import Float64, Grid, QuantizedValue, fine_grid, signed_grid
from qdeploy.integer.weights import Coded, codes_tensor, stored_codes
from qdeploy.ir.dyadic import dyadics, quotient
from qdeploy.ir.element import as_value
from qdeploy.ir.graph import Graph, Node
from qdeploy.ir.tensor import Array, QTensor
from qdeploy.ir.views import Floats, view
from qdeploy.passes.fold import plain_tensor
from qdeploy.passes.shapes import SymbolicShape, inferred_shapes


@dataclass(frozen=True)
class Arithmetic:
    """How factors are formed and results rounded.

    Attributes:
        rounding: Of every Requantize: half_up, half_even or half_away.
        hawq: Numerators of factors are rounded to float32 first, as HAWQ does.
    """

    rounding: str = "half_up"
    hawq: bool = False


Rule: TypeAlias = "Callable[[Builder, Node], None]"


@dataclass
class Builder:
    """An integer graph that grows.

    Attributes:
        graph: The float graph, folded.
        tensors: The model's.
        rules: How each op becomes integers.
        plan: The scales of its values.
        arithmetic: How factors are formed and results rounded.
        moments: Of the inputs of layers, where they are known (`calibrate.moments`).
        channels: The least and the greatest number of each channel of the values that `smooth.py` may divide.
        values: Of the float graph, as integers.
        integers: Values of the float graph that are integers themselves (ids, masks), by their name here.
        nodes: Of the integer graph.
        constants: Of the integer graph.
        weights: Tensors of the integer model.
    """

    graph: Graph
    tensors: Mapping[str, QTensor]
    rules: Mapping[str, Rule]
    plan: Plan
    arithmetic: Arithmetic = field(default_factory=Arithmetic)
    moments: Mapping[str, Float64] = field(default_factory=dict)
    channels: Mapping[str, tuple[Float64, Float64]] = field(default_factory=dict)
    values: dict[str, QuantizedValue] = field(default_factory=dict)
    integers: dict[str, str] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    constants: dict[str, QTensor] = field(default_factory=dict)
    weights: dict[str, QTensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._shared: dict[Any, str] = {}
        self._taken: set[str] = set()
        self._coded: dict[str, Coded] = {}

    def apply(self, node: Node) -> None:
        """Adds what a node of the float graph means.

        Raises:
            UnsupportedError: It has no integer form, or misses what it needs for one.
        """
        if node.op not in self.rules:
            op_name = f"{node.attrs['domain']}.{node.attrs['type']}" if node.op == "Opaque" else node.op
            raise UnsupportedError(
                "an op without an integer form", where=f"node {node.name or node.outputs[0]}", found=op_name
            )
        self.rules[node.op](self, node)

    # ---- names, nodes and constants

    def name(self, wanted: str) -> str:
        """A name that nothing has yet."""
        while wanted in self._taken:
            wanted += "'"
        self._taken.add(wanted)
        return wanted

    def add(self, op: str, inputs: Sequence[str], output: str, **attrs: Any) -> str:
        """Adds a node; returns its output, under a name of its own."""
        unique = self.name(output)
        self.nodes.append(Node(op, tuple(inputs), (unique,), attrs, unique))
        return unique

    def constant(self, array: Array, name: str) -> str:
        """Adds a constant; the same numbers are one constant."""
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._shared:
            self._shared[key] = self.name(name)
            self.constants[self._shared[key]] = plain_tensor(array)
        return self._shared[key]

    def once(self, key: tuple[Any, ...], make: Callable[[], str]) -> str:
        """What is made under a key for the first time."""
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]

    def weight(self, coded: Coded, bits: int, name: str) -> str:
        """Adds the codes of a weight as a tensor of the model."""
        unique = self.name(name)
        self.weights[unique] = codes_tensor(coded, bits)
        return unique

    # ---- constants of the source

    def tensor(self, name: str) -> QTensor | None:
        """A constant of the float graph."""
        return self.graph.constants.get(name) or self.tensors.get(name)

    def array(self, name: str) -> Array | None:
        """A plain constant of the float graph."""
        tensor = self.tensor(name)
        if tensor is None:
            return None
        return as_value(tensor) if isinstance(view(tensor), Floats) or stored_codes(tensor, name) is None else None

    def coded(self, name: str) -> Coded | None:
        """A constant that the source has as codes."""
        tensor = self.tensor(name)
        return self._coded.get(name) or (stored_codes(tensor, name) if tensor is not None else None)

    def note(self, name: str, coded: Coded) -> None:
        """Lets the result of a node stand for codes of a constant."""
        self._coded[name] = coded

    def is_constant(self, name: str) -> bool:
        """Whether a name is a constant of the float graph, quantized or not."""
        return name in self._coded or self.tensor(name) is not None

    def real(self, name: str) -> Array:
        """A constant as real numbers, float64."""
        coded = self.coded(name)
        return coded.values() if coded is not None else np.asarray(self.array(name)).astype(np.float64)

    @cached_property
    def shapes(self) -> dict[str, SymbolicShape]:
        """The shapes of the float graph's values."""
        arrays = {name: as_value(self.tensors[name]) for name in self.graph.weights() if name in self.tensors}
        return inferred_shapes(self.graph, arrays)

    # ---- values

    def value(self, name: str) -> QuantizedValue:
        """A value of the float graph as integers."""
        if name not in self.values:
            raise UnsupportedError("a float value that is not known as integers", where=name)
        return self.values[name]

    def requantize(self, x: QuantizedValue, grid: Grid, name: str) -> QuantizedValue:
        """The codes of x on another grid, with what was left to be limited; each is made once."""
        if _lies_on(x, grid):
            return x
        lo = grid.lo if x.floor is None else max(grid.lo, _code(x.floor, grid))
        hi = grid.hi if x.ceil is None else min(grid.hi, _code(x.ceil, grid))
        lo, hi = min(lo, grid.hi), max(min(hi, grid.hi), lo)
        key = ("requantize", x.name, x.zero, x.scale.tobytes(), grid, lo, hi)
        if key not in self._shared:
            m, e = self.factors(x, grid.scale)
            attrs = {"axis": x.axis} if m.size > 1 else {}
            self._shared[key] = self.add(
                "Requantize",
                (x.name, self.constant(m, f"{name}/multiplier"), self.constant(e, f"{name}/shift")),
                f"{name}/{grid.dtype.lower()}",
                lo=lo,
                hi=hi,
                zero=grid.zero,
                x_zero=x.zero,
                dtype=grid.dtype,
                rounding=self.arithmetic.rounding,
                **attrs,
            )
        return replace(QuantizedValue.on(grid, self._shared[key]), lo=lo, hi=hi)

    def factors(self, x: QuantizedValue, scale: float) -> tuple[Array, Array]:
        """Multipliers and shifts from the scales of x to another one."""
        try:
            return dyadics(quotient(x.scale, scale, hawq=self.arithmetic.hawq))
        except UnsupportedError as error:
            raise UnsupportedError(error.what, where=x.name, found=error.found, allowed=error.allowed) from error

    def codes(self, name: str, bits: int = 8) -> QuantizedValue:
        """A value as codes: as it is, of its stream, or on the grid that the plan has for it."""
        x = self.value(name)
        if x.is_codes:
            return x
        if not self.plan.knows(name) and self.plan.stream(name) is None:
            return self.requantize(x, fine_grid(self.plan.largest_magnitude(name)), name)
        return self.requantize(x, self.plan.stream(name) or self.plan.grid(name, bits), name)

    def narrow(self, name: str, bits: int = 8, zero_point: bool = False, most: int = 16) -> QuantizedValue:
        """A value as codes of so many bits, what layers multiply; `zero_point`: they may have one.

        Codes of 16 bits that the source gives stay as they are. A value without a scale that is bounded by what comes
        before it has `most` bits.
        """
        x = self.value(name)
        if x.is_codes and (x.hi - x.lo < 1 << bits or not self.plan.knows(name)):
            return x
        if not self.plan.knows(name):
            return self.requantize(x, signed_grid(self.plan.largest_magnitude(name), most), name)
        return self.requantize(x, self.plan.grid(name, bits, zero_point), name)


def _lies_on(x: QuantizedValue, grid: Grid) -> bool:
    """Whether codes are on a grid as they are."""
    own = x.grid
    same = own is not None and (own.scale, own.zero, own.dtype) == (grid.scale, grid.zero, grid.dtype)
    return same and grid.lo <= x.lo and x.hi <= grid.hi


def _code(real: float, grid: Grid) -> int:
    return int(np.clip(np.rint(real / grid.scale), -(1 << 31), 1 << 31)) + grid.zero
