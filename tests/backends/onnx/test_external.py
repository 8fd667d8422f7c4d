"""The data file: places, sharing, checksums, errors, and slabs instead of tensors."""

from __future__ import annotations

import hashlib
import os
import tracemalloc

import numpy as np
import onnx
import pytest
from onnx_forms import affine_tensor, session, tensor_of

from qdeploy.backends.onnx.external import SLAB, Blob, ExternalData
from qdeploy.backends.onnx.proto import DATA_FILE, GraphBuilder
from qdeploy.backends.onnx.rules import rule
from qdeploy.errors import OutputError, ProofError
from qdeploy.progress import SILENT


def blob(name: str, array: np.ndarray) -> Blob:
    return Blob(name, array.shape, array.itemsize, lambda a, b: array[a:b])


def test_large_ranges_start_at_pages_and_small_ones_at_cache_lines(tmp_path, rng):
    data = ExternalData()
    arrays = [rng.integers(0, 256, n, dtype=np.uint8) for n in (10, 100_000, 3, 65536, 64)]
    places = [data.place(blob(str(i), a)) for i, a in enumerate(arrays)]
    assert [p.offset % (4096 if a.size >= 65536 else 64) for p, a in zip(places, arrays, strict=True)] == [0] * 5
    digests = data.write(tmp_path / "data", SILENT)
    raw = (tmp_path / "data").read_bytes()
    for i, (place, array) in enumerate(zip(places, arrays, strict=True)):
        assert raw[place.offset : place.offset + array.size] == array.tobytes()
        assert digests[str(i)] == hashlib.sha256(array.tobytes()).hexdigest()


def test_the_file_is_the_same_with_several_jobs(tmp_path, rng):
    data = ExternalData()
    for i in range(8):
        data.place(blob(str(i), rng.integers(0, 256, (50, 1000), dtype=np.uint8)))
    assert data.write(tmp_path / "one", SILENT, 1) == data.write(tmp_path / "three", SILENT, 3)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "three").read_bytes()


def test_no_more_than_slabs_are_in_memory(tmp_path):
    rows, width = 2000, 100_000  # 200 MB
    data = ExternalData()
    data.place(Blob("big", (rows, width), 1, lambda a, b: np.zeros((b - a, width), np.uint8)))
    tracemalloc.start()
    try:
        data.write(tmp_path / "data", SILENT)
        assert tracemalloc.get_traced_memory()[1] < 3 * SLAB
    finally:
        tracemalloc.stop()


def test_an_existing_file_and_a_full_disk_are_output_errors(tmp_path, monkeypatch):
    data = ExternalData()
    data.place(blob("a", np.zeros(100, np.uint8)))
    (tmp_path / "there").write_bytes(b"")
    with pytest.raises(OutputError):
        data.write(tmp_path / "there", SILENT)

    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OutputError, match="No space left"):
        data.write(tmp_path / "data", SILENT)


def test_a_source_that_gives_other_rows_is_caught(tmp_path):
    data = ExternalData()
    data.place(Blob("short", (4, 4), 1, lambda a, b: np.zeros((b - a, 3), np.uint8)))
    with pytest.raises(ProofError):
        data.write(tmp_path / "data", SILENT)


@pytest.mark.parametrize("width", [4, 8])
def test_a_tied_embedding_and_head_share_their_bytes(width, tmp_path, rng):
    tensor = affine_tensor(1, 40, 128, width, 32)
    builder = GraphBuilder()
    form = rule("tied", tensor, "exact").form
    ids = builder.input("ids", onnx.TensorProto.INT64, (1, "tokens"))
    form.gather(builder, ids, "rows")
    form.linear(builder, "rows", "y")
    builder.output("y", onnx.TensorProto.FLOAT, (1, "tokens", 40))
    builder.data.write(tmp_path / DATA_FILE, SILENT)
    (tmp_path / "model.onnx").write_bytes(builder.model().SerializeToString())
    per_weight = width / 8 + 4 / 32 + width / 8 / 32
    assert (tmp_path / DATA_FILE).stat().st_size <= 40 * 128 * per_weight + 6 * 64
    arguments = np.array([[3, 39, 0]])
    weight = tensor.decode()
    result = session(tmp_path / "model.onnx").run(None, {"ids": arguments})[0]
    assert np.allclose(result, weight[arguments] @ weight.T, rtol=1e-4, atol=1e-4)


def test_equal_sources_give_equal_files(tmp_path):
    outputs = []
    for name in ("a", "b"):
        builder = GraphBuilder()
        rule("w", affine_tensor(1, 8, 64, 5, 16), "exact").form.linear(builder, "x", "y")
        builder.data.write(tmp_path / name, SILENT)
        outputs.append((builder.model().SerializeToString(deterministic=True), (tmp_path / name).read_bytes()))
    assert outputs[0] == outputs[1]


def test_a_scalar_tensor_is_an_initializer_of_one_element(rng):
    from qdeploy.backends.onnx.rules import float_form
    from qdeploy.ir.tensor import PLAIN, Buffer, Codes, QTensor

    codes = Codes((1,), (Buffer.of("data", np.ones(1, np.float32), "F32"),), PLAIN, "f32")
    scalar = QTensor((), "F32", tensor_of(codes).terms)
    builder = GraphBuilder()
    float_form("s", scalar).value(builder)
    assert [n.op_type for n in builder.graph.node] == ["Squeeze"]
