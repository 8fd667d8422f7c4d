"""HIGGS (arXiv 2411.17525) as Transformers saves it: a grid behind Hadamard transforms (`quant_method: higgs`).

For all layers b `bits` (2, 3, 4), `p` numbers to a code (1, 2), `group_size` and `hadamard_size` hold. Weight [N, K]:

    weight    I16 [N * b / 16, K]       codes in the order of a kernel: `flute.py`
    scales    F16 or BF16 [N, K / group_size]
    tables    [2 ** b]                  what a code of one number is worth
    tables2   [2 ** b, 2 ** b, 2]       what two codes side by side are worth; of one number each: their pairs
    bias

    y = H(x) @ W.T + bias;    H: Hadamard transform of blocks of `hadamard_size` columns

How many rows a strip of the order has follows from `tune_metadata[module].template_id` of the configuration: the
kernel's tile is template_id / 16 mod 3 for four bits and template_id / 4 mod 3 for fewer; tile 0 has 64 rows, others
have 32. (Layout: Transformers 5.3, integrations/higgs.py; flute-kernel 0.3.)
"""

from __future__ import annotations

from dataclasses import dataclass

from qdeploy.arch.turned import Step, Turn, turned
from qdeploy.errors import BadFileError
from qdeploy.formats import NOT_MINE, Sniff
from qdeploy.formats.huggingface.checkpoint import Checkpoint, Claim, assemble, modules_of
from qdeploy.formats.huggingface.flute import height
from qdeploy.formats.huggingface.known import KERNEL, LEFT_OUT, STORED, Known, because
from qdeploy.formats.huggingface.parts import Parts
from qdeploy.formats.huggingface.rearranged import codecs
from qdeploy.formats.huggingface.words import Settings
from qdeploy.ir.model import Model
from qdeploy.ir.tensor import Codes, Layout, QTensor, Table, Term
from qdeploy.pack import bits as streams
from qdeploy.store.folder import Folder

__all__ = ["NAME", "TITLE", "WRITES", "codecs", "read", "sniff"]

NAME = "higgs"
TITLE = "HIGGS: 2, 3 or 4 bits of a grid of numbers or pairs, behind Hadamard transforms (safetensors)"
WRITES = True
SETTINGS = Known(("bits", "p", "group_size", "hadamard_size", "tune_metadata"), LEFT_OUT)
TUNED = Known(
    ("num_bits", "group_size", "template_id"),
    {**because(STORED, "M", "N", "K", "dtype"), **because(KERNEL, "num_sms", "device")},
)
"""What is said of one layer."""

_TYPES = ("F16", "BF16")
_TALL, _LOW = 64, 32


def sniff(folder: Folder) -> Sniff:
    """Declared by the quantization method."""
    return Sniff(100, f"quant_method {NAME}") if Checkpoint(folder).method == NAME else NOT_MINE


@dataclass(frozen=True)
class _Grid:
    """The settings of all layers.

    Attributes:
        bits: Of the code of one number.
        size: Numbers to a code.
        group: Columns that share a scale.
        block: Columns of a Hadamard transform.
        settings: All of them.
    """

    bits: int
    size: int
    group: int
    block: int
    settings: Settings

    @classmethod
    def of(cls, settings: Settings) -> _Grid:
        SETTINGS.check(settings)
        bits = settings.width("bits", allowed=(2, 3, 4))
        size, group, block = (settings.integer(name) for name in ("p", "group_size", "hadamard_size"))
        allowed = {
            "p": (size in (1, 2), "1, 2"),
            "group_size": (group > 0 and group % 2 == 0, "an even number"),
            "hadamard_size": (block > 0 and block & (block - 1) == 0, "a power of two"),
        }
        for name, (right, wanted) in allowed.items():
            if not right:
                where = f"{settings.where}.{name}"
                raise BadFileError("a size is impossible", where=where, found=settings.integer(name), allowed=wanted)
        return cls(bits, size, group, block, settings)

    def strip(self, module: str) -> int:
        """Rows of a strip in a layer."""
        where = "tune_metadata"
        layers = self.settings.values.get(where)
        own = layers.get(module) if isinstance(layers, dict) else None
        if own is None:
            raise BadFileError(
                "the order of the codes is not said",
                where=f"{self.settings.where}.{where}",
                found=f"nothing about {module}",
                allowed="template_id",
            )
        tuned = self.settings.overridden(own, f"{where}[{module}]")
        TUNED.check(Settings(own, tuned.where))
        for name, value in (("num_bits", self.bits), ("group_size", self.group)):
            if name in own and own[name] != value:
                place = f"{tuned.where}.{name}"
                raise BadFileError("settings contradict each other", where=place, found=own[name], allowed=str(value))
        kernel = tuned.integer("template_id")
        tile = kernel // (16 if self.bits == 4 else 4) % 3
        return _LOW if tile or self.bits == 3 else _TALL


