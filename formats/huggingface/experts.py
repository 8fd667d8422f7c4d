"""Stacked experts of compressed-tensors: one tensor [E, N, K] for the experts of a layer, packed expert by expert.

    experts.gate_up_proj_packed         the parameter's name before the part: llm-compressor's `repack_moe`
    experts.gate_up_proj.weight_packed  a module that holds the parts

The parts are those of one layer (`compressed_tensors.py`) with the experts as their first axis: packed codes
[E, N, words], scales [E, groups of rows, groups], zero-points [E, words, groups], global scales [E]. The shape is
[E, N, K], or [N, K] of every expert [E, 2], or left out where words hold whole codes. Configurations name the tensor,
its module, or the linear layers of the experts that were stacked: all experts have one scheme. (Layout:
compressed-tensors 0.20, compressors/pack_quantized; llm-compressor, modeling/moe/linear_experts.py.)
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from qdeploy.errors import BadFileError
from qdeploy.formats.huggingface.checkpoint import Checkpoint
from qdeploy.formats.huggingface.compressed_layer import MX, Layer
from qdeploy.formats.huggingface.parts import FLOATS, bit_stream, constant, tiles
from qdeploy.formats.huggingface.schemes import Scheme, Schemes
from qdeploy.ir.dtype import plain_name
from qdeploy.ir.tensor import PLAIN, Codes, Param, Shape

_E4M3 = "F8_E4M3"
_STORED = re.compile(r"(.*\.experts\.\w*(?:proj|weight))(_packed|_scale|)")
_SINGLE = {"gate_up_proj": "gate_proj", "w13_weight": "w1", "w2_weight": "w2"}


def stacked_parameters(checkpoint: Checkpoint) -> Iterator[str]:
    """Names of stacked experts whose parts have them in front, in file order."""
    stems = dict[str, None]()
    for name, entry in checkpoint.entries.items():
        match = _STORED.fullmatch(name)
        if match and (match[2] or entry.dtype in (_E4M3, "I8")):
            stems[match[1]] = None
    return iter(stems)


def is_stacked(checkpoint: Checkpoint, module: str) -> bool:
    """Whether the weight of a module has three axes."""
    parts = (checkpoint.entries.get(f"{module}.{part}") for part in ("weight_packed", "weight"))
    return any(entry is not None and len(entry.shape) == 3 for entry in parts)


def scheme_of(schemes: Schemes, stem: str) -> Scheme:
    """The scheme of stacked experts: by the tensor's name, its module's, or that of a layer that was stacked."""
    module, _, part = stem.rpartition(".")
    names = (stem, module, f"{module}.0.{_SINGLE.get(part, part)}")
    errors: list[BadFileError] = []
    for name in names:
        try:
            return schemes.of(name)
        except BadFileError as error:
            errors.append(error)
    raise errors[0]


class StackedLayer(Layer):
    """The stored tensors of the experts of one layer under their scheme."""

    def __init__(self, checkpoint: Checkpoint, stem: str, scheme: Scheme, nested: bool) -> None:
        super().__init__(checkpoint, stem, scheme)
        self.nested = nested
        inside = nested and stem.rpartition(".")[0].rpartition(".")[2] != "experts"
        self.parameter = f"{stem}.weight" if inside else stem

    def again(self) -> StackedLayer:
        """The same layer with nothing taken up yet."""
        return StackedLayer(self.checkpoint, self.module, self.scheme, self.nested)

    # What is stored, held against the scheme.

    def _name(self, part: str) -> str:
        return f"{self.module}.{part}" if self.nested else f"{self.module}{part.removeprefix('weight')}"

    def _packed_integers(self) -> Shape:
        weights, bits = self.scheme.weights, self.scheme.weights.width("num_bits", allowed=tuple(range(1, 9)))
        if self.scheme.is_float:
            raise BadFileError("packed integers that are floats", where=f"{weights.where}.type", found="float")
        packed = self.entry(self._name("weight_packed"), "I32", rank=3)
        count, rows, words = packed.shape
        shape = (count, rows, self._columns(packed.shape, bits))
        if words not in (-(-shape[2] * bits // 32), -(-shape[2] // (32 // bits))):
            raise BadFileError(
                "a shape contradicts the codes", where=packed.name, found=words, allowed=f"{shape[2]} codes"
            )
        grid = self._grid(shape)
        self._check_scale(grid, *FLOATS)
        if self._is_asymmetric():
            high = (-(-rows * bits // 32), -(-rows // (32 // bits)))
            self.shaped(self._name("weight_zero_point"), [(count, h, grid[2]) for h in high], "I32")
        return shape

    def _columns(self, packed: Shape, bits: int) -> int:
        name, (count, rows, words) = self._name("weight_shape"), packed
        if not self.has(name) and 32 % bits == 0:
            return words * 32 // bits
        stored = self.shaped(name, [(3,), (count, 2)], "I64", "I32")
        each = stored.slab(0, 0, stored.shape[0]).reshape(-1, stored.shape[-1])
        columns = int(each[0, -1])
        if (each != each[0]).any() or each[0].tolist() not in ([count, rows, columns], [rows, columns]) or columns < 1:
            where = f"{[count, rows]} and columns"
            raise BadFileError("a shape contradicts the codes", where=name, found=each[0].tolist(), allowed=where)
        return columns

    def _plain_codes(self) -> Shape:
        self.scheme.weights.width("num_bits", allowed=(8,))
        shape = self.entry(self._name("weight"), _E4M3 if self.scheme.is_float else "I8", rank=3).shape
        self._check_scale(self._grid(shape), *FLOATS)
        if self._is_asymmetric():
            self.shaped(self._name("weight_zero_point"), self._shapes(self._grid(shape)), "I8")
        return shape

    def _small_floats(self, form: str) -> Shape:
        bits = MX[form][1] if form in MX else 4
        if not self.scheme.is_float or self.scheme.bits != bits:
            where = f"{self.scheme.weights.where}.num_bits"
            raise BadFileError("the settings contradict the format", where=where, found=self.scheme.bits, allowed=form)
        stored = self.entry(
            self._name("weight" if bits == 8 else "weight_packed"), _E4M3 if bits == 8 else "U8", rank=3
        )
        shape = (*stored.shape[:2], stored.shape[2] * 8 // bits)
        group = self.tile(shape[1:])[1]
        if shape[2] % group:
            raise BadFileError(
                "rows are no whole groups", where=stored.name, found=shape[2], allowed=f"groups of {group}"
            )
        self._check_scale(self._grid(shape), "U8" if form in MX else _E4M3)
        if form not in MX:
            self.shaped(self._name("weight_global_scale"), self._shapes((shape[0], 1, 1)), "F32")
        return shape

    def _grid(self, shape: Shape) -> Shape:
        return (shape[0], *tiles(shape[1:], self.tile(shape[1:])))

    def _check_scale(self, grid: Shape, *kinds: str) -> None:
        self.shaped(self._name("weight_scale"), self._shapes(grid), *kinds, because=self._strategy())

    @staticmethod
    def _shapes(grid: Shape) -> list[Shape]:
        shapes = [grid[:2]] if grid[2] == 1 else []
        return [grid, *shapes, *([grid[:1]] if grid[1:] == (1, 1) else [])]

    # What it means.

    def _part(self, part: str, key: str, grid: Shape, table: str = "", scale: Param | None = None) -> Codes:
        """Numbers of experts as [E, groups of rows, groups]."""
        name = self._name(part)
        entry = self.checkpoint.entries[name]
        how = f"same {key}" if entry.shape == grid else f"shaped {key} {grid[1]} {grid[2]}"
        buffer = self.take(name, how, entry.dtype, grid)
        return Codes(grid, (buffer,), PLAIN, table or plain_name(entry.dtype), scale=scale)

    def _scales(self, shape: Shape, table: str = "") -> Param:
        return Param(self._part("weight_scale", "scale", self._grid(shape), table), (1, *self.tile(shape[1:])))

    def _build_packed(self, shape: Shape) -> Codes:
        bits, (count, rows, columns) = self.scheme.bits, shape
        packed, size = self.checkpoint.entries[self._name("weight_packed")], -(-columns * bits // 8)
        dense = self._is_dense(packed, 2, columns)
        how = f"stream codes {size}" if dense else f"slices codes {rows} fields {columns} {bits}"
        codes = self.take(packed.name, how, "U8", (count, rows, size))
        scale, zero = self._scales(shape), constant("zero", 1 << (bits - 1), shape)
        if self._is_asymmetric():
            zero = self._zeros(shape)
        if self.has(self._name("weight_shape")):
            self.keep(self._name("weight_shape"))
        return bit_stream(shape, codes, bits, f"uint{bits}", zero=zero, scale=scale)

    def _zeros(self, shape: Shape) -> Param:
        bits, grid, name = self.scheme.bits, self._grid(shape), self._name("weight_zero_point")
        dense = self._is_dense(self.checkpoint.entries[name], 1, shape[1])
        kind, size = "columns" if dense else "spaced", -(-grid[2] * bits // 8)
        how = f"slices zero {grid[1]} {kind} {shape[1]} {bits}"
        zero = self.take(name, how, "U8", (*grid[:2], size))
        return Param(bit_stream(grid, zero, bits, f"uint{bits}"), (1, *self.tile(shape[1:])))

    def _build_plain(self, shape: Shape) -> Codes:
        name, zero = self._name("weight"), None
        data = self.take(name, "same codes", self.checkpoint.entries[name].dtype, shape)
        scale = self._scales(shape)
        if self._is_asymmetric():
            zero = Param(self._part("weight_zero_point", "zero", self._grid(shape)), (1, *self.tile(shape[1:])))
        return Codes(shape, (data,), PLAIN, "e4m3" if self.scheme.is_float else "int8", zero, scale)

    def _build_small(self, shape: Shape, form: str) -> Codes:
        table, bits = MX.get(form, ("e2m1", 4))
        name = self._name("weight" if bits == 8 else "weight_packed")
        entry = self.checkpoint.entries[name]
        data = self.take(name, "same codes", entry.dtype, entry.shape)
        scale = self._scales(shape, "e8m0") if form in MX else self._two_levels(shape)
        if bits == 8:
            return Codes(shape, (data,), PLAIN, table, scale=scale)
        return bit_stream(shape, data, bits, table, scale=scale)

    def _two_levels(self, shape: Shape) -> Param:
        grid = self._grid(shape)
        own = self._part("weight_global_scale", "scale.scale", (shape[0], 1, 1))
        whole = Param(own, (1, *grid[1:]), divide=True)
        return Param(self._part("weight_scale", "scale", grid, scale=whole), (1, *self.tile(shape[1:])))
