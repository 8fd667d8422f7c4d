"""Checkpoints of learned step sizes (LSQ): float masters with a step for the weights and one for the input of a layer.

    NAME_best.pth.tar, ...     torch.save of {"state_dict": ..., "arch": "resnet18", ...}, or safetensors
    lsq.json                   beside it: {"weights": {"bits": 3, "symmetric": true},
                               "activations": {"bits": 2, "all_positive": true},
                               "except": {"conv1": {"weights": {"bits": 8}, "activations": {"bits": 8}}}}, and where
                               they differ "arch", "image": [3, 224, 224], "mean": [...], "std": [...]

    LAYER.weight               float masters
    LAYER.quan_w_fn.s          the step of the weights: [] or [1], or one per output, [out, 1, 1, 1]
    LAYER.quan_a_fn.s          the step of the layer's input: [] or [1]

(zhutmost/lsq-net, quan/quantizer/lsq.py; arXiv 1902.08153.) What is quantized is round(min(max(x / s, n), p)) s, in
float32, halves to even: first limited, then rounded. Limits for b bits: 0..2^b - 1 with all_positive;
-2^(b-1) + 1..2^(b-1) - 1 with symmetric; else -2^(b-1)..2^(b-1) - 1. They are only in the training's configuration, so
that lsq.json is asked for; a layer without steps is a float layer. The topology is that of `residual_network.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qdeploy.errors import BadFileError, UnsupportedError
from qdeploy.formats import NOT_MINE, Sniff
from qdeploy.formats.networks.residual_network import IMAGE_KEYS, Image, Network, read_image, residual_network, stem_of
from qdeploy.formats.networks.training_state import holds, read_side, read_state, weights_file
from qdeploy.ir.codes import packed_codes
from qdeploy.ir.graph import Graph
from qdeploy.ir.model import Model
from qdeploy.ir.tensor import PLAIN, Array, Buffer, Codes, Param, QTensor, Term
from qdeploy.store.folder import Folder

NAME = "lsq"
TITLE = "residual networks with learned step sizes (LSQ): a state_dict and lsq.json"
WRITES = False
CONFIG = "lsq.json"
STEP, INPUT_STEP = "quan_w_fn.s", "quan_a_fn.s"
_KEYS = ("arch", "weights", "activations", "except", *IMAGE_KEYS)
_FLAGS = ("symmetric", "all_positive")


@dataclass(frozen=True)
class Limits:
    """The least and the greatest code of a quantizer."""

    low: int
    high: int

    @property
    def table(self) -> str:
        """The number format that holds the codes."""
        signed = self.low < 0
        width = max(self.high.bit_length(), (-1 - self.low).bit_length() if signed else 0) + signed
        return f"{'int' if signed else 'uint'}{next(n for n in (2, 4, 8) if n >= width)}"


def sniff(folder: Folder) -> Sniff:
    """Declared by lsq.json, or by the names of steps."""
    if folder.has(CONFIG) and weights_file(folder):
        return Sniff(96, f"weights with {CONFIG}")
    metadata = holds(folder, f".{STEP}")
    return Sniff(94, f"tensors named {STEP}") if metadata and metadata["shown"] else NOT_MINE


def read(folder: Folder) -> Model:
    """Opens the checkpoint; no tensor is read yet.

    Raises:
        BadFileError: The file is damaged or holds something else, or lsq.json is not as it must be.
        UnsupportedError: lsq.json is missing.
    """
    state = read_state(folder, NAME, CONFIG)
    if not folder.has(CONFIG):
        raise UnsupportedError(
            "the checkpoint does not say how many bits its numbers have",
            where=state.file,
            allowed=f'{CONFIG} with {{"weights": {{"bits": 4}}, "activations": {{"bits": 4}}}}',
            todo=f"Write {CONFIG} from the configuration of the training.",
        )
    declared = read_side(folder, CONFIG, _KEYS)
    steps = Steps(declared)
    arch = declared.get("arch", state.metadata.get("arch", ""))
    if not isinstance(arch, str):
        raise BadFileError("the name of a network is not text", where=CONFIG, found=arch)
    return replace(state.model, build_graph=lambda model: build_graph(steps, declared, arch, model.tensors, state.file))


def build_graph(
    steps: Steps, declared: Mapping[str, Any], arch: str, tensors: Mapping[str, QTensor], where: str
) -> Graph:
    """The graph of the network; quantized weights are constants of it."""
    kernel, channels = stem_of(tensors, where)
    sides = {(3, 3): 32, (7, 3): 224}
    known = None
    if (kernel, channels) in sides:
        side = sides[kernel, channels]
        known = Image((3, side, side), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # of ImageNet for both data sets
    image = read_image(declared, known, CONFIG)
    quantized = any(name.endswith(f".{INPUT_STEP}") for name in tensors)
    return residual_network(Network(tensors, steps, where), image, arch, image.interval if quantized else ())


class Steps:
    """The quantizers of a network, as lsq.json describes them. Satisfies `Quantizer`.

    Args:
        declared: The content of lsq.json.

    Raises:
        BadFileError: A part of it is not as it must be.
    """

    def __init__(self, declared: Mapping[str, Any]) -> None:
        self._declared = {role: _object(declared.get(role, {}), role) for role in ("weights", "activations")}
        self._except = {
            name: _object(part, f"except.{name}")
            for name, part in _object(declared.get("except", {}), "except").items()
        }
        for layer in ("", *self._except):
            for role in ("weights", "activations"):
                self._entry(layer, role)

    def weight(self, net: Network, layer: str) -> str:
        """Codes and their step, as a constant; the stored tensor where there is no step."""
        if not net.has(f"{layer}.{STEP}"):
            return net.stored(f"{layer}.weight")
        limits, weight = self.limits(layer, "weights"), net.array(f"{layer}.weight")
        step = _step(net, f"{layer}.{STEP}", weight.shape)
        with np.errstate(over="ignore"):
            codes = np.rint(np.clip(weight / step, np.float32(limits.low), np.float32(limits.high))).astype(np.int64)
        net.constants[f"{layer}/weight"] = codes_tensor(codes, limits.table, step)
        return f"{layer}/weight"

    def activation(self, net: Network, x: str, layer: str) -> str:
        """Limited and on its grid; as it is where there is no step."""
        if not net.has(f"{layer}.{INPUT_STEP}"):
            return x
        limits, name = self.limits(layer, "activations"), f"{layer}/input"
        step = _step(net, f"{layer}.{INPUT_STEP}", ())
        kind = np.dtype(np.int8 if limits.low < 0 else np.uint8)
        if (limits.low, limits.high) != (np.iinfo(kind).min, np.iinfo(kind).max):
            ends = {"min": float(step) * limits.low, "max": float(step) * limits.high}
            x = net.add("Clip", [x], f"{name}/clipped", **ends)
        params = [net.constant(f"{name}/step", step.reshape(())), net.constant(f"{name}/zero", np.array(0, kind))]
        codes = net.add("QuantizeLinear", [x, *params], f"{name}/codes")
        return net.add("DequantizeLinear", [codes, *params], name)

    def limits(self, layer: str, role: str) -> Limits:
        """Of the weights or the input of a layer.

        Raises:
            UnsupportedError: lsq.json does not say how many bits it has.
        """
        bits, symmetric, positive = self._entry(layer, role)
        if not bits:
            raise UnsupportedError(
                "a layer with a step, of which the side file does not say the bits",
                where=CONFIG,
                found=f"{layer}: {role}",
                allowed=f'{{"{role}": {{"bits": 2 to 8}}}}',
            )
        if positive:
            return Limits(0, (1 << bits) - 1)
        return Limits((1 if symmetric else 0) - (1 << (bits - 1)), (1 << (bits - 1)) - 1)

    def _entry(self, layer: str, role: str) -> tuple[int, bool, bool]:
        """Bits (0: not set), symmetric, all_positive; a setting that an exception leaves out is that of all layers."""
        own = _object(self._except.get(layer, {}).get(role, {}), f"except.{layer}.{role}")
        settings = {**self._declared[role], **own}
        unknown = set(settings) - {"bits", "per_channel", *_FLAGS} or set(self._except.get(layer, {})) - set(
            self._declared
        )
        bits, flags = settings.get("bits") or 0, [settings.get(key, False) for key in _FLAGS]
        fine = type(bits) is int and (bits == 0 or 2 <= bits <= 8) and all(type(flag) is bool for flag in flags)
        if unknown or not fine or all(flags):
            raise BadFileError(
                "a quantizer that is not described as it must be",
                where=f"{CONFIG}: {layer} {role}",
                found=sorted(unknown) if unknown else settings,
                allowed='{"bits": 2 to 8}, and "symmetric" or "all_positive": true',
            )
        return bits, flags[0], flags[1]


def codes_tensor(codes: Array, table: str, step: Array) -> QTensor:
    """Codes times a step, one for all or one per output; they are packed as their number format has them."""
    shape, width = codes.shape, int(table.lstrip("uint"))
    grid = (step.size, *[1] * (len(shape) - 1))
    values = Codes(grid, (Buffer.of("scale", step.reshape(grid), "F32"),), PLAIN, "f32")
    tile = (1 if step.size > 1 else shape[0], *shape[1:])
    return QTensor(shape, "F32", (Term(packed_codes(codes, width, table, Param(values, tile))),))


def _object(tree: object, what: str) -> dict[str, Any]:
    if not isinstance(tree, dict):
        raise BadFileError("a part of the side file is not an object", where=f"{CONFIG}: {what}", found=tree)
    return tree


def _step(net: Network, name: str, shape: tuple[int, ...]) -> Array:
    """A step as float32, of a shape that is broadcast with what it divides."""
    stored, each = net.shape(name), (*shape[:1], *[1] * (len(shape) - 1))
    if stored not in ((), (1,)) and (not shape or stored != each):
        raise BadFileError(
            "steps that do not fit",
            where=f"{net.where}: {name}",
            found=stored,
            allowed=f"one number{f', or {list(each)}' if shape else ''}",
        )
    step = net.array(name)
    if not (step >= np.finfo(np.float32).tiny).all():
        raise BadFileError("a step that is not positive", where=f"{net.where}: {name}", found=float(step.min()))
    return step.reshape(each if len(stored) > 1 else ())
