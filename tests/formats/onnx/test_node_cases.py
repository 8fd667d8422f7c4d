"""The quantization cases of onnx's own backend tests: through the interpreter, and back out as ONNX."""

from __future__ import annotations

import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from onnx_networks import interpreted, onnx_runtime, saved
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, NotImplemented

import qdeploy

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from onnx.backend.test.loader import load_model_tests

    KINDS = ("quantize", "qlinear", "matmulinteger", "convinteger")
    CASES = [case for case in load_model_tests(kind="node") if any(kind in case.name for kind in KINDS)]


def array(value: Any) -> np.ndarray:
    return onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


def assert_same(found: list[np.ndarray], wanted: list[np.ndarray]) -> None:
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        tolerance = 1e-3 if b.dtype == np.float16 else 1e-6
        np.testing.assert_allclose(a.astype(np.float32), b.astype(np.float32), rtol=tolerance, atol=1e-6)


def computed(path: Path, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """By ONNX Runtime; by onnx itself where ONNX Runtime or its Python interface lacks the type or the case."""
    if all(a.dtype.kind in "fiub" and hasattr(np, a.dtype.name) for a in inputs.values()):
        with suppress(Fail, NotImplemented):  # padding of ConvInteger with a zero point; 4-bit floats
            return onnx_runtime(path, inputs)
    return ReferenceEvaluator(onnx.load(path / "model.onnx")).run(None, inputs)


def test_all_cases_are_here():
    assert len(CASES) >= 45


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
@pytest.mark.filterwarnings("ignore")
def test_a_case_of_the_standard(case: Any, tmp_path: Path):
    source = saved(case.model, tmp_path / "source")
    arguments, wanted = ([array(value) for value in side] for side in case.data_sets[0])
    inputs = dict(zip([v.name for v in case.model.graph.input], arguments, strict=True))
    assert_same(interpreted(source, inputs), wanted)
    assert not [n for n in qdeploy.load(source).graph.nodes if n.op == "Opaque"]
    qdeploy.convert(source, tmp_path / "out", check="none")
    onnx.checker.check_model(str(tmp_path / "out/model.onnx"))
    assert_same(computed(tmp_path / "out", inputs), wanted)
