"""QONNX's operators mean here what they mean in their library, everywhere."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

import qdeploy
from tests.formats.onnx_networks import interpreted, network, onnx_runtime, saved, tensor

DOMAINS = ("qonnx.custom_op.general", "onnx.brevitas", "finn.custom_op.general")


def _round(values: np.ndarray, mode: str) -> np.ndarray:
    size, sign = np.abs(values), np.sign(values)
    return {
        "ROUND": np.rint(values),
        "CEIL": np.ceil(values),
        "FLOOR": np.floor(values),
        "UP": sign * np.ceil(size),
        "DOWN": np.trunc(values),
        "ROUND_TO_ZERO": np.trunc(values),
        "HALF_UP": sign * np.floor(size + np.float32(0.5)),
        "HALF_DOWN": sign * np.ceil(size - np.float32(0.5)),
        "HALF_EVEN": np.rint(values),
    }[mode]


def _limits(bits: np.ndarray, signed: int, narrow: int) -> tuple[np.ndarray, np.ndarray]:
    if signed:
        return -(2.0 ** (bits - 1)) + narrow, 2.0 ** (bits - 1) - 1
    return 0.0 * bits, 2.0**bits - 1 - narrow


def _saved(folder: Path, op: str, constants: list[np.ndarray], domain: str = DOMAINS[0], **attrs: object) -> Path:
    names = [f"c{i}" for i in range(len(constants))]
    node = helper.make_node(op, ["x", *names], ["y"], domain=domain, **attrs)
    ends = {"x": (TensorProto.FLOAT, ["n", 4])}, {"y": (TensorProto.FLOAT, ["n", 4])}
    parts = [tensor(name, array) for name, array in zip(names, constants, strict=True)]
    proto = network([node], *ends, parts)
    proto.opset_import.append(helper.make_opsetid(domain, 1))
    return saved(proto, folder / "source")


def _both(folder: Path, x: np.ndarray) -> list[np.ndarray]:
    """What the interpreter computes, and ONNX Runtime after the conversion."""
    out = folder.parent / "out"
    qdeploy.convert(folder, out, to="onnx", check="none")
    return [interpreted(folder, {"x": x})[0], onnx_runtime(out, {"x": x})[0]]


X = np.concatenate([np.arange(-40, 40) / 8, [1e3, -1e3, 0.0, -0.0]]).astype(np.float32).reshape(-1, 4)
MODES = ("ROUND", "CEIL", "FLOOR", "UP", "DOWN", "ROUND_TO_ZERO", "HALF_UP", "HALF_DOWN", "HALF_EVEN")


@pytest.mark.parametrize("mode", MODES)
def test_quant_rounds_in_every_mode(mode: str, tmp_path: Path):
    scale, zero, bits = np.float32(0.25), np.float32(1.0), np.float32(4.0)
    for place, (signed, narrow) in enumerate(itertools.product((0, 1), (0, 1))):
        how = {"signed": signed, "narrow": narrow, "rounding_mode": mode.lower() if place else mode}
        folder = _saved(tmp_path / str(place), "Quant", [scale, zero, bits], DOMAINS[place % 3], **how)
        least, most = _limits(np.asarray(bits), signed, narrow)
        expected = (_round(np.clip(X / scale + zero, least, most), mode) - zero) * scale
        for result in _both(folder, X):
            np.testing.assert_array_equal(result, expected.astype(np.float32))


@pytest.mark.parametrize("bits", [2.0, 2.5, 8.0, [2.0, 3.0, 4.5, 8.0]])
def test_bits_may_be_fractions_and_differ_per_channel(bits: object, tmp_path: Path):
    scale = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    zero, widths = np.array(0, np.int64), np.array(bits, np.float32)
    folder = _saved(tmp_path, "IntQuant", [scale, zero, widths], signed=1, narrow=0, rounding_mode="ROUND")
    least, most = _limits(widths.astype(np.float64), 1, 0)
    expected = np.rint(np.clip(X / scale, least.astype(np.float32), most.astype(np.float32))) * scale
    for result in _both(folder, X):
        np.testing.assert_array_equal(result, expected)


def test_one_bit_is_a_sign(tmp_path: Path):
    scale = np.float32(0.75)
    expected = np.where(X >= 0, scale, -scale)
    one = [scale, np.float32(0), np.float32(1)]
    folders = [
        _saved(tmp_path / "bipolar", "BipolarQuant", [scale]),
        _saved(tmp_path / "quant", "Quant", one, signed=1, narrow=1, rounding_mode="ROUND"),
    ]
    for folder in folders:
        for result in _both(folder, X):
            np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("mode", MODES)
def test_trunc_drops_bits_of_codes(mode: str, tmp_path: Path):
    scale, zero = np.float32(0.125), np.float32(4.0)
    first = [scale, zero, np.float32(8), np.float32(5)]
    codes = np.rint(X / scale + zero)
    expected = (_round(codes / 8, mode) - zero) * scale
    for result in _both(_saved(tmp_path / "1", "Trunc", first, rounding_mode=mode), X):
        np.testing.assert_array_equal(result, expected)
    behind = np.float32(0.5)
    second = [scale, zero, np.float32(8), behind, np.float32(1), np.float32(5)]
    folder = _saved(tmp_path / "2", "Trunc", second, rounding_mode=mode, signed=1, narrow=0)
    expected = (_round(np.clip(codes / 4, -16, 15), mode) - zero / 4) * behind
    for result in _both(folder, X):
        np.testing.assert_array_equal(result, expected.astype(np.float32))


def test_what_has_no_rows_stays_as_it_is(tmp_path: Path):
    scale, bits = np.float32(1), np.float32(4)
    cases = [
        ("Quant", [scale, scale, bits], {"rounding_mode": "STOCHASTIC"}),
        ("Quant", [scale, scale, np.float32(40)], {"signed": 1}),
        ("Quant", [scale, scale], {}),
        ("BipolarQuant", [scale, scale], {}),
        ("Trunc", [scale, scale, bits], {}),
    ]
    for place, (op, constants, how) in enumerate(cases):
        model = qdeploy.load(_saved(tmp_path / str(place), op, constants, **how))
        assert [node.op for node in model.graph.nodes] == ["Opaque"]


@pytest.mark.parametrize(("name", "right"), [("TFC_1W1A", 9296), ("TFC_2W2A", 9660)])
def test_published_networks_keep_their_accuracy(name: str, right: int, testdata: Path, tmp_path: Path):
    qdeploy.convert(testdata / "qonnx" / f"{name}.onnx", tmp_path / "out", to="onnx")
    images = np.load(testdata / "vision" / "mnist" / "test_10000.npz")
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"), providers=["CPUExecutionProvider"])
    (name,) = (value.name for value in session.get_inputs())
    pixels = (images["x"].reshape(-1, 1, 1, 28, 28) / np.float32(255)).astype(np.float32)
    labels = [int(session.run(None, {name: image})[0].argmax()) for image in pixels]
    assert int((np.array(labels) == images["y"]).sum()) == right


def test_the_jet_tagging_network_converts(testdata: Path, tmp_path: Path):
    report = qdeploy.convert(testdata / "qonnx" / "qkeras_jettagging.onnx", tmp_path / "out", to="onnx")
    assert all(check["error"] <= check["limit"] for check in report["checks"])
