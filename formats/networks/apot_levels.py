"""The quantizers of APoT networks (arXiv 1909.13144, sections 2.1 and 2.3), in float32 and in the repository's order.

    weights       w' = (w - mean) / std, std with n - 1;   c = min(max(w' / alpha, -1), 1);   level(|c|) sign(c) alpha
    activations   level(min(max(x / alpha, 0), 1)) alpha
    edges         round(w / max 127) / 127 max, with the greatest weight as max, not that of the magnitudes, so that
                  codes may lie below -127

level() is the nearest of

    uniform       n / (2^b - 1);   for weights n / (2^(b-1) - 1)
    apot          every sum of one of each set, over the greatest sum; weights of b bits have the levels of b - 1 and
                  the signs. Weights of 2 bits are -1, 0 and 1.
                      2   0 1/2 1/4 1/8
                      3   0 1/2 1/4 1/16        0 1/8
                      4   0 1/2 1/8 1/32        0 1/4 1/16 1/64
                      5   0 1/2 1/8 1/64        0 1/4 1/16 1/128      0 1/32

A weight is codes into a table of levels as float32, and alpha as its scale: the same numbers as the repository's, but
where mean and spread, which it sums up in another order, are another float32. Level n of d (all levels are whole
multiples of one d-th) makes boundaries between levels whole multiples of alpha / (2 d); an activation is so a cell,
rounded down, and a table: QuantizeLinear of x less half a cell, Lookup, DequantizeLinear. Ties alone may differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import product

import numpy as np

from qdeploy.errors import BadFileError
from qdeploy.formats.networks.residual_network import Network
from qdeploy.ir.codes import packed_codes
from qdeploy.ir.tensor import PLAIN, Array, Buffer, Codes, Float32, Param, QTensor, Table, Term

_SETS = {
    2: ((1, 2, 3),),
    3: ((1, 2, 4), (3,)),
    4: ((1, 3, 5), (2, 4, 6)),
    5: ((1, 3, 6), (2, 4, 7), (5,)),
}
"""Exponents of the powers of two in each set, by bits; besides, each set has 0."""
EDGE = 127


def fractions(bits: int, additive: bool) -> list[Fraction]:
    """The levels from 0 to 1, ascending."""
    if not additive or bits not in _SETS:
        top = (1 << bits) - 1
        return [Fraction(n, top) for n in range(top + 1)]
    sums = _sums(bits)
    return [level / sums[-1] for level in sums]


def denominator(levels: list[Fraction]) -> int:
    """The least d so that every level is a whole multiple of 1 / d."""
    return int(np.lcm.reduce([level.denominator for level in levels]))


def float_levels(bits: int, additive: bool) -> Float32:
    """The same as the repository forms them: sums times the float32 of 1 over the greatest; or n over 2^bits - 1."""
    if not additive or bits not in _SETS:
        top = (1 << bits) - 1
        return np.arange(top + 1, dtype=np.float32) / np.float32(top)
    sums = _sums(bits)
    return np.array([float(n) for n in sums], np.float32) * (np.float32(1) / np.float32(float(sums[-1])))


def _sums(bits: int) -> list[Fraction]:
    sets = [[Fraction(0), *(Fraction(1, 1 << e) for e in exponents)] for exponents in _SETS[bits]]
    return sorted({sum(terms, Fraction(0)) for terms in product(*sets)})


def nearest(x: Float32, levels: Float32) -> Array:
    """The index of the nearest level, by float32 distances; a tie goes to the lower one."""
    above = np.clip(np.searchsorted(levels, x), 1, len(levels) - 1)
    below = above - 1
    return np.where(np.abs(x - levels[below]) <= np.abs(x - levels[above]), below, above)


def weight_indices(weight: Float32, alpha: np.float32, levels: Float32) -> Array:
    """Indices into the levels with signs, which are [-levels descending to 0, then ascending]."""
    mean = np.float32(weight.mean(dtype=np.float64))
    std = np.float32(weight.std(dtype=np.float64, ddof=1)) if weight.size > 1 else np.float32(0)
    if not std > 0:
        raise BadFileError("weights that are all the same have no spread to be normalised by", found=float(mean))
    with np.errstate(over="ignore", invalid="ignore"):
        clipped = np.clip((weight + -mean) / std / alpha, np.float32(-1), np.float32(1))
    if np.isnan(clipped).any():
        raise BadFileError("weights too large to be normalised in float32", found=float(np.abs(weight).max()))
    even = np.array_equal(levels, float_levels((len(levels) - 1).bit_length(), False))
    size = np.abs(clipped)
    indices = np.rint(size * np.float32(len(levels) - 1)).astype(np.int64) if even else nearest(size, levels)
    return len(levels) - 1 + np.where(clipped < 0, -indices, indices)


def table_tensor(indices: Array, table: Float32, scale: np.float32) -> QTensor:
    """table[index] * scale; indices are kept in as few bits as they have, or in 16."""
    bits = max(len(table) - 1, 1).bit_length()
    shape = indices.shape
    ones = (1,) * len(shape)
    alpha = Codes(ones, (Buffer.of("scale", np.full(ones, scale, np.float32), "F32"),), PLAIN, "f32")
    values = Table(Buffer.of("table", table.reshape(1, -1), "F32"))
    if bits > 8:
        data = Buffer.of("codes", indices.astype("<u2"), "U16")
        codes = Codes(shape, (data,), PLAIN, values, scale=Param(alpha, shape))
    else:
        codes = packed_codes(indices, bits, values, Param(alpha, shape))
    return QTensor(shape, "F32", (Term(codes),))


@dataclass(frozen=True)
class Levels:
    """The quantizers of a network. Satisfies `Quantizer`.

    Attributes:
        bits: Of weights and activations; 32: they are floats.
        additive: The levels are sums of powers of two, else uniform.
        edges: The first and the last layer have weights of 8 bits, else floats.
    """

    bits: int
    additive: bool
    edges: bool

    def weight(self, net: Network, layer: str) -> str:
        """Codes into levels, as a constant."""
        weight = net.array(f"{layer}.weight")
        if not layer.startswith("layer") and self.edges:
            return self._edge(net, layer, weight)
        if not self._quantizes(layer):
            return net.stored(f"{layer}.weight")
        part = next((p for p in ("weight_alpha", "weight_quant.wgt_alpha") if net.has(f"{layer}.{p}")), "weight_alpha")
        alpha = _alpha(net, f"{layer}.{part}")
        levels = float_levels(self.bits - 1, self.additive)
        try:
            indices = weight_indices(weight, alpha, levels)
        except BadFileError as error:
            raise BadFileError(error.what, where=f"{net.where}: {layer}.weight", found=error.found) from error
        table = np.concatenate([-levels[:0:-1], levels])
        net.constants[f"{layer}/weight"] = table_tensor(indices, table, alpha)
        return f"{layer}/weight"

    def _edge(self, net: Network, layer: str, weight: Float32) -> str:
        top = weight.max(initial=-np.inf)
        if not top > 0:
            raise BadFileError(
                "a first or last layer without a positive weight, by which it is scaled",
                where=f"{net.where}: {layer}.weight",
                found=float(top),
            )
        with np.errstate(over="ignore"):
            codes = np.rint(weight / top * np.float32(EDGE))
        if codes.min() < -(1 << 15):
            raise BadFileError(
                "a first or last layer with weights far below its greatest one",
                where=f"{net.where}: {layer}.weight",
                found=float(weight.min()),
            )
        least = int(min(codes.min(), -EDGE))
        table = np.arange(least, EDGE + 1).astype(np.float32) / np.float32(EDGE)
        net.constants[f"{layer}/weight"] = table_tensor(codes.astype(np.int64) - least, table, top)
        return f"{layer}/weight"

    def _quantizes(self, layer: str) -> bool:
        """Whether a layer is on the levels: every one but the first and the last."""
        return self.bits < 32 and layer.startswith("layer")

    def activation(self, net: Network, x: str, layer: str) -> str:
        """Clipped, and on its levels."""
        if not self._quantizes(layer):
            return x
        alpha = float(_alpha(net, f"{layer}.act_alpha"))
        levels = fractions(self.bits, self.additive)
        last, name = denominator(levels), f"{layer}/input"
        x = net.add("Clip", [x], f"{name}/clipped", min=0.0, max=alpha)
        zero = net.constant(f"{name}/zero", np.array(0, np.uint8))
        step = net.constant(f"{name}/step", np.array(alpha / last, np.float32))
        if len(levels) <= last:
            half = net.constant(f"{name}/half_cell", np.array(alpha / (4 * last), np.float32))
            cell = net.constant(f"{name}/cell", np.array(alpha / (2 * last), np.float32))
            x = net.add("Sub", [x, half], f"{name}/lowered")
            x = net.add("QuantizeLinear", [x, cell, zero], f"{name}/cells")
            x = net.add("Lookup", [x, net.constant(f"{name}/levels", cell_levels(levels))], f"{name}/codes")
        else:
            x = net.add("QuantizeLinear", [x, step, zero], f"{name}/codes")
        return net.add("DequantizeLinear", [x, step, zero], name)


def cell_levels(levels: list[Fraction]) -> Array:
    """For every cell [c, c + 1) / (2 d), its level times d: uint8 [256]; beyond 1 it is that of 1."""
    last = denominator(levels)
    middles = [Fraction(2 * cell + 1, 4 * last) for cell in range(256)]
    return np.array([int(min(levels, key=lambda n: abs(n - middle)) * last) for middle in middles], np.uint8)


def _alpha(net: Network, name: str) -> np.float32:
    if net.shape(name) not in ((), (1,)):
        raise BadFileError("a clip that is not one number", where=f"{net.where}: {name}", found=net.shape(name))
    alpha = net.array(name).reshape(-1)[0]
    if not alpha >= np.finfo(np.float32).tiny * (1 << 10):  # a cell of it is still a normal number
        raise BadFileError("a clip that is not positive", where=f"{net.where}: {name}", found=float(alpha))
    return np.float32(alpha)
