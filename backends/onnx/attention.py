"""Attention to the operators of ONNX Runtime.

Decoders take com.microsoft.GroupQueryAttention with past and present; the caches hold keys after rotation. What its CPU
kernel accepts, and what we do about it:

    head size % 16 == 0 and rotary size % 16 == 0    the operator rotates (do_rotary)
    any other even rotary size                       com.microsoft.RotaryEmbedding stands before it; so it does where
                                                     long sequences have frequencies of their own: their rows stand
                                                     behind those of short ones in the same caches
    head size % 8 != 0                               heads are padded with zeros, which add nothing to a dot product;
                                                     the caches are then as wide as the padded heads
    values of another extent than keys               both are padded to the wider one
    sinks                                            the input head_sink
    chunks                                           the input attention_bias: minus infinity outside of them

Its `local_window_size` w lets a query attend to the last w keys including itself, as our `window` does. Lengths come
from the attention mask: one sequence of the batch has `sum(mask)` tokens, past and new together, padded on the right.

Encoders have other operators: encoder_attention.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx

from qdeploy.backends.onnx.proto import MICROSOFT, GraphBuilder
from qdeploy.errors import UnsupportedError
from qdeploy.ir.graph import Node
from qdeploy.ir.tensor import Array, QTensor

OUTSIDE = -1e30  # added to scores; not -inf, whose differences are no numbers


class Lengths:
    """The values that say how long the sequences of a batch are.

    Args:
        builder: The graph.
        input_ids: I64 [B, T].
        mask: I64 [B, S], 1 = a token.

    Attributes:
        last: I32 [B]: tokens of each sequence, past and new, minus one.
        total: I32 scalar: the extent of the mask.
    """

    def __init__(self, builder: GraphBuilder, input_ids: str, mask: str) -> None:
        self._builder, self._input_ids = builder, input_ids
        self._moved: dict[int, str] = {}
        self._count = builder.node("ReduceSum", [mask, builder.constant([1], "int64")], keepdims=0)  # I64 [B]
        last = builder.node("Sub", [self._count, builder.constant([1], "int64")])
        self.last = builder.node("Cast", [last], to=onnx.TensorProto.INT32)
        extent = builder.node("Gather", [builder.node("Shape", [mask]), builder.constant(1, "int64")])
        self.total = builder.node("Cast", [extent], to=onnx.TensorProto.INT32)

    @cached_property
    def positions(self) -> str:
        """I64 [B, T]: the place of each new token.

        The first new token of a sequence stands at count - T; where that is below zero (a padded prompt), at 0.
        """
        builder = self._builder
        zero, one = builder.constant(0, "int64"), builder.constant(1, "int64")
        new = builder.node("Gather", [builder.node("Shape", [self._input_ids]), one])
        first = builder.node("Max", [builder.node("Sub", [self._count, new]), zero])
        column = builder.node("Unsqueeze", [first, builder.constant([1], "int64")])
        return builder.node("Add", [column, builder.node("Range", [zero, new, one])])  # [B, 1] + [T]

    def positions_behind(self, count: int) -> str:
        """The same, moved on by `count` where there are more than `count` tokens, past and new."""
        if count not in self._moved:
            builder = self._builder
            total = builder.node("Cast", [self.total], to=onnx.TensorProto.INT64)
            longer = builder.node("Greater", [total, builder.constant(count, "int64")])
            offset = builder.node("Where", [longer, builder.constant(count, "int64"), builder.constant(0, "int64")])
            self._moved[count] = builder.node("Add", [self.positions, offset])
        return self._moved[count]

    def outside_of_chunks(self, size: int) -> str:
        """float32 [B, 1, T, S]: minus infinity where a key is in another run of `size` positions than the query."""
        key = ("chunks", size)
        if key not in self._builder.memo:
            self._builder.memo[key] = self._chunks(size)
        return self._builder.memo[key]

    def _chunks(self, size: int) -> str:
        builder = self._builder
        zero, one = builder.tensor(0, "int64"), builder.tensor(1, "int64")
        total = builder.node("Cast", [self.total], to=onnx.TensorProto.INT64)
        keys = builder.node("Range", [zero, builder.node("Squeeze", [total]), one])
        run = builder.tensor(size, "int64")
        of_keys = builder.node("Div", [keys, run])
        axes = builder.constant([1, 3], "int64")
        of_queries = builder.node("Unsqueeze", [builder.node("Div", [self.positions, run]), axes])  # [B, 1, T, 1]
        numbers = (builder.tensor(x, "float32") for x in (0.0, OUTSIDE))
        return builder.node("Where", [builder.node("Equal", [of_queries, of_keys]), *numbers])


def padded_head(size: int) -> int:
    """The head size that the kernels take: the next multiple of 8."""
    return -(-size // 8) * 8


def rotary_caches(inv_freq: Array, factor: float, context: int) -> tuple[Array, Array]:
    """Cosines and sines, float32 [context, rotary_dim / 2]; the angle is a float32 product, as in `ir/attention.py`."""
    angle = np.arange(context, dtype=np.float32)[:, None] * inv_freq.astype(np.float32)[None, :]
    exact = angle.astype(np.float64)
    return tuple(turn(exact).astype(np.float32) * np.float32(factor) for turn in (np.cos, np.sin))  # type: ignore[return-value]


@dataclass(frozen=True)
class Heads:
    """Elements of a head of queries and keys, and of one of values."""

    size: int
    value: int

    @property
    def wide(self) -> int:
        """Elements of a head as the kernels take it."""
        return padded_head(max(self.size, self.value))


class DecoderAttention:
    """Lowers the Attention nodes of a decoder.

    Args:
        builder: The graph.
        constants: The graph's constants, where rope frequencies are.
        lengths: How long the sequences are.
        context: Positions that the caches of cosines and sines cover.
    """

    def __init__(self, builder: GraphBuilder, constants: Mapping[str, QTensor], lengths: Lengths, context: int) -> None:
        self._builder, self._constants, self._lengths, self._context = builder, constants, lengths, context

    def emit(
        self,
        node: Node,
        head: Heads,
        inputs: tuple[str, str, str, str],
        past: tuple[str, str],
        present: tuple[str, str],
    ) -> None:
        """Appends the nodes for one Attention.

        Args:
            node: The node.
            head: Its extents.
            inputs: Query, key and value of the new tokens, and sinks or "".
            past: Names of the caches that come in.
            present: Names for the caches that go out.
        """
        attrs: Mapping[str, Any] = node.attrs
        heads, kv_heads, size = attrs["heads"], attrs["kv_heads"], head.size
        if not attrs.get("causal"):
            raise UnsupportedError("attention with a state that is not causal", where=node.name)
        rope: Mapping[str, Any] | None = attrs.get("rope")
        fused = rope is not None and size % 16 == 0 and rope["rotary_dim"] % 16 == 0 and not rope.get("long")
        query, key, value, sinks = inputs
        if attrs.get("position_scale"):
            query = self._scaled_by_position(query, attrs["position_scale"])
        if rope is not None and not fused:
            query, key = self._rotate(query, heads, size, rope), self._rotate(key, kv_heads, size, rope)
        query, key = (self._pad(x, n, size, head.wide) for x, n in ((query, heads), (key, kv_heads)))
        value = self._pad(value, kv_heads, head.value, head.wide)
        mixed = node.outputs[0] if head.wide == head.value else self._builder.fresh("mixed")
        inputs_of = (query, key, value, *past)
        self._grouped(attrs, inputs_of, (mixed, *present), rope if fused else None, self._extra(attrs, sinks))
        self._crop(mixed, heads, head, node.outputs[0])

    def _extra(self, attrs: Mapping[str, Any], sinks: str) -> tuple[str, ...]:
        """The inputs behind the caches of cosines and sines, as far as there are any: positions, bias, sinks."""
        bias = self._lengths.outside_of_chunks(attrs["chunk"]) if attrs.get("chunk") else ""
        return ("", bias, sinks) if sinks else ("", bias) if bias else ()

    def _grouped(
        self,
        attrs: Mapping[str, Any],
        inputs: tuple[str, ...],
        outputs: tuple[str, ...],
        rope: Mapping[str, Any] | None,
        extra: tuple[str, ...],
    ) -> None:
        caches = self._caches(rope) if rope else ("", "") if extra else ()
        self._builder.node(
            "GroupQueryAttention",
            [*inputs, self._lengths.last, self._lengths.total, *caches, *extra],
            outputs,
            MICROSOFT,
            num_heads=attrs["heads"],
            kv_num_heads=attrs["kv_heads"],
            scale=float(attrs["scale"]),
            do_rotary=int(bool(rope)),
            rotary_interleaved=int(bool(rope and rope.get("interleaved"))),
            local_window_size=attrs.get("window") or -1,
            **({"softcap": float(attrs["softcap"])} if attrs.get("softcap") else {}),
        )

    def rotary(self, node: Node, size: int, x: str) -> None:
        """Appends the nodes for one Rotary: x [B, T, heads * size] by its positions."""
        attrs: Mapping[str, Any] = node.attrs
        self._rotate(x, attrs["heads"], size, attrs["rope"], node.outputs[0])

    def _scaled_by_position(self, query: str, scale: Mapping[str, Any]) -> str:
        """Queries times 1 + beta * log(1 + floor((position + offset) / length))."""
        builder = self._builder

        def number(value: float) -> str:
            return builder.constant(value, "float32")

        place = builder.node("Cast", [self._lengths.positions], to=onnx.TensorProto.FLOAT)
        place = builder.node("Add", [place, number(scale.get("offset", 0.0))])
        steps = builder.node("Floor", [builder.node("Div", [place, number(scale["length"])])])
        logarithm = builder.node("Log", [builder.node("Add", [steps, number(1.0)])])
        factor = builder.node("Add", [builder.node("Mul", [logarithm, number(scale["beta"])]), number(1.0)])
        column = builder.node("Unsqueeze", [factor, builder.constant([2], "int64")])  # [B, T, 1]
        return builder.node("Mul", [query, column])

    def _caches(self, rope: Mapping[str, Any]) -> tuple[str, str]:
        """Cosines and sines of every position; those of long sequences, where there are any, behind the others."""
        factor, long = float(rope.get("factor", 1.0)), rope.get("long")
        names = f"rope.cos.{rope['inv_freq']}.{factor:g}", f"rope.sin.{rope['inv_freq']}.{factor:g}"
        parts = [(self._constants[rope["inv_freq"]].decode(), self._context)]
        if long:
            parts = [(parts[0][0], int(long["beyond"])), (self._constants[long["inv_freq"]].decode(), self._context)]
        caches: dict[int, Array] = {}

        def rows(which: int) -> Any:
            def read(start: int, stop: int) -> Array:
                if not caches:
                    pairs = [rotary_caches(inv_freq, factor, count) for inv_freq, count in parts]
                    caches.update({i: np.concatenate([pair[i] for pair in pairs]) for i in (0, 1)})
                return caches[which][start:stop]

            return read

        shape = (sum(count for _, count in parts), len(parts[0][0]))
        for which, name in enumerate(names):
            self._builder.initializer(name, onnx.TensorProto.FLOAT, shape, rows(which))
        return names

    def _rotate(self, x: str, heads: int, size: int, rope: Mapping[str, Any], output: str = "") -> str:
        rotary, long = rope["rotary_dim"], rope.get("long")
        positions = self._lengths.positions if not long else self._lengths.positions_behind(int(long["beyond"]))
        return self._builder.node(
            "RotaryEmbedding",
            [x, positions, *self._caches(rope)],
            output,
            MICROSOFT,
            interleaved=int(bool(rope.get("interleaved"))),
            num_heads=heads,
            rotary_embedding_dim=rotary if rotary != size else 0,
        )

    def _pad(self, x: str, heads: int, size: int, wide: int) -> str:
        if wide == size:
            return x
        split = self._builder.node("Reshape", [x, self._builder.constant([0, 0, heads, size], "int64")])
        pads = self._builder.constant([0, 0, 0, 0, 0, 0, 0, wide - size], "int64")
        padded = self._builder.node("Pad", [split, pads])
        return self._builder.node("Reshape", [padded, self._builder.constant([0, 0, heads * wide], "int64")])

    def _crop(self, mixed: str, heads: int, head: Heads, output: str) -> None:
        if head.wide == head.value:
            return
        shape = self._builder.constant([0, 0, heads, head.wide], "int64")
        split = self._builder.node("Reshape", [mixed, shape])
        ends = [self._builder.constant([n], "int64") for n in (0, head.value, 3)]
        kept = self._builder.node("Slice", [split, *ends])
        self._builder.node("Reshape", [kept, self._builder.constant([0, 0, heads * head.value], "int64")], output)
