"""What a network is, beyond its tensors: what goes in and comes out, its operators, which targets it fits."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from qdeploy import registry
from qdeploy.errors import QdeployError
from qdeploy.ir.graph import OBSTACLE, Graph, Node, Value
from qdeploy.ir.model import Model

_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
_TEXT_MODELS = ("decoder", "encoder")


def network_facts(model: Model) -> dict[str, Any] | None:
    """Describes the graph of a network; JSON values only.

    Returns:
        `inputs` and `outputs` (name, type, shape), `version` (of ONNX's operators, where the source has one),
        `operators` (name -> count, those within subgraphs included) and `targets` (name -> "ready", or what is
        missing). None for language models and encoders of text, whose family says all that, and without a graph.
    """
    try:
        graph = model.graph
    except QdeployError:
        return None
    if graph.meta.get("kind") in _TEXT_MODELS:
        return None
    return {
        "inputs": [_value(value) for value in graph.inputs],
        "outputs": [_value(value) for value in graph.outputs],
        "version": graph.meta.get("opset", ""),
        "operators": dict(sorted(_operators(graph).items(), key=lambda pair: (-pair[1], pair[0]))),
        "targets": {name: _readiness(model, name) for name in ("onnx", "tvm", "native")},
    }


def _value(value: Value) -> dict[str, Any]:
    return {"name": value.name, "type": value.dtype, "shape": list(value.shape)}


def _operators(graph: Graph) -> Counter[str]:
    """How often each operator occurs; one that has no row goes by its name in the source."""
    return Counter(str(node.attrs["type"]) if node.op == "Opaque" else node.op for node in graph.nodes)


def _readiness(model: Model, target: str) -> str:
    try:
        return _missing(model, target)
    except QdeployError as error:
        return f"no: {error.what}" + (f" ({error.found})" if error.found else "")


def _missing(model: Model, target: str) -> str:
    graph, kind = model.graph, model.graph.meta.get("kind")
    if target == "native":
        obstacle = graph.meta.get(OBSTACLE)
        return "no: it runs language models and encoders of text" + (f"; {obstacle}" if obstacle else "")
    from qdeploy.passes.expand import expand_graph

    lowered = registry.backend(target).ops()
    if target == "tvm" and kind != "integer":
        missing = _without_integer_form(model)
        return f"no integer form: {', '.join(missing)}" if missing else "ready with --calibrate"
    missing = sorted({node.op for node in expand_graph(graph, lowered).nodes} - lowered)
    unknown = {f"{node.attrs['domain']}.{node.attrs['type']}" for node in graph.nodes if _is_foreign(node)}
    if unknown:
        return f"passes on what ONNX Runtime does not know: {', '.join(sorted(unknown))}"
    return f"missing: {', '.join(missing)}" if missing else "ready"


def _is_foreign(node: Node) -> bool:
    return node.op == "Opaque" and node.attrs.get("domain") not in _DOMAINS


def _without_integer_form(model: Model) -> list[str]:
    """Operators that stand in the way of a network in integers, once what is constant has been computed."""
    from qdeploy.integer.integerize import RULES
    from qdeploy.passes.fold import fold

    graph = fold(model.graph, model.tensors)
    return sorted(_operators(replace(graph, nodes=tuple(node for node in graph.nodes if node.op not in RULES))))
