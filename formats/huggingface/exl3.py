"""EXL3, the format of ExLlamaV3: trellis codes between two Hadamard transforms (`quant_method: exl3`).

Per layer, weight [N, K] in a basis of its own, b bits per weight (1 to 8):

    trellis   I16 [K / 16, N / 16, 16 * b]   one tile of 16 inputs by 16 outputs each
    suh, svh  F16 [K], [N]                   factors of inputs and outputs
    su, sv    I16 [K / 16], [N / 16]         the same as signs, one bit each, the first lowest; 1 is -1 (older files)
    mcg, mul1 I32 []                         the multiplier of another codebook, where there is one
    bias

    y = H(x * suh) @ W.T;  y = H(y) * svh + bias;    H: Hadamard transform of blocks of 128 columns

A tile is a ring of 256 * b bits, whose words of 16 bits are stored in swapped pairs, highest bit first. The state of
weight t is the 16 bits up to (t + 1) * b; it overlaps with those of its neighbours (QTIP, arXiv 2406.11235, section 3).
Weight t = 8 * lane + j of a tile belongs to input 2 * (lane mod 4) + (j mod 2) + 8 * (j / 2 mod 2) and output
lane / 4 + 8 * (j / 4). What a state is worth is computed in float16, of x = state * multiplier, plus 64248484 without
mcg and mul1, mod 2 ** 32:

    3inst, mcg   the sum of both halves of (x and 0x8fff8fff) xor 0x3b603b60 as two float16
    mul1         (1024 + the sum of the four bytes of x) * 0x1eee + 0xc931, one rounding

Codes become the states, 16 bits for each weight: rows of a matrix have no states that overlap. (Layout: exllamav3,
modules/quant/exl3.py, exllamav3_ext/quant: codebook.cuh, exl3_dq.cuh, pack.cu.)
"""

from __future__ import annotations

from functools import cache

import numpy as np

from qdeploy.arch.turned import Step, Turn, turned
from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.formats import NOT_MINE, Sniff
from qdeploy.formats.huggingface.checkpoint import Checkpoint, Claim, assemble, modules_of
from qdeploy.formats.huggingface.known import AUTHOR, SEARCH, STORED, Known, because
from qdeploy.formats.huggingface.parts import Parts
from qdeploy.formats.huggingface.rearranged import codecs
from qdeploy.formats.huggingface.words import Settings
from qdeploy.ir.model import Model
from qdeploy.ir.tensor import PLAIN, Array, Buffer, Codes, Layout, QTensor, Table, Term
from qdeploy.store.folder import Folder

__all__ = ["NAME", "TITLE", "WRITES", "codecs", "read", "sniff"]

NAME = "exl3"
TITLE = "EXL3 of ExLlamaV3: trellis codes of 1 to 8 bits between Hadamard transforms (safetensors)"
WRITES = True
SETTINGS = Known(
    (),
    {
        **because(AUTHOR, "version", "original_quantization_config"),
        **because(SEARCH, "calibration"),
        **because(STORED, "bits", "head_bits", "vision_bits", "mtp_bits", "out_scales", "codebook", "tensor_storage"),
    },
)

_PARTS = (".trellis", ".suh", ".svh", ".su", ".sv")
_TILE, _BLOCK, _STATES = 16, 128, 1 << 16
_MULTIPLIERS = {"": 89226354, "mcg": 0xCBAC1FED, "mul1": 0x83DCD12D}
"""By codebook, as the library's constants have them."""


def sniff(folder: Folder) -> Sniff:
    """Declared by the quantization method."""
    return Sniff(100, f"quant_method {NAME}") if Checkpoint(folder).method == NAME else NOT_MINE


def read(folder: Folder) -> Model:
    """Opens the checkpoint; headers and multipliers are read.

    Raises:
        UnsupportedError: Half a bit per weight, or a multiplier that is not the library's.
        BadFileError: The tensors of a layer contradict each other.
    """
    checkpoint = Checkpoint(folder)
    SETTINGS.check(Settings(checkpoint.quantization))
    layers = [_Layer(checkpoint, module) for module in modules_of(checkpoint, _PARTS)]
    claims = [claim for layer in layers for claim in layer.claims()]
    return turned(assemble(checkpoint, NAME, claims), {layer.parameter: layer.turn for layer in layers})


