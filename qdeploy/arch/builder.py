"""Putting a graph together: nodes in order, and parameters that are there and have the shape that the config says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from qdeploy.arch.config import Config
from qdeploy.arch.names import Names, layer_of
from qdeploy.arch.unused import refuse_unused
from qdeploy.errors import BadFileError
from qdeploy.ir.expand import activation
from qdeploy.ir.graph import Attr, Graph, Node, State, Value
from qdeploy.ir.model import Model
from qdeploy.ir.tensor import Buffer, Float32, QTensor, plain

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
    "relu_squared": "relu2",
    "tanh": "tanh",
    "quick_gelu": "quick_gelu",
}
"""`hidden_act` in transformers' spelling -> ours; its tanh spellings are one formula."""


class Builder:
    """A graph under construction.

    Attributes:
        model: Whose graph it is.
        names: How its parameters are called.
        constants: The graph's own tensors so far.
        states: Caches so far.
        scope: What the names of nodes begin with, so that two towers of one graph keep theirs apart.
        keys_and_values: What goes into each cache, by its name, for layers that share one.
    """

    def __init__(self, model: Model, names: Names) -> None:
        self.model, self.names = model, names
        self.constants: dict[str, QTensor] = {}
        self.states: list[State] = []
        self.scope = ""
        self.keys_and_values: dict[str, tuple[str, str]] = {}
        self._nodes: list[Node] = []
        self._used: set[str] = set()
        self._transposed: set[str] = set()
        self._left_out: dict[str, list[str]] = {}

    def has(self, parameter: str) -> bool:
        """Whether a canonical parameter is among the tensors."""
        return self._locate(parameter) is not None

    def weight(self, parameter: str, shape: tuple[int, ...], fields: str) -> str:
        """Returns the stored name of a parameter.

        Args:
            parameter: Its canonical name.
            shape: What the configuration says.
            fields: The fields that say so; for the error.

        Raises:
            BadFileError: It is missing, or has another shape.
        """
        name = self._locate(parameter)
        if name is None:
            name = self.names.spellings(parameter, self.model.dialect)[0]
            fields += "" if layer_of(parameter) is None else ", num_hidden_layers"
            raise BadFileError(
                "a tensor of the architecture is missing",
                where=f"tensor {name}",
                found="nothing",
                allowed=f"shape {list(shape)}, which config.json ({fields}) asks for",
            )
        stored_shape = self.model.tensors[name].shape
        if stored_shape != shape:
            raise BadFileError(
                "config.json contradicts a tensor",
                where=f"config.json: {fields}; tensor {name}",
                found=f"shape {list(stored_shape)}",
                allowed=f"shape {list(shape)}",
            )
        self._used.add(name)
        return name

    def matrix(self, parameter: str, shape: tuple[int, int], fields: str) -> str:
        """As `weight`, for what a Linear node multiplies with: transposed where the family stores it [in, out]."""
        if not self.names.transposed or self.model.dialect != "hf" or not self._is_float(parameter):
            return self.weight(parameter, shape, fields)
        name, transposed = self.weight(parameter, shape[::-1], fields), f"{parameter}.turned"
        if transposed not in self._transposed:
            self._transposed.add(transposed)
            self.node("Transpose", name, name=transposed, perm=[1, 0])
        return transposed

    def _is_float(self, parameter: str) -> bool:
        """Whether a parameter is stored, and as floats."""
        from qdeploy.ir.views import Floats, view  # few families store matrices so

        stored = self.stored(parameter)
        return stored is not None and isinstance(view(stored), Floats)

    def linear(self, x: str, module: str, shape: tuple[int, int], fields: str, name: str, *, bias: bool = True) -> str:
        """Adds the product with a stored matrix [out, in], and its stored bias where the architecture has one."""
        weight = self.weight(f"{module}.weight", shape, fields)
        return self.node("Linear", x, weight, self.bias(f"{module}.bias", shape[0], bias, fields), name=name)

    def leave_out(self, parameters: Iterable[str], reason: str) -> None:
        """Says in a note that parameters, where they are stored, take no part in what the network computes."""
        names = [name for name in map(self._locate, parameters) if name is not None]
        self._used.update(names)
        self._left_out.setdefault(reason, []).extend(names)

    def stored(self, parameter: str) -> QTensor | None:
        """The tensor of a canonical parameter; None where there is none."""
        name = self._locate(parameter)
        return None if name is None else self.model.tensors[name]

    def bias(self, parameter: str, size: int, declared: bool, field: str) -> str:
        """Returns the stored name of a bias, or "" where the architecture has none.

        Some libraries store a bias of zeros for every layer that they quantize, so zeros may be there undeclared.
        """
        if declared:
            return self.weight(parameter, (size,), field)
        name = self._locate(parameter)
        if name is not None and np.any(self.model.tensors[name].decode()):
            where = f"config.json: {field}; tensor {name}"
            raise BadFileError("config.json denies a bias that is stored", where=where, found="values other than zero")
        self._used.update([name] if name is not None else ())
        return ""

    def node(self, op: str, *inputs: str, name: str, **attrs: Attr) -> str:
        """Adds a node with one output, which has the node's name; inputs that are empty at the end are left out."""
        name = self.scope + name
        self._add(op, inputs, (name,), name, attrs)
        return name

    def pair(self, op: str, inputs: tuple[str, ...], first: str, second: str, **attrs: Attr) -> tuple[str, str]:
        """Adds a node with two outputs and the name of the first."""
        first, second = self.scope + first, self.scope + second
        self._add(op, inputs, (first, second), first, attrs)
        return first, second

    def skip_norm(self, x: str, skip: str, norm: tuple[str, ...], name: str, last: bool = False, **attrs: Attr) -> str:
        """Adds SkipNorm; its second output, unless it is the last, is `<name>.sum`."""
        name = self.scope + name
        self._add("SkipNorm", (x, skip, *norm), (name,) if last else (name, f"{name}.sum"), name, attrs)
        return name

    def activation(self, kind: str, x: str, name: str) -> str:
        """Adds the nodes of an activation ("silu", "gelu", "gelu_tanh", "relu", "relu2", "tanh")."""
        name = self.scope + name
        for node in activation(kind, x, name, lambda label: f"{name}.{label}"):
            self._add(node.op, node.inputs, node.outputs, node.outputs[0], node.attrs)
        return name

    def constant(self, name: str, values: Float32) -> str:
        """Adds a float32 tensor of the graph's own."""
        name = self.scope + name
        self.constants[name] = plain(Buffer.of("data", np.ascontiguousarray(values, np.float32), "F32"), "f32")
        return name

    def integer(self, name: str, value: int) -> str:
        """Adds one whole number as a tensor of the graph's own, int64 [1]."""
        return self.integers(name, [value])

    def integers(self, name: str, values: list[int]) -> str:
        """Adds whole numbers as a tensor of the graph's own, int64 [n]."""
        name = self.scope + name
        self.constants[name] = plain(Buffer.of("data", np.array(values, np.int64), "I64"), "int64")
        return name

    def same(self, one: str, other: str) -> None:
        """Raises BadFileError where two stored tensors that are one parameter differ."""
        if one != other and not np.array_equal(self.model.tensors[one].decode(), self.model.tensors[other].decode()):
            raise BadFileError("a parameter is stored twice, and the two differ", where=one, found=f"another {other}")

    def shifted(self, weight: str, offset: float) -> str:
        """The name of a stored weight, or of the constant weight + offset in float32."""
        if not offset:
            return weight
        return self.constant(f"{weight}.effective", self.model.tensors[weight].decode() + np.float32(offset))

    def scaled(self, x: str, factor: float, name: str) -> str:
        """Adds x times a number."""
        return self.node("Mul", x, self.constant(f"{name}.factor", np.array([factor], np.float32)), name=name)

    def graph(self, inputs: tuple[Value, ...], outputs: tuple[Value, ...], meta: Mapping[str, Attr]) -> Graph:
        """The finished graph; UnsupportedError where a tensor of the model is left over."""
        refuse_unused(self.model, self._used)
        for reason, names in self._left_out.items():
            note = f"left out, since {reason}: {len(names)} tensors ({', '.join(names[:1])}, ...)"
            if names and note not in self.model.notes:
                self.model.notes.append(note)
        return Graph(inputs, outputs, tuple(self._nodes), tuple(self.states), self.constants, meta)

    def _locate(self, parameter: str) -> str | None:
        return self.names.locate(parameter, self.model.dialect, self.model.tensors)

    def _add(
        self, op: str, inputs: tuple[str, ...], outputs: tuple[str, ...], name: str, attrs: Mapping[str, Attr]
    ) -> None:
        while inputs and not inputs[-1]:
            inputs = inputs[:-1]
        self._nodes.append(Node(op, inputs, outputs, dict(attrs), name))


def layer_count(model: Model, config: Config) -> int:
    """Reads `num_hidden_layers`; BadFileError where the tensors have more layers, or plainly too few."""
    layers, where = tower_layer_count(model, config), f"{config.where}: num_hidden_layers"
    for name in model.tensors:
        layer = layer_of(name)
        if layer is not None and layer >= layers:
            raise BadFileError(
                "config.json contradicts a tensor",
                where=f"{where}; tensor {name}",
                found=f"layer {layer}",
                allowed=f"layers 0..{layers - 1}",
            )
    return layers


def tower_layer_count(
    model: Model, config: Config, field: str = "num_hidden_layers", default: int | None = None
) -> int:
    """Reads the layers of one tower of several; BadFileError where there are plainly too few tensors for them."""
    layers, where = config.size(field, default), f"{config.where}: {field}"
    if layers > len(model.tensors):
        raise BadFileError(
            "the configuration has more layers than there are tensors",
            where=where,
            found=layers,
            allowed=f"at most {len(model.tensors)}",
        )
    return layers
