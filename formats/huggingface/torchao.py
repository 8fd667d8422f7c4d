"""torchao: tensors that the header of the file describes (`quant_method: torchao`, safetensors).

`__metadata__` has a JSON object per parameter: `_type`, `_data` (its fields) and `_tensor_data_names`. Stored for
`a.weight` are `a._weight_qdata`, `a._weight_scale`, ...; `block_size` gives rows and columns that share a scale.

    Int8Tensor, IntxUnpackedToInt8Tensor   qdata I8 [N, K], codes of `target_dtype` (int1 to int8); scale, zero_point
    Float8Tensor                           qdata F8_E4M3 or F8_E5M2 [N, K]; scale
    MXTensor                               qdata F8 [N, K], or U8 [N, K / 2] of e2m1; scale F8_E8M0 (or U8) [N, K / 32]
    NVFP4Tensor                            qdata U8 [N, K / 2] of e2m1; scale F8_E4M3 [N, K / 16]; per_tensor_scale []

W = (qdata - zero_point) * scale, and NVFP4's scale is scale * per_tensor_scale. Where `is_swizzled_scales`, scales lie
in tiles of 128 rows by 4 groups (`rearranged.py`). (Layout: torchao 0.18, quantize_/workflows and mx_formats.)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.formats import NOT_MINE, Sniff
from qdeploy.formats.huggingface.checkpoint import Checkpoint, Claim, assemble
from qdeploy.formats.huggingface.known import INPUTS, KERNEL, LEFT_OUT, SEARCH, STORED, Known, because
from qdeploy.formats.huggingface.notes import Unapplied
from qdeploy.formats.huggingface.parts import FLOATS, Parts, bit_stream, tiles
from qdeploy.formats.huggingface.rearranged import codecs
from qdeploy.formats.huggingface.words import Settings
from qdeploy.ir.dtype import plain_name
from qdeploy.ir.model import Model
from qdeploy.ir.tensor import PLAIN, Codes, Param, QTensor, Shape
from qdeploy.pack import bits as streams
from qdeploy.store.folder import Folder

__all__ = ["NAME", "TITLE", "WRITES", "codecs", "read", "sniff"]

NAME = "torchao"
TITLE = "torchao: int1 to int8, FP8, MX and NVFP4 tensors (safetensors)"
WRITES = True
SETTINGS = Known(
    (),
    {
        **LEFT_OUT,
        **because(
            "every parameter has a description of its own",
            *("quant_type", "quant_type_kwargs", "include_input_output_embeddings", "untie_embedding_weights"),
        ),
    },
)
DESCRIPTION = Known(
    ("block_size", "dtype", "orig_dtype", "target_dtype", "is_swizzled_scales"),
    {
        **because(INPUTS, "activation_quantization", "act_quant_kwargs"),
        **because(STORED, "elem_dtype"),
        **because(SEARCH, "reduce_range"),
        **because(KERNEL, "mm_config", "kernel_preference", "use_triton_kernel"),
    },
)
"""What is said of a parameter."""

_INTEGERS = ("Int8Tensor", "IntxUnpackedToInt8Tensor")
_TYPES = (*_INTEGERS, "Float8Tensor", "MXTensor", "NVFP4Tensor")
_FP8 = ("F8_E4M3", "F8_E5M2")
_SHOWN = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def sniff(folder: Folder) -> Sniff:
    """Declared by the quantization method."""
    return Sniff(100, f"quant_method {NAME}") if Checkpoint(folder).method == NAME else NOT_MINE


def read(folder: Folder) -> Model:
    """Opens the checkpoint; only headers are read yet.

    Raises:
        UnsupportedError: A type of tensor that is not read, by its name.
        BadFileError: A description contradicts the tensors.
    """
    checkpoint, notes, unapplied = Checkpoint(folder), list[str](), Unapplied()
    SETTINGS.check(Settings(checkpoint.quantization))
    names, claims = set(checkpoint.entries), []  # the shards are open from here on
    for parameter, row in _described(checkpoint).items():
        if row["_type"] == "Tensor":
            continue
        if not any(name.startswith(_prefix(parameter)) for name in names):
            raise BadFileError("a tensor of a quantized layer is missing", where=f"{_prefix(parameter)}qdata")
        layer = _Tensor(checkpoint, parameter, row)
        unapplied.add(layer.activations, parameter)
        claims.append(layer.claim())
    notes.extend(unapplied.notes())
    return assemble(checkpoint, NAME, claims, notes)


def _described(checkpoint: Checkpoint) -> dict[str, Mapping[str, Any]]:
    """The descriptions of all parameters; those of a shard stand in its own header."""
    described: dict[str, Mapping[str, Any]] = {}
    for name, shard in checkpoint.shards.items():
        for parameter, text in shard.metadata.items():
            row = _json(text)
            if isinstance(row, dict) and isinstance(row.get("_type"), str):
                if not isinstance(row.get("_data", {}), dict):
                    raise BadFileError("a description is no object", where=f"{name}: {parameter}")
                described[parameter] = row
    return described


def _json(text: str) -> object:
    try:
        loaded: object = json.loads(text)
    except (ValueError, RecursionError):  # the header holds other texts, too
        return None
    return loaded


def _prefix(parameter: str) -> str:
    module, _, name = parameter.rpartition(".")
    return f"{module}._{name}_"


class _Tensor(Parts):
    """One described parameter."""

    def __init__(self, checkpoint: Checkpoint, parameter: str, row: Mapping[str, Any]) -> None:
        super().__init__(checkpoint, NAME, parameter)
        self.row, self.kind, self.fields = row, str(row["_type"]), row.get("_data", {})

    @property
    def activations(self) -> str:
        """What is said of the inputs, in a few words."""
        plain = self.fields.get("activation_quantization")
        return (
            f"inputs by {plain}" if plain else f"inputs of {self.kind}" if self.fields.get("act_quant_kwargs") else ""
        )

    def claim(self) -> Claim:
        """Checks the shapes, and says how the weight is made."""
        if self.kind not in _TYPES:
            raise UnsupportedError(
                "this type of torchao's tensors is not read",
                where=f"__metadata__: {self.parameter}",
                found=self.kind,
                allowed=", ".join(_TYPES),
                todo="Save the model with one of these types.",
            )
        DESCRIPTION.check(Settings(self.fields, f"__metadata__: {self.parameter}"))
        if self.has(self._name("act_pre_scale")):
            raise UnsupportedError("inputs that are scaled per column are not read", where=self._name("act_pre_scale"))
        self._measure()
        if self.kind in _INTEGERS:
            self._bits()
        parts = ("qdata", "scale", "zero_point", "per_tensor_scale")
        stored = tuple(name for name in map(self._name, parts) if self.has(name))
        return Claim(self.parameter, stored, lambda: _Tensor(self.checkpoint, self.parameter, self.row).build())

    def build(self) -> QTensor:
        """The weight."""
        shape, tile = self._measure()
        codes = self._integers(shape, tile) if self.kind in _INTEGERS else self._floats(shape, tile)
        shown = self.fields.get("dtype") or self.fields.get("orig_dtype") or {}
        return self.tensor(shape, _SHOWN.get(str(shown.get("_data")) if isinstance(shown, dict) else "", "F32"), codes)

    def _name(self, part: str) -> str:
        return _prefix(self.parameter) + part

    def _measure(self) -> tuple[Shape, Shape]:
        """Shape of the weight, and the extent of a group."""
        allowed = ("I8",) if self.kind in _INTEGERS else _FP8 if self.kind == "Float8Tensor" else (*_FP8, "U8")
        qdata = self.entry(self._name("qdata"), *allowed, rank=2)
        shape = (qdata.shape[0], qdata.shape[1] * (2 if qdata.dtype == "U8" else 1))
        tile = self._tile(shape)
        grid = tiles(shape, tile)
        shapes = [self._swizzled(grid)] if self._is_swizzled else [grid, *([(grid[0],)] if grid[1] == 1 else [])]
        kinds = {"MXTensor": ("F8_E8M0", "U8"), "NVFP4Tensor": ("F8_E4M3",)}.get(self.kind, FLOATS)
        self.shaped(self._name("scale"), shapes, *kinds, because=f"block_size of {self.parameter}")
        if self.has(self._name("zero_point")):
            self.shaped(
                self._name("zero_point"), shapes, "I8", "I32", *FLOATS, because=f"block_size of {self.parameter}"
            )
        if self.has(self._name("per_tensor_scale")):
            self.shaped(self._name("per_tensor_scale"), [(), (1,), (1, 1)], "F32")
        return shape, tile

    @property
    def _is_swizzled(self) -> bool:
        return bool(self.fields.get("is_swizzled_scales"))

    @staticmethod
    def _swizzled(grid: Shape) -> Shape:
        return (32 * -(-grid[0] // 128), 16 * -(-grid[1] // 4))

    def _tile(self, shape: Shape) -> Shape:
        block = self.fields.get("block_size")
        block = [1, block] if type(block) is int else block
        if not isinstance(block, list) or len(block) != 2 or not all(type(n) is int and n >= 1 for n in block):
            raise BadFileError(
                "a block size is impossible",
                where=f"__metadata__: {self.parameter}: block_size",
                found=repr(block)[:100],
            )
        return (min(block[0], shape[0]), min(block[1], shape[1]))

    def _integers(self, shape: Shape, tile: Shape) -> Codes:
        bits, name, grid = self._bits(), self._name("qdata"), tiles(shape, tile)
        scale, zero = self.scale(self._name("scale"), "scale", grid, tile), None
        if self.has(self._name("zero_point")):
            zero = self.scale(self._name("zero_point"), "zero", grid, tile)
        if bits == 8:
            return Codes(shape, (self.take(name, "same codes", "I8", shape),), PLAIN, "int8", zero, scale)
        stream = self.take(name, f"narrowed codes {bits}", "U8", (shape[0], streams.row_bytes(shape[1], bits)))
        return bit_stream(shape, stream, bits, f"int{bits}", zero=zero, scale=scale)

    def _bits(self) -> int:
        """Bits of integer codes."""
        target = self.fields.get("target_dtype")
        is_type = isinstance(target, dict) and target.get("_type", "torch.dtype") == "torch.dtype"
        text = str(target.get("_data")) if is_type else "int8" if target is None else repr(target)[:100]
        bits = int(text[3:]) if text[3:].isdigit() and text.startswith("int") else 0
        if not 1 <= bits <= 8:
            raise UnsupportedError(
                "codes of this type are not read", where=f"__metadata__: {self.parameter}: target_dtype", found=text
            )
        return bits

    def _floats(self, shape: Shape, tile: Shape) -> Codes:
        qdata = self.checkpoint.entries[self._name("qdata")]
        data, scale = (
            self.take(qdata.name, "same codes", qdata.dtype, qdata.shape),
            self._scale(tiles(shape, tile), tile),
        )
        if qdata.dtype == "U8":
            return bit_stream(shape, data, 4, "e2m1", scale=scale)
        return Codes(shape, (data,), PLAIN, plain_name(qdata.dtype), scale=scale)

    def _scale(self, grid: Shape, tile: Shape) -> Param:
        name, above = self._name("scale"), self._name("per_tensor_scale")
        dtype = self.checkpoint.entries[name].dtype
        table = "e8m0" if dtype == "U8" else plain_name(dtype)
        if self._is_swizzled:
            buffer = self.take(name, f"swizzled scale {grid[0]} {grid[1]}", dtype, grid)
        else:
            buffer = self.matrix(name, "scale", grid)
        whole = self.scale(above, "scale.scale", (1, 1), grid) if self.has(above) else None
        return Param(Codes(grid, (buffer,), PLAIN, table, scale=whole), tile)
