"""Functions of one value as integers: tables of 256 entries."""

from __future__ import annotations

import numpy as np

from qdeploy.errors import UnsupportedError
from qdeploy.integer.builder import Builder, Rule
from qdeploy.integer.intervals import where
from qdeploy.integer.quantized_value import QuantizedValue
from qdeploy.ir.element import element_dtype, element_name
from qdeploy.ir.graph import Node
from qdeploy.ir.ops.table import op

TABLED = (
    "Sigmoid",
    "Tanh",
    "HardSigmoid",
    "HardSwish",
    "LeakyRelu",
    "Elu",
    "Erf",
    "Exp",
    "Softplus",
    "Abs",
    "Neg",
    "Sqrt",
    "Log",
    "Reciprocal",
)


def table(build: Builder, node: Node) -> None:
    """A function of one number, as the code of its result for every code of 8 bits."""
    name, source = node.outputs[0], node.inputs[0]
    x, grid = build.narrow(source), build.plan.grid(name, 8)
    limits = np.iinfo(element_dtype(x.dtype))
    codes = np.clip(np.arange(limits.min, limits.max + 1), x.lo, x.hi)
    with np.errstate(all="ignore"):
        real = np.asarray(op(node.op).numpy(((codes - x.zero) * x.scale[0]).astype(np.float32), **node.attrs))
    entries = np.clip(np.rint(np.nan_to_num(real.astype(np.float64) / grid.scale)) + grid.zero, grid.lo, grid.hi)
    table_name = build.constant(entries.astype(element_dtype(grid.dtype)), f"{name}/table")
    build.values[name] = QuantizedValue.on(grid, build.add("Lookup", (x.name, table_name), name))


def lookup(build: Builder, node: Node) -> None:
    """Lookup: the table of the source, over codes of the source."""
    name, x, entries = node.outputs[0], build.value(node.inputs[0]), build.array(node.inputs[1])
    if entries is None or entries.dtype.kind not in "iu" or not x.is_codes or x.dtype not in ("U8", "I8"):
        raise UnsupportedError("a look-up that is not of codes of 8 bits in a constant table", where=where(node))
    least = int(np.iinfo(element_dtype(x.dtype)).min)
    used = entries[x.lo - least : x.hi - least + 1]
    output = build.add("Lookup", (x.name, build.constant(entries, f"{name}/table")), name)
    dtype = element_name(entries.dtype)
    build.values[name] = QuantizedValue(output, np.ones(1), dtype, int(used.min()), int(used.max()))


FUNCTION_RULES: dict[str, Rule] = {**dict.fromkeys(TABLED, table), "Lookup": lookup}
