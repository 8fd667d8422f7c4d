"""A graph of integers to ONNX.

    strict   operators over integers alone, exact: what ONNX Runtime computes is what the graph means, bit for bit
    fast     ONNX Runtime's kernels for 8-bit codes (`fast.py`), which rescale by float factors; what they have
             no kernel for is as in strict

A signed value of 8 bits has two forms: itself, and *raised* by 128 as unsigned codes, which is what the kernels for
x86 processors are fast with. Either is made from the other where a node asks for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from qdeploy.backends.onnx.options import Options
from qdeploy.backends.onnx.proto import GraphBuilder, onnx_type
from qdeploy.backends.onnx.rules import Ruling
from qdeploy.errors import UnsupportedError
from qdeploy.ir.dtype import element_row
from qdeploy.ir.element import as_value, element_name
from qdeploy.ir.graph import Graph, Node
from qdeploy.ir.model import Model
from qdeploy.ir.ops.table import op
from qdeploy.ir.tensor import Array
from qdeploy.passes.shapes import SymbolicShape, inferred_shapes

RAISE = 128
"""What unsigned codes are higher than the signed ones that they stand for; also their highest bit."""
_SMALL = 1024


class WeightForm:
    """How the codes of a weight lie in the file.

    Attributes:
        label: The type.
        shape: Of the weight.
    """

    def __init__(self, label: str, shape: tuple[int, ...]) -> None:
        self.label, self.shape = label, shape

    def linear(self, builder: GraphBuilder, x: str, output: str) -> None:
        """Of no use: nodes of integers take their weights themselves."""
        raise NotImplementedError

    def gather(self, builder: GraphBuilder, ids: str, output: str) -> None:
        """Of no use, as `linear`."""
        raise NotImplementedError


class IntegerLowering:
    """Lowers the graph of a model of integers into a builder.

    Attributes:
        graph: The graph.
        builder: What is filled.
        rulings: The form of each weight, in order of first use.
        arrays: Constants and weights by name.
        types: Element type of each value.
    """

    def __init__(self, model: Model, options: Options) -> None:
        self.graph: Graph = model.graph
        self.fast = options.integer == "fast"
        self.builder = GraphBuilder()
        self.rulings: dict[str, Ruling] = {}
        self._weights = {name: model.tensors[name] for name in self.graph.weights()}
        tensors = {**self._weights, **self.graph.constants}
        self.arrays: dict[str, Array] = {name: np.asarray(as_value(tensor)) for name, tensor in tensors.items()}
        computed = {v.name for v in self.graph.inputs} | {name for n in self.graph.nodes for name in n.outputs}
        self.builder.reserved = computed | set(self.arrays)
        self.types = {name: element_name(array.dtype) for name, array in self.arrays.items()}
        taken = [name for node in self.graph.nodes for name in node.inputs]
        self.uses = Counter([*taken, *(value.name for value in self.graph.outputs)])
        self.makers = {name: node for node in self.graph.nodes for name in node.outputs}
        self._plain: dict[str, str] = {}
        self._raised: dict[str, str] = {}

    def run(self) -> None:
        """Declares inputs and outputs and lowers every node."""
        from qdeploy.backends.onnx.integer.fast import absorbed, emit_fast
        from qdeploy.backends.onnx.integer.nodes import emit_strict

        for value in self.graph.inputs:
            self.types[value.name] = value.dtype
            self._plain[value.name] = self.builder.input(value.name, onnx_type(value.dtype), value.shape)
        for node in self.graph.nodes:
            self.types[node.outputs[0]] = self._type(node)
        skipped = absorbed(self) if self.fast else frozenset()
        for node in self.graph.nodes:
            if node.outputs[0] not in skipped and not (self.fast and emit_fast(self, node)):
                emit_strict(self, node)
        for value in self.graph.outputs:
            if self.plain(value.name) != value.name:
                self.builder.node("Identity", [self.plain(value.name)], value.name)
            self.builder.output(value.name, onnx_type(value.dtype), self._shape(value.name))

    # ---- values

    def plain(self, name: str) -> str:
        """A value, constant or weight as it is."""
        if name not in self._plain:
            if name in self.arrays:
                self._plain[name] = self.held(name, self.arrays[name])
            else:
                flipped = self.builder.node("BitwiseXor", [self._raised[name], self.builder.tensor(RAISE, "uint8")])
                self._plain[name] = self.builder.node("Cast", [flipped], name, to=onnx_type("I8"))
        return self._plain[name]

    def unsigned(self, name: str) -> tuple[str, int]:
        """A value of 8 bits as unsigned codes, and what they are raised by."""
        if self.types[name] == "U8":
            return self.plain(name), 0
        if name not in self._raised:
            bits = self.builder.once("Cast", [self.plain(name)], to=onnx_type("U8"))
            self._raised[name] = self.builder.once("BitwiseXor", [bits, self.builder.tensor(RAISE, "uint8")])
        return self._raised[name], RAISE

    def wide(self, name: str, dtype: str = "I32") -> str:
        """A value in a wider type."""
        plain = self.plain(name)
        return plain if self.types[name] == dtype else self.builder.once("Cast", [plain], to=onnx_type(dtype))

    def is_raised(self, name: str) -> bool:
        """Whether a value is there as raised codes."""
        return name in self._raised and name not in self._plain

    def give(self, name: str, output: str) -> None:
        """Says which ONNX value a value is."""
        self._plain[name] = self._named(output, name)

    def give_unsigned(self, name: str, output: str) -> None:
        """Says which ONNX value holds a value's unsigned codes."""
        (self._plain if self.types[name] == "U8" else self._raised)[name] = self._named(output, self.label(name))

    def label(self, name: str) -> str:
        """A name for a value's unsigned codes."""
        return name if self.types[name] == "U8" else f"{name}.raised"

    def _named(self, output: str, wanted: str) -> str:
        """Names what the last node makes after the value that it stands for."""
        last = self.builder.graph.node[-1]
        if list(last.output) != [output] or output in self.builder.reserved:
            return output
        last.output[0] = wanted
        return wanted

    def cast(self, x: str, dtype: str, output: str = "") -> str:
        """A node that casts."""
        return self.builder.node("Cast", [x], output, to=onnx_type(dtype))

    # ---- constants and weights

    def held(self, name: str, array: Array, why: str = "codes as they are") -> str:
        """An initializer: small ones in the graph itself, others in the data file; notes the form of weights."""
        array = np.ascontiguousarray(array)
        kind = element_name(array.dtype)
        if element_row(kind).bits < 8:
            array = array.astype(np.int8 if kind.startswith("I") else np.uint8)
            kind = element_name(array.dtype)
        owner = name.removesuffix(".raised").removesuffix(".turned").removesuffix(".int8")
        if owner in self._weights and owner not in self.rulings:
            self.rulings[owner] = Ruling(WeightForm(kind.lower(), array.shape), why)
        if array.size <= _SMALL:
            return self.builder.tensor(array)
        return self.builder.initializer(name, onnx_type(kind), array.shape, lambda a, b: array[a:b])

    def codes(self, name: str) -> Array:
        """A constant or weight as int64."""
        return self.arrays[name].astype(np.int64)

    # ---- shapes and types

    @cached_property
    def shapes(self) -> dict[str, SymbolicShape]:
        """The shape of every value."""
        shapes = inferred_shapes(self.graph, self.arrays)
        return {**shapes, **{name: array.shape for name, array in self.arrays.items()}}

    def rank(self, name: str) -> int:
        """How many axes a value has."""
        return len(self.shapes[name])

    def along(self, numbers: Array, name: str, axis: int) -> Array:
        """Numbers per index of an axis of a value, shaped to be broadcast with it."""
        if numbers.size == 1:
            return numbers.reshape(())
        rank = self.rank(name)
        return numbers.reshape([-1 if i == axis % rank else 1 for i in range(rank)])

    def _type(self, node: Node) -> str:
        if node.op in ("Requantize", "IntegerSoftmax"):
            return str(node.attrs.get("dtype", "U8"))
        return op(node.op).result or self.types[node.inputs[1 if node.op == "Lookup" else 0]]

    def _shape(self, name: str) -> Sequence[int | str]:
        return [f"{name}.{i}" if n == -1 else n for i, n in enumerate(self.shapes[name])]

    def refuse(self, node: Node, what: str, found: Any = None) -> UnsupportedError:
        """The error for what has no form."""
        return UnsupportedError(what, where=f"node {node.name or node.outputs[0]} ({node.op})", found=found)
