"""Layers whose inputs or outputs are turned on the way, so that their weights could be rounded well: as nodes.

A checkpoint says which steps stand around the product with a weight:

    Step("Mul", operand)             times a tensor, column by column
    Step("Hadamard", size=n)         blocks of n columns times Hadamard's matrix / sqrt(n)
    Step("MatMul", operand, size=n)  blocks of n columns times a tensor [n, n]

Nothing is folded: the weight stays as it is stored, in the turned basis, and the tensors of the steps are constants of
the network. A weight that something else than a layer takes has no turned form.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from qdeploy.errors import UnsupportedError
from qdeploy.ir.graph import Attr, Graph, Node
from qdeploy.ir.graph_rules import check_graph
from qdeploy.ir.model import Model
from qdeploy.ir.ops.table import op
from qdeploy.ir.tensor import QTensor


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        op: What is done.
        operand: Name of the tensor that it takes; "": none.
        size: Columns of a block.
        factor: Of MatMul: what the product is multiplied by.
        transposed: Of MatMul: whether the matrix is the transpose of the tensor.
    """

    op: Literal["Mul", "Hadamard", "MatMul"]
    operand: str = ""
    size: int = 0
    factor: float = 1.0
    transposed: bool = False


@dataclass(frozen=True)
class Turn:
    """The steps around one product.

    Attributes:
        before: On the inputs, in order.
        after: On the product, before a bias is added.
        behind: On the outputs, behind the bias.
    """

    before: tuple[Step, ...] = ()
    after: tuple[Step, ...] = ()
    behind: tuple[Step, ...] = ()

    @property
    def steps(self) -> tuple[Step, ...]:
        """All of them."""
        return (*self.before, *self.after, *self.behind)


class _Without(Mapping[str, QTensor]):
    """The tensors of a model without those that belong to steps."""

    def __init__(self, tensors: Mapping[str, QTensor], hidden: frozenset[str]) -> None:
        self._tensors, self._hidden = tensors, hidden

    def __getitem__(self, name: str) -> QTensor:
        if name in self._hidden:
            raise KeyError(name)
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._tensors if name not in self._hidden)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def turned(model: Model, turns: Mapping[str, Turn], besides: tuple[str, ...] = ()) -> Model:
    """The model whose graph has the steps.

    Args:
        model: As its reader made it; without a graph it stays as it is.
        turns: By the name of a weight.
        besides: Tensors that say what the steps are, and are no parameters either.
    """
    build = model.build_graph
    if build is None or not turns:
        return model
    hidden = frozenset(step.operand for turn in turns.values() for step in turn.steps) | set(besides)

    def build_turned(whole: Model) -> Graph:
        rest = replace(whole, tensors=_Without(whole.tensors, frozenset(hidden)))
        graph = turned_graph(build(rest), turns, whole.tensors)
        check_graph(graph, whole.tensors.keys())
        return graph

    return replace(model, build_graph=build_turned)


def turned_graph(graph: Graph, turns: Mapping[str, Turn], tensors: Mapping[str, QTensor]) -> Graph:
    """The graph with the steps around its layers; UnsupportedError for a weight that is no layer's alone."""
    names = {name for node in graph.nodes for name in (*node.outputs, *node.inputs)}
    work = _Work(turns, tensors, names | set(graph.constants))
    for node in graph.nodes:
        work.add(node)
    return replace(graph, nodes=tuple(work.nodes))


@dataclass
class _Work:
    turns: Mapping[str, Turn]
    tensors: Mapping[str, QTensor]
    taken: set[str]
    nodes: list[Node] = field(default_factory=list)
    known: dict[tuple[str, Step], str] = field(default_factory=dict)

    def add(self, node: Node) -> None:
        """The node, or what it becomes."""
        affected = [name for name in node.inputs if name in self.turns]
        if not affected:
            self.nodes.append(node)
        elif node.op == "GatedMlp":
            prefix, expand = node.name or node.outputs[0], op(node.op).expand
            inside = expand(node, lambda label: f"{prefix}/{label}") if expand else []
            self.taken.update(name for inner in inside for name in inner.outputs)
            for inner in inside:
                self.add(replace(inner, name=inner.name or inner.outputs[0]))
        elif node.op == "Linear" and affected == [node.inputs[1]]:
            self._linear(node, self.turns[node.inputs[1]])
        else:
            raise UnsupportedError(
                "a weight that belongs to turned activations is used by something else than a layer",
                where=affected[0],
                found=node.op,
                allowed="Linear, GatedMlp",
                todo="Convert its tensors with --to ir.",
            )

    def _linear(self, node: Node, turn: Turn) -> None:
        x, weight, *bias = node.inputs
        name, output = node.name or node.outputs[0], node.outputs[0]
        rows, columns = self.tensors[weight].shape
        for step in turn.before:
            x = self._step(x, step, columns, f"{x}/{step.op.lower()}")
        biased = bool(bias and bias[0])
        if not turn.after and not turn.behind:
            self.nodes.append(replace(node, inputs=(x, weight, *bias)))
            return
        stages: list[Step | None] = [*turn.after, *([None] if biased else []), *turn.behind]
        value = self._unused(f"{name}/straight")
        self.nodes.append(Node("Linear", (x, weight), (value,), node.attrs, value))
        for place, stage in enumerate(stages):
            last = output if place + 1 == len(stages) else ""
            if stage is None:
                label = last or self._unused(f"{name}/biased")
                self.nodes.append(Node("Add", (value, bias[0]), (label,), {}, label))
                value = label
            else:
                value = self._step(value, stage, rows, last or f"{name}/{place}", last)

    def _step(self, x: str, step: Step, columns: int, label: str, output: str = "") -> str:
        """Adds a step; one on the same value that is there already is not added again."""
        if not output and (x, step) in self.known:
            return self.known[x, step]
        value = output or self._unused(label)
        if step.op == "Mul":
            self.nodes.append(Node("Mul", (x, step.operand), (value,), {}, value))
        elif step.op == "Hadamard":
            self.nodes.append(Node("Hadamard", (x,), (value,), {"size": step.size}, value))
        else:
            self._product(x, step, columns, value)
        self.known[x, step] = value
        return value

    def _product(self, x: str, step: Step, columns: int, value: str) -> None:
        """Blocks of columns times a matrix; Linear multiplies with the transpose of what it takes."""
        matrix, across = step.operand, f"{value}.matrix"
        whole, output = step.size == columns, value if step.factor == 1.0 else f"{value}.product"
        if step.transposed != whole:
            self._node("Transpose", (matrix,), across, perm=[1, 0])
            matrix = across
        if whole:
            self._node("Linear", (x, matrix), output)
        else:
            blocks, product = f"{value}.blocks", f"{value}.turned"
            self._node("Reshape", (x,), blocks, shape=[0, 0, columns // step.size, step.size])
            self._node("MatMul", (blocks, matrix), product)
            self._node("Reshape", (product,), output, shape=[0, 0, columns])
        if output != value:
            self._node("Constant", (), f"{value}.factor", value_float=step.factor)
            self._node("Mul", (output, f"{value}.factor"), value)

    def _node(self, name: str, inputs: tuple[str, ...], output: str, **attrs: Attr) -> None:
        self.nodes.append(Node(name, inputs, (output,), attrs, output))

    def _unused(self, label: str) -> str:
        """A name that nothing has."""
        name, count = label, 1
        while name in self.taken:
            count += 1
            name = f"{label}{count}"
        self.taken.add(name)
        return name
