"""Sparse layers of compressed-tensors, from the text of their layouts."""

from __future__ import annotations

from typing import Any

import numpy as np
from layers import Layer, P, rng
from published import Stored, bf16, fp8

SHAPE = (6, 20)


def sparse(form: str, kind: str, whole_name: bool = False) -> Layer:
    label = f"{form} {kind}{' by parameter' * whole_name}"
    random, stem = rng(label), f"{P}.weight" if whole_name else P
    chosen = random.random(SHAPE) < 0.4
    if form == "sparse-24-bitmask":
        pairs = [random.permutation([1, 1, 0, 0]) for _ in range(SHAPE[0] * SHAPE[1] // 4)]
        chosen = np.array(pairs).reshape(SHAPE) > 0
    count = int(chosen.sum())
    numbers = random.standard_normal(count) * 50
    values = {"BF16": bf16, "F8_E4M3": fp8, "I8": lambda n: np.rint(n).astype(np.int8)}[kind](numbers)
    expected = np.zeros(SHAPE, np.float32)
    expected[chosen] = values.astype(np.float32)
    octets = (row[8 * i : 8 * i + 8].tolist() for row in chosen for i in range(3))
    rows = [sum(int(bit) << j for j, bit in enumerate(octet)) for octet in octets]
    structured = form == "sparse-24-bitmask"
    tensors: Stored = {
        f"{stem}.compressed": (kind, values.reshape(SHAPE[0], -1) if structured else values),
        f"{stem}.bitmask": ("U8", np.array(rows, np.uint8).reshape(SHAPE[0], 3)),
        f"{stem}.shape": ("I64", np.array([[n] for n in SHAPE] if structured else SHAPE, np.int64)),
    }
    if not structured:
        starts = np.cumsum(chosen.sum(1)) - chosen.sum(1)
        tensors[f"{stem}.row_offsets"] = ("I64", starts.astype(np.int64))
    settings: dict[str, Any] = {"quant_method": "compressed-tensors", "sparsity_config": {"format": form}}
    if kind != "BF16":
        scale = bf16(random.random((SHAPE[0], 1)) + 0.1)
        tensors[f"{P}.weight_scale"] = ("BF16", scale)
        expected = expected * scale.astype(np.float32)
        weights = {"num_bits": 8, "type": "int" if kind == "I8" else "float", "strategy": "channel"}
        settings["config_groups"] = {"g": {"targets": ["Linear"], "weights": weights, "format": "naive-quantized"}}
    free = (f"{stem}.row_offsets is missing", f"{stem}.row_offsets has another type", f"{stem}.row_offsets is short")
    wrong = ({"sparsity_config": {"format": "marlin-48"}}, {"transform_config": {"config_groups": {"a": {}}}})
    return Layer(label, settings, tensors, expected, contradictions=wrong, free=free)


def layers() -> list[Layer]:
    """All of them."""
    forms = ("sparse-bitmask", "sparse-24-bitmask")
    kinds = [sparse(form, kind) for form in forms for kind in ("BF16", "F8_E4M3", "I8")]
    return [*kinds, sparse("sparse-bitmask", "BF16", whole_name=True)]
