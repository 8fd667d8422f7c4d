"""No setting of an operator is ignored: it is read, known to change no number, or refused by its name."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from openvino_files import Writer

import qdeploy
from qdeploy.errors import BadFileError, QdeployError, UnsupportedError
from qdeploy.formats.openvino.operators import OPERATORS
from qdeploy.ir.run import Weights, run

X = np.array([[-3, -1, 0], [0.5, 1, 2]], np.float32)


def network(
    kind: str,
    constants: list[tuple[str, np.ndarray]] | None = None,
    shape: tuple[int, ...] = (2, 3),
    outputs: int = 1,
    **data: str,
) -> Writer:
    """A layer over x [2, 3] and constants; its first output is y."""
    w = Writer()
    x = w.layer("x", "Parameter", shape, names="x", element_type="f32")
    others = [w.constant(f"c{i}", how, array) for i, (how, array) in enumerate(constants or [])]
    y = w.layer("y", kind, shape, (x, *others), **data)
    ports = "".join(f'<port id="{9 + i}" precision="FP32"><dim>2</dim><dim>-1</dim></port>' for i in range(outputs))
    if outputs > 1:
        head, _, _ = w.layers[y].partition("<output>")
        w.layers[y] = f"{head}<output>{ports}</output></layer>"
    w.layer("result", "Result", (), (y,))
    return w


def computed(folder: Path, writer: Writer) -> np.ndarray:
    model = qdeploy.load(writer.write(folder / "n"))
    (result,) = run(model.graph, {"x": X}, None, Weights(model))[0].values()
    return np.asarray(result)


@pytest.mark.parametrize("kind", OPERATORS)
def test_a_setting_that_nobody_knows_is_refused_by_its_name(kind: str, tmp_path: Path):
    known = {
        "Split": {"num_splits": "3"},
        "Clamp": {"min": "0", "max": "1"},
        "Concat": {"axis": "0"},
        "Convert": {"destination_type": "i64"},
        "Elu": {"alpha": "1"},
    }.get(kind, {})
    constants: list[tuple[str, np.ndarray]] = []
    if kind in ("Split", "VariadicSplit", "Squeeze", "Unsqueeze") or kind.startswith("Reduce"):
        constants = [("i64", np.array(1))]
    constants += [("i64", np.array([1, 1, 1]))] if kind == "VariadicSplit" else []
    constants = {
        "Gather": [("i64", np.array([0])), ("i64", np.array(0))],
        "Slice": [("i64", np.array([n])) for n in (0, 1, 1)],
        "Transpose": [("i64", np.array([1, 0]))],
        "Reshape": [("i64", np.array([3, 2]))],
        "Range": [("f32", np.array(n, np.float32)) for n in (3, 1)],
        "Select": [("f32", X), ("f32", X)],
    }.get(kind, constants)
    two = ("Add", "Broadcast", "Divide", "Equal", "Greater", "GreaterEqual", "Less", "LessEqual", "LogicalAnd")
    two += ("LogicalOr", "MatMul", "Maximum", "Minimum", "Multiply", "Power", "Subtract", "Tile")
    constants = constants or ([("f32", X)] if kind in two else [])
    outputs = 3 if kind in ("Split", "VariadicSplit") else 1
    with pytest.raises(UnsupportedError, match="setting of an operator") as caught:
        _ = qdeploy.load(network(kind, constants, outputs=outputs, **known, unheard_of="1").write(tmp_path / "n")).graph
    assert caught.value.found == "unheard_of"


def test_the_factor_of_elu_is_read(tmp_path: Path):
    expected = np.where(X > 0, X, 0.25 * np.expm1(X))
    np.testing.assert_allclose(computed(tmp_path, network("Elu", alpha="0.25")), expected, rtol=1e-6)


@pytest.mark.parametrize("down", ["true", "false", None])
def test_integers_are_divided_as_the_layer_says(down: str | None, tmp_path: Path):
    numbers, divisors = np.array([[-7, -6, 7], [6, -1, 0]]), np.array([[2, 2, -2], [4, 3, 5]])
    w = Writer()
    x = w.layer("x", "Parameter", (2, 3), names="x", element_type="f32")
    a, b = w.constant("a", "i64", numbers), w.constant("b", "i64", divisors)
    y = w.layer("q", "Divide", (2, 3), (a, b), **({} if down is None else {"m_pythondiv": down}))
    w.layers[1:] = [layer.replace('precision="FP32"', 'precision="I64"') for layer in w.layers[1:]]
    whole = w.layer("f", "Convert", (2, 3), (y,), destination_type="f32")
    total = w.layer("y", "Add", (2, 3), (x, whole))
    w.layer("result", "Result", (), (total,))
    expected = np.trunc(numbers / divisors) if down == "false" else numbers // divisors
    np.testing.assert_array_equal(computed(tmp_path, w), X + expected.astype(np.float32))


@pytest.mark.parametrize("kind", ["u8", "i8", "u4", "i16", "u64"])
def test_a_conversion_that_would_wrap_around_is_refused(kind: str, tmp_path: Path):
    with pytest.raises(UnsupportedError, match="may not hold") as caught:
        computed(tmp_path, network("Convert", destination_type=kind))
    assert caught.value.found == kind


@pytest.mark.parametrize(("kind", "sizes"), [("Split", None), ("VariadicSplit", [1, -1]), ("VariadicSplit", [1, 1])])
@pytest.mark.parametrize("extent", [3, -1])
def test_parts_that_are_not_known_to_be_the_whole_are_refused(
    kind: str, sizes: list | None, extent: int, tmp_path: Path
):
    constants = [("i64", np.array(1)), *([("i64", np.array(sizes))] if sizes else [])]
    writer = network(kind, constants, (2, extent), 2, **({} if sizes else {"num_splits": "2"}))
    if sizes == [1, -1] and extent == 3:
        np.testing.assert_array_equal(computed(tmp_path, writer), X[:, :1])
        return
    with pytest.raises(UnsupportedError, match="make up the whole"):
        computed(tmp_path, writer)


def test_an_operator_of_another_set_is_another_operator(tmp_path: Path):
    file = network("ReLU").write(tmp_path / "n")
    text = file.read_text()
    file.write_text(text.replace('type="ReLU" version="opset1"', 'type="ReLU" version="extension"'))
    with pytest.raises(UnsupportedError, match="not read") as caught:
        _ = qdeploy.load(file).graph
    assert "extension" in caught.value.found


@pytest.mark.parametrize(("low", "high"), [("nan", "1"), ("0", "nan"), ("3", "1")])
def test_limits_that_leave_nothing_are_an_error(low: str, high: str, tmp_path: Path):
    with pytest.raises(BadFileError, match="limits"):
        computed(tmp_path, network("Clamp", min=low, max=high))


def test_a_square_by_a_constant_of_more_axes_has_these_axes(tmp_path: Path):
    squared = computed(tmp_path, network("Power", [("f32", np.full((1, 1, 1), 2, np.float32))]))
    np.testing.assert_allclose(squared, X[None] ** 2, rtol=1e-6)


@pytest.mark.parametrize("text", ["\u00b2", "\u0663", "2e1", "0x2", "-"])
def test_numbers_of_other_digits_are_an_error(text: str, tmp_path: Path):
    file = network("ReLU").write(tmp_path / "n")
    file.write_text(file.read_text().replace("<dim>2</dim>", f"<dim>{text}</dim>"))
    with pytest.raises(QdeployError, match="number"):
        qdeploy.load(file)


def _joined(folder: Path, count: int) -> Path:
    w = Writer()
    parts = [w.constant(f"c{i}", "f32", np.ones(1, np.float32)) for i in range(count)]
    y = w.layer("y", "Concat", (count,), tuple(parts), axis="0")
    w.layer("result", "Result", (), (y,))
    w.layers.reverse()  # what is taken stands behind what takes it
    return w.write(folder)


def test_four_times_as_many_inputs_of_a_layer_take_four_times_as_long(tmp_path: Path):
    def seconds(count: int) -> float:
        file = _joined(tmp_path / f"{count}-{len(list(tmp_path.iterdir()))}", count)
        start = time.process_time()
        _ = qdeploy.load(file).graph
        return time.process_time() - start

    seconds(10)
    few, many = (min(seconds(count) for _ in range(3)) for count in (2000, 8000))
    assert many < 10 * few + 0.2, f"{few:.2f} s and {many:.2f} s"  # 16 times as long where it is quadratic


def test_a_network_without_outputs_is_refused(tmp_path: Path):
    writer = network("Relu")
    writer.layers = [layer for layer in writer.layers if 'type="Result"' not in layer]
    with pytest.raises(BadFileError, match="without outputs"):
        computed(tmp_path, writer)
