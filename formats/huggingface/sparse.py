"""Sparse weights of compressed-tensors: elements where a mask has a bit, and zeros (`sparsity_config`).

    sparse-bitmask       X.compressed [D], X.bitmask U8 [N, ceil(K / 8)], X.shape I64 [2], X.row_offsets I64 [N]
    sparse-24-bitmask    X.compressed [N, K / 2], X.bitmask as above, X.shape I64 [2, 1]

X is the layer, or its parameter `weight`. Bit j of a byte is column 8 i + j; elements follow row by row. They are
floats, or FP8 and INT8 codes with the `weight_scale` that `config_groups` describe. `row_offsets`, where each row's
elements begin, follows from the mask, and stays a tensor of its own. (Layout: compressed-tensors 0.12,
compressors/sparse_compressors.)
"""

from __future__ import annotations

from collections.abc import Iterator

from qdeploy.errors import BadFileError
from qdeploy.formats.huggingface.checkpoint import Checkpoint, Claim
from qdeploy.formats.huggingface.parts import FLOATS, Parts, tiles
from qdeploy.formats.huggingface.words import Settings
from qdeploy.ir.dtype import plain_name
from qdeploy.ir.tensor import PLAIN, Codes, Layout, QTensor, Shape, Term

FORMATS = ("sparse-bitmask", "sparse-24-bitmask")
_MASK = ".bitmask"
_PARTS = (_MASK, ".compressed")
_STORED = (*FLOATS, "F8_E4M3", "I8")


def sparse_layers(checkpoint: Checkpoint) -> Iterator[str]:
    """What is stored sparsely, in file order: names without `.bitmask` or `.compressed`."""
    names = (name.removesuffix(part) for name in checkpoint.entries for part in _PARTS if name.endswith(part))
    return iter(dict.fromkeys(names))


def declared(settings: Settings) -> str:
    """The format of `sparsity_config`; "" where there is none."""
    sparsity = settings.values.get("sparsity_config")
    form = sparsity.get("format") if isinstance(sparsity, dict) else None
    return "" if form in (None, "dense") else str(form)


class SparseLayer(Parts):
    """The stored tensors of one sparse layer."""

    def __init__(self, checkpoint: Checkpoint, stem: str, format: str) -> None:
        module = stem.removesuffix(".weight")
        super().__init__(checkpoint, format, f"{module}.weight")
        self.stem, self.module = stem, module
        self.shape = self._shape()

    def claim(self, tile: Shape | None) -> Claim:
        """Checks the shapes, and says how the weight is made.

        Args:
            tile: Rows and columns that share a scale; None: there are no scales.
        """
        rows, columns = self.shape
        self.shaped(f"{self.stem}{_MASK}", [(rows, -(-columns // 8))], "U8", because=f"{self.stem}.shape")
        elements = self.entry(f"{self.stem}.compressed", *_STORED)
        if elements.shape not in ((rows, columns // 2), elements.shape[:1]):
            raise BadFileError(
                "a tensor contradicts the configuration or the tensors beside it",
                where=elements.name,
                found=list(elements.shape),
                allowed=f"[{rows}, {columns // 2}], or one run",
            )
        names = [f"{self.stem}.compressed", f"{self.stem}{_MASK}", f"{self.stem}.shape"]
        if tile is None and elements.dtype not in FLOATS:
            self.entry(f"{self.module}.weight_scale")
        if tile is not None:
            grid = tiles(self.shape, tile)
            shapes = [grid, *([(1,), ()] if grid == (1, 1) else []), *([(rows,)] if grid[1] == 1 else [])]
            self.shaped(f"{self.module}.weight_scale", shapes, *FLOATS)
            names.append(f"{self.module}.weight_scale")

        def build() -> QTensor:
            return SparseLayer(self.checkpoint, self.stem, self.format).build(tile)

        return Claim(self.parameter, tuple(names), build)

    def build(self, tile: Shape | None) -> QTensor:
        """The weight."""
        (rows, columns), scale = self.shape, None
        entry = self.checkpoint.entries[f"{self.stem}.compressed"]
        count = entry.shape[0] * (entry.shape[1] if len(entry.shape) == 2 else 1)
        how = "same codes" if len(entry.shape) == 1 else f"flat codes {entry.shape[1]}"
        data = self.take(entry.name, how, entry.dtype, (count,))
        mask = self.take(f"{self.stem}{_MASK}", "same where", "U8", (rows, -(-columns // 8)))
        self.keep(f"{self.stem}.shape")
        if tile is not None:
            scale = self.scale(f"{self.module}.weight_scale", "scale", tiles(self.shape, tile), tile)
        codes = Codes(self.shape, (data,), PLAIN, plain_name(entry.dtype), scale=scale)
        where = Codes(self.shape, (mask,), Layout("bits", width=1), "uint1")
        dtype = entry.dtype if entry.dtype in FLOATS else "BF16"
        return self.summed(self.shape, dtype, (Term(codes, where),))

    def _shape(self) -> Shape:
        entry = self.shaped(f"{self.stem}.shape", [(2,), (2, 1)], "I64", "I32")
        shape = tuple(entry.slab(0, 0, 2).reshape(-1).tolist())
        if min(shape) < 1 or max(shape) > 1 << 40:
            raise BadFileError("an impossible shape", where=entry.name, found=shape)
        return shape
