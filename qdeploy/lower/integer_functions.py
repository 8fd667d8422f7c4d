"""Functions of one value as integers: tables of 256 entries."""

from __future__ import annotations

import numpy as np

from qdeploy.ir.element import element_dtype
from qdeploy.ir.graph import Node
from qdeploy.ir.ops import op
from qdeploy.lower.fixed import Fixed
from qdeploy.lower.integer_builder import Builder, Rule

TABLED = ("Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "LeakyRelu", "Elu", "Erf", "Exp", "Softplus", "Abs",
          "Neg", "Sqrt", "Log", "Reciprocal")  # fmt: skip


def table(build: Builder, node: Node) -> None:
    """A function of one number, as the code of its result for every code of 8 bits."""
    name, given = node.outputs[0], node.inputs[0]
    x, grid = build.narrow(given), build.plan.grid(name, 8)
    limits = np.iinfo(element_dtype(x.dtype))
    codes = np.clip(np.arange(limits.min, limits.max + 1), x.lo, x.hi)
    with np.errstate(all="ignore"):
        real = np.asarray(op(node.op).numpy(((codes - x.zero) * x.scale[0]).astype(np.float32), **node.attrs))
    entries = np.clip(np.rint(np.nan_to_num(real.astype(np.float64) / grid.scale)) + grid.zero, grid.lo, grid.hi)
    held = build.constant(entries.astype(element_dtype(grid.dtype)), f"{name}/table")
    build.values[name] = Fixed.on(grid, build.add("Lookup", (x.name, held), name))


FUNCTION_RULES: dict[str, Rule] = dict.fromkeys(TABLED, table)
