"""BitNet b1.58 as transformers stores it (`quant_method: bitnet`): ternary weights, one scale per matrix.

`linear_class` and `quantization_mode` say how a layer is stored. Weight [N, K], ternary t, R = N / 4:

    packed      weight U8 [R, K], weight_scale [1]; bits 2 i and 2 i + 1 of byte (r, k) are row r + i * R, plus 1
                linear_class bitlinear (the default): W = t / weight_scale
                linear_class autobitlinear:           W = t * weight_scale
    ternary     weight in floats -1, 0 and 1, weight_scale [1] (autobitlinear, mode offline): W = t * weight_scale
    online      weight in floats, no scale (autobitlinear, mode online). The library rounds at every call:
                s = 1 / max(mean |w|, 1e-5), t = clip(round(w * s), -1, 1), W = t / s in the type of the weight

Code 3 does not occur in packed weights. Of online layers the rounded numbers are read; the floats that they are made of
are not kept. Layers in `modules_to_not_convert`, the embedding and the output layer stay floats. Inputs are rounded to
8 bits per token. A norm before a layer (`use_rms_norm`) is a tensor `rms_norm.weight`, which no graph is built with.
(arXiv 2402.17764; layout: transformers 5.23, integrations/bitnet.py.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.formats import NOT_MINE, Sniff
from qdeploy.formats.huggingface.checkpoint import Checkpoint, Claim, assemble
from qdeploy.formats.huggingface.known import Known, because
from qdeploy.formats.huggingface.left_out import LeftOut
from qdeploy.formats.huggingface.notes import Unapplied
from qdeploy.formats.huggingface.parts import FLOATS, Parts, bit_stream
from qdeploy.formats.huggingface.rearranged import codecs
from qdeploy.formats.huggingface.words import Settings
from qdeploy.ir.dtype import dtype, plain_name
from qdeploy.ir.model import Model
from qdeploy.ir.tensor import PLAIN, Buffer, Codes, Param, QTensor, Shape, Source, SourceTensor, Table, Term
from qdeploy.pack import bits as streams
from qdeploy.store.folder import Folder
from qdeploy.store.origin import Origin
from qdeploy.store.safetensors import TensorEntry
from qdeploy.store.storage import storage_dtype

__all__ = ["NAME", "TITLE", "WRITES", "codecs", "read", "sniff"]

NAME = "bitnet"
TITLE = "BitNet b1.58: packed BitLinear and AutoBitLinear, online and offline (safetensors)"
WRITES = True
SETTINGS = Known(
    ("linear_class", "quantization_mode", "modules_to_not_convert"),
    because("is that of norms before layers, which are refused where they are said to be there", "rms_norm_eps"),
)

_CLASSES, _MODES = ("bitlinear", "autobitlinear"), ("offline", "online")
_SCALE = ".weight_scale"
_LEAST = np.float32(1e-5)
_STEP = 8 << 20


def sniff(folder: Folder) -> Sniff:
    """Declared by the quantization method."""
    return Sniff(100, f"quant_method {NAME}") if Checkpoint(folder).method == NAME else NOT_MINE


def read(folder: Folder) -> Model:
    """Opens the checkpoint; only headers are read yet.

    Raises:
        UnsupportedError: A linear class or mode that is not read, by its name.
        BadFileError: The configuration contradicts the tensors.
    """
    checkpoint, unapplied, notes = Checkpoint(folder), Unapplied(), list[str]()
    settings = Settings(checkpoint.quantization)
    SETTINGS.check(settings)
    kind = _one_of(settings, "linear_class", _CLASSES)
    online = _one_of(settings, "quantization_mode", _MODES) == "online" and kind == "autobitlinear"
    left_out, claims = LeftOut.of(settings, "modules_to_not_convert"), []
    for name in checkpoint.entries:
        module = name.removesuffix(".weight")
        if not name.endswith(".weight") or len(checkpoint.entries[name].shape) != 2:
            continue
        layer = _Layer(checkpoint, module, divide=kind == "bitlinear")
        if not online and not layer.is_stored and (kind == "bitlinear" or left_out.holds(module)):
            continue  # the embedding, the output layer, or a layer that was left out
        if online and (layer.is_stored or checkpoint.entries[name].dtype not in FLOATS):
            raise BadFileError(
                "the configuration contradicts the tensors",
                where=name,
                found="packed codes, or a scale",
                allowed=f"floats without a scale by {settings.where}.quantization_mode = online",
            )
        if online and left_out.holds(module):
            continue
        unapplied.add("inputs to 8-bit int per token, dynamic", module)
        claims.append(layer.online() if online else layer.claim())
    notes.extend(unapplied.notes())
    return assemble(checkpoint, NAME, claims, notes, floats=online)  # a list may leave out all that there are


def _one_of(settings: Settings, field: str, allowed: tuple[str, ...]) -> str:
    value = settings.text(field) or allowed[0]
    if value not in allowed:
        raise UnsupportedError(
            f"this {field} is not read", where=f"{settings.where}.{field}", found=value, allowed=", ".join(allowed)
        )
    return value


class _Layer(Parts):
    """The stored tensors of one layer."""

    def __init__(self, checkpoint: Checkpoint, module: str, divide: bool) -> None:
        super().__init__(checkpoint, NAME, f"{module}.weight")
        self.module, self.divide = module, divide

    @property
    def is_stored(self) -> bool:
        """Whether it is stored as ternary codes."""
        return self.has(self.module + _SCALE) or self.checkpoint.entries[self.parameter].dtype == "U8"

    def claim(self) -> Claim:
        """Checks the shapes, and says how the weight is made of codes."""
        stored = ("U8",) if self.divide else ("U8", *FLOATS)
        self.entry(self.parameter, *stored, rank=2)
        self.shaped(self.module + _SCALE, [(1,), ()], *FLOATS, because="one scale per matrix")
        names = (self.parameter, self.module + _SCALE)
        return Claim(self.parameter, names, lambda: _Layer(self.checkpoint, self.module, self.divide).build())

    def build(self) -> QTensor:
        """The weight."""
        entry, scale = self.checkpoint.entries[self.parameter], self.module + _SCALE
        rows, columns = entry.shape
        shape = (4 * rows, columns) if entry.dtype == "U8" else entry.shape
        size, table = streams.row_bytes(columns, 2), "ternary"
        if entry.dtype == "U8":
            data = self.take(self.parameter, f"strips codes {shape[0]} 2 0 2 4 6 below 3", "U8", (shape[0], size))
            return self._tensor(shape, bit_stream(shape, data, 2, table), scale)
        data = self.take(self.parameter, "ternary codes", "U8", (rows, size))
        codes = bit_stream(shape, data, 2, "uint2")
        levels = Buffer.of("table", np.array([[-1, 0, 1, -0.0]], np.float32), "F32")
        return self._tensor(shape, replace(codes, table=Table(levels)), scale)

    def _tensor(self, shape: Shape, codes: Codes, scale: str) -> QTensor:
        dtype = self.checkpoint.entries[scale].dtype
        return self.tensor(
            shape, dtype, replace(codes, scale=self.scale(scale, "scale", (1, 1), shape, divide=self.divide))
        )

    def online(self) -> Claim:
        """The weight as the library rounds it at every call."""
        entry, origin = self.checkpoint.entries[self.parameter], self.checkpoint.origins[self.parameter]
        self.entry(self.parameter, *FLOATS, rank=2)

        def build() -> QTensor:
            factor = _factor(entry)
            rows = _RoundedRows(entry, origin, factor)
            data = Buffer("codes", "U8", (entry.shape[0], streams.row_bytes(entry.shape[1], 2)), rows)
            worth = np.reshape(np.float32(1) / factor, (1, 1)).astype(storage_dtype(entry.dtype))
            scale = Codes((1, 1), (Buffer.of("scale", worth, entry.dtype),), PLAIN, plain_name(entry.dtype))
            codes = replace(bit_stream(entry.shape, data, 2, "ternary"), scale=Param(scale, entry.shape))
            stored = (SourceTensor(entry.file.name, entry.name, entry.dtype, entry.shape),)
            return QTensor(
                entry.shape, entry.dtype, (Term(codes),), source=Source(NAME, "", {}, stored, exact="values")
            )

        return Claim(self.parameter, (self.parameter,), build)


@dataclass(frozen=True)
class _RoundedRows:
    """Codes of rows of floats, as the online rule makes them: U8 [rows, ceil(K / 4)]."""

    entry: TensorEntry
    origin: Origin
    factor: np.float32

    def read(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Returns rows [start, stop)."""
        weights = _floats(self.entry, start, stop)
        with np.errstate(invalid="ignore"):
            signs = np.clip(np.rint(weights * self.factor), -1, 1)
        if not np.isfinite(signs).all():
            raise BadFileError("a weight is NaN", where=self.entry.name)
        self.origin.values_only = True
        self.origin.prove_verbatim(start, stop)
        return streams.pack((signs + 1).astype(np.uint8), 2)


def _factor(entry: TensorEntry) -> np.float32:
    """What weights are multiplied by before they are rounded: 1 / max(mean |w|, 1e-5)."""
    step, total = max(1, _STEP // max(1, entry.shape[1])), 0.0
    for start in range(0, entry.shape[0], step):
        total += float(np.abs(_floats(entry, start, min(start + step, entry.shape[0]))).sum(dtype=np.float64))
    mean = np.float32(total / (entry.shape[0] * entry.shape[1]))
    if not np.isfinite(mean):
        raise BadFileError("a weight is not finite", where=entry.name, found=float(mean))
    factor: np.float32 = np.float32(1) / max(mean, _LEAST)
    return factor


def _floats(entry: TensorEntry, start: int, stop: int) -> npt.NDArray[np.float32]:
    return dtype(plain_name(entry.dtype)).decode(entry.slab(0, start, stop))
