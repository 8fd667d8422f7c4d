"""The networks of HAWQ's repository as integer graphs, in its arithmetic (arXiv 2011.10680, section 3.2 and 3.3).

    quantize    round(z m / 2^e), halves to even, limited to -2^(b-1)..2^(b-1)-1, or to 0..2^b-1 for b = 4, which only
                stands behind a ReLU; m / 2^e = float32(S_x S_w) / float32(S_y), the product rounded to float32
    stem        convolution, greatest of 3x3 on the sums, quantize to 16 bits, ReLU
    unit        quantize the stream; convolutions, each but the last with ReLU and quantize; the last one's sums and the
                other branch (the stream as it is, or its own convolution) each brought to the stream's next scale,
                added without a limit, ReLU
    head        the mean of 7x7, rounded down, quantize, a matrix product

`hawq_inception.py` has InceptionV3, `hawq_mobilenet.py` MobileNetV2.

HAWQ computes this in float64 and float32 on numbers that are integers; here they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.formats.networks.hawq import CHECKPOINT, CONFIG
from qdeploy.ir.codes import packed_codes
from qdeploy.ir.dtype import plain_name
from qdeploy.ir.dyadic import dyadics, quotient
from qdeploy.ir.graph import Attr, Graph, Node, Value
from qdeploy.ir.graph_rules import check_graph
from qdeploy.ir.tensor import PLAIN, Array, Buffer, Codes, QTensor, Term
from qdeploy.store.folder import Folder


@dataclass(frozen=True)
class ResNet:
    """A residual network of the repository.

    Attributes:
        units: Per stage.
        stem: What its first convolution is called.
        convolutions: Per unit.
        strided: Which convolution of a stage's first unit halves the image.
    """

    units: tuple[int, int, int, int]
    stem: str
    convolutions: int
    strided: int


RESNETS = {
    "resnet18": ResNet((2, 2, 2, 2), "quant_init_block_convbn", 2, 1),
    "resnet50": ResNet((3, 4, 6, 3), "quant_init_convbn", 3, 1),
    "resnet50b": ResNet((3, 4, 6, 3), "quant_init_convbn", 3, 2),
    "resnet101": ResNet((3, 4, 23, 3), "quant_init_convbn", 3, 1),
}
"""By the repository's names (utils/models/q_resnet.py; strides as in pytorchcv)."""
INCEPTION, MOBILENET = "inceptionv3", "mobilenetv2_w1"
NETWORKS = (*RESNETS, INCEPTION, MOBILENET)
FULL = {"lo": -(1 << 31), "hi": (1 << 31) - 1, "dtype": "I32"}
"""Limits of a sum."""
_WHOLE = {"quant_input", "quant_act_output", "quant_output"}  # at 8 bits in every configuration, as is the stem


@dataclass(frozen=True)
class Config:
    """What hawq.json says: the network's name, and bits by module; or bits for all modules inside of units."""

    arch: str
    bits: Mapping[str, int]
    uniform: int = 0

    def of(self, module: str) -> int:
        """Bits of a module."""
        if not self.uniform:
            if module not in self.bits:
                raise BadFileError("a module without bits", where=CONFIG, found=module)
            return self.bits[module]
        if module.endswith("quant_act_int32"):
            return 16
        return 8 if module in _WHOLE or module == RESNETS[self.arch].stem else self.uniform


def read_config(folder: Folder) -> Config:
    """Reads hawq.json.

    Raises:
        UnsupportedError: It is missing, or names a network that is not known.
        BadFileError: Its bits are not valid.
    """
    if not folder.has(CONFIG):
        raise UnsupportedError(
            "the checkpoint does not say which network it is",
            where=str(folder.path),
            allowed=f'{CONFIG} with {{"arch": "resnet18", "bits": "uniform8"}}',
            todo=f"Write {CONFIG}: the network's name, and its entry of bit_config.py.",
        )
    tree = folder.json(CONFIG)
    arch, bits = (tree.get("arch"), tree.get("bits")) if isinstance(tree, dict) else (None, None)
    if arch not in NETWORKS:
        raise UnsupportedError(
            "a network of HAWQ that is not known", where=CONFIG, found=arch, allowed=", ".join(NETWORKS)
        )
    if bits in ("uniform8", "uniform4") and arch in RESNETS:
        return Config(str(arch), {}, int(bits[-1]))
    plain = {k: v[0] if isinstance(v, list) and v else v for k, v in bits.items()} if isinstance(bits, dict) else {}
    if not plain or not all(isinstance(n, int) and n in (2, 4, 8, 16) for n in plain.values()):
        raise BadFileError(
            "bits by module are missing or not valid",
            where=CONFIG,
            found=plain or bits,
            allowed='2, 4, 8 or 16 by module; for a ResNet "uniform8", "uniform4"',
        )
    return Config(str(arch), plain)


