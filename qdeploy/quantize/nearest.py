"""Round to nearest in groups along the last axis: w ~ scale * (code - 2 ** (bits - 1)), scale in float16.

The scale of a group is its entry of greatest magnitude (the positive one of two), signed, over -2 ** (bits - 1): that
entry falls on the lowest code, and all levels are used. With clip search the scale is multiplied by the factor of
`CLIP_FACTORS` that leaves the least squared error in its group.

Rounding is one addition: x / scale + 1.5 * 2**23 has the rounded integer in the low bits of its float32 mantissa (round
half to even), so codes are cut out of the bits of the sum, without a conversion.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from qdeploy.errors import BadArgumentError, BadFileError
from qdeploy.ir.tensor import PLAIN, Buffer, Codes, Layout, Param, QTensor, Term
from qdeploy.pack import bits as bitstream

Float32 = npt.NDArray[np.float32]
CLIP_FACTORS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65)
_MAGIC = 12582912  # 1.5 * 2**23
_BLOCK = 1 << 17  # weights per step: their float32 copies stay in a second-level cache
_SAMPLED_ROWS = 32


@dataclass(frozen=True)
class Rtn:
    """The method and its settings.

    Attributes:
        bits: 2 to 8.
        group: Elements that share a scale; -1: a whole row.
        clip: "search" or "none".
        skip: Regular expression of tensor names that stay as they are.
        only: Regular expression of the tensor names that are quantized; empty: all.
    """

    bits: int = 4
    group: int = 128
    clip: str = "search"
    skip: str = ""
    only: str = ""

    @classmethod
    def from_options(cls, given: Mapping[str, str]) -> Rtn:
        """Settings from `{"type": "int4", "group": "128", ...}`; BadArgumentError for what is unknown."""
        unknown = set(given) - {"type", "group", "clip", "skip", "only"}
        if unknown:
            raise BadArgumentError(
                "no such option of rtn",
                found=", ".join(sorted(unknown)),
                allowed="int2..int8, group=N, clip=search|none, skip=REGEX, only=REGEX",
            )
        kind, group, clip = given.get("type", "int4"), given.get("group", "128"), given.get("clip", "search")
        types = [f"int{b}" for b in range(2, 9)]
        if kind not in types:
            raise BadArgumentError("no such number type for rtn", found=kind, allowed=", ".join(types))
        if not group.lstrip("-").isdigit() or not (int(group) == -1 or 1 <= int(group) <= 1 << 20):
            raise BadArgumentError("not a group size", found=group, allowed="1..1048576, or -1 for a whole row")
        if clip not in ("search", "none"):
            raise BadArgumentError("no such clipping", found=clip, allowed="search, none")
        return cls(int(kind[3:]), int(group), clip, name_pattern(given, "skip"), name_pattern(given, "only"))

    def takes(self, name: str) -> bool:
        """Whether a tensor is to be quantized."""
        return not (self.skip and re.search(self.skip, name)) and bool(re.search(self.only, name))

    def quantize(self, name: str, tensor: QTensor, losses: dict[str, float]) -> QTensor:
        """Describes the quantized tensor; nothing is computed before its buffers are read.

        Args:
            name: Under which its loss is noted.
            tensor: A plain float matrix [N, K].
            losses: Where the signal-to-noise ratio (dB, sampled rows) is put when the codes are first read.
        """
        count, width = tensor.shape
        group = width if self.group == -1 else min(self.group, width)
        work = _Work(self, name, tensor, group, losses)
        codes = Buffer("codes", "U8", (count, -(-width * self.bits // 8)), _Part(work.codes))
        scales = Buffer("scale", "F16", (count, -(-width // group)), _Part(work.scales))
        middle = Buffer.of("zero", np.full((1, 1), 1 << (self.bits - 1), np.uint8), "U8")
        return QTensor(
            tensor.shape,
            tensor.dtype,
            (
                Term(
                    Codes(
                        tensor.shape,
                        (codes,),
                        Layout("bits", self.bits),
                        f"uint{self.bits}",
                        zero=Param(Codes((1, 1), (middle,), PLAIN, "uint8"), tensor.shape),
                        scale=Param(Codes(scales.shape, (scales,), PLAIN, "f16"), (1, group)),
                    )
                ),
            ),
        )


def name_pattern(given: Mapping[str, str], option: str) -> str:
    """A regular expression of tensor names among the options, "" where it is not; BadArgumentError if it is none."""
    text = given.get(option, "")
    try:
        re.compile(text)
    except re.error as error:
        raise BadArgumentError(
            f"{option} does not parse: {error}", found=text, allowed="a regular expression"
        ) from error
    return text


class _Part:
    """Rows of a buffer that are computed."""

    def __init__(self, compute: Any) -> None:
        self._compute = compute

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Returns rows [start, stop)."""
        rows: npt.NDArray[Any] = self._compute(start, stop)
        return rows


class _Work:
    """Quantizes one tensor by row ranges; scales are kept from whichever buffer is read first until the other is."""

    def __init__(self, settings: Rtn, name: str, tensor: QTensor, group: int, losses: dict[str, float]) -> None:
        codes = tensor.terms[0].values
        assert isinstance(codes, Codes)  # plain_float said so
        self._source, self._settings, self._name, self._losses = codes.data[0], settings, name, losses
        self._group, self._width = group, tensor.shape[1]
        self._kept: dict[int, npt.NDArray[np.float16]] = {}

    def scales(self, start: int, stop: int) -> npt.NDArray[np.float16]:
        """Scales of rows [start, stop): float16 [rows, groups]."""
        blocks = self._blocks(start, stop)
        return np.concatenate([self._block_scales(low, self._source.read(low, high)) for low, high in blocks])

    def codes(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Packed codes of rows [start, stop): uint8 [rows, ceil(K * bits / 8)]."""
        group, bits = self._group, self._settings.bits
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
        made = self._kept[row] = _group_scales(raw, self._group, self._settings, self._name)
        return made


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


def _group_scales(raw: npt.NDArray[Any], group: int, settings: Rtn, name: str) -> npt.NDArray[np.float16]:
    grouped = _grouped(raw, group)
    full = _extreme(grouped) * np.float32(-1.0 / (1 << (settings.bits - 1)))
    if not np.isfinite(full).all():
        raise BadFileError("a weight is infinite or not a number", where=name, todo="Leave it out with skip=REGEX.")
    limit = np.float32(np.finfo(np.float16).max)
    scale = np.clip(full, -limit, limit).astype(np.float16)
    return scale if settings.clip == "none" else _search(_widen(grouped), scale, settings.bits)


def _search(x: Float32, scale: npt.NDArray[np.float16], bits: int) -> npt.NDArray[np.float16]:
    """The scale of least squared error among the clip factors: x float32 [rows, groups, group]."""
    best, least = scale, np.full(scale.shape, np.inf, np.float32)
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    for factor in CLIP_FACTORS:
        tried = (scale.astype(np.float32) * np.float32(factor)).astype(np.float16)
        wide = tried.astype(np.float32)[..., None]
        level = np.clip(np.rint(x * _inverse(wide)), low, high)
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
    made: npt.NDArray[np.uint32] = np.full(size, value, np.uint32)
    return made


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
