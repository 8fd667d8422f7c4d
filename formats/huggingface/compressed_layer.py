"""A layer of compressed-tensors, held against its scheme; `compressed_tensors.py` says the layout."""

from __future__ import annotations

import re
from typing import TypeGuard

from qdeploy.errors import AmbiguousError, BadFileError, UnsupportedError
from qdeploy.formats.huggingface.checkpoint import Checkpoint, Claim
from qdeploy.formats.huggingface.parts import FLOATS, Parts, bit_stream, constant, tiles
from qdeploy.formats.huggingface.schemes import Scheme
from qdeploy.ir.tensor import PLAIN, Codes, Param, QTensor, Shape
from qdeploy.store.safetensors import TensorEntry

NAME = "compressed-tensors"
MX = {"mxfp4-pack-quantized": ("e2m1", 4), "mxfp6-pack-quantized": ("e2m3", 6), "mxfp8-quantized": ("e4m3", 8)}
"""Table and bits of the MX formats."""
PLAIN_FORMATS = ("int-quantized", "float-quantized", "naive-quantized")
"""Formats whose codes are not packed."""

_E4M3 = "F8_E4M3"
_DENSE_SINCE = (0, 18)
_FORMATS = ("pack-quantized", *PLAIN_FORMATS, *MX, "nvfp4-pack-quantized")


def _is_block(block: object) -> TypeGuard[list[int]]:
    return isinstance(block, list) and len(block) == 2 and all(type(n) is int and n >= 1 for n in block)


