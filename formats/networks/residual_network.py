"""Residual networks from the names and shapes of their tensors, as training code has them.

    conv1, bn1              3x3 at stride 1; or 7x7 at stride 2, and the greatest of 3x3 at stride 2 behind it
    layerS.U.conv1, bn1, .. a unit: two convolutions, or three (the first and the last 1x1); each with a batch norm, a
                            ReLU between them, and one behind the sum with the shortcut. The first unit of every stage
                            but the first halves the image: with conv1 of two, with conv2 of three
    layerS.U.downsample.0/1 the shortcut's convolution and batch norm (or shortcut.0/1); where image or channels change
                            without one, every second pixel, and channels of zeros on both sides
    fc (or linear)          behind the mean over the image

So are ResNet-20 to 110 for CIFAR (arXiv 1512.03385, section 4.2) and ResNet-18 to 152; "module." before the names is
left out. A tensor that has no place in this is an error: nothing is guessed. How weights and inputs of layers are
quantized is up to the reader.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.ir.dtype import plain_name
from qdeploy.ir.graph import Attr, Graph, Node, Value
from qdeploy.ir.graph_rules import check_graph
from qdeploy.ir.tensor import Array, Buffer, QTensor, plain

INPUT, OUTPUT = "input", "logits"
_END = (1 << 63) - 1
_STORED = {"float32": "F32", "uint8": "U8", "int8": "I8"}


class Quantizer(Protocol):
    """How a format quantizes."""

    def weight(self, net: Network, layer: str) -> str:
        """The name of a layer's weight in the graph: of a tensor of the model, or of a constant that is added."""
        ...

    def activation(self, net: Network, x: str, layer: str) -> str:
        """The input of a layer as the layer sees it; adds nodes."""
        ...


@dataclass(frozen=True)
class Image:
    """What a network is given: pixels of 0 to 1, less a mean, over a spread, per channel.

    Attributes:
        shape: [channels, rows, columns].
        mean: Per channel.
        std: Per channel.
    """

    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def interval(self) -> list[float]:
        """The least and the greatest number of an image."""
        ends = [[(end - m) / s for m, s in zip(self.mean, self.std, strict=True)] for end in (0.0, 1.0)]
        return [min(ends[0]), max(ends[1])]


IMAGE_KEYS = ("image", "mean", "std")


def read_image(declared: Mapping[str, Any], known: Image | None, where: str) -> Image:
    """The image that a side file describes ("image": [3, 32, 32], "mean", "std"), or the known one.

    Raises:
        UnsupportedError: It does not say, and the shapes of the tensors do not either.
        BadFileError: What it says is not an image.
    """
    if known is None and "image" not in declared:
        raise UnsupportedError(
            "the tensors do not say how large an image is",
            where=where,
            allowed='"image": [channels, rows, columns], "mean": [...], "std": [...]',
            todo=f"Say so in {where}.",
        )
    shape = declared.get("image", known.shape if known else None)
    if not isinstance(shape, list | tuple) or len(shape) != 3 or not all(_is_extent(n) for n in shape):
        raise BadFileError("not the shape of an image", where=where, found=shape, allowed="[channels, rows, columns]")
    alike = known is not None and known.shape[0] == shape[0]
    mean = declared.get("mean", known.mean if known and alike else [0.0] * shape[0])
    std = declared.get("std", known.std if known and alike else [1.0] * shape[0])
    for numbers, least in ((mean, -1e6), (std, 1e-6)):
        fine = isinstance(numbers, list | tuple) and len(numbers) == shape[0]
        if not fine or not all(type(n) in (int, float) and least <= n <= 1e6 for n in numbers):
            raise BadFileError(
                "not a mean or spread per channel",
                where=where,
                found=numbers,
                allowed=f"{shape[0]} numbers, spreads above 0",
            )
    return Image((shape[0], shape[1], shape[2]), tuple(mean), tuple(std))


def _is_extent(n: object) -> bool:
    return type(n) is int and 0 < n <= 1 << 14


@dataclass(frozen=True)
class Operand:
    """A value of the graph, and its channels."""

    name: str
    channels: int


