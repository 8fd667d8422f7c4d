"""GPTQ (arXiv 2210.17323) as AutoGPTQ, GPTQModel and AutoRound write it.

`quant_method: gptq` in config.json, or quantize_config.json alone. Per linear layer, weight [N, K], b = bits:

    qweight  I32  [ceil(K * b / 32), N]   column n is the bit stream of row n: code k at bits [k * b, (k + 1) * b)
    qzeros   I32  [G, ceil(N * b / 32)]   row g is a bit stream, too: zero-point n at bits [n * b, (n + 1) * b)
    scales   F16  [G, N]
    g_idx    I32  [K]                     the group of each column; absent: k // group_size

    W[n, k] = (q[n, k] - z[g_idx[k], n]) * scales[g_idx[k], n]

Bits are 2, 3, 4 or 8; a group_size of -1 is one group per row. With `desc_act` the columns were quantized in the order
of their activations: g_idx is then no ramp, while the columns stay where they are.

`checkpoint_format` (also `format`) says what qzeros holds: `gptq_v2` the zero-points, `gptq` (the default) the
zero-points minus one, by the rule of `gptq_words.py`. A stored field of 2^b - 1 comes from a zero-point of 0;
readers that add one to each field separately disagree there, so it is noted.

`dynamic` maps regular expressions over layer names to other settings; the first that matches decides. The prefix "-:"
leaves layers unquantized, "+:" (or none) overrides.
"""

from __future__ import annotations

import numpy as np

from qdeploy.errors import AmbiguousError, BadFileError, UnsupportedError
from qdeploy.formats import NOT_MINE, Sniff
from qdeploy.formats.huggingface.checkpoint import Checkpoint, Claim, assemble
from qdeploy.formats.huggingface.gptq_words import codes_codec, fields, ramp, zeros_codec
from qdeploy.formats.huggingface.known import NUMBERS, WORDS, Known, because
from qdeploy.formats.huggingface.words import SCALES, Layer, Settings, affine, layers, refuse_other_words, transposed
from qdeploy.ir.model import Model
from qdeploy.ir.tensor import QTensor, Source
from qdeploy.pack import bits as streams
from qdeploy.patterns import Pattern
from qdeploy.store.codec import Codec, verbatim
from qdeploy.store.folder import Folder

NAME = "gptq"
TITLE = "GPTQ, 2, 3, 4 and 8 bits, v1 and v2 (safetensors)"
WRITES = True
SETTINGS = Known(
    (
        *("bits", "group_size", "dynamic", "pack_dtype"),
        *("format", "checkpoint_format", "is_marlin_format"),
        *NUMBERS,
    ),
    {**WORDS, **because("every layer stores the order of its columns", "desc_act")},
)

WIDTHS = (2, 3, 4, 8)
_METHODS = ("gptq", "marlin", "bitblas", "gptq_marlin")
_ZEROS = {"": "minus_one", "gptq": "minus_one", "gptq_v2": "as_is"}
_WRAPS = "zero-points are stored that wrap around when the one is added"


def sniff(folder: Folder) -> Sniff:
    """Declared by the quantization method."""
    method = Checkpoint(folder).method
    return Sniff(100, f"quant_method {method}") if method in _METHODS else NOT_MINE


def read(folder: Folder) -> Model:
    """Opens the checkpoint; only headers are read yet.

    Raises:
        UnsupportedError: A variant that is not read (marlin, gptq_p, 5 to 7 bits, other word sizes), by its name.
        BadFileError: The configuration contradicts the tensors.
    """
    checkpoint, notes = Checkpoint(folder), list[str]()
    settings = Settings(checkpoint.quantization)
    SETTINGS.check(settings)
    overrides = _Overrides(settings)
    claims = [claim(Layer(checkpoint, name, overrides.of(name)), NAME, notes=notes) for name in layers(checkpoint)]
    return assemble(checkpoint, NAME, claims, notes)


