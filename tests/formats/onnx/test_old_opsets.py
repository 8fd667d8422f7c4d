"""Node cases at older opsets: those that ONNX Runtime computes as they say are read, computed, and written back.

The cases are the current ones, told in the older version: what was an attribute then is one again, and a case counts
where onnx's checker takes the older model and ONNX Runtime gives from it what the case expects. So the meaning is that
of the older operator, by the word of two others.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import qdeploy
from qdeploy.errors import QdeployError
from qdeploy.ir.run import Weights, run
from tests.formats.onnx.test_node_suite import attempt, by_onnx_runtime, cases, feeds

pytestmark = [pytest.mark.nodes, pytest.mark.filterwarnings("ignore")]
LEAST = {11: 600, 17: 1000}
"""How many cases there must be at least; of them `SHARE` go both ways."""
SHARE = 0.97
REFUSED = Path(__file__).parent / "refused_old_nodes.json"
_IR = {11: 6, 17: 8}
_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
_ATTRIBUTES = {
    "Squeeze": (13, {1: "axes"}),
    "Unsqueeze": (13, {1: "axes"}),
    "ReduceSum": (13, {1: "axes"}),
    "Split": (13, {1: "split"}),
    **{f"Reduce{name}": (18, {1: "axes"}) for name in _REDUCTIONS},
}
"""Operators whose inputs were attributes before a version: which inputs, and the attributes' names."""


class _NotToldError(Exception):
    """A case that cannot be told in an older version."""


def older(case: Any, opset: int) -> tuple[onnx.ModelProto, list[tuple[dict[str, Any], list[Any]]]]:
    """The case at an older opset, with what its outputs must be; `_NotToldError` where it cannot be told."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    runs = feeds(case, model.graph)
    del model.opset_import[:]
    model.opset_import.add(domain="", version=opset)
    model.ir_version = _IR[opset]
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx"):
            raise _NotToldError
        _attributes_again(model.graph, node, opset, runs)
    return model, runs


def _attributes_again(graph: Any, node: Any, opset: int, runs: list[tuple[dict[str, Any], list[Any]]]) -> None:
    since, places = _ATTRIBUTES.get(node.op_type, (0, {}))
    if opset >= since or len(node.input) < 2:
        return
    if any(a.name in ("num_outputs", "noop_with_empty_axes") and a.i for a in node.attribute):
        raise _NotToldError
    for place, name in places.items():
        values = runs[0][0].get(node.input[place]) if len(runs) == 1 else None
        if values is None or not np.size(values):
            raise _NotToldError
        node.attribute.append(onnx.helper.make_attribute(name, [int(v) for v in np.reshape(values, -1)]))
        known = next(i for i in graph.input if i.name == node.input[place])
        del runs[0][0][node.input[place]], node.input[place]
        graph.input.remove(known)
    kept = [a for a in node.attribute if a.name != "noop_with_empty_axes"]
    del node.attribute[:]
    node.attribute.extend(kept)


@cache
def told(opset: int) -> tuple[tuple[Any, onnx.ModelProto, Any], ...]:
    """The cases that there are at an older opset."""
    known = []
    for case in cases():
        try:
            model, runs = older(case, opset)
            onnx.checker.check_model(model)
        except (_NotToldError, onnx.checker.ValidationError, onnx.defs.SchemaError):
            continue
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "model.onnx").write_bytes(model.SerializeToString())
            if not attempt(case, Path(folder), runs, by_onnx_runtime):
                known.append((case, model, runs))
    return tuple(known)


def outcome(case: Any, model: onnx.ModelProto, runs: Any, folder: Path) -> tuple[str, str]:
    """What is wrong with a case, and why it is refused; "" and "" where it goes both ways."""
    source, target = folder / "source", folder / "out"
    source.mkdir(parents=True)
    (source / "model.onnx").write_bytes(model.SerializeToString())
    try:
        loaded = qdeploy.load(source)
        graph = loaded.graph
        qdeploy.convert(source, target, to="onnx", check="none")
    except QdeployError as error:
        return "", f"{error.what}: {error.found}"
    if all(node.op != "Opaque" for node in graph.nodes):
        wrong = attempt(case, source, runs, _interpreted)
        if wrong:
            return f"interpreter: {wrong}", ""
    wrong = attempt(case, target, runs, by_onnx_runtime)
    return (f"output in ONNX Runtime: {wrong}" if wrong else ""), ""


def _interpreted(source: Path, inputs: dict[str, Any]) -> list[Any]:
    model = qdeploy.load(source)
    results, _ = run(model.graph, inputs, None, Weights(model))
    return [results[v.name] for v in model.graph.outputs]


def outcomes(opset: int, folder: Path) -> Iterator[tuple[str, str, str]]:
    for case, model, runs in told(opset):
        yield (case.name, *outcome(case, model, runs, folder / case.name))


@pytest.mark.parametrize("opset", LEAST)
def test_the_cases_of_an_older_opset_go_both_ways(opset: int, tmp_path: Path):
    results = list(outcomes(opset, tmp_path))
    refused = {name: why for name, _, why in results if why}
    assert {name: wrong for name, wrong, _ in results if wrong} == {}
    assert refused == json.loads(REFUSED.read_text())[str(opset)]
    assert len(results) >= LEAST[opset]
    print(f"opset {opset}: {len(results) - len(refused)} of {len(results)} cases go both ways")
    assert len(refused) <= (1 - SHARE) * len(results)


def test_a_value_that_was_an_attribute_is_one_again():
    case = next(case for case in cases() if case.name == "test_squeeze")
    model, runs = older(case, 11)
    (node,) = model.graph.node
    assert list(node.input) == ["x"] and [a.name for a in node.attribute] == ["axes"]
    assert list(runs[0][0]) == ["x"]
