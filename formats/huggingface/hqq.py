"""HQQ (Badri and Shaji, "Half-Quadratic Quantization", 2023) as transformers 4 saves it: 1 to 8 bits, both axes.

`quant_method: hqq`. Per linear layer, weight [N, K], groups of g numbers, some small tensors describe the large ones:

    W_q          U8 [R, columns], or I32 for 3 bits: the matrix M in strips that share words (`strips.py`)
    scale, zero  F32, F16 or BF16, one per group
    shape, nbits, axis, group_size, packing ("4bit_u8"), ...    one number or text each

    axis 1   M = W.reshape(-1, g), parameters [N * K / g, 1]
    axis 0   M = W.reshape(g, -1), parameters [1, N * K / g]

    packing     codes per word, first strip first, at bit
    8bit_u8     1   0
    4bit_u8     2   4, 0
    3bit_32    10   27, 24, ..., 0
    2bit_u8     4   6, 4, 2, 0
    1bit_u8     8   7, 6, ..., 0

W = ((M - zero) * scale).reshape(N, K); zero is a float. (Layout: hqq 0.2.8, core/bitpack.py and core/quantize.py.)
"""

from __future__ import annotations

import math

import numpy as np

from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.formats import NOT_MINE, Sniff
from qdeploy.formats.huggingface.checkpoint import Checkpoint, Claim, assemble
from qdeploy.formats.huggingface.known import STORED, Known, because
from qdeploy.formats.huggingface.parts import FLOATS, Parts, bit_stream
from qdeploy.formats.huggingface.rearranged import codecs
from qdeploy.formats.huggingface.words import Settings
from qdeploy.ir.model import Model
from qdeploy.ir.tensor import QTensor, Shape
from qdeploy.pack import bits as streams
from qdeploy.store.folder import Folder
from qdeploy.store.storage import storage_dtype

__all__ = ["NAME", "TITLE", "WRITES", "codecs", "read", "sniff"]

NAME = "hqq"
TITLE = "HQQ, 1, 2, 3, 4 and 8 bits, groups along either axis (safetensors)"
WRITES = True
SETTINGS = Known(
    (), {**because(STORED, "quant_config"), **because("stored tensors show which layers are quantized", "skip_modules")}
)

_PACKINGS = {
    "8bit_u8": ("U8", 8, (0,)),
    "4bit_u8": ("U8", 4, (4, 0)),
    "3bit_32": ("I32", 3, tuple(range(27, -1, -3))),
    "2bit_u8": ("U8", 2, (6, 4, 2, 0)),
    "1bit_u8": ("U8", 1, tuple(range(7, -1, -1))),
}
_LARGE = ("W_q", "scale", "zero")
_REFUSED = ("quant_scale", "quant_zero", "view_as_float")
_NOT_TAKEN = ("bias",)


def sniff(folder: Folder) -> Sniff:
    """Declared by the quantization method."""
    return Sniff(100, f"quant_method {NAME}") if Checkpoint(folder).method == NAME else NOT_MINE


def read(folder: Folder) -> Model:
    """Opens the checkpoint; headers and the small tensors that describe layers are read.

    Raises:
        UnsupportedError: Scales that are quantized themselves, or another packing, by its name.
        BadFileError: A description contradicts the tensors.
    """
    checkpoint = Checkpoint(folder)
    SETTINGS.check(Settings(checkpoint.quantization))
    claims = [_Layer(checkpoint, n.removesuffix(".W_q")).claim() for n in checkpoint.entries if n.endswith(".W_q")]
    return assemble(checkpoint, NAME, claims)


