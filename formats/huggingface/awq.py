"""AWQ (arXiv 2306.00978) as AutoAWQ, GPTQModel and AutoRound write it: 4 bits, versions gemm and gemv.

`quant_method: awq` in config.json, or quant_config.json alone (there the names are w_bit and q_group_size). Per linear
layer, weight [N, K], G = K / group_size:

    W[n, k] = (q[n, k] - z[n, k // group_size]) * scales[n, k // group_size]

    gemm   qweight  I32  [K, N / 8]    nibble i of a word holds row 8 * word + (0, 2, 4, 6, 1, 3, 5, 7)[i]
           qzeros   I32  [G, N / 8]    the same order
           scales   F16  [G, N]
    gemv   qweight  I32  [N, K / 8]    nibble i of a word is column 8 * word + i: the stream itself
           qzeros   I32  [N, Z]        nibble i of a word is group 8 * word + i
           scales   F16  [N, 8 * Z]    only the first G columns are used, of zero-points and scales; the rest is zero

    Z = ceil(G / 8), rounded up to a multiple of 2 for groups of 64 and of 4 for groups of 32

The scales that AWQ moves between layers are already inside of the weights, nothing of them is stored. With `zero_point:
false` qzeros is there all the same and holds the middle of the range.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from qdeploy.errors import UnsupportedError
from qdeploy.formats import NOT_MINE, Sniff
from qdeploy.formats.huggingface.checkpoint import Checkpoint, Claim, assemble
from qdeploy.formats.huggingface.known import NUMBERS, WORDS, Known
from qdeploy.formats.huggingface.words import SCALES, Layer, Settings, affine, layers, refuse_other_words, transposed
from qdeploy.ir.model import Model
from qdeploy.ir.tensor import QTensor, Shape, Source
from qdeploy.pack.words import transpose_nibbles, untranspose_nibbles
from qdeploy.store.codec import Codec
from qdeploy.store.folder import Folder

NAME = "awq"
TITLE = "AWQ, 4 bits, versions gemm and gemv (safetensors)"
WRITES = True
SETTINGS = Known(
    (
        *("bits", "w_bit", "group_size", "q_group_size", "pack_dtype"),
        *("version", "format", "checkpoint_format", "backend"),
        *NUMBERS,
    ),
    WORDS,
)

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_PARTS = ("qweight", "qzeros", "scales")
_ALIGNED = {64: 2, 32: 4}

Words = npt.NDArray[Any]


def sniff(folder: Folder) -> Sniff:
    """Declared by the quantization method."""
    return Sniff(100, "quant_method awq") if Checkpoint(folder).method == "awq" else NOT_MINE


def read(folder: Folder) -> Model:
    """Opens the checkpoint; only headers are read yet.

    Raises:
        UnsupportedError: A version or width that is not read (gemv_fast, marlin, exllama, llm-awq), by its name.
        BadFileError: The configuration contradicts the tensors.
    """
    checkpoint = Checkpoint(folder)
    settings = Settings(checkpoint.quantization)
    SETTINGS.check(settings)
    claims = [claim(Layer(checkpoint, name, settings), NAME) for name in layers(checkpoint)]
    return assemble(checkpoint, NAME, claims)


def codecs(source: Source) -> tuple[Codec, ...]:
    """How each stored tensor of a layer is written back: qweight, qzeros, scales."""
    columns, groups = int(source.args["columns"]), int(source.args["groups"])
    scales = source.tensors[_PARTS.index("scales")].shape
    if source.writer == "awq-gemm":
        return _interleaved("codes", columns), _interleaved("zero", groups), transposed("scale")
    return _stream("codes", columns), _stream("zero", groups, scales[1]), _cropped("scale", groups, scales[1])


def claim(layer: Layer, format: str, version: str = "") -> Claim:
    """Checks the shapes of a layer and says how its weight is made.

    Args:
        layer: The layer.
        format: The format in whose name it is read ("awq", "autoround").
        version: "gemm" or "gemv"; "" lets the settings decide.
    """
    version = version or _version(layer.settings)
    layer.settings.width("bits", "w_bit", allowed=(4,))
    refuse_other_words(layer.settings)
    rows, columns, group = _measure_gemm(layer) if version == "gemm" else _measure_gemv(layer)
    groups = columns // group
    source = layer.source(format, f"awq-{version}", {"columns": columns, "groups": groups}, _PARTS)

    def build() -> QTensor:
        how, (qweight, qzeros, scales) = codecs(source), source.tensors
        buffer = layer.checkpoint.unpacked
        return affine(
            (rows, columns),
            4,
            buffer("codes", "U8", (rows, -(-columns // 2)), qweight.name, how[0]),
            buffer("scale", scales.dtype, (rows, groups), scales.name, how[2]),
            buffer("zero", "U8", (rows, -(-groups // 2)), qzeros.name, how[1]),
            group,
            None,
            source,
        )

    return Claim(f"{layer.name}.weight", tuple(f"{layer.name}.{part}" for part in _PARTS), build)


def _version(settings: Settings) -> str:
    backend = settings.text("backend")
    version = "llm-awq" if backend == "llm-awq" else settings.text("version", "format", "checkpoint_format") or "gemm"
    if version not in ("gemm", "gemv"):
        raise UnsupportedError(
            "this version of AWQ is not read",
            where=f"{settings.where}.version",
            found=version,
            allowed="gemm, gemv",
            todo="Save the model with version gemm.",
        )
    return version


def _measure_gemm(layer: Layer) -> tuple[int, int, int]:
    """N, K and group size, after every shape has been held against the settings."""
    columns, words = layer.part("qweight", "I32").shape
    group = _group(layer, columns)
    layer.expect("group_size", group, "scales", (columns // group, 8 * words))
    layer.expect("group_size", group, "qzeros", (columns // group, words))
    return 8 * words, columns, group


def _measure_gemv(layer: Layer) -> tuple[int, int, int]:
    """N, K and group size, after every shape has been held against the settings."""
    rows, columns = layer.part("qweight", "I32").shape[0], 8 * layer.part("qweight", "I32").shape[1]
    group = _group(layer, columns)
    aligned = _ALIGNED.get(group, 1)
    words = -(-(columns // group) // (8 * aligned)) * aligned
    layer.expect("group_size", group, "qzeros", (rows, words))
    layer.expect("group_size", group, "scales", (rows, 8 * words))
    return rows, columns, group


def _group(layer: Layer, columns: int) -> int:
    layer.part("scales", *SCALES)
    layer.part("qzeros", "I32")
    group = layer.settings.group(columns, "group_size", "q_group_size")
    if columns % group:
        raise layer.contradiction(f"group_size = {group}; {layer.name}", f"{columns} columns", "whole groups")
    return group


def _interleaved(key: str, count: int) -> Codec:
    """I32 [count, words] <-> U8 [8 * words, ceil(count / 2)]."""

    def unpack(raw: Words) -> tuple[Words]:
        return (transpose_nibbles(raw.view("<u4"), ORDER),)

    def pack(nibbles: Words) -> Words:
        return untranspose_nibbles(nibbles, count, ORDER).view("<i4")

    return Codec((key,), unpack, pack, axis=1, group=8)


def _stream(key: str, count: int, stored: int = 0) -> Codec:
    """I32 [n, words] <-> U8 [n, ceil(count / 2)]: the words are the stream, of `stored` codes if that is more."""
    size, whole = -(-count // 2), max(stored, count) // 2

    def pack(stream: Words) -> Words:
        return _widened(stream, (len(stream), whole)).view("<i4")

    return Codec((key,), lambda raw: (raw.view(np.uint8)[:, :size],), pack)


def _cropped(key: str, count: int, stored: int) -> Codec:
    """[n, stored] <-> [n, count]: what is left out is zero."""
    return Codec((key,), lambda raw: (raw[:, :count],), lambda rows: _widened(rows, (len(rows), stored)))


def _widened(array: Words, shape: Shape) -> Words:
    """The array with zeros behind and below."""
    if array.shape == shape:
        return np.ascontiguousarray(array)
    whole = np.zeros(shape, array.dtype)
    whole[: array.shape[0], : array.shape[1]] = array
    return whole
