"""VPTQ (arXiv 2409.17066): vectors down the columns, with residual and outlier codebooks (`quant_method: vptq`).

`config_for_layers` has the settings of each layer by name; those of `shared_layer_config` hold where a layer has none.
Pairs are (outliers, rest); v = vector_lens, k = num_centroids, r = num_res_centroids (-1: none). Weight [N, K], O =
outlier_size columns of outliers, G = group_num groups of group_size columns, O + G * group_size = K:

    centroids.weight           F16 (also BF16, F32) [G, k * v]        res_centroids.weight [G, r * v]
    indices                    I32 [G, ceil(N / v), W]: per row a bit stream of index + residual index * k
                               I16 [G, ceil(N / v), group_size] unsigned, beside res_indices, where not
                               is_indice_packed; F16 of the same bits where indices_as_float
    outlier_centroids.weight   [1, k0 * v0]                            outlier_indices I16 [1, ceil(N / v0), O]
    perm                       I16 [K] unsigned, or I64: stored column p is column perm[p]; outliers are stored first
    weight_scale, weight_bias  [K]

Column p of the sum of looked-up vectors is column perm[p] of W' [N, K]; W = W' * weight_scale + weight_bias, by column.
Rows of vectors beyond N are dropped. In a tensor codes stand in the order of its columns. (Layout: vptq 0.0.5,
layers/vqlinear.py, ops/quant_gemm.py and utils/pack.py.)
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from qdeploy.errors import BadFileError
from qdeploy.formats import NOT_MINE, Sniff
from qdeploy.formats.huggingface.checkpoint import Checkpoint, Claim, assemble
from qdeploy.formats.huggingface.known import KERNEL, LEFT_OUT, Known, because
from qdeploy.formats.huggingface.parts import FLOATS, Parts
from qdeploy.formats.huggingface.permuted import Permutation, codecs
from qdeploy.formats.huggingface.vptq_settings import Layers
from qdeploy.formats.huggingface.vptq_settings import Layout as Sizes
from qdeploy.formats.huggingface.words import Settings
from qdeploy.ir.dtype import plain_name
from qdeploy.ir.model import Model
from qdeploy.ir.tensor import PLAIN, Buffer, Codes, Layout, Param, QTensor, Source, Table, Term
from qdeploy.pack import bits as streams
from qdeploy.store.folder import Folder

__all__ = ["NAME", "TITLE", "WRITES", "codecs", "read", "sniff"]

NAME = "vptq"
TITLE = "VPTQ: vector codebooks with residuals, outliers and column orders (safetensors)"
WRITES = True
SETTINGS = Known(("config_for_layers", "shared_layer_config"), {**LEFT_OUT, **because(KERNEL, "enable_proxy_error")})

_BOOK = "centroids.weight"


def sniff(folder: Folder) -> Sniff:
    """Declared by the quantization method."""
    return Sniff(100, f"quant_method {NAME}") if Checkpoint(folder).method == NAME else NOT_MINE


def read(folder: Folder) -> Model:
    """Opens the checkpoint; headers and the orders of columns are read.

    Raises:
        UnsupportedError: Vectors along the rows, or codebooks of more than 65,536 entries.
        BadFileError: The configuration contradicts the tensors.
    """
    checkpoint = Checkpoint(folder)
    settings = Settings(checkpoint.quantization)
    SETTINGS.check(settings)
    layers = Layers(settings)
    names = (n.removesuffix(part) for n in checkpoint.entries for part in (".indices", f".{_BOOK}") if n.endswith(part))
    return assemble(checkpoint, NAME, [_Layer(checkpoint, m, layers.of(m)).claim() for m in dict.fromkeys(names)])


class _Layer(Parts):
    """The stored tensors of one layer."""

    def __init__(self, checkpoint: Checkpoint, module: str, sizes: Sizes) -> None:
        super().__init__(checkpoint, NAME, f"{module}.weight")
        self.module, self.sizes = module, sizes

    def claim(self) -> Claim:
        """Checks the shapes, and says how the weight is made."""
        self.build()
        stored = tuple(self.arrangements)
        return Claim(self.parameter, stored, lambda: _Layer(self.checkpoint, self.module, self.sizes).build())

    def build(self) -> QTensor:
        """The weight: a term per codebook, then scale and offset per column."""
        sizes = self.sizes
        order = self._order
        self._check_indices()
        masked = sizes.outliers > 0
        terms = [self._term(_BOOK, "codes", sizes.entries, masked)]
        if sizes.residuals:
            terms.append(self._term(f"res_{_BOOK}", "residual", sizes.residuals, masked))
        if masked:
            terms.append(self._outliers())
        if sizes.is_permuted:
            self.arrangements[self._name("perm")] = "order"
            self.checkpoint.origins[self._name("perm")].prove_verbatim(0, sizes.columns)
        scale, offset = self._per_column("weight_scale", "scale"), self._per_column("weight_bias", "offset")
        dtype = self.checkpoint.entries[self._name(_BOOK)].dtype
        tensor = self.summed((sizes.rows, sizes.columns), dtype, tuple(terms), scale, offset)
        source = tensor.source or Source(NAME)
        args = {**source.args, "order": order.text} if sizes.is_permuted else source.args
        return QTensor(
            tensor.shape,
            dtype,
            tensor.terms,
            scale=scale,
            offset=offset,
            source=Source(NAME, "arranged", args, source.tensors),
        )

    def _name(self, part: str) -> str:
        return f"{self.module}.{part}"

    @cached_property
    def _order(self) -> Permutation:
        """Which column each stored column is."""
        sizes, name = self.sizes, self._name("perm")
        if not sizes.is_permuted:
            if self.has(name):
                raise BadFileError("the configuration contradicts the tensors", where=name, allowed="enable_perm: true")
            return Permutation.identity(sizes.columns)
        entry = self.shaped(name, [(sizes.columns,)], "I16", "I64", because="in_features")
        return Permutation.of(entry.slab(0, 0, sizes.columns), name)

    def _check_indices(self) -> None:
        sizes, grid = self.sizes, (self.sizes.groups, self.sizes.vectors)
        if sizes.is_packed:
            words = -(-sizes.group * (sizes.bits + sizes.residual_bits) // 32)
            self.shaped(self._name("indices"), [(*grid, words)], "I32", because="group_size and num_centroids")
            return
        kind = "F16" if sizes.is_float else "I16"
        for part in ("indices", "res_indices") if sizes.residuals else ("indices",):
            self.shaped(self._name(part), [(*grid, sizes.group)], kind, because="group_size")

    def _term(self, book: str, key: str, entries: int, masked: bool) -> Term:
        """The main or residual codebook over its columns."""
        sizes = self.sizes
        bits = sizes.bits if key == "codes" else sizes.residual_bits
        name = self._name("indices" if sizes.is_packed or key == "codes" else "res_indices")
        stored = f"{sizes.bits} {sizes.residual_bits}" if sizes.is_packed else f"{bits if key == 'codes' else 0} {bits}"
        which = key if not sizes.is_packed else ("codes residual" if sizes.residuals else "codes")
        self.arrangements[name] = f"indices {sizes.outliers} {sizes.group} {stored} {int(masked)} {which}"
        grid = (sizes.vectors, sizes.columns)
        layout = PLAIN if masked else Layout("bits", width=bits)
        count = sizes.vectors * (sizes.columns - sizes.outliers)
        kind = "U8" if bits <= 8 else "U16"
        shape = (count,) if masked else (sizes.vectors, streams.row_bytes(sizes.columns, bits))
        data = self._permuted(key, kind if masked else "U8", shape, name)
        values = self._codebook(book, f"{key}.table", sizes.groups, entries, sizes.length)
        select = self._select(grid) if sizes.groups > 1 else None
        codes = Codes(grid, (data,), layout, Table(values, select))
        return Term(codes, self._columns(f"{key}.where", False) if masked else None)

    def _outliers(self) -> Term:
        sizes, name = self.sizes, self._name("outlier_indices")
        kind = "F16" if sizes.is_float else "I16"
        self.shaped(name, [(1, sizes.outlier_vectors, sizes.outliers)], kind, because="outlier_size")
        self.arrangements[name] = f"outliers {sizes.outliers} outlier"
        count = sizes.outlier_vectors * sizes.outliers
        data = self._permuted("outlier", "U16", (count,), name)
        book = f"outlier_{_BOOK}"
        values = self._codebook(book, "outlier.table", 1, sizes.outlier_entries, sizes.outlier_length)
        grid = (sizes.outlier_vectors, sizes.columns)
        return Term(Codes(grid, (data,), PLAIN, Table(values)), self._columns("outlier.where", True))

    def _permuted(self, key: str, dtype: str, shape: tuple[int, ...], name: str) -> Buffer:
        """A buffer of codes in the order of the columns."""
        how = self._order.codec(self._stored(name), self.arrangements[name])
        return self.checkpoint.unpacked(key, dtype, shape, name, how)

    def _codebook(self, part: str, key: str, tables: int, entries: int, length: int) -> Buffer:
        name = self._name(part)
        self.shaped(name, [(tables, entries * length)], *FLOATS, because="num_centroids and vector_lens")
        dtype = self.checkpoint.entries[name].dtype
        return self.take(name, f"shaped {key} {entries} {length} 1", dtype, (tables, entries, length, 1))

    def _select(self, grid: tuple[int, int]) -> Param:
        """Which group each column is of."""
        group = (self._order.stored - self.sizes.outliers) // self.sizes.group
        buffer = Buffer.of("select", np.maximum(group, 0).astype(np.uint16).reshape(1, -1), "U16")
        return Param(Codes((1, grid[1]), (buffer,), PLAIN, "uint16"), (grid[0], 1))

    def _columns(self, key: str, outliers: bool) -> Codes:
        """A bit per column: whether it is one of outliers."""
        chosen = (self._order.stored < self.sizes.outliers) == outliers
        packed = streams.pack(chosen.astype(np.uint8).reshape(1, -1), 1)
        return Codes((1, len(chosen)), (Buffer.of(key, packed, "U8"),), Layout("bits", width=1), "uint1")

    def _per_column(self, part: str, key: str) -> Param | None:
        name, sizes = self._name(part), self.sizes
        if not sizes.is_scaled:
            if self.has(name):
                raise BadFileError("the configuration contradicts the tensors", where=name, allowed="enable_norm: true")
            return None
        dtype = self.shaped(name, [(sizes.columns,)], *FLOATS, because="in_features").dtype
        grid = (1, sizes.columns)
        buffer = self.take(name, f"rows {key} {sizes.columns}", dtype, grid)
        return Param(Codes(grid, (buffer,), PLAIN, plain_name(dtype)), (sizes.rows, 1))
