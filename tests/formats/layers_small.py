"""Layers of BitNet, FBGEMM, EETQ, Any-Precision, AnyBCQ and AQLM, from the text of their layouts."""

from __future__ import annotations

import numpy as np
from layers import Layer, P, rng
from published import Stored, bf16, fp8


def four_rows_to_a_byte(ternary: np.ndarray) -> np.ndarray:
    quarter = len(ternary) // 4
    packed = sum((ternary[i * quarter : (i + 1) * quarter] + 1) << 2 * i for i in range(4))
    return np.asarray(packed, np.uint8)


def bitnet(kind: str) -> Layer:
    random, settings = rng(f"bitnet {kind}"), {"quant_method": "bitnet"}
    ternary, scale = random.integers(-1, 2, (8, 20)), bf16(np.array([0.37], np.float32))
    weight: tuple[str, np.ndarray] = ("U8", four_rows_to_a_byte(ternary))
    if kind != "bitlinear":
        settings |= {"linear_class": "autobitlinear"}
    if kind == "floats":
        weight = ("BF16", bf16(np.where(ternary == 0, np.float32(-0.0), ternary)))
    expected = ternary / scale.astype(np.float32) if kind == "bitlinear" else ternary * scale.astype(np.float32)
    tensors: Stored = {f"{P}.weight": weight, f"{P}.weight_scale": ("BF16", scale)}
    wrong = ({"linear_class": "trilinear"}, {"quantization_mode": "sideways"})
    if kind != "bitlinear":
        wrong += ({"quantization_mode": "online"},)
    divisors = (f"{P}.weight_scale",) if kind == "bitlinear" else ()
    free = (f"{P}.weight is short", f"{P}.weight is narrow")
    return Layer(f"bitnet {kind}", settings, tensors, expected, contradictions=wrong, free=free, divisors=divisors)


def fbgemm() -> Layer:
    random = rng("fbgemm")
    codes, scale = fp8(random.standard_normal((6, 20)) * 50), (random.random((6, 1)) + 0.1).astype(np.float32)
    tensors: Stored = {
        f"{P}.weight": ("F8_E4M3", codes),
        f"{P}.weight_scale": ("F32", scale),
        f"{P}.input_scale_ub": ("F32", np.array([1200], np.float32)),
    }
    settings = {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}
    free = (f"{P}.weight is narrow", f"{P}.input_scale_ub is missing", f"{P}.input_scale_ub is not a number")
    return Layer("fbgemm", settings, tensors, codes.astype(np.float32) * scale, free=free)


def fbgemm_experts(part: str) -> Layer:
    random, name = rng(part), f"model.layers.0.feed_forward.experts.{part}"
    codes, scale = fp8(random.standard_normal((3, 10, 6)) * 50), (random.random((3, 1, 6)) + 0.1).astype(np.float32)
    stored = scale if part == "gate_up_proj" else scale.reshape(3, 6, 1)
    tensors: Stored = {name: ("F8_E4M3", codes), f"{name}_scale": ("F32", stored)}
    settings = {"quant_method": "fbgemm_fp8"}
    return Layer(f"fbgemm {part}", settings, tensors, codes.astype(np.float32) * scale, name)


EETQ_ORDER = (0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15)
"""Inputs as the library permutes them, before it swaps the middle bytes of every word."""


