"""GroupQueryAttention (com.microsoft) and the RotaryEmbedding before it, as Attention with a state.

    0..2   query, key, value; or all three in the first, side by side
    3, 4   keys and values of the tokens before, an input of the graph each
    5, 6   tokens of each sequence less one, and the extent of the mask: what a decoder means by its lengths anyway
    7, 8   cosines and sines [positions, pairs], where do_rotary says so
    9      places of the tokens
    10     a bias of the scores, which decoders have none of
    11     a score of each head that takes part in its softmax and has no value
    12, 13 scales of quantized caches, which decoders have none of
    14, 15 weights of a norm of every query and key before they are rotated, with qk_norm_epsilon

Attributes of the same meaning: num_heads, kv_num_heads, scale (0: 1 / sqrt(size)), local_window_size (-1: none),
softcap, rotary_interleaved, smooth_softmax (a score of 0 as in 11). sliding_window_cache bounds what a cache holds and
changes no number.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from qdeploy.formats.onnx.decoder.reading import ObstacleError, Reading
from qdeploy.formats.onnx.decoder.rotation import ROUNDING, frequencies
from qdeploy.ir.graph import Node, State
from qdeploy.ir.tensor import Array, Float32

_KNOWN = frozenset(
    {
        "num_heads",
        "kv_num_heads",
        "scale",
        "local_window_size",
        "softcap",
        "do_rotary",
        "rotary_interleaved",
        "smooth_softmax",
        "sliding_window_cache",
        "qk_norm_epsilon",
    }
)
_NEUTRAL: Mapping[str, Any] = {"qk_output": 0, "k_quant_type": "NONE", "v_quant_type": "NONE", "kv_cache_bit_width": 0}
"""Attributes that mean nothing with these values."""
Tables = tuple[Float32, Float32, str]


def grouped_attention(reading: Reading, node: Node) -> None:
    """Adds an Attention node and its state."""
    attrs = reading.attributes(node)
    odd = [k for k, v in attrs.items() if k not in _KNOWN and _NEUTRAL.get(k, _NEUTRAL) != v]
    inputs = [*node.inputs, *[""] * (16 - len(node.inputs))]
    if odd or any((inputs[10], *inputs[12:14], *inputs[16:], *node.outputs[3:])):
        raise ObstacleError(
            node, "attention with " + (", ".join(odd) or "a bias, or more inputs or outputs than are known")
        )
    heads, kv_heads = int(attrs["num_heads"]), int(attrs["kv_num_heads"])
    parts, size = _parts(reading, node, inputs, heads, kv_heads)
    epsilon, counts = float(attrs.get("qk_norm_epsilon", 1e-6)), (heads, kv_heads)
    normed = [
        reading.normed(part, weight, count, epsilon) if weight else part
        for part, weight, count in zip(parts[:2], inputs[14:], counts, strict=False)
    ]
    parts = (*normed, parts[2])
    _check_cache(reading, node, inputs)
    described: dict[str, Any] = {
        "heads": heads,
        "kv_heads": kv_heads,
        "causal": True,
        "scale": float(attrs.get("scale") or 0.0) or 1 / math.sqrt(size),
        "window": max(int(attrs.get("local_window_size", -1)), 0),
        "state": f"kv.{len(reading.states)}",
    }
    described |= {"softcap": float(attrs["softcap"])} if attrs.get("softcap") else {}
    parts, rope = _rotation(reading, node, inputs, parts, attrs)
    described |= {"rope": rope} if rope else {}
    sinks = _sinks(reading, node, inputs[11], heads, bool(attrs.get("smooth_softmax", 0) == 1))
    reading.states.append(State(described["state"], kv_heads, size))
    extra = ("", sinks) if sinks else ()
    reading.add("Attention", (*parts, *extra), node.outputs[0], heads * size, **described)


def _parts(reading: Reading, node: Node, inputs: list[str], heads: int, kv_heads: int) -> tuple[tuple[str, ...], int]:
    """Query, key and value, and the elements of a head."""
    width = reading.width(inputs[0], node)
    if inputs[1]:
        widths = tuple(reading.width(name, node) for name in inputs[1:3])
        if width % heads or widths != (width // heads * kv_heads,) * 2:
            raise ObstacleError(node, f"{heads} and {kv_heads} heads of {width} and {widths[0]} elements")
        return tuple(inputs[:3]), width // heads
    size, rest = divmod(width, heads + 2 * kv_heads)
    if rest:
        raise ObstacleError(node, f"{width} elements for {heads} + 2 * {kv_heads} heads")
    names, start = [], 0
    for part, count in zip("qkv", (heads, kv_heads, kv_heads), strict=True):
        stop = start + count * size
        name = f"{node.outputs[0]}/{part}"
        names.append(reading.add("Slice", inputs[:1], name, count * size, starts=[start], ends=[stop], axes=[2]))
        start = stop
    return tuple(names), size


def _check_cache(reading: Reading, node: Node, inputs: list[str]) -> None:
    """The caches are the graph's own, and the lengths those of the sequences."""
    declared = {value.name for value in reading.graph.inputs}
    outputs = {value.name for value in reading.graph.outputs}
    present = [name for name in node.outputs[1:3] if name]
    if not set(inputs[3:5]) <= declared or len(present) != 2 or not set(present) <= outputs:
        raise ObstacleError(node, "its keys and values are not an input and an output of the graph")
    reading.expect(node, inputs[5], lambda new, past: [new + past - 1], "the tokens of each sequence, less one")
    reading.expect(node, inputs[6], lambda new, past: [new + past], "the tokens of the longest sequence")
    if inputs[9]:
        reading.expect(node, inputs[9], lambda new, past: np.arange(past, past + new), "the places of the tokens")


