"""The graph: nodes over a table of ops, with the key/value cache as a declared state.

One namespace holds everything that a node can take: graph inputs, outputs of earlier nodes, the model's tensors by
their source names, and the graph's own constants (rope frequencies, made by `arch/`). Nodes stand in an order in which
every input is already there. What an op means is its row in `ir/ops/table.py`; this file only says what a graph is.

Attributes of a node are JSON values. `Attention` carries `heads`, `kv_heads`, `scale`, `causal`, `window` (0: none),
`state` (a State's name, or absent) and `rope`, a mapping `{inv_freq, rotary_dim, interleaved, factor}` whose `inv_freq`
names a constant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qdeploy.ir.tensor import QTensor

OBSTACLE = "obstacle"
"""Key of a network's meta: the node that keeps it from being a decoder, and why; absent where it is plainly none."""
Attr = bool | int | float | str | list[Any] | dict[str, Any]


@dataclass(frozen=True)
class Value:
    """An input or output of the graph: name, dtype ("I64", "F32") and shape, whose free axes are named."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class State:
    """What a graph keeps between two runs.

    kv         keys and values, [batch, heads, length, head_dim] each; heads of values have the extent `value_dim`
               where that is not 0
    conv       the last tokens of each channel, [batch, heads, head_dim]
    recurrent  a matrix per head, [batch, heads, head_dim, value_dim]
    """

    name: str
    heads: int
    head_dim: int
    dtype: str = "F32"
    capacity: int = 0
    kind: str = "kv"
    value_dim: int = 0


@dataclass(frozen=True)
class Node:
    """One application of an op. An input that is left out is the empty name."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Attr] = field(default_factory=dict)
    name: str = ""


@dataclass(frozen=True)
class Graph:
    """A network.

    Attributes:
        inputs: What the caller gives.
        outputs: What the caller gets.
        nodes: In an order in which they can run.
        states: Caches.
        constants: Tensors that the architecture defines and no source file holds.
        meta: What a backend needs to know about the whole ("kind": "decoder" | "encoder", context length, token ids).
    """

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    nodes: tuple[Node, ...]
    states: tuple[State, ...] = ()
    constants: Mapping[str, QTensor] = field(default_factory=dict)
    meta: Mapping[str, Attr] = field(default_factory=dict)

    def weights(self) -> tuple[str, ...]:
        """Names that nodes take and that the graph does not define: the model's tensors, each once, in order of use."""
        defined = {value.name for value in self.inputs} | set(self.constants)
        taken: dict[str, None] = {}
        for node in self.nodes:
            taken.update((name, None) for name in node.inputs if name and name not in defined)
            defined.update(node.outputs)
        return tuple(taken)
