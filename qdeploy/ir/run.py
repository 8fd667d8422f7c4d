"""The interpreter: what a graph computes, in numpy and float32.

It is pure: states go in and new states come out. Slow and plain on purpose, since every backend is tested against it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from qdeploy.errors import BadArgumentError, BadFileError
from qdeploy.ir.element import as_value, element_dtype
from qdeploy.ir.graph import Graph, Node, Value
from qdeploy.ir.guard import Guard
from qdeploy.ir.ops.table import op
from qdeploy.ir.tensor import Array, Float32

if TYPE_CHECKING:
    from qdeploy.ir.model import Model

Cache = tuple[Float32, Float32]
"""Keys and values, [B, kv_heads, length, D] each."""

_NUMPY_ERRORS = (ValueError, IndexError, TypeError, ArithmeticError, AttributeError)
"""What numpy says of shapes and types that do not fit."""


class Weights(Mapping[str, Array]):
    """A model's tensors as nodes take them (float32; bare integers as such), decoded at their first use and kept."""

    def __init__(self, model: Model) -> None:
        self._tensors = model.tensors
        self._decoded: dict[str, Array] = {}

    def __getitem__(self, name: str) -> Array:
        if name not in self._decoded:
            self._decoded[name] = as_value(self._tensors[name])
        return self._decoded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def run(
    graph: Graph,
    inputs: Mapping[str, Array],
    states: Mapping[str, Cache] | None = None,
    weights: Mapping[str, Array] | None = None,
    watch: Callable[[str, Array], None] | None = None,
    guard: Guard | None = None,
) -> tuple[dict[str, Array], dict[str, Cache]]:
    """Runs a graph once.

    Args:
        graph: What to run.
        inputs: An array for each input of the graph; integers become int64, floats float32.
        states: Caches by state name; a missing one is empty.
        weights: Float32 arrays by tensor name: `Weights(model)`, or any mapping.
        watch: Is shown every input and every result by its name, in the order in which they are there.
        guard: Counts what each node costs before it runs, and refuses it.

    Returns:
        The graph's outputs by name, and the caches after this run.

    Raises:
        BadArgumentError: An input is missing or has another rank, or an id lies outside of the vocabulary.
        BadFileError: A name is not defined, or the shapes of a node's inputs do not fit.
        UnsupportedError: The guard refuses a node.
    """
    values: dict[str, Array] = {value.name: _input(value, inputs) for value in graph.inputs}
    before: Mapping[str, Cache] = states or {}
    after: dict[str, Cache] = dict(before)
    last = _last_uses(graph)
    if watch is not None:
        _show(values, watch)
    for place, node in enumerate(graph.nodes):
        arguments = [_value(name, values, graph, weights or {}, node) for name in node.inputs]
        if guard is not None:
            fixed = [
                a.size for name, a in zip(node.inputs, arguments, strict=True) if a is not None and name not in values
            ]
            guard(node, arguments, fixed)
        results, kept = _apply(node, arguments, graph, before)
        after.update(kept)
        outputs = {name: result for name, result in zip(node.outputs, results, strict=False) if name}
        if watch is not None:
            _show(outputs, watch)
        values.update(outputs)
        for name in node.inputs:
            if last.get(name) == place:
                values.pop(name, None)
    return {value.name: values[value.name] for value in graph.outputs}, after


def batches(graph: Graph, inputs: Mapping[str, Array], size: int) -> Iterator[dict[str, Array]]:
    """Inputs in parts of `size` entries of the first axis; of as many as the graph fixes, without what is over."""
    count = len(next(iter(inputs.values())))
    fixed = [axis for value in graph.inputs for axis in value.shape[:1] if isinstance(axis, int)]
    step = fixed[0] if fixed else size
    stop = count - count % step if fixed and count >= step else count
    for start in range(0, stop, step):
        yield {name: array[start : start + step] for name, array in inputs.items()}


