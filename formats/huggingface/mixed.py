"""Codes of several widths in one stored tensor, in an order of columns of their own: arrangements of EXL2.

    mixed KEY WIDTH BITS:COUNT ...   I32 [W, N]: run after run of COUNT stored columns, whose words are little-endian
                                     bit streams of codes of BITS bits down the columns <-> U8 [N, ceil(K * WIDTH / 8)],
                                     codes in the order of the columns
    places                           I32 [K]: where each column is stored

The order stands in the source's argument `order`, as `permuted.py` has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qdeploy.formats.huggingface.permuted import Permutation
from qdeploy.formats.huggingface.rearranged import codec
from qdeploy.ir.tensor import Source, SourceTensor
from qdeploy.pack import bits as streams
from qdeploy.store.codec import Codec

Words = npt.NDArray[Any]


@dataclass(frozen=True)
class Run:
    """Neighbouring stored columns of one width.

    Attributes:
        bits: Of a code.
        count: Of columns.
    """

    bits: int
    count: int

    @property
    def words(self) -> int:
        """Rows of words that hold the columns."""
        return -(-self.count * self.bits // 32)


def codecs(source: Source) -> tuple[Codec, ...]:
    """How each stored tensor of a source is written back."""
    order = Permutation.from_text(str(source.args["order"]))
    texts = (str(source.args[str(i)]) for i in range(len(source.tensors)))
    return tuple(_codec(part, text, order) for part, text in zip(source.tensors, texts, strict=True))


def _codec(part: SourceTensor, arrangement: str, order: Permutation) -> Codec:
    kind, *words = arrangement.split()
    if kind == "places":
        whole = order.stored.astype("<i4")
        return Codec((), lambda raw: (), lambda: whole)
    if kind != "mixed":
        return codec(part, arrangement)
    runs = [Run(*map(int, text.split(":"))) for text in words[2:]]
    return mixed(words[0], int(words[1]), runs, order)


def mixed(key: str, width: int, runs: Sequence[Run], order: Permutation) -> Codec:
    """The codec of runs of several widths."""
    rows = np.cumsum([0, *(run.words for run in runs)])
    ends = np.cumsum([0, *(run.count for run in runs)])

    def unpack(raw: Words) -> tuple[Words]:
        codes = np.empty((raw.shape[1], ends[-1]), np.uint8)
        for i, run in enumerate(runs):
            octets = np.ascontiguousarray(raw[rows[i] : rows[i + 1]].T).view(np.uint8)
            size = streams.row_bytes(run.count, run.bits)
            codes[:, ends[i] : ends[i + 1]] = streams.unpack(octets[:, :size], run.count, run.bits)
        return (streams.pack(codes[:, order.stored], width),)

    def pack(stream: Words) -> Words:
        codes = streams.unpack(stream, int(ends[-1]), width)[:, order.columns]
        raw = np.zeros((rows[-1], len(stream)), "<i4")
        for i, run in enumerate(runs):
            packed = streams.pack(np.ascontiguousarray(codes[:, ends[i] : ends[i + 1]]), run.bits)
            octets = np.zeros((len(stream), 4 * run.words), np.uint8)
            octets[:, : packed.shape[1]] = packed
            raw[rows[i] : rows[i + 1]] = octets.view("<i4").T
        return raw

    return Codec((key,), unpack, pack, axis=1)
