"""Integer networks to compile, made by hand to the rows of ir/ops_integer.py."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from qdeploy.ir.graph import Graph, Node, Value
from qdeploy.ir.model import Model
from qdeploy.ir.tensor import Buffer, Codes, Layout, QTensor, Term, plain

DTYPES = {"U8": (0, 255), "I8": (-128, 127), "I16": (-32768, 32767), "I32": (-(2**31), 2**31 - 1)}


def stored(array: Any, name: str) -> QTensor:
    """Integers as a tensor; 4 bits packed as they are in files."""
    if array.dtype == ml_dtypes.int4:
        codes = array.astype(np.int8).view(np.uint8) & 15
        pairs = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, codes.shape[-1] % 2)])
        packed = pairs[..., 0::2] | (pairs[..., 1::2] << 4)
        content = Codes(array.shape, (Buffer.of("codes", packed, "U8"),), Layout("bits", 4), "int4")
        return QTensor(array.shape, "I8", (Term(content),))
    dtype = {"int8": "I8", "uint8": "U8", "int16": "I16", "int32": "I32", "int64": "I64"}[array.dtype.name]
    return plain(Buffer.of("codes", np.ascontiguousarray(array), dtype), array.dtype.name)


class Net:
    """A graph under construction; every method returns the name of the value that it makes."""

    def __init__(self, shape: tuple[Any, ...], dtype: str = "U8", seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.inputs = [Value("x", dtype, shape)]
        self.nodes: list[Node] = []
        self.constants: dict[str, QTensor] = {}

    def constant(self, array: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = stored(np.asarray(array), name)
        return name

    def add(self, op: str, *inputs: str, **attrs: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(Node(op, inputs, (name,), attrs, name))
        return name

    def weights(self, *shape: int, bits: int = 8) -> str:
        top = (1 << (bits - 1)) - 1
        array = self.rng.integers(-top - 1, top + 1, shape)
        return self.constant(array.astype(np.int8 if bits == 8 else ml_dtypes.int4))

    def conv(self, x: str, out: int, inner: int, kernel: int = 3, bits: int = 8, **attrs: Any) -> str:
        filters = (out, inner, kernel, kernel) if attrs.get("layout") != "NHWC" else (out, kernel, kernel, inner)
        bias = self.constant(self.rng.integers(-2000, 2000, out).astype(np.int32))
        attrs.setdefault("pads", [kernel // 2] * 4)
        return self.add("IntegerConv", x, self.weights(*filters, bits=bits), bias, **attrs)

    def linear(self, x: str, out: int, inner: int, bits: int = 8, **attrs: Any) -> str:
        bias = self.constant(self.rng.integers(-2000, 2000, out).astype(np.int32))
        return self.add("IntegerLinear", x, self.weights(out, inner, bits=bits), bias, **attrs)

    def requantize(
        self, x: str, factor: float, channels: int = 1, dtype: str = "U8", rounding: str = "half_up", **attrs: Any
    ) -> str:
        """By about a factor, another one per channel."""
        factors = factor * self.rng.uniform(0.5, 1, channels)
        fraction, exponent = np.frexp(factors)
        m = self.constant((fraction * 2**31).astype(np.int64).clip(2**30, 2**31 - 1).astype(np.int32))
        e = self.constant((31 - exponent).astype(np.int32))
        lo, hi = DTYPES[dtype]
        inputs = {"lo": lo, "hi": hi, "dtype": dtype, "rounding": rounding, **attrs}
        return self.add("Requantize", x, m, e, **inputs)

    def graph(self, *outputs: str) -> Graph:
        values = tuple(Value(name, "I32", ()) for name in outputs)
        meta = {"kind": "integer", "quantization": {}}
        return Graph(tuple(self.inputs), values, tuple(self.nodes), constants=self.constants, meta=meta)

    def model(self, *outputs: str) -> Model:
        graph = self.graph(*outputs)
        return Model("made", "here", {}, build_graph=lambda _: graph)


def random_inputs(graph: Graph, batch: int = 1, seed: int = 5) -> dict[str, Any]:
    """Codes of the whole range of every input."""
    rng = np.random.default_rng(seed)
    outputs = {}
    for value in graph.inputs:
        lo, hi = DTYPES[value.dtype]
        shape = [n if isinstance(n, int) else batch for n in value.shape]
        outputs[value.name] = rng.integers(lo, hi, shape, endpoint=True).astype(stored_dtype(value.dtype))
    return outputs


def stored_dtype(name: str) -> Any:
    return {"U8": np.uint8, "I8": np.int8, "I16": np.int16, "I32": np.int32}[name]


def resnet8(bits: int = 8, dtype: str = "I8", seed: int = 0) -> Net:
    """Three blocks on 32 x 32 images with residual streams of 16 bits, as in the MLPerf Tiny network."""
    net = Net(("batch", 3, 32, 32), dtype, seed)
    wide = {"dtype": "I16"}
    total = net.conv("x", 16, 3, x_zero=-5 if dtype == "I8" else 7)
    stream = net.requantize(net.add("Relu", total), 2**-4, 16, **wide)
    inner = 16
    for out, stride in ((16, 1), (32, 2), (64, 2)):
        x = net.requantize(stream, 2**-5)
        h = net.conv(x, out, inner, bits=bits, strides=[stride] * 2)
        h = net.requantize(net.add("Relu", h), 2**-9 if bits == 8 else 2**-5, out)
        h = net.requantize(net.conv(h, out, out, bits=bits), 2**-5, out, **wide)
        side = stream
        if stride == 2:
            side = net.conv(x, out, inner, 1, bits, strides=[2, 2], pads=[0, 0, 0, 0])
        side = net.requantize(side, 0.25, out if stride == 2 else 1, **wide)
        stream = net.requantize(net.add("Relu", net.add("IntegerAdd", h, side)), 0.9, **wide)
        inner = out
    pooled = net.add("IntegerMean", stream, axes=[2, 3], keepdims=1)
    flat = net.add("Flatten", net.requantize(pooled, 2**-5))
    net.last = net.linear(flat, 10, 64)  # type: ignore[attr-defined]
    return net
