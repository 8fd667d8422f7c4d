"""Fine-grained FP8 (`quant_method: fp8`), as DeepSeek-V3 (arXiv 2412.19437, section 3.3) and Qwen3 are published.

Per linear layer, weight [N, K], in blocks of `weight_block_size` rows and columns, the last of each axis cropped:

    weight            F8_E4M3 [N, K]
    weight_scale_inv  F32 or BF16 [ceil(N / rows), ceil(K / columns)], or F8_E8M0 where `scale_fmt` is ue8m0

W = weight * weight_scale_inv: despite its name, the scale multiplies. Without a block size it is one number (or [1]).
An `input_scale` of a static activation scheme is carried as a tensor of its own.
"""

from __future__ import annotations

from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.formats import NOT_MINE, Sniff
from qdeploy.formats.huggingface.checkpoint import Checkpoint, Claim, assemble
from qdeploy.formats.huggingface.known import KERNEL, LEFT_OUT, STORED, Known, because
from qdeploy.formats.huggingface.notes import Unapplied
from qdeploy.formats.huggingface.parts import FLOATS, Parts, tiles
from qdeploy.formats.huggingface.rearranged import codecs
from qdeploy.formats.huggingface.words import Settings
from qdeploy.ir.model import Model
from qdeploy.ir.tensor import PLAIN, Codes, QTensor, Shape
from qdeploy.store.folder import Folder

__all__ = ["NAME", "TITLE", "WRITES", "codecs", "read", "sniff"]

NAME = "fp8"
TITLE = "fine-grained FP8 with a scale per block of rows and columns (safetensors)"
WRITES = True
SETTINGS = Known(
    ("fmt", "weight_block_size", "activation_scheme"),
    {
        **LEFT_OUT,
        **because("stored tensors show which layers are quantized", "modules_to_convert", "ignored_layers"),
        **because(STORED, "scale_fmt", "expert_dtype"),
        **because(KERNEL, "dequantize"),
    },
)

_SCALES = (".weight_scale_inv", ".weight_scale")
_E4M3 = "F8_E4M3"


def sniff(folder: Folder) -> Sniff:
    """Declared by the quantization method."""
    return Sniff(100, f"quant_method {NAME}") if Checkpoint(folder).method == NAME else NOT_MINE


def read(folder: Folder) -> Model:
    """Opens the checkpoint; only headers are read yet.

    Raises:
        UnsupportedError: Another float format than e4m3.
        BadFileError: The configuration contradicts the tensors.
    """
    checkpoint, notes, unapplied = Checkpoint(folder), list[str](), Unapplied()
    settings = Settings(checkpoint.quantization)
    SETTINGS.check(settings)
    if settings.text("fmt") not in ("", "e4m3"):
        raise UnsupportedError(
            "this float format is not read", where=f"{settings.where}.fmt", found=settings.text("fmt"), allowed="e4m3"
        )
    block, scheme = _block(settings), settings.text("activation_scheme") or "dynamic"
    claims = []
    for name in checkpoint.entries:
        suffix = next((s for s in _SCALES if name.endswith(s)), "")
        if suffix:
            unapplied.add(f"inputs to 8-bit float, {scheme}", name.removesuffix(suffix))
            claims.append(_claim(checkpoint, name.removesuffix(suffix), name, block))
    notes.extend(unapplied.notes())
    return assemble(checkpoint, NAME, claims, notes)


def _block(settings: Settings) -> Shape | None:
    block = settings.values.get("weight_block_size")
    if block is None:
        return None
    if not isinstance(block, list) or len(block) != 2 or not all(type(n) is int and n >= 1 for n in block):
        raise BadFileError(
            "a block size is impossible",
            where=f"{settings.where}.weight_block_size",
            found=repr(block)[:100],
            allowed="[rows, columns], each at least 1",
        )
    return (block[0], block[1])


def _claim(checkpoint: Checkpoint, module: str, scale: str, block: Shape | None) -> Claim:
    parameter = f"{module}.weight"
    parts = Parts(checkpoint, NAME, parameter)
    shape = parts.entry(parameter, _E4M3, rank=2).shape
    tile = shape if block is None else (min(block[0], shape[0]), min(block[1], shape[1]))
    grid = tiles(shape, tile)
    shapes = [grid, (1,), ()] if grid == (1, 1) else [grid]
    because = "one scale for all" if block is None else f"weight_block_size = {list(block)}"
    parts.shaped(scale, shapes, *FLOATS, "F8_E8M0", because=because)

    def build() -> QTensor:
        sources = Parts(checkpoint, NAME, parameter)
        data = sources.take(parameter, "same codes", _E4M3, shape)
        return sources.tensor(
            shape, "BF16", Codes(shape, (data,), PLAIN, "e4m3", scale=sources.scale(scale, "scale", grid, tile))
        )

    return Claim(parameter, (parameter, scale), build)
