"""Layers of HIGGS, from the text of their layout: one code at a time, into Python's integers."""

from __future__ import annotations

import numpy as np
from layers import Layer, P, rng
from published import Stored

THREE = [0, 3, 6, 9, 12, 1, 4, 7, 10, 13, 2, 5, 8, 11, 14, 15]


def packed(codes: np.ndarray, bits: int, strip: int) -> np.ndarray:
    """The words of codes [N, K]."""
    rows, columns = codes.shape
    words = np.zeros((rows * bits // 16, columns), np.uint16)
    strips = 16 if bits == 3 else 16 // bits
    chunks = rows // (strips * strip)

    def run(c: int, p: int, k: int, order: list[int]) -> int:
        """The codes of some strips in one integer."""
        whole, at = 0, 0
        for s in order:
            for column in (k + 1, k):
                whole |= int(codes[(c * strips + s) * strip + p, column]) << at
                at += bits
        return whole

    for c in range(chunks):
        for p in range(strip):
            for k in range(0, columns, 2):
                if bits != 3:
                    for a in range(2):
                        half = [a * strips // 2 + s for s in range(strips // 2)]
                        words[c * strip + p, k + a] = run(c, p, k, half)
                    continue
                whole = run(c, p, k, THREE)
                for plane in range(3):
                    place = c * strip + p if plane == 0 else (chunks + 2 * c + plane - 1) * strip + p
                    words[place, k] = whole >> (30 * plane) & 0xFFFF
                    words[place, k + 1] = whole >> (30 * plane + 16) & 0x3FFF | (whole >> (90 + 2 * plane) & 3) << 14
    return words.view(np.int16)


def higgs(
    label: str, bits: int, size: int, template: int, rows: int, columns: int = 256, group: int = 64, block: int = 128
) -> Layer:
    """A layer; the name of its own module is in the settings."""
    random, count = rng(label), 1 << bits
    strip = 64 if bits != 3 and template // (16 if bits == 4 else 4) % 3 == 0 else 32
    codes = random.integers(0, count, (rows, columns))
    scales = (random.random((rows, columns // group)) + 0.5).astype(np.float16)
    single = random.standard_normal(count).astype(np.float16)
    pairs = random.standard_normal((count, count, 2)).astype(np.float16)
    if size == 1:
        pairs = np.stack(np.broadcast_arrays(single[:, None], single[None]), axis=-1)
    first, second = codes[:, ::2], codes[:, 1::2]
    numbers = pairs[first, second].reshape(rows, columns).astype(np.float32)
    expected = numbers * np.repeat(scales.astype(np.float32), group, axis=1)
    tensors: Stored = {
        f"{P}.weight": ("I16", packed(codes, bits, strip)),
        f"{P}.scales": ("F16", scales),
        f"{P}.tables": ("F16", single),
        f"{P}.tables2": ("F16", np.ascontiguousarray(pairs)),
    }
    own = {"template_id": template, "num_bits": bits, "group_size": group}
    sizes = {"bits": bits, "p": size, "group_size": group, "hadamard_size": block}
    settings = {"quant_method": "higgs", **sizes, "tune_metadata": {P: own}}
    wrong: tuple[dict[str, object], ...] = (
        {"bits": 2 if bits != 2 else 4},
        {"group_size": 32},
        {"hadamard_size": 512},
        {"hadamard_size": 96},
        {"p": 4},
        *([{"p": 1}] if size == 2 else []),
        {"tune_metadata": {}},
        {"tune_metadata": {P: {**own, "num_bits": 1}}},
        {"tune_metadata": {P: {"num_bits": bits}}},
    )
    return Layer(f"higgs {label}", settings, tensors, expected, contradictions=wrong)


def layers() -> list[Layer]:
    """All of them."""
    return [
        higgs("four bits", 4, 2, 16, 256),
        higgs("four bits, tall", 4, 2, 48, 256),
        higgs("three bits", 3, 2, 0, 1024, columns=128),
        higgs("two bits", 2, 2, 5, 512),
        higgs("two bits, tall", 2, 1, 12, 512),
        higgs("three bits, single", 3, 1, 4, 512, columns=128),
        higgs("four bits, single", 4, 1, 17, 128, group=128),
    ]
