"""Layers of SpQR, from the text of their layout: a word at a time."""

from __future__ import annotations

import numpy as np
from layers import Layer, P, rng
from published import Stored

TILE = 16


def octets(*numbers: np.float16) -> bytes:
    return np.array(numbers, "<f2").tobytes()


def tile(random: np.random.Generator) -> tuple[list[int], np.ndarray]:
    """The 16 words of a tile, and its numbers."""
    s1, z1, s0, z0 = above = (random.random(4) + 0.25).astype(np.float16)
    split, words, numbers = octets(*above), [], np.zeros((TILE, TILE), np.float32)
    for row in range(TILE):
        s, z = random.integers(0, 8, 2)
        codes = random.integers(0, 8, TILE)
        scale = (np.float32(s) - np.float32(s0)) * np.float32(s1)
        zero = (np.float32(z) - np.float32(z0)) * np.float32(z1)
        numbers[row] = (codes.astype(np.float32) - zero) * scale
        word = int(s) | int(z) << 3 | split[row // 2] << 54
        words.append(word | sum(int(code) << (6 + 3 * i) for i, code in enumerate(codes)))
    return words, numbers


def spqr(label: str, high: int, wide: int, span: int, share: float) -> Layer:
    """`high` by `wide` tiles."""
    random, words = rng(label), []
    expected = np.zeros((TILE * high, TILE * wide), np.float32)
    for i in range(high):
        for j in range(wide):
            own, expected[TILE * i : TILE * i + TILE, TILE * j : TILE * j + TILE] = tile(random)
            words += own
    chosen = random.random(expected.shape) < share
    added = random.standard_normal(expected.shape).astype(np.float16)
    rows = [[(c, added[r, c]) for c in np.flatnonzero(chosen[r])] for r in range(len(chosen))]
    for r, entries in enumerate(rows):
        for c, value in entries:
            expected[r, c] += np.float32(value)
    packed = [[int(c) | int(v.view(np.uint16)) << 16 for c, v in entries] for entries in rows]
    offsets, run = [0], []
    for first in range(0, len(packed), span):
        some = packed[first : first + span]
        for turn in range(max(map(len, some))):
            run += [entries[turn] if turn < len(entries) else 0 for entries in some]
        offsets.append(len(run))
    values = ("I32", np.array(run, np.uint32).view(np.int32)) if run else ("F32", np.zeros(0, np.float32))
    tensors: Stored = {
        f"{P}.dense_weights": ("I64", np.array(words, np.uint64).view(np.int64)),
        f"{P}.row_offsets": ("I32", np.array(offsets, np.int32)),
        f"{P}.col_vals": values,
        f"{P}.in_perm": ("I32", np.zeros(0, np.int32)),
    }
    settings = {"quant_method": "spqr", "bits": 3, "beta1": 16, "beta2": 16, "shapes": {}}
    free = [f"{P}.in_perm is {how}" for how in ("missing", "short")] + [f"{P}.in_perm has another type"]
    free += [] if run else [f"{P}.col_vals is short", f"{P}.col_vals has another type", f"{P}.dense_weights is short"]
    config = {"hidden_size": TILE * wide, "intermediate_size": TILE * high}
    wrong = ({"bits": 4}, {"beta1": 8}, {"beta2": 32})
    return Layer(f"spqr {label}", settings, tensors, expected, contradictions=wrong, free=tuple(free), config=config)


def layers() -> list[Layer]:
    """All of them."""
    return [
        spqr("by rows", 3, 4, 1, 0.02),
        spqr("by 16 rows", 2, 3, 16, 0.02),
        spqr("many outliers", 1, 2, 1, 0.5),
        spqr("no outliers", 2, 2, 1, 0.0),
    ]
