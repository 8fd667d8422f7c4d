"""Operators of every version of ONNX: what changed is in one table, and old nodes compute what they computed."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper
from onnx_networks import converted, network, onnx_runtime, saved, tensor

import qdeploy
from qdeploy.errors import UnsupportedError
from qdeploy.formats.onnx.versions import CHANGES, CURRENT, same_since

RNG = np.random.default_rng(3)
X = RNG.normal(size=(2, 3, 4, 5)).astype(np.float32)
F16 = RNG.normal(size=(2, 3)).astype(np.float16)

# Versions that took an attribute, an input or a default away and changed nothing that a node of before means:
# wider broadcasting, and the number of inputs that became optional.
KEPT = {("ArgMax", 12), ("ArgMin", 12)}


def one(op: str, opset: int, inputs: dict[str, Any], constants: dict[str, Any] | None = None, **attrs: Any) -> Any:
    """A network of one node; constants are initializers behind the inputs."""
    constants = constants or {}
    kinds = {n: (helper.np_dtype_to_tensor_dtype(a.dtype), list(a.shape)) for n, a in inputs.items()}
    first = next(iter(kinds.values()))[0]
    output = helper.make_node(op, [*inputs, *constants], ["y"], **attrs)
    parts = [tensor(name, np.asarray(a)) for name, a in constants.items()]
    shape = kinds["x"][1] if op == "GroupNormalization" else None  # which onnx does not infer
    return network([output], kinds, {"y": (first, shape)}, parts, opset, 3 if opset < 8 else 6)


def shaped(made: Any) -> Any:
    """With the shapes of its outputs, as sources have them."""
    return onnx.shape_inference.infer_shapes(made)


def factors(*values: float) -> dict[str, np.ndarray]:
    return {"s": np.array(values, np.float32)}


CHANNELS = {name: RNG.uniform(0.5, 2, 3).astype(np.float32) for name in ("scale", "bias", "mean", "var")}
OLD = {
    "softmax over the last axes": one("Softmax", 11, {"x": X}, axis=1),
    "softmax by default": one("Softmax", 9, {"x": X}),
    "softmax over the last axis": one("Softmax", 11, {"x": X}, axis=3),
    "logsoftmax": one("LogSoftmax", 11, {"x": X}, axis=2),
    "hardmax": one("Hardmax", 11, {"x": X}, axis=2),
    "resize linear": one("Resize", 10, {"x": X}, factors(1, 1, 2, 2), mode="linear"),
    "resize larger": one("Resize", 10, {"x": X}, factors(1, 1, 1.5, 2)),
    "resize smaller": one("Resize", 10, {"x": X}, factors(1, 1, 0.5, 0.6)),
    "resize both ways": one("Resize", 10, {"x": X}, factors(1, 1, 2, 0.6)),
    "upsample by an input": one("Upsample", 9, {"x": X}, factors(1, 1, 2, 3), mode="nearest"),
    "upsample by an attribute": one("Upsample", 7, {"x": X}, mode="linear", scales=[1.0, 1.0, 2.0, 2.0]),
    "reduce by an attribute": one("ReduceL2", 11, {"x": X}, axes=[1, 2]),
    "reduce by an attribute, a row": one("ReduceMean", 13, {"x": X}, axes=[1], keepdims=0),
    "reduce all": one("ReduceLogSumExp", 13, {"x": X}),
    "batch normalization": one("BatchNormalization", 7, {"x": X}, CHANNELS),
    "batch normalization of 9": one("BatchNormalization", 9, {"x": X}, CHANNELS, momentum=0.5),
    "dropout": one("Dropout", 10, {"x": X}, ratio=0.5),
    "clip of halves": one("Clip", 10, {"x": F16}, min=-0.5, max=0.5),
    "clip": one("Clip", 7, {"x": X}, min=-0.5),
    "pad of halves": one("Pad", 10, {"x": F16}, pads=[0, 1, 1, 0], value=0.5),
    "group normalization": one(
        "GroupNormalization",
        18,
        {"x": RNG.normal(size=(2, 4, 3)).astype(np.float32)},
        {"scale": np.array([1, 2], np.float32), "bias": np.array([0.5, -1], np.float32)},
        num_groups=2,
    ),
    "roialign": one(
        "RoiAlign",
        10,
        {"x": X},
        {"r": np.array([[0, 0, 3, 3]], np.float32), "b": np.array([0], np.int64)},
        output_height=2,
        output_width=2,
        sampling_ratio=2,
    ),
    "gridsample": one(
        "GridSample", 16, {"x": X, "g": RNG.uniform(-1, 1, (2, 2, 2, 2)).astype(np.float32)}, mode="bicubic"
    ),
    "dft": one("DFT", 17, {"x": RNG.normal(size=(1, 4, 5, 1)).astype(np.float32)}, axis=2),
    "maxpool": one("MaxPool", 8, {"x": X}, kernel_shape=[2, 2]),
    "split and concat": one("Flatten", 9, {"x": X}, axis=2),
    "scatter": one(
        "Scatter",
        9,
        {"x": X[0, 0]},
        {"i": np.array([[1, 0]], np.int64), "u": np.array([[7, 8]], np.float32)},
        axis=1,
    ),
}


@pytest.mark.parametrize("made", OLD.values(), ids=OLD)
def test_a_node_of_an_old_version_computes_what_it_computed(made: Any, tmp_path: Path):
    source = saved(shaped(made), tmp_path / "source")
    inputs = {v.name: {"g": GRID}.get(v.name, array_of(v)) for v in made.graph.input}
    (want,) = onnx_runtime(source, inputs)
    (again,) = converted(source, tmp_path / "out", inputs)
    assert again.dtype == want.dtype and again.shape == want.shape
    np.testing.assert_allclose(again.astype(np.float32), want.astype(np.float32), rtol=1e-5, atol=1e-5)
    assert onnx.load(tmp_path / "out/model.onnx").opset_import[0].version == CURRENT


GRID = RNG.uniform(-1, 1, (2, 2, 2, 2)).astype(np.float32)


def array_of(info: Any) -> np.ndarray:
    kind = info.type.tensor_type
    dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
    return np.random.default_rng(1).normal(size=[d.dim_value for d in kind.shape.dim]).astype(dtype)


def test_an_old_node_inside_of_a_branch_is_rewritten_too(tmp_path: Path):
    branches = {
        name: helper.make_graph(
            [helper.make_node(op, ["x"], [name], **attrs)],
            name,
            [],
            [helper.make_tensor_value_info(name, T.FLOAT, [2, 3, 4])],
        )
        for name, op, attrs in (("then", "Softmax", {"axis": 1}), ("other", "ReduceSum", {"axes": [-1]}))
    }
    branches["other"].node.append(helper.make_node("Expand", ["other", "to"], ["wide"]))
    branches["other"].output[0].name = "wide"
    output = network(
        [helper.make_node("If", ["c"], ["y"], then_branch=branches["then"], else_branch=branches["other"])],
        {"x": (T.FLOAT, [2, 3, 4]), "c": (T.BOOL, [])},
        {"y": (T.FLOAT, [2, 3, 4])},
        [tensor("to", np.array([2, 3, 4], np.int64))],
        opset=11,
        ir_version=6,
    )
    source = saved(output, tmp_path / "source")
    qdeploy.convert(source, tmp_path / "out")
    for flag in (True, False):
        inputs = {"x": np.ascontiguousarray(X[..., 0]), "c": np.array(flag)}
        np.testing.assert_allclose(
            onnx_runtime(tmp_path / "out", inputs)[0], onnx_runtime(source, inputs)[0], rtol=1e-5
        )


def test_every_version_that_takes_something_away_is_in_the_table():
    """Of every operator of onnx: an attribute, a default or an input that goes away changes what a node means."""
    missing = []
    history: dict[str, list[Any]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "" and schema.since_version <= CURRENT:
            history.setdefault(schema.name, []).append(schema)
    for op, schemas in history.items():
        schemas.sort(key=lambda schema: schema.since_version)
        for before, after in itertools.pairwise(schemas):
            if _takes_away(before, after) and (op, after.since_version) not in KEPT:
                known = {version for version, _ in CHANGES.get(op, ())}
                missing += [] if after.since_version in known else [(op, after.since_version)]
    assert missing == []


def _takes_away(before: Any, after: Any) -> bool:
    gone = set(before.attributes) - set(after.attributes)
    shared = set(before.attributes) & set(after.attributes)
    other = {
        name
        for name in shared
        if before.attributes[name].default_value.type
        and before.attributes[name].default_value != after.attributes[name].default_value
    }
    return bool(gone or other or after.deprecated or len(after.inputs) < len(before.inputs))


def test_the_table_names_versions_that_onnx_has():
    for op, changes in CHANGES.items():
        versions = {s.since_version for s in onnx.defs.get_all_schemas_with_history() if s.name == op and not s.domain}
        assert {version for version, _ in changes} <= versions, op
        assert same_since(op) <= CURRENT


@pytest.mark.parametrize(
    ("opset", "container"), [(21, 10), (22, 10), (23, 11), (24, 12), (25, 13), (26, 13), (27, 13), (28, 14)]
)
def test_an_output_is_of_the_least_versions_that_its_nodes_need(opset: int, container: int, tmp_path: Path):
    shifts = {"x": (T.UINT8, [3]), "b": (T.UINT8, [3])}
    shift = helper.make_node("BitShift", ["x", "b"], ["y"], direction="LEFT")
    output = network([shift], shifts, {"y": (T.UINT8, [3])}, opset=opset)
    qdeploy.convert(saved(output, tmp_path / "source"), tmp_path / "out", check="none")
    result = onnx.load(tmp_path / "out/model.onnx")
    needed = max(CURRENT, onnx.defs.get_schema("BitShift", opset).since_version)
    assert result.opset_import[0].version == needed
    if needed == opset:
        assert result.ir_version == container
    else:
        assert result.ir_version == 10


def test_a_remainder_of_floats_keeps_the_version_that_has_it(tmp_path: Path):
    output = one("Mod", 28, {"x": np.array([5.5, -5.5], np.float32), "b": np.array([2, 2], np.float32)}, fmod=0)
    output.ir_version = 10
    qdeploy.convert(saved(shaped(output), tmp_path / "source"), tmp_path / "out", check="none")
    assert onnx.load(tmp_path / "out/model.onnx").opset_import[0].version == 28


def test_rms_normalization_is_onnx_s_own_where_the_source_has_it(tmp_path: Path):
    output = one("RMSNormalization", 23, {"x": X}, {"w": np.ones(5, np.float32)})
    qdeploy.convert(saved(shaped(output), tmp_path / "source"), tmp_path / "out")
    result = onnx.load(tmp_path / "out/model.onnx")
    onnx.checker.check_model(result)
    assert [n.op_type for n in result.graph.node] == ["RMSNormalization"]


@pytest.mark.parametrize("dim", [-1, -7])
def test_a_negative_extent_is_a_free_one(dim: int, tmp_path: Path):
    output = one("Relu", 21, {"x": X})
    for info in (*output.graph.input, *output.graph.output):
        info.CopyFrom(helper.make_tensor_value_info(info.name, T.FLOAT, [dim, 3, 4, 5]))
    assert isinstance(qdeploy.load(saved(output, tmp_path)).graph.inputs[0].shape[0], str)


def test_a_type_that_graphs_do_not_hold_is_refused_by_its_name(tmp_path: Path):
    output = one("Identity", 21, {"x": X})
    of_texts = helper.make_tensor_type_proto(T.STRING, [2])
    output.graph.input[0].type.CopyFrom(helper.make_sequence_type_proto(of_texts))
    with pytest.raises(UnsupportedError, match="sequence of tensors of STRING"):
        _ = qdeploy.load(saved(output, tmp_path)).graph


def test_a_constant_of_a_node_may_lie_in_another_file(tmp_path: Path):
    weight = RNG.normal(size=(5, 7)).astype(np.float32)
    output = network(
        [
            helper.make_node("Constant", [], ["w"], value=tensor("v", weight)),
            helper.make_node("MatMul", ["x", "w"], ["y"]),
        ],
        {"x": (T.FLOAT, [2, 5])},
        {"y": (T.FLOAT, [2, 7])},
    )
    how = {"save_as_external_data": True, "location": "w.data", "size_threshold": 0, "convert_attribute": True}
    source = saved(output, tmp_path / "source", **how)
    assert (source / "w.data").stat().st_size
    inputs = {"x": X[:, 0, 0]}
    np.testing.assert_allclose(converted(source, tmp_path / "out", inputs)[0], X[:, 0, 0] @ weight, rtol=1e-5)
