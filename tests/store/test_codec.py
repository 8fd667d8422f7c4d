"""Recodings: forwards by any range of rows, backwards slab by slab, and the proof between them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qdeploy.ir.tensor import Buffer
from qdeploy.store import codec
from qdeploy.store.codec import Codec, UnpackedRows, VerbatimRows, restore, verbatim
from qdeploy.store.origin import Origin


class Stored:
    """A source tensor in memory that counts what is read of it."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.read = array, 0

    def slab(self, axis: int, start: int, stop: int) -> np.ndarray:
        self.read += stop - start
        return np.ascontiguousarray(self.array[start:stop] if axis == 0 else self.array[:, start:stop])


def split_words(rows: int) -> Codec:
    """I32 [4, units] <-> two buffers: eight nibbles of a word are eight rows; low and high words apart."""

    def unpack(raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        codes = (raw.view(np.uint32)[:, :, None] >> np.arange(0, 32, 4, dtype=np.uint32) & 15).astype(np.uint8)
        whole = codes.reshape(4, -1).T
        return np.ascontiguousarray(whole[:, :2]), np.ascontiguousarray(whole[:, 2:])

    def pack(low: np.ndarray, high: np.ndarray) -> np.ndarray:
        codes = np.concatenate([low, high], axis=1).T.astype(np.uint32)
        codes = np.pad(codes, ((0, 0), (0, -codes.shape[1] % 8))).reshape(4, -1, 8)
        return (codes << np.arange(0, 32, 4, dtype=np.uint32)).sum(2, dtype=np.uint32).view(np.int32)

    return Codec(("low", "high"), unpack, pack, axis=1, group=8, rows=rows)


def made(rows: int) -> tuple[np.ndarray, Stored, Origin, Codec, list[Buffer]]:
    rng = np.random.default_rng(rows)
    codes = rng.integers(0, 16, (-(-rows // 8) * 8, 4)).astype(np.uint8)
    codes[rows:] = 0
    how = split_words(rows)
    stored = Stored(how.pack(codes[:, :2], codes[:, 2:]))
    origin = Origin("f", "t", "I32", stored.array.shape, axis=1)
    buffers = [Buffer(k, "U8", (rows, 2), UnpackedRows(how, k, stored, origin)) for k in how.keys]
    return codes[:rows], stored, origin, how, buffers


@settings(deadline=None, max_examples=60)
@given(rows=st.integers(1, 90), data=st.data())
def test_any_range_of_rows(rows: int, data: st.DataObject) -> None:
    codes, _, origin, _, (low, high) = made(rows)
    start = data.draw(st.integers(0, rows))
    stop = data.draw(st.integers(start, rows))
    assert np.array_equal(low.read(start, stop), codes[start:stop, :2])
    assert np.array_equal(high.read(start, stop), codes[start:stop, 2:])
    assert np.array_equal(low.read(), codes[:, :2])
    assert origin.proven
    assert not len(origin.residue())


@pytest.mark.parametrize("slab_bytes", [1, 40, 1 << 20])
@pytest.mark.parametrize("rows", [1, 8, 61, 64])
def test_restored_slab_by_slab(monkeypatch: pytest.MonkeyPatch, rows: int, slab_bytes: int) -> None:
    monkeypatch.setattr(codec, "SLAB_BYTES", slab_bytes)
    _, stored, _, how, buffers = made(rows)
    slabs = list(restore(how, buffers, stored.array.shape))
    assert [start for start, _ in slabs] == np.cumsum([0] + [s.shape[1] for _, s in slabs])[:-1].tolist()
    assert np.array_equal(np.concatenate([s for _, s in slabs], axis=1), stored.array)
    assert slab_bytes > 1 or all(s.shape[1] == 1 for _, s in slabs)


def test_padding_that_is_not_kept_becomes_residue() -> None:
    codes, stored, origin, _, (low, _) = made(61)
    stored.array[2, -1] |= np.int32(0x7 << 28)
    assert np.array_equal(low.read(), codes[:, :2])
    assert origin.residue().tolist() == [((2 * 8 + 7) * 4 + 3, 0x70)]


def test_a_proven_range_is_not_packed_again() -> None:
    _, stored, origin, how, _ = made(64)
    packed: list[int] = []
    counting = Codec(how.keys, how.unpack, lambda *rows: packed.append(len(rows[0])) or how.pack(*rows), 1, 8)
    rows = UnpackedRows(counting, "low", stored, origin)
    rows.read(0, 16)
    rows.read(3, 9)
    assert packed == [16]


def test_a_tensor_that_follows_from_its_arguments() -> None:
    ramp = np.arange(5, dtype=np.int32)
    how = Codec((), lambda raw: (), lambda: ramp)
    assert [(start, slab.tolist()) for start, slab in restore(how, [], (5,))] == [(0, ramp.tolist())]


@pytest.mark.parametrize("shape", [(), (0, 4), (7,), (7, 3)])
def test_verbatim_of_every_shape(shape: tuple[int, ...]) -> None:
    array = np.arange(int(np.prod(shape)), dtype=np.float32).reshape(shape or (1,))
    origin = Origin("f", "t", "F32", shape)
    buffer = Buffer("data", "F32", shape or (1,), VerbatimRows(Stored(array), origin))
    assert np.array_equal(buffer.read(), array)
    assert origin.proven
    slabs = [slab for _, slab in restore(verbatim("data"), [buffer], shape)]
    assert b"".join(s.tobytes() for s in slabs) == array.tobytes()
