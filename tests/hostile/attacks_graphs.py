"""Attacks on ONNX and TFLite files."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.hostile.attacks_safetensors import Build

ONNX: dict[str, Build] = {}
ONNX_HARMLESS: dict[str, Build] = {}
TFLITE: dict[str, Build] = {}
FLOAT = TensorProto.FLOAT


def network(nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray] | None = None, **more: Any) -> onnx.ModelProto:
    """x [2, 3] to y, which may have any shape."""
    x, y = (helper.make_tensor_value_info(n, FLOAT, s) for n, s in (("x", [2, 3]), ("y", None)))
    tensors = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10, **more)


def product() -> onnx.ModelProto:
    """A matrix product with a weight in the file."""
    return network([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": np.ones((3, 4), np.float32)})


def _saved(folder: Path, model: onnx.ModelProto | bytes) -> Path:
    source = folder / "source"
    source.mkdir()
    (source / "model.onnx").write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return source


def _external(folder: Path, **entries: str) -> Path:
    model = product()
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        weight.external_data.add(key=key, value=value)
    source = _saved(folder, model)
    (folder / "secret").write_bytes(b"\1" * 48)
    (source / "w.bin").write_bytes(bytes(48))
    return source


for _name, _entries in {
    "external data traversal": {"location": "../secret"},
    "external data traversal through a folder": {"location": "a/../../secret"},
    "external data absolute": {"location": "/etc/passwd"},
    "external data at an offset beyond": {"location": "w.bin", "offset": str(1 << 40)},
    "external data at a negative offset": {"location": "w.bin", "offset": "-8"},
    "external data of length 2^40": {"location": "w.bin", "length": str(1 << 40)},
    "external data with a number that is none": {"location": "w.bin", "offset": "1e3"},
}.items():
    ONNX[_name] = lambda folder, entries=_entries: _external(folder, **entries)  # type: ignore[misc]


def _replaced(make: Callable[[Path, Path], None]) -> Build:
    def build(folder: Path) -> Path:
        source = _external(folder, location="w.bin")
        (source / "w.bin").unlink()
        make(source / "w.bin", folder / "secret")
        return source

    return build


ONNX["external data as a symlink"] = _replaced(lambda path, secret: path.symlink_to(secret))
ONNX["external data as a hardlink"] = _replaced(lambda path, secret: os.link(secret, path))
ONNX["external data as a FIFO"] = _replaced(lambda path, _: os.mkfifo(path))
ONNX["external data as a Git-LFS pointer"] = _replaced(lambda path, _: _lfs(path))


def _lfs(path: Path) -> None:
    path.with_suffix(".bin").write_text("version https://git-lfs.github.com/spec/v1\n")


def _changed(change: Callable[[onnx.ModelProto], None]) -> Build:
    def build(folder: Path) -> Path:
        model = product()
        change(model)
        return _saved(folder, model)

    return build


def _dims(*dims: int) -> Build:
    def change(model: onnx.ModelProto) -> None:
        del model.graph.initializer[0].dims[:]
        model.graph.initializer[0].dims.extend(dims)

    return _changed(change)


ONNX["shape product overflow"] = _dims(1 << 40, 1 << 40)
ONNX["shape negative"] = _dims(-3, -4)
ONNX["shape of another size"] = _dims(3, 5)
ONNX["shape of rank 10^5"] = _dims(*[1] * 100_000)
ONNX["type that nobody knows"] = _changed(lambda m: setattr(m.graph.initializer[0], "data_type", 4711))
ONNX["no tensor of that name"] = _changed(lambda m: m.graph.node[0].input.append("nowhere"))
ONNX["names twice"] = _changed(lambda m: m.graph.initializer.append(m.graph.initializer[0]))
ONNX["protobuf cut short"] = lambda folder: _saved(folder, product().SerializeToString()[:-20])
ONNX["protobuf of groups in groups"] = lambda folder: _saved(folder, b"\x0b" * 200_000)
ONNX["protobuf length 2^63"] = lambda folder: _saved(folder, b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f")
ONNX["empty"] = lambda folder: _saved(folder, b"")


def _bomb(count: int, *nodes: onnx.NodeProto, **weights: np.ndarray) -> Build:
    def build(folder: Path) -> Path:
        return _saved(folder, network([*nodes], weights))

    return build


def _node(op: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), [output], **attributes)


_SIZES = np.array([1 << 20, 1 << 20], np.int64)
for _name, _nodes, _weights in (
    ("bomb ConstantOfShape", [_node("ConstantOfShape", "s", "a"), _node("Add", "x a", "y")], {"s": _SIZES}),
    ("bomb Expand", [_node("Expand", "x s", "a"), _node("Add", "x a", "y")], {"s": np.array([1 << 40, 2, 3])}),
    (
        "bomb Tile of a constant",
        [_node("Tile", "c s", "a"), _node("Add", "x a", "y")],
        {"c": np.ones(3, np.float32), "s": np.array([1 << 38], np.int64)},
    ),
    (
        "bomb Range",
        [_node("Range", "a b c", "r"), _node("Cast", "r", "f", to=FLOAT), _node("Add", "x f", "y")],
        {"a": np.array(0), "b": np.array(1 << 45), "c": np.array(1)},
    ),
    (
        "bomb Pad of a constant",
        [_node("Pad", "c p", "a"), _node("Add", "x a", "y")],
        {"c": np.ones(3, np.float32), "p": np.array([0, 1 << 40], np.int64)},
    ),
    (
        "bomb Concat 2^40",
        [*(_node("Concat", f"c{i} c{i}", f"c{i + 1}", axis=0) for i in range(40)), _node("Add", "x c40", "y")],
        {"c0": np.ones((1, 3), np.float32)},
    ),
    (
        "bomb convolution pads",
        [
            _node("Reshape", "x s", "a"),
            _node("Conv", "a w", "y", kernel_shape=[1], pads=[1 << 40, 1 << 40]),
        ],
        {"s": np.array([1, 1, 6]), "w": np.ones((1, 1, 1), np.float32)},
    ),
):
    ONNX_HARMLESS[_name] = lambda folder, nodes=_nodes, weights=_weights: _saved(folder, network(nodes, weights))  # type: ignore[misc]


def _doubling(folder: Path) -> Path:
    """Functions that call the one before twice, 30 times over: 2^30 nodes."""
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("d", 1)]
    functions = []
    for i in range(30):
        op, domain = (f"f{i - 1}", "d") if i else ("Relu", "")
        nodes = [
            helper.make_node(op, ["x"], ["a"], domain=domain),
            helper.make_node(op, ["a"], ["y"], domain=domain),
        ]
        functions.append(helper.make_function("d", f"f{i}", ["x"], ["y"], nodes, opsets))
    model = network([helper.make_node("f29", ["x"], ["y"], domain="d")], functions=functions)
    model.opset_import.append(opsets[1])
    return _saved(folder, model)


ONNX["functions that double 30 times"] = _doubling


def _called_by_other_names(folder: Path) -> Path:
    """The same, where each function has a small namesake (its overload), which is not the one that is called."""
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("d", 1)]
    model = onnx.ModelProto.FromString((_doubling(folder) / "model.onnx").read_bytes())
    for i in range(30):
        small = helper.make_function("d", f"f{i}", ["x"], ["y"], [helper.make_node("Relu", ["x"], ["y"])], opsets)
        small.overload = "small"
        model.functions.append(small)
    (folder / "source/model.onnx").write_bytes(model.SerializeToString())
    return folder / "source"


ONNX["functions that double, with small namesakes"] = _called_by_other_names


def _functions(*bodies: tuple[str, list[onnx.NodeProto], int]) -> Build:
    """A model that calls the first of some functions (name, nodes, version of ONNX)."""

    def build(folder: Path) -> Path:
        opset = helper.make_opsetid("d", 1)
        functions = [
            helper.make_function("d", name, ["x"], ["y"], nodes, [helper.make_opsetid("", version), opset])
            for name, nodes, version in bodies
        ]
        model = network([helper.make_node(bodies[0][0], ["x"], ["y"], domain="d")], functions=functions)
        model.opset_import.append(opset)
        return _saved(folder, model)

    return build


_CALL = helper.make_node("f", ["x"], ["y"], domain="d")
ONNX["function that calls itself"] = _functions(("f", [_CALL], 21))
ONNX["function twice"] = _functions(*(("f", [helper.make_node(op, ["x"], ["y"])], 21) for op in ("Relu", "Neg")))
ONNX["function of another version"] = _functions(("f", [helper.make_node("Softmax", ["x"], ["y"])], 11))


def _with(change: Callable[[onnx.ModelProto], object], *nodes: onnx.NodeProto) -> Build:
    """A network of these nodes, changed."""

    def build(folder: Path) -> Path:
        model = network([*nodes] or [helper.make_node("Softmax", ["x"], ["y"])])
        model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", FLOAT, [2, 3]))
        change(model)
        return _saved(folder, model)

    return build


def _typed(kind: int, **fields: list[float]) -> Build:
    """y = x + w, where w [3] has its elements in typed fields."""

    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer.add(name="w", data_type=kind, dims=[3], **fields)

    cast, add = helper.make_node("Cast", ["w"], ["f"], to=FLOAT), helper.make_node("Add", ["x", "f"], ["y"])
    return _with(change, cast, add)


def _sparse(model: onnx.ModelProto) -> None:
    values, places = helper.make_tensor("w", FLOAT, [1], [4.0]), helper.make_tensor("i", TensorProto.INT64, [1], [1])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [3]))


def _referring(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute.add(name="axis", type=onnx.AttributeProto.INT, ref_attr_name="outer")


ONNX |= {
    "attribute twice": _with(
        lambda m: m.graph.node[0].attribute.extend([helper.make_attribute("axis", n) for n in (0, 1)])
    ),
    "attribute of no function": _with(_referring),
    "domain imported twice": _with(lambda m: m.opset_import.append(helper.make_opsetid("ai.onnx", 11))),
    "sparse initializer": _with(_sparse),
    "number beyond int8": _typed(TensorProto.INT8, int32_data=[300, -200, 1]),
    "bits beyond float16": _typed(TensorProto.FLOAT16, int32_data=[15360, 1 << 16, 0]),
    "data in two typed fields": _typed(FLOAT, float_data=[1, 2, 3], int32_data=[7, 8, 9]),
    "data in raw bytes and a field": _changed(lambda m: m.graph.initializer[0].float_data.extend([1.0] * 12)),
}
for _name, _nodes, _weights in (
    (
        "bomb Gather of Gather",
        [
            _node("Gather", "c i", "a"),
            _node("Gather", "a j", "b"),
            _node("ReduceSum", "b", "s", keepdims=0),
            _node("Add", "x s", "y"),
        ],
        {"c": np.ones((1, 3000), np.float32), "i": np.zeros(3000, np.int64), "j": np.zeros((30, 100, 100), np.int64)},
    ),
    (
        "bomb table of sums",
        [_node("Add", "c d", "a"), _node("ReduceSum", "a", "s", keepdims=0), _node("Add", "x s", "y")],
        {"c": np.ones((20000, 1), np.float32), "d": np.ones((1, 20000), np.float32)},
    ),
    (
        "bomb outer product",
        [_node("MatMul", "c d", "a"), _node("ReduceSum", "a", "s", keepdims=0), _node("Add", "x s", "y")],
        {"c": np.ones((20000, 1), np.float32), "d": np.ones((1, 20000), np.float32)},
    ),
):
    ONNX_HARMLESS[_name] = lambda folder, nodes=_nodes, weights=_weights: _saved(folder, network(nodes, weights))  # type: ignore[misc]


def _large_input(folder: Path) -> Path:
    model = network([_node("Relu", "x", "y")])
    for value in (model.graph.input[0], model.graph.output[0]):
        value.CopyFrom(helper.make_tensor_value_info(value.name, FLOAT, [1 << 31, 1 << 31]))
    return _saved(folder, model)


ONNX_HARMLESS["input of 2^62 elements"] = _large_input

# ---- TFLite


def _tflite(folder: Path, change: Callable[[bytearray], None]) -> Path:
    from tests.formats.tflite.test_hostile import WHOLE

    data = bytearray(WHOLE)
    change(data)
    (folder / "n.tflite").write_bytes(data)
    return folder / "n.tflite"


def _root(value: int) -> Callable[[bytearray], None]:
    return lambda data: data.__setitem__(slice(0, 4), struct.pack("<I", value))


def _everywhere(value: int) -> Callable[[bytearray], None]:
    """Every offset behind the head, all at once."""
    return lambda data: data.__setitem__(slice(8, len(data) // 4 * 4), struct.pack("<I", value) * (len(data) // 4 - 2))


for _name, _change in {
    "offset of the root beyond the file": _root(0xFFFFFFF0),
    "offset of the root to itself": _root(0),
    "offsets that all lead back": _everywhere(0),
    "vectors of 2^31": _everywhere(0x7FFFFFFF),
    "truncated": lambda data: data.__delitem__(slice(len(data) // 2, None)),
    "identifier of another format": lambda data: data.__setitem__(slice(4, 8), b"TFL9"),
    "empty": lambda data: data.__delitem__(slice(0, None)),
    "Git-LFS pointer": lambda data: data.__setitem__(slice(0, None), b"version https://git-lfs.github.com/spec/v1\n"),
}.items():
    TFLITE[_name] = lambda folder, change=_change: _tflite(folder, change)  # type: ignore[misc]
