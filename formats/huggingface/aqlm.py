"""AQLM (arXiv 2401.06118) and PV-Tuning (arXiv 2405.14852): sums of vector codebooks (`quant_method: aqlm`).

`nbits_per_codebook` b, `num_codebooks` c, `out_group_size` o and `in_group_size` i hold for all layers. Weight [N, K]:

    codes       I8, I16 or I32 (at most 8, 16 or 32 bits) [N / o, K / i, c]; a code from 2 ** (b - 1) on is stored less
                2 ** b
    codebooks   F16 (also BF16, F32) [c, 2 ** b, o, i]
    scales      the same types, [N / o, 1, 1, 1], or [N / o, K / i, 1, 1]

    W[o g + x, i h + y] = scales[g] * sum over c of codebooks[c, codes[g, h, c], x, y]

The library transposes the codes of 8-bit codebooks in place at the first forward pass on a CPU; files that were saved
after it hold [K / i, N / o, c] and are read, too. Where both have one shape, the other layers of the file decide.
(Layout: aqlm 1.1.7, inference.py and utils.py.)
"""

from __future__ import annotations

from dataclasses import dataclass

from qdeploy.errors import AmbiguousError, BadFileError
from qdeploy.formats import NOT_MINE, Sniff
from qdeploy.formats.huggingface.checkpoint import Checkpoint, Claim, assemble
from qdeploy.formats.huggingface.known import Known
from qdeploy.formats.huggingface.parts import FLOATS, Parts
from qdeploy.formats.huggingface.rearranged import codecs
from qdeploy.formats.huggingface.words import Settings
from qdeploy.ir.dtype import plain_name
from qdeploy.ir.model import Model
from qdeploy.ir.tensor import PLAIN, Codes, Layout, Param, QTensor, Shape, Table, Term
from qdeploy.pack import bits as streams
from qdeploy.store.folder import Folder

__all__ = ["NAME", "TITLE", "WRITES", "codecs", "read", "sniff"]

NAME = "aqlm"
TITLE = "AQLM and PV-Tuning, any number of codebooks of up to 16 bits (safetensors)"
WRITES = True
SETTINGS = Known(
    ("nbits_per_codebook", "num_codebooks", "out_group_size", "in_group_size", "linear_weights_not_to_quantize")
)

_MOST_BITS = 16


def sniff(folder: Folder) -> Sniff:
    """Declared by the quantization method."""
    return Sniff(100, f"quant_method {NAME}") if Checkpoint(folder).method == NAME else NOT_MINE


@dataclass(frozen=True)
class _Books:
    """The settings of all layers."""

    bits: int
    count: int
    rows: int
    columns: int

    @classmethod
    def of(cls, settings: Settings) -> _Books:
        bits = settings.width("nbits_per_codebook", allowed=tuple(range(1, _MOST_BITS + 1)))
        return cls(bits, *(_size(settings, name) for name in ("num_codebooks", "out_group_size", "in_group_size")))


def _size(settings: Settings, field: str) -> int:
    size = settings.integer(field)
    if size < 1:
        raise BadFileError(
            "a group size is impossible", where=f"{settings.where}.{field}", found=size, allowed="at least 1"
        )
    return size


def read(folder: Folder) -> Model:
    """Opens the checkpoint; only headers are read yet.

    Raises:
        UnsupportedError: Codes of more than 16 bits.
        BadFileError: The configuration contradicts the tensors.
        AmbiguousError: Codes may be transposed or not.
    """
    checkpoint = Checkpoint(folder)
    settings = Settings(checkpoint.quantization)
    SETTINGS.check(settings)
    modules = [name.removesuffix(".codes") for name in checkpoint.entries if name.endswith(".codes")]
    _check_plain(settings, modules)
    books = _Books.of(settings)
    layers = [_Layer(checkpoint, module, books) for module in modules]
    shown = {layer.is_transposed for layer in layers} - {None}
    claims = [layer.claim(shown) for layer in layers]
    return assemble(checkpoint, NAME, claims)


