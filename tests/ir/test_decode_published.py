"""Every published encoding that is not GPTQ, AWQ or GGUF: built from the stored tensors, decoded as its library does.

The checkpoints were written by the formats' libraries; `oracle.npz` holds what those libraries decode. Those that
compute in float32 are met exactly; compressed-tensors shows bfloat16 roundings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from qdeploy.ir import rules
from qdeploy.ir.dtype import plain_name
from qdeploy.ir.tensor import PLAIN, Buffer, Codes, Layout, Param, QTensor, Table, Term
from qdeploy.pack import bits
from qdeploy.store.folder import Folder
from qdeploy.store.safetensors import SafetensorsFile
from qdeploy.store.storage import storage_dtype

Array = npt.NDArray[Any]
NAME = "model.layers.0.mlp.down_proj"


class Stored:
    """The tensors of one module of a checkpoint, by what follows the module's name."""

    def __init__(self, folder: Path, module: str) -> None:
        entries = SafetensorsFile(Folder(folder), next(folder.glob("*.safetensors")).name).entries
        rows = {name: entry for name, entry in entries.items() if name.startswith(module)}
        self._arrays = {k[len(module) :]: e.slab(0, 0, (*e.shape, 1)[0]).reshape(e.shape) for k, e in rows.items()}
        self._dtypes = {k[len(module) :]: e.dtype for k, e in rows.items()}

    def __getitem__(self, name: str) -> Array:
        return self._arrays[name]

    def plain(self, name: str, shape: tuple[int, ...] | None = None, table: str | None = None, **params: Any) -> Codes:
        """A stored tensor as plain codes, in another shape or number format if need be."""
        array = self[name].reshape(shape or self[name].shape)
        dtype = self._dtypes[name]
        return Codes(array.shape, (Buffer.of(name, array, dtype),), PLAIN, table or plain_name(dtype), **params)


def packed(codes: Array, width: int, table: str | Table, **params: Any) -> Codes:
    buffer = Buffer.of("codes", bits.pack(codes.astype(np.uint8), width), "U8")
    return Codes(codes.shape, (buffer,), Layout("bits", width), table, **params)


def negated(codes: Codes) -> Codes:
    """The same numbers with the other sign, as data."""
    dtype = codes.data[0].dtype
    buffer = Buffer.of("negated", (-codes.data[0].read()).astype(storage_dtype(dtype)), dtype)
    return Codes(codes.shape, (buffer,), PLAIN, codes.table)


def nibbles(octets: Array, *, high_first: bool = False) -> Array:
    """[..., n] bytes -> [..., 2 * n] codes."""
    pair = (octets >> 4, octets & 15) if high_first else (octets & 15, octets >> 4)
    return np.stack(pair, -1).reshape(*octets.shape[:-1], -1)


def bnb_4bit(t: Stored) -> Codes:
    """Flat blocks of 64, the high nibble first; a table of 16 and one absmax per block."""
    codes = nibbles(t[".weight"].reshape(-1, 32), high_first=True)
    table = Table(Buffer.of("table", t[".weight.quant_map"].reshape(1, 16), "F32"))
    return packed(codes, 4, table, scale=Param(t.plain(".weight.absmax", (len(codes), 1)), (1, 64)))


def hqq_axis0(t: Stored) -> Codes:
    """[64, N * K / 64]: a group is every (N * K / 64)-th element; high nibbles are the first half of the rows."""
    codes = np.concatenate([t[".W_q"] >> 4, t[".W_q"] & 15])
    return packed(codes, 4, "uint4", zero=Param(t.plain(".zero"), (64, 1)), scale=Param(t.plain(".scale"), (64, 1)))


def hqq_axis1(width: int) -> Callable[[Stored], Codes]:
    """[N * K / group, group]; the fields of a byte are parts of the rows, the highest bits the first part."""

    def build(t: Stored) -> Codes:
        parts = [t[".W_q"] >> shift & (1 << width) - 1 for shift in reversed(range(0, 8, width))]
        codes = np.concatenate(parts)
        tile = (1, codes.shape[1])
        zero, scale = Param(t.plain(".zero"), tile), Param(t.plain(".scale"), tile)
        return packed(codes, width, f"uint{width}", zero=zero, scale=scale)

    return build


def quanto_qint4(t: Stored) -> Codes:
    """[N * K / 128, 128]; low nibbles are the first half; a float shift is subtracted after the scale."""
    data = t[".weight._data._data"]
    tile = (1, data.shape[1])
    offset = Param(negated(t.plain(".weight._shift")), tile)
    return packed(
        np.concatenate([data & 15, data >> 4]), 4, "uint4", scale=Param(t.plain(".weight._scale"), tile), offset=offset
    )


