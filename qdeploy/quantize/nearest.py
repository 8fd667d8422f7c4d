"""Round to nearest in groups along the last axis: w ~ scale * (code - 2 ** (bits - 1)), scale in float16.

The scale of a group is its entry of greatest magnitude (the positive one of two), signed, over -2 ** (bits - 1): that
entry falls on the lowest code, and all levels are used. With clip search the scale is multiplied by the factor of
`CLIP_FACTORS` that leaves the least squared error in its group.

`nearest` is the one rounding of this project. For rows as they are written it is one addition: x / scale + 1.5 * 2**23
has the rounded integer in the low bits of its float32 mantissa (round half to even), so codes are cut out of the bits
of the sum, without a conversion.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.ir.tensor import PLAIN, Buffer, Codes, ComputedRows, Layout, Param, QTensor, Rows, Term
from qdeploy.ir.views import Floats, view
from qdeploy.options import option
from qdeploy.pack import bits as bitstream
from qdeploy.quantize.contract import Grid, Needs, Statistics, Weight

Float32 = npt.NDArray[np.float32]
F = TypeVar("F", np.float32, np.float64)
CLIP_FACTORS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65)
_MAGIC = 12582912  # 1.5 * 2**23
_BLOCK = 1 << 17  # weights per step: their float32 copies stay in a second-level cache
_SAMPLED_ROWS = 32


def nearest(scaled: npt.NDArray[F], low: int, high: int) -> npt.NDArray[F]:
    """The one rounding: numbers in units of a step as whole numbers, to nearest, halves to even, limited.

    Args:
        scaled: Numbers over their scale, float32 or float64.
        low: The least code.
        high: The greatest code.

    Returns:
        Codes in the dtype of `scaled`.
    """
    return np.clip(np.rint(scaled), low, high)


@dataclass(frozen=True)
class Rtn:
    """The method and its settings.

    Attributes:
        clip: "search" or "none".
    """

    TYPES = ("int4", "int2", "int3", "int5", "int6", "int7", "int8")

    clip: str = option(
        "search", "search: the scale of least squared error.", choices=("search", "none"), label="clipping"
    )

    @property
    def needs(self) -> Needs:
        """Nothing: it looks at weights alone."""
        return Needs()

    def quantize(self, weight: Weight, statistics: Sequence[Statistics], grid: Grid) -> QTensor:
        """Describes the quantized tensor; nothing is computed before its buffers are read.

        The signal-to-noise ratio is that of sampled rows.

        Args:
            weight: What to quantize.
            statistics: Not used.
            grid: 2 to 8 bits, and the group.
        """
        work = _Work(self.clip, weight, grid)
        return grouped_tensor(weight.tensor, grid, ComputedRows(work.codes), ComputedRows(work.scales))


def grouped_tensor(tensor: QTensor, grid: Grid, codes: Rows, scales: Rows, zeros: Rows | None = None) -> QTensor:
    """A matrix of unsigned codes with their middle for a zero point, or one per group, and a float16 scale per group.

    Args:
        tensor: What it stands for, [N, K].
        grid: Bits and group.
        codes: uint8 [N, ceil(K * bits / 8)], packed.
        scales: float16 [N, groups].
        zeros: uint8 [N, groups]; None: all are the middle.
    """
    (count, width), bits = tensor.shape, grid.bits
    group = columns_of(grid, width)
    packed = Buffer("codes", "U8", (count, -(-width * bits // 8)), codes)
    scale = Buffer("scale", "F16", (count, -(-width // group)), scales)
    zero = Buffer.of("zero", np.full((1, 1), 1 << (bits - 1), np.uint8), "U8")
    zero = zero if zeros is None else Buffer("zero", "U8", scale.shape, zeros)
    return QTensor(
        tensor.shape,
        tensor.dtype,
        (
            Term(
                Codes(
                    tensor.shape,
                    (packed,),
                    Layout("bits", bits),
                    f"uint{bits}",
                    zero=Param(
                        Codes(zero.shape, (zero,), PLAIN, "uint8"), tensor.shape if zeros is None else (1, group)
                    ),
                    scale=Param(Codes(scale.shape, (scale,), PLAIN, "f16"), (1, group)),
                )
            ),
        ),
    )


def columns_of(grid: Grid, width: int) -> int:
    """Columns that share a scale in a row of `width`."""
    return width if grid.group == -1 else min(grid.group, width)


class _Work:
    """Quantizes one tensor by row ranges; scales are kept from whichever buffer is read first until the other is."""

    def __init__(self, clip: str, weight: Weight, grid: Grid) -> None:
        seen = view(weight.tensor)
        if not isinstance(seen, Floats):
            raise UnsupportedError("only floats that are not quantized are rounded", where=weight.name)
        self._source, self._clip, self._name, self._losses = seen.codes.data[0], clip, weight.name, weight.losses
        self._width, self._bits = weight.tensor.shape[1], grid.bits
        self._group = columns_of(grid, self._width)
        self._kept: dict[int, npt.NDArray[np.float16]] = {}

    def scales(self, start: int, stop: int) -> npt.NDArray[np.float16]:
        """Scales of rows [start, stop): float16 [rows, groups]."""
        blocks = self._blocks(start, stop)
        return np.concatenate([self._block_scales(low, self._source.read(low, high)) for low, high in blocks])

    def codes(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Packed codes of rows [start, stop): uint8 [rows, ceil(K * bits / 8)]."""
        group, bits = self._group, self._bits
        out = np.empty((stop - start, -(-self._width * bits // 8)), np.uint8)
        for low, high in self._blocks(start, stop):
            raw = self._source.read(low, high)
            scale = self._block_scales(low, raw)
            out[low - start : high - start] = _encode(raw, scale, group, bits)
            if self._name not in self._losses:
                self._losses[self._name] = _snr(raw, scale, group, bits)
        return out

    def _blocks(self, start: int, stop: int) -> list[tuple[int, int]]:
        step = max(1, _BLOCK // self._width)
        return [(low, min(low + step, stop)) for low in range(start, stop, step)]

    def _block_scales(self, row: int, raw: npt.NDArray[Any]) -> npt.NDArray[np.float16]:
        kept = self._kept.pop(row, None)
        if kept is not None and len(kept) == len(raw):
            return kept
        scales = self._kept[row] = group_scales(raw, self._group, self._bits, self._clip, self._name)
        return scales


def _widen(raw: npt.NDArray[Any]) -> Float32:
    return raw.astype(np.float32)


def _grouped(raw: npt.NDArray[Any], group: int) -> npt.NDArray[Any]:
    """[rows, K] -> [rows, groups, group]; a last group that is shorter is filled with zeros."""
    rows, width = raw.shape
    if width % group:
        padded = np.zeros((rows, -(-width // group) * group), raw.dtype)
        padded[:, :width] = raw
        raw = padded
    return raw.reshape(rows, -1, group)


def _extreme(grouped: npt.NDArray[Any]) -> Float32:
    """The entry of greatest magnitude of each group, with its sign: float32 [rows, groups].

    A 16-bit float is compared as an integer: as a signed one, the greatest is the greatest positive number; as an
    unsigned one, the negative number of greatest magnitude. That is less work than comparing floats.
    """
    if grouped.dtype.itemsize == 2:
        dtype = grouped.dtype
        high = _widen(grouped.view(np.int16).max(-1).view(dtype))
        low = _widen(grouped.view(np.uint16).max(-1).view(dtype))
    else:
        high, low = _widen(grouped.max(-1)), _widen(grouped.min(-1))
    return np.where(np.abs(high) >= np.abs(low), high, low)


def group_scales(raw: npt.NDArray[Any], group: int, bits: int, clip: str, name: str) -> npt.NDArray[np.float16]:
    """The scale of every group of rows: float16 [rows, groups].

    Args:
        raw: Weights as they are stored, [rows, K] in float32, float16 or bfloat16.
        group: Columns that share a scale.
        bits: Of a code.
        clip: "search" or "none".
        name: Of the tensor, for errors.

    Raises:
        BadFileError: A weight is infinite or not a number.
    """
    grouped = _grouped(raw, group)
    full = _extreme(grouped) * np.float32(-1.0 / (1 << (bits - 1)))
    if not np.isfinite(full).all():
        raise BadFileError("a weight is infinite or not a number", where=name, todo="Leave it out with skip=REGEX.")
    limit = np.float32(np.finfo(np.float16).max)
    scale = np.clip(full, -limit, limit).astype(np.float16)
    return scale if clip == "none" else _search(_widen(grouped), scale, bits)


def _search(x: Float32, scale: npt.NDArray[np.float16], bits: int) -> npt.NDArray[np.float16]:
    """The scale of least squared error among the clip factors: x float32 [rows, groups, group]."""
    best, least = scale, np.full(scale.shape, np.inf, np.float32)
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    for factor in CLIP_FACTORS:
        tried = (scale.astype(np.float32) * np.float32(factor)).astype(np.float16)
        wide = tried.astype(np.float32)[..., None]
        level = nearest(x * _inverse(wide), low, high)
        level *= wide
        level -= x
        error = np.einsum("rgk,rgk->rg", level, level)
        better = error < least
        best, least = np.where(better, tried, best), np.where(better, error, least)
    return best


def _inverse(scale: Float32) -> Float32:
    """1 / scale, and 0 where the scale is 0."""
    return np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)


def _encode(raw: npt.NDArray[Any], scale: npt.NDArray[np.float16], group: int, bits: int) -> npt.NDArray[np.uint8]:
    """Packed codes of rows: uint8 [rows, ceil(K * bits / 8)]."""
    rows, width = raw.shape
    x = _widen(_grouped(raw, group))  # [rows, groups, group]
    x *= _inverse(scale.astype(np.float32))[..., None]
    zero = 1 << (bits - 1)
    x += np.float32(_MAGIC + zero)
    flat = x.view(np.uint32).reshape(-1)
    first = int(np.float32(_MAGIC).view(np.uint32))
    if float(x.min()) < _MAGIC:
        np.maximum(flat, _constant(flat.size, first), out=flat)
    np.minimum(flat, _constant(flat.size, first + 2 * zero - 1), out=flat)
    word = flat.reshape(rows, -1)
    if bits == 4 and width % group == 0 and width % 2 == 0:
        return _pack_nibbles(word)
    codes = word[:, :width].astype(np.uint8) & np.uint8(2 * zero - 1)
    return bitstream.pack(codes, bits)


@lru_cache(maxsize=4)
def _constant(size: int, value: int) -> npt.NDArray[np.uint32]:
    """One number, many times: numpy's minimum of two arrays is three times as fast as that of an array and a number."""
    filled: npt.NDArray[np.uint32] = np.full(size, value, np.uint32)
    return filled


def _pack_nibbles(word: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint8]:
    """Two codes per byte, the first in the low nibble; a code is the low byte of its word 0x4B4000xx."""
    pair = word.view(np.uint64)  # the second code is at bit 32
    both = pair >> np.uint64(28)  # its nibble comes to bit 4, and 0x4 of the first word's top nibble to bit 0
    both ^= pair
    packed = both.astype(np.uint8)
    packed ^= 0x04
    return packed


def _snr(raw: npt.NDArray[Any], scale: npt.NDArray[np.float16], group: int, bits: int) -> float:
    """Signal-to-noise ratio in dB over the first rows."""
    sample, scale = raw[:_SAMPLED_ROWS], scale[:_SAMPLED_ROWS]
    codes = bitstream.unpack(_encode(sample, scale, group, bits), sample.shape[1], bits)
    exact = _widen(sample)
    wide = np.repeat(scale.astype(np.float32), group, axis=1)[:, : sample.shape[1]]
    noise = float(np.square((codes.astype(np.float32) - (1 << (bits - 1))) * wide - exact).sum())
    return 10 * math.log10(float(np.square(exact).sum()) / noise) if noise else math.inf
