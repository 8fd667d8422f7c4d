"""What a memory budget gives: floor, ceiling, every rung between them, and the bits that each layer has.

A file of the native runtime is planned from its directory. Anything else is planned as the file that it would become:
that is written to a temporary folder without its weights, which takes as long as measuring what each piece is worth.
What is held besides the stack, the runtime says itself, which opens the file and is refused before it reads any weight.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from qdeploy import registry
from qdeploy.contracts.backends import Backend, MemoryPlan, Stack
from qdeploy.derive import completed, derived
from qdeploy.elastic.curve import Curve
from qdeploy.errors import UnsupportedError
from qdeploy.spec import ConversionSpec

Plan = dict[str, Any]


def plan(
    path: str | os.PathLike[str],
    *,
    budget: int | None = None,
    context: int = 0,
    threads: int = 0,
    kv: Literal["f16", "int8", "f32"] = "f16",
    quantize: str | Sequence[str] = (),
    lower: str = "",
    format: str = "",
    trust_links: bool = False,
    **more: Any,
) -> Plan:
    """Says what a memory budget gives, and reads no weights of a native file for it.

    Args:
        path: A file of the native runtime, or any readable checkpoint or package.
        budget: Bytes; None: as much as there is.
        context: Tokens that the key/value cache holds; 0: the model's own, at most 4096.
        threads: Of the runtime; 0: one per core.
        kv: Type of the key/value cache.
        quantize: As for `convert`; like all that follows, not for a native file.
        lower: As for `convert`.
        format: The reader's name, where sniffing is not wanted.
        trust_links: Follow links that lead outside of the source folder.
        more: Options of the native backend: layout, order, sensitivities.

    Returns:
        {"floor", "ceiling": bytes, "budget", "fits": the rung that the budget gives, "rung": the one that `tensors` and
        `layers` speak of, "rungs": [{"rung", "stack", "total", "bits", "error", and "loss" where
        it was measured}], "tensors": {name: {"bits", "bytes",
        "parameters", "pieces", "of"}}, "layers": {name: {"bits", "bytes", "parameters"}}, "notes"}.

    Raises:
        BadArgumentError: The budget is too small; the error names the floor.
        QdeployError: The path cannot be read, or the runtime cannot run it.

    Example:
        >>> found = plan("examples/models/tiny-llama-gptq", budget=1_800_000, threads=1)
        >>> found["floor"] <= 1_800_000 < found["ceiling"]
        True
    """
    artifact = None if format else registry.artifact_backend(path)
    if artifact is not None:
        return _planned(_memory(artifact, path), str(path), budget, context, threads, kv)
    values = {"quantize": quantize, "lower": lower, "format": format, "trust_links": trust_links, **more}
    spec = ConversionSpec.of("native", values)
    backend = registry.backend(spec.to)
    memory = _memory(backend, path)
    source = registry.open_model(path, **vars(spec.source))
    spec = completed(source, spec)
    model = derived(source, spec)
    options = backend.file.recording(spec.target, spec.embedded_record()) if backend.file else spec.target
    with tempfile.TemporaryDirectory(prefix="qdeploy-plan-") as folder:
        file = memory.sketch(model, Path(folder), options)
        return {**_planned(memory, str(file), budget, context, threads, kv), "path": str(path)}


def _memory(backend: Backend, path: str | os.PathLike[str]) -> MemoryPlan:
    """The part of a backend that plans budgets."""
    if backend.memory is None:
        raise UnsupportedError(
            "only the native runtime has budgets",
            where=str(path),
            found=backend.name,
            todo="Give the checkpoint, or a native file.",
        )
    return backend.memory


def _planned(memory: MemoryPlan, path: str, budget: int | None, context: int, threads: int, kv: str) -> Plan:
    from qdeploy.native import least_memory

    stack = memory.outline(path)
    threads = threads or os.cpu_count() or 1
    session = memory.session_bytes(path, context or min(stack.context or 512, 4096), kv)
    fixed = least_memory(path, threads=threads, kv=kv) - stack.floor_bytes + session
    curve = Curve.of(stack.order, fixed)
    chosen = curve.points[-1] if budget is None else curve.at(budget)
    ends = [0]
    for size in stack.stored:
        ends.append(ends[-1] + size)
    weights = sum(stack.weights.values())
    return {
        "path": path,
        "floor": curve.points[0].nbytes,
        "ceiling": curve.points[-1].nbytes,
        "budget": budget,
        "fits": None if budget is None else stack.rung(chosen.count),
        "rung": stack.rung(chosen.count),
        "rungs": [
            {
                "rung": stack.rung(p.count),
                "stack": ends[p.count],
                "total": p.nbytes,
                "bits": 8 * ends[p.count] / max(1, weights),
                "error": p.loss,
                **({"loss": stack.losses[stack.rung(p.count)]} if stack.rung(p.count) in stack.losses else {}),
            }
            for p in curve.points
        ],
        **_shares(stack, chosen.count),
        "notes": ["the activations of an encoder come on top; they grow with the text"] if stack.encoder else [],
    }


def _shares(stack: Stack, count: int) -> dict[str, Any]:
    """What each tensor and each layer has of a prefix of the stack."""
    tensors = {
        name: {"parameters": n, "bytes": 0, "bits": 0.0, "pieces": 0, "of": 0} for name, n in stack.weights.items()
    }
    for place, (piece, size) in enumerate(zip(stack.order, stack.stored, strict=True)):
        row = tensors[piece.tensor]
        row["of"] += 1
        if place < count:
            row["pieces"] += 1
            row["bytes"] += size
    layers: dict[str, dict[str, Any]] = {}
    for name, row in tensors.items():
        layer = layers.setdefault(layer_of(name), {"parameters": 0, "bytes": 0, "bits": 0.0})
        layer["parameters"] += row["parameters"]
        layer["bytes"] += row["bytes"]
    for row in (*tensors.values(), *layers.values()):
        row["bits"] = 8 * row["bytes"] / max(1, row["parameters"])
    return {"tensors": tensors, "layers": layers}


def layer_of(name: str) -> str:
    """The layer of a tensor: its name up to the first number, or all of it ("model.layers.3", "lm_head.weight")."""
    parts = name.split(".")
    numbered = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return name if numbered is None else ".".join(parts[: numbered + 1])
