"""Integer networks to lower, and what ONNX Runtime makes of them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from qdeploy.backends.onnx.assemble import assemble
from qdeploy.backends.onnx.options import Options
from qdeploy.ir.element import element_dtype
from qdeploy.ir.graph import Graph, Node, Value
from qdeploy.ir.model import Model
from qdeploy.ir.ops.table import op
from qdeploy.ir.run import Weights, run
from qdeploy.passes.fold import plain_tensor
from qdeploy.progress import SILENT


class Net:
    """A graph under construction; every method returns the name of the value that it makes."""

    def __init__(self, *inputs: tuple[str, tuple[Any, ...]], seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.inputs = [Value(f"x{i}" if i else "x", dtype, shape) for i, (dtype, shape) in enumerate(inputs)]
        self.nodes: list[Node] = []
        self.constants: dict[str, Any] = {}

    def constant(self, array: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = plain_tensor(np.asarray(array))
        return name

    def add(self, kind: str, *inputs: str, **attrs: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(Node(kind, inputs, (name,), attrs, name))
        return name

    def layer(self, kind: str, x: str, *shape: int, **attrs: Any) -> str:
        weight = self.rng.integers(-128, 128, shape).astype(np.int8)
        bias = self.rng.integers(-3000, 3000, shape[0]).astype(np.int32)
        return self.add(kind, x, self.constant(weight), self.constant(bias), **attrs)

    def requantize(self, x: str, factor: float, channels: int = 1, dtype: str = "U8", **attrs: Any) -> str:
        """By about a factor, another one per channel."""
        fraction, exponent = np.frexp(factor * self.rng.uniform(0.5, 1, channels))
        m = self.constant((fraction * 2**31).astype(np.int64).clip(2**30, 2**31 - 1).astype(np.int32))
        limits = np.iinfo(element_dtype(dtype))
        inputs = {"lo": int(limits.min), "hi": int(limits.max), "dtype": dtype, **attrs}
        return self.add("Requantize", x, m, self.constant((31 - exponent).astype(np.int32)), **inputs)

    def model(self, *outputs: str, types: tuple[str, ...] = ()) -> Model:
        values = tuple(Value(name, "I32", ()) for name in outputs)
        output = Graph(tuple(self.inputs), values, tuple(self.nodes), (), self.constants, {"kind": "integer"})
        known = dict(zip(outputs, types, strict=True)) if types else kinds(output)
        graph = Graph(
            output.inputs, tuple(Value(n, known[n], ()) for n in outputs), output.nodes, (), self.constants, output.meta
        )
        return Model("made", "here", {}, build_graph=lambda _: graph)


def kinds(graph: Graph) -> dict[str, str]:
    """Element types of the outputs."""
    from qdeploy.ir.element import element_name

    model = Model("made", "here", {}, build_graph=lambda _: graph)
    return {name: element_name(array.dtype) for name, array in run(graph, codes(model), {}, Weights(model))[0].items()}


def codes(model: Model, batch: int = 2, seed: int = 3) -> dict[str, Any]:
    """Codes of the whole range of every input, but small ones of wide types."""
    rng, output = np.random.default_rng(seed), {}
    for value in model.graph.inputs:
        limits = np.iinfo(element_dtype(value.dtype))
        lo, hi = (limits.min, limits.max) if limits.bits <= 16 else (-(2**20), 2**20) if limits.bits == 32 else (0, 1)
        shape = [n if isinstance(n, int) else batch + 3 * i for i, n in enumerate(value.shape)]
        output[value.name] = rng.integers(lo, hi, shape, endpoint=True).astype(element_dtype(value.dtype))
    return output


def lowered(model: Model, mode: str, folder: Path) -> onnx.ModelProto:
    assemble(model, folder, Options(integer=mode), SILENT)  # type: ignore[arg-type]
    return onnx.load(folder / "model.onnx")


def computed(proto: onnx.ModelProto, inputs: dict[str, Any], precise: bool = False) -> dict[str, Any]:
    """What ONNX Runtime gives; `precise`: it must not let 8-bit products saturate."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    if precise:
        options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def is_exact(model: Model, inputs: dict[str, Any] | None = None) -> onnx.ModelProto:
    """Asserts that strict ONNX gives what the interpreter gives, and holds integers alone."""
    from qdeploy.backends.onnx.integer.proof import prove

    arguments = codes(model) if inputs is None else inputs
    wanted = run(model.graph, arguments, {}, Weights(model))[0]
    with tempfile.TemporaryDirectory() as folder:
        proto = lowered(model, "strict", Path(folder))
    result = computed(proto, arguments)
    for name, array in wanted.items():
        assert result[name].dtype == array.dtype and result[name].shape == array.shape, name
        assert (result[name] == array).all(), name
        assert np.unique(array).size > 1, "a test that shows nothing"
    proof = prove(proto)
    assert proof["integer_only"], proof
    return proto


def worst_code(model: Model, inputs: dict[str, Any]) -> tuple[int, onnx.ModelProto]:
    """How far fast ONNX is from the graph: the greatest distance of any value of at most 16 bits from what the graph's
    op gives for ONNX Runtime's own values before it. Values of 32 bits, which are exact, must be equal."""
    with tempfile.TemporaryDirectory() as folder:
        proto = lowered(model, "fast", Path(folder))
    shown = onnx.ModelProto.FromString(proto.SerializeToString())
    outputs = [n for node in proto.graph.node for n in node.output]
    arguments = {v.name for v in proto.graph.output}
    shown.graph.output.extend(onnx.ValueInfoProto(name=n) for n in outputs if n not in arguments)
    result = computed(shown, inputs, precise=True)
    values: dict[str, Any] = {**Weights(model), **_constants(model), **inputs}
    worst = 0
    for node in model.graph.nodes:
        wanted = np.asarray(op(node.op).numpy(*(values[n] for n in node.inputs), **node.attrs))
        name = node.outputs[0]
        raised = next((n for n in result if n.startswith(f"{name}.raised")), None)
        got = result[name] if name in result else None if raised is None else result[raised].astype(np.int16) - 128
        if got is not None:
            worst = max(worst, int(np.abs(got.astype(np.int64) - wanted).max()))
        values[name] = wanted if got is None else got.astype(wanted.dtype)
    return worst, proto


def _constants(model: Model) -> dict[str, Any]:
    from qdeploy.ir.element import as_value

    return {name: as_value(tensor) for name, tensor in model.graph.constants.items()}