def _check_plain(settings: Settings, modules: list[str]) -> None:
    """Layers that the configuration leaves as they are have no codes."""
    field = "linear_weights_not_to_quantize"
    names = settings.values.get(field) or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BadFileError("names of parameters are no list of texts", where=f"{settings.where}.{field}")
    for module in modules:
        if module in names or f"{module}.weight" in names:
            raise BadFileError(
                "the configuration contradicts the tensors",
                where=f"{settings.where}.{field}",
                found=f"{module}.codes",
                allowed="a plain weight",
            )


class _Layer(Parts):
    """The stored tensors of one layer."""

    def __init__(self, checkpoint: Checkpoint, module: str, books: _Books) -> None:
        super().__init__(checkpoint, NAME, f"{module}.weight")
        self.module, self.books = module, books
        storage = "I8" if books.bits <= 8 else "I16"
        self.codes = self.entry(f"{module}.codes", storage, rank=3)
        self.scales = self.entry(f"{module}.scales", *FLOATS, rank=4)

    @property
    def is_transposed(self) -> bool | None:
        """Whether groups of columns come first; None where the shapes do not show it."""
        rows, first, second = self.scales.shape[0], *self.codes.shape[:2]
        return None if first == second else first != rows

    def claim(self, shown: set[bool | None]) -> Claim:
        """Checks the shapes, and says how the weight is made; `shown` is what the other layers show."""
        transposed = self.is_transposed
        if transposed is None and len(shown) > 1:
            raise AmbiguousError("codes may be transposed or not", where=self.codes.name, found=list(self.codes.shape))
        transposed = True in shown if transposed is None else transposed
        if transposed and self.books.bits != 8:
            raise self._contradiction(f"[{self.scales.shape[0]}, groups, {self.books.count}]")
        grid = (self.codes.shape[1], self.codes.shape[0]) if transposed else self.codes.shape[:2]
        if grid[0] != self.scales.shape[0] or self.codes.shape[2] != self.books.count:
            raise self._contradiction(f"[{self.scales.shape[0]}, groups, {self.books.count}]")
        self.shaped(self.scales.name, [(grid[0], 1, 1, 1), (*grid, 1, 1)], *FLOATS, because=self.codes.name)
        books = (self.books.count, 1 << self.books.bits, self.books.rows, self.books.columns)
        self.shaped(f"{self.module}.codebooks", [books], *FLOATS, because="the configuration")
        names = tuple(f"{self.module}.{part}" for part in ("codes", "codebooks", "scales"))
        return Claim(
            self.parameter, names, lambda: _Layer(self.checkpoint, self.module, self.books).build(grid, transposed)
        )

    def build(self, grid: Shape, transposed: bool) -> QTensor:
        """The weight: one term per codebook, then the scale."""
        books, bits = self.books, self.books.bits
        packed = (grid[0], streams.row_bytes(grid[1], bits))
        how = f"apart codes {books.count} {bits} {int(transposed)}"
        codes = self.several(self.codes.name, how, "U8", packed)
        name = f"{self.module}.codebooks"
        table = (1, 1 << bits, books.rows, books.columns)
        tables = self.several(name, f"books book {books.count}", self.checkpoint.entries[name].dtype, table)
        terms = tuple(
            Term(Codes(grid, (data,), Layout("bits", width=bits), Table(values)))
            for data, values in zip(codes, tables, strict=True)
        )
        shape = (grid[0] * books.rows, grid[1] * books.columns)
        return self.summed(shape, self.scales.dtype, terms, self._scale(shape))

    def _scale(self, shape: Shape) -> Param:
        rows, columns = self.scales.shape[:2]
        buffer = self.take(self.scales.name, f"rows scale {columns}", self.scales.dtype, (rows, columns))
        values = Codes((rows, columns), (buffer,), PLAIN, plain_name(self.scales.dtype))
        return Param(values, (self.books.rows, shape[1] // columns))

    def _contradiction(self, allowed: str) -> BadFileError:
        return BadFileError(
            "a tensor contradicts the configuration or the tensors beside it",
            where=self.codes.name,
            found=list(self.codes.shape),
            allowed=allowed,
        )
