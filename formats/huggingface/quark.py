"""AMD Quark (`quant_method: quark`): INT2 to INT8, FP8, MXFP4, MXFP6, NVFP4 weights, other settings per layer.

Settings of a layer: the first pattern of `layer_quant_config` that its name matches (fnmatch), else those of its class
(`layer_type_quant_config`), else `global_quant_config`; `exclude` has patterns of layers that stay floats. Of a
setting, `weight` says dtype, qscheme (per_tensor, per_channel, per_group, per_block), group_size or block_size, and is
a list of two where scales are quantized themselves. Weight [N, K], G = K / group_size:

    int4, uint4    weight I32, eight codes to a word, the first at bit 0, then 16, 4, 20, 8, 24, 12, 28 (pack_method
                   reorder; order: in turn). per_group: [K, ceil(N / 8)], weight_zero_point I32 [G, ceil(N / 8)],
                   weight_scale [G, N]; else [N, K / 8], weight_zero_point [ceil(N / 8)] or [], weight_scale [N] or []
    uint2          weight U8 [K, N / 4], the first code in the high bits; weight_zero_point like it, or floats [G, N]
    int8, uint8    weight [K, N] per group, else [N, K]; weight_zero_point and weight_scale [G, N], [N] or []
    int3           weight U8 [N, 3 K / 8], a bit stream; weight_zero_point like it; weight_scale [G, N] or [N]
    fp8_e4m3, fp8_e5m2    weight F8_E4M3, F8_E5M2 [N, K]; weight_scale [], [N], [N, G] or one per block
    fp4            weight U8 [N, K / 2], e2m1, first code low; weight_scale [N, G]: U8 powers of two (scale_format
                   e8m0), F8_E4M3 under a weight_scale_2, or floats
    fp6_e2m3, fp6_e3m2    weight U8 [N, 3 K / 4], a bit stream; weight_scale as of fp4

W = (code - zero) * scale. Releases before 1.0 keep the scales of per_group as [N, G]. What is said of activations and
caches is carried, and named in a note. (Layout: amd-quark 0.13, torch/utils/pack.py, torch/export/nn/modules.)
"""

from __future__ import annotations

from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.formats import NOT_MINE, Sniff
from qdeploy.formats.huggingface.checkpoint import Checkpoint, Claim, assemble
from qdeploy.formats.huggingface.notes import Unapplied
from qdeploy.formats.huggingface.parts import FLOATS, Parts, bit_stream, tiles
from qdeploy.formats.huggingface.quark_settings import Layers, Spec
from qdeploy.formats.huggingface.rearranged import codecs
from qdeploy.formats.huggingface.words import Settings
from qdeploy.ir.dtype import plain_name
from qdeploy.ir.model import Model
from qdeploy.ir.tensor import PLAIN, Buffer, Codes, Param, QTensor, Shape
from qdeploy.pack import bits as streams
from qdeploy.store.folder import Folder

__all__ = ["NAME", "TITLE", "WRITES", "codecs", "read", "sniff"]

NAME = "quark"
TITLE = "AMD Quark: INT2 to INT8, FP8, MXFP4, MXFP6, NVFP4 weights, mixed (safetensors)"
WRITES = True

_REORDERED, _IN_TURN = "0 16 4 20 8 24 12 28", "0 4 8 12 16 20 24 28"
_HIGH_FIRST = "6 4 2 0"
_BYTES = {"int8": "I8", "uint8": "U8", "int2": "I8", "fp8_e4m3": "F8_E4M3", "fp8_e5m2": "F8_E5M2"}
_STREAMS = {"int3": ("int3", 3), "fp4": ("e2m1", 4), "fp6_e2m3": ("e2m3", 6), "fp6_e3m2": ("e3m2", 6)}
_FIELDS = {"int4": 4, "uint4": 4, "uint2": 2}
_KINDS = (*_BYTES, *_STREAMS, *_FIELDS)
_TRANSPOSED = ("int2", "int8", "uint8", *_FIELDS)


def sniff(folder: Folder) -> Sniff:
    """Declared by the quantization method."""
    return Sniff(100, f"quant_method {NAME}") if Checkpoint(folder).method == NAME else NOT_MINE


