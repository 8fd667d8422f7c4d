"""SpQR (arXiv 2306.03078): integers of 3 bits whose scales and zero points are integers of 3 bits, and outliers.

`quant_method: spqr`, bits 3, beta1 16 (rows of a tile), beta2 16 (its columns). Weight [N, K]:

    dense_weights  I64 [N * K / 16]   tiles row by row, 16 words each, lowest bits first: scale s and zero point z of 3
                                      bits, 16 codes of 3 bits, 8 bits c, 2 bits of nothing
    row_offsets    I32 [N + 1]        where the outliers of each row begin; or [N / 16 + 1]: of each 16 rows
    col_vals       I32 [outliers]     column in the low half, float16 in the high half
    in_perm        I32 []             an order of the inputs that the library keeps, and does not apply

    W = (q - Z) * S + outlier;    S = (s - s0) * s1,  Z = (z - z0) * z1

The bytes c of rows 0, 2, ..., 14 of a tile (those of rows 1, 3, ... are the same) are s1, z1, s0, z0 in float16. Where
offsets are those of 16 rows, their outliers take turns, row by row, and what is missing is zero. The library rounds S,
Z and every weight to float16; here they are products of what is stored. (Layout: spqr_quant, inference.py,
inference_kernels/spqr_cuda.cpp.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qdeploy.errors import AmbiguousError, BadFileError, UnsupportedError
from qdeploy.formats import NOT_MINE, Sniff
from qdeploy.formats.huggingface.checkpoint import Checkpoint, Claim, assemble, modules_of
from qdeploy.formats.huggingface.known import LEFT_OUT, STORED, Known, because
from qdeploy.formats.huggingface.outliers import Outliers, outliers
from qdeploy.formats.huggingface.parts import Parts
from qdeploy.formats.huggingface.rearranged import codecs
from qdeploy.formats.huggingface.words import Settings
from qdeploy.ir.model import Model
from qdeploy.ir.tensor import PLAIN, Buffer, Codes, Layout, Param, QTensor, Shape, Term
from qdeploy.pack import bits as streams
from qdeploy.store.folder import Folder

__all__ = ["NAME", "TITLE", "WRITES", "codecs", "read", "sniff"]

NAME = "spqr"
TITLE = "SpQR: 3 bits with scales of 3 bits, and outliers (safetensors)"
WRITES = True
SETTINGS = Known(("bits", "beta1", "beta2"), {**LEFT_OUT, **because(STORED, "shapes")})

_BITS, _TILE = 3, 16
_PARTS = (".dense_weights", ".col_vals")


def sniff(folder: Folder) -> Sniff:
    """Declared by the quantization method."""
    return Sniff(100, f"quant_method {NAME}") if Checkpoint(folder).method == NAME else NOT_MINE


def read(folder: Folder) -> Model:
    """Opens the checkpoint; headers and offsets of outliers are read.

    Raises:
        UnsupportedError: Other widths or tiles, or an order of the inputs.
        BadFileError: The tensors of a layer contradict each other.
        AmbiguousError: Offsets may be those of rows or of 16 rows.
    """
    checkpoint = Checkpoint(folder)
    settings = Settings(checkpoint.quantization)
    SETTINGS.check(settings)
    settings.width("bits", allowed=(_BITS,))
    for field in ("beta1", "beta2"):
        settings.width(field, allowed=(_TILE,))
    return assemble(checkpoint, NAME, [_Layer(checkpoint, module).claim() for module in modules_of(checkpoint, _PARTS)])


def _widths(config: Mapping[str, Any]) -> set[int]:
    """How many inputs layers of such a model have."""
    fields = ("hidden_size", "intermediate_size")
    known = {config[name] for name in fields if type(config.get(name)) is int}
    heads, size = config.get("num_attention_heads"), config.get("head_dim")
    return known | ({heads * size} if type(heads) is int and type(size) is int else set())


class _Layer(Parts):
    """The stored tensors of one layer."""

    def __init__(self, checkpoint: Checkpoint, module: str) -> None:
        super().__init__(checkpoint, NAME, f"{module}.weight")
        self.module = module
        self.words = self.entry(self._name("dense_weights"), "I64", rank=1)
        self.offsets = self.entry(self._name("row_offsets"), "I32", rank=1)

    def claim(self) -> Claim:
        """Checks the shapes, and says how the weight is made."""
        shape, span = self._measured()
        self._check_order()
        name = self._name("col_vals")
        if name not in self.checkpoint.entries:
            self.entry(name)
        count = self.checkpoint.entries[name].shape
        stored = [self.words.name, *((name,) if count != (0,) else ())]
        if count != (0,):
            self.entry(name, "I32", rank=1)
            self._outliers(shape, span)
        again = _Layer(self.checkpoint, self.module)
        return Claim(self.parameter, tuple(stored), lambda: again.build(shape, span))

    def build(self, shape: Shape, span: int) -> QTensor:
        """The weight: integers, then what is added to some of them."""
        rows, columns = shape
        groups = columns // _TILE
        terms = [Term(self._integers(rows, columns, groups))]
        if self.checkpoint.entries[self._name("col_vals")].shape != (0,):
            terms.append(self._added(shape, span))
        return self.summed(shape, "F16", tuple(terms))

    def _name(self, part: str) -> str:
        return f"{self.module}.{part}"

    def _measured(self) -> tuple[Shape, int]:
        """[N, K], and of how many rows the offsets are."""
        words, count = self.words.shape[0], self.offsets.shape[0] - 1
        shapes = {
            span: (count * span, words * _TILE // (count * span))
            for span in (1, _TILE)
            if count > 0 and (count * span) % _TILE == 0 and words * _TILE % (count * span * _TILE) == 0
        }
        if not shapes:
            raise BadFileError(
                "offsets of outliers contradict the codes",
                where=self.offsets.name,
                found=f"{count + 1} offsets for {words} words",
                allowed="one more than there are rows, or 16 rows, in whole tiles",
            )
        known = _widths(self.checkpoint.config)
        fits = [span for span, shape in shapes.items() if shape[1] in known] if len(shapes) > 1 else list(shapes)
        if len(fits) != 1:
            raise AmbiguousError(
                "the shape of a layer is not said",
                where=self.offsets.name,
                found=" or ".join(str(list(shape)) for shape in shapes.values()),
                todo="Add hidden_size and intermediate_size to config.json.",
            )
        return shapes[fits[0]], fits[0]

    def _check_order(self) -> None:
        name = self._name("in_perm")
        entry = self.checkpoint.entries.get(name)
        if entry is None or entry.shape == (0,):
            return
        order = entry.slab(0, 0, entry.shape[0]).view("<u2").tolist()
        if order != list(range(len(order))):
            raise UnsupportedError(
                "an order of the inputs is not read: releases of the library do not agree whether it is applied",
                where=name,
                found=f"{len(order)} inputs in another order",
            )

    def _outliers(self, shape: Shape, span: int) -> Outliers:
        entry = self.checkpoint.entries[self._name("col_vals")]
        offsets = self.offsets.slab(0, 0, self.offsets.shape[0])
        return Outliers.of(offsets, entry, shape, span)

    # What it means.

    def _integers(self, rows: int, columns: int, groups: int) -> Codes:
        name, high = self.words.name, rows // _TILE
        small = Layout("bits", width=_BITS)
        self.arrangements[name] = how = f"spqr {columns}"
        codec = self.codec_of(name, how)

        def buffer(key: str, dtype: str, shape: Shape) -> Buffer:
            return self.checkpoint.unpacked(key, dtype, shape, name, codec)

        def param(key: str) -> Param:
            """A parameter of groups: integers with a zero point and a scale per tile."""
            grid = (high, groups)
            zero, scale = (
                Param(Codes(grid, (buffer(f"{key}.{part}", "F16", grid),), PLAIN, "f16"), (_TILE, 1))
                for part in ("zero", "scale")
            )
            data = buffer(key, "U8", (rows, streams.row_bytes(groups, _BITS)))
            return Param(Codes((rows, groups), (data,), small, "uint3", zero, scale), (1, _TILE))

        data = buffer("codes", "U8", (rows, streams.row_bytes(columns, _BITS)))
        return Codes((rows, columns), (data,), small, "uint3", param("zero"), param("scale"))

    def _added(self, shape: Shape, span: int) -> Term:
        which = self._outliers(shape, span)
        name = self._name("col_vals")
        self.arrangements[name] = f"outliers {span} {shape[0]} {shape[1]} {which.count}"
        codec = outliers(which.count, shape, span, which)
        mask = self.checkpoint.unpacked("where", "U8", (shape[0], -(-shape[1] // 8)), name, codec)
        values = self.checkpoint.unpacked("added", "F16", (which.count,), name, codec)
        where = Codes(shape, (mask,), Layout("bits", width=1), "uint1")
        return Term(Codes(shape, (values,), PLAIN, "f16"), where)
