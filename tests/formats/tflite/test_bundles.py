"""Bundles of language models: every section is named, the network converts, the tokenizer and all else is carried."""

from __future__ import annotations

import shutil
import zipfile
import zlib
from pathlib import Path

import flatbuffers
import numpy as np
import pytest

import qdeploy
from qdeploy.errors import AmbiguousError, BadFileError, QdeployError, UnsupportedError

_TYPES = {"TFLiteModel": 3, "SP_Tokenizer": 4, "LlmMetadataProto": 5, "HF_Tokenizer_Zlib": 6, "TFLiteWeights": 7}
Parts = list[tuple[int, bytes, str]]


def _litertlm(parts: Parts, page: int = 64) -> bytes:
    """A container with these sections: (type, bytes, model_type)."""
    body, places = b"", []
    for _, data, _ in parts:
        body += bytes(-len(body) % page)
        places.append((len(body), len(body) + len(data)))
        body += data
    start = 1024
    builder = flatbuffers.Builder(256)
    objects = [
        _object(builder, kind, start + begin, start + end, model_type)
        for (kind, _, model_type), (begin, end) in zip(parts, places, strict=True)
    ]
    sections = _table(builder, [_vector(builder, objects)])
    builder.Finish(_table(builder, [None, sections]))
    header = bytes(builder.Output())
    head = (
        b"LITERTLM" + b"".join(n.to_bytes(4, "little") for n in (1, 0, 0, 0)) + (32 + len(header)).to_bytes(8, "little")
    )
    assert len(head + header) <= start
    return (head + header).ljust(start, b"\0") + body


def _object(builder: flatbuffers.Builder, kind: int, begin: int, end: int, model_type: str) -> int:
    items = None
    if model_type:
        key, text = builder.CreateString("model_type"), builder.CreateString(model_type)
        value = _table(builder, [text])
        builder.StartObject(3)
        builder.PrependUOffsetTRelativeSlot(0, key, 0)
        builder.PrependUint8Slot(1, 9, 0)
        builder.PrependUOffsetTRelativeSlot(2, value, 0)
        items = _vector(builder, [builder.EndObject()])
    builder.StartObject(4)
    if items is not None:
        builder.PrependUOffsetTRelativeSlot(0, items, 0)
    builder.PrependUint64Slot(1, begin, 0)
    builder.PrependUint64Slot(2, end, 0)
    builder.PrependUint8Slot(3, kind, 0)
    return int(builder.EndObject())


def _table(builder: flatbuffers.Builder, fields: list[int | None]) -> int:
    builder.StartObject(len(fields))
    for place, offset in enumerate(fields):
        if offset is not None:
            builder.PrependUOffsetTRelativeSlot(place, offset, 0)
    return int(builder.EndObject())


