"""ONNX files that are damaged or made to harm: one clear error each, and nothing outside of the folder is read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper
from onnx_networks import network, saved, tensor

import qdeploy
from qdeploy.errors import AmbiguousError, BadFileError, QdeployError, UnsupportedError


def small() -> onnx.ModelProto:
    parts = [tensor("w", np.arange(12, dtype=np.float32).reshape(3, 4))]
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    return network([node], {"x": (T.FLOAT, [2, 3])}, {"y": (T.FLOAT, [2, 4])}, parts)


def external(folder: Path, **entries: str) -> Path:
    """The small network, its weight elsewhere."""
    output = small()
    weight = output.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = T.EXTERNAL
    for key, value in entries.items():
        weight.external_data.add(key=key, value=value)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(output.SerializeToString())
    return folder


def test_external_data_inside_of_the_folder_is_read(tmp_path: Path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/w.bin").write_bytes(b"\0" * 8 + np.arange(12, dtype=np.float32).tobytes())
    source = external(tmp_path, location="deep/w.bin", offset="8", length="48", checksum="not judged")
    assert qdeploy.load(source).tensors["w"].decode()[2, 3] == 11
    assert [f.path for f in qdeploy.load(source).files] == []


@pytest.mark.parametrize(
    "location", ["../secret", "a/../../secret", "/etc/hostname", "", "a\0b", "..\\secret", "missing"]
)
def test_external_data_never_leads_outside(tmp_path: Path, location: str):
    (tmp_path / "secret").write_bytes(b"\1" * 48)
    with pytest.raises(BadFileError):
        qdeploy.load(external(tmp_path / "source", location=location))


@pytest.mark.parametrize("kind", ["symlink", "parent", "hardlink", "pipe", "folder"])
def test_external_data_is_a_file_of_the_folder(tmp_path: Path, kind: str):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"\1" * 48)
    source = external(tmp_path / "source", location="inner/w.bin" if kind == "parent" else "w.bin")
    target = source / "w.bin"
    if kind == "symlink":
        target.symlink_to(outside / "secret")
    elif kind == "parent":
        (outside / "w.bin").write_bytes(b"\1" * 48)
        (source / "inner").symlink_to(outside)
    elif kind == "hardlink":
        os.link(outside / "secret", target)
    elif kind == "pipe":
        os.mkfifo(target)
    else:
        target.mkdir()
    with pytest.raises(BadFileError):
        qdeploy.load(source)


@pytest.mark.parametrize(
    "entries",
    [
        {"offset": "1"},
        {"offset": str(1 << 62)},
        {"length": str(1 << 40)},
        {"length": "47"},
        {"offset": "-8"},
        {"offset": "0x0"},
        {"offset": "1_0"},
        {"length": "٤٨"},
        {"offset": ""},
        {"offset": "9" * 30},
    ],
)
def test_external_data_stays_in_its_file(tmp_path: Path, entries: dict[str, str]):
    source = external(tmp_path, location="w.bin", **entries)
    (source / "w.bin").write_bytes(b"\0" * 48)
    with pytest.raises(BadFileError):
        qdeploy.load(source)


def test_external_data_that_is_cut_later_is_an_error(tmp_path: Path):
    source = external(tmp_path, location="w.bin")
    (source / "w.bin").write_bytes(b"\0" * 48)
    model = qdeploy.load(source)
    (source / "w.bin").write_bytes(b"\0" * 40)
    with pytest.raises(BadFileError):
        model.tensors["w"].decode()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dims", [3, 5]),
        ("dims", [1 << 40, 1 << 40]),
        ("dims", [-3, -4]),
        ("dims", [1] * 64 + [12]),
        ("data_type", 99),
        ("data_type", T.STRING),
        ("data_type", T.COMPLEX64),
        ("name", ""),
    ],
)
def test_an_initializer_that_contradicts_itself(tmp_path: Path, field: str, value: object):
    output = small()
    weight = output.graph.initializer[0]
    if field == "dims":
        weight.dims[:] = value
    else:
        setattr(weight, field, value)
    (tmp_path / "model.onnx").write_bytes(output.SerializeToString())
    with pytest.raises(QdeployError):
        qdeploy.load(tmp_path)


def test_data_in_two_places(tmp_path: Path):
    output = small()
    output.graph.initializer[0].data_location = T.EXTERNAL
    output.graph.initializer[0].external_data.add(key="location", value="model.onnx")
    (tmp_path / "model.onnx").write_bytes(output.SerializeToString())
    with pytest.raises(BadFileError, match="two places"):
        qdeploy.load(tmp_path)


def test_two_initializers_with_one_name(tmp_path: Path):
    output = small()
    output.graph.initializer.append(output.graph.initializer[0])
    (tmp_path / "model.onnx").write_bytes(output.SerializeToString())
    with pytest.raises(BadFileError, match="one name"):
        qdeploy.load(tmp_path)


def test_truncation_at_every_byte_is_an_error_or_harmless(tmp_path: Path):
    whole = small().SerializeToString()
    for size in range(len(whole)):
        (tmp_path / "model.onnx").write_bytes(whole[:size])
        try:
            model = qdeploy.load(tmp_path)
            model.graph  # noqa: B018
            [t.decode() for t in model.tensors.values()]
        except QdeployError:
            continue


def test_a_flipped_bit_is_an_error_or_harmless(tmp_path: Path):
    whole = small().SerializeToString()
    for place in range(0, len(whole) * 8, 3):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << (place % 8)
        (tmp_path / "model.onnx").write_bytes(damaged)
        try:
            model = qdeploy.load(tmp_path)
            model.graph  # noqa: B018
            [t.decode() for t in model.tensors.values()]
        except QdeployError:
            continue


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x08",
        b"\xff" * 40,
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"\x3a\x00\x3a\x00",
        b"\x08\x0a",
        b"{}" * 50,
        b"\x0b\x0c",
        b"\x3a\x06\x2a\x04\x4a\x00\x4a\x00",
    ],
)
def test_what_is_no_onnx_file(tmp_path: Path, content: bytes):
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(QdeployError):
        qdeploy.load(tmp_path).graph  # noqa: B018


def test_several_networks_in_one_folder(tmp_path: Path):
    saved(small(), tmp_path)
    for name in ("a.onnx", "b.onnx"):
        (tmp_path / "model.onnx").rename(tmp_path / name) if name == "a.onnx" else onnx.save(small(), tmp_path / name)
    with pytest.raises(AmbiguousError, match="several"):
        qdeploy.load(tmp_path)
    assert qdeploy.load(tmp_path / "a.onnx").tensors["w"].shape == (3, 4)


def test_the_file_around_the_tensors_is_not_written_back(tmp_path: Path):
    saved(small(), tmp_path / "source")
    (tmp_path / "source/config.json").write_text("{}")
    qdeploy.convert(tmp_path / "source", tmp_path / "package", to="ir")
    assert (tmp_path / "package/files/config.json").read_text() == "{}"
    with pytest.raises(UnsupportedError, match="not written back"):
        qdeploy.convert(tmp_path / "package", tmp_path / "back", to="source")


def test_without_the_onnx_package_the_error_says_what_to_install(tmp_path: Path):
    saved(small(), tmp_path)
    code = (
        "import sys; sys.modules['onnx'] = None\n"
        "from qdeploy.store.folder import Folder; from qdeploy.formats.onnx import reader as onnx\n"
        f"folder = Folder({str(tmp_path)!r}); assert onnx.sniff(folder).score\n"
        "try: onnx.read(folder)\nexcept Exception as e: print(type(e).__name__, e.todo)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "UnsupportedError pip install 'qdeploy[onnx]'"


def test_looking_at_a_folder_does_not_import_onnx(tmp_path: Path):
    saved(small(), tmp_path)
    code = (
        "import sys; from qdeploy.store.folder import Folder; from qdeploy.formats.onnx import reader as onnx\n"
        f"assert onnx.sniff(Folder({str(tmp_path)!r})).score > 0; print('onnx' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    "nodes",
    [
        [helper.make_node("DequantizeLinear", [], ["y"])],
        [helper.make_node("Clip", [], ["y"])],
        [helper.make_node("Cast", ["x"], ["y"])],
        [helper.make_node("MatMulNBits", ["x"], ["y"], domain="com.microsoft")],
        [helper.make_node("FusedMatMul", ["x"], ["y"], domain="com.microsoft")],
        [helper.make_node("DequantizeLinear", ["w", "w"], ["y"], axis=[1, 2])],
        [helper.make_node("MatMulNBits", ["x", "w", "w"], ["y"], domain="com.microsoft", K="a", N=3)],
        [helper.make_node("SkipLayerNormalization", ["x"], ["y"], domain="com.microsoft", epsilon="small")],
        [helper.make_node("Split", ["x"], ["y"], split="a")],
        [helper.make_node("Reshape", ["x", "w"], ["y"])],
        [helper.make_node("Add", ["x", "nobody"], ["y"])],
        [helper.make_node("Relu", ["x"], ["x"])],
        [helper.make_node("Relu", ["x"], ["w"]), helper.make_node("Relu", ["x"], ["y"])],
        [helper.make_node("Relu", ["x"], [])],
        [helper.make_node("Relu", ["x"], ["z"])],
    ],
    ids=str,
)
def test_a_graph_that_makes_no_sense(tmp_path: Path, nodes: list[onnx.NodeProto]):
    output = small()
    del output.graph.node[:]
    output.graph.node.extend(nodes)
    saved(output, tmp_path / "source")
    with pytest.raises(QdeployError):
        qdeploy.convert(tmp_path / "source", tmp_path / "out")
