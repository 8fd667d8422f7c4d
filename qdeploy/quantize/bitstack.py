"""BitStack (arXiv 2410.23918): w ~ sum over blocks of sign * (u @ vt), every prefix of which is a legal weight.

Block after block, with R the residual, at first the weight with its columns multiplied by their activation scales s
(section 3.1; 1 without a calibration text):

    sign = +1 where R >= 0, else -1
    u, v = the best product of rank k for |R|, half of the singular values in each
    R   <- R - sign * (u @ v)

Three things differ from the published code. u and v / s are rounded to float16 before R is taken on, so that later
blocks repair what rounding did. |R| is factorised by randomized block Krylov iteration (Musco and Musco, arXiv
1504.05477) instead of a full SVD, in a small fraction of the time and to the same residual norm within a fraction of a
percent. And s is divided out of v, column by column, instead of being fused into the layer before: (u @ v) / s =
u @ (v / s) has the same rank, so nothing of the graph is touched, and layers that share their input or have none to
fuse into are scaled, too.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from qdeploy.errors import BadFileError
from qdeploy.ir.tensor import PLAIN, Array, Buffer, Codes, Float32, Layout, LowRank, Param, QTensor, Rows, Rung, Term
from qdeploy.measure import decibels, energy
from qdeploy.options import option
from qdeploy.quantize.contract import Grid, Needs, Statistics, Weight
from qdeploy.store.spill import Spill

Float16 = npt.NDArray[np.float16]
_ROWS = 256  # of the residual per step, so that temporaries stay small
_SEED = 20241023
ITERATIONS = 6
"""Of the Krylov space. Four are within 0.3 % of the full SVD's residual after eight blocks, six within 0.1 %."""


