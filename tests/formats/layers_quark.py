"""Layers of AMD Quark, from the text of their layouts."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from layers import Layer, P, bit_streams, fields, rng
from packed_layers import AWQ_ORDER
from published import Stored, bf16, e2m1, e8m0, fp8, low_first


def quark(dtype: str, scheme: str, order: str = "reorder", zero: str = "int") -> Layer:
    """Every kind of weights: codes [N, K] with zero-points and scales, packed as the text says."""
    label = f"quark {dtype} {scheme} {order} {zero}"
    random, (rows, columns), group = rng(label), (12, 64), 16
    grid = {"per_tensor": (1, 1), "per_channel": (rows, 1), "per_group": (rows, columns // group)}[scheme]
    floating = dtype.startswith("fp")
    weight, values = quark_codes(dtype, random, (rows, columns), scheme, order)
    zeros = np.zeros(grid, np.int64)
    if dtype.startswith("uint"):
        zeros = random.integers(0, 1 << int(dtype[4:]), grid)
    scales = bf16(random.random(grid) + 0.1)
    spread = [np.repeat(np.repeat(a, rows // grid[0], 0), columns // grid[1], 1) for a in (zeros, scales)]
    expected = (values.astype(np.float32) - spread[0].astype(np.float32)) * spread[1].astype(np.float32)
    turned = scheme == "per_group" and not floating
    shape = {"per_tensor": (), "per_channel": (rows,)}.get(scheme)
    stored = scales.T if turned else scales.reshape(grid if shape is None else shape)
    tensors: Stored = {f"{P}.weight": weight, f"{P}.weight_scale": ("BF16", stored)}
    if not floating:
        tensors[f"{P}.weight_zero_point"] = quark_zeros(dtype, zeros, scheme, order, zero)
    spec: dict[str, Any] = {"dtype": dtype, "qscheme": scheme, "group_size": group, "ch_axis": 0}
    spec |= {"ch_axis": -1} if scheme == "per_group" else {}
    settings: dict[str, Any] = {
        "quant_method": "quark",
        "global_quant_config": {"weight": spec},
        "export": {"pack_method": order},
    }
    wrong = (
        {"exclude": ["*up_proj"]},
        {"global_quant_config": {"weight": None}},
        {"global_quant_config": {"weight": {**spec, "dtype": "int7"}}},
        {"global_quant_config": {"weight": {**spec, "qscheme": "per_planet"}}},
        {"export": {"pack_method": "shuffle"}},
        {"layer_quant_config": {"*up_proj": {"weight": {**spec, "dtype": "mx9"}}}},
    )
    free = {
        "per_tensor": (f"{P}.weight is short", f"{P}.weight is narrow"),
        "per_channel": (f"{P}.weight is narrow",),
        "per_group": (f"{P}.weight is narrow",) if dtype == "int8" else (),
    }[scheme]
    free += (f"{P}.weight_zero_point is missing",) if dtype.startswith("int") else ()
    return Layer(label, settings, tensors, expected, contradictions=wrong, free=free)


def quark_codes(
    dtype: str, random: np.random.Generator, shape: tuple[int, int], scheme: str, order: str
) -> tuple[tuple[str, np.ndarray], np.ndarray]:
    """The stored tensor, and the value of every code."""
    if dtype.startswith("fp8"):
        kind = "F8_E4M3" if dtype.endswith("e4m3") else "F8_E5M2"
        floats = (random.standard_normal(shape) * 50).astype(
            ml_dtypes.float8_e4m3fn if kind == "F8_E4M3" else ml_dtypes.float8_e5m2
        )
        return (kind, floats), floats.astype(np.float32)
    if dtype == "fp4":
        codes = random.integers(0, 16, shape)
        return ("U8", low_first(codes)), e2m1(codes)
    if dtype.startswith("fp6"):
        codes = random.integers(0, 64, shape)
        return ("U8", bit_streams(codes, 6)), fp6(codes, dtype)
    bits, low = int(dtype.lstrip("uint")), 0 if dtype[0] == "u" else -(1 << (int(dtype[3:]) - 1))
    numbers = random.integers(low, low + (1 << bits), shape)
    codes, turned = numbers & ((1 << bits) - 1), scheme == "per_group"
    if dtype == "int3":
        return ("U8", bit_streams(codes, 3)), numbers
    if bits == 8:
        kind, word = ("U8", "u1") if low == 0 else ("I8", "i1")
        return (kind, (numbers.T if turned else numbers).astype(word)), numbers
    return quark_words(codes.T if turned else codes, dtype, order), numbers


def quark_words(codes: np.ndarray, dtype: str, order: str) -> tuple[str, np.ndarray]:
    """Codes along the last axis in words; the last word is filled with zeros."""
    per, bits = (4, 2) if dtype == "uint2" else (8, 4)
    places = (3, 2, 1, 0) if dtype == "uint2" else AWQ_ORDER if order == "reorder" else tuple(range(8))
    codes = np.pad(np.atleast_2d(codes), ((0, 0), (0, -codes.shape[-1] % per)))
    words = [[fields(row[i : i + per], bits, places) for i in range(0, len(row), per)] for row in codes]
    return ("U8", np.array(words, np.uint8)) if dtype == "uint2" else ("I32", np.array(words, np.uint32).view(np.int32))


def quark_zeros(dtype: str, zeros: np.ndarray, scheme: str, order: str, zero: str) -> tuple[str, np.ndarray]:
    turned = scheme == "per_group"
    if zero == "float":
        return "BF16", bf16(zeros.T if turned else zeros[:, 0])
    if scheme == "per_tensor":
        return "I32", np.array(int(zeros[0, 0]), np.int32)
    bits = int(dtype.lstrip("uint"))
    if bits == 8:
        kind, word = ("U8", "u1") if dtype[0] == "u" else ("I8", "i1")
        return kind, (zeros.T if turned else zeros[:, 0]).astype(word)
    if dtype == "int3":
        return "U8", bit_streams(zeros, 3)
    kind, words = quark_words(zeros.T if turned else zeros[:, 0], dtype, order)
    return kind, words if turned else words[0]


def fp6(codes: np.ndarray, dtype: str) -> np.ndarray:
    """The value of codes of FP6."""
    mantissa_bits, bias = (3, 1) if dtype.endswith("e2m3") else (2, 3)
    exponent, mantissa = codes >> mantissa_bits & (31 >> mantissa_bits), codes & ((1 << mantissa_bits) - 1)
    step = 2.0**-mantissa_bits
    small, large = mantissa * step * 2.0 ** (1 - bias), (1 + mantissa * step) * 2.0 ** (exponent - bias)
    size = np.where(exponent == 0, small, large)
    return np.where(codes & 32, -size, size).astype(np.float32)


def quark_scales(kind: str) -> Layer:
    """FP4 under powers of two, or under e4m3 with a second scale."""
    random, (rows, columns), group = rng(f"quark {kind}"), (6, 64), 32 if kind == "mx" else 16
    codes = random.integers(0, 16, (rows, columns))
    tensors: Stored = {f"{P}.weight": ("U8", low_first(codes))}
    spec: Any = {"dtype": "fp4", "qscheme": "per_group", "group_size": group, "ch_axis": -1}
    if kind == "mx":
        powers = random.integers(120, 130, (rows, columns // group)).astype(np.uint8)
        tensors[f"{P}.weight_scale"], scales = ("U8", powers), e8m0(powers)
        spec |= {"scale_format": "e8m0"}
    else:
        small, whole = fp8(random.random((rows, columns // group)) * 100 + 1), np.array(0.03, np.float32)
        tensors |= {f"{P}.weight_scale": ("F8_E4M3", small), f"{P}.weight_scale_2": ("F32", whole)}
        scales, spec = small.astype(np.float32) * whole, [spec, {"dtype": "fp8_e4m3", "is_scale_quant": True}]
    expected = e2m1(codes) * np.repeat(scales, group, 1)
    settings = {"quant_method": "quark", "global_quant_config": {"weight": spec}}
    return Layer(f"quark {kind}", settings, tensors, expected)


def layers() -> list[Layer]:
    """All of them."""
    kinds = [
        *(("int4", s, o, "int") for s in ("per_group", "per_channel", "per_tensor") for o in ("reorder", "order")),
        *(("uint4", s, "reorder", "int") for s in ("per_group", "per_channel", "per_tensor")),
        *((d, s, "reorder", "int") for d in ("int8", "uint8") for s in ("per_group", "per_channel", "per_tensor")),
        *(("uint2", "per_group", "reorder", z) for z in ("int", "float")),
        *((d, s, "reorder", "") for d in ("fp8_e4m3", "fp8_e5m2") for s in ("per_group", "per_channel", "per_tensor")),
        *((d, "per_group", "reorder", "") for d in ("fp4", "fp6_e2m3", "fp6_e3m2")),
    ]
    return [*(quark(*kind) for kind in kinds), *(quark_scales(kind) for kind in ("mx", "nv"))]
