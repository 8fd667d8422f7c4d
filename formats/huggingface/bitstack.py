"""BitStack (arXiv 2410.23918), as its authors publish checkpoints: sums of sign matrices times products of low rank.

A Hugging Face folder without a quantization_config. Per linear layer P, weight [M, N], and block i = 0, 1, ...:

    P.qweight_i  U8   [ceil(M * N / 8)]   the signs, row after row; eight per byte, the first one in the high bit;
                                          bit 1 is +1, bit 0 is -1; only the end is padded, with zeros
    P.u_i        F16  [M, k]              (also BF16, F32)
    P.vt_i       F16  [k, N]
    P.bias            a plain tensor

    W = sum over i of sign_i * (u_i @ vt_i)

Any number of leading blocks is a legal, coarser weight. The number of blocks and their rank k are stored nowhere: the
names are counted. The scales by which columns were multiplied before the decomposition (section 3.1) have been divided
out of the norms and layers before, so nothing of them is stored; where they were not (`--no_fuse_scale`), `scales` of a
wrapped activation are stored, and the checkpoint is refused.

Two files beside the weights are carried as they are and read where a budget is planned (qdeploy/elastic/published.py):

    compression_config.json     the order in which the authors add blocks
    reduced_ppl_average.json    perplexities with one layer a block ahead of all others
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from qdeploy.contracts.clues import Clues
from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.formats import NOT_MINE, Sniff
from qdeploy.formats.huggingface.checkpoint import Checkpoint, Claim, assemble
from qdeploy.formats.huggingface.tiles import REVERSED
from qdeploy.ir.dtype import plain_name
from qdeploy.ir.model import Model
from qdeploy.ir.tensor import PLAIN, Codes, Layout, LowRank, Param, QTensor, Rung, Shape, Source, SourceTensor, Term
from qdeploy.store.codec import Array, Codec, verbatim
from qdeploy.store.folder import Folder
from qdeploy.store.safetensors import TensorEntry

NAME = "bitstack"
TITLE = "BitStack, residual sign blocks of low rank, any number of blocks (safetensors)"
WRITES = True

FACTORS = ("F16", "BF16", "F32")
_PARTS = ("qweight", "u", "vt")
_STORED = re.compile(r"(.+)\.(qweight|u|vt)_([0-9]+)", re.DOTALL)
_MARK = b'.qweight_0"'


def sniff(folder: Folder) -> Sniff:
    """Declared by the names of its tensors, since no setting says so."""
    clues = Clues(folder)
    named = not clues.method and _MARK in clues.tensor_names
    return Sniff(100, "tensors named qweight_0") if named else NOT_MINE


def read(folder: Folder) -> Model:
    """Opens the checkpoint; only headers are read yet.

    Raises:
        BadFileError: A block is missing, or the shapes of a layer do not fit.
        UnsupportedError: Blocks without signs (`--no_avd`), or scales that were not fused (`--no_fuse_scale`).
    """
    checkpoint = Checkpoint(folder)
    _refuse_unfused(checkpoint)
    claims = [_claim(_Layer(checkpoint, name, count)) for name, count in _layers(checkpoint).items()]
    return assemble(checkpoint, NAME, claims)


def codecs(source: Source) -> tuple[Codec, ...]:
    """How the stored tensors of a layer are written back: qweight_i, u_i, vt_i of every block."""
    rows, columns, blocks = (int(source.args[k]) for k in ("rows", "columns", "blocks"))
    ordered: list[Codec] = []
    for i in range(blocks):
        ordered += [_signs(f"signs.{i}", rows, columns), verbatim(f"u.{i}"), verbatim(f"vt.{i}")]
    return tuple(ordered)


@dataclass(frozen=True)
class _Layer:
    """A decomposed layer: its stored tensors by part and block, checked."""

    checkpoint: Checkpoint
    name: str
    blocks: int

    def part(self, part: str, block: int, dtypes: tuple[str, ...], rank: int) -> TensorEntry:
        entry = self.checkpoint.entries[f"{self.name}.{part}_{block}"]
        if entry.dtype not in dtypes:
            raise UnsupportedError(
                "a tensor of this type is not read here", where=entry.name, found=entry.dtype, allowed=", ".join(dtypes)
            )
        if len(entry.shape) != rank or 0 in entry.shape:
            raise BadFileError(
                "a tensor has an impossible shape",
                where=entry.name,
                found=list(entry.shape),
                allowed=f"{rank} {'axis' if rank == 1 else 'axes'}",
            )
        return entry

    def shape(self) -> Shape:
        """[M, N], after the shapes of all blocks have been held against each other."""
        rows, columns = (self.part(p, 0, FACTORS, 2).shape[axis] for axis, p in enumerate(("u", "vt")))
        for i in range(self.blocks):
            u, vt = self.part("u", i, FACTORS, 2), self.part("vt", i, FACTORS, 2)
            signs = self.part("qweight", i, ("U8",), 1)
            _expect(u, (rows, vt.shape[0]))
            _expect(vt, (vt.shape[0], columns))
            _expect(signs, (-(-rows * columns // 8),))
        return rows, columns


def _layers(checkpoint: Checkpoint) -> dict[str, int]:
    """Names of the decomposed layers in file order, and how many blocks each has."""
    numbers: dict[str, dict[str, set[str]]] = {}
    for name in checkpoint.entries:
        if match := _STORED.fullmatch(name):
            layer, part, number = match.groups()
            numbers.setdefault(layer, {p: set() for p in _PARTS})[part].add(number)
    for layer, parts in numbers.items():
        if not parts["qweight"]:
            raise UnsupportedError(
                "blocks without signs (a decomposition with --no_avd) are not read", where=f"{layer}.qweight_0"
            )
        wanted = [str(i) for i in range(len(set.union(*parts.values())))]
        missing = [f"{layer}.{part}_{i}" for i in wanted for part in _PARTS if i not in parts[part]]
        if missing:
            raise BadFileError(
                "a block of a layer is missing",
                where=missing[0],
                found=f"{len(parts['qweight'])} qweight, {len(parts['u'])} u, {len(parts['vt'])} vt",
                allowed=f"blocks 0 to {len(wanted) - 1}, each with all three",
                todo="Fetch the checkpoint again.",
            )
    return {layer: len(parts["qweight"]) for layer, parts in numbers.items()}


def _refuse_unfused(checkpoint: Checkpoint) -> None:
    for name in checkpoint.entries:
        if name.endswith(".scales"):
            raise UnsupportedError(
                "activation scales that were not fused into the layer before are not read",
                where=name,
                found="a decomposition with --no_fuse_scale",
                todo="Decompose the model again without that option.",
            )


def _claim(layer: _Layer) -> Claim:
    shape = layer.shape()
    stored = tuple(f"{layer.name}.{part}_{i}" for i in range(layer.blocks) for part in _PARTS)
    entries = [layer.checkpoint.entries[name] for name in stored]
    source = Source(
        NAME,
        "bitstack",
        {"rows": shape[0], "columns": shape[1], "blocks": layer.blocks},
        tuple(SourceTensor(e.file.name, e.name, e.dtype, e.shape) for e in entries),
    )

    def build() -> QTensor:
        how = codecs(source)
        terms = tuple(_block(layer, i, shape, how[3 * i]) for i in range(layer.blocks))
        rungs = tuple(Rung((1,) * i + (0,) * (layer.blocks - i)) for i in range(1, layer.blocks + 1))
        return QTensor(shape, entries[1].dtype, terms, rungs, source=source)

    return Claim(f"{layer.name}.weight", stored, build)


def _block(layer: _Layer, i: int, shape: Shape, how: Codec) -> Term:
    checkpoint, (rows, columns) = layer.checkpoint, shape
    packed = (rows, -(-columns // 8))
    signs = checkpoint.unpacked(f"signs.{i}", "U8", packed, f"{layer.name}.qweight_{i}", how)
    u, vt = (checkpoint.verbatim(f"{part}.{i}", f"{layer.name}.{part}_{i}") for part in ("u", "vt"))
    factors = (Codes(b.shape, (b,), PLAIN, plain_name(b.dtype)) for b in (u, vt))
    return Term(Codes(shape, (signs,), Layout("bits", 1), "sign", scale=Param(LowRank(*factors), (1, 1))))


def _signs(key: str, rows: int, columns: int) -> Codec:
    """U8 [ceil(M * N / 8)], high bit first <-> U8 [M, ceil(N / 8)], low bit first, each row padded.

    Rows that are not a whole number of bytes go in steps of as many as are.
    """
    if columns % 8 == 0:
        size = columns // 8
        return Codec(
            (key,),
            lambda raw: (REVERSED[raw].reshape(-1, size),),
            lambda signs: REVERSED[signs].reshape(-1),
            units=size,
        )
    group = 8 // math.gcd(columns, 8)

    def unpack(raw: Array) -> tuple[Array]:
        bits = np.unpackbits(raw)
        whole = np.zeros(-(-len(bits) // columns) * columns, np.uint8)
        whole[: len(bits)] = bits
        return (np.packbits(whole.reshape(-1, columns), axis=1, bitorder="little"),)

    def pack(signs: Array) -> Array:
        return np.packbits(np.unpackbits(signs, axis=1, count=columns, bitorder="little").reshape(-1))

    return Codec((key,), unpack, pack, group=group, units=columns * group // 8, rows=rows)


def _expect(entry: TensorEntry, shape: Shape) -> None:
    if entry.shape != shape:
        raise BadFileError(
            "the blocks of a layer do not fit together",
            where=entry.name,
            found=list(entry.shape),
            allowed=str(list(shape)),
            todo="Fetch the checkpoint again.",
        )
