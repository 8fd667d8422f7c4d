"""Small ONNX files for the tests, what ONNX Runtime computes with them, and what becomes of them here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

import qdeploy
from qdeploy.ir.run import Weights, run

Arrays = Mapping[str, np.ndarray]


def network(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    initializers: Sequence[onnx.TensorProto] = (),
    opset: int = 21,
    ir_version: int = 10,
    functions: Sequence[Any] = (),
) -> onnx.ModelProto:
    """A model; inputs and outputs are name -> (element type, shape)."""
    infos = [[helper.make_tensor_value_info(n, t, s) for n, (t, s) in side.items()] for side in (inputs, outputs)]
    graph = helper.make_graph(list(nodes), "test", *infos, initializer=list(initializers))
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("local", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version, functions=functions)


def tensor(name: str, array: np.ndarray) -> onnx.TensorProto:
    """An initializer with raw data."""
    return numpy_helper.from_array(np.asarray(array), name)


def saved(model: onnx.ModelProto, folder: Path, **how: Any) -> Path:
    """The model in a folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / "model.onnx", **how)
    return folder


def onnx_runtime(path: Path, inputs: Arrays, optimized: bool = False) -> list[np.ndarray]:
    """What ONNX Runtime computes."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.x64quantprecision", "1")
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    file = path / "model.onnx" if path.is_dir() else path
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"]).run(None, dict(inputs))


def interpreted(path: Path, inputs: Arrays) -> list[np.ndarray]:
    """What the numpy interpreter computes."""
    model = qdeploy.load(path)
    outputs, _ = run(model.graph, inputs, {}, Weights(model))
    return [outputs[value.name] for value in model.graph.outputs]


def converted(source: Path, target: Path, inputs: Arrays, **how: Any) -> list[np.ndarray]:
    """What ONNX Runtime computes with what the source was converted to."""
    qdeploy.convert(source, target, **how)
    return onnx_runtime(target, inputs)


def distance(found: np.ndarray, wanted: np.ndarray) -> float:
    """Relative L2."""
    return float(np.linalg.norm(found - wanted) / max(float(np.linalg.norm(wanted)), 1e-30))
