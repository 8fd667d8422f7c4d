"""EXL2, the format of ExLlamaV2: groups of input columns, each of a width from 2 to 8 bits (`quant_method: exl2`).

Older checkpoints have no `quantization_config`; their tensors show what they are. Weight [N, K], G groups:

    q_weight      I32 [W, N]       group after group; a column is a little-endian bit stream over the group's rows
    q_groups      I16 [2 * G]      per group its bits (2, 3, 4, 5, 6 or 8) and the first of its rows of q_weight
    q_scale       I32 [G, N / 8]   4 bits s per output, nibble i of a word is output 8 * word + i
    q_scale_max   F16 [G]
    q_invperm     I32 [K]          where each input column is stored: column k is stored column q_invperm[k]

    W[n, k] = (q - 2 ** (bits - 1)) * (s + 1) ** 2 * q_scale_max / 256, of the group of stored column q_invperm[k]

The last group ends with the columns, and its last word may be filled up with zeros. In a tensor codes stand in the
order of its columns, all in the width of the widest group: the narrower ones stay the integers that they are.
(Layout: exllamav2, conversion/adaptivegptq.py, exllamav2_ext/cuda/q_matrix.cu.)
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import numpy as np

from qdeploy.errors import BadFileError
from qdeploy.formats import NOT_MINE, Sniff
from qdeploy.formats.huggingface.checkpoint import Checkpoint, Claim, assemble, modules_of
from qdeploy.formats.huggingface.known import AUTHOR, SEARCH, STORED, Known, because
from qdeploy.formats.huggingface.mixed import Run, codecs, mixed
from qdeploy.formats.huggingface.parts import Parts, bit_stream, constant
from qdeploy.formats.huggingface.permuted import Permutation
from qdeploy.formats.huggingface.words import Settings
from qdeploy.ir.model import Model
from qdeploy.ir.tensor import PLAIN, Buffer, Codes, Layout, Param, QTensor, Source, Table
from qdeploy.pack import bits as streams
from qdeploy.store.folder import Folder

__all__ = ["NAME", "TITLE", "WRITES", "codecs", "read", "sniff"]

NAME = "exl2"
TITLE = "EXL2 of ExLlamaV2: widths of 2 to 8 bits mixed within a layer, act-order (safetensors)"
WRITES = True
SETTINGS = Known(
    (), {**because(AUTHOR, "version"), **because(SEARCH, "calibration"), **because(STORED, "bits", "head_bits")}
)

_PARTS = (".q_weight", ".q_groups")
_BITS = (2, 3, 4, 5, 6, 8)
_NIBBLES = "0 4 8 12 16 20 24 28"
_LEVELS = (np.arange(1, 17, dtype=np.float32) ** 2 / 256).reshape(1, 16)
"""What the 16 codes of a scale are worth."""


def sniff(folder: Folder) -> Sniff:
    """Declared by the quantization method, or shown by the tensors where none is declared."""
    checkpoint = Checkpoint(folder)
    if checkpoint.method == NAME:
        return Sniff(100, f"quant_method {NAME}")
    shown = not checkpoint.method and any(name.endswith(".q_weight") for name in checkpoint.entries)
    return Sniff(90, "tensors q_weight") if shown else NOT_MINE


def read(folder: Folder) -> Model:
    """Opens the checkpoint; headers, groups and orders of columns are read.

    Raises:
        BadFileError: The tensors of a layer contradict each other.
    """
    checkpoint = Checkpoint(folder)
    SETTINGS.check(Settings(checkpoint.quantization))
    return assemble(checkpoint, NAME, [_Layer(checkpoint, module).claim() for module in modules_of(checkpoint, _PARTS)])


class _Layer(Parts):
    """The stored tensors of one layer."""

    def __init__(self, checkpoint: Checkpoint, module: str) -> None:
        super().__init__(checkpoint, NAME, f"{module}.weight")
        self.module = module
        self.words = self.entry(self._name("q_weight"), "I32", rank=2)
        self.rows = self.words.shape[1]
        self.columns = self.entry(self._name("q_invperm"), "I32", rank=1).shape[0]

    def claim(self) -> Claim:
        """Checks the shapes, and says how the weight is made."""
        self.build()
        return Claim(self.parameter, tuple(self.arrangements), lambda: _Layer(self.checkpoint, self.module).build())

    def build(self) -> QTensor:
        """The weight."""
        runs, name = self._runs, self._name("q_groups")
        count = len(runs)
        self.shaped(self._name("q_scale"), [(count, self.rows // 8)], "I32", because=f"{count} groups of {name}")
        self.shaped(self._name("q_scale_max"), [(count,)], "F16", because=f"{count} groups of {name}")
        width = max(run.bits for run in runs)
        codes = self._codes(width)
        self.keep(name)
        self.arrangements[self._name("q_invperm")] = "places"
        self.checkpoint.origins[self._name("q_invperm")].prove_verbatim(0, self.columns)
        shape = (self.rows, self.columns)
        index = Buffer.of("index", self._group_of.astype("<i4"), "I32")
        stream = bit_stream(shape, codes, width, f"uint{width}", zero=self._zero(index), scale=self._scale(index))
        tensor = self.tensor(shape, "F16", stream)
        source = tensor.source or Source(NAME)
        return replace(tensor, source=replace(source, args={**source.args, "order": self._order.text}))

    def _name(self, part: str) -> str:
        return f"{self.module}.{part}"

    @cached_property
    def _order(self) -> Permutation:
        """Which column each stored column is."""
        name = self._name("q_invperm")
        return Permutation(np.argsort(Permutation.of(self.words_of(name), name).columns))

    def words_of(self, name: str) -> np.ndarray:
        """A small tensor of one axis, as a whole."""
        entry = self.checkpoint.entries[name]
        return np.asarray(entry.slab(0, 0, entry.shape[0]))

    @cached_property
    def _runs(self) -> tuple[Run, ...]:
        """The groups in the order in which they are stored."""
        name = self._name("q_groups")
        entry = self.entry(name, "I16", rank=1)
        pairs = self.words_of(name).view("<u2").astype(np.int64)
        if entry.shape[0] % 2:
            raise BadFileError("groups are no pairs of numbers", where=name, found=entry.shape[0])
        bits, first = pairs[::2].tolist(), pairs[1::2].tolist()
        last = [*first[1:], self.words.shape[0]]
        runs, stored = list[Run](), 0
        for width, start, stop in zip(bits, first, last, strict=True):
            whole = (stop - start) * 32 // width if width in _BITS else 0
            count = whole if len(runs) + 1 < len(bits) else self.columns - stored
            if first[0] or count < 1 or -(-count * width // 32) != stop - start:
                raise BadFileError(
                    "a group contradicts the codes or the order of columns",
                    where=f"{name}: group {len(runs)}",
                    found=f"{width} bits, rows {start} to {stop} of {self.words.shape[0]}",
                    allowed=f"{', '.join(map(str, _BITS))} bits, and {self.columns} columns in all",
                )
            runs.append(Run(width, count))
            stored += count
        return tuple(runs)

    @cached_property
    def _group_of(self) -> np.ndarray:
        """Which group each column belongs to."""
        stored = np.repeat(np.arange(len(self._runs)), [run.count for run in self._runs])
        return np.asarray(stored[self._order.stored])

    # What it means.

    def _codes(self, width: int) -> Buffer:
        runs = " ".join(f"{run.bits}:{run.count}" for run in self._runs)
        name, size = self.words.name, streams.row_bytes(self.columns, width)
        self.arrangements[name] = f"mixed codes {width} {runs}"
        how = mixed("codes", width, self._runs, self._order)
        return self.checkpoint.unpacked("codes", "U8", (self.rows, size), name, how)

    def _zero(self, index: Buffer) -> Param:
        middles = np.array([[1 << (run.bits - 1) for run in self._runs]], np.uint8)
        if len(np.unique(middles)) == 1:
            return constant("zero", int(middles[0, 0]), (self.rows, self.columns))
        values = Codes(middles.shape, (Buffer.of("zero", middles, "U8"),), PLAIN, "uint8")
        return Param(values, (self.rows, 1), index)

    def _scale(self, index: Buffer) -> Param:
        grid = (self.rows, len(self._runs))
        above = self.scale(self._name("q_scale_max"), "scale.scale", (1, grid[1]), (self.rows, 1))
        how = f"across scale {self.rows} 4 {_NIBBLES}"
        data = self.take(self._name("q_scale"), how, "U8", (grid[0], -(-grid[1] // 2)))
        levels = Table(Buffer.of("levels", _LEVELS, "F32"))
        values = Codes(grid, (data,), Layout("bits", width=4), levels, scale=above)
        sizes = {run.count for run in self._runs[:-1]} or {self.columns}
        in_order = np.array_equal(self._order.columns, np.arange(self.columns))
        if in_order and len(sizes) == 1 and self._runs[-1].count <= min(sizes):
            return Param(values, (1, min(sizes)))
        return Param(values, (1, 1), index)
