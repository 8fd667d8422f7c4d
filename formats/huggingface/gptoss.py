"""MXFP4 as gpt-oss is published (`quant_method: mxfp4`): stacked experts.

Per stack of E matrices [R, K]:

    X_blocks   U8 [E, R, K / 32, 16]   e2m1, the first code of a byte in its low half
    X_scales   U8 [E, R, K / 32]       powers of two (e8m0)

The tensor is named X and has the shape that is stored, [E, R, K]; the module of transformers shows the transpose,
[E, K, R]. Rows of gate and up alternate in gate_up_proj.
(OCP Microscaling Formats 1.0; openai/gpt-oss, gpt_oss/torch/weights.py.)
"""

from __future__ import annotations

from qdeploy.errors import BadFileError
from qdeploy.formats import NOT_MINE, Sniff
from qdeploy.formats.huggingface.checkpoint import Checkpoint, Claim, assemble
from qdeploy.formats.huggingface.known import KERNEL, LEFT_OUT, Known, because
from qdeploy.formats.huggingface.parts import Parts, bit_stream
from qdeploy.formats.huggingface.rearranged import codecs
from qdeploy.formats.huggingface.words import Settings
from qdeploy.ir.model import Model
from qdeploy.ir.tensor import PLAIN, Codes, Param, QTensor
from qdeploy.store.folder import Folder

__all__ = ["NAME", "TITLE", "WRITES", "codecs", "read", "sniff"]

NAME = "mxfp4"
TITLE = "MXFP4 experts of gpt-oss, _blocks and _scales (safetensors)"
WRITES = True
SETTINGS = Known((), {**LEFT_OUT, **because(KERNEL, "dequantize")})

_BLOCK = 32


def sniff(folder: Folder) -> Sniff:
    """Declared by the quantization method."""
    return Sniff(100, f"quant_method {NAME}") if Checkpoint(folder).method == NAME else NOT_MINE


def read(folder: Folder) -> Model:
    """Opens the checkpoint; only headers are read yet.

    Raises:
        BadFileError: Blocks and scales contradict each other.
    """
    checkpoint = Checkpoint(folder)
    SETTINGS.check(Settings(checkpoint.quantization))
    names = [name.removesuffix("_blocks") for name in checkpoint.entries if name.endswith("_blocks")]
    return assemble(checkpoint, NAME, [_claim(checkpoint, name) for name in names])


def _claim(checkpoint: Checkpoint, name: str) -> Claim:
    blocks, scales, parts = f"{name}_blocks", f"{name}_scales", Parts(checkpoint, NAME, name)
    stored = parts.entry(blocks, "U8").shape
    if len(stored) not in (3, 4) or stored[-1] != _BLOCK // 2:
        raise BadFileError(
            "a tensor has an impossible shape", where=blocks, found=list(stored), allowed="[..., groups, 16]"
        )
    parts.shaped(scales, [stored[:-1]], "U8", because=blocks)
    rows, groups = stored[:-2], stored[-2]
    shape = (*rows, groups * _BLOCK)

    def build() -> QTensor:
        sources = Parts(checkpoint, NAME, name)
        codes = sources.take(blocks, "merged codes", "U8", (*rows, groups * _BLOCK // 2))
        values = Codes(stored[:-1], (sources.take(scales, "same scale", "U8", stored[:-1]),), PLAIN, "e8m0")
        scale = Param(values, (*(1,) * len(rows), _BLOCK))
        return sources.tensor(shape, "BF16", bit_stream(shape, codes, 4, "e2m1", scale=scale))

    return Claim(name, (blocks, scales), build)