class _Layer(Parts):
    """The stored tensors of one layer."""

    def __init__(self, checkpoint: Checkpoint, module: str) -> None:
        super().__init__(checkpoint, NAME, f"{module}.weight")
        self.module = module
        self.trellis = self.entry(self._name("trellis"), "I16", rank=3)
        high, wide, words = self.trellis.shape
        self.shape, self.bits = (_TILE * wide, _TILE * high), words // _TILE

    @property
    def turn(self) -> Turn:
        """What is done to inputs and outputs."""
        blocks = Step("Hadamard", size=_BLOCK)
        of_inputs, of_outputs = (Step("Mul", self._factors(part)) for part in ("su", "sv"))
        return Turn(before=(of_inputs, blocks), after=(blocks, of_outputs))

    def claims(self) -> list[Claim]:
        """Checks the shapes, and says how the weight and signs of inputs and outputs are made."""
        self._check()
        own = _Layer(self.checkpoint, self.module)
        stored = [self._name(part) for part in ("trellis", "mcg", "mul1") if self.has(self._name(part))]
        claims = [Claim(self.parameter, tuple(stored), own.build)]
        for part, count in (("su", self.shape[1]), ("sv", self.shape[0])):
            if self._factors(part) == self._name(part):
                claims.append(self._signs(part, count))
        return claims

    def build(self) -> QTensor:
        """The weight between the transforms."""
        how = f"trellis codes {self.bits}"
        codes = self.take(self.trellis.name, how, "U16", self.shape)
        levels = Table(Buffer.of("levels", _levels(self._codebook)[None], "F16"))
        if self._codebook:
            self.keep(self._name(self._codebook))
        return self.tensor(self.shape, "F16", Codes(self.shape, (codes,), PLAIN, levels))

    def _name(self, part: str) -> str:
        return f"{self.module}.{part}"

    def _factors(self, part: str) -> str:
        """Name of the tensor with the factors of inputs (su) or outputs (sv)."""
        return self._name(f"{part}h" if self.has(self._name(f"{part}h")) else part)

    @property
    def _codebook(self) -> str:
        return next((part for part in ("mcg", "mul1") if self.has(self._name(part))), "")

    def _check(self) -> None:
        words = self.trellis.shape[2]
        if words % _TILE or not 1 <= self.bits <= 8:
            raise UnsupportedError(
                "trellis codes of so many bits are not read",
                where=self.trellis.name,
                found=f"{words / _TILE:g} bits",
                allowed="1 to 8, whole",
            )
        if self.shape[0] % _BLOCK or self.shape[1] % _BLOCK:
            raise BadFileError(
                "a layer is not made of whole blocks",
                where=self.trellis.name,
                found=list(self.shape),
                allowed=f"multiples of {_BLOCK}",
            )
        for part, count in (("su", self.shape[1]), ("sv", self.shape[0])):
            name = self._factors(part)
            plain = name == self._name(f"{part}h")
            kind, extent = ("F16", count) if plain else ("I16", count // _TILE)
            self.shaped(name, [(extent,)], kind, because=self.trellis.name)
        if self._codebook:
            self._check_multiplier(self._name(self._codebook), _MULTIPLIERS[self._codebook])

    def _check_multiplier(self, name: str, multiplier: int) -> None:
        entry = self.shaped(name, [(), (1,)], "I32", "U32", because="a multiplier is one number")
        stored = int(entry.slab(0, 0, 1).view("<u4").reshape(-1)[0])
        if stored != multiplier:
            raise UnsupportedError(
                "a codebook of this multiplier is not read",
                where=name,
                found=f"{stored:#x}",
                allowed=f"{multiplier:#x}",
            )

    def _signs(self, part: str, count: int) -> Claim:
        name = self._name(part)

        def build() -> QTensor:
            signs = Parts(self.checkpoint, NAME, name)
            data = signs.take(name, "octets codes", "U8", (count // 8,))
            levels = Table(Buffer.of("levels", np.array([[1, -1]], np.float32), "F32"))
            return signs.summed((count,), "F16", (Term(Codes((count,), (data,), Layout("bits", width=1), levels)),))

        return Claim(name, (name,), build)


@cache
def _levels(codebook: str) -> Array:
    """What every state is worth, float16 [65536]."""
    x = np.arange(_STATES, dtype=np.uint32) * np.uint32(_MULTIPLIERS[codebook])
    if codebook == "mul1":
        factor, offset = np.array([0x1EEE, 0xC931], "<u2").view("<f2").astype(np.float64)
        octets = x.view(np.uint8).reshape(-1, 4).sum(axis=1, dtype=np.int64)
        return np.asarray((1024 + octets) * factor + offset, np.float16)
    if not codebook:
        x = x + np.uint32(64248484)
    halves = (x & np.uint32(0x8FFF8FFF)) ^ np.uint32(0x3B603B60)
    return np.asarray(halves.view("<f2").astype(np.float64).reshape(-1, 2).sum(axis=1), np.float16)
