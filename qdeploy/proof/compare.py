"""One comparison of two models, tensor by tensor: under `verify` (they must be equal) and `diff` (how far apart).

Codes are compared as integers: two tensors have equal codes when their descriptions agree and every buffer does. Where
they do not, decoded values are: greatest error, and signal-to-noise ratio 10 * log10(sum a**2 / sum (a - b)**2) in dB.
"""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from qdeploy import registry
from qdeploy.derive import derived, integers_asked, target_options
from qdeploy.errors import BadArgumentError, BadFileError
from qdeploy.ir.decode import slabs
from qdeploy.ir.encoding import tensor_to_json
from qdeploy.ir.model import Model
from qdeploy.ir.tensor import QTensor, buffers
from qdeploy.progress import SILENT, Progress
from qdeploy.store.folder import Folder

_SLAB_BYTES = 8 << 20
Report = dict[str, Any]


@dataclass(frozen=True)
class TensorDiff:
    """How two tensors compare.

    Attributes:
        name: Their name.
        codes_equal: Same description, same buffers.
        max_error: Greatest absolute difference of the decoded values; 0 where the codes are equal.
        snr_db: Signal-to-noise ratio of b against a; None where they are equal.
        note: Why they could not be compared, if so.
    """

    name: str
    codes_equal: bool
    max_error: float = 0.0
    snr_db: float | None = None
    note: str = ""


def verify(
    a: str | os.PathLike[str], b: str | os.PathLike[str], *, text: str = "", progress: Progress = SILENT
) -> Report:
    """Compares an artifact with its source.

    Args:
        a: The source: any checkpoint or package.
        b: A package, a checkpoint, or a backend's output folder (then every stored number of it is derived from `a`
            again and compared).
        text: Also compare logits on this text.
        progress: Told of every tensor.

    Returns:
        {"equal": bool, "tensors": [...], ...}: the rows of `diff`, and the logits where asked for.

    Raises:
        QdeployError: One of them cannot be read.

    Example:
        >>> from qdeploy import convert, verify
        >>> report = convert("examples/models/tiny-llama-gptq", "package", to="ir")
        >>> verify("examples/models/tiny-llama-gptq", "package")["equal"]
        True
    """
    report = _compare(_derived(registry.open_model(a), b), b, text, progress)
    report["equal"] = all(row["codes_equal"] for row in report["tensors"]) and not report["only"]
    if "logits" in report:
        report["equal"] = report["equal"] and report["logits"]["relative_l2"] <= report["logits"]["limit"]
    return report


def diff(
    a: str | os.PathLike[str], b: str | os.PathLike[str], *, text: str = "", progress: Progress = SILENT
) -> Report:
    """Compares two models tensor by tensor; arguments and result as in `verify`, without a verdict.

    Example:
        >>> from qdeploy import diff
        >>> report = diff("examples/models/tiny-llama", "examples/models/tiny-llama-gptq")
        >>> [row["codes_equal"] for row in report["tensors"] if row["name"] == "model.layers.0.mlp.up_proj.weight"]
        [False]
    """
    model = registry.open_model(a)
    return _compare(_derived(model, b) if registry.artifact_backend(b) else model, b, text, progress)


def _derived(model: Model, path: str | os.PathLike[str]) -> Model:
    """The source as the conversion that wrote `path` took it: quantized and lowered on the way, if it was."""
    asked = _asked(path)
    specs, lower = asked.get("quantize") or [], asked.get("lower") or ""
    if not isinstance(specs, list) or not all(isinstance(spec, str) for spec in (*specs, lower)):
        raise BadFileError("an output does not say what it was asked for", where=str(path), found=f"{specs}, {lower}")
    return derived(model, specs, lower, integers_asked(registry.artifact_backend(path), asked))


def _asked(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What the conversion that wrote an output was asked for: its report says so, or the output itself."""
    artifact = registry.artifact_backend(path)
    if artifact is not None and hasattr(artifact, "conversion"):
        found = artifact.conversion(str(path))
    elif os.path.isfile(os.path.join(path, "report.json")):
        report = Folder(path).json("report.json")
        found = report.get("options") if isinstance(report, dict) else None
    else:
        found = {}
    if not isinstance(found, dict):
        raise BadFileError("an output does not say what it was asked for", where=str(path), found=type(found).__name__)
    return found


def _compare(model: Model, b: str | os.PathLike[str], text: str, progress: Progress) -> Report:
    artifact = registry.artifact_backend(b)
    if artifact is not None:
        return _against_artifact(artifact, model, str(b), text, progress)
    other = registry.open_model(b)
    shared = [name for name in model.tensors if name in other.tensors]
    if not shared:
        raise BadArgumentError(
            "the two models share no tensor name",
            where=f"{model.path}, {b}",
            found=f"{next(iter(model.tensors), '')} | {next(iter(other.tensors), '')}",
        )
    progress.start("comparing", sum(model.tensors[n].nbytes for n in shared))
    rows = []
    for name in shared:
        rows.append(asdict(compare_tensors(name, model.tensors[name], other.tensors[name])))
        progress.advance(model.tensors[name].nbytes, name)
    report: Report = {
        "a": model.format,
        "b": other.format,
        "tensors": rows,
        "only": sorted(set(model.tensors) ^ set(other.tensors)),
    }
    if text:
        from qdeploy.proof.logits import compare_logits

        report["logits"] = compare_logits(model, other, text)
    return report


def compare_tensors(name: str, a: QTensor, b: QTensor) -> TensorDiff:
    """Compares two tensors: as codes, and where these differ as decoded values."""
    if tensor_to_json(a) == tensor_to_json(b) and _same_buffers(a, b):
        return TensorDiff(name, True)
    if a.shape != b.shape:
        return TensorDiff(name, False, math.inf, None, f"shapes {a.shape} and {b.shape}")
    worst, signal, noise = 0.0, 0.0, 0.0
    for rows in slabs(a, _SLAB_BYTES):
        x, y = a.decode(rows).astype(np.float64), b.decode(rows).astype(np.float64)
        error = np.abs(x - y)
        worst = max(worst, float(error.max(initial=0.0)))
        signal, noise = signal + float(np.square(x).sum()), noise + float(np.square(error).sum())
    snr = None if noise == 0 else 10 * math.log10(signal / noise) if signal else -math.inf
    return TensorDiff(name, False, worst, snr, "" if noise else "equal values in another encoding")


def _same_buffers(a: QTensor, b: QTensor) -> bool:
    others = {buffer.key: buffer for buffer in buffers(b)}
    for buffer in {x.key: x for x in buffers(a)}.values():
        step = max(1, _SLAB_BYTES // max(1, buffer.row_bytes))
        for start in range(0, buffer.shape[0], step):
            stop = min(start + step, buffer.shape[0])
            x, y = buffer.read(start, stop), others[buffer.key].read(start, stop)
            if not np.array_equal(_as_bytes(x), _as_bytes(y)):
                return False
    return True


def _as_bytes(array: Any) -> Any:
    return np.ascontiguousarray(array).view(np.uint8)


def _against_artifact(backend: Any, model: Model, path: str, text: str, progress: Progress) -> Report:
    options = target_options(backend, _asked(path))
    rows = [asdict(TensorDiff(*row)) for row in backend.compare(model, path, options, progress)]
    report: Report = {"a": model.format, "b": backend.NAME, "only": [], "tensors": rows}
    if text:
        from qdeploy.proof.logits import artifact_logits

        report["logits"] = artifact_logits(backend, model, path, text, backend.logits_limit(options))
    return report
