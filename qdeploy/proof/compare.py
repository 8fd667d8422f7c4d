"""One comparison of two models, tensor by tensor: under `verify` (they must be equal) and `diff` (how far apart).

Codes are compared as integers: two tensors have equal codes when their descriptions agree and every buffer does. Where
they do not, decoded values are: greatest error, and signal-to-noise ratio 10 * log10(sum a**2 / sum (a - b)**2) in dB.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from qdeploy import registry
from qdeploy.contracts.answers import compare
from qdeploy.contracts.backends import BackendRow
from qdeploy.derive import derived
from qdeploy.errors import BadArgumentError, BadFileError
from qdeploy.ir.decode import slabs
from qdeploy.ir.encoding import tensor_to_json
from qdeploy.ir.model import Model
from qdeploy.ir.tensor import QTensor, buffers
from qdeploy.progress import SILENT, Progress
from qdeploy.spec import PACKAGE, ConversionSpec
from qdeploy.store.report_form import REPORT, read_report

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
        {"equal": bool, "tensors": [...], ...}: the rows of `diff`, and the logits where the caller wants them.

    Raises:
        QdeployError: One of them cannot be read.

    Example:
        >>> from qdeploy import convert, verify
        >>> report = convert("examples/models/tiny-llama-gptq", "package", to="ir")
        >>> verify("examples/models/tiny-llama-gptq", "package")["equal"]
        True
    """
    spec = recorded_spec(b)
    report = _compare(derived(registry.open_model(a, **vars(spec.source)), spec), b, spec, text, progress)
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
    spec = recorded_spec(b)
    model = registry.open_model(a, **vars(spec.source))
    return _compare(derived(model, spec) if spec.to != PACKAGE else model, b, spec, text, progress)


def recorded_spec(path: str | os.PathLike[str]) -> ConversionSpec:
    """The spec of the conversion that wrote an output: its report says it, or the output itself.

    A package has the target "ir", and so has a checkpoint, for which nothing was asked.

    Raises:
        BadFileError: What the output says is not a spec.
    """
    artifact = registry.artifact_backend(path)
    recorded: object = {}
    if artifact is not None and artifact.file is not None:
        recorded = artifact.file.conversion(str(path))
    elif os.path.isfile(os.path.join(path, REPORT)):
        recorded = read_report(path)["options"]
    if not isinstance(recorded, Mapping):
        raise BadFileError("an output does not record its options", where=str(path), found=type(recorded).__name__)
    try:
        return ConversionSpec.of(artifact.name if artifact is not None else PACKAGE, recorded)
    except BadArgumentError as error:
        raise BadFileError(
            f"an output does not record its options: {error.what}",
            where=str(path),
            found=error.found,
            allowed=error.allowed,
        ) from error


def _named(model: Model) -> str:
    """A model in a few words: its format, its architecture, and names of tensors."""
    kind = model.config.get("model_type", "")
    names = ", ".join(list(model.tensors)[:2]) or "none"
    return f"{len(model.tensors)} tensors of {model.format}{' ' if kind else ''}{kind} ({names}, ...)"


def _compare(model: Model, b: str | os.PathLike[str], spec: ConversionSpec, text: str, progress: Progress) -> Report:
    if spec.to != PACKAGE:
        return _against_artifact(registry.BACKENDS.get(spec.to), model, str(b), spec, text, progress)
    other = registry.open_model(b)
    shared = [name for name in model.tensors if name in other.tensors]
    if not shared:
        raise BadArgumentError(
            "the two models share no tensor name",
            where=f"{model.path}, {b}",
            found=f"{_named(model)}, against {_named(other)}",
            todo="They are not of one checkpoint, or name their parameters differently (GGUF and Hugging Face do).",
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


def _against_artifact(
    row: BackendRow, model: Model, path: str, spec: ConversionSpec, text: str, progress: Progress
) -> Report:
    rows = [asdict(TensorDiff(*result)) for result in compare(row, model, path, spec.target, progress)]
    report: Report = {"a": model.format, "b": row.name, "only": [], "tensors": rows}
    if text:
        from qdeploy.proof.logits import artifact_logits

        report["logits"] = artifact_logits(row.load(), model, path, text, spec.target)
    return report