def read(folder: Folder) -> Model:
    """Opens the checkpoint; only headers are read yet.

    Raises:
        UnsupportedError: Codes of other widths.
        BadFileError: The configuration contradicts itself or the tensors.
    """
    checkpoint = Checkpoint(folder)
    grid = _Grid.of(Settings(checkpoint.quantization))
    layers = [_Layer(checkpoint, module, grid) for module in modules_of(checkpoint, (".tables2",))]
    claims = [layer.claim() for layer in layers]
    turn = Turn(before=(Step("Hadamard", size=grid.block),))
    return turned(assemble(checkpoint, NAME, claims), {layer.parameter: turn for layer in layers})


class _Layer(Parts):
    """The stored tensors of one layer."""

    def __init__(self, checkpoint: Checkpoint, module: str, grid: _Grid) -> None:
        super().__init__(checkpoint, NAME, f"{module}.weight")
        self.module, self.grid = module, grid
        self.words = self.entry(f"{module}.weight", "I16", rank=2)
        self.scales = self.entry(f"{module}.scales", *_TYPES, rank=2)
        self.shape = (self.words.shape[0] * 16 // grid.bits, self.words.shape[1])

    def claim(self) -> Claim:
        """Checks the shapes, and says how the weight is made."""
        grid, (rows, columns) = self.grid, self.shape
        strip = grid.strip(self.module)
        chunk = height(grid.bits, strip)
        if not rows or rows % chunk or self.words.shape[0] * 16 % grid.bits or columns % grid.block:
            raise BadFileError(
                "a tensor contradicts the configuration or the tensors beside it",
                where=self.words.name,
                found=list(self.words.shape),
                allowed=f"rows of {chunk} outputs in {grid.bits} bits, columns a multiple of {grid.block}",
            )
        because, count = "the configuration", 1 << grid.bits
        self.shaped(self.scales.name, [(rows, columns // grid.group)], *_TYPES, because=f"{because} and the codes")
        kind = self.scales.dtype
        self.shaped(f"{self.module}.tables", [(count,)], kind, because=because)
        self.shaped(f"{self.module}.tables2", [(count, count, 2)], kind, because=because)
        if grid.size == 1:
            self._check_pairs(count)
        names = tuple(f"{self.module}.{part}" for part in ("weight", "scales", "tables", "tables2"))
        again = _Layer(self.checkpoint, self.module, grid)
        return Claim(self.parameter, names, lambda: again.build(strip))

    def build(self, strip: int) -> QTensor:
        """The weight behind the transforms."""
        grid, (rows, columns) = self.grid, self.shape
        bits, size = grid.bits, grid.size
        packed = (rows, streams.row_bytes(columns // size, bits * size))
        codes = self.take(self.words.name, f"flute codes {bits} {size} {strip}", "U8", packed)
        scale = self.scale(self.scales.name, "scale", self.scales.shape, (1, grid.group))
        layout, count = Layout("bits", width=bits * size), 1 << bits
        numbers, both = f"{self.module}.tables", f"{self.module}.tables2"
        if size == 1:
            levels = Table(self.take(numbers, f"rows levels {count}", self.scales.dtype, (1, count)))
            self.keep(both)
            return self.tensor(self.shape, self.scales.dtype, Codes(self.shape, (codes,), layout, levels, scale=scale))
        self.keep(numbers)
        vectors = Table(self.take(both, "pairs vectors", self.scales.dtype, (1, count * count, 1, 2)))
        terms = (Term(Codes((rows, columns // 2), (codes,), layout, vectors)),)
        return self.summed(self.shape, self.scales.dtype, terms, scale)

    def _check_pairs(self, count: int) -> None:
        """The kernel looks two codes up at once: both tables must say the same."""
        entries = (self.checkpoint.entries[f"{self.module}.{part}"] for part in ("tables", "tables2"))
        single, pairs = (entry.slab(0, 0, count).view("<u2") for entry in entries)
        if (pairs[..., 0] != single[:, None]).any() or (pairs[..., 1] != single).any():
            raise BadFileError(
                "tables contradict each other",
                where=f"{self.module}.tables2",
                found="other numbers than in tables",
                allowed=f"the pairs of {self.module}.tables",
                todo="p = 2 in the configuration would read vectors.",
            )
