"""bitsandbytes: NF4 and FP4 (QLoRA, arXiv 2305.14314, sections 3) and LLM.int8() (arXiv 2208.07339).

`quant_method: bitsandbytes`. Per linear layer, weight [N, K]:

    4 bits   weight U8 [ceil(N * K / 2), 1]      codes of the flattened matrix, the first of a byte in its high half
             weight.absmax F32 [blocks]          one per `blocksize` codes of the flattened matrix
             weight.quant_map F32 [16]           the value of each code
             weight.quant_state.bitsandbytes__nf4 (or __fp4) U8   JSON: quant_type, blocksize, shape, dtype
      double quantization: absmax is U8, with nested_absmax F32 [ceil(blocks / nested_blocksize)], nested_quant_map F32
             [256], and nested_blocksize and nested_offset in the JSON
    8 bits   weight I8 [N, K], SCB F32 [N], weight_format U8 (0: rows)

    4 bits   W.flat[i] = quant_map[code[i]] * absmax[i // blocksize]
             absmax[j] = nested_quant_map[code[j]] * nested_absmax[j // nested_blocksize] + nested_offset
    8 bits   W[n, k] = code[n, k] * (SCB[n] / 127)

bitsandbytes 0.50 saves damaged files after a forward pass on a CPU: absmax is then a matrix, or bfloat16;
they are refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.formats import NOT_MINE, Sniff
from qdeploy.formats.huggingface.checkpoint import Checkpoint, Claim, assemble
from qdeploy.formats.huggingface.known import KERNEL, LEFT_OUT, STORED, Known, because
from qdeploy.formats.huggingface.notes import Unapplied
from qdeploy.formats.huggingface.parts import Parts, bit_stream, constant
from qdeploy.formats.huggingface.rearranged import codecs
from qdeploy.formats.huggingface.words import Settings
from qdeploy.ir.model import Model
from qdeploy.ir.tensor import PLAIN, Codes, Param, QTensor, Shape, Table
from qdeploy.store.folder import Folder

__all__ = ["NAME", "TITLE", "WRITES", "codecs", "read", "sniff"]

NAME = "bitsandbytes"
TITLE = "bitsandbytes: NF4, FP4, double quantization, and LLM.int8() (safetensors)"
WRITES = True
SETTINGS = Known(
    ("llm_int8_threshold",),
    {
        **LEFT_OUT,
        **because(
            "stored tensors show which layers are quantized",
            *("load_in_4bit", "load_in_8bit", "_load_in_4bit", "_load_in_8bit", "llm_int8_skip_modules"),
        ),
        **because(STORED, "bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "bnb_4bit_quant_storage"),
        **because(KERNEL, "bnb_4bit_compute_dtype", "llm_int8_enable_fp32_cpu_offload", "llm_int8_has_fp16_weight"),
    },
)
DESCRIPTION = Known(
    ("blocksize", "shape", "dtype", "nested_blocksize", "nested_offset"),
    because(STORED, "quant_type", "nested_dtype"),
)
"""What is said of a tensor of 4-bit codes."""

_STATE = ".quant_state.bitsandbytes__"
_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def sniff(folder: Folder) -> Sniff:
    """Declared by the quantization method."""
    return Sniff(100, f"quant_method {NAME}") if Checkpoint(folder).method == NAME else NOT_MINE


def read(folder: Folder) -> Model:
    """Opens the checkpoint; headers and the descriptions of 4-bit tensors are read.

    Raises:
        UnsupportedError: A variant that is not read, by its name.
        BadFileError: A description contradicts the tensors, or the file is one of the damaged ones.
    """
    checkpoint, notes, unapplied = Checkpoint(folder), list[str](), Unapplied()
    settings = Settings(checkpoint.quantization)
    SETTINGS.check(settings)
    threshold = settings.values.get("llm_int8_threshold")
    claims = []
    for name in checkpoint.entries:
        if _STATE in name:
            claims.append(_Nibbles(checkpoint, name).claim())
        elif name.endswith(".SCB"):
            unapplied.add(
                f"inputs to 8-bit int per token, outliers from {threshold} on aside", name.removesuffix(".SCB")
            )
            claims.append(_rows_of_bytes(checkpoint, name.removesuffix(".SCB")))
    notes.extend(unapplied.notes())
    return assemble(checkpoint, NAME, claims, notes)


def _rows_of_bytes(checkpoint: Checkpoint, module: str) -> Claim:
    weight, scale, order = f"{module}.weight", f"{module}.SCB", f"{module}.weight_format"
    parts = Parts(checkpoint, NAME, weight)
    shape = parts.entry(weight, "I8", rank=2).shape
    parts.shaped(scale, [(shape[0],)], "F32", "F16", "BF16", because=f"{shape[0]} rows")
    if parts.has(order):
        parts.shaped(order, [(), (1,)], "U8")

    def build() -> QTensor:
        sources = Parts(checkpoint, NAME, weight)
        data = sources.take(weight, "same codes", "I8", shape)
        most = constant("scale.scale", 127, (shape[0], 1), integer=False)
        absolute = sources.numbers(scale, "scale", (shape[0], 1), scale=replace(most, divide=True))
        if parts.has(order) and sources.keep(order) != b"\0":
            raise UnsupportedError(
                "only codes in rows are read", where=order, found=sources.keep(order).hex(), allowed="0"
            )
        codes = Codes(shape, (data,), PLAIN, "int8", scale=Param(absolute, (1, shape[1])))
        return sources.tensor(shape, "F16", codes)

    stored = [weight, scale, *([order] if parts.has(order) else [])]
    return Claim(weight, tuple(stored), build)


class _Nibbles(Parts):
    """A tensor of 4-bit codes and its description."""

    def __init__(self, checkpoint: Checkpoint, state: str) -> None:
        super().__init__(checkpoint, NAME, state.partition(_STATE)[0])
        self.state = state
        entry = self.entry(state, "U8", rank=1)
        self.description = _description(entry.slab(0, 0, entry.shape[0]).tobytes(), state)
        DESCRIPTION.check(Settings(self.description, state))
        self.shape = self._shape()
        self.block = self._integer("blocksize")
        self.blocks = -(-math.prod(self.shape) // self.block)

    def claim(self) -> Claim:
        """Checks every part, and says how the weight is made."""
        weight, count = self.parameter, math.prod(self.shape)
        self.shaped(weight, [(-(-count // 2), 1), (1, -(-count // 2))], "U8", because=f"{self.state}: shape")
        if count % self.block or self.block % 2:
            raise UnsupportedError(
                "blocks that do not fill the matrix are not read", where=weight, found=f"{count} by {self.block}"
            )
        self.shaped(f"{weight}.quant_map", [(16,)], "F32")
        self._check_absmax()
        if self._is_nested:
            blocks = -(-self.blocks // self._integer("nested_blocksize"))
            self.shaped(f"{weight}.nested_absmax", [(blocks,)], "F32", because="nested_blocksize")
            self.shaped(f"{weight}.nested_quant_map", [(256,)], "F32")
            self._offset()
        return Claim(weight, tuple(self._names()), lambda: _Nibbles(self.checkpoint, self.state).build())

    def build(self) -> QTensor:
        """The weight, blocks as rows of its grid."""
        grid, size = (self.blocks, self.block), self.block // 2
        data = self.take(self.parameter, f"swapped codes {size}", "U8", (self.blocks, size))
        table = Table(self.matrix(f"{self.parameter}.quant_map", "table", (1, 16)))
        scale = Param(self._nested() if self._is_nested else self._absmax(), (1, self.block))
        self.keep(self.state)
        codes = Codes(grid, (data,), bit_stream(grid, data, 4, "uint4").layout, table, scale=scale)
        return self.tensor(self.shape, _DTYPES.get(str(self.description.get("dtype")), "F32"), codes)

    @property
    def _is_nested(self) -> bool:
        return self.has(f"{self.parameter}.nested_absmax") or "nested_blocksize" in self.description

    def _names(self) -> list[str]:
        parts = ("", ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")
        return [name for name in (*(self.parameter + part for part in parts), self.state) if self.has(name)]

    def _absmax(self) -> Codes:
        buffer = self.matrix(f"{self.parameter}.absmax", "scale", (self.blocks, 1))
        return Codes((self.blocks, 1), (buffer,), PLAIN, "f32")

    def _nested(self) -> Codes:
        weight, nested, grid = self.parameter, self._integer("nested_blocksize"), (self.blocks, 1)
        data = self.matrix(f"{weight}.absmax", "scale", grid)
        table = Table(self.matrix(f"{weight}.nested_quant_map", "scale.table", (1, 256)))
        scale = self.scale(f"{weight}.nested_absmax", "scale.scale", (-(-self.blocks // nested), 1), (nested, 1))
        offset = constant("scale.offset", self._offset(), grid, integer=False)
        return Codes(grid, (data,), PLAIN, table, scale=scale, offset=offset)

    def _check_absmax(self) -> None:
        name = f"{self.parameter}.absmax"
        entry, kind = self.entry(name, "F32", "U8", "BF16", "F16"), "U8" if self._is_nested else "F32"
        if entry.dtype != kind or len(entry.shape) != 1:
            raise BadFileError(
                "a checkpoint that was saved after a forward pass on a CPU: its scales are not those of its codes",
                where=name,
                found=f"{entry.dtype} {list(entry.shape)}",
                allowed=f"{kind} [{self.blocks}]",
                todo="Quantize again, and save before any forward pass.",
            )
        self.shaped(name, [(self.blocks,)], kind, because=f"blocksize = {self.block}")

    def _shape(self) -> Shape:
        shape = self.description.get("shape")
        if not isinstance(shape, list) or len(shape) != 2 or not all(type(n) is int and n >= 1 for n in shape):
            raise BadFileError("a description without a shape", where=self.state, found=repr(shape)[:100])
        return (shape[0], shape[1])

    def _integer(self, field: str) -> int:
        value = self.description.get(field)
        if type(value) is not int or value < 1:
            raise BadFileError("a description contradicts itself", where=f"{self.state}: {field}", found=repr(value))
        return value

    def _offset(self) -> float:
        value = self.description.get("nested_offset")
        if not isinstance(value, float | int) or not np.isfinite(value):
            raise BadFileError("a description contradicts itself", where=f"{self.state}: nested_offset", found=value)
        return float(value)


def _description(data: bytes, where: str) -> Mapping[str, Any]:
    try:
        loaded = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadFileError("a description is no JSON", where=where, found=str(error)) from error
    if not isinstance(loaded, dict):
        raise BadFileError("a description is no object", where=where)
    return loaded
