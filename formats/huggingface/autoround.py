"""AutoRound (arXiv 2309.05516): layers packed like GPTQ's or AWQ's, and other settings for some of them.

`quant_method: auto-round` in config.json or quantization_config.json. `packing_format` decides what the tensors are,
whatever bits and symmetry say:

    auto_round:auto_gptq    as GPTQ v1, zero-points minus one (the default, and what symmetric layers come as)
    auto_round              as GPTQ v2, zero-points as they are
    auto_round:gptqmodel    the same
    auto_round:auto_awq     as AWQ gemm
    auto_round:fp8_static   weight F8_E4M3 [N, K], weight_scale [N] or [1], input_scale [1]
    auto_round:llm_compressor   the tensors of compressed-tensors: data_type mx_fp (MXFP4, MXFP8) or nv_fp (NVFP4)

There is no g_idx; columns belong to groups in order. `extra_config` maps layers to settings of their own: by full name,
otherwise by the first regular expression that is found in the name. 16 bits and more mean: not quantized. Exports under
other names of the method (`gptq`, `awq`, with `provider: auto-round`) are ordinary checkpoints of those.
"""

from __future__ import annotations

import re

from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.formats import NOT_MINE, Sniff
from qdeploy.formats.huggingface import awq, compressed_tensors, gptq
from qdeploy.formats.huggingface.checkpoint import Checkpoint, Claim, assemble
from qdeploy.formats.huggingface.known import INPUTS, KERNEL, NUMBERS, STORED, WORDS, Known, because
from qdeploy.formats.huggingface.notes import Unapplied
from qdeploy.formats.huggingface.schemes import Scheme
from qdeploy.formats.huggingface.words import Layer, Settings, layers, pattern, refuse_other_words
from qdeploy.ir.model import Model
from qdeploy.ir.tensor import Source
from qdeploy.store.codec import Codec
from qdeploy.store.folder import Folder

NAME = "autoround"
TITLE = "AutoRound: GPTQ- and AWQ-shaped packings, mixed widths, static FP8, MXFP4, NVFP4 (safetensors)"
WRITES = True
SETTINGS = Known(
    ("bits", "group_size", "packing_format", "extra_config", "pack_dtype", *NUMBERS),
    {
        **WORDS,
        **because(KERNEL, "backend"),
        **because(INPUTS, "activation_scheme"),
        **because(STORED, "fmt"),
    },
)

_METHODS = ("auto-round", "auto_round", "intel/auto-round")
_PACKINGS = {
    "": "minus_one",
    "auto": "minus_one",
    "auto_round:auto_gptq": "minus_one",
    "auto_round:gptq": "minus_one",
    "auto_gptq": "minus_one",
    "auto_round": "as_is",
    "auto_round:gptqmodel": "as_is",
    "auto_round:auto_awq": "awq",
    "auto_round:awq": "awq",
    "auto_awq": "awq",
    "auto_round:fp8_static": "floats",
    "auto_round:llm_compressor": "floats",
}
_FLOATS = {
    ("fp", 8): ("float-quantized", ""),
    ("mx_fp", 4): ("mxfp4-pack-quantized", "group"),
    ("mx_fp", 8): ("mxfp8-quantized", "group"),
    ("nv_fp", 4): ("nvfp4-pack-quantized", "tensor_group"),
}


def sniff(folder: Folder) -> Sniff:
    """Declared by the quantization method."""
    method = Checkpoint(folder).method
    return Sniff(100, f"quant_method {method}") if method in _METHODS else NOT_MINE


def read(folder: Folder) -> Model:
    """Opens the checkpoint; only headers are read yet.

    Raises:
        UnsupportedError: A packing that is not read yet, by its name.
        BadFileError: The configuration contradicts the tensors.
    """
    checkpoint, notes = Checkpoint(folder), list[str]()
    settings = Settings(checkpoint.quantization)
    SETTINGS.check(settings)
    packing = _packing(settings)
    overrides = _Overrides(settings, checkpoint)
    if packing == "floats":
        return assemble(checkpoint, NAME, _floats(checkpoint, overrides, notes), notes)
    claims = [_claim(Layer(checkpoint, name, overrides.of(name)), packing, notes) for name in layers(checkpoint)]
    return assemble(checkpoint, NAME, claims, notes)