def _sinks(reading: Reading, node: Node, name: str, heads: int, smooth: bool) -> str:
    if name:
        scores = reading.floats(name)
        if scores is None or scores.size != heads:
            raise ObstacleError(node, "scores of heads that are computed")
        return reading.constant(f"{node.outputs[0]}/sinks", scores.reshape(-1))
    return reading.constant(f"{node.outputs[0]}/sinks", np.zeros(heads, np.float32)) if smooth else ""


# ---- rotations


def _rotation(
    reading: Reading, node: Node, inputs: list[str], parts: tuple[str, ...], attrs: Mapping[str, Any]
) -> tuple[tuple[str, ...], dict[str, Any] | None]:
    """What is mixed, before it was rotated, and the rotation."""
    query, key = (reading.rotated.get(reading.name(name)) for name in parts[:2])
    if attrs.get("do_rotary"):
        if query or key:
            raise ObstacleError(node, "two rotations")
        return parts, _rope(reading, node, inputs[7:9], bool(attrs.get("rotary_interleaved")), 0)
    if query and key:
        if query[1] != key[1]:
            raise ObstacleError(node, "queries and keys with different rotations")
        return (query[0], key[0], parts[2]), query[1]
    if query or key:
        raise ObstacleError(node, "only one of queries and keys is rotated")
    return parts, None


def rotary_embedding(reading: Reading, node: Node) -> None:
    """Notes a rotation, which the attention behind it does."""
    attrs = reading.attributes(node)
    odd = [
        k
        for k, v in attrs.items()
        if k not in ("interleaved", "num_heads", "rotary_embedding_dim") and v not in (0, 1.0)
    ]
    if odd or node.attrs["domain"] != "com.microsoft":
        raise ObstacleError(node, "a rotation with " + (", ".join(odd) or "other inputs"))
    width = reading.width(node.inputs[0], node)
    reading.expect(node, node.inputs[1], lambda new, past: np.arange(past, past + new), "the places of the tokens")
    extent = int(attrs.get("rotary_embedding_dim", 0))
    rope = _rope(reading, node, node.inputs[2:4], bool(attrs.get("interleaved")), extent)
    heads = int(attrs.get("num_heads", 0)) or width // int(rope["rotary_dim"])
    reading.widths[node.outputs[0]] = width
    reading.rotated[node.outputs[0]] = (reading.name(node.inputs[0]), rope, heads)


