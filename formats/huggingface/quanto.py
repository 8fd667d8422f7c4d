"""optimum-quanto: qint2, qint4, qint8 and qfloat8 weights; `quanto_qmap.json` says which module has which.

Per module, weight [N, K]:

    qint8, qfloat8   weight._data I8, F8_E4M3 or F8_E5M2 [N, K]; weight._scale [N, 1] or one for all
    qint4, qint2     weight._data._data U8 [ceil(R / strips), g]: the matrix W.reshape(-1, g) in strips that share
                     bytes, the first in the low bits (`strips.py`); weight._scale and weight._shift [R, 1],
                     R = N * K / g
    input_scale, output_scale    of activations; carried as tensors of their own

    8 bits   W = code * scale
    others   W = (code * scale - shift).reshape(N, K)

Files do not hold N and K: they follow from the bias, or from the configuration of the network by the module's name.
(Layout: optimum-quanto 0.2.7, tensor/packed.py and tensor/weights/qbits.py.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.formats import NOT_MINE, Sniff
from qdeploy.formats.huggingface.checkpoint import Checkpoint, Claim, assemble
from qdeploy.formats.huggingface.known import INPUTS, Known, because
from qdeploy.formats.huggingface.notes import Unapplied
from qdeploy.formats.huggingface.parts import FLOATS, Parts, bit_stream
from qdeploy.formats.huggingface.rearranged import codecs
from qdeploy.formats.huggingface.words import Settings
from qdeploy.ir.model import Model
from qdeploy.ir.tensor import PLAIN, Codes, QTensor, Shape
from qdeploy.pack import bits as streams
from qdeploy.store.folder import Folder

__all__ = ["NAME", "TITLE", "WRITES", "codecs", "read", "sniff"]

NAME = "quanto"
TITLE = "optimum-quanto: qint2, qint4, qint8, qfloat8 (safetensors and quanto_qmap.json)"
WRITES = True
SETTINGS = Known(("weights",), because(INPUTS, "activations"))
"""Of a module in the map."""
MAP = "quanto_qmap.json"

_WIDTHS = {"qint2": 2, "qint4": 4}
_BYTES = {
    "qint8": ("I8", "int8"),
    "qfloat8": ("F8_E4M3", "e4m3"),
    "qfloat8_e4m3fn": ("F8_E4M3", "e4m3"),
    "qfloat8_e5m2": ("F8_E5M2", "e5m2"),
}
_HIDDEN = (
    "q_proj",
    "k_proj",
    "v_proj",
    "gate_proj",
    "up_proj",
    "qkv_proj",
    "gate_up_proj",
    "fc1",
    "lm_head",
    "embed_tokens",
)


def sniff(folder: Folder) -> Sniff:
    """Declared by the map of modules."""
    return Sniff(100, MAP) if not folder.only and folder.has(MAP) else NOT_MINE


def read(folder: Folder) -> Model:
    """Opens the checkpoint; nothing but the headers and the map is read yet.

    Raises:
        UnsupportedError: Another type than those above, by its name.
        BadFileError: The map contradicts the tensors.
    """
    checkpoint, notes, unapplied = Checkpoint(folder), list[str](), Unapplied()
    table = folder.json(MAP)
    if not isinstance(table, dict):
        raise BadFileError("the map of modules is no object", where=MAP)
    claims = []
    for module, row in table.items():
        if not isinstance(row, dict):
            raise BadFileError("what is said of a module is no object", where=f"{MAP}: {module}", found=repr(row)[:100])
        SETTINGS.check(Settings(row, f"{MAP}: {module}"))
        kind = row.get("weights")
        if kind in (None, "none"):
            continue
        if row.get("activations") not in (None, "none"):
            unapplied.add(f"inputs and outputs to {row['activations']}, static", module)
        claims.append(_Module(checkpoint, module, str(kind)).claim())
    notes.extend(unapplied.notes())
    return assemble(checkpoint, NAME, claims, notes)


class _Module(Parts):
    """The stored tensors of one module."""

    def __init__(self, checkpoint: Checkpoint, module: str, kind: str) -> None:
        super().__init__(checkpoint, NAME, f"{module}.weight")
        self.module, self.kind = module, kind

    def claim(self) -> Claim:
        """Checks the shapes, and says how the weight is made."""
        if self.kind in _BYTES:
            self._measure_bytes()
            stored = ["._data", "._scale"]
        elif self.kind in _WIDTHS:
            self._measure_strips()
            stored = ["._data._data", "._scale", "._shift"]
        else:
            raise UnsupportedError(
                "this type of quanto is not read",
                where=f"{MAP}: {self.module}",
                found=self.kind,
                allowed=", ".join((*_WIDTHS, *_BYTES)),
            )
        return Claim(self.parameter, tuple(self.parameter + part for part in stored), self._fresh)

    def _fresh(self) -> QTensor:
        module = _Module(self.checkpoint, self.module, self.kind)
        return module.build_bytes() if self.kind in _BYTES else module.build_strips()

    def build_bytes(self) -> QTensor:
        """A weight of one code per byte."""
        shape, name = self._measure_bytes(), f"{self.parameter}._scale"
        dtype, table = _BYTES[self.kind]
        data = self.take(f"{self.parameter}._data", "same codes", dtype, shape)
        scales = self.checkpoint.entries[name]
        one = math.prod(scales.shape) == 1
        scale = self.scale(name, "scale", (1, 1) if one else (shape[0], 1), shape if one else (1, shape[1]))
        return self.tensor(shape, scales.dtype, Codes(shape, (data,), PLAIN, table, scale=scale))

    def build_strips(self) -> QTensor:
        """A weight of few bits, groups as rows of its grid."""
        shape, grid = self._measure_strips()
        bits, (rows, group) = _WIDTHS[self.kind], grid
        shifts = " ".join(str(s) for s in range(0, 8, bits))
        size = streams.row_bytes(group, bits)
        data = self.take(f"{self.parameter}._data._data", f"strips codes {rows} {bits} {shifts}", "U8", (rows, size))
        scale = self.scale(f"{self.parameter}._scale", "scale", (rows, 1), (1, group))
        shift = self._minus_shift(rows, group)
        dtype = self.checkpoint.entries[f"{self.parameter}._scale"].dtype
        return self.tensor(shape, dtype, bit_stream(grid, data, bits, f"uint{bits}", scale=scale, offset=shift))

    def _minus_shift(self, rows: int, group: int) -> Any:
        from qdeploy.ir.dtype import plain_name
        from qdeploy.ir.tensor import Param

        name = f"{self.parameter}._shift"
        dtype = self.checkpoint.entries[name].dtype
        buffer = self.take(name, "negative offset 1", dtype, (rows, 1))
        return Param(Codes((rows, 1), (buffer,), PLAIN, plain_name(dtype)), (1, group))

    def _measure_bytes(self) -> Shape:
        shape = self.entry(f"{self.parameter}._data", _BYTES[self.kind][0], rank=2).shape
        self.shaped(f"{self.parameter}._scale", [(shape[0], 1), (), (1,), (1, 1)], *FLOATS)
        return shape

    def _measure_strips(self) -> tuple[Shape, Shape]:
        strips = 8 // _WIDTHS[self.kind]
        height, group = self.entry(f"{self.parameter}._data._data", "U8", rank=2).shape
        rows = self.entry(f"{self.parameter}._scale", *FLOATS, rank=2).shape[0]
        if -(-rows // strips) != height:
            raise BadFileError(
                "codes and scales contradict each other",
                where=f"{self.parameter}._data._data",
                found=f"{height} rows of bytes",
                allowed=f"{-(-rows // strips)} for {rows} scales",
            )
        for part in ("._scale", "._shift"):
            self.shaped(self.parameter + part, [(rows, 1)], *FLOATS)
        columns = self._columns(rows * group)
        if rows * group % columns:
            where = f"{self.parameter}._data._data"
            raise BadFileError("codes do not fill the rows of the weight", where=where, found=rows * group)
        return (rows * group // columns, columns), (rows, group)

    def _columns(self, count: int) -> int:
        """K: from the bias, or from what the configuration says of the inputs of such a module."""
        bias = self.checkpoint.entries.get(f"{self.module}.bias")
        if bias is not None and bias.shape and bias.shape[0] and count % bias.shape[0] == 0:
            return count // bias.shape[0]
        columns = _inputs(self.module.rpartition(".")[2], self.checkpoint.config)
        if columns < 1:
            raise UnsupportedError(
                "the shape of a packed weight is not known",
                where=f"{self.parameter}._data._data",
                found="no bias, and a module of another name",
                todo="Convert the model with qint8, whose tensors have their shape.",
            )
        return columns


def _inputs(name: str, config: Mapping[str, Any]) -> int:
    """Inputs of a projection of a decoder; 0 where it is none of those that are known."""
    sizes = {key: value for key, value in config.items() if type(value) is int}
    hidden, heads = sizes.get("hidden_size", 0), sizes.get("num_attention_heads", 0)
    if name in _HIDDEN:
        return hidden
    if name in ("down_proj", "fc2"):
        return sizes.get("intermediate_size", 0)
    if name == "o_proj":
        return heads * sizes["head_dim"] if "head_dim" in sizes else hidden
    return 0
