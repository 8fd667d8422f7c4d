"""The report of a conversion: what was read, what became of every tensor, what was proven.

It holds no times and no names of machines or folders: the same conversion writes the same report.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from qdeploy.contracts.results import CheckResult, Choice
from qdeploy.errors import UnsupportedError
from qdeploy.ir.describe import bits_per_weight, encoding
from qdeploy.ir.model import Model
from qdeploy.ir.tensor import QTensor
from qdeploy.proof.roundtrip import levels
from qdeploy.version import VERSION

Report = dict[str, Any]


def make_report(
    model: Model,
    to: str,
    options: Mapping[str, Any],
    choices: Sequence[Choice],
    checks: Sequence[CheckResult],
    notes: Sequence[str] = (),
) -> Report:
    """Gathers the report.

    Args:
        model: What was converted, after its tensors were read.
        to: The target.
        options: The options of the target.
        choices: Per tensor, how the target holds it and why (tensor, form, reason, lossless, bytes).
        checks: What ran against the numpy semantics (name, kind, error, limit).
        notes: The target's remarks; the model's own are added.
    """
    tensors = {name: _row(tensor) for name, tensor in model.tensors.items()}
    for name, snr in model.losses.items():
        if math.isfinite(snr):  # there is no such number in JSON
            tensors[name]["snr_db"] = round(snr, 2)
    for choice in choices:
        row = tensors.setdefault(choice.tensor, {})
        forms = row.setdefault("forms", [])
        forms.append({"form": choice.form, "reason": choice.reason, "lossless": choice.lossless, "bytes": choice.bytes})
    report = {
        "qdeploy": VERSION,
        "source": {"format": model.format, "model_type": model.config.get("model_type", "")},
        "target": to,
        "options": dict(options),
        "lossless": levels(model),
        "summary": _summary(model, choices),
        "checks": [{"name": c.name, "kind": c.kind, "error": c.error, "limit": c.limit} for c in checks],
        "notes": [*model.notes, *notes],
        "tensors": tensors,
    }
    integers = _integers(model)
    return {**report, "integers": integers} if integers else report


def _integers(model: Model) -> Any:
    """What codes mean in a network of integers, and how it became one, if it was made here; None for others."""
    try:
        meta = model.graph.meta
    except UnsupportedError:  # tensors without a network
        return None
    if meta.get("kind") != "integer":
        return None
    return {"quantization": meta.get("quantization", {}), **meta.get("integers", {})}  # type: ignore[dict-item]


def _row(tensor: QTensor) -> dict[str, Any]:
    source = tensor.source
    return {
        "shape": list(tensor.shape),
        "encoding": encoding(tensor),
        "bits": round(bits_per_weight(tensor), 4),
        "bytes": tensor.nbytes,
        "exact": source.exact if source else "quantized here",
    }


def _summary(model: Model, choices: Sequence[Choice]) -> dict[str, Any]:
    weights = sum(math.prod(t.shape) for t in model.tensors.values())
    stored = sum(t.nbytes for t in model.tensors.values())
    forms: dict[str, int] = {}
    for choice in choices:
        forms[choice.form] = forms.get(choice.form, 0) + 1
    return {
        "tensors": len(model.tensors),
        "parameters": weights,
        "bytes": stored,
        "bits per weight": round(8 * stored / max(1, weights), 4),
        "lossy tensors": [c.tensor for c in choices if not c.lossless],
        "forms": dict(sorted(forms.items())),
    }
