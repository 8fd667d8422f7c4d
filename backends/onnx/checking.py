"""The proof by running: what was written, in ONNX Runtime, against the numpy meaning of the source.

One node per distinct form always (`nodes`): a tiny model with the bytes that lie in the data file for a few rows of one
weight of that form, for one token and for several, since those take different kernels. Small models, or all with
`full`, also run as a whole: a prompt, and a second step that goes on from its caches.

ONNX Runtime is only ever loaded in a child process (`child.py`): it costs more memory than a conversion.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx

from qdeploy.backends.onnx.assemble import MODEL_FILE
from qdeploy.backends.onnx.external import Array, RowReader
from qdeploy.backends.onnx.options import Lowered
from qdeploy.backends.onnx.proto import DATA_FILE, ITEMSIZE, GraphBuilder
from qdeploy.backends.onnx.weights import AffineForm, Form
from qdeploy.errors import ProofError, UnsupportedError
from qdeploy.ir.model import Model
from qdeploy.store.folder import File, Folder

EXACT, EXACT_FULL = 1e-4, 1e-3
"""Relative L2 error allowed where activations stay float32: of one product, and of all layers together."""
INT8, INT8_FULL = 3e-2, 0.15
"""The same where kernels quantize activations to 8 bits per block."""
FULL_BELOW = 256 << 20
"""Models whose data file is smaller run as a whole without being asked to."""
_SAMPLE = 4  # rows at the start, in the middle and at the end

Level = Literal["auto", "nodes", "full", "none"]
Arrays = Mapping[str, Array]


@dataclass(frozen=True)
class CheckResult:
    """What one check found.

    Attributes:
        name: The weight, or "model".
        kind: The form that was run ("linear: int4 block 128"), or "model".
        error: Greatest relative L2 error of its runs.
        limit: What is allowed.
    """

    name: str
    kind: str
    error: float
    limit: float


@dataclass(frozen=True)
class _Case:
    """A model file, and inputs with the outputs that they must give, run after run."""

    name: str
    kind: str
    limit: float
    model: Path
    runs: tuple[tuple[Arrays, Arrays], ...]


def check(model: Model, target: Path, lowered: Lowered, level: Level = "auto") -> list[CheckResult]:
    """Runs what was written and compares.

    Args:
        model: The source.
        target: The folder that `lower` wrote.
        lowered: What `lower` returned.
        level: "nodes": one node per form; "full": the whole model as well; "auto": full below 256 MB; "none": nothing.

    Raises:
        ProofError: A result is further off than allowed, or ONNX Runtime does not load or run the model.
        UnsupportedError: ONNX Runtime is not installed.
    """
    if level == "none":
        return []
    with tempfile.TemporaryDirectory(prefix="qdeploy-check-") as scratch:
        job = Path(scratch)
        cases = list(_node_cases(model, target, lowered, job))
        small = (target / DATA_FILE).stat().st_size < FULL_BELOW
        if level == "full" or (level == "auto" and small):
            cases.append(_model_case(model, target, lowered))
        results = _run(job, cases)
    for result in results:
        if not result.error <= result.limit:  # NaN fails
            raise ProofError("ONNX Runtime computes something else than the source means", where=f"{result.name} ({result.kind})",
                             found=f"relative error {result.error:.2e}", allowed=f"<= {result.limit:.0e}",
                             todo="This is a defect of the conversion; please report it with the checkpoint.")  # fmt:











                             skip
    return results


# ---- one node per form -----------------------------------------------------------------------------------------------


class SampleBuilder(GraphBuilder):
    """Builds a graph for some rows of a weight, with the bytes that lie in the data file.

    Args:
        data: The data file.
        lowered: Where each range lies.
        rows: Rows of the whole weight.
        windows: Those that are taken.
    """

    def __init__(self, data: File, lowered: Lowered, rows: int, windows: list[tuple[int, int]]) -> None:
        super().__init__("sample")
        self._file, self._lowered, self._rows, self._windows = data, lowered, rows, windows

    def extent(self, rows: int) -> int:
        """Rows of the sample."""
        return sum(stop - start for start, stop in self._windows)

    def initializer(
        self, name: str, dtype: int, shape: Any, rows: RowReader, weight: int = 1, range_of: str = "",
        shared: bool = False,
    ) -> str:  # fmt: skip
        """Puts the rows' bytes into the graph itself."""
        if any(known.name == name for known in self.graph.initializer):
            return name
        offset = self._lowered.places[range_of or name].offset
        size = int(np.prod(shape[1:], dtype=np.int64)) * ITEMSIZE[dtype]
        windows = [(0, shape[0])] if shared else self._windows
        raw = b"".join(self._file.read(offset + start * size, (stop - start) * size) for start, stop in windows)
        count = sum(stop - start for start, stop in windows)
        self.graph.initializer.add(name=name, data_type=dtype, dims=(count, *shape[1:]), raw_data=raw)
        return name


