"""Pieces: the errors that are predicted are those of decoding a prefix, and sizes add up."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qdeploy.elastic.pieces import pieces_of, weigh
from qdeploy.errors import BadArgumentError
from qdeploy.ir.decode import decode_tensor
from qdeploy.ir.tensor import PLAIN, Buffer, Codes, Layout, Param, QTensor, Table, Term, plain
from qdeploy.pack import bits as bitstream
from qdeploy.quantize.bitstack import BitStack
from qdeploy.quantize.contract import Grid, Weight
from qdeploy.quantize.nearest import Rtn
from qdeploy.quantize.sign_planes import sign_planes


def floats(rows: int, columns: int, seed: int = 0) -> QTensor:
    array = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
    return plain(Buffer.of("data", array, "F32"), "f32")


def affine(codes: np.ndarray, bits: int, scale: np.ndarray, table: str, divide: bool = False) -> QTensor:
    data = Buffer.of("codes", bitstream.pack(codes.astype(np.uint8), bits), "U8")
    scales = Buffer.of("scale", scale.astype(np.float32), "F32")
    param = Param(Codes(scale.shape, (scales,), PLAIN, "f32"), (1, codes.shape[1] // scale.shape[1]), divide=divide)
    return QTensor(codes.shape, "F32", (Term(Codes(codes.shape, (data,), Layout("bits", bits), table, scale=param)),))


def chain(pieces) -> None:
    """Each piece begins where the one before ends, from everything missing to nothing missing."""
    assert pieces[0].error_before == 1
    assert pieces[-1].error_after == 0
    for one, two in itertools.pairwise(pieces):
        assert one.error_after == two.error_before
        assert (one.term, one.plane) < (two.term, two.plane)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(2, 8),
    st.sampled_from(["uint", "int"]),
    st.integers(1, 60),
    st.sampled_from([8, 16, 48]),
    st.booleans(),
    st.integers(0, 99),
)
def test_errors_of_planes_are_those_of_codes_read_as_the_middle(bits, kind, rows, columns, divide, seed) -> None:
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 1 << bits, (rows, columns))
    scale = rng.random((rows, columns // 8)) + 0.1
    tensor = affine(codes, bits, scale, f"{kind}{bits}", divide)
    pieces = pieces_of("w", tensor)
    assert len(pieces) == bits
    chain(pieces)
    assert sum(p.nbytes for p in pieces) == rows * (columns // 8) * bits + 4 * scale.size
    full = tensor.decode().astype(np.float64)
    factor = np.repeat(1 / scale if divide else scale, 8, axis=1)
    turned = codes ^ (1 << (bits - 1)) if kind == "int" else codes
    for p in range(1, bits):
        step = 1 << (bits - p)
        middle = turned // step * step + (step - 1) / 2
        error = np.square((middle - turned) * factor).sum() / np.square(full).sum()
        assert pieces[p - 1].error_after == pytest.approx(error, rel=1e-4)


def test_rows_are_sampled_and_always_the_same() -> None:
    tensor = Rtn().quantize(Weight("w", floats(4000, 64)), (), Grid(4, 32))
    reads = []

    class Counting:
        def __init__(self, rows) -> None:
            self.rows = rows

        def read(self, start, stop):
            reads.append(stop - start)
            return self.rows.read(start, stop)

    codes = tensor.terms[0].values
    data = Buffer("codes", "U8", codes.data[0].shape, Counting(codes.data[0].rows))
    watched = QTensor(
        tensor.shape, "F32", (Term(Codes(codes.shape, (data,), codes.layout, codes.table, codes.zero, codes.scale)),)
    )
    assert pieces_of("w", watched) == pieces_of("w", watched)
    assert sum(reads) < 600
    whole = np.square(tensor.decode() - floats(4000, 64).decode()).sum()  # 4 planes against the float weight
    assert pieces_of("w", tensor)[0].error_after > whole / np.square(tensor.decode()).sum()


def test_blocks_have_the_gain_of_their_products() -> None:
    tensor = BitStack(3, 4).quantize(Weight("w", floats(96, 120)), (), Grid())
    pieces = pieces_of("w", tensor)
    chain(pieces)
    assert [p.term for p in pieces] == [0, 1, 2]
    assert sum(p.nbytes for p in pieces) == tensor.nbytes
    full = tensor.decode()
    for i in (0, 1):
        measured = np.square(full - decode_tensor(tensor, rung=i)).sum() / np.square(full).sum()
        assert pieces[i].error_after == pytest.approx(measured, rel=0.1)


def test_residual_sign_planes_have_the_gain_of_their_scales() -> None:
    tensor = sign_planes("w", BitStack(3, 4).quantize(Weight("w", floats(96, 256)), (), Grid()), {}, group=64)
    pieces = pieces_of("w", tensor)
    chain(pieces)
    full = tensor.decode()
    measured = np.square(full - decode_tensor(tensor, rung=0)).sum() / np.square(full).sum()
    assert pieces[0].error_after == pytest.approx(measured, rel=0.1)


def test_everything_else_is_one_piece() -> None:
    book = Buffer.of("table", np.arange(16, dtype=np.float32)[None], "F32")
    codes = Buffer.of("codes", np.zeros((8, 4), np.uint8), "U8")
    table = QTensor((8, 8), "F32", (Term(Codes((8, 8), (codes,), Layout("bits", 4), Table(book))),))
    for tensor in (floats(5, 5), table, QTensor((), "F32", floats(1, 1).terms)):
        (piece,) = pieces_of("w", tensor)
        assert (piece.nbytes, piece.error_before, piece.error_after) == (tensor.nbytes, 1, 0)


def test_a_tensor_of_zeros_gains_nothing() -> None:
    tensor = affine(np.zeros((4, 16), int), 4, np.ones((4, 2)), "uint4")
    assert [p.gain for p in pieces_of("w", tensor)] == [0, 0, 0, 0]


def test_sizes_can_be_given_and_must_be_as_many() -> None:
    tensor = Rtn().quantize(Weight("w", floats(32, 64)), (), Grid(4, 32))
    assert [p.nbytes for p in pieces_of("w", tensor, nbytes=[9, 8, 7, 6])] == [9, 8, 7, 6]
    with pytest.raises(BadArgumentError):
        pieces_of("w", tensor, nbytes=[1, 2])


def test_sensitivity_multiplies_errors() -> None:
    tensor = Rtn().quantize(Weight("w", floats(32, 64)), (), Grid(4, 32))
    assert list(pieces_of("w", tensor, sensitivity=3.0)) == weigh(pieces_of("w", tensor), {"w": 3.0, "v": 9.0})
