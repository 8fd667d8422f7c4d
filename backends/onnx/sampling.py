"""Samples for the check: one node per distinct form, as a tiny model of its own.

The nodes are emitted by the same code as in the whole model, but for a few rows of the weight, and the initializers are
the bytes that lie in the data file. Expected are the rows as numpy decodes them from the source, times the same input.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from qdeploy.backends.onnx.blockbooks import BlockBooksForm
from qdeploy.backends.onnx.forms import Form
from qdeploy.backends.onnx.integer.lowering import WeightForm
from qdeploy.backends.onnx.options import Lowered
from qdeploy.backends.onnx.passthrough import StoredForm
from qdeploy.backends.onnx.proto import DATA_FILE, GraphBuilder, itemsize
from qdeploy.backends.onnx.weight_only import FoldedForm
from qdeploy.backends.onnx.weights import AffineForm
from qdeploy.ir.model import Model
from qdeploy.ir.tensor import Array
from qdeploy.ir.views.params import RowReader
from qdeploy.passes.expand import expand_graph
from qdeploy.store.folder import File, Folder

EXACT = 1e-4
"""Relative L2 error allowed of one product where activations stay float32."""
INT8 = 3e-2
"""The same where kernels quantize activations to 8 bits per block."""
_SAMPLE = 4  # rows at the start, in the middle and at the end

Arrays = Mapping[str, Array]


@dataclass(frozen=True)
class Case:
    """A model file, and inputs with the outputs that they must give, run after run.

    `shares` are outputs that are parts of 1, which kernels approximate to so many places behind the point: where they
    are all close to 0, their error is not measured against themselves. What stands `beside` gives the outputs.
    """

    name: str
    kind: str
    limit: float
    model: Path
    runs: tuple[tuple[Arrays, Arrays], ...]
    shares: tuple[str, ...] = ()
    beside: Path | None = None


class SampleBuilder(GraphBuilder):
    """Builds a graph for some rows of a weight, with the bytes that lie in the data file.

    Args:
        data: The data file.
        lowered: Where each range lies.
        rows: Rows of the whole weight.
        windows: Those that are taken.
        unit: Rows that are stored together; windows are whole units, but for the end of the weight.
    """

    def __init__(self, data: File, lowered: Lowered, rows: int, windows: list[tuple[int, int]], unit: int = 1) -> None:
        super().__init__("sample")
        self._file, self._lowered, self._rows, self._windows, self._unit = data, lowered, rows, windows, unit

    def extent(self, rows: int, unit: int = 1) -> int:
        """Rows of the sample, or units of rows."""
        return sum(-(-(stop - start) // unit) for start, stop in self._windows)

    def initializer(
        self,
        name: str,
        dtype: int,
        shape: Sequence[int],
        rows: RowReader,
        weight: int = 1,
        range_of: str = "",
        shared: bool = False,
    ) -> str:
        """Puts the rows' bytes into the graph itself."""
        if any(known.name == name for known in self.graph.initializer):
            return name
        offset = self._lowered.places[range_of or name].offset
        size = int(np.prod(shape[1:], dtype=np.int64)) * itemsize(dtype)
        windows = [(0, shape[0])] if shared else self._windows
        if self._unit > 1 and not shared and shape[0] != self._rows:
            windows = [(start // self._unit, -(-stop // self._unit)) for start, stop in windows]
        raw = b"".join(self._file.read(offset + start * size, (stop - start) * size) for start, stop in windows)
        count = sum(stop - start for start, stop in windows)
        self.graph.initializer.add(name=name, data_type=dtype, dims=(count, *shape[1:]), raw_data=raw)
        return name


def node_cases(model: Model, target: Path, lowered: Lowered, job: Path) -> Iterator[Case]:
    """Yields one case per distinct form and use; their model files are written to `job`."""
    data = Folder(target).open(DATA_FILE)
    seen: set[str] = set()
    try:
        for use, name in _uses(model):
            form = lowered.forms.get(name)
            if form is None or isinstance(form, StoredForm | WeightForm | FoldedForm) or len(form.shape) != 2:
                continue
            if f"{use}: {form.label}" in seen:
                continue
            seen.add(f"{use}: {form.label}")
            yield _node_case(model, data, lowered, name, form, use, job / f"{len(seen)}.onnx")
    finally:
        data.close()


def _uses(model: Model) -> Iterator[tuple[str, str]]:
    """How each matrix is used: ("linear" or "gather", name)."""
    for node in expand_graph(model.graph, keep=("Linear",)).nodes:
        if node.op == "Linear":
            yield "linear", node.inputs[1]
        elif node.op == "Gather":
            yield "gather", node.inputs[0]


def _node_case(model: Model, data: File, lowered: Lowered, name: str, form: Form, use: str, path: Path) -> Case:
    rows, columns = form.shape
    unit = form.unit if isinstance(form, BlockBooksForm) else 1
    windows = [(start * unit, min(stop * unit, rows)) for start, stop in _windows(-(-rows // unit))]
    builder = SampleBuilder(data, lowered, rows, windows, unit)
    weight = np.concatenate([model.tensors[name].decode(slice(*window)) for window in windows])
    runs: tuple[tuple[Arrays, Arrays], ...]
    if use == "gather":
        ids = np.arange(len(weight), dtype=np.int64)[None, ::-1].copy()
        form.gather(builder, builder.input("ids", onnx.TensorProto.INT64, (1, len(weight))), "y")
        runs, limit = (({"ids": ids}, {"y": weight[ids]}),), EXACT
    else:
        x = np.random.default_rng(0).standard_normal((1, 5, columns)).astype(np.float32)
        form.linear(builder, builder.input("x", onnx.TensorProto.FLOAT, (1, "tokens", columns)), "y")
        want = (x.astype(np.float64) @ weight.T.astype(np.float64)).astype(np.float32)
        runs = (({"x": x}, {"y": want}), ({"x": x[:, :1]}, {"y": want[:, :1]}))
        limit = INT8 if lowered.int8 and isinstance(form, AffineForm) else EXACT
    last = columns if use == "gather" else len(weight)
    builder.output("y", onnx.TensorProto.FLOAT, (1, "tokens", last))
    path.write_bytes(builder.model().SerializeToString())
    return Case(name, f"{use}: {form.label}", limit, path, runs)


def _windows(rows: int) -> list[tuple[int, int]]:
    if rows <= 3 * _SAMPLE:
        return [(0, rows)]
    middle = rows // 2
    return [(0, _SAMPLE), (middle, middle + _SAMPLE), (rows - _SAMPLE, rows)]