@dataclass(frozen=True)
class Operand:
    """A value of the graph and its scale: float64 [1], or [C]."""

    name: str
    scale: Array


@dataclass
class Builder:
    """A graph that grows, over the tensors of a checkpoint."""

    config: Config
    tensors: Mapping[str, QTensor]
    nodes: list[Node] = field(default_factory=list)
    constants: dict[str, QTensor] = field(default_factory=dict)

    # ---- what the checkpoint holds

    def has(self, module: str) -> bool:
        """Whether the checkpoint has weights of a module."""
        return any(f"{prefix}{module}.weight_integer" in self.tensors for prefix in ("", "module."))

    def stored(self, module: str, part: str) -> Array:
        """A tensor of a module, with or without the prefix of parallel training."""
        for name in (f"{module}.{part}", f"module.{module}.{part}"):
            if name in self.tensors:
                return self.tensors[name].decode()
        raise BadFileError("a tensor is missing in the checkpoint", where=CHECKPOINT, found=f"{module}.{part}")

    def scale(self, module: str, part: str) -> Array:
        """Scales of a module in float64."""
        scales = self.stored(module, part).reshape(-1).astype(np.float64)
        if not (np.isfinite(scales) & (scales > 0)).all() or not scales.size:
            raise BadFileError("a scale that is not positive", where=f"{CHECKPOINT}: {module}.{part}")
        return scales

    def integers(self, module: str, part: str, bits: int, dtype: str) -> Array:
        """Integers that are stored as floats."""
        numbers = self.stored(module, part)
        limit = 1 << (bits - 1)
        if not (numbers == np.rint(numbers)).all() or not ((numbers >= -limit) & (numbers < limit)).all():
            raise BadFileError(
                "numbers that are not integers of their width",
                where=f"{CHECKPOINT}: {module}.{part}",
                allowed=f"{-limit}..{limit - 1}",
            )
        return numbers.astype(dtype)

    # ---- the graph

    def add(self, op: str, inputs: Sequence[str], output: str, **attrs: Any) -> str:
        """Adds a node; returns its output."""
        self.nodes.append(Node(op, tuple(inputs), (output,), attrs, output))
        return output

    def constant(self, array: Array, name: str, bits: int = 0) -> str:
        """Adds integers as a constant, packed where they have fewer than 8 bits."""
        if 0 < bits < 8:
            self.constants[name] = QTensor(array.shape, "I8", (Term(packed_codes(array, bits, f"int{bits}")),))
            return name
        kind = {"int8": "I8", "int32": "I32", "int64": "I64"}[array.dtype.name]
        plain = Codes(array.shape, (Buffer.of("data", array, kind),), PLAIN, plain_name(kind))
        self.constants[name] = QTensor(array.shape, kind, (Term(plain),))
        return name

    def rescale(self, x: Operand, scale: Array, name: str, **attrs: Any) -> Operand:
        """Adds a Requantize to another scale."""
        m, e = dyadics(quotient(x.scale, float(scale[0]), hawq=True))
        parts = [self.constant(part, f"{name}/{key}") for key, part in (("multiplier", m), ("shift", e))]
        attrs |= {"axis": 1} if m.size > 1 else {}
        return Operand(self.add("Requantize", (x.name, *parts), name, rounding="half_even", **attrs), scale)

    def act(self, x: Operand, module: str, relu: bool = False, name: str = "", most: int = 1 << 15) -> Operand:
        """A QuantAct: codes of its bits; what a ReLU before it cuts off is cut off here."""
        bits = self.config.of(module)
        unsigned = bits == 4
        lo, hi = (0, 15) if unsigned else (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
        dtype = "U8" if unsigned else "I8" if bits <= 8 else "I16"
        scale = self.scale(module, "act_scaling_factor")
        return self.rescale(x, scale, name or module, lo=max(lo, 0) if relu else lo, hi=min(hi, most), dtype=dtype)

    def layer(self, x: Operand, module: str, scales: str, **attrs: Any) -> Operand:
        """A QuantBnConv2d, or with no attributes the QuantLinear: sums in int32."""
        bits = self.config.of(module)
        weight = self.constant(self.integers(module, "weight_integer", bits, "int8"), f"{module}/weight", bits)
        bias = self.constant(self.integers(module, "bias_integer", 32, "int32").reshape(-1), f"{module}/bias")
        op = "IntegerConv" if attrs else "IntegerLinear"
        total = self.add(op, (x.name, weight, bias), f"{module}/sum", **attrs)
        return Operand(total, x.scale * self.scale(module, scales))

    def conv(self, x: Operand, module: str, stride: int, padded: bool = True) -> Operand:
        """A QuantBnConv2d; padded so that a stride of 1 keeps the image, or not at all."""
        kernel = list(self.stored(module, "weight_integer").shape[2:])
        if len(kernel) != 2:
            raise BadFileError("a filter without two axes of space", where=f"{CHECKPOINT}: {module}", found=kernel)
        pads = [k // 2 if padded else 0 for k in kernel] * 2
        shape = self.stored(module, "weight_integer").shape
        attrs = {"group": shape[0]} if shape[1] == 1 and shape[0] > 1 else {}  # per channel
        return self.layer(
            x, module, "convbn_scaling_factor", kernel_shape=kernel, strides=[stride] * 2, pads=pads, **attrs
        )


def _unit(build: Builder, x: Operand, name: str, network: ResNet, stride: int) -> Operand:
    """A residual unit."""
    codes = build.act(x, f"{name}.quant_act")
    other = x
    if any(f"{name}.quant_identity_convbn." in key for key in build.tensors):
        other = build.conv(codes, f"{name}.quant_identity_convbn", stride)
    for i in range(1, network.convolutions + 1):
        codes = build.conv(codes, f"{name}.quant_convbn{i}", stride if i == network.strided else 1)
        if i < network.convolutions:
            codes = build.act(codes, f"{name}.quant_act{i}", relu=True)
    scale = build.scale(f"{name}.quant_act_int32", "act_scaling_factor")
    sides = [
        build.rescale(side, scale, f"{name}/{key}", **FULL).name for key, side in (("body", codes), ("identity", other))
    ]
    total = build.add("IntegerAdd", sides, f"{name}/sum")
    return Operand(build.add("Relu", (total,), f"{name}/relu"), scale)


def _resnet(build: Builder, network: ResNet) -> Operand:
    """Returns the sums of the last layer."""
    x = Operand("input", build.scale("quant_input", "act_scaling_factor"))
    x = build.conv(x, network.stem, 2)
    pooled = build.add("MaxPool", (x.name,), "pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    x = build.act(Operand(pooled, x.scale), "quant_act_int32", relu=True)
    for stage, count in enumerate(network.units, 1):
        for unit in range(1, count + 1):
            x = _unit(build, x, f"stage{stage}.unit{unit}", network, 2 if stage > 1 and unit == 1 else 1)
    mean = build.add("IntegerAveragePool", (x.name,), "mean", kernel_shape=[7, 7], strides=[1, 1], rounding="floor")
    x = build.act(Operand(mean, x.scale), "quant_act_output")
    flat = Operand(build.add("Flatten", (x.name,), "flat"), x.scale)
    return build.layer(flat, "quant_output", "fc_scaling_factor")


def build_graph(config: Config, tensors: Mapping[str, QTensor]) -> Graph:
    """Builds the graph: input int8 [batch, 3, 224, 224] (Inception 299), output int32 [batch, classes].

    Sums of the last layer with a scale per class are brought to the greatest of the scales, so that they can be
    compared. Their scale, and that of the input, are in the meta.

    Raises:
        BadFileError: A tensor is missing, or holds no integers of the width that the configuration gives.
    """
    from qdeploy.formats.networks.hawq_inception import inception
    from qdeploy.formats.networks.hawq_mobilenet import mobilenet

    build = Builder(config, tensors)
    entry, head, side = "quant_input", "quant_output", 224
    if config.arch == INCEPTION:
        entry, head, side = "features.q_init_block.q_input_activ", "output.q_fc", 299
    input_scale = build.scale(entry, "act_scaling_factor")
    quantization: dict[str, Attr] = {"input": {"scale": float(input_scale[0]), "zero": 0}}
    if config.arch == MOBILENET:
        last = mobilenet(build)
        classes = build.constants["output/weight"].shape[0]
    else:
        last = inception(build) if config.arch == INCEPTION else _resnet(build, RESNETS[config.arch])
        classes = math.prod(build.constants[f"{head}/bias"].shape)
        if last.scale.size > 1:
            last = build.rescale(last, np.array([last.scale.max()]), "logits", **FULL)
        quantization[last.name] = {"scale": float(last.scale[0]), "zero": 0}
    meta: dict[str, Attr] = {"kind": "integer", "model_type": config.arch, "quantization": quantization}
    graph = Graph(
        (Value("input", "I8", ("batch", 3, side, side)),),
        (Value(last.name, "I32", ("batch", classes)),),
        tuple(build.nodes),
        (),
        build.constants,
        meta,
    )
    check_graph(graph, tensors)
    return graph
