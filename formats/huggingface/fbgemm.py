"""FBGEMM FP8 as transformers stores it (`quant_method: fbgemm_fp8`): one scale per output.

    weight         F8_E4M3 [N, K]       weight_scale  F32 [N, 1]; also F16, BF16
    gate_up_proj   F8_E4M3 [E, K, N]    gate_up_proj_scale  F32 [E, 1, N]: stacked experts of Llama 4, inputs first
    down_proj      F8_E4M3 [E, K, N]    down_proj_scale     F32 [E, N, 1]

W = code * scale. `input_scale_ub` [1], the most that an input's absolute maximum counts for, belongs to the rounding of
inputs to 8-bit floats per token, which is named in a note. (Layout: transformers 5.23, integrations/fbgemm_fp8.py.)
"""

from __future__ import annotations

from qdeploy.formats import NOT_MINE, Sniff
from qdeploy.formats.huggingface.checkpoint import Checkpoint, Claim, assemble
from qdeploy.formats.huggingface.known import INPUTS, LEFT_OUT, Known, because
from qdeploy.formats.huggingface.notes import Unapplied
from qdeploy.formats.huggingface.parts import FLOATS, Parts
from qdeploy.formats.huggingface.rearranged import codecs
from qdeploy.formats.huggingface.words import Settings
from qdeploy.ir.dtype import plain_name
from qdeploy.ir.model import Model
from qdeploy.ir.tensor import PLAIN, Codes, Param, QTensor, Shape
from qdeploy.store.folder import Folder

__all__ = ["NAME", "TITLE", "WRITES", "codecs", "read", "sniff"]

NAME = "fbgemm"
TITLE = "FBGEMM FP8, one scale per row, stacked experts too (safetensors)"
WRITES = True
SETTINGS = Known((), {**LEFT_OUT, **because(INPUTS, "activation_scale_ub")})

_METHOD = "fbgemm_fp8"
_EXPERTS = ("gate_up_proj_scale", "down_proj_scale")


def sniff(folder: Folder) -> Sniff:
    """Declared by the quantization method."""
    return Sniff(100, f"quant_method {_METHOD}") if Checkpoint(folder).method == _METHOD else NOT_MINE


def read(folder: Folder) -> Model:
    """Opens the checkpoint; only headers are read yet.

    Raises:
        BadFileError: Codes and scales contradict each other.
    """
    checkpoint, unapplied, notes, claims = Checkpoint(folder), Unapplied(), list[str](), []
    SETTINGS.check(Settings(checkpoint.quantization))
    codes = [name for name, entry in checkpoint.entries.items() if entry.dtype == "F8_E4M3"]
    scales = [n.removesuffix("_scale") for n in checkpoint.entries if n.endswith((".weight_scale", *_EXPERTS))]
    for parameter in dict.fromkeys((*codes, *scales)):
        unapplied.add("inputs to 8-bit float per token, dynamic", parameter)
        claims.append(_Layer(checkpoint, f"{parameter}_scale").claim())
    notes.extend(unapplied.notes())
    return assemble(checkpoint, NAME, claims, notes)


class _Layer(Parts):
    """The stored tensors of one parameter."""

    def __init__(self, checkpoint: Checkpoint, scale: str) -> None:
        super().__init__(checkpoint, NAME, scale.removesuffix("_scale"))
        self.scales, self.limit = scale, f"{scale.rpartition('.')[0]}.input_scale_ub"

    def claim(self) -> Claim:
        """Checks the shapes, and says how the weight is made."""
        shape = self.entry(self.parameter, "F8_E4M3", rank=3 if self.scales.endswith(_EXPERTS) else 2).shape
        allowed = [(shape[0], 1)] if len(shape) == 2 else [(shape[0], 1, shape[2]), (shape[0], shape[2], 1)]
        self.shaped(self.scales, allowed, *FLOATS, because="one scale per output")
        stored = [self.parameter, self.scales]
        if len(shape) == 2 and self.has(self.limit):
            self.shaped(self.limit, [(1,), ()], *FLOATS)
            stored.append(self.limit)
        return Claim(self.parameter, tuple(stored), lambda: _Layer(self.checkpoint, self.scales).build(shape))

    def build(self, shape: Shape) -> QTensor:
        """The weight."""
        data = self.take(self.parameter, "same codes", "F8_E4M3", shape)
        if len(shape) == 2:
            scale = self.scale(self.scales, "scale", (shape[0], 1), (1, shape[1]))
            if self.has(self.limit):
                self.keep(self.limit)
        else:
            scale = self._per_expert(shape)
        return self.tensor(shape, "BF16", Codes(shape, (data,), PLAIN, "e4m3", scale=scale))

    def _per_expert(self, shape: Shape) -> Param:
        grid, dtype = (shape[0], 1, shape[2]), self.checkpoint.entries[self.scales].dtype
        buffer = self.take(self.scales, f"shaped scale 1 {shape[2]}", dtype, grid)
        return Param(Codes(grid, (buffer,), PLAIN, plain_name(dtype)), (1, shape[1], 1))
