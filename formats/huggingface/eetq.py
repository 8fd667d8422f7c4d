"""EETQ as its library and transformers store it (`quant_method: eetq`): int8 in the order of a GPU kernel.

    weight         I8 [K, N]    codes; the library's own loader calls it qweight
    weight_scales  F16 [N]      also BF16, F32

W[n, k] = code * scale[n]. The shape says inputs first, the bytes lie otherwise: for every two outputs and every 64
inputs (K and N are multiples of 64) come the 64 codes of the first output and then those of the second; of 16 codes
in a row, inputs 0 to 15 lie as 0 8 1 9 2 10 3 11 4 12 5 13 6 14 7 15; and every code is stored with its highest bit
the other way round. This is the order for GPUs since Turing (compute capability 7.5). The library has another one for
Volta, and the file does not say for which it was made: a note says so.

(Layout: github.com/NetEase-FuXi/EETQ at 465e972, csrc/cutlass_kernels/cutlass_preprocessors.cc,
preprocess_weights_for_mixed_gemm; transformers 5.23, integrations/eetq.py.)
"""

from __future__ import annotations

from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.formats import NOT_MINE, Sniff
from qdeploy.formats.huggingface.checkpoint import Checkpoint, Claim, assemble
from qdeploy.formats.huggingface.known import LEFT_OUT, Known
from qdeploy.formats.huggingface.parts import FLOATS, Parts
from qdeploy.formats.huggingface.rearranged import codecs
from qdeploy.formats.huggingface.words import Settings
from qdeploy.ir.model import Model
from qdeploy.ir.tensor import PLAIN, Codes, QTensor, Shape
from qdeploy.store.folder import Folder

__all__ = ["NAME", "TITLE", "WRITES", "codecs", "read", "sniff"]

NAME = "eetq"
TITLE = "EETQ: int8 in the order of its kernels (safetensors)"
WRITES = True
SETTINGS = Known(("weights", "bits"), LEFT_OUT)

_TILE = 64


def sniff(folder: Folder) -> Sniff:
    """Declared by the quantization method."""
    return Sniff(100, f"quant_method {NAME}") if Checkpoint(folder).method == NAME else NOT_MINE


def read(folder: Folder) -> Model:
    """Opens the checkpoint; only headers are read yet.

    Raises:
        BadFileError: Codes and scales contradict each other.
        UnsupportedError: Codes of other than 8 bits.
    """
    checkpoint = Checkpoint(folder)
    settings = Settings(checkpoint.quantization)
    SETTINGS.check(settings)
    for field, allowed in (("weights", "int8"), ("bits", "8")):
        if settings.text(field) not in ("", allowed):
            where, value = f"{settings.where}.{field}", settings.text(field)
            raise UnsupportedError("EETQ codes of another kind", where=where, found=value, allowed=allowed)
    codes = [n for n, e in checkpoint.entries.items() if e.dtype == "I8" and n.endswith(("weight", "qweight"))]
    scaled = [n.removesuffix("_scales") for n in checkpoint.entries if n.endswith(".weight_scales")]
    layers = [_layer(checkpoint, name) for name in (*codes, *scaled)]
    claims = [layer.claim() for layer in {layer.parameter: layer for layer in layers}.values()]
    notes = ["EETQ codes are read in the order for GPUs of compute capability 7.5 and later; the file does not say it"]
    return assemble(checkpoint, NAME, claims, notes if claims else [])


def _layer(checkpoint: Checkpoint, name: str) -> _Layer:
    return _Layer(checkpoint, f"{name.rpartition('.')[0]}.weight")


class _Layer(Parts):
    """The stored tensors of one linear layer."""

    def __init__(self, checkpoint: Checkpoint, parameter: str) -> None:
        super().__init__(checkpoint, NAME, parameter)
        own = f"{parameter.rpartition('.')[0]}.qweight"
        self.codes = own if self.has(own) else parameter
        self.scales = f"{parameter}_scales"

    def claim(self) -> Claim:
        """Checks the shapes, and says how the weight is made."""
        columns, rows = self.entry(self.codes, "I8", rank=2).shape
        if columns % _TILE or rows % _TILE:
            raise BadFileError(
                "codes do not fill the tiles of the kernel",
                where=self.codes,
                found=[columns, rows],
                allowed=f"multiples of {_TILE}",
            )
        self.shaped(self.scales, [(rows,)], *FLOATS, because=f"the columns of {self.codes}")
        shape = (rows, columns)
        return Claim(
            self.parameter, (self.codes, self.scales), lambda: _layer(self.checkpoint, self.codes).build(shape)
        )

    def build(self, shape: Shape) -> QTensor:
        """The weight."""
        data = self.take(self.codes, f"tiled codes {shape[1]}", "I8", shape)
        scale = self.scale(self.scales, "scale", (shape[0], 1), (1, shape[1]))
        return self.tensor(shape, "F16", Codes(shape, (data,), PLAIN, "int8", scale=scale))
