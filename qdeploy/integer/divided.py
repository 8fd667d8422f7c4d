"""The input of a layer as codes of divided channels (quantize/smooth.py): the division is part of the rescaling."""

from __future__ import annotations

from dataclasses import replace

from qdeploy.integer.builder import Builder
from qdeploy.integer.quantized_value import Float64, Grid, QuantizedValue, unsigned_grid
from qdeploy.ir.dyadic import dyadics
from qdeploy.ir.graph import Node
from qdeploy.quantize.smooth import divisors


def smoothed(build: Builder, node: Node, bits: int) -> tuple[QuantizedValue, Float64] | None:
    """The input of a Linear as codes of divided channels, and the divisors; None: it is taken as it is.

    Args:
        build: The graph that grows.
        node: The Linear.
        bits: Of the codes, up to 8.
    """
    name = node.inputs[0]
    x = build.value(name)
    limited = x.floor is not None or x.ceil is not None or (x.is_codes and x.hi - x.lo < 256)
    if name not in build.channels or limited or build.coded(node.inputs[1]) is not None:
        return None
    low, high = build.channels[name]
    c = divisors(low, high)
    least, most = min(float((low / c).min()), 0.0), max(float((high / c).max()), 0.0)
    grid = unsigned_grid(most - least, bits)
    grid = replace(grid, zero=min(round(-least / grid.scale), grid.hi))
    return _divided(build, x, c, grid, name), c


def _divided(build: Builder, x: QuantizedValue, c: Float64, grid: Grid, name: str) -> QuantizedValue:
    m, e = dyadics(x.scale / (c * grid.scale))
    factor = build.constant(m, f"{name}/divided/multiplier"), build.constant(e, f"{name}/divided/shift")
    output = build.once(
        ("divided", x.name, *factor, grid),
        lambda: build.add(
            "Requantize",
            (x.name, *factor),
            f"{name}/divided",
            lo=grid.lo,
            hi=grid.hi,
            zero=grid.zero,
            x_zero=x.zero,
            axis=-1,
            dtype=grid.dtype,
            rounding=build.arithmetic.rounding,
        ),
    )
    return QuantizedValue.on(grid, output)
