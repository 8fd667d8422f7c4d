"""HAWQ-V3 checkpoints: `quantized_checkpoint.pth.tar`, with the network and its bit widths beside it.

    quantized_checkpoint.pth.tar    a dict of five dicts, each a slice of the state_dict by a part of the name:
                                    weight_integer, bias_integer, convbn_scaling_factor, fc_scaling_factor,
                                    act_scaling_factor; keys are module paths, with "module." before them when it was
                                    trained in parallel; integers are stored as float32
    hawq.json                       {"arch": "resnet18", "bits": {"quant_input": 8, ...}}: the network's name and its
                                    entry of the repository's bit_config.py, or "uniform8" or "uniform4" for one

(Zhen-Dong/HAWQ, quant_train.py and bit_config.py; arXiv 2011.10680.) Neither topology nor bit widths are in the
checkpoint, and strides of ResNet-50 and 50b differ where shapes do not, so that hawq.json is asked for and nothing is
guessed. Stored tensors are kept as they are; the graph's constants are their integers, checked to be such.
`hawq_network.py` builds the graph.
"""

from __future__ import annotations

from typing import Any

from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.formats import NOT_MINE, Sniff
from qdeploy.formats.stored import Stored, of_torch
from qdeploy.ir.model import Model, SourceFile
from qdeploy.ir.tensor import Buffer
from qdeploy.store.folder import Folder
from qdeploy.store.pickled import PickledTensor, read_torch

NAME = "hawq"
TITLE = "HAWQ-V3 networks in integers: quantized_checkpoint.pth.tar and hawq.json"
WRITES = False
CHECKPOINT, CONFIG = "quantized_checkpoint.pth.tar", "hawq.json"
_UNSCALED = "the checkpoint does not hold the scales of the last layer: its sums are given as they are"
PARTS = ("convbn_scaling_factor", "fc_scaling_factor", "weight_integer", "bias_integer", "act_scaling_factor")


def sniff(folder: Folder) -> Sniff:
    """Declared by the name of the checkpoint."""
    if folder.only:
        return Sniff(70, "named as HAWQ names it") if folder.only == CHECKPOINT else NOT_MINE
    return Sniff(95, f"a folder with {CHECKPOINT}") if folder.has(CHECKPOINT) else NOT_MINE


def read(folder: Folder) -> Model:
    """Opens the checkpoint; no tensor is read yet.

    Raises:
        BadFileError: The file is damaged, or holds something else.
        UnsupportedError: hawq.json is missing, or the network is not known.
    """
    from qdeploy.formats.networks.hawq_network import MOBILENET, build_graph, read_config

    config = read_config(folder)
    stored = _stored(folder, read_torch(folder, CHECKPOINT))
    tensors = {name: part.tensor(NAME) for name, part in stored.items()}
    side = [] if folder.only else [n for n in folder.names() if n != CHECKPOINT]
    files = tuple(SourceFile(n, Buffer(n, "U8", (folder.size(n),), folder.rows(n))) for n in side)
    origins = tuple(part.origin for part in stored.values())
    notes = [_UNSCALED] if config.arch == MOBILENET else []
    return Model(
        NAME,
        str(folder.path),
        tensors,
        {},
        NAME,
        files,
        origins,
        lambda model: build_graph(config, model.tensors),
        notes,
    )


def _stored(folder: Folder, checkpoint: Any) -> dict[str, Stored]:
    if not isinstance(checkpoint, dict) or not all(isinstance(checkpoint.get(key), dict) for key in PARTS):
        raise BadFileError(
            "not a quantized checkpoint of HAWQ",
            where=CHECKPOINT,
            found=", ".join(map(str, checkpoint)) if isinstance(checkpoint, dict) else "no dict",
            allowed=", ".join(PARTS),
        )
    rows, tensors = folder.rows(CHECKPOINT), {}
    for name, tensor in [item for key in PARTS for item in checkpoint[key].items()]:
        if not isinstance(name, str) or not isinstance(tensor, PickledTensor):
            raise BadFileError("not a tensor", where=f"{CHECKPOINT}: {name}")
        tensors[name] = of_torch(CHECKPOINT, name, tensor, rows)
    if not tensors:
        raise UnsupportedError("a checkpoint without tensors", where=CHECKPOINT)
    return tensors
