"""A program: the fused steps of an integer network with the place and shape of everything that they read and write.

It stands between the graph and TVM: planned by `plan.py` in numpy alone, compiled by `emit.py`, laid out in an arena by
`bare.py`. On disk it is program.json and constants.npz (`save`, `load`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from qdeploy.ir.tensor import Array


@dataclass(frozen=True)
class Buffer:
    """An array: its shape and its numpy type."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Step:
    """One kernel call, or a view (kind "view": the same bytes in another shape).

    Attributes:
        kind: The name of its builder.
        inputs: Names of buffers and constants, in the order of the kernel's arguments.
        output: The buffer that it writes.
        attrs: JSON values; operands are named by their place in `inputs`.
    """

    kind: str
    inputs: tuple[str, ...]
    output: str
    attrs: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Program:
    """A network as steps.

    Attributes:
        inputs: Names of its input buffers, as the graph names them.
        outputs: Names of its output buffers, in the graph's order.
        buffers: Every array that is not a constant.
        constants: Weights and parameters, as the kernels read them.
        steps: In order.
        names: Output buffer -> the graph's name of that output.
    """

    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    buffers: dict[str, Buffer] = field(default_factory=dict)
    constants: dict[str, Array] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)

    def operand(self, name: str) -> Buffer:
        """Shape and type of a buffer or constant."""
        if name in self.buffers:
            return self.buffers[name]
        array = self.constants[name]
        return Buffer(array.shape, array.dtype.name)

    def signature(self, step: Step) -> str:
        """Two steps of the same signature are the same kernel with other data."""
        operands = [self.operand(name) for name in (*step.inputs, step.output)]
        return json.dumps([step.kind, [[list(b.shape), b.dtype] for b in operands], step.attrs], sort_keys=True)

    def save(self, folder: Path) -> None:
        """Writes program.json and constants.npz."""
        listed = {
            "inputs": self.inputs,
            "outputs": self.outputs,
            "names": self.names,
            "buffers": {name: asdict(buffer) for name, buffer in self.buffers.items()},
            "steps": [asdict(step) for step in self.steps],
            "constants": list(self.constants),
        }
        (folder / "program.json").write_text(json.dumps(listed))
        np.savez(folder / "constants.npz", **{str(i): a for i, a in enumerate(self.constants.values())})  # type: ignore[arg-type]


def load(folder: Path) -> Program:
    """Reads what `save` wrote."""
    listed = json.loads((folder / "program.json").read_text())
    with np.load(folder / "constants.npz") as arrays:
        constants = {name: arrays[str(i)] for i, name in enumerate(listed["constants"])}
    return Program(
        listed["inputs"],
        listed["outputs"],
        {name: Buffer(tuple(b["shape"]), b["dtype"]) for name, b in listed["buffers"].items()},
        constants,
        [Step(s["kind"], tuple(s["inputs"]), s["output"], s["attrs"]) for s in listed["steps"]],
        listed["names"],
    )