@dataclass(frozen=True)
class BitStack:
    """The method and its settings.

    Attributes:
        blocks: How many sign matrices.
        rank: Of the product that scales each.
        calibrate: Text that activation scales are measured on; empty: all scales are 1.
        spill: Where finished decompositions are kept.
    """

    TYPES = ()

    blocks: int = option(8, "How many sign matrices.", least=1, most=32)
    rank: int = option(16, "Of the product that scales each.", least=1, most=256)
    calibrate: str = option("", "A text that activation scales are measured on.", metavar="FILE")
    spill: Spill = field(default_factory=Spill, compare=False, repr=False)

    @property
    def needs(self) -> Needs:
        """How large the columns of the inputs are."""
        return Needs(frozenset({"norms"}), self.calibrate, without="all activation scales are 1")

    def quantize(self, weight: Weight, statistics: Sequence[Statistics], grid: Grid) -> QTensor:
        """Describes the decomposed tensor; it is decomposed when one of its buffers is first read.

        Args:
            weight: What to decompose.
            statistics: Norms of the columns of its inputs; empty: all are the same.
            grid: Has no meaning for sums.
        """
        tensor = weight.tensor
        (rows, columns), rank = tensor.shape, min(self.rank, *tensor.shape)
        work = _Work(self, weight, statistics[0].norms if statistics else None)
        terms = []
        for i in range(self.blocks):
            signs = Buffer(f"signs.{i}", "U8", (rows, -(-columns // 8)), _Part(work, 3 * i))
            u = Buffer(f"u.{i}", "F16", (rows, rank), _Part(work, 3 * i + 1))
            vt = Buffer(f"vt.{i}", "F16", (rank, columns), _Part(work, 3 * i + 2))
            product = LowRank(*(Codes(b.shape, (b,), PLAIN, "f16") for b in (u, vt)))
            terms.append(Term(Codes(tensor.shape, (signs,), Layout("bits", 1), "sign", scale=Param(product, (1, 1)))))
        rungs = tuple(Rung((1,) * i + (0,) * (self.blocks - i)) for i in range(1, self.blocks + 1))
        return QTensor(tensor.shape, tensor.dtype, tuple(terms), rungs)


@dataclass(frozen=True)
class Block:
    """One block: signs uint8 [N, ceil(K / 8)], low bit first; u float16 [N, k]; vt float16 [k, K]."""

    signs: npt.NDArray[np.uint8]
    u: Float16
    vt: Float16


def peel(left: Float32, rank: int, scale: Float32 | None = None, seed: int = 0) -> Block:
    """Takes one block off a residual, in place.

    Args:
        left: float32 [N, K], columns multiplied by `scale`; afterwards what the block leaves.
        rank: At most min(N, K).
        scale: float32 [K]; None: 1.
        seed: Of the random start; the same one gives the same block.
    """
    u, v = lowrank(np.abs(left), rank, np.random.default_rng((_SEED, seed)))
    narrow_u, narrow_vt = _narrow(u, v if scale is None else v / scale)
    wide_u, wide_v = narrow_u.astype(np.float32), narrow_vt.astype(np.float32)
    if scale is not None:
        wide_v *= scale
    signs = np.empty((len(left), -(-left.shape[1] // 8)), np.uint8)
    for start in range(0, len(left), _ROWS):
        part = left[start : start + _ROWS]
        positive = part >= 0
        signs[start : start + _ROWS] = np.packbits(positive, axis=1, bitorder="little")
        product = wide_u[start : start + _ROWS] @ wide_v
        part -= np.where(positive, product, -product)
    return Block(signs, narrow_u, narrow_vt)


def lowrank(matrix: Float32, rank: int, random: np.random.Generator) -> tuple[Float32, Float32]:
    """A product of low rank close to a matrix: the leading singular triples of its projection on a block Krylov space.

    Args:
        matrix: float32 [N, K].
        rank: k, at most min(N, K).
        random: Where the start comes from.

    Returns:
        u float32 [N, k] and v float32 [k, K], each with the square roots of the singular values.
    """
    if (ITERATIONS + 1) * rank >= min(matrix.shape):  # then a full SVD is no more work, and exact
        left, values, right = np.linalg.svd(matrix, full_matrices=False)
    else:
        basis = _krylov(matrix, rank, random)
        small, values, right = np.linalg.svd(basis.T @ matrix, full_matrices=False)  # of [(iterations + 1) * k, K]
        left = basis @ small[:, :rank]
    root = np.sqrt(values[:rank])
    return left[:, :rank] * root, root[:, None] * right[:rank]


def _krylov(matrix: Float32, rank: int, random: np.random.Generator) -> Float32:
    """An orthonormal basis of [A X, (A A^T) A X, (A A^T)^2 A X, ...] for a random X: [N, (iterations + 1) * rank]."""
    basis = np.empty((len(matrix), (ITERATIONS + 1) * rank), np.float32)
    basis[:, :rank] = _basis(matrix @ random.standard_normal((matrix.shape[1], rank), np.float32))
    for end in range(rank, basis.shape[1], rank):
        before = basis[:, :end]
        step = matrix @ (matrix.T @ before[:, -rank:])
        step -= before @ (before.T @ step)
        basis[:, end : end + rank] = _basis(step)
    return basis


def _basis(span: Float32) -> Float32:
    """An orthonormal basis of columns."""
    basis: Float32 = np.linalg.qr(span)[0]
    return basis


def _narrow(u: Float32, v: Float32) -> tuple[Float16, Float16]:
    """Both factors in float16, after powers of two have been moved between them so that neither falls out of range."""
    peaks = np.abs(u).max(axis=0), np.abs(v).max(axis=1)
    shift = np.rint(np.log2(np.maximum(peaks[0], 1e-30) / np.maximum(peaks[1], 1e-30)) / 2).astype(np.int32)
    limit = np.float32(np.finfo(np.float16).max)
    balanced = np.ldexp(u, -shift), np.ldexp(v, shift[:, None])
    first, second = (np.clip(factor, -limit, limit).astype(np.float16) for factor in balanced)
    return first, second


@dataclass(frozen=True)
class _Part:
    """One of the buffers that are made together."""

    work: _Work
    number: int

    def read(self, start: int, stop: int) -> Array:
        """Returns rows [start, stop)."""
        return self.work.made()[self.number].read(start, stop)


class _Work:
    """Decomposes one tensor, once."""

    def __init__(self, settings: BitStack, weight: Weight, scale: Float32 | None) -> None:
        self._settings, self._scale = settings, scale
        self._name, self._tensor, self._losses = weight.name, weight.tensor, weight.losses
        self._parts: list[Rows] = []
        self._lock = threading.Lock()

    def made(self) -> list[Rows]:
        """The rows of every buffer: signs, u and vt of each block."""
        with self._lock:
            if not self._parts:
                self._parts = self._make()
            return self._parts

    def _make(self) -> list[Rows]:
        left = self._tensor.decode()
        if not np.isfinite(left).all():
            raise BadFileError(
                "a weight is infinite or not a number", where=self._name, todo="Leave it out with skip=REGEX."
            )
        scale = self._scale
        signal = energy(left)
        if scale is not None:
            left *= scale
        parts: list[Rows] = []
        for i in range(self._settings.blocks):
            block = peel(left, min(self._settings.rank, *left.shape), scale, i)
            parts += [self._settings.spill.keep(array) for array in (block.signs, block.u, block.vt)]
        if scale is not None:
            left /= scale
        noise = energy(left)
        self._losses[self._name] = decibels(signal, noise)
        return parts