def _rope(reading: Reading, node: Node, names: Any, interleaved: bool, extent: int) -> dict[str, Any]:
    short = _tables(reading, names)
    choice = None if short else _by_length(reading, node, names)
    tables = short or (choice[0] if choice else None)
    recovered = frequencies(*tables) if tables else None
    if tables is None or recovered is None:
        raise ObstacleError(node, f"{', '.join(names)} are no cosines and sines of places")
    inv_freq, factor = recovered
    if extent not in (0, 2 * len(inv_freq)):
        raise ObstacleError(node, f"{extent} elements are rotated by {len(inv_freq)} pairs")
    rope: dict[str, Any] = {
        "inv_freq": _constant(reading, f"{names[0]}.inv_freq", inv_freq),
        "rotary_dim": 2 * len(inv_freq),
        "interleaved": interleaved,
        "factor": factor,
    }
    if choice is None:
        reading.contexts.append(len(tables[0]))
        return rope
    _, longer, beyond = choice
    behind = frequencies(*longer)
    if behind is None or behind[1] != factor:
        raise ObstacleError(node, "long sequences have no rotation of the same factor")
    reading.contexts.append(len(longer[0]))
    return {**rope, "long": {"beyond": beyond, "inv_freq": _constant(reading, f"{names[0]}.long", behind[0])}}


def _constant(reading: Reading, name: str, array: Float32) -> str:
    return name if name in reading.constants else reading.constant(name, array)


def _tables(reading: Reading, names: Any) -> Tables | None:
    """Cosines and sines that are tensors, and the type that they are stored in."""
    parts = []
    for name in names:
        name = reading.name(name)
        maker = reading.makers.get(name)
        kind = str(maker.attrs["to"]) if maker is not None and maker.op == "Cast" else "F32"
        array = reading.floats(name if maker is None or kind not in ROUNDING else maker.inputs[0])
        if array is None:
            return None
        parts.append((array, kind))
    (cos, kind), (sin, _) = parts
    return cos, sin, kind


def _by_length(reading: Reading, node: Node, names: Any) -> tuple[Tables, Tables, int] | None:
    """Tables of short and of long sequences, which an If chooses by the extent of the mask, and the border."""
    import onnx

    maker = reading.makers.get(reading.name(names[0]))
    if maker is None or reading.kind(maker) != "If" or reading.makers.get(reading.name(names[1])) is not maker:
        return None
    condition = reading.makers.get(maker.inputs[0])
    border = reading.integers(condition.inputs[1]) if condition is not None and condition.op == "Greater" else None
    if condition is None or border is None or len(border) != 1:
        return None
    reading.expect(node, condition.inputs[0], lambda new, past: [new + past], "the tokens of the longest sequence")
    branches: dict[str, Tables] = {}
    listed = maker.attrs["attributes"]
    for encoded in listed if isinstance(listed, list) else []:
        attribute = onnx.AttributeProto.FromString(base64.b64decode(str(encoded)))
        arrays = _branch(reading, attribute.g)
        if len(arrays) != 2:
            return None
        order = [list(maker.outputs).index(reading.name(name)) for name in names]
        kind = "F16" if any(array.dtype == np.float16 for array in arrays) else "F32"
        cos, sin = (np.asarray(arrays[place], np.float32) for place in order)
        branches[attribute.name] = (cos, sin, kind)
    if set(branches) != {"then_branch", "else_branch"}:
        return None
    return branches["else_branch"], branches["then_branch"], border[0]


def _branch(reading: Reading, graph: Any) -> list[Array]:
    """The constants that a branch gives, in their own type."""
    import onnx

    inner = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and len(node.attribute) == 1 and node.attribute[0].name == "value":
            inner[node.output[0]] = onnx.numpy_helper.to_array(node.attribute[0].t)
        elif node.op_type == "Identity":
            source = inner.get(node.input[0])
            outside = reading.floats(node.input[0]) if source is None else source
            if outside is not None:
                inner[node.output[0]] = outside
    arrays = [inner.get(value.name) for value in graph.output]
    return [array for array in arrays if array is not None and array.ndim == 2]