class Layer(Parts):
    """The stored tensors of one layer under its scheme."""

    def __init__(self, checkpoint: Checkpoint, module: str, scheme: Scheme, format: str = NAME) -> None:
        super().__init__(checkpoint, format, f"{module}.weight")
        self.module, self.scheme = module, scheme

    def claim(self) -> Claim:
        """Checks the shapes, and says how the weight is made."""
        form = self._format()
        if form == "pack-quantized":
            shape = self._packed_integers()
        elif form in PLAIN_FORMATS:
            shape = self._plain_codes()
        else:
            shape = self._small_floats(form)
        stored = [self._name(part) for part in ("weight_shape", "weight_g_idx")]
        whole = [*self._names, *(name for name in stored if self.has(name))]
        return self.claim_of(whole, shape, form)

    def claim_of(self, stored: list[str], shape: Shape, form: str) -> Claim:
        """The claim, once shapes are known."""

        def build() -> QTensor:
            return self.again().build(shape, form)

        return Claim(self.parameter, tuple(dict.fromkeys(stored)), build)

    def again(self) -> Layer:
        """The same layer with nothing taken up yet."""
        return Layer(self.checkpoint, self.module, self.scheme, self.format)

    def build(self, shape: Shape, form: str) -> QTensor:
        """The weight."""
        if form == "pack-quantized":
            codes = self._build_packed(shape)
        elif form in PLAIN_FORMATS:
            codes = self._build_plain(shape)
        else:
            codes = self._build_small(shape, form)
        dtype = self.checkpoint.entries[self._name("weight_scale")].dtype
        return self.tensor(shape, dtype if dtype in FLOATS else "BF16", codes)

    # What is stored, held against the scheme.

    @property
    def _names(self) -> list[str]:
        parts = ("weight", "weight_packed", "weight_scale", "weight_zero_point", "weight_global_scale")
        return [self._name(part) for part in parts if self.has(self._name(part))]

    def _name(self, part: str) -> str:
        return f"{self.module}.{part}"

    def _format(self) -> str:
        form = self.scheme.format
        if form in ("mixed-precision", "dense", ""):
            raise BadFileError(
                "the format of a layer is not said", where=self.scheme.weights.where, found=f"{self.module}: {form!r}"
            )
        if form not in _FORMATS:
            raise UnsupportedError(
                "this format of compressed-tensors is not read",
                where=f"{self.scheme.weights.where}: {self.module}",
                found=form,
                allowed=", ".join(_FORMATS),
                todo="Save the model in one of these formats.",
            )
        return form

    def _packed_integers(self) -> Shape:
        weights, bits = self.scheme.weights, self.scheme.weights.width("num_bits", allowed=tuple(range(1, 9)))
        if self.scheme.is_float:
            raise BadFileError("packed integers that are floats", where=f"{weights.where}.type", found="float")
        packed = self.entry(self._name("weight_packed"), "I32", rank=2)
        shape = self._stored_shape(packed.shape[0])
        words = (-(-shape[1] * bits // 32), -(-shape[1] // (32 // bits)))
        self.shaped(self._name("weight_packed"), [(shape[0], w) for w in words], "I32", because=f"{bits} bits")
        grid = tiles(shape, self.tile(shape))
        self.shaped(self._name("weight_scale"), self._scale_shapes(grid), *FLOATS, because=self._strategy())
        if self._is_asymmetric():
            rows = (-(-shape[0] * bits // 32), -(-shape[0] // (32 // bits)))
            self.shaped(self._name("weight_zero_point"), [(r, grid[1]) for r in rows], "I32")
        if self.has(self._name("weight_g_idx")):
            self.shaped(self._name("weight_g_idx"), [(shape[1],)], "I32")
        return shape

    def _stored_shape(self, rows: int) -> Shape:
        name = self._name("weight_shape")
        entry = self.shaped(name, [(2,)], "I64", "I32")
        shape = tuple(entry.slab(0, 0, 2).tolist())
        if shape[0] != rows or shape[1] < 1 or shape[1] > 1 << 40:
            raise BadFileError("a shape contradicts the codes", where=name, found=shape, allowed=f"[{rows}, columns]")
        return shape

    def _plain_codes(self) -> Shape:
        bits = self.scheme.weights.width("num_bits", allowed=(8,))
        weight = self.entry(self._name("weight"), _E4M3 if self.scheme.is_float else "I8", rank=2)
        grid = tiles(weight.shape, self.tile(weight.shape))
        self.shaped(self._name("weight_scale"), self._scale_shapes(grid), *FLOATS, because=self._strategy())
        if self._is_asymmetric():
            self.shaped(self._name("weight_zero_point"), self._scale_shapes(grid), "I8", because=f"{bits} bits")
        return weight.shape

    def _small_floats(self, form: str) -> Shape:
        bits = MX[form][1] if form in MX else 4
        if not self.scheme.is_float or self.scheme.bits != bits:
            where = f"{self.scheme.weights.where}.num_bits"
            raise BadFileError("the settings contradict the format", where=where, found=self.scheme.bits, allowed=form)
        if bits == 8:
            shape = self.entry(self._name("weight"), _E4M3, rank=2).shape
        else:
            rows, size = self.entry(self._name("weight_packed"), "U8", rank=2).shape
            shape = (rows, size * 8 // bits)
        tile = self.tile(shape)
        if shape[1] % tile[1]:
            where = self._name("weight" if bits == 8 else "weight_packed")
            raise BadFileError("rows are no whole groups", where=where, found=shape[1], allowed=f"groups of {tile[1]}")
        grid = tiles(shape, tile)
        kind = "U8" if form in MX else _E4M3
        self.shaped(self._name("weight_scale"), [grid], kind, because=self._strategy())
        if form not in MX:
            self.shaped(self._name("weight_global_scale"), [(1,), ()], "F32")
        return shape

    def _is_asymmetric(self) -> bool:
        symmetric, stored = self.scheme.weights.values.get("symmetric", True), self.has(self._name("weight_zero_point"))
        if symmetric is False and not stored:
            self.entry(self._name("weight_zero_point"))
        if symmetric is True and stored and not self._are_zeros():
            raise BadFileError(
                "the configuration contradicts the tensors",
                where=f"{self.scheme.weights.where}.symmetric",
                found=f"true, and {self._name('weight_zero_point')}",
                allowed="false beside zero-points that are not zero",
                todo="Some libraries apply them and some do not: correct the one or the other.",
            )
        return stored

    def _are_zeros(self) -> bool:
        """Whether zero-points say nothing: old files of symmetric layers have some."""
        entry = self.checkpoint.entries[self._name("weight_zero_point")]
        return entry.dtype == "I8" and not entry.slab(0, 0, entry.shape[0] if entry.shape else 1).any()

    def _strategy(self) -> str:
        group = self.scheme.weights.values.get("group_size")
        named = self.scheme.weights.text("strategy")
        return named or ("channel" if group in (None, -1) else "group")

    def tile(self, shape: Shape) -> Shape:
        """Rows and columns that share a scale."""
        strategy, weights = self._strategy(), self.scheme.weights
        if strategy == "tensor":
            return shape
        if strategy == "channel":
            return (1, shape[1])
        if strategy in ("group", "tensor_group"):
            return (1, weights.group(shape[1], "group_size"))
        block = weights.values.get("block_structure")
        if strategy == "block" and _is_block(block):
            return (min(block[0], shape[0]), min(block[1], shape[1]))
        raise UnsupportedError(
            "this way to share scales is not read",
            where=f"{weights.where}.strategy",
            found=f"{strategy} {block}",
            allowed="tensor, channel, group, tensor_group, block with a block_structure",
        )

    @staticmethod
    def _scale_shapes(grid: Shape) -> list[Shape]:
        one = [(1,), ()] if grid == (1, 1) else []
        return [grid, *one, *([(grid[0],)] if grid[1] == 1 else [])]

    # What it means.

    def _scale(self, shape: Shape, table: str = "") -> Param:
        tile = self.tile(shape)
        return self.scale(self._name("weight_scale"), "scale", tiles(shape, tile), tile, table)

    def _build_packed(self, shape: Shape) -> Codes:
        bits, (rows, columns) = self.scheme.bits, shape
        packed = self.checkpoint.entries[self._name("weight_packed")]
        size = -(-columns * bits // 8)
        how = f"stream codes {size}" if self._is_dense(packed, 1, columns) else f"fields codes {columns} {bits}"
        codes = self.take(packed.name, how, "U8", (rows, size))
        scale, zero = self._scale(shape), self._packed_zero(shape)
        self.keep(self._name("weight_shape"))
        index = self._name("weight_g_idx")
        if self.has(index):
            buffer = self.take(index, "same index", "I32", (columns,))
            scale = Param(scale.values, (1, 1), buffer)
            zero = Param(zero.values, (1, 1), buffer) if self._is_asymmetric() else zero
        return bit_stream(shape, codes, bits, f"uint{bits}", zero=zero, scale=scale)

    def _packed_zero(self, shape: Shape) -> Param:
        bits, rows, tile = self.scheme.bits, shape[0], self.tile(shape)
        if not self._is_asymmetric():
            return constant("zero", 1 << (bits - 1), shape)
        name, grid = self._name("weight_zero_point"), tiles(shape, tile)
        dense = self._is_dense(self.checkpoint.entries[name], 0, rows)
        how = f"{'columns' if dense else 'spaced'} zero {rows} {bits}"
        zero = self.take(name, how, "U8", (grid[0], -(-grid[1] * bits // 8)))
        return Param(bit_stream(grid, zero, bits, f"uint{bits}"), tile)

    def _is_dense(self, entry: TensorEntry, axis: int, count: int) -> bool:
        """Whether codes cross words: by the number of words, or by the library's version where both need as many."""
        bits = self.scheme.bits
        dense, spaced = -(-count * bits // 32), -(-count // (32 // bits))
        if dense != spaced or 32 % bits == 0:
            return entry.shape[axis] == dense
        version = re.match(r"(\d+)\.(\d+)", self.scheme.version)
        if version is None:
            raise AmbiguousError(
                "codes may cross words or not, and the version of the library is not said",
                where=entry.name,
                found=f"{bits} bits",
                todo="Add the version of compressed-tensors to quantization_config.",
            )
        return tuple(map(int, version.groups())) >= _DENSE_SINCE

    def _build_plain(self, shape: Shape) -> Codes:
        name, table = self._name("weight"), "e4m3" if self.scheme.is_float else "int8"
        data = self.take(name, "same codes", self.checkpoint.entries[name].dtype, shape)
        scale, zero = self._scale(shape), None
        if self._is_asymmetric():
            tile = self.tile(shape)
            zero = self.scale(self._name("weight_zero_point"), "zero", tiles(shape, tile), tile)
        return Codes(shape, (data,), PLAIN, table, zero, scale)

    def _build_small(self, shape: Shape, form: str) -> Codes:
        table, bits = MX.get(form, ("e2m1", 4))
        if bits == 8:
            data = self.take(self._name("weight"), "same codes", _E4M3, shape)
            return Codes(shape, (data,), PLAIN, table, scale=self._scale(shape, "e8m0"))
        name = self._name("weight_packed")
        data = self.take(name, "same codes", "U8", self.checkpoint.entries[name].shape)
        scale = self._scale(shape, "e8m0") if form in MX else self._two_scales(shape)
        return bit_stream(shape, data, bits, table, scale=scale)

    def _two_scales(self, shape: Shape) -> Param:
        """A scale per group that is divided by one for all."""
        tile = self.tile(shape)
        grid = tiles(shape, tile)
        whole = self.scale(self._name("weight_global_scale"), "scale.scale", (1, 1), grid, divide=True)
        return Param(self.numbers(self._name("weight_scale"), "scale", grid, scale=whole), tile)