def codecs(source: Source) -> tuple[Codec, ...]:
    """How each stored tensor of a layer is written back."""
    (bits, columns, group) = (int(source.args[k]) for k in ("bits", "columns", "group"))
    groups, rows = next(part.shape for part in source.tensors if part.name.endswith(".scales"))
    sequential = source.args["g_idx"] == "sequential"
    by_part = {
        "qweight": codes_codec(columns, bits),
        "qzeros": zeros_codec(rows, groups, bits, source.args["zeros"] == "minus_one"),
        "scales": transposed("scale"),
        "g_idx": Codec((), lambda raw: (), lambda: ramp(columns, group)) if sequential else verbatim("index"),
    }
    return tuple(by_part[part.name.rpartition(".")[2]] for part in source.tensors)


def claim(layer: Layer, format: str, zeros: str = "", notes: list[str] | None = None) -> Claim:
    """Checks the shapes of a layer and says how its weight is made.

    Args:
        layer: The layer.
        format: The format in whose name it is read ("gptq", "autoround").
        zeros: "minus_one" or "as_is"; "" lets the settings decide.
        notes: Where a warning about zero-points that wrap around goes.
    """
    zeros = zeros or _zeros_rule(layer.settings)
    columns, group, bits = _measure(layer)
    parts = ("qweight", "qzeros", "scales", *(("g_idx",) if layer.has("g_idx") else ()))
    args: dict[str, int | str] = {"bits": bits, "columns": columns, "group": group, "zeros": zeros}
    stored = tuple(f"{layer.name}.{part}" for part in parts)

    def build() -> QTensor:
        if zeros == "minus_one" and notes is not None and _WRAPS not in "".join(notes) and _wraps(layer, bits):
            notes.append(f"{_WRAPS} (first in {layer.name}): read with a carry between the fields, as GPTQModel does")
        return _build(layer, format, {**args, "g_idx": _index_kind(layer, columns, group)}, parts)

    return Claim(f"{layer.name}.weight", stored, build)


def _build(layer: Layer, format: str, args: dict[str, int | str], parts: tuple[str, ...]) -> QTensor:
    checkpoint, (bits, columns) = layer.checkpoint, (int(args["bits"]), int(args["columns"]))
    source = layer.source(format, "gptq", args, parts)
    qweight, qzeros, scales = source.tensors[:3]
    groups, rows = scales.shape
    how = codecs(source)
    index = checkpoint.verbatim("index", f"{layer.name}.g_idx") if args["g_idx"] == "stored" else None
    return affine(
        (rows, columns),
        bits,
        checkpoint.unpacked("codes", "U8", (rows, streams.row_bytes(columns, bits)), qweight.name, how[0]),
        checkpoint.unpacked("scale", scales.dtype, (rows, groups), scales.name, how[2]),
        checkpoint.unpacked("zero", "U8", (rows, streams.row_bytes(groups, bits)), qzeros.name, how[1]),
        int(args["group"]),
        index,
        source,
    )


def _zeros_rule(settings: Settings) -> str:
    named = {settings.text(name) for name in ("checkpoint_format", "format")} - {""}
    if len(named) > 1:
        raise AmbiguousError(
            "two settings name different variants",
            where=f"{settings.where}.checkpoint_format",
            found=", ".join(sorted(named)),
            todo="Correct the one that is wrong.",
        )
    variant = named.pop() if named else settings.text("quant_method")
    if settings.values.get("is_marlin_format"):
        variant = "marlin"
    if variant not in _ZEROS:
        raise UnsupportedError(
            "this variant of GPTQ is not read",
            where=f"{settings.where}.checkpoint_format",
            found=variant,
            allowed="gptq, gptq_v2",
            todo="Save the model with format gptq or gptq_v2.",
        )
    return _ZEROS[variant]


