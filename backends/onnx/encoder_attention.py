"""Attention of encoders to com.microsoft.MultiHeadAttention, whose mask is per key.

    rotary positions      com.microsoft.RotaryEmbedding before it; the first token stands at 0
    grouped heads         keys and values are repeated, since the operator wants as many as there are query heads
    causal masks          the attribute unidirectional
    windows               the input attention_bias: minus infinity outside of them
    biases                the same input

Nothing is kept between two runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx

from qdeploy.backends.onnx.attention import OUTSIDE, rotary_caches
from qdeploy.backends.onnx.proto import MICROSOFT, GraphBuilder
from qdeploy.errors import UnsupportedError
from qdeploy.ir.graph import Node
from qdeploy.ir.tensor import Array, QTensor


def inputs_at(node: Node, place: int) -> str:
    """The name of an input; "" where there is none."""
    return node.inputs[place] if len(node.inputs) > place else ""


class EncoderAttention:
    """Lowers the Attention nodes of an encoder.

    Args:
        builder: The graph.
        constants: The graph's constants, where rotary frequencies are.
        context: Positions that the tables of cosines and sines cover.
    """

    def __init__(self, builder: GraphBuilder, constants: Mapping[str, QTensor], context: int) -> None:
        self._builder, self._constants, self._context = builder, constants, context

    def emit(self, node: Node, inputs: tuple[str, str, str], mask: str, size: int) -> None:
        """Appends the nodes of one Attention without a state.

        Args:
            node: The node.
            inputs: Queries [B, T, heads * size], keys and values [B, T, kv_heads * size].
            mask: I64 [B, T], or empty.
            size: Elements of a head; 0 where nothing needs it.
        """
        attrs: Mapping[str, Any] = node.attrs
        if attrs.get("softcap") or attrs.get("chunk") or inputs_at(node, 4):
            raise UnsupportedError(
                "attention without a state takes no softcap, no chunks and no sinks", where=node.name
            )
        builder, heads, kv_heads = self._builder, attrs["heads"], attrs["kv_heads"]
        query, key, value = inputs
        if attrs.get("rope"):
            query, key = (self._rotate(x, n, size, attrs["rope"]) for x, n in ((query, heads), (key, kv_heads)))
        if kv_heads != heads:
            key, value = (self._repeat(x, kv_heads, heads, size) for x in (key, value))
        bias = inputs_at(node, 5)
        if attrs.get("window"):
            outside = self._outside_of_window(query, attrs["window"])
            bias = builder.node("Add", [bias, outside]) if bias else outside
        padding = builder.once("Cast", [mask], to=onnx.TensorProto.INT32) if mask else ""
        extra = ["", padding, bias] if bias else ["", padding] if padding else []
        builder.node(
            "MultiHeadAttention",
            [query, key, value, *extra],
            node.outputs,
            MICROSOFT,
            num_heads=heads,
            scale=float(attrs["scale"]),
            **({"unidirectional": 1} if attrs.get("causal") else {}),
        )

    def _rotate(self, x: str, heads: int, size: int, rope: Mapping[str, Any]) -> str:
        if rope.get("long"):
            raise UnsupportedError("an encoder with rotary frequencies that change with the length")
        rotary = rope["rotary_dim"]
        return self._builder.node(
            "RotaryEmbedding",
            [x, self._builder.constant([0], "int64"), *self._caches(rope)],
            domain=MICROSOFT,
            interleaved=int(bool(rope.get("interleaved"))),
            num_heads=heads,
            rotary_embedding_dim=rotary if rotary != size else 0,
        )

    def _caches(self, rope: Mapping[str, Any]) -> tuple[str, str]:
        """Cosines and sines of every position."""
        factor, key = float(rope.get("factor", 1.0)), str(rope["inv_freq"])
        inv_freq = self._constants[key].decode()
        names = f"rope.cos.{key}.{factor:g}", f"rope.sin.{key}.{factor:g}"
        pair: list[Array] = []

        def rows(which: int) -> Any:
            def read(start: int, stop: int) -> Array:
                if not pair:
                    pair.extend(rotary_caches(inv_freq, factor, self._context))
                return pair[which][start:stop]

            return read

        for which, name in enumerate(names):
            self._builder.initializer(name, onnx.TensorProto.FLOAT, (self._context, len(inv_freq)), rows(which))
        return names

    def _repeat(self, x: str, kv_heads: int, heads: int, size: int) -> str:
        """[B, T, kv_heads * size] -> [B, T, heads * size], each head as often as queries share it."""
        builder, times = self._builder, heads // kv_heads
        split = builder.node("Reshape", [x, builder.constant([0, 0, kv_heads, 1, size], "int64")])
        repeated = builder.node("Expand", [split, builder.constant([1, 1, 1, times, 1], "int64")])
        return builder.node("Reshape", [repeated, builder.constant([0, 0, heads * size], "int64")])

    def _outside_of_window(self, query: str, window: int) -> str:
        """float32 [1, 1, T, T]: minus infinity where a key is `window` positions away or more."""
        key = ("window", window)
        if key not in self._builder.memo:
            self._builder.memo[key] = self._window(query, window)
        return self._builder.memo[key]

    def _window(self, query: str, window: int) -> str:
        builder = self._builder
        zero, one = builder.tensor(0, "int64"), builder.tensor(1, "int64")
        length = builder.node("Gather", [builder.node("Shape", [query]), one])
        places = builder.node("Range", [zero, length, one])
        rows = builder.node("Unsqueeze", [places, builder.constant([0, 1, 3], "int64")])  # [1, 1, T, 1]
        away = builder.node("Abs", [builder.node("Sub", [rows, places])])
        numbers = (builder.tensor(x, "float32") for x in (0.0, OUTSIDE))
        return builder.node("Where", [builder.node("Less", [away, builder.tensor(window, "int64")]), *numbers])