def eetq(rows: int, columns: int, own: bool = False) -> Layer:
    random = rng(f"eetq {rows} {columns}")
    codes = random.integers(-128, 128, (rows, columns))
    scale = (random.random(rows) + 0.01).astype(np.float16)
    stored = np.zeros(rows * columns, np.uint8)
    for n in range(rows):
        for k in range(columns):
            place = EETQ_ORDER.index(k % 16)
            place += {1: 1, 2: -1}.get(place % 4, 0)
            block = (n // 2 * (columns // 64) + k // 64) * 128 + n % 2 * 64 + k % 64 // 16 * 16
            stored[block + place] = codes[n, k] + 128
    name = f"{P}.qweight" if own else f"{P}.weight"
    tensors: Stored = {
        name: ("I8", stored.view(np.int8).reshape(columns, rows)),
        f"{P}.weight_scales": ("F16", scale),
    }
    settings = {"quant_method": "eetq", "weights": "int8"}
    expected = codes.astype(np.float32) * scale.astype(np.float32)[:, None]
    wrong = ({"weights": "int4"}, {"bits": 4})
    free = (f"{P}.weight is short",) if columns > 64 else ()
    return Layer(f"eetq {rows}x{columns}{' own' * own}", settings, tensors, expected, contradictions=wrong, free=free)


def anyprec(seed: int, parent: int, rows: int, columns: int) -> Layer:
    label = f"anyprec {seed} to {parent} {rows}x{columns}"
    random = rng(label)
    codes = random.integers(0, 1 << parent, (rows, columns))
    tables = {bits: random.standard_normal((rows, 1 << bits)).astype(np.float16) for bits in range(seed, parent + 1)}
    stored = np.zeros((parent, rows, columns // 32), np.uint32)
    for plane in range(parent):
        octets = np.packbits(codes >> (parent - 1 - plane) & 1, axis=1).astype(np.uint32)
        for first in range(0, columns // 8, 128):
            chunk = octets[:, first : first + 128]
            apart = chunk.shape[1] // 4
            for t in range(apart):
                word = chunk[:, t] << 24 | chunk[:, t + apart] << 16
                word |= chunk[:, t + 2 * apart] << 8 | chunk[:, t + 3 * apart]
                stored[plane, :, first // 4 + t] = word
    tensors: Stored = {f"{P}.qweight": ("I32", stored.view(np.int32))}
    tensors |= {f"{P}.lut{bits}": ("F16", table) for bits, table in tables.items()}
    own = {"seed_precision": seed, "parent_precision": parent, "group_count": 1, "arch_config": {}}
    expected = np.take_along_axis(tables[parent], codes, 1).astype(np.float32)
    free = (f"{P}.qweight is narrow",)
    return Layer(label, {}, tensors, expected, config={"anyprec": own}, free=free)


def anybcq(seed: int, parent: int, rows: int, columns: int, group: int = -1) -> Layer:
    label = f"anybcq {seed} to {parent} {rows}x{columns} group {group}"
    random, groups = rng(label), 1 if group == -1 else columns // group
    signs = random.integers(0, 2, (parent, rows, columns))
    stored = np.zeros((columns // 32, parent, rows), np.uint32)
    for k in range(columns):
        stored[k // 32] |= signs[:, :, k].astype(np.uint32) << np.uint32(k % 32)
    tensors: Stored = {f"{P}.qweight": ("I32", stored.view(np.int32))}
    for bits in range(seed, parent + 1):
        tensors[f"{P}.alpha_{bits}"] = "F16", random.standard_normal((groups, bits, rows)).astype(np.float16)
        tensors[f"{P}.beta_{bits}"] = "F16", random.standard_normal((groups, rows)).astype(np.float16)
    own = {"seed_precision": seed, "parent_precision": parent, "group_size": group, "arch_config": {}}
    expected = anybcq_numbers(tensors, signs, parent)
    free = (f"{P}.qweight is short",) if group == -1 else ()
    return Layer(label, {}, tensors, expected, config={"anybcq": own}, free=free)


def anybcq_numbers(tensors: Stored, signs: np.ndarray, bits: int) -> np.ndarray:
    alpha, beta = (tensors[f"{P}.{part}_{bits}"][1].astype(np.float32) for part in ("alpha", "beta"))
    repeat = signs.shape[2] // len(beta)
    total = np.zeros(signs.shape[1:], np.float32)
    for i in range(bits):
        total += (2 * signs[i] - 1).astype(np.float32) * alpha[:, i].T.repeat(repeat, 1)
        if i == 0:
            total += beta.T.repeat(repeat, 1)
    return total


def aqlm(bits: int, books: int, rows: int, columns: int, transposed: bool = False, grouped: bool = False) -> Layer:
    label = f"aqlm {books}x{bits} groups {rows}x{columns}{' transposed' * transposed}{' scales' * grouped}"
    random, high, wide = rng(label), 6, 5
    codes = random.integers(0, 1 << bits, (high, wide, books))
    tables = random.standard_normal((books, 1 << bits, rows, columns)).astype(np.float16)
    scales = (random.random((high, wide if grouped else 1, 1, 1)) + 0.5).astype(np.float16)
    expected = np.zeros((high, rows, wide, columns), np.float32)
    for g in range(high):
        for h in range(wide):
            total = sum(tables[c, codes[g, h, c]].astype(np.float32) for c in range(books))
            expected[g, :, h] = total * np.float32(scales[g, h if grouped else 0, 0, 0])
    signed = np.where(codes >= 1 << (bits - 1), codes - (1 << bits), codes)
    stored = signed.astype(np.int8 if bits <= 8 else np.int16)
    tensors: Stored = {
        f"{P}.codes": ("I8" if bits <= 8 else "I16", stored.swapaxes(0, 1) if transposed else stored),
        f"{P}.codebooks": ("F16", tables),
        f"{P}.scales": ("F16", scales),
    }
    settings = {
        "quant_method": "aqlm",
        "nbits_per_codebook": bits,
        "num_codebooks": books,
        "out_group_size": rows,
        "in_group_size": columns,
    }
    wrong = (
        {"nbits_per_codebook": bits - 1},
        {"num_codebooks": books + 1},
        {"in_group_size": columns + 1},
        {"out_group_size": 0},
        {"nbits_per_codebook": 17},
        {"linear_weights_not_to_quantize": [f"{P}.weight"]},
    )
    free = (f"{P}.codes is short",) if transposed else ()
    expected = expected.reshape(high * rows, wide * columns)
    return Layer(label, settings, tensors, expected, contradictions=wrong, free=free)


def layers() -> list[Layer]:
    """All of them."""
    return [
        *(bitnet(kind) for kind in ("bitlinear", "autobitlinear", "floats")),
        fbgemm(),
        *(fbgemm_experts(part) for part in ("gate_up_proj", "down_proj")),
        eetq(64, 128),
        eetq(192, 64, own=True),
        anybcq(2, 4, 6, 64),
        anybcq(3, 3, 5, 96, group=48),
        anyprec(3, 4, 5, 64),
        anyprec(2, 2, 3, 2240),
        aqlm(8, 2, 1, 8),
        aqlm(8, 1, 1, 8, transposed=True),
        aqlm(5, 3, 1, 16),
        aqlm(12, 1, 2, 4, grouped=True),
        aqlm(16, 1, 1, 8),
    ]