def _measure(layer: Layer) -> tuple[int, int, int]:
    """K, group size and bits of a layer, after every shape has been held against the settings."""
    settings = layer.settings
    refuse_other_words(settings)
    bits = settings.width("bits", allowed=WIDTHS)
    qweight, scales = layer.part("qweight", "I32"), layer.part("scales", *SCALES)
    layer.part("qzeros", "I32")
    words, rows = qweight.shape
    ragged = layer.has("g_idx")  # only then is the number of columns known to be less than what fits into the words
    columns = layer.part("g_idx", "I32").shape[0] if ragged else words * 32 // bits
    group = settings.group(columns, "group_size")
    groups = -(-columns // group)
    step = 32 if bits == 3 else 1
    if columns % step or rows % step:
        raise BadFileError("3-bit layers come in multiples of 32", where=layer.name, found=[rows, columns])
    layer.expect("bits", bits, "qzeros", (scales.shape[0], -(-rows * bits // 32)))
    layer.expect("bits", bits, "qweight", (-(-columns * bits // 32), rows))
    layer.expect("group_size", settings.integer("group_size"), "scales", (groups, rows))
    if settings.values.get("desc_act") and not ragged and groups > 1:
        raise layer.contradiction("desc_act", f"no {layer.name}.g_idx", f"I32 [{columns}]")
    return columns, group, bits


def _index_kind(layer: Layer, columns: int, group: int) -> str:
    """What g_idx is: "none", the "sequential" ramp (then it is proven here), or to be "stored"."""
    if not layer.has("g_idx"):
        return "none"
    entry, groups = layer.part("g_idx", "I32"), -(-columns // group)
    index = entry.slab(0, 0, columns)
    if index.min() < 0 or index.max() >= groups:
        bad = index[(index < 0) | (index >= groups)][0]
        raise BadFileError(
            "a column points to a group that does not exist",
            where=entry.name,
            found=bad,
            allowed=f"0..{groups - 1}",
            todo="The file is damaged; fetch it again.",
        )
    expected = ramp(columns, group)
    if not np.array_equal(index, expected):
        return "stored"
    layer.checkpoint.origins[entry.name].prove(0, columns, index, expected)
    return "sequential"


def _wraps(layer: Layer, bits: int) -> bool:
    """Whether a stored zero-point has all bits set; a megabyte at a time."""
    entry, rows = layer.part("qzeros", "I32"), layer.part("scales", *SCALES).shape[1]
    groups, words = entry.shape
    step = -(-(1 << 18) // words)
    slabs = (entry.slab(0, start, min(start + step, groups)) for start in range(0, groups, step))
    return any((fields(slab, bits)[:, :rows] == (1 << bits) - 1).any() for slab in slabs)


class _Overrides:
    """`dynamic`: patterns over layer names, in order."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        dynamic = settings.values.get("dynamic") or {}
        if not isinstance(dynamic, dict):
            raise BadFileError("overrides are not an object", where=f"{settings.where}.dynamic", found=dynamic)
        self._rows = [(key, *_pattern(key), values) for key, values in dynamic.items()]
        for key, skip, _, values in self._rows:
            if not skip:
                SETTINGS.check(settings.overridden(values, f"dynamic[{key!r}]"))

    def of(self, name: str) -> Settings:
        """The settings of a layer; BadFileError if they leave it unquantized."""
        for key, skip, regex, values in self._rows:
            if not regex.match(name):
                continue
            if skip:
                raise BadFileError(
                    "the configuration contradicts the tensors",
                    where=f"{self.settings.where}.dynamic",
                    found=f"{name}.qweight, left out by {key}",
                    allowed="a plain weight",
                )
            return self.settings.overridden(values, f"dynamic[{key!r}]")
        return self.settings


def _pattern(key: str) -> tuple[bool, Pattern]:
    regex = Pattern(key[2:] if key.startswith(("-:", "+:")) else key, "quantization_config.dynamic")
    return key.startswith("-:"), regex
