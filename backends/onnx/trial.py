"""Inputs to try a network with of which nothing is known but the types and shapes of its inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from qdeploy.backends.onnx.proto import MICROSOFT, MODEL_FILE
from qdeploy.errors import UnsupportedError
from qdeploy.ir.dtype import element_row
from qdeploy.ir.element import element_dtype
from qdeploy.ir.graph import Graph, Value
from qdeploy.ir.guard import ELEMENTS
from qdeploy.ir.model import Model
from qdeploy.ir.ops.quantized import QUANTIZED_ROWS
from qdeploy.ir.ops.table import op
from qdeploy.ir.tensor import Array

ROUNDS = frozenset(row.name for row in QUANTIZED_ROWS)
"""Rows after which a difference in the last bit can become one of a whole step."""
_SHARES = ("Sigmoid", "Softmax", "HardSigmoid")
_TRIES, _LONGEST = 24, 4096
_USUAL = (32, 48, 64, 224, 256, 512)
"""Extents that images and sounds often have: tried where nothing else works."""


def token_ids(graph: Graph, shape: tuple[int, int]) -> Array:
    """Ids of any tokens that a network of texts knows."""
    vocab = int(graph.meta["vocab"])  # type: ignore[arg-type]
    return np.random.default_rng(0).integers(0, vocab, shape, dtype=np.int64)


def encoder_inputs(graph: Graph, batch: int, tokens: int, further: int) -> dict[str, Array]:
    """Texts without padding, or whatever else an encoder takes.

    Args:
        graph: Of an encoder, of texts or of other things.
        batch: How many of everything.
        tokens: Of a text.
        further: Tokens of texts under other names (`decoder_input_ids`).
    """
    every: dict[str, Array] = {}
    if "vocab" in graph.meta:
        ids = token_ids(graph, (batch, tokens))
        every = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    random = np.random.default_rng(0)
    for value in graph.inputs:
        if value.name.endswith("_input_ids"):
            every[value.name] = token_ids(graph, (batch, further))
        elif value.name not in every:
            every[value.name] = random.normal(size=[n if isinstance(n, int) else batch for n in value.shape])
    return {value.name: every[value.name].astype(element_dtype(value.dtype)) for value in graph.inputs}


def trial_inputs(graph: Graph, extent: int = 4, last_only: bool = False) -> dict[str, Array]:
    """One array per input: normal numbers, or small integers.

    Args:
        graph: Of a network.
        extent: Of free axes; those that are the first axis of an input are 1, wherever their names stand.
        last_only: Only the last axis of an input has this extent, every other free axis is 1.
    """
    rng = np.random.default_rng(0)
    batches = {value.shape[0] for value in graph.inputs if value.shape and isinstance(value.shape[0], str)}
    arrays = {}
    for value in graph.inputs:
        last = len(value.shape) - 1
        ones = [axis in batches or (last_only and place != last) for place, axis in enumerate(value.shape)]
        shape = [n if isinstance(n, int) else 1 if one else extent for n, one in zip(value.shape, ones, strict=True)]
        if math.prod(shape) > ELEMENTS:
            raise UnsupportedError(
                "an input is too large to try the network with",
                where=value.name,
                found=shape,
                allowed=f"{ELEMENTS} elements",
                todo="--check none converts without running it.",
            )
        arrays[value.name] = _trial(value, rng, shape)
    return arrays


def trial_extents(graph: Graph) -> list[int]:
    """What free axes may be: 4 or, in networks made for one length, one of the extents that they reshape to."""
    shapes = [node.attrs["shape"] for node in graph.nodes if node.op == "Reshape" and "shape" in node.attrs]
    extents = sorted({n for shape in shapes if isinstance(shape, list) for n in shape if 1 < n <= _LONGEST})
    free = any(isinstance(n, str) for value in graph.inputs for n in value.shape[1:])
    return list(dict.fromkeys([4, *extents[:_TRIES], *_USUAL])) if free else [4]


def _trial(value: Value, rng: np.random.Generator, shape: Sequence[int]) -> Array:
    row, dtype = element_row(value.dtype), element_dtype(value.dtype)
    if row.kind == "bool" or row.is_integer or row.bits < 8:
        return rng.integers(0, 2, shape).astype(dtype)  # valid as ids, codes, masks and flags
    return rng.standard_normal(shape).astype(dtype)


def trial_codes(graph: Graph) -> dict[str, Array]:
    """As `trial_inputs`, for a graph of integers: codes of the whole range; what is wider than 16 bits is 0 or 1."""
    rng = np.random.default_rng(0)
    codes = {}
    for value in graph.inputs:
        shape = [n if isinstance(n, int) else 4 if place else 2 for place, n in enumerate(value.shape)]
        dtype = element_dtype(value.dtype)
        narrow = dtype.itemsize <= 2
        limits = (np.iinfo(dtype).min, np.iinfo(dtype).max) if narrow else (0, 1)
        codes[value.name] = rng.integers(*limits, shape, endpoint=True).astype(dtype)
    return codes


def can_run(graph: Graph) -> bool:
    """Whether every node has a numpy meaning."""
    return all(node.op != "Opaque" for node in graph.nodes)


def unknown_domains(graph: Graph) -> list[str]:
    """The domains of operators that ONNX Runtime does not have."""
    domains = {str(node.attrs["domain"]) for node in graph.nodes if node.op == "Opaque"}
    return sorted(domains - {"", MICROSOFT, "ai.onnx.ml"})


def source_file(model: Model) -> Path | None:
    """The ONNX file that a network was read from; None where it came from elsewhere.

    Where ONNX Runtime runs neither the source nor the output, the conversion is not to blame.
    """
    if model.format != "onnx":
        return None
    path = Path(model.path)
    files = [path] if path.is_file() else sorted(path.glob("*.onnx"))
    return next((f for f in files if f.name == MODEL_FILE), files[0] if files else None)


def is_half(graph: Graph) -> bool:
    """Whether something is computed in 16-bit floats."""
    narrow = ("F16", "BF16")
    return any(v.dtype in narrow for v in graph.inputs) or any(node.attrs.get("to") in narrow for node in graph.nodes)


def shares(graph: Graph) -> tuple[str, ...]:
    """The outputs that are parts of 1, moved or not."""
    makers = {name: node for node in graph.nodes for name in node.outputs}
    names = []
    for value in graph.outputs:
        node = makers.get(value.name)
        while node is not None and op(node.op).moves:
            node = makers.get(node.inputs[0])
        names += [value.name] if node is not None and node.op in _SHARES else []
    return tuple(names)


def rounds(graph: Graph) -> bool:
    """Whether activations are quantized on the way."""
    return any(node.op in ROUNDS for node in graph.nodes)