def _vector(builder: flatbuffers.Builder, offsets: list[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())


@pytest.fixture
def network(testdata: Path) -> bytes:
    return (testdata / "checkpoints" / "tflite-fp16-tinycnn" / "model.tflite").read_bytes()


def _tokenizer(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + zlib.compress(text)


def test_the_published_bundle_is_its_network_and_its_tokenizer(testdata: Path, tmp_path: Path):
    bundle, alone = (testdata / "formats" / f"{name}-int4b32-tinyllama2" for name in ("litertlm", "tflite"))
    model, network = qdeploy.load(bundle), qdeploy.load(alone)
    assert list(model.tensors) == list(network.tensors)
    oracle = np.load(bundle / "oracle.npz")
    (name,) = (value.name for value in model.graph.inputs)
    (logits,) = model.run(**{name: oracle["input_ids"]}).values()
    assert np.linalg.norm(logits - oracle["logits"]) < 5e-2 * np.linalg.norm(oracle["logits"])
    report = qdeploy.convert(bundle, tmp_path / "out", to="onnx")
    assert report["lossless"]["tensor bytes"]["proven"] == report["lossless"]["tensor bytes"]["of"]
    assert b'"model"' in (tmp_path / "out" / "tokenizer.json").read_bytes()
    assert "LlmMetadataProto" in model.notes[0] and "tf_lite_prefill_decode" in model.notes[0]


def test_every_section_is_named_and_carried(network: bytes, tmp_path: Path):
    parts = [
        (_TYPES["LlmMetadataProto"], b"\x28\x40", ""),
        (_TYPES["HF_Tokenizer_Zlib"], _tokenizer(b'{"version": "1.0"}'), ""),
        (_TYPES["SP_Tokenizer"], b"pieces", ""),
        (_TYPES["TFLiteModel"], b"another network", "tf_lite_embedder"),
        (_TYPES["TFLiteModel"], network, "tf_lite_prefill_decode"),
        (77, b"unknown", ""),
    ]
    path = tmp_path / "model.litertlm"
    path.write_bytes(_litertlm(parts))
    model = qdeploy.load(path)
    files = {file.path: file.data.read().tobytes() for file in model.files}
    assert files["tokenizer.json"] == b'{"version": "1.0"}' and files["tokenizer.model"] == b"pieces"
    assert files["sections/0.LlmMetadataProto"] == b"\x28\x40" and files["sections/5.type 77"] == b"unknown"
    assert files["sections/3.TFLiteModel"] == b"another network"
    assert files["sections/head"].startswith(b"LITERTLM")
    assert "type 77 (7 bytes)" in model.notes[0] and "tf_lite_embedder" in model.notes[1]


def test_a_task_is_a_zip_around_the_same_network(network: bytes, tmp_path: Path):
    plain, path = tmp_path / "plain.tflite", tmp_path / "model.task"
    plain.write_bytes(network)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("METADATA", b"about it")
        archive.writestr("TF_LITE_PREFILL_DECODE", network)
        archive.writestr("TOKENIZER_MODEL", b"pieces")
    bundled, alone = qdeploy.load(path), qdeploy.load(plain)
    for name, tensor in alone.tensors.items():
        np.testing.assert_array_equal(bundled.tensors[name].decode(), tensor.decode())
    files = {file.path: file.data.read().tobytes() for file in bundled.files}
    assert files["tokenizer.model"] == b"pieces" and files["sections/0.LlmMetadataProto"] == b"about it"
    report = qdeploy.convert(path, tmp_path / "out", to="onnx")
    assert all(check["error"] <= check["limit"] for check in report["checks"])


def test_what_cannot_be_one_network_is_refused(network: bytes, tmp_path: Path):
    one, model = _TYPES["TFLiteModel"], tmp_path / "model.litertlm"
    cases: list[tuple[Parts, type[QdeployError]]] = [
        ([(_TYPES["LlmMetadataProto"], b"x", "")], UnsupportedError),
        ([(one, network, "a"), (one, network, "b")], AmbiguousError),
        ([(one, network, "a"), (_TYPES["TFLiteWeights"], b"weights", "a")], UnsupportedError),
        (
            [(one, network, ""), (_TYPES["HF_Tokenizer_Zlib"], b"\x09" + bytes(7) + zlib.compress(b"x"), "")],
            BadFileError,
        ),
        ([(one, network, ""), (_TYPES["HF_Tokenizer_Zlib"], bytes(9), "")], BadFileError),
    ]
    for parts, error in cases:
        model.write_bytes(_litertlm(parts))
        with pytest.raises(error):
            qdeploy.load(model)
    with zipfile.ZipFile(tmp_path / "packed.task", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("TF_LITE_PREFILL_DECODE", network)
    with pytest.raises(UnsupportedError, match="compressed"):
        qdeploy.load(tmp_path / "packed.task")


def test_a_damaged_header_is_an_error_of_the_family(testdata: Path, tmp_path: Path):
    source = next((testdata / "formats" / "litertlm-int4b32-tinyllama2").glob("*.litertlm"))
    whole, rng = source.read_bytes(), np.random.default_rng(0)
    path = tmp_path / "model.litertlm"
    shutil.copy(source, path)
    for _ in range(40):
        damaged = bytearray(whole)
        for place in rng.integers(8, 560, 2):
            damaged[place] = int(rng.integers(0, 256))
        path.write_bytes(damaged)
        try:
            qdeploy.load(path)
        except QdeployError as error:
            assert error.exit_code == 2
    for size in (8, 20, 40, 200, 20000):
        path.write_bytes(whole[:size])
        with pytest.raises(BadFileError):
            qdeploy.load(path)
