"""NVIDIA ModelOpt (`quant_method: modelopt`, or hf_quant_config.json alone): NVFP4, MXFP4, FP8, INT4 and INT8 weights.

Layers may differ; what a layer is follows from its tensors. Weight [N, K], groups of g columns, G = K / g:

    weight U8 [N, K / 2], weight_scale F8_E4M3 [N, K / 16], weight_scale_2 F32 []   NVFP4: e2m1 * (scale * scale_2)
    weight U8 [N, K / 2], weight_scale U8 [N, K / 32]                               MXFP4: e2m1 times a power of two
    weight U8 [N / 2, K], weight_scale float [N, G]     INT4: row 2 i in the low halves, row 2 i + 1 in the high ones
    weight F8_E4M3 [N, K], weight_scale float [], [N] or [ceil(N / 128), 1, ceil(K / 128), 1]    FP8
    weight I8 [N, K], weight_scale float [] or [N]      INT8

`weight_scale_2` beside INT4 codes (W4A8) belongs to the inputs. `input_scale`, `k_scale` and `v_scale` are carried as
tensors of their own. Blocks of FP8 share the rows and columns evenly where that gives whole numbers, as ModelOpt's
dequantizer spreads them. Where a layer has a `pre_quant_scale` [K], its inputs are multiplied by it first, in a node of
the graph. (Layout: modelopt 0.47, torch/export.)
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from qdeploy.arch.turned import Step, Turn, turned
from qdeploy.errors import BadFileError
from qdeploy.formats import NOT_MINE, Sniff
from qdeploy.formats.huggingface.checkpoint import Checkpoint, Claim, assemble
from qdeploy.formats.huggingface.known import AUTHOR, INPUTS, LEFT_OUT, STORED, Known, because
from qdeploy.formats.huggingface.notes import Unapplied
from qdeploy.formats.huggingface.parts import FLOATS, Parts, bit_stream, tiles
from qdeploy.formats.huggingface.rearranged import codecs
from qdeploy.formats.huggingface.words import Settings
from qdeploy.ir.model import Model
from qdeploy.ir.tensor import PLAIN, Codes, Param, QTensor, Shape
from qdeploy.store.folder import Folder

__all__ = ["NAME", "TITLE", "WRITES", "codecs", "read", "sniff"]

NAME = "modelopt"
TITLE = "NVIDIA ModelOpt: NVFP4, MXFP4, FP8, INT4 AWQ, INT8 weights (safetensors)"
WRITES = True
SETTINGS = Known(
    ("config_groups", "group_size", "awq_block_size", "quantized_layers"),
    {
        **LEFT_OUT,
        **because("stored tensors show which layers are quantized", "ignore", "exclude_modules"),
        **because(AUTHOR, "producer"),
        **because(INPUTS, "kv_cache_quant_algo", "kv_cache_scheme"),
        **because(STORED, "quant_algo", "pre_quant_scale"),
    },
)
LAYER = Known(("group_size", "awq_block_size"), because(STORED, "quant_algo", "pre_quant_scale"))
"""What is said of one layer, where settings differ."""
GROUP = Known(
    ("weights",),
    {
        **because(INPUTS, "input_activations", "output_activations"),
        **because("stored tensors show which layers are quantized", "targets"),
    },
)
WEIGHTS = Known(("group_size",), because(STORED, "dynamic", "num_bits", "type", "strategy"))
"""What a group of layers says of their weights."""

_BLOCK = 128
_PRE = ".pre_quant_scale"


def sniff(folder: Folder) -> Sniff:
    """Declared by the quantization method."""
    method = Checkpoint(folder).method
    return Sniff(100, f"quant_method {method}") if method.startswith(NAME) else NOT_MINE


def read(folder: Folder) -> Model:
    """Opens the checkpoint; only headers are read yet.

    Raises:
        UnsupportedError: Tensors that are none of the kinds above.
        BadFileError: Tensors of a layer contradict each other.
    """
    checkpoint, notes, unapplied = Checkpoint(folder), list[str](), Unapplied()
    groups = _group_sizes(Settings(checkpoint.quantization))
    algorithm, claims = checkpoint.quantization.get("quant_algo"), []
    modules = [name.removesuffix(".weight_scale") for name in checkpoint.entries if name.endswith(".weight_scale")]
    for module in modules:
        claims.append(_Layer(checkpoint, module, groups).claim())
        if f"{module}.input_scale" in checkpoint.entries:
            unapplied.add(f"inputs as {algorithm} says, static", module)
    if any(name.endswith(("k_proj.k_scale", "v_proj.v_scale")) for name in checkpoint.entries):
        unapplied.add("the cache of keys and values", "all layers")
    notes.extend(unapplied.notes())
    model = assemble(checkpoint, NAME, claims, notes)
    scaled = [name for name in checkpoint.entries if name.endswith(_PRE)]
    turns = {f"{name.removesuffix(_PRE)}.weight": Turn(before=(Step("Mul", name),)) for name in scaled}
    return turned(model, turns) if turns else model


def _group_sizes(settings: Settings) -> frozenset[int]:
    """All sizes of groups that the configuration speaks of; none: it does not say."""
    SETTINGS.check(settings)
    levels = [settings]
    for name, layer in _levels(settings, "quantized_layers").items():
        LAYER.check(Settings(layer, f"{settings.where}.quantized_layers.{name}"))
        levels.append(Settings(layer))
    for name, group in _levels(settings, "config_groups").items():
        where = f"{settings.where}.config_groups.{name}"
        GROUP.check(Settings(group, where))
        weights = Settings(group.get("weights") or {}, f"{where}.weights")
        WEIGHTS.check(weights)
        levels.append(weights)
    sizes = (level.values.get(field) for level in levels for field in ("group_size", "awq_block_size"))
    return frozenset(size for size in sizes if type(size) is int and size > 0)


def _levels(settings: Settings, field: str) -> dict[str, dict[str, Any]]:
    value = settings.values.get(field) or {}
    if not isinstance(value, dict) or not all(isinstance(own, dict) for own in value.values()):
        raise BadFileError("settings of layers are no object of objects", where=f"{settings.where}.{field}")
    return value


class _Layer(Parts):
    """The stored tensors of one layer."""

    def __init__(self, checkpoint: Checkpoint, module: str, groups: frozenset[int]) -> None:
        super().__init__(checkpoint, NAME, f"{module}.weight")
        self.module, self.groups = module, groups
        self.codes = self.entry(self.parameter, "U8", "I8", "F8_E4M3", rank=2)
        self.scales = self.entry(self._name("weight_scale"), "U8", "F8_E4M3", *FLOATS)

    def claim(self) -> Claim:
        """Checks the shapes, and says how the weight is made."""
        self._make()
        names = (self.parameter, self._name("weight_scale"), self._name("weight_scale_2"))
        stored = tuple(name for name in names if self.has(name))
        return Claim(self.parameter, stored, lambda: _Layer(self.checkpoint, self.module, self.groups)._make())

    def _name(self, part: str) -> str:
        return f"{self.module}.{part}"

    def _make(self) -> QTensor:
        rows, size = self.codes.shape
        if self.codes.dtype != "U8":
            return self._bytes()
        if self.scales.dtype in FLOATS:
            return self._two_rows((2 * rows, size))
        group, table = (32, "e8m0") if self.scales.dtype == "U8" else (16, "e4m3")
        shape = (rows, 2 * size)
        self._check_group(group)
        grid = tiles(shape, (1, group))
        self.shaped(self.scales.name, [grid], self.scales.dtype, because=f"groups of {group}")
        data = self.take(self.parameter, "same codes", "U8", self.codes.shape)
        above = None
        if table == "e4m3":
            self.shaped(self._name("weight_scale_2"), [(), (1,)], "F32")
        values = Codes(grid, (self.take(self.scales.name, "same scale", self.scales.dtype, grid),), PLAIN, table)
        if table == "e4m3":
            above = self.scale(self._name("weight_scale_2"), "scale.scale", (1, 1), grid)
        scale = Param(replace(values, scale=above), (1, group))
        return self.tensor(shape, "BF16", bit_stream(shape, data, 4, "e2m1", scale=scale))

    def _check_group(self, group: int) -> None:
        if self.groups and group not in self.groups:
            raise BadFileError(
                "the configuration contradicts the tensors",
                where="quantization_config.group_size",
                found=", ".join(map(str, sorted(self.groups))),
                allowed=f"{group} by {self.scales.name}",
                todo="Configuration and tensors are not of one checkpoint; fetch it again.",
            )

    def _two_rows(self, shape: Shape) -> QTensor:
        """INT4: two rows to a byte."""
        rows, columns = shape
        grid = self.shaped(self.scales.name, [(rows, n) for n in _divisors(columns)], *FLOATS).shape
        if grid[1] > 1:
            self._check_group(-(-columns // grid[1]))
        data = self.take(self.parameter, "halves codes", "U8", (rows, -(-columns // 2)))
        scale = self.scale(self.scales.name, "scale", grid, (1, -(-columns // grid[1])))
        if self.has(self._name("weight_scale_2")):
            self.keep(self._name("weight_scale_2"))
        return self.tensor(shape, "BF16", bit_stream(shape, data, 4, "int4", scale=scale))

    def _bytes(self) -> QTensor:
        """FP8 and INT8: one code per byte."""
        shape, stored = self.codes.shape, self.scales.shape
        blocks = tiles(shape, (_BLOCK, _BLOCK))
        if stored in ((), (1,)):
            tile = shape
        elif stored in ((shape[0],), (shape[0], 1)):
            tile = (1, shape[1])
        elif stored in ((blocks[0], 1, blocks[1], 1), blocks):
            tile = (_even(shape[0], blocks[0]), _even(shape[1], blocks[1]))
        else:
            raise BadFileError(
                "a tensor contradicts the configuration or the tensors beside it",
                where=self.scales.name,
                found=list(stored),
                allowed=f"one number, {shape[0]} or {list(blocks)}",
            )
        self.shaped(self.scales.name, [stored], *FLOATS)
        data = self.take(self.parameter, "same codes", self.codes.dtype, shape)
        scale = self.scale(self.scales.name, "scale", tiles(shape, tile), tile)
        table = "int8" if self.codes.dtype == "I8" else "e4m3"
        return self.tensor(shape, "BF16", Codes(shape, (data,), PLAIN, table, scale=scale))


def _even(extent: int, blocks: int) -> int:
    """Extent of a block: all the same where they can be."""
    return extent // blocks if extent % blocks == 0 else _BLOCK


def _divisors(columns: int) -> list[int]:
    """How many groups a row may have: whole groups of a power of two, or one, or a short last group of 128."""
    counts = {-(-columns // (1 << n)) for n in range(3, 10)} | {1}
    return sorted(counts)
