"""Every field of the schema is read, known to change no number, or refused by its name; none is left out in silence."""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tflite
from tflite_files import Network

from qdeploy.errors import UnsupportedError
from qdeploy.formats.tflite import reader
from qdeploy.formats.tflite.fields import IGNORED, OPTIONS
from qdeploy.ir.run import Weights, run
from qdeploy.store.folder import Folder

READ = {
    "Tensor": {"Shape", "Type", "Buffer", "Name", "Quantization", "ShapeSignature", "Sparsity"},
    "QuantizationParameters": {"Scale", "ZeroPoint", "QuantizedDimension", "DetailsType", "Details"},
    "Operator": {"OpcodeIndex", "Inputs", "Outputs", "BuiltinOptionsType", "BuiltinOptions"},
}
HEAVY = {"Operator": {"BuiltinOptions2"}}  # means nothing without its type, which is refused


def fields(table: str) -> dict[str, Any]:
    """The fields of a table of the schema package, and a value for each that is not its default."""
    results = {}
    for name, add in vars(tflite).items():
        field = name.removeprefix(f"{table}Add")
        if not name.startswith(f"{table}Add") or not callable(add):
            continue
        if "UOffset" in inspect.getsource(add):
            results[field] = "vector" if hasattr(tflite, f"{table}Start{field}Vector") else "table"
        else:
            results[field] = True if "Bool" in inspect.getsource(add) else 1
    return results


def read(tmp_path: Path, extra: dict[tuple[str, str], Any]) -> None:
    n = Network(extra=extra)
    x = n.value("x", (1, 6), scale=0.5, zero=3)
    w = n.constant("w", np.ones((4, 6), np.int8), scale=0.25)
    y = n.value("y", (1, 4), scale=2.0)
    n.add("FULLY_CONNECTED", [x, w], [y], FusedActivationFunction=0)
    path = tmp_path / "n.tflite"
    path.write_bytes(n.write([x], [y]))
    _ = reader.read(Folder(path)).graph


CASES = [
    (table, name, value)
    for table in READ
    for name, value in fields(table).items()
    if name not in READ[table] | HEAVY.get(table, set())
]


@pytest.mark.parametrize(("table", "name", "value"), CASES, ids=lambda v: str(v))
def test_a_field_that_is_not_read_is_harmless_or_refused_by_its_name(tmp_path: Path, table: str, name: str, value: Any):
    if name in IGNORED[table]:
        read(tmp_path, {(table, name): value})
        return
    with pytest.raises(UnsupportedError, match="field of the schema") as caught:
        read(tmp_path, {(table, name): value})
    assert name in caught.value.found


@pytest.mark.parametrize("kind", OPTIONS)
def test_every_option_of_an_operator_is_read_or_known_to_change_nothing(kind: str):
    table, *taken = OPTIONS[kind]
    listed = {"ReshapeOptions": {"NewShape"}, "SqueezeOptions": {"SqueezeDims"}}.get(table, set())
    assert set(fields(table)) - set(taken) - listed <= set(IGNORED["Options"])


def test_custom_quantization_is_refused(tmp_path: Path):
    extra = {("QuantizationParameters", "DetailsType"): 1, ("QuantizationParameters", "Details"): "table"}
    with pytest.raises(UnsupportedError) as caught:
        read(tmp_path, extra)
    assert "Details (custom)" in caught.value.found


def test_a_scale_of_floats_means_nothing_as_in_the_kernels(tmp_path: Path):
    for dtype in (np.float32, np.float16):
        n = Network()
        x, y = n.value("x", (2, 3), "float32"), n.value("y", (2, 4), "float32")
        w = n.constant("w", np.full((4, 3), 2, dtype), scale=0.5, zero=3)
        if dtype == np.float16:
            half, w = w, n.value("v", (4, 3), "float32")
            n.add("DEQUANTIZE", [half], [w])
        n.add("FULLY_CONNECTED", [x, w], [y], FusedActivationFunction=0)
        (tmp_path / "n.tflite").write_bytes(n.write([x], [y]))
        model = reader.read(Folder(tmp_path / "n.tflite"))
        (result,) = run(model.graph, {"x": np.ones((2, 3), np.float32)}, None, Weights(model))[0].values()
        np.testing.assert_array_equal(result, np.full((2, 4), 6, np.float32))


def test_an_option_that_the_importer_does_not_look_at_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from qdeploy.formats.tflite import floats

    monkeypatch.setitem(floats.FLOAT, "FULLY_CONNECTED", floats.FLOAT["RELU"])
    n = Network()
    x, y = n.value("x", (2, 3), "float32"), n.value("y", (2, 3), "float32")
    n.add("FULLY_CONNECTED", [x], [y], WeightsFormat=3)
    (tmp_path / "n.tflite").write_bytes(n.write([x], [y]))
    with pytest.raises(UnsupportedError, match="setting of an operator") as caught:
        _ = reader.read(Folder(tmp_path / "n.tflite")).graph
    assert caught.value.found == "WeightsFormat"
