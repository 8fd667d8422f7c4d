"""MLX: affine integers of 1 to 8 bits, MXFP4, MXFP8 and NVFP4, with other settings for some layers.

`quantization` in config.json: group_size, bits and mode for all layers, and the same under the name of a layer that
differs (false: not quantized). A layer is quantized where it has scales. Weight [..., N, K], G = K / group_size:

    weight           U32 [..., N, K * bits / 32]    a little-endian bit stream per row
    scales, biases   F32, F16 or BF16 [..., N, G]   mode affine: W = code * scale + bias
    scales           U8 [..., N, G]                 mxfp4, mxfp8: e2m1 or e4m3 times a power of two (e8m0)
                                                    nvfp4: e2m1 times an e4m3
    global_scale     F32 [E] or one number          nvfp4: the greatest weight of each expert; scales are multiplied by
                                                    global_scale / (448 * 6)

Stacked experts have a leading axis. Matrices whose rows are no whole groups stay as they are. (Layout: MLX 0.32,
mlx/backend/cpu/quantized.cpp.)
"""

from __future__ import annotations

from dataclasses import replace

from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.formats import NOT_MINE, Sniff
from qdeploy.formats.huggingface.checkpoint import Checkpoint, Claim, assemble
from qdeploy.formats.huggingface.parts import FLOATS, Parts, bit_stream, constant
from qdeploy.formats.huggingface.rearranged import codecs
from qdeploy.formats.huggingface.words import Settings
from qdeploy.ir.dtype import plain_name
from qdeploy.ir.model import Model
from qdeploy.ir.tensor import PLAIN, Buffer, Codes, Param, QTensor, Shape
from qdeploy.store.folder import Folder

__all__ = ["NAME", "TITLE", "WRITES", "codecs", "read", "sniff"]

NAME = "mlx"
TITLE = "MLX: affine 1 to 8 bits, MXFP4, MXFP8, NVFP4, mixed (safetensors)"
WRITES = True

_SETTINGS = ("group_size", "bits", "mode", "quant_method")
_AFFINE = (1, 2, 3, 4, 5, 6, 8)
_MOST = 448.0 * 6.0
_FLOATS = {"mxfp4": (4, 32, "e2m1", "e8m0"), "mxfp8": (8, 32, "e4m3", "e8m0"), "nvfp4": (4, 16, "e2m1", "e4m3")}


def sniff(folder: Folder) -> Sniff:
    """Declared by the section `quantization`."""
    return Sniff(100, "a section quantization") if Checkpoint(folder).method == NAME else NOT_MINE


def read(folder: Folder) -> Model:
    """Opens the checkpoint; only headers are read yet.

    Raises:
        UnsupportedError: A mode or width that is not read, by its name.
        BadFileError: The configuration contradicts the tensors.
    """
    checkpoint = Checkpoint(folder)
    settings = Settings(checkpoint.quantization, "config.json: quantization")
    modules = [name.removesuffix(".scales") for name in checkpoint.entries if name.endswith(".scales")]
    notes = _of_nothing(settings, modules)
    return assemble(checkpoint, NAME, [_Layer(checkpoint, module, settings).claim() for module in modules], notes)


def _of_nothing(settings: Settings, modules: list[str]) -> list[str]:
    """Refuses settings that nobody reads; notes settings of layers that are not quantized, or not there."""
    layers = {name: value for name, value in settings.values.items() if isinstance(value, dict | bool)}
    settings.refuse_others((*_SETTINGS, *layers))
    for name, value in layers.items():
        if isinstance(value, dict):
            Settings(value, f"{settings.where}.{name}").refuse_others(_SETTINGS)
    unused = [name for name, value in layers.items() if value and name not in modules]
    if not unused:
        return []
    return [f"{settings.where}: {len(unused)} settings of layers without scales say nothing, the first of {unused[0]}"]


