"""A model file in words and numbers, for `qdeploy inspect`: JSON values only, and nothing of the stack is read."""

from __future__ import annotations

from collections import Counter
from typing import Any

from qdeploy.backends.native.layout import NONE, NumberKind, Op, SectionId, TermKind
from qdeploy.backends.native.metadata import FILES
from qdeploy.backends.native.outlining import Outline, outline
from qdeploy.backends.native.reading import ModelFile
from qdeploy.store.folder import parse_json

_KINDS = {
    TermKind.NIBBLES: "int4",
    TermKind.PAIRS: "int2",
    TermKind.BYTES: "int8",
    TermKind.TABLE4: "table of 16",
    TermKind.TABLE3: "table of 8",
}


def describe(file: ModelFile) -> dict[str, Any]:
    """What a model file is and holds: the fields of `qdeploy.proof.survey`, and those of the file itself."""
    header, stack = file.header, outline(file)
    tensors = _tensors(file, stack)
    resident, parameters = int(header["resident_bytes"]), int(header["parameters"])
    weights = resident + int(header["stack_bytes"])
    config, meta = document(file, "config"), document(file, "meta")
    nodes = file.section(SectionId.NODES)
    return {
        "format": "native",
        "model_type": str(config.get("model_type", "")),
        "source": document(file, "source").get("format", ""),
        "parameters": parameters,
        "bytes": weights,
        "bits": 8 * weights / max(1, parameters),
        "graph": f"{meta.get('kind', '')}, {len(nodes)} nodes, {len(file.section(SectionId.STATES))} caches",
        "files": [name for name in FILES if name in file.metadata],
        "notes": [],
        "tensors": tensors,
        "file": {
            "bytes": int(header["file_bytes"]),
            "version": int(header["version"]),
            "content_sha256": header["content_sha256"].tobytes().hex(),
            "resident": resident,
            "resident_tensors": len(file.section(SectionId.TENSORS)),
            "stack": int(header["stack_bytes"]),
        },
        "rungs": _rungs(file),
        "floor": {"rung": stack.floor, "bytes": resident + _at(file, stack.floor)},
        "ceiling": {"rung": len(file.section(SectionId.RUNGS)), "bytes": weights},
        "plan": {
            "kind": meta.get("kind", ""),
            "vocab": int(header["vocab"]),
            "context": int(header["context"]),
            "nodes": len(nodes),
            "values": len(file.section(SectionId.VALUES)),
            "floats_per_token": int(header["slot_width"]),
            "ops": dict(Counter(Op(op).name.lower() for op in nodes["op"].tolist()).most_common()),
        },
        "conversion": document(file, "conversion"),
        "metadata": {key: len(value) for key, value in file.metadata.items()},
    }


def document(file: ModelFile, key: str) -> dict[str, Any]:
    """An entry of the metadata that is a JSON object; empty where there is none."""
    tree = parse_json(file.metadata.get(key, b"{}"), f"{file.path}: {key}")
    return tree if isinstance(tree, dict) else {}


def _rungs(file: ModelFile) -> list[dict[str, Any]]:
    rungs = file.section(SectionId.RUNGS).tolist()
    return [{"rung": i, "bytes": size, "error": error} for i, (size, error) in enumerate(rungs, 1)]


def _at(file: ModelFile, rung: int) -> int:
    return int(file.section(SectionId.RUNGS)["bytes"][rung - 1]) if rung else 0


def _tensors(file: ModelFile, stack: Outline) -> dict[str, dict[str, Any]]:
    tensors = {}
    for record, (name, weights) in zip(file.section(SectionId.MATRICES), stack.weights.items(), strict=True):
        first, count = int(record["first_term"]), int(record["terms"])
        terms = file.section(SectionId.TERMS)[first : first + count]
        own = [size for piece, size in zip(stack.order, stack.stored, strict=True) if piece.tensor == name]
        sorted_columns = " sorted" if record["map_tensor"] != NONE else ""
        kinds = [_kind(term) for term in terms]
        tensors[name] = {
            "shape": [int(record["rows"]), int(record["columns"])],
            "encoding": _in_one_line(kinds) + sorted_columns,
            "bits": 8 * sum(own) / max(1, weights),
            "bytes": sum(own),
            "parameters": weights,
            "kinds": [TermKind(int(term["kind"])).name.lower() for term in terms],
            "pieces": own,
        }
    return tensors


def _in_one_line(kinds: list[str]) -> str:
    return f"{len(kinds)} x {kinds[0]}" if len(kinds) > 1 and len(set(kinds)) == 1 else " + ".join(kinds)


def _kind(term: Any) -> str:
    kind = TermKind(int(term["kind"]))
    group = f" group {term['group']}" if term["scale"]["kind"] != NumberKind.NO else ""
    if kind == TermKind.PLANES:
        signs = term["planes"] == 1 and term["zero_for_all"] == 0.5
        return ("signs" if signs else f"int{term['planes']}") + group + ("" if signs else " in planes")
    if kind == TermKind.FLOATS:
        return NumberKind(int(term["element"])).name.lower() + group
    if kind == TermKind.VECTOR:
        return f"{term['books']} codebooks of {term['levels']} x {term['width']}"
    if kind == TermKind.BITSTACK:
        return f"signs of rank {term['rank']}"
    if kind == TermKind.SPARSE:
        return f"{term['entries']} outliers"
    return _KINDS[kind] + group
