"""AnyBCQ (arXiv 2510.10467): binary codes, a scale per plane and group, other scales and offsets for every width.

    config.json: anybcq = {seed_precision, parent_precision, group_size (-1: a row), arch_config}
    P.qweight   I32 [K / 32, parent, N]    bit k % 32 of word k // 32: the sign of column k, 1 for +; planes in order
    P.alpha_2 ...  F16 [K / g, bits, N]    scale of each plane at that width; for every width from `seed` to `parent`
    P.beta_2 ...   F16 [K / g, N]          offset at that width

W[n, k] = sum over the first `bits` planes of sign * alpha[k // g, plane, n], + beta[k // g, n]; the widths are the
rungs of the tensor. `q_bias` and scales of other widths, which the library makes room for and does not use, stay as
they are beside it. (Layout: github.com/stevehenny/anybcq at dbc638b, a copy of naver-aics/anybcq with changes:
anybcq/quantization/packer.py, utils/swap_linear.py, inference/AnyBCQLinear.py, custom_kernel/anybcq.cu.)
"""

from __future__ import annotations

from qdeploy.contracts.clues import Clues
from qdeploy.errors import BadFileError
from qdeploy.formats import NOT_MINE, Sniff
from qdeploy.formats.huggingface.anyprec import nested_widths
from qdeploy.formats.huggingface.checkpoint import Checkpoint, Claim, assemble
from qdeploy.formats.huggingface.known import Known, because
from qdeploy.formats.huggingface.parts import FLOATS, Parts, bit_stream
from qdeploy.formats.huggingface.rearranged import codecs
from qdeploy.formats.huggingface.words import Settings
from qdeploy.ir.dtype import plain_name
from qdeploy.ir.model import Model
from qdeploy.ir.tensor import PLAIN, Buffer, Codes, Param, QTensor, Rung, Shape, Term
from qdeploy.store.folder import Folder

__all__ = ["NAME", "TITLE", "WRITES", "codecs", "read", "sniff"]

NAME = "anybcq"
TITLE = "AnyBCQ: nested sign planes, scales per group and width (safetensors)"
WRITES = True
SETTINGS = Known(
    ("seed_precision", "parent_precision", "group_size"),
    because("names the modules of the network, which stored tensors show", "arch_config"),
)


def sniff(folder: Folder) -> Sniff:
    """Declared by its own object in the configuration."""
    clues = Clues(folder)
    return Sniff(100, f"{NAME} in config.json") if NAME in clues.config and not clues.method else NOT_MINE


def read(folder: Folder) -> Model:
    """Opens the checkpoint; only headers are read yet.

    Raises:
        BadFileError: Planes, scales and settings contradict each other.
    """
    checkpoint = Checkpoint(folder)
    settings, widths = nested_widths(checkpoint.config[NAME], NAME)
    SETTINGS.check(settings)
    wanted = ("qweight", *(f"{part}_{bits}" for part in ("alpha", "beta") for bits in widths))
    named = (n.rpartition(".") for n in checkpoint.entries)
    modules = dict.fromkeys(module for module, _, part in named if part in wanted)
    return assemble(checkpoint, NAME, [_Layer(checkpoint, m, settings, widths).claim() for m in modules])


class _Layer(Parts):
    """The stored tensors of one linear layer."""

    def __init__(self, checkpoint: Checkpoint, module: str, settings: Settings, widths: tuple[int, ...]) -> None:
        super().__init__(checkpoint, NAME, f"{module}.weight")
        self.module, self.settings, self.widths = module, settings, widths
        self.planes = f"{module}.qweight"

    def claim(self) -> Claim:
        """Checks the shapes, and says how the weight is made."""
        words, _, rows = self.entry(self.planes, "I32", rank=3).shape
        columns, parent = 32 * words, self.widths[-1]
        self.shaped(self.planes, [(words, parent, rows)], "I32", because=f"{NAME}.parent_precision")
        group = self.settings.group(columns, "group_size")
        if columns % group:
            where = f"{NAME}.group_size: {self.planes}"
            raise BadFileError("groups do not fill the columns", where=where, found=[columns, group])
        stored = [self.planes]
        for bits in self.widths:
            alpha, beta = (f"{self.module}.{part}_{bits}" for part in ("alpha", "beta"))
            because = f"{NAME}.group_size = {group} and {self.planes}"
            self.shaped(alpha, [(columns // group, bits, rows)], *FLOATS, because=because)
            self.shaped(beta, [(columns // group, rows)], *FLOATS, because=because)
            stored += [alpha, beta]
        again = _Layer(self.checkpoint, self.module, self.settings, self.widths)
        return Claim(self.parameter, tuple(stored), lambda: again.build((rows, columns), group))

    def build(self, shape: Shape, group: int) -> QTensor:
        """The weight, with a rung per width."""
        parent = self.widths[-1]
        planes = self.several(self.planes, f"stacked plane {parent}", "U8", (shape[0], shape[1] // 8))
        terms = {bits: self._terms(shape, group, planes, bits) for bits in self.widths}
        whole = self.summed(shape, "F16", terms[parent])
        rungs = tuple(
            Rung((1,) * bits + (0,) * (parent - bits), (*terms[bits], *terms[parent][bits:])) for bits in self.widths
        )
        return QTensor(shape, "F16", whole.terms, rungs if len(rungs) > 1 else (), source=whole.source)

    def _terms(self, shape: Shape, group: int, planes: tuple[Buffer, ...], bits: int) -> tuple[Term, ...]:
        grid, tile = (shape[0], shape[1] // group), (1, group)

        def numbers(name: str, buffer: Buffer) -> Param:
            dtype = plain_name(self.checkpoint.entries[name].dtype)
            return Param(Codes(grid, (buffer,), PLAIN, dtype), tile)

        alpha, beta = (f"{self.module}.{part}_{bits}" for part in ("alpha", "beta"))
        scales = self.several(alpha, f"stacked alpha{bits} {bits}", self.checkpoint.entries[alpha].dtype, grid)
        offset = numbers(beta, self.take(beta, f"turned beta{bits}", self.checkpoint.entries[beta].dtype, grid))
        return tuple(
            Term(bit_stream(shape, plane, 1, "sign", scale=numbers(alpha, scale), offset=None if i else offset))
            for i, (plane, scale) in enumerate(zip(planes[:bits], scales, strict=True))
        )
