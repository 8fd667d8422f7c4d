"""Shapes of every value of a graph, with the free axes by name, found by running the graph on zeros.

Every free axis of the inputs gets a size of its own, and the graph runs twice, with different sizes; an axis of a
value that has the size of a free axis both times is that axis, one that never changes is fixed, and any other one is
unknown (-1). So no row needs a rule of its own.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qdeploy.errors import BadArgumentError, BadFileError
from qdeploy.ir.element import element_dtype
from qdeploy.ir.graph import Graph
from qdeploy.ir.run import run
from qdeploy.ir.tensor import Array

SymbolicShape = tuple[int | str, ...]
"""A shape whose free axes stand by their names."""
UNKNOWN = -1
_STRIDE = 64
"""Extents of free axes are multiples of it where networks do not run on small ones."""
USUAL = {"sequence": 128}
"""Default sizes of free axes, by their names."""


def chosen_axes(graph: Graph, axes: Mapping[str, int]) -> dict[str, int]:
    """Sizes of the free axes of the inputs: those of `axes`, else 1 for a batch (a first axis of any name), else USUAL.

    Axes with none of these are left out.

    Raises:
        BadArgumentError: `axes` names an axis that the network does not have.
    """
    free = list(dict.fromkeys(axis for value in graph.inputs for axis in value.shape if isinstance(axis, str)))
    if unknown := [name for name in axes if name not in free]:
        raise BadArgumentError(
            "the network has no such free axis",
            found=", ".join(unknown),
            allowed=", ".join(free) or "none: all of its axes are fixed",
        )
    batches = {axis: 1 for value in graph.inputs for axis in value.shape[:1] if isinstance(axis, str)}
    sizes = {**USUAL, **batches, **axes}
    return {name: sizes[name] for name in free if name in sizes}


def inferred_shapes(graph: Graph, weights: Mapping[str, Array]) -> dict[str, SymbolicShape]:
    """Returns the shape of every value that a node makes, and of the inputs.

    Raises:
        QdeployError: The graph does not run on zeros.
    """
    names = list(dict.fromkeys(axis for v in graph.inputs for axis in v.shape if isinstance(axis, str)))
    small = [{name: 1 + 3 * i + step for i, name in enumerate(names)} for step in (0, 1)]
    large = [{name: _STRIDE * (1 + 2 * i + step) for i, name in enumerate(names)} for step in (0, 1)]
    try:
        (first, second), shapes = small, [_shapes(graph, weights, sizes) for sizes in small]
    except BadFileError:  # images that are halved again and again need some places
        if not names:
            raise
        (first, second), shapes = large, [_shapes(graph, weights, sizes) for sizes in large]
    return {
        name: tuple(_axis(a, b, first, second) for a, b in zip(shape, shapes[1][name], strict=True))
        for name, shape in shapes[0].items()
        if len(shape) == len(shapes[1][name])
    }


def _axis(a: int, b: int, first: Mapping[str, int], second: Mapping[str, int]) -> int | str:
    if a == b:
        return a
    return next((name for name in first if (first[name], second[name]) == (a, b)), UNKNOWN)


def _shapes(graph: Graph, weights: Mapping[str, Array], sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    inputs = {
        v.name: np.zeros([sizes.get(str(n), 1) if isinstance(n, str) else n for n in v.shape], element_dtype(v.dtype))
        for v in graph.inputs
    }
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str, array: Array) -> None:
        shapes[name] = array.shape

    run(graph, inputs, {}, weights, note)
    return shapes
