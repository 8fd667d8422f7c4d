"""Core ML: the numbers of coremltools, every way to compress from its text, and packages that contradict themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from coreml_files import Package, Stored, named, stream
from packed_layers import open_, read_all

import qdeploy
from qdeploy.errors import QdeployError, UnsupportedError
from qdeploy.ir.rules import check_values
from qdeploy.ir.run import Weights, run

SHAPE = (8, 12)
WEIGHT = [named("weight", "f32", SHAPE)]
Made = tuple[Package, np.ndarray]


def packages(testdata: Path) -> list[Path]:
    folders = sorted((testdata / "formats").glob("coreml-*"))
    assert folders
    return folders


def test_weights_and_logits_of_coremltools(testdata: Path) -> None:
    for folder in packages(testdata):
        model, oracle = open_(folder / "model.mlpackage"), np.load(folder / "oracle.npz")
        for key in (k for k in oracle.files if k.startswith("w:")):
            np.testing.assert_array_equal(model.tensors[key[2:]].decode(), oracle[key], err_msg=key)
        for ids, logits in (("input_ids", "logits"), ("input_ids_2", "logits_2")):
            result = run(model.graph, {"input_ids": oracle[ids].astype(np.int32)}, None, Weights(model))[0]
            (values,) = result.values()
            assert np.linalg.norm(values - oracle[logits]) <= 1e-5 * np.linalg.norm(oracle[logits]), folder.name
        read_all(model)
        assert all(origin.proven and not len(origin.residue()) for origin in model.origins)


def test_a_folder_with_a_package_converts_to_onnx(testdata: Path, tmp_path: Path) -> None:
    report = qdeploy.convert(packages(testdata)[0], tmp_path / "out", to="onnx")
    assert report["lossless"]["values"]["proven"] == report["lossless"]["values"]["of"]


def scaled(kind: str, offset: bool, blocks: tuple[int, int]) -> Made:
    rng, package = np.random.default_rng(0), Package()
    low, high = {"int4": (-8, 8), "uint4": (0, 16), "int8": (-128, 128), "uint8": (0, 256)}[kind]
    codes, scale = rng.integers(low, high, SHAPE), rng.random(blocks).astype(np.float32)
    inputs = {"data": package.blob(Stored(kind, codes)), "scale": package.blob(Stored("f32", scale))}
    zeros = rng.integers(low, high, blocks) if offset else np.zeros(blocks, np.int64)
    if offset:
        inputs["offset"] = package.blob(Stored(kind, zeros))
    package.operation("constexpr_blockwise_shift_scale", WEIGHT, inputs)
    return package, (codes - spread(zeros)).astype(np.float32) * spread(scale)


def spread(blocks: np.ndarray) -> np.ndarray:
    rows, columns = SHAPE[0] // blocks.shape[0], SHAPE[1] // blocks.shape[1]
    return np.kron(blocks, np.ones((rows, columns), blocks.dtype))


def palettes(bits: int, tables: tuple[int, int], scale: bool) -> Made:
    rng, package = np.random.default_rng(bits), Package()
    indices = rng.integers(0, 1 << bits, SHAPE)
    lut = rng.standard_normal((*tables, 1 << bits, 1)).astype(np.float16)
    which = [spread(block) for block in np.indices(tables)]
    expected = lut[which[0], which[1], indices, 0].astype(np.float32)
    inputs = {"indices": package.blob(Stored(f"uint{bits}", indices)), "lut": package.blob(Stored("f16", lut))}
    name = "inner" if scale else "weight"
    package.operation("constexpr_lut_to_dense", [named(name, "f16", SHAPE)], inputs)
    if scale:
        factors = rng.random((SHAPE[0], 1)).astype(np.float32)
        package.operation(
            "constexpr_blockwise_shift_scale", WEIGHT, {"data": "inner", "scale": package.blob(Stored("f32", factors))}
        )
        expected = expected * factors
    return package, expected


def vectors(axis: int) -> Made:
    rng, package, length = np.random.default_rng(axis), Package(), 4
    shape = tuple(n // length if i == axis else n for i, n in enumerate(SHAPE))
    indices, lut = rng.integers(0, 16, shape), rng.standard_normal((1, 1, 16, length)).astype(np.float16)
    expected = np.moveaxis(lut[0, 0, indices], -1, axis + 1).reshape(SHAPE).astype(np.float32)
    inputs = {"indices": package.blob(Stored("uint4", indices)), "lut": package.blob(Stored("f16", lut))}
    inputs["vector_axis"] = package.immediate("int32", np.array(axis))
    package.operation("constexpr_lut_to_dense", WEIGHT, inputs)
    return package, expected


def sparse(joint: str) -> Made:
    rng, package = np.random.default_rng(1), Package()
    mask = rng.integers(0, 2, SHAPE)
    count, expected = int(mask.sum()), np.zeros(SHAPE, np.float32)
    bits = package.blob(Stored("uint1", mask))
    if not joint:
        values = rng.standard_normal(count).astype(np.float16)
        data: bytes | str = package.blob(Stored("f16", values))
        expected[mask != 0] = values
    else:
        codes = rng.integers(0, 16, count)
        run_of = package.blob(Stored("uint4", codes))
        outputs = [named("mask", "uint1", SHAPE), named("elements", "f32", (count,))]
        if joint == "lut":
            lut = rng.standard_normal((1, 1, 16, 1)).astype(np.float32)
            inputs = {"indices_mask": bits, "indices_nonzero_data": run_of, "lut": package.blob(Stored("f32", lut))}
            package.operation("constexpr_lut_to_sparse", outputs, inputs)
            expected[mask != 0] = lut[0, 0, codes, 0]
        else:
            scale = rng.random((SHAPE[0], 1)).astype(np.float32)
            inputs = {"data_mask": bits, "nonzero_data": run_of, "scale": package.blob(Stored("f32", scale))}
            package.operation("constexpr_sparse_blockwise_shift_scale", outputs, inputs)
            expected[mask != 0] = codes
            expected = expected * scale
        data = "elements"
    package.operation("constexpr_sparse_to_dense", WEIGHT, {"nonzero_data": data, "mask": "mask" if joint else bits})
    return package, expected


def of_ios16(kind: str) -> Made:
    rng, package = np.random.default_rng(2), Package()
    shape = package.immediate("uint32", np.array(SHAPE))
    if kind == "affine":
        codes, scale = rng.integers(-128, 128, SHAPE), rng.random(SHAPE[0]).astype(np.float32)
        zero = rng.integers(-9, 9, SHAPE[0])
        inputs = {
            "quantized_data": package.blob(Stored("int8", codes)),
            "zero_point": package.blob(Stored("int8", zero)),
            "scale": package.blob(Stored("f32", scale)),
            "axis": package.immediate("int32", np.array(0)),
        }
        package.operation("constexpr_affine_dequantize", WEIGHT, inputs, attributes=True)
        return package, (codes - zero[:, None]).astype(np.float32) * scale[:, None]
    if kind == "lut":
        indices, lut = rng.integers(0, 4, SHAPE), rng.standard_normal(4).astype(np.float32)
        packed = np.frombuffer(stream(indices, 2), np.uint8)
        inputs = {"indices": package.blob(Stored("uint8", packed)), "lut": package.blob(Stored("f32", lut))}
        package.operation("constexpr_lut_to_dense", WEIGHT, {**inputs, "shape": shape}, attributes=True)
        return package, lut[indices]
    mask, expected = rng.integers(0, 2, SHAPE), np.zeros(SHAPE, np.float32)
    values = rng.standard_normal(int(mask.sum())).astype(np.float32)
    expected[mask != 0] = values
    packed = np.frombuffer(stream(mask, 1), np.uint8)
    inputs = {"nonzero_data": package.blob(Stored("f32", values)), "mask": package.blob(Stored("uint8", packed))}
    package.operation("constexpr_sparse_to_dense", WEIGHT, {**inputs, "shape": shape}, attributes=True)
    return package, expected


WAYS: dict[str, Callable[[], Made]] = {
    **{
        f"{kind} {blocks} {offset}": lambda k=kind, b=blocks, o=offset: scaled(k, o, b)  # type: ignore[misc]
        for kind in ("int4", "uint4", "int8", "uint8")
        for blocks in ((8, 1), (8, 3), (1, 1), (2, 4))
        for offset in (False, True)
    },
    **{f"palette {bits}": lambda b=bits: palettes(b, (1, 1), False) for bits in (1, 2, 3, 4, 6)},  # type: ignore[misc]
    "palettes of rows": lambda: palettes(3, (4, 1), False),
    "palettes of columns": lambda: palettes(4, (1, 3), False),
    "palette and scale": lambda: palettes(4, (1, 1), True),
    "vectors down": lambda: vectors(0),
    "vectors across": lambda: vectors(1),
    "sparse": lambda: sparse(""),
    "sparse and palette": lambda: sparse("lut"),
    "sparse and scale": lambda: sparse("scale"),
    **{f"iOS 16 {kind}": lambda k=kind: of_ios16(k) for kind in ("affine", "lut", "sparse")},  # type: ignore[misc]
}


@pytest.mark.parametrize("way", WAYS)
def test_what_coremltools_compresses(tmp_path: Path, way: str) -> None:
    package, expected = WAYS[way]()
    path = package.write(tmp_path, SHAPE)
    model = open_(path)
    np.testing.assert_array_equal(model.tensors["weight"].decode(), expected)
    check_values(model.tensors["weight"], "weight")
    x = np.random.default_rng(3).standard_normal((1, SHAPE[1])).astype(np.float32)
    y = run(model.graph, {"x": x}, None, Weights(model))[0]["y"]
    np.testing.assert_allclose(y, x @ expected.T, rtol=1e-4, atol=1e-4)
    read_all(model)
    assert model.origins and all(origin.proven for origin in model.origins)


@pytest.mark.parametrize("way", ["uint4 (8, 3) True", "palettes of rows", "vectors down", "sparse and palette"])
def test_every_kind_of_constants_converts(tmp_path: Path, way: str) -> None:
    report = qdeploy.convert(WAYS[way]()[0].write(tmp_path, SHAPE), tmp_path / "out", to="onnx")
    assert all(form["lossless"] for row in report["tensors"].values() for form in row.get("forms", ()))


def damaged(tmp_path: Path, file: str, change: Callable[[bytes], bytes]) -> Path:
    path = scaled("int4", True, (8, 3))[0].write(tmp_path, SHAPE)
    target = path / "Data/com.apple.CoreML" / file
    data = target.read_bytes()
    assert change(data) != data
    target.write_bytes(change(data))
    return path


@pytest.mark.parametrize(
    ("file", "change", "named_"),
    [
        ("weights/weight.bin", lambda d: d.replace(b"\xef\xbe\xad\xde", b"\xef\xbe\xad\xdf", 1), "weight"),
        ("weights/weight.bin", lambda d: d[:100], "weight"),
        ("weights/weight.bin", lambda d: d[:72] + b"\x63" + d[73:], "weight"),
        ("model.mlmodel", lambda d: d[: len(d) // 2], "model.mlmodel"),
        ("model.mlmodel", lambda d: d.replace(b"@model_path/weights", b"@model_path/../../."), "weight"),
        ("model.mlmodel", lambda d: d.replace(b"blockwise_shift_scale", b"blockwise_shift_scalp"), "scalp"),
        ("model.mlmodel", lambda d: d.replace(b"offset", b"zffset").replace(b"scale\x12", b"scalf\x12"), "weight"),
    ],
)
def test_packages_that_contradict_themselves_are_refused(
    tmp_path: Path, file: str, change: Callable[[bytes], bytes], named_: str
) -> None:
    path = damaged(tmp_path, file, change)
    with pytest.raises(QdeployError) as caught:
        model = open_(path)
        check_values(model.tensors["weight"], "weight")
    assert named_ in str(caught.value)


def test_an_operator_without_a_row_is_refused_by_name_and_its_tensors_convert(tmp_path: Path) -> None:
    path = damaged(tmp_path, "model.mlmodel", lambda d: d.replace(b"linear", b"lunear"))
    with pytest.raises(UnsupportedError, match="lunear"):
        qdeploy.convert(path, tmp_path / "onnx", to="onnx")
    assert "weight" in qdeploy.convert(path, tmp_path / "ir", to="ir")["tensors"]
