"""Layers of EXL2 and EXL3, from the text of their layouts: Python's integers, one column or weight at a time."""

from __future__ import annotations

from functools import cache

import numpy as np
from layers import Layer, P, rng
from published import Stored


def exl2(label: str, groups: list[tuple[int, int]], rows: int = 16, in_order: bool = False) -> Layer:
    """Groups are (bits, columns)."""
    random, columns = rng(label), sum(count for _, count in groups)
    stored_at = np.arange(columns) if in_order else random.permutation(columns)
    words, heads, values = [], [], []
    sizes = random.integers(0, 16, (len(groups), rows))
    greatest = (random.random(len(groups)) + 0.5).astype(np.float16)
    for g, (bits, count) in enumerate(groups):
        codes = random.integers(0, 1 << bits, (count, rows))
        heads += [bits, sum(len(each) for each in words)]
        whole = [sum(int(c) << (i * bits) for i, c in enumerate(codes[:, n])) for n in range(rows)]
        high = -(-count * bits // 32)
        words.append(np.array([[number >> (32 * w) & 0xFFFFFFFF for number in whole] for w in range(high)], np.uint32))
        scale = (sizes[g] + 1.0) ** 2 * float(greatest[g]) / 256
        values.append((codes - (1 << (bits - 1))) * scale)
    packed = np.zeros((len(groups), rows // 8), np.uint32)
    for n in range(rows):
        packed[:, n // 8] |= (sizes[:, n] << (4 * (n % 8))).astype(np.uint32)
    tensors: Stored = {
        f"{P}.q_weight": ("I32", np.concatenate(words).view(np.int32)),
        f"{P}.q_groups": ("I16", np.array(heads, np.int16)),
        f"{P}.q_scale": ("I32", packed.view(np.int32)),
        f"{P}.q_scale_max": ("F16", greatest),
        f"{P}.q_invperm": ("I32", stored_at.astype(np.int32)),
    }
    expected = np.concatenate(values)[stored_at].T.astype(np.float32)
    settings = {"quant_method": "exl2", "version": "0.3.0", "bits": 4.0}
    return Layer(f"exl2 {label}", settings, tensors, expected)


MULTIPLIERS = {"": 89226354, "mcg": 0xCBAC1FED, "mul1": 0x83DCD12D}


def half(bits: int) -> np.float16:
    return np.array([bits], np.uint16).view(np.float16)[0]


@cache
def worth(state: int, codebook: str) -> float:
    """What a state of 16 bits stands for, step by step as a processor has it."""
    x = state * MULTIPLIERS[codebook] + (0 if codebook else 64248484) & 0xFFFFFFFF
    if codebook == "mul1":
        total = sum(x >> (8 * i) & 255 for i in range(4))
        return float(np.float16(float(half(0x6400 + total)) * float(half(0x1EEE)) + float(half(0xC931))))
    x = (x & 0x8FFF8FFF) ^ 0x3B603B60
    return float(np.float16(half(x & 0xFFFF) + half(x >> 16)))


def exl3_tile(random: np.random.Generator, bits: int, codebook: str) -> tuple[list[int], np.ndarray]:
    """The words of a tile, and its weights [16 inputs, 16 outputs]."""
    fresh = random.integers(0, 1 << bits, 256).tolist()
    ring = "".join(f"{code:0{bits}b}" for code in fresh)
    weights = np.zeros((16, 16))
    for t in range(256):
        end = (t + 1) * bits
        state = int((ring + ring)[len(ring) + end - 16 : len(ring) + end], 2)
        lane, j = t // 8, t % 8
        row = 2 * (lane % 4) + j % 2 + (8 if j % 4 >= 2 else 0)
        weights[row, lane // 4 + (8 if j >= 4 else 0)] = worth(state, codebook)
    whole = [int(ring[16 * i : 16 * i + 16], 2) for i in range(16 * bits)]
    return [whole[i + 1 - 2 * (i % 2)] for i in range(16 * bits)], weights


def exl3(bits: int, codebook: str = "", signs: bool = False) -> Layer:
    return exl3_layer(f"exl3 {bits} bits {codebook or '3inst'}{' signs' * signs}", bits, codebook, 8, 8, signs)


def exl3_layer(label: str, bits: int, codebook: str, high: int, wide: int, signs: bool = False) -> Layer:
    """Of `high` by `wide` tiles of inputs and outputs."""
    random = rng(label)
    trellis, expected = np.zeros((high, wide, 16 * bits), np.uint16), np.zeros((16 * wide, 16 * high), np.float32)
    for k in range(high):
        for n in range(wide):
            trellis[k, n], weights = exl3_tile(random, bits, codebook)
            expected[16 * n : 16 * n + 16, 16 * k : 16 * k + 16] = weights.T
    tensors: Stored = {f"{P}.trellis": ("I16", trellis.view(np.int16))}
    for part, count in (("su", 16 * high), ("sv", 16 * wide)):
        if signs:
            tensors[f"{P}.{part}"] = ("I16", random.integers(-(1 << 15), 1 << 15, count // 16).astype(np.int16))
        else:
            tensors[f"{P}.{part}h"] = ("F16", random.standard_normal(count).astype(np.float16))
    if codebook:
        multiplier = np.array(MULTIPLIERS[codebook], np.uint32).view(np.int32)
        tensors[f"{P}.{codebook}"] = ("I32", multiplier)
    free = (f"{P}.{codebook} is missing", *((f"{P}.trellis is narrow",) if bits % 2 == 0 else ()))
    return Layer(label, {"quant_method": "exl3", "bits": float(bits)}, tensors, expected, free=free)


def layers() -> list[Layer]:
    """All of them."""
    return [
        exl2("four bits", [(4, 32)] * 3, in_order=True),
        exl2("act-order", [(4, 32)] * 3),
        exl2("every width", [(8, 32), (6, 32), (5, 64), (4, 32), (3, 32), (2, 96)]),
        exl2("short last group", [(6, 64), (5, 64), (5, 24)], rows=24),
        exl2("one group", [(3, 64)], rows=8),
        exl3(1),
        exl3(3, signs=True),
        exl3(4, "mcg"),
        exl3(5, "mul1"),
        exl3(8, "mcg"),
    ]
