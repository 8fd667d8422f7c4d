"""The proof that an ONNX network computes with integers alone: the element type of every value, found by inference.

Inputs, outputs, initializers, constants in attributes, and every value between; operators of other domains than ONNX's
are listed as `externs`, since nothing says what they do inside.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx

from qdeploy.backends.onnx.proto import MODEL_FILE
from qdeploy.errors import UnsupportedError

INTEGERS = frozenset(
    {
        onnx.TensorProto.UINT8,
        onnx.TensorProto.INT8,
        onnx.TensorProto.UINT16,
        onnx.TensorProto.INT16,
        onnx.TensorProto.INT32,
        onnx.TensorProto.UINT32,
        onnx.TensorProto.INT64,
        onnx.TensorProto.UINT64,
        onnx.TensorProto.BOOL,
    }
)
_DIVISIONS = ("Div", "Mod")


def integer_only(path: str | Path) -> dict[str, Any]:
    """Looks at every value of an output.

    Args:
        path: An output folder of this backend.

    Returns:
        integer_only, nodes, values, floats (values and constants of another type, or of none that is known), externs,
        divisions (integer divisions by what is not constant).

    Raises:
        UnsupportedError: There is no model in the folder.
    """
    file = Path(path) / MODEL_FILE
    if not file.is_file():
        raise UnsupportedError("no output of the ONNX backend", where=str(path), todo="Convert with --to onnx.")
    return prove(onnx.load(file, load_external_data=False))


def prove(model: onnx.ModelProto) -> dict[str, Any]:
    """As `integer_only`, for a model in memory."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.output, *graph.value_info)}
    initializers = {t.name: t.data_type for t in graph.initializer}
    outputs = [name for node in graph.node for name in node.output if name]
    floats = [
        _line(name, initializers.get(name, types.get(name, 0)))
        for name in dict.fromkeys((*types, *initializers, *outputs))
        if initializers.get(name, types.get(name, 0)) not in INTEGERS
    ]
    floats += [line for node in graph.node for line in _attributes(node)]
    externs = [f"{n.domain}.{n.op_type}" for n in graph.node if n.domain or any(a.HasField("g") for a in n.attribute)]
    by = [(n.op_type, n.input[1]) for n in graph.node if n.op_type in _DIVISIONS]
    divisions = [f"{kind} by {name}" for kind, name in by if name not in initializers]
    return {
        "integer_only": not floats and not externs,
        "nodes": len(graph.node),
        "values": len({*types, *outputs, *initializers}),
        "floats": floats,
        "externs": externs,
        "divisions": divisions,
    }


def _line(name: str, kind: int) -> str:
    return f"{name}: {onnx.TensorProto.DataType.Name(kind).lower()}"


def _attributes(node: onnx.NodeProto) -> Iterator[str]:
    for attribute in node.attribute:
        kinds = [attribute.t.data_type] if attribute.HasField("t") else [t.data_type for t in attribute.tensors]
        if attribute.HasField("f") or attribute.floats:
            yield f"{node.name}: attribute {attribute.name}, float"
        yield from (_line(f"{node.name}: attribute {attribute.name}", kind) for kind in kinds if kind not in INTEGERS)