def _node_cases(model: Model, target: Path, lowered: Lowered, job: Path) -> Iterator[_Case]:
    data = Folder(target).open(DATA_FILE)
    seen: set[str] = set()
    try:
        for use, name in _uses(model):
            form = lowered.forms.get(name)
            if form is None or len(form.shape) != 2 or f"{use}: {form.label}" in seen:
                continue
            seen.add(f"{use}: {form.label}")
            yield _node_case(model, data, lowered, name, form, use, job / f"{len(seen)}.onnx")
    finally:
        data.close()


def _uses(model: Model) -> Iterator[tuple[str, str]]:
    """How each matrix is used: ("linear" or "gather", name)."""
    from qdeploy.ir.expand import expand_graph

    for node in expand_graph(model.graph, keep=("Linear",)).nodes:
        if node.op == "Linear":
            yield "linear", node.inputs[1]
        elif node.op == "Gather":
            yield "gather", node.inputs[0]


def _node_case(
    model: Model, data: File, lowered: Lowered, name: str, form: Form, use: str, path: Path
) -> _Case:
    rows, columns = form.shape
    windows = _windows(rows)
    builder = SampleBuilder(data, lowered, rows, windows)
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
    return _Case(name, f"{use}: {form.label}", limit, path, runs)


def _windows(rows: int) -> list[tuple[int, int]]:
    if rows <= 3 * _SAMPLE:
        return [(0, rows)]
    middle = rows // 2
    return [(0, _SAMPLE), (middle, middle + _SAMPLE), (rows - _SAMPLE, rows)]


# ---- the whole model -------------------------------------------------------------------------------------------------


class _Undecoded(Mapping[str, Array]):
    """A model's tensors as float32, decoded at each use: only one is in memory at a time."""

    def __init__(self, model: Model) -> None:
        self._tensors = model.tensors

    def __getitem__(self, name: str) -> Array:
        return self._tensors[name].decode()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _model_case(model: Model, target: Path, lowered: Lowered) -> _Case:
    from qdeploy.ir.run import run

    graph, weights = model.graph, _Undecoded(model)
    steps = _decoder_inputs(model) if graph.states else [_encoder_inputs(model)]
    states: dict[str, Any] = {}
    runs = []
    for inputs in steps:
        given = {value.name for value in graph.inputs}
        outputs, states = run(graph, {k: v for k, v in inputs.items() if k in given}, states, weights)
        runs.append((inputs, outputs))
    return _Case("model", "model", INT8_FULL if lowered.int8 else EXACT_FULL, target / MODEL_FILE, tuple(runs))


def _ids(model: Model, shape: tuple[int, int]) -> Array:
    vocab = int(model.graph.meta["vocab"])  # type: ignore[arg-type]
    return np.random.default_rng(0).integers(0, vocab, shape, dtype=np.int64)


def _decoder_inputs(model: Model) -> list[Arrays]:
    """A prompt of 9 tokens, then 3 more."""
    ids = _ids(model, (1, 12))
    return [{"input_ids": ids[:, start:stop], "attention_mask": np.ones((1, stop), np.int64)}
            for start, stop in ((0, 9), (9, 12))]  # fmt: skip


def _encoder_inputs(model: Model) -> Arrays:
    """Two texts, the second of them padded."""
    ids = _ids(model, (2, 9))
    mask = np.ones((2, 9), np.int64)
    mask[1, 6:] = 0
    every = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros((2, 9), np.int64)}
    return {value.name: every[value.name] for value in model.graph.inputs}


# ---- the child -------------------------------------------------------------------------------------------------------


def _run(job: Path, cases: list[_Case]) -> list[CheckResult]:
    listed = []
    for place, case in enumerate(cases):
        arrays = {
            f"{step}.{kind}.{name}": array
            for step, run in enumerate(case.runs)
            for kind, part in zip(("in", "want"), run, strict=True)
            for name, array in part.items()
        }
        np.savez(job / f"{place}.npz", **arrays)  # type: ignore[arg-type]
        listed.append({"model": str(case.model), "arrays": f"{place}.npz", "runs": len(case.runs)})
    (job / "cases.json").write_text(json.dumps(listed))
    done = subprocess.run(
        [sys.executable, "-m", "qdeploy.backends.onnx.child", str(job)], capture_output=True, text=True, check=False
    )
    if done.returncode == 3:
        raise UnsupportedError("the check needs onnxruntime", todo="pip install 'qdeploy[onnx]', or pass --check none.")
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["it was killed"]
        raise ProofError("ONNX Runtime does not run what was written", where=str(cases[0].model.parent), found=last[0],
                         todo="This is a defect of the conversion; please report it with the checkpoint.")  # fmt: skip
    errors = json.loads(done.stdout)
    return [CheckResult(c.name, c.kind, e, c.limit) for c, e in zip(cases, errors, strict=True)]