def generate_greedy(
    model: Model | Graph, ids: Sequence[int], count: int, weights: Mapping[str, Array] | None = None
) -> list[int]:
    """Returns the `count` most likely next tokens after `ids`, one after the other; ties go to the smaller id.

    Args:
        model: A decoder. For a Graph, `weights` must be given.
        ids: The prompt, at least one id.
        count: How many tokens to make; an end token does not stop it.
        weights: As for `run`; by default the model's own, decoded once.
    """
    if isinstance(model, Graph) and weights is None:
        raise BadArgumentError("a graph alone has no weights", todo="Pass weights, or the model.")
    graph = model if isinstance(model, Graph) else model.graph
    parameters = Weights(model) if weights is None and not isinstance(model, Graph) else weights
    states: dict[str, Cache] = {}
    generated: list[int] = []
    step = list(ids)
    for _ in range(count):
        outputs, states = run(graph, {"input_ids": np.array([step], np.int64)}, states, parameters)
        step = [int(np.argmax(outputs["logits"][0, -1]))]
        generated += step
    return generated


def _show(arrays: Mapping[str, Array], watch: Callable[[str, Array], None]) -> None:
    for name, value in arrays.items():
        watch(name, value)


def _input(value: Value, inputs: Mapping[str, Array]) -> Array:
    if value.name not in inputs:
        raise BadArgumentError("an input is missing", where=value.name, found=", ".join(inputs) or "no inputs")
    array = np.asarray(inputs[value.name])
    fixed = [n for n in value.shape if isinstance(n, int)]
    sizes = [n for n, axis in zip(array.shape, value.shape, strict=False) if isinstance(axis, int)]
    if array.ndim != len(value.shape) or fixed != sizes:
        raise BadArgumentError(
            "an input has another shape", where=value.name, found=array.shape, allowed=str(list(value.shape))
        )
    return array.astype(element_dtype(value.dtype))


def _last_uses(graph: Graph) -> dict[str, int]:
    last = {name: place for place, node in enumerate(graph.nodes) for name in node.inputs}
    for value in graph.outputs:
        last.pop(value.name, None)
    return last


def _value(
    name: str, values: Mapping[str, Array], graph: Graph, weights: Mapping[str, Array], node: Node
) -> Array | None:
    if not name:
        return None
    if name in values:
        return values[name]
    if name in graph.constants:
        return as_value(graph.constants[name])
    if name in weights:
        return weights[name]
    raise BadFileError("a node takes a name that nothing defines", where=f"node {node.name or node.op}", found=name)


def _apply(
    node: Node, arguments: list[Array | None], graph: Graph, states: Mapping[str, Cache]
) -> tuple[Sequence[Array], dict[str, Cache]]:
    """What a node gives, and the state that it keeps, from the states as they were before the run."""
    row = op(node.op)
    try:
        attrs: dict[str, Any] = dict(node.attrs)
        if isinstance(attrs.get("rope"), Mapping):
            attrs["rope"] = _rope(attrs["rope"], graph)
        kept = str(node.attrs.get("state", ""))
        if row.takes_past:
            attrs["past"] = states.get(kept or str(node.attrs.get("length_of", "")))
        with np.errstate(all="ignore"):  # infinities and NaN are what the numbers mean
            result = row.numpy(*arguments, **attrs)
        if row.keeps_state:
            result, cache = result
    except _NUMPY_ERRORS as error:
        shapes = ", ".join("-" if a is None else str(list(a.shape)) for a in arguments)
        raise BadFileError(
            f"a node cannot run: {error}",
            where=f"node {node.name or node.outputs[0]} ({node.op})",
            found=f"inputs {shapes}",
        ) from error
    after = {kept: cache} if kept and row.keeps_state else {}
    return result if isinstance(result, tuple) else (result,), after


def _rope(attribute: Mapping[str, Any], graph: Graph) -> dict[str, Any]:
    """The attribute `rope` with arrays in the place of the names of constants."""
    rope = dict(attribute)
    rope["inv_freq"] = graph.constants[rope["inv_freq"]].decode()
    long = rope.get("long")
    if isinstance(long, Mapping) and "inv_freq" in long:
        rope["long"] = {**long, "inv_freq": graph.constants[str(long["inv_freq"])].decode()}
    return rope
