"""What a checkpoint is: the facts behind `inspect`, from descriptions alone unless codes are to be counted."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from qdeploy import registry
from qdeploy.errors import BadArgumentError, BadFileError, QdeployError
from qdeploy.ir.describe import bits_per_weight, encoding
from qdeploy.ir.dtype import dtype
from qdeploy.ir.model import Model
from qdeploy.ir.tensor import Codes, QTensor
from qdeploy.proof.network_facts import network_facts
from qdeploy.store.folder import Folder
from qdeploy.store.report_form import read_report

if TYPE_CHECKING:
    from qdeploy.contracts.backends import Backend, SingleFile

_SLAB_CODES = 4 << 20
_FLOAT_BITS = 16  # a matrix of fewer bits per weight is quantized


def survey(
    path: str | os.PathLike[str],
    format: str = "",
    trust_links: bool = False,
    *,
    histogram: bool = False,
    checksums: bool = False,
    **more: Any,
) -> dict[str, Any]:
    """Describes a checkpoint or package; JSON values only.

    Args:
        path: What to describe.
        format: The reader's name, where sniffing is not wanted.
        trust_links: Follow links that lead outside.
        histogram: Also count how often each code occurs, per encoding.
        checksums: For a package, recompute every checksum.
        more: The other fields of `SourceOptions`.

    Raises:
        QdeployError: The path cannot be read, or a checksum differs.
    """
    artifact = None if format else registry.artifact_backend(path)
    if artifact is not None:
        if histogram or (checksums and artifact.file is None):
            raise BadArgumentError(
                "an output has no codes to count, and no checksums of a package",
                where=str(path),
                found=artifact.name,
                todo="Give the checkpoint or package.",
            )
        file = artifact.file
        return _from_report(artifact, path) if file is None else _from_file(artifact.title, file, path, checksums)
    model = registry.open_model(path, format, trust_links, **more)
    tensors = {name: _row(tensor) for name, tensor in model.tensors.items()}
    size, count = (sum(t[key] for t in tensors.values()) for key in ("bytes", "parameters"))
    report: dict[str, Any] = {
        "path": str(path),
        "format": model.format,
        "title": registry.format_module(model.format).TITLE,
        "model_type": str(model.config.get("model_type", "")),
        "parameters": count,
        "bytes": size,
        "bits": 8 * size / max(1, count),
        "graph": _graph(model),
        "files": [f.path for f in model.files if f.role == "side"],
        "notes": [*model.notes, *_grids(model, tensors)],
        "tensors": tensors,
    }
    network = network_facts(model) if model.build_graph is not None else None
    if network is not None:
        report["network"] = network
    if histogram:
        report["histogram"] = _histograms(model)
    if checksums:
        report["checksums"] = _verify(model, path, trust_links)
    return report


def _from_file(title: str, file: SingleFile, path: str | os.PathLike[str], checksums: bool) -> dict[str, Any]:
    """An output that is one file describes itself."""
    description = file.describe(str(path))
    source = description.get("source")
    title = f"{title}; converted from {source}" if source else title
    if checksums:
        pages, damaged = file.damaged_pages(str(path))
        if damaged:
            raise BadFileError(
                "pages of the model file are damaged",
                where=str(path),
                found=damaged[:8],
                todo="Fetch or convert it again.",
            )
        description["checksums"] = pages
    return {"path": str(path), "title": title, **description}


def _from_report(backend: Backend, path: str | os.PathLike[str]) -> dict[str, Any]:
    """An output describes itself by the report of its conversion."""
    report = read_report(path)
    tensors = {
        name: {**row, "parameters": math.prod(row["shape"]), "encoding": _held_as(row)}
        for name, row in report["tensors"].items()
        if "shape" in row
    }
    size, count = report["summary"]["bytes"], report["summary"]["parameters"]
    return {
        "path": str(path),
        "format": backend.name,
        "title": f"{backend.title}; converted from {report['source']['format']}",
        "model_type": report["source"]["model_type"],
        "parameters": count,
        "bytes": size,
        "bits": 8 * size / max(1, count),
        "graph": "",
        "files": sorted(Folder(path).names()),
        "notes": report["notes"],
        "tensors": tensors,
    }


def _held_as(row: dict[str, Any]) -> str:
    forms = ", ".join(form["form"] for form in row.get("forms", []))
    return f"{row['encoding']} as {forms}" if forms else f"{row['encoding']}, not used"


def _row(tensor: QTensor) -> dict[str, Any]:
    return {
        "shape": list(tensor.shape),
        "encoding": encoding(tensor),
        "bits": bits_per_weight(tensor),
        "bytes": tensor.nbytes,
        "parameters": math.prod(tensor.shape),
    }


def _grids(model: Model, rows: Mapping[str, dict[str, Any]]) -> list[str]:
    """What there is to say of float weights that lie on a grid; they are looked at where most weights are floats."""
    matrices = {name: row for name, row in rows.items() if len(row["shape"]) == 2}
    sizes = {name: row["parameters"] for name, row in matrices.items()}
    floats = sum(size for name, size in sizes.items() if model.tensors[name].dtype.startswith(("F", "BF")))
    quantized = sum(size for name, size in sizes.items() if matrices[name]["bits"] < _FLOAT_BITS)
    if not floats or 2 * quantized > sum(sizes.values()):
        return []
    from qdeploy.recover import detected

    try:
        return detected(model)
    except (QdeployError, OSError):  # describing does not fail for what converting will name
        return []


def _graph(model: Model) -> str:
    try:
        graph = model.graph
    except QdeployError as error:
        return f"none ({error.what}{': ' + error.found if error.found else ''})"
    return f"{graph.meta.get('kind', '')}, {len(graph.nodes)} nodes, {len(graph.states)} caches"


def _histograms(model: Model) -> dict[str, list[int]]:
    """Counts of every code, summed over the tensors of an encoding; only codes of at most 8 bits."""
    from qdeploy.ir.decode import read_codes
    from qdeploy.ir.views import first_codes, view

    counts: dict[str, np.ndarray[Any, Any]] = {}
    for tensor in model.tensors.values():
        codes = first_codes(view(tensor))
        levels = _levels(codes) if codes is not None else 0
        if codes is None or levels == 0:
            continue
        step = max(1, _SLAB_CODES // max(1, math.prod(codes.shape[1:])))
        total = counts.setdefault(encoding(tensor), np.zeros(levels, np.int64))
        for start in range(0, codes.shape[0], step):
            rows = read_codes(codes, start, min(start + step, codes.shape[0]))
            total += np.bincount(rows.reshape(-1), minlength=levels)[:levels]
    return {name: [int(c) for c in total] for name, total in counts.items()}


def _levels(codes: Codes) -> int:
    if isinstance(codes.table, str):
        bits = dtype(codes.table).bits
        return 1 << bits if bits <= 8 else 0
    return codes.table.values.shape[1] if codes.table.values.shape[1] <= 256 else 0


def _verify(model: Model, path: str | os.PathLike[str], trust_links: bool) -> int:
    if model.format != "package":
        raise BadArgumentError("only a package has checksums", where=str(path), found=model.format)
    from qdeploy.ir.package import Package

    return sum(1 for _ in Package(Folder(path, trust_links)).verify())
