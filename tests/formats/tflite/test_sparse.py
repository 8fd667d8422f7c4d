"""Sparse tensors are read as the dense ones that they stand for, and come back byte for byte."""

from typing import Any

import numpy as np
import pytest

from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.formats.stored import ByteRange
from qdeploy.formats.tflite.sparse import Axis, SparseStored, Sparsity
from qdeploy.ir.dtype import dtype
from qdeploy.store.folder import Folder
from qdeploy.store.origin import Origin

RANDOM = np.random.default_rng(2)


def compressed(dense: np.ndarray, order: tuple[int, ...], blocks: tuple[int, ...], sizes: tuple[int, ...]) -> Any:
    """(sparsity, elements): the last axis but those of blocks compressed, all others dense."""
    split: list[int] = []
    for axis, extent in enumerate(dense.shape):
        split += [extent // sizes[blocks.index(axis)], sizes[blocks.index(axis)]] if axis in blocks else [extent]
    cut = dense.reshape(split)
    rank = dense.ndim
    places = [axis + sum(1 for b in blocks if b < axis) for axis in range(rank)]
    places += [places[b] + 1 for b in blocks]
    walked = cut.transpose([places[axis] for axis in order])
    level = rank - 1  # the axis that is compressed
    outer, extent = int(np.prod(walked.shape[:level])), walked.shape[level]
    rows = walked.reshape(outer, extent, -1)
    kept = [np.flatnonzero(row.any(axis=1)) for row in rows]
    segments, indices = np.cumsum([0, *(len(k) for k in kept)]), np.concatenate(kept)
    elements = np.concatenate([row[k].reshape(-1) for row, k in zip(rows, kept, strict=True)])
    axes = [Axis(n) for n in walked.shape]
    axes[level] = Axis(0, segments, indices)
    return Sparsity(order, blocks, tuple(axes)), elements


WALKS = [
    ((4, 6), (0, 1), (), ()),
    ((4, 6), (1, 0), (), ()),
    ((4, 1, 1, 8), (0, 1, 2, 3), (), ()),
    ((8, 12), (0, 1, 2), (1,), (4,)),
    ((8, 12), (0, 1, 2, 3), (0, 1), (2, 4)),
    ((8, 12), (1, 0, 3, 2), (0, 1), (4, 3)),
]


@pytest.mark.parametrize(("shape", "order", "blocks", "sizes"), WALKS)
def test_every_element_lies_where_it_did(shape: Any, order: Any, blocks: Any, sizes: Any):
    dense = np.where(RANDOM.random(shape) < 0.3, RANDOM.standard_normal(shape), 0).astype(np.float32)
    sparsity, elements = compressed(dense, order, blocks, sizes)
    again = np.zeros(dense.size, np.float32)
    again[sparsity.places(shape, "w")] = elements
    np.testing.assert_array_equal(again.reshape(shape), dense)


def test_the_elements_are_proven_to_come_back(tmp_path: Any):
    dense = np.where(RANDOM.random((6, 8)) < 0.3, RANDOM.standard_normal((6, 8)), 0).astype(np.float16)
    sparsity, elements = compressed(dense, (0, 1), (), ())
    path = tmp_path / "elements"
    path.write_bytes(elements.tobytes())
    origin = Origin(path.name, "w", "F16", elements.shape)
    source, places = ByteRange(Folder(path).rows(path.name), 0, "F16"), sparsity.places(dense.shape, "w")
    stored = SparseStored("w", dtype("f16"), dense.shape, source, origin, places=places)
    np.testing.assert_array_equal(stored.tensor("tflite").decode(), dense.astype(np.float32))
    assert origin.proven


@pytest.mark.parametrize(
    ("axes", "order", "error"),
    [
        ((Axis(4), Axis(6)), (0, 0), BadFileError),
        ((Axis(4),), (0, 1), BadFileError),
        ((Axis(5), Axis(6)), (0, 1), BadFileError),
        ((Axis(4), Axis(0, np.array([0, 1, 1, 1, 2]), np.array([1, 6]))), (0, 1), BadFileError),
        ((Axis(4), Axis(0, np.array([0, 2, 2, 2, 2]), np.array([1, 1]))), (0, 1), BadFileError),
        ((Axis(4), Axis(0, np.array([0, 2, 1, 2, 2]), np.array([1, 2]))), (0, 1), BadFileError),
        ((Axis(4), Axis(0, np.array([0, 1, 2]), np.array([1, 2]))), (0, 1), BadFileError),
        ((Axis(4), Axis(0, np.array([0, 0, 0, 0, 1]), np.array([-1]))), (0, 1), BadFileError),
        ((Axis(1 << 40), Axis(6)), (0, 1), BadFileError),
    ],
)
def test_a_walk_that_leaves_the_tensor_is_refused(axes: Any, order: Any, error: Any):
    with pytest.raises(error):
        Sparsity(order, (), axes).places((4, 6), "w")


def test_a_large_tensor_of_almost_nothing_is_refused():
    with pytest.raises(UnsupportedError, match="almost nothing"):
        Sparsity((0,), (), (Axis(0, np.array([0, 1]), np.array([1])),)).places((1 << 40,), "w")
