"""Writes small TFLite files with the schema package."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import flatbuffers
import numpy as np
import tflite

from qdeploy.formats.tflite.fields import OPTIONS

KINDS = {
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float32": "FLOAT32",
    "float16": "FLOAT16",
    "uint8": "UINT8",
    "bool": "BOOL",
}


VERSIONS = {
    **dict.fromkeys(("ADD", "AVERAGE_POOL_2D", "CONCATENATION", "DEQUANTIZE", "LEAKY_RELU", "LOGISTIC"), 2),
    **dict.fromkeys(("MAX_POOL_2D", "MEAN", "MUL", "PAD", "PADV2", "QUANTIZE", "RELU", "RELU6", "SOFTMAX", "SUB"), 2),
    **dict.fromkeys(("TANH", "TRANSPOSE", "DIV"), 2),
    **dict.fromkeys(("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV"), 3),
    "FULLY_CONNECTED": 4,
    "BROADCAST_TO": 2,
}
"""Versions of operators: the first that takes what is written here, 1 for the others."""


@dataclass
class Written:
    """A tensor: its shape and type, or its data; scales and zero points."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "int8"
    data: Any = None
    scale: Any = None
    zero: Any = 0
    axis: int = 0


@dataclass
class Network:
    """Tensors and operators (kind, inputs, outputs, options); `write` gives the bytes.

    `extra` sets fields besides: (table of the schema, field) -> a number, "vector" or "table".
    """

    tensors: list[Written] = field(default_factory=list)
    extra: dict[tuple[str, str], Any] = field(default_factory=dict)
    operators: list[tuple[str, list[int], list[int], dict[str, Any]]] = field(default_factory=list)

    def value(self, name: str, shape: tuple[int, ...], dtype: str = "int8", **more: Any) -> int:
        self.tensors.append(Written(name, shape, dtype, **more))
        return len(self.tensors) - 1

    def constant(self, name: str, data: Any, **more: Any) -> int:
        return self.value(name, data.shape, data.dtype.name, data=data, **more)

    def add(self, kind: str, inputs: list[int], outputs: list[int], **options: Any) -> None:
        self.operators.append((kind, inputs, outputs, options))

    def write(self, inputs: list[int], outputs: list[int]) -> bytes:
        return write_several({"": (self, inputs, outputs)})


def write_several(networks: dict[str, tuple[Network, list[int], list[int]]]) -> bytes:
    """One subgraph per network, and a signature for those with a name."""
    b = flatbuffers.Builder(1024)
    kinds = sorted({kind for network, *_ in networks.values() for kind, *_ in network.operators})
    codes = _vector(b, [_code(b, kind) for kind in kinds])
    buffers = [_buffer(b, None)]
    subgraphs = [_subgraph(b, kinds, buffers, *parts) for parts in networks.values()]
    graphs, content = _vector(b, subgraphs), _vector(b, buffers)
    signatures = _vector(b, [_signature(b, name, i) for i, name in enumerate(networks) if name])
    tflite.ModelStart(b)
    tflite.ModelAddVersion(b, 3)
    tflite.ModelAddOperatorCodes(b, codes)
    tflite.ModelAddSubgraphs(b, graphs)
    tflite.ModelAddBuffers(b, content)
    tflite.ModelAddSignatureDefs(b, signatures)
    b.Finish(tflite.ModelEnd(b), b"TFL3")
    return bytes(b.Output())


def _signature(b: Any, name: str, index: int) -> int:
    key = b.CreateString(name)
    tflite.SignatureDefStart(b)
    tflite.SignatureDefAddSignatureKey(b, key)
    tflite.SignatureDefAddSubgraphIndex(b, index)
    return int(tflite.SignatureDefEnd(b))


def _subgraph(
    b: Any, kinds: list[str], buffers: list[int], network: Network, inputs: list[int], outputs: list[int]
) -> int:
    tensors = []
    for t in network.tensors:
        buffers.append(_buffer(b, t.data))
        tensors.append(_tensor(b, t, len(buffers) - 1 if t.data is not None else 0, network.extra))
    operators = [_operator(b, kinds.index(op[0]), *op, network.extra) for op in network.operators]
    parts = (_vector(b, tensors), _ints(b, inputs), _ints(b, outputs), _vector(b, operators))
    tflite.SubGraphStart(b)
    adders = (
        tflite.SubGraphAddTensors,
        tflite.SubGraphAddInputs,
        tflite.SubGraphAddOutputs,
        tflite.SubGraphAddOperators,
    )
    for add, part in zip(adders, parts, strict=True):
        add(b, part)
    return int(tflite.SubGraphEnd(b))


