"""A model: tensors by their source names, a graph over them, and everything else that came with them, byte for byte."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from qdeploy.errors import BadArgumentError, UnsupportedError
from qdeploy.ir.graph import Graph
from qdeploy.ir.tensor import Array, Buffer, QTensor
from qdeploy.store.origin import Origin


@dataclass(frozen=True)
class SourceFile:
    """A file of the source that is carried byte for byte.

    Attributes:
        path: Relative to the source folder, with forward slashes.
        data: U8 [size], read by range.
        role: "side": config, tokenizer, ...
            "head": the bytes of a tensor file before its tensors, given where whatever else lies between the tensors is
            zero, so that head and tensors are the whole file.
            "rest": the same where it is not, followed by what lies between and behind the tensors.
            "derived": made by the reader from what the source holds in another form (a tokenizer.json from metadata).
        total: For a head: the size of the whole file.
    """

    path: str
    data: Buffer
    role: str = "side"
    total: int = 0


class ReplacedTensors(Mapping[str, QTensor]):
    """The tensors of a model with some of them replaced, in the order of the original, and new ones behind."""

    def __init__(self, tensors: Mapping[str, QTensor], replaced: Mapping[str, QTensor]) -> None:
        self._tensors, self._replaced = tensors, replaced
        self._new = [name for name in replaced if name not in tensors]

    def __getitem__(self, name: str) -> QTensor:
        return self._replaced[name] if name in self._replaced else self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        yield from self._tensors
        yield from self._new

    def __len__(self) -> int:
        return len(self._tensors) + len(self._new)


@dataclass
class Model:
    """What a reader gives and a backend takes.

    Attributes:
        format: The reader's name ("gptq", "gguf", "safetensors", "package", ...).
        path: Where it was read from.
        tensors: Source parameter name -> tensor. Nothing is read before its first use.
        config: The architecture's configuration in the dialect of Hugging Face's config.json.
        dialect: How tensors are named: "hf" or "gguf" (see qdeploy/arch/names.py).
        files: Every other file of the source.
        origins: Every tensor of every source file, with what has been proven of it.
        build_graph: Makes the graph from config and tensors; None where the source describes no network.
        notes: Warnings that the report repeats.
        losses: Signal-to-noise ratio in dB of every tensor that was quantized on the way, on sampled rows; filled as
            the tensors are read.
    """

    format: str
    path: str
    tensors: Mapping[str, QTensor]
    config: Mapping[str, Any] = field(default_factory=dict)
    dialect: str = "hf"
    files: tuple[SourceFile, ...] = ()
    origins: tuple[Origin, ...] = ()
    build_graph: Callable[[Model], Graph] | None = None
    notes: list[str] = field(default_factory=list)
    losses: dict[str, float] = field(default_factory=dict)

    @cached_property
    def graph(self) -> Graph:
        """The network; raises UnsupportedError, which names the field, where the architecture is not known."""
        if self.build_graph is None:
            raise UnsupportedError("this source describes no network", where=self.path, todo="Convert it with --to ir.")
        return self.build_graph(self)

    def run(self, **inputs: Any) -> dict[str, Array]:
        """Every output of the network by its name, from the numpy interpreter; caches are empty.

        Args:
            inputs: An array, or nested lists, for each input of the graph by its name. `attention_mask` is all ones,
                `token_type_ids` all zeros, where they are not passed.

        Raises:
            BadArgumentError: An input is missing, has another rank, or is none of the graph's.
            UnsupportedError: The source describes no network, or the architecture is not known.

        Example:
            >>> import qdeploy
            >>> qdeploy.load("examples/models/tiny-llama-gptq").run(input_ids=[[1, 2, 3]])["logits"].shape
            (1, 3, 512)
        """
        from qdeploy.ir.run import Weights, run

        names = [value.name for value in self.graph.inputs]
        unknown = [name for name in inputs if name not in names]
        if unknown:
            raise BadArgumentError("the model has no such input", found=", ".join(unknown), allowed=", ".join(names))
        arrays = {name: np.asarray(value) for name, value in inputs.items()}
        if "input_ids" in arrays:
            shape = arrays["input_ids"].shape
            usual = {"attention_mask": np.ones(shape, np.int64), "token_type_ids": np.zeros(shape, np.int64)}
            arrays = {**{name: array for name, array in usual.items() if name in names}, **arrays}
        outputs, _ = run(self.graph, arrays, None, Weights(self))
        return outputs