def whole(
    weight: str, scale: str, tile: tuple[int, ...], zero: str = "", table: str | None = None
) -> Callable[[Stored], Codes]:
    """One stored code per weight, and a scale (and zero) per tile."""

    def build(t: Stored) -> Codes:
        grid = tuple(-(-n // s) for n, s in zip(t[weight].shape, tile, strict=True))
        params = {"scale": Param(t.plain(scale, grid, table), tile)}
        if zero:
            params["zero"] = Param(t.plain(zero, grid), tile)
        return t.plain(weight, **params)

    return build


def ct_packed(width: int, group: int) -> Callable[[Stored], Codes]:
    """Rows of int32 words, each a bit stream of unsigned codes with a zero of half the range."""

    def build(t: Stored) -> Codes:
        rows, columns = t[".weight_shape"].tolist()
        stream = t[".weight_packed"].view(np.uint8)[:, : bits.row_bytes(columns, width)]
        half = Codes((1, 1), (Buffer.of("zero", np.array([[1 << (width - 1)]], np.uint8), "U8"),), PLAIN, "uint8")
        return Codes(
            (rows, columns),
            (Buffer.of("codes", stream, "U8"),),
            Layout("bits", width),
            f"uint{width}",
            zero=Param(half, (rows, columns)),
            scale=Param(t.plain(".weight_scale"), (1, group)),
        )

    return build


def ct_mxfp4(t: Stored) -> Codes:
    scale = Param(t.plain(".weight_scale", table="e8m0"), (1, 32))
    return packed(nibbles(t[".weight_packed"]), 4, "e2m1", scale=scale)


EXACT: Mapping[str, Callable[[Stored], Codes]] = {
    "bnb-nf4-tinyllama": bnb_4bit,
    "bnb-fp4-tinyllama": bnb_4bit,
    "hqq4-axis0-tinyqwen2": hqq_axis0,
    "hqq4-g64-tinyllama": hqq_axis1(4),
    "hqq2-g16-tinyllama": hqq_axis1(2),
    "hqq1-g32-tinyllama": hqq_axis1(1),
    "quanto-qint4-tinyllama": quanto_qint4,
    "quanto-qint8-tinyqwen2": whole(".weight._data", ".weight._scale", (1, 384)),
    "quanto-qfloat8-tinyllama": whole(".weight._data", ".weight._scale", (1, 384)),
    "fp8-finegrained-b128-tinyllama": whole(".weight", ".weight_scale_inv", (128, 128)),
    "fp8-finegrained-ue8m0-tinyllama": whole(".weight", ".weight_scale_inv", (128, 128)),
    "torchao-fp8wo-tinyllama": whole("._weight_qdata", "._weight_scale", (1, 384)),
    "torchao-int8wo-tinyqwen2": whole("._weight_qdata", "._weight_scale", (1, 384), "._weight_zero_point"),
    "torchao-int8da-int4w-tinyllama": whole("._weight_qdata", "._weight_scale", (1, 32), "._weight_zero_point"),
    "torchao-intx4-g32-tinyllama": whole("._weight_qdata", "._weight_scale", (1, 32), "._weight_zero_point"),
}

BFLOAT16: Mapping[str, Callable[[Stored], Codes]] = {
    "ct-w4a16-tinyllama": ct_packed(4, 128),
    "ct-w3a16-g64-tinyllama": ct_packed(3, 64),
    "ct-w8a8-int-tinyllama": whole(".weight", ".weight_scale", (1, 384)),
    "ct-fp8-dynamic-tinyllama": whole(".weight", ".weight_scale", (1, 384)),
    "ct-fp8-static-tinyqwen2": whole(".weight", ".weight_scale", (256, 384)),
    "ct-fp8-block-tinyllama": whole(".weight", ".weight_scale", (128, 128)),
    "ct-mxfp4a16-tinyllama": ct_mxfp4,
    "ct-mxfp8-tinyllama": whole(".weight", ".weight_scale", (1, 32), table="e8m0"),
}


def library_weight(folder: Path, name: str) -> Array:
    with np.load(folder / "oracle.npz") as oracle:
        return np.asarray(oracle[f"w:{name}"])


def legal(codes: Codes, shape: tuple[int, ...]) -> QTensor:
    tensor = QTensor(shape, "F32", (Term(codes),))
    rules.check(tensor, "weight")
    rules.check_values(tensor, "weight")
    return tensor


@pytest.mark.parametrize("checkpoint", EXACT)
def test_a_float32_library_is_met_bit_for_bit(checkpoint: str, testdata: Path) -> None:
    folder = testdata / "checkpoints" / checkpoint
    want = library_weight(folder, f"{NAME}.weight")
    tensor = legal(EXACT[checkpoint](Stored(folder, NAME)), want.shape)
    np.testing.assert_array_equal(tensor.decode(), want)
    np.testing.assert_array_equal(tensor.decode(slice(37, 151)), want[37:151])


@pytest.mark.parametrize("checkpoint", BFLOAT16)
def test_a_bfloat16_library_is_met_after_rounding(checkpoint: str, testdata: Path) -> None:
    folder = testdata / "checkpoints" / checkpoint
    want = library_weight(folder, f"{NAME}.weight")
    tensor = legal(BFLOAT16[checkpoint](Stored(folder, NAME)), want.shape)
    np.testing.assert_array_equal(tensor.decode().astype(ml_dtypes.bfloat16).astype(np.float32), want)


@pytest.mark.parametrize("matrix", ["gate_up_proj", "down_proj"])
def test_experts_are_one_grid_of_three_axes(matrix: str, testdata: Path) -> None:
    folder, name = testdata / "checkpoints" / "mxfp4-gptoss-tiny", "model.layers.0.mlp.experts"
    t = Stored(folder, name)
    blocks = t[f".{matrix}_blocks"]  # [experts, rows, blocks, 16]
    codes = nibbles(blocks).reshape(*blocks.shape[:2], -1)
    scale = Param(t.plain(f".{matrix}_scales", table="e8m0"), (1, 1, 32))
    tensor = legal(packed(codes, 4, "e2m1", scale=scale), codes.shape)
    want = library_weight(folder, f"{name}.{matrix}").transpose(0, 2, 1)  # the library shows the transpose
    np.testing.assert_array_equal(tensor.decode(), want)
    np.testing.assert_array_equal(tensor.decode(slice(1, 3)), want[1:3])
