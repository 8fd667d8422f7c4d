"""A TFLite subgraph as a graph of ours: the form that it has, names, and the constants that operators need.

An integer network computes codes with codes: each operator gives INT8 or INT16 values with one scale. QUANTIZE of a
float input and DEQUANTIZE to a float output are its ends, and are cut off. Anything else is a float network.

Values keep their names. The first axis is free ("batch") where the file says so, or does not say and has 1 there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.formats.consumed import Consumed
from qdeploy.formats.tflite.schema import Operator, Parsed, Tensor
from qdeploy.formats.tflite.stored import Part, element, plain_integers, refuse_unread
from qdeploy.ir.graph import Attr, Graph, Node, Value
from qdeploy.ir.graph_rules import check_graph
from qdeploy.ir.tensor import Array, Buffer, QTensor, plain

CODES = ("INT8", "INT16")
_ENDS = ("QUANTIZE", "DEQUANTIZE")
_DEFAULTS = (0, 1, (), None)
"""Of options that an importer may leave out."""
_SHAPES = ("NewShape", "SqueezeDims", "ValuesCount", "Num", "NumSplits", "DepthMultiplier")
_TYPES = ("InDataType", "OutDataType", "OutType", "OutputType")
_SAID_AGAIN: dict[str, tuple[Any, ...]] = dict.fromkeys((*_SHAPES, *_TYPES), ())
"""Options that say again what the tensors say."""
_WINDOW = 4096  # greatest extent of a kernel with its gaps: padding is as large
_TABLES = {"int8": ("I8", "int8"), "int16": ("I16", "int16"), "int32": ("I32", "int32"), "int64": ("I64", "int64")}


class Network:
    """A subgraph that is being translated.

    Attributes:
        file: Its name, for errors.
        parsed: What the file says.
        names: Of its tensors.
        parts: Its constants, by index.
        nodes: Of the graph.
        constants: Of the graph.
    """

    def __init__(self, file: str, parsed: Parsed, names: Sequence[str], parts: Mapping[int, Part]) -> None:
        self.file, self.parsed, self.names, self.parts = file, parsed, names, parts
        self.nodes: list[Node] = []
        self.constants: dict[str, QTensor] = {}

    # ---- what importers of operators ask for

    def tensor(self, index: int) -> Tensor:
        """What the file says of a tensor."""
        return self.parsed.tensors[index]

    def add(self, op: str, inputs: Sequence[str], output: str, **attrs: Any) -> str:
        """Adds a node; returns its output."""
        self.nodes.append(Node(op, tuple(inputs), (output,), attrs, output))
        return output

    def add_several(self, op: str, inputs: Sequence[str], outputs: Sequence[str], **attrs: Any) -> None:
        """Adds a node of several outputs."""
        self.nodes.append(Node(op, tuple(inputs), tuple(outputs), attrs, outputs[0]))

    def floats(self, array: Array, name: str) -> str:
        """Adds float32 numbers as a constant of the graph."""
        self.constants[name] = plain(Buffer.of("data", array.astype(np.float32), "F32"), "f32")
        return name

    def constant(self, array: Array, name: str) -> str:
        """Adds integers as a constant of the graph."""
        self.constants[name] = plain_integers(array, *_TABLES[array.dtype.name])
        return name

    def integers(self, index: int) -> str:
        """The codes of a constant, without its scale, as a constant of the graph."""
        name = f"{self.names[index]}/codes"
        self.constants.setdefault(name, self.part(index).integers())
        return name

    def part(self, index: int) -> Part:
        """A constant; raises UnsupportedError for a value that the network computes."""
        if index not in self.parts:
            raise UnsupportedError("an operand that must be a constant is computed", where=self.where(index))
        return self.parts[index]

    def listed(self, index: int) -> list[int]:
        """A constant list of integers."""
        part = self.part(index)
        if part.stored.dtype.element not in ("I32", "I64") or part.stored.count > 64:
            raise BadFileError(
                "a list of integers has another type", where=self.where(index), found=part.stored.dtype.element
            )
        return [int(n) for n in part.array().reshape(-1)]

    def where(self, index: int) -> str:
        """A tensor as errors name it."""
        return f"{self.file}: {self.names[index]}"

    def shape(self, index: int) -> tuple[int, ...]:
        """The shape of a tensor, whose free axis can only be the first."""
        tensor = self.tensor(index)
        if any(tensor.free[1:]):
            raise UnsupportedError("a free axis besides the first", where=self.where(index), found=list(tensor.free))
        return tensor.shape

    def scale(self, index: int) -> tuple[np.float32, int]:
        """The one scale and zero point of a tensor."""
        tensor = self.tensor(index)
        if tensor.scales.size != 1 or not tensor.scales[0] > 0:
            raise UnsupportedError(
                "a value without one scale above 0", where=self.where(index), found=tensor.scales.size
            )
        return tensor.scales[0], int(tensor.zeros[0])

    def dtype(self, index: int) -> str:
        """The element type of a tensor."""
        return element(self.tensor(index).kind, self.where(index)).element

    def spatial(self, op: Operator, index: int, kernel: Sequence[int]) -> dict[str, Any]:
        """strides, dilations and explicit pads of a window over an image [N, H, W, C]."""
        o = op.options
        space = self.shape(index)[1:3]
        strides, dilations = [o["StrideH"], o["StrideW"]], [o.get("DilationHFactor", 1), o.get("DilationWFactor", 1)]
        spans = [(k - 1) * gap + 1 for k, gap in zip(kernel, dilations, strict=True)]
        if min(*strides, *dilations, *kernel) < 1 or max(spans) > _WINDOW or o["Padding"] not in (0, 1):
            raise BadFileError(
                "a window that cannot be",
                where=self.where(index),
                found=f"{list(kernel)}, {o}",
                allowed=f"strides, dilations and a kernel of 1 to {_WINDOW}",
            )
        low, high = [], []
        for n, extent, step in zip(space, spans, strides, strict=True):
            total = max(0, (-(-n // step) - 1) * step + extent - n) if o["Padding"] == 0 else 0
            low.append(total // 2)
            high.append(total - total // 2)
        attrs: dict[str, Any] = {"strides": strides, "pads": [*low, *high]}
        return attrs | ({"dilations": dilations} if dilations != [1, 1] else {})

    def target(self, op: Operator) -> list[int]:
        """The shape that a reshaping operator gives, with 0 for a first axis that stays."""
        before, after = self.shape(op.inputs[0]), list(self.shape(op.outputs[0]))
        if before and after and before[0] == after[0]:
            after[0] = 0
        elif self.tensor(op.outputs[0]).free[:1] == (True,):
            after[0] = -1
        return after

    # ---- the graph

    def value(self, index: int) -> Value:
        """An input or output."""
        tensor = self.tensor(index)
        signed = any(tensor.free)
        axes: list[int | str] = list(tensor.shape)
        for i, free in enumerate(tensor.free):
            if free or (i == 0 and not signed and tensor.shape[0] == 1):
                axes[i] = f"{self.names[index]}.{i}" if i else "batch"
        return Value(self.names[index], self.dtype(index), tuple(axes))

    def graph(self, inputs: Sequence[int], outputs: Sequence[int], meta: dict[str, Attr]) -> Graph:
        """The finished graph."""
        graph_inputs, graph_outputs = tuple(map(self.value, inputs)), tuple(map(self.value, outputs))
        graph = Graph(graph_inputs, graph_outputs, tuple(self.nodes), (), self.constants, meta)
        check_graph(graph, [self.names[i] for i in self.parts])
        return graph


Importer = Callable[[Network, Operator], None]


def build_graph(file: str, parsed: Parsed, names: Sequence[str], parts: Mapping[int, Part]) -> Graph:
    """Builds the graph.

    Raises:
        UnsupportedError: An operator has no row here; it is named.
        BadFileError: An operator contradicts its operands.
    """
    from qdeploy.formats.tflite.float_network import FloatNetwork
    from qdeploy.formats.tflite.floats import FLOAT
    from qdeploy.formats.tflite.integers import INTEGER

    if is_integer(parsed):
        network = Network(file, parsed, names, parts)
        inputs, outputs, inner = _ends(network)
        _translate(network, inner, INTEGER)
        meta: dict[str, Attr] = {"kind": "integer", "layout": "NHWC"}
        ends = [i for i in (*inputs, *outputs) if parsed.tensors[i].scales.size]
        meta["quantization"] = {names[i]: _quantization(network, i) for i in ends}
        return network.graph(inputs, outputs, meta)
    floats = FloatNetwork(file, parsed, names, parts)
    _translate(floats, parsed.operators, FLOAT)
    for index in parsed.outputs:
        floats.last(index)
    return floats.graph(parsed.inputs, parsed.outputs, {"kind": "network"})


def is_integer(parsed: Parsed) -> bool:
    """Whether every operator, those at the ends aside, gives codes with one scale."""
    inner = [op for op in parsed.operators if op.kind not in _ENDS]
    results = [parsed.tensors[i] for op in inner for i in op.outputs]
    return bool(results) and all(t.kind in CODES and t.scales.size == 1 for t in results)


def _translate(network: Any, operators: Sequence[Operator], table: Mapping[str, Any]) -> None:
    unknown = Counter(op.kind for op in operators if op.kind not in table)
    if unknown:
        raise UnsupportedError(
            "operators that are not read" if len(unknown) > 1 else "an operator that is not read",
            where=network.file,
            found=", ".join(f"{kind} ({count})" for kind, count in sorted(unknown.items())),
            allowed=", ".join(sorted(table)),
        )
    for op in operators:
        refuse_unread(op.unread, f"{network.file}: {op.kind}")
        for index in {*op.inputs, *op.outputs} - {-1}:
            refuse_unread(network.tensor(index).unread, network.where(index))
        if not op.outputs or not op.inputs or op.inputs[0] < 0:
            raise BadFileError("an operator without an input or output", where=network.file, found=op.kind)
        options = Consumed(op.options)
        try:
            table[op.kind](network, replace(op, options=options))
        except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:  # options or operands are missing
            raise BadFileError(
                f"an operator does not fit its kind: {error}", where=network.where(op.outputs[0]), found=op.kind
            ) from error
        defaults: dict[str, tuple[Any, ...]] = dict.fromkeys(options, _DEFAULTS)
        options.refuse_rest(defaults | _SAID_AGAIN, f"{network.where(op.outputs[0])} ({op.kind})")


def _ends(network: Network) -> tuple[list[int], list[int], list[Operator]]:
    """Inputs and outputs as codes, and the operators between them."""
    parsed, inner = network.parsed, []
    inputs, outputs = list(parsed.inputs), list(parsed.outputs)
    for op in parsed.operators:
        source, result = (op.inputs or (-1,))[0], (op.outputs or (-1,))[0]
        if op.kind == "QUANTIZE" and source in inputs and parsed.tensors[source].kind == "FLOAT32":
            inputs[inputs.index(source)] = result
        elif op.kind == "DEQUANTIZE" and result in outputs and source >= 0:
            outputs[outputs.index(result)] = source
        else:
            inner.append(op)
    return inputs, outputs, inner


def _quantization(network: Network, index: int) -> dict[str, Any]:
    scale, zero = network.scale(index)
    return {"scale": float(scale), "zero": zero}
