"""A parameter of a Hugging Face checkpoint that is made of a few stored tensors, each arranged by a line of text.

`Parts` checks what is stored (every error names the tensor), collects the arrangements (`rearranged.py`) and gives
buffers; the reader of a format says which tensors there are and what they mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from qdeploy.errors import BadFileError
from qdeploy.formats.huggingface.checkpoint import Checkpoint
from qdeploy.formats.huggingface.rearranged import codec
from qdeploy.formats.huggingface.strips import StripRows, strips
from qdeploy.ir.dtype import plain_name
from qdeploy.ir.tensor import PLAIN, Buffer, Codes, Layout, Param, QTensor, Shape, Source, SourceTensor, Term
from qdeploy.store.codec import Codec
from qdeploy.store.safetensors import TensorEntry

FLOATS = ("F16", "BF16", "F32")
"""Storage types that scales come in."""
_KEPT_LIMIT = 1 << 16


@dataclass
class Parts:
    """The stored tensors of one parameter.

    Attributes:
        checkpoint: Where they are.
        format: In whose name they are read.
        parameter: The parameter's name in the float model.
        arrangements: By the stored tensor's name, in order.
    """

    checkpoint: Checkpoint
    format: str
    parameter: str
    arrangements: dict[str, str] = field(default_factory=dict)

    def has(self, name: str) -> bool:
        """Whether there is such a stored tensor."""
        return name in self.checkpoint.entries

    def entry(self, name: str, *dtypes: str, rank: int = -1) -> TensorEntry:
        """A stored tensor; errors name what is missing, of another type, or of another number of axes."""
        return self.checkpoint.entry(name, *dtypes, rank=rank)

    def shaped(
        self, name: str, shapes: Sequence[Shape], *dtypes: str, because: str = "the other tensors"
    ) -> TensorEntry:
        """A stored tensor that must have one of some shapes, which follow from `because`."""
        entry = self.entry(name, *dtypes)
        if entry.shape not in shapes:
            raise BadFileError(
                "a tensor contradicts the configuration or the tensors beside it",
                where=name,
                found=list(entry.shape),
                allowed=" or ".join(str(list(shape)) for shape in shapes) + f" by {because}",
                todo="Configuration and tensors are not of one checkpoint; fetch it again.",
            )
        return entry

    def take(self, name: str, arrangement: str, dtype: str, shape: Shape) -> Buffer:
        """A buffer of the storage type and shape that the arrangement makes of a stored tensor."""
        self.arrangements[name] = arrangement
        kind, key, *words = arrangement.split()
        part = self._stored(name)
        if kind == "same":
            return self.checkpoint.verbatim(key, name)
        if kind == "strips":
            how = strips(part, key, int(words[0]), int(words[1]), words[2:])
            return Buffer(
                key, dtype, shape, StripRows(how, self.checkpoint.entries[name], self.checkpoint.origins[name])
            )
        return self.checkpoint.unpacked(key, dtype, shape, name, codec(part, arrangement))

    def codec_of(self, name: str, arrangement: str) -> Codec:
        """The codec of a stored tensor by its arrangement."""
        return codec(self._stored(name), arrangement)

    def several(self, name: str, arrangement: str, dtype: str, shape: Shape) -> tuple[Buffer, ...]:
        """The buffers that the arrangement makes of a stored tensor, all of one storage type and shape."""
        self.arrangements[name] = arrangement
        how = codec(self._stored(name), arrangement)
        return tuple(self.checkpoint.unpacked(key, dtype, shape, name, how) for key in how.keys)

    def matrix(self, name: str, key: str, shape: Shape) -> Buffer:
        """A buffer with the numbers of a stored tensor in another shape [rows, columns]."""
        entry = self.checkpoint.entries[name]
        if entry.shape == shape:
            return self.take(name, f"same {key}", entry.dtype, shape)
        return self.take(name, f"rows {key} {shape[1]}", entry.dtype, shape)

    def keep(self, name: str) -> bytes:
        """Takes up a small tensor that only says what the others are; returns its bytes."""
        entry = self.checkpoint.entries[name]
        if entry.end - entry.begin > _KEPT_LIMIT:
            raise BadFileError("a description is too long", where=name, found=f"{entry.end - entry.begin} bytes")
        extent = entry.shape[0] if entry.shape else 1
        data = entry.slab(0, 0, extent).tobytes()
        self.checkpoint.origins[name].prove_verbatim(0, extent)
        self.arrangements[name] = f"kept {data.hex()}".strip()
        return data

    def scale(self, name: str, key: str, shape: Shape, tile: Shape, table: str = "", divide: bool = False) -> Param:
        """One number per tile, stored as it is or in another shape; `table` where the storage type does not say it."""
        return Param(self.numbers(name, key, shape, table), tile, divide=divide)

    def numbers(self, name: str, key: str, shape: Shape, table: str = "", scale: Param | None = None) -> Codes:
        """The numbers of a stored tensor as a grid [rows, columns], with a scale of their own where there is one."""
        dtype = self.checkpoint.entries[name].dtype
        return Codes(shape, (self.matrix(name, key, shape),), PLAIN, table or plain_name(dtype), scale=scale)

    def tensor(self, shape: Shape, dtype: str, codes: Codes) -> QTensor:
        """The parameter, once all of its tensors are taken up."""
        return self.summed(shape, dtype, (Term(codes),))

    def summed(
        self, shape: Shape, dtype: str, terms: tuple[Term, ...], scale: Param | None = None, offset: Param | None = None
    ) -> QTensor:
        """The parameter as a sum of terms, with a scale and an offset after it."""
        stored = tuple(self._stored(name) for name in self.arrangements)
        args: dict[str, int | str] = {str(i): text for i, text in enumerate(self.arrangements.values())}
        source = Source(self.format, "arranged", args, stored)
        return QTensor(shape, dtype, terms, scale=scale, offset=offset, source=source)

    def _stored(self, name: str) -> SourceTensor:
        entry = self.checkpoint.entries[name]
        return SourceTensor(entry.file.name, name, entry.dtype, entry.shape)


def bit_stream(shape: Shape, buffer: Buffer, bits: int, table: str, **params: Param | None) -> Codes:
    """Codes of few bits in a little-endian stream along the last axis."""
    return Codes(shape, (buffer,), Layout("bits", width=bits), table, **params)


def constant(key: str, value: float, tile: Shape, integer: bool = True) -> Param:
    """One number for the whole of a grid whose extents are `tile`."""
    ones = (1,) * len(tile)
    if integer:
        return Param(Codes(ones, (Buffer.of(key, np.full(ones, value, np.uint8), "U8"),), PLAIN, "uint8"), tile)
    return Param(Codes(ones, (Buffer.of(key, np.full(ones, value, np.float32), "F32"),), PLAIN, "f32"), tile)


def tiles(shape: Shape, tile: Shape) -> Shape:
    """How many tiles cover a grid, per axis."""
    return tuple(math.ceil(n / t) for n, t in zip(shape, tile, strict=True))
