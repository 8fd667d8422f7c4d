"""Checkpoints of additive powers of two (APoT): filters and activations on non-uniform levels, with learned clips.

    NAME.safetensors           tensors, and the metadata {"bit": "4", "quantizer": "apot" | "uniform" | "none"}
    model_best.pth.tar         torch.save of {"state_dict": ..., ...}, as the repository's training writes it
    apot.json                  beside it: {"bit": 4, "quantizer": "apot"}, and where they differ from the defaults
                               "edges": 8 | 32, "arch": "resnet20", "image": [3, 32, 32], "mean": [...], "std": [...]

    LAYER.weight               float masters          LAYER.act_alpha               clip of the layer's input
    LAYER.weight_alpha, LAYER.weight_quant.wgt_alpha  clip of the weights (two generations of the repository)

(yhhhli/APoT_Quantization: CIFAR10, MNIST and ImageNet; arXiv 1909.13144.) Bits of 32, or the quantizer "none", are a
float network. In all of them the weights of the first convolution and of the last layer are rounded to 8 bits when the
network runs; early networks for ImageNet have floats there, "edges": 32. An image is normalised as the repository does
for the network's data set; the topology is that of `residual_network.py`, what the quantizers compute stands in
`apot_levels.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.formats import NOT_MINE, Sniff
from qdeploy.formats.networks.training_state import State, holds, read_side, read_state, weights_file
from qdeploy.ir.graph import Graph
from qdeploy.ir.model import Model
from qdeploy.ir.tensor import QTensor
from qdeploy.store.folder import Folder

NAME = "apot"
TITLE = "residual networks quantized to additive powers of two, or uniformly, with learned clips (APoT)"
WRITES = False
CONFIG = "apot.json"
APOT, UNIFORM, NONE = "apot", "uniform", "none"
CLIP = ".act_alpha"
_BITS = {APOT: range(2, 6), UNIFORM: range(2, 9)}
_KEYS = ("bit", "quantizer", "edges", "arch", "image", "mean", "std")


@dataclass(frozen=True)
class Config:
    """How a network is quantized.

    Attributes:
        bit: Of weights and activations inside; 32: floats.
        quantizer: apot | uniform | none.
        edges: Bits of the weights of the first and the last layer, 8 or 32.
        arch: The network's name; empty where the checkpoint has none.
        side: The content of the side file.
    """

    bit: int
    quantizer: str
    edges: int
    arch: str
    side: Mapping[str, Any]


def sniff(folder: Folder) -> Sniff:
    """Declared by apot.json, by the metadata, or by the names of clips."""
    if folder.has(CONFIG) and weights_file(folder):
        return Sniff(96, f"weights with {CONFIG}")
    metadata = holds(folder, CLIP)
    if metadata and {"bit", "quantizer"} <= set(metadata):
        return Sniff(95, "safetensors with bit and quantizer in the metadata")
    return Sniff(94, f"tensors named {CLIP}") if metadata and metadata["shown"] else NOT_MINE


def read(folder: Folder) -> Model:
    """Opens the checkpoint; no tensor is read yet.

    Raises:
        BadFileError: The file is damaged or holds something else, or bits or quantizer are not valid.
        UnsupportedError: Neither the file nor apot.json says how the network is quantized.
    """
    state = read_state(folder, NAME, CONFIG)
    config = read_config(state, read_side(folder, CONFIG, _KEYS))
    return replace(state.model, build_graph=lambda model: build_graph(config, model.tensors, state.file))


def read_config(state: State, declared: Mapping[str, Any]) -> Config:
    """The settings of metadata and side file; where they differ, the side file counts."""
    known: dict[str, Any] = {
        **{k: v for k, v in state.metadata.items() if k in ("bit", "quantizer", "arch")},
        **declared,
    }
    if "bit" not in known:
        raise UnsupportedError(
            "the checkpoint does not say how many bits its numbers have",
            where=state.file,
            allowed=f'{CONFIG} with {{"bit": 4, "quantizer": "apot"}}',
            todo=f"Write {CONFIG}: the bits and the quantizer of the training.",
        )
    bit = _whole(known["bit"])
    quantizer = NONE if bit == 32 else known.get("quantizer", APOT)
    bit = 32 if quantizer == NONE else bit
    if quantizer not in (APOT, UNIFORM, NONE):
        raise UnsupportedError("a quantizer that is not known", where=CONFIG, found=quantizer, allowed="apot, uniform")
    if quantizer != NONE and bit not in _BITS[quantizer]:
        allowed = f"{_BITS[quantizer][0]} to {_BITS[quantizer][-1]}, or 32 for floats"
        raise UnsupportedError(
            f"bits that the quantizer {quantizer} has no levels for", where=CONFIG, found=bit, allowed=allowed
        )
    edges = _whole(known.get("edges", 8))
    arch = known.get("arch", "")
    if edges not in (8, 32) or not isinstance(arch, str):
        raise BadFileError(
            "the bits of the first and last layer, or the name, are not valid",
            where=CONFIG,
            found=f"edges {edges}, arch {arch}",
            allowed="edges 8 or 32, a name",
        )
    return Config(bit, quantizer, edges, arch, declared)


def _whole(number: object) -> int:
    text = str(number) if type(number) in (int, str) else ""
    if not text.isascii() or not text.isdigit() or len(text) > 4:
        raise BadFileError("bits that are not a number", where=CONFIG, found=number, allowed="a whole number")
    return int(text)


def build_graph(config: Config, tensors: Mapping[str, QTensor], where: str) -> Graph:
    """The graph of the network; quantized weights are constants of it."""
    from qdeploy.formats.networks.apot_levels import Levels
    from qdeploy.formats.networks.residual_network import Image, Network, read_image, residual_network, stem_of

    images = {
        (3, 3): Image((3, 32, 32), (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)),  # CIFAR-10
        (7, 1): Image((1, 28, 28), (0.131,), (0.308,)),  # MNIST
        (7, 3): Image((3, 224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # ImageNet
    }
    image = read_image(config.side, images.get(stem_of(tensors, where)), CONFIG)
    net = Network(tensors, Levels(config.bit, config.quantizer == APOT, config.edges == 8), where)
    return residual_network(net, image, config.arch, image.interval if config.bit < 32 else ())
