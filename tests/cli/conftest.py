"""Small float networks as ONNX files, with data to calibrate them beside."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

SaveNetwork = Callable[[Sequence[onnx.NodeProto], Mapping[str, Any]], Path]


@pytest.fixture(scope="module")
def save_network(tmp_path_factory: pytest.TempPathFactory) -> SaveNetwork:
    """Saves nodes from x [n, 3, 8, 8] to y [n, 5] as net.onnx, and 40 such x as data.npz in the same folder."""

    def save(nodes: Sequence[onnx.NodeProto], weights: Mapping[str, Any]) -> Path:
        folder = tmp_path_factory.mktemp("network")
        contents = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()]
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])
        model = helper.make_model(
            helper.make_graph(nodes, "n", [x], [y], contents), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
        )
        onnx.save(model, folder / "net.onnx")
        images = np.random.default_rng(5).standard_normal((40, 3, 8, 8)).astype(np.float32)
        np.savez(folder / "data.npz", x=images)
        return folder / "net.onnx"

    return save
