"""A ResNet-18 of integers with synthetic weights, 224 x 224: our graph, and ONNX Runtime's of the same network.

Weights are int8 (or int4, packed, on our side), activations uint8 (or of 4 bits, on our side); our residual streams
have 16 bits, ONNX's 8.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

STAGES = (64, 128, 256, 512)
SIDE = 224


def layers() -> list[tuple[str, int, int, int, int]]:
    """(name, output channels, input channels, kernel, stride) of every convolution of the blocks."""
    result, inner = [], STAGES[0]
    for stage, out in enumerate(STAGES):
        for unit in range(2):
            stride = 2 if stage and not unit else 1
            result += [(f"{stage}{unit}a", out, inner, 3, stride), (f"{stage}{unit}b", out, out, 3, 1)]
            if stride == 2:
                result.append((f"{stage}{unit}s", out, inner, 1, 2))
            inner = out
    return result


def weights(bits: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    top = (1 << (bits - 1)) - 1
    outputs = {"stem": rng.integers(-127, 128, (64, 3, 7, 7)).astype(np.int8)}
    for name, out, inner, kernel, _ in layers():
        outputs[name] = rng.integers(-top, top + 1, (out, inner, kernel, kernel)).astype(np.int8)
    outputs["fc"] = rng.integers(-127, 128, (1000, 512)).astype(np.int8)
    return outputs


class Integers:
    """Our graph."""

    def __init__(self, bits: int, activations: int) -> None:
        from qdeploy.ir.graph import Graph, Value

        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.held = weights(bits)
        self.limits = {"U8": (0, (1 << activations) - 1), "I16": (-32768, 32767)}
        out = self._network()
        self.graph = Graph(
            (Value("x", "U8", ("batch", 3, SIDE, SIDE)),),
            (Value(out, "I32", ()),),
            tuple(self.nodes),
            constants=self.constants,
            meta={"kind": "integer"},
        )

    def _network(self) -> str:
        x = self.add(
            "MaxPool", self.add("Relu", self.conv("x", "stem", 2, 3)), kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4
        )
        stream = self.scaled(x, 2**-6, 64, "I16")
        listed = {name: rest for name, *rest in layers()}
        for stage, out in enumerate(STAGES):
            for unit in range(2):
                key = f"{stage}{unit}"
                low = self.scaled(stream, 2**-6, 1, "U8")
                h = self.add("Relu", self.conv(low, key + "a", listed[key + "a"][3], 1))
                h = self.conv(self.scaled(h, 2**-10, out, "U8"), key + "b", 1, 1)
                side = stream if key + "s" not in listed else self.conv(low, key + "s", 2, 0)
                parts = [self.scaled(h, 2**-6, out, "I16"), self.scaled(side, 0.5, out, "I16")]
                stream = self.scaled(self.add("Relu", self.add("IntegerAdd", *parts)), 0.9, 1, "I16")
        low = self.scaled(self.add("IntegerMean", stream, axes=[2, 3], keepdims=1), 2**-6, 1, "U8")
        return self.add("IntegerLinear", self.add("Flatten", low), self.constant(self.held["fc"]))

    def add(self, op: str, *inputs: str, **attrs: Any) -> str:
        """A node."""
        from qdeploy.ir.graph import Node

        self.nodes.append(Node(op, inputs, (f"v{len(self.nodes)}",), attrs, op))
        return f"v{len(self.nodes) - 1}"

    def constant(self, array: Any) -> str:
        """Integers."""
        from qdeploy.ir.tensor import Buffer, plain

        name = f"c{len(self.constants)}"
        dtype = "I32" if array.dtype == np.int32 else "I8"
        self.constants[name] = plain(Buffer.of(name, array, dtype), "int32" if dtype == "I32" else "int8")
        return name

    def conv(self, x: str, key: str, stride: int, pad: int) -> str:
        """A convolution."""
        bias = self.constant(np.zeros(len(self.held[key]), np.int32))
        return self.add("IntegerConv", x, self.constant(self.held[key]), bias, strides=[stride] * 2, pads=[pad] * 4)

    def scaled(self, x: str, factor: float, channels: int, dtype: str) -> str:
        """A requantization."""
        lo, hi = self.limits[dtype]
        fraction, exponent = np.frexp(factor)
        m = self.constant(np.full(channels, int(fraction * (2**31 - 1)) | 1 << 30, np.int32))
        e = self.constant(np.full(channels, 31 - exponent, np.int32))
        return self.add("Requantize", x, m, e, lo=lo, hi=hi, dtype=dtype)


def qlinear(bits: int) -> bytes:
    """The same network in ONNX's QLinear operators."""
    from onnx import TensorProto, helper, numpy_helper

    nodes: list[Any] = []
    contents = [
        numpy_helper.from_array(np.asarray(a), n)
        for n, a in {"s": np.float32(0.05), "z": np.uint8(0), "wz": np.int8(0), "big": np.float32(4)}.items()
    ]

    def add(op: str, *inputs: str, domain: str = "", **attrs: Any) -> str:
        nodes.append(helper.make_node(op, list(inputs), [f"v{len(nodes)}"], domain=domain, **attrs))
        return f"v{len(nodes) - 1}"

    def conv(x: str, key: str, stride: int, pad: int) -> str:
        out = len(codes[key])
        contents.extend(
            numpy_helper.from_array(a, f"{key}{n}")
            for n, a in (
                ("w", codes[key]),
                ("ws", np.full(out, 0.01, np.float32)),
                ("wz", np.zeros(out, np.int8)),
                ("b", np.zeros(out, np.int32)),
            )
        )
        return add(
            "QLinearConv",
            x,
            "s",
            "z",
            f"{key}w",
            f"{key}ws",
            f"{key}wz",
            "big",
            "z",
            f"{key}b",
            strides=[stride] * 2,
            pads=[pad] * 4,
        )

    codes = weights(bits)
    x = add("MaxPool", conv("x", "stem", 2, 3), kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    listed = {name: rest for name, *rest in layers()}
    for key in (f"{stage}{unit}" for stage in range(4) for unit in range(2)):
        h = conv(conv(x, key + "a", listed[key + "a"][3], 1), key + "b", 1, 1)
        side = conv(x, key + "s", 2, 0) if key + "s" in listed else x
        x = add("QLinearAdd", h, "s", "z", side, "s", "z", "s", "z", domain="com.microsoft")
    x = add("Flatten", add("QLinearGlobalAveragePool", x, "s", "z", "s", "z", domain="com.microsoft"))
    contents.append(numpy_helper.from_array(np.ascontiguousarray(codes["fc"].T), "fcw"))
    out = add("MatMulInteger", x, "fcw")
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info(out, TensorProto.INT32, None)],
        contents,
    )
    sets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return bytes(helper.make_model(graph, opset_imports=sets, ir_version=10).SerializeToString())


def pack(constants: dict[str, Any], name: str) -> None:
    """Four bits to a weight."""
    from qdeploy.ir.element import as_value
    from qdeploy.ir.tensor import Buffer, Codes, Layout, QTensor, Term

    codes = as_value(constants[name]).astype(ml_dtypes.int4).astype(np.int8).view(np.uint8) & 15
    wide = np.pad(codes, [(0, 0)] * 3 + [(0, codes.shape[-1] % 2)])
    content = Buffer.of(name, wide[..., 0::2] | (wide[..., 1::2] << 4), "U8")
    constants[name] = QTensor(codes.shape, "I8", (Term(Codes(codes.shape, (content,), Layout("bits", 4), "int4")),))


def model(bits: int, activations: int = 8) -> Any:
    """Our graph as a model."""
    from qdeploy.ir.model import Model

    output = Integers(bits, activations)
    if bits == 4:
        for node in output.nodes[1:]:
            if node.op == "IntegerConv":
                pack(output.constants, node.inputs[1])
    return Model("made", "here", {}, build_graph=lambda _: output.graph)