def codecs(source: Source) -> tuple[Codec, ...]:
    """How each stored tensor of a layer is written back."""
    if source.writer == "arranged":
        return compressed_tensors.codecs(source)
    return gptq.codecs(source) if source.writer == "gptq" else awq.codecs(source)


def _packing(settings: Settings) -> str:
    name = settings.text("packing_format", "backend")
    if name not in _PACKINGS:
        raise UnsupportedError(
            "this packing of AutoRound is not read yet",
            where=f"{settings.where}.packing_format",
            found=name,
            allowed=", ".join(k for k in _PACKINGS if ":" in k) + ", auto_round",
            todo="Export the model with format auto_round:auto_gptq.",
        )
    return _PACKINGS[name]


def _floats(checkpoint: Checkpoint, overrides: _Overrides, notes: list[str]) -> list[Claim]:
    """Layers of small floats, whose tensors are those of compressed-tensors."""
    claims, unapplied = [], Unapplied()
    for module in compressed_tensors.quantized_modules(checkpoint):
        settings = overrides.of(module)
        if settings.values.get("act_bits") is not None and settings.integer("act_bits") < 16:
            when = "dynamic" if settings.values.get("act_dynamic") else "static"
            kind = settings.text("act_data_type")
            unapplied.add(f"inputs to {settings.integer('act_bits')}-bit {kind}, {when}", module)
        claims.append(compressed_tensors.Layer(checkpoint, module, _scheme(settings), NAME).claim())
    notes.extend(unapplied.notes())
    return claims


def _scheme(settings: Settings) -> Scheme:
    """The settings of a layer as compressed-tensors would say them."""
    kind = (re.sub(r"_(v2|rceil|e4m3|to_bf16)$", "", settings.text("data_type")), settings.integer("bits"))
    if kind not in _FLOATS:
        raise UnsupportedError(
            "this number format is not read yet",
            where=f"{settings.where}.data_type",
            found=f"{kind[0]}, {kind[1]} bits",
            allowed=", ".join(f"{name} of {bits} bits" for name, bits in _FLOATS),
        )
    form, strategy = _FLOATS[kind]
    group = settings.integer("group_size")
    strategy = strategy or {0: "tensor", -1: "channel"}.get(group, "group")
    weights = {"num_bits": kind[1], "type": "float", "strategy": strategy, "group_size": group}
    return Scheme(settings.where, form, Settings(weights, settings.where), "")


def _claim(layer: Layer, packing: str, notes: list[str]) -> Claim:
    settings = layer.settings
    refuse_other_words(settings)
    if settings.integer("bits") >= 16:
        raise layer.contradiction("bits", f"{layer.name}.qweight", "no packed tensors in layers of 16 bits")
    if packing == "awq":
        return awq.claim(layer, NAME, "gemm")
    return gptq.claim(layer, NAME, packing, notes)


class _Overrides:
    """`extra_config`: settings by full name, then by the first pattern that is found in the name."""

    def __init__(self, settings: Settings, checkpoint: Checkpoint) -> None:
        extra = settings.values.get("extra_config") or {}
        if not isinstance(extra, dict):
            raise BadFileError("overrides are not an object", where=f"{settings.where}.extra_config", found=extra)
        self.settings, self._extra = settings, extra
        for key, values in extra.items():
            SETTINGS.check(settings.overridden(values or {}, f"extra_config[{key!r}]"))
        # A key that names a layer is not a pattern; one that does not compile names a layer that does not occur.
        modules = {name.rpartition(".")[0] for name in checkpoint.entries}
        self._patterns = [
            (key, pattern(key, "quantization_config.extra_config"))
            for key in extra
            if key not in modules and extra[key]
        ]

    def of(self, name: str) -> Settings:
        """The settings of a layer."""
        matching = (key for key, regex in self._patterns if regex and regex.search(name))
        key = name if name in self._extra else next(matching, None)
        return self.settings if key is None else self.settings.overridden(self._extra[key], f"extra_config[{key!r}]")
