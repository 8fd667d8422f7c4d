"""A quantized layer in a checkpoint, as the tests of all readers see it: written from the text of its layout.

Each `layers_*.py` makes some with plain arithmetic; `test_layers.py` reads, damages and contradicts every one of them
in the same ways.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from published import Stored

P = "model.layers.0.mlp.up_proj"


@dataclass(frozen=True)
class Layer:
    """One quantized layer in a checkpoint.

    Attributes:
        label: For test names.
        settings: `quantization_config`.
        tensors: What is stored.
        expected: What the parameter decodes to.
        parameter: Its name.
        contradictions: Other settings that must be refused.
        free: Damage that nothing else in the file denies, by its name.
        divisors: Scales by which codes are divided.
    """

    label: str
    settings: dict[str, Any]
    tensors: Stored
    expected: np.ndarray
    parameter: str = f"{P}.weight"
    contradictions: tuple[dict[str, Any], ...] = ()
    free: tuple[str, ...] = ()
    divisors: tuple[str, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)


def rng(label: str) -> np.random.Generator:
    return np.random.default_rng(list(label.encode()))


def fields(codes: Iterable[int], bits: int, order: tuple[int, ...]) -> int:
    """A word: the code at place order[i] in field i."""
    codes = list(codes)
    return sum(int(codes[place]) << (bits * i) for i, place in enumerate(order))


def bit_streams(codes: np.ndarray, bits: int) -> np.ndarray:
    """Rows of codes as little-endian bit streams of whole bytes."""
    rows = []
    for row in codes.tolist():
        number = sum(code << (i * bits) for i, code in enumerate(row))
        rows.append(list(number.to_bytes(-(-len(row) * bits // 8), "little")))
    return np.array(rows, np.uint8)
