"""Layers of VPTQ, from the text of their layouts: vectors down the columns, one look-up at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from layers import Layer, P, rng
from packed_layers import words
from published import Stored

GROUP = 20


@dataclass(frozen=True)
class Sizes:
    """What varies: rows, vector length, entries, residual entries, groups, outlier columns and their vectors."""

    label: str
    rows: int = 16
    length: int = 8
    entries: int = 256
    residuals: int = 16
    groups: int = 1
    outliers: int = 0
    outlier_length: int = -1
    outlier_entries: int = -1
    packed: bool = True
    permuted: bool = True
    scaled: bool = True


def layer(sizes: Sizes) -> Layer:
    random, columns = rng(sizes.label), sizes.outliers + sizes.groups * GROUP
    whole, tensors = np.zeros((sizes.rows, columns), np.float32), Stored()
    codes: dict[str, np.ndarray] = {}
    for part, entries in (("centroids", sizes.entries), ("res_centroids", sizes.residuals)):
        if entries < 1:
            continue
        table = random.standard_normal((sizes.groups, entries, sizes.length)).astype(np.float16)
        index = random.integers(0, entries, (sizes.groups, -(-sizes.rows // sizes.length), GROUP))
        for g in range(sizes.groups):
            first = sizes.outliers + g * GROUP
            add_vectors(whole[:, first : first + GROUP], table[g], index[g])
        tensors[f"{P}.{part}.weight"] = ("F16", table.reshape(sizes.groups, -1))
        codes[part] = index
    tensors |= stored_codes(sizes, codes)
    if sizes.outliers:
        table = random.standard_normal((sizes.outlier_entries, sizes.outlier_length)).astype(np.float16)
        index = random.integers(0, sizes.outlier_entries, (-(-sizes.rows // sizes.outlier_length), sizes.outliers))
        add_vectors(whole[:, : sizes.outliers], table, index)
        tensors[f"{P}.outlier_centroids.weight"] = ("F16", table.reshape(1, -1))
        tensors[f"{P}.outlier_indices"] = ("I16", index[None].astype(np.uint16).view(np.int16))
    expected = whole
    if sizes.permuted:
        perm = random.permutation(columns)
        expected = np.empty_like(whole)
        expected[:, perm] = whole
        short = ("I16", perm.astype(np.uint16).view(np.int16))
        tensors[f"{P}.perm"] = short if sizes.packed else ("I64", perm.astype(np.int64))
    if sizes.scaled:
        scale, bias = (random.standard_normal(columns).astype(np.float16) for _ in "sb")
        tensors |= {f"{P}.weight_scale": ("F16", scale), f"{P}.weight_bias": ("F16", bias)}
        expected = expected * scale.astype(np.float32) + bias.astype(np.float32)
    values = settings(sizes, columns)
    section = {"quant_method": "vptq", "config_for_layers": {P: values}}
    return Layer(sizes.label, section, tensors, expected, contradictions=contradictions(values))


def add_vectors(columns: np.ndarray, table: np.ndarray, index: np.ndarray) -> None:
    """Adds looked-up vectors [entries, length] down some columns."""
    length = table.shape[1]
    for row in range(len(columns)):
        columns[row] += table[index[row // length], row % length].astype(np.float32)


def contradictions(values: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    wrong: list[tuple[str, Any]] = [
        ("vector_quant_dim", "in"),
        ("vector_lens", [values["vector_lens"][0], 3]),
        ("num_centroids", [-1, values["num_centroids"][1] * 2]),
        ("num_centroids", 7),
        ("group_size", 7),
        ("in_features", values["in_features"] + 1),
        ("out_features", values["out_features"] * 3),
        ("enable_perm", not values["enable_perm"]),
        ("enable_norm", not values["enable_norm"]),
    ]
    return ({"config_for_layers": {}}, *({"config_for_layers": {P: {**values, k: v}}} for k, v in wrong))


def settings(sizes: Sizes, columns: int) -> dict[str, Any]:
    return {
        "vector_lens": [sizes.outlier_length, sizes.length],
        "num_centroids": [sizes.outlier_entries, sizes.entries],
        "num_res_centroids": [-1, sizes.residuals],
        "group_num": sizes.groups,
        "group_size": GROUP,
        "outlier_size": sizes.outliers,
        "in_features": columns,
        "out_features": sizes.rows,
        "is_indice_packed": sizes.packed,
        "enable_perm": sizes.permuted,
        "enable_norm": sizes.scaled,
    }


def stored_codes(sizes: Sizes, codes: dict[str, np.ndarray]) -> Stored:
    main, residual = codes["centroids"], codes.get("res_centroids")
    if not sizes.packed:
        parts = {"indices": main} | ({"res_indices": residual} if residual is not None else {})
        return {f"{P}.{k}": ("I16", v.astype(np.uint16).view(np.int16)) for k, v in parts.items()}
    bits = sizes.entries.bit_length() - 1
    both = main if residual is None else main | residual << bits
    total = bits + (0 if residual is None else sizes.residuals.bit_length() - 1)
    packed = np.array([[words(row, total) for row in group] for group in both], np.uint32)
    return {f"{P}.indices": ("I32", packed.view(np.int32))}


def layers() -> list[Layer]:
    """All of them."""
    kinds = (
        Sizes("vptq 256 + 16"),
        Sizes("vptq without residuals", residuals=-1),
        Sizes("vptq in order", permuted=False, scaled=False),
        Sizes("vptq 4096 + 256", entries=4096, residuals=256, length=2),
        Sizes("vptq rows that end within a vector", rows=13, length=6),
        Sizes("vptq two groups", groups=2),
        Sizes("vptq outliers", outliers=5, outlier_length=8, outlier_entries=64),
        Sizes("vptq outliers of other vectors, two groups", groups=2, outliers=3, outlier_length=4, outlier_entries=32),
        Sizes("vptq not packed", packed=False),
        Sizes("vptq not packed, outliers", packed=False, outliers=3, outlier_length=4, outlier_entries=300),
    )
    return [layer(sizes) for sizes in kinds]