def read(folder: Folder) -> Model:
    """Opens the checkpoint; only headers are read yet.

    Raises:
        UnsupportedError: A kind of weights that is not read, by its name.
        BadFileError: The configuration contradicts the tensors.
    """
    checkpoint, unapplied, notes, claims = Checkpoint(folder), Unapplied(), list[str](), []
    layers = Layers(Settings(checkpoint.quantization))
    for name in checkpoint.entries:
        module = name.removesuffix(".weight_scale")
        if module != name:
            spec, activations = layers.of(module)
            unapplied.add(activations, module)
            claims.append(_Layer(checkpoint, module, spec, layers.reorders).claim())
    cached = any(name.endswith(("k_proj.output_scale", "v_proj.output_scale")) for name in checkpoint.entries)
    for what in dict.fromkeys([*(["the cache of keys and values"] if cached else []), *layers.unapplied]):
        unapplied.add(what, "all layers")
    notes.extend(unapplied.notes())
    return assemble(checkpoint, NAME, claims, notes)


class _Layer(Parts):
    """The stored tensors of one layer under its settings."""

    def __init__(self, checkpoint: Checkpoint, module: str, spec: Spec, reorders: bool) -> None:
        super().__init__(checkpoint, NAME, f"{module}.weight")
        self.module, self.spec, self.reorders = module, spec, reorders

    def claim(self) -> Claim:
        """Checks the shapes, and says how the weight is made."""
        if self.spec.dtype not in _KINDS:
            raise UnsupportedError(
                "this kind of weights is not read",
                where=f"{self.spec.where}.dtype: {self.module}",
                found=self.spec.dtype,
                allowed=", ".join(_KINDS),
            )
        self.build()
        parts = ("weight", "weight_scale", "weight_scale_2", "weight_zero_point")
        names = tuple(name for name in map(self._name, parts) if self.has(name))
        return Claim(
            self.parameter,
            names,
            lambda: _Layer(self.checkpoint, self.module, self.spec, self.reorders).build(),
        )

    def build(self) -> QTensor:
        """The weight."""
        shape = self._shape()
        tile = self.spec.tile(shape)
        scale, zero = self._scale(shape, tile), self._zero(shape, tile)
        codes = self._codes(shape, zero, scale)
        dtype = self.checkpoint.entries[self._name("weight_scale")].dtype
        return self.tensor(shape, dtype if dtype in FLOATS else "BF16", codes)

    def _name(self, part: str) -> str:
        return f"{self.module}.{part}"

    @property
    def _is_transposed(self) -> bool:
        return self.spec.scheme == "per_group" and self.spec.dtype in _TRANSPOSED

    @property
    def _shifts(self) -> str:
        return _HIGH_FIRST if self.spec.dtype == "uint2" else _REORDERED if self.reorders else _IN_TURN

    def _shape(self) -> Shape:
        kind = self.spec.dtype
        storage = _BYTES.get(kind, "I32" if _FIELDS.get(kind) == 4 else "U8")
        rows, size = self.entry(self.parameter, storage, rank=2).shape
        if kind in _BYTES:
            return (size, rows) if self._is_transposed else (rows, size)
        if kind in _STREAMS:
            bits = _STREAMS[kind][1]
            if size * 8 % bits:
                raise self._contradiction(self.parameter, f"whole codes of {bits} bits")
            return (rows, size * 8 // bits)
        per = len(self._shifts.split())
        if not self._is_transposed:
            return (rows, size * per)
        height = self._height(per * size)
        return (height, rows)

    def _height(self, most: int) -> int:
        """Rows of packed words: as many as there are scales."""
        scales = self.entry(self._name("weight_scale"), *FLOATS, rank=2).shape
        fitting = [n for n in (scales[1], scales[0]) if most - 8 < n <= most]
        if not fitting:
            raise self._contradiction(self._name("weight_scale"), f"[groups, {most}]")
        return fitting[0]

    def _codes(self, shape: Shape, zero: Param | None, scale: Param) -> Codes:
        kind, (rows, columns) = self.spec.dtype, shape
        if kind in _BYTES:
            how = "turned codes" if self._is_transposed else "same codes"
            data = self.take(self.parameter, how, _BYTES[kind], shape)
            table = {"I8": "int8", "U8": "uint8"}.get(_BYTES[kind]) or plain_name(_BYTES[kind])
            return Codes(shape, (data,), PLAIN, table, zero=zero, scale=scale)
        if kind in _STREAMS:
            table, bits = _STREAMS[kind]
            data = self.take(self.parameter, "same codes", "U8", self.checkpoint.entries[self.parameter].shape)
            return bit_stream(shape, data, bits, table, zero=zero, scale=scale)
        bits = _FIELDS[kind]
        way, count = ("across", rows) if self._is_transposed else ("along", columns)
        how = f"{way} codes {count} {bits} {self._shifts}"
        data = self.take(self.parameter, how, "U8", (rows, streams.row_bytes(columns, bits)))
        return bit_stream(shape, data, bits, kind, zero=zero, scale=scale)

    def _scale(self, shape: Shape, tile: Shape) -> Param:
        name, grid, small = self._name("weight_scale"), tiles(shape, tile), self.spec.dtype.startswith("fp")
        kinds: tuple[str, ...] = ("U8", "F8_E8M0", "F8_E4M3", *FLOATS) if small else FLOATS
        dtype = self.shaped(name, self._param_shapes(grid), *kinds, because=self.spec.scheme).dtype
        above, second = None, self._name("weight_scale_2")
        if self.has(second):
            self.shaped(second, [(), (1,)], *FLOATS)
            above = self.scale(second, "scale.scale", (1, 1), grid)
        elif dtype == "F8_E4M3" and self.spec.is_nested:
            self.entry(second)
        if dtype == "U8" and self.spec.scale_format != "e8m0":
            raise UnsupportedError(
                "scales of this type are not read",
                where=f"{self.spec.where}.scale_format: {name}",
                found=self.spec.scale_format,
                allowed="e8m0",
            )
        values = self._spread(name, "scale", grid, dtype)
        return Param(Codes(grid, (values,), PLAIN, "e8m0" if dtype == "U8" else plain_name(dtype), scale=above), tile)

    def _param_shapes(self, grid: Shape) -> list[Shape]:
        """The shapes that a grid of parameters may be stored in."""
        if grid == (1, 1):
            return [(), (1,), (1, 1)]
        if self.spec.scheme == "per_group" and (self.spec.dtype in _TRANSPOSED or self.spec.dtype == "int3"):
            return [(grid[1], grid[0]), grid]
        return [grid, *([(grid[0],)] if grid[1] == 1 else [])]

    def _spread(self, name: str, key: str, grid: Shape, dtype: str) -> Buffer:
        """Stored parameters as a grid of groups."""
        stored = self.checkpoint.entries[name].shape
        swapped = self._param_shapes(grid)[0]
        if stored == swapped and swapped == (grid[1], grid[0]) and len(self._param_shapes(grid)) == 2 and grid[1] != 1:
            return self.take(name, f"turned {key}", dtype, grid)
        return self.matrix(name, key, grid)

    def _zero(self, shape: Shape, tile: Shape) -> Param | None:
        name, kind, grid = self._name("weight_zero_point"), self.spec.dtype, tiles(shape, tile)
        if not self.has(name):
            if kind.startswith("uint") or self.spec.values.get("symmetric") is False:
                self.entry(name)
            return None
        entry = self.entry(name, "I32", "I8", "U8", *FLOATS)
        if entry.dtype in FLOATS or (kind in _BYTES and entry.dtype == _BYTES[kind]) or entry.shape == ():
            self.shaped(name, self._param_shapes(grid), entry.dtype, because=self.spec.scheme)
            return Param(
                Codes(grid, (self._spread(name, "zero", grid, entry.dtype),), PLAIN, plain_name(entry.dtype)), tile
            )
        bits = _FIELDS.get(kind) or _STREAMS.get(kind, ("", 8))[1]
        if kind in _STREAMS:
            self.shaped(name, [(grid[0], grid[1] * bits // 8)], "U8")
            data = self.take(name, "same zero", "U8", (grid[0], grid[1] * bits // 8))
        else:
            data = self._packed_zero(name, grid, bits)
        return Param(bit_stream(grid, data, bits, kind), tile)

    def _packed_zero(self, name: str, grid: Shape, bits: int) -> Buffer:
        words, storage = -(-grid[0] // len(self._shifts.split())), "I32" if bits == 4 else "U8"
        size = streams.row_bytes(grid[1], bits)
        if self._is_transposed:
            self.shaped(name, [(grid[1], words)], storage, because=self.spec.scheme)
            return self.take(name, f"across zero {grid[0]} {bits} {self._shifts}", "U8", (grid[0], size))
        self.shaped(name, [(words,)], storage, because=self.spec.scheme)
        return self.take(name, f"column zero {grid[0]} {bits} {self._shifts}", "U8", (grid[0], size))

    def _contradiction(self, name: str, allowed: str) -> BadFileError:
        return BadFileError(
            "a tensor contradicts the configuration or the tensors beside it",
            where=name,
            found=list(self.checkpoint.entries[name].shape),
            allowed=allowed,
        )
