"""Any-Precision LLM (arXiv 2402.10517): one list of levels per row and width, the codes of all widths nested.

    config.json: anyprec = {seed_precision, parent_precision, group_count: 1, arch_config}
    P.qweight   I32 [parent, N, K / 32]    bit planes of codes of `parent` bits, the highest plane first
    P.lut3 ...  F16 [N, 2^bits]            levels of each row for every width from `seed` to `parent`

W[n, k] = lut[n, code >> (parent - bits)]: at full width the whole code, at fewer bits its highest ones, which are the
rungs of the tensor. A plane is a row of bytes whose highest bit comes first; of 128 bytes b (of what is left at the end
of a row R < 128), 32-bit word t (of R / 4) is b[t] << 24 | b[t + R/4] << 16 | b[t + R/2] << 8 | b[t + 3R/4].

The library saves pytorch_model.bin; it is read once its tensors are in safetensors. (Layout:
github.com/SNU-ARC/any-precision-llm at a3257d0, any_precision/quantization/pack.py and modules/AnyPrecisionLinear.py.)
"""

from __future__ import annotations

import numpy as np

from qdeploy.contracts.clues import Clues
from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.formats import NOT_MINE, Sniff
from qdeploy.formats.huggingface.checkpoint import Checkpoint, Claim, assemble
from qdeploy.formats.huggingface.known import Known, because
from qdeploy.formats.huggingface.parts import FLOATS, Parts
from qdeploy.formats.huggingface.rearranged import codecs
from qdeploy.formats.huggingface.words import Settings
from qdeploy.ir.model import Model
from qdeploy.ir.tensor import PLAIN, Buffer, Codes, Layout, Param, QTensor, Rung, Shape, Table, Term
from qdeploy.store.folder import Folder

__all__ = ["NAME", "TITLE", "WRITES", "codecs", "read", "sniff"]

NAME = "anyprec"
TITLE = "Any-Precision LLM: nested bit planes, levels per row and width (safetensors)"
WRITES = True
SETTINGS = Known(
    ("seed_precision", "parent_precision", "group_count"),
    because("names the modules of the network, which stored tensors show", "arch_config"),
)

_MOST = 8


def sniff(folder: Folder) -> Sniff:
    """Declared by its own object in the configuration."""
    clues = Clues(folder)
    return Sniff(100, f"{NAME} in config.json") if NAME in clues.config and not clues.method else NOT_MINE


def read(folder: Folder) -> Model:
    """Opens the checkpoint; only headers are read yet.

    Raises:
        BadFileError: Planes, levels and settings contradict each other.
        UnsupportedError: Several groups of columns, which the library does not write either.
    """
    checkpoint = Checkpoint(folder)
    settings, widths = nested_widths(checkpoint.config[NAME], NAME)
    SETTINGS.check(settings)
    if settings.values.get("group_count", 1) != 1:
        where, value = f"{NAME}.group_count", settings.values["group_count"]
        raise UnsupportedError("several groups of columns are not read", where=where, found=value, allowed="1")
    named = (n.rpartition(".") for n in checkpoint.entries if not n.endswith((".weight", ".bias")))
    modules = dict.fromkeys(m for m, _, part in named if part == "qweight" or part.startswith("lut"))
    return assemble(checkpoint, NAME, [_Layer(checkpoint, m, widths).claim() for m in modules])


def nested_widths(values: object, name: str) -> tuple[Settings, tuple[int, ...]]:
    """The settings under this name in config.json, and the widths from seed_precision to parent_precision.

    Raises:
        BadFileError: There are no such widths.
    """
    if not isinstance(values, dict):
        raise BadFileError("settings are not an object", where=f"config.json: {name}", found=repr(values)[:100])
    settings = Settings(values, name)
    seed, parent = settings.integer("seed_precision"), settings.integer("parent_precision")
    if not 1 <= seed <= parent <= _MOST:
        where = f"{name}.seed_precision"
        raise BadFileError("widths are impossible", where=where, found=[seed, parent], allowed=f"1 to {_MOST} bits")
    return settings, tuple(range(seed, parent + 1))


class _Layer(Parts):
    """The stored tensors of one linear layer."""

    def __init__(self, checkpoint: Checkpoint, module: str, widths: tuple[int, ...]) -> None:
        super().__init__(checkpoint, NAME, f"{module}.weight")
        self.module, self.planes, self.widths = module, f"{module}.qweight", widths

    def claim(self) -> Claim:
        """Checks the shapes, and says how the weight is made."""
        _, rows, words = self.entry(self.planes, "I32", rank=3).shape
        parent = self.widths[-1]
        self.shaped(self.planes, [(parent, rows, words)], "I32", because=f"{NAME}.parent_precision")
        lists = tuple(f"{self.module}.lut{bits}" for bits in self.widths)
        for name, bits in zip(lists, self.widths, strict=True):
            self.shaped(name, [(rows, 1 << bits)], *FLOATS, because=f"{bits} bits in the rows of {self.planes}")
        shape = (rows, 32 * words)
        again = _Layer(self.checkpoint, self.module, self.widths)
        return Claim(self.parameter, (self.planes, *lists), lambda: again.build(shape))

    def build(self, shape: Shape) -> QTensor:
        """The weight, with a rung per width."""
        planes = self.several(self.planes, f"warped plane {self.widths[-1]}", "U8", (shape[0], shape[1] // 8))
        order = np.arange(shape[0], dtype="<i4")[:, None]
        own = Param(Codes(order.shape, (Buffer.of("row", order, "I32"),), PLAIN, "int32"), (1, shape[1]))
        terms = [(Term(self._codes(shape, planes[:bits], bits, own)),) for bits in self.widths]
        rungs = tuple(Rung((bits,), term) for bits, term in zip(self.widths, terms, strict=True))
        whole = self.summed(shape, "F16", terms[-1])
        return QTensor(shape, "F16", whole.terms, rungs if len(rungs) > 1 else (), source=whole.source)

    def _codes(self, shape: Shape, planes: tuple[Buffer, ...], bits: int, own: Param) -> Codes:
        name = f"{self.module}.lut{bits}"
        levels = self.take(name, f"same lut{bits}", self.checkpoint.entries[name].dtype, (shape[0], 1 << bits))
        return Codes(shape, planes, Layout("planes", width=bits), Table(levels, own))
