"""The folder that Hugging Face libraries write, as far as all formats that use it agree.

    config.json                         architecture, and for quantized checkpoints `quantization_config`
    quantize_config.json, quantization_config.json   the same, in a file of its own (GPTQ, AutoRound)
    model.safetensors                   all tensors, or
    model.safetensors.index.json        {"weight_map": {tensor name: shard file}} and the shards that it names
    anything else                       tokenizer, generation settings, ...: carried byte for byte

A bare `.safetensors` file is such a folder with one shard and no config. A format that keeps several stored tensors per
parameter describes each as a `Claim`; an unclaimed tensor is a plain tensor, unless its name shows that it belongs to
a quantized parameter that no packing understands.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from qdeploy.contracts.clues import INDEX, Clues
from qdeploy.errors import AmbiguousError, BadFileError, UnsupportedError
from qdeploy.formats.huggingface.pieces import tokenizer_files
from qdeploy.ir.dtype import of_storage
from qdeploy.ir.model import Model, SourceFile
from qdeploy.ir.tensor import ArrayRows, Buffer, QTensor, Source, SourceTensor, plain
from qdeploy.store.codec import Codec, UnpackedRows, VerbatimRows
from qdeploy.store.folder import Folder
from qdeploy.store.origin import Origin
from qdeploy.store.safetensors import SafetensorsFile, TensorEntry
from qdeploy.store.storage import STORAGE_TYPES

_TIED = ("lm_head.weight", "output_layer.weight", "embed_out.weight")
_QUANTIZED_SUFFIXES = (
    ".qweight",
    ".qzeros",
    ".g_idx",
    ".weight_packed",
    ".weight_scale",
    ".weight_scale_inv",
    ".weight_scale_2",
    ".weight_global_scale",
    ".weight_g_idx",
    ".weight_zero_point",
    ".absmax",
    ".quant_map",
    ".W_q",
    "._data",
    "._scale",
    "_blocks",
    ".codebooks",
    ".weight_shape",
    ".SCB",
    ".bitmask",
    ".compressed",
    "._shift",
    ".scales",
    ".biases",
    "_scales",
    ".global_scale",
    ".q_weight",
    ".q_scale",
    ".q_scale_max",
    ".q_groups",
    ".q_invperm",
    ".trellis",
    ".dense_weights",
    ".mcg",
    ".mul1",
)
_CODES = ("U8", "I8", "I32", "U32", "F8_E4M3", "F8_E5M2")
"""Storage types of weights that mean nothing without a scale."""


@dataclass(frozen=True)
class Claim:
    """One parameter that is kept as several stored tensors.

    Attributes:
        parameter: Its name in the float model ("model.layers.0.mlp.up_proj.weight").
        stored: Names of the stored tensors that it uses up.
        build: Makes the tensor; called at the first use of the parameter.
    """

    parameter: str
    stored: tuple[str, ...]
    build: Callable[[], QTensor]


class Checkpoint:
    """An opened folder: configuration, shards, and the ledger of every stored tensor."""

    def __init__(self, folder: Folder) -> None:
        self.folder, self._clues = folder, Clues(folder)
        self.notes: list[str] = []
        self.shards: dict[str, SafetensorsFile] = {}

    @property
    def config(self) -> Mapping[str, Any]:
        """config.json; empty where there is none."""
        return self._clues.config

    @property
    def quantization(self) -> Mapping[str, Any]:
        """`quantization_config`, from config.json or from its own file; empty for a float checkpoint."""
        return self._clues.quantization

    @property
    def method(self) -> str:
        """`quant_method`, lower case; "" for a float checkpoint; of old files without one, what the settings show."""
        return self._clues.method

    @cached_property
    def entries(self) -> dict[str, TensorEntry]:
        """Every stored tensor by name, opened from the index or the single file."""
        tensors: dict[str, TensorEntry] = {}
        for name in self._shard_names():
            shard = self.shards[name] = SafetensorsFile(self.folder, name)
            for key, entry in shard.entries.items():
                if key in tensors:
                    raise AmbiguousError(
                        "a tensor is in two shards", where=f"{tensors[key].file.name}, {name}", found=key
                    )
                tensors[key] = entry
        self._check_index(tensors)
        return tensors

    @cached_property
    def origins(self) -> dict[str, Origin]:
        """The ledger: one origin per stored tensor."""
        return {k: Origin(e.file.name, k, e.dtype, e.shape, begin=e.begin) for k, e in self.entries.items()}

    def plain(self, name: str, format: str = "safetensors") -> QTensor:
        """A stored tensor as it is."""
        entry = self.entries[name]
        row = of_storage(entry.dtype)
        if row is None:
            raise UnsupportedError(
                "tensors of this type are not read",
                where=f"{entry.file.name}: {name}",
                found=entry.dtype,
                allowed=", ".join(STORAGE_TYPES),
            )
        part = SourceTensor(entry.file.name, name, entry.dtype, entry.shape)
        source = Source(format, "verbatim", {}, (part,))
        tensor = plain(self.verbatim("data", name), row.name, source)
        return tensor if entry.shape else QTensor((), tensor.dtype, tensor.terms, source=source)

    def entry(self, name: str, *dtypes: str, rank: int = -1) -> TensorEntry:
        """A stored tensor of a quantized layer; errors name what is missing, of another type, or of another rank."""
        entry = self.entries.get(name)
        if entry is None:
            raise BadFileError(
                "a tensor of a quantized layer is missing", where=name, todo="Fetch the checkpoint again."
            )
        if entry.dtype not in dtypes:
            raise UnsupportedError(
                "a tensor of this type is not read here", where=name, found=entry.dtype, allowed=", ".join(dtypes)
            )
        if (rank >= 0 and len(entry.shape) != rank) or 0 in entry.shape:
            raise BadFileError(
                "a tensor has an impossible shape", where=name, found=entry.shape, allowed=f"{rank} axes"
            )
        return entry

    def verbatim(self, key: str, name: str) -> Buffer:
        """A buffer over a stored tensor as it is."""
        entry = self.entries[name]
        return Buffer(key, entry.dtype, entry.shape or (1,), VerbatimRows(entry, self.origins[name]))

    def unpacked(self, key: str, dtype: str, shape: tuple[int, ...], name: str, how: Codec) -> Buffer:
        """A buffer that is made of a stored tensor by a codec."""
        origin = self.origins[name]
        origin.axis = how.axis
        return Buffer(key, dtype, shape, UnpackedRows(how, key, self.entries[name], origin))

    def side_files(self) -> tuple[SourceFile, ...]:
        """Every file that is not a shard, and the head of every shard."""
        carried = [_carried(self.folder, name) for name in self.folder.names() if name not in self.shards]
        heads = [SourceFile(name, _bytes(shard.head), "head", shard.file.size) for name, shard in self.shards.items()]
        if self.folder.only:
            return tuple(heads)
        derived, notes = tokenizer_files(self.folder)
        self.notes.extend(note for note in notes if note not in self.notes)
        return (*carried, *(SourceFile(path, _bytes(text), "derived") for path, text in derived.items()), *heads)

    def _shard_names(self) -> list[str]:
        if self.folder.only:
            return [self.folder.only]
        if self._is_indexed:
            return sorted(set(self._weight_map.values()))
        if self.folder.has("model.safetensors"):
            return ["model.safetensors"]
        names = self._weight_files
        if len(names) != 1 and not _are_all_of(names):
            raise BadFileError(
                "no weights that can be read" if not names else "several weight files and no index",
                where=str(self.folder.path),
                found=", ".join(names) or "no .safetensors file",
                allowed=f"model.safetensors, or shards with {INDEX}",
                todo="Pickled weights (.bin, .pt) are not read: save as safetensors.",
            )
        return names

    @property
    def _weight_files(self) -> list[str]:
        return [n for n in self.folder.names() if n.endswith(".safetensors") and "/" not in n]

    @cached_property
    def _is_indexed(self) -> bool:
        """Whether the index counts: not beside whole weights, if none of the shards that it names is there."""
        if self.folder.only or not self.folder.has(INDEX):
            return False
        named = set(_weight_map(self.folder).values())
        absent = not any(_is_there(self.folder, name) for name in named)
        if not self.folder.has("model.safetensors"):
            replaced = absent and (len(self._weight_files) == 1 or _are_all_of(self._weight_files))
            if replaced:
                self.notes.append(
                    f"{INDEX} was left out: it names shards that are not there, beside others that are whole"
                )
            return not replaced
        stale = "model.safetensors" not in named and absent
        if stale:
            self.notes.append(f"{INDEX} was left out: it names shards that are not there, beside model.safetensors")
        elif "model.safetensors" not in named:
            raise AmbiguousError(
                "a whole model.safetensors stands beside an index and its shards",
                where=str(self.folder.path),
                found=", ".join(sorted(named))[:200],
                todo="Remove those that are not meant.",
            )
        return not stale

    @cached_property
    def _weight_map(self) -> dict[str, str]:
        table = _weight_map(self.folder)
        for name in sorted(set(table.values())):
            if not _leads_out(name) and not self.folder.has(name):
                raise BadFileError("a shard is missing", where=INDEX, found=name, todo="Fetch the missing file.")
        return table

    def _check_index(self, tensors: Mapping[str, TensorEntry]) -> None:
        if not self._is_indexed:
            return
        for name, file in self._weight_map.items():
            if name not in tensors and name.endswith(_TIED) and self.config.get("tie_word_embeddings") is not False:
                continue  # listed by the library that saved it, and stored once, as the embedding
            if name not in tensors or tensors[name].file.name != file:
                where = tensors[name].file.name if name in tensors else "no shard"
                raise BadFileError(
                    "the index and the shards disagree",
                    where=f"{INDEX}: {name}",
                    found=where,
                    allowed=file,
                    todo="The shards are not of one checkpoint; fetch them.",
                )


def assemble(
    checkpoint: Checkpoint,
    format: str,
    claims: Iterable[Claim],
    notes: list[str] | None = None,
    floats: bool = False,
) -> Model:
    """Makes the model: claimed parameters, and everything else as plain tensors.

    `notes` becomes the model's own list, so that a claim can add to it at the first use of its tensor. With `floats`,
    nothing need be quantized at all.

    Raises:
        UnsupportedError: A stored tensor belongs to a quantized parameter that no packing claims.
    """
    from qdeploy.arch import build_graph

    taken: set[str] = set()
    builders: dict[str, Callable[[], QTensor]] = {}
    for claim in claims:
        builders[claim.parameter] = claim.build
        taken.update(claim.stored)
    for name in checkpoint.entries:
        if name in taken:
            continue
        bare = format != "safetensors" and name.endswith(".weight") and checkpoint.entries[name].dtype in _CODES
        if bare or name.endswith(_QUANTIZED_SUFFIXES):
            raise UnsupportedError(
                "a quantized tensor that this reader does not understand",
                where=name,
                found=f"{format} checkpoint",
                todo="A tensor of the layer may be missing: fetch the checkpoint again.",
            )
        if name in builders:
            raise AmbiguousError("a parameter is stored both quantized and plain", where=name)
        builders[name] = lambda name=name: checkpoint.plain(name, "safetensors")  # type: ignore[misc]
    if not taken and not floats:
        _refuse_floats(checkpoint)
    tensors = LazyTensors(builders)
    origins = tuple(checkpoint.origins.values())
    build = build_graph if checkpoint.config.get("model_type") else None
    path, files = str(checkpoint.folder.path / checkpoint.folder.only), checkpoint.side_files()
    return Model(
        format,
        path,
        tensors,
        checkpoint.config,
        "hf",
        files,
        origins,
        build,
        _joined(checkpoint.notes, notes),
    )


def _refuse_floats(checkpoint: Checkpoint) -> None:
    """A configuration of quantized layers beside floats: a library would quantize them, or drop them."""
    settings = checkpoint.quantization
    changes_else = settings.get("transform_config") or settings.get("sparsity_config")
    if checkpoint.method and checkpoint.entries and not changes_else:
        raise BadFileError(
            "the configuration says that layers are quantized, and none is stored so",
            where="quantization_config",
            found=checkpoint.method,
            todo="Remove quantization_config from config.json if the floats are meant.",
        )


def _joined(own: list[str], notes: list[str] | None) -> list[str]:
    """The notes of a claim's list, which stays that list, with the folder's own."""
    joined = [] if notes is None else notes
    joined.extend(own)
    return joined


def modules_of(checkpoint: Checkpoint, suffixes: Sequence[str]) -> list[str]:
    """Names of the modules that have a stored tensor with one of these endings, in file order."""
    names = (name.removesuffix(s) for name in checkpoint.entries for s in suffixes if name.endswith(s))
    return list(dict.fromkeys(names))


class LazyTensors(Mapping[str, QTensor]):
    """Tensors that are described at their first use."""

    def __init__(self, builders: Mapping[str, Callable[[], QTensor]]) -> None:
        self._builders = dict(builders)
        self._described: dict[str, QTensor] = {}

    def __getitem__(self, name: str) -> QTensor:
        if name not in self._described:
            self._described[name] = self._builders[name]()
        return self._described[name]

    def __iter__(self) -> Any:
        return iter(self._builders)

    def __len__(self) -> int:
        return len(self._builders)


def _weight_map(folder: Folder) -> dict[str, str]:
    loaded = folder.json(INDEX)
    table = loaded.get("weight_map") if isinstance(loaded, dict) else None
    if not isinstance(table, dict) or not all(isinstance(v, str) for v in table.values()):
        raise BadFileError("the index has no weight_map", where=INDEX, allowed='{"weight_map": {tensor: file}}')
    return table


def _are_all_of(names: list[str]) -> bool:
    """Whether files are all shards of one set, which their names number: NAME-00001-of-00003.safetensors and so on."""
    parts = [re.fullmatch(r"(.+)-(\d{5})-of-(\d{5})\.safetensors", name) for name in names]
    sets = {(part[1], part[3]) for part in parts if part is not None}
    numbers = sorted(int(part[2]) for part in parts if part is not None)
    return len(sets) == 1 and len(numbers) == len(names) and numbers == list(range(1, int(next(iter(sets))[1]) + 1))


def _leads_out(name: str) -> bool:
    return ".." in name or name.startswith("/")


def _is_there(folder: Folder, name: str) -> bool:
    # what leads out, or is no name of a file, is refused where it is opened
    return _leads_out(name) or not name.isprintable() or folder.has(name)


def _carried(folder: Folder, name: str) -> SourceFile:
    return SourceFile(name, Buffer(name, "U8", (folder.size(name),), folder.rows(name)))


def _bytes(data: bytes) -> Buffer:
    import numpy as np

    array = np.frombuffer(data, np.uint8)
    return Buffer("head", "U8", array.shape, ArrayRows(array))