class _Layer(Parts):
    """The stored tensors of one layer."""

    def __init__(self, checkpoint: Checkpoint, module: str, settings: Settings) -> None:
        super().__init__(checkpoint, NAME, f"{module}.weight")
        self.module = module
        own = settings.values.get(module)
        if own is False:
            raise BadFileError(
                "the configuration contradicts the tensors",
                where=f"{settings.where}.{module}",
                found=f"false, and {module}.scales",
                allowed="a plain weight",
            )
        self.settings = Settings(settings.values, settings.where) if own is None else settings.overridden(own, module)
        # The mode belongs to the entry: an override without one is affine, whatever the default is.
        self.mode = str((settings.values if own is None else dict(own)).get("mode") or "affine")

    def claim(self) -> Claim:
        """Checks the shapes, and says how the weight is made."""
        shape, bits, group = self._measure()
        parts = ("weight", "scales", "biases") if self.mode == "affine" else ("weight", "scales")
        parts = (*parts, "global_scale") if self.has(f"{self.module}.global_scale") else parts

        def build() -> QTensor:
            sources = Parts(self.checkpoint, NAME, self.parameter)
            return (
                _affine(sources, self.module, shape, bits, group)
                if self.mode == "affine"
                else self._floats(sources, shape)
            )

        return Claim(self.parameter, tuple(f"{self.module}.{part}" for part in parts), build)

    def _measure(self) -> tuple[Shape, int, int]:
        if self.mode == "affine":
            bits, kinds = self.settings.width("bits", allowed=_AFFINE), list(FLOATS)
        elif self.mode in _FLOATS:
            bits, kinds = self.settings.width("bits", allowed=(_FLOATS[self.mode][0],)), ["U8"]
        else:
            raise UnsupportedError(
                "this mode of MLX is not read",
                where=f"{self.settings.where}.mode",
                found=self.mode,
                allowed=", ".join(("affine", *_FLOATS)),
            )
        weight = self.entry(self.parameter, "U32")
        if len(weight.shape) not in (2, 3) or weight.shape[-1] * 32 % bits:
            raise BadFileError("a tensor has an impossible shape", where=weight.name, found=list(weight.shape))
        shape = (*weight.shape[:-1], weight.shape[-1] * 32 // bits)
        group = self.settings.group(shape[-1], "group_size")
        if self.mode in _FLOATS and self.settings.integer("group_size") != _FLOATS[self.mode][1]:
            raise BadFileError(
                "a group size is impossible",
                where=f"{self.settings.where}.group_size",
                found=self.settings.integer("group_size"),
                allowed=f"{_FLOATS[self.mode][1]} for {self.mode}",
            )
        grid = (*shape[:-1], -(-shape[-1] // group))
        because = f"group_size = {group} and {bits} bits"
        self.shaped(f"{self.module}.scales", [grid], *kinds, because=because)
        if self.mode == "affine":
            self.shaped(f"{self.module}.biases", [grid], *kinds, because=because)
        if self.has(f"{self.module}.global_scale"):
            self._check_global(shape)
        return shape, bits, group

    def _check_global(self, shape: Shape) -> None:
        name = f"{self.module}.global_scale"
        if self.mode != "nvfp4":
            raise BadFileError("a scale of whole matrices is not of this mode", where=name, found=self.mode)
        self.shaped(name, [(shape[0],)] if len(shape) == 3 else [(), (1,)], "F32", because="one per matrix")

    def _floats(self, parts: Parts, shape: Shape) -> QTensor:
        bits, group, table, scales = _FLOATS[self.mode]
        tile = (*(1,) * (len(shape) - 1), group)
        whole = self._global(parts, shape) if self.has(f"{self.module}.global_scale") else None
        scale = _param(parts, f"{self.module}.scales", "scale", tile, scales, whole)
        return parts.tensor(shape, "BF16", bit_stream(shape, _codes(parts, shape, bits), bits, table, scale=scale))

    def _global(self, parts: Parts, shape: Shape) -> Param:
        """What the scales of a matrix are multiplied by."""
        name, stacked = f"{self.module}.global_scale", len(shape) == 3
        grid = (shape[0], 1, 1) if stacked else (1, 1)
        how = "shaped scale.scale 1 1" if stacked else "rows scale.scale 1"
        buffer = parts.take(name, how, "F32", grid)
        most = constant("scale.scale.scale", _MOST, grid, integer=False)
        values = Codes(grid, (buffer,), PLAIN, "f32", scale=replace(most, divide=True))
        groups = shape[-1] // _FLOATS["nvfp4"][1]
        return Param(values, (1, shape[1], groups) if stacked else (shape[0], groups))


def _affine(parts: Parts, module: str, shape: Shape, bits: int, group: int) -> QTensor:
    tile = (*(1,) * (len(shape) - 1), group)
    scale, bias = (
        _param(parts, f"{module}.{part}", key, tile) for part, key in (("scales", "scale"), ("biases", "offset"))
    )
    codes = bit_stream(shape, _codes(parts, shape, bits), bits, f"uint{bits}", scale=scale, offset=bias)
    return parts.tensor(shape, parts.checkpoint.entries[f"{module}.scales"].dtype, codes)


def _codes(parts: Parts, shape: Shape, bits: int) -> Buffer:
    size = shape[-1] * bits // 8
    return parts.take(parts.parameter, f"stream codes {size}", "U8", (*shape[:-1], size))


def _param(parts: Parts, name: str, key: str, tile: Shape, table: str = "", scale: Param | None = None) -> Param:
    entry = parts.checkpoint.entries[name]
    buffer = parts.take(name, f"same {key}", entry.dtype, entry.shape)
    return Param(Codes(entry.shape, (buffer,), PLAIN, table or plain_name(entry.dtype), scale=scale), tile)
