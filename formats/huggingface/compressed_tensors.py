"""compressed-tensors, as llm-compressor writes it: integers, FP8, MX and NVFP4, several kinds in one checkpoint.

`quant_method: compressed-tensors`; `config_groups` say which layers are quantized and how (`schemes.py`). Per layer,
weight [N, K], b bits, groups of g columns (G = K / g), the formats store

    pack-quantized        weight_packed I32 [N, ceil(K * b / 32)], a bit stream per row (before version 0.18:
                          floor(32 / b) codes to a word); weight_scale [N, G]; weight_shape I64 [2]; asymmetric:
                          weight_zero_point I32 [ceil(N * b / 32), G], a bit stream per column. Codes and zero-points
                          are stored plus 2 ** (b - 1).
    int-quantized         weight I8 [N, K]; weight_scale; asymmetric: weight_zero_point I8
    float-quantized       weight F8_E4M3 [N, K]; weight_scale per tensor, per row or per block
    naive-quantized       as int-quantized or float-quantized
    mxfp4-pack-quantized  weight_packed U8 [N, K / 2], e2m1, first code low; weight_scale U8 [N, K / 32], a power of two
    mxfp6-pack-quantized  weight_packed U8 [N, 3 K / 4], e2m3 in a bit stream; weight_scale as above
    mxfp8-quantized       weight F8_E4M3 [N, K]; weight_scale as above
    nvfp4-pack-quantized  weight_packed as mxfp4's; weight_scale F8_E4M3 [N, K / 16]; weight_global_scale F32 [1], which
                          divides weight_scale

W = (code - zero) * scale. weight_g_idx I32 [K] of older files gives the group of each column. Layers with a mask are
sparse (`sparse.py`); experts may be stacked (`experts.py`). What is said of activations is not part of the weights: it
is carried, and named in a note.
(Layouts: compressed-tensors 0.9 to 0.20, compressors/.)
"""

from __future__ import annotations

from collections.abc import Iterator

from qdeploy.arch.turned import turned
from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.formats import NOT_MINE, Sniff
from qdeploy.formats.huggingface.checkpoint import Checkpoint, Claim, assemble
from qdeploy.formats.huggingface.compressed_layer import NAME, Layer
from qdeploy.formats.huggingface.experts import StackedLayer, is_stacked, scheme_of, stacked_parameters
from qdeploy.formats.huggingface.notes import Unapplied
from qdeploy.formats.huggingface.rearranged import codecs
from qdeploy.formats.huggingface.schemes import Schemes
from qdeploy.formats.huggingface.sparse import FORMATS as SPARSE_FORMATS
from qdeploy.formats.huggingface.sparse import SparseLayer, sparse_layers
from qdeploy.formats.huggingface.sparse import declared as sparse_format
from qdeploy.formats.huggingface.transforms import Transforms
from qdeploy.formats.huggingface.words import Settings
from qdeploy.ir.model import Model
from qdeploy.ir.tensor import Shape
from qdeploy.store.folder import Folder

__all__ = ["NAME", "TITLE", "WRITES", "Layer", "codecs", "quantized_modules", "read", "sniff"]

TITLE = "compressed-tensors: integers of 1 to 8 bits, FP8, MXFP4, MXFP6, MXFP8, NVFP4, mixed (safetensors)"
WRITES = True

_SETTINGS = (
    *("quant_method", "format", "config_groups", "ignore", "version", "sparsity_config", "transform_config"),
    *("kv_cache_scheme", "quantization_status", "global_compression_ratio", "run_compressed"),
)
_SUFFIXES = (".weight_packed", ".weight_scale")


def sniff(folder: Folder) -> Sniff:
    """Declared by the quantization method."""
    return Sniff(100, f"quant_method {NAME}") if Checkpoint(folder).method == NAME else NOT_MINE


def read(folder: Folder) -> Model:
    """Opens the checkpoint; only headers are read yet.

    Raises:
        UnsupportedError: A format, sparsity or transform that is not read, by its name.
        BadFileError: The configuration contradicts the tensors.
        AmbiguousError: Two groups of the configuration mean one layer.
    """
    checkpoint, notes = Checkpoint(folder), list[str]()
    settings = Settings(checkpoint.quantization)
    _refuse_what_changes_layers(settings)
    sparse, unapplied = list(sparse_layers(checkpoint)), Unapplied()
    if sparse_format(settings) and not sparse:
        raise BadFileError(
            "the configuration contradicts the tensors",
            where=f"{settings.where}.sparsity_config.format",
            found=sparse_format(settings),
            allowed="layers with a bitmask",
        )
    modules = [m for m in quantized_modules(checkpoint) if not {m, f"{m}.weight"} & set(sparse)]
    experts = list(stacked_parameters(checkpoint))
    schemes = Schemes(settings) if modules or experts or settings.values.get("config_groups") else None
    claims = [_sparse_claim(checkpoint, stem, schemes, unapplied) for stem in sparse]
    for module in (*modules, *experts):
        layer = _layer(checkpoint, module, schemes or Schemes(settings), module in experts)
        unapplied.add(layer.scheme.activations, module)
        claims.append(layer.claim())
    if settings.values.get("kv_cache_scheme"):
        unapplied.add("the cache of keys and values", "all layers")
    transforms = Transforms(checkpoint, settings, lambda: _shapes(checkpoint, claims))
    notes.extend((*unapplied.notes(), *transforms.notes))
    return turned(assemble(checkpoint, NAME, claims, notes), transforms.turns, transforms.stored)


def _shapes(checkpoint: Checkpoint, claims: list[Claim]) -> dict[str, Shape]:
    """The shape of every linear layer by its name."""
    shapes = {claim.parameter: claim.build().shape for claim in claims}
    shapes |= {
        name: e.shape for name, e in checkpoint.entries.items() if name.endswith(".weight") and len(e.shape) == 2
    }
    return {name.removesuffix(".weight"): shape for name, shape in shapes.items()}


def _layer(checkpoint: Checkpoint, module: str, schemes: Schemes, is_parameter: bool) -> Layer:
    if is_parameter or is_stacked(checkpoint, module):
        return StackedLayer(checkpoint, module, scheme_of(schemes, module), nested=not is_parameter)
    return Layer(checkpoint, module, schemes.of(module))


def _refuse_what_changes_layers(settings: Settings) -> None:
    settings.refuse_others(_SETTINGS)
    form = sparse_format(settings)
    if form and form not in SPARSE_FORMATS:
        raise UnsupportedError(
            "sparse checkpoints of this format are not read",
            where=f"{settings.where}.sparsity_config.format",
            found=form,
            allowed=", ".join(("dense", *SPARSE_FORMATS)),
            todo="Decompress the checkpoint with its library first.",
        )


def _sparse_claim(checkpoint: Checkpoint, stem: str, schemes: Schemes | None, unapplied: Unapplied) -> Claim:
    """A layer with a mask; with the scales of its scheme, where it has some."""
    layer = SparseLayer(checkpoint, stem, NAME)
    if schemes is None or not layer.has(f"{layer.module}.weight_scale"):
        return layer.claim(None)
    scheme = schemes.of(layer.module)
    unapplied.add(scheme.activations, layer.module)
    return layer.claim(Layer(checkpoint, layer.module, scheme).tile(layer.shape))


def quantized_modules(checkpoint: Checkpoint) -> Iterator[str]:
    """Names of the layers that have packed codes or scales, in file order."""
    names = (name.removesuffix(s) for name in checkpoint.entries for s in _SUFFIXES if name.endswith(s))
    return iter(dict.fromkeys(names))