@dataclass
class Network:
    """A graph that grows over the tensors of a checkpoint.

    Attributes:
        tensors: By their stored names.
        quantizer: Of the format.
        where: The checkpoint, for errors.
    """

    tensors: Mapping[str, QTensor]
    quantizer: Quantizer
    where: str
    nodes: list[Node] = field(default_factory=list)
    constants: dict[str, QTensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._stored = {name.removeprefix("module."): name for name in self.tensors}
        if len(self._stored) < len(self.tensors):
            raise BadFileError("a tensor occurs twice, with and without module. before it", where=self.where)
        self._placed: set[str] = set()

    # ---- what the checkpoint holds

    def has(self, name: str) -> bool:
        """Whether there is a tensor."""
        return name in self._stored

    def stored(self, name: str) -> str:
        """The stored name of a tensor, which is then taken as placed."""
        if name not in self._stored:
            raise BadFileError("a tensor is missing in the checkpoint", where=self.where, found=name)
        self._placed.add(name)
        return self._stored[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self.tensors[self.stored(name)].shape

    def array(self, name: str) -> Array:
        """A tensor, float32; BadFileError where it is not finite."""
        array = self.tensors[self.stored(name)].decode()
        if not np.isfinite(array).all():
            raise BadFileError("numbers that are not finite", where=f"{self.where}: {name}")
        return array

    def unplaced(self) -> list[str]:
        """Names of matrices and filters that the network did not take."""
        return [n for n, key in self._stored.items() if n not in self._placed and len(self.tensors[key].shape) > 1]

    @property
    def depth(self) -> int:
        """Layers with weights on the way, without those of shortcuts: the number in the network's name."""
        return 1 + sum(re.fullmatch(r"(layer\d+\.\d+\.)?conv\d\.weight", name) is not None for name in self._placed)

    # ---- the graph

    def add(self, op: str, inputs: Sequence[str], output: str, **attrs: Any) -> str:
        """Adds a node; returns its output."""
        self.nodes.append(Node(op, tuple(inputs), (output,), attrs, output))
        return output

    def constant(self, name: str, array: Array) -> str:
        """Adds numbers as a constant."""
        dtype = _STORED.get(array.dtype.name, "I64")
        tensor = plain(Buffer.of("data", np.atleast_1d(array), dtype), plain_name(dtype))
        self.constants[name] = QTensor(array.shape, dtype, tensor.terms)
        return name

    def conv(self, x: Operand, layer: str, stride: int) -> Operand:
        """A convolution with padding that keeps the image at stride 1, its input quantized."""
        shape = self.shape(f"{layer}.weight")
        if len(shape) != 4 or shape[1] != x.channels or shape[2] != shape[3] or not shape[2] % 2 or not shape[0]:
            raise BadFileError(
                "a filter that does not fit",
                where=f"{self.where}: {layer}.weight",
                found=shape,
                allowed=f"[outputs, {x.channels}, k, k], k odd",
            )
        inputs = [self.quantizer.activation(self, x.name, layer), self.quantizer.weight(self, layer)]
        output = self.add(
            "Conv",
            inputs,
            f"{layer}/conv",
            kernel_shape=list(shape[2:]),
            strides=[stride] * 2,
            pads=[shape[2] // 2] * 4,
        )
        return Operand(output, shape[0])

    def norm(self, x: Operand, layer: str) -> Operand:
        """A batch norm."""
        names = [f"{layer}.{part}" for part in ("weight", "bias", "running_mean", "running_var")]
        for name in names:
            if self.shape(name) != (x.channels,):
                raise BadFileError(
                    "a batch norm that does not fit",
                    where=f"{self.where}: {name}",
                    found=self.shape(name),
                    allowed=f"[{x.channels}]",
                )
            if self.array(name).min() < 0 and name == names[3]:
                raise BadFileError("a variance below 0", where=f"{self.where}: {name}")
        output = self.add("BatchNormalization", [x.name, *map(self.stored, names)], f"{layer}/norm", epsilon=1e-5)
        return Operand(output, x.channels)

    def relu(self, x: Operand, name: str) -> Operand:
        """A ReLU."""
        return Operand(self.add("Relu", [x.name], name), x.channels)

    def head(self, x: Operand) -> int:
        """The mean over the image and the last layer; returns the number of classes."""
        layer = "linear" if self.has("linear.weight") else "fc"
        shape, mean = self.shape(f"{layer}.weight"), self.add("GlobalAveragePool", [x.name], "mean")
        if len(shape) != 2 or shape[1] != x.channels or self.shape(f"{layer}.bias") != shape[:1]:
            raise BadFileError(
                "a last layer that does not fit",
                where=f"{self.where}: {layer}.weight",
                found=shape,
                allowed=f"[classes, {x.channels}], and a bias",
            )
        self.array(f"{layer}.bias")
        flat = self.quantizer.activation(self, self.add("Flatten", [mean], "flat"), layer)
        weight = self.quantizer.weight(self, layer)
        self.add("Gemm", [flat, weight, self.stored(f"{layer}.bias")], OUTPUT, transB=1)
        return shape[0]


def stem_of(tensors: Mapping[str, QTensor], where: str) -> tuple[int, int]:
    """The size of the first filters and the channels of an image."""
    shape = next((t.shape for name, t in tensors.items() if name.removeprefix("module.") == "conv1.weight"), None)
    if shape is None or len(shape) != 4:
        raise BadFileError(
            "a network without a first convolution",
            where=where,
            found=shape,
            allowed="conv1.weight [outputs, channels, k, k]",
        )
    return shape[2], shape[1]


def residual_network(net: Network, image: Image, arch: str = "", ranges: Sequence[float] = ()) -> Graph:
    """Builds the graph: input float32 [batch, *image.shape], output float32 [batch, classes].

    Args:
        net: Empty, over the tensors.
        image: What the network is given.
        arch: Its name where the source says one ("resnet20"): the number in it is held against the tensors.
        ranges: The interval of the input, for a network whose layers are quantized: goes into the meta.

    Raises:
        BadFileError: A tensor is missing or does not fit the others, or `arch` is not what the tensors show.
        UnsupportedError: There are tensors that have no place in a residual network.
    """
    kernel, _ = stem_of(net.tensors, net.where)
    x = net.conv(Operand(INPUT, image.shape[0]), "conv1", 2 if kernel == 7 else 1)
    x = net.relu(net.norm(x, "bn1"), "bn1/relu")
    if kernel == 7:
        pool = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
        x = Operand(net.add("MaxPool", [x.name], "pool", **pool), x.channels)
    stage, unit = 1, 0
    while net.has(f"layer{stage}.0.conv1.weight"):
        while net.has(f"layer{stage}.{unit}.conv1.weight"):
            x = _unit(net, x, f"layer{stage}.{unit}", 2 if stage > 1 and unit == 0 else 1)
            unit += 1
        stage, unit = stage + 1, 0
    classes = net.head(x)
    _check_whole(net, kernel, stage - 1, arch)
    meta: dict[str, Attr] = {"kind": "network", "model_type": f"resnet{net.depth}"}
    meta |= {"ranges": {INPUT: list(ranges)}} if ranges else {}
    graph = Graph(
        (Value(INPUT, "F32", ("batch", *image.shape)),),
        (Value(OUTPUT, "F32", ("batch", classes)),),
        tuple(net.nodes),
        (),
        net.constants,
        meta,
    )
    check_graph(graph, net.tensors)
    return graph


def _check_whole(net: Network, kernel: int, stages: int, arch: str) -> None:
    left = net.unplaced()
    if left or not stages or kernel not in (3, 7):
        raise UnsupportedError(
            "not a residual network of this kind",
            where=net.where,
            found=", ".join(left[:4]) or f"{stages} stages, a first kernel of {kernel}",
            allowed="conv1 of 3x3 or 7x7, layerS.U.conv1..3, downsample, fc",
        )
    number = re.search(r"\d+", arch)
    if number is not None and int(number.group()) != net.depth:
        raise BadFileError(
            "the tensors are of another network than the one that is named",
            where=net.where,
            found=f"resnet{net.depth}",
            allowed=arch,
        )


def _unit(net: Network, x: Operand, name: str, stride: int) -> Operand:
    count = 3 if net.has(f"{name}.conv3.weight") else 2
    y = x
    for i in range(1, count + 1):
        y = net.norm(net.conv(y, f"{name}.conv{i}", stride if i == count - 1 else 1), f"{name}.bn{i}")
        y = net.relu(y, f"{name}.bn{i}/relu") if i < count else y
    other = _shortcut(net, x, name, y.channels, stride)
    if other.channels != y.channels:
        raise BadFileError(
            "a shortcut that does not fit its unit",
            where=f"{net.where}: {name}",
            found=other.channels,
            allowed=str(y.channels),
        )
    total = net.add("Add", [y.name, other.name], f"{name}/sum")
    return net.relu(Operand(total, y.channels), f"{name}/relu")


def _shortcut(net: Network, x: Operand, name: str, channels: int, stride: int) -> Operand:
    for key in ("downsample", "shortcut"):
        if net.has(f"{name}.{key}.0.weight"):
            return net.norm(net.conv(x, f"{name}.{key}.0", stride), f"{name}.{key}.1")
    if stride == 1 and x.channels == channels:
        return x
    more = channels - x.channels
    if more < 0 or more % 2:
        raise BadFileError(
            "a shortcut without a convolution that cannot be padded",
            where=f"{net.where}: {name}",
            found=f"{x.channels} to {channels} channels",
        )
    strided = net.add(
        "Slice", [x.name], f"{name}/every_second", starts=[0, 0], ends=[_END] * 2, axes=[2, 3], steps=[stride] * 2
    )
    pads = net.constant(f"{name}/pads", np.array([0, more // 2, 0, 0, 0, more // 2, 0, 0], np.int64))
    return Operand(net.add("Pad", [strided, pads], f"{name}/padded"), channels)
