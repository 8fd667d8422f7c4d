"""OpenVINO IR: the numbers of its runtime, every compressed kind from its text, and documents that deny themselves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from openvino_files import Writer, product
from packed_layers import open_, read_all
from published import e2m1, e8m0

import qdeploy
from qdeploy.errors import BadFileError, QdeployError, UnsupportedError
from qdeploy.ir.rules import check_values
from qdeploy.ir.run import Weights, run

NF4 = [-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0.0]
NF4 += [0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0]


def networks(testdata: Path) -> list[Path]:
    folders = sorted((testdata / "formats").glob("openvino-*"))
    assert folders
    return folders


def test_weights_and_logits_of_the_runtime(testdata: Path) -> None:
    for folder in networks(testdata):
        model, oracle = open_(folder / "model.xml"), np.load(folder / "oracle.npz")
        limit = 1e-3 if "nf4" in folder.name else 1e-5
        for key in (k for k in oracle.files if k.startswith("w:")):
            np.testing.assert_allclose(model.tensors[key[2:]].decode(), oracle[key], rtol=limit, atol=1e-7, err_msg=key)
        for ids, logits in (("input_ids", "logits"), ("input_ids_2", "logits_2")):
            result = run(model.graph, {"input_ids": oracle[ids]}, None, Weights(model))[0]
            (result,) = result.values()
            distance = np.linalg.norm(result - oracle[logits]) / np.linalg.norm(oracle[logits])
            assert distance <= limit, folder.name
        read_all(model)
        assert all(origin.proven and not len(origin.residue()) for origin in model.origins)


def test_the_folder_converts_to_onnx(testdata: Path, tmp_path: Path) -> None:
    report = qdeploy.convert(networks(testdata)[0], tmp_path / "out", to="onnx")
    forms = [form["form"] for row in report["tensors"].values() for form in row.get("forms", ())]
    assert sum(form.startswith("int4 block 64") for form in forms) >= 10, forms


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("kind", ["u8", "i8", "u4", "i4", "u2", "nf4", "f4e2m1"])
def test_what_nncf_compresses(tmp_path: Path, kind: str, grouped: bool) -> None:
    rng, (rows, columns, group) = np.random.default_rng(0), (6, 32, 8)
    bits = {"u8": 8, "i8": 8, "u2": 2}.get(kind, 4)
    low = -(1 << (bits - 1)) if kind[0] == "i" else 0
    codes = rng.integers(low, low + (1 << bits), (rows, columns)).astype(np.int64)
    per = columns // group if grouped else 1
    scale: np.ndarray = (rng.random((rows, per)) + 0.1).astype(np.float16)
    zero = rng.integers(0, 1 << bits, (rows, per)) if kind in ("u8", "u4", "u2") else None
    if kind == "f4e2m1":
        scale = rng.integers(120, 130, (rows, per)).astype(np.uint8)
    values = {"nf4": lambda: np.array(NF4, np.float32)[codes], "f4e2m1": lambda: e2m1(codes)}.get(
        kind, lambda: codes.astype(np.float32)
    )()
    wide = [np.repeat(a, columns // per, 1) for a in (scale, zero if zero is not None else np.zeros((rows, per)))]
    factor = e8m0(wide[0]) if kind == "f4e2m1" else wide[0].astype(np.float32)
    expected = (values - wide[1].astype(np.float32)) * factor
    stored = codes.astype(np.int8 if kind == "i8" else np.uint8)
    extent = (rows, per, 1) if grouped else (rows, 1)
    shape = (rows, per, group) if grouped else (rows, columns)
    zeros = None if zero is None else zero.astype(np.uint8).reshape(extent)
    file = product(kind, stored.reshape(shape), scale.reshape(extent), zeros, (rows, columns)).write(tmp_path / "n")
    model = open_(file)
    np.testing.assert_allclose(model.tensors["weight"].decode(), expected, rtol=1e-6)
    check_values(model.tensors["weight"], "weight")
    x = rng.standard_normal((3, columns)).astype(np.float32)
    y = run(model.graph, {"x": x}, None, Weights(model))[0]["y"]
    np.testing.assert_allclose(y, x @ expected.T, rtol=1e-4, atol=1e-4)
    assert "weight/scale" not in model.tensors and "weight/zero" not in model.tensors
    read_all(model)
    assert all(origin.proven for origin in model.origins)
    report = qdeploy.convert(file, tmp_path / "out", to="onnx")
    assert report["lossless"]["values"]["proven"] == report["lossless"]["values"]["of"]


def small() -> Writer:
    return product("i8", np.ones((4, 8), np.int8), np.ones((4, 1), np.float16), None, (4, 8))


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('offset="0"', 'offset="90"', "weight"),
        ('size="32"', 'size="33"', "weight"),
        ('offset="0"', "", "weight"),
        ('shape="4, 8"', 'shape="4, 9"', "weight"),
        ('shape="4, 8"', 'shape="4, -8"', "weight"),
        ('element_type="i8"', 'element_type="u6"', "u6"),
        ('element_type="f16"', 'element_type="f32"', "weight/scale"),
        ('from-layer="1"', 'from-layer="77"', "floats"),
        ('from-layer="1" from-port="9"', 'from-layer="1" from-port="3"', "floats"),
        ('from-layer="1"', 'from-layer="5"', "circle"),
        ('to-layer="2"', 'to-layer="4"', "model.xml"),
        ('name="floats"', 'name="weight"', "weight"),
        ('id="2"', 'id="two"', "two"),
        ("<net ", "<web ", "model.xml"),
        ("</net>", "", "model.xml"),
        ("<net ", '<!DOCTYPE n [<!ENTITY a "b">]><net ', "definitions"),
    ],
)
def test_documents_that_contradict_themselves_are_refused(tmp_path: Path, old: str, new: str, named: str) -> None:
    file = small().write(tmp_path / "n")
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(QdeployError) as caught:
        qdeploy.load(file, **({"format": "openvino"} if "web" in new else {}))
    assert named in str(caught.value)


def test_a_scale_that_is_no_number_is_refused_by_name(tmp_path: Path) -> None:
    scale = np.ones((4, 1), np.float16)
    scale[2] = np.nan
    file = product("i8", np.ones((4, 8), np.int8), scale, None, (4, 8)).write(tmp_path / "n")
    with pytest.raises(BadFileError, match="weight"):
        qdeploy.convert(file, tmp_path / "out", to="ir")


def test_an_operator_without_a_row_is_refused_by_name_and_its_tensors_convert(tmp_path: Path) -> None:
    file = small().write(tmp_path / "n")
    file.write_text(file.read_text().replace('type="MatMul"', 'type="GRUSequence"'))
    with pytest.raises(UnsupportedError, match="GRUSequence"):
        qdeploy.convert(file, tmp_path / "onnx", to="onnx")
    assert "weight" in json.dumps(qdeploy.convert(file, tmp_path / "ir", to="ir")["tensors"])


def test_a_missing_bin_file_is_named(tmp_path: Path) -> None:
    file = small().write(tmp_path / "n")
    (tmp_path / "n/model.bin").unlink()
    with pytest.raises(QdeployError, match="weight"):
        qdeploy.load(file)