class _Layer(Parts):
    """The stored tensors of one layer."""

    def __init__(self, checkpoint: Checkpoint, module: str) -> None:
        super().__init__(checkpoint, NAME, f"{module}.weight")
        self.module = module

    def claim(self) -> Claim:
        """Checks what the small tensors say against the large ones."""
        self._measure()
        return Claim(self.parameter, (*map(self._name, _LARGE), *self._described()), self._fresh)

    def _fresh(self) -> QTensor:
        return _Layer(self.checkpoint, self.module).build()

    def build(self) -> QTensor:
        """The weight, groups as rows or columns of its grid."""
        shape, grid, tile = self._measure()
        _, bits, shifts = _PACKINGS[self._text("packing")]
        size = streams.row_bytes(grid[1], bits)
        how = f"strips codes {grid[0]} {bits} {' '.join(map(str, shifts))}"
        codes = self.take(self._name("W_q"), how, "U8", (grid[0], size))
        params = (grid[0], 1) if tile[0] == 1 else (1, grid[1])
        scale = self.scale(self._name("scale"), "scale", params, tile)
        zero = self.scale(self._name("zero"), "zero", params, tile)
        for name in self._described():
            self.keep(name)
        dtype = self.checkpoint.entries[self._name("scale")].dtype
        return self.tensor(shape, dtype, bit_stream(grid, codes, bits, f"uint{bits}", zero=zero, scale=scale))

    def _name(self, part: str) -> str:
        return f"{self.module}.{part}"

    def _described(self) -> list[str]:
        """Names of the small tensors."""
        prefix, taken = f"{self.module}.", (*_LARGE, *_NOT_TAKEN)
        names = (name for name in self.checkpoint.entries if name.startswith(prefix))
        return [name for name in names if "." not in name[len(prefix) :] and name[len(prefix) :] not in taken]

    def _measure(self) -> tuple[Shape, Shape, Shape]:
        """Shape of the weight, its grid, and the extent of a group in it; after everything was checked."""
        for part in _REFUSED:
            if self.has(self._name(part)) and self._number(part):
                raise UnsupportedError(
                    "a variant of HQQ that is not read", where=self._name(part), found="1", allowed="0"
                )
        packing = self._text("packing")
        if packing not in _PACKINGS:
            raise UnsupportedError(
                "this packing of HQQ is not read",
                where=self._name("packing"),
                found=packing,
                allowed=", ".join(_PACKINGS),
            )
        shape = self._shape()
        grid, tile = self._grid(shape)
        dtype, bits, shifts = _PACKINGS[packing]
        if self._number("nbits") > bits:
            raise BadFileError("more bits than the packing holds", where=self._name("nbits"), found=packing)
        self.shaped(self._name("W_q"), [(-(-grid[0] // len(shifts)), grid[1])], dtype, because=packing)
        params = (grid[0], 1) if tile[0] == 1 else (1, grid[1])
        for part in ("scale", "zero"):
            self.shaped(self._name(part), [params], *FLOATS, because=f"axis and group_size of {self.module}")
        return shape, grid, tile

    def _grid(self, shape: Shape) -> tuple[Shape, Shape]:
        axis, count = self._number("axis"), math.prod(shape)
        whole = shape[1] if axis == 1 else shape[0]
        group = self._number("group_size") if self.has(self._name("group_size")) else whole
        if axis not in (0, 1) or group < 1 or count % group:
            raise BadFileError(
                "a group size is impossible",
                where=self._name("group_size"),
                found=f"{group} along axis {axis}",
                allowed=f"a divisor of {count}",
            )
        return ((count // group, group), (1, group)) if axis else ((group, count // group), (group, 1))

    def _shape(self) -> Shape:
        entry = self.shaped(self._name("shape"), [(2,)], "I64", "I32")
        shape = tuple(entry.slab(0, 0, 2).tolist())
        if min(shape) < 1 or math.prod(shape) > 1 << 48:
            raise BadFileError("an impossible shape", where=entry.name, found=shape)
        return shape

    def _number(self, part: str) -> int:
        entry = self.shaped(self._name(part), [(), (1,)], "I32", "I64", "U8", "BOOL", "F32")
        return int(entry.slab(0, 0, 1).view(storage_dtype(entry.dtype)).astype(np.int64)[0])

    def _text(self, part: str) -> str:
        entry = self.entry(self._name(part), "U8", rank=1)
        return entry.slab(0, 0, entry.shape[0]).tobytes().decode("latin-1")