def _extras(b: Any, table: str, extra: dict[tuple[str, str], Any]) -> Callable[[], None]:
    """Makes what the further fields of a table lead to; the function that comes back sets them."""
    outputs = {}
    for (owner, name), value in extra.items():
        if owner == table and value == "table":
            b.StartObject(0)
            value = b.EndObject()
        elif owner == table and value == "vector":
            value = _ints(b, [0])
        if owner == table:
            outputs[name] = value

    def add() -> None:
        for name, value in outputs.items():
            getattr(tflite, f"{table}Add{name}")(b, value)

    return add


def _vector(b: Any, offsets: list[int]) -> int:
    b.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        b.PrependUOffsetTRelative(offset)
    return int(b.EndVector())


def _ints(b: Any, numbers: Any) -> int:
    return int(b.CreateNumpyVector(np.array(numbers, np.int32)))


def _code(b: Any, kind: str) -> int:
    number = getattr(tflite.BuiltinOperator, kind.split()[0])
    custom = b.CreateString(kind.split()[1]) if kind.startswith("CUSTOM ") else None
    tflite.OperatorCodeStart(b)
    tflite.OperatorCodeAddDeprecatedBuiltinCode(b, min(number, 127))
    tflite.OperatorCodeAddVersion(b, VERSIONS.get(kind, 1))
    tflite.OperatorCodeAddBuiltinCode(b, number)
    if custom is not None:
        tflite.OperatorCodeAddCustomCode(b, custom)
    return int(tflite.OperatorCodeEnd(b))


def _buffer(b: Any, data: Any) -> int:
    content = (
        None if data is None else b.CreateNumpyVector(np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8))
    )
    tflite.BufferStart(b)
    if content is not None:
        tflite.BufferAddData(b, content)
    return int(tflite.BufferEnd(b))


def _tensor(b: Any, t: Written, buffer: int, extra: dict[tuple[str, str], Any]) -> int:
    more = _extras(b, "Tensor", extra)
    name, shape, quantization = b.CreateString(t.name), _ints(b, t.shape), None
    if t.scale is not None:
        scales = np.atleast_1d(np.asarray(t.scale, np.float32))
        zeros = np.broadcast_to(np.asarray(t.zero, np.int64), scales.shape).copy()
        parts = b.CreateNumpyVector(scales), b.CreateNumpyVector(zeros)
        further = _extras(b, "QuantizationParameters", extra)
        tflite.QuantizationParametersStart(b)
        further()
        tflite.QuantizationParametersAddScale(b, parts[0])
        tflite.QuantizationParametersAddZeroPoint(b, parts[1])
        tflite.QuantizationParametersAddQuantizedDimension(b, t.axis)
        quantization = tflite.QuantizationParametersEnd(b)
    tflite.TensorStart(b)
    tflite.TensorAddShape(b, shape)
    tflite.TensorAddType(b, getattr(tflite.TensorType, KINDS[t.dtype]))
    tflite.TensorAddBuffer(b, buffer)
    tflite.TensorAddName(b, name)
    more()
    if quantization is not None:
        tflite.TensorAddQuantization(b, quantization)
    return int(tflite.TensorEnd(b))


def _operator(
    b: Any,
    code: int,
    kind: str,
    inputs: list[int],
    outputs: list[int],
    options: dict[str, Any],
    extra: dict[tuple[str, str], Any],
) -> int:
    content, name = None, OPTIONS.get(kind, ("",))[0]
    custom = b.CreateByteVector(options.pop("custom")) if "custom" in options else None
    if name and options:
        getattr(tflite, f"{name}Start")(b)
        for key, number in options.items():
            getattr(tflite, f"{name}Add{key}")(b, number)
        content = getattr(tflite, f"{name}End")(b)
    parts, more = (_ints(b, inputs), _ints(b, outputs)), _extras(b, "Operator", extra)
    tflite.OperatorStart(b)
    more()
    tflite.OperatorAddOpcodeIndex(b, code)
    tflite.OperatorAddInputs(b, parts[0])
    tflite.OperatorAddOutputs(b, parts[1])
    if custom is not None:
        tflite.OperatorAddCustomOptions(b, custom)
    if content is not None:
        tflite.OperatorAddBuiltinOptionsType(b, getattr(tflite.BuiltinOptions, name))
        tflite.OperatorAddBuiltinOptions(b, content)
    return int(tflite.OperatorEnd(b))
