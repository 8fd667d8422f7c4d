"""Weights of 4 bits with a scale per block: read exactly, or refused."""

from pathlib import Path

import flatbuffers
import numpy as np
import pytest
import tflite

from qdeploy.errors import BadFileError
from qdeploy.formats.tflite import reader
from qdeploy.store.folder import Folder


def test_scales_of_blocks_give_what_the_library_gives(testdata: Path):
    folder = testdata / "formats/tflite-int4b32-tinyllama2"
    model, oracle = reader.read(Folder(folder / "model.tflite")), np.load(folder / "oracle.npz")
    keys = [key for key in oracle.files if key.startswith("w:")]
    for key in keys:
        np.testing.assert_array_equal(model.tensors[key[2:]].decode(), oracle[key])
    assert len(keys) == 3
    for tensor in model.tensors.values():
        tensor.decode()
    assert all(origin.proven for origin in model.origins)


def written(tmp_path: Path, blocks: tuple[int, ...], grid: tuple[int, int]) -> Path:
    """w int4 [4, 8] with scales float16 `grid`; `blocks` are the numbers of its BlockwiseQuantization."""
    b = flatbuffers.Builder(256)

    def buffer(data: bytes) -> int:
        content = b.CreateByteVector(data) if data else 0
        tflite.BufferStart(b)
        if data:
            tflite.BufferAddData(b, content)
        return int(tflite.BufferEnd(b))

    def vector(offsets: list[int]) -> int:
        b.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            b.PrependUOffsetTRelative(offset)
        return int(b.EndVector())

    def tensor(name: str, shape: tuple[int, ...], kind: int, place: int, quantization: int = 0) -> int:
        parts = b.CreateString(name), b.CreateNumpyVector(np.array(shape, np.int32))
        tflite.TensorStart(b)
        tflite.TensorAddName(b, parts[0])
        tflite.TensorAddShape(b, parts[1])
        tflite.TensorAddType(b, kind)
        tflite.TensorAddBuffer(b, place)
        if quantization:
            tflite.TensorAddQuantization(b, quantization)
        return int(tflite.TensorEnd(b))

    b.StartObject(len(blocks))
    for slot, number in enumerate(blocks):
        b.PrependInt32Slot(slot, number, 0)
    details = b.EndObject()
    tflite.QuantizationParametersStart(b)
    tflite.QuantizationParametersAddDetailsType(b, 2)
    tflite.QuantizationParametersAddDetails(b, details)
    quantization = tflite.QuantizationParametersEnd(b)
    scales = np.arange(1, np.prod(grid) + 1).astype(np.float16)
    stored = (b"", bytes([0x21] * 16), scales.tobytes(), bytes([1] * scales.size))
    buffers = vector([buffer(data) for data in stored])
    tensors = [
        tensor("w", (4, 8), tflite.TensorType.INT4, 1, quantization),
        tensor("w_scales", grid, tflite.TensorType.FLOAT16, 2),
        tensor("w_zeros", grid, tflite.TensorType.INT8, 3),
    ]
    listed = vector(tensors)
    tflite.SubGraphStart(b)
    tflite.SubGraphAddTensors(b, listed)
    graphs = vector([tflite.SubGraphEnd(b)])
    tflite.ModelStart(b)
    tflite.ModelAddVersion(b, 3)
    tflite.ModelAddSubgraphs(b, graphs)
    tflite.ModelAddBuffers(b, buffers)
    b.Finish(tflite.ModelEnd(b), b"TFL3")
    path = tmp_path / "w.tflite"
    path.write_bytes(bytes(b.Output()))
    return path


CODES = np.array([1, 2] * 16, np.float32).reshape(4, 8)


def test_blocks_lie_along_the_axis_that_the_scales_have_fewer_of(tmp_path: Path):
    rows = reader.read(Folder(written(tmp_path, (1, -1, 4), (4, 2)))).tensors["w"].decode()
    np.testing.assert_array_equal(rows, CODES * np.repeat(np.arange(1, 9).reshape(4, 2), 4, 1))
    columns = reader.read(Folder(written(tmp_path, (1, -1, 2), (2, 8)))).tensors["w"].decode()
    np.testing.assert_array_equal(columns, CODES * np.repeat(np.arange(1, 17).reshape(2, 8), 2, 0))


def test_zero_points_of_blocks_are_subtracted(tmp_path: Path):
    model = reader.read(Folder(written(tmp_path, (1, 2, 4), (4, 2))))
    np.testing.assert_array_equal(
        model.tensors["w"].decode(), (CODES - 1) * np.repeat(np.arange(1, 9).reshape(4, 2), 4, 1)
    )
    assert set(model.tensors) == {"w"}


@pytest.mark.parametrize(
    ("blocks", "grid"),
    [((1, -1, 4), (4, 3)), ((9, -1, 4), (4, 2)), ((1, -1, 0), (4, 2)), ((1, 7, 4), (4, 2)), ((-1, -1, 4), (4, 2))],
    ids=["another grid", "no such tensor", "block of nothing", "no such zeros", "no scales"],
)
def test_scales_of_blocks_that_cannot_be_are_refused(tmp_path: Path, blocks: tuple[int, ...], grid: tuple[int, int]):
    with pytest.raises(BadFileError):
        reader.read(Folder(written(tmp_path, blocks, grid)))
