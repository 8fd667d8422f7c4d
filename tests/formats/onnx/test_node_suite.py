"""All node cases of the installed onnx: read, computed by the interpreter, written back, and computed again.

Nothing may be wrong, end in anything but an error of the family, or be written so that it cannot be loaded where its
source can. What is refused stands in refused_nodes.json with its reason, and this list is compared.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from onnx_networks import onnx_runtime

import qdeploy
from qdeploy.errors import QdeployError
from qdeploy.ir.run import Weights, run

pytestmark = [pytest.mark.nodes, pytest.mark.filterwarnings("ignore")]
PARTS = 24
REFUSED = Path(__file__).parent / "refused_nodes.json"
LEAST, MOST = 1800, 90


@cache
def cases() -> tuple[Any, ...]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.loader import load_model_tests

        return tuple(load_model_tests(kind="node"))


def value(proto: Any) -> Any:
    if isinstance(proto, onnx.TensorProto):
        return onnx.numpy_helper.to_array(proto)
    if isinstance(proto, onnx.SequenceProto):
        return onnx.numpy_helper.to_list(proto)
    return onnx.numpy_helper.to_optional(proto) if isinstance(proto, onnx.OptionalProto) else proto


def differs(case: Any, results: list[Any], expected: list[Any]) -> str:
    """How results differ from what the case expects; "" where they do not."""
    if len(results) != len(expected):
        return f"{len(results)} outputs, not {len(expected)}"
    for place, (a, b) in enumerate(zip(results, expected, strict=True)):
        if a is None or b is None or isinstance(b, list):
            wrong = "" if a is b is None else differs(case, list(a or ()), list(b or ()))
        else:
            wrong = array_differs(case, np.asarray(a), np.asarray(b))
        if wrong:
            return f"output {place}: {wrong}"
    return ""


def array_differs(case: Any, a: np.ndarray, b: np.ndarray) -> str:
    if a.dtype != b.dtype and not {a.dtype.kind, b.dtype.kind} <= set("OUS"):
        return f"{a.dtype}, not {b.dtype}"
    if a.shape != b.shape:
        return f"shape {a.shape}, not {b.shape}"
    if b.dtype.kind in "OUS":
        return "" if (a == b).all() else "other texts"
    wide = np.complex128 if b.dtype.kind == "c" else b.dtype if b.dtype.kind in "iub" else np.float64
    close = np.isclose(a.astype(wide), b.astype(wide), rtol=case.rtol, atol=case.atol, equal_nan=True)
    return "" if close.all() else f"{np.count_nonzero(~close)} of {b.size} numbers"


def attempt(case: Any, path: Path, runs: list[tuple[Mapping[str, Any], list[Any]]], how: Any) -> str:
    """What goes wrong when a file is run; "" where nothing does."""
    try:
        return next((wrong for inputs, want in runs if (wrong := differs(case, how(path, inputs), want))), "")
    except Exception as error:  # whatever a runtime says of a file that it does not take
        return f"{type(error).__name__}: {str(error)[:200]}"


def by_onnx(path: Path, inputs: Mapping[str, Any]) -> list[Any]:
    return ReferenceEvaluator(onnx.load(path / "model.onnx")).run(None, dict(inputs))


def by_onnx_runtime(path: Path, inputs: Mapping[str, Any]) -> list[Any]:
    if any(isinstance(a, np.ndarray) and a.dtype.kind == "V" for a in inputs.values()):
        raise NotImplementedError("its Python interface lacks the type")
    return onnx_runtime(path, inputs, optimized=True)


def feeds(case: Any, graph: Any) -> list[tuple[dict[str, Any], list[Any]]]:
    names = [v.name for v in graph.input]
    if len(case.data_sets[0][0]) != len(names):
        names = [name for name in names if name not in {t.name for t in graph.initializer}]
    sides = [([value(v) for v in inputs], [value(v) for v in outputs]) for inputs, outputs in case.data_sets]
    return [(dict(zip(names, inputs, strict=False)), outputs) for inputs, outputs in sides]


def outcome(case: Any, folder: Path) -> tuple[str, str]:
    """What is wrong with a case, and why it is refused; "" and "" where it goes both ways."""
    proto = onnx.ModelProto()
    proto.CopyFrom(case.model)
    proto.ir_version = min(max(proto.ir_version, 8), 10)  # that of the cases is newer than what they need
    source, target = folder / "source", folder / "out"
    source.mkdir(parents=True)
    (source / "model.onnx").write_bytes(proto.SerializeToString())
    runs = feeds(case, proto.graph)
    try:
        model = qdeploy.load(source)
        graph = model.graph
        qdeploy.convert(source, target, to="onnx", check="none")
    except QdeployError as error:
        return "", f"{error.what}: {error.found}"
    if all(node.op != "Opaque" for node in graph.nodes):
        for inputs, expected in runs:
            results, _ = run(graph, inputs, None, Weights(model))
            wrong = differs(case, [results[v.name] for v in graph.outputs], expected)
            if wrong:
                return f"interpreter: {wrong}", ""
    return written_wrong(case, source, target, runs), ""


def written_wrong(case: Any, source: Path, target: Path, runs: Any) -> str:
    """ONNX Runtime on the output, if it computes the source; else onnx's own evaluator, if that does."""
    for name, how in (("ONNX Runtime", by_onnx_runtime), ("onnx", by_onnx)):
        if not attempt(case, source, runs, how):
            wrong = attempt(case, target, runs, how)
            return f"output in {name}: {wrong}" if wrong else ""
    return ""


def part(number: int, folder: Path) -> Iterator[tuple[str, str, str]]:
    for place, case in enumerate(cases()):
        if place % PARTS == number:
            yield (case.name, *outcome(case, folder / case.name))


@pytest.mark.parametrize("number", range(PARTS))
def test_every_node_case_goes_both_ways_or_is_refused_with_its_reason(number: int, tmp_path: Path):
    results = list(part(number, tmp_path))
    listed = json.loads(REFUSED.read_text())
    names = {name for name, _, _ in results}
    assert {name: wrong for name, wrong, _ in results if wrong} == {}
    assert {name: why for name, _, why in results if why} == {k: v for k, v in listed.items() if k in names}


def test_the_cases_are_all_there_and_few_are_refused():
    listed = json.loads(REFUSED.read_text())
    assert len(cases()) >= LEAST
    assert len(listed) <= MOST and set(listed) <= {case.name for case in cases()}


def test_what_differs_is_seen():
    case = next(case for case in cases() if case.name == "test_add")
    one = np.ones(3, np.float32)
    assert not differs(case, [one], [one])
    assert differs(case, [one + 1], [one]) and differs(case, [one.astype(ml_dtypes.bfloat16)], [one])
