"""What can be told of a checkpoint without a reader: names of files, first bytes, configuration, names of tensors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from qdeploy.errors import BadFileError, QdeployError
from qdeploy.store.folder import JSON_LIMIT, Folder

INDEX = "model.safetensors.index.json"
PACKAGE = "qdeploy.json"
"""The manifest of a package: a folder that holds it is nothing else."""
_MODELOPT = "hf_quant_config.json"
_SETTINGS = ("quantize_config.json", "quantization_config.json", "quant_config.json")


class Clues:
    """The signs by which formats know their checkpoints; each is looked for once, at its first use."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of all files, relative to the folder."""
        return tuple(self.folder.names())

    @cached_property
    def head(self) -> bytes:
        """The first 64 bytes of a file that is named itself; empty for a folder."""
        if not self.folder.only:
            return b""
        file = self.folder.open(self.folder.only)
        try:
            return file.read(0, min(file.size, 64))
        finally:
            file.close()

    def has(self, name: str) -> bool:
        """Whether a file of this name is in the folder, or beside the file that is named itself, or is that file."""
        return name == self.folder.only or self.folder.has(name)

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """config.json; empty where there is none."""
        beside = not self.folder.only and self.folder.has("config.json")
        loaded = self.folder.json("config.json", strict=False) if beside else {}
        if not isinstance(loaded, dict):
            raise BadFileError("config.json is not an object", where=os.fspath(self.folder.path))
        return loaded

    @cached_property
    def quantization(self) -> Mapping[str, Any]:
        """`quantization_config`, from config.json or from its own file; empty for a float checkpoint."""
        inside = self.config.get("quantization_config") or self.config.get("compression_config")
        if isinstance(inside, dict):
            return inside
        for name in _SETTINGS:
            if not self.folder.only and self.folder.has(name):
                loaded = self.folder.json(name, strict=False)
                return loaded if isinstance(loaded, dict) else {}
        return self._modelopt or self._mlx

    @property
    def _mlx(self) -> Mapping[str, Any]:
        """`quantization` of config.json: how MLX says it."""
        section = self.config.get("quantization")
        return section if isinstance(section, dict) else {}

    @cached_property
    def _modelopt(self) -> Mapping[str, Any]:
        """What ModelOpt writes into a file of its own, and older releases nowhere else."""
        loaded = self.folder.json(_MODELOPT) if not self.folder.only and self.folder.has(_MODELOPT) else {}
        section = loaded.get("quantization") if isinstance(loaded, dict) else None
        return {"quant_method": "modelopt", **section} if isinstance(section, dict) else {}

    @cached_property
    def method(self) -> str:
        """`quant_method`, lower case; "" for a float checkpoint; of old files without one, what the settings show."""
        if not self.quantization or self._is_network:
            return ""
        if self._mlx and not self.quantization.get("quant_method"):
            return "mlx"
        shown = "awq" if "w_bit" in self.quantization else "gptq" if "bits" in self.quantization else "unnamed"
        return str(self.quantization.get("quant_method") or self.quantization.get("method") or shown).lower()

    @property
    def _is_network(self) -> bool:
        """Whether the weights are in an ONNX file; the configuration beside it is that of the model it was made of."""
        kinds = {name.rpartition(".")[2] for name in self.names if "/" not in name}
        return "onnx" in kinds and "safetensors" not in kinds

    @cached_property
    def tensor_names(self) -> bytes:
        """The text that names the tensors: the index, or the header of the first safetensors file; empty if damaged."""
        try:
            return self._tensor_names()
        except QdeployError:  # what is wrong with a file is for its reader to say
            return b""

    def _tensor_names(self) -> bytes:
        indexed = not self.folder.only and self.folder.has(INDEX)
        first = next((n for n in self.names if n.endswith(".safetensors") and "/" not in n), "")
        if not (indexed or first):
            return b""
        file = self.folder.open(INDEX if indexed else first)
        try:
            begin = 0 if indexed else 8
            size = JSON_LIMIT
            if begin and file.size >= begin:
                size = int.from_bytes(file.read(0, begin), "little")
            return file.read(begin, max(0, min(size, file.size - begin, JSON_LIMIT)))
        finally:
            file.close()
